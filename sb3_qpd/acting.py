"""Who acts while observations are collected: the teacher or the student; and what everybody who acts has to know."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.policies import QuantActorCriticPolicy
from sb3_qpd.spaces import head_of, masked
from sb3_qpd.teachers import TeacherOutput


def takes_masks(player: Any) -> bool:
    """Whether a player wants to be told which actions are allowed: it says so, or its ``predict`` is sb3-contrib's."""
    uses_masks = getattr(player, "uses_masks", None)
    return "action_masks" in inspect.signature(player.predict).parameters if uses_masks is None else uses_masks


def gives_masks(env: gym.Env | VecEnv | list[gym.Env]) -> bool:
    """Whether an environment says which actions are allowed (``env.action_masks()``, sb3-contrib's convention)."""
    return is_masking_supported(env[0] if isinstance(env, list) else env)


def act(player: Any, observations: Any, deterministic: bool, action_masks: np.ndarray | None) -> np.ndarray:
    """A batch of a player's actions; masks are for those who want them (:func:`takes_masks`)."""
    masks = {} if action_masks is None else {"action_masks": action_masks}
    return player.predict(observations, deterministic=deterministic, **masks)[0]


def batch_size(observation: Any) -> int:
    return len(next(iter(observation.values())) if isinstance(observation, dict) else observation)


class RandomPolicy:
    """
    Uniformly random actions, reproducible; where there are masks, of those that are allowed.

    :param action_space: what to sample
    :param seed: of the actions
    """

    uses_masks = True

    def __init__(self, action_space: gym.Space, seed: int | None = 0) -> None:
        self.action_space = copy.deepcopy(action_space)  # the environment's own space keeps its generator
        self.action_space.seed(seed)
        self._rng = np.random.default_rng(seed)

    def predict(
        self, observation: Any, *args: Any, action_masks: np.ndarray | None = None, **kwargs: Any
    ) -> tuple[np.ndarray, None]:
        """See SB3's ``predict``; the observations are batched."""
        n = batch_size(observation)
        if action_masks is None:
            return np.stack([self.action_space.sample() for _ in range(n)]), None
        head = head_of(self.action_space)
        priorities = np.where(np.asarray(action_masks, bool).reshape(n, -1), self._rng.random((n, sum(head.nvec))), -1)
        choices = [one.argmax(1) for one in np.split(priorities, np.cumsum(head.nvec)[:-1], axis=1)]
        return np.stack(choices, axis=1).reshape(n, *head.shape), None


class Turns:
    """
    In a share of the episodes the teacher plays from start to end; in the others the student does, after a random number of
    first steps by the teacher if wanted, so that a weak student meets late states too.

    Ross and Bagnell, Reinforcement and Imitation Learning via Interactive No-Regret Learning, 2014

    :param n_envs: environments side by side
    :param beta: share of the teacher's episodes
    :param roll_in: whether the teacher plays first steps: a uniform number up to the length of its own recent episodes
    :param rng: where the draws come from
    """

    def __init__(self, n_envs: int, beta: float, roll_in: bool, rng: np.random.Generator) -> None:
        self.beta, self.roll_in = beta, roll_in
        self._rng = rng
        self._left = np.zeros(n_envs)  # steps that are still the teacher's
        self._steps = np.zeros(n_envs)
        self._teacher_length = 0.0
        self._draw(np.arange(n_envs))

    def of_teacher(self) -> np.ndarray:
        """Whose turn it is in each environment: True for the teacher's, shape (n_envs,)."""
        return self._left > 0

    def end_step(self, dones: np.ndarray) -> None:
        """
        Count the step, and draw for the episodes that begin.

        :param dones: which episodes have ended, shape (n_envs,)
        """
        self._steps += 1
        self._left -= 1
        ended = np.flatnonzero(dones)
        for i in ended[np.isinf(self._left[ended])]:  # its whole episodes; first steps end early only where it failed
            self._teacher_length += 0.1 * (self._steps[i] - self._teacher_length)
        self._draw(ended)

    def _draw(self, indices: np.ndarray) -> None:
        for i in indices:
            self._steps[i] = 0
            if self._rng.random() < self.beta:
                self._left[i] = np.inf
            else:
                self._left[i] = self._rng.integers(int(self._teacher_length) + 1) if self.roll_in else 0


@th.no_grad()
def with_student(
    targets: TeacherOutput, policy: QuantActorCriticPolicy, observations: Any, by_teacher: np.ndarray
) -> TeacherOutput:
    """
    What the actions are sampled from: the teacher's answer in its turns, the student's in the others.

    :param targets: what the teacher said of the observations
    :param policy: the student, in the mode that it acts in
    :param observations: raw, shape (n_envs, *observation_shape); a dict of such arrays
    :param by_teacher: whose turn it is, shape (n_envs,)
    """
    tensor, _ = policy.obs_to_tensor(observations)
    student, _ = policy.actor_and_value(tensor)
    student = masked(policy.head.logits(student), targets.masks)
    return targets._replace(actor=th.where(th.as_tensor(by_teacher, device=student.device)[:, None], targets.actor, student))
