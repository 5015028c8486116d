"""An ONNX file in ONNX Runtime gives IntegerModel's bits, with graph optimizations on and off, by integer kernels."""

import ctypes
import functools
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from gymnasium import spaces
from jinja2 import FileSystemBytecodeCache
from students import (
    BOX,
    DISCRETE,
    IMAGE,
    SPACES,
    TREATMENTS,
    VECTOR,
    actor_output,
    assert_same_bits,
    make_student,
    some_observations,
    treat,
)

from sb3_qpd import IntegerModel, export_onnx
from sb3_qpd.export.onnx.runtime import OnnxPolicy

BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W2A8": (2, 8), "W3A8": (3, 8)}
PONG = spaces.Box(0, 255, (4, 84, 84), np.uint8)
FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "DequantizeLinear"}


def nasty_observations(space: spaces.Box, n: int) -> np.ndarray:
    """The observations of the other tests, with the extremes of float32 in every feature."""
    observations = some_observations(space, n)
    if space.dtype == np.float32:
        largest = np.finfo(np.float32).max
        observations[4], observations[5] = largest, -largest
        observations[6:8] = np.tile([largest, -largest], space.shape[0])[: space.shape[0]]
    return observations


def integer_model(space: spaces.Box, actions: spaces.Space, bits: tuple[int, int], **kwargs: Any) -> IntegerModel:
    return make_student(space, actions, bits, **kwargs).to_integer()


def assert_same_policy(model: IntegerModel, path: Path, observations: np.ndarray, optimize: bool = True) -> None:
    actions, outputs = OnnxPolicy(path, optimize=optimize).run(observations)
    assert_same_bits(outputs, model.logits(observations))
    assert_same_bits(actions, model.predict(observations, deterministic=True)[0])


def optimized_graph(path: Path, folder: Path) -> onnx.GraphProto:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx").graph


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as written"])
@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize("kind", SPACES)
def test_same_bits(kind: str, bits: tuple[int, int], optimize: bool, tmp_path: Path) -> None:
    space, actions = SPACES[kind]
    policy = make_student(space, actions, bits)
    observations = nasty_observations(space, 1_000 if space is IMAGE else 5_000)
    model = policy.to_integer()
    (path,) = export_onnx(model, tmp_path)
    assert_same_policy(model, path, observations, optimize)
    assert_same_bits(OnnxPolicy(path).run(observations)[1], actor_output(policy, observations))


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_other_widths(bits: int, tmp_path: Path) -> None:
    for space in (VECTOR, IMAGE):
        model = integer_model(space, DISCRETE, (bits, bits))
        (path,) = export_onnx(model, tmp_path)
        for optimize in (True, False):
            assert_same_policy(model, path, nasty_observations(space, 200), optimize)


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_same_bits_whatever_training_did(treatment: str, tmp_path: Path) -> None:
    for kind, (space, actions) in SPACES.items():
        policy = make_student(space, actions, (4, 8))
        treat(policy, treatment)
        model = policy.to_integer()
        (path,) = export_onnx(model, tmp_path)
        for optimize in (True, False):
            actions_of, outputs = OnnxPolicy(path, optimize=optimize).run(nasty_observations(space, 200))
            np.testing.assert_array_equal(outputs, model.logits(nasty_observations(space, 200)), err_msg=kind)
            expected = model.predict(nasty_observations(space, 200), deterministic=True)[0]
            np.testing.assert_array_equal(actions_of, expected, err_msg=kind)


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_qdq_form_is_the_same_where_the_runtime_fuses_it(bits: tuple[int, int], tmp_path: Path) -> None:
    for space, actions in SPACES.values():
        model = integer_model(space, actions, bits)
        (path,) = export_onnx(model, tmp_path, form="qdq")
        assert_same_policy(model, path, nasty_observations(space, 500))
        kernels = {node.op_type for node in optimized_graph(path, tmp_path).node}
        assert not kernels & FLOAT_KERNELS, kernels


@pytest.mark.parametrize("bits", [*BITS.values(), (7, 7)], ids=[*BITS, "W7A7"])
def test_the_runtime_computes_with_integer_kernels(bits: tuple[int, int], tmp_path: Path) -> None:
    for space, n_conv in ((PONG, 3), (VECTOR, 0)):
        model = integer_model(space, DISCRETE, bits, arch="tiny")
        (path,) = export_onnx(model, tmp_path)
        graph = optimized_graph(path, tmp_path)
        kernels = [node.op_type for node in graph.node]
        assert kernels.count("QLinearConv") == n_conv
        assert sum(kernel.startswith("MatMulInteger") for kernel in kernels) == len(model.layers) - n_conv
        assert not set(kernels) & FLOAT_KERNELS, kernels
        # packed weights were unpacked when the file was loaded, once
        assert not set(kernels) & {"BitShift", "BitwiseAnd", "Slice"}
        assert kernels.count("Cast") == len(model.layers) - n_conv  # accumulators, before their multiplier
        sizes = [
            onnx.numpy_helper.to_array(value).size for value in graph.initializer if value.data_type == onnx.TensorProto.UINT8
        ]
        assert sorted(sizes, reverse=True)[: len(model.layers)] == sorted((w.weight.size for w in model.layers), reverse=True)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> FileSystemBytecodeCache:
    """The 169 templates of emx-onnx-cgen, compiled once: it would compile them anew for each file, a second each time."""
    return FileSystemBytecodeCache(str(tmp_path_factory.mktemp("templates")))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_an_independent_compiler_reads_the_same(
    bits: tuple[int, int], templates: FileSystemBytecodeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """emx-onnx-cgen knows ONNX's standard operators, and nothing of ONNX Runtime."""
    emitter = pytest.importorskip("emx_onnx_cgen.codegen.c_emitter")
    monkeypatch.setattr(emitter, "Environment", functools.partial(emitter.Environment, bytecode_cache=templates))
    for space, actions in ((VECTOR, BOX), (IMAGE, DISCRETE)):
        model, observations = integer_model(space, actions, bits), nasty_observations(space, 50)
        (path,) = export_onnx(model, tmp_path)
        outputs, acted = run_as_c(path, observations, model)
        np.testing.assert_array_equal(outputs, model.logits(observations))
        np.testing.assert_array_equal(acted, model.predict(observations, deterministic=True)[0])


def run_as_c(path: Path, observations: np.ndarray, model: IntegerModel) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and actions of the file, compiled to C and then to a library for this computer."""
    source, library = path.with_suffix(".c"), path.with_name(f"{len(list(path.parent.iterdir()))}.so")
    from emx_onnx_cgen.cli import main as emx_onnx_cgen

    assert emx_onnx_cgen(["compile", str(path), str(source), "--input-dim", "batch=1"]) == 0
    # it writes C23's _BitInt for packed weights, which not every compiler has: bytes hold them too
    flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC", "-D_BitInt(n)=char"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(library), "-lm"], check=True, capture_output=True)
    run = ctypes.CDLL(str(library)).model
    action = np.zeros(model.action_shape or 1, np.float32 if model.is_box else np.int64)
    out, outputs, actions = np.zeros(len(model.layers[-1].bias), np.float32), [], []
    for observation in np.ascontiguousarray(observations):
        run(*(array.ctypes.data_as(ctypes.c_void_p) for array in (observation, action, out)))
        outputs.append(out.copy())
        actions.append(action.copy() if model.is_box else action[0])
    return np.array(outputs), np.array(actions)


def test_weights_are_unsigned(tmp_path: Path) -> None:
    """Unsigned times signed saturates on x86 without VNNI."""
    for space in (VECTOR, IMAGE):
        for form in ("operators", "qdq"):
            (path,) = export_onnx(integer_model(space, DISCRETE, (8, 8)), tmp_path, form=form)
            signed = {onnx.TensorProto.INT8, onnx.TensorProto.INT4}
            assert not signed & {value.data_type for value in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(("bits", "opset"), [(8, 13), (4, 21), (2, 25), (3, 18)])
def test_size_and_opset(bits: int, opset: int, tmp_path: Path) -> None:
    model = integer_model(PONG, DISCRETE, (bits, 8), arch="tiny")
    env = {"env_id": "PongNoFrameskip-v4", "env_kwargs": {}, "env_wrappers": [], "frame_stack": 4}
    model.metadata |= {"env": env, "teacher": "ppo/PongNoFrameskip-v4", "teacher_checksum": "0" * 64}
    (path,) = export_onnx(model, tmp_path)
    overhead = path.stat().st_size - model.nbytes
    print(f"W{bits}: {path.stat().st_size} bytes, {overhead} more than the weights")
    assert overhead <= (3_100 if bits == 3 else 2_000)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", opset)]


def test_not_a_number_and_infinity(tmp_path: Path) -> None:
    """As documented: NaN is the grid's zero, an infinity the end of the grid."""
    (path,) = export_onnx(integer_model(VECTOR, DISCRETE, (8, 8)), tmp_path)
    for optimize in (True, False):
        policy = OnnxPolicy(path, optimize=optimize)
        values = np.array([np.nan, np.inf, -np.inf], np.float32)
        grid = policy.trace(np.repeat(values[:, None], 5, axis=1))["input_grid"]
        np.testing.assert_array_equal(grid, np.repeat([[0], [127], [-128]], 5, axis=1))


@pytest.mark.parametrize("kind", SPACES)
def test_every_layer(kind: str, tmp_path: Path) -> None:
    space, actions = SPACES[kind]
    model, observations = integer_model(space, actions, (4, 4)), nasty_observations(space, 100)
    (path,) = export_onnx(model, tmp_path)
    steps = list(model.trace(observations))
    trace = OnnxPolicy(path).trace(observations)
    for i, expected in enumerate(steps[1:-1]):
        np.testing.assert_array_equal(trace[f"layer{i}"], expected)
    np.testing.assert_array_equal(trace["accumulators"], steps[-1])
    if not model.is_image:
        np.testing.assert_array_equal(trace["input_grid"], steps[0])


def test_images_with_channels_last(tmp_path: Path) -> None:
    model, observations = integer_model(IMAGE, DISCRETE, (4, 8)), some_observations(IMAGE, 100)
    (path,) = export_onnx(model, tmp_path, channels_last=True)
    assert_same_policy(model, path, observations)
    (dims,) = (value.type.tensor_type.shape.dim for value in onnx.load(path).graph.input)
    assert [dim.dim_value or dim.dim_param for dim in dims] == ["batch", 36, 36, 4]


def test_shapes_of_actions_and_a_free_batch(tmp_path: Path) -> None:
    for shape in ((2, 3), (1,), ()):
        model = integer_model(VECTOR, spaces.Box(-1, 1, shape), (8, 8))
        (path,) = export_onnx(model, tmp_path)
        for n in (1, 7):
            assert OnnxPolicy(path).run(some_observations(VECTOR, 64)[:n])[0].shape == (n, *shape)


def test_a_box_as_wide_as_float32(tmp_path: Path) -> None:
    unbounded = np.full(2, np.finfo(np.float32).max, np.float32)
    model = replace(integer_model(VECTOR, spaces.Box(-1, 1, (2,)), (8, 8)), action_low=-unbounded, action_high=unbounded)
    (path,) = export_onnx(model, tmp_path)
    assert_same_policy(model, path, some_observations(VECTOR, 100))


def test_observations_of_several_axes(tmp_path: Path) -> None:
    model = replace(integer_model(VECTOR, BOX, (8, 8)), observation_shape=(5, 1), parts=())
    (path,) = export_onnx(model, tmp_path)
    assert_same_policy(model, path, some_observations(VECTOR, 100)[..., None])


def test_metadata(tmp_path: Path) -> None:
    model = integer_model(VECTOR, BOX, (8, 8))
    env = {"env_id": "HalfCheetah-v4", "env_kwargs": {"xml_file": "/home/user/cheetah.xml"}, "frame_stack": 1}
    model.metadata |= {"env": env, "teacher": "ppo/HalfCheetah-v3", "teacher_checksum": "ab" * 32}
    (path,) = export_onnx(model, tmp_path)
    proto = onnx.load(path)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    assert properties["teacher"] == "ppo/HalfCheetah-v3" and properties["teacher_checksum"] == "ab" * 32
    assert json.loads(properties["env"])["env_id"] == "HalfCheetah-v4"
    assert json.loads(properties["env"])["env_kwargs"] == {"xml_file": "cheetah.xml"}
    assert json.loads(properties["observation_space"]) == {"shape": [5], "dtype": "float32"}
    action = json.loads(properties["action_space"])
    assert action["shape"] == [3] and [float(x) for x in action["high"]] == [1, 0.5, 10] and len(action["std"]) == 3
    assert set(json.loads(properties["versions"])) == {"sb3_qpd", "onnx"}
    assert proto.producer_name == "sb3_qpd" and b"/home" not in path.read_bytes()


def test_bad_options(tmp_path: Path) -> None:
    model = integer_model(VECTOR, DISCRETE, (8, 8))
    with pytest.raises(ValueError, match=r"form must be one of .'operators', 'qdq', 'float'., got 'int'"):
        export_onnx(model, tmp_path, form="int")
    with pytest.raises(ValueError, match="channels_last is for images"):
        export_onnx(model, tmp_path, channels_last=True)
    model.requantization = "fixed"
    with pytest.raises(ValueError, match="onnx does not support requantization='fixed' .take model.requantization='float32'"):
        export_onnx(model, tmp_path)
    assert not list(tmp_path.iterdir())
