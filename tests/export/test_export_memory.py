"""Exports of students with a memory: each form carries the same state, and gives the same bits across episodes."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory import SPACES, K, episodes, make_policy, observations_of

from sb3_qpd import export_numpy, export_onnx, export_tflite
from sb3_qpd.evaluation.verify import Verification, verify
from sb3_qpd.export.onnx.runtime import OnnxPolicy


@pytest.mark.parametrize("form", ["operators", "qdq"])
@pytest.mark.parametrize("optimize", [True, False])
def test_onnx_carries_the_state(form: str, optimize: bool, tmp_path: Path) -> None:
    if form == "qdq" and not optimize:
        pytest.skip("floats are exact only where the runtime fuses them")
    for kind, history in (("discrete", K), ("box", 2), ("bits", K)):
        model = make_policy(kind, history).to_integer()
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


def test_the_interpreter_alone_has_a_memory(tmp_path: Path) -> None:
    model = make_policy("box").to_integer()
    export_numpy(model, tmp_path)
    spec = importlib.util.spec_from_file_location("memory_policy", tmp_path / "policy.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["memory_policy"] = module
    spec.loader.exec_module(module)
    alone, state, mine = module.IntegerModel.load(tmp_path / "student.npz"), None, None
    for observations, starts in episodes("box", 15):
        actions, state = alone.predict(observations, state, starts, deterministic=True)
        expected, mine = model.predict(observations, mine, starts, deterministic=True)
        assert np.array_equal(actions, expected) and np.array_equal(state[0], mine[0])


def test_targets_without_a_memory_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tflite does not support a memory \(history=4\).* Take the target onnx"):
        export_tflite(make_policy("discrete").to_integer(), tmp_path)


@pytest.mark.parametrize("kind", SPACES)
def test_verify_compares_every_step_of_one_episode(kind: str, tmp_path: Path) -> None:
    policy = make_policy(kind)
    policy.to_integer().save(tmp_path / "student.npz")
    export_onnx(policy.to_integer(), tmp_path)
    result = verify(tmp_path, observations_of(kind, 60, seed=4), policy=policy)
    assert isinstance(result, Verification) and result.holds and result.n_observations == 60
    compared = {(row.implementation, row.step) for row in result.differences}
    for name in ("policy in eval mode", "ONNX Runtime"):
        assert {(name, step) for step in ("input_grid", "layer0", "accumulators", "action", "next_state")} <= compared
