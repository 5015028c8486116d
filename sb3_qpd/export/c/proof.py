"""
A proof of the sizes in generated C, from the numbers that are about to be written.

A wrong size makes C write beyond an array. An :class:`~sb3_qpd.integer.IntegerModel` has checked its own sizes, but its
attributes can be changed afterwards, and the layout of the memory is computed here. So nothing is taken on trust.
"""

from __future__ import annotations

from itertools import combinations, islice

import numpy as np

from sb3_qpd.export.c.layout import CLayer, Layout, Place, dimensions
from sb3_qpd.export.c.memory import Memory
from sb3_qpd.integer import IntegerModel

MAX_ARENA = 2**31  # bytes; offsets are 32-bit numbers
MAX_STACK = 2**20  # bytes of arrays on the call stack
MAX_WEIGHTS = 2**22  # each is several characters of a source file
Region = tuple[str, int, int]  # name, first byte, and the byte behind the last


def prove_sizes(model: IntegerModel, layout: Layout, places: list[Place], arena_bytes: int) -> None:
    """
    Prove that no layer reads or writes beyond its arrays, and that arrays in use at the same time do not overlap.

    :param model: the student
    :param layout: its layers, see :func:`~sb3_qpd.export.c.layout.lay_out`
    :param places: memory of each layer, see :func:`~sb3_qpd.export.c.layout.plan_arena`
    :param arena_bytes: size of the memory
    :raises ValueError: a size does not fit
    """
    layers = layout.layers
    n_weights = sum(layer.rows.size for layer in layers)
    _require(n_weights <= MAX_WEIGHTS, "all layers", f"{n_weights} weights, at most {MAX_WEIGHTS}")
    _require(0 < arena_bytes < MAX_ARENA, "all layers", f"an arena of {arena_bytes} bytes")
    for layer, sizes in zip(layers, dimensions(layers), strict=True):
        is_head = layer is layout.head or layer is layout.value
        _require(layer.is_head == is_head, layer.name, "a hidden layer without a grid, or a head with one")
        _require(is_head or 2 <= layer.layer.activation_bits <= 8, layer.name, "bits of its outputs")
        _require(max(sizes) < 2**32, layer.name, "a size that is no 32-bit number")
        _prove_arrays(layer)
    _prove_trunks(model, layout, places, arena_bytes)
    stack = sum(layer.n_out for layer in layers) + 3 * sum(model.action_nvec)
    _require(4 * stack <= MAX_STACK, "all layers", f"{4 * stack} bytes on the call stack, at most {MAX_STACK}")


def _prove_trunks(model: IntegerModel, layout: Layout, places: list[Place], arena_bytes: int) -> None:
    """The layers of each trunk fit one to the next. No trunk writes over the features of another one."""
    trunks, remaining, features = layout.trunks, iter(places), list[Region]()
    for parts, trunk in zip(model.trunks, trunks, strict=True):
        before = Memory(model).window_bytes if model.history > 1 else sum(part.n_features for part in parts)
        for i, (layer, place) in enumerate(zip(trunk.layers, islice(remaining, len(trunk.layers)), strict=True)):
            regions = [] if i == 0 and trunk.is_read_in_place else [("input", place.input, place.input + before)]
            _prove_input(layer, before)
            _prove_memory(layer, place, [*regions, *features], arena_bytes)
            before = layer.output_bytes
        if len(trunks) > 1:
            start = features[-1][2] if features else 0
            features.append((f"features of trunk {len(features)}", start, start + before))
            is_last = not trunk.layers or place.output == start
            _require(is_last, "all layers", "the place of a trunk's features")
    n_features = features[-1][2] if features else before
    place = next(remaining)
    is_read_in_place = not features and trunks[0].is_read_in_place and not trunks[0].layers
    _require(not features or place.input == 0, layout.head.name, "the place of its input")
    inputs = [] if is_read_in_place else [("input", place.input, place.input + n_features)]
    for head in layout.layers[sum(len(trunk.layers) for trunk in trunks) :]:
        _prove_input(head, n_features)
        _prove_memory(head, place, inputs, arena_bytes)


def _prove_arrays(layer: CLayer) -> None:
    """Weights, biases and multipliers have a number for each place that C reads."""
    n_out, n_in, bits = layer.n_out, layer.n_in, layer.layer.weight_bits
    _require(2 <= bits <= 8, layer.name, f"weights of {bits} bits")
    _require(layer.rows.dtype == np.int8 and layer.rows.shape == (n_out, n_in), layer.name, "its weights")
    _require(layer.bias.dtype == np.int32 and layer.bias.shape == (n_out,), layer.name, "its biases")
    multiplier = layer.layer.multiplier
    is_right = multiplier.dtype == np.float32 and (layer.is_head or multiplier.shape == (n_out,))
    _require(is_right, layer.name, "its multipliers")
    if not layer.is_packed:
        _require(layer.stored.size >= n_out * n_in, layer.name, "its weights in flash")
        return
    _require(1 <= layer.chunk <= n_out, layer.name, f"{layer.chunk} rows that are unpacked together")
    whole, rest = divmod(n_out, layer.chunk)
    groups = whole * -(-layer.chunk * n_in // 32) + -(-rest * n_in // 32)
    _require(layer.stored.dtype == np.uint32 and layer.stored.size == groups * bits, layer.name, "its weights in flash")


def _prove_input(layer: CLayer, n_bytes: int) -> None:
    """The layer reads no byte behind its input."""
    if not layer.is_conv:
        _require(layer.n_in == n_bytes, layer.name, f"{layer.n_in} inputs where {n_bytes} come in")
        return
    channels, height, width = layer.shape
    _, high, across = layer.output_shape
    kernel, stride, pitch = layer.layer.weight.shape[2], layer.layer.stride, width * channels
    _require(channels * height * width == n_bytes, layer.name, f"an input of {layer.shape} where {n_bytes} come in")
    _require(min(high, across, stride, kernel) >= 1, layer.name, "its kernel")
    last = (across - 1) * stride * channels + (high - 1) * stride * pitch + (kernel - 1) * pitch + layer.run
    _require(last <= n_bytes and layer.n_in == kernel * -(-layer.run // 4) * 4, layer.name, "the window of its kernel")


def _prove_memory(layer: CLayer, place: Place, regions: list[Region], arena_bytes: int) -> None:
    """Input, output and working memory of a layer lie in the arena, side by side."""
    columns = 2 * -(-layer.n_in // 4) * 4 * (4 if layer.is_conv else 1)
    regions = [*regions, ("columns", place.columns, place.columns + columns)]
    if not layer.is_head:
        regions.append(("output", place.output, place.output + int(np.prod(layer.output_shape))))
    if layer.is_packed:
        unpacked = -(-layer.chunk * layer.n_in // 32) * 32
        regions.append(("unpacked weights", place.unpacked, place.unpacked + unpacked))
    for name, start, end in regions:
        _require(0 <= start < end <= arena_bytes, layer.name, f"{name} outside the arena")
    _require(place.columns % 2 == 0, layer.name, "columns at an odd byte")
    for (name, start, end), (other, other_start, other_end) in combinations(regions, 2):
        _require(end <= other_start or other_end <= start, layer.name, f"{name} and {other} overlap")


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(f"C is not written, because a size in it would be wrong: {what} ({where}). Export the student again")
