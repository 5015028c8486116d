"""
A quantized student and its teacher as a Stable-Baselines3 algorithm: construction, checks, saving, loading, other bits.

The learning itself is in :mod:`sb3_qpd.distillation.distiller`.
"""

from __future__ import annotations

import io
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.atomic import write_atomically
from sb3_qpd.devices import check_device
from sb3_qpd.distillation.arguments import check_arguments, check_base_arguments, check_policy_kwargs
from sb3_qpd.distillation.callbacks import evaluate_raw
from sb3_qpd.distillation.environment import EnvSource, env_of_teacher, has_float_images, raw_env
from sb3_qpd.distillation.hyperparameters import check_n_envs, check_timesteps, check_workers
from sb3_qpd.distillation.recorded_env import RecordedEnv, recorded_env
from sb3_qpd.distillation.recordings import RecordedObservations, RecordingSource
from sb3_qpd.envs.inspection import pipeline_of, warn_of_moving_statistics
from sb3_qpd.envs.recipe import EnvRecipe, check_env_type, describe_env, make_recipe
from sb3_qpd.failures import environment_failures
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import gives_masks, seed_if_possible
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.student_folder import find_zip
from sb3_qpd.students.architectures import StudentArch
from sb3_qpd.students.budgets import choose_arch, describe_choice, is_budget
from sb3_qpd.students.optimizer import MuonAdam
from sb3_qpd.students.policies import QuantActorCriticCnnPolicy, QuantActorCriticPolicy, QuantMultiInputActorCriticPolicy
from sb3_qpd.students.sizes import StudentTask
from sb3_qpd.teachers.check import check_spaces
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.teacher import Teacher

# of a student's policy in a distiller; stock algorithms keep Adam, for which their usual learning rates were chosen
POLICY_DEFAULTS: dict[str, Any] = {"optimizer_class": MuonAdam}

RECURRENT_HISTORY = 8  # observations that the student of a recurrent teacher sees

SelfDistillationAlgorithm = TypeVar("SelfDistillationAlgorithm", bound="DistillationAlgorithm")


@contextmanager
def torch_threads(n_threads: int | None) -> Iterator[None]:
    """
    A context with another number of torch's threads.

    :param n_threads: number of threads; ``None`` changes nothing
    """
    before = th.get_num_threads()
    if n_threads is not None:
        th.set_num_threads(n_threads)
    try:
        yield
    finally:
        th.set_num_threads(before)


def _learned_in(teacher: Teacher, env: EnvSource | None, observations: RecordingSource | None) -> EnvSource | None:
    """What a student that is loaded goes on with: a recording, the environment that is given, or the teacher's own."""
    if observations is not None:
        return recorded_env(observations, teacher, env)
    return (teacher.vec_env or teacher.recipe) if env is None else env


def _zip_of(path: Any) -> Any:
    """The zip of a student's folder; anything else as it is."""
    if isinstance(path, str | Path) and Path(path).is_dir() and not Path(f"{path}.zip").is_file():
        return find_zip(Path(path)) or path
    return path


class DistillationAlgorithm(BaseAlgorithm):
    """
    The base of an algorithm whose ``policy`` is a quantized student of a teacher. The subclass defines how it learns.

    :param teacher: see :class:`~sb3_qpd.QPDDistiller`, as for all other parameters
    :param env: id, environment or vectorized environment; ``None`` takes the teacher's own where that is known
    :param policy: name in ``policy_aliases`` or a policy class; ``None`` chooses by the observations
    :param observations: recorded observations in the place of the environment's
    :param student_arch: name, budget, ``StudentArch`` or a dict of its fields
    :param weight_bits: bits of the inner weights, ``None`` for the architecture's own
    :param activation_bits: bits of the hidden activations, ``None`` for the architecture's own
    :param history: number of observations that the student sees, ``None`` for the architecture's own or the teacher's default
    :param history_actions: whether it also sees the actions between them, ``None`` for the architecture's own
    :param n_envs: number of environments to build where ``env`` is an id or ``None``
    :param vec_env: ``"dummy"``, ``"subproc"`` or ``"ray"``, the kind of these environments
    :param env_timeout: seconds that an environment may take to answer, for ``"subproc"`` and ``"ray"``
    :param restart_envs: how many times environments are started again, for ``"subproc"`` and ``"ray"``
    :param seed: seed of student, sampling and environments
    :param device: device of student and teacher
    :param _init_setup_model: whether to build the student now; False while a zip is loaded
    :param kwargs: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
    """

    takes_raw_observations: ClassVar[bool] = True
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": QuantActorCriticPolicy,
        "CnnPolicy": QuantActorCriticCnnPolicy,
        "MultiInputPolicy": QuantMultiInputActorCriticPolicy,
    }
    policy: QuantActorCriticPolicy
    teacher: Teacher | None

    def __init__(
        self,
        teacher: str | Path | BaseAlgorithm | Teacher | None,
        env: EnvSource | None,
        policy: str | type[QuantActorCriticPolicy] | None,
        *,
        observations: RecordingSource | None,
        student_arch: str | StudentArch | Mapping[str, Any],
        weight_bits: int | tuple[int, ...] | None,
        activation_bits: int | None,
        history: int | None,
        history_actions: bool | None,
        n_envs: int | None,
        vec_env: str,
        env_timeout: float | None,
        restart_envs: int | None,
        seed: int | None,
        device: th.device | str,
        _init_setup_model: bool,
        **kwargs: Any,
    ) -> None:
        check_arguments(teacher, env, policy, vec_env=vec_env, seed=seed, device=device)
        check_base_arguments(kwargs)
        n_envs = check_n_envs(n_envs)
        workers = check_workers(vec_env, env_timeout, restart_envs)
        loaded = None if teacher is None else load_teacher(teacher, device=device, needs_env=env is None)
        if observations is None and env is None and _init_setup_model:
            env = env_of_teacher(loaded)
        recipe = make_recipe(env) if isinstance(env, str | EnvRecipe) else None
        recorded = None if observations is None else recorded_env(observations, loaded, env)
        super().__init__(
            policy=QuantActorCriticPolicy if policy is None else policy,
            env=recorded if env is None or recorded else raw_env(env, loaded, n_envs, vec_env, seed, workers),
            device=device,
            support_multi_env=True,
            seed=seed,
            **kwargs,
        )
        self.teacher, self._recipe = loaded, recipe
        self._named_env = None if recorded is None or env is None else describe_env(env)  # the recording names none
        self.env_timeout, self.restart_envs = env_timeout, restart_envs
        self.teacher_name, self.teacher_checksum = "", ""
        self.pipeline: list[str] = []
        self.student_arch, self.weight_bits, self.activation_bits = student_arch, weight_bits, activation_bits
        self.history, self.history_actions = history, history_actions
        self._met_budget = ""  # the budget that policy_kwargs names the architecture of

    def _setup_model(self) -> None:
        """Build the untrained student. The teacher (if any) and the learning rate must be known."""
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        check_policy_kwargs(self.policy_class, self.policy_kwargs)
        self._name_architecture()
        settings = {**POLICY_DEFAULTS, **self.policy_kwargs}
        with torch_threads(1):  # the decomposition behind orthogonal weights has other bits on several threads
            policy = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **settings)
        self.policy = policy.to(self.device)  # type: ignore[assignment]
        if self.pipeline:
            self.policy.metadata["pipeline"] = self.pipeline

    def _name_architecture(self) -> None:
        """Put sizes and bits into ``policy_kwargs``, which alone must rebuild the network."""
        known = self.policy_kwargs.get("student_arch")
        # a student that is loaded has no teacher to compute its budget from
        wanted = known if known is not None and self._met_budget == self.student_arch else self.student_arch
        bits = self.weight_bits, self.activation_bits
        if known is None and self.history is None and isinstance(self.teacher, Teacher) and self.teacher.has_memory:
            own = self.find_arch(wanted, *bits).history
            self.history = own if own > 1 else RECURRENT_HISTORY
        arch = self.find_arch(wanted, *bits, self.history, self.history_actions)
        if arch.history_actions and self.recording is not None:
            raise ValueError(
                "history_actions needs the actions between observations, and those of a recording are not read: leave it out, "
                "or give an environment in place of observations="
            )
        if known is not None and (built := self.find_arch(known)) != arch:
            raise ValueError(
                f"This student was built with student_arch={built}, and the arguments ask for {arch}: size and bits cannot "
                "change afterwards. Give student_arch, weight_bits and activation_bits to QPDDistiller, not in policy_kwargs"
            )
        self.policy_kwargs = {**self.policy_kwargs, "student_arch": arch.asdict()}
        if known is None and is_budget(self.student_arch):
            self._met_budget = str(self.student_arch)
            if self.verbose >= 1:
                print(describe_choice(self._met_budget, arch, self._task, self._teacher_nbytes))

    def find_arch(
        self,
        student_arch: str | StudentArch | Mapping[str, Any],
        weight_bits: int | tuple[int, ...] | None = None,
        activation_bits: int | None = None,
        history: int | None = None,
        history_actions: bool | None = None,
    ) -> StudentArch:
        """
        The architecture that a size means for this student's spaces and teacher.

        :param student_arch: see :class:`~sb3_qpd.QPDDistiller`
        :param weight_bits: see there
        :param activation_bits: see there
        :param history: number of observations that the student sees, ``None`` for the architecture's own
        :param history_actions: whether it also sees the actions between them, ``None`` for the architecture's own
        """
        teacher_nbytes = self._teacher_nbytes if is_budget(student_arch) else None
        task = replace(self._task, history=history, history_actions=history_actions)
        return choose_arch(student_arch, weight_bits, activation_bits, task, teacher_nbytes)

    @property
    def _task(self) -> StudentTask:
        """What the student sees and answers."""
        parts = observation_parts(self.observation_space, self.policy_kwargs.get("normalized_image", False))
        head = action_head(self.action_space)
        return StudentTask(parts, head.n_outputs, head.is_box)

    @property
    def _teacher_nbytes(self) -> int | None:
        return self.teacher.nbytes or None if isinstance(self.teacher, Teacher) else None

    def __repr__(self) -> str:
        if not hasattr(self, "policy"):
            return f"{type(self).__name__}(not built)"
        environments = "no environment" if self.env is None else f"{self.env.num_envs} environments"
        name = f" of {self.teacher_name}" if self.teacher_name else ""
        arch = self.policy.arch.describe(self._has_images)
        steps = f"{self.num_timesteps:,} steps learned"
        return f"{type(self).__name__}({arch}{name}, {steps}, {environments}, on {self.device})"

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed Python, NumPy, torch, the action space and the environment. An environment that takes no seed is named.

        :param seed: the seed; ``None`` seeds nothing
        """
        env, self.env = self.env, None  # SB3 assumes that every environment can be seeded
        try:
            super().set_random_seed(seed)
        finally:
            self.env = env
        if seed is not None and env is not None and not seed_if_possible(env, seed):
            warnings.warn(f"{type(env).__name__} takes no seed: its episodes differ from run to run, whatever seed= is")

    def set_teacher(self, teacher: str | Path | BaseAlgorithm | Teacher) -> None:
        """
        Take a teacher. The student remembers its name and checksum, never its path.

        :param teacher: anything that :func:`~sb3_qpd.load_teacher` takes
        :raises ValueError: the teacher's spaces are not the student's
        """
        loaded = load_teacher(teacher, device=self.device, needs_env=False).to(self.device)
        check_spaces(loaded, self.observation_space, self.action_space)
        self.teacher, self.teacher_name, self.teacher_checksum = loaded, loaded.name, loaded.checksum
        is_image = loaded.normalized_image or ("normalized_image" not in self.policy_kwargs and has_float_images(loaded))
        flags = {"normalized_image": is_image, "uses_masks": self._masking}
        self.policy_kwargs = {**self.policy_kwargs, **{name: True for name, is_set in flags.items() if is_set}}
        if hasattr(self, "policy"):
            self.policy.uses_masks |= self._masking
        self._note_pipeline()

    def set_recipe(self, recipe: EnvRecipe | None) -> None:
        """
        Name the recipe of an environment that the caller built.

        With it the wrappers in subprocesses are known, and the teacher is checked in an environment of its own.

        :param recipe: recipe of the environment, or ``None``
        """
        self._recipe = recipe
        self._note_pipeline()

    def _note_pipeline(self) -> None:
        """Keep the names of the wrappers that change observations, also in the policy's metadata."""
        if self.env is not None:
            before, self.pipeline = self.pipeline, pipeline_of(self.env, self._recipe)
            if self.pipeline != before:
                warn_of_moving_statistics(self.pipeline)
        if hasattr(self, "policy") and (self.pipeline or "pipeline" in self.policy.metadata):
            self.policy.metadata["pipeline"] = self.pipeline

    @property
    def _has_images(self) -> bool:
        normalized_image = self.policy_kwargs.get("normalized_image", False)
        return any(part.is_image for part in observation_parts(self.observation_space, normalized_image))

    @property
    def recording(self) -> RecordedObservations | None:
        """The recorded observations that the student learns from, ``None`` where it learns in an environment."""
        return self.env.recording if isinstance(self.env, RecordedEnv) else None

    @property
    def _masking(self) -> bool:
        """Whether the environment gives action masks and the teacher takes them."""
        return self.teacher is not None and self.teacher.uses_masks and self.env is not None and gives_masks(self.env)

    @property
    def uses_masks(self) -> bool:
        """Whether the student was taught with action masks, so that ``predict`` needs them."""
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

    def set_env(self, env: EnvSource, force_reset: bool = True) -> None:
        """
        Take another environment. Its ``VecNormalize`` is taken off.

        :param env: id, recipe, environment or vectorized environment
        :param force_reset: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        """
        n_envs = None if isinstance(env, gym.Env | VecEnv) else self.n_envs
        teacher = None if self.teacher is None else load_teacher(self.teacher, device=self.device, needs_env=False)
        super().set_env(raw_env(env, teacher, n_envs, "dummy", self.seed), force_reset)
        self._recipe = make_recipe(env) if isinstance(env, str | EnvRecipe) else None
        if teacher is not None:
            self.set_teacher(teacher)

    def _setup_learn(
        self,
        total_timesteps: float,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[int, BaseCallback]:
        """Refuse missing parts and impossible lengths before SB3's own preparations."""
        if self.teacher is None:
            raise ValueError(
                "learn() needs a teacher: QPDDistiller(teacher, ...), or QPDDistiller.load(path, env=env, teacher=teacher)"
            )
        if self.env is None:
            raise ValueError("learn() needs an environment: give env= to the constructor or load(), or call set_env(env)")
        total_timesteps = check_timesteps(total_timesteps)
        if not isinstance(self.teacher, Teacher):
            self.set_teacher(self.teacher)  # student.teacher = "path"
        evaluate_raw(callback)
        before = self._last_obs
        try:
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *args, **kwargs)
        except Exception:
            # SB3 resets the environment first, and keeps its observations
            if self._last_obs is not before or not (reset_num_timesteps or before is None):
                raise  # a callback's or a logger's
            with environment_failures(self.env, "reset()"):
                raise

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # the last round may go past the end, and a linear schedule then gives a negative learning rate
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write the log.

        :param iteration: number of the round of about 2,048 environment steps
        """
        assert self.ep_info_buffer is not None
        elapsed = max((time.time_ns() - self.start_time) / 1e9, sys.float_info.epsilon)
        self.logger.record("time/iterations", iteration, exclude="tensorboard")
        if self.ep_info_buffer:
            self.logger.record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            self.logger.record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def to_integer(self, env: EnvSource | Mapping[str, Any] | None = None) -> IntegerModel:
        """
        The student in integers. Its metadata name the environment, and the teacher by name and checksum.

        :param env: environment to name, or its description in JSON values; ``None`` names the one that the student learned in
        """
        env = (self._recipe or (self._named_env if self.recording else self.env)) if env is None else env
        described = {} if env is None else {"env": describe_env(env)}
        return self.policy.to_integer(**described, teacher=self.teacher_name, teacher_checksum=self.teacher_checksum)

    @classmethod
    def load(
        cls: type[SelfDistillationAlgorithm], path: Any, env: EnvSource | None = None, *args: Any, **kwargs: Any
    ) -> SelfDistillationAlgorithm:
        """
        Load a student from its zip, see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`.

        This trusts the file: SB3's loader unpickles parts of it, and a pickle can run any code. Open a zip from an untrusted
        source with :func:`sb3_qpd.load_student`, which executes nothing.

        :param path: zip of a student, or its folder, which you or a person you trust saved
        :param env: as in the constructor; ``None`` takes the one of ``teacher=``. Not needed to predict
        :param args: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        :param kwargs: ``teacher=`` to go on learning, with or without ``observations=``, and other arguments of the
            constructor
        """
        if env is not None:
            check_env_type(env)
        check_device(kwargs.get("device", "auto"))
        path = _zip_of(path)
        if (teacher := kwargs.get("teacher")) is not None:
            observations = kwargs.pop("observations", None)
            kwargs["teacher"] = teacher = load_teacher(teacher, needs_env=env is None and observations is None)
            env = _learned_in(teacher, env, observations)
        if env is not None:
            n_envs = check_n_envs(kwargs.pop("n_envs", None))
            env = raw_env(env, teacher, n_envs, "dummy", kwargs.get("seed"))
        return super().load(path, env, *args, **kwargs)

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save the student as a zip. A file appears whole, or the one that was there stays.

        :param path: path of the file, ``.zip`` is appended where there is no suffix; or a binary file that is open
        :param exclude: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        :param include: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        """
        if not isinstance(path, str | Path):
            super().save(path, exclude, include)
            return
        target = Path(path) if Path(path).suffix else Path(path).with_suffix(".zip")
        target.parent.mkdir(parents=True, exist_ok=True)
        memory = io.BytesIO()  # torch turns an error of the disk into one of its own format
        super().save(memory, exclude, include)
        write_atomically(target, memory.getvalue())

    def _excluded_save_params(self) -> list[str]:
        # tensorboard_log is a path on the machine that trained
        return [*super()._excluded_save_params(), "teacher", "_recipe", "_named_env", "_last_obs", "tensorboard_log"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def _with_bits(
        self: SelfDistillationAlgorithm, weight_bits: int, activation_bits: int, state: dict[str, th.Tensor]
    ) -> SelfDistillationAlgorithm:
        """A student of the same sizes at other bits, with the given state of the policy."""
        student = type(self)(policy=self.policy_class, device=self.device, _init_setup_model=False)  # type: ignore[call-arg, arg-type]
        own = (*self._excluded_save_params(), "policy_kwargs")
        student.__dict__.update({name: value for name, value in self.__dict__.items() if name not in own})
        student.student_arch = self.policy.arch.with_bits(weight_bits, activation_bits)
        student.weight_bits = student.activation_bits = None
        student.policy_kwargs = {k: v for k, v in self.policy_kwargs.items() if k != "student_arch"}
        student.seed = None
        with th.random.fork_rng(devices=[]):  # learning must go on as if this had not been called
            student._setup_model()
        student.seed = self.seed
        student.policy.load_state_dict(state)
        return student
