"""Environments in subprocesses that may die or hang: each failure is named, and on request its process is started again."""

from __future__ import annotations

import multiprocessing as mp
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from sb3_qpd.child_processes import safe_import_path
from sb3_qpd.failures import EnvironmentFailure, describe_error

SECONDS_TO_START = 120.0  # longest wait for the first answer of a process that was started again


class Failure:
    """
    What a sub-environment sends in place of an observation that it cannot give.

    :param reason: its exception in one line
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason


class Guarded(gym.Wrapper):
    """An environment that sends its exception to the parent process, where the subprocess alone would only end."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(**kwargs)
        except Exception as error:
            return Failure(describe_error(error)), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except Exception as error:
            return Failure(describe_error(error)), 0.0, False, False, {}


class WorkerVecEnv(SubprocVecEnv):
    """
    SB3's ``SubprocVecEnv``, whose failures name the sub-environment. Its processes do not import from the current folder.

    A process that ended, raised an exception or did not answer in time can be started again. Its episode is dropped: the step
    ends the episode with a reward of 0 and without ``info["episode"]``, and the next observation is that of a new episode.

    :param env_fns: functions that make the environments
    :param start_method: see :class:`~stable_baselines3.common.vec_env.SubprocVecEnv`
    :param time_limit: longest time in seconds that a sub-environment may take to answer, ``None`` for no limit
    :param restarts: how many times processes are started again, all sub-environments together
    """

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        start_method: str | None = None,
        time_limit: float | None = None,
        restarts: int = 0,
    ) -> None:
        self.time_limit, self.restarts, self.n_restarted = time_limit, restarts, 0
        self._env_fns = [_guarded(env_fn) for env_fn in env_fns]
        # SB3's own choice
        self.start_method = start_method or ("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
        self._is_broken = False
        self._seed: int | None = None
        if self.start_method == "forkserver" and sys.platform == "linux":  # macOS frameworks do not survive a fork
            mp.set_forkserver_preload([__name__])  # the server imports torch once, and no process of an environment does
        with safe_import_path():
            super().__init__(self._env_fns, self.start_method)
        self.remotes = tuple(_Remote(self, index, remote) for index, remote in enumerate(self.remotes))

    def seed(self, seed: int | None = None) -> Any:
        seeds = super().seed(seed)
        self._seed = self._seeds[0]
        return seeds

    def close(self) -> None:
        """End the processes, those too that hang."""
        if self._is_broken and not self.closed:
            for process in self.processes:
                process.kill()
                process.join()
            for remote in self.remotes:
                remote.close()
            self.closed = True
        super().close()

    def handle_failure(self, index: int, command: str, reason: str) -> Any:
        """
        Start a process again, or raise the error.

        :param index: number of the sub-environment
        :param command: what it was asked for
        :param reason: what happened
        :return: the answer in place of the one that did not come
        :raises EnvironmentFailure: no restarts are left, or the new process fails too
        """
        if self.n_restarted >= self.restarts or command not in ("step", "reset"):
            self._is_broken = True
            raise EnvironmentFailure(reason, index)
        self.n_restarted += 1
        warnings.warn(
            f"Sub-environment {index} is started again ({reason}); its episode is dropped. Restart {self.n_restarted} of "
            f"{self.restarts}"
        )
        observation, info = self._start_again(index)
        if command == "reset":
            return observation, info
        return observation, 0.0, True, {"TimeLimit.truncated": True, "terminal_observation": observation}, info

    def _start_again(self, index: int) -> tuple[Any, dict[str, Any]]:
        self.processes[index].kill()
        self.processes[index].join()
        context = mp.get_context(self.start_method)
        ours, theirs = context.Pipe()
        arguments = (theirs, ours, CloudpickleWrapper(self._env_fns[index]))
        process = context.Process(target=_worker, args=arguments, daemon=True)  # type: ignore[attr-defined]
        with safe_import_path():
            process.start()
        theirs.close()
        self.processes[index] = process
        self.remotes[index].replace(ours)
        # another seed than before: the same episode might end the same way
        seed = None if self._seed is None else self._seed + index + self.num_envs * self.n_restarted
        try:
            ours.send(("reset", (seed, None)))
            if not ours.poll(SECONDS_TO_START if self.time_limit is None else max(SECONDS_TO_START, self.time_limit)):
                raise TimeoutError("it gave no first observation")
            observation, info = ours.recv()
        except (EOFError, OSError) as error:
            self._is_broken = True
            raise EnvironmentFailure(
                f"its process was started again and ended at once ({describe_error(error)})", index
            ) from error
        if isinstance(observation, Failure):
            self._is_broken = True
            raise EnvironmentFailure(f"its process was started again and failed at once: {observation.reason}", index)
        return observation, info

    def describe_end(self, index: int) -> str:
        """
        How the process of a sub-environment ended.

        :param index: number of the sub-environment
        """
        process = self.processes[index]
        process.join(timeout=1.0)
        code = process.exitcode
        if code is None:
            return "its process closed the connection"
        if code < 0:
            with suppress(ValueError):
                return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"

    def check_shape(self, index: int, observation: Any) -> None:
        """
        Refuse an observation that does not have the shape of the space.

        :param index: number of the sub-environment
        :param observation: its observation
        :raises EnvironmentFailure: another shape
        """
        parts = self.observation_space.items() if isinstance(self.observation_space, spaces.Dict) else [("", None)]
        for key, space in parts:
            expected = (self.observation_space if space is None else space).shape
            shape = np.shape(observation[key] if key else observation)
            if expected is not None and shape != expected:
                self._is_broken = True
                of_key = f" of {key!r}" if key else ""
                raise EnvironmentFailure(
                    f"its observation{of_key} has the shape {shape}, expected {expected} of its space", index
                )


@contextmanager
def no_restarts(env: VecEnv) -> Iterator[None]:
    """
    Start no process again inside.

    :param env: any vectorized environment
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if not isinstance(env, WorkerVecEnv):
        yield
        return
    restarts, env.restarts = env.restarts, 0
    try:
        yield
    finally:
        env.restarts = restarts


class _Remote:
    """
    The connection to one sub-environment.

    :param owner: its vectorized environment
    :param index: number of the sub-environment
    :param connection: SB3's end of the pipe
    """

    def __init__(self, owner: WorkerVecEnv, index: int, connection: Connection) -> None:
        self._owner, self._index, self._connection = owner, index, connection
        self._command, self._asked = "", 0.0

    def replace(self, connection: Connection) -> None:
        self._connection.close()
        self._connection = connection

    def send(self, message: tuple[str, Any]) -> None:
        self._command, self._asked = message[0], time.monotonic()
        with suppress(BrokenPipeError, ConnectionResetError):  # recv reports it
            self._connection.send(message)

    def recv(self) -> Any:
        owner, limit = self._owner, self._owner.time_limit
        try:
            # forked processes hold each other's pipes, so that the end of one closes none
            if limit is not None or owner.start_method == "fork":
                left = None if limit is None else max(0.0, self._asked + limit - time.monotonic())
                ended = owner.processes[self._index].sentinel
                ready = wait([self._connection, ended], left)
                if not ready:
                    return owner.handle_failure(self._index, self._command, f"it did not answer within {limit:g} s")
                if self._connection not in ready and not self._connection.poll():
                    raise EOFError
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return self._owner.handle_failure(self._index, self._command, self._owner.describe_end(self._index))
        if self._command not in ("step", "reset"):
            return answer
        if isinstance(answer[0], Failure):
            return self._owner.handle_failure(self._index, self._command, answer[0].reason)
        self._owner.check_shape(self._index, answer[0])
        return answer

    def close(self) -> None:
        self._connection.close()


def _guarded(env_fn: Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    def make() -> gym.Env:
        return Guarded(env_fn())

    return make
