"""What the C files hold: every layer's numbers in the order in which C reads them, and the plan of the memory they share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sb3_qpd.integer import IntegerLayer, IntegerModel, fixed_point

_UNPACKED_BYTES = 2560  # of weights below 8 bits that are unpacked together: enough to unpack most convolutions only once
_GROUP = 32  # packed weights: as many words as they have bits
_COLUMNS = 4  # positions of a window that share a weight


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def bit_planes(weights: np.ndarray, bits: int) -> np.ndarray:
    """
    Groups of 32 weights as one word for each bit: bit ``8 i + j`` of a word belongs to weight ``4 j + i``.

    :param weights: integers of ``bits`` bits, flat; zeros fill up the last group
    :return: uint32, ``bits`` words for each group
    """
    groups = np.zeros((_round_up(len(weights), _GROUP) // _GROUP, 8, 4), np.int64)  # (group, j, i)
    groups.reshape(-1)[: len(weights)] = weights
    place = 8 * np.arange(4) + np.arange(8)[:, None]  # (j, i)
    planes = [(((groups >> bit) & 1) << place).sum((1, 2)) for bit in range(bits)]
    return np.stack(planes, 1).astype(np.uint32).reshape(-1)


@dataclass
class CLayer:
    """
    A layer as C computes it: channels last, inputs never negative.

    :param name: ``conv1``, ``fc1``, ``head``
    :param layer: the layer itself
    :param shape: of its input, channels first
    :param rows: int8, shape (n_out, n_in): weights in the order of the columns that C gathers
    :param bias: int32, shape (n_out,)
    """

    name: str
    layer: IntegerLayer
    shape: tuple[int, ...]
    rows: np.ndarray
    bias: np.ndarray

    @property
    def is_conv(self) -> bool:
        return self.layer.is_conv

    @property
    def is_head(self) -> bool:
        return self.layer.activation_bits == 0

    @property
    def n_in(self) -> int:
        """Weights of a row."""
        return self.rows.shape[1]

    @property
    def n_out(self) -> int:
        return len(self.rows)

    @property
    def run(self) -> int:
        """Inputs that lie side by side: a row of a convolution's window, or all."""
        return self.layer.weight.shape[3] * self.layer.weight.shape[1] if self.is_conv else self.n_in

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.layer.output_shape(self.shape)

    @property
    def output_bytes(self) -> int:
        return 0 if self.is_head else math.prod(self.output_shape)

    @property
    def is_packed(self) -> bool:
        return self.layer.weight_bits < 8

    @property
    def chunk(self) -> int:
        """Rows that are unpacked together: as many as fill whole groups and fit; all rows of a layer of 8 bits."""
        if not self.is_packed:
            return self.n_out
        most = max(1, min(self.n_out, _UNPACKED_BYTES // self.n_in))
        if most == self.n_out:
            return most
        return next((n for n in range(most, 0, -1) if n * self.n_in % _GROUP == 0), most)

    @property
    def stored(self) -> np.ndarray:
        """The weights as they stand in memory: int8, or uint32 bit planes chunk by chunk."""
        if not self.is_packed:
            # a row that ends within a block of four is read on into what follows, to meet zeros
            return np.append(self.rows.reshape(-1), np.zeros(-self.n_in % 4, np.int8))
        chunks = [self.rows[i : i + self.chunk].reshape(-1) for i in range(0, self.n_out, self.chunk)]
        return np.concatenate([bit_planes(chunk, self.layer.weight_bits) for chunk in chunks])

    @property
    def column_bytes(self) -> int:
        return 2 * _round_up(self.n_in, 4) * (_COLUMNS if self.is_conv else 1)

    @property
    def unpacked_bytes(self) -> int:
        return _round_up(self.chunk * self.n_in, _GROUP) + 4 if self.is_packed else 0

    def fixed(self) -> tuple[np.ndarray, np.ndarray]:
        """Integer multipliers and shifts."""
        return fixed_point(self.layer.multiplier)


def _rows(layer: IntegerLayer, shape: tuple[int, ...]) -> np.ndarray:
    """Weights with channels last; a convolution's kernel rows are filled up with zeros to a multiple of four."""
    if layer.is_conv:
        rows = layer.weight.transpose(0, 2, 3, 1).reshape(len(layer.weight), layer.weight.shape[2], -1)
        return np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 4))).reshape(len(rows), -1)
    if len(shape) == 3:
        return layer.weight.reshape(-1, *shape).transpose(0, 2, 3, 1).reshape(len(layer.weight), -1)
    return layer.weight


def lay_out(model: IntegerModel) -> list[CLayer]:
    """
    The layers of a model in C's order.

    Vectors come to the first layer 128 higher than on their grid, and its biases take that back.
    """
    result: list[CLayer] = []
    shape = model.observation_shape if model.is_image else (model.parts[0].n_features,)
    for i, layer in enumerate(model.layers):
        kind = "conv" if layer.is_conv else "fc"
        number = 1 + sum(previous.name.startswith(kind) for previous in result)
        name = "head" if i == len(model.layers) - 1 else f"{kind}{number}"
        rows, bias = _rows(layer, shape), layer.bias.astype(np.int64)
        if i == 0 and not model.is_image:
            bias = bias - 128 * rows.sum(1, dtype=np.int64)
        _check_sums(name, rows, bias)
        result.append(CLayer(name, layer, shape, np.ascontiguousarray(rows), bias.astype(np.int32)))
        shape = result[-1].output_shape
    return result


def _check_sums(name: str, rows: np.ndarray, bias: np.ndarray) -> None:
    """No partial sum of any input of 0 to 255 leaves int32."""
    bound = int((np.abs(bias) + 255 * np.abs(rows.astype(np.int64)).sum(1)).max())
    if bound >= 2**31:
        raise ValueError(f"A sum in layer '{name}' could reach {bound}, which does not fit int32: the layer is too wide")


@dataclass
class Place:
    """Offsets in bytes of what a layer reads, writes and works with."""

    input: int
    output: int
    columns: int
    unpacked: int


def plan_arena(model: IntegerModel, layers: list[CLayer]) -> tuple[list[Place], int]:
    """
    Inputs and outputs stand at opposite ends of the arena, the room to work between them.

    :return: a place for each layer, and the size of the arena in bytes
    """
    before = 0 if model.is_image else model.parts[0].n_features  # frames have a place of their own
    sizes = []
    for layer in layers:
        ends = (_round_up(before, 4), _round_up(layer.output_bytes, 4))
        sizes.append((*ends, layer.column_bytes, _round_up(layer.unpacked_bytes, 4)))
        before = layer.output_bytes
    total = max(sum(size) for size in sizes)
    places = []
    for i, (size_in, size_out, columns, _) in enumerate(sizes):
        from_low = i % 2 == 0
        middle = size_in if from_low else size_out
        ends = (0, total - size_out) if from_low else (total - size_in, 0)
        places.append(Place(*ends, columns=middle, unpacked=middle + columns))
    return places, total


def dimensions(layers: list[CLayer]) -> list[list[int]]:
    """The integers of each layer's ``struct layer``, in the order of its members."""
    has_hidden, has_packed = len(layers) > 1, any(layer.is_packed for layer in layers)
    has_conv = any(layer.is_conv for layer in layers)
    return [
        [
            *(layer.n_in, layer.n_out),
            *([2**layer.layer.activation_bits - 1] if has_hidden else []),
            *([layer.layer.weight_bits, layer.chunk] if has_packed else []),
            *(_window(layer) if has_conv else []),
        ]
        for layer in layers
    ]


def _window(layer: CLayer) -> list[int]:
    """How a convolution's window goes over its input; zeros for a fully connected layer."""
    if not layer.is_conv:
        return [0] * 7
    channels, _, width = layer.shape
    _, high, across = layer.output_shape
    kernel, stride = layer.layer.weight.shape[2], layer.layer.stride
    return [
        high * across,
        across,
        stride * channels,
        stride * width * channels,
        kernel,
        layer.run,
        width * channels,
    ]
