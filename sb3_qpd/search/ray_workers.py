"""
Workers as Ray actors, on all nodes of a cluster.

A trial keeps its checkpoint on the disk of its node. Each change also goes to the command, which gives the checkpoint to the
node that goes on with the trial.
"""

from __future__ import annotations

import queue
import sys
import tempfile
import threading
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sb3_qpd.envs.ray_env import check_port, connect
from sb3_qpd.failures import describe_error
from sb3_qpd.search.checkpoint_transfer import ChangeFinder, Changes, apply_changes, read_checkpoint, write_checkpoint
from sb3_qpd.search.tasks import Failed, Message, Ready, Score, Task, Unusable, unpack_job
from sb3_qpd.search.work import run_task

try:
    import ray
    from ray.exceptions import RayActorError, RayError
except ImportError as error:
    raise ImportError(
        f"--ray needs Ray, which is not installed ({error}). Install it with pip install 'sb3_qpd[ray]'"
    ) from error


class RayWorkers:
    """
    Actors of a Ray cluster, each with one processor core. The job is put into Ray's store: it is sent once to a node.

    :param packed_job: from :func:`~sb3_qpd.search.tasks.pack_job`
    :param address: ``"auto"``, ``host:port`` of the cluster's head, or ``ray://host:port``
    :param count: number of actors; ``None``: the cores of the cluster
    :param most: largest number of actors, however many cores there are
    :raises ConnectionError: no cluster answers at this address
    """

    def __init__(self, packed_job: bytes, address: str, count: int | None = None, most: int = sys.maxsize) -> None:
        self._owns_connection = not ray.is_initialized()
        if self._owns_connection:
            _connect(address)
        self._job = ray.put(packed_job)
        self._import_path = list(sys.path)
        count = min(most, count or max(1, int(ray.cluster_resources().get("CPU", 1))))
        # spread: the cores of one node would be taken first
        self._kind = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(_Actor)
        self._actors: list[Any] = [None] * count
        self._pending: dict[Any, int] = {}  # the answer that an actor owes -> its number
        self._folders: dict[int, Path] = {}  # number of an actor -> where the checkpoint of its task is kept
        self._has_warned = False
        for worker in range(count):
            self._start(worker)

    @property
    def count(self) -> int:
        return len(self._actors)

    def _start(self, worker: int) -> None:
        self._actors[worker] = self._kind.remote(self._job, self._import_path)
        self.send(worker, None)

    def send(self, worker: int, message: Task | bool | None) -> None:
        files = {}
        if isinstance(message, Task):
            self._folders[worker] = Path(message.folder)
            files = read_checkpoint(self._folders[worker])
        self._pending[self._actors[worker].next.remote(message, files)] = worker

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        answered, _ = ray.wait(list(self._pending), num_returns=1, timeout=timeout)
        return [message for answer in answered for message in self._read(answer)]

    def _read(self, answer: Any) -> list[tuple[int, Message]]:
        worker = self._pending.pop(answer)
        try:
            message = ray.get(answer)
            if not isinstance(message, Changes):
                return [(worker, message)]
            self._keep(worker, message)
            self.send(worker, None)
            return []
        except RayActorError as error:  # the actor, or its node
            if error.actor_init_failed:
                return [(worker, Unusable(describe_error(error)))]
            self._start(worker)
            failed = Failed(_reason(error), is_lost=True, counts=not _has_lost_node(error))
            return [(worker, failed)]
        except RayError as error:  # an answer that cannot be read: it was on a node that is gone
            ray.kill(self._actors[worker])
            self._start(worker)
            return [(worker, Failed(_reason(error), is_lost=True))]

    def _keep(self, worker: int, changes: Changes) -> None:
        folder = self._folders.get(worker)
        if folder is None:  # an earlier change could not be kept
            return
        try:
            apply_changes(folder, changes)
        except OSError as error:
            del self._folders[worker]
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{folder} does not take a checkpoint ({error.strerror or error}). The search goes on. A trial whose node "
                    "is lost repeats more of its steps"
                )

    def close(self) -> None:
        for actor in self._actors:
            with suppress(RayError, ConnectionError):  # the cluster may be gone
                ray.kill(actor)
        if self._owns_connection:
            ray.shutdown()


class _Actor:
    """
    A worker. Its task runs in a thread, which waits for the answer to each score.

    :param packed_job: from :func:`~sb3_qpd.search.tasks.pack_job`
    :param import_path: where the process that runs the search finds its modules
    """

    def __init__(self, packed_job: bytes, import_path: list[str]) -> None:
        sys.path.extend(entry for entry in import_path if entry not in sys.path)
        self._answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message | Changes] = queue.SimpleQueue()
        try:
            self._job = unpack_job(packed_job)
            self._messages.put(Ready())
        except Exception as error:  # of any kind: modules of the environment are imported here
            self._messages.put(Unusable(describe_error(error)))

    def next(self, message: Task | bool | None, files: dict[str, bytes]) -> Message | Changes:
        """
        Take a message, and wait for the next one of the worker.

        :param message: a task, the answer to a score, or ``None`` where only the next message is wanted
        :param files: the checkpoint of the task, contents by name
        """
        if isinstance(message, Task):
            threading.Thread(target=self._run, args=(message, files), daemon=True).start()
        elif message is not None:
            self._answers.put(message)
        return self._messages.get()

    def _run(self, task: Task, files: dict[str, bytes]) -> None:
        def answer(score: Score) -> bool:
            self._messages.put(score)
            return self._answers.get()

        try:
            with tempfile.TemporaryDirectory(prefix="sb3-qpd-") as name:
                folder = Path(name, "checkpoint")
                write_checkpoint(folder, files)
                finder = ChangeFinder(folder)
                here = replace(task, folder=str(folder))
                message = run_task(self._job, here, answer, lambda: self._messages.put(finder.changes()))
                if not folder.is_dir():  # the run discarded a checkpoint that it could not read
                    self._messages.put(finder.changes())
        except OSError as error:  # the disk of the node
            message = Failed(describe_error(error))
        self._messages.put(message)


def check_address(address: str) -> None:
    """
    Refuse an address at which nothing listens.

    :param address: ``"auto"``, ``host:port``, or ``ray://host:port``
    :raises ConnectionError: nothing listens there
    """
    try:
        check_port(address)
    except OSError as error:
        raise ConnectionError(_describe_problem(address, str(error.strerror or error))) from error


def _connect(address: str) -> None:
    try:
        connect(address, shows_output=False)  # it would tear the live table
    except ConnectionError as error:
        raise ConnectionError(_describe_problem(address, describe_error(error.__cause__ or error))) from error


def _describe_problem(address: str, reason: str) -> str:
    return (
        f"No Ray cluster answers at {address} ({reason}). Start one with ray start --head, or give its address as --ray "
        "HOST:PORT; without --ray the search runs on this machine"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _has_lost_node(error: RayActorError) -> bool:
    """Whether an actor died with its node, which is no fault of its task."""
    return "node" in str(error).lower() and "died" in str(error).lower()
