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
from memory import OTHERS, SPACES, VECTORS, K, episodes, make_policy, observations_of

from sb3_qpd import IntegerModel, export_c, export_numpy, export_onnx, export_tflite
from sb3_qpd.evaluation.verify import Verification, verify
from sb3_qpd.export.onnx.runtime import OnnxPolicy


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


def test_targets_without_a_memory_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tflite does not support a memory \(history=4\).* Take the target onnx"):
        export_tflite(make_policy("discrete").to_integer(), tmp_path)
    for kind in OTHERS:
        with pytest.raises(ValueError, match=r"c does not support a memory of indices or of several vectors.* js or micropython"):
            export_c(make_policy(kind).to_integer(), tmp_path)
    with pytest.raises(ValueError, match=r"c does not support a memory of actions \(history_actions\).* js or micropython"):
        export_c(make_policy("discrete", history_actions=True).to_integer(), tmp_path)


@pytest.mark.parametrize("kind", SPACES)
def test_verify_compares_every_step_of_one_episode(kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind)
    policy.to_integer().save(tmp_path / "student.npz")
    export_onnx(policy.to_integer(), tmp_path)
    if kind in VECTORS:
        export_c(policy.to_integer(), tmp_path)
    result = verify(tmp_path, observations_of(kind, 60, seed=4), policy=policy)
    with_actions = make_policy(kind, history_actions=True)
    other = tmp_path / "actions"
    other.mkdir()
    with_actions.to_integer().save(other / "student.npz")
    export_onnx(with_actions.to_integer(), other)
    assert verify(other, observations_of(kind, 60, seed=4), policy=with_actions).holds
    assert isinstance(result, Verification) and result.holds and result.n_observations == 60
    compared = {(row.implementation, row.step) for row in result.differences}
    for name in ("policy in eval mode", "ONNX Runtime"):
        assert {(name, step) for step in ("input_grid", "layer0", "accumulators", "action", "next_state")} <= compared
    if kind in VECTORS and shutil.which("cc"):
        assert ("C on this computer", "input_grid") in compared and ("C on this computer", "action") in compared


class CMemory:
    """``policy_memory.c`` with the policy, called as a device calls it: one environment, one observation after the other."""

    def __init__(self, folder: Path, name: str = "policy") -> None:
        from sb3_qpd.export.c.runtime import find_compiler, run_compiler

        library = folder / "memory.so"
        strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2", "-fPIC", "-shared"]
        run_compiler([*find_compiler(), *strict, folder / f"{name}.c", folder / f"{name}_memory.c", "-o", library])
        self.library, self.name = ctypes.CDLL(str(library)), name

    def call(self, function: str, *arguments: Any) -> int:
        return getattr(self.library, f"{self.name}_{function}")(*arguments)

    def window(self, dtype: Any, size: int) -> np.ndarray:
        kind = np.ctypeslib.as_ctypes_type(np.dtype(dtype)) * size
        return np.ctypeslib.as_array(kind.in_dll(self.library, f"{self.name}_window"))


def pointer(array: np.ndarray) -> Any:
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("kind", VECTORS)
def test_c_keeps_the_window(kind: str, requantization: str, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    if not any(shutil.which(compiler) for compiler in ("cc", "gcc", "clang")):
        pytest.skip("needs a C compiler")
    model = make_policy(kind).to_integer()
    model.requantization = requantization
    export_c(model, tmp_path, name="robot", observations=observations_of(kind, 9))
    c, n_out = CMemory(tmp_path, "robot"), len(model.layers[-1].bias)
    is_fixed = requantization == "fixed"
    state, outputs = None, np.zeros(n_out, np.int32)
    window = c.window(np.int8 if is_fixed else np.float32, K * model.parts[0].n_features)
    for observations, starts in episodes(kind, 40):
        one, start = observations[:1], starts[:1]
        before, after = model.remember(one, state, start)
        if start[0]:
            c.call("reset")
        grid = model.quantize_input(one)[0].astype(np.int8)
        pushed = grid if is_fixed else np.ascontiguousarray(one.reshape(-1), np.float32)
        assert c.call("push", pointer(pushed)) == 0
        if is_fixed:
            assert np.array_equal(window, [*before.reshape(-1), *grid])
        assert c.call("outputs", pointer(window), pointer(outputs)) == 0
        assert np.array_equal(outputs, model.accumulators(one, before)[0])
        state = (after,)
    assert c.call("push", None) == -1
    if not is_fixed:
        kept = window.copy()
        assert c.call("push", pointer(np.full(len(pushed), np.nan, np.float32))) == -2 and np.array_equal(window, kept)
    done = subprocess.run([*compiler_command(), "robot_main.c", "robot.c", "-o", "check"], cwd=tmp_path)
    assert done.returncode == 0 and b"0 of 9" in subprocess.check_output([tmp_path / "check"])


def compiler_command() -> list[str]:
    from sb3_qpd.export.c.runtime import find_compiler

    return find_compiler()


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
    CMemory(tmp_path)


def test_a_microcontroller_takes_windows(tmp_path: Path) -> None:
    from sb3_qpd.export.c.emulator import emulate, missing_tools

    if problem := missing_tools("cortex-m4f"):
        pytest.skip(problem)
    model, observations = make_policy("box").to_integer(), observations_of("box", 8)
    export_c(model, tmp_path)
    expected, state = [], None
    for row in range(8):
        one = observations[row : row + 1]
        expected.append(model.accumulators(one, model.remember(one, state)[0])[0])
        _, state = model.predict(one, state, deterministic=True)
    assert np.array_equal(emulate(tmp_path, model, observations).outputs, expected)
