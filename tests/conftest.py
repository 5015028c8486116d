import gc
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

TEACHERS = Path(__file__).resolve().parents[2] / "shared" / "teachers"


@pytest.fixture(scope="session")
def teachers() -> Path:
    """The folder of published RL Zoo teachers beside the checkout (they are not copied into the project)."""
    if not TEACHERS.is_dir():
        pytest.skip("the published teachers are not here: expected a folder shared/teachers beside the checkout")
    return TEACHERS


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """
    Tests leave the user's folders alone: evaluations keep the teacher's episodes there, and the command line remembers
    environments.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """No test leaves a signal blocked, or Ctrl-C with another handler: a process that a later test starts would miss it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT)
    yield
    assert (signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.getsignal(signal.SIGINT)) == before


def pytest_collection_finish() -> None:
    """
    Spare the garbage collector what the modules of all tests have imported: half a million objects that live to the end.

    Walking over them took 6 % of the tests' processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)


# -- which tests are slow ---------------------------------------------------------------------------------------------

SLOW_SECONDS = 5  # of processor time: all cases of a test function together, without fixtures
_SECONDS = "processor seconds"
_START = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processor-time", action="store_true", help="at the end, the processor time of the slowest tests")


def _processor_seconds() -> float:
    """Processor seconds of this process and of its programs: those that ended, and those that run, such as a fork server."""
    return sum(os.times()[:4]) + sum(map(_seconds_of, Path("/proc/self/task").glob("*/children")))


def _seconds_of(children: Path) -> float:
    """
    Processor seconds of processes that run, and of all that they have waited for, as Linux counts them.

    :param children: file that names the processes
    """
    seconds = 0.0
    with suppress(OSError):  # the thread, or one of the processes, has ended
        for pid in children.read_text().split():
            fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_START] = _processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[Any]:
    """Setup, call and teardown have a report each; pytest-xdist hands it on to the process that prints the summary."""
    report = yield
    now = _processor_seconds()
    report.user_properties = [(_SECONDS, now - item.stash[_START]), ("slow", item.get_closest_marker("slow") is not None)]
    item.stash[_START] = now
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Test functions that take longer than ``SLOW_SECONDS``, and those with the marker that do not."""
    if not config.getoption("--processor-time"):
        return
    seconds: Counter[str] = Counter()
    marked, fixtures, slow = set(), 0.0, 0.0
    for report in (one for reports in terminalreporter.stats.values() for one in reports):
        properties = dict(getattr(report, "user_properties", ()))
        spent = properties.get(_SECONDS, 0.0)
        if getattr(report, "when", None) != "call":
            fixtures += spent
            continue
        name = report.nodeid.partition("[")[0]
        seconds[name] += spent
        if properties["slow"]:
            marked.add(name)
            slow += spent
    terminalreporter.section("processor time")
    for name, spent in seconds.most_common():
        if spent > SLOW_SECONDS or name in marked:
            terminalreporter.write_line(f"{spent:6.1f} s {'slow' if name in marked else '    '} {name}")
    total = f"{seconds.total():.0f} s in tests, {slow:.0f} s of them in slow ones, and {fixtures:.0f} s in fixtures"
    terminalreporter.write_line(total)
