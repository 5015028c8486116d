"""
The target ``c`` of an undistilled teacher: its float actor in C99, with the functions of a student's C.

It uses float and ``<math.h>``, so results may differ by a few roundings between compilers and libraries. It is for trying a
device before anything is compressed; a student is smaller and has the same bits everywhere.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.c.templating import environment
from sb3_qpd.export.files import write_files
from sb3_qpd.export.float_actor import Activation, Conv, FloatActor, Layer
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
    :raises ValueError: the observation is a Dict
    """
    if len(actor.parts) > 1 or actor.parts[0].part.key is not None:
        raise ValueError("--target c --undistilled takes observations of one array, this teacher's are a Dict. Take onnx")
    values = _values(actor)
    texts = {file: TEMPLATES.get_template(f"undistilled_{file}").render(values) for file in (HEADER, SOURCE)}
    return write_files(out_dir, {file: text.encode() for file, text in texts.items()})


def _values(actor: FloatActor) -> dict[str, Any]:
    one = actor.parts[0]
    part = one.part
    steps, largest = _steps([*one.layers, *actor.layers], part.shape, part.n_features)
    kinds = {layer.kind for layer in (*one.layers, *actor.layers) if isinstance(layer, Activation)}
    env = actor.metadata.get("env")
    has_mean = not part.is_image and bool(np.any(one.mean))
    values: dict[str, Any] = {
        "actor": actor,
        "steps": steps,
        "buffer_size": max(largest, part.n_features),
        "activations": {kind: EXPRESSIONS[kind] for kind in sorted(kinds)},
        "image": part.kind == "image",
        "indices": part.kind == "one_hot",
        "nvec": ", ".join(map(str, part.nvec)),
        "observation_type": {"image": "uint8_t", "one_hot": "int32_t"}.get(part.kind, "float"),
        "observation_size": math.prod(part.shape),
        "n_features": part.n_features,
        "means": [_numbers(np.broadcast_to(half, part.shape)) for half in one.split_mean] if has_mean else [],
        "factor": _numbers(np.broadcast_to(one.factor, part.shape)) if not part.is_image and np.any(one.factor != 1) else "",
        "pixel": _number(float(one.factor)) if part.is_image else "",
        "clip": _number(one.clip) if math.isfinite(one.clip) else "",
        "action_nvec": ", ".join(map(str, actor.nvec)),
        "discrete": bool(actor.nvec) and not actor.shape,
        "low": ", ".join(map(_number, actor.low)),  # of a macro, which is one line
        "high": ", ".join(map(_number, actor.high)),
        "teacher": _plain(actor.metadata.get("teacher")),
        "env_id": _plain(env.get("env_id")) if isinstance(env, dict) else "",
        "version": __version__,
        "n_bytes": 4 * actor.n_parameters,
    }
    return values | (_frames(part.shape, env) if part.kind == "image" else {})


def _steps(layers: list[Layer], shape: tuple[int, ...], n: int) -> tuple[list[dict[str, Any]], int]:
    """The layers as the template calls them, and the largest number of values between two of them."""
    steps, largest = list[dict[str, Any]](), n
    for number, layer in enumerate(layers):
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
    return steps, largest


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


def _plain(text: Any) -> str:
    """Text that is safe in a comment of C."""
    return re.sub(r"[^A-Za-z0-9_.: @/+-]", "_", text).replace("*/", "_")[:100] if isinstance(text, str) else ""
