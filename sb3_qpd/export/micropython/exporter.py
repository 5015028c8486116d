"""The target ``micropython``: the student as one module for MicroPython, which needs no numpy."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.embedding import (
    box_limits,
    input_shapes,
    layer_numbers,
    model_numbers,
    n_inputs,
    state_size,
    to_base64,
    trunk_facts,
)
from sb3_qpd.export.files import names_of, write_files
from sb3_qpd.export.requirements import check_target
from sb3_qpd.integer import EXP_HIGH, EXP_LOW, IntegerLayer, IntegerModel
from sb3_qpd.version import __version__

PLACE = "STUDENT = None"  # in the template


def export_micropython(model: IntegerModel, out_dir: Path) -> list[Path]:
    """
    Write ``policy_micropython.py``: beside ``policy.py``, which is for Python with numpy.

    The module computes what ``model`` computes, with the model's requantization.

    :param model: the student
    :param out_dir: a folder that exists
    :return: the file
    """
    check_target("micropython", model)
    template = resources.files("sb3_qpd.export.micropython").joinpath("policy.py.in").read_text(encoding="utf-8")
    before, place, after = template.partition(PLACE)
    assert place
    lines = [f"    {name!r}: {value!a},\n" for name, value in _values(model).items()]
    text = before + "STUDENT = {\n" + "".join(lines) + "}" + after
    return write_files(out_dir, {"policy_micropython.py": text.encode()})


def _values(model: IntegerModel) -> dict[str, Any]:
    """Everything that the module knows of its student."""
    numbers = {**layer_numbers(model), **model_numbers(model), "biases": _biases(model)}
    return {
        **names_of(model),
        "version": __version__,
        "bytes": model.nbytes,
        "is_fixed": model.requantization == "fixed",
        "state_size": state_size(model),
        "n_remembered": model.n_remembered,
        "trunks": _trunks(model),
        **_action(model),
        "layers": [_layer(layer, shape) for layer, shape in zip(model.layers, input_shapes(model), strict=True)],
        **{name: to_base64(values) for name, values in numbers.items()},
    }


def _trunks(model: IntegerModel) -> list[tuple[Any, ...]]:
    """The parts and the number of layers of each trunk."""
    return [
        (
            [
                (part.key, part.kind, math.prod(part.shape), part.nvec, feature, model.origin_of(part) is not None)
                for part, feature in parts
            ],
            n_layers,
        )
        for parts, n_layers in trunk_facts(model)
    ]


def _action(model: IntegerModel) -> dict[str, Any]:
    """The action's kind, what fixed-point arithmetic clips a Box action to, and the tables of the sampler."""
    if model.is_box:
        return {"is_box": True, **box_limits(model)}
    kind = {"is_box": False, "is_bits": model.n_bits > 0, "is_list": model.action_shape != (), "nvec": model.action_nvec}
    return {**kind, "nats": model.nat_scale, "exp_high": tuple(EXP_HIGH.tolist()), "exp_low": tuple(EXP_LOW.tolist())}


def _layer(layer: IntegerLayer, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Outputs, inputs of each, bits, largest output, multipliers; of a convolution its input, stride and kernel."""
    sizes = (len(layer.weight), n_inputs(layer), layer.weight_bits, 2**layer.activation_bits - 1, layer.multiplier.size)
    return (*sizes, shape, layer.stride, layer.weight.shape[2]) if layer.is_conv else (*sizes, None, 1, 1)


def _biases(model: IntegerModel) -> np.ndarray:
    """Biases in int64. Inputs of vectors are 128 higher on the device, and what that adds is taken off here."""
    higher, used = [layer.bias.astype(np.int64) for layer in model.layers], 0
    to_head = []
    for parts, n_layers in trunk_facts(model):
        first, shift = model.layers[used], 0 if parts[0][0].kind == "image" else 128
        size = math.prod(parts[0][0].shape) if parts[0][0].is_image else sum(part.n_features for part, _ in parts)
        size += state_size(model)  # a student with a memory has one trunk
        if n_layers:
            higher[used] -= shift * _sums(first.weight)
            size = math.prod(model.layers[used + n_layers - 1].output_shape(input_shapes(model)[used + n_layers - 1]))
        to_head.append(np.full(size, 0 if n_layers else shift))
        used += n_layers
    higher[-1] -= model.layers[-1].weight.astype(np.int64) @ np.concatenate(to_head)
    return np.concatenate(higher)


def _sums(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(len(weight), -1).astype(np.int64).sum(1)
