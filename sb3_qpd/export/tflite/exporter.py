"""
The target ``tflite``: one file that maps raw observations to actions and logits (or means).

Hidden layers are int8 with scales of 1, M and 1. For these XNNPACK, the interpreter's default on a CPU, requantizes by the
rule of :class:`~sb3_qpd.integer.IntegerLayer`. TFLite's own kernels round twice. The head has a few hundred weights, and is
computed in float32 on integers, so that its accumulators are exact too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.files import without_paths, write_files
from sb3_qpd.export.requirements import StudentFacts, accumulator_bound, accumulator_bounds, check_target
from sb3_qpd.integer import IntegerLayer, IntegerModel, pack
from sb3_qpd.version import __version__

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
except ImportError as error:
    raise ImportError("The target tflite needs the package ai-edge-litert: pip install 'sb3_qpd[litert]'") from error

SCHEMA_VERSION = 3
ZERO_POINT = -128  # of activations: the grid of 0 to 255 in int8
FLOAT32_EXACT = 2**24  # float32 holds all integers up to here
MULTIPLIERS = 2.0**-32, 256.0  # XNNPACK takes them from the first to below the second
LARGEST_PRODUCT = 2.0**31  # of accumulator and multiplier: below -2^31, some kernels give 255 instead of 0
# TFLite takes denormal numbers for zero; with a larger input multiplier, a denormal observation would matter
SMALLEST_NUMBER, LARGEST_INPUT_MULTIPLIER = 2.0**-126, 2.0**96
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
}
# versions of operators with the types used here; others have version 1
VERSIONS = {"CONV_2D": 3, "FULLY_CONNECTED": 5, "QUANTIZE": 2, "DEQUANTIZE": 2, "ARG_MAX": 2}
INT4_VERSION = 10  # of FULLY_CONNECTED with packed weights


def export_tflite(model: IntegerModel, out_dir: Path, *, channels_last: bool = False) -> list[Path]:
    """
    Write ``student.tflite``.

    :param model: a student with activations of 8 bits, weights of 8 or 4 bits, and float32 requantization
    :param out_dir: a folder that exists
    :param channels_last: the graph takes images of shape (batch_size, height, width, channels), the layout of TFLite's own
        convolutions
    :return: the file
    :raises ValueError: if TFLite cannot take the student, or an option does not fit it
    """
    return write_files(out_dir, {"student.tflite": make_tflite(model, channels_last=channels_last)})


def make_tflite(model: IntegerModel, *, channels_last: bool = False) -> bytes:
    """
    The student as the content of a TFLite file.

    :param model: see :func:`export_tflite`
    :param channels_last: see :func:`export_tflite`
    """
    check_target("tflite", StudentFacts.of_model(model))
    _check_weights(model)
    if channels_last and not model.is_image:
        raise ValueError(f"channels_last is for images, this student takes observations of shape {model.observation_shape}")
    graph = _Graph()
    x = graph.input_grid(model, channels_last)
    for i, layer in enumerate(model.layers[:-1]):
        x = graph.layer(x, layer, i)
    outputs = graph.head(x, model)
    return graph.serialize(outputs, {"sb3_qpd": __version__, **without_paths(model.metadata)})


def _check_weights(model: IntegerModel) -> None:
    """Refuse multipliers and accumulators that TFLite cannot take; they are known after training only."""
    instead = "Take the target onnx, c or numpy"
    for i, layer in enumerate(model.layers[:-1]):
        if layer.multiplier.min() < MULTIPLIERS[0] or layer.multiplier.max() >= MULTIPLIERS[1]:
            least, most = layer.multiplier.min(), layer.multiplier.max()
            raise ValueError(
                f"XNNPACK takes multipliers from 2^-32 to below 256, layer {i} has {least:.3g} to {most:.3g}. {instead}"
            )
        if (product := (accumulator_bounds(layer) * layer.multiplier.astype(np.float64)).max()) >= LARGEST_PRODUCT:
            raise ValueError(
                "XNNPACK takes products of accumulator and multiplier below 2^31, "
                f"layer {i} could reach {product:.3g}. {instead}"
            )
    if (bound := accumulator_bound(model.layers[-1])) > FLOAT32_EXACT:
        raise ValueError(f"The head's accumulators could reach {bound}, which float32 does not hold exactly. {instead}")
    _refuse_denormals(model, instead)


def _refuse_denormals(model: IntegerModel, instead: str) -> None:
    numbers = {name: getattr(model, name) for name in ("input_multiplier", "action_low", "action_high")}
    for name, values in {**numbers, "the head's multiplier": model.layers[-1].multiplier}.items():
        sizes = np.abs(np.zeros(1) if values is None else values)
        if ((sizes > 0) & (sizes < SMALLEST_NUMBER)).any():
            raise ValueError(f"TFLite takes denormal numbers for zero, {name} holds {sizes[sizes > 0].min():.3g}. {instead}")
    if model.input_multiplier is not None and (most := np.abs(model.input_multiplier).max()) > LARGEST_INPUT_MULTIPLIER:
        raise ValueError(f"TFLite takes input multipliers up to 2^96, this model has {most:.3g}. {instead}")


class _Graph:
    """Tensors, buffers and operators of the graph that is being built."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]  # the first one is empty by convention
        self.operators: list[Any] = []
        self.codes: dict[tuple[str, int], int] = {}
        self.shape: tuple[int, ...] = ()  # of the latest output, without the batch; images channels last

    def tensor(self, name: str, dtype: Any, shape: tuple[int, ...], scale: Any = None, zero_point: int = 0) -> int:
        """
        Add a tensor that the graph computes. Its first axis is the batch, of any size.

        :param name: its name
        :param dtype: its numpy dtype
        :param shape: its shape without the batch
        :param scale: scale of a quantized tensor
        :param zero_point: zero point of a quantized tensor
        :return: its index
        """
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.buffer = name, TYPES[np.dtype(dtype)], 0
        tensor.shape, tensor.shapeSignature = [1, *shape], [-1, *shape]
        return self._append(tensor, scale, zero_point)

    def constant(self, name: str, values: np.ndarray, scale: Any = None, bits: int = 8) -> int:
        """
        Add a tensor with fixed values.

        :param name: its name
        :param values: its values in the dtype that is stored; weights of 4 bits as int8
        :param scale: scale of a quantized tensor, or one scale for each entry of the first axis
        :param bits: 4 packs two weights into a byte
        :return: its index
        """
        tensor, buffer = schema.TensorT(), schema.BufferT()
        tensor.name, tensor.shape, tensor.buffer = name, list(values.shape), len(self.buffers)
        tensor.type = TYPES[values.dtype] if bits == 8 else schema.TensorType.INT4
        # TFLite's int4 is two's complement, pack() is offset by 8: the sign bit is the difference
        content = values.tobytes() if bits == 8 else (pack(values, 4) ^ 0x88).tobytes()
        buffer.data = np.frombuffer(content, np.uint8)
        self.buffers.append(buffer)
        return self._append(tensor, scale, 0)

    def _append(self, tensor: Any, scale: Any, zero_point: int) -> int:
        tensor.hasRank = True
        if scale is not None:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.asarray(scale, np.float32))
            tensor.quantization.zeroPoint = np.full(tensor.quantization.scale.shape, zero_point, np.int64)
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, name: str, inputs: list[int], output: int, options: Any = None, version: int | None = None) -> int:
        """
        Add a builtin operator.

        :param name: its name in ``BuiltinOperator``
        :param inputs: indices of tensors
        :param output: index of a tensor
        :param options: its options, an object of the type ``<Name>OptionsT``
        :param version: its version, by default the one in ``VERSIONS``
        :return: ``output``
        """
        key = name, version or VERSIONS.get(name, 1)
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault(key, len(self.codes))
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        self.operators.append(operator)
        return output

    def input_grid(self, model: IntegerModel, channels_last: bool) -> int:
        """Raw observations to the input grid, in int8."""
        if not model.is_image:
            return self._vector_grid(model)
        channels, height, width = model.observation_shape
        self.shape = (height, width, channels)
        x = self.tensor("observation", np.uint8, self.shape if channels_last else model.observation_shape, scale=1)
        if not channels_last:
            order = self.constant("channels_last", np.array([0, 2, 3, 1], np.int32))
            out = self.tensor("transposed", np.uint8, self.shape, scale=1)
            x = self.operator("TRANSPOSE", [x, order], out, schema.TransposeOptionsT())
        out = self.tensor("input_grid", np.int8, self.shape, 1, ZERO_POINT)
        return self.operator("QUANTIZE", [x], out, schema.QuantizeOptionsT())

    def _vector_grid(self, model: IntegerModel) -> int:
        shape = model.observation_shape
        x = self._flatten(self.tensor("observation", np.float32, shape), shape, np.float32)
        multiplier, offset = (
            self.constant(name, np.asarray(getattr(model, name))) for name in ("input_multiplier", "input_offset")
        )
        x = self.operator("MUL", [x, multiplier], self.tensor("scaled", np.float32, self.shape), schema.MulOptionsT())
        x = self.operator("ADD", [x, offset], self.tensor("shifted", np.float32, self.shape), schema.AddOptionsT())
        x = self.operator("ROUND", [x], self.tensor("rounded", np.float32, self.shape))  # half to even; QUANTIZE may differ
        return self.operator("QUANTIZE", [x], self.tensor("input_grid", np.int8, self.shape, 1, 0), schema.QuantizeOptionsT())

    def layer(self, x: int, layer: IntegerLayer, i: int) -> int:
        """A convolution or fully connected layer with requantization, int8 to int8. The lower clamp is the ReLU."""
        name = "CONV_2D" if layer.is_conv else "FULLY_CONNECTED"
        # XNNPACK has no convolution with packed weights, leaves rows of an odd number of them to TFLite's own kernels, and
        # computes with 16 times the accumulators
        is_packed = layer.weight_bits == 4 and not layer.is_conv and layer.weight.shape[1] % 2 == 0
        is_packed = is_packed and 16 * accumulator_bound(layer) < 2**31
        if layer.is_conv:
            weight = layer.weight.transpose(0, 2, 3, 1)
            options = schema.Conv2DOptionsT()
            options.padding, options.strideH, options.strideW = schema.Padding.VALID, layer.stride, layer.stride
            height, width = ((side - weight.shape[1]) // layer.stride + 1 for side in self.shape[:2])
            shape: tuple[int, ...] = (height, width, len(weight))
        else:
            weight, x = self._weight_of_flat(layer), self._flatten(x, self.shape, np.int8)
            options, shape = schema.FullyConnectedOptionsT(), (len(weight),)
        inputs = [
            x,
            self.constant(f"weight{i}", np.ascontiguousarray(weight), layer.multiplier, 4 if is_packed else 8),
            self.constant(f"bias{i}", layer.bias.astype(np.int32), layer.multiplier),
        ]
        self.shape = shape
        out = self.tensor(f"layer{i}", np.int8, shape, 1, ZERO_POINT)
        return self.operator(name, inputs, out, options, INT4_VERSION if is_packed else None)

    def head(self, x: int, model: IntegerModel) -> list[int]:
        """The head's accumulators in float32, the logits and their argmax, or the mean and the clipped action."""
        layer, n = model.layers[-1], (len(model.layers[-1].bias),)
        weight, x = self._weight_of_flat(layer), self._flatten(x, self.shape, np.int8)
        x = self.operator("DEQUANTIZE", [x], self.tensor("features", np.float32, self.shape), schema.DequantizeOptionsT())
        packed = self.constant("head_weight", np.ascontiguousarray(weight), 1)
        real = schema.TensorT()
        real.name, real.type, real.shape, real.buffer = "head_real_weight", schema.TensorType.FLOAT32, list(weight.shape), 0
        w = self.operator("DEQUANTIZE", [packed], self._append(real, None, 0), schema.DequantizeOptionsT())
        bias = self.constant("head_bias", layer.bias.astype(np.float32))
        acc = self.tensor("accumulators", np.float32, n)
        self.operator("FULLY_CONNECTED", [x, w, bias], acc, schema.FullyConnectedOptionsT(), 1)
        outputs = self.tensor("mean" if model.is_box else "logits", np.float32, n)
        self.operator("MUL", [acc, self.constant("unit", layer.multiplier)], outputs, schema.MulOptionsT())
        return [self._action(acc, outputs, model), outputs]

    def _action(self, acc: int, outputs: int, model: IntegerModel) -> int:
        if not model.is_box:
            options = schema.ArgMaxOptionsT()
            options.outputType = schema.TensorType.INT64
            axis = self.constant("axis", np.array(1, np.int32))
            return self.operator("ARG_MAX", [acc, axis], self.tensor("action", np.int64, ()), options)
        x = outputs
        for name, bound in (("MAXIMUM", "action_low"), ("MINIMUM", "action_high")):
            limit = self.constant(bound, np.asarray(getattr(model, bound), np.float32))
            out = self.tensor(f"within_{bound}", np.float32, self.tensors[outputs].shape[1:])
            x = self.operator(name, [x, limit], out, schema.MaximumMinimumOptionsT())
        shape = self.constant("action_shape", np.array([-1, *model.action_shape], np.int32))
        return self.operator("RESHAPE", [x, shape], self.tensor("action", np.float32, model.action_shape))

    def _weight_of_flat(self, layer: IntegerLayer) -> np.ndarray:
        """Weights of a fully connected layer for images that are flattened channels last."""
        if len(self.shape) != 3:
            return layer.weight
        height, width, channels = self.shape
        return layer.weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1).reshape(len(layer.weight), -1)

    def _flatten(self, x: int, shape: tuple[int, ...], dtype: Any) -> int:
        self.shape = (int(np.prod(shape)),)
        if len(shape) == 1:
            return x
        name = f"flat{len(self.tensors)}"
        out = self.tensor(name, dtype, self.shape, *((1, ZERO_POINT) if dtype is np.int8 else ()))
        return self.operator("RESHAPE", [x, self.constant(f"{name}_shape", np.array([-1, *self.shape], np.int32))], out)

    def serialize(self, outputs: list[int], metadata: dict[str, Any]) -> bytes:
        """
        The content of the file.

        :param outputs: indices of the tensors that the graph returns
        :param metadata: JSON values, stored under the name ``sb3_qpd``
        """
        graph, model, entry, buffer = schema.SubGraphT(), schema.ModelT(), schema.MetadataT(), schema.BufferT()
        graph.name, graph.tensors, graph.operators = "policy", self.tensors, self.operators
        graph.inputs, graph.outputs = [0], outputs
        entry.name, entry.buffer = "sb3_qpd", len(self.buffers)
        buffer.data = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
        model.version, model.description, model.subgraphs = SCHEMA_VERSION, "sb3_qpd", [graph]
        model.buffers, model.metadata = [*self.buffers, buffer], [entry]
        model.operatorCodes = []
        for name, version in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = getattr(schema.BuiltinOperator, name), version
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            model.operatorCodes.append(code)
        return pack_flatbuffer(model)


def pack_flatbuffer(model: Any) -> bytes:
    """
    A TFLite model as the content of a file.

    :param model: a ``ModelT``
    """
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
