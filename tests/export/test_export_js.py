"""The ES module is the integer model, in node and in a browser, and refuses what the integer model refuses."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import needs_chromium, running_browser
from c_policies import linear
from gymnasium import spaces
from students import BITS, BOX, DISCRETE, IMAGE, SPACES, VECTOR, assert_same_bits, make_student, some_observations

from sb3_qpd import IntegerModel, export_js, export_numpy
from sb3_qpd.cli import main
from sb3_qpd.evaluation.benchmark import benchmark, table
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.interpreters import Interpreter, NoInterpreter
from sb3_qpd.export.js.runtime import JsPolicy, start_node
from sb3_qpd.integer import IntegerLayer, ObservationPart

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node here: make emulators installs it (Debian)")


@pytest.fixture(scope="module")
def node() -> Interpreter:
    return start_node()


def wide_head(unit: float, n_actions: int = 5) -> IntegerModel:
    """Accumulators over all of int32, so that products leave 2^53."""
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.integers(-128, 128, (n_actions, 2)).astype(np.int8),
        rng.integers(-(2**31) + 2**17, 2**31 - 2**17, n_actions),
    )
    head = IntegerLayer(weight, bias.astype(np.int32), np.array([unit], np.float32), 8, 0)
    return IntegerModel([head], (2,), np.full(2, 10, np.float32), np.zeros(2, np.float32))


@needs_node
@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("kind", SPACES)
def test_every_bit_in_node(kind: str, requantization: str, node: Interpreter, tmp_path: Path) -> None:
    space, actions = SPACES[kind]
    model, observations = make_student(space, actions, BITS["W3A3"]).to_integer(), some_observations(space, 40)
    model.requantization = requantization
    policy = JsPolicy(export_js(model, tmp_path)[0], model, node)
    for got, expected in zip(policy.trace(observations).values(), model.trace(observations), strict=True):
        np.testing.assert_array_equal(got, expected)
    got, outputs = policy.run(observations)
    assert_same_bits(outputs, model.logits(observations))
    assert_same_bits(got, model.predict(observations, deterministic=True)[0])


@needs_node
@pytest.mark.parametrize("unit", [0.0, 1e-45, 1e-38, 2.0**-40, 1e-9, 1e-3, 2.0**-8, 1.0, 300.0, 2.0**20, 3e38])
def test_sampling_takes_differences_and_units_of_all_sizes(unit: float, node: Interpreter, tmp_path: Path) -> None:
    for i, model in enumerate((wide_head(unit), linear(300, unit), linear(2, unit))):
        observations = some_observations(VECTOR, 200)[:, :2]
        policy = JsPolicy(export_js(model, tmp_path / str(i))[0], model, node)
        bits = np.random.default_rng(1).integers(0, 2**32, len(observations), np.uint64)
        bits[:2] = 0, 2**32 - 1
        np.testing.assert_array_equal(policy.sample(observations, bits), model.sample(model.accumulators(observations), bits))


@needs_node
def test_fixed_point_multipliers_of_all_sizes(node: Interpreter, tmp_path: Path) -> None:
    """Accumulators of all of int32 times multipliers from the least to the largest."""
    multiplier = np.concatenate([[0, 1e-45, 3e38], 2.0 ** np.arange(-36, 34), 1.9999999 * 2.0 ** np.arange(-36, 34)])
    n = len(multiplier)
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 128, (n, 3)).astype(np.int8)
    biases = (0, 1, -1, 2**31 - 2**18, -(2**31) + 2**18, *rng.integers(-(2**30), 2**30, 5))
    for i, bias in enumerate(biases):
        hidden = IntegerLayer(weight, np.full(n, bias, np.int32), multiplier.astype(np.float32), 8, 8)
        head = IntegerLayer(np.eye(2, n, dtype=np.int8), np.zeros(2, np.int32), np.ones(1, np.float32), 8, 0)
        model = IntegerModel([hidden, head], (3,), np.ones(3, np.float32), np.zeros(3, np.float32))
        observations = rng.integers(-128, 128, (50, 3)).astype(np.float32)
        for mode in ("float32", "fixed"):
            model.requantization = mode
            policy = JsPolicy(export_js(model, tmp_path / f"{i}{mode}")[0], model, node)
            expected = list(model.trace(observations))[1]
            np.testing.assert_array_equal(policy.trace(observations)["layer0"], expected)


@needs_node
def test_channels_last(node: Interpreter, tmp_path: Path) -> None:
    model, observations = make_student(IMAGE, DISCRETE).to_integer(), some_observations(IMAGE, 8)
    (path,) = export_js(model, tmp_path, channels_last=True)
    assert_same_bits(JsPolicy(path, model, node).run(observations)[1], model.logits(observations))
    with pytest.raises(ValueError, match="channels_last is for images"):
        export_js(make_student().to_integer(), tmp_path, channels_last=True)


WRONG = {
    "act([1, 2, 3, 4])": "RangeError: the observation must have 5 numbers (shape [5]), got 4",
    "act([1, 2, 3, 4, NaN])": "RangeError: the observation holds NaN at 4: expected finite numbers of float32",
    "act([1, 2, 3e39, 4, 5])": "RangeError: the observation holds 3e+39 at 2: expected finite numbers of float32",
    "act([1, 2, '3', 4, 5])": "TypeError: the observation must hold numbers, got string at 2",
    "act()": "TypeError: the observation is missing",
    "act([1, 2, 3, 4, 5], [1, 1])": "RangeError: masks must have 6 values, got 2",
    "act([1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0])": "RangeError: masks allow no action at all",
    "sample([1, 2, 3, 4, 5], 0.5)": "RangeError: random numbers must be integers of 32 bits, got 0.5",
    "sample([1, 2, 3, 4, 5], [1, 2])": "RangeError: sample needs 1 random numbers, got 2",
}


@needs_node
def test_what_is_refused_when_it_runs(tmp_path: Path) -> None:
    (path,) = export_js(make_student().to_integer(), tmp_path)
    tries = [f"try {{ {call} }} catch (error) {{ found.push(`${{error}}`); }}" for call in WRONG]
    code = f"import {{ act, sample }} from {json.dumps(path.as_uri())}; const found = []; {' '.join(tries)}"
    code += " console.log(JSON.stringify(found));"
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(WRONG.values())


@needs_node
def test_parts_of_a_dict_are_refused_by_name(node: Interpreter, tmp_path: Path) -> None:
    parts = (ObservationPart("one_hot", (2,), (3, 2), "__proto__"), ObservationPart("image", (1, 2, 2), key="eye"))
    rng = np.random.default_rng(0)
    head = IntegerLayer(rng.integers(-9, 9, (2, 9)).astype(np.int8), np.zeros(2, np.int32), np.ones(1, np.float32), 8, 0)
    numbers = {"input_multiplier": np.full(5, 50, np.float32), "input_offset": np.zeros(5, np.float32)}
    model = IntegerModel([head], (), parts=parts, branches=(0, 0), **numbers)
    policy = JsPolicy(export_js(model, tmp_path)[0], model, node)
    given: dict[str, Any] = {"__proto__": np.array([[2, 1]]), "eye": np.full((1, 1, 2, 2), 7, np.uint8)}
    assert_same_bits(policy.run(given)[1], model.logits(given))
    for key, wrong, message in (
        ("__proto__", np.array([[3, 1]]), 'the observation of "__proto__" holds 3 at 0: expected an integer of 0 to 2'),
        ("__proto__", np.array([[1, 0.5]]), 'the observation of "__proto__" holds 0.5 at 1: expected an integer of 0 to 1'),
        ("eye", np.full((1, 1, 2, 2), 256), 'the observation of "eye" holds 256 at 0: expected integers of 0 to 255'),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            policy.run({**given, key: wrong})


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    """A page can hold the module: names of environments and keys end no script, comment or string."""
    model = make_student().to_integer()
    hostile = "</script><script>alert(1)</script>*/\"'`\n${1}"
    model.metadata |= {"env": {"env_id": hostile}, "teacher": "/home/me/teachers/ppo.zip"}
    text = export_js(model, tmp_path)[0].read_text()
    assert "</script>" not in text and "<script" not in text and "alert(1)\\u003c/script>*/" in text
    assert "/home" not in text and '"ppo.zip"' in text


@needs_chromium
@pytest.mark.slow
def test_every_bit_in_chromium(tmp_path: Path) -> None:
    """The module inside of a page, which is opened as a file."""
    model, observations = make_student(VECTOR, BOX, BITS["W4A4"]).to_integer(), some_observations(VECTOR, 100)
    with running_browser() as browser:
        for i, mode in enumerate(("float32", "fixed")):
            model.requantization = mode
            text = export_js(model, tmp_path / str(i))[0].read_text()
            page = tmp_path / f"{i}.html"
            page.write_text(f'<script type="module">{text}\nglobalThis.policy = {{ act, outputs }};</script>')
            browser.open(page)
            call = "[policy.act(x), policy.outputs(x)].map((y) => Array.from(new Uint32Array(y.buffer)))"
            found = browser.evaluate(f"{json.dumps(observations.tolist())}.map((x) => {call})")
            actions, outputs = np.moveaxis(np.array(found, np.uint32), 1, 0).view(np.float32)
            assert_same_bits(actions, model.predict(observations, deterministic=True)[0])
            assert_same_bits(outputs, model.logits(observations))
            assert not browser.complaints()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of CartPole, exported by the command."""
    out, space = tmp_path_factory.mktemp("cartpole"), spaces.Box(-1, 1, (4,))
    make_student(space, spaces.Discrete(2)).to_integer(env={"env_id": "CartPole-v1"}).save(out / "student.npz")
    assert main(["export", str(out / "student.npz"), "--target", "js", "--requantization", "fixed", "--out", str(out)]) == 0
    return out


@needs_node
def test_verify_and_benchmark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observations = some_observations(spaces.Box(-1, 1, (4,)), 50)
    result = verify(folder, observations)
    assert result.holds and {row.implementation for row in result.differences} == {"JavaScript, node"}
    assert [row.step for row in result.differences][-3:] == ["accumulators", "logits", "action"]
    rows = {row.name: row for row in benchmark(folder, "CartPole-v1", seconds=0.01)}
    row = rows["student, JavaScript in node"]
    assert row.nbytes == (folder / "policy.mjs").stat().st_size and row.microseconds > 0 and row.memory > 10e6
    assert "student, JavaScript in node" in table(list(rows.values()))


@needs_node
def test_a_module_from_elsewhere_runs_only_when_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "student")
    module, mark, observations = tmp_path / "student" / "policy.mjs", tmp_path / "mark", np.zeros((3, 4), np.float32)
    attack = f'import {{ writeFileSync }} from "node:fs"; writeFileSync({json.dumps(str(mark))}, "");\n'
    module.write_text(attack + module.read_text())
    assert verify(module.parent, observations).stale_files == ["policy.mjs"] and not mark.exists()
    assert verify(module.parent, observations, trust_code=True).holds and mark.exists()


def test_without_node_it_is_left_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / "student")
    export_numpy(IntegerModel.load(folder / "student.npz"), tmp_path / "student")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoInterpreter, match="No node found: install it, for example with `apt-get install nodejs`"):
        start_node()
    with pytest.raises(ValueError, match=r"holds nothing to compare with student.npz: policy.mjs: No node found"):
        verify(tmp_path / "student", np.zeros((3, 4), np.float32))
