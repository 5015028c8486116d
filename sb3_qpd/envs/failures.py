"""Environments that fail: one error that names the environment, the step and the sub-environment."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_qpd.players import MISSING


class SimulatorError(ValueError):
    """
    An environment raised an exception, died, did not answer, or gave values that nothing can learn from.

    :param reason: what happened, without a full stop
    :param index: number of the sub-environment, ``None`` where it is not known or where there is only one
    :param env_name: name of the environment, ``""`` where the raiser does not know it
    :param step: steps that all sub-environments together had made before, ``None`` where the raiser does not know it
    """

    def __init__(self, reason: str, index: int | None = None, env_name: str = "", step: int | None = None) -> None:
        self.reason, self.index = reason, index
        where = "" if step is None else f" at step {step}"
        where += "" if index is None else f", in sub-environment {index}"
        super().__init__(f"{env_name or 'The environment'} failed{where}: {reason}")


def simulator_error(error: Exception, env: Any, env_name: str, step: int | None, index: int | None = None) -> SimulatorError:
    """
    What an environment raised, as an error with a name and a place.

    :param error: what was raised
    :param env: environment that raised it
    :param env_name: its name
    :param step: steps before
    :param index: number of the sub-environment; ``None``: from the error, or from where ``DummyVecEnv`` was
    """
    if isinstance(error, SimulatorError):
        return SimulatorError(error.reason, error.index if index is None else index, env_name, step)
    if index is None:
        index = _dead_process(env) if isinstance(error, EOFError | OSError) else _index_in_dummy(error)
    return SimulatorError(describe_error(error, env), index, env_name, step)


def describe_error(error: BaseException, env: Any = None) -> str:
    """
    An exception in one line: its type, its text, and the line of code that raised it.

    :param error: what was raised
    :param env: environment that raised it, to tell a closed pipe from a process that ended
    """
    if isinstance(error, EOFError | BrokenPipeError | ConnectionResetError) and hasattr(_innermost(env), "processes"):
        return "its process ended"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text[:500]}{place}"


def env_name_of(env: Any, recipe: Any = None) -> str:
    """
    The name of an environment for a message: its id, else its class. It asks the environment, which must not have failed yet.

    :param env: environment or vectorized environment
    :param recipe: its recipe, where it is known
    """
    if recipe is not None:
        return recipe.env_id
    try:
        spec = env.get_attr("spec", 0)[0] if isinstance(env, VecEnv) else env.spec
    except (*MISSING, IndexError, EOFError, OSError):
        spec = None
    if spec is not None:
        return spec.id
    inner = _innermost(env)
    envs = getattr(inner, "envs", None)
    return type(envs[0].unwrapped if isinstance(envs, list) and envs else inner).__name__


def check_rewards(rewards: np.ndarray) -> None:
    """
    Refuse rewards that no return can be computed from.

    :param rewards: rewards of one step, shape (n_envs,)
    :raises SimulatorError: a reward is NaN or infinite
    """
    if not np.isfinite(rewards).all():
        index = int(np.isfinite(rewards).argmin())
        raise SimulatorError(f"its reward is {rewards[index]}, expected a finite number. Correct the environment", index)


def _index_in_dummy(error: Exception) -> int | None:
    """The sub-environment that ``DummyVecEnv`` was stepping or resetting, from the local variables of its method."""
    trace = error.__traceback__
    while trace is not None:
        frame: FrameType = trace.tb_frame
        if isinstance(frame.f_locals.get("self"), DummyVecEnv) and "env_idx" in frame.f_locals:
            return int(frame.f_locals["env_idx"])
        trace = trace.tb_next
    return None


def _dead_process(env: Any) -> int | None:
    processes = getattr(_innermost(env), "processes", [])
    for process in processes:
        process.join(timeout=0.1)
    return next((i for i, process in enumerate(processes) if not process.is_alive()), None)


def _innermost(env: Any) -> Any:
    while isinstance(getattr(env, "venv", None), VecEnv):
        env = env.venv
    return env
