"""
Ends a process at every system call that writes, as databases are tested, or lets each of them fail once.

It runs under ``shim.c``. A small student is trained once. For each point a forked process saves it and is ended there. This
process then looks at what is on the disk. Printed is one line of JSON for each stage.

    gcc -shared -fPIC -o shim.so tests/crash/shim.c -ldl
    LD_PRELOAD=./shim.so python tests/crash/crash_points.py ./shim.so FOLDER [ENOSPC EIO ...]
"""

import ctypes
import errno
import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO

import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import Checkpoint, IntegerModel, QPDDistiller
from sb3_qpd.atomic import AtomicFolder, write_atomically
from sb3_qpd.cli.compress import publish
from sb3_qpd.distillation.checkpoint_files import ACTIONS, STATE_FILES, CheckpointError, read_archive
from sb3_qpd.distillation.checkpoints import Recording
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.report import write_report

ENDED = 77  # see shim.c
OLD = {"student.npz", "student.zip", "student.onnx", "report.json", "report.md", "mine.txt"}
NEW = {"student.npz", "student.zip", "student_float.zip", "report.json", "report.md", "mine.txt"}


class Violation(Exception):
    """What may not be on the disk."""


class Run:
    """A trained student, its report, and the checkpoint of its training."""

    def __init__(self, folder: Path) -> None:
        distilling.ROLLOUT_STEPS = 64
        teacher = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=64, batch_size=64)
        self.checkpoint = Checkpoint(folder / "checkpoint", every=64)
        self.student = QPDDistiller(
            teacher, "CartPole-v1", student_arch="nano", device="cpu", seed=0, n_envs=4, buffer_size=200
        )
        self.student.check_teacher = False
        self.student.learn(400, log_interval=None, checkpoint=self.checkpoint)
        plan = {"n_episodes": 2, "n_envs": 2, "cache": False}
        self.plan = plan_evaluation(self.student.teacher, "CartPole-v1", **plan)  # type: ignore[arg-type]
        self.report = make_report(self.student, self.plan)
        self.policy = self.student.policy
        self.model = self.student.to_integer("CartPole-v1")


# -- what is on the disk -----------------------------------------------------------------------------------------------


def is_old(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(b"old")


def check_result(out: Path) -> str:
    """Whether a result folder is the old one or the new one, every file of it."""
    names = {path.name for path in out.iterdir() if not path.is_dir()} if out.is_dir() else set()
    if names == OLD and all(is_old(out / name) for name in OLD - {"mine.txt"}):
        return "old"
    if names == NEW:
        check_new(out)
        if (out / "mine.txt").read_text() == "mine":
            return "new"
    raise Violation(f"{sorted(names)}, old: {sorted(name for name in names if is_old(out / name))}")


def check_new(out: Path) -> None:
    check_zip(out / "student.zip")
    check_zip(out / "student_float.zip")
    IntegerModel.load(out / "student.npz")
    assert json.loads((out / "report.json").read_text())["verdict"]
    assert (out / "report.md").read_text().endswith("\n")


def check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def check_checkpoint(folder: Path) -> str:
    """The newest state that can be read names files that are there, and each of them can be read."""
    states = []
    for name in STATE_FILES:
        try:
            values = read_archive(folder / name, 2**24)[0]
            states.append((values["number"], values))
        except CheckpointError:
            continue
    number, values = max(states, key=lambda state: state[0])
    for segment, rows, _ in values["segments"]:
        arrays = read_archive(folder / f"ring-{segment:08}.npz", 2**24)[1]
        assert int(arrays["start"][0]) + len(arrays["target_actor"]) == rows
    recording = Recording()
    recording.restore(values["recording"])
    assert recording.read(folder / ACTIONS) is not None
    return str(number)


# -- stages: prepare a folder; save in it; look at it ------------------------------------------------------------------

Stage = tuple[Callable[[Path], None], Callable[[Path], None], Callable[[Path, bool], str]]


def replaced_folder(run: Run) -> Stage:
    """``compress --force``: the whole saving of a run."""

    def save(folder: Path) -> None:
        tempfile.tempdir = str(elsewhere(folder))
        with AtomicFolder(folder / "out", force=True) as staging:
            ARM()
            _, out = publish(run.student, run.plan.env, staging, run.report)
        if out.parent == elsewhere(folder):
            check_new(out)

    return prepare_old, save, look_at_result


def commit_alone(files: dict[str, bytes], has_subfolder: bool) -> Stage:
    """The commit of files that are written without their own care."""

    def prepare(folder: Path) -> None:
        prepare_old(folder)
        if has_subfolder:
            (folder / "out" / "logs").mkdir()

    def save(folder: Path) -> None:
        with AtomicFolder(folder / "out", force=True) as staging:
            ARM()
            for name, content in files.items():
                (staging.path / name).write_bytes(content)
            staging.commit(replacing=OLD - {"mine.txt"})

    return prepare, save, look_at_result


def prepare_old(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    for name in OLD - {"mine.txt"}:
        (out / name).write_bytes(b"old " + name.encode())
    (out / "mine.txt").write_text("mine")


def look_at_result(folder: Path, is_recovered: bool) -> str:
    if is_recovered:
        with AtomicFolder(folder / "out", force=True):
            pass
        left = {path.name for path in folder.iterdir()} - {"out"}
        if left or any(path.name.startswith(".") for path in (folder / "out").iterdir()):
            raise Violation(f"left over: {left}")
    return check_result(folder / "out")


def new_folder(files: dict[str, bytes]) -> Stage:
    """A run into a folder that does not exist, nor its parent."""

    def save(folder: Path) -> None:
        with AtomicFolder(folder / "a" / "out", force=False) as staging:
            ARM()
            for name, content in files.items():
                (staging.path / name).write_bytes(content)
            staging.commit()

    def look(folder: Path, is_recovered: bool) -> str:
        out = folder / "a" / "out"
        if is_recovered:
            with AtomicFolder(out, force=True):
                pass
        if not out.exists():
            return "none"
        check_new(out)
        return "new"

    return lambda folder: None, save, look


def one_file(name: str, write: Callable[[Path], None], check: Callable[[Path], Any]) -> Stage:
    def look(folder: Path, is_recovered: bool) -> str:
        if is_old(folder / name):
            return "old"
        check(folder / name)
        return "new"

    def save(folder: Path) -> None:
        ARM()
        write(folder / name)

    return lambda folder: (folder / name).write_bytes(b"old"), save, look  # type: ignore[return-value]


def report_files(run: Run) -> Stage:
    def prepare(folder: Path) -> None:
        for name in ("report.json", "report.md"):
            (folder / name).write_bytes(b"old")

    def save(folder: Path) -> None:
        ARM()
        write_report(run.report, folder)

    def look(folder: Path, is_recovered: bool) -> str:
        old = [is_old(folder / name) for name in ("report.json", "report.md")]
        if old[0] != old[1]:
            raise Violation("one old and one new report")
        return "old" if old[0] else "new"

    return prepare, save, look


def checkpoint_files(run: Run) -> Stage:
    def save(folder: Path) -> None:
        student: Any = run.student
        writer = student._writer
        writer._checkpoint.folder = folder / "checkpoint"
        for _ in range(3):
            targets = student._ask_teacher()
            student._buffer.add(student._last_obs, targets)
            writer.recording.add(np.zeros(4, np.int64), np.zeros(4), np.zeros(4, bool))
        ARM()
        writer.write(iteration=99)

    def look(folder: Path, is_recovered: bool) -> str:
        return check_checkpoint(folder / "checkpoint")

    original = run.checkpoint.folder
    return lambda folder: shutil.copytree(original, folder / "checkpoint"), save, look  # type: ignore[return-value]


# -- points ------------------------------------------------------------------------------------------------------------

ARM: Callable[[], None] = lambda: None  # noqa: E731


def elsewhere(folder: Path) -> Path:
    """The folder for temporary files, where a student is saved that the result folder does not take."""
    return folder.with_name(f"{folder.name}-elsewhere")


def attempt(stage: Stage, folder: Path, shim: Any, arguments: tuple[int, int, int]) -> tuple[int, str]:
    """Save in a forked process that is ended, or whose call fails, at a point. Returns its exit code and its error."""
    prepare, save, _ = stage
    folder.mkdir()
    elsewhere(folder).mkdir()
    prepare(folder)
    message = folder.with_suffix(".txt")
    if (child := os.fork()) == 0:
        global ARM
        ARM = lambda: shim.shim_arm(*arguments)  # noqa: E731
        code = 0
        try:
            save(folder)
        except OSError as error:
            shim.shim_disarm()
            message.write_text(f"OSError: {error}")
            code = 1
        except BaseException:
            shim.shim_disarm()
            message.write_text(traceback.format_exc())
            code = 2
        reached = shim.shim_count() > arguments[0]
        shim.shim_disarm()
        os._exit(code if reached else 10 + code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), message.read_text() if message.exists() else ""


def walk(
    name: str,
    stage: Stage,
    folder: Path,
    shim: Any,
    error: int = 0,
    exchange: int = 1,
    is_saved: bool = False,
    whole: bool = True,
) -> dict[str, Any]:
    """
    All points of a stage.

    :param is_saved: an error of the disk is handled, so that none is raised
    :param whole: the folder has to be whole at every instruction, not only after the next command
    """
    result: dict[str, Any] = {"stage": name, "error": errno.errorcode.get(error, ""), "points": 0, "violations": []}
    for point in range(100_000):
        at = folder / f"{name}-{error}-{point}"
        code, message = attempt(stage, at, shim, (point, error, exchange))
        try:
            if code % 10 == 2 or (code % 10 == 1 and is_saved):
                raise Violation(message)
            looks = ([stage[2](at, False)] if whole else []) + [stage[2](at, True)]
            if len(set(looks)) > 1:
                raise Violation(f"{looks} before and after the next command")
            result[looks[-1]] = result.get(looks[-1], 0) + 1
        except Exception as violation:
            result["violations"].append(f"{point}: {type(violation).__name__} {violation} {message}"[-1000:])
        for used in (at, elsewhere(at)):
            shutil.rmtree(used, ignore_errors=True)
        if code >= 10 and code != ENDED:  # the stage came to its end before the point
            break
        result["points"] += 1
    return result


def main() -> None:
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    shim, folder = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2])
    errors = [0, *(getattr(errno, name) for name in sys.argv[3:])]  # 0: the process ends
    shim.shim_arm.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_int)
    shim.shim_count.restype = ctypes.c_long
    run = Run(folder)
    files = saved_files(run, folder)
    gc.collect()
    gc.freeze()  # forked processes then share these objects
    sys.stderr = open(os.devnull, "w")
    for error in errors:
        for name, (stage, options) in stages(run, files).items():
            print(json.dumps(walk(name, stage, folder, shim, error, **options)), flush=True)


def saved_files(run: Run, folder: Path) -> dict[str, bytes]:
    """The files of a run, for stages that are not about how each is written."""
    with AtomicFolder(folder / "saved", force=False) as staging:
        publish(run.student, run.plan.env, staging, run.report)
    return {path.name: path.read_bytes() for path in (folder / "saved").iterdir()}


def stages(run: Run, files: dict[str, bytes]) -> dict[str, tuple[Stage, dict[str, Any]]]:
    """Each stage, and how it is walked."""
    return {
        "replace": (replaced_folder(run), {"is_saved": True}),
        "replace without exchange": (commit_alone(files, False), {"exchange": 0, "whole": False}),
        "replace in place": (commit_alone(files, True), {"whole": False}),
        "new": (new_folder(files), {}),
        "save": (one_file("student.zip", run.student.save, check_zip), {}),
        "policy": (one_file("policy.zip", run.policy.save, check_zip), {}),
        "npz": (one_file("student.npz", run.model.save, IntegerModel.load), {}),
        "file": (one_file("file", lambda path: write_atomically(path, b"new" * 9), Path.read_bytes), {}),
        "report": (report_files(run), {}),
        "checkpoint": (checkpoint_files(run), {"is_saved": True}),
    }


if __name__ == "__main__":
    main()
