"""Bounds of time and memory around what a hostile file is given to."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded(seconds: float, n_bytes: int) -> Iterator[None]:
    """
    Past the time it is a ``TimeoutError``, past the memory a ``MemoryError``: neither is what a reader may raise.

    :param seconds: for what is inside
    :param n_bytes: of address space beyond what the process has now
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + n_bytes, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
