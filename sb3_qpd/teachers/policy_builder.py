"""
The policy of a teacher's file: SB3's own class, built from checked values, with the file's weights.

Each algorithm has its :class:`Blueprint`: which classes and keyword arguments its files may name, and which shapes their
weights then have. These are compared before anything is built.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSLinearPolicy, ARSPolicy
from sb3_contrib.common.maskable import policies as maskable
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn

from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.files.archive import WAY_OUT, TeacherError
from sb3_qpd.teachers.files.pickle_reader import GlobalName
from sb3_qpd.teachers.files.sb3_zip import TeacherFile

MAX_OBSERVATION_SIZE = 2**20
_LARGEST_NUMBER = 10**9  # of what a keyword argument of a policy may be
MULTI_ACTION = ("a2c", "maskableppo", "ppo", "trpo")  # with MultiDiscrete and MultiBinary actions
ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6),
        *(nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh),
    )
}
EXTRACTORS: dict[str, type[Any]] = {cls.__name__: cls for cls in (FlattenExtractor, NatureCNN, CombinedExtractor)}

Shape = tuple[str, tuple[int, ...]]  # name of a weight, and the shape that it has to have


class Sizes(NamedTuple):
    """How many features a network takes and how many outputs its actor has, and what its hidden layers are by default."""

    features: int
    cnns: dict[str, tuple[int, int]]  # of each CNN the prefix of its weights, what it puts out and what its convolutions leave
    outputs: int
    is_cnn: bool  # and nothing else
    is_linear: bool


@dataclass(frozen=True)
class Blueprint:
    """
    What the files of an algorithm may ask for.

    :param policies: its policy classes by the names that files have for them
    :param checks: keyword arguments of these classes, each with the check that its value has to pass
    :param shapes: shapes of the weights, from the checked arguments
    :param current_keys: from the names of weights in older files to today's
    """

    policies: dict[str, type[BasePolicy]]
    checks: dict[str, Callable[[Any], Any]]
    shapes: Callable[[dict[str, Any], Sizes], Iterator[Shape]]
    current_keys: Callable[[dict[str, th.Tensor], dict[str, Any]], dict[str, th.Tensor]] = lambda weights, kwargs: weights


def build_policy(file: TeacherFile) -> BasePolicy:
    """SB3's own policy, from checked values, with the file's weights."""
    blueprint = BLUEPRINTS[file.algo]
    if file.policy_class_name not in blueprint.policies:
        known = ", ".join(blueprint.policies)
        raise TeacherError(f"The policy class {file.policy_class_name} is not supported. Supported: {known}. {WAY_OUT}")
    kwargs = policy_arguments(file)
    try:
        state_dict = blueprint.current_keys(file.state_dict, kwargs)
        _check_shapes(file, kwargs, state_dict)
        # the class's signature is that of its family
        policy_class: Any = blueprint.policies[file.policy_class_name]
        schedule = () if file.algo == "ars" else (lambda _: 0.0,)
        policy = policy_class(file.observation_space, file.action_space, *schedule, **kwargs)
        policy.load_state_dict(state_dict)
    except TeacherError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise TeacherError(f"The teacher's weights, spaces and policy_kwargs contradict each other: {reason}") from error
    return policy


def policy_arguments(file: TeacherFile) -> dict[str, Any]:
    """The keyword arguments of SB3's policy class, each checked; those of its optimizer are left out."""
    checks = BLUEPRINTS[file.algo].checks
    kwargs = {}
    for key, value in file.policy_kwargs.items():
        if key in _NOT_NEEDED or (key == "use_sde" and value is False):
            continue
        if key not in checks:
            raise TeacherError(f"policy_kwargs names {key!r}, known are {', '.join(sorted(checks))}. {WAY_OUT}")
        try:
            kwargs[key] = checks[key](value)
        except ValueError as error:
            raise TeacherError(f"{key} in policy_kwargs: {error}. {WAY_OUT}") from error
    return {key: value for key, value in kwargs.items() if value is not None}


# --- checks of arguments ---
def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"Expected True or False, got a {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Expected a number, got a {type(value).__name__}")
    if not abs(value) < _LARGEST_NUMBER:  # neither infinity nor NaN is
        raise ValueError(f"Expected a number of less than {_LARGEST_NUMBER}, up or down")
    return value


def _positive(expected: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**20:
            raise ValueError(f"Expected {expected}")
        return value

    return check


_size, _count = _positive("layer sizes as positive integers"), _positive("a positive integer")


def _one_of(known: dict[str, type[Any]]) -> Callable[[Any], type[Any]]:
    def check(value: Any) -> type[Any]:
        if not isinstance(value, GlobalName) or value.name not in known:
            got = value if isinstance(value, GlobalName) else f"a {type(value).__name__}"
            raise ValueError(f"Expected one of {', '.join(known)}, got {got}")
        return known[value.name]

    return check


def _layers(value: Any) -> list[int] | None:
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"Expected layer sizes as a list, got a {type(value).__name__}")
    return None if value is None else [_size(size) for size in value]


def _branches(value: Any, critic: str) -> dict[str, list[int]] | None:
    """Any form that SB3 has had: ``[64, 64]``, ``dict(pi=, vf=)``, ``[shared layers, dict(pi=, vf=)]``."""
    if value is None:
        return None
    if not isinstance(value, list | tuple | dict):
        raise ValueError(f"Expected layer sizes as a list or a dict, got a {type(value).__name__}")
    shared = [] if isinstance(value, dict) else list(value)
    branches = value if isinstance(value, dict) else shared.pop() if shared and isinstance(shared[-1], dict) else {}
    if not set(branches) <= {"pi", critic} or not all(isinstance(layers, list | tuple) for layers in branches.values()):
        raise ValueError(f"Expected the layer sizes of pi and {critic} as lists")
    return {branch: [_size(size) for size in (*shared, *branches.get(branch, ()))] for branch in ("pi", critic)}


def _extractor_kwargs(value: Any) -> dict[str, Any]:
    checks: dict[str, Callable[[Any], Any]] = {"features_dim": _size, "normalized_image": _flag, "cnn_output_dim": _size}
    if value is not None and (not isinstance(value, dict) or not set(value) <= set(checks)):
        raise ValueError(f"Expected a dict of {', '.join(checks)}")
    return {key: checks[key](one) for key, one in (value or {}).items()}


def _only_none(value: Any) -> None:
    if value is not None:
        raise ValueError("A separate network for gSDE's exploration is not supported")


_Checks = dict[str, Callable[[Any], Any]]
_NOT_NEEDED = ("optimizer_class", "optimizer_kwargs", "device")
_COMMON: _Checks = {
    "activation_fn": _one_of(ACTIVATIONS),
    "features_extractor_class": _one_of(EXTRACTORS),
    "features_extractor_kwargs": _extractor_kwargs,
    "normalize_images": _flag,
}
_SDE: _Checks = {"use_sde": _flag, "log_std_init": _number, "use_expln": _flag, "sde_net_arch": _only_none}
_MASKABLE: _Checks = {
    **_COMMON,
    "net_arch": partial(_branches, critic="vf"),
    **dict.fromkeys(("ortho_init", "share_features_extractor"), _flag),
}
_ACTOR_CRITIC: _Checks = {**_MASKABLE, **_SDE, **dict.fromkeys(("full_std", "squash_output"), _flag)}
_DQN: _Checks = {**_COMMON, "net_arch": _layers}
_TD3: _Checks = {
    **_COMMON,
    "net_arch": partial(_branches, critic="qf"),
    "n_critics": _count,
    "share_features_extractor": _flag,
}
_SAC: _Checks = {**_TD3, **_SDE, "clip_mean": _number}
_CROSSQ: _Checks = {
    **_SAC,
    "batch_norm": _flag,
    **dict.fromkeys(("batch_norm_momentum", "batch_norm_eps", "renorm_warmup_steps"), _number),
}
_ARS: _Checks = {
    "net_arch": _layers,
    "activation_fn": _one_of(ACTIVATIONS),
    **dict.fromkeys(("with_bias", "squash_output"), _flag),
}


# --- shapes of weights ---
def _check_shapes(file: TeacherFile, kwargs: dict[str, Any], state_dict: dict[str, th.Tensor]) -> None:
    """Before anything is built, so that a file cannot ask for a network that its own weights do not fill."""
    for key, shape in BLUEPRINTS[file.algo].shapes(kwargs, _sizes(file, kwargs)):
        got = tuple(state_dict[key].shape) if key in state_dict else "nothing"
        if got != shape:
            raise TeacherError(
                f"The teacher's weights contradict its spaces and policy_kwargs: {key} should have shape {shape}, got {got}. "
                "The file is damaged or was edited; save the model again"
            )


def _sizes(file: TeacherFile, kwargs: dict[str, Any]) -> Sizes:
    names = {"Cnn": NatureCNN, "MultiInput": CombinedExtractor}
    default = next((cls for name, cls in names.items() if name in file.policy_class_name), FlattenExtractor)
    extractor = kwargs.get("features_extractor_class", default)
    options = kwargs.get("features_extractor_kwargs", {})
    space, n_outputs = file.observation_space, _n_outputs(file)
    try:
        parts = observation_parts(space, options.get("normalized_image", False))
    except ValueError as error:
        raise TeacherError(f"{error}. {WAY_OUT}") from error
    if (size := sum(part.n_features for part in parts)) > MAX_OBSERVATION_SIZE:
        raise TeacherError(f"Observations {space} of more than {MAX_OBSERVATION_SIZE} numbers. {WAY_OUT}")
    if isinstance(space, spaces.Dict) != (extractor is CombinedExtractor):
        raise TeacherError(f"A {extractor.__name__} cannot take observations of {space}. {WAY_OUT}")
    cnns = {}
    if extractor is NatureCNN:
        cnns = {"": (options.get("features_dim", 512), _nature_cnn_flat(space))}
    elif extractor is CombinedExtractor:
        images = [part.key for part in parts if part.is_image]
        cnns = {f"extractors.{key}.": (options.get("cnn_output_dim", 256), _nature_cnn_flat(space[key])) for key in images}  # type: ignore[index]
        size = sum(part.n_features for part in parts if not part.is_image)
    features = sum(width for width, _ in cnns.values()) + (0 if extractor is NatureCNN else size)
    return Sizes(features, cnns, n_outputs, extractor is NatureCNN, file.policy_class_name == "ARSLinearPolicy")


def _n_outputs(file: TeacherFile) -> int:
    try:
        head = action_head(file.action_space)
    except ValueError as error:
        raise TeacherError(f"{error}. {WAY_OUT}") from error
    if not (head.is_box or isinstance(file.action_space, spaces.Discrete) or file.algo in MULTI_ACTION):
        raise TeacherError(f"{file.algo} has no actions of {file.action_space}: the file contradicts itself. Save it again")
    if head.is_binary and file.algo != "maskableppo":  # which has two logits for each
        return len(head.nvec)
    return sum(head.nvec) or math.prod(head.shape)


def _nature_cnn_flat(space: spaces.Space) -> int:
    """What the three convolutions of NatureCNN leave of an image, channels first."""
    if len(space.shape or ()) != 3:
        raise TeacherError(f"A CNN needs images, the teacher's observations are {space}. {WAY_OUT}")
    sides = space.shape[1:]  # type: ignore[index]
    for kernel, stride in ((8, 4), (4, 2), (3, 1)):
        sides = tuple((side - kernel) // stride + 1 for side in sides)
    return 64 * sides[0] * sides[1]


def _mlp(prefix: str, sizes: list[int], *, first: int = 0, step: int = 2) -> Iterator[Shape]:
    """A layer is a Linear and its activation, in CrossQ after a normalization."""
    for index, (before, after) in enumerate(itertools.pairwise(sizes)):
        yield f"{prefix}.{first + step * index}.weight", (after, before)


def _extractor(prefix: str, sizes: Sizes) -> Iterator[Shape]:
    for cnn, shape in sizes.cnns.items():
        yield f"{prefix}features_extractor.{cnn}linear.0.weight", shape


def _actor_critic_shapes(kwargs: dict[str, Any], sizes: Sizes) -> Iterator[Shape]:
    hidden = [] if sizes.is_cnn else [64, 64]
    net_arch = kwargs.get("net_arch", {"pi": hidden, "vf": hidden})
    yield from _extractor("", sizes)
    for branch, net, head, out in (("pi", "policy_net", "action_net", sizes.outputs), ("vf", "value_net", "value_net", 1)):
        layers = [sizes.features, *net_arch[branch]]
        yield from _mlp(f"mlp_extractor.{net}", layers)
        yield f"{head}.weight", (out, layers[-1])


def _q_shapes(kwargs: dict[str, Any], sizes: Sizes, name: str, default_quantiles: int) -> Iterator[Shape]:
    hidden = kwargs.get("net_arch", [] if sizes.is_cnn else [64, 64])
    yield from _extractor(f"{name}.", sizes)
    yield from _mlp(f"{name}.{name}", [sizes.features, *hidden, sizes.outputs * kwargs.get("n_quantiles", default_quantiles)])


def _off_policy_arch(kwargs: dict[str, Any], pi: list[int], qf: list[int]) -> dict[str, list[int]]:
    return kwargs.get("net_arch", {"pi": pi, "qf": qf})


def _td3_shapes(kwargs: dict[str, Any], sizes: Sizes) -> Iterator[Shape]:
    hidden = [256, 256] if sizes.is_cnn else [400, 300]
    net_arch = _off_policy_arch(kwargs, hidden, hidden)
    yield from _extractor("actor.", sizes)
    yield from _mlp("actor.mu", [sizes.features, *net_arch["pi"], sizes.outputs])
    yield from _critic_shapes(kwargs, sizes, net_arch["qf"], 1)


def _sac_shapes(kwargs: dict[str, Any], sizes: Sizes, default_quantiles: int = 1) -> Iterator[Shape]:
    net_arch = _off_policy_arch(kwargs, [256, 256], [256, 256])
    yield from _extractor("actor.", sizes)
    yield from _squashed_actor_shapes(kwargs, sizes, net_arch["pi"])
    yield from _critic_shapes(kwargs, sizes, net_arch["qf"], kwargs.get("n_quantiles", default_quantiles))


def _crossq_shapes(kwargs: dict[str, Any], sizes: Sizes) -> Iterator[Shape]:
    net_arch = _off_policy_arch(kwargs, [256, 256], [1024, 1024])
    layout = {"first": 1, "step": 3} if kwargs.get("batch_norm", True) else {}
    yield from _extractor("actor.", sizes)
    yield from _squashed_actor_shapes(kwargs, sizes, net_arch["pi"], **layout)
    yield from _critic_shapes(kwargs, sizes, net_arch["qf"], 1, **layout)


def _squashed_actor_shapes(kwargs: dict[str, Any], sizes: Sizes, hidden: list[int], **layout: int) -> Iterator[Shape]:
    layers = [sizes.features, *hidden]
    yield from _mlp("actor.latent_pi", layers, **layout)
    clips_mean = kwargs.get("use_sde", False) and kwargs.get("clip_mean", 2.0) > 0
    yield "actor.mu.0.weight" if clips_mean else "actor.mu.weight", (sizes.outputs, layers[-1])


def _critic_shapes(kwargs: dict[str, Any], sizes: Sizes, hidden: list[int], outputs: int, **layout: int) -> Iterator[Shape]:
    for index in range(kwargs.get("n_critics", 2)):
        yield from _mlp(f"critic.qf{index}", [sizes.features + sizes.outputs, *hidden, outputs], **layout)


def _ars_shapes(kwargs: dict[str, Any], sizes: Sizes) -> Iterator[Shape]:
    hidden = kwargs.get("net_arch", [] if sizes.is_linear else [64, 64])
    yield from _mlp("action_net", [sizes.features, *hidden, sizes.outputs])


# --- names of weights ---
def _current_actor_critic_keys(state_dict: dict[str, th.Tensor], kwargs: dict[str, Any]) -> dict[str, th.Tensor]:
    """The keys that SB3 has today: shared layers go into both branches, a shared extractor is named three times."""
    prefix = "mlp_extractor.shared_net."
    shared = [int(key[len(prefix) :].split(".")[0]) for key in state_dict if key.startswith(prefix)]
    offset = max(shared, default=-2) + 2  # every layer is a Linear and its activation
    current = {}
    for key, value in state_dict.items():
        head, _, tail = key.partition("_net.")
        if key.startswith(prefix):
            current[f"mlp_extractor.policy_net.{tail}"] = current[f"mlp_extractor.value_net.{tail}"] = value
        elif offset and head in ("mlp_extractor.policy", "mlp_extractor.value"):
            index, _, name = tail.partition(".")
            current[f"{head}_net.{int(index) + offset}.{name}"] = value
        else:
            current[key] = value
    if kwargs.get("share_features_extractor", True):
        for key in [key for key in current if key.startswith("features_extractor.")]:
            current.setdefault(f"pi_{key}", current[key])
            current.setdefault(f"vf_{key}", current[key])
    return current


def _current_ars_keys(state_dict: dict[str, th.Tensor], kwargs: dict[str, Any]) -> dict[str, th.Tensor]:
    """The linear policy was a single layer before it became a network without hidden ones."""
    return {key.replace("action_net.weight", "action_net.0.weight"): value for key, value in state_dict.items()}


_ACTOR_CRITIC_BLUEPRINT = Blueprint(
    {cls.__name__: cls for cls in (ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy)},
    _ACTOR_CRITIC,
    _actor_critic_shapes,
    _current_actor_critic_keys,
)
_TD3_BLUEPRINT = Blueprint(
    {cls.__name__: cls for cls in (td3.TD3Policy, td3.CnnPolicy, td3.MultiInputPolicy)}, _TD3, _td3_shapes
)

# algorithm as RL Zoo spells it -> what its files may hold
BLUEPRINTS: dict[str, Blueprint] = {
    **dict.fromkeys(("a2c", "ppo", "trpo"), _ACTOR_CRITIC_BLUEPRINT),
    **dict.fromkeys(("ddpg", "td3"), _TD3_BLUEPRINT),
    "ars": Blueprint({"ARSPolicy": ARSPolicy, "ARSLinearPolicy": ARSLinearPolicy}, _ARS, _ars_shapes, _current_ars_keys),
    "crossq": Blueprint({"CrossQPolicy": CrossQPolicy}, _CROSSQ, _crossq_shapes),
    "dqn": Blueprint(
        {cls.__name__: cls for cls in (dqn.DQNPolicy, dqn.CnnPolicy, dqn.MultiInputPolicy)},
        _DQN,
        partial(_q_shapes, name="q_net", default_quantiles=1),
    ),
    "maskableppo": Blueprint(
        {
            cls.__name__: cls
            for cls in (
                maskable.MaskableActorCriticPolicy,
                maskable.MaskableActorCriticCnnPolicy,
                maskable.MaskableMultiInputActorCriticPolicy,
            )
        },
        _MASKABLE,
        _actor_critic_shapes,
        _current_actor_critic_keys,
    ),
    "qrdqn": Blueprint(
        {cls.__name__: cls for cls in (qrdqn.QRDQNPolicy, qrdqn.CnnPolicy, qrdqn.MultiInputPolicy)},
        {**_DQN, "n_quantiles": _count},
        partial(_q_shapes, name="quantile_net", default_quantiles=200),
    ),
    "sac": Blueprint({cls.__name__: cls for cls in (sac.SACPolicy, sac.CnnPolicy, sac.MultiInputPolicy)}, _SAC, _sac_shapes),
    "tqc": Blueprint(
        {cls.__name__: cls for cls in (tqc.TQCPolicy, tqc.CnnPolicy, tqc.MultiInputPolicy)},
        {**_SAC, "n_quantiles": _count},
        partial(_sac_shapes, default_quantiles=25),
    ),
}
