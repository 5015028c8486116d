"""
One ONNX file of standard operators: a raw observation in, the action and the logits (or mean) out.

Right on every processor: all operands are unsigned (weights with zero point 2^(bits - 1), a vector's grid with 128), since
the usual kernels for unsigned times signed bytes saturate on x86 without VNNI. Requantization, by ``QLinearConv`` with steps
of 1, M and 1, or by ``Cast``, ``Mul`` and ``QuantizeLinear`` after ``MatMulInteger``, is the rule of
:class:`~sb3_qpd.integer.IntegerLayer`: ``clamp(round_half_even(float32(acc) M))``.
"""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd import __version__
from sb3_qpd.export import is_step, without_paths
from sb3_qpd.integer import IntegerLayer, IntegerModel, pack

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError("The target onnx needs the packages onnx and onnxruntime: pip install 'sb3_qpd[export]'") from error

FORMS = ("operators", "qdq")
INPUT = "observation"
PACKED = {8: TensorProto.UINT8, 4: TensorProto.UINT4, 2: TensorProto.UINT2}  # other widths are unpacked from a bit stream
OPSETS = {8: 13, 4: 21, 2: 25}  # the first that has what a width needs
STREAM_OPSET = 18


def export_onnx(model: IntegerModel, out_dir: Path, *, form: str = "operators", channels_last: bool = False) -> list[Path]:
    """
    Write the file.

    :param model: with float32 requantization
    :param out_dir: a folder that exists
    :param form: ``"operators"``: QLinearConv and MatMulInteger, exact in any runtime that rounds as the standard says.
        ``"qdq"``: float operators between QuantizeLinear and DequantizeLinear, for runtimes that want to fuse them; exact
        where all of them are fused
    :param channels_last: the graph takes images of shape (batch_size, height, width, channels)
    :return: the file
    """
    proto = make_onnx(model, form=form, channels_last=channels_last)
    path = Path(out_dir) / "student.onnx"
    path.write_bytes(proto.SerializeToString())
    return [path]


def make_onnx(model: IntegerModel, *, form: str = "operators", channels_last: bool = False) -> onnx.ModelProto:
    """
    The student as an ONNX model; for the parameters see :func:`export_onnx`.

    Tensors inside: ``input_grid`` (with zero point 128 for vectors), ``layer0``, ``layer1``, ..., ``accumulators``.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}, got {form!r}")
    if model.requantization != "float32":
        raise ValueError(
            f"ONNX requantizes in float32, this model has requantization={model.requantization!r}: "
            "set model.requantization = 'float32', or take the target c or numpy"
        )
    if channels_last and not model.is_image:
        raise ValueError(f"channels_last is for images, this student takes observations of shape {model.observation_shape}")
    graph = _Graph(form == "qdq")
    x = graph.input_grid(model, channels_last)
    for i, layer in enumerate(model.layers[:-1]):
        x = graph.layer(x, layer, i)
    graph.head(x, model)
    opset = max(OPSETS.get(layer.weight_bits, STREAM_OPSET) for layer in model.layers)
    imports = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes, "policy", [_input_info(model, channels_last)], _output_infos(model), graph.initializers
        ),
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="sb3_qpd",
        producer_version=__version__,
    )
    helper.set_model_props(proto, _properties(model, channels_last))
    onnx.checker.check_model(proto, full_check=True)
    return proto


class _Graph:
    """
    Nodes and initializers in the making.

    :param is_qdq: float operators between QuantizeLinear and DequantizeLinear
    """

    def __init__(self, is_qdq: bool) -> None:
        self.is_qdq = is_qdq
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.zero_point = 0  # of what flows at the moment
        self.is_flat = False

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """An initializer; one of the same name is the same."""
        if all(known.name != name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integer(self, value: int) -> str:
        """A scalar of the type that flows."""
        return self.constant(f"u{value}", np.uint8(value))

    @property
    def one(self) -> str:
        return self.constant("one", np.float32(1))

    # -- input --------------------------------------------------------------------------------------------------------

    def input_grid(self, model: IntegerModel, channels_last: bool) -> str:
        """Raw observations to the input grid, in uint8."""
        if model.is_image:
            return self.node("Transpose", [INPUT], "input_grid", perm=[0, 3, 1, 2]) if channels_last else INPUT
        x = self.node("Flatten", [INPUT], "flat")
        x = self.node("Mul", [x, self.constant("input_multiplier", model.input_multiplier)], "scaled")
        x = self.node("Add", [x, self.constant("input_offset", model.input_offset)], "shifted")
        nan = self.node("IsNaN", [x], "nan")  # kernels differ in what they make of it: it becomes the grid's zero
        x = self.node("Where", [nan, self.constant("zero", np.float32(0)), x], "finite")
        self.zero_point, self.is_flat = 128, True
        return self.node("QuantizeLinear", [x, self.one, self.integer(128)], "input_grid")

    # -- layers -------------------------------------------------------------------------------------------------------

    def layer(self, x: str, layer: IntegerLayer, i: int) -> str:
        """A convolution or fully connected layer with requantization, uint8 to uint8."""
        top = 2**layer.activation_bits - 1
        out = f"layer{i}" if top == 255 else f"unclipped{i}"
        if not layer.is_conv:
            x = self._flatten(x)
        write = self._qdq if self.is_qdq else self._conv if layer.is_conv else self._linear
        y = write(x, layer, i, out)
        self.zero_point = 0
        return y if top == 255 else self.node("Clip", [y, "", self.integer(top)], f"layer{i}")

    def _conv(self, x: str, layer: IntegerLayer, i: int, out: str) -> str:
        weight, zero_point = self._weight(layer.weight, layer.weight_bits, i)
        inputs = [x, self.one, self.integer(self.zero_point), weight, self._multiplier(layer, i), zero_point]
        inputs += [self.one, self.integer(0), self.constant(f"bias{i}", layer.bias)]
        return self.node("QLinearConv", inputs, out, strides=[layer.stride] * 2)

    def _linear(self, x: str, layer: IntegerLayer, i: int, out: str) -> str:
        acc = self.node("Cast", [self._accumulate(x, layer, i, f"acc{i}")], f"float{i}", to=TensorProto.FLOAT)
        acc = self.node("Mul", [acc, self._multiplier(layer, i)], f"scaled{i}")
        return self.node("QuantizeLinear", [acc, self.one, self.integer(0)], out)

    def _accumulate(self, x: str, layer: IntegerLayer, i: int, out: str) -> str:
        weight, zero_point = self._weight(layer.weight.T, layer.weight_bits, i)
        product = self.node("MatMulInteger", [x, weight, self.integer(self.zero_point), zero_point], f"product{i}")
        return self.node("Add", [product, self.constant(f"bias{i}", layer.bias)], out)

    def _qdq(self, x: str, layer: IntegerLayer, i: int, out: str) -> str:
        multiplier, zero = self._multiplier(layer, i), np.zeros(len(layer.bias), np.int32)
        x = self.node("DequantizeLinear", [x, self.one, self.integer(self.zero_point)], f"input{i}")
        weight, _ = self._weight(layer.weight, layer.weight_bits, i)
        zero_points = self.constant(f"zero_points{i}", np.full(len(layer.bias), 2 ** (layer.weight_bits - 1), np.uint8))
        weight = self.node("DequantizeLinear", [weight, multiplier, zero_points], f"real_weight{i}", axis=0)
        bias = [self.constant(f"bias{i}", layer.bias), multiplier, self.constant(f"bias_zero{i}", zero)]
        bias_name = self.node("DequantizeLinear", bias, f"real_bias{i}", axis=0)
        if layer.is_conv:
            y = self.node("Conv", [x, weight, bias_name], f"real{i}", strides=[layer.stride] * 2)
        else:
            y = self.node("Gemm", [x, weight, bias_name], f"real{i}", transB=1)
        return self.node("QuantizeLinear", [y, self.one, self.integer(0)], out)

    def _multiplier(self, layer: IntegerLayer, i: int) -> str:
        return self.constant(f"multiplier{i}", layer.multiplier)

    def _flatten(self, x: str) -> str:
        if self.is_flat:
            return x
        self.is_flat = True
        return self.node("Flatten", [x], "features")

    def _weight(self, weight: np.ndarray, bits: int, i: int) -> tuple[str, str]:
        """Packed weights, unpacked to uint8 by what a runtime folds when it loads the file; and their zero point."""
        name, zero_point = f"weight{i}", self.integer(2 ** (bits - 1))
        if bits not in PACKED:
            return self._bit_stream(weight, bits, name), zero_point
        self.initializers.append(helper.make_tensor(name, PACKED[bits], weight.shape, pack(weight, bits).tobytes(), raw=True))
        if bits == 8:
            return name, zero_point
        return self.node("Cast", [name], f"{name}_u8", to=TensorProto.UINT8), zero_point

    def _bit_stream(self, weight: np.ndarray, bits: int, name: str) -> str:
        """3, 5, 6 and 7 bits: every bit of the stream is brought out, and weighed by its power of two."""
        flat = np.zeros(8 * math.ceil(weight.size / 8), np.int8)  # whole bytes hold whole weights
        flat[: weight.size] = weight.reshape(-1)
        stream = self.constant(name, pack(flat, bits)[:, None])
        shifts = self.constant("shifts", np.arange(8, dtype=np.uint8))
        x = self.node("BitShift", [stream, shifts], f"{name}_shifted", direction="RIGHT")
        x = self.node("BitwiseAnd", [x, self.integer(1)], f"{name}_bits")
        x = self.node("Reshape", [x, self.constant(f"rows_of_{bits}", np.array([-1, bits]))], f"{name}_rows")
        powers = self.constant(f"powers_of_{bits}", 2 ** np.arange(bits, dtype=np.uint8)[:, None])
        x = self.node("Cast", [self.node("MatMulInteger", [x, powers], f"{name}_i32")], f"{name}_column", to=TensorProto.UINT8)
        if flat.size != weight.size:
            ends = [self.constant(f"{name}_start", np.array([0])), self.constant(f"{name}_size", np.array([weight.size]))]
            x = self.node("Slice", [x, *ends], f"{name}_cut")
        return self.node("Reshape", [x, self.constant(f"{name}_shape", np.array(weight.shape))], f"{name}_u8")

    # -- head ---------------------------------------------------------------------------------------------------------

    def head(self, x: str, model: IntegerModel) -> None:
        """Accumulators, then the logits and their argmax, or the mean and the clipped action."""
        layer, i = model.layers[-1], len(model.layers) - 1
        x = self._flatten(x)
        if self.is_qdq:
            real = acc = self._qdq_accumulate(x, layer, i)
        else:
            acc = self._accumulate(x, layer, i, "accumulators")
            real = self.node("Cast", [acc], f"float{i}", to=TensorProto.FLOAT)
        outputs = self.node("Mul", [real, self._multiplier(layer, i)], output_name(model))
        if not model.is_box:
            self.node("ArgMax", [acc], "action", axis=1, keepdims=0)
            return
        x = self.node("Max", [outputs, self.constant("action_low", model.action_low)], "above_low")
        x = self.node("Min", [x, self.constant("action_high", model.action_high)], "clipped")
        self.node("Reshape", [x, self.constant("action_shape", np.array([-1, *model.action_shape]))], "action")

    def _qdq_accumulate(self, x: str, layer: IntegerLayer, i: int) -> str:
        """With steps of 1: the accumulators themselves, exact in float32 up to 2^24."""
        x = self.node("DequantizeLinear", [x, self.one, self.integer(self.zero_point)], f"input{i}")
        weight, zero_point = self._weight(layer.weight, layer.weight_bits, i)
        weight = self.node("DequantizeLinear", [weight, self.one, zero_point], f"real_weight{i}")
        bias = [self.constant(f"bias{i}", layer.bias), self.one, self.constant("i0", np.int32(0))]
        bias_name = self.node("DequantizeLinear", bias, f"real_bias{i}")
        return self.node("Gemm", [x, weight, bias_name], "accumulators", transB=1)


# --- what the file says of itself ---
def output_name(model: IntegerModel) -> str:
    """The second output: a Box action's mean, or the logits."""
    return "mean" if model.is_box else "logits"


def _input_info(model: IntegerModel, channels_last: bool) -> onnx.ValueInfoProto:
    shape = model.observation_shape
    shape = (*shape[1:], shape[0]) if channels_last else shape
    return helper.make_tensor_value_info(INPUT, TensorProto.UINT8 if model.is_image else TensorProto.FLOAT, ["batch", *shape])


def _output_infos(model: IntegerModel) -> list[onnx.ValueInfoProto]:
    kind = TensorProto.FLOAT if model.is_box else TensorProto.INT64
    outputs = helper.make_tensor_value_info(output_name(model), TensorProto.FLOAT, ["batch", len(model.layers[-1].bias)])
    return [helper.make_tensor_value_info("action", kind, ["batch", *model.action_shape]), outputs]


def _properties(model: IntegerModel, channels_last: bool) -> dict[str, str]:
    """``metadata_props``: the model's own, spaces and versions."""
    info = _input_info(model, channels_last).type.tensor_type
    shape = [dim.dim_value for dim in info.shape.dim[1:]]
    action: dict[str, Any] = {"n": len(model.layers[-1].bias)}
    if model.is_box:
        bounds = {"low": model.action_low, "high": model.action_high, "std": model.action_std}
        action = {"shape": list(model.action_shape)}
        action |= {name: [str(x) for x in value] for name, value in bounds.items() if value is not None}
    properties = {
        **without_paths(model.metadata),
        "observation_space": {"shape": shape, "dtype": "uint8" if model.is_image else "float32"},
        "action_space": action,
        "versions": {"sb3_qpd": __version__, "onnx": onnx.__version__},
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in properties.items()}


# --- in ONNX Runtime ---
class OnnxPolicy:
    """
    An exported file in ONNX Runtime, on the CPU. Images are given channels first, whatever layout the file takes.

    :param path: what :func:`export_onnx` wrote
    :param optimize: let the runtime optimize the graph
    :param n_threads: for one operator
    """

    def __init__(self, path: str | os.PathLike[str], *, optimize: bool = True, n_threads: int = 1) -> None:
        self._optimize, self._n_threads = optimize, n_threads
        self._proto = onnx.load(os.fspath(path))
        self._session = self._open(self._proto)
        self._tracing: Any = None
        nodes = self._proto.graph.node
        self.form = "qdq" if any(node.op_type == "DequantizeLinear" for node in nodes) else "operators"
        self._is_image = self._proto.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
        self._channels_last = any(node.op_type == "Transpose" and "input_grid" in node.output for node in nodes)

    def run(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param observations: raw, shape (batch_size, *observation_shape)
        :return: actions, and logits or means
        """
        return tuple(self._session.run(None, {INPUT: self._prepare(observations)}))

    def trace(self, observations: np.ndarray) -> dict[str, np.ndarray]:
        """
        The integers inside, by name: ``input_grid``, ``layer0``, ``layer1``, ..., ``accumulators``.

        :param observations: raw, shape (batch_size, *observation_shape)
        """
        names = [name for node in self._proto.graph.node for name in node.output if is_step(name)]
        if self._tracing is None:
            proto = onnx.ModelProto()
            proto.CopyFrom(self._proto)
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            self._tracing = self._open(proto)
        values = dict(zip(names, self._tracing.run(names, {INPUT: self._prepare(observations)}), strict=True))
        if not self._is_image:
            values["input_grid"] = values["input_grid"].astype(np.int16) - 128
        return values

    def _open(self, proto: onnx.ModelProto) -> Any:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise ImportError("Running an ONNX file needs onnxruntime: pip install 'sb3_qpd[export]'") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._n_threads
        options.log_severity_level = 3
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self._optimize else level.ORT_DISABLE_ALL
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _prepare(self, observations: np.ndarray) -> np.ndarray:
        if not self._is_image:
            return observations.astype(np.float32)
        return np.ascontiguousarray(np.moveaxis(observations, 1, -1)) if self._channels_last else observations


def quantize_after_training(path: Path, out: Path, observations: np.ndarray) -> None:
    """
    ONNX Runtime's own static quantization of a float file to int8: what a student is measured against.

    :param path: of a float network whose input is called ``observation``
    :param out: where to
    :param observations: to calibrate the activations with
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{INPUT: observations}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    logging.disable(logging.WARNING)  # it recommends a pre-processing that changes nothing here
    try:
        quantization.quantize_static(path, out, Reader(), per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
