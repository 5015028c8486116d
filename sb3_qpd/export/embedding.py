"""Numbers and facts of a student as the programs of an interpreter hold them: little-endian bytes in base64."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np

from sb3_qpd.integer import IntegerLayer, IntegerModel, ObservationPart, fixed_point, pack


def to_base64(array: np.ndarray) -> str:
    """
    The bytes of an array, little-endian.

    :param array: numbers of any type
    """
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def model_numbers(model: IntegerModel) -> dict[str, np.ndarray]:
    """
    Input grid, bounds and deviation of a model by the names of its fields; empty arrays where it has none.

    :param model: the student
    """
    floats = ("input_multiplier", "input_offset", "action_low", "action_high", "action_std")
    found = {name: np.asarray([] if getattr(model, name) is None else getattr(model, name), np.float32) for name in floats}
    return {**found, "input_origin": np.asarray([] if model.input_origin is None else model.input_origin, np.float64)}


def layer_numbers(model: IntegerModel) -> dict[str, np.ndarray]:
    """
    Packed weights, biases and multipliers of all layers, one after the other.

    :param model: the student
    :return: arrays by name; ``factors`` and ``shifts`` are the multipliers of fixed-point arithmetic, else empty
    """
    fixed = [_fixed(layer) for layer in model.layers] if model.requantization == "fixed" else []
    return {
        "weights": np.concatenate([pack(layer.weight, layer.weight_bits) for layer in model.layers]),
        "biases": np.concatenate([layer.bias for layer in model.layers]),
        "multipliers": np.concatenate([layer.multiplier for layer in model.layers]),
        "factors": np.concatenate([np.array([], np.uint32), *(m for m, _ in fixed)]),
        "shifts": np.concatenate([np.array([], np.uint8), *(shift for _, shift in fixed)]),
    }


def _fixed(layer: IntegerLayer) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers as integers and shifts, one for each channel."""
    m, shift = fixed_point(np.broadcast_to(layer.multiplier, layer.bias.shape))
    return m.astype(np.uint32), shift.astype(np.uint8)


def input_shapes(model: IntegerModel) -> list[tuple[int, ...]]:
    """
    The shape of one input of each layer; of the head, the number of its inputs.

    :param model: the student
    """
    shapes: list[tuple[int, ...]] = []
    layers = iter(model.layers)
    for parts, n_layers in zip(model.trunks, model.branches, strict=True):
        shape: tuple[int, ...] = parts[0].shape
        for _ in range(n_layers):
            shapes.append(shape)
            shape = next(layers).output_shape(shape)
    return [*shapes, model.layers[-1].weight.shape[1:]]


def trunk_facts(model: IntegerModel) -> list[tuple[list[tuple[ObservationPart, int]], int]]:
    """
    What goes into each trunk.

    :param model: the student
    :return: for each trunk its parts, each with the index of its first input multiplier, and its number of layers
    """
    found, feature = [], 0
    for parts, n_layers in zip(model.trunks, model.branches, strict=True):
        placed = []
        for part in parts:
            placed.append((part, feature))
            feature += 0 if part.kind == "image" else 1 if part.is_image else part.n_features
        found.append((placed, n_layers))
    return found


def n_inputs(layer: IntegerLayer) -> int:
    """
    How many weights an output has.

    :param layer: a layer
    """
    return math.prod(layer.weight.shape[1:])


def state_size(model: IntegerModel) -> int:
    """
    How many numbers the state of a student has, see :meth:`~sb3_qpd.integer.IntegerModel.trace`. 0: it has no memory.

    :param model: any student
    """
    return (model.history - 1) * (sum(part.n_features for part in model.parts) + model.n_remembered)


def box_limits(model: IntegerModel) -> dict[str, Any]:
    """
    What fixed-point arithmetic clips the accumulators of a Box action to.

    :param model: a student with a Box action
    """
    lowest, highest = model.bounds_in_units()
    return {"lowest": lowest.tolist(), "highest": highest.tolist()}
