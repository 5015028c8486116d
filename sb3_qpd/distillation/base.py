"""
A quantized student and its teacher as a Stable-Baselines3 algorithm: built, checked, saved, loaded, and at other bits.

What is particular to quantization-aware policy distillation is in :mod:`sb3_qpd.distillation.distiller`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EventCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import safe_mean

from sb3_qpd.distillation.environment import env_of_teacher, raw_env
from sb3_qpd.distillation.hyperparameters import positive_int
from sb3_qpd.envs.inspection import pipeline_of
from sb3_qpd.envs.recipe import EnvRecipe, describe_env, make_recipe
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import gives_masks
from sb3_qpd.spaces import observation_parts
from sb3_qpd.students.architectures import StudentArch, make_arch
from sb3_qpd.students.policies import QuantActorCriticCnnPolicy, QuantActorCriticPolicy, QuantMultiInputActorCriticPolicy
from sb3_qpd.teachers.check import check_spaces
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.normalization import remove_vec_normalize
from sb3_qpd.teachers.teacher import Teacher

SelfDistillationAlgorithm = TypeVar("SelfDistillationAlgorithm", bound="DistillationAlgorithm")


class DistillationAlgorithm(BaseAlgorithm):
    """
    The base of an algorithm whose ``policy`` is a quantized student of a teacher. How it learns is the subclass's.

    :param teacher: see :class:`~sb3_qpd.QPDDistiller`, as all of the following
    :param env: id, environment or vectorized environment; ``None`` takes the teacher's own where that is known
    :param policy: name in ``policy_aliases`` or a policy class; ``None`` chooses by the observations
    :param student_arch: name, ``StudentArch`` or a dict of its fields
    :param weight_bits: bits of the inner weights, ``None`` for the architecture's own
    :param activation_bits: bits of the hidden activations, ``None`` for the architecture's own
    :param n_envs: environments to build where ``env`` is an id or ``None``
    :param vec_env: ``"dummy"`` or ``"subproc"`` for those
    :param seed: of student, sampling and environments
    :param device: where student and teacher compute
    :param _init_setup_model: whether there is an environment to take spaces from; not while a zip is loaded
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
        env: GymEnv | str | EnvRecipe | None,
        policy: str | type[QuantActorCriticPolicy] | None,
        *,
        student_arch: str | StudentArch | Mapping[str, Any],
        weight_bits: int | tuple[int, ...] | None,
        activation_bits: int | None,
        n_envs: int | None,
        vec_env: str,
        seed: int | None,
        device: th.device | str,
        _init_setup_model: bool,
        **kwargs: Any,
    ) -> None:
        if isinstance(policy, type) and not issubclass(policy, QuantActorCriticPolicy):
            raise TypeError(
                f"The student's policy must be a QuantActorCriticPolicy, got {policy.__name__}: leave policy= out, "
                "or subclass it"
            )
        n_envs = positive_int("n_envs", n_envs)
        loaded = None if teacher is None else load_teacher(teacher, device=device, needs_env=env is None)
        if env is None and _init_setup_model:
            env = env_of_teacher(loaded)
        recipe = make_recipe(env) if isinstance(env, str | EnvRecipe) else None
        super().__init__(
            policy=QuantActorCriticPolicy if policy is None else policy,
            env=None if env is None else raw_env(env, loaded, n_envs, vec_env, seed),
            device=device,
            support_multi_env=True,
            seed=seed,
            **kwargs,
        )
        self.teacher, self._recipe = loaded, recipe
        self.teacher_name, self.teacher_checksum = "", ""
        self.pipeline: list[str] = []
        self.student_arch, self.weight_bits, self.activation_bits = student_arch, weight_bits, activation_bits

    def _setup_model(self) -> None:
        """The student, untrained; what it is built from must be known: the teacher (if any) and the learning rate."""
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._name_architecture()
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
        ).to(self.device)
        if self.pipeline:
            self.policy.metadata["pipeline"] = self.pipeline

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

    # -- teacher and environment --------------------------------------------------------------------------------------

    def set_teacher(self, teacher: str | Path | BaseAlgorithm | Teacher) -> None:
        """
        Take a teacher, from whichever side it comes. The student remembers its name and checksum, never its path.

        :param teacher: what :func:`~sb3_qpd.load_teacher` takes
        :raises ValueError: its spaces are not the student's
        """
        loaded = load_teacher(teacher, device=self.device, needs_env=False).to(self.device)
        check_spaces(loaded, self.observation_space, self.action_space)
        self.teacher, self.teacher_name, self.teacher_checksum = loaded, loaded.name, loaded.checksum
        flags = {"normalized_image": loaded.normalized_image, "uses_masks": self._masking}
        self.policy_kwargs = {**self.policy_kwargs, **{name: True for name, is_set in flags.items() if is_set}}
        if hasattr(self, "policy"):
            self.policy.uses_masks |= self._masking
        self._note_pipeline()

    def set_recipe(self, recipe: EnvRecipe | None) -> None:
        """
        Tell what the environment was built from, where the caller built it.

        The wrappers in subprocesses are known then, and the teacher is checked in an environment of its own.

        :param recipe: recipe of the environment
        """
        self._recipe = recipe
        self._note_pipeline()

    def _note_pipeline(self) -> None:
        """Keep what the environment does to observations, also with the policy."""
        if self.env is not None:
            self.pipeline = pipeline_of(self.env, self._recipe)
        if self.pipeline and hasattr(self, "policy"):
            self.policy.metadata["pipeline"] = self.pipeline

    @property
    def _has_images(self) -> bool:
        normalized_image = self.policy_kwargs.get("normalized_image", False)
        return any(part.is_image for part in observation_parts(self.observation_space, normalized_image))

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

    def set_env(self, env: GymEnv | str | EnvRecipe, force_reset: bool = True) -> None:
        """See :class:`~stable_baselines3.common.base_class.BaseAlgorithm`; a ``VecNormalize`` is taken off, an id will do."""
        n_envs = self.n_envs if isinstance(env, str | EnvRecipe) else None
        teacher = None if self.teacher is None else load_teacher(self.teacher, device=self.device, needs_env=False)
        super().set_env(raw_env(env, teacher, n_envs, "dummy", self.seed), force_reset)
        self._recipe = make_recipe(env) if isinstance(env, str | EnvRecipe) else None
        if teacher is not None:
            self.set_teacher(teacher)

    # -- learning and its log -----------------------------------------------------------------------------------------

    def _setup_learn(
        self, total_timesteps: float, callback: MaybeCallback = None, *args: Any, **kwargs: Any
    ) -> tuple[int, BaseCallback]:
        """Refuse first what cannot be learned."""
        if self.teacher is None:
            raise ValueError(
                "learn() needs a teacher: QPDDistiller(teacher, ...), or QPDDistiller.load(path, env=env, teacher=teacher)"
            )
        if self.env is None:
            raise ValueError("learn() needs an environment: give env= to the constructor or load(), or call set_env(env)")
        if not isinstance(total_timesteps, int | float | np.number) or not 1 <= total_timesteps < math.inf:
            raise ValueError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")
        if not isinstance(self.teacher, Teacher):
            self.set_teacher(self.teacher)  # student.teacher = "path"
        evaluate_raw(callback)
        return super()._setup_learn(int(total_timesteps), callback, *args, **kwargs)

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)
        # the last round may go past the end, and a linear schedule then gives a negative learning rate
        self._current_progress_remaining = max(self._current_progress_remaining, 0.0)

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
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(step=self.num_timesteps)

    def to_integer(self, env: str | EnvRecipe | GymEnv | Mapping[str, Any] | None = None) -> IntegerModel:
        """
        The student in integers, with what it remembers: its environment, and its teacher's name and checksum.

        :param env: the environment that it plays in, or its description in JSON values; ``None`` takes the one that it
            learned in
        """
        env = (self._recipe or self.env) if env is None else env
        described = {} if env is None else {"env": describe_env(env)}
        return self.policy.to_integer(**described, teacher=self.teacher_name, teacher_checksum=self.teacher_checksum)

    # -- saved, loaded, at other bits ---------------------------------------------------------------------------------

    @classmethod
    def load(
        cls: type[SelfDistillationAlgorithm], path: Any, env: GymEnv | str | EnvRecipe | None = None, *args: Any, **kwargs: Any
    ) -> SelfDistillationAlgorithm:
        """
        See :class:`~stable_baselines3.common.base_class.BaseAlgorithm`.

        :param path: zip of a student
        :param env: as in the constructor, ``None`` takes the one of ``teacher=``; not needed to predict
        :param args: see :class:`~stable_baselines3.common.base_class.BaseAlgorithm`
        :param kwargs: ``teacher=`` to go on learning, and other arguments of the constructor
        """
        if (teacher := kwargs.get("teacher")) is not None:
            kwargs["teacher"] = teacher = load_teacher(teacher, needs_env=env is None)
            env = (teacher.vec_env or teacher.recipe) if env is None else env
        if env is not None:
            n_envs = positive_int("n_envs", kwargs.pop("n_envs", None))
            env = raw_env(env, teacher, n_envs, "dummy", kwargs.get("seed"))
        return super().load(path, env, *args, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        # tensorboard_log is a path of somebody's machine
        return [*super()._excluded_save_params(), "teacher", "_recipe", "_last_obs", "tensorboard_log"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []

    def _with_bits(
        self: SelfDistillationAlgorithm, weight_bits: int, activation_bits: int, state: dict[str, th.Tensor]
    ) -> SelfDistillationAlgorithm:
        """A student of the same sizes at other bits, with that state of the policy."""
        student = type(self)(policy=self.policy_class, device=self.device, _init_setup_model=False)  # type: ignore[call-arg, arg-type]
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


def evaluate_raw(callback: MaybeCallback | None) -> None:
    """
    A student normalizes by itself: the environments in which SB3's callbacks evaluate lose their ``VecNormalize``, as the one
    in which it learns did.

    :param callback: as ``learn()`` takes it
    """
    if isinstance(callback, EvalCallback):
        callback.eval_env, _ = remove_vec_normalize(callback.eval_env)
        evaluate_raw(callback.callback_on_new_best)
    if isinstance(callback, EventCallback):
        evaluate_raw(callback.callback)
    for one in callback.callbacks if isinstance(callback, CallbackList) else callback if isinstance(callback, list) else ():
        evaluate_raw(one)
