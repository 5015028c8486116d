"""Workers on this machine, with a job that is larger than the buffer of a pipe."""

import multiprocessing as mp
import os
import signal
import time
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import pytest
from forked import run_forked

from sb3_qpd.search.frontier import open_workers
from sb3_qpd.search.tasks import Failed, Ready, Unusable
from sb3_qpd.search.workers import LocalWorkers


class LargeJob:
    """Stands for a job: it knows no environment, and is never worked at."""

    def __init__(self) -> None:
        self.weights, self.specs = bytes(2**20), ()


class NeedsVariable(LargeJob):
    """
    A job that only a process with a variable of the environment can read.

    :param value: value of the variable
    """

    def __init__(self, value: str) -> None:
        super().__init__()
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        assert os.environ["OF_THE_SEARCH"] == self.value


def receive_until(workers: LocalWorkers, count: int) -> list[tuple[int, object]]:
    messages: list[tuple[int, object]] = []
    deadline = time.monotonic() + 300
    while len(messages) < count:
        assert time.monotonic() < deadline, messages
        messages += workers.receive(0.1)
    return messages


def test_workers_start_side_by_side_and_again() -> None:
    workers = LocalWorkers(cloudpickle.dumps(LargeJob()), 2)
    try:
        assert receive_until(workers, 2) in ([(0, Ready()), (1, Ready())], [(1, Ready()), (0, Ready())])
        next(one for one in mp.active_children() if one.pid == workers.process_ids[1]).kill()
        lost, ready = receive_until(workers, 2)
        assert lost[0] == 1 and isinstance(lost[1], Failed) and lost[1].is_lost and ready == (1, Ready())
        assert f"exit code {-signal.SIGKILL}" in lost[1].error
    finally:
        workers.close()
    assert not mp.active_children()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for another process on Windows")
def test_ctrl_c_leaves_a_worker_that_still_imports_alone(capfd: pytest.CaptureFixture[str]) -> None:
    """A terminal sends it to all processes, and the command ends its workers itself."""
    workers = LocalWorkers(cloudpickle.dumps(LargeJob()), 1)
    try:
        [process] = workers.process_ids
        os.kill(process, signal.SIGINT)
        assert receive_until(workers, 1) == [(0, Ready())] and workers.process_ids == [process]
    finally:
        workers.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_job_that_no_worker_can_read(tmp_path: Path) -> None:
    workers = LocalWorkers(b"no pickle", 1)
    try:
        [(worker, message)] = receive_until(workers, 1)
        assert worker == 0 and isinstance(message, Unusable) and "UnpicklingError" in message.error
    finally:
        workers.close()


def test_workers_have_the_variables_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are forked from a server, which may have been started with other variables."""
    for value in ("1", "2"):
        monkeypatch.setenv("OF_THE_SEARCH", value)
        workers = LocalWorkers(cloudpickle.dumps(NeedsVariable(value)), 1)
        try:
            assert receive_until(workers, 1) == [(0, Ready())]
        finally:
            workers.close()


def test_one_trial_has_one_worker() -> None:
    workers = open_workers(b"no pickle", 1, 100, None)
    try:
        assert workers.count == 1
    finally:
        workers.close()


def test_a_worker_registers_an_environment_once(tmp_path: Path) -> None:
    """The module of an environment registers it. A second time gives a warning, which is an error here."""
    (tmp_path / "own_env.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv as Own\n"
        "gym.register('Own-v0', entry_point='own_env:Own')\n"
    )
    job = LargeJob()
    job.specs = (gym.envs.registration.EnvSpec("Own-v0", entry_point="own_env:Own"),)
    (tmp_path / "job").write_bytes(cloudpickle.dumps(job))
    (tmp_path / "program.py").write_text(
        "import sys, warnings, gymnasium as gym\n"
        f"sys.path[:0] = [{str(tmp_path)!r}, {str(Path(__file__).parent)!r}]\n"
        "warnings.simplefilter('error', UserWarning)\n"
        "from sb3_qpd.search.tasks import unpack_job\n"
        "unpack_job(open('job', 'rb').read())\n"
        "import own_env; gym.make('Own-v0')\n"
    )
    done = run_forked(tmp_path / "program.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
