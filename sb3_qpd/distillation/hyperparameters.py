"""Checks of the distiller's arguments and hyperparameters, before anything is built or learned."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_qpd.distillation.losses import BOX_LOSSES
from sb3_qpd.students.architectures import STUDENT_ARCHS
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.students.transitions import get_transition
from sb3_qpd.teachers.teacher import Teacher

WHOLE = ("batch_size", "buffer_size")  # RL Zoo's entries have floats, such as 1e5
POSITIVE = ("gradient_steps", "temperature")
NOT_NEGATIVE = ("critic_coef", "entropy_coef", "learning_starts")
MAX_N_ENVS = 1_024  # environments that are built from an id, each an object of Python
MAX_TIMESTEPS = 10**10  # at a hundred thousand steps per second more than a day
POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


def check_arguments(teacher: Any, env: Any, policy: Any, seed: Any, device: Any) -> None:
    """
    Refuse arguments in the wrong place and of the wrong type.

    :param teacher: the constructor's first argument
    :param env: the constructor's second argument
    :param policy: the constructor's third argument
    :param seed: seed, or ``None``
    :param device: device, by name or as an object
    :raises TypeError: an argument has another type
    :raises ValueError: an argument has another meaning, or cannot be met on this machine
    """
    usage = "QPDDistiller(teacher, env, student_arch=...)"
    if isinstance(teacher, str) and teacher in POLICIES:
        raise ValueError(f"The first argument is the teacher, got the name of a policy, {teacher!r}: write {usage}")
    for name, value in (("env", env), ("policy", policy)):
        if isinstance(value, str) and value in STUDENT_ARCHS:
            raise ValueError(f"{name}={value!r} is the name of a student's size: write student_arch={value!r}")
    if isinstance(env, BaseAlgorithm | Teacher):
        raise TypeError(f"The second argument is the environment, got a {type(env).__name__}: write {usage}")
    if isinstance(policy, type) and not issubclass(policy, QuantActorCriticPolicy):
        raise TypeError(
            f"The student's policy must be a QuantActorCriticPolicy, got {policy.__name__}: leave policy= out, or subclass it"
        )
    if seed is not None and not (_is_finite(seed) and seed % 1 == 0 and 0 <= seed < 2**32):
        raise ValueError(f"seed must be a whole number of 0 to {2**32 - 1}, or None, got {seed!r}")
    _check_device(device)


def _check_device(device: Any) -> None:
    """SB3 takes the CPU instead of a GPU that is missing, and says nothing."""
    if device == "auto":
        return
    try:
        th.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device={str(device)!r} cannot be used on this machine: {reason}. Give 'cpu' or 'auto'") from error


def check_memory(buffer_size: int, n_bytes: int) -> None:
    """
    Refuse a ring of observations that is larger than the memory of this machine.

    :param buffer_size: number of observations
    :param n_bytes: bytes of all of them
    :raises ValueError: the ring does not fit
    """
    memory = _memory()
    if n_bytes > memory:
        raise ValueError(
            f"buffer_size={buffer_size} needs {n_bytes / 1e9:,.1f} GB for its observations, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory: take a buffer_size of at most {int(buffer_size * memory / 2 / n_bytes)}"
        )


def _memory() -> float:
    """Bytes of memory of this machine or of its container; infinity where that is not known."""
    memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else math.inf
    try:
        return min(memory, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return memory


def check_timesteps(total_timesteps: Any) -> int:
    """
    The length of a run, as an integer.

    :param total_timesteps: number of environment steps; a float such as 1e6 is converted
    :raises ValueError: no number, or one that no run reaches
    """
    if not (_is_finite(total_timesteps) and total_timesteps >= 1):
        raise ValueError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")
    if total_timesteps > MAX_TIMESTEPS:
        raise ValueError(f"total_timesteps must be at most {MAX_TIMESTEPS:.0e}, got {total_timesteps!r}: it would take years")
    return int(total_timesteps)


def check_hyperparameters(given: Mapping[str, Any]) -> None:
    """
    Refuse hyperparameters that cannot work, before anything is built.

    :param given: a distiller's attributes. ``None`` stands for a default that is not chosen yet
    :raises ValueError: a hyperparameter is outside its range
    """
    get_transition(given["transition"])
    start, end = given["transition_start"], given["transition_end"]
    if not (_is_finite(start) and _is_finite(end) and 0 <= start <= end <= 1):
        raise ValueError(
            f"Expected 0 <= transition_start <= transition_end <= 1, got transition_start={start!r}, transition_end={end!r}"
        )
    if given["box_loss"] not in BOX_LOSSES:
        raise ValueError(f"box_loss must be one of {', '.join(BOX_LOSSES)}, got {given['box_loss']!r}")
    if not (_is_finite(given["beta"]) and 0 <= given["beta"] <= 1):
        raise ValueError(f"beta must be a share of episodes between 0 and 1, got {given['beta']!r}")
    _check_numbers(given)


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in WHOLE:
        positive_int(name, given[name])
    for name in POSITIVE:
        if given[name] is not None and not (_is_finite(given[name]) and given[name] > 0):
            raise ValueError(f"{name} must be a positive number, got {given[name]!r}")
    for name in NOT_NEGATIVE:
        if not (_is_finite(given[name]) and given[name] >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {given[name]!r}")
    if not (isinstance(given["max_grad_norm"], float | int) and given["max_grad_norm"] > 0):  # infinity: no bound
        raise ValueError(f"max_grad_norm must be positive, got {given['max_grad_norm']!r}")
    rate = given["learning_rate"]
    if not (rate is None or callable(rate) or (_is_finite(rate) and 0 <= rate <= 1)):
        raise ValueError(f"learning_rate must be a number between 0 and 1 or a schedule, got {rate!r}")


def positive_int(name: str, value: Any) -> int | None:
    """
    A hyperparameter that counts something, as an integer. Floats such as 1e5 are converted.

    :param name: name of the hyperparameter, for the message
    :param value: a whole number of at least 1, or ``None`` for a default that is not chosen yet
    :raises ValueError: the value is anything else
    """
    if value is None:
        return None
    if not (_is_finite(value) and value >= 1 and value % 1 == 0):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def check_n_envs(n_envs: Any) -> int | None:
    """
    The number of environments to build, as an integer.

    :param n_envs: a whole number of 1 to 1,024, or ``None`` for the default
    :raises ValueError: the number is anything else
    """
    checked = positive_int("n_envs", n_envs)
    if checked is not None and checked > MAX_N_ENVS:
        raise ValueError(
            f"n_envs must be at most {MAX_N_ENVS} for environments that are built from an id, got {n_envs!r}: take fewer, or "
            "give a VecEnv that simulates many at once as env="
        )
    return checked


def check_workers(vec_env: str, env_timeout: Any, restart_envs: Any) -> dict[str, Any]:
    """
    The arguments of environments in subprocesses.

    :param vec_env: ``"dummy"`` or ``"subproc"``
    :param env_timeout: seconds, or ``None``
    :param restart_envs: number of restarts
    :return: arguments of :class:`~sb3_qpd.envs.workers.WorkerVecEnv`; none for ``"dummy"``
    :raises ValueError: values out of range, or given for environments in this process
    """
    if env_timeout is not None and not (_is_finite(env_timeout) and env_timeout > 0):
        raise ValueError(f"env_timeout must be a number of seconds above 0, or None, got {env_timeout!r}")
    if not (_is_finite(restart_envs) and restart_envs >= 0 and restart_envs % 1 == 0):
        raise ValueError(f"restart_envs must be a whole number of at least 0, got {restart_envs!r}")
    if vec_env != "subproc":
        if env_timeout is not None or restart_envs:
            raise ValueError(
                f"env_timeout and restart_envs are for environments in subprocesses, got vec_env={vec_env!r}: an environment "
                "in this process cannot be stopped. Give vec_env='subproc', on the command line --vec-env subproc"
            )
        return {}
    return {"time_limit": env_timeout, "restarts": int(restart_envs)}


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, Real) and math.isfinite(value)
