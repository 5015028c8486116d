"""Exports of students with indices, Dict observations, images of floats, several actions at once, and masks."""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from space_students import ACTIONS, OBSERVATIONS, make_student
from students import assert_same_bits
from toys import sample

from sb3_qpd import IntegerModel, QuantActorCriticPolicy, export_c, export_numpy, export_onnx, export_tflite
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export import EXPORTERS, check_target
from sb3_qpd.export.c.runtime import CPolicy, find_compiler, run_compiler
from sb3_qpd.export.c.vectors import some_masks
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.export.tflite.runtime import TflitePolicy
from sb3_qpd.observations import take_rows

CASES = [*((name, "Discrete") for name in OBSERVATIONS), *(("vector", name) for name in ACTIONS), ("Dict", "MultiBinary")]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("observation, action", CASES)
def test_onnx_and_numpy(observation: str, action: str, bits: int, tmp_path: Path) -> None:
    policy = make_student(observation, action, bits)
    model, observations = policy.to_integer(), sample(OBSERVATIONS[observation], 300, seed=1)
    (path,) = export_onnx(model, tmp_path)
    for optimize in (True, False):
        actions, outputs = OnnxPolicy(path, optimize=optimize).run(observations)
        assert_same_bits(outputs, model.logits(observations))
        assert_same_bits(actions, model.predict(observations, deterministic=True)[0])
    traced = OnnxPolicy(path).trace(observations)
    expected = dict(zip(model.step_names(), model.trace(observations), strict=True))
    assert set(traced) >= {name for name in expected if name.startswith(("layer", "acc"))}
    for name, value in traced.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    export_numpy(model, tmp_path)
    assert_same_bits(IntegerModel.load(tmp_path / "student.npz").logits(observations), outputs)
    (path,) = export_onnx(model, tmp_path, form="qdq")
    assert_same_bits(OnnxPolicy(path).run(observations)[0], actions)


@pytest.mark.parametrize("action", ["Discrete", "MultiDiscrete", "MultiBinary"])
def test_masks_in_onnx(action: str, tmp_path: Path) -> None:
    model = make_student("vector", action, 8, uses_masks=True).to_integer()
    observations, rng = sample(OBSERVATIONS["vector"], 300), np.random.default_rng(0)
    masks = rng.random((300, sum(model.action_nvec))) < 0.6
    masks[:, np.cumsum(model.action_nvec) - 1] = True  # something is allowed in each dimension
    for form in ("operators", "qdq"):
        (path,) = export_onnx(model, tmp_path, form=form)
        for given in (None, masks):
            expected = model.predict(observations, deterministic=True, action_masks=given)[0]
            assert_same_bits(OnnxPolicy(path).run(observations, given)[0], expected)


def test_channels_last(tmp_path: Path) -> None:
    model, observations = make_student("Dict", "Discrete", 8).to_integer(), sample(OBSERVATIONS["Dict"], 50)
    (path,) = export_onnx(model, tmp_path, channels_last=True)
    (camera,) = (value for value in onnx.load(path).graph.input if value.name == "observation/camera")
    assert [dim.dim_value for dim in camera.type.tensor_type.shape.dim[1:]] == [36, 36, 4]
    assert_same_bits(OnnxPolicy(path).run(observations)[1], model.logits(observations))


def test_verify(tmp_path: Path) -> None:
    policy = make_student("MultiDiscrete", "MultiBinary", 4)
    model = policy.to_integer()
    model.save(tmp_path / "student.npz")
    export_onnx(model, tmp_path)
    result = verify(tmp_path, sample(OBSERVATIONS["MultiDiscrete"], 300), 300, policy=policy)
    assert result.holds and {row.step for row in result.differences} >= {"input_grid", "layer0", "accumulators", "action"}


@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize(
    "observation, action, bits",
    [
        ("Discrete", "Discrete", 8),
        ("MultiDiscrete", "MultiDiscrete", 4),
        ("MultiDiscrete", "Box", 8),
        ("MultiBinary", "MultiBinary", 4),
        ("vector", "MultiDiscrete", 8),
        ("vector", "MultiBinary", 8),
        ("float image", "Discrete", 4),
        ("Dict", "MultiDiscrete", 8),
        ("Dict", "Box", 4),
        ("Dict of vectors", "Discrete", 8),
    ],
)
def test_c(observation: str, action: str, bits: int, requantization: str, tmp_path: Path) -> None:
    model = make_student(observation, action, bits).to_integer()
    model.requantization = requantization
    observations = sample(OBSERVATIONS[observation], 200, seed=1)
    export_c(model, tmp_path)
    warnings = ["-O2", "-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wpedantic", "-Werror"]
    policy = CPolicy(tmp_path, cflags=warnings[:2], model=model)
    assert_same_bits(policy.outputs(observations).astype(np.int64), model.accumulators(observations))
    for ours, theirs in zip(model.trace(observations), policy.trace(observations, model)[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    acc = model.accumulators(observations)
    if not model.is_box:
        bits_drawn = np.random.default_rng(0).integers(0, 2**32, (len(acc), len(model.action_nvec)), np.uint64)
        drawn = [policy.act(take_rows(observations, i), bits) for i, bits in enumerate(bits_drawn)]
        np.testing.assert_array_equal(np.stack(drawn), model.sample(acc, bits_drawn))
    np.testing.assert_array_equal([policy.act(take_rows(observations, i)) for i in range(len(acc))], model.actions(acc))
    run_compiler([*find_compiler(), *warnings, tmp_path / "main.c", tmp_path / "policy.c", "-o", tmp_path / "main"])
    assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.startswith("0 of ")


def test_c_refuses_an_index_that_is_none() -> None:
    model = make_student("MultiDiscrete", "Discrete", 8).to_integer()
    with TemporaryDirectory() as folder:
        export_c(model, folder)
        policy = CPolicy(folder)
        for wrong in ([3, 0, 0], [0, -1, 0], [0, 0, 4]):
            with pytest.raises(ValueError, match="returned -4: the observation holds a number that is none of its categories"):
                policy.act(np.array(wrong))


@pytest.mark.parametrize("uses_masks", [False, True])
@pytest.mark.parametrize("observation, action", [*CASES, ("Dict of vectors", "Box"), ("MultiDiscrete", "MultiBinary")])
def test_tflite(observation: str, action: str, uses_masks: bool, tmp_path: Path) -> None:
    if uses_masks and action == "Box":
        pytest.skip("masks are for discrete actions")
    model = make_student(observation, action, 8, uses_masks=uses_masks).to_integer()
    observations, masks = sample(OBSERVATIONS[observation], 200, seed=1), some_masks(model, 200) if uses_masks else None
    policy = TflitePolicy(export_tflite(model, tmp_path)[0])
    steps = dict(zip(model.step_names(), model.trace(observations), strict=True))
    traced = policy.trace(observations)
    assert list(traced) == list(steps)
    for name, values in traced.items():
        np.testing.assert_array_equal(values, steps[name], err_msg=name)
    for given in (None, masks) if uses_masks else (None,):
        actions, outputs = policy.run(observations, given)
        assert_same_bits(outputs, model.logits(observations))
        assert_same_bits(actions, model.predict(observations, deterministic=True, action_masks=given)[0])
    one = take_rows(observations, slice(3, 4))
    assert_same_bits(policy.run(one)[0], model.predict(one, deterministic=True)[0])


def test_images_of_tflite_with_channels_last(tmp_path: Path) -> None:
    """Images of bytes alone: those of floats have their channels first."""
    model, observations = make_student("Dict", "Discrete", 8).to_integer(), sample(OBSERVATIONS["Dict"], 50)
    policy = TflitePolicy(export_tflite(model, tmp_path, channels_last=True)[0])
    assert_same_bits(policy.run(observations)[1], model.logits(observations))


@pytest.mark.parametrize("target", EXPORTERS)
@pytest.mark.parametrize("observation, action", CASES)
def test_a_target_is_refused_before_training_by_the_same_words(
    observation: str, action: str, target: str, tmp_path: Path
) -> None:
    """A student that has learned nothing is refused like the trained one."""
    model = make_student(observation, action, 4).to_integer()
    options = {"weight_bits": 4, "activation_bits": 4, "normalized_image": True}
    new = QuantActorCriticPolicy(OBSERVATIONS[observation], ACTIONS[action], lambda _: 0.0, "nano", **options)
    try:
        check_target(target, new.to_integer())
    except ValueError as error:
        with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
            EXPORTERS[target](model, tmp_path)
    else:
        assert EXPORTERS[target](model, tmp_path)


def test_targets_are_checked_without_heavy_packages() -> None:
    code = "import sys; import sb3_qpd.export.requirements; "
    code += "assert not {'torch', 'gymnasium', 'onnx', 'ai_edge_litert', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="Unknown target 'onxx'. Known: onnx, c, tflite, numpy.* Did you mean 'onnx'"):
        check_target("onxx", make_student("vector", "Box", 8).to_integer())
