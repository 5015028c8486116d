"""QPDDistiller: quantization-aware policy distillation as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.distillation.base import DistillationAlgorithm
from sb3_qpd.distillation.buffers import DistillationBuffer, DistillationSamples, FloatPixels
from sb3_qpd.distillation.hyperparameters import check_hyperparameters
from sb3_qpd.distillation.initialization import initialize_from_data
from sb3_qpd.distillation.objective import descend, distillation_loss
from sb3_qpd.distillation.roll_in import RollIn, mix_in_student
from sb3_qpd.distillation.schedules import (
    DEFAULT_LEARNING_RATE_IMAGES,
    DEFAULT_LEARNING_RATE_VECTORS,
    CosineSchedule,
    stage_progress,
    warmup_learning_rate,
)
from sb3_qpd.envs.inspection import stacks_frames
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.players import masks_for
from sb3_qpd.students.architectures import StudentArch
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.students.quantizers import FLOAT_BITS
from sb3_qpd.students.transitions import get_transition
from sb3_qpd.teachers.check import check_teacher
from sb3_qpd.teachers.teacher import Teacher, TeacherOutput, check_finite

SelfQPDDistiller = TypeVar("SelfQPDDistiller", bound="QPDDistiller")

ROLLOUT_STEPS = 2048  # environment steps between two lines of the log
CALIBRATION_SIZE = 1024  # observations from which steps are calibrated
FLOAT_CALIBRATIONS = 20  # how often a float stage refreshes the steps that evaluation mode uses, per learn()


class QPDDistiller(DistillationAlgorithm):
    """
    Quantization-aware Policy Distillation: a small student learns a teacher's action distribution and value while its
    precision falls smoothly from float to a few bits.

    Paper: Avé et al., Quantization-aware Policy Distillation, 2022. ``self.policy`` is always the student.

    :param teacher: a zip, a run folder of RL Zoo, a model on the Hugging Face Hub, a live SB3 model or a
        :class:`~sb3_qpd.Teacher`; ``None`` only for a student that is loaded to predict
    :param env: id, environment or vectorized environment; ``None`` takes the teacher's own where that is known
    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, a policy class; ``None`` chooses by
        the observations
    :param student_arch: name in ``STUDENT_ARCHS``, a :class:`~sb3_qpd.StudentArch` or a dict of its fields
    :param weight_bits: bits of the student's inner weights, ``None`` for the architecture's own; 32 is float
    :param activation_bits: bits of its hidden activations, ``None`` for the architecture's own; 32 is float
    :param learning_rate: number or schedule; ``None`` is a cosine from 2e-3 (images 1e-2) to zero. The first
        200 updates (a twentieth of a short run) warm up
    :param batch_size: samples of a gradient step; ``None`` is 256 for vectors and 128 for images
    :param buffer_size: labelled observations that are kept
    :param gradient_steps: gradient steps for each environment step (counted over all environments), a fraction as a rule:
        ``gradient_steps * batch_size`` is how often a sample is drawn for each step. ``None`` is 16 samples a step
    :param learning_starts: observations collected by the teacher before the first gradient step, at most a tenth of the run
    :param temperature: of the teacher's discrete action distribution; below 1 sharpens it (a Q-value teacher has one of its
        own, see :class:`~sb3_qpd.teachers.families.DeterministicTeacher`: they are multiplied)
    :param critic_coef: weight of the value's loss; 0 is the actor-only loss, and so is a teacher without a critic
    :param entropy_coef: weight of the student's entropy
    :param box_loss: loss of a Box action, one of ``huber``, ``squared_error``, ``gaussian_kl``
    :param beta: share of the episodes that the teacher plays from start to end while observations are collected
    :param roll_in: whether the teacher plays the first steps of the other episodes too, a random number of them (up to its
        own recent episode length, which its whole episodes tell: none where ``beta`` is 0), so that a weak student meets
        late states (Ross and Bagnell 2014)
    :param transition: how precision falls, one of ``TRANSITIONS``
    :param transition_start: progress of ``learn()`` at which the transition starts
    :param transition_end: progress at which the target precision is reached
    :param max_grad_norm: bound of the gradient's norm
    :param check_teacher: before learning, let the teacher and a random policy play a few episodes and warn if need be
    :param n_envs: environments to build where ``env`` is an id or ``None``: 16 by default
    :param vec_env: ``"dummy"`` or ``"subproc"`` for those
    :param stats_window_size: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    :param tensorboard_log: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    :param policy_kwargs: more arguments of the policy class
    :param verbose: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    :param seed: of student, sampling and environments: the same seed gives the same student
    :param device: where student and teacher compute
    :param _init_setup_model: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    """

    def __init__(
        self,
        teacher: str | Path | BaseAlgorithm | Teacher | None = None,
        env: GymEnv | str | EnvRecipe | None = None,
        policy: str | type[QuantActorCriticPolicy] | None = None,
        *,
        student_arch: str | StudentArch | Mapping[str, Any] = "tiny",
        weight_bits: int | tuple[int, ...] | None = None,
        activation_bits: int | None = None,
        learning_rate: float | Schedule | None = None,
        batch_size: int | None = None,
        buffer_size: int = 100_000,
        gradient_steps: float | None = None,
        learning_starts: int = 10_000,
        temperature: float = 1.0,
        critic_coef: float = 0.5,
        entropy_coef: float = 0.0,
        box_loss: str = "huber",
        beta: float = 0.25,
        roll_in: bool = True,
        transition: str = "blend",
        transition_start: float = 0.3,
        transition_end: float = 0.7,
        max_grad_norm: float = 10.0,
        check_teacher: bool = True,
        n_envs: int | None = None,
        vec_env: str = "dummy",
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            teacher,
            env,
            policy,
            student_arch=student_arch,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            n_envs=n_envs,
            vec_env=vec_env,
            seed=seed,
            device=device,
            _init_setup_model=_init_setup_model,
            learning_rate=learning_rate,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
        )
        self.batch_size: Any = batch_size
        self.buffer_size, self.gradient_steps = buffer_size, gradient_steps
        self.learning_starts = learning_starts
        self.temperature, self.critic_coef, self.entropy_coef = temperature, critic_coef, entropy_coef
        self.box_loss, self.beta, self.roll_in = box_loss, beta, roll_in
        self.transition, self.transition_start, self.transition_end = transition, transition_start, transition_end
        self.max_grad_norm, self.check_teacher = max_grad_norm, check_teacher
        self.seconds_learning = 0.0
        self._transition_progress = 0.0
        self._is_fitted = False  # normalization, value scale and the teacher's temperature are frozen
        self._teacher_temperature = 1.0
        if _init_setup_model:
            self._setup_model()

    # -- construction -------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        if self.teacher is not None:
            self.set_teacher(self.teacher)
        is_image = self._has_images
        if self.batch_size is None:
            self.batch_size = 128 if is_image else 256  # larger batches of images leave the processor's cache
        check_hyperparameters(vars(self))
        if self.learning_rate is None:
            self.learning_rate = CosineSchedule(DEFAULT_LEARNING_RATE_IMAGES if is_image else DEFAULT_LEARNING_RATE_VECTORS)
        if self.gradient_steps is None:
            self.gradient_steps = 16 / self.batch_size
        super()._setup_model()
        self._set_precision()
        self._rng = np.random.default_rng(self.seed)
        self._buffer: DistillationBuffer | None = None
        self._float_state: dict[str, th.Tensor] | None = None
        self._float_pixels = FloatPixels()

    def set_env(self, env: GymEnv | str | EnvRecipe, force_reset: bool = True) -> None:
        """See :class:`~stable_baselines3.common.base_class.BaseAlgorithm`; a ``VecNormalize`` is taken off, an id will do."""
        super().set_env(env, force_reset)
        self._buffer = None  # another environment may stack its frames or mask its actions otherwise

    def _excluded_save_params(self) -> list[str]:
        of_a_run = ("_buffer", "_rng", "_ask_masks", "_turns", "_float_state", "_float_pixels", "_last_losses")
        return [*super()._excluded_save_params(), *of_a_run]

    # -- learning -----------------------------------------------------------------------------------------------------

    def learn(
        self: SelfQPDDistiller,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "QPD",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfQPDDistiller:
        """
        Distill for a number of environment steps, see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`.

        :param total_timesteps: environment steps; a float such as 1e6 will do
        :param callback: called after each step of the vectorized environment
        :param log_interval: rounds of about 2,048 environment steps between two lines of the log
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: whether the count of steps (and the learning rate's schedule) starts anew; a transition
            never runs backwards
        :param progress_bar: show one
        """
        start, iteration = time.perf_counter(), 0
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._start_collecting()
        callback.on_training_start(locals(), globals())
        n_threads = th.get_num_threads()
        if not self._has_images:
            th.set_num_threads(1)  # small products wait longer for a second thread than they take
        try:
            while self.num_timesteps < total_timesteps:
                if not self._collect_and_train(callback):
                    break
                iteration += 1
                if log_interval is not None and iteration % log_interval == 0:
                    self.dump_logs(iteration)
        finally:  # also where Ctrl-C ends it: what there is can be saved
            self.seconds_learning += time.perf_counter() - start
            th.set_num_threads(n_threads)
        callback.on_training_end()
        return self

    def _start_collecting(self) -> None:
        assert self.env is not None and self.teacher is not None
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._ask_masks = masks_for(self.teacher, self.env)
        if self.teacher.uses_masks and not self._masking:
            warnings.warn(
                "The environment of this MaskablePPO teacher has no action_masks(): its student is taught as if all actions "
                "were always allowed"
            )
        check_finite(self._ask_teacher())
        if self.check_teacher and self.num_timesteps == 0:
            self._compare_teacher_with_random()
        if self._buffer is None:
            self._buffer = self._make_buffer(self.env)
        self._updates_owed = 0.0
        self._set_precision()
        self._last_calibration = self._progress
        self._turns = RollIn(self.env.num_envs, self.beta, self.roll_in, self._rng)

    def _make_buffer(self, env: VecEnv) -> DistillationBuffer:
        space, stacked = self.observation_space, stacks_frames(env)
        try:
            return DistillationBuffer(
                int(self.buffer_size), space, env.num_envs, device=self.device, seed=self.seed, stacked=stacked
            )
        except MemoryError as error:
            raise MemoryError(f"{error}: take a smaller buffer_size than {self.buffer_size}") from error

    def _compare_teacher_with_random(self) -> None:
        assert self.teacher is not None and self.env is not None
        where = self.env if self._recipe is None else self._recipe
        check = check_teacher(self.teacher, where, deterministic=not self._has_images, seed=self.seed)
        if where is self.env:
            self.env.seed(self.seed)
            self._last_obs = self.env.reset()  # type: ignore[assignment]
        self.logger.record("teacher/ep_rew_mean", check.teacher.returns.mean())
        self.logger.record("teacher/random_ep_rew_mean", check.random.returns.mean())
        if self.verbose >= 1:
            print(f"Check of the teacher: {check}")
        check.warn()

    def _collect_and_train(self, callback: BaseCallback) -> bool:
        """
        One round of about 2,048 steps; the student learns while the environments compute.

        :return: whether to go on
        """
        env, buffer = self.env, self._buffer
        assert env is not None and buffer is not None
        callback.on_rollout_start()
        n_steps = 0
        while n_steps * env.num_envs < ROLLOUT_STEPS and self.num_timesteps < self._total_timesteps:
            targets = self._ask_teacher()
            check_finite(targets)
            actions = self._act(targets)
            buffer.add(self._last_obs, targets)
            env.step_async(actions)
            self._updates_owed += env.num_envs * self.gradient_steps  # type: ignore[operator]
            try:
                self._train()
            except BaseException:  # an interrupt must not leave the environments waiting for somebody to fetch the step
                with suppress(Exception):  # a terminal sends Ctrl-C to subprocesses too: they are gone
                    self._last_obs, _, self._last_episode_starts, _ = env.step_wait()  # type: ignore[assignment]
                raise
            new_obs, rewards, dones, infos = env.step_wait()
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
            n_steps += 1
            self.num_timesteps += env.num_envs
            self._update_info_buffer(infos, dones)
            self._turns.end_step(dones)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        callback.on_rollout_end()
        return True

    def _ask_teacher(self) -> TeacherOutput:
        """Its labels of the newest observations."""
        assert self.env is not None and self.teacher is not None
        return self.teacher(self._last_obs, self._ask_masks())

    # -- acting -------------------------------------------------------------------------------------------------------

    @property
    def _is_warming_up(self) -> bool:
        assert self._buffer is not None
        wanted = min(self.learning_starts, self._total_timesteps // 10)
        if self._is_fitted:
            wanted = min(wanted, 4 * self.batch_size)
        return len(self._buffer) < min(wanted, self._buffer.capacity)

    def _act(self, targets: TeacherOutput) -> np.ndarray:
        """Sampled actions: the teacher's in its steps, else the student's at the precision that it trains at."""
        assert self.teacher is not None
        by_teacher = self._turns.teacher_acts() | self._is_warming_up
        if not by_teacher.all():
            self._set_training_mode()
            targets = mix_in_student(targets, self.policy, self._last_obs, by_teacher)
        actions = self.teacher.sample(targets)
        if isinstance(self.action_space, spaces.Box):
            return actions.reshape(-1, *self.action_space.shape).astype(self.action_space.dtype)
        return actions

    # -- updates ------------------------------------------------------------------------------------------------------

    @property
    def _progress(self) -> float:
        return 1.0 - self._current_progress_remaining

    def _train(self) -> None:
        """The gradient steps that are due."""
        if self._is_warming_up or self._updates_owed < 1:
            return
        assert self._buffer is not None and self.teacher is not None
        if not self._is_fitted:
            self._teacher_temperature = initialize_from_data(self.policy, self.teacher, self._buffer.newest(10_000))
            self._calibrate()
            self._is_fitted = True
        self._advance_transition()
        self._set_training_mode()
        n_updates, of_all = int(self._updates_owed), int(self._total_timesteps * self.gradient_steps)  # type: ignore[operator]
        self._updates_owed -= n_updates
        for _ in range(n_updates):
            rate = warmup_learning_rate(self.lr_schedule(self._current_progress_remaining), self._n_updates, of_all)
            update_learning_rate(self.policy.optimizer, rate)
            self.logger.record("train/learning_rate", rate)
            if self.transition == "scratch" and self._n_updates & (self._n_updates - 1) == 0:
                self._calibrate()  # a head that starts near zero would outgrow its grid faster than the step can follow
            self._gradient_step(self._buffer.sample(int(self.batch_size)))
            self._n_updates += 1

    def _set_training_mode(self) -> None:
        if not self.policy.training:  # a callback may have evaluated; a walk through all modules is not free
            self.policy.set_training_mode(True)

    def _calibrate(self) -> None:
        assert self._buffer is not None
        self.policy.calibrate(self._buffer.sample(CALIBRATION_SIZE).observations)
        self._last_calibration = self._progress

    def _advance_transition(self) -> None:
        """Move precision along; steps are calibrated when the float stage ends, and refreshed while it lasts."""
        progress = stage_progress(self._progress, self.transition_start, self.transition_end)
        if self.transition == "none":
            progress = 0.0  # float to the end, from where another transition may go on
        begins = self._transition_progress == 0 < progress
        in_float = self._transition_progress == 0 and self.transition != "scratch"
        if begins and self.transition != "scratch":
            self._float_state = {name: value.clone() for name, value in self.policy.state_dict().items()}
        if in_float and (begins or self._progress - self._last_calibration > 1 / FLOAT_CALIBRATIONS):
            self._calibrate()
        if progress > self._transition_progress:
            self._transition_progress = progress
            self._set_precision()

    def _set_precision(self) -> None:
        self.policy.set_precision(get_transition(self.transition), self._transition_progress)

    def _loss(self, samples: DistillationSamples) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        """What a gradient step minimises, and its parts for the log: see :func:`sb3_qpd.distillation.objective.distillation_loss`."""
        return distillation_loss(
            self.policy,
            samples,
            temperature=self.temperature * self._teacher_temperature,
            critic_coef=self.critic_coef,
            entropy_coef=self.entropy_coef,
            box_loss=self.box_loss,
        )

    def _gradient_step(self, samples: DistillationSamples) -> None:
        loss, self._last_losses = self._loss(samples._replace(observations=self._float_pixels(samples.observations)))
        descend(self.policy.optimizer, loss, self.max_grad_norm)

    # -- what comes out -----------------------------------------------------------------------------------------------

    def float_student(self) -> QPDDistiller | None:
        """The float student: the snapshot of the moment at which precision began to fall; ``None`` where there was none."""
        state = self.policy.state_dict() if self.transition == "none" else self._float_state
        return None if state is None else self._with_bits(FLOAT_BITS, FLOAT_BITS, state)

    def post_training_quantize(self, weight_bits: int, activation_bits: int) -> QPDDistiller:
        """
        The student as it is, at other bits, with freshly calibrated steps and no further training: the usual baseline.

        :param weight_bits: bits of the inner weights
        :param activation_bits: bits of the hidden activations
        """
        if self._buffer is None or not len(self._buffer):
            raise ValueError("Post-training quantization needs observations to calibrate on: call learn() first")
        student = self._with_bits(weight_bits, activation_bits, self.policy.state_dict())
        own_rng = np.random.default_rng(self.seed)  # a look at the student must not change how it learns on
        student.policy.calibrate(self._buffer.sample(CALIBRATION_SIZE, own_rng).observations)
        return student

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log.

        :param iteration: number of the round
        """
        if self._n_updates and getattr(self, "_last_losses", None) is not None:
            actor_loss, critic_loss = (loss.detach().mean().item() for loss in self._last_losses)
            self.logger.record("train/actor_loss", actor_loss)
            self.logger.record("train/critic_loss", critic_loss)
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/transition", self._transition_progress)
        super().dump_logs(iteration)
