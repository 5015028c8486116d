"""Each layer's numbers in the order in which C reads them, and the plan of the memory that layers share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

import numpy as np

from sb3_qpd.export.c.memory import Memory
from sb3_qpd.export.requirements import LARGEST_INPUT
from sb3_qpd.integer import IntegerLayer, IntegerModel, ObservationPart, fixed_point

_UNPACKED_BYTES = 2560  # room for unpacked weights: most convolutions fit, and are unpacked only once
_GROUP = 32  # weights that are packed together, into as many words as a weight has bits
_COLUMNS = 4  # positions of a window that share each weight that is read


def _round_up(n: int, step: int) -> int:
    return -(-n // step) * step


def bit_planes(weights: np.ndarray, bits: int) -> np.ndarray:
    """
    Pack groups of 32 weights into one word for each bit: bit ``8 i + j`` of a word belongs to weight ``4 j + i``.

    :param weights: signed integers, shape (n,); zeros fill up the last group
    :param bits: bits of a weight
    :return: uint32, shape (bits * ceil(n / 32),)
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
    :param layer: the layer of the integer model
    :param shape: shape of its input, channels first
    :param rows: weights in the order of the inputs that C gathers: int8, shape (n_out, n_in)
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
        """Number of inputs that lie side by side in memory: a row of a convolution's window, or all inputs."""
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
        """
        Number of rows that are unpacked together: the largest that fits and fills whole groups.

        A layer of 8 bits is not packed: all of its rows.
        """
        if not self.is_packed:
            return self.n_out
        most = max(1, min(self.n_out, _UNPACKED_BYTES // self.n_in))
        if most == self.n_out:
            return most
        return next((n for n in range(most, 0, -1) if n * self.n_in % _GROUP == 0), most)

    @property
    def stored(self) -> np.ndarray:
        """The weights as they lie in flash: int8, or uint32 bit planes chunk by chunk."""
        if not self.is_packed:
            # C reads whole blocks of four: behind the last row there must be something to read, which zero inputs cancel
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
        """Multipliers and shifts of the fixed requantization, see :func:`~sb3_qpd.integer.fixed_point`."""
        return fixed_point(self.layer.multiplier)


@dataclass
class CTrunk:
    """
    The layers that a vector or an image goes through, up to the features that the head takes.

    :param parts: parts of the observation that it takes: an image, or all vectors and indices
    :param layers: its layers, in the order of the computation
    :param window: bytes of the window that its first layer reads; 0: the student has no memory
    """

    parts: tuple[ObservationPart, ...]
    layers: list[CLayer]
    window: int = 0

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of its input, channels first."""
        if self.window:
            return (self.window,)
        return self.parts[0].shape if self.parts[0].is_image else (sum(part.n_features for part in self.parts),)

    @property
    def is_read_in_place(self) -> bool:
        """Whether the first layer reads its input where it lies: an image of bytes, or a window."""
        return not self.is_copied or self.window > 0

    @property
    def is_copied(self) -> bool:
        """Whether its observations are brought to bytes first."""
        return self.parts[0].kind != "image"

    @property
    def shift(self) -> int:
        """What C adds to its input grid, so that inputs are never negative."""
        return 128 if self.is_copied else 0

    @property
    def output_shape(self) -> tuple[int, ...]:
        return self.layers[-1].output_shape if self.layers else self.input_shape

    @property
    def n_features(self) -> int:
        return math.prod(self.output_shape)


@dataclass
class Layout:
    """
    A student as C computes it: first one trunk after the other, then the head.

    :param trunks: its trunks
    :param head: its last layer, which takes the features of all trunks
    :param value: the value head, which takes them too; ``None``: the C has none
    """

    trunks: list[CTrunk]
    head: CLayer
    value: CLayer | None = None

    @property
    def layers(self) -> list[CLayer]:
        """All layers, in the order of the computation."""
        value = [] if self.value is None else [self.value]
        return [*(layer for trunk in self.trunks for layer in trunk.layers), self.head, *value]


def _rows(layer: IntegerLayer, shape: tuple[int, ...]) -> np.ndarray:
    """
    Weights with channels last, shape (n_out, n_in). Zeros fill a convolution's kernel rows up to a multiple of four.

    :param shape: shape of the layer's input, channels first
    """
    if layer.is_conv:
        rows = layer.weight.transpose(0, 2, 3, 1).reshape(len(layer.weight), layer.weight.shape[2], -1)
        return np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % 4))).reshape(len(rows), -1)
    return _channels_last(layer.weight, shape)


def _channels_last(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """
    The columns of a fully connected layer in the order in which C has its inputs.

    :param weight: shape (n_out, n_in)
    :param shape: shape of the layer's input, channels first
    """
    return weight.reshape(-1, *shape).transpose(0, 2, 3, 1).reshape(len(weight), -1) if len(shape) == 3 else weight


def lay_out(model: IntegerModel, value: IntegerLayer | None = None) -> Layout:
    """
    The layers of a model in C's order.

    C adds 128 to the input grid of vectors, so that inputs are never negative. The biases of the first layer take it back.

    :param model: one that :func:`~sb3_qpd.export.requirements.check_target` lets through
    :param value: its value head, see :func:`~sb3_qpd.export.value_head.find_value_head`; ``None``: the C has none
    :raises ValueError: if a sum could leave int32
    """
    if sum(model.branches) != len(model.layers) - 1:
        raise ValueError(f"C is not written: {len(model.layers)} layers do not fit trunks of {model.branches} and a head")
    trunks: list[CTrunk] = []
    layers, counts = iter(model.layers), {"conv": 0, "fc": 0}
    for parts, n_layers in zip(model.trunks, model.branches, strict=True):
        trunks.append(trunk := CTrunk(parts, [], Memory(model).window_bytes if model.history > 1 else 0))
        for i, layer in enumerate(islice(layers, n_layers)):
            kind = "conv" if layer.is_conv else "fc"
            counts[kind] += 1
            rows, shape = _rows(layer, trunk.output_shape), trunk.output_shape
            trunk.layers.append(_c_layer(f"{kind}{counts[kind]}", layer, shape, rows, 0 if i else trunk.shift))
    value_head = None if value is None else _head("value_head", value, trunks)
    return Layout(trunks, _head("head", model.layers[-1], trunks), value_head)


def _head(name: str, layer: IntegerLayer, trunks: list[CTrunk]) -> CLayer:
    """The head takes the features of all trunks, one after the other. A trunk without layers gives its input as it is."""
    ends = np.cumsum([trunk.n_features for trunk in trunks])[:-1]
    columns = np.split(layer.weight, ends, 1)
    rows = np.concatenate([_channels_last(x, trunk.output_shape) for x, trunk in zip(columns, trunks, strict=True)], 1)
    shifts = [np.full(trunk.n_features, 0 if trunk.layers else trunk.shift) for trunk in trunks]
    shape = trunks[0].output_shape if len(trunks) == 1 else (rows.shape[1],)
    return _c_layer(name, layer, shape, rows, np.concatenate(shifts))


def _c_layer(name: str, layer: IntegerLayer, shape: tuple[int, ...], rows: np.ndarray, shift: int | np.ndarray) -> CLayer:
    """A layer whose biases take back what was added to its inputs."""
    bias = layer.bias.astype(np.int64) - (rows.astype(np.int64) * shift).sum(1)
    _check_sums(name, rows, bias)
    return CLayer(name, layer, shape, np.ascontiguousarray(rows), bias.astype(np.int32))


def _check_sums(name: str, rows: np.ndarray, bias: np.ndarray) -> None:
    """Refuse a layer in which inputs of 0 to 255 could bring a partial sum beyond int32."""
    bound = int((np.abs(bias) + LARGEST_INPUT * np.abs(rows.astype(np.int64)).sum(1)).max())
    if bound >= 2**31:
        raise ValueError(f"A sum in layer '{name}' could reach {bound}, which does not fit int32. Make the layer narrower")


@dataclass
class Place:
    """
    Offsets of a layer's memory in the arena, in bytes.

    :param input: its input
    :param output: its output
    :param columns: inputs widened to 16 bits
    :param unpacked: weights unpacked to 8 bits
    """

    input: int
    output: int
    columns: int
    unpacked: int


def plan_arena(layout: Layout) -> tuple[list[Place], int]:
    """
    Plan the memory that all layers share.

    Input and output of a layer lie at opposite ends, and the working memory between them. The features of several trunks lie
    before all of that.

    :param layout: the layers, see :func:`lay_out`
    :return: a place for each layer, the head's last, which is the value head's too; and the size of the arena in bytes
    """
    trunks, head = layout.trunks, layout.head
    if len(trunks) == 1:
        sizes = _sizes(trunks[0], [*trunks[0].layers, head])
        total = max(map(sum, sizes))
        return _alternate(sizes, 0, total), total
    n_features = sum(trunk.n_features for trunk in trunks)
    start = _round_up(n_features, 4)
    of_trunks = [_sizes(trunk, trunk.layers) for trunk in trunks]
    for one in of_trunks:
        one[-1:] = [(size_in, 0, columns, unpacked) for size_in, _, columns, unpacked in one[-1:]]  # its output are features
    working = [sum(size) for one in of_trunks for size in one]
    total = start + max(*working, head.column_bytes + _round_up(head.unpacked_bytes, 4))
    places, features = [], 0
    for trunk, one in zip(trunks, of_trunks, strict=True):
        places += _alternate(one, start, total)
        if trunk.layers:
            places[-1].output = features
        features += trunk.n_features
    return [*places, Place(0, 0, columns=start, unpacked=start + head.column_bytes)], total


def _sizes(trunk: CTrunk, layers: list[CLayer]) -> list[tuple[int, int, int, int]]:
    """Bytes of input, output, columns and unpacked weights of each layer."""
    before, sizes = 0 if trunk.is_read_in_place else math.prod(trunk.input_shape), []
    for layer in layers:
        ends = (_round_up(before, 4), _round_up(layer.output_bytes, 4))
        sizes.append((*ends, layer.column_bytes, _round_up(layer.unpacked_bytes, 4)))
        before = layer.output_bytes
    return sizes


def _alternate(sizes: list[tuple[int, int, int, int]], start: int, end: int) -> list[Place]:
    """Places between two bytes of the arena: input and output at opposite ends, which change from layer to layer."""
    places = []
    for i, (size_in, size_out, columns, _) in enumerate(sizes):
        from_low = i % 2 == 0
        middle = start + (size_in if from_low else size_out)
        ends = (start, end - size_out) if from_low else (end - size_in, start)
        places.append(Place(*ends, columns=middle, unpacked=middle + columns))
    return places


def dimensions(layers: list[CLayer]) -> list[list[int]]:
    """
    The integers of each layer's ``struct layer``, in the order of its members.

    :param layers: all layers of a student: together they decide which members there are
    """
    has_hidden, has_packed = not all(layer.is_head for layer in layers), any(layer.is_packed for layer in layers)
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
    """How a convolution's window moves over its input; zeros for a fully connected layer."""
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
