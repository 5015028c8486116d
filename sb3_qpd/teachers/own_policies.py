"""Live policies that are not quite SB3's: classes with their own distribution, and modules in ``torch.compile``."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_qpd.observations import batch_size, stack
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.normalization import ObsNormalization

if TYPE_CHECKING:
    from sb3_qpd.teachers.teacher import Teacher

N_COMPARED = 256  # observations on which labels and actions are compared
AGREEMENT = 0.99  # share of them that have to agree: of equal logits either action may be the best
# the methods of a policy that its actions go through
METHODS = ("predict", "_predict", "obs_to_tensor", "extract_features", "get_distribution", "_get_action_dist_from_latent")
_TOLERANCE = 1e-3  # of a Box action, in half ranges
_SB3 = ("stable_baselines3", "sb3_contrib")


def is_own_class(policy: Any) -> bool:
    """
    Whether a policy's class is a user's own, not SB3's.

    :param policy: live policy
    """
    return type(policy).__module__.partition(".")[0] not in _SB3


def overrides(policy: Any, *names: str) -> bool:
    """
    Whether a policy has its own methods in place of SB3's, from its class or set on the object.

    :param policy: live policy or model
    :param names: names of the methods
    """
    others = (*_SB3, "sb3_qpd", "torch", "builtins")  # a student's methods do what SB3's do
    own = [vars(cls) for cls in type(policy).__mro__ if cls.__module__.partition(".")[0] not in others]
    return any(name in attributes for attributes in (*own, vars(policy)) for name in names)


def plays_differently(player: Any) -> bool:
    """
    Whether actions may come from a user's own code: from a policy of an own class, from a method set on the object, or from
    the ``predict`` of an own algorithm. Its labels have to be compared with its actions then.

    :param player: live policy or model
    """
    if getattr(player, "is_function", False):  # a function's answer is its label
        return False
    is_own_policy = isinstance(player, BasePolicy) and is_own_class(player)
    return is_own_policy or overrides(player, *METHODS)


def distribution_parameters(distribution: Any) -> tuple[th.Tensor, th.Tensor | None]:
    """
    The parameters of one of SB3's distributions.

    :param distribution: from ``policy.get_distribution``
    :return: logits of all categories (of a Bernoulli distribution, those of 1), or the mean of a Box action before a tanh;
        and the logarithm of its standard deviation
    :raises TeacherError: the distribution is of another class
    """
    if isinstance(distribution, MaskableDistribution):
        parts = getattr(distribution, "distributions", None) or [distribution.distribution]
        return th.cat([one.logits for one in parts], dim=1), None
    inner = distribution.distribution
    if isinstance(distribution, CategoricalDistribution | BernoulliDistribution):
        return inner.logits, None
    if isinstance(distribution, MultiCategoricalDistribution):
        return th.cat([one.logits for one in inner], dim=1), None
    if isinstance(distribution, DiagGaussianDistribution | StateDependentNoiseDistribution):
        return inner.mean, inner.stddev.log()
    raise TeacherError(
        f"The policy gives a {type(distribution).__name__}, whose parameters cannot be labels. Expected one of SB3's own "
        "distributions from get_distribution(). Give a policy "
        "with a categorical or a Gaussian distribution"
    )


def squashes(distribution: Any) -> bool:
    """
    Whether a distribution's actions go through a tanh.

    :param distribution: from ``policy.get_distribution``
    """
    if isinstance(distribution, StateDependentNoiseDistribution):
        return distribution.bijector is not None
    return isinstance(distribution, SquashedDiagGaussianDistribution)


def without_compilation(module: Any) -> Any:
    """
    The module inside of ``torch.compile``, or the module itself.

    :param module: a policy
    """
    return getattr(module, "_orig_mod", module)


def copy_policy(policy: BasePolicy) -> BasePolicy:
    """
    A copy that shares nothing with a policy: without optimizers, without ``torch.compile``, and without the tensors that the
    last forward pass left behind.

    :param policy: live policy
    """
    memo: dict[int, Any] = {}
    for module in reversed(list(policy.modules())):  # inner modules come first
        if isinstance(action_dist := getattr(module, "action_dist", None), Distribution | MaskableDistribution):
            memo[id(action_dist)] = clean = copy.copy(action_dist)
            for key, value in vars(clean).items():
                if isinstance(value, th.Tensor | th.distributions.Distribution):
                    setattr(clean, key, None)
        if (optimizer := getattr(module, "optimizer", None)) is not None:
            memo[id(optimizer)] = None
        if (inner := without_compilation(module)) is not module:
            memo[id(module)] = copy.deepcopy(inner, memo)
    copied = copy.deepcopy(policy, memo)
    for module in copied.modules():
        module.__dict__.pop("forward", None)  # module.forward = torch.compile(module.forward) would call the original's
    return copied


def check_labels(teacher: Teacher, observations: Any, player: BasePolicy | BaseAlgorithm | None = None) -> None:
    """
    Compare a teacher's labels with the actions that its policy plays. They differ where a policy changes its actions after
    its distribution, as in an own ``_predict``.

    :param teacher: the teacher
    :param observations: batch of raw observations
    :param player: policy or model that plays, ``None`` for the teacher's own policy
    :raises TeacherError: labels and actions differ
    """
    policy = teacher.policy if player is None else player
    played, _ = policy.predict(teacher.normalize(observations), deterministic=True)
    n = batch_size(observations)
    label = teacher(observations).actor.cpu()
    if isinstance(space := teacher.action_space, spaces.Box):
        half = np.maximum((space.high - space.low) / 2, 1e-8)
        error = np.abs(np.clip(label.numpy().reshape(n, *space.shape), space.low, space.high) - played) / half
        agrees = (error.reshape(n, -1) < _TOLERANCE).all(1)
    else:
        agrees = (teacher.head.best(label).numpy().reshape(n, -1) == np.asarray(played).reshape(n, -1)).all(1)
    if agrees.mean() < AGREEMENT:
        raise TeacherError(
            f"{type(policy).__name__} plays other actions than its distribution says, in {100 * (1 - agrees.mean()):.0f} % of "
            f"{n} observations: a student would learn another policy. Expected predict(deterministic=True) to give the most "
            "probable action (the mean of a Box action) of get_distribution(). Put the change of actions into "
            "get_distribution(), or into a wrapper around the environment"
        )


def settle_labels(teacher: Teacher, observations: Any, player: BasePolicy | BaseAlgorithm | None = None) -> None:
    """
    Compare labels and actions. Where they differ, the teacher takes its labels from the policy's own ``get_distribution``.

    :param teacher: the teacher
    :param observations: see :func:`check_labels`
    :param player: see :func:`check_labels`
    :raises TeacherError: those labels differ from the actions too
    """
    try:
        check_labels(teacher, observations, player)
    except TeacherError:
        if teacher.asks_policy or not hasattr(teacher.policy, "get_distribution"):
            raise
        teacher.asks_policy = True
        check_labels(teacher, observations, player)


def sample_observations(teacher: Teacher, n: int = N_COMPARED) -> Any:
    """
    Random raw observations, of the size that a teacher's statistics tell where it has some.

    :param teacher: the teacher
    :param n: their number
    """
    space = copy.deepcopy(teacher.observation_space)
    space.seed(0)
    observations = stack([space.sample() for _ in range(n)])
    normalization, rng = teacher.normalization, np.random.default_rng(0)
    if isinstance(normalization, ObsNormalization) and isinstance(observations, np.ndarray):
        scale = np.sqrt(normalization.var)
        return (normalization.mean + scale * rng.standard_normal(observations.shape)).astype(observations.dtype)
    return observations


def parameters_behind(output: th.Tensor, module: nn.Module) -> list[nn.Parameter]:
    """
    The parameters of a module that an output depends on.

    :param output: computed by the module with gradients enabled
    :param module: its parameters all require gradients
    """
    parameters = list(module.parameters())
    gradients = th.autograd.grad(output.sum(), parameters, allow_unused=True)
    return [one for one, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
