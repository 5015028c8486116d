"""Students with a memory in JavaScript and MicroPython: they keep the window, and give the same bits across episodes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import SPACES, K, assert_same_step, episodes, make_policy, observations_of
from test_export_js import needs_node
from test_export_micropython import PROGRAM

from sb3_qpd import IntegerModel, export_js, export_micropython
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.interpreters import InterpretedPolicy, Interpreter
from sb3_qpd.export.js.runtime import JsPolicy, start_node
from sb3_qpd.export.micropython.runtime import MicroPythonPolicy, start_micropython
from sb3_qpd.observations import batch_size


@pytest.fixture(scope="module")
def node() -> Interpreter:
    return start_node()


@pytest.fixture(scope="module")
def micropython() -> Interpreter:
    return start_micropython(PROGRAM)


def policies_of(model: IntegerModel, folder: Path, request: pytest.FixtureRequest) -> list[InterpretedPolicy]:
    """The student in each program that can be run here."""
    (path,) = export_micropython(model, folder)
    found: list[InterpretedPolicy] = [MicroPythonPolicy(path, model, request.getfixturevalue("micropython"))]
    if shutil.which("node"):
        found.append(JsPolicy(export_js(model, folder)[0], model, request.getfixturevalue("node")))
    return found


def numbers_for(model: IntegerModel, n: int, rng: np.random.Generator) -> np.ndarray:
    """Random numbers that actions are drawn with."""
    if model.is_box:
        return rng.standard_normal((n, model.layers[-1].bias.size))
    return rng.integers(0, 2**32, (n, len(model.action_nvec)), np.uint64)


@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("has_actions", [True, False])
@pytest.mark.parametrize("kind", SPACES)
def test_programs_carry_the_state(
    kind: str, has_actions: bool, requantization: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every step, action, output and state; both of the most probable and of drawn actions, which the next steps see."""
    history, rng = 2 if kind == "bytes" else K, np.random.default_rng(0)
    model = make_policy(kind, history, history_actions=has_actions).to_integer()
    model.requantization = requantization
    policies, mine = policies_of(model, tmp_path, request), None
    for observations, starts in episodes(kind, 12):
        before, _ = model.remember(observations, mine, starts)
        acc, random = model.accumulators(observations, before), numbers_for(model, batch_size(observations), rng)
        if not model.is_box:
            drawn = model.sample(acc, random)
            expected_state = model.remember(observations, (before,), actions=drawn)[1]
        expected, mine = model.predict(observations, mine, starts, deterministic=True)
        for policy in policies:
            assert_same_step(policy, model, observations, before, expected, mine[0])
            if not model.is_box:
                actions, _, after = policy.run(observations, None, before, random)
                np.testing.assert_array_equal(actions, drawn)
                np.testing.assert_array_equal(after, expected_state)


def one_environment(kind: str, has_actions: bool) -> tuple[IntegerModel, list[Any], list[bool], list[Any]]:
    """A student, and observations, starts and actions of one environment."""
    model, mine = make_policy(kind, history_actions=has_actions).to_integer(), None
    steps, starts, actions = [], [], []
    for observations, is_start in episodes(kind, 30):
        action, mine = model.predict(observations[:1], mine, is_start[:1], deterministic=True)
        steps.append(observations[0].tolist())
        starts.append(bool(is_start[0]))
        actions.append(action[0].tolist())
    assert sum(starts) > 3
    return model, steps, starts, actions


@needs_node
@pytest.mark.parametrize(("kind", "has_actions"), [("discrete", True), ("box", True), ("bits", False)])
def test_a_page_calls_reset_at_the_start_of_an_episode(kind: str, has_actions: bool, tmp_path: Path) -> None:
    model, steps, starts, actions = one_environment(kind, has_actions)
    (path,) = export_js(model, tmp_path)
    code = f"""
    import {{ act, Policy }} from {json.dumps(path.as_uri())};
    const [policy, other] = [new Policy(), new Policy()];
    const found = {json.dumps(list(zip(steps, starts, strict=True)))}.map(([observation, isStart], i) => {{
      if (isStart) policy.reset();
      if (i % 3) other.act(observation); // another environment
      policy.outputs(observation); // the memory stays as it is
      return policy.act(observation);
    }});
    let message = "";
    try {{ act([0]); }} catch (error) {{ message = `${{error}}`; }}
    console.log(JSON.stringify([found.map((x) => (typeof x === "number" ? x : Array.from(x))), message]));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", code], capture_output=True, text=True, check=True)
    found, message = json.loads(done.stdout)
    np.testing.assert_array_equal(np.reshape(found, (30, -1)), np.reshape(actions, (30, -1)))
    assert message == (
        "TypeError: this student has a memory: make a `new Policy()`, and call its reset() when an episode begins"
    )


@pytest.mark.parametrize(("kind", "has_actions"), [("discrete", True), ("box", True), ("bits", False)])
def test_a_board_calls_reset_at_the_start_of_an_episode(kind: str, has_actions: bool, tmp_path: Path) -> None:
    model, steps, starts, actions = one_environment(kind, has_actions)
    export_micropython(model, tmp_path)
    code = f"""
import json
from policy_micropython import act, Policy
policy, other, found = Policy(), Policy(), []
for i, (observation, is_start) in enumerate(json.loads({json.dumps(json.dumps(list(zip(steps, starts, strict=True))))})):
    if is_start:
        policy.reset()
    if i % 3:
        other.act(observation)
    policy.outputs(observation)
    found.append(policy.act(observation))
try:
    act([0])
except TypeError as error:
    print(json.dumps([found, str(error)]))
"""
    (tmp_path / "board.py").write_text(code)
    done = subprocess.run([PROGRAM, "board.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    found, message = json.loads(done.stdout)
    np.testing.assert_array_equal(np.reshape(found, (30, -1)), np.reshape(actions, (30, -1)))
    assert message == "this student has a memory: make a Policy(), and call its reset() when an episode begins"


@needs_node
def test_verify_compares_the_state(tmp_path: Path) -> None:
    model = make_policy("box", history_actions=True).to_integer()
    model.save(tmp_path / "student.npz")
    export_js(model, tmp_path)
    result = verify(tmp_path, observations_of("box", 60, seed=4))
    steps = {row.step for row in result.differences if row.implementation == "JavaScript, node"}
    assert result.holds and {"input_grid", "layer0", "accumulators", "mean", "action", "next_state"} <= steps
