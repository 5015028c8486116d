"""Recorded episodes in the place of an environment: a step gives the next recorded observation, whatever the action is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_qpd.distillation.environment import EnvSource, raw_env
from sb3_qpd.distillation.recording_files import MASKS
from sb3_qpd.distillation.recordings import RecordedObservations, RecordingSource
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.observations import take_rows
from sb3_qpd.teachers.check import check_spaces
from sb3_qpd.teachers.teacher import Teacher

N_STREAMS = 16  # episodes side by side, as many as environments


class RecordedEnv(VecEnv):
    """
    Episodes of a recording, several side by side. Each is given once, in a random order, before any is given again.

    The rewards are zero: returns cannot be measured here.

    :param recording: the observations, which fit the teacher
    :param observation_space: the teacher's
    :param action_space: the teacher's
    """

    def __init__(self, recording: RecordedObservations, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        super().__init__(N_STREAMS, observation_space, action_space)
        self.recording = recording
        self._rng = np.random.default_rng()
        self._waiting: list[slice] = []
        self._playing: list[slice] = []
        self._rows = np.zeros(self.num_envs, int)

    def reset(self) -> Any:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`."""
        self._rng = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._waiting = []
        self._playing = [self._next_episode() for _ in range(self.num_envs)]
        self._rows = np.array([episode.start for episode in self._playing])
        return self._observations()

    def _next_episode(self) -> slice:
        if not self._waiting:
            learned = self.recording.learned
            self._waiting = [learned[i] for i in self._rng.permutation(len(learned))]
        return self._waiting.pop()

    def _observations(self) -> Any:
        return take_rows(self.recording.observations, self._rows)  # type: ignore[arg-type]

    def step_async(self, actions: np.ndarray) -> None:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`; the actions have no effect."""

    def step_wait(self) -> VecEnvStepReturn:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`."""
        self._rows += 1
        dones = np.array([row == episode.stop for row, episode in zip(self._rows, self._playing, strict=True)])
        for i in np.flatnonzero(dones):
            self._playing[i] = self._next_episode()
            self._rows[i] = self._playing[i].start
        return self._observations(), np.zeros(self.num_envs, np.float32), dones, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`; there is nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`; there is a render mode, and action masks where recorded."""
        if attr_name != "render_mode" and not self._is_masks(attr_name):
            raise AttributeError(f"A recording has no {attr_name}")
        return [None for _ in self._get_indices(indices)]

    def _is_masks(self, name: str) -> bool:
        return name == MASKS and self.recording.masks is not None

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`."""
        raise AttributeError(f"A recording has no {attr_name}")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`; ``action_masks`` gives those of the newest observations."""
        if not self._is_masks(method_name):
            raise AttributeError(f"A recording has no {method_name}")
        _, masks = self.recording.take(self._rows[list(self._get_indices(indices))])
        return list(masks)  # type: ignore[arg-type]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: VecEnvIndices = None) -> list[bool]:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[None]:
        """See :class:`~stable_baselines3.common.vec_env.VecEnv`; nothing is rendered."""
        return [None] * self.num_envs


def recorded_env(source: RecordingSource, teacher: Teacher | None, env: EnvSource | None) -> RecordedEnv:
    """
    Recorded observations as an environment for a teacher.

    :param source: recorded observations, see :class:`~sb3_qpd.RecordedObservations`
    :param teacher: the teacher
    :param env: environment in which returns are measured afterwards, ``None`` for none
    :raises ValueError: the observations are not the teacher's, or the environment is not
    """
    if teacher is None:
        raise ValueError("Recorded observations need a teacher that labels them: QPDDistiller(teacher, observations=...)")
    recording = source if isinstance(source, RecordedObservations) else RecordedObservations(source)
    if env is not None:
        measured: Any = raw_env(env, teacher, 1 if isinstance(env, str | EnvRecipe) else None, "dummy", None)
        first = measured if isinstance(measured, VecEnv) else BaseAlgorithm._wrap_env(measured)
        check_spaces(teacher, first.observation_space, first.action_space)
        if measured is not env:
            measured.close()
    recording.fit(teacher)
    return RecordedEnv(recording, teacher.observation_space, teacher.action_space)
