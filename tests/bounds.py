"""Bounds of time and memory around the reading of a hostile file."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bounded(seconds: float, n_bytes: int, of_processor: bool = False) -> Iterator[None]:
    """
    Raise ``TimeoutError`` beyond the time and ``MemoryError`` beyond the memory. A reader may raise neither.

    :param seconds: time limit
    :param n_bytes: address space beyond that of the process at present
    :param of_processor: the time is the processor's, which other work of the machine does not lengthen
    """
    timer, signum = (signal.ITIMER_PROF, signal.SIGPROF) if of_processor else (signal.ITIMER_REAL, signal.SIGALRM)

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signum, stop)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + n_bytes, hard))
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(signum, previous)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
