"""Teacher and environment must fit together: raw observations, the same spaces, finite labels."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper, VecFrameStack

from sb3_qpd.envs import AtariVecEnv, EnvRecipe, make_recipe
from sb3_qpd.loading import adopt_normalization, take_off_normalization
from sb3_qpd.spaces import head_of, parts_of
from sb3_qpd.teachers import Teacher

N_ENVS = 16
# wrappers that leave observations as they are
TRANSPARENT = (
    "Monitor",
    "TimeLimit",
    "PatchedTimeLimit",  # what importing rl_zoo3 makes of it
    "OrderEnforcing",
    "PassiveEnvChecker",
    "VecMonitor",
    "VecTransposeImage",
    # and these change rewards or what is told beside the observations
    "ActionMasker",
    "RecordEpisodeStatistics",
    "TransformReward",
)


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
        raw, normalization = take_off_normalization(env)
        if teacher is not None:
            adopt_normalization(teacher, normalization)
    parts_of(raw.observation_space)
    head_of(raw.action_space)
    return raw


def check_spaces(teacher: Teacher, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Shapes and kinds must agree; bounds of observations may differ between versions of an environment."""
    theirs, ours = teacher.parts, parts_of(observation_space, teacher.normalized_image)
    if {part.key: part for part in theirs} != {part.key: part for part in ours}:
        raise ValueError(
            "The environment's observations are not the teacher's.\n"
            f"teacher:     {teacher.observation_space}\nenvironment: {observation_space}"
        )
    actions = teacher.action_space
    same_actions = teacher.head == head_of(action_space)
    if same_actions and isinstance(actions, spaces.Box):
        same_actions = np.allclose(actions.low, action_space.low) and np.allclose(actions.high, action_space.high)  # type: ignore[attr-defined]
    if not same_actions:
        raise ValueError(
            f"The environment's actions are not the teacher's.\nteacher:     {actions}\nenvironment: {action_space}"
        )


def pipeline_of(env: VecEnv, recipe: EnvRecipe | None) -> list[str]:
    """
    What was done to the environment's observations before the student saw them, and has to be done on a device: the wrappers,
    the innermost first, and of ALE's vector environment those that it stands for. The student normalizes by itself.

    :param env: of the student
    :param recipe: that it was built from; without one, what a ``SubprocVecEnv`` wraps in its processes is not known
    """
    names: list[str] = []
    while isinstance(env, VecEnvWrapper):
        names.append(f"VecFrameStack({env.stacked_obs.n_stack})" if isinstance(env, VecFrameStack) else type(env).__name__)
        env = env.venv
    if isinstance(env, AtariVecEnv):
        n_frames, *_ = env.observation_space.shape or ()
        names += [f"VecFrameStack({n_frames})", "AtariWrapper"]
    elif isinstance(env, SubprocVecEnv):
        names += ["unknown wrappers in other processes"] if recipe is None else reversed(recipe.wrapper_names)
    else:
        inner = next(iter(getattr(env, "envs", [])), None)
        while isinstance(inner, gym.Wrapper):
            names.append(type(inner).__name__)
            inner = inner.env
    return [name for name in reversed(names) if name not in TRANSPARENT]


def stacks_frames(env: VecEnv) -> bool:
    """Whether observations are stacks of several single-channel frames of uint8, channels first."""
    shape = env.observation_space.shape
    if shape is None or len(shape) != 3 or shape[0] < 2 or env.observation_space.dtype != np.uint8:
        return False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecFrameStack):
            return env.stacked_obs.n_stack == shape[0]
        env = env.venv
    return isinstance(env, AtariVecEnv)
