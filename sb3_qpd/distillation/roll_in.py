"""Who acts while observations are collected: the teacher or the student."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th

from sb3_qpd.spaces import masked
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import TeacherOutput


class RollIn:
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

    def teacher_acts(self) -> np.ndarray:
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
def mix_in_student(
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
