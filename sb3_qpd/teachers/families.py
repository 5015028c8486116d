"""The families of teachers beside the actor-critic ones, and :data:`TEACHERS`, the table of all algorithms."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSPolicy
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_qpd.teachers.recurrent import RecurrentTeacher
from sb3_qpd.teachers.teacher import Teacher, TeacherOutput, gaussian_log_std


def _state_value(critic: nn.Module, observations: th.Tensor, scaled_actions: th.Tensor) -> th.Tensor:
    """min Q(s, a) over the critics, shape (batch_size,). The Q of a critic with quantiles is their mean."""
    q_values = critic(observations, scaled_actions)
    if isinstance(q_values, tuple):
        q_values = th.stack(q_values, dim=1)  # (batch_size, n_critics, 1)
    return q_values.mean(2).amin(1).float()


class SquashedGaussianTeacher(Teacher):
    """SAC, TQC and CrossQ: labels are mean and deviation of the action in environment units; value: min Q(s, tanh(mean))."""

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (SACPolicy, TQCPolicy, CrossQPolicy)

    @property
    def use_sde(self) -> bool:
        return self.policy.actor.use_sde

    def _label(self, observations: th.Tensor) -> TeacherOutput:
        actor = self.policy.actor
        mean, log_std, sde = actor.get_action_dist_params(observations)
        log_std = gaussian_log_std(actor.action_dist, log_std, mean, sde.get("latent_sde", mean))
        value = _state_value(self.policy.critic, observations, th.tanh(mean))
        action, log_std = self._squash(mean, log_std)
        return TeacherOutput(action.float(), value, log_std.float())


class DeterministicTeacher(Teacher):
    """
    TD3 and DDPG: labels are the action in environment units; the value is min Q(s, a). Subclasses are deterministic as well.

    Such a teacher has no distribution to draw from. While observations are collected, teacher and student add noise: otherwise
    both would see little beyond one trajectory.

    Discrete actions are labelled with Q-values, which have the unit of the rewards. They become a distribution at a
    temperature in that unit: a share of the mean spread of Q over the actions, so it needs no tuning per environment. All
    states share one temperature. Where the action hardly matters, the student need not be sure of it. The default is low,
    because only the best action is played, as for DQN in Rusu et al. (Policy Distillation, 2016).

    :param policy: see :class:`Teacher`
    :param exploration: noise while collecting: the share of random actions (discrete actions), or the standard deviation as a
        share of half the range (Box actions; TD3 trains with 0.1)
    :param temperature: temperature as a share of the mean over observations of the standard deviation of Q over the actions
    :param kwargs: see :class:`Teacher`
    """

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (TD3Policy,)

    def __init__(self, policy: BasePolicy, *, exploration: float = 0.1, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        if not 0 <= exploration <= 1:
            raise ValueError(f"exploration is a share between 0 and 1, got {exploration}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.exploration, self.temperature = exploration, temperature
        self.action_unit: th.Tensor | None = None  # unit of the noise on Box actions; None is half the range

    def _label(self, observations: th.Tensor) -> TeacherOutput:
        scaled = self.policy.actor(observations)
        return TeacherOutput(self._unscale(scaled).float(), _state_value(self.policy.critic, observations, scaled))

    def temperature_of(self, targets: TeacherOutput) -> float:
        spread = targets.actor.std(1, correction=0).mean().item()
        return self.temperature * max(spread, 1e-8)

    @property
    def exploration_log_std(self) -> th.Tensor:
        """Log standard deviation of the noise on Box actions while collecting, environment units, shape (action_dim,)."""
        unit = self._low_and_half()[1] if self.action_unit is None else self.action_unit
        return (self.exploration * unit).clamp_min(1e-6).log().float()  # an action may be fixed

    def sample(self, output: TeacherOutput) -> np.ndarray:
        """
        Actions with the noise that is added while observations are collected.

        :param output: labels of the observations
        :return: shape (batch_size,) or (batch_size, action_dim), inside the action space
        """
        if isinstance(self.action_space, spaces.Box):
            return super().sample(output._replace(log_std=self.exploration_log_std))
        best = output.actor.argmax(1)
        explores = th.rand(best.shape, device=best.device) < self.exploration
        return th.where(explores, th.randint_like(best, output.actor.shape[1]), best).cpu().numpy()


class ARSTeacher(DeterministicTeacher):
    """ARS, linear or not: labels are the action in environment units or a score for each discrete action. It has no critic."""

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (ARSPolicy,)

    def _label(self, observations: th.Tensor) -> TeacherOutput:
        policy = self.policy
        actor = policy.action_net(policy.extract_features(observations, policy.features_extractor))
        return TeacherOutput((self._unscale(actor) if policy.squash_output else actor).float())


class QValueTeacher(DeterministicTeacher):
    """DQN and QR-DQN: labels are Q-values (for QR-DQN the mean over quantiles); the value is the largest of them."""

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (DQNPolicy, QRDQNPolicy)

    def _label(self, observations: th.Tensor) -> TeacherOutput:
        q_values = self._network(observations)
        if isinstance(self.policy, QRDQNPolicy):
            q_values = q_values.mean(dim=1)
        return TeacherOutput(q_values.float(), q_values.amax(1).float())

    @property
    def _network(self) -> nn.Module:
        return self.policy.quantile_net if isinstance(self.policy, QRDQNPolicy) else self.policy.q_net


# algorithm as RL Zoo spells it -> the adapter for its policies
TEACHERS: dict[str, type[Teacher]] = {
    "a2c": Teacher,
    "ars": ARSTeacher,
    "crossq": SquashedGaussianTeacher,
    "ddpg": DeterministicTeacher,
    "dqn": QValueTeacher,
    "maskableppo": Teacher,
    "ppo": Teacher,
    "ppo_lstm": RecurrentTeacher,
    "qrdqn": QValueTeacher,
    "sac": SquashedGaussianTeacher,
    "td3": DeterministicTeacher,
    "tqc": SquashedGaussianTeacher,
    "trpo": Teacher,
}
