"""
The student as C99: integers, no heap, no library but ``<string.h>``, the same bits whatever the compiler and its flags.

The sources are the templates in ``c_templates/``, which are C but for three things: lines ``//: if``, ``//: else`` and
``//: end`` keep what this student needs, ``$name`` stands for a number or a list, and ``policy`` for the name of the files.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd import __version__
from sb3_qpd.export import check_spaces
from sb3_qpd.export.c_layout import CLayer, Place, lay_out, plan_arena
from sb3_qpd.export.c_text import (
    array,
    comma_list,
    float_literal,
    hex_literal,
    read_template,
    rename,
    render,
    unsigned_literal,
    wrapped_list,
)
from sb3_qpd.export.c_vectors import vectors_text
from sb3_qpd.integer import _HIGH_TABLE, _LOW_TABLE, IntegerModel

RESERVED = ("main", "test_vectors")  # the names of the other files


def export_c(
    model: IntegerModel,
    out_dir: Path,
    *,
    name: str = "policy",
    n_frames: int | None = None,
    observations: np.ndarray | None = None,
) -> list[Path]:
    """
    Write ``policy.h``, ``policy.c``, ``test_vectors.h``, ``main.c`` (an example that checks the test vectors) and
    ``policy_README.md``. The C computes what ``model`` computes, with its requantization.

    :param model: the student
    :param out_dir: a folder that exists
    :param name: of the files, and the prefix of every public name in them
    :param n_frames: for images: frames that make an observation, each with an equal share of its channels. The default is
        what the student was trained with, else a frame for each channel, or one frame of three channels
    :param observations: raw ones for the test vectors, a few are taken; the default draws some
    :return: the files
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
        raise ValueError(f"name must be a lower-case C identifier such as 'policy', and none of {RESERVED}, got '{name}'")
    check_spaces(model, "c", indices=True, multi_action=True)
    layers = lay_out(model)
    places, arena_bytes = plan_arena(model, layers)
    values = {
        **_description(model, layers, name),
        **_interface(model, n_frames),
        **_arithmetic(model, layers, places, arena_bytes),
        **_memory(model, layers),
    }
    values["vectors"] = vectors_text(model, values["n_frames"], observations)
    flags = _flags(model, layers, values)
    files = {f"{name}.h": "policy.h", f"{name}.c": "policy.c"} | {f: f for f in ("test_vectors.h", "main.c")}
    files[f"{name}_README.md"] = "README.md"  # a folder may have a README of its own
    texts = {file: rename(render(read_template(template), flags, values), name) for file, template in files.items()}
    for file, text in texts.items():
        (out_dir / file).write_text(text, encoding="utf-8")
    return [out_dir / file for file in texts]


def _flags(model: IntegerModel, layers: list[CLayer], values: dict[str, Any]) -> set[str]:
    hidden, frames = layers[:-1], (values["n_frames"], values["frame_channels"])
    facts = {
        "image": model.is_image,
        "vector": model.parts[0].kind == "vector",
        "indices": model.parts[0].kind == "one_hot",
        "box": model.is_box,
        "discrete": not model.is_box and not model.action_shape,
        "several": not model.is_box and bool(model.action_shape),
        "bits": model.n_bits > 0,
        model.requantization: True,
        "conv": any(layer.layer.is_conv for layer in layers),
        "hidden": bool(hidden),
        "hidden_dense": any(not layer.layer.is_conv for layer in hidden),
        "packed": any(layer.is_packed for layer in layers),
        "ragged": any(layer.run % 4 for layer in layers),
        "half_eights": any(n % 8 for layer in layers for n in (layer.run, layer.n_in)),
        "float_helpers": model.requantization == "fixed" and (model.is_box or model.parts[0].kind == "vector"),
        "many_frames": frames[0] > 1,
        "four_frames": frames == (4, 1),
    }
    return {fact for fact, is_true in facts.items() if is_true}


# -- values of the templates ----------------------------------------------------------------------------------------------


def _description(model: IntegerModel, layers: list[CLayer], name: str) -> dict[str, Any]:
    teacher, env = _plain(model.metadata.get("teacher")), model.metadata.get("env")
    env_id = _plain(env.get("env_id")) if isinstance(env, dict) else ""
    of = f"a student of {teacher}" if teacher else "a student"
    where = f" for {env_id}" if env_id else ""
    summary = [" *     " + _summary(layer) for layer in layers]
    return {
        "title": f"{name}: {of}{where}, {model.requantization} requantization",
        "version": __version__,
        "summary": "\n".join(summary),
        "layer_list": "\n".join("    " + _summary(layer) for layer in layers),
    }


def _plain(text: Any) -> str:
    """What is safe in a comment of C: a teacher's file says how it is called, and could end the comment."""
    return re.sub(r"[^A-Za-z0-9_.: @/+-]", "_", text)[:100] if isinstance(text, str) else ""


def _summary(layer: CLayer) -> str:
    shapes = [" x ".join(map(str, shape)) for shape in (layer.shape, layer.output_shape)]
    kernel = f"kernel {layer.layer.weight.shape[2]}, stride {layer.layer.stride}, " if layer.layer.is_conv else ""
    output = f"{layer.layer.activation_bits}-bit outputs" if layer.layer.activation_bits else "sums of 32 bits"
    return f"{layer.name:6} {shapes[0]:>12} -> {shapes[1]:12} {kernel}{layer.layer.weight_bits}-bit weights, {output}"


def _interface(model: IntegerModel, n_frames: int | None) -> dict[str, Any]:
    """What the caller sees: observations and actions."""
    head = model.layers[-1]
    values: dict[str, Any] = {"n_outputs": len(head.weight), "n_frames": 1, "frame_channels": 1}
    if model.is_image:
        channels, height, width = model.observation_shape
        frames = _n_frames(model, n_frames)
        values |= {"height": height, "width": width, "n_frames": frames, "frame_channels": channels // frames}
        values |= {"observation_argument": "", "observation_parameter": "", "test_observation": ""}
    else:
        if n_frames is not None:
            raise ValueError("n_frames is for images; this student takes vectors")
        is_indices = model.parts[0].kind == "one_hot"
        ctype = "int32_t" if is_indices else "int8_t" if model.requantization == "fixed" else "float"
        values["observation_size"] = math.prod(model.observation_shape)
        values["observation_argument"] = f"const {ctype} observation[POLICY_OBSERVATION_SIZE], "
        values["observation_parameter"] = "observation, "
        values["test_observation"] = "test_observations[vector], "
        values["input_multiplier"] = comma_list(model.input_multiplier, float_literal)
        values["input_offset"] = comma_list(model.input_offset, float_literal)
        if is_indices:
            values |= _categories(model)
    if model.is_box:
        values |= {"action_scale": comma_list(head.multiplier, float_literal)}
        for name in ("action_low", "action_high", "action_std"):
            values[name] = comma_list(getattr(model, name), float_literal)
    else:
        nvec = model.action_nvec
        values |= {"output_scale": float_literal(head.multiplier[0]), "n_actions": len(nvec), "n_scores": sum(nvec)}
        values |= {"action_categories": comma_list(nvec), "most_categories": max(nvec)}
    return values


def _categories(model: IntegerModel) -> dict[str, Any]:
    """What the categories of indices become on the first layer's grid, 128 higher."""
    (part,) = model.parts
    assert model.input_multiplier is not None and model.input_offset is not None
    m, a = model.input_multiplier, model.input_offset
    absent, present = (np.clip(np.rint(x), -128, 127) + 128 for x in (a, m + a))
    return {
        "categories": comma_list(part.nvec),
        "n_features": part.n_features,
        "absent": comma_list(absent.astype(int)),
        "present": comma_list(present.astype(int)),
    }


def _n_frames(model: IntegerModel, n_frames: int | None) -> int:
    channels = model.observation_shape[0]
    if n_frames is None:
        stacked = (model.metadata.get("env") or {}).get("frame_stack", 1)
        n_frames = stacked if stacked > 1 else (1 if channels == 3 else channels)
    if n_frames < 1 or channels % n_frames:
        raise ValueError(f"{channels} channels are no {n_frames} frames of equal size: give n_frames=")
    return n_frames


def _arithmetic(model: IntegerModel, layers: list[CLayer], places: list[Place], arena_bytes: int) -> dict[str, Any]:
    """Tables, and the calls layer by layer."""
    values: dict[str, Any] = {
        "arena_bytes": arena_bytes,
        "arena_text": f"{arena_bytes:,}",
        "size_type": _size_type(layers),
        "input_at": places[0].input,
        "max_hidden": max([layer.n_out for layer in layers[:-1] if not layer.layer.is_conv], default=1),
        "or_planes": ", or bit planes in uint32_t" if any(layer.is_packed for layer in layers) else "",
        "unpacked_argument": ", int8_t *unpacked" if any(layer.is_packed for layer in layers) else "",
        "tables": "\n".join(_tables(layer, model.requantization) for layer in layers),
        "layer_structs": "\n".join(_struct(layer, layers, model.requantization) for layer in layers),
        "calls": "\n".join(_calls(i, layers, places, model.is_image) for i in range(len(layers))),
        "exp_high": wrapped_list(_HIGH_TABLE),
        "exp_low": wrapped_list(_LOW_TABLE),
    }
    if model.is_box:
        values["lowest"], values["highest"] = map(comma_list, model.bounds_in_units())
    else:
        values |= _sampler(model)
    return values


def _sampler(model: IntegerModel) -> dict[str, Any]:
    multiplier, shift = int(model._nat_multiplier), model._nat_shift
    if shift <= 0:  # a unit of 2^20 nats and more: any difference is beyond the tables
        multiplier, shift = (8192 if multiplier else 0), 1
    shift = min(shift, 63)
    shifts = [16 + max(0, (n - 1).bit_length() - 8) for n in model.action_nvec]
    return {
        "nat_multiplier": multiplier,
        "nat_shift": shift,
        "nat_shift_minus_1": shift - 1,
        "weight_shift": shifts[0],
        "weight_shifts": comma_list(shifts),
    }


def _tables(layer: CLayer, requantization: str) -> str:
    stored = layer.stored
    tables = [
        array("uint32_t", f"{layer.name}_weights", stored, hex_literal)
        if layer.is_packed
        else array("int8_t", f"{layer.name}_weights", stored),
        array("int32_t", f"{layer.name}_bias", layer.bias),
    ]
    if layer.layer.activation_bits and requantization == "float32":
        tables.append(array("float", f"{layer.name}_multiplier", layer.layer.multiplier, float_literal))
    elif layer.layer.activation_bits:
        m, shift = layer.fixed()
        tables.append(array("uint32_t", f"{layer.name}_multiplier", m, unsigned_literal))
        tables.append(array("uint8_t", f"{layer.name}_shift", shift - 1))
    return "".join(tables)


def _struct(layer: CLayer, layers: list[CLayer], requantization: str) -> str:
    """Members in the order of ``struct layer``; a fully connected layer has no window."""
    name, is_head = layer.name, layer.layer.activation_bits == 0
    pointers = [f"{name}_weights", f"{name}_bias"]
    if len(layers) > 1:
        scales = ["multiplier", "shift"] if requantization == "fixed" else ["multiplier"]
        pointers += ["NULL" if is_head else f"{name}_{scale}" for scale in scales]
    members = ", ".join([*pointers, *map(str, _dimensions(layer, layers))])
    return f"static const struct layer {name} = {{{members}}};"


def _dimensions(layer: CLayer, layers: list[CLayer]) -> list[int]:
    dimensions = [layer.n_in, layer.n_out]
    if len(layers) > 1:
        dimensions.append(2**layer.layer.activation_bits - 1)
    if any(other.is_packed for other in layers):
        dimensions += [layer.layer.weight_bits, layer.chunk]
    if any(other.layer.is_conv for other in layers):
        dimensions += _window(layer)
    return dimensions


def _window(layer: CLayer) -> list[int]:
    """How a convolution's window goes over its input; nothing for a fully connected layer."""
    if not layer.layer.is_conv:
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


def _calls(i: int, layers: list[CLayer], places: list[Place], is_image: bool) -> str:
    layer, place = layers[i], places[i]
    given = "(const uint8_t *)stack" if i == 0 and is_image else f"at({place.input})"
    room = f"arena.halves + {place.columns // 2}"
    if any(other.is_packed for other in layers):
        room += f", (int8_t *)at({place.unpacked})"
    lines = [f"/* {_summary(layer)} */"]
    if layer.layer.is_conv:
        lines += [f"convolve(&{layer.name}, {given}, at({place.output}), {room});"]
    elif layer.layer.activation_bits == 0:
        lines += [f"connect(&{layer.name}, {given}, outputs, {room});"]
        lines += [f"POLICY_TRACE({i + 1}, outputs, {4 * layer.n_out});"]
    else:
        lines += [
            f"connect(&{layer.name}, {given}, sums, {room});",
            f"activate(&{layer.name}, sums, at({place.output}));",
        ]
    if layer.layer.activation_bits:
        lines.append(f"POLICY_TRACE({i + 1}, at({place.output}), {layer.output_bytes});")
    return "\n".join("    " + line for line in lines)


def _size_type(layers: list[CLayer]) -> str:
    """Wide enough for every dimension."""
    return "uint16_t" if max(max(_dimensions(layer, layers)) for layer in layers) < 2**16 else "uint32_t"


def _memory(model: IntegerModel, layers: list[CLayer]) -> dict[str, Any]:
    """Bytes of constants in flash, for the README."""
    fixed, total, size = model.requantization == "fixed", 0, int(_size_type(layers)[4:6]) // 8
    for layer in layers:
        scales = 0 if layer.layer.activation_bits == 0 else 5 if fixed else 4
        pointers, dimensions = 2 + min(1, scales) + fixed, len(_dimensions(layer, layers))
        total += layer.stored.nbytes + (4 + scales) * layer.n_out + 4 * pointers + dimensions * size
    if model.parts[0].kind == "vector" and not fixed:
        total += 8 * math.prod(model.observation_shape)
    elif model.parts[0].kind == "one_hot":
        total += 2 * model.parts[0].n_features + 4 * len(model.parts[0].nvec)
    if model.is_box:
        total += (8 if fixed else 12) * layers[-1].n_out
    else:
        total += 4 * _HIGH_TABLE.size + 2 * _LOW_TABLE.size
        total += 5 * len(model.action_nvec) if model.action_shape else 0
    stack = math.prod(model.observation_shape) if model.is_image else 0
    return {"constant_bytes": f"{total:,}", "stack_bytes": f"{stack:,}", "macs": f"{model.macs:,}"}
