"""
Child processes in Python that import nothing from the current folder, and do not meet Ctrl-C while they import.

``python -c`` looks for modules in the current folder first, and so do the processes of ``multiprocessing``, which start that
way. In a downloaded folder a ``numpy.py`` or ``signal.py`` would run. Since Python 3.11 the variable ``PYTHONSAFEPATH``
prevents it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"


@contextmanager
def safe_import_path() -> Iterator[None]:
    """Let the children that are started inside, and theirs, not import from the current folder."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SAFE_PATH, None)
        else:
            os.environ[SAFE_PATH] = before


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """
    Let the children that are started inside begin with Ctrl-C blocked. This process gets it when the block ends.

    A terminal sends Ctrl-C to children too. In one that still imports it would end in a traceback of its own.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it takes signals again when it starts, which is with the first child otherwise
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_interrupts() -> None:
    """In a child: take Ctrl-C from now on. One that has come already ends the child without a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        return
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        raise SystemExit(1) from None


def leave_current_folder(package_parent: str) -> None:
    """
    Take the current folder off the import path, where ``python -m`` has put it. Children get this path too.

    :param package_parent: folder that this package lies in, which stays: a checkout is run from its own folder
    """
    here = os.getcwd()
    if here != package_parent:
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]


def import_matplotlib() -> None:
    """
    Import matplotlib without the settings of the current folder.

    A ``matplotlibrc`` there may name a module, which is imported as the backend, and lines of LaTeX. No variable precedes it.
    """
    if "matplotlib" in sys.modules or not os.path.lexists("matplotlibrc"):
        return
    here = os.getcwd()
    os.chdir(os.path.dirname(os.path.abspath(__file__)))
    try:
        importlib.import_module("matplotlib")
    finally:
        os.chdir(here)
