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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.checks import check_flags
from sb3_qpd.export.c.fields import Field, fields_of
from sb3_qpd.export.c.layout import CLayer, Layout, Place, dimensions, lay_out, plan_arena
from sb3_qpd.export.c.legend import legend, plain
from sb3_qpd.export.c.memory import before_episode, episode_windows, window_model
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
from sb3_qpd.export.requirements import StudentFacts, check_target
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


def export_c(
    model: IntegerModel,
    out_dir: Path,
    *,
    name: str = "policy",
    n_frames: int | None = None,
    observations: Any = None,
    reentrant: bool = False,
    probabilities: bool = False,
    with_value: bool = False,
) -> list[Path]:
    """
    Write ``policy.h``, ``policy.c``, ``test_vectors.h``, ``main.c`` and ``policy_README.md``.

    The C computes what ``model`` computes, with the model's requantization. ``main.c`` is an example that checks the test
    vectors. The functions of a student with a memory take a whole window, which ``policy_memory.h`` and ``policy_memory.c``
    keep.

    :param model: the student
    :param out_dir: a folder that exists
    :param name: name of the files, and prefix of every public name in them. A name other than ``policy`` is in front of the
        names of test vectors and example too, so that a folder or a program holds several policies
    :param n_frames: number of frames in an image observation, each with an equal share of the channels. By default the
        ``frame_stack`` that the student was trained with. Without one, three channels are one frame, and other numbers of
        channels are as many frames
    :param observations: raw observations for the test vectors, of which at most 32 (images: 2) are used. By default random
        ones
    :param reentrant: write functions whose memory is the caller's, so that several threads can act at once
    :param probabilities: write ``policy_weights``, which gives the weights that actions are drawn with
    :param with_value: write ``policy_value`` too. The model needs a value head,
        see :func:`~sb3_qpd.export.value_head.add_value_head`
    :return: the files
    :raises ValueError: if C cannot take the student, or an argument does not fit it
    """
    options: dict[str, Any] = {"name": name, "n_frames": n_frames, "observations": observations, "reentrant": reentrant}
    options |= {"probabilities": probabilities, "with_value": with_value}
    return write_files(out_dir, {file: text.encode() for file, text in c_sources(model, **options).items()})


def c_sources(
    model: IntegerModel,
    *,
    name: str = "policy",
    n_frames: int | None = None,
    observations: Any = None,
    reentrant: bool = False,
    probabilities: bool = False,
    with_value: bool = False,
) -> dict[str, str]:
    """
    The files of :func:`export_c`, which has the same arguments, as texts by name.

    :raises ValueError: if C cannot take the student, or an argument does not fit it
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in RESERVED:
        raise ValueError(f"name must be a lower-case C identifier such as 'policy', and none of {RESERVED}, got {name!r}")
    check_flags(reentrant=reentrant, probabilities=probabilities, with_value=with_value)
    check_target("c", StudentFacts.of_model(model))
    if probabilities and model.is_box:
        raise ValueError("probabilities=True is for discrete actions, this student has a Box: its deviation is in the header")
    value = find_value_head(model) if with_value else None
    if with_value and value is None:
        raise ValueError(
            "with_value=True needs a value head: add_value_head(model, policy), or export student.zip --with-value"
        )
    if model.history > 1 and (reentrant or probabilities or with_value):
        raise ValueError(
            f"reentrant, probabilities and with_value are for students without a memory, not history={model.history}: "
            "leave them out, or distill with history=1"
        )
    if model.history > 1 and observations is not None:
        observations = episode_windows(model, observations)
    whole = window_model(model)
    values = _values(whole, lay_out(whole, value), n_frames, observations)
    values |= {"name": name, "history": model.history, "reentrant": reentrant, "probabilities": probabilities}
    files = {f"{name}.h": "policy.h", f"{name}.c": "policy.c"}
    files |= {rename(f, name): f for f in ("test_vectors.h", "main.c")}
    if model.history > 1:
        files |= {f"{name}_memory.{end}": f"memory.{end}" for end in "hc"}
        values["before"] = _before(model)
    files[f"{name}_README.md"] = "README.md"  # a folder may have a README of its own
    return {file: rename(TEMPLATES.get_template(template).render(values), name) for file, template in files.items()}


def _values(model: IntegerModel, layout: Layout, n_frames: int | None, observations: Any) -> dict[str, Any]:
    """Everything about the student that the templates refer to."""
    layers = layout.layers
    places, arena_bytes = plan_arena(layout)
    prove_sizes(model, layout, places, arena_bytes)
    n_frames, env = _n_frames(model, n_frames), model.metadata.get("env")
    return {
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
        "vectors": make_vectors(model, n_frames, observations, layout.value is not None),
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
        n_inputs = math.prod(trunk.input_shape)
        chains.append({"number": number, "trunk": trunk, "fields": own, "layers": pairs, "input": start, "n_inputs": n_inputs})
        used, features = used + len(trunk.layers), features + trunk.n_features
    return chains


def _before(model: IntegerModel) -> np.ndarray:
    """The observation that stands before an episode, in the type that C takes."""
    if model.requantization == "fixed":
        return np.zeros(model.parts[0].n_features, int)  # on the input grid already
    return before_episode(model)


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
    Kind, C type and size of an observation; for indices the bytes that stand for a category in the first layer's input.

    ``several_fields`` is for observations that one array of vectors, indices or frames does not hold.
    """
    fields, kind = fields_of(model), model.parts[0].kind
    several_fields = model.is_dict or kind == "float_image"
    first = fields[0]
    return {
        "fields": fields,
        "several_fields": several_fields,
        "is_dict": model.is_dict,
        "image": model.is_image,
        "vector": kind == "vector" and not several_fields,
        "indices": kind == "one_hot" and not several_fields,
        "has_grid": any(field.has_grid for field in fields),
        "has_indices": any(field.kind == "one_hot" for field in fields),
        "observation_type": "struct policy_observation" if model.is_dict else first.c_type,
        "real_type": first.raw_type,
        "has_origin": any(field.origin is not None for field in fields),
        "observation_size": math.prod(model.observation_shape),
        **({"absent": first.absent, "present": first.present} if kind == "one_hot" else {}),
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
    if model.is_box:
        total += (8 if fixed else 12) * len(model.layers[-1].bias)
    else:
        total += 4 * EXP_HIGH.size + 2 * EXP_LOW.size
        total += 5 * len(model.action_nvec) if model.action_shape else 0
    return total
