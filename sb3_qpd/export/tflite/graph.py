"""Tensors, buffers and operators of a TFLite graph, and the content of its file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sb3_qpd.integer import pack

try:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
except ImportError as error:
    raise ImportError("The target tflite needs the package ai-edge-litert: pip install 'sb3_qpd[litert]'") from error

SCHEMA_VERSION = 3
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
# versions of operators with the types used here; others have version 1
VERSIONS = {"CONV_2D": 3, "FULLY_CONNECTED": 5, "QUANTIZE": 2, "DEQUANTIZE": 2, "ARG_MAX": 2, "CONCATENATION": 2}
VERSIONS |= {"SLICE": 2, "EQUAL": 2}
INT4_VERSION = 10  # of FULLY_CONNECTED with packed weights


class Graph:
    """Tensors, buffers and operators of the graph that is being built."""

    def __init__(self) -> None:
        self.tensors: list[Any] = []
        self.buffers = [schema.BufferT()]  # the first one is empty by convention
        self.operators: list[Any] = []
        self.codes: dict[tuple[str, int], int] = {}
        self.inputs: list[int] = []

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

    def unscaled(self, name: str, shape: tuple[int, ...]) -> int:
        """
        Add a tensor of float32 that the graph computes from constants: it has no batch.

        :param name: its name
        :param shape: its shape
        """
        tensor = schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.buffer = name, schema.TensorType.FLOAT32, list(shape), 0
        return self._append(tensor, None, 0)

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

    def input(self, name: str, dtype: Any, shape: tuple[int, ...], scale: Any = None) -> int:
        """
        Add a tensor that the caller gives. See :meth:`tensor`.

        :return: its index
        """
        self.inputs.append(self.tensor(name, dtype, shape, scale))
        return self.inputs[-1]

    def shape(self, x: int) -> tuple[int, ...]:
        """
        Shape of a tensor without the batch.

        :param x: index of a tensor that the graph computes, or an input
        """
        return tuple(self.tensors[x].shape[1:])

    def reshape(self, x: int, shape: tuple[int, ...], name: str | None = None) -> int:
        """
        The same numbers in another shape.

        :param x: index of a tensor
        :param shape: the shape without the batch
        :param name: name of the result
        :return: index of the result; ``x`` where it has the shape already
        """
        if self.shape(x) == shape and name is None:
            return x
        name = name or f"shaped{len(self.tensors)}"
        out = self._like(x, name, shape)
        return self.operator("RESHAPE", [x, self.constant(f"{name}_shape", np.array([-1, *shape], np.int32))], out)

    def concatenate(self, tensors: list[int], name: str | None = None) -> int:
        """
        Vectors, one after the other.

        :param tensors: indices of tensors of one type and one scale
        :param name: name of the result
        :return: index of the result; the only tensor where it needs no other name
        """
        if len(tensors) == 1 and name is None:
            return tensors[0]
        options = schema.ConcatenationOptionsT()
        options.axis = 1
        n = sum(self.shape(x)[0] for x in tensors)
        out = self._like(tensors[0], name or f"joined{len(self.tensors)}", (n, *self.shape(tensors[0])[1:]))
        return self.operator("CONCATENATION", tensors, out, options)

    def rows(self, x: int, start: int, n: int) -> int:
        """
        A part of the axis after the batch.

        :param x: index of a tensor
        :param start: where it begins
        :param n: its length
        """
        rest = self.shape(x)[1:]
        begin, size = np.array([0, start, *(0 for _ in rest)], np.int32), np.array([-1, n, *(-1 for _ in rest)], np.int32)
        name = f"part{len(self.tensors)}"
        ends = [self.constant(f"{name}_begin", begin), self.constant(f"{name}_size", size)]
        return self.operator("SLICE", [x, *ends], self._like(x, name, (n, *rest)), schema.SliceOptionsT())

    def _like(self, x: int, name: str, shape: tuple[int, ...]) -> int:
        """A tensor of the type and the scale of another one."""
        dtype = next(dtype for dtype, code in TYPES.items() if code == self.tensors[x].type)
        of = self.tensors[x].quantization
        return self.tensor(name, dtype, shape) if of is None else self.tensor(name, dtype, shape, of.scale, of.zeroPoint[0])

    def serialize(self, outputs: list[int], metadata: dict[str, Any]) -> bytes:
        """
        The content of the file.

        :param outputs: indices of the tensors that the graph returns
        :param metadata: JSON values, stored under the name ``sb3_qpd``
        """
        graph, model, entry, buffer = schema.SubGraphT(), schema.ModelT(), schema.MetadataT(), schema.BufferT()
        graph.name, graph.tensors, graph.operators = "policy", self.tensors, self.operators
        graph.inputs, graph.outputs = self.inputs, outputs
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
