"""
The target ``c`` of an undistilled teacher: its float actor in C99, with the functions of a student's C.

It uses float and ``<math.h>``, so results may differ by a few roundings between compilers and libraries. It is for trying a
device before anything is compressed; a student is smaller and has the same bits everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.c.fields import Field, c_names
from sb3_qpd.export.c.legend import plain
from sb3_qpd.export.c.templating import environment
from sb3_qpd.export.files import write_files
from sb3_qpd.export.float_actor import Activation, Conv, FloatActor, InputPart, Layer
from sb3_qpd.version import __version__

HEADER, SOURCE = "policy.h", "policy.c"
TEMPLATES = environment()
# activation -> C expression of x and its parameters a and b
EXPRESSIONS = {
    "relu": "x > 0.0f ? x : 0.0f",
    "leaky_relu": "x > 0.0f ? x : a * x",
    "clip": "x < a ? a : (x > b ? b : x)",
    "tanh": "tanhf(x)",
    "sigmoid": "1.0f / (1.0f + expf(-x))",
    "elu": "x > 0.0f ? x : a * expm1f(x)",
    "selu": "b * (x > 0.0f ? x : a * expm1f(x))",
    "silu": "x / (1.0f + expf(-x))",
    "softplus": "(x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x)))",
    "softsign": "x / (1.0f + fabsf(x))",
    "gelu": "0.5f * x * (1.0f + erff(x * 0.70710678f))",
}


def export_undistilled_c(actor: FloatActor, out_dir: Path) -> list[Path]:
    """
    Write ``policy.h`` and ``policy.c``.

    :param actor: the teacher's actor
    :param out_dir: a folder that exists
    :return: the files
    """
    values = _values(actor)
    texts = {file: TEMPLATES.get_template(f"undistilled_{file}").render(values) for file in (HEADER, SOURCE)}
    return write_files(out_dir, {file: text.encode() for file, text in texts.items()})


def _values(actor: FloatActor) -> dict[str, Any]:
    layers = [*(layer for one in actor.parts for layer in one.layers), *actor.layers]
    kinds, env = {layer.kind for layer in layers if isinstance(layer, Activation)}, actor.metadata.get("env")
    inputs, n_features, largest, n_layers = list[dict[str, Any]](), 0, 0, 0
    keys = [one.part.key for one in actor.parts if one.part.key is not None]
    for one, name in zip(actor.parts, c_names(keys) or ["observation"], strict=True):
        steps, n, most = _steps(one.layers, one.part.shape, one.part.n_features, n_layers)
        inputs.append(_input(one, name) | {"steps": steps, "at": n_features, "n_out": n})
        n_features, largest, n_layers = n_features + n, max(largest, most), n_layers + len(steps)
    steps, _, most = _steps(actor.layers, (), n_features, n_layers)
    part, is_image = actor.parts[0].part, not keys and actor.parts[0].part.kind == "image"
    values: dict[str, Any] = {
        "actor": actor,
        "inputs": inputs,
        "steps": steps,
        "all_steps": [*(step for one in inputs for step in one["steps"]), *steps],
        "is_dict": bool(keys),
        "n_features": n_features,
        "buffer_size": max(largest, most),
        "activations": {kind: EXPRESSIONS[kind] for kind in sorted(kinds)},
        "has_conv": any(isinstance(layer, Conv) for layer in layers),
        "image": is_image,
        "action_nvec": ", ".join(map(str, actor.nvec)),
        "discrete": bool(actor.nvec) and not actor.shape,
        "low": ", ".join(map(_number, actor.low)),  # of a macro, which is one line
        "high": ", ".join(map(_number, actor.high)),
        "teacher": plain(actor.metadata.get("teacher")),
        "env_id": plain(env.get("env_id")) if isinstance(env, dict) else "",
        "version": __version__,
        "n_bytes": 4 * actor.n_parameters,
    }
    return values | (_frames(part.shape, env) if is_image else {})


def _input(one: InputPart, name: str) -> dict[str, Any]:
    """A part of the observation as the templates read it."""
    part = one.part
    empty = np.zeros(0, np.float32)
    has_mean = not part.is_image and bool(np.any(one.mean))
    return {
        "field": Field(part, name, False, empty, empty, None),
        "key": plain(part.key),
        "nvec": ", ".join(map(str, part.nvec)),
        "means": [_numbers(np.broadcast_to(half, part.shape)) for half in one.split_mean] if has_mean else [],
        "factor": _numbers(np.broadcast_to(one.factor, part.shape)) if not part.is_image and np.any(one.factor != 1) else "",
        "pixel": _number(float(one.factor)) if part.is_image else "",
        "clip": _number(one.clip) if math.isfinite(one.clip) else "",
    }


def _steps(layers: Sequence[Layer], shape: tuple[int, ...], n: int, first: int) -> tuple[list[dict[str, Any]], int, int]:
    """
    Layers as the templates call them.

    :param layers: layers that follow each other
    :param shape: shape of an image that they take
    :param n: number of values that they take
    :param first: number of the first layer
    :return: the layers, the number of values that they give, and the largest number of values between two of them
    """
    steps, largest = list[dict[str, Any]](), n
    for number, layer in enumerate(layers, first):
        if isinstance(layer, Activation):
            steps.append({"kind": layer.kind, "n": n, "parameters": [_number(one) for one in (*layer.parameters, 0, 0)[:2]]})
            continue
        arrays = {"weight": _numbers(layer.weight), "bias": _numbers(layer.bias), "name": f"layer{number}"}
        if isinstance(layer, Conv):
            sizes = [*shape, *layer.weight.shape[2:], *layer.stride]
            shape = layer.output_shape(shape)
            steps.append({"kind": "conv", "sizes": ", ".join(map(str, [*sizes, *shape])), **arrays})
            n = math.prod(shape)
        else:
            steps.append({"kind": "dense", "n_in": n, "n_out": len(layer.bias), **arrays})
            n = len(layer.bias)
        largest = max(largest, n)
    return steps, n, largest


def _frames(shape: tuple[int, ...], env: Any) -> dict[str, Any]:
    """How an image observation consists of frames: as for a student, three channels are one frame, others as many frames."""
    channels, height, width = shape
    stacked = env.get("frame_stack") if isinstance(env, dict) else None
    n_frames = (
        stacked if isinstance(stacked, int) and stacked > 1 and channels % stacked == 0 else 1 if channels == 3 else channels
    )
    return {"n_frames": n_frames, "channels": channels // n_frames, "height": height, "width": width}


def _number(value: float) -> str:
    """A literal of C that reads back as the same float32."""
    text = f"{np.float32(value):.9g}"
    return f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f"


def _numbers(values: np.ndarray) -> str:
    texts = [_number(value) for value in np.ravel(values)]
    return ",\n    ".join(", ".join(texts[at : at + 8]) for at in range(0, len(texts), 8))
