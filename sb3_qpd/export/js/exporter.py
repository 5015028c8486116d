"""The target ``js``: the student as one ES module without dependencies, which browsers, node and other engines run."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from sb3_qpd.export.embedding import (
    box_limits,
    input_shapes,
    layer_numbers,
    model_numbers,
    state_size,
    to_base64,
    trunk_facts,
)
from sb3_qpd.export.files import names_of, write_files
from sb3_qpd.export.requirements import check_target
from sb3_qpd.integer import EXP_HIGH, EXP_LOW, IntegerModel, ObservationPart
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
    check_target("js", model)
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
    numbers = {**layer_numbers(model), **{_camel(name): values for name, values in model_numbers(model).items()}}
    return {
        **names_of(model),
        "version": __version__,
        "bytes": model.nbytes,
        "isFixed": model.requantization == "fixed",
        "history": model.history,
        "stateSize": state_size(model),
        "nRemembered": model.n_remembered,
        "trunks": _trunks(model, channels_last),
        **_action(model),
        "layers": _layers(model),
        **{name: to_base64(values).rstrip("=") for name, values in numbers.items()},
    }


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _trunks(model: IntegerModel, channels_last: bool) -> list[dict[str, Any]]:
    trunks, first = [], 0
    for parts, n_layers in trunk_facts(model):
        described = [_part(model, part, feature, channels_last and part.kind == "image") for part, feature in parts]
        trunks.append({"first": first, "end": first + n_layers, "firstFeature": parts[0][1], "parts": described})
        first += n_layers
    return trunks


def _part(model: IntegerModel, part: ObservationPart, feature: int, is_channels_last: bool) -> dict[str, Any]:
    return {
        "key": part.key,
        "kind": part.kind,
        "shape": part.shape,
        "given": [*part.shape[1:], part.shape[0]] if is_channels_last else part.shape,
        "size": math.prod(part.shape),
        "nvec": part.nvec,
        "isChannelsLast": is_channels_last,
        "hasOrigin": model.origin_of(part) is not None,
        "firstFeature": feature,
    }


def _action(model: IntegerModel) -> dict[str, Any]:
    """The action's kind and shape, what fixed-point arithmetic clips a Box action to, and the tables of the sampler."""
    values: dict[str, Any] = {"isBox": model.is_box, "actionShape": model.action_shape, "nvec": model.action_nvec}
    if model.is_box:
        return values | box_limits(model)
    multiplier, shift = model.nat_scale
    tables = {"expHigh": EXP_HIGH.tolist(), "expLow": EXP_LOW.tolist()}
    return values | {"isBits": model.n_bits > 0, "natMultiplier": multiplier, "natShift": shift, **tables}


def _layers(model: IntegerModel) -> list[dict[str, Any]]:
    """Shapes and bits; of a convolution also its stride and the shape of its input."""
    found = []
    for layer, shape in zip(model.layers, input_shapes(model), strict=True):
        top, units = 2**layer.activation_bits - 1, layer.multiplier.size
        one = {"shape": layer.weight.shape, "bits": layer.weight_bits, "top": top, "nUnits": units}
        found.append({**one, "stride": layer.stride, "input": shape} if layer.is_conv else one)
    return found
