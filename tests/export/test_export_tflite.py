"""A TFLite file under XNNPACK gives IntegerModel's bits, for weights of 8 and 4 bits."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from gymnasium import spaces
from students import (
    BOX,
    DISCRETE,
    IMAGE,
    SPACES,
    TREATMENTS,
    VECTOR,
    assert_same_bits,
    make_student,
    some_observations,
    treat,
)

from sb3_qpd import IntegerModel, export_tflite
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.tflite.runtime import TflitePolicy

BITS = {"W8A8": (8, 8), "W4A8": (4, 8)}
PONG = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def assert_same_policy(model: IntegerModel, path: Path, observations: np.ndarray) -> None:
    actions, outputs = TflitePolicy(path).run(observations)
    assert_same_bits(outputs, model.logits(observations))
    assert_same_bits(actions, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize("kind", SPACES)
def test_same_bits(kind: str, bits: tuple[int, int], tmp_path: Path) -> None:
    space, actions = SPACES[kind]
    model = make_student(space, actions, bits).to_integer()
    (path,) = export_tflite(model, tmp_path)
    assert_same_policy(model, path, some_observations(space, 1_000))


@pytest.mark.parametrize("n_in", [1, 5, 17, 33])
def test_4_bits_and_an_odd_number_of_inputs(n_in: int, tmp_path: Path) -> None:
    """XNNPACK leaves packed rows that end within a byte to TFLite's own kernels, which round twice."""
    space = spaces.Box(-np.inf, np.inf, (n_in,), np.float32)
    model = make_student(space, DISCRETE, ((4, 4, 4, 8), 8), arch={"hidden": (33, 7, 64)}).to_integer()
    assert_same_policy(model, export_tflite(model, tmp_path)[0], some_observations(space, 2_000))
    model.save(tmp_path / "student.npz")
    assert verify(tmp_path, some_observations(space, 500)).holds


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_same_bits_or_refused_whatever_training_did(treatment: str, tmp_path: Path) -> None:
    for space, actions in ((VECTOR, DISCRETE), (IMAGE, BOX)):
        policy = make_student(space, actions, (4, 8))
        treat(policy, treatment)
        model, observations = policy.to_integer(), some_observations(space, 200)
        if max(float(layer.multiplier.max()) for layer in model.layers[:-1]) >= 256:
            with pytest.raises(ValueError, match="XNNPACK takes multipliers from 2\\^-32 to below 256, layer . has"):
                export_tflite(model, tmp_path)
            continue
        (path,) = export_tflite(model, tmp_path)
        actions_of, outputs = TflitePolicy(path).run(observations)
        np.testing.assert_array_equal(outputs, model.logits(observations))
        np.testing.assert_array_equal(actions_of, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("kind", SPACES)
def test_every_layer(kind: str, tmp_path: Path) -> None:
    """The same int8 in every layer; TFLite's own kernels are shown too, without a promise."""
    space, actions = SPACES[kind]
    model = make_student(space, actions, (4, 8)).to_integer()
    model.save(tmp_path / "student.npz")
    export_tflite(model, tmp_path)
    result = verify(tmp_path, some_observations(space, 300))
    exact = [row for row in result.differences if row.implementation == "TFLite, XNNPACK"]
    steps = ["input_grid", *(f"layer{i}" for i in range(len(model.layers) - 1)), "accumulators"]
    assert [row.step for row in exact] == [*steps, "mean" if model.is_box else "logits", "action"]
    assert not any(row.n_differing for row in exact) and result.holds
    assert {row.implementation: row.is_exact for row in result.differences if row not in exact} == {
        "TFLite, own kernels": False
    }


@pytest.mark.parametrize(("bits", "most"), [(8, 5_500), (4, 7_800)])
def test_size(bits: int, most: int, tmp_path: Path) -> None:
    model = make_student(PONG, DISCRETE, (bits, 8), arch="tiny").to_integer()
    (path,) = export_tflite(model, tmp_path)
    overhead = path.stat().st_size - model.nbytes
    print(f"W{bits}: {path.stat().st_size} bytes, {overhead} more than the weights")
    assert overhead <= most


def test_images_with_channels_last(tmp_path: Path) -> None:
    model = make_student(IMAGE, DISCRETE, (8, 8)).to_integer()
    (path,) = export_tflite(model, tmp_path, channels_last=True)
    assert_same_policy(model, path, some_observations(IMAGE, 100))


def test_shapes_of_actions_and_a_free_batch(tmp_path: Path) -> None:
    for shape in ((2, 3), (1,), ()):
        model = make_student(VECTOR, spaces.Box(-1, 1, shape)).to_integer()
        policy = TflitePolicy(export_tflite(model, tmp_path)[0])
        for n in (1, 7, 2):
            assert policy.run(some_observations(VECTOR, 64)[:n])[0].shape == (n, *shape)


def test_stderr_has_no_notice_and_keeps_the_rest(tmp_path: Path) -> None:
    """The runtime tells once per process that it uses XNNPACK; a broken file is still told of."""
    (path,) = export_tflite(make_student().to_integer(), tmp_path)
    code = (
        "import sys; from sb3_qpd.export.tflite.runtime import TflitePolicy, without_notice\n"
        f"TflitePolicy({str(path)!r})\n"
        "with without_notice(): import os; os.write(2, b'kept\\n'); print('this too', file=sys.stderr, flush=True)\n"
        "print('and this', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.splitlines() == ["kept", "this too", "and this"]


def test_metadata(tmp_path: Path) -> None:
    model = make_student().to_integer(teacher="ppo/CartPole-v1", env={"env_kwargs": {"path": "/home/user/maze.txt"}})
    content = export_tflite(model, tmp_path)[0].read_bytes()
    proto = schema.ModelT.InitFromPackedBuf(content)
    (entry,) = proto.metadata
    metadata = json.loads(bytes(proto.buffers[entry.buffer].data))
    assert metadata["teacher"] == "ppo/CartPole-v1" and metadata["env"] == {"env_kwargs": {"path": "maze.txt"}}


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ((2, 8), r"weights of 2 bits in layer 1 \(compress with --weight-bits 4 or 8\). Take the target onnx, c"),
        ((8, 4), r"activations of 4 bits in layer 0 \(compress with --activation-bits 8\). Take the target onnx, c"),
    ],
)
def test_refused_by_name(bits: tuple[int, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_tflite(make_student(VECTOR, DISCRETE, bits).to_integer(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path: Path) -> None:
    model = make_student().to_integer()
    with pytest.raises(ValueError, match="channels_last is for images"):
        export_tflite(model, tmp_path, channels_last=True)
    model.layers[-1].bias = np.full_like(model.layers[-1].bias, 2**24)
    with pytest.raises(ValueError, match=r"The head's accumulators could reach 1\d+, which float32 does not hold exactly"):
        export_tflite(model, tmp_path)
    model.requantization = "fixed"
    with pytest.raises(ValueError, match="tflite does not support requantization='fixed' .*. Take the target c, numpy"):
        export_tflite(model, tmp_path)


def test_numbers_that_tflite_would_take_for_zero_are_refused(tmp_path: Path) -> None:
    box = make_student(VECTOR, BOX).to_integer()
    for name in ("input_multiplier", "action_high"):
        values = getattr(box, name).copy()
        values[-1] = 1e-40
        words = f"TFLite takes denormal numbers for zero, {name} holds 1e-40. Take the target onnx, c"
        with pytest.raises(ValueError, match=words):
            export_tflite(replace(box, **{name: values}), tmp_path)
    box.layers[-1].multiplier = np.full(3, 1e-40, np.float32)
    with pytest.raises(ValueError, match="the head's multiplier holds 1e-40"):
        export_tflite(box, tmp_path)
    model = make_student().to_integer()
    model.input_multiplier = np.full(5, 1e30, np.float32)
    with pytest.raises(ValueError, match="TFLite takes input multipliers up to 2\\^96, this model has 1e\\+30"):
        export_tflite(model, tmp_path)


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_products_below_int32_are_refused(space: spaces.Box, tmp_path: Path) -> None:
    """Below -2^31 XNNPACK's kernels for some processors give 255 where 0 is right."""
    model = make_student(space, DISCRETE).to_integer()
    layer, observations = model.layers[0], some_observations(space, 50)
    layer.multiplier, layer.bias = np.full_like(layer.multiplier, 100), np.full_like(layer.bias, -(2**20))
    (path,) = export_tflite(model, tmp_path)
    assert_same_policy(model, path, observations)
    layer.bias = np.full_like(layer.bias, -(2**26))
    with pytest.raises(ValueError, match="products of accumulator and multiplier below 2\\^31, layer 0 could reach 6.*e\\+09"):
        export_tflite(model, tmp_path)


def test_packed_weights_beside_large_biases(tmp_path: Path) -> None:
    """XNNPACK computes with 16 times the accumulators where weights are packed: these would leave int32."""
    model = make_student(VECTOR, DISCRETE, (4, 8)).to_integer()
    layer = model.layers[1]
    assert layer.weight_bits == 4 and layer.weight.shape[1] % 2 == 0
    for largest in (2**26, 2**29):
        layer.bias = np.linspace(-largest, largest, len(layer.bias)).astype(np.int32)
        layer.multiplier = np.full_like(layer.multiplier, 200 / largest)
        (path,) = export_tflite(model, tmp_path)
        assert_same_policy(model, path, some_observations(VECTOR, 200))
