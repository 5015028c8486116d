"""The adapter for teachers with a memory: sb3-contrib's ``RecurrentPPO``, whose policies have LSTMs."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_qpd.observations import batch_size
from sb3_qpd.teachers.own_policies import overrides
from sb3_qpd.teachers.teacher import Teacher, TeacherOutput, TeacherState


class RecurrentTeacher(Teacher):
    """
    RecurrentPPO: labels are those of an actor-critic policy, from the state that the LSTMs have in an episode.

    The state follows the observations of an environment, whoever acts on them: the policy never sees actions. It is a tuple
    of float32 tensors of the shape (n_lstm_layers, n_envs, lstm_hidden_size): hidden and cell state of the actor's LSTM, then
    those of the critic's, where the critic has one of its own.

    :param policy: see :class:`Teacher`
    :param kwargs: see :class:`Teacher`
    """

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (RecurrentActorCriticPolicy,)
    has_memory: ClassVar[bool] = True

    def __call__(self, observations: Any, action_masks: np.ndarray | None = None) -> TeacherOutput:
        """
        Label a batch of raw observations, each as the first one of an episode.

        :param observations: see :class:`Teacher`
        :param action_masks: see :class:`Teacher`
        """
        return self.label(observations, action_masks=action_masks)[0]

    @th.no_grad()
    def label(
        self,
        observations: Any,
        state: TeacherState | None = None,
        episode_start: np.ndarray | None = None,
        action_masks: np.ndarray | None = None,
    ) -> tuple[TeacherOutput, TeacherState]:
        """
        Label one step of several environments.

        :param observations: see :meth:`Teacher.label`
        :param state: state after the previous step
        :param episode_start: whether an observation is the first one of an episode, whose state is zero
        :param action_masks: see :meth:`Teacher.label`
        :return: labels, and the state after these observations
        """
        tensor, _ = self.policy.obs_to_tensor(self.normalize(observations))
        n = batch_size(observations)
        starts = np.zeros(n) if episode_start is None else episode_start
        before = self._zero_state(n) if state is None else state
        output, after = self._label_step(tensor, before, th.as_tensor(starts, dtype=th.float32, device=self.device))
        return self._masked(output, action_masks), after

    def _zero_state(self, n: int) -> TeacherState:
        n_layers, _, size = self.policy.lstm_hidden_state_shape
        n_tensors = 2 if self.policy.lstm_critic is None else 4
        return tuple(th.zeros(n_layers, n, size, device=self.device) for _ in range(n_tensors))

    def _label(self, observations: Any) -> TeacherOutput:
        state = self._zero_state(batch_size(observations))
        return self._label_step(observations, state, th.zeros(batch_size(observations), device=self.device))[0]

    def _label_step(self, observations: Any, state: TeacherState, starts: th.Tensor) -> tuple[TeacherOutput, TeacherState]:
        policy = self.policy
        if self._has_own_distribution:
            distribution, of_actor = policy.get_distribution(observations, state[:2], starts)
            value, of_critic = self._own_value(observations, state, starts)
            return self._output_of(distribution, value), (*of_actor, *of_critic)
        features = policy.extract_features(observations)
        pi_features, vf_features = features if isinstance(features, tuple) else (features, features)
        latent_pi, of_actor = policy._process_sequence(pi_features, state[:2], starts, policy.lstm_actor)
        latent_vf, of_critic = self._critic_latent(vf_features, latent_pi, state, starts)
        value = policy.value_net(policy.mlp_extractor.forward_critic(latent_vf)).flatten().float()
        return self._output(policy.mlp_extractor.forward_actor(latent_pi), value), (*of_actor, *of_critic)

    def _critic_latent(
        self, features: th.Tensor, latent_pi: th.Tensor, state: TeacherState, starts: th.Tensor
    ) -> tuple[th.Tensor, TeacherState]:
        """The input of the critic's layers, and the state of its LSTM where it has one of its own."""
        policy = self.policy
        if policy.lstm_critic is not None:
            return policy._process_sequence(features, state[2:], starts, policy.lstm_critic)
        return (latent_pi if policy.shared_lstm else policy.critic(features)), ()

    def _own_value(self, observations: Any, state: TeacherState, starts: th.Tensor) -> tuple[th.Tensor, TeacherState]:
        """The value of a user's own class. The state of its critic's LSTM is computed beside it, as SB3 does not return it."""
        policy = self.policy
        value = policy.predict_values(observations, state[2:] or state[:2], starts).flatten().float()
        if policy.lstm_critic is None:
            return value, ()
        features = policy.extract_features(observations)
        vf_features = features[1] if isinstance(features, tuple) else features
        return value, policy._process_sequence(vf_features, state[2:], starts, policy.lstm_critic)[1]

    @property
    def _has_own_distribution(self) -> bool:
        return overrides(self.policy, "get_distribution", "_get_action_dist_from_latent", "_process_sequence")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the actor's layers for one observation, those of its LSTM included."""
        weights = {id(parameter) for parameter in self._actor_parameters()}
        lstms = [one for one in self.policy.modules() if isinstance(one, nn.LSTM)]
        own = [p for one in lstms for p in one.parameters() if id(p) in weights and p.dim() == 2]
        return super().macs + sum(parameter.numel() for parameter in own)
