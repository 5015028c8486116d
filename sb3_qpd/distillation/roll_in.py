"""Roll-in: which of teacher and student acts while observations are collected."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th

from sb3_qpd.spaces import masked
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import TeacherOutput


class RollIn:
    """
    The turns of teacher and student in each environment.

    The teacher plays a share of the episodes from start to end. The student plays the others, on request after a random
    number of first steps by the teacher, so that a weak student meets late states too.

    Ross and Bagnell, Reinforcement and Imitation Learning via Interactive No-Regret Learning, 2014

    :param n_envs: number of environments side by side
    :param beta: share of the episodes that the teacher plays from start to end
    :param roll_in: whether the teacher plays first steps of the other episodes. Their number is uniform, up to the recent
        length of the teacher's own episodes
    :param rng: generator of the draws
    """

    def __init__(self, n_envs: int, beta: float, roll_in: bool, rng: np.random.Generator) -> None:
        self.beta, self.roll_in = beta, roll_in
        self._rng = rng
        self._left = np.zeros(n_envs)  # steps that are still the teacher's
        self._steps = np.zeros(n_envs)
        self._teacher_length = 0.0
        self.start_all()

    def teacher_acts(self) -> np.ndarray:
        """Whether the teacher acts next, for each environment; shape (n_envs,)."""
        return self._left > 0

    def end_step(self, dones: np.ndarray) -> None:
        """
        Count the step, and draw the turns of the episodes that begin.

        :param dones: whether an episode has ended, shape (n_envs,)
        """
        self._steps += 1
        self._left -= 1
        ended = np.flatnonzero(dones)
        for i in ended[np.isinf(self._left[ended])]:  # whole episodes only: first steps end early where the teacher failed
            self._teacher_length += 0.1 * (self._steps[i] - self._teacher_length)
        self._draw(ended)

    def start_all(self) -> None:
        """Draw the turns of all environments: each begins an episode."""
        self._draw(np.arange(len(self._left)))

    def state(self) -> dict[str, Any]:
        """What the next turns follow from, but for the generator."""
        return {"left": self._left, "steps": self._steps, "teacher_length": float(self._teacher_length)}

    def restore(self, state: dict[str, Any]) -> None:
        """
        Go on with the turns of another process.

        :param state: from :meth:`state`
        """
        self._left[:], self._steps[:] = state["left"], state["steps"]
        self._teacher_length = float(state["teacher_length"])

    def _draw(self, indices: np.ndarray) -> None:
        for i in indices:
            self._steps[i] = 0
            if self._rng.random() < self.beta:
                self._left[i] = np.inf
            else:
                self._left[i] = self._rng.integers(int(self._teacher_length) + 1) if self.roll_in else 0


class StudentEpisodes:
    """
    Recent returns of the episodes of which the student played more than half the steps.

    :param n_envs: number of environments side by side
    :param window: number of episodes to keep
    """

    def __init__(self, n_envs: int, window: int) -> None:
        self._steps = np.zeros(n_envs)  # of the running episodes, by the student
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)

    def acted(self, by_teacher: np.ndarray) -> None:
        """
        Count a step.

        :param by_teacher: whether the teacher acts, shape (n_envs,)
        """
        self._steps += ~by_teacher

    def end_step(self, dones: np.ndarray, infos: Sequence[dict[str, Any]]) -> None:
        """
        Keep the episodes that have ended, where a ``Monitor`` tells their returns.

        :param dones: whether an episode has ended, shape (n_envs,)
        :param infos: the environments' information about the step
        """
        for i, info in enumerate(infos):
            episode = info.get("episode")
            if episode is not None and 2 * self._steps[i] > episode["l"]:
                self.returns.append(float(episode["r"]))
                self.lengths.append(float(episode["l"]))
        self._steps[dones] = 0

    def start_all(self) -> None:
        """Every environment begins an episode."""
        self._steps[:] = 0

    def state(self) -> dict[str, Any]:
        """The running episodes and the recent ones."""
        return {"steps": self._steps, "returns": list(self.returns), "lengths": list(self.lengths)}

    def restore(self, state: dict[str, Any]) -> None:
        """
        Go on with the episodes of another process.

        :param state: from :meth:`state`
        """
        self._steps[:] = state["steps"]
        for recent, values in ((self.returns, state["returns"]), (self.lengths, state["lengths"])):
            recent.clear()
            recent.extend(float(value) for value in values)


@th.no_grad()
def mix_in_student(
    targets: TeacherOutput, policy: QuantActorCriticPolicy, observations: Any, by_teacher: np.ndarray
) -> TeacherOutput:
    """
    The distributions that actions are sampled from: the teacher's in its turns, the student's in the others.

    :param targets: the teacher's labels of the observations
    :param policy: the student, in the mode in which it acts
    :param observations: what the student sees, as tensors
    :param by_teacher: whether the teacher acts, shape (n_envs,)
    :return: the labels, with the student's logits or mean where the student acts
    """
    student, _ = policy.actor_and_value(observations)
    student = masked(policy.head.logits(student), targets.masks)
    return targets._replace(actor=th.where(th.as_tensor(by_teacher, device=student.device)[:, None], targets.actor, student))
