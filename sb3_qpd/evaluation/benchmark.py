"""Time and memory of each form of a student, beside its teacher: one thread, medians."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from tqdm import tqdm

from sb3_qpd.checks import check_flags, check_positive, check_type
from sb3_qpd.child_processes import safe_import_path
from sb3_qpd.envs.recipe import EnvSource, check_env_type
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.evaluation.fitting import check_teacher_of
from sb3_qpd.evaluation.float_baseline import quantize_after_training, write_float_onnx
from sb3_qpd.evaluation.implementations import Folder, NoCompiler, compile_c
from sb3_qpd.evaluation.own_episodes import Jitter, replay
from sb3_qpd.evaluation.own_exports import not_run
from sb3_qpd.evaluation.verify import load_model
from sb3_qpd.export.c.emulator import MICROCONTROLLERS, Emulation, MisfitError, emulate, missing_tools
from sb3_qpd.export.c.runtime import CPolicy
from sb3_qpd.export.interpreters import InterpretedPolicy, NoInterpreter
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, join, take_rows
from sb3_qpd.players import Player
from sb3_qpd.student_folder import (
    C_FILE,
    INTEGER_MODEL,
    JS_FILE,
    MICROPYTHON_FILE,
    ONNX_FILE,
    STUDENT_ZIP,
    TFLITE_FILE,
    c_files,
    folder_of,
)
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher

BATCH = 64
MIN_CALLS = 20
UNO_MHZ = 16.0  # clock of an Arduino Uno
N_EMULATED = 16  # observations that a microcontroller gets

# A fresh process loads, acts once, and prints the most memory that it has taken
FRESH = r"""
import cloudpickle, re, sys
with open(sys.argv[1], "rb") as file:
    make, observations = cloudpickle.load(file)
make()(observations)
with open("/proc/self/status") as file:  # getrusage would tell the peak of the process that started this one
    print(re.search(r"VmHWM:\s*(\d+) kB", file.read())[1])
"""


class Speed(NamedTuple):
    """
    One row of the table.

    :param name: form of the student, or the teacher
    :param microseconds: time of one action at batch size 1. C and programs of an interpreter take one observation at a time,
        and are measured in a loop of their own
    :param per_second: actions per second at batch size 64
    :param nbytes: size of its file, or of its parameters where it has none
    :param memory: peak bytes of a fresh process that loads it and acts once, libraries included; for C its own RAM; for
        JavaScript the memory of node; for MicroPython what is allocated
    """

    name: str
    microseconds: float
    per_second: float
    nbytes: int
    memory: int


class Networks(NamedTuple):
    """
    Policies that are measured, besides the files of the folder.

    :param policy: the student as an SB3 policy
    :param float_policy: the student before its precision fell
    :param teacher: the student's teacher
    """

    policy: QuantActorCriticPolicy | None = None
    float_policy: QuantActorCriticPolicy | None = None
    teacher: Teacher | None = None


NOTHING_ELSE = Networks()


class BenchmarkCase(NamedTuple):
    """
    The subject of one row.

    :param name: name for the table
    :param make: makes the function that acts on a batch; sent to a fresh process, so it names only what that has to import
    :param nbytes: see :class:`Speed`
    :param ram: bytes of RAM of C, ``None`` for other forms, whose process is measured
    :param policy: a program of an interpreter, which measures itself; ``make`` is not called then
    """

    name: str
    make: Callable[[], Callable[[Any], Any]]
    nbytes: int
    ram: int | None = None
    policy: InterpretedPolicy | None = None


def benchmark(
    folder: str | Path,
    recipe: EnvSource,
    given: Networks = NOTHING_ELSE,
    seconds: float = 1.0,
    *,
    trust_code: bool = False,
    progress_bar: bool = False,
    left_out: list[str] | None = None,
) -> list[Speed]:
    """
    Measure everything in a folder on observations of the student's own episodes.

    A form that cannot be run here (no C compiler, no ONNX Runtime) is left out. So is an export that is not byte for byte what
    this version writes from ``student.npz``.

    :param folder: folder with ``student.npz`` and what was exported from it, or a file in it
    :param recipe: environment that the student plays in, its id, or a class or function that makes one
    :param given: policies that are measured as well
    :param seconds: time for each row and batch size
    :param trust_code: run the other exports too; they can run any code
    :param progress_bar: show one on stderr
    :param left_out: gets a line for each form that was left out
    :raises ValueError: the folder holds no student, or the teacher is another environment's
    """
    check_env_type(recipe)
    check_type("given", given, Networks, "Networks(policy, float_policy, teacher)")
    check_positive("seconds", seconds)
    check_flags(progress_bar=progress_bar, trust_code=trust_code)
    folder, reasons = folder_of(folder), [] if left_out is None else left_out
    if given.teacher is not None:
        check_teacher_of(load_model(folder), given.teacher)
    observations = own_observations(folder, recipe, BATCH)
    rows = []
    with (
        one_torch_thread(),
        tempfile.TemporaryDirectory() as scratch,
        tqdm(desc="benchmark", unit="row", disable=not progress_bar) as bar,
    ):
        exports = Folder(folder, load_model(folder), Path(scratch), trust_code, reasons, [])
        for case in _benchmark_cases(exports, given, observations):
            bar.set_postfix_str(case.name)
            rows.append(_measure(case, observations, seconds))
            bar.update()
    reasons += map(not_run, exports.foreign)
    return rows


def own_observations(folder: Path, recipe: EnvSource, n: int) -> Any:
    """
    Observations of the student's own episodes.

    :param folder: folder with ``student.npz``
    :param recipe: environment that the student plays in
    :param n: number of observations
    :return: shape (n, *observation_shape); a dict of such arrays for Dict observations
    """
    return join([join([batch]) for batch in replay(load_model(folder), recipe, n, VALIDATION_SEED, Jitter())])


def _measure(case: BenchmarkCase, observations: Any, seconds: float) -> Speed:
    if case.policy is not None:
        one, memory = case.policy.measure(observations, seconds)
        return Speed(case.name, 1e6 * one, 1 / one, case.nbytes, memory)
    act = case.make()
    batch = median_seconds(act, observations, seconds)
    if case.ram is not None:
        return Speed(case.name, 1e6 * batch / BATCH, BATCH / batch, case.nbytes, case.ram)
    single = take_rows(observations, slice(1))
    one, memory = median_seconds(act, single, seconds), peak_memory(case.make, single)
    return Speed(case.name, 1e6 * one, BATCH / batch, case.nbytes, memory)


def peak_memory(make: Callable[[], Callable[[Any], Any]], observations: Any) -> int:
    """
    The most bytes that a fresh process takes.

    :param make: called in that process; makes the function that acts
    :param observations: one batch
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.pkl")
        path.write_bytes(cloudpickle.dumps((make, observations)))
        command = [sys.executable, "-c", FRESH, str(path)]
        with safe_import_path():
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return 1024 * int(done.stdout.splitlines()[-1])


def table(rows: list[Speed], left_out: Sequence[str] = ()) -> str:
    """
    The rows as text. The last column compares the time of one action with the first row's: 2.0x is twice as fast.

    :param rows: from :func:`benchmark`
    :param left_out: forms that were left out, and why
    """
    per_second = f"actions/s, batch {BATCH}"
    lines = [f"{'one thread, medians':36} {'us/action':>10} {per_second:>20} {'bytes':>10} {'peak memory':>12} {'ratio':>8}"]
    for row in rows:
        ratio, memory = rows[0].microseconds / row.microseconds, f"{row.memory / 1000:,.1f} kB"
        numbers = f"{row.microseconds:10.1f} {row.per_second:20,.0f} {row.nbytes:10} {memory:>12}"
        lines.append(f"{row.name:36} {numbers} {ratio:7.1f}x" if ratio >= 0.1 else f"{row.name:36} {numbers} {ratio:7.3f}x")
    if rows:
        lines.append(f"1.0x is the time of one action of: {rows[0].name}")
    return "\n".join([*lines, *(f"not measured: {reason}" for reason in left_out)])


def microcontrollers(
    folder: str | Path, recipe: EnvSource, *, trust_code: bool = False, progress_bar: bool = False
) -> dict[str, Emulation | str]:
    """
    The C of a folder on each emulated microcontroller, or what is missing for that, or why it does not fit.

    :param folder: folder with ``student.npz``, or a file in it; without C in it the result is empty
    :param recipe: environment that the student plays in
    :param trust_code: see :func:`benchmark`
    :param progress_bar: show one on stderr
    """
    folder = folder_of(folder)
    if not (folder / C_FILE).is_file():
        return {}
    model, missing = load_model(folder), {name: missing_tools(name) for name in MICROCONTROLLERS}
    if all(missing.values()):
        return dict(missing)
    observations = own_observations(folder, recipe, N_EMULATED)
    bar = tqdm(missing.items(), desc="emulation", unit="device", disable=not progress_bar)
    with tempfile.TemporaryDirectory() as scratch:
        found = Folder(folder, model, Path(scratch), trust_code, [], []).file_to_run(C_FILE)
        if found is None:
            return dict.fromkeys(missing, not_run(C_FILE))
        return {name: problem or _emulate(found[0].parent, model, observations, name) for name, problem in bar}


def _emulate(folder: Path, model: IntegerModel, observations: np.ndarray, microcontroller: str) -> Emulation | str:
    """The emulation, or why the student does not fit the microcontroller."""
    try:
        return emulate(folder, model, observations, microcontroller)
    except MisfitError as error:
        return str(error).removeprefix(f"{microcontroller}: ")


def microcontroller_table(seen: dict[str, Emulation | str], mhz: float) -> str:
    """
    The emulations as text.

    :param seen: from :func:`microcontrollers`
    :param mhz: clock of the processors in MHz; an AVR has the clock of an Arduino Uno
    """
    lines = [f"{'C, emulated':26} {'instructions':>12} {'MHz':>6} {'ms':>9} {'flash':>10} {'RAM + stack':>12}"]
    for name, one in seen.items():
        if isinstance(one, str):
            lines.append(f"{name:26} {one}")
        else:
            n, ram = int(np.median(one.instructions)), one.ram + one.call_stack
            clock, counted = clock_of(name, mhz), counted_on(name)
            title = name if counted == "instructions" else f"{name}, {counted}"
            lines.append(f"{title:26} {n:12,} {clock:6g} {one.milliseconds(clock):9.3g} {one.flash:10,} {ram:12,}")
    return "\n".join(lines)


def clock_of(microcontroller: str, mhz: float) -> float:
    """
    The clock in MHz that a time is computed for.

    :param microcontroller: a key of ``MICROCONTROLLERS``
    :param mhz: clock of all microcontrollers but AVR, which has the clock of an Arduino Uno
    """
    return UNO_MHZ if MICROCONTROLLERS[microcontroller].counts_cycles else mhz


def counted_on(microcontroller: str) -> str:
    """
    The unit that the emulator of a microcontroller counts.

    :param microcontroller: a key of ``MICROCONTROLLERS``
    """
    return "clock cycles" if MICROCONTROLLERS[microcontroller].counts_cycles else "instructions"


def to_json(rows: list[Speed], seen: dict[str, Emulation | str], mhz: float) -> dict[str, Any]:
    """
    Both tables as JSON values, for ``benchmark.json``.

    :param rows: from :func:`benchmark`
    :param seen: from :func:`microcontrollers`; devices that were not emulated are left out
    :param mhz: see :func:`microcontroller_table`
    """
    boards = [
        {
            "device": name,
            "counted": counted_on(name),
            "of an action": int(np.median(one.instructions)),
            "MHz": clock_of(name, mhz),
            "ms": float(f"{one.milliseconds(clock_of(name, mhz)):.3g}"),
            "bytes of flash": one.flash,
            "bytes of RAM and stack": one.ram + one.call_stack,
        }
        for name, one in seen.items()
        if not isinstance(one, str)
    ]
    return {"rows": [row._asdict() for row in rows], "microcontrollers": boards}


def median_seconds(act: Callable[[Any], Any], observations: Any, seconds: float) -> float:
    """
    Median processor time of a call, in seconds. Wall time would also count the other work of the machine.

    :param act: the function that is measured
    :param observations: one batch
    :param seconds: time to go on for; a tenth of it warms up beforehand
    """
    times: list[int] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 10:
        act(observations)
    while len(times) < MIN_CALLS or time.perf_counter() - start < 1.1 * seconds:
        before = time.process_time_ns()
        act(observations)
        times.append(time.process_time_ns() - before)
    return float(np.median(times)) / 1e9


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread inside."""
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)


def _benchmark_cases(folder: Folder, given: Networks, observations: Any) -> Iterator[BenchmarkCase]:
    for name, find in _forms(folder, given, observations):
        try:
            yield from find()
        except (ImportError, NoCompiler, NoInterpreter) as error:
            folder.left_out.append(f"{name}: {' '.join(str(error).split())}")


def _forms(folder: Folder, given: Networks, observations: Any) -> Iterator[tuple[str, Callable[[], Iterator[BenchmarkCase]]]]:
    """The forms that there are, in the order of the table: a name, and a function that yields the rows."""
    policy, teacher, scratch = given.policy, given.teacher, folder.scratch
    # a float file in ONNX Runtime takes no Dict and no indices, and has no state
    is_plain = not folder.model.is_dict and folder.model.parts[0].kind != "one_hot"
    has_float_file = is_plain and folder.model.history == 1
    if teacher is not None:
        yield "teacher", partial(_in_sb3, "teacher", teacher, teacher.nbytes)
    if teacher is not None and has_float_file and not (teacher.has_memory or getattr(teacher.policy, "is_function", False)):
        inputs = teacher.normalize(observations)
        yield "teacher in ONNX Runtime", partial(_in_onnx_runtime, "teacher", teacher.policy, inputs, scratch)
    if given.float_policy is not None and has_float_file:
        in_onnx = partial(_in_onnx_runtime, "float student", given.float_policy, observations, scratch)
        yield "float student in ONNX Runtime", in_onnx
    if policy is not None:
        yield STUDENT_ZIP, partial(_in_sb3, "student", policy, os.path.getsize(folder.path / STUDENT_ZIP))
    yield INTEGER_MODEL, partial(_in_numpy, folder.path / INTEGER_MODEL)
    programs = ((JS_FILE, _in_js), (MICROPYTHON_FILE, _in_micropython))
    of_c = ((file, _in_c) for file in c_files(folder.path))
    for file, find in ((ONNX_FILE, _in_onnx), (TFLITE_FILE, _in_tflite), *of_c, *programs):
        if os.path.lexists(folder.path / file):
            yield file, partial(_of_export, folder, file, find)


def _of_export(folder: Folder, file: str, find: Callable[..., Iterator[BenchmarkCase]]) -> Iterator[BenchmarkCase]:
    if (found := folder.file_to_run(file)) is not None:
        yield from find(found[0], folder.model)


def _in_sb3(name: str, player: Player, nbytes: int) -> Iterator[BenchmarkCase]:
    yield BenchmarkCase(f"{name}, SB3 predict", lambda: _predict(player), nbytes)


def _in_numpy(path: Path) -> Iterator[BenchmarkCase]:
    act = lambda: partial(IntegerModel.load(path).predict, deterministic=True)  # noqa: E731  # by value: no torch
    yield BenchmarkCase("student, numpy", act, os.path.getsize(path))


def _in_onnx(path: Path, model: IntegerModel) -> Iterator[BenchmarkCase]:
    from sb3_qpd.export.onnx.runtime import OnnxPolicy

    yield BenchmarkCase("student, ONNX Runtime", lambda: OnnxPolicy(path).run, os.path.getsize(path))


def _in_tflite(path: Path, model: IntegerModel) -> Iterator[BenchmarkCase]:
    from sb3_qpd.export.tflite.runtime import TflitePolicy

    yield BenchmarkCase("student, TFLite", lambda: TflitePolicy(path).run, os.path.getsize(path))


def _in_c(path: Path, model: IntegerModel) -> Iterator[BenchmarkCase]:
    def actor_of(c_policy: CPolicy) -> Callable[[Any], Any]:
        return c_policy.actions

    nbytes, name = model.nbytes, "student, C" + ("" if path.name == C_FILE else f", {path.stem}")
    for flags in (("-O3",), ("-O3", "-march=native")):
        c_policy, of_flags = compile_c(path, flags, model), ", -march=native" if flags[1:] else ""
        yield BenchmarkCase(name + of_flags, partial(actor_of, c_policy), nbytes, c_policy.ram)
    yield BenchmarkCase(f"{name}, CPolicy.predict", lambda: _predict_one(compile_c(path, ("-O3",), model)), nbytes)


def _predict_one(player: CPolicy) -> Callable[[Any], Any]:
    """A single observation goes to C without its batch axis."""

    def act(observations: Any) -> Any:
        single = take_rows(observations, 0) if batch_size(observations) == 1 else observations
        return player.predict(single, deterministic=True)

    return act


def _in_js(path: Path, model: IntegerModel) -> Iterator[BenchmarkCase]:
    from sb3_qpd.export.js.runtime import JsPolicy

    policy = JsPolicy(path, model)
    yield BenchmarkCase("student, JavaScript in node", lambda: policy.run, os.path.getsize(path), policy=policy)


def _in_micropython(path: Path, model: IntegerModel) -> Iterator[BenchmarkCase]:
    from sb3_qpd.export.micropython.runtime import MicroPythonPolicy

    policy = MicroPythonPolicy(path, model)
    yield BenchmarkCase("student, MicroPython", lambda: policy.run, os.path.getsize(path), policy=policy)


def _in_onnx_runtime(name: str, policy: BasePolicy, observations: np.ndarray, scratch: Path) -> Iterator[BenchmarkCase]:
    """A float policy in ONNX Runtime, in float32 and quantized after training, on the observations that its network takes."""
    from sb3_qpd.export.onnx.runtime import OnnxPolicy

    has_origin = getattr(policy.features_extractor, "origin", None) is not None  # a student takes it off in float64
    if observations.dtype != np.uint8:
        observations = observations.astype(np.float64 if has_origin else np.float32)
    path, quantized = scratch / "float32.onnx", scratch / "int8.onnx"
    write_float_onnx(policy, observations[:1], path)
    quantize_after_training(path, quantized, observations)
    for kind, file in (("float32", path), ("int8", quantized)):
        make = partial(OnnxPolicy, file)
        yield BenchmarkCase(f"{name}, ONNX Runtime {kind}", lambda make=make: make().run, os.path.getsize(file))  # type: ignore[misc]


def _predict(player: Player) -> Callable[[np.ndarray], Any]:
    return lambda observations: player.predict(observations, deterministic=True)
