"""Environments in subprocesses that may die or hang: each failure is named, and on request its process is started again."""

from __future__ import annotations

import multiprocessing as mp
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper
from stable_baselines3.common.vec_env.subproc_vec_env import _worker

from sb3_qpd.child_processes import interrupts_wait, safe_import_path, take_interrupts
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


class RestartingVecEnv(SubprocVecEnv):
    """
    SB3's ``SubprocVecEnv``, whose failures name the sub-environment. The subclass says where the sub-environments run.

    A sub-environment that ended, raised an exception or did not answer in time can be started again. Its episode is dropped:
    the step ends the episode with a reward of 0 and without ``info["episode"]``, and the next observation is that of a new
    episode.
    """

    time_limit: float | None  # longest time in seconds that a sub-environment may take to answer
    restarts: int  # how often sub-environments are started again, all together
    n_restarted: int
    restartable: ClassVar[tuple[str, ...]] = ("step", "reset")  # commands that a failure need not end
    _is_broken: bool
    _seed: int | None

    def _start_again(self, indices: Sequence[int]) -> list[tuple[Any, dict[str, Any]]]:
        """
        Start sub-environments again that have failed.

        :param indices: numbers of the sub-environments that have failed together
        :return: their new observations with their infos
        :raises EnvironmentFailure: they fail once more
        """
        raise NotImplementedError

    def seed(self, seed: int | None = None) -> Any:
        seeds = super().seed(seed)
        self._seed = self._seeds[0]
        return seeds

    def new_seed(self, index: int) -> int | None:
        """
        A seed for a sub-environment that is started again, other than before: the same episode might end the same way.

        :param index: number of the sub-environment
        """
        return None if self._seed is None else self._seed + index + self.num_envs * self.n_restarted

    def handle_failure(self, indices: Sequence[int], command: str, reason: str) -> list[Any]:
        """
        Start sub-environments again, or raise the error.

        :param indices: numbers of the sub-environments that have failed together
        :param command: what they were asked for
        :param reason: what happened
        :return: the steps in place of those that did not come; for other commands the first observations with their infos
        :raises EnvironmentFailure: no restarts are left, or they fail once more
        """
        if self.n_restarted >= self.restarts or command not in self.restartable:
            self._is_broken = True
            raise EnvironmentFailure(reason, indices[0])
        self.n_restarted += 1
        which = f"Sub-environment {indices[0]} is" if len(indices) == 1 else f"Sub-environments {list(indices)} are"
        dropped = "its episode is" if len(indices) == 1 else "their episodes are"
        warnings.warn(f"{which} started again ({reason}); {dropped} dropped. Restart {self.n_restarted} of {self.restarts}")
        begun = self._start_again(indices)
        return [truncated_step(*one) for one in begun] if command == "step" else begun

    def check_answer(self, index: int, command: str, answer: Any) -> Any:
        """
        Refuse an answer without an observation, or with one that does not have the shape of the space.

        :param index: number of the sub-environment
        :param command: what it was asked for
        :param answer: its answer
        :return: the answer, or that of the sub-environment that was started again
        :raises EnvironmentFailure: see :meth:`handle_failure`, or another shape
        """
        if command not in ("step", "reset"):
            return answer
        if isinstance(answer[0], Failure):
            return self.handle_failure([index], command, answer[0].reason)[0]
        self.check_shape(index, answer[0])
        return answer

    def fail_at_start(self, index: int, reason: str) -> EnvironmentFailure:
        """
        The error of a sub-environment that fails right after it was started again.

        :param index: number of the sub-environment
        :param reason: what happened
        """
        self._is_broken = True
        return EnvironmentFailure(f"its process was started again and {reason}", index)

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


class WorkerVecEnv(RestartingVecEnv):
    """
    Sub-environments in processes on this machine, which do not import from the current folder.

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
        self._env_fns = [guarded(env_fn) for env_fn in env_fns]
        # SB3's own choice
        self.start_method = start_method or ("forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn")
        self._is_broken, self._seed = False, None
        if self.start_method == "forkserver" and sys.platform == "linux":  # macOS frameworks do not survive a fork
            mp.set_forkserver_preload([__name__])  # the server imports torch once, and no process of an environment does
        with safe_import_path():
            if self.start_method == "forkserver":
                with interrupts_wait():  # for the server and all its children
                    forkserver.ensure_running()
            super().__init__(self._env_fns, self.start_method)
        self.remotes = tuple(_Remote(self, index, remote) for index, remote in enumerate(self.remotes))

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

    def _start_again(self, indices: Sequence[int]) -> list[tuple[Any, dict[str, Any]]]:
        return [self._start_process_again(index) for index in indices]

    def _start_process_again(self, index: int) -> tuple[Any, dict[str, Any]]:
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
        try:
            ours.send(("reset", (self.new_seed(index), None)))
            if not ours.poll(SECONDS_TO_START if self.time_limit is None else max(SECONDS_TO_START, self.time_limit)):
                raise TimeoutError("it gave no first observation")
            observation, info = ours.recv()
        except (EOFError, OSError) as error:
            raise self.fail_at_start(index, f"ended at once ({describe_error(error)})") from error
        if isinstance(observation, Failure):
            raise self.fail_at_start(index, f"failed at once: {observation.reason}")
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


@contextmanager
def no_restarts(env: VecEnv) -> Iterator[None]:
    """
    Start no process again inside.

    :param env: any vectorized environment
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    if not isinstance(env, RestartingVecEnv):
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
                    return owner.handle_failure([self._index], self._command, describe_timeout(limit))[0]
                if self._connection not in ready and not self._connection.poll():
                    raise EOFError
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError, BrokenPipeError):
            return owner.handle_failure([self._index], self._command, owner.describe_end(self._index))[0]
        return owner.check_answer(self._index, self._command, answer)

    def close(self) -> None:
        self._connection.close()


def truncated_step(observation: Any, info: dict[str, Any]) -> tuple[Any, float, bool, dict[str, Any], dict[str, Any]]:
    """
    The step that ends the episode of a sub-environment that was started again.

    :param observation: its first observation since then
    :param info: info of that observation
    """
    return observation, 0.0, True, {"TimeLimit.truncated": True, "terminal_observation": observation}, info


def describe_timeout(limit: float | None) -> str:
    """
    The reason of a sub-environment that took too long.

    :param limit: longest time in seconds
    """
    return f"it did not answer within {limit:g} s"


def guarded(env_fn: Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    """
    A function that makes a :class:`Guarded` environment.

    :param env_fn: function that makes the environment
    """

    def make() -> gym.Env:
        env = Guarded(env_fn())
        take_interrupts()  # see interrupts_wait
        return env

    return make
