"""Exports of students with a memory: each form carries the same state, and gives the same bits across episodes."""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_policies import needs_compiler
from memory import SPACES, K, episodes, make_policy, observations_of

from sb3_qpd import IntegerModel, export_c, export_numpy, export_onnx, export_tflite
from sb3_qpd.evaluation.verify import Verification, verify
from sb3_qpd.export.c.emulator import emulate, missing_tools
from sb3_qpd.export.c.memory import Memory
from sb3_qpd.export.c.runtime import CPolicy, find_compiler, run_compiler
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.export.tflite.runtime import TflitePolicy
from sb3_qpd.export.value_head import add_value_head, values_of
from sb3_qpd.observations import take_rows


@pytest.mark.parametrize("form", ["operators", "qdq"])
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("has_actions", [True, False])
def test_onnx_carries_the_state(form: str, optimize: bool, has_actions: bool, tmp_path: Path) -> None:
    if form == "qdq" and not optimize:
        pytest.skip("floats are exact only where the runtime fuses them")
    arch = {"history_actions": has_actions}
    for kind, history in (("discrete", K), ("box", 2), ("bits", K), ("index", 2), ("dict", K)):
        model = make_policy(kind, history, **arch).to_integer()
        export_onnx(model, tmp_path, form=form)
        policy, state, mine = OnnxPolicy(tmp_path / "student.onnx", optimize=optimize), None, None
        for observations, starts in episodes(kind, 25):
            before, _ = model.remember(observations, mine, starts)
            if state is not None:
                state = np.where(starts[:, None, None], np.int8(0), state)
            assert state is None or np.array_equal(state, before)
            trace = policy.trace(observations, state)
            for name, values in zip(model.step_names(), model.trace(observations, before), strict=True):
                assert np.array_equal(trace[name], values)
            actions, _, state = policy.run(observations, None, state)
            expected, mine = model.predict(observations, mine, starts, deterministic=True)
            assert np.array_equal(actions, expected) and state.dtype == np.int8 and np.array_equal(state, mine[0])


@pytest.mark.parametrize("kind", ["box", "dict"])
def test_the_interpreter_alone_has_a_memory(kind: str, tmp_path: Path) -> None:
    model = make_policy(kind).to_integer()
    export_numpy(model, tmp_path)
    spec = importlib.util.spec_from_file_location("memory_policy", tmp_path / "policy.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["memory_policy"] = module
    spec.loader.exec_module(module)
    alone, state, mine = module.IntegerModel.load(tmp_path / "student.npz"), None, None
    for observations, starts in episodes(kind, 15):
        actions, state = alone.predict(observations, state, starts, deterministic=True)
        expected, mine = model.predict(observations, mine, starts, deterministic=True)
        assert np.array_equal(actions, expected) and np.array_equal(state[0], mine[0])


@pytest.mark.parametrize("history", [2, K])
@pytest.mark.parametrize("has_actions", [False, True])
@pytest.mark.parametrize("kind", SPACES)
def test_tflite_carries_the_state(kind: str, has_actions: bool, history: int, tmp_path: Path) -> None:
    model = make_policy(kind, history, history_actions=has_actions).to_integer()
    policy, state, mine = TflitePolicy(export_tflite(model, tmp_path)[0]), None, None
    for observations, starts in episodes(kind, 20):
        before, _ = model.remember(observations, mine, starts)
        state = None if state is None else np.where(starts[:, None, None], np.int8(0), state)
        trace = policy.trace(observations, state)
        for name, values in zip(model.step_names(), model.trace(observations, before), strict=True):
            np.testing.assert_array_equal(trace[name], values)
        actions, _, state = policy.run(observations, None, state)
        expected, mine = model.predict(observations, mine, starts, deterministic=True)
        assert np.array_equal(actions, expected) and state.dtype == np.int8 and np.array_equal(state, mine[0])


@pytest.mark.parametrize("kind", SPACES)
def test_verify_compares_every_step_of_one_episode(kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind)
    policy.to_integer().save(tmp_path / "student.npz")
    export_onnx(policy.to_integer(), tmp_path)
    export_c(policy.to_integer(), tmp_path)
    export_tflite(policy.to_integer(), tmp_path)
    result = verify(tmp_path, observations_of(kind, 60, seed=4), policy=policy)
    with_actions = make_policy(kind, history_actions=True)
    other = tmp_path / "actions"
    other.mkdir()
    with_actions.to_integer().save(other / "student.npz")
    export_onnx(with_actions.to_integer(), other)
    export_c(with_actions.to_integer(), other, reentrant=True)
    assert verify(other, observations_of(kind, 60, seed=4), policy=with_actions).holds
    assert isinstance(result, Verification) and result.holds and result.n_observations == 60
    compared = {(row.implementation, row.step) for row in result.differences}
    for name in ("policy in eval mode", "ONNX Runtime", "TFLite, XNNPACK"):
        assert {(name, step) for step in ("input_grid", "layer0", "accumulators", "action", "next_state")} <= compared
    if shutil.which("cc"):
        assert {("C on this computer", step) for step in ("input_grid", "action", "next_state")} <= compared


STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
SANITIZED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# a kind, whether it sees actions, how C rescales, its flags, and whether the memory is the caller's
IN_C = [
    ("discrete", False, "float32", "-O3", False),
    ("discrete", True, "fixed", "-O0", True),
    ("box", True, "float32", "-O0", False),
    ("box", True, "fixed", "-O3", True),
    ("bits", True, "float32", "-O3", True),
    ("bits", False, "fixed", "-O0", False),
    ("bytes", True, "fixed", "-O3", False),
    ("switches", True, "float32", "-O3", False),
    ("switches", True, "fixed", "-O0", True),
    ("index", True, "float32", "-O0", False),
    ("indices", False, "fixed", "-O3", True),
    ("dict", True, "fixed", "-O0", False),
    ("dict", False, "float32", "-O3", True),
]


@needs_compiler
@pytest.mark.parametrize("kind, has_actions, requantization, flag, reentrant", IN_C)
def test_c_keeps_the_window(
    kind: str, has_actions: bool, requantization: str, flag: str, reentrant: bool, tmp_path: Path
) -> None:
    """Whole episodes, drawn actions, probabilities and value; the example checks an episode of its own under sanitizers."""
    policy = make_policy(kind, history_actions=has_actions)
    model = policy.to_integer()
    model.requantization = requantization
    add_value_head(model, policy)
    options = {"reentrant": reentrant, "probabilities": not model.is_box, "with_value": True}
    export_c(model, tmp_path, name="robot", observations=observations_of(kind, 9), **options)
    c = CPolicy(tmp_path, (flag,), "robot", model=model)
    state = mine = drawn = my_drawn = None
    for observations, starts in episodes(kind, 15):
        before, _ = model.remember(observations, mine, starts)
        for ours, theirs in zip(c.trace(observations, model, before)[0], model.trace(observations, before), strict=False):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(c.values(observations, before), values_of(model, observations, before))
        actions, state = c.predict(observations, state, starts, deterministic=True)
        expected, mine = model.predict(observations, mine, starts, deterministic=True)
        np.testing.assert_array_equal(actions, expected)
        np.testing.assert_array_equal(state[0], mine[0])
        np.testing.assert_array_equal(c.trace(observations, model, before)[0][-1], mine[0])
        if not model.is_box:
            acc = model.accumulators(observations, before)
            np.testing.assert_array_equal(c.weights(observations, None, before), model.weights(acc))
        for deterministic in (True, False):
            one = take_rows(observations, 0)
            model.set_random_seed(1)
            expected, my_drawn_next = model.predict(one, my_drawn, starts[:1], deterministic)
            model.set_random_seed(1)
            actions, drawn_next = c.predict(one, drawn, starts[:1], deterministic)
            np.testing.assert_array_equal(actions, expected)
            np.testing.assert_array_equal(drawn_next[0], my_drawn_next[0])
        drawn, my_drawn = drawn_next, my_drawn_next
    sources = [tmp_path / "robot_main.c", tmp_path / "robot.c", "-o", tmp_path / "check"]
    run_compiler([*find_compiler(), *STRICT, *(SANITIZED if flag == "-O0" else [flag]), *sources])
    assert b"0 of 9" in subprocess.check_output([tmp_path / "check"])


@needs_compiler
def test_a_program_in_c_plays_episodes(tmp_path: Path) -> None:
    """The functions as a device calls them: only they change the memory, and ``policy_outputs`` leaves it as it is."""
    model = make_policy("box", history_actions=True).to_integer()
    export_c(model, tmp_path, reentrant=True)
    robot = CPolicy(tmp_path, ("-O1",), model=model).library
    outputs, action, state = np.zeros(len(model.layers[-1].bias), np.int32), np.zeros(model.action_shape, np.float32), None
    for step, (observations, starts) in enumerate(episodes("box", 40)):
        one = np.ascontiguousarray(observations[:1])
        before, _ = model.remember(one, state, starts[:1])
        if starts[0] and step:  # the first episode needs no reset
            robot.policy_reset()
        for _ in range(2):
            assert robot.policy_outputs(pointer(one), pointer(outputs)) == 0
            np.testing.assert_array_equal(outputs, model.accumulators(one, before)[0])
        if step % 3:
            assert robot.policy_act(pointer(one), pointer(action)) == 0
            np.testing.assert_array_equal(action, model.predict(one, (before,), deterministic=True)[0][0])
        else:  # a program that explores
            action = np.random.default_rng(step).uniform(-2, 2, model.action_shape).astype(np.float32)
            assert robot.policy_remember(pointer(one), pointer(action)) == 0
        state = (model.remember(one, (before,), actions=action[None])[1],)
    wrong = np.full(model.observation_shape, np.nan, np.float32)
    assert robot.policy_act(pointer(wrong), pointer(action)) == robot.policy_remember(pointer(wrong), pointer(action)) == -2
    assert robot.policy_remember(pointer(one), pointer(np.full(model.action_shape, np.inf, np.float32))) == -2
    assert robot.policy_remember(pointer(one), None) == robot.policy_act(None, pointer(action)) == -1
    assert robot.policy_outputs(pointer(one), pointer(outputs)) == 0
    np.testing.assert_array_equal(outputs, model.accumulators(one, state[0])[0])


def pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


def test_actions_of_fixed_mode_come_to_the_grid_without_floats() -> None:
    """A table of steps gives the byte that the integer model rounds to: at each step, beside it, and at the ends of int32."""
    model = make_policy("box", history_actions=True).to_integer()
    model.requantization = "fixed"
    for multiplier in (1.0, -3.0, 1e-3, 1e30, 0.0):  # an action that fills the grid, a falling one, few steps, one step, none
        model.input_multiplier[-1] = model.input_multiplier[-2] * multiplier
        memory, rng = Memory(model), np.random.default_rng(0)
        steps = np.split(memory.steps, memory.ends[:-1])
        for number in range(2):
            units = np.concatenate([rng.integers(-(2**31), 2**31, 500), [-(2**31), 2**31 - 1]])
            units = np.concatenate([steps[number], steps[number] - 1, units])
            acc = np.zeros((len(units), 2), np.int64)
            acc[:, number] = units
            observations = np.zeros((len(units), *model.observation_shape), np.float32)
            expected = model.remember(observations, actions=model.actions(acc))[1][:, -1, -2 + number]
            n = np.searchsorted(steps[number], units, side="right")
            byte = memory.first[number] - n if memory.falls[number] else memory.first[number] + n
            np.testing.assert_array_equal(byte - 128, expected)


def test_an_origin_is_taken_off_in_every_form(tmp_path: Path) -> None:
    policy = make_policy("discrete")
    policy.features_extractor.trunks[0].set_origin(np.array([5_400_000.25, 0.0, 0.0]))
    model = policy.to_integer()
    observations = observations_of("discrete", 50) + np.array([5_400_000.25, 0, 0])
    model.save(tmp_path / "student.npz")
    assert IntegerModel.load(tmp_path / "student.npz").input_origin is not None
    export_onnx(model, tmp_path)
    export_c(model, tmp_path)
    result = verify(tmp_path, observations, policy=policy)
    assert result.holds and len({row.implementation for row in result.differences}) == 4, result.table()


@pytest.mark.parametrize("chip", ["cortex-m4f", "atmega328p"])
@pytest.mark.parametrize("requantization", ["float32", "fixed"])
def test_a_microcontroller_has_a_memory(chip: str, requantization: str, tmp_path: Path) -> None:
    if problem := missing_tools(chip):
        pytest.skip(problem)
    model, observations = make_policy("box", history_actions=True).to_integer(), observations_of("box", 8)
    model.requantization = requantization
    export_c(model, tmp_path)
    expected, state = [], None
    for row in range(8):
        one = observations[row : row + 1]
        expected.append(model.accumulators(one, model.remember(one, state)[0])[0])
        _, state = model.predict(one, state, deterministic=True)
    assert np.array_equal(emulate(tmp_path, model, observations, chip).outputs, expected)
