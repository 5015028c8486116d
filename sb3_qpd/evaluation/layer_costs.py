"""What each layer of an integer model costs, and how much of its grids it uses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from sb3_qpd.integer import IntegerLayer, IntegerModel
from sb3_qpd.integer_file import OPTIONAL_FIELDS
from sb3_qpd.observations import batch_size, take_rows

N_OBSERVATIONS = 256  # on which the ranges are measured


def layer_costs(model: IntegerModel, observations: Any, states: np.ndarray | None = None) -> list[dict[str, Any]]:
    """
    The cost of each layer, in the order of computation. The bytes add up to those of the model.

    :param model: the integer model
    :param observations: raw observations of its own episodes, of which the first 256 are taken
    :param states: what a model with a memory remembered at each observation, see :meth:`~sb3_qpd.IntegerModel.trace`
    :return: a dict for each input grid and layer. ``weight_range`` is the share of the weights' grid that a channel's largest
        weight reaches, the median over channels. ``range`` is the share of the output's grid between its least and largest
        value, ``saturated`` the share of outputs at either end of an input grid or at the upper end of a layer's, and ``idle``
        the share of outputs that never change. The head has ``accumulator_bits`` instead, of 32
    """
    rows, before = take_rows((observations, states), slice(min(batch_size(observations), N_OBSERVATIONS)))
    steps = dict(zip(model.step_names(), model.trace(model.batch_of(rows), before), strict=True))
    costs = list(_costs(model, steps))
    sizes = {name: np.asarray(value).nbytes for name in OPTIONAL_FIELDS if (value := getattr(model, name)) is not None}
    of_input = sum(size for name, size in sizes.items() if name.startswith("input"))
    costs[0]["bytes"] += of_input
    costs[-1]["bytes"] += sum(sizes.values()) - of_input  # bounds and deviations of actions
    return costs


def _costs(model: IntegerModel, steps: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    for name, values in steps.items():
        if name.startswith("input_grid"):
            is_image = model.trunks[int(name.removeprefix("input_grid") or 0)][0].kind == "image"
            use = _use(values, (0, 255), ()) if is_image else _use(values, (-128, 127), (-128, 127))
            yield {"name": name, "kind": "input", "bytes": 0, "macs": 0, "activation_bits": 8, **use}
        elif name == "accumulators":
            head = model.layers[-1]
            bits = math.ceil(math.log2(float(np.abs(values).max()) + 1)) + 1
            yield {**_size(name, "head", head, 1), "accumulator_bits": bits}
        else:
            layer = model.layers[int(name.removeprefix("layer"))]
            kind = "convolution" if layer.is_conv else "fully connected"
            end = 2**layer.activation_bits - 1
            size = _size(name, kind, layer, math.prod(values.shape[2:]))
            yield {**size, "activation_bits": layer.activation_bits, **_use(values, (0, end), (end,))}


def _size(name: str, kind: str, layer: IntegerLayer, n_positions: int) -> dict[str, Any]:
    largest = np.abs(layer.weight.reshape(len(layer.weight), -1).astype(int)).max(axis=1)
    return {
        "name": name,
        "kind": kind,
        "shape": list(layer.weight.shape),
        "bytes": layer.nbytes,
        "macs": layer.weight.size * n_positions,
        "weight_bits": layer.weight_bits,
        "weight_range": min(1.0, float(np.median(largest)) / (2 ** (layer.weight_bits - 1) - 1)),
    }


def _use(values: np.ndarray, grid: tuple[int, int], clipped: tuple[int, ...]) -> dict[str, float]:
    """
    How the values of a step use their grid.

    :param values: shape (n_observations, n_outputs, ...)
    :param grid: its ends
    :param clipped: ends at which larger values are clipped. A zero after a ReLU, or a black pixel, is no such value
    """
    return {
        "range": float(values.max() - values.min()) / (grid[1] - grid[0]),
        "saturated": float(np.isin(values, clipped).mean()),
        "idle": float((values.min(axis=0) == values.max(axis=0)).mean()),
    }
