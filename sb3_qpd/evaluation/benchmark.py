"""How fast each form of a student is and what memory it takes, beside its teacher: one thread, medians."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.evaluation.float_baseline import quantize_after_training, write_float_onnx
from sb3_qpd.evaluation.own_episodes import Jitter, replay
from sb3_qpd.evaluation.verify import compile_c, load_model
from sb3_qpd.export.c.emulator import MICROCONTROLLERS, Emulation, emulate, missing_tools
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import Player
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher

BATCH = 64
MIN_CALLS = 20
N_EMULATED = 16  # observations that a microcontroller gets

# what a fresh process does: load, act once, say how much memory it has taken at most
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

    :param name: who acts
    :param microseconds: for one action, batch size 1; of C, which takes one observation at a time, in a loop in C
    :param per_second: actions a second at batch size 64
    :param nbytes: of its file, or of its parameters where it has none
    :param memory: peak bytes of a fresh process that loads it and acts once, libraries included; of C its own RAM
    """

    name: str
    microseconds: float
    per_second: float
    nbytes: int
    memory: int


class Networks(NamedTuple):
    """
    Policies that take part, besides the files of the folder.

    :param policy: the student as an SB3 policy
    :param float_policy: the student before precision fell
    :param teacher: what it was distilled from
    """

    policy: QuantActorCriticPolicy | None = None
    float_policy: QuantActorCriticPolicy | None = None
    teacher: Teacher | None = None


class BenchmarkCase(NamedTuple):
    """
    What a row is measured of.

    :param name: for the table
    :param make: makes what acts on a batch; sent to a fresh process, so it names only what that has to import
    :param nbytes: see :class:`Speed`
    :param ram: bytes of C
    """

    name: str
    make: Callable[[], Callable[[np.ndarray], Any]]
    nbytes: int
    ram: int | None = None


def benchmark(folder: Path, recipe: EnvRecipe, given: Networks, seconds: float = 1.0) -> list[Speed]:
    """
    Measure everything in a folder on observations of the student's own episodes.

    :param folder: with ``student.npz`` and what was exported from it
    :param recipe: where the student plays
    :param given: policies that take part as well
    :param seconds: spent on each row and batch size
    """
    observations = own_observations(folder, recipe, BATCH)
    with one_torch_thread(), tempfile.TemporaryDirectory() as scratch:
        return [_measure(row, observations, seconds) for row in _benchmark_cases(folder, given, observations, Path(scratch))]


def own_observations(folder: Path, recipe: EnvRecipe, n: int) -> np.ndarray:
    """
    :param folder: with ``student.npz``
    :param recipe: where the student plays
    :param n: how many
    """
    model = load_model(folder)
    if model.is_dict:
        raise ValueError(
            "The benchmark takes vectors, images and indices; this student has Dict observations. verify takes them"
        )
    return np.concatenate([batch.copy() for batch in replay(model, recipe, n, VALIDATION_SEED, Jitter())])


def _measure(case: BenchmarkCase, observations: np.ndarray, seconds: float) -> Speed:
    act = case.make()
    batch = median_seconds(act, observations, seconds)
    if case.ram is not None:
        return Speed(case.name, 1e6 * batch / BATCH, BATCH / batch, case.nbytes, case.ram)
    one, memory = median_seconds(act, observations[:1], seconds), peak_memory(case.make, observations[:1])
    return Speed(case.name, 1e6 * one, BATCH / batch, case.nbytes, memory)


def peak_memory(make: Callable[[], Callable[[np.ndarray], Any]], observations: np.ndarray) -> int:
    """
    Bytes that a fresh process takes at most.

    :param make: called there; makes what acts
    :param observations: one batch
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "case.pkl")
        path.write_bytes(cloudpickle.dumps((make, observations)))
        command = [sys.executable, "-c", FRESH, str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return 1024 * int(done.stdout.splitlines()[-1])


def table(rows: list[Speed]) -> str:
    """As text; the last column is how many times as fast as the first row one action is."""
    per_second = f"actions/s, batch {BATCH}"
    lines = [f"{'one thread, medians':36} {'us/action':>10} {per_second:>20} {'bytes':>10} {'peak memory':>12} {'ratio':>8}"]
    for row in rows:
        ratio, memory = rows[0].microseconds / row.microseconds, f"{row.memory / 1000:,.1f} kB"
        numbers = f"{row.microseconds:10.1f} {row.per_second:20,.0f} {row.nbytes:10} {memory:>12}"
        lines.append(f"{row.name:36} {numbers} {ratio:7.1f}x")
    return "\n".join(lines)


def microcontrollers(folder: Path, recipe: EnvRecipe) -> dict[str, Emulation | str]:
    """
    The C of a folder on each emulated microcontroller, or what is missing for that.

    :param folder: with ``student.npz``; without C there are none
    :param recipe: where the student plays
    """
    if not (folder / "policy.c").is_file():
        return {}
    model, missing = load_model(folder), {name: missing_tools(name) for name in MICROCONTROLLERS}
    if all(missing.values()):
        return dict(missing)
    observations = own_observations(folder, recipe, N_EMULATED)
    return {name: problem or emulate(folder, model, observations, name) for name, problem in missing.items()}


def microcontroller_table(seen: dict[str, Emulation | str], mhz: float) -> str:
    """
    As text.

    :param seen: see :func:`microcontrollers`
    :param mhz: clock of the processors
    """
    at_clock = f"ms at {mhz:g} MHz"
    lines = [f"{'C, emulated':36} {'instructions':>12} {at_clock:>16} {'flash':>10} {'RAM + stack':>12}"]
    for name, one in seen.items():
        if isinstance(one, str):
            lines.append(f"{name:36} {one}")
        else:
            n, ram = int(np.median(one.instructions)), one.ram + one.call_stack
            lines.append(f"{name:36} {n:12,} {one.milliseconds(mhz):16.3g} {one.flash:10,} {ram:12,}")
    return "\n".join(lines)


def median_seconds(act: Callable[[np.ndarray], Any], observations: np.ndarray, seconds: float) -> float:
    """
    Median processor time of a call: on a machine with other work, the clock on the wall would count that too.

    :param act: what is measured
    :param observations: one batch
    :param seconds: how long to go on; a tenth of it warms up beforehand
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
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)


def _benchmark_cases(folder: Path, given: Networks, observations: np.ndarray, scratch: Path) -> Iterator[BenchmarkCase]:
    policy, teacher = given.policy, given.teacher
    takes_indices = load_model(folder).parts[0].kind == "one_hot"  # which a float file in ONNX Runtime does not
    if teacher is not None:
        yield BenchmarkCase("teacher, SB3 predict", lambda: _predict(teacher), teacher.nbytes)
    if teacher is not None and not takes_indices:
        yield from _in_onnx_runtime("teacher", teacher.policy, teacher.normalize(observations), scratch)
    if given.float_policy is not None and not takes_indices:
        yield from _in_onnx_runtime("float student", given.float_policy, observations, scratch)
    if policy is not None:
        yield BenchmarkCase("student, SB3 predict", lambda: _predict(policy), os.path.getsize(folder / "student.zip"))
    npz = folder / "student.npz"
    numpy_act = lambda: partial(IntegerModel.load(npz).predict, deterministic=True)  # noqa: E731  # by value: no torch
    yield BenchmarkCase("student, numpy", numpy_act, os.path.getsize(npz))
    if (onnx := folder / "student.onnx").is_file():
        from sb3_qpd.export.onnx.runtime import OnnxPolicy

        yield BenchmarkCase("student, ONNX Runtime", lambda: OnnxPolicy(onnx).run, os.path.getsize(onnx))
    if (tflite := folder / "student.tflite").is_file():
        from sb3_qpd.export.tflite.runtime import TflitePolicy

        yield BenchmarkCase("student, TFLite", lambda: TflitePolicy(tflite).run, os.path.getsize(tflite))
    yield from _in_c(folder)


def _in_c(folder: Path) -> Iterator[BenchmarkCase]:
    nbytes = load_model(folder).nbytes
    for name, flags in (("student, C", ("-O3",)), ("student, C, -march=native", ("-O3", "-march=native"))):
        if (c_policy := compile_c(folder, flags)) is not None:
            act = c_policy.actions
            yield BenchmarkCase(name, lambda act=act: act, nbytes, c_policy.ram)  # type: ignore[misc]


def _in_onnx_runtime(name: str, policy: BasePolicy, observations: np.ndarray, scratch: Path) -> Iterator[BenchmarkCase]:
    """A float policy in ONNX Runtime, in float32 and quantized after training; it is given what its network takes."""

    if observations.dtype != np.uint8:
        observations = observations.astype(np.float32)
    path, quantized = scratch / "float32.onnx", scratch / "int8.onnx"
    write_float_onnx(policy, observations[:1], path)
    quantize_after_training(path, quantized, observations)
    for kind, file in (("float32", path), ("int8", quantized)):
        make = partial(OnnxPolicy, file)
        yield BenchmarkCase(f"{name}, ONNX Runtime {kind}", lambda make=make: make().run, os.path.getsize(file))  # type: ignore[misc]


def _predict(player: Player) -> Callable[[np.ndarray], Any]:
    return lambda observations: player.predict(observations, deterministic=True)
