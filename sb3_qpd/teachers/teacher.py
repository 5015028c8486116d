"""
The teacher: a frozen pretrained policy that labels raw observations with its action distribution and its value.

Here is the adapter for actor-critic policies. Those for other families, and the table of algorithms, are in
:mod:`~sb3_qpd.teachers.families`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.distributions import Distribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_qpd.spaces import action_head, masked, observation_parts
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.normalization import Normalization, ObsNormalization, are_same, fit_to_observations
from sb3_qpd.teachers.own_policies import distribution_parameters, overrides, parameters_behind, squashes

if TYPE_CHECKING:
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.teachers.run_folder import RunFolder


TeacherState = tuple[th.Tensor, ...]  # what a teacher with a memory keeps from step to step


class TeacherOutput(NamedTuple):
    """
    The labels of a batch of observations: all values that a distillation loss may use.

    - ``actor``: logits, shape (batch_size, n_actions), or the mean of a Box action in environment units, shape
      (batch_size, action_dim). MultiDiscrete and MultiBinary actions have logits for every category, one dimension after the
      other. The logits of a Q-value teacher are its Q-values, see :meth:`Teacher.temperature_of`
    - ``value``: shape (batch_size,), ``None`` where the teacher has no critic
    - ``log_std``: logarithm of the standard deviation of a Box action in environment units, shape (batch_size, action_dim),
      ``None`` where the teacher is deterministic
    - ``masks``: which actions were allowed, with the shape of the logits, ``None`` where the environment does not say so. The
      logits of the other actions are very negative
    """

    actor: th.Tensor
    value: th.Tensor | None = None
    log_std: th.Tensor | None = None
    masks: th.Tensor | None = None


def check_finite(output: TeacherOutput) -> None:
    """
    Refuse labels with NaN or infinity.

    :param output: labels of a batch
    :raises ValueError: a value is not finite
    """
    # one answer for all parts: on a GPU each answer would wait for the queue
    if not th.stack([th.isfinite(part).all() for part in output if part is not None]).all():
        raise ValueError("The teacher's output holds NaN or infinity: its weights or its observations are broken")


class Teacher:
    """
    A frozen pretrained policy that takes *raw* observations. This class is for actor-critic policies (PPO, A2C, TRPO).

    A teacher applies its own normalization, so its callers need not know about it. Its labels are in environment units.

    :param policy: SB3's policy; it is put in evaluation mode and never trained
    :param name: ``<algo>/<Env>`` or a name on the Hub, never a path. A student remembers it
    :param algo: name of the algorithm, as in RL Zoo (``ppo``, ``a2c``, ``trpo``, ...)
    :param checksum: SHA-256 of the teacher's file, or ``""``
    :param normalization: frozen ``VecNormalize`` statistics from training, by key for Dict observations, or ``None``
    :param recipe: recipe of the environment in training, where it is known
    :param run: the teacher's files, ``None`` for a live model
    :param vec_env: raw environment of a live model
    """

    takes_raw_observations: ClassVar[bool] = True
    has_memory: ClassVar[bool] = False  # whether labels depend on earlier observations of the episode
    policies: ClassVar[tuple[type[BasePolicy], ...]] = (ActorCriticPolicy, MaskableActorCriticPolicy)

    def __init__(
        self,
        policy: BasePolicy,
        *,
        name: str = "",
        algo: str = "ppo",
        checksum: str = "",
        normalization: Normalization | None = None,
        recipe: EnvRecipe | None = None,
        run: RunFolder | None = None,
        vec_env: VecEnv | None = None,
    ) -> None:
        if not isinstance(policy, self.policies):
            expected = " or ".join(kind.__name__ for kind in self.policies)
            raise TypeError(f"A {type(self).__name__} needs a policy of the kind {expected}, got {type(policy).__name__}")
        if isinstance(policy, RecurrentActorCriticPolicy) and not self.has_memory:
            raise TypeError(f"{type(policy).__name__} has a memory, which a {type(self).__name__} would pass over")
        self.policy: Any = policy
        self.asks_policy = False  # whether labels come from get_distribution although SB3's own layers could give them
        self.policy.set_training_mode(False)
        self.policy.requires_grad_(False)
        self.head = action_head(policy.action_space)
        self.parts = observation_parts(policy.observation_space, self.normalized_image)
        self.name, self.algo, self.checksum = name, algo, checksum
        self.normalization, self.recipe, self.run, self.vec_env = normalization, recipe, run, vec_env

    def __repr__(self) -> str:
        statistics = "with" if self.normalization is not None else "without"
        return (
            f"<{type(self).__name__} {self.name}: {type(self.policy).__name__}, {statistics} normalization, on {self.device}>"
        )

    @staticmethod
    def from_function(
        function: Callable[[Any], Any],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        kind: str,
        *,
        value: Callable[[Any], Any] | None = None,
        name: str = "",
        checksum: str = "",
        algo: str = "function",
    ) -> Teacher:
        """
        A teacher from a function that answers a batch of raw observations: a network of another package, a controller, a rule.

        ``kind`` says what the function returns for n observations:

        - ``"logits"``: shape (n, n_actions), of every category of every dimension
        - ``"q_values"``: shape (n, n_actions), for Discrete actions
        - ``"gaussian"``: a tuple of mean and log_std of a Box action in environment units, each of shape (n, action_dim)
        - ``"action"``: the actions themselves, shape (n, *action_shape)

        :param function: gets arrays of shape (n, *observation_shape), images channels first, or a dict of such arrays. It
            returns an array, a tensor, or what ``numpy.asarray`` takes. A torch module is copied, and gets tensors
        :param observation_space: space of one observation
        :param action_space: space of one action
        :param kind: what the function returns
        :param value: a function that returns the values of the same observations, shape (n,); ``None`` teaches none
        :param name: name that a student remembers; by default the function's own
        :param checksum: SHA-256 that a student remembers, such as that of the weights' file
        :param algo: name of the algorithm
        :raises TeacherError: the function fails on a small batch, or answers in another shape
        """
        from sb3_qpd.teachers.functions import teacher_from_function  # which needs this module

        options: dict[str, Any] = {"value": value, "name": name, "checksum": checksum, "algo": algo}
        return teacher_from_function(function, observation_space, action_space, kind, **options)

    @property
    def observation_space(self) -> spaces.Space:
        return self.policy.observation_space

    @property
    def action_space(self) -> spaces.Space:
        return self.policy.action_space

    @property
    def normalized_image(self) -> bool:
        """Whether the policy's CNN takes images of floats (SB3's name for it)."""
        kwargs = self.policy.features_extractor_kwargs or {}
        return bool(kwargs.get("normalized_image", False))

    @property
    def uses_masks(self) -> bool:
        """Whether the policy was trained with action masks."""
        return isinstance(self.policy, MaskableActorCriticPolicy)

    @property
    def device(self) -> th.device:
        return self.policy.device

    def to(self, device: th.device | str) -> Teacher:
        """
        Move the network to a device. Images go through it channels-last, which is faster on every device. A teacher with a
        memory keeps SB3's order, whose last bits differ: they would add up in its state.

        :param device: torch device
        """
        before = self.device
        self.policy.to(device)
        if self.use_sde and self.device != before:
            self.policy.reset_noise()  # the noise is no parameter, so policy.to() leaves it behind
        if not self.has_memory and any(part.is_image for part in self.parts):
            self.policy.to(memory_format=th.channels_last)
        return self

    def normalize(self, observations: Any) -> Any:
        """
        Normalize raw observations as in training. The shape stays.

        :param observations: one observation or a batch, as the environment gives it
        :raises ValueError: observations of another shape than the teacher's
        """
        if self.normalization is None:
            return observations
        if isinstance(self.normalization, ObsNormalization):
            return self._normalize(self.normalization, observations)
        return {**observations, **{key: self._normalize(one, observations[key]) for key, one in self.normalization.items()}}

    def _normalize(self, normalization: ObsNormalization, observations: Any) -> np.ndarray:
        values, shape = np.asarray(observations), normalization.mean.shape
        if values.shape[values.ndim - len(shape) :] != shape:
            raise ValueError(
                f"The teacher {self.name} takes observations of shape {shape}, got {values.shape}. Give the environment in "
                "which it was trained, with its wrappers"
            )
        return normalization(values)

    def fit_normalization(self, normalization: Normalization) -> None:
        """
        Take statistics as the teacher's own. Statistics of one frame serve for a stack of normalized frames.

        :param normalization: statistics from the teacher's training
        :raises TeacherError: statistics of other shapes
        """
        self.normalization = fit_to_observations(normalization, self.parts, self.observation_space)

    def adopt_normalization(self, normalization: Normalization | None) -> None:
        """
        Take the statistics of an environment's ``VecNormalize`` where the teacher has none. Other statistics are refused.

        :param normalization: from :func:`~sb3_qpd.teachers.normalization.remove_vec_normalize`
        :raises TeacherError: the teacher has other statistics
        """
        if normalization is None:
            return
        own = self.normalization
        if own is None:
            self.fit_normalization(normalization)
        elif not are_same(own, fit_to_observations(normalization, self.parts, self.observation_space)):
            raise TeacherError(
                "The environment is in a VecNormalize with other statistics than the teacher's. Pass it without "
                "VecNormalize.\n"
                f"teacher: {own}\nenvironment: {normalization}"
            )

    @property
    def use_sde(self) -> bool:
        """Whether the policy explores with gSDE, whose noise has to be drawn before actions are sampled."""
        return getattr(self.policy, "use_sde", False)

    @th.no_grad()
    def __call__(self, observations: Any, action_masks: np.ndarray | None = None) -> TeacherOutput:
        """
        Label a batch of raw observations.

        :param observations: shape (batch_size, *observation_shape), as the environment gives them; a dict of such arrays
        :param action_masks: allowed discrete actions, bool, shape (batch_size, sum of all categories)
        :return: labels as float32 on the teacher's device
        """
        tensor, _ = self.policy.obs_to_tensor(self.normalize(observations))
        return self._masked(self._label(tensor), action_masks)

    def _masked(self, output: TeacherOutput, action_masks: np.ndarray | None) -> TeacherOutput:
        """Labels in which actions that are not allowed have very negative logits."""
        if action_masks is None:
            return output
        masks = self.head.check_masks(action_masks, len(output.actor), output.actor.device)
        return output._replace(actor=masked(output.actor, masks), masks=masks)

    def label(
        self,
        observations: Any,
        state: TeacherState | None = None,
        episode_start: np.ndarray | None = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[TeacherOutput, TeacherState | None]:
        """
        Label one step of several environments, with the memory of a teacher that has one.

        :param observations: raw observations, shape (n_envs, *observation_shape), or a dict of such arrays
        :param state: what this method returned at the previous step; ``None`` begins all episodes
        :param episode_start: whether an observation is the first one of an episode, shape (n_envs,); ``None``: none is
        :param action_masks: allowed discrete actions, bool, shape (n_envs, sum of all categories)
        :return: labels, and the state for the next step; ``None`` for a teacher without a memory
        """
        return self(observations, action_masks), None

    def _label(self, observations: th.Tensor) -> TeacherOutput:
        policy = self.policy
        if self._has_own_distribution:
            return self._label_from_distribution(observations)
        features = policy.extract_features(observations)
        pi_features, vf_features = features if isinstance(features, tuple) else (features, features)
        latent_pi = policy.mlp_extractor.forward_actor(pi_features)
        value = policy.value_net(policy.mlp_extractor.forward_critic(vf_features)).flatten().float()
        return self._output(latent_pi, value)

    def _output(self, latent_pi: th.Tensor, value: th.Tensor) -> TeacherOutput:
        """The labels from the input of SB3's ``action_net``."""
        policy = self.policy
        actor = policy.action_net(latent_pi)
        if not self.head.is_box:
            return TeacherOutput(self.head.logits(actor.float()), value)
        log_std = gaussian_log_std(policy.action_dist, policy.log_std, actor, latent_pi)
        if policy.squash_output:
            actor, log_std = self._squash(actor, log_std)
        return TeacherOutput(actor.float(), value, log_std.float())

    @property
    def _has_own_distribution(self) -> bool:
        return self.asks_policy or overrides(self.policy, "get_distribution", "_get_action_dist_from_latent")

    def _label_from_distribution(self, observations: Any) -> TeacherOutput:
        """The labels of a policy whose class changes SB3's distribution, for instance to mask actions by the observation."""
        value = self.policy.predict_values(observations).flatten().float()
        return self._output_of(self.policy.get_distribution(observations), value)

    def _output_of(self, distribution: Any, value: th.Tensor) -> TeacherOutput:
        """The labels from one of SB3's distributions."""
        actor, log_std = distribution_parameters(distribution)
        if log_std is None:
            return TeacherOutput(self.head.logits(actor.float()), value)
        if squashes(distribution):
            actor, log_std = self._squash(actor, log_std)
        return TeacherOutput(actor.float(), value, log_std.float())

    def _squash(self, mean: th.Tensor, log_std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Mean and log deviation of the action in environment units, from those before a tanh."""
        _, half = self._low_and_half()
        squashed = th.tanh(mean)
        # first order: the deviation shrinks with the slope of tanh
        return self._unscale(squashed), log_std + th.log((1 - squashed**2).clamp_min(1e-6)) + half.log()

    def _unscale(self, scaled: th.Tensor) -> th.Tensor:
        """Actions in [-1, 1] as actions in environment units."""
        low, half = self._low_and_half()
        return low + half * (scaled + 1)

    def _low_and_half(self) -> tuple[th.Tensor, th.Tensor]:
        """Lower bounds and half ranges of a Box action, shape (action_dim,)."""
        low, high = (
            th.as_tensor(bound.reshape(-1), device=self.device)
            for bound in (self.action_space.low, self.action_space.high)  # type: ignore[attr-defined]
        )
        return low, high / 2 - low / 2  # high - low could overflow

    def temperature_of(self, targets: TeacherOutput) -> float:
        """
        The temperature at which this teacher's logits are its distribution: 1, except for :class:`DeterministicTeacher`.

        :param targets: labels of many observations
        """
        return 1.0

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        SB3's ``predict`` on raw observations.

        :param observation: one raw observation or a batch
        :param state: see SB3's ``predict``
        :param episode_start: see SB3's ``predict``
        :param deterministic: most probable actions, else sampled ones
        :param action_masks: allowed actions, for a teacher that was trained with masks
        """
        masks = {} if action_masks is None else {"action_masks": action_masks}
        try:
            return self.policy.predict(self.normalize(observation), state, episode_start, deterministic, **masks)
        except ValueError:  # torch's message about NaN in a distribution is a page of numbers
            check_finite(self(observation))
            raise

    def sample(self, output: TeacherOutput) -> np.ndarray:
        """
        Actions drawn from the teacher's own distribution.

        :param output: labels of the observations
        :return: shape (batch_size,) or (batch_size, action_dim), inside the action space
        """
        if not isinstance(self.action_space, spaces.Box):
            return self.head.sample(output.actor).cpu().numpy()
        noise = th.randn_like(output.actor)
        actions = (output.actor + noise * output.log_std.exp()).cpu().numpy()  # type: ignore[union-attr]
        return np.clip(actions, self.action_space.low.reshape(-1), self.action_space.high.reshape(-1))

    def _actor_parameters(self) -> list[nn.Parameter]:
        """The parameters that the action depends on, whatever the policy calls its layers."""
        observations, _ = self.policy.obs_to_tensor(_zeros(self.observation_space))
        self.policy.requires_grad_(True)
        try:
            with th.enable_grad():
                return parameters_behind(self._label(observations).actor, self.policy)
        finally:
            self.policy.requires_grad_(False)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the actor: those that a device would have to hold."""
        return sum(parameter.numel() for parameter in self._actor_parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of the actor in float32."""
        return 4 * self.n_parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the actor's linear and convolutional layers for one observation."""
        count: list[int] = []

        def hook(module: nn.Module, inputs: Any, output: th.Tensor) -> None:
            weight: th.Tensor = module.weight  # type: ignore[assignment]
            positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            count.append(weight.numel() * positions)

        weights = {id(parameter) for parameter in self._actor_parameters()}
        layers = [one for one in self.policy.modules() if isinstance(one, nn.Linear | nn.Conv2d) and id(one.weight) in weights]
        handles = [layer.register_forward_hook(hook) for layer in layers]
        try:
            with th.no_grad():
                self.policy.predict(_zeros(self.observation_space), deterministic=True)
        finally:
            for handle in handles:
                handle.remove()
        return sum(count)


def _zeros(space: spaces.Space) -> Any:
    """A batch of one observation, all zeros."""
    if isinstance(space, spaces.Dict):
        return {key: _zeros(one) for key, one in space.items()}
    return np.zeros((1, *space.shape), space.dtype)  # type: ignore[misc]


def gaussian_log_std(dist: Distribution, log_std: th.Tensor, mean: th.Tensor, latent: th.Tensor) -> th.Tensor:
    """
    Logarithm of the standard deviation of a Gaussian policy, in the actor's own units. That of gSDE depends on the state.

    Paper of gSDE: Raffin et al., Smooth Exploration for Robotic Reinforcement Learning, 2021.

    :param dist: distribution of the policy
    :param log_std: its parameter
    :param mean: mean of the action, shape (batch_size, action_dim)
    :param latent: features that gSDE's noise is multiplied with, shape (batch_size, latent_dim)
    :return: shape (batch_size, action_dim)
    """
    if isinstance(dist, StateDependentNoiseDistribution):
        variance = th.mm(latent**2, dist.get_std(log_std) ** 2)
        return 0.5 * th.log(variance + dist.epsilon)
    return log_std.expand_as(mean)
