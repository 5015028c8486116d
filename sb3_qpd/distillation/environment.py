"""Teacher and environment must fit together: raw observations, the same spaces, finite labels."""

from __future__ import annotations

import gymnasium as gym
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.normalization import remove_vec_normalize
from sb3_qpd.teachers.teacher import Teacher

N_ENVS = 16


def env_of_teacher(teacher: Teacher | None) -> VecEnv | EnvRecipe:
    """The environment that a teacher brings along."""
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
    env: GymEnv | str | EnvRecipe, teacher: Teacher | None, n_envs: int | None, vec_env: str, seed: int | None
) -> GymEnv:
    """An environment with raw observations, of supported spaces; the statistics of a ``VecNormalize`` go to the teacher."""
    if isinstance(env, str | EnvRecipe):
        recipe = make_recipe(env)
        raw: GymEnv = recipe.make_vec_env(n_envs or N_ENVS, seed, vec_env)
    elif n_envs is not None:
        raise ValueError(
            f"n_envs={n_envs} is for environments that are built from an id: this one is there already ({env}). Leave n_envs "
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
