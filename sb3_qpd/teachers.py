"""The teacher: a frozen pretrained policy that labels raw observations with its action distribution and its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

if TYPE_CHECKING:
    from sb3_qpd.envs import EnvRecipe


class TeacherOutput(NamedTuple):
    """
    What a teacher says of a batch of observations: everything a distillation loss may use.

    ``actor`` holds logits, shape (batch_size, n_actions), or the mean action in environment units, shape
    (batch_size, action_dim); ``value`` has shape (batch_size,); ``log_std`` (Box actions only) is the logarithm of the
    standard deviation of the action in environment units, shape (batch_size, action_dim).
    """

    actor: th.Tensor
    value: th.Tensor
    log_std: th.Tensor | None = None


@dataclass(frozen=True)
class ObsNormalization:
    """
    Frozen observation statistics of SB3's ``VecNormalize``: ``clip((obs - mean) / sqrt(var + epsilon), -c, c)``.

    :param mean: running mean of the raw observations, shape of one observation
    :param var: running variance, same shape
    :param epsilon: added to the variance
    :param clip_obs: c, the largest absolute value of a normalized observation
    """

    mean: np.ndarray
    var: np.ndarray
    epsilon: float = 1e-8
    clip_obs: float = 10.0

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        scaled = (observations - self.mean) / np.sqrt(self.var + self.epsilon)
        return np.clip(scaled, -self.clip_obs, self.clip_obs).astype(np.float32)

    def same_as(self, other: ObsNormalization) -> bool:
        """Whether two sets of statistics give the same normalized observations (to 1e-5)."""
        return bool(
            self.mean.shape == other.mean.shape
            and np.allclose(self.mean, other.mean, rtol=1e-5, atol=1e-8)
            and np.allclose(self.var, other.var, rtol=1e-5, atol=1e-8)
            and self.clip_obs == other.clip_obs
        )


class Teacher:
    """
    A pretrained actor-critic policy (PPO, A2C, TRPO), frozen, that takes *raw* observations.

    It applies its own normalization, so that nobody else has to know of it, and answers in environment units.

    :param policy: SB3's policy object; it is put in evaluation mode and never trained
    :param name: ``<algo>/<Env>`` or a Hub id: what a student remembers of its teacher (never a path)
    :param algo: key of the algorithm, as in RL Zoo (``ppo``, ``a2c``, ``trpo``)
    :param checksum: SHA-256 of the file that it came from, or ``""``
    :param normalization: the frozen ``VecNormalize`` statistics that it was trained with, or ``None``
    :param recipe: how to build the environment that it was trained on, where that is known
    :param vec_env: the raw environment that a live model brought along
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        *,
        name: str = "",
        algo: str = "ppo",
        checksum: str = "",
        normalization: ObsNormalization | None = None,
        recipe: EnvRecipe | None = None,
        vec_env: VecEnv | None = None,
    ) -> None:
        if not isinstance(policy, ActorCriticPolicy):
            raise TypeError(f"Expected an ActorCriticPolicy (PPO, A2C, TRPO), got {type(policy).__name__}")
        if type(policy).__name__.startswith("Recurrent"):
            raise TypeError(f"{type(policy).__name__} has a memory, a student has none: recurrent teachers are not supported")
        self.policy = policy
        self.policy.set_training_mode(False)
        self.policy.requires_grad_(False)
        self.name, self.algo, self.checksum = name, algo, checksum
        self.normalization, self.recipe, self.vec_env = normalization, recipe, vec_env

    @property
    def observation_space(self) -> spaces.Space:
        return self.policy.observation_space

    @property
    def action_space(self) -> spaces.Space:
        return self.policy.action_space

    @property
    def device(self) -> th.device:
        return self.policy.device

    def to(self, device: th.device | str) -> Teacher:
        """Move the network to a device; images go through it channels-last, which is faster on every device."""
        self.policy.to(device)
        if len(self.observation_space.shape or ()) == 3:
            self.policy.to(memory_format=th.channels_last)  # type: ignore[call-overload]
        return self

    def normalize(self, observations: np.ndarray) -> np.ndarray:
        """Raw observations as the network takes them, shape unchanged."""
        return observations if self.normalization is None else self.normalization(np.asarray(observations))

    @th.no_grad()
    def __call__(self, observations: np.ndarray) -> TeacherOutput:
        """
        Label a batch of raw observations.

        :param observations: shape (batch_size, *observation_shape), as the environment gives them
        :return: logits or mean, value and log standard deviation, float32, on the teacher's device
        """
        policy = self.policy
        tensor, _ = policy.obs_to_tensor(self.normalize(observations))
        features = policy.extract_features(tensor)
        pi_features, vf_features = features if isinstance(features, tuple) else (features, features)
        latent_pi = policy.mlp_extractor.forward_actor(pi_features)
        value = policy.value_net(policy.mlp_extractor.forward_critic(vf_features)).flatten()
        actor = policy.action_net(latent_pi)
        if not isinstance(self.action_space, spaces.Box):
            return TeacherOutput(actor.float(), value.float())
        return TeacherOutput(*self._box_output(actor, value, latent_pi))

    def _box_output(self, mean: th.Tensor, value: th.Tensor, latent_pi: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Mean and deviation of the action in environment units; gSDE's deviation depends on the state."""
        log_std: th.Tensor = self.policy.log_std
        dist = self.policy.action_dist
        if isinstance(dist, StateDependentNoiseDistribution):
            variance = th.mm(latent_pi**2, dist.get_std(log_std) ** 2)  # (batch_size, action_dim)
            log_std = 0.5 * th.log(variance + dist.epsilon)
        elif isinstance(dist, DiagGaussianDistribution):
            log_std = log_std.expand_as(mean)
        if self.policy.squash_output:
            low = th.as_tensor(self.action_space.low.reshape(-1), device=mean.device)  # type: ignore[attr-defined]
            high = th.as_tensor(self.action_space.high.reshape(-1), device=mean.device)  # type: ignore[attr-defined]
            half = (high - low) / 2
            squashed = th.tanh(mean)
            # first order: the deviation shrinks with the slope of tanh
            log_std = log_std + th.log((1 - squashed**2).clamp_min(1e-6)) + half.log()
            mean = low + half * (squashed + 1)
        return mean.float(), value.float(), log_std.float()

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's ``predict`` on raw observations."""
        return self.policy.predict(self.normalize(observation), state, episode_start, deterministic)

    def sample(self, output: TeacherOutput) -> np.ndarray:
        """
        Actions drawn from the teacher's own distribution.

        :param output: what the teacher said of the observations
        :return: shape (batch_size,) or (batch_size, action_dim), inside the action space
        """
        if not isinstance(self.action_space, spaces.Box):
            return th.multinomial(output.actor.softmax(1), 1).flatten().cpu().numpy()
        noise = th.randn_like(output.actor)
        actions = (output.actor + noise * output.log_std.exp()).cpu().numpy()  # type: ignore[union-attr]
        return np.clip(actions, self.action_space.low.reshape(-1), self.action_space.high.reshape(-1))

    def _actor_modules(self) -> list[nn.Module]:
        policy = self.policy
        return [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]

    @property
    def n_parameters(self) -> int:
        """Parameters of the actor alone: what a device would have to hold."""
        return sum(p.numel() for module in self._actor_modules() for p in module.parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of the actor in float32."""
        return 4 * self.n_parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the actor for one observation."""
        count: list[int] = []

        def hook(module: nn.Module, inputs: Any, output: th.Tensor) -> None:
            weight: th.Tensor = module.weight  # type: ignore[assignment]
            positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
            count.append(weight.numel() * positions)

        modules = [m for part in self._actor_modules() for m in part.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        handles = [m.register_forward_hook(hook) for m in modules]
        try:
            space = self.observation_space
            with th.no_grad():
                self.policy.get_distribution(self.policy.obs_to_tensor(np.zeros((1, *space.shape), space.dtype))[0])  # type: ignore[misc]
        finally:
            for handle in handles:
                handle.remove()
        return sum(count)


# algorithm as RL Zoo spells it -> the adapter that reads its policies
TEACHERS: dict[str, type[Teacher]] = {"ppo": Teacher, "a2c": Teacher, "trpo": Teacher}
