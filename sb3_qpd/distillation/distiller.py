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
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_qpd.checks import check_type
from sb3_qpd.distillation.arguments import check_learn_arguments
from sb3_qpd.distillation.base import torch_threads
from sb3_qpd.distillation.buffers import DistillationSamples, FloatPixels, observation_bytes
from sb3_qpd.distillation.checkpoints import Checkpoint, CheckpointWriter
from sb3_qpd.distillation.environment import EnvSource, check_rewards
from sb3_qpd.distillation.hyperparameters import check_hyperparameters, check_memory, check_optimizer
from sb3_qpd.distillation.initialization import initialize_from_data, input_statistics
from sb3_qpd.distillation.objective import distillation_loss, measure_student
from sb3_qpd.distillation.precision import FallingPrecision
from sb3_qpd.distillation.recordings import RecordingSource
from sb3_qpd.distillation.schedules import (
    DEFAULT_LEARNING_RATE,
    CosineSchedule,
    warmup_learning_rate,
)
from sb3_qpd.envs.inspection import stacks_frames
from sb3_qpd.envs.workers import no_restarts
from sb3_qpd.students.architectures import StudentArch
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher, check_finite

SelfQPDDistiller = TypeVar("SelfQPDDistiller", bound="QPDDistiller")

ROLLOUT_STEPS = 2048  # environment steps between two lines of the log
QUALITY_SIZE = 256  # observations on which the log compares student and teacher


class QPDDistiller(FallingPrecision):
    """
    Quantization-aware Policy Distillation: a small student learns a teacher's action distribution and value while its
    precision falls smoothly from float to a few bits.

    Paper: Avé et al., Quantization-aware Policy Distillation, 2022. ``self.policy`` is always the student.

    :param teacher: a zip, a run folder of RL Zoo, a model on the Hugging Face Hub, a live SB3 model or a
        :class:`~sb3_qpd.Teacher`; ``None`` only for a student that is loaded to predict
    :param env: id, environment, vectorized environment, or a class or function that makes an environment; ``None`` takes the
        teacher's own where that is known
    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"`` or a policy class; ``None`` chooses by the
        observations
    :param observations: recorded observations that the student learns from, see :class:`~sb3_qpd.RecordedObservations`. No
        environment is stepped then; ``env`` only names where returns can be measured afterwards
    :param student_arch: name in ``STUDENT_ARCHS``, a budget such as ``"2kB"`` or ``"0.5%"`` of the teacher's float32 actor, a
        :class:`~sb3_qpd.StudentArch` or a dict of its fields
    :param weight_bits: bits of the student's inner weights, ``None`` for the architecture's own; 32 is float
    :param activation_bits: bits of its hidden activations, ``None`` for the architecture's own; 32 is float
    :param history: number of observations that the student sees: the newest one, and those before it in the episode. ``None``
        is the architecture's own (1 where it has a name), and 8 where the teacher is recurrent
    :param history_actions: whether the student also sees the actions between these observations, for a ``history`` of 2 or
        more. ``None`` is the architecture's own, which is False where it has a name
    :param learning_rate: number or schedule; ``None`` is a cosine from 5e-2 to zero. The first 200 updates (a
        twentieth of a short run) warm up. Give one where ``policy_kwargs`` names an ``optimizer_class``
    :param batch_size: samples per gradient step; ``None`` is 256 for vectors and 128 for images
    :param buffer_size: number of labelled observations to keep
    :param gradient_steps: gradient steps per environment step, usually below 1. Default: 16 / batch_size, so each observation
        is sampled 16 times on average
    :param learning_starts: number of observations that the teacher collects before the first gradient step, at most a tenth
        of the run
    :param temperature: temperature of the teacher's discrete action distribution; below 1 sharpens it. It is multiplied by a
        Q-value teacher's own, see :class:`~sb3_qpd.teachers.families.DeterministicTeacher`
    :param student_temperature: temperature of the student's discrete action distribution in the loss. The student plays at
        1, so above 1 it plays sharper than its target: for games where a sampled student's rare wrong actions cost much
    :param critic_coef: weight of the value loss; 0 is the actor-only loss, as for a teacher without a critic
    :param entropy_coef: weight of the student's entropy
    :param box_loss: loss of a Box action: ``huber``, ``squared_error`` or ``gaussian_kl``
    :param beta: share of the episodes that the teacher plays from start to end while observations are collected
    :param roll_in: whether the teacher also plays a random number of first steps of the other episodes, so that a weak
        student meets late states (Ross and Bagnell 2014). The number is at most the recent length of the teacher's whole
        episodes, and 0 where ``beta`` is 0
    :param transition: how precision falls, a key of ``TRANSITIONS``
    :param transition_start: progress of ``learn()`` at which the transition starts
    :param transition_end: progress at which the target precision is reached at the latest
    :param transition_steps: the most environment steps that the transition takes. In a longer ``blend`` a student can come to
        need the share that is float, and is lost when that share ends
    :param max_grad_norm: maximum norm of the gradient
    :param check_teacher: whether teacher and random policy play a few episodes before learning, with a warning if the teacher
        is not better
    :param n_envs: number of environments to build where ``env`` is an id or ``None``; 16 by default
    :param vec_env: kind of these environments: ``"dummy"``, ``"subproc"``, or ``"ray"`` for actors on the nodes of the cluster
        that ``RAY_ADDRESS`` names, by default on this machine
    :param env_timeout: longest time in seconds that an environment may take to answer, for ``"subproc"`` and ``"ray"``;
        ``None`` is no limit
    :param restart_envs: how many times an environment that failed is started again, for ``"subproc"`` and ``"ray"``; its
        episode is dropped. ``None`` is 0 for ``"subproc"`` and 100 for ``"ray"``, whose nodes may come and go
    :param stats_window_size: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    :param tensorboard_log: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    :param policy_kwargs: more arguments of the policy class; ``optimizer_class`` is :class:`~sb3_qpd.MuonAdam` by default
    :param verbose: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    :param seed: seed of student, sampling and environments. On one kind of processor, with the same versions, the same seed
        gives the same student: for vectors with any number of threads, for images with the same number
    :param device: device of student and teacher
    :param _init_setup_model: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    """

    def __init__(
        self,
        teacher: str | Path | BaseAlgorithm | Teacher | None = None,
        env: EnvSource | None = None,
        policy: str | type[QuantActorCriticPolicy] | None = None,
        *,
        observations: RecordingSource | None = None,
        student_arch: str | StudentArch | Mapping[str, Any] = "tiny",
        weight_bits: int | tuple[int, ...] | None = None,
        activation_bits: int | None = None,
        history: int | None = None,
        history_actions: bool | None = None,
        learning_rate: float | Schedule | None = None,
        batch_size: int | None = None,
        buffer_size: int = 100_000,
        gradient_steps: float | None = None,
        learning_starts: int = 10_000,
        temperature: float = 1.0,
        student_temperature: float = 1.0,
        critic_coef: float = 0.5,
        entropy_coef: float = 0.0,
        box_loss: str = "huber",
        beta: float = 0.25,
        roll_in: bool = True,
        transition: str = "blend",
        transition_start: float = 0.3,
        transition_end: float = 0.7,
        transition_steps: int = 40_000,
        max_grad_norm: float = 10.0,
        check_teacher: bool = True,
        n_envs: int | None = None,
        vec_env: str = "dummy",
        env_timeout: float | None = None,
        restart_envs: int | None = None,
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
            observations=observations,
            student_arch=student_arch,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            history=history,
            history_actions=history_actions,
            n_envs=n_envs,
            vec_env=vec_env,
            env_timeout=env_timeout,
            restart_envs=restart_envs,
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
        self.temperature, self.student_temperature = temperature, student_temperature
        self.critic_coef, self.entropy_coef = critic_coef, entropy_coef
        self.box_loss, self.beta, self.roll_in = box_loss, beta, roll_in
        self.transition, self.transition_start, self.transition_end = transition, transition_start, transition_end
        self.transition_steps = transition_steps
        self.max_grad_norm, self.check_teacher = max_grad_norm, check_teacher
        self.checkpoint: Checkpoint | None = None  # of learn() where its caller names none
        self.seconds_learning = 0.0
        self.input_findings = []
        self._transition_progress = 0.0
        self._is_fitted = False  # normalization, value scale and the teacher's temperature are frozen
        self._teacher_temperature = 1.0
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.teacher is not None:
            self.set_teacher(self.teacher)
        if self.batch_size is None:
            self.batch_size = 128 if self._has_images else 256  # larger batches of images leave the processor's cache
        check_hyperparameters(vars(self))
        if self.env is not None:
            n_bytes = observation_bytes(int(self.buffer_size), self.observation_space, stacks_frames(self.env))
            check_memory(int(self.buffer_size), n_bytes)
        if self.learning_rate is None:
            check_optimizer(self.policy_kwargs)
            self.learning_rate = CosineSchedule(DEFAULT_LEARNING_RATE)
        if self.gradient_steps is None:
            self.gradient_steps = 16 / self.batch_size
        super()._setup_model()
        self._set_precision()
        self._rng = np.random.default_rng(self.seed)
        self._buffer = None
        self._teacher_state = None
        self._float_state = None
        self._float_pixels = FloatPixels()
        self._writer: CheckpointWriter | None = None

    def _excluded_save_params(self) -> list[str]:
        own = ("_float_pixels", "_last_losses", "_writer", "_since", "checkpoint")
        return [*super()._excluded_save_params(), *own]

    def learn(
        self: SelfQPDDistiller,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "QPD",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint: str | Path | Checkpoint | None = None,
    ) -> SelfQPDDistiller:
        """
        Distill for a number of environment steps, see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`.

        :param total_timesteps: number of environment steps, an integer or a float such as 1e6
        :param callback: called after each step of the vectorized environment
        :param log_interval: rounds of about 2,048 environment steps between two lines of the log
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: whether the count of steps and the learning rate's schedule start anew. A transition never
            runs backwards
        :param progress_bar: whether to show a progress bar
        :param checkpoint: folder in which the run keeps its state, so that it can go on where it was killed. A
            :class:`~sb3_qpd.Checkpoint` says how often, and whether to go on from what is there. ``None`` takes
            ``self.checkpoint``, which is ``None`` at first. The student is the same with and without
        """
        check_learn_arguments(callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        self._since = time.perf_counter()
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._writer = self._open_checkpoint(checkpoint, callback)
        try:
            callback.on_training_start(locals(), globals())
            # for vectors one: waiting for a second thread takes longer than these small products
            with torch_threads(None if self._has_images else 1):
                self._start_collecting(goes_on=self._writer is not None and self._writer.found is not None)
                self._start_training()
                self._learn_rounds(callback, log_interval)
        finally:  # Ctrl-C ends learning too, and the student can still be saved
            self._count_seconds()
            if self._bar is not None:
                self._bar.close()
            if self._writer is not None:
                self._writer.close()
        callback.on_training_end()
        return self

    def _open_checkpoint(self, checkpoint: str | Path | Checkpoint | None, callback: BaseCallback) -> CheckpointWriter | None:
        checkpoint = self.checkpoint if checkpoint is None else checkpoint
        if checkpoint is None:
            return None
        check_type("checkpoint", checkpoint, (str, Path, Checkpoint), "a folder or a sb3_qpd.Checkpoint")
        return CheckpointWriter(checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint), self, callback)

    def _learn_rounds(self, callback: BaseCallback, log_interval: int | None) -> None:
        writer = self._writer
        iteration, goes_on = (0, True) if writer is None else (writer.start(), not writer.is_finished)
        self._since = time.perf_counter() if writer is not None and writer.found is not None else self._since
        while self.num_timesteps < self._total_timesteps and goes_on:
            goes_on = self._collect_and_train(callback)
            if not goes_on:
                break
            iteration += 1
            self._log(log_interval is not None and iteration % log_interval == 0, iteration)
            if writer is not None:
                self._count_seconds()
                writer.write_if_due(iteration)
        if writer is not None:
            self._count_seconds()
            writer.finish(iteration)

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds_learning += now - self._since
        self._since = now

    def _start_training(self) -> None:
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._updates_owed = 0.0
        self._set_precision()
        self._last_calibration = self._progress
        n_steps = self._total_timesteps - self.num_timesteps
        if n_steps * self.gradient_steps < 1:  # type: ignore[operator]
            warnings.warn(
                f"{n_steps} environment steps at gradient_steps={self.gradient_steps:.3g} give no gradient step: the student "
                f"will learn nothing. Take more steps, or a batch_size below {self.batch_size}"
            )

    def _log(self, is_due: bool, iteration: int) -> None:
        if is_due or self._bar is not None:
            self._measure_student()
        if is_due:
            self.dump_logs(iteration)

    def _measure_student(self) -> None:
        """Put the agreement of student and teacher into the log and the progress bar."""
        found = self.quality()
        if not found:
            return
        for name, value in found.items():
            self.logger.record(f"student/{name}", value)
        agreement, error = found.get("agreement"), found.get("action_error")
        quality = f"agreement {agreement:.1%}" if agreement is not None else f"action error {error:.3f}"
        self._tell(f"{quality}, {found['mean_weight_bits']:.1f} bits on average")

    def quality(self) -> dict[str, float]:
        """
        How close the student comes to its teacher on recent observations. Learning goes on as if this had not been called.

        :return: see :func:`~sb3_qpd.distillation.objective.measure_student`; empty before the first gradient step
        """
        if not self._is_fitted or self._buffer is None:
            return {}
        samples = self._buffer.sample(QUALITY_SIZE, np.random.default_rng(self._n_updates))  # not the generator of learning
        return measure_student(self.policy, samples, self.temperature * self._teacher_temperature, self.student_temperature)

    def last_losses(self) -> dict[str, float]:
        """The mean losses of the last batch, ``actor_loss`` and ``critic_loss``; empty before the first gradient step."""
        if not self._n_updates or getattr(self, "_last_losses", None) is None:
            return {}
        actor_loss, critic_loss = (loss.detach().mean().item() for loss in self._last_losses)
        return {"actor_loss": actor_loss, "critic_loss": critic_loss}

    def _collect_and_train(self, callback: BaseCallback) -> bool:
        """
        One round of about 2,048 environment steps. The student learns while the environments compute.

        :return: whether learning goes on
        """
        env, buffer = self.env, self._buffer
        assert env is not None and buffer is not None
        callback.on_rollout_start()
        n_steps = 0
        while n_steps * env.num_envs < ROLLOUT_STEPS and self.num_timesteps < self._total_timesteps:
            targets = self._ask_teacher()
            check_finite(targets)
            actions = self._act(targets)
            seen = self.policy.encode_actions(actions) if self.policy.arch.history_actions else None
            buffer.add(self._last_obs, targets, self._last_episode_starts, seen)
            with self._named_failures():
                env.step_async(actions)
            self._updates_owed += env.num_envs * self.gradient_steps  # type: ignore[operator]
            try:
                self._train()
            except BaseException:  # after an interrupt, fetch the step that the environments have begun
                with suppress(Exception), no_restarts(env):  # a terminal sends Ctrl-C to subprocesses too: they are gone
                    new_obs, _, dones, _ = env.step_wait()
                    self._take_step(new_obs, dones)
                raise
            with self._named_failures():
                new_obs, rewards, dones, infos = env.step_wait()
                check_rewards(rewards)
            if self._writer is not None:
                self._writer.recording.add(actions, rewards, dones)
            self._take_step(new_obs, dones)
            n_steps += 1
            self.num_timesteps += env.num_envs
            self._update_info_buffer(infos, dones)
            self._students.end_step(dones, infos)
            self._turns.end_step(dones)
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        callback.on_rollout_end()
        return True

    def _train(self) -> None:
        """Take the gradient steps that are due."""
        if self._is_warming_up or self._updates_owed < 1:
            return
        assert self._buffer is not None and self.teacher is not None
        if not self._is_fitted:
            self._take_off_offsets()
            self._teacher_temperature = initialize_from_data(self.policy, self.teacher, self._buffer.newest(10_000))
            if self.policy.arch.history_actions and self.policy.head.is_box:
                seen = input_statistics(self._buffer.actions, None)
                self.policy.features_extractor.trunks[0].set_action_normalization(*seen)
            self._calibrate()
            self._resolve_inputs()
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
                self._calibrate()  # a head that starts near zero outgrows its grid faster than the learned step follows
            self._gradient_step(self._buffer.sample(int(self.batch_size)))
            self._n_updates += 1

    def _loss(self, samples: DistillationSamples) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        """The loss of a batch and its parts for the log, see :func:`~sb3_qpd.distillation.objective.distillation_loss`."""
        return distillation_loss(
            self.policy,
            samples,
            temperature=self.temperature * self._teacher_temperature,
            student_temperature=self.student_temperature,
            critic_coef=self.critic_coef,
            entropy_coef=self.entropy_coef,
            box_loss=self.box_loss,
        )

    def _gradient_step(self, samples: DistillationSamples) -> None:
        loss, self._last_losses = self._loss(samples._replace(observations=self._float_pixels(samples.observations)))
        descend(self.policy.optimizer, loss, self.max_grad_norm)

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log, see also :meth:`CollectingAlgorithm.dump_logs`.

        :param iteration: number of the round of about 2,048 environment steps
        """
        if losses := self.last_losses():
            for name, value in losses.items():
                self.logger.record(f"train/{name}", value)
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/transition", self._transition_progress)
        super().dump_logs(iteration)


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor, max_grad_norm: float) -> None:
    """
    One gradient step.

    :param optimizer: optimizer of the student's parameters
    :param loss: shape ()
    :param max_grad_norm: maximum norm of the gradient
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # the optimizer's lists are ready: policy.parameters() walks through all modules
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
