"""The target ``js``: the student as one ES module without dependencies, which browsers, node and other engines run."""

from __future__ import annotations

import base64
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.files import names_of, write_files
from sb3_qpd.export.requirements import StudentFacts, check_target
from sb3_qpd.integer import EXP_HIGH, EXP_LOW, IntegerLayer, IntegerModel, ObservationPart, fixed_point, pack
from sb3_qpd.version import __version__

PLACE = "export const student = null;"  # in the template


def export_js(model: IntegerModel, out_dir: Path, *, channels_last: bool = False) -> list[Path]:
    """
    Write ``policy.mjs``.

    The module computes what ``model`` computes, with the model's requantization.

    :param model: the student
    :param out_dir: a folder that exists
    :param channels_last: images come as (height, width, channels)
    :return: the file
    :raises ValueError: if an option does not fit the student
    """
    check_target("js", StudentFacts.of_model(model))
    if channels_last and not any(part.kind == "image" for part in model.parts):
        raise ValueError(f"channels_last is for images, this student takes observations of shape {model.observation_shape}")
    template = resources.files("sb3_qpd.export.js").joinpath("policy.mjs").read_text(encoding="utf-8")
    before, place, after = template.partition(PLACE)
    assert place
    text = before + PLACE.replace("null", _literal(_values(model, channels_last))) + after
    return write_files(out_dir, {"policy.mjs": text.encode()})


def _literal(values: dict[str, Any]) -> str:
    """Values as a literal of JavaScript, one line each. A page can hold it too: no text of a file ends its script."""
    lines = [f"  {name}: {json.dumps(value)},\n" for name, value in values.items()]
    return ("{\n" + "".join(lines) + "}").replace("<", "\\u003c")


def _values(model: IntegerModel, channels_last: bool) -> dict[str, Any]:
    """Everything that the module knows of its student."""
    arrays = {
        "inputMultiplier": model.input_multiplier,
        "inputOffset": model.input_offset,
        "inputOrigin": model.input_origin,
        "actionLow": model.action_low,
        "actionHigh": model.action_high,
        "actionStd": model.action_std,
    }
    return {
        **names_of(model),
        "version": __version__,
        "bytes": model.nbytes,
        "isFixed": model.requantization == "fixed",
        "trunks": _trunks(model, channels_last),
        **_action(model),
        "layers": _layers(model),
        **_layer_numbers(model),
        **{name: _base64(np.asarray([] if values is None else values)) for name, values in arrays.items()},
    }


def _base64(array: np.ndarray) -> str:
    """Little-endian numbers in base64 without padding."""
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode().rstrip("=")


def _trunks(model: IntegerModel, channels_last: bool) -> list[dict[str, Any]]:
    trunks, first, feature = [], 0, 0
    for parts, n_layers in zip(model.trunks, model.branches, strict=True):
        trunk: dict[str, Any] = {"first": first, "end": first + n_layers, "firstFeature": feature, "parts": []}
        for part in parts:
            is_last = channels_last and part.kind == "image"
            trunk["parts"].append(
                {
                    "key": part.key,
                    "kind": part.kind,
                    "shape": part.shape,
                    "given": [*part.shape[1:], part.shape[0]] if is_last else part.shape,
                    "size": math.prod(part.shape),
                    "nvec": part.nvec,
                    "isChannelsLast": is_last,
                    "hasOrigin": model.origin_of(part) is not None,
                    "firstFeature": feature,
                }
            )
            feature += _n_grid(part)
        trunks.append(trunk)
        first += n_layers
    return trunks


def _n_grid(part: ObservationPart) -> int:
    """How many input multipliers a part has."""
    return 0 if part.kind == "image" else 1 if part.is_image else part.n_features


def _action(model: IntegerModel) -> dict[str, Any]:
    """The action's kind and shape, what fixed-point arithmetic clips a Box action to, and the tables of the sampler."""
    values: dict[str, Any] = {"isBox": model.is_box, "actionShape": model.action_shape, "nvec": model.action_nvec}
    if model.is_box:
        lowest, highest = model.bounds_in_units()
        return {**values, "lowest": lowest.tolist(), "highest": highest.tolist()}
    multiplier, shift = model.nat_scale
    tables = {"expHigh": EXP_HIGH.tolist(), "expLow": EXP_LOW.tolist()}
    return {**values, "isBits": model.n_bits > 0, "natMultiplier": multiplier, "natShift": shift, **tables}


def _layers(model: IntegerModel) -> list[dict[str, Any]]:
    """Shapes and bits; of a convolution also its stride and the shape of its input."""
    shapes, found = _input_shapes(model), []
    for layer, shape in zip(model.layers, shapes, strict=True):
        units = layer.multiplier.size
        one = {"shape": layer.weight.shape, "bits": layer.weight_bits, "top": 2**layer.activation_bits - 1, "nUnits": units}
        found.append({**one, "stride": layer.stride, "input": shape} if layer.is_conv else one)
    return found


def _input_shapes(model: IntegerModel) -> list[tuple[int, ...]]:
    """The shape of one input of each layer, head included."""
    shapes: list[tuple[int, ...]] = []
    layers = iter(model.layers)
    for parts, n_layers in zip(model.trunks, model.branches, strict=True):
        shape: tuple[int, ...] = parts[0].shape
        for _ in range(n_layers):
            shapes.append(shape)
            shape = next(layers).output_shape(shape)
    return [*shapes, ()]


def _layer_numbers(model: IntegerModel) -> dict[str, str]:
    """Numbers of all layers, one after the other. Factors and shifts are for fixed-point arithmetic."""
    is_fixed, fixed = model.requantization == "fixed", [_fixed(layer) for layer in model.layers]
    return {
        "weights": _base64(np.concatenate([pack(layer.weight, layer.weight_bits) for layer in model.layers])),
        "biases": _base64(np.concatenate([layer.bias for layer in model.layers])),
        "multipliers": _base64(np.concatenate([layer.multiplier for layer in model.layers])),
        "factors": _base64(np.concatenate([m for m, _ in fixed]) if is_fixed else np.array([], np.uint32)),
        "shifts": _base64(np.concatenate([shift for _, shift in fixed]) if is_fixed else np.array([], np.uint8)),
    }


def _fixed(layer: IntegerLayer) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers as integers and shifts, one for each channel."""
    m, shift = fixed_point(np.broadcast_to(layer.multiplier, layer.bias.shape))
    return m.astype(np.uint32), shift.astype(np.uint8)
