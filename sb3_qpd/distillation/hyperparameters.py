"""
Checks of the distiller's hyperparameters, before anything is built or learned.

This module imports nothing heavy. The command checks with it what a user typed, before torch is imported.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sb3_qpd.checks import check_choice, check_flags, check_positive, check_whole, is_finite
from sb3_qpd.envs import NEEDS_RAY, RESTARTS, VEC_ENVS
from sb3_qpd.students.transitions import get_transition

BOX_LOSS_NAMES = ("huber", "squared_error", "gaussian_kl")  # functions of the module losses
WHOLE = ("batch_size", "buffer_size", "transition_steps")  # RL Zoo's entries have floats, such as 1e5
POSITIVE = ("gradient_steps", "temperature", "student_temperature")
CHOSEN_LATER = ("batch_size", "gradient_steps")  # None is a default that depends on the observations
NOT_NEGATIVE = ("critic_coef", "entropy_coef", "learning_starts")
FLAGS = ("roll_in", "check_teacher")
MAX_N_ENVS = 1_024  # environments that are built from an id, each an object of Python
MAX_TIMESTEPS = 10**10  # at a hundred thousand steps per second more than a day


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
    if not (is_finite(total_timesteps) and total_timesteps >= 1):
        raise ValueError(f"total_timesteps must be a number of at least 1, got {total_timesteps!r}")
    if total_timesteps > MAX_TIMESTEPS:
        raise ValueError(f"total_timesteps must be at most {MAX_TIMESTEPS:.0e}, got {total_timesteps!r}: it would take years")
    return int(total_timesteps)


def check_hyperparameters(given: Mapping[str, Any]) -> None:
    """
    Refuse hyperparameters that cannot work, before anything is built.

    :param given: a distiller's attributes. ``None`` stands for a default that is not chosen yet
    :raises TypeError: a hyperparameter has another type
    :raises ValueError: a hyperparameter is outside its range
    """
    get_transition(given["transition"])
    start, end = given["transition_start"], given["transition_end"]
    if not (is_finite(start) and is_finite(end) and 0 <= start <= end <= 1):
        raise ValueError(
            f"Expected 0 <= transition_start <= transition_end <= 1, got transition_start={start!r}, transition_end={end!r}"
        )
    check_choice("box_loss", given["box_loss"], BOX_LOSS_NAMES)
    if not (is_finite(given["beta"]) and 0 <= given["beta"] <= 1):
        raise ValueError(f"beta must be a share of episodes between 0 and 1, got {given['beta']!r}")
    check_flags(**{name: given[name] for name in FLAGS})
    _check_numbers(given)


def _check_numbers(given: Mapping[str, Any]) -> None:
    known = {name: value for name, value in given.items() if value is not None or name not in CHOSEN_LATER}
    for name in WHOLE:
        if name in known:
            check_whole(name, known[name])
    for name in POSITIVE:
        if name in known:
            check_positive(name, known[name])
    for name in NOT_NEGATIVE:
        if not (is_finite(given[name]) and given[name] >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {given[name]!r}")
    norm = given["max_grad_norm"]
    if not (is_finite(norm) and norm > 0) and not (isinstance(norm, float) and norm == math.inf):  # infinity: no bound
        raise ValueError(f"max_grad_norm must be positive, got {norm!r}")
    rate = given["learning_rate"]
    if not (rate is None or callable(rate) or (is_finite(rate) and 0 <= rate <= 1)):
        raise ValueError(f"learning_rate must be a number between 0 and 1 or a schedule, got {rate!r}")


def check_optimizer(policy_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse the default learning rate for another optimizer than the one that it was chosen for.

    :param policy_kwargs: arguments of the policy class
    :raises ValueError: an optimizer is given
    """
    if "optimizer_class" not in policy_kwargs:
        return
    from sb3_qpd.students.optimizer import MuonAdam  # imports torch

    given = policy_kwargs["optimizer_class"]
    if given is not MuonAdam:
        raise ValueError(
            f"learning_rate must be given with optimizer_class={getattr(given, '__name__', given)}: the default is chosen for "
            "sb3_qpd.MuonAdam. For Adam take CosineSchedule(2e-3), or CosineSchedule(1e-2) for images"
        )


def check_n_envs(n_envs: Any) -> int | None:
    """
    The number of environments to build, as an integer.

    :param n_envs: a whole number of 1 to 1,024, or ``None`` for the default
    :raises ValueError: the number is anything else
    """
    if n_envs is None:
        return None
    checked = check_whole("n_envs", n_envs)
    if checked > MAX_N_ENVS:
        raise ValueError(
            f"n_envs must be at most {MAX_N_ENVS} for environments that are built from an id, got {n_envs!r}: take fewer, or "
            "give a VecEnv that simulates many at once as env="
        )
    return checked


def check_vec_env(vec_env: Any) -> None:
    """
    Refuse an unknown kind of vectorized environment.

    :param vec_env: ``"dummy"``, ``"subproc"`` or ``"ray"``
    :raises ImportError: Ray is not installed
    """
    check_choice("vec_env", vec_env, VEC_ENVS)
    if vec_env == "ray" and find_spec("ray") is None:
        raise ImportError(NEEDS_RAY)


def check_workers(vec_env: str, env_timeout: Any, restart_envs: Any) -> dict[str, Any]:
    """
    The arguments of environments in other processes.

    :param vec_env: ``"dummy"``, ``"subproc"`` or ``"ray"``
    :param env_timeout: seconds, or ``None``
    :param restart_envs: number of restarts, ``None`` for the default
    :return: arguments of the class in ``VEC_ENV_CLASSES``; none for ``"dummy"``
    :raises ValueError: values out of range, or given for environments in this process
    """
    if env_timeout is not None and not (is_finite(env_timeout) and env_timeout > 0):
        raise ValueError(f"env_timeout must be a number of seconds above 0, or None, got {env_timeout!r}")
    restarts = None if restart_envs is None else check_whole("restart_envs", restart_envs, least=0)
    if vec_env == "dummy":
        if env_timeout is not None or restarts:
            raise ValueError(
                f"env_timeout and restart_envs are for environments in other processes, got vec_env={vec_env!r}: an "
                "environment in this process cannot be stopped. Give vec_env='subproc'"
            )
        return {}
    return {"time_limit": env_timeout, "restarts": RESTARTS[vec_env] if restarts is None else restarts}
