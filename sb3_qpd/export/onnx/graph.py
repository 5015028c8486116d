"""
The graph of a student: nodes and initializers in ONNX's standard operators.

All operands are unsigned: weights with zero point 2^(bits - 1), the grid of a vector with 128. On x86 without VNNI the usual
kernels for unsigned times signed bytes saturate.

Requantization follows the rule of :class:`~sb3_qpd.integer.IntegerLayer`, ``clamp(round_half_even(float32(acc) M))``. A
convolution is a ``QLinearConv`` with scales of 1, M and 1. In a fully connected layer ``Cast``, ``Mul`` and
``QuantizeLinear`` follow the ``MatMulInteger``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sb3_qpd.integer import IntegerLayer, IntegerModel, ObservationPart, pack

# types of packed weights; weights of other widths are unpacked from a bit stream
PACKED = {8: TensorProto.UINT8, 4: TensorProto.UINT4, 2: TensorProto.UINT2}
INPUT = "observation"  # for a value of a Dict observation: observation/key
MASKS = "action_masks"
STATE, NEXT_STATE = "state", "next_state"  # of a student with a memory; zeros begin an episode


class Graph:
    """
    Nodes and initializers of the graph that is being built.

    :param is_qdq: write float operators between QuantizeLinear and DequantizeLinear
    """

    def __init__(self, is_qdq: bool) -> None:
        self.is_qdq = is_qdq
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.zero_point = 0  # of the layers' latest output
        self.is_flat = False  # whether that output has two axes
        self.n_flattened = 0

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Append a node; its output."""
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """The initializer of this name, which is added at its first use."""
        if all(known.name != name for known in self.initializers):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integer(self, value: int) -> str:
        """A uint8 scalar, such as a zero point."""
        return self.constant(f"u{value}", np.uint8(value))

    @property
    def one(self) -> str:
        return self.constant("one", np.float32(1))

    def trunks(self, model: IntegerModel, channels_last: bool) -> str:
        """Raw observations to the input of the head: all trunks, and their outputs side by side."""
        features, i, used = [], 0, 0
        for number, (parts, n_layers) in enumerate(zip(model.trunks, model.branches, strict=True)):
            self.zero_point, self.is_flat = 0, False
            end = used + (0 if parts[0].kind == "image" else 1 if parts[0].is_image else sum(p.n_features for p in parts))
            x = self._input_grid(model, parts, slice(used, end), str(number or ""), channels_last)
            for layer in model.layers[i : i + n_layers]:
                x = self.layer(x, layer, i)
                i += 1
            features.append(x if len(model.branches) == 1 else self._flatten(x))
            used = end
        return features[0] if len(features) == 1 else self.node("Concat", features, "all_features", axis=1)

    def _input_grid(
        self, model: IntegerModel, parts: tuple[ObservationPart, ...], features: slice, number: str, channels_last: bool
    ) -> str:
        """Raw observations to the input grid of one trunk, in uint8."""
        if parts[0].kind == "image":
            name = input_name(parts[0])
            return self.node("Transpose", [name], f"input_grid{number}", perm=[0, 3, 1, 2]) if channels_last else name
        self.is_flat = not parts[0].is_image
        if self.is_flat:
            x = self._vector(model, parts)
        else:
            x = input_name(parts[0])
        m, a = (np.asarray(values)[features] for values in (model.input_multiplier, model.input_offset))
        x = self.node("Mul", [x, self.constant(f"input_multiplier{number}", m)], f"scaled_input{number}")
        x = self.node("Add", [x, self.constant(f"input_offset{number}", a)], f"shifted_input{number}")
        if model.history == 1:
            return self._to_grid(x, f"input_grid{number}", number)
        return self._window(self._to_grid(x, "newest_grid", number))

    def _to_grid(self, x: str, grid: str, number: str) -> str:
        """A scaled and shifted input in uint8."""
        # NaN becomes the zero of the grid: kernels of QuantizeLinear differ in how they convert it
        nan = self.node("IsNaN", [x], f"nan{number}")
        x = self.node("Where", [nan, self.constant("zero", np.float32(0)), x], f"finite{number}")
        self.zero_point = 128
        return self.node("QuantizeLinear", [x, self.one, self.integer(128)], grid)

    def _window(self, newest: str) -> str:
        """The window that ends in the newest observation."""
        offset = self.constant("i128", np.int32(128))
        before = self.node("Cast", [STATE], "state_i32", to=TensorProto.INT32)
        before = self.node("Cast", [self.node("Add", [before, offset], "state_above")], "state_u8", to=TensorProto.UINT8)
        return self.node("Concat", [self.node("Flatten", [before], "state_flat"), newest], "input_grid", axis=1)

    def next_state(self, model: IntegerModel) -> None:
        """The state of the next step of a student with a memory: the window without its oldest observation."""
        row, axis = self._signed("newest_grid"), self.constant("axis1", np.array([1]))
        if model.history_actions:
            row = self.node("Concat", [row, self._signed(self._action_grid(model))], "newest_pair", axis=1)
        if model.history == 2:
            self.node("Unsqueeze", [row, axis], NEXT_STATE)
            return
        ends = [self.constant(name, np.array([value])) for name, value in (("second", 1), ("past_last", model.history - 1))]
        kept = self.node("Slice", [STATE, *ends, axis], "state_kept")
        self.node("Concat", [kept, self.node("Unsqueeze", [row, axis], "newest_row")], NEXT_STATE, axis=1)

    def _signed(self, grid: str) -> str:
        """A grid in int8 whose zero is 0, not 128."""
        x = self.node("Cast", [grid], f"{grid}_i32", to=TensorProto.INT32)
        x = self.node("Sub", [x, self.constant("i128", np.int32(128))], f"{grid}_below")
        return self.node("Cast", [x], f"{grid}_i8", to=TensorProto.INT8)

    def _action_grid(self, model: IntegerModel) -> str:
        """The action on the input grid, as the next steps see it."""
        x = "action"
        if not (model.is_box or model.n_bits):
            if not model.action_shape:
                x = self.node("Unsqueeze", [x, self.constant("axis1", np.array([1]))], "action_column")
            nvec = model.action_nvec
            column = self.constant("index_of_action", np.repeat(np.arange(len(nvec)), nvec))
            category = self.constant("category_of_action", np.concatenate([np.arange(n) for n in nvec]))
            x = self.node("Equal", [self.node("Gather", [x, column], "indices_of_action", axis=1), category], "is_action")
        x = self.node("Cast", [self.node("Flatten", [x], "flat_action")], "float_action", to=TensorProto.FLOAT)
        return self.node("QuantizeLinear", [self._scaled_action(x, model), self.one, self.integer(128)], "action_grid")

    def _scaled_action(self, x: str, model: IntegerModel) -> str:
        """The numbers of an action in units of the input grid, not rounded."""
        m, a = (np.asarray(values)[-model.n_remembered :] for values in (model.input_multiplier, model.input_offset))
        x = self.node("Mul", [x, self.constant("action_multiplier", m)], "scaled_action")
        return self.node("Add", [x, self.constant("action_offset", a)], "shifted_action")

    def _vector(self, model: IntegerModel, parts: tuple[ObservationPart, ...]) -> str:
        """All vectors and indices of a trunk as one vector of floats, shape (batch_size, n_features)."""
        vectors = [
            self._one_hot(part) if part.kind == "one_hot" else self._without_origin(part, model.origin_of(part))
            for part in parts
        ]
        return vectors[0] if len(vectors) == 1 else self.node("Concat", vectors, "vector", axis=1)

    def _flat_input(self, part: ObservationPart) -> str:
        return self.node("Flatten", [input_name(part)], f"flat_{input_name(part)}")

    def _without_origin(self, part: ObservationPart, origin: np.ndarray | None) -> str:
        """A vector as floats. One with an origin comes as doubles, and the origin is taken off before the conversion."""
        x, name = self._flat_input(part), input_name(part)
        if origin is None:
            return x
        x = self.node("Sub", [x, self.constant(f"origin_of_{name}", origin)], f"less_origin_{name}")
        return self.node("Cast", [x], f"float_{name}", to=TensorProto.FLOAT)

    def _one_hot(self, part: ObservationPart) -> str:
        """Indices as zeros and ones: each index is compared with all of its categories."""
        name = input_name(part)
        column = self.constant(f"index_of_{name}", np.repeat(np.arange(len(part.nvec)), part.nvec))
        category = self.constant(f"category_of_{name}", np.concatenate([np.arange(n) for n in part.nvec]))
        x = self.node("Gather", [self._flat_input(part), column], f"indices_of_{name}", axis=1)
        x = self.node("Equal", [x, category], f"is_{name}")
        return self.node("Cast", [x], f"one_hot_{name}", to=TensorProto.FLOAT)

    def layer(self, x: str, layer: IntegerLayer, i: int) -> str:
        """A convolution or fully connected layer with its requantization, uint8 to uint8."""
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
        self.n_flattened += 1
        return self.node("Flatten", [x], "features" if self.n_flattened == 1 else f"features_{self.n_flattened}")

    def _weight(self, weight: np.ndarray, bits: int, i: int) -> tuple[str, str]:
        """
        The names of uint8 weights and of their zero point.

        Weights are stored packed. A runtime folds the nodes that unpack them when it loads the file.
        """
        name, zero_point = f"weight{i}", self.integer(2 ** (bits - 1))
        if bits not in PACKED:
            return self._bit_stream(weight, bits, name), zero_point
        self.initializers.append(helper.make_tensor(name, PACKED[bits], weight.shape, pack(weight, bits).tobytes(), raw=True))
        if bits == 8:
            return name, zero_point
        return self.node("Cast", [name], f"{name}_u8", to=TensorProto.UINT8), zero_point

    def _bit_stream(self, weight: np.ndarray, bits: int, name: str) -> str:
        """Unpack weights of 3, 5, 6 or 7 bits: isolate every bit of the stream, and weigh it by its power of two."""
        flat = np.zeros(8 * math.ceil(weight.size / 8), np.int8)  # eight weights fill whole bytes
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

    def head(self, x: str, model: IntegerModel) -> str:
        """The head's accumulators and the logits, or the mean and the clipped action; returns the accumulators."""
        layer, i = model.layers[-1], len(model.layers) - 1
        acc, real = self._head_sums(self._flatten(x), layer, i)
        outputs = self.node("Mul", [real, self._multiplier(layer, i)], output_name(model))
        if not model.is_box:
            return acc
        x = self.node("Max", [outputs, self.constant("action_low", model.action_low)], "above_low")
        x = self.node("Min", [x, self.constant("action_high", model.action_high)], "clipped")
        self.node("Reshape", [x, self.constant("action_shape", np.array([-1, *model.action_shape]))], "action")
        return acc

    def _head_sums(self, x: str, layer: IntegerLayer, i: int) -> tuple[str, str]:
        """The head's accumulators, and the same in float32."""
        if self.is_qdq:
            acc = self._qdq_accumulate(x, layer, i)
            return acc, acc
        acc = self._accumulate(x, layer, i, "accumulators")
        return acc, self.node("Cast", [acc], f"float{i}", to=TensorProto.FLOAT)

    def comparable(self, acc: str) -> str:
        """Accumulators whose differences do not overflow."""
        return self.node("Cast", [acc], "wide", to=TensorProto.INT64)

    def real(self, x: str) -> str:
        """Integers in float32."""
        return self.node("Cast", [x], f"real_{x}", to=TensorProto.FLOAT)

    def pairs(self, acc: str) -> str:
        """Scores of 0 and 1 for each dimension of a MultiBinary action, shape (batch_size, n, 2): the logit of 0 is 0."""
        zero = self.node("Sub", [acc, acc], "zeros")
        last = self.constant("last", np.array([2]))
        columns = [self.node("Unsqueeze", [x, last], f"column_{x}") for x in (zero, acc)]
        return self.node("Concat", columns, "pairs", axis=2)

    def choose(self, acc: str, model: IntegerModel) -> None:
        """The index of the largest allowed score in each dimension of a discrete action."""
        if model.n_bits:
            acc = self.pairs(acc)
        if model.uses_masks:
            masks = MASKS
            if model.n_bits:
                shape = self.constant("shape_of_pairs", np.array([-1, model.n_bits, 2]))
                masks = self.node("Reshape", [MASKS, shape], "masks_of_pairs")
            lowest = self.constant("lowest", np.float32(-np.inf) if self.is_qdq else np.int32(-(2**31)))
            acc = self.node("Where", [masks, acc, lowest], "allowed")
        if model.n_bits:
            self.node("ArgMax", [acc], "action", axis=2, keepdims=0)
        elif not model.action_shape:
            self.node("ArgMax", [acc], "action", axis=1, keepdims=0)
        else:
            names = self.split(acc, model)
            best = [self.node("ArgMax", [name], f"best_{name}", axis=1, keepdims=1) for name in names]
            self.node("Concat", best, "action", axis=1)

    def split(self, acc: str, model: IntegerModel) -> list[str]:
        """The scores of each dimension of a discrete action."""
        names = [f"scores_of_action{i}" for i in range(len(model.action_nvec))]
        sizes = self.constant("nvec", np.array(model.action_nvec))
        self.nodes.append(helper.make_node("Split", [acc, sizes], names, axis=1))
        return names

    def _qdq_accumulate(self, x: str, layer: IntegerLayer, i: int) -> str:
        """The head's accumulators in float operators with scales of 1: exact up to 2^24."""
        x = self.node("DequantizeLinear", [x, self.one, self.integer(self.zero_point)], f"input{i}")
        weight, zero_point = self._weight(layer.weight, layer.weight_bits, i)
        weight = self.node("DequantizeLinear", [weight, self.one, zero_point], f"real_weight{i}")
        bias = [self.constant(f"bias{i}", layer.bias), self.one, self.constant("i0", np.int32(0))]
        bias_name = self.node("DequantizeLinear", bias, f"real_bias{i}")
        return self.node("Gemm", [x, weight, bias_name], "accumulators", transB=1)


def output_name(model: IntegerModel) -> str:
    """
    Name of the second output: the mean of a Box action, or the logits.

    :param model: the student
    """
    return "mean" if model.is_box else "logits"


def input_name(part: ObservationPart) -> str:
    """
    Name of the graph's input for an observation, or for one value of a Dict observation.

    :param part: the observation or value
    """
    return INPUT if part.key is None else f"{INPUT}/{part.key}"
