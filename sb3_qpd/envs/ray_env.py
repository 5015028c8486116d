"""Environments in Ray actors, on one machine or on the nodes of a cluster: the driver's side. Ray is imported in functions."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.child_processes import safe_import_path
from sb3_qpd.envs import NEEDS_RAY, RESTARTS
from sb3_qpd.envs.ray_actor import Begun, EnvironmentGroup
from sb3_qpd.envs.workers import Failure, RestartingVecEnv, describe_timeout, truncated_step
from sb3_qpd.failures import EnvironmentFailure, describe_error

SECONDS_TO_START = 600.0  # longest wait for an actor: a cluster may have to start a node for it
SECONDS_TO_CONNECT = 10.0  # longest wait for the port of a cluster
SECONDS_TO_CLOSE = 5.0  # longest wait for environments that close themselves
START_TRIES = 3  # of an actor that ends while it starts, as on a node that is about to fail
PACKAGE_PARENT = Path(__file__).parents[2]
ADDRESS = "RAY_ADDRESS"  # Ray's own variable: the address of a cluster
NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}  # Ray would send them over the network

Message = tuple[str, Any]  # command and its data, as SB3's SubprocVecEnv sends them


class RayVecEnv(RestartingVecEnv):
    """
    Sub-environments in Ray actors, several in each. A step takes one message to each actor and one back.

    Observations and rewards are those of ``SubprocVecEnv`` with the same seed. An actor that ends or does not answer is
    started again, on another node where its own is gone; the episodes of its sub-environments are dropped.

    :param env_fns: functions that make the environments
    :param address: address of a cluster, such as ``"auto"`` or ``"10.0.0.1:6379"``; ``None`` takes ``RAY_ADDRESS``, and
        without it starts Ray on this machine. Where Ray is initialized already, that cluster is used
    :param envs_per_actor: sub-environments in an actor; ``None`` makes as many actors as processors are free
    :param time_limit: longest time in seconds that a sub-environment may take to answer, ``None`` for no limit. An actor
        has it once for each of its sub-environments
    :param restarts: how many times actors and sub-environments are started again
    """

    restartable = (*RestartingVecEnv.restartable, "env_method", "get_attr", "set_attr", "has_attr", "is_wrapped")

    def __init__(
        self,
        env_fns: list[Callable[[], gym.Env]],
        address: str | None = None,
        envs_per_actor: int | None = None,
        time_limit: float | None = None,
        restarts: int = RESTARTS["ray"],
    ) -> None:
        self.time_limit, self.restarts, self.n_restarted = time_limit, restarts, 0
        self.waiting, self.closed, self._is_broken = False, False, False
        self._seed: int | None = None
        self.processes: list[Any] = []  # SubprocVecEnv's; there are none in this process
        pickled = [pickle_env(env_fn) for env_fn in env_fns]
        connect(address)
        n_free = int(_import_ray().available_resources().get("CPU", 0))
        size = envs_per_actor or -(-len(env_fns) // max(1, n_free))
        groups = [range(start, min(start + size, len(env_fns))) for start in range(0, len(env_fns), size)]
        # an actor without a processor can always be placed: one that waits for a processor might wait forever
        self.actors = [_Actor(self, group, [pickled[i] for i in group], int(n < n_free)) for n, group in enumerate(groups)]
        self.remotes = tuple(_Remote(actor, index) for actor in self.actors for index in actor.indices)
        try:
            for actor in self.actors:
                actor.wait_for_start()
            self.remotes[0].send(("get_spaces", None))
            observation_space, action_space = self.remotes[0].recv()
            VecEnv.__init__(self, len(env_fns), observation_space, action_space)
        except BaseException:
            self._kill_actors()
            raise

    def step_async(self, actions: np.ndarray) -> None:
        """
        Begin a step in all actors.

        :param actions: shape (n_envs, *action_shape)
        """
        super().step_async(actions)
        for actor in self.actors:
            actor.flush()

    def close(self) -> None:
        """Close the environments and end the actors. Ray itself goes on."""
        if self.closed:
            return
        self.closed = True
        ray = _import_ray()
        if ray.is_initialized():
            closing = [actor.handle.close.remote() for actor in self.actors]
            ray.wait(closing, num_returns=len(closing), timeout=SECONDS_TO_CLOSE)
            self._kill_actors()

    def _kill_actors(self) -> None:
        for actor in self.actors:
            actor.kill()

    def _start_again(self, indices: Sequence[int]) -> list[Begun]:
        actor = self.remotes[indices[0]].actor
        for _ in range(START_TRIES - 1):
            with suppress(EnvironmentFailure):
                return actor.start_again(indices)
        return actor.start_again(indices)


class _Remote:
    """
    The connection to one sub-environment, with the methods of a pipe that SB3's ``SubprocVecEnv`` calls.

    :param actor: actor of the sub-environment
    :param index: number of the sub-environment
    """

    def __init__(self, actor: _Actor, index: int) -> None:
        self.actor, self._index = actor, index

    def send(self, message: Message) -> None:
        self.actor.messages[self._index] = message

    def recv(self) -> Any:
        return self.actor.answer(self._index)


class _Actor:
    """
    The driver's side of an actor. Messages are gathered, and go to the actor in one call.

    :param owner: its vectorized environment
    :param indices: numbers of its sub-environments
    :param pickled: functions that make them, by :func:`pickle_env`
    :param n_processors: processors that the actor occupies on its node
    """

    def __init__(self, owner: RayVecEnv, indices: Sequence[int], pickled: list[bytes], n_processors: int) -> None:
        self.indices, self.messages = indices, dict[int, Message]()
        self._owner, self._pickled = owner, pickled
        self._sent, self._answers = dict[int, Message](), dict[int, Any]()
        self._lost = dict[int, Begun]()  # episodes that were dropped between two steps: the next step says so
        self._call, self._asked = None, 0.0
        self._start(n_processors)

    def _start(self, n_processors: int) -> None:
        ray = _import_ray()
        options = {"num_cpus": n_processors, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        make = ray.remote(EnvironmentGroup).options(**options)
        self.handle = make.remote(self._pickled, [*sys.path], os.getcwd())

    def wait_for_start(self) -> None:
        """
        Wait until the environments are built.

        :raises EnvironmentFailure: they cannot be built, or the cluster has no room for the actor
        """
        ray = _import_ray()
        try:
            failed = ray.get(self.handle.build.remote(), timeout=SECONDS_TO_START)
        except ray.exceptions.GetTimeoutError as error:
            raise EnvironmentFailure(
                f"the cluster started no actor for it within {SECONDS_TO_START:g} s. `ray status` shows what the nodes have",
                self.indices[0],
            ) from error
        except ray.exceptions.RayError as error:
            raise EnvironmentFailure(_describe_end(error), self.indices[0]) from error
        if failed is not None:
            raise EnvironmentFailure(failed[1], self.indices[failed[0]])

    def flush(self) -> None:
        """Send the messages that were gathered."""
        if not self.messages:
            return
        self._sent, self.messages, self._answers = self.messages, {}, {}
        for index, (command, _) in [*self._sent.items()]:
            if command == "reset":
                self._lost.pop(index, None)
            elif command == "step" and index in self._lost:
                self._answers[index] = truncated_step(*self._lost.pop(index))
                del self._sent[index]
        self._call = self._ask()

    def _ask(self) -> Any:
        self._asked = time.monotonic()
        first = self.indices[0]
        return self.handle.run.remote([(index - first, *message) for index, message in self._sent.items()])

    def answer(self, index: int) -> Any:
        """
        The answer of a sub-environment to the last message.

        :param index: number of the sub-environment
        :raises EnvironmentFailure: it failed, and is not started again
        """
        self.flush()
        if self._call is not None:
            call, self._call = self._call, None
            self._answers |= self._fetch(call)
        return self._answers.pop(index)

    def _fetch(self, call: Any) -> dict[int, Any]:
        ray, owner = _import_ray(), self._owner
        command = next((command for command, _ in self._sent.values()), "step")
        try:
            answers = ray.get(call, timeout=self._seconds_left())
        except ray.exceptions.GetTimeoutError:
            reason = describe_timeout(owner.time_limit)
        except ray.exceptions.RayTaskError as error:
            if command not in ("step", "reset"):
                raise  # such as an AttributeError of env_method
            raise EnvironmentFailure(describe_error(error.cause), next(iter(self._sent))) from error
        except ray.exceptions.RayError as error:
            reason = _describe_end(error)
        else:
            return {i: owner.check_answer(i, command, one) for i, one in zip(self._sent, answers, strict=True)}
        instead = dict(zip(self.indices, owner.handle_failure(self.indices, command, reason), strict=True))
        if command in ("step", "reset"):
            return instead
        self._lost = instead
        return dict(zip(self._sent, ray.get(self._ask(), timeout=self._seconds_left()), strict=True))

    def _seconds_left(self) -> float | None:
        limit = self._owner.time_limit
        return None if limit is None else max(0.0, self._asked + limit * len(self._sent) - time.monotonic())

    def start_again(self, indices: Sequence[int]) -> list[Begun]:
        """
        Build environments anew: one that raised an exception in its actor, or all of them in a new actor.

        :param indices: numbers of the sub-environments
        :return: their first observations with their infos
        :raises EnvironmentFailure: they fail at once
        """
        ray, owner = _import_ray(), self._owner
        is_new = len(indices) == len(self.indices)
        if is_new:
            self.kill()
            self._start(n_processors=0)  # its node may be gone, and no other processor free
            self.wait_for_start()
        seeds = {index - self.indices[0]: owner.new_seed(index) for index in indices}
        try:
            begun = ray.get(self.handle.begin.remote(seeds, is_broken=not is_new), timeout=SECONDS_TO_START)
        except ray.exceptions.RayError as error:
            raise owner.fail_at_start(indices[0], f"ended at once ({_describe_end(error)})") from error
        for index, (observation, _) in zip(indices, begun, strict=True):
            if isinstance(observation, Failure):
                raise owner.fail_at_start(index, f"failed at once: {observation.reason}")
        return begun

    def kill(self) -> None:
        """End the actor, also one that hangs."""
        ray = _import_ray()
        with suppress(ray.exceptions.RayError, ValueError):  # it is gone, or Ray was shut down
            ray.kill(self.handle)


def pickle_env(env_fn: Callable[[], gym.Env]) -> bytes:
    """
    A function that makes an environment, as bytes that another process can read.

    :param env_fn: the function
    :raises TypeError: it cannot be pickled; the message says how to register the environment
    """
    try:
        return cloudpickle.dumps(env_fn)
    except Exception as error:  # pickling calls code of any class
        raise TypeError(
            f"The environment cannot be pickled, so no other process can build it ({describe_error(error)}). Register it in a "
            "module: gymnasium.register('Mine-v0', entry_point='my_envs:Mine'), and give env='my_envs:Mine-v0'"
        ) from error


def connect(address: str | None = None, *, shows_output: bool = True) -> None:
    """
    Connect to a Ray cluster, where this process has not done that yet.

    :param address: see :class:`RayVecEnv`
    :param shows_output: whether this process prints what the processes of the cluster print
    :raises ConnectionError: no cluster answers at the address
    """
    ray = _import_ray()
    if ray.is_initialized():
        return
    address = address or os.environ.get(ADDRESS) or "local"
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        check_port(address)
        with safe_import_path(), _outside_current_folder(), _environment(NO_STATISTICS):
            ray.init(address, logging_level="warning", log_to_driver=shows_output, **options)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ConnectionError(
            f"No Ray cluster can be used at {address!r} ({describe_error(error)}). `ray start --head` starts one; {ADDRESS} "
            "names its address"
        ) from error


def check_port(address: str) -> None:
    """
    Refuse an address at which nothing listens. Ray itself would try for minutes.

    :param address: ``host:port``, with or without a scheme; other addresses are not looked at
    :raises OSError: nothing listens there
    """
    host, separator, port = address.rpartition("://")[2].rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_CONNECT).close()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(NEEDS_RAY) from error
    return ray


@contextmanager
def _outside_current_folder() -> Iterator[None]:
    """Ray's workers import from the folder that ``ray.init`` is called in: let it be the one that holds this package."""
    here = os.getcwd()
    os.chdir(PACKAGE_PARENT)
    try:
        yield
    finally:
        os.chdir(here)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _describe_end(error: Exception) -> str:
    """How an actor ended, in one line: Ray's own texts have many."""
    because = "The actor is dead because "
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line.removeprefix(because) for line in lines if line.startswith(because)), lines[0])
    return f"its Ray actor ended: {reason.partition('. ')[0].rstrip('.')}"
