"""``compress`` keeps what was learned: signals, kills, full disks, links, two processes, simulators that fail."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from commands import QUICK, mistake
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import IntegerModel, QPDDistiller
from sb3_qpd.atomic import SIGNALS, AtomicFolder
from sb3_qpd.cli import main

SHORT = ["--env", "CartPole-v1", "--n-envs", "2", "--timesteps", "400", "--episodes", "2", *QUICK]
STUDENT = {"student.npz", "student.zip", "student_float.zip"}
FILES = {*STUDENT, "report.json", "report.md", "command.txt"}


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", 64)


def when_learning(monkeypatch: pytest.MonkeyPatch, steps: int, action: Callable[[], Any]) -> None:
    """Something happens to the process after so many steps."""
    learn, done = QPDDistiller._train, []

    def train(self: QPDDistiller) -> None:
        learn(self)
        if self.num_timesteps >= steps and not done:
            done.append(True)
            action()

    monkeypatch.setattr(QPDDistiller, "_train", train)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weights(folder: Path) -> list[bytes]:
    return [layer.weight.tobytes() for layer in IntegerModel.load(folder / "student.npz").layers]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
@pytest.mark.parametrize("number", [one for one in SIGNALS if one != signal.SIGINT])
def test_requests_to_end_save_what_there_is(
    number: signal.Signals, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        when_learning(monkeypatch, 100, lambda: os.kill(os.getpid(), number))
        assert main(["compress", teacher, "--out", str(tmp_path / "out"), *SHORT]) == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    errors = capsys.readouterr().err
    assert "stopped after 100 steps; wrote student.npz, student.zip" in errors and f"ended by {number.name}" in errors
    assert names(tmp_path / "out") == {"student.npz", "student.zip"} and names(tmp_path) == {"out"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_requests_that_come_together(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal that closes, and services that stop, send several. The second one may not stop the saving."""

    def send_all() -> None:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for number in SIGNALS:  # to this thread: another one does not block them, and the first would end this loop
                signal.pthread_kill(threading.get_ident(), number)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in SIGNALS if number != signal.SIGINT]
    try:
        when_learning(monkeypatch, 100, send_all)
        assert main(["compress", teacher, "--out", str(tmp_path / "out"), *SHORT]) > 128
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert "stopped after 100 steps; wrote student.npz, student.zip" in capsys.readouterr().err
    assert names(tmp_path / "out") == {"student.npz", "student.zip"} and names(tmp_path) == {"out"}


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_goes_on(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", teacher, *SHORT, "--checkpoint-every", "64", "--baselines", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert names(tmp_path / "whole") == FILES  # no checkpoint of a finished run
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        when_learning(patch, 200, interrupt)
        assert main([*command, str(out)]) == 130
    assert "The same command with --resume goes on after 192 steps" in capsys.readouterr().err
    assert names(out) == {*STUDENT, "checkpoint"}
    refused = mistake(capsys, *command, out)
    assert "holds an unfinished run, with a checkpoint after 192 steps. Add --resume" in refused and "remove" in refused
    assert "holds an unfinished run" in mistake(capsys, *command, out, "--force")  # hours are not thrown away by --force
    other = mistake(capsys, *command, out, "--resume", "--timesteps", "500")
    assert "is the checkpoint of another run: its --timesteps is 400, this run's is 500" in other
    assert names(out) == {*STUDENT, "checkpoint"}
    assert main([*command, str(out), "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "Found a checkpoint after 192 steps" in printed and "as if it had not been interrupted" in printed
    assert names(out) == FILES and weights(out) == weights(tmp_path / "whole")
    assert "is not empty" in mistake(capsys, *command, out, "--resume")  # it is finished
    assert names(tmp_path) == {"whole", "out"}


def test_no_checkpoints(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    when_learning(monkeypatch, 200, interrupt)
    out = tmp_path / "out"
    assert main(["compress", teacher, "--out", str(out), *SHORT, "--checkpoint-every", "0", "--resume"]) == 130
    assert names(out) == STUDENT


def test_a_second_process_is_refused(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with AtomicFolder(tmp_path / "out", force=False):
        assert "is in use: another process is writing there" in mistake(
            capsys, "compress", teacher, "--out", tmp_path / "out", *SHORT
        )
    assert not names(tmp_path)


def test_a_link_to_nowhere_is_followed(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    assert main(["compress", teacher, "--out", str(tmp_path / "link"), *SHORT]) == 0
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "disk" / "out") == FILES
    assert main(["compress", teacher, "--out", str(tmp_path / "link"), *SHORT, "--force"]) == 0
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "disk") == {"out"}


class Spoiled(CartPoleEnv):
    """Its reward is NaN after 100 steps."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        observation, reward, *rest = super().step(action)
        return (observation, np.nan if self.n_steps > 100 else reward, *rest)


gym.register("Spoiled-v0", entry_point=Spoiled, max_episode_steps=200)


def test_a_simulator_that_fails_is_one_line(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["compress", teacher, "--out", str(tmp_path / "out"), *SHORT, "--env", "Spoiled-v0"])
    assert exit_info.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: Spoiled-v0 failed at step 200, in sub-environment 0: its reward is nan" in last
    assert "stopped after 200 steps; wrote student.npz" in last
    assert names(tmp_path / "out") == STUDENT


def mounted(folder: Path, n_bytes: int) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "none", str(folder)]
    return sys.platform.startswith("linux") and subprocess.run(command, capture_output=True).returncode == 0


def test_a_disk_that_is_too_small(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small tmpfs: too small at the start, then filled while the student learns. Its mount point is never renamed."""
    disk = tmp_path / "disk"
    if not mounted(disk, 2**20):
        pytest.skip("mounting a small tmpfs is for root on Linux")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    try:
        (disk / "full").write_bytes(bytes(2**20 - 2**17))
        command = ["compress", teacher, *SHORT, "--force", "--checkpoint-every", "64", "--out"]
        for out in (disk, disk / "out"):
            assert "bytes are free" not in (text := mistake(capsys, *command, out)) and "needs about" in text
        (disk / "full").unlink()
        assert main([*command, str(disk)]) == 0
        assert names(disk) == FILES
        with monkeypatch.context() as patch:
            when_learning(patch, 200, lambda: fill(disk / "full"))
            with pytest.raises(SystemExit) as exit_info, pytest.warns(UserWarning, match="No checkpoint after 256 steps"):
                main([*command, str(disk)])
        assert exit_info.value.code == 1
        errors = capsys.readouterr().err
        assert f"--out {disk} cannot be written (" in errors and "bytes needed). The student is in" in errors
        [other] = (tmp_path / "elsewhere").glob("disk-*")
        assert str(other) in errors and names(other) == FILES
        IntegerModel.load(other / "student.npz")
        assert FILES <= names(disk)  # the run before
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(path: Path) -> None:
    """Take what is left of a disk."""
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return
