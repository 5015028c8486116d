"""
The module for MicroPython is the integer model, with and without machine code, and refuses what the model refuses. Where
MicroPython is absent, Python runs the same files without machine code.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from c_policies import linear
from gymnasium import spaces
from students import BITS, SPACES, VECTOR, assert_same_bits, make_student, some_observations

from sb3_qpd import IntegerModel, export_micropython
from sb3_qpd.cli import main
from sb3_qpd.evaluation.benchmark import benchmark
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.interpreters import Interpreter
from sb3_qpd.export.micropython.runtime import MicroPythonPolicy, start_micropython
from sb3_qpd.integer import IntegerLayer

MICROPYTHON = shutil.which("micropython")
PROGRAM = MICROPYTHON or sys.executable
needs_micropython = pytest.mark.skipif(
    MICROPYTHON is None, reason="no micropython here: make emulators installs it (Debian 13)"
)


@pytest.fixture(scope="module")
def process() -> Interpreter:
    return start_micropython(PROGRAM)


@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("kind", SPACES)
def test_every_bit(kind: str, requantization: str, process: Interpreter, tmp_path: Path) -> None:
    space, actions = SPACES[kind]
    model, observations = make_student(space, actions, BITS["W3A3"]).to_integer(), some_observations(space, 40)
    observations = observations[: 6 if MICROPYTHON else 2] if model.is_image else observations
    model.requantization = requantization
    (path,) = export_micropython(model, tmp_path)
    text = path.read_text()
    for machine_code in (True, False) if MICROPYTHON else (False,):
        if not machine_code:  # a port that cannot write it
            text = text.replace('exec("import micropython', 'exec("raise SyntaxError')
            path.write_text(text)
        policy = MicroPythonPolicy(path, model, process)
        for got, expected in zip(policy.trace(observations).values(), model.trace(observations), strict=True):
            np.testing.assert_array_equal(got, expected)
        got, outputs = policy.run(observations)
        assert_same_bits(outputs, model.logits(observations))
        assert_same_bits(got, model.predict(observations, deterministic=True)[0])


def test_multipliers_of_all_sizes(process: Interpreter, tmp_path: Path) -> None:
    """Accumulators of all of int32 times multipliers from the least to the largest."""
    multiplier = np.concatenate([[0, 1e-45, 3e38], 2.0 ** np.arange(-36, 34), 1.9999999 * 2.0 ** np.arange(-36, 34)])
    n, rng = len(multiplier), np.random.default_rng(0)
    biases = np.resize([0, 1, -1, 2**31 - 2**18, -(2**31) + 2**18, *rng.integers(-(2**30), 2**30, 5)], n).astype(np.int32)
    weight = rng.integers(-128, 128, (n, 3)).astype(np.int8)
    hidden = IntegerLayer(weight, biases, multiplier.astype(np.float32), 8, 8)
    head = IntegerLayer(np.eye(2, n, dtype=np.int8), np.zeros(2, np.int32), np.ones(1, np.float32), 8, 0)
    model = IntegerModel([hidden, head], (3,), np.ones(3, np.float32), np.zeros(3, np.float32))
    observations = rng.integers(-128, 128, (100, 3)).astype(np.float32)
    for mode in ("float32", "fixed"):
        model.requantization = mode
        policy = MicroPythonPolicy(export_micropython(model, tmp_path / mode)[0], model, process)
        np.testing.assert_array_equal(policy.trace(observations)["layer0"], list(model.trace(observations))[1])


@pytest.mark.parametrize("unit", [0.0, 1e-45, 2.0**-40, 1e-3, 2.0**-8, 300.0, 3e38])
def test_sampling_takes_units_of_all_sizes(unit: float, process: Interpreter, tmp_path: Path) -> None:
    model, observations = linear(300, unit), some_observations(VECTOR, 100)[:, :2]
    policy = MicroPythonPolicy(export_micropython(model, tmp_path)[0], model, process)
    bits = np.random.default_rng(1).integers(0, 2**32, len(observations), np.uint64)
    bits[:2] = 0, 2**32 - 1
    np.testing.assert_array_equal(policy.sample(observations, bits), model.sample(model.accumulators(observations), bits))


WRONG = {
    "act([1, 2, 3, 4])": "the observation must have 5 numbers, got 4",
    "act([1, 2, 3, 4, float('nan')])": "the observation holds nan: expected finite numbers of float32",
    "act([1, 2, 3, 4, 3e39])": "the observation holds 3e+39: expected finite numbers of float32",
    "act([1, 2, 3, 4, 5], [1, 1])": "masks must have 6 values, got 2",
    "act([1, 2, 3, 4, 5], [0] * 6)": "masks allow no action at all",
}


@needs_micropython  # Python has another error for numbers beyond float32
def test_what_is_refused_when_it_runs(tmp_path: Path) -> None:
    export_micropython(make_student().to_integer(), tmp_path)
    tries = [f"try:\n    {call}\nexcept ValueError as error:\n    print(error)\n" for call in WRONG]
    code = "from policy_micropython import act\n" + "".join(tries)
    done = subprocess.run([PROGRAM, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(WRONG.values())


def test_names_from_files_stay_text(process: Interpreter, tmp_path: Path) -> None:
    model = make_student().to_integer()
    model.metadata |= {"env": {"env_id": '\'"""\n}\nraise SystemExit #\u2028'}, "teacher": "/home/me/ppo.zip"}
    (path,) = export_micropython(model, tmp_path)
    assert MicroPythonPolicy(path, model, process).run(some_observations(VECTOR, 4))[0].shape == (4,)
    assert "/home" not in path.read_text()


@needs_micropython
def test_verify_and_benchmark(tmp_path: Path) -> None:
    space = spaces.Box(-1, 1, (4,))
    make_student(space, spaces.Discrete(2)).to_integer(env={"env_id": "CartPole-v1"}).save(tmp_path / "student.npz")
    assert main(["export", str(tmp_path / "student.npz"), "--target", "micropython", "--out", str(tmp_path)]) == 0
    assert {row.implementation for row in verify(tmp_path, some_observations(space, 50)).differences} == {"MicroPython"}
    row = {row.name: row for row in benchmark(tmp_path, "CartPole-v1", seconds=0.01)}["student, MicroPython"]
    assert row.microseconds > 0 and 10_000 < row.memory < 500_000
    path = tmp_path / "policy_micropython.py"
    path.write_text(path.read_text() + "\n")
    assert verify(tmp_path, some_observations(space, 4)).stale_files == ["policy_micropython.py"]
    assert IntegerModel.load(tmp_path).n_parameters > 0
