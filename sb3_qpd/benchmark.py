"""How fast each form of a student is, beside its teacher: one thread, medians."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_qpd.envs import EnvRecipe
from sb3_qpd.evaluation import VALIDATION_SEED, Player
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


# name, what acts, bytes
Contestant = tuple[str, Callable[[np.ndarray], Any], int]


def benchmark(folder: Path, recipe: EnvRecipe, given: Networks, seconds: float = 1.0) -> list[Speed]:
    """
    Measure everything in a folder on observations of the student's own episodes.

    :param folder: with ``student.npz`` and what was exported from it
    :param recipe: where the student plays
    :param given: policies that take part as well
    :param seconds: spent on each row and batch size
    """
    model = load_model(folder)
    if model.is_dict:
        raise ValueError(
            "The benchmark takes vectors, images and indices; this student has Dict observations. verify takes them"
        )
    observations = np.concatenate(list(replay(model, recipe, BATCH, VALIDATION_SEED, Jitter())))
    rows = []
    with one_torch_thread(), tempfile.TemporaryDirectory() as scratch:
        for name, act, nbytes in _contestants(folder, given, observations, Path(scratch)):
            one, batch = (median_seconds(act, some, seconds) for some in (observations[:1], observations))
            rows.append(Speed(name, 1e6 * one, BATCH / batch, nbytes))
    return rows


def table(rows: list[Speed]) -> str:
    """As text; the last column is how many times as fast as the first row one action is."""
    per_second = f"actions/s, batch {BATCH}"
    lines = [f"{'one thread, medians':36} {'us/action':>10} {per_second:>20} {'bytes':>10} {'ratio':>8}"]
    for row in rows:
        ratio = rows[0].microseconds / row.microseconds
        lines.append(f"{row.name:36} {row.microseconds:10.1f} {row.per_second:20,.0f} {row.nbytes:10} {ratio:7.1f}x")
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


def _contestants(folder: Path, given: Networks, observations: np.ndarray, scratch: Path) -> Iterator[Contestant]:
    model, policy, teacher = load_model(folder), given.policy, given.teacher
    takes_indices = model.parts[0].kind == "one_hot"  # which a float file in ONNX Runtime does not
    if teacher is not None:
        yield "teacher, SB3 predict", _predict(teacher), teacher.nbytes
    if teacher is not None and not takes_indices:
        yield from _in_onnx_runtime("teacher", teacher.policy, teacher.normalize(observations), scratch)
    if given.float_policy is not None and not takes_indices:
        yield from _in_onnx_runtime("float student", given.float_policy, observations, scratch)
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


def _in_onnx_runtime(name: str, policy: BasePolicy, observations: np.ndarray, scratch: Path) -> Iterator[Contestant]:
    """A float policy in ONNX Runtime, in float32 and quantized after training; it is given what its network takes."""
    from sb3_qpd.export.onnx import OnnxPolicy, quantize_after_training

    if observations.dtype != np.uint8:
        observations = observations.astype(np.float32)
    path, quantized = scratch / "float32.onnx", scratch / "int8.onnx"
    write_float_onnx(policy, observations[:1], path)
    quantize_after_training(path, quantized, observations)
    for kind, file in (("float32", path), ("int8", quantized)):
        yield f"{name}, ONNX Runtime {kind}", OnnxPolicy(file).run, os.path.getsize(file)


class Actor(th.nn.Module):
    """
    The network that acts, without the value's.

    :param policy: SB3's
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy: Any = policy

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: as SB3 hands them to its policies
        :return: logits or mean action; of a policy without those, the action
        """
        if not hasattr(self.policy, "mlp_extractor"):
            return self.policy._predict(observations, deterministic=True)
        features: Any = self.policy.extract_features(observations)
        pi_features = features[0] if isinstance(features, tuple) else features
        return self.policy.action_net(self.policy.mlp_extractor.forward_actor(pi_features))


def write_float_onnx(policy: BasePolicy, observation: np.ndarray, path: Path) -> None:
    """
    A float policy as an ONNX file, by torch's own exporter.

    :param policy: SB3's
    :param observation: a batch of one
    :param path: where to
    """
    policy.set_training_mode(False)
    names: dict[str, Any] = {"input_names": ["observation"], "output_names": ["actor"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, to its users
        axes = {"observation": {0: "batch"}, "actor": {0: "batch"}}
        th.onnx.export(Actor(policy), (th.as_tensor(observation),), str(path), dynamo=False, dynamic_axes=axes, **names)


def _predict(player: Player) -> Callable[[np.ndarray], Any]:
    return lambda observations: player.predict(observations, deterministic=True)
