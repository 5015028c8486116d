"""A teacher's labels as a Gymnasium wrapper, so that any other trainer or data collector can distill from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_qpd.checks import check_positive, check_type
from sb3_qpd.envs.recipe import build_env
from sb3_qpd.players import masks_for
from sb3_qpd.teachers.check import check_spaces
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.teacher import Teacher, TeacherState


class TeacherLabels(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """
    A wrapper that adds a teacher's labels of each observation to its ``info`` and changes nothing else.

    - ``teacher_logits``, shape (n_actions,), for discrete actions: every category of every dimension, one after the other.
      Those of a Q-value teacher are its Q-values over ``temperature``. Where the environment masks actions, and the teacher
      was trained with masks, logits of actions that are not allowed are very negative
    - ``teacher_mean``, shape (action_dim,), for Box actions, in environment units
    - ``teacher_std``, same shape, where the teacher is not deterministic
    - ``teacher_value``, where the teacher has a critic

    :param env: environment with raw observations, or a class or function that makes one; the teacher normalizes them itself
    :param teacher: a zip, a run folder of RL Zoo, a live SB3 model or a :class:`~sb3_qpd.Teacher`
    :param temperature: divisor of the logits; below 1 it sharpens the teacher's distribution
    :raises ValueError: the spaces of environment and teacher differ
    """

    def __init__(
        self,
        env: gym.Env | Callable[[], gym.Env],
        teacher: str | Path | BaseAlgorithm | Teacher,
        temperature: float = 1.0,
    ) -> None:
        check_positive("temperature", temperature)
        built: Any = build_env(env) if callable(env) and not isinstance(env, gym.Env) else env
        check_type("env", built, gym.Env, "an environment, such as gym.make('CartPole-v1'), or a class that makes one")
        self.teacher, self.temperature = load_teacher(teacher, needs_env=False), temperature
        gym.utils.RecordConstructorArgs.__init__(self, _disable_deepcopy=True, teacher=self.teacher, temperature=temperature)
        gym.Wrapper.__init__(self, built)
        check_spaces(self.teacher, channels_first(built.observation_space), built.action_space)
        self._ask_masks = masks_for(self.teacher, built)
        self._state: TeacherState | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._state = None
        return observation, {**info, **self._labels(observation)}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, {**info, **self._labels(observation)}

    def _labels(self, observation: Any) -> dict[str, Any]:
        if isinstance(observation, dict):
            batch: Any = {key: np.asarray(value)[None] for key, value in observation.items()}
        else:
            batch = np.asarray(observation)[None]
        output, self._state = self.teacher.label(batch, self._state, action_masks=self._ask_masks())
        actor = output.actor[0].cpu().numpy()
        is_box = isinstance(self.action_space, spaces.Box)
        labels: dict[str, Any] = {"teacher_mean": actor} if is_box else {"teacher_logits": actor / self.temperature}
        if output.log_std is not None:
            labels["teacher_std"] = output.log_std[0].exp().cpu().numpy()
        if output.value is not None:
            labels["teacher_value"] = output.value[0].item()
        return labels


def channels_first(space: spaces.Space) -> spaces.Space:
    """
    A space as SB3 gives it to a policy, with images channels first.

    :param space: observation space of an environment
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, channels_first(one)) for key, one in space.items()])
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space
