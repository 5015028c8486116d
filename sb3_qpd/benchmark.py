"""How fast each form of a student is, beside its teacher: one thread, medians."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_qpd.envs import EnvRecipe
from sb3_qpd.evaluation import VALIDATION_SEED, Player
from sb3_qpd.integer import IntegerModel
from sb3_qpd.policies import QuantActorCriticPolicy
from sb3_qpd.teachers import Teacher
from sb3_qpd.verify import Jitter, compile_c, load_model, replay

BATCH = 64
MIN_CALLS = 20


class Speed(NamedTuple):
    """
    One row of the table.

    :param name: who acts
    :param microseconds: for one action, batch size 1
    :param per_second: actions a second at batch size 64
    :param nbytes: of its file, or of its parameters where it has none
    """

    name: str
    microseconds: float
    per_second: float
    nbytes: int


def benchmark(
    folder: Path,
    recipe: EnvRecipe,
    *,
    policy: QuantActorCriticPolicy | None = None,
    teacher: Teacher | None = None,
    seconds: float = 1.0,
) -> list[Speed]:
    """
    Measure everything in a folder on observations of the student's own episodes.

    :param folder: with ``student.npz`` and what was exported from it
    :param recipe: where the student plays
    :param policy: the SB3 policy
    :param teacher: what it was distilled from
    :param seconds: spent on each row and batch size
    """
    model = load_model(folder)
    observations = np.concatenate(list(replay(model, recipe, BATCH, VALIDATION_SEED, Jitter())))
    with one_torch_thread():
        return [
            Speed(
                name,
                median_seconds(act, observations[:1], seconds) * 1e6,
                BATCH / median_seconds(act, observations, seconds),
                n,
            )
            for name, act, n in _players(folder, model, policy, teacher)
        ]


def table(rows: list[Speed]) -> str:
    """As text; the last column is how many times as fast as the first row one action is."""
    lines = [f"{'one thread, medians':28} {'us/action':>10} {'actions/s, batch ' + str(BATCH):>20} {'bytes':>10} {'ratio':>8}"]
    for row in rows:
        ratio = rows[0].microseconds / row.microseconds
        lines.append(f"{row.name:28} {row.microseconds:10.1f} {row.per_second:20,.0f} {row.nbytes:10} {ratio:7.1f}x")
    return "\n".join(lines)


def median_seconds(act: Callable[[np.ndarray], Any], observations: np.ndarray, seconds: float) -> float:
    """
    Median time of a call.

    :param act: what is measured
    :param observations: one batch
    :param seconds: how long to go on; a tenth of it warms up beforehand
    """
    times: list[int] = []
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 10:
        act(observations)
    while len(times) < MIN_CALLS or time.perf_counter() - start < 1.1 * seconds:
        before = time.perf_counter_ns()
        act(observations)
        times.append(time.perf_counter_ns() - before)
    return float(np.median(times)) / 1e9


@contextmanager
def one_torch_thread() -> Iterator[None]:
    n_threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)


def _players(
    folder: Path, model: IntegerModel, policy: QuantActorCriticPolicy | None, teacher: Teacher | None
) -> Iterator[tuple[str, Callable[[np.ndarray], Any], int]]:
    if teacher is not None:
        yield "teacher, SB3 predict", _predict(teacher), teacher.nbytes
    if policy is not None:
        yield "student, SB3 predict", _predict(policy), os.path.getsize(folder / "student.zip")
    yield "student, numpy", _predict(model), os.path.getsize(folder / "student.npz")
    if (path := folder / "student.onnx").is_file():
        from sb3_qpd.export.onnx import OnnxPolicy

        yield "student, ONNX Runtime", OnnxPolicy(path).run, os.path.getsize(path)
    if (path := folder / "student.tflite").is_file():
        from sb3_qpd.export.tflite import TflitePolicy

        yield "student, TFLite", TflitePolicy(path).run, os.path.getsize(path)
    if (c_policy := compile_c(folder)) is not None:
        yield "student, C", lambda batch: [c_policy.act(observation) for observation in batch], model.nbytes


def _predict(player: Player) -> Callable[[np.ndarray], Any]:
    return lambda observations: player.predict(observations, deterministic=True)
