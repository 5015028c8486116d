"""Teacher and environment must fit together: raw observations, the same spaces, finite labels."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack

from sb3_qpd.envs import AtariVecEnv, EnvRecipe, make_recipe
from sb3_qpd.loading import adopt_normalization, take_off_normalization
from sb3_qpd.teachers import ObsNormalization, Teacher, TeacherOutput

N_ENVS = 16
MAX_DEVIATIONS = 8


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
    """An environment with raw observations; the statistics of a ``VecNormalize`` go to the teacher."""
    if isinstance(env, str | EnvRecipe):
        recipe = make_recipe(env)
        return recipe.make_vec_env(n_envs or N_ENVS, seed, vec_env)
    if n_envs is not None:
        raise ValueError(
            f"n_envs={n_envs} is for environments that are built from an id: this one is there already ({env}). Leave n_envs "
            "out, or give env= as an id"
        )
    if isinstance(env, gym.Env):
        return env
    raw, normalization = take_off_normalization(env)
    if teacher is not None:
        adopt_normalization(teacher, normalization)
    return raw


def check_spaces(teacher: Teacher, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Shapes and kinds must agree; bounds of observations may differ between versions of an environment."""
    theirs = teacher.observation_space
    same_observations = theirs.shape == observation_space.shape and is_image_space(theirs) == is_image_space(observation_space)
    if not same_observations:
        raise ValueError(
            f"The environment's observations are not the teacher's.\nteacher:     {theirs}\nenvironment: {observation_space}"
        )
    actions = teacher.action_space
    same_actions = type(actions).__name__ == type(action_space).__name__ and actions.shape == action_space.shape
    if same_actions and isinstance(actions, spaces.Box):
        same_actions = np.allclose(actions.low, action_space.low) and np.allclose(actions.high, action_space.high)  # type: ignore[attr-defined]
    elif same_actions:
        same_actions = actions.n == action_space.n  # type: ignore[attr-defined]
    if not same_actions:
        raise ValueError(
            f"The environment's actions are not the teacher's.\nteacher:     {actions}\nenvironment: {action_space}"
        )


def check_finite(targets: TeacherOutput) -> None:
    """Refuse what nothing can be learned from."""
    if not all(bool(th.isfinite(t).all()) for t in targets if t is not None):
        raise ValueError("The teacher's output holds NaN or infinity: its weights or its observations are broken")


def input_statistics(observations: np.ndarray, normalization: ObsNormalization | None) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean and deviation that a student's input is normalized with: the teacher's where it has them, else the observations'.

    No feature may reach far beyond the others: one grid serves them all. So a deviation is at least an eighth of the largest
    distance from the mean that was seen (a contact that is rarely made), and one where a feature never moved.

    :param observations: raw, shape (n, *observation_shape)
    :param normalization: the teacher's
    :return: mean and deviation, shape of one observation
    """
    raw = observations.astype(np.float64)
    if normalization is None:
        mean, std = raw.mean(0), raw.std(0)
    else:
        mean, std = normalization.mean, np.sqrt(normalization.var + normalization.epsilon)
    largest = np.abs(raw - mean).max(0)
    std = np.maximum(std, largest / MAX_DEVIATIONS)
    return mean, np.where(largest > 1e-9 * (1 + np.abs(mean)), std, 1.0)


def stacks_frames(env: VecEnv) -> bool:
    """Whether observations are stacks of single-channel frames, channels first."""
    shape = env.observation_space.shape
    if shape is None or len(shape) != 3:
        return False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecFrameStack):
            return env.stacked_obs.n_stack == shape[0]
        env = env.venv
    return isinstance(env, AtariVecEnv)
