"""Inspection of an environment that exists already: its wrappers, its frame stack, the optional methods of its VecEnv."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

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
    # these change rewards or info
    "ActionMasker",
    "RecordEpisodeStatistics",
    "TransformReward",
)

MOVING_STATISTICS = "NormalizeObservation"  # gymnasium's wrapper


def pipeline_of(env: VecEnv, recipe: EnvRecipe | None) -> list[str]:
    """
    The wrappers that change observations before the student sees them. A device has to do the same.

    ALE's vector environment counts as the wrappers that it replaces. Normalization is left out: the student does it itself.

    :param env: environment of the student
    :param recipe: recipe that it was built from. Without one, wrappers inside a ``SubprocVecEnv`` are not known
    :return: names, the innermost wrapper first
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


def warn_of_moving_statistics(pipeline: Sequence[str]) -> None:
    """
    Warn of a wrapper whose observations change while it runs, and whose statistics are in no file.

    :param pipeline: names of the wrappers that change observations
    """
    if MOVING_STATISTICS in pipeline:
        warnings.warn(
            f"The environment has gymnasium's {MOVING_STATISTICS}: its statistics go on changing, each environment has its "
            "own, and no file of the student holds them. On a device the student would see other observations. Train the "
            "teacher in SB3's VecNormalize instead, whose statistics the student takes over"
        )


def stacks_frames(env: VecEnv) -> bool:
    """
    Whether observations are stacks of several single-channel frames of uint8, channels first.

    :param env: vectorized environment
    """
    shape = env.observation_space.shape
    if shape is None or len(shape) != 3 or shape[0] < 2 or env.observation_space.dtype != np.uint8:
        return False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecFrameStack):
            return env.stacked_obs.n_stack == shape[0]
        env = env.venv
    return isinstance(env, AtariVecEnv)
