"""How a distiller collects labelled observations: acting, labelling and storing."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.distillation.base import DistillationAlgorithm
from sb3_qpd.distillation.buffers import DistillationBuffer
from sb3_qpd.distillation.callbacks import StageBar
from sb3_qpd.distillation.environment import EnvSource, check_observations
from sb3_qpd.distillation.initialization import measure_action_unit
from sb3_qpd.distillation.origin import exact_keys
from sb3_qpd.distillation.roll_in import RollIn, StudentEpisodes, mix_in_student
from sb3_qpd.envs.inspection import stacks_frames
from sb3_qpd.failures import env_name, environment_failures
from sb3_qpd.players import masks_for, seed_if_possible
from sb3_qpd.teachers.check import check_teacher
from sb3_qpd.teachers.families import DeterministicTeacher
from sb3_qpd.teachers.teacher import TeacherOutput, TeacherState, check_finite


class CollectingAlgorithm(DistillationAlgorithm):
    """
    The part of an algorithm that steps the environment and stores the teacher's labels. Its subclass learns from them.

    The subclass's constructor sets the hyperparameters that are named here.
    """

    batch_size: Any
    buffer_size: int
    learning_starts: int
    beta: float
    roll_in: bool
    check_teacher: bool
    _rng: np.random.Generator
    _buffer: DistillationBuffer | None
    _teacher_state: TeacherState | None  # before the newest observations, where the teacher has a memory
    _next_teacher_state: TeacherState | None = None  # after them
    _is_fitted: bool  # whether normalization, value scale and the teacher's temperature are frozen

    def set_env(self, env: EnvSource, force_reset: bool = True) -> None:
        """
        Take another environment. Its ``VecNormalize`` is taken off.

        :param env: id, recipe, environment or vectorized environment
        :param force_reset: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        """
        super().set_env(env, force_reset)
        self._buffer = None  # another environment may stack its frames or mask its actions differently

    def set_teacher(self, teacher: Any) -> None:
        """
        Take a teacher, see :meth:`DistillationAlgorithm.set_teacher`. It has no memory of the running episodes.

        :param teacher: anything that :func:`~sb3_qpd.load_teacher` takes
        """
        super().set_teacher(teacher)
        self._teacher_state = None

    def _excluded_save_params(self) -> list[str]:
        own = ("_buffer", "_rng", "_ask_masks", "_turns", "_students", "_bar", "_env_name")
        return [*super()._excluded_save_params(), *own, "_teacher_state", "_next_teacher_state"]

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        self._bar = StageBar() if progress_bar else None
        if self._bar is not None:
            given = CallbackList(callback) if isinstance(callback, list) else callback
            callback = [given if isinstance(given, BaseCallback) else ConvertCallback(given), self._bar]
        return super()._init_callback(callback)

    def _tell(self, text: str) -> None:
        """Show a stage of learning in the progress bar, where there is one."""
        if self._bar is not None:
            self._bar.tell(text)

    def _start_collecting(self, goes_on: bool) -> None:
        """
        Make what collecting needs.

        :param goes_on: a checkpoint of this run was found, so that the teacher was checked before
        """
        assert self.env is not None and self.teacher is not None
        self._env_name = self._recipe.env_id if self._recipe is not None else env_name(self.env, asks=True)
        self._ask_masks = masks_for(self.teacher, self.env)
        if self.teacher.uses_masks and not self._masking:
            warnings.warn(
                "The environment of this MaskablePPO teacher has no action_masks(): its student is taught as if all actions "
                "were always allowed"
            )
        check_finite(self._ask_teacher())
        has_env = self.recording is None or self._recipe is not None
        if self.check_teacher and has_env and self.num_timesteps == 0 and not goes_on:
            self._tell("checking the teacher")
            self._compare_teacher_with_random()
        if self._buffer is None:
            self._buffer = self._make_buffer(self.env)
        beta = self.beta if self.recording is None else 1.0  # a student's actions would change nothing in a recording
        self._turns = RollIn(self.env.num_envs, beta, self.roll_in, self._rng)
        self._students = StudentEpisodes(self.env.num_envs, self._stats_window_size)
        self._tell("collecting")

    def _make_buffer(self, env: VecEnv) -> DistillationBuffer:
        options: dict[str, Any] = {"device": self.device, "seed": self.seed, "stacked": stacks_frames(env)}
        options |= {"exact_keys": exact_keys(self.policy, self._is_fitted), "history": self.policy.arch.history}
        options["n_action"] = self.policy.head.n_outputs if self.policy.arch.history_actions else 0
        try:
            return DistillationBuffer(int(self.buffer_size), self.observation_space, env.num_envs, **options)
        except MemoryError as error:
            raise MemoryError(f"{error}: take a smaller buffer_size than {self.buffer_size}") from error

    def _compare_teacher_with_random(self) -> None:
        assert self.teacher is not None and self.env is not None
        where = self.env if self._recipe is None else self._recipe
        check = check_teacher(self.teacher, where, deterministic=not self._has_images, seed=self.seed)
        if where is self.env:
            seed_if_possible(self.env, self.seed)
            with environment_failures(self.env, "reset()"):
                self._last_obs = self.env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones(self.env.num_envs, bool)
        self.logger.record("teacher/ep_rew_mean", check.teacher.returns.mean())
        self.logger.record("teacher/random_ep_rew_mean", check.random.returns.mean())
        if self.verbose >= 1:
            print(f"Check of the teacher: {check}")
        check.warn()

    def _ask_teacher(self) -> TeacherOutput:
        """The teacher's labels of the newest observations. Its memory goes on in :meth:`_take_step` only."""
        assert self.env is not None and self.teacher is not None
        with self._named_failures():
            check_observations(self._last_obs)
            masks = self._ask_masks()
        starts = self._last_episode_starts
        targets, self._next_teacher_state = self.teacher.label(self._last_obs, self._teacher_state, starts, masks)
        return targets

    def _take_step(self, observations: Any, dones: np.ndarray) -> None:
        """
        Go on to the next observations of all environments.

        :param observations: raw observations after the step, the first ones of new episodes among them
        :param dones: whether an episode has ended
        """
        self._last_obs, self._last_episode_starts = observations, dones
        self._teacher_state = self._next_teacher_state

    def _named_failures(self) -> AbstractContextManager[None]:
        """What goes wrong in the environment is an error that names the environment, the step and the sub-environment."""
        return environment_failures(self.env, step=self.num_timesteps, name=self._env_name)

    @property
    def _is_warming_up(self) -> bool:
        assert self._buffer is not None
        wanted = min(self.learning_starts, self._total_timesteps // 10)
        if self._is_fitted:
            wanted = min(wanted, 4 * self.batch_size)
        return len(self._buffer) < min(wanted, self._buffer.capacity)

    def _act(self, targets: TeacherOutput) -> np.ndarray:
        """Sampled actions: the teacher's in its turns, the student's in the others, at the precision that it trains at."""
        assert self.teacher is not None
        by_teacher = self._turns.teacher_acts() | self._is_warming_up
        self._students.acted(by_teacher)
        if not by_teacher.all():
            self._set_training_mode()
            targets = mix_in_student(targets, self.policy, self._seen_by_student(), by_teacher)
        self._measure_exploration(targets)
        actions = self.teacher.sample(targets)
        if not isinstance(self.action_space, spaces.Box):
            return actions
        # SB3 gives an environment with a Box of integers floats, while learning and from predict()
        dtype = self.action_space.dtype if np.issubdtype(self.action_space.dtype, np.floating) else np.float32
        return actions.reshape(-1, *self.action_space.shape).astype(dtype)

    def _seen_by_student(self) -> Any:
        """The newest observations as a batch of tensors, with those before them where the student has a memory."""
        if self.policy.arch.history == 1:
            return self.policy.obs_to_tensor(self._last_obs)[0]  # type: ignore[arg-type]
        assert self._buffer is not None and self._last_episode_starts is not None
        return th.as_tensor(self._buffer.window_of(self._last_obs, self._last_episode_starts), device=self.device)

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log. ``rollout/ep_rew_mean`` is of all episodes, ``rollout/student_ep_rew_mean`` of those that the student
        played for more than half of the steps, with sampled actions.

        :param iteration: number of the round of about 2,048 environment steps
        """
        if self._students.returns:
            self.logger.record("rollout/student_ep_rew_mean", safe_mean(self._students.returns))
            self.logger.record("rollout/student_ep_len_mean", safe_mean(self._students.lengths))
        super().dump_logs(iteration)

    def _measure_exploration(self, targets: TeacherOutput) -> None:
        """Until the units of actions are frozen, a deterministic teacher explores in the units of all labels so far."""
        teacher, space = self.teacher, self.action_space
        if self._is_fitted or not (isinstance(space, spaces.Box) and isinstance(teacher, DeterministicTeacher)):
            return
        assert self._buffer is not None
        seen = [*([self._buffer.labels("actor")] if len(self._buffer) else []), targets.actor.cpu().numpy()]
        teacher.action_unit = th.as_tensor(measure_action_unit(np.concatenate(seen), space), device=teacher.device)

    def _set_training_mode(self) -> None:
        if not self.policy.training:  # a callback may have evaluated; a walk through all modules is not free
            self.policy.set_training_mode(True)
