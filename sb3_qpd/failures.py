"""
Environments that fail: one error that names the environment, the call or the step, the sub-environment, and the cause.

This module imports nothing heavy.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

MAX_TEXT = 500  # characters of an exception's text


class EnvironmentFailure(ValueError):
    """
    An environment raised an exception, ended, did not answer, or gave values that nothing can learn from.

    :param reason: what happened, without a full stop
    :param index: number of the sub-environment, ``None`` where it is not known or where there is only one
    :param name: name of the environment, ``""`` where the raiser does not know it
    :param call: the call that failed, such as ``reset(seed=3)``
    :param step: environment steps before, of all sub-environments together while learning, of the episode in an evaluation
    """

    def __init__(self, reason: str, index: int | None = None, name: str = "", call: str = "", step: int | None = None) -> None:
        self.reason, self.index, self.name = reason, index, name
        where = f" in {call}" if call else ""
        where += "" if step is None else f" at step {step}"
        where += "" if index is None else f", in sub-environment {index}"
        super().__init__(f"{name or 'The environment'} failed{where}: {reason}")


@contextmanager
def environment_failures(
    env: Any, call: str = "", *, step: int | None = None, name: str = "", index: int | None = None
) -> Iterator[None]:
    """
    Turn what an environment raises inside into an error with a name and a place.

    :param env: environment, or its id
    :param call: see :class:`EnvironmentFailure`
    :param step: see there
    :param name: name of the environment; ``""``: from the environment
    :param index: number of the sub-environment; ``None``: from the exception
    :raises EnvironmentFailure: any exception was raised inside
    """
    try:
        yield
    except Exception as error:
        raise environment_failure(error, env, call, step=step, name=name, index=index) from error


def environment_failure(
    error: Exception, env: Any, call: str = "", *, step: int | None = None, name: str = "", index: int | None = None
) -> EnvironmentFailure:
    """
    What an environment raised, as an error with a name and a place.

    :param error: what was raised; a failure that is named already stays as it is
    :param env: environment that raised it, or its id
    :param call: see :class:`EnvironmentFailure`
    :param step: see there
    :param name: name of the environment; ``""``: from the environment
    :param index: number of the sub-environment; ``None``: from the exception
    """
    name = name or env_name(env)
    if isinstance(error, EnvironmentFailure):
        if error.name:
            return error
        return EnvironmentFailure(error.reason, error.index if index is None else index, name, call, step)
    if index is None:
        index = _dead_process(env) if isinstance(error, EOFError | OSError) else _index_in_dummy(error)
    return EnvironmentFailure(describe_error(error, env), index, name, call, step)


def describe_error(error: BaseException, env: Any = None) -> str:
    """
    An exception in one line: its type, its text, and the line of code that raised it.

    :param error: what was raised
    :param env: environment that raised it, to tell a closed pipe from a process that ended
    """
    if isinstance(error, EOFError | ConnectionError) and _processes(env):
        return "its process ended, and its own error stands above"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text[:MAX_TEXT]}{place}"


def env_name(env: Any, asks: bool = False) -> str:
    """
    The name of an environment for a message: its id, else the name of its class.

    :param env: environment, vectorized environment, or an id
    :param asks: whether the processes of the environment are asked for its id. They must not have failed yet
    """
    if isinstance(env, str):
        return env
    first = next(iter(getattr(_innermost(env), "envs", [])), env)
    spec = getattr(first, "spec", None)
    if spec is None and asks:
        with suppress(Exception):  # environments of any package: without a spec, without get_attr
            spec = env.get_attr("spec", 0)[0]
    return str(spec.id) if spec is not None else type(getattr(first, "unwrapped", first)).__name__


def _index_in_dummy(error: Exception) -> int | None:
    """The sub-environment that ``DummyVecEnv`` was stepping or resetting, from the local variables of its method."""
    trace = error.__traceback__
    while trace is not None:
        frame: FrameType = trace.tb_frame
        index = frame.f_locals.get("env_idx")
        if isinstance(index, int) and hasattr(frame.f_locals.get("self"), "envs"):
            return index if len(frame.f_locals["self"].envs) > 1 else None
        trace = trace.tb_next
    return None


def _dead_process(env: Any) -> int | None:
    processes = _processes(env)
    for process in processes:
        process.join(timeout=0.1)
    return next((i for i, process in enumerate(processes) if not process.is_alive()), None)


def _processes(env: Any) -> list[Any]:
    found = getattr(_innermost(env), "processes", None)
    return found if isinstance(found, list) else []


def _innermost(env: Any) -> Any:
    return getattr(env, "unwrapped", env)
