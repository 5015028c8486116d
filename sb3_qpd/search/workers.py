"""Workers as processes of this machine, and what the search asks of workers of any kind."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from tqdm import tqdm

from sb3_qpd.child_processes import interrupts_wait, safe_import_path
from sb3_qpd.failures import describe_error
from sb3_qpd.search.tasks import Failed, Message, Ready, Score, Task, Unusable, unpack_job
from sb3_qpd.search.work import run_task

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read when a process imports numpy and torch
MAX_STARTS = 3  # of a worker that ends before it is ready
SECONDS_TO_END = 5.0


class Workers(Protocol):
    """Processes that each train one student at a time."""

    @property
    def count(self) -> int:
        """Number of workers."""

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        """
        Wait for messages.

        :param timeout: longest wait in seconds
        :return: number of the worker, and its message. A worker that was lost is started again, and sends :class:`Ready`
        """

    def send(self, worker: int, message: Task | bool) -> None:
        """
        Give a worker a task, or the answer to a score.

        :param worker: number of the worker
        :param message: a task for a worker that is ready; whether a trial goes on for one that has sent a score
        """

    def close(self) -> None:
        """End all workers at once."""


def n_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalWorkers:
    """
    Processes of this machine, with one torch thread each. They end when the process that started them ends.

    On Linux they are forked from a server that imports torch once for all of them.

    :param packed_job: from :func:`~sb3_qpd.search.tasks.pack_job`
    :param count: number of processes
    """

    def __init__(self, packed_job: bytes, count: int) -> None:
        self._packed_job = packed_job
        self._context: Any = mp.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if sys.platform == "linux":  # macOS frameworks do not survive a fork
            mp.set_forkserver_preload([__name__])
        self._starts = [0] * count
        self._connections: list[Connection] = [None] * count  # type: ignore[list-item]
        self._processes: list[Any] = [None] * count
        for worker in range(count):
            self._start(worker)

    @property
    def count(self) -> int:
        return len(self._processes)

    @property
    def process_ids(self) -> list[int]:
        """Numbers of the processes."""
        return [process.pid for process in self._processes]

    def _start(self, worker: int) -> None:
        self._starts[worker] += 1
        ours, theirs = self._context.Pipe()
        # not a daemon: environments may want processes of their own
        with safe_import_path(), interrupts_wait(), _one_thread():
            # the fork server may have been started with other environment variables
            arguments = (theirs, dict(os.environ))
            process = self._context.Process(target=_work, args=arguments, name=f"sb3-qpd worker {worker}")
            process.start()
        theirs.close()
        self._connections[worker], self._processes[worker] = ours, process
        # a large job is taken when the process has imported torch, and the others are to start meanwhile
        threading.Thread(target=_send_job, args=(ours, self._packed_job), daemon=True).start()

    def receive(self, timeout: float) -> list[tuple[int, Message]]:
        ready = wait(self._connections, timeout)
        messages: list[tuple[int, Message]] = []
        for worker in [worker for worker, connection in enumerate(self._connections) if connection in ready]:
            try:
                message = self._connections[worker].recv()
            except (EOFError, OSError):
                messages += [(worker, message) for message in self._replace(worker)]
                continue
            if isinstance(message, Ready):
                self._starts[worker] = 0
            messages.append((worker, message))
        return messages

    def _replace(self, worker: int) -> list[Message]:
        """Start a worker again that has ended, and say why it did."""
        process = self._processes[worker]
        process.join(SECONDS_TO_END)
        self._connections[worker].close()
        error = f"its process ended with exit code {process.exitcode}"
        if process.exitcode == -signal.SIGKILL:
            error += ": it was killed, perhaps because the memory was full. Fewer --workers need less"
        if self._starts[worker] >= MAX_STARTS:
            return [Unusable(f"a worker does not start: {error}")]
        was_starting = self._starts[worker] > 0
        self._start(worker)
        return [] if was_starting else [Failed(error, is_lost=True)]

    def send(self, worker: int, message: Task | bool) -> None:
        with suppress(OSError):  # the process has ended, which receive() notices
            self._connections[worker].send(message)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process, connection in zip(self._processes, self._connections, strict=True):
            process.join()
            connection.close()


def _send_job(connection: Connection, packed_job: bytes) -> None:
    with suppress(OSError):  # the process ended at once, which receive() notices
        connection.send_bytes(packed_job)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that are started inside compute on one thread each."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _work(connection: Connection, variables: dict[str, str]) -> None:
    """
    The main function of a worker's process.

    :param connection: to the search
    :param variables: the environment variables of the search's process
    """
    os.environ.clear()
    os.environ.update(variables)
    tqdm.set_lock(threading.RLock())  # its own one is a semaphore of the system, which outlives a process that is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes of a terminal: the search ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job = unpack_job(connection.recv_bytes())
    except Exception as error:  # of any kind: modules of the environment are imported here
        connection.send(Unusable(describe_error(error)))
        return
    connection.send(Ready())

    def answer(score: Score) -> bool:
        connection.send(score)
        return connection.recv()

    with suppress(EOFError):
        while True:
            connection.send(run_task(job, connection.recv(), answer))


def _end_with_parent() -> None:
    """End the worker with the process that runs the search, which may have been killed."""
    parent = mp.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
