"""
Errors that an environment raises, with the name of the environment.

This module imports nothing heavy.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class EnvironmentFailure(ValueError):
    """An environment raised an error of its own. The message names the environment, the call, and the error."""


@contextmanager
def environment_failures(env: Any, call: str) -> Iterator[None]:
    """
    Name the environment and the call in an error that the environment raises.

    :param env: environment, or its id
    :param call: the call in words, such as ``reset(seed=3)``
    :raises EnvironmentFailure: any exception was raised inside
    """
    try:
        yield
    except EnvironmentFailure:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        reason = f"{type(error).__name__}{f': {told}' if told else _place(error)}"
        if isinstance(error, EOFError | ConnectionError):
            reason += " (a process of the environment ended: its own error stands above)"
        raise EnvironmentFailure(f"The environment {env_name(env)} failed in {call}: {reason}") from error


def _place(error: Exception) -> str:
    """Where an error without a text was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" in {Path(frame.filename).name}, line {frame.lineno}"


def env_name(env: Any) -> str:
    """
    The name of an environment for a message: its id, else the name of its class.

    :param env: environment, vectorized environment, or an id
    """
    if isinstance(env, str):
        return env
    first = next(iter(getattr(getattr(env, "unwrapped", env), "envs", [])), env)
    spec = getattr(first, "spec", None)
    return str(spec.id) if spec is not None else type(getattr(first, "unwrapped", first)).__name__
