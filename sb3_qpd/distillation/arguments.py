"""Checks of the arguments of a distiller that are objects: environment, policy, callback, device."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_qpd.checks import check_choice, check_flags, check_seed, check_type, check_whole, did_you_mean
from sb3_qpd.devices import check_device
from sb3_qpd.distillation.hyperparameters import check_vec_env
from sb3_qpd.envs.recipe import check_env_type
from sb3_qpd.students.architectures import STUDENT_ARCHS
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher

POLICIES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


def check_arguments(teacher: Any, env: Any, policy: Any, *, vec_env: Any, seed: Any, device: Any) -> None:
    """
    Refuse arguments in the wrong place and of the wrong type.

    :param teacher: the constructor's first argument
    :param env: the constructor's second argument
    :param policy: the constructor's third argument
    :param vec_env: kind of the environments to build
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
    if env is not None:
        check_env_type(env)
    _check_policy(policy)
    check_vec_env(vec_env)
    if seed is not None:
        check_seed("seed", seed)
    check_device(device)


def _check_policy(policy: Any) -> None:
    if policy is None:
        return
    if isinstance(policy, type):
        if not issubclass(policy, QuantActorCriticPolicy):
            raise TypeError(
                f"The student's policy must be a QuantActorCriticPolicy, got {policy.__name__}: leave policy= out, or "
                "subclass it"
            )
        return
    check_choice("policy", policy, POLICIES)


def check_base_arguments(given: Mapping[str, Any]) -> None:
    """
    Refuse arguments that SB3's base class would take, and fail on later.

    :param given: arguments by their names; those that are missing have a default
    :raises TypeError: an argument has another type
    :raises ValueError: a number is outside its range, or the path of a folder is a file or lies in one
    """
    for name, least in (("verbose", 0), ("stats_window_size", 1)):
        if name in given:
            check_whole(name, given[name], least)
    if given.get("policy_kwargs") is not None:
        check_type("policy_kwargs", given["policy_kwargs"], Mapping, "a dict of arguments of the policy, or None")
    if given.get("tensorboard_log") is not None:
        check_type("tensorboard_log", given["tensorboard_log"], (str, os.PathLike), "the path of a folder, or None")
        folder = Path(given["tensorboard_log"])
        for path in (folder, *folder.parents):
            if os.path.isfile(path):  # False, not an error, where the folder may not be read
                which = "is a file" if path == folder else f"lies in {path}, which is a file"
                raise ValueError(f"tensorboard_log {folder} {which}. Expected a folder, which may be new")


def check_policy_kwargs(policy_class: type, given: Mapping[str, Any]) -> None:
    """
    Refuse arguments that a policy class does not take.

    :param policy_class: class of the student's policy. Its base classes take what it does not take itself
    :param given: arguments by their names
    :raises TypeError: an argument is unknown
    """
    known = {name for cls in policy_class.__mro__ for name in inspect.signature(cls.__init__).parameters}  # type: ignore[misc]
    for name in given:
        if name not in known:
            raise TypeError(
                f"policy_kwargs has {name!r}, which {policy_class.__name__} does not take.{did_you_mean(name, known)}"
            )


def check_learn_arguments(
    callback: Any, log_interval: Any, tb_log_name: Any, reset_num_timesteps: Any, progress_bar: Any
) -> None:
    """
    Refuse arguments of ``learn()`` that would fail in the middle of the run.

    :param callback: see ``learn()``
    :param log_interval: see ``learn()``
    :param tb_log_name: see ``learn()``
    :param reset_num_timesteps: see ``learn()``
    :param progress_bar: see ``learn()``
    :raises TypeError: an argument has another type
    :raises ValueError: a number is outside its range
    """
    for one in callback if isinstance(callback, list) else [callback]:
        if isinstance(one, type) or not (one is None or isinstance(one, BaseCallback) or callable(one)):
            hint = f": write callback={one.__name__}(...)" if isinstance(one, type) else ""
            raise TypeError(f"callback must be a BaseCallback, a list of them, or a function, got {one!r}{hint}")
    if log_interval is not None:
        check_whole("log_interval", log_interval)
    check_type("tb_log_name", tb_log_name, str, "a name")
    check_flags(reset_num_timesteps=reset_num_timesteps, progress_bar=progress_bar)
