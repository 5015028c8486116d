"""QPDDistiller: quantization-aware policy distillation as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import safe_mean, update_learning_rate

from sb3_qpd.acting import Turns, gives_masks, with_student
from sb3_qpd.architectures import StudentArch, make_arch
from sb3_qpd.buffers import DistillationBuffer, DistillationSamples, FloatPixels
from sb3_qpd.envs import EnvRecipe, make_recipe
from sb3_qpd.loading import load_teacher
from sb3_qpd.matching import (
    check_finite,
    check_spaces,
    env_of_teacher,
    pipeline_of,
    raw_env,
    stacks_frames,
)
from sb3_qpd.objective import BOX_LOSSES, distillation_loss
from sb3_qpd.policies import QuantActorCriticCnnPolicy, QuantActorCriticPolicy, QuantMultiInputActorCriticPolicy
from sb3_qpd.quantizers import FLOAT_BITS
from sb3_qpd.scales import fit_scales
from sb3_qpd.schedules import USUAL_LEARNING_RATES, CosineSchedule, share_passed, warmed_up
from sb3_qpd.spaces import parts_of
from sb3_qpd.teacher_check import check_teacher
from sb3_qpd.teachers import Teacher, TeacherOutput
from sb3_qpd.transitions import get_transition

SelfQPDDistiller = TypeVar("SelfQPDDistiller", bound="QPDDistiller")

ROLLOUT_STEPS = 2048  # environment steps between two lines of the log
CALIBRATION_SIZE = 1024  # observations from which steps are calibrated
FLOAT_CALIBRATIONS = 20  # how often a float stage refreshes the steps that evaluation mode uses, per learn()


class QPDDistiller(BaseAlgorithm):
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
        own, see :class:`~sb3_qpd.teachers.DeterministicTeacher`: they are multiplied)
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

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": QuantActorCriticPolicy,
        "CnnPolicy": QuantActorCriticCnnPolicy,
        "MultiInputPolicy": QuantMultiInputActorCriticPolicy,
    }
    policy: QuantActorCriticPolicy
    teacher: Teacher | None

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
        _check_policy(policy)
        loaded = None if teacher is None else load_teacher(teacher, device=device)
        if env is None and _init_setup_model:
            env = env_of_teacher(loaded)
        recipe = make_recipe(env) if isinstance(env, str | EnvRecipe) else None
        super().__init__(
            policy=QuantActorCriticPolicy if policy is None else policy,
            env=None if env is None else raw_env(env, loaded, n_envs, vec_env, seed),
            learning_rate=learning_rate,  # type: ignore[arg-type]
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            support_multi_env=True,
            seed=seed,
        )
        self.teacher, self._recipe = loaded, recipe
        self.teacher_name, self.teacher_checksum = "", ""
        self.pipeline: list[str] = []
        self.student_arch, self.weight_bits, self.activation_bits = student_arch, weight_bits, activation_bits
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
            self._take_teacher(self.teacher)
        is_image = self._has_images
        if self.batch_size is None:
            self.batch_size = 128 if is_image else 256  # larger batches of images leave the processor's cache
        self._check_hyperparameters()
        if self.learning_rate is None:
            self.learning_rate = CosineSchedule(USUAL_LEARNING_RATES[is_image])
        if self.gradient_steps is None:
            self.gradient_steps = 16 / self.batch_size
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._name_architecture()
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        if self.pipeline:
            self.policy.metadata["pipeline"] = self.pipeline
        self._set_precision()
        self._rng = np.random.default_rng(self.seed)
        self._buffer: DistillationBuffer | None = None
        self._float_state: dict[str, th.Tensor] | None = None
        self._float_pixels = FloatPixels()

    def _check_hyperparameters(self) -> None:
        get_transition(self.transition)
        if not 0 <= self.transition_start <= self.transition_end <= 1:
            raise ValueError(
                "Expected 0 <= transition_start <= transition_end <= 1, "
                f"got transition_start={self.transition_start}, transition_end={self.transition_end}"
            )
        if self.box_loss not in BOX_LOSSES:
            raise ValueError(f"box_loss must be one of {BOX_LOSSES}, got '{self.box_loss}'")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta is a share of episodes between 0 and 1, got {self.beta}")
        positive = ("batch_size", "buffer_size", "temperature", "max_grad_norm")
        for name in positive + (("gradient_steps",) if self.gradient_steps is not None else ()):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def _take_teacher(self, teacher: str | Path | BaseAlgorithm | Teacher) -> None:
        """Resolve, check against the environment, and remember by name and checksum, never by path."""
        self.teacher = load_teacher(teacher, device=self.device).to(self.device)
        check_spaces(self.teacher, self.observation_space, self.action_space)
        self.teacher_name, self.teacher_checksum = self.teacher.name, self.teacher.checksum
        if self.env is not None:
            self.pipeline = pipeline_of(self.env)
        flags = {"normalized_image": self.teacher.normalized_image, "uses_masks": self._masking}
        self.policy_kwargs = {**self.policy_kwargs, **{name: True for name, is_set in flags.items() if is_set}}

    @property
    def _has_images(self) -> bool:
        normalized_image = self.policy_kwargs.get("normalized_image", False)
        return any(part.is_image for part in parts_of(self.observation_space, normalized_image))

    @property
    def _masking(self) -> bool:
        """Whether the environment says which actions are allowed, to a teacher that was trained to be told."""
        return self.teacher is not None and self.teacher.uses_masks and self.env is not None and gives_masks(self.env)

    @property
    def uses_masks(self) -> bool:
        """Whether the student was taught with action masks, and ``predict`` should be given them."""
        return self.policy.uses_masks

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """See :meth:`sb3_qpd.QuantActorCriticPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def _name_architecture(self) -> None:
        """``policy_kwargs`` alone must rebuild the network."""
        arch = make_arch(self.student_arch, self.weight_bits, self.activation_bits)
        known = self.policy_kwargs.get("student_arch")
        if known is not None and make_arch(known) != arch:
            raise ValueError(
                f"This student was built with student_arch={make_arch(known)}, and the arguments ask for {arch}: size and "
                "bits cannot change afterwards. Give student_arch, weight_bits and activation_bits to QPDDistiller, not in "
                "policy_kwargs"
            )
        self.policy_kwargs = {**self.policy_kwargs, "student_arch": arch.asdict()}

    def set_env(self, env: GymEnv | str | EnvRecipe, force_reset: bool = True) -> None:
        """See :class:`~stable_baselines3.common.base_class.BaseAlgorithm`; a ``VecNormalize`` is taken off, an id will do."""
        n_envs = self.n_envs if isinstance(env, str | EnvRecipe) else None
        super().set_env(raw_env(env, self.teacher, n_envs, "dummy", self.seed), force_reset)
        self._recipe = make_recipe(env) if isinstance(env, str | EnvRecipe) else None
        self._buffer = None  # another environment may stack its frames or mask its actions otherwise
        if self.teacher is not None:
            self._take_teacher(self.teacher)
            self.policy.uses_masks |= self._masking
            self.policy.metadata["pipeline"] = self.pipeline

    @classmethod
    def load(
        cls: type[SelfQPDDistiller], path: Any, env: GymEnv | str | EnvRecipe | None = None, *args: Any, **kwargs: Any
    ) -> SelfQPDDistiller:
        """
        See :class:`~stable_baselines3.common.base_class.BaseAlgorithm`.

        :param path: zip of a student
        :param env: as in the constructor, ``None`` takes the one of ``teacher=``; not needed to predict
        :param args: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        :param kwargs: ``teacher=`` to go on learning, and other arguments of the constructor
        """
        if (teacher := kwargs.get("teacher")) is not None:
            kwargs["teacher"] = teacher = load_teacher(teacher)
            env = (teacher.vec_env or teacher.recipe) if env is None else env
        if env is not None:
            env = raw_env(env, teacher, kwargs.pop("n_envs", None), "dummy", kwargs.get("seed"))
        return super().load(path, env, *args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        of_a_run = ("_recipe", "_buffer", "_rng", "_float_state", "_last_losses", "_last_obs", "_float_pixels")
        # tensorboard_log is a path of somebody's machine
        return [*super()._excluded_save_params(), "teacher", *of_a_run, "_turns", "tensorboard_log"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

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
        self._check_can_learn(total_timesteps)
        start, iteration = time.perf_counter(), 0
        total_timesteps, callback = self._setup_learn(
            int(total_timesteps), callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._start_collecting()
        callback.on_training_start(locals(), globals())
        try:
            while self.num_timesteps < total_timesteps:
                if not self._collect_and_train(callback):
                    break
                iteration += 1
                if log_interval is not None and iteration % log_interval == 0:
                    self.dump_logs(iteration)
        finally:  # also where Ctrl-C ends it: what there is can be saved
            self.seconds_learning += time.perf_counter() - start
        callback.on_training_end()
        return self

    def _check_can_learn(self, total_timesteps: float) -> None:
        if self.teacher is None:
            raise ValueError(
                "learn() needs a teacher: QPDDistiller(teacher, ...), or QPDDistiller.load(path, env=env, teacher=teacher)"
            )
        if self.env is None:
            raise ValueError("learn() needs an environment: give env= to the constructor or load(), or call set_env(env)")
        if not isinstance(total_timesteps, int | float | np.number) or not 1 <= total_timesteps < math.inf:
            raise ValueError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")

    def _start_collecting(self) -> None:
        assert self.env is not None and self.teacher is not None
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._is_masked = self._masking
        if self.teacher.uses_masks and not self._is_masked:
            warnings.warn(
                "The environment of this MaskablePPO teacher has no action_masks(): its student is taught as if all actions "
                "were always allowed"
            )
        check_finite(self._ask_teacher())
        if self.check_teacher and self.num_timesteps == 0:
            self._compare_teacher_with_random()
        if self._buffer is None:
            self._buffer = DistillationBuffer(
                int(self.buffer_size),
                self.observation_space,
                self.env.num_envs,
                device=self.device,
                seed=self.seed,
                stacked=stacks_frames(self.env),
            )
        self._updates_owed = 0.0
        self._set_precision()
        self._last_calibration = self._progress
        self._turns = Turns(self.env.num_envs, self.beta, self.roll_in, self._rng)

    def _compare_teacher_with_random(self) -> None:
        assert self.teacher is not None and self.env is not None
        own = None if self._recipe is None else self._recipe.make_vec_env(5, self.seed, training=False)
        check = check_teacher(self.teacher, own or self.env, deterministic=not self._has_images, seed=self.seed)
        if own is not None:
            own.close()
        else:
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
            finally:  # an interrupt must not leave the environments waiting for somebody to fetch the step
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

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # the last round may go past the end, and a linear schedule then gives a negative learning rate
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def _ask_teacher(self) -> TeacherOutput:
        """Its labels of the newest observations."""
        assert self.env is not None and self.teacher is not None
        return self.teacher(self._last_obs, get_action_masks(self.env) if self._is_masked else None)

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
        by_teacher = self._turns.of_teacher() | self._is_warming_up
        if not by_teacher.all():
            self._set_training_mode()
            targets = with_student(targets, self.policy, self._last_obs, by_teacher)
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
            self._teacher_temperature = fit_scales(self.policy, self.teacher, self._buffer.newest(10_000))
            self._calibrate()
            self._is_fitted = True
        self._advance_transition()
        self._set_training_mode()
        n_updates, of_all = int(self._updates_owed), int(self._total_timesteps * self.gradient_steps)  # type: ignore[operator]
        self._updates_owed -= n_updates
        for _ in range(n_updates):
            rate = warmed_up(self.lr_schedule(self._current_progress_remaining), self._n_updates, of_all)
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
        progress = share_passed(self._progress, self.transition_start, self.transition_end)
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
        """What a gradient step minimises, and its parts for the log: see :func:`sb3_qpd.objective.distillation_loss`."""
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
        optimizer = self.policy.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # its lists of parameters are there already: policy.parameters() walks through all modules
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        optimizer.step()

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

    def _with_bits(self, weight_bits: int, activation_bits: int, state: dict[str, th.Tensor]) -> QPDDistiller:
        student = type(self)(policy=self.policy_class, device=self.device, _init_setup_model=False)  # type: ignore[arg-type]
        own = (*self._excluded_save_params(), "policy_kwargs")
        student.__dict__.update({name: value for name, value in self.__dict__.items() if name not in own})
        student.student_arch = self.policy.arch.with_bits(weight_bits, activation_bits)
        student.weight_bits = student.activation_bits = None
        student.policy_kwargs = {k: v for k, v in self.policy_kwargs.items() if k != "student_arch"}
        student.seed = None
        with th.random.fork_rng(devices=[]):  # a look at the float student must not change how this one learns on
            student._setup_model()
        student.seed = self.seed
        student.policy.load_state_dict(state)
        return student

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log.

        :param iteration: number of the round
        """
        assert self.ep_info_buffer is not None
        elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        self.logger.record("time/iterations", iteration, exclude="tensorboard")
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        if self._n_updates and getattr(self, "_last_losses", None) is not None:
            actor_loss, critic_loss = (loss.detach().mean().item() for loss in self._last_losses)
            self.logger.record("train/actor_loss", actor_loss)
            self.logger.record("train/critic_loss", critic_loss)
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/transition", self._transition_progress)
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)


def _check_policy(policy: Any) -> None:
    if isinstance(policy, type) and not issubclass(policy, QuantActorCriticPolicy):
        raise TypeError(
            f"The student's policy must be a QuantActorCriticPolicy, got {policy.__name__}: leave policy= out, or subclass it"
        )
