"""
The target ``c``: the student as C99 sources, with the same bits for every compiler and its flags.

The sources use integers, no heap, and no library but ``<string.h>``. They are written from ``templates/``: C with three
additions of Jinja2.

- A line that begins with ``//:`` is a statement. An editor for C takes it for a comment.
- ``${name}`` is a value. C has no ``$``; Jinja2's usual ``{{ name }}`` could be an initializer.
- ``//#`` begins a comment of the template.

Jinja2 drops the empty lines that follow a statement. Put them before the statement, or write ``//#``: its empty line remains.
The templates call the files ``policy``; :func:`~sb3_qpd.export.c.text.rename` gives them another name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.checks import check_flags
from sb3_qpd.export.c.fields import Field, fields_of
from sb3_qpd.export.c.layout import CLayer, Layout, Place, dimensions, lay_out, plan_arena
from sb3_qpd.export.c.legend import legend, plain
from sb3_qpd.export.c.memory import Memory
from sb3_qpd.export.c.proof import prove_sizes
from sb3_qpd.export.c.templating import environment
from sb3_qpd.export.c.text import (
    block_initializer,
    break_signature,
    double_literal,
    float_literal,
    hex_literal,
    inline_initializer,
    integer_literal,
    literals,
    rename,
    unsigned_literal,
    value_initializer,
)
from sb3_qpd.export.c.vectors import make_vectors
from sb3_qpd.export.files import write_files
from sb3_qpd.export.requirements import check_target
from sb3_qpd.export.value_head import find_value_head
from sb3_qpd.integer import EXP_HIGH, EXP_LOW, IntegerModel, weight_shift
from sb3_qpd.version import __version__

RESERVED = ("main", "test_vectors")  # names of files that are written too
BYTES = {"uint8_t": 1, "int8_t": 1, "int32_t": 4, "float": 4, "double": 8}

TEMPLATES = environment()
TEMPLATES.globals["zip"] = zip
# the first five write numbers as literals of C, the last two write literals as an initializer
TEMPLATES.filters |= {
    "floats": partial(literals, literal=float_literal),
    "doubles": partial(literals, literal=double_literal),
    "integers": partial(literals, literal=integer_literal),
    "unsigned": partial(literals, literal=unsigned_literal),
    "hex": partial(literals, literal=hex_literal),
    "shape": np.shape,
    "inline": inline_initializer,
    "block": block_initializer,
    "plain": plain,
    "value_of": value_initializer,
    "signature": break_signature,
}


@dataclass(frozen=True)
class COptions:
    """
    Options of the target ``c``.

    :param name: name of the files, and prefix of every public name in them. A name other than ``policy`` is in front of the
        names of test vectors and example too, so that a folder or a program holds several policies
    :param n_frames: number of frames in an image observation, each with an equal share of the channels. By default the
        ``frame_stack`` that the student was trained with. Without one, three channels are one frame, and other numbers of
        channels are as many frames
    :param observations: raw observations for the test vectors, of which at most 32 (images: 2) are used. By default random
        ones. For a student with a memory they are those of one episode
    :param reentrant: write functions whose memory is the caller's, so that several threads can act at once
    :param probabilities: write ``policy_weights``, which gives the weights that actions are drawn with
    :param with_value: write ``policy_value`` too. The model needs a value head,
        see :func:`~sb3_qpd.export.value_head.add_value_head`
    :raises ValueError: an option has a value that it does not take
    """

    name: str = "policy"
    n_frames: int | None = None
    observations: Any = None
    reentrant: bool = False
    probabilities: bool = False
    with_value: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in RESERVED:
            wanted = f"name must be a lower-case C identifier such as 'policy', and none of {RESERVED}"
            raise ValueError(f"{wanted}, got {self.name!r}")
        check_flags(reentrant=self.reentrant, probabilities=self.probabilities, with_value=self.with_value)


def export_c(model: IntegerModel, out_dir: Path, **options: Any) -> list[Path]:
    """
    Write ``policy.h``, ``policy.c``, ``test_vectors.h``, ``main.c`` and ``policy_README.md``.

    The C computes what ``model`` computes, with the model's requantization. ``main.c`` is an example that checks the test
    vectors.

    :param model: the student
    :param out_dir: a folder that exists
    :param options: see :class:`COptions`
    :return: the files
    :raises ValueError: if C cannot take the student, or an option does not fit it
    """
    return write_files(out_dir, {file: text.encode() for file, text in c_sources(model, **options).items()})


def c_sources(model: IntegerModel, **options: Any) -> dict[str, str]:
    """
    The files of :func:`export_c` as texts by name.

    :param model: the student
    :param options: see :class:`COptions`
    :raises ValueError: if C cannot take the student, or an option does not fit it
    """
    given = COptions(**options)
    check_target("c", model)
    if given.probabilities and model.is_box:
        raise ValueError("probabilities=True is for discrete actions, this student has a Box: its deviation is in the header")
    value = find_value_head(model) if given.with_value else None
    if given.with_value and value is None:
        raise ValueError("with_value=True needs a value head: add it by add_value_head(model, policy)")
    values = _values(model, lay_out(model, value), given)
    files = {rename(file, given.name): file for file in ("policy.h", "policy.c", "test_vectors.h", "main.c")}
    files[f"{given.name}_README.md"] = "README.md"  # a folder may have a README of its own
    return {file: rename(TEMPLATES.get_template(template).render(values), given.name) for file, template in files.items()}


def _values(model: IntegerModel, layout: Layout, options: COptions) -> dict[str, Any]:
    """Everything about the student that the templates refer to."""
    layers = layout.layers
    places, arena_bytes = plan_arena(layout)
    prove_sizes(model, layout, places, arena_bytes)
    n_frames, env = _n_frames(model, options.n_frames), model.metadata.get("env")
    return {
        "name": options.name,
        "reentrant": options.reentrant,
        "probabilities": options.probabilities,
        "model": model,
        "layers": layers,
        "head_layer": layout.head,
        "value_layer": layout.value,
        "head_place": places[-1],
        "chains": _chains(fields_of(model), layout, places),
        "dimensions": dimensions(layers),
        "size_type": _size_type(layers),
        "index_type": "uint_fast16_t" if _size_type(layers) == "uint16_t" else "uint32_t",
        "arena_bytes": arena_bytes,
        "constant_bytes": _constant_bytes(model, layers),
        "n_frames": n_frames,
        "vectors": make_vectors(model, n_frames, options.observations, layout.value is not None),
        "version": __version__,
        "legend": legend(model),
        "teacher": plain(model.metadata.get("teacher")),
        "env_id": plain(env.get("env_id")) if isinstance(env, dict) else "",
        **_observation(model),
        **_action(model),
        "fixed": model.requantization == "fixed",
    }


def _chains(fields: list[Field], layout: Layout, places: list[Place]) -> list[dict[str, Any]]:
    """Each trunk with its fields, its layers and their places, and the place of its input."""
    chains, used, features = [], 0, 0
    for number, trunk in enumerate(layout.trunks):
        of_trunk = places[used : used + len(trunk.layers)]
        start = of_trunk[0].input if of_trunk else places[-1].input + features
        pairs = list(zip(trunk.layers, of_trunk, strict=True))
        own = [field for field in fields if field.part in trunk.parts]
        n_inputs, n_read = math.prod(trunk.input_shape), sum(part.n_features for part in trunk.parts)
        sizes = {"input": start, "n_inputs": n_inputs, "n_read": n_read}
        chains.append({"number": number, "trunk": trunk, "fields": own, "layers": pairs, **sizes})
        used, features = used + len(trunk.layers), features + trunk.n_features
    return chains


def _n_frames(model: IntegerModel, n_frames: int | None) -> int:
    """The number of frames in an observation, see :func:`export_c`; 1 for vectors."""
    if not model.is_image:
        if n_frames is not None:
            raise ValueError(f"n_frames is for images, got {n_frames} for a student of {model.parts[0].kind} observations")
        return 1
    channels = model.observation_shape[0]
    if n_frames is None:
        env = model.metadata.get("env")
        stacked = env.get("frame_stack") if isinstance(env, dict) else None
        n_frames = stacked if isinstance(stacked, int) and stacked > 1 else (1 if channels == 3 else channels)
    if n_frames < 1 or channels % n_frames:
        raise ValueError(f"n_frames must divide the {channels} channels of an observation, got {n_frames}")
    return n_frames


def _observation(model: IntegerModel) -> dict[str, Any]:
    """
    Kind, C type and size of an observation, and the memory of those before it.

    ``is_checked`` says whether C has to look for numbers that it cannot take.
    """
    fields, is_fixed = fields_of(model), model.requantization == "fixed"
    first, has_grid = fields[0], any(field.has_grid for field in fields)
    has_indices = any(field.kind == "one_hot" for field in fields)
    return {
        "fields": fields,
        "memory": Memory(model) if model.history > 1 else None,
        "history": model.history,
        "is_dict": model.is_dict,
        "image": model.is_image,
        "is_vector": first.kind == "vector" and not model.is_dict,
        "is_indices": first.kind == "one_hot" and not model.is_dict,
        "has_grid": has_grid,
        "has_indices": has_indices,
        "is_checked": has_indices or (has_grid and not is_fixed),
        "observation_type": "struct policy_observation" if model.is_dict else first.c_type,
        "real_type": first.raw_type,
        "has_origin": any(field.origin is not None for field in fields),
        "observation_size": math.prod(model.observation_shape),
        "observation_bytes": sum(field.size * BYTES[field.c_type] for field in fields),
    }


def _action(model: IntegerModel) -> dict[str, Any]:
    """Kind and C type of an action, and its bounds or the tables of the sampler."""
    values = {
        "box": model.is_box,
        "several": not model.is_box and bool(model.action_shape),
        "discrete": not model.is_box and not model.action_shape,
        "action_type": "float" if model.is_box and model.requantization == "float32" else "int32_t",
        "masks": model.uses_masks,
        "n_categories": sum(model.action_nvec),
    }
    if model.is_box:
        lowest, highest = model.bounds_in_units()
        return values | {"lowest": lowest, "highest": highest}
    shifts = [weight_shift(n) for n in model.action_nvec]
    return values | {"exp_high": EXP_HIGH, "exp_low": EXP_LOW, "weight_shifts": shifts}


def _size_type(layers: list[CLayer]) -> str:
    """The smallest C type that holds every dimension of every layer."""
    return "uint16_t" if max(map(max, dimensions(layers))) < 2**16 else "uint32_t"


def _constant_bytes(model: IntegerModel, layers: list[CLayer]) -> int:
    """Bytes of constants in flash: weights, biases, multipliers, pointers, dimensions and tables."""
    fixed, total, size = model.requantization == "fixed", 0, int(_size_type(layers)[4:6]) // 8
    for layer, sizes in zip(layers, dimensions(layers), strict=True):
        scales = 0 if layer.is_head else 5 if fixed else 4
        pointers = 2 + min(1, scales) + fixed
        total += layer.stored.nbytes + (4 + scales) * layer.n_out + 4 * pointers + len(sizes) * size
    total += sum(field.constant_bytes for field in fields_of(model))
    total += Memory(model).constant_bytes if model.history > 1 else 0
    if model.is_box:
        total += (8 if fixed else 12) * len(model.layers[-1].bias)
    else:
        total += 4 * EXP_HIGH.size + 2 * EXP_LOW.size + 5 * len(model.action_nvec)
    return total
