"""A policy in a child process with limits: for files that the user trusts, and whose runtime may still crash or never end."""

from __future__ import annotations

import io
import multiprocessing
import signal
import zipfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sb3_qpd.child_processes import safe_import_path

SECONDS = 120  # for one batch
MEMORY = 8 * 2**30  # address space; the libraries alone map some GiB
MAX_ANSWER = 2**30  # bytes
_ERRORS = {"ImportError": ImportError, "ModuleNotFoundError": ImportError, "FileNotFoundError": FileNotFoundError}


class LimitedPolicy:
    """
    A policy whose methods run in a child process. Arrays come back as data, so that the child cannot send objects.

    :param name: name of the file, for messages
    :param make: makes the policy in the child
    :raises ValueError: the child ended, or took longer than ``SECONDS``
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        with safe_import_path():
            self._process.start()
        theirs.close()
        self._answer()

    def run(self, *arguments: Any) -> tuple[np.ndarray, ...]:
        """
        Actions and outputs of the policy.

        :param arguments: those of its method ``run``
        """
        return tuple(self._call("run", *arguments).values())

    def trace(self, *arguments: Any) -> Any:
        """
        The integers after each step.

        :param arguments: those of its method ``trace``
        """
        values = self._call("trace", *arguments)
        steps = {name.partition("/")[2]: value for name, value in values.items() if name.startswith("step/")}
        return (list(steps.values()), values["actions"]) if "actions" in values else steps

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _read(self, content: bytes) -> dict[str, np.ndarray]:
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{self._name} gives no arrays: {error}") from error

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def _call(self, method: str, *arguments: Any) -> dict[str, np.ndarray]:
        with suppress(OSError):  # the child is gone: its end is told below
            self._connection.send((method, arguments))
        return self._answer()

    def _answer(self) -> dict[str, np.ndarray]:
        try:
            if not self._connection.poll(SECONDS):
                self.close()
                raise ValueError(f"{self._name} takes more than {SECONDS} s for one batch: stopped")
            values = self._read(self._connection.recv_bytes(MAX_ANSWER))
        except (EOFError, OSError) as error:
            self._process.join(10)
            raise ValueError(f"{self._name} ended its runtime: {_ending(self._process.exitcode)}") from error
        if "error" in values:
            kind, _, text = str(values["error"]).partition(": ")
            raise _ERRORS.get(kind, ValueError)(f"{self._name}: {text[:1_000]}")
        return values


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve(connection: Connection, make: Callable[[], Any]) -> None:
    """The child: it makes the policy, then answers one call after the other."""
    _limit()
    policy: Any = None
    answer: dict[str, Any] = {}
    method, arguments = "make", ()
    while True:
        try:
            if method == "make":
                policy = make()
            else:
                answer = _named(method, getattr(policy, method)(*arguments))
        except Exception as error:  # a runtime raises exceptions of its own
            answer = {"error": np.array(f"{type(error).__name__}: {error}")}
        buffer = io.BytesIO()
        np.savez(buffer, **answer)
        connection.send_bytes(buffer.getvalue())
        method, arguments = connection.recv()  # from the parent, which is trusted


def _named(method: str, values: Any) -> dict[str, Any]:
    if method == "run":
        return {str(i): np.asarray(value) for i, value in enumerate(values)}
    if isinstance(values, dict):
        return {f"step/{name}": value for name, value in values.items()}
    steps, actions = values  # C numbers its steps
    return {**{f"step/{i}": step for i, step in enumerate(steps)}, "actions": actions}


def _limit() -> None:
    """Limits of memory and processor time, where the system has them."""
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (60 * SECONDS, 60 * SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
