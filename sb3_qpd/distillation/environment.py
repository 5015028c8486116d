"""The environment that a distiller steps: the teacher's own, or one that is given, with raw observations."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_qpd.envs.recipe import VEC_ENV_CLASSES, EnvRecipe, EnvSource, build_env, check_env_type, make_recipe
from sb3_qpd.failures import EnvironmentFailure
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.normalization import remove_vec_normalize
from sb3_qpd.teachers.teacher import Teacher

N_ENVS = 16


def env_of_teacher(teacher: Teacher | None) -> VecEnv | EnvRecipe:
    """
    The environment that a teacher brings along.

    :param teacher: a teacher from a run folder, or of a live model
    :raises ValueError: there is no teacher, or it does not know its environment
    """
    if teacher is None:
        raise ValueError("QPDDistiller needs a teacher (a zip, a run folder of RL Zoo, a live model): QPDDistiller(teacher)")
    env = teacher.vec_env or teacher.recipe
    if env is None:
        raise ValueError(
            "This teacher does not say which environment it was trained on (an SB3 zip knows none): "
            "give env=, an id or an environment"
        )
    return env


def raw_env(
    env: EnvSource,
    teacher: Teacher | None,
    n_envs: int | None,
    vec_env: str,
    seed: int | None,
    vec_env_kwargs: Mapping[str, Any] | None = None,
) -> GymEnv:
    """
    An environment with raw observations and supported spaces. The teacher takes the statistics of a ``VecNormalize``.

    :param env: id, recipe, environment, vectorized environment, or a class or function that makes an environment
    :param teacher: the teacher, if there is one
    :param n_envs: number of environments to build from an id; ``None`` builds 16
    :param vec_env: ``"dummy"``, ``"subproc"`` or ``"ray"``
    :param seed: seed of the environments that are built
    :param vec_env_kwargs: see :meth:`~sb3_qpd.envs.recipe.EnvRecipe.make_vec_env`
    :raises ValueError: ``n_envs`` is given for an environment that exists already, or a space is not supported
    """
    check_env_type(env)
    if isinstance(env, str | EnvRecipe):
        recipe = make_recipe(env)
        raw: GymEnv = recipe.make_vec_env(n_envs or N_ENVS, seed, vec_env, vec_env_kwargs=vec_env_kwargs)
    elif callable(env) and not isinstance(env, gym.Env | VecEnv):
        one = build_env(env)
        if isinstance(one, VecEnv):
            return raw_env(one, teacher, None if n_envs == one.num_envs else n_envs, vec_env, seed)
        one.close()
        kind: dict[str, Any] = {"vec_env_cls": VEC_ENV_CLASSES[vec_env], "vec_env_kwargs": dict(vec_env_kwargs or {})}
        raw = make_vec_env(env, n_envs or N_ENVS, seed, **kind)  # type: ignore[arg-type]
    elif n_envs is not None:
        raise ValueError(
            f"n_envs={n_envs} is for environments that are built from an id: this one exists already ({env}). Leave n_envs "
            "out, or give env= as an id"
        )
    elif isinstance(env, gym.Env):
        raw = env
    else:
        raw, normalization = remove_vec_normalize(env)
        if teacher is not None:
            teacher.adopt_normalization(normalization)
    observation_parts(raw.observation_space)
    action_head(raw.action_space)
    return raw


def check_observations(observations: Any) -> None:
    """
    Refuse observations that no student can take.

    :param observations: raw observations, shape (n_envs, *observation_shape), or a dict of such arrays
    :raises EnvironmentFailure: NaN, infinity, or a number that is infinite in float32
    """
    parts = observations.items() if isinstance(observations, dict) else [("", observations)]
    for key, values in parts:
        if values.dtype.kind != "f":
            continue
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(values.astype(np.float32, copy=False)).reshape(len(values), -1)
        if not is_finite.all():
            row, column = np.argwhere(~is_finite)[0]
            where = f"{key}[{column}]" if key else str(column)
            raise EnvironmentFailure(
                f"its observations hold NaN, infinity or a number beyond float32, first in feature {where}: a "
                "student takes finite numbers only. Clip or replace them in the environment",
                int(row),
            )


def check_rewards(rewards: np.ndarray) -> None:
    """
    Refuse rewards that no return can be computed from.

    :param rewards: rewards of one step, shape (n_envs,)
    :raises EnvironmentFailure: a reward is NaN or infinite
    """
    if not np.isfinite(rewards).all():
        index = int(np.isfinite(rewards).argmin())
        raise EnvironmentFailure(f"its reward is {rewards[index]}, expected a finite number. Correct the environment", index)


def has_float_images(teacher: Teacher) -> bool:
    """
    Whether a teacher's convolutions take Boxes of floats as images. SB3 itself calls them vectors.

    A warning names images whose channels come last: their student is one for vectors.

    :param teacher: any teacher
    """
    shapes = [part.shape for part in teacher.parts if part.kind == "vector" and len(part.shape) == 3]
    if not shapes or not any(isinstance(module, nn.Conv2d) for module in teacher.policy.modules()):
        return False
    if all(shape[0] == min(shape) for shape in shapes):
        return True
    warnings.warn(
        f"The teacher has convolutions, and its observations of shape {shapes[0]} look like float images with the channels "
        "last. The student takes them as one long vector. Put the channels first in the environment to get a student with "
        "convolutions, which is smaller"
    )
    return False
