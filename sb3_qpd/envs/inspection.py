"""What an environment that is there already does to its observations."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper, VecFrameStack

from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import EnvRecipe

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
