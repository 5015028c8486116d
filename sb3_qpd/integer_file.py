"""
The ``.npz`` of an integer model: written whole, read as data, and checked before anything is computed with it.

Numpy, C, ONNX and TFLite rely on sizes that agree: a layer's weights fit its input, a hidden layer has a grid, an array has
one number for each channel. :func:`check_header` proves all of them from a description of the model, so a file is refused
before its weights are unpacked. The same check runs on every model that is built in Python.

Like :mod:`sb3_qpd.integer` this module needs numpy and the standard library only, and runs under Python 3.8 and numpy 1.17.
The target ``numpy`` writes both modules into one ``policy.py``.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np

# 1: one vector or uint8 image, one Box or Discrete action; 2: all others; 3: with an input origin; 4: with a memory.
# Each model is written in the lowest format that holds it
FORMAT_VERSION = 4
REQUANTIZATIONS = ("float32", "fixed")
KINDS = ("vector", "one_hot", "image", "float_image")  # of the parts of an observation
FLOAT_FIELDS = ("input_multiplier", "input_offset", "action_low", "action_high", "action_std")
OPTIONAL_FIELDS = (*FLOAT_FIELDS, "input_origin")
# name of an array -> its dtype; all have one axis
ARRAYS = {
    **{"header": "|u1", "weights": "|u1", "biases": "<i4", "multipliers": "<f4"},
    **dict.fromkeys(FLOAT_FIELDS, "<f4"),
    "input_origin": "<f8",
}

# Far above any student, and low enough that no file takes seconds or a gigabyte
MAX_BYTES = 64 * 2**20  # of a file, and of its arrays together
MAX_JSON_BYTES = 2**20  # of the header, and of a report
MAX_LAYERS = 256
MAX_HISTORY = 256  # observations that a student sees at once
MAX_PARTS = 64
MAX_AXES = 8
MAX_WEIGHTS = 2**24
MAX_CHANNELS = 2**16  # of one layer
MAX_FEATURES = 2**20  # numbers of an observation, and of a layer's output
MAX_UNFOLDED = 2**24  # numbers of a convolution's unfolded input
MAX_MACS = 2**30  # multiply-accumulates for one action
MAX_DEPTH = 20  # of JSON
MAX_DIGITS = 20  # of a number in JSON
MAX_WRITING = 3_600  # seconds that a file may take to be written

_ARRAY_HEADER = re.compile(rb"\{'descr': '(.{3})', 'fortran_order': False, 'shape': \((\d{1,9}),\), \} *\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, IndexError)
_KEYS = ("format", "observation_shape", "action_shape", "requantization", "layers", "metadata")
_MEMORY_KEYS = ("history", "history_actions")  # of format 4
_LATER_KEYS = ("parts", "branches", "action_nvec", "uses_masks")  # of formats 2 and higher


class StudentError(ValueError):
    """A student's file or numbers cannot be used; the message names the field."""


def pack(weight: np.ndarray, bits: int) -> np.ndarray:
    """
    Integers as a little-endian bit stream of ``bits`` bits each, offset by 2^(bits - 1).

    :param weight: signed integers, any shape
    :param bits: 2 to 8
    :return: uint8, shape (ceil(size * bits / 8),)
    """
    unsigned = (weight.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    planes = np.unpackbits(unsigned[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`pack`: int8 of the given shape."""
    size = math.prod(shape)
    planes = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
    unsigned = np.packbits(planes, axis=1, bitorder="little")[:, 0].astype(np.int16)
    return (unsigned - 2 ** (bits - 1)).astype(np.int8).reshape(shape)


def packed_bytes(n_weights: int, bits: int) -> int:
    """
    Bytes of packed weights.

    :param n_weights: number of weights
    :param bits: bits of each
    """
    return math.ceil(n_weights * bits / 8)


# -- writing and reading ----------------------------------------------------------------------------------------------


def write_npz(path: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """
    Write an ``.npz`` without pickle; it appears whole or not at all.

    :param path: path of the file
    :param header: JSON values, see :func:`check_header`
    :param arrays: the arrays by name, see ``ARRAYS``
    :raises StudentError: the file could not be read again
    """
    content: Any = np.frombuffer(json.dumps(header).encode(), np.uint8)
    _check_json_size("header", content.size)
    members: dict[str, Any] = {"header": content, **{name: array.astype(ARRAYS[name]) for name, array in arrays.items()}}
    folder, name = os.path.split(path)
    _remove_left_overs(folder, name)
    temporary = os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:  # "x" follows no link that lies there
            np.savez_compressed(file, **members)
            file.flush()
            os.fsync(file.fileno())  # a machine that stops now leaves the old file or the new one
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _remove_left_overs(folder: str, name: str) -> None:
    """Remove what killed processes left beside a file. A younger one may be another process's, which writes it now."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.tmp")
    try:
        for entry in os.scandir(folder or "."):
            if pattern.fullmatch(entry.name) and entry.stat(follow_symlinks=False).st_mtime < time.time() - MAX_WRITING:
                os.remove(entry.path)
    except OSError:  # the folder cannot be read, or another process removes it too
        return


def read_npz(path: str, content: bytes | None = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """
    Read what :func:`write_npz` wrote. Nothing in the file is executed.

    :param path: an ``.npz``
    :param content: bytes that were read from it; ``None`` reads them
    :return: the header, complete and checked, and the arrays by name
    :raises FileNotFoundError: there is no such file
    :raises StudentError: it is not a student's
    """
    if content is None and not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path}. Expected the .npz of a student: check the path")
    try:
        contents = _read_members(_read_ordinary(path) if content is None else content)
        arrays = {name: _to_array(name, content) for name, content in contents.items()}
        header = _to_header(arrays.pop("header"))
        if header["format"] > FORMAT_VERSION:
            raise StudentError(f"it has format {header['format']}, this version reads up to {FORMAT_VERSION}: update sb3_qpd")
        sizes = {name: array.size for name, array in arrays.items()}
        header = _complete(header, sizes)
        check_header(header, sizes)
        return header, arrays
    except (*_ZIP_ERRORS, NotImplementedError) as error:
        beside = os.path.join(os.path.dirname(path), "student.npz")
        hint = f". Load {beside}, which lies beside it" if not path.endswith(".npz") and os.path.isfile(beside) else ""
        raise StudentError(f"'{path}' is not a student's .npz (IntegerModel.save writes one): {error}{hint}") from error


def _read_members(content: bytes) -> dict[str, bytes]:
    """The members of the zip by name. No more is unpacked than a student can have, whatever the file says of its sizes."""
    if content.count(b"PK\x01\x02") > 10 * len(ARRAYS):  # the directory of many members alone fills the memory
        raise StudentError("it has more members than a student has arrays")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        _check_members([info.filename for info in members])
        if sum(info.file_size for info in members) > MAX_BYTES:
            raise StudentError(f"its arrays have more than {MAX_BYTES} bytes")
        return {info.filename[: -len(".npy")]: _read_member(archive, info) for info in members}


def _read_ordinary(path: str) -> bytes:
    """The bytes of a file. The open file is checked: another one, such as a pipe, may take its place at any time."""
    if os.path.isdir(path):
        raise StudentError("it is a folder without student.npz")
    flags = [getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY")]  # a pipe waits for its writer
    with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise StudentError("it is no ordinary file")
        if status.st_size > MAX_BYTES:
            raise StudentError(f"it has more than {MAX_BYTES} bytes")
        return file.read(status.st_size)


def _check_members(names: list[str]) -> None:
    known = [f"{name}.npy" for name in ARRAYS]
    for name in names:
        if name not in known or names.count(name) > 1:
            raise StudentError(f"it has a member {name[:40]!r}. Expected each of {', '.join(known)} at most once")
    missing = [name for name in known[:4] if name not in names]
    if missing:
        raise StudentError(f"it has no {' and no '.join(missing)}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        raise StudentError(f"{info.filename} is packed by a method that numpy does not use")
    with archive.open(info) as member:
        content = member.read(info.file_size + 1)
    if len(content) != info.file_size:
        raise StudentError(f"{info.filename} has {len(content)} bytes instead of {info.file_size}")
    return content


def _to_array(name: str, content: bytes) -> np.ndarray:
    """An array of the one form that :func:`write_npz` writes: numpy's reader would take any dtype, order and shape."""
    version, (length,) = content[:8], struct.unpack("<H", content[8:10])
    found = _ARRAY_HEADER.fullmatch(content[10 : 10 + length])
    if version != b"\x93NUMPY\x01\x00" or found is None:
        raise StudentError(f"{name} is not an array with one axis as numpy writes it")
    dtype, size = np.dtype(ARRAYS[name]), int(found[2])
    if found[1].decode("latin1") != ARRAYS[name]:
        raise StudentError(f"{name} must be {dtype}, got {found[1].decode('latin1')!r}")
    if len(content) != 10 + length + size * dtype.itemsize:
        raise StudentError(f"{name} of {size} numbers has {len(content) - 10 - length} bytes")
    return np.frombuffer(content, dtype, offset=10 + length).astype(dtype.newbyteorder("="))


def _to_header(content: np.ndarray) -> dict[str, Any]:
    header = read_json("header", content.tobytes())
    _check_integer("format", header.get("format"), 1, 10**6)
    return header


def read_json(name: str, content: bytes, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """
    Read a JSON object from elsewhere: of a bounded size, depth and length of numbers, and with whole characters.

    :param name: name of the content, for messages
    :param content: the text in UTF-8
    :param most: largest size in bytes
    :raises StudentError: it is no such object
    """
    _check_json_size(name, len(content), most)
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_number, parse_int=_to_int)
    except (ValueError, RecursionError) as error:
        raise StudentError(f"{name} is not JSON of a student: {error}") from error
    if not isinstance(value, dict):
        raise StudentError(f"{name} must be a JSON object, got {_kind(value)}")
    _check_depth(name, value)
    return value


def _check_json_size(name: str, n_bytes: int, most: int = MAX_JSON_BYTES) -> None:
    if n_bytes > most:
        raise StudentError(f"{name} has {n_bytes} bytes, at most {most} are read. Shorten its texts")


def _to_int(text: str) -> int:
    if len(text) > MAX_DIGITS:  # Python multiplies thousands of digits for seconds
        raise StudentError(f"it holds a number of {len(text)} digits")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    raise StudentError(f"it holds {text}, which is no number of JSON")


def _complete(header: dict[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The header with what format 1 leaves out: it has one part, one trunk and one dimension of a discrete action."""
    if header["format"] < 4 and (header["format"] > 2) != ("input_origin" in sizes):
        raise StudentError(
            f"a file of format {header['format']} {'needs an' if header['format'] > 2 else 'has no'} input_origin"
        )
    expected = (*_KEYS, *(_LATER_KEYS if header["format"] > 1 else ()), *(_MEMORY_KEYS if header["format"] > 3 else ()))
    for key in (*expected, *header):
        if key not in header or key not in expected:
            raise StudentError(f"header {'has no' if key in expected else 'has an unknown'} {str(key)[:40]!r}")
    if header["format"] > 1:
        return {"history": 1, "history_actions": False, **header}
    kind = "vector" if "input_multiplier" in sizes else "image"
    _check_layer_list(header["layers"])
    return {
        **header,
        "parts": [[kind, header["observation_shape"], [], None]],
        "branches": [len(header["layers"]) - 1],
        "action_nvec": [] if "action_low" in sizes else header["layers"][-1][0][:1],
        "uses_masks": False,
        "history": 1,
        "history_actions": False,
    }


# -- checks -----------------------------------------------------------------------------------------------------------


def check_header(header: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """
    Prove from a description of a model that all its sizes agree, and that it is no larger than a student can be.

    :param header: JSON values. ``observation_shape`` is ``[]`` for a Dict; ``action_shape``; ``requantization``;
        ``layers``: ``[shape of the weights, weight_bits, activation_bits, stride, number of multipliers]`` each;
        ``metadata``; ``parts``: ``[kind, shape, nvec, key]`` each; ``branches``; ``action_nvec``: ``[]`` for a Box;
        ``uses_masks``; ``history``; ``history_actions``
    :param sizes: number of elements of each array that there is, see ``ARRAYS``; of ``weights`` the packed bytes
    :raises StudentError: names the field
    """
    _check_choice("requantization", header["requantization"], REQUANTIZATIONS)
    _check_metadata(header["metadata"])
    _check_layers(header["layers"])
    _check_parts(header["parts"], header["observation_shape"])
    _check_history(header["history"], header["history_actions"], header["parts"])
    _check_trunks(header)
    _check_action(header, sizes)
    _check_sizes(header, sizes)


def _check_layer_list(layers: Any) -> None:
    if not _is_list(layers) or not 1 <= len(layers) <= MAX_LAYERS:
        raise StudentError(f"layers must be a list of 1 to {MAX_LAYERS}, got {_kind(layers)}")
    for i, layer in enumerate(layers):
        if not _is_list(layer) or len(layer) != 5:
            raise StudentError(
                f"layers[{i}] must be [shape, weight_bits, activation_bits, stride, number of multipliers], got {_kind(layer)}"
            )
        if not _is_list(layer[0]) or len(layer[0]) not in (2, 4):
            raise StudentError(f"shape of layers[{i}] must have 2 or 4 axes, got {_kind(layer[0])}")


def _check_layers(layers: Any) -> None:
    """Each layer by itself."""
    _check_layer_list(layers)
    n_weights = 0
    for i, (shape, weight_bits, activation_bits, stride, _) in enumerate(layers):
        is_head, name = i == len(layers) - 1, f"layers[{i}]"
        _check_integers(f"shape of {name}", shape, 1, MAX_FEATURES)
        _check_integer(f"output channels of {name}", shape[0], 1, MAX_CHANNELS)
        if len(shape) == 4 and (shape[2] != shape[3] or is_head):
            raise StudentError(f"shape of {name} must be of a square kernel, and none in the head, got {list(shape)}")
        _check_integer(f"weight_bits of {name}", weight_bits, 2, 8)
        least, most = (0, 0) if is_head else (2, 8)
        _check_integer(
            f"activation_bits of {name}, the {'head' if is_head else 'output of a hidden layer'},",
            activation_bits,
            least,
            most,
        )
        _check_integer(f"stride of {name}", stride, 1, MAX_FEATURES if len(shape) == 4 else 1)
        n_weights += math.prod(shape)
    if n_weights > MAX_WEIGHTS:
        raise StudentError(f"layers have {n_weights} weights, at most {MAX_WEIGHTS} are read")


def _check_parts(parts: Any, observation_shape: Any) -> None:
    """What an observation consists of: a value without a key, or values with different keys."""
    if not _is_list(parts) or not 1 <= len(parts) <= MAX_PARTS:
        raise StudentError(f"parts must be a list of 1 to {MAX_PARTS}, got {_kind(parts)}")
    for part in parts:
        if not _is_list(part) or len(part) != 4:
            raise StudentError(f"each of the parts must be [kind, shape, nvec, key], got {_kind(part)}")
    for kind, shape, nvec, _ in parts:
        _check_part(kind, shape, nvec)
    keys = [part[3] for part in parts]
    is_dict = keys != [None]
    if is_dict and not (all(_is_name(key) for key in keys) and len(set(keys)) == len(keys)):
        raise StudentError(
            f"keys of the parts must be different printable texts, or null for the only part, got {_kind(keys)}"
        )
    if sum(map(_n_features, parts)) > MAX_FEATURES or sum(math.prod(part[1]) for part in parts) > MAX_FEATURES:
        raise StudentError(f"parts of an observation have more than {MAX_FEATURES} numbers")
    expected = [] if is_dict else list(parts[0][1])
    if not _is_list(observation_shape) or list(observation_shape) != expected:
        raise StudentError(f"observation_shape must be {expected}, as parts say, got {_kind(observation_shape)}")


def _check_history(history: Any, has_actions: Any, parts: Any) -> None:
    """A memory holds vectors and indices, and no images."""
    if type(has_actions) is not bool or (has_actions and history == 1):
        raise StudentError(f"history_actions must be true or false, and false without a history, got {_kind(has_actions)}")
    _check_integer("history", history, 1, MAX_HISTORY)
    if history > 1 and any(part[0] in ("image", "float_image") for part in parts):
        raise StudentError(f"history must be 1 for observations with images, got {history}")
    if history * sum(map(_n_features, parts)) > MAX_FEATURES:
        raise StudentError(f"history of {history} observations has more than {MAX_FEATURES} numbers")


def _check_part(kind: Any, shape: Any, nvec: Any) -> None:
    _check_choice("kind of a part", kind, KINDS)
    _check_integers("shape of a part", shape, 1, MAX_FEATURES)
    _check_integers("nvec of a part", nvec, 1, MAX_FEATURES, MAX_FEATURES)
    if kind in ("image", "float_image") and len(shape) != 3:
        raise StudentError(f"shape of an image must have 3 axes, got {list(shape)}")
    if len(nvec) != (math.prod(shape) if kind == "one_hot" else 0):
        raise StudentError(f"nvec of a part must have one number for each index, got {len(nvec)} for {kind} {list(shape)}")


def _n_features(part: Any) -> int:
    kind, shape, nvec, _ = part
    return sum(nvec) if kind == "one_hot" else math.prod(shape)


def _n_remembered(header: Mapping[str, Any]) -> int:
    """Numbers of an action that the student sees, 0 where it sees none."""
    return header["layers"][-1][0][0] if header["history_actions"] else 0


def _trunk_inputs(header: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Shape of the input of each trunk: of all vectors and indices together, then of each image."""
    parts, history = header["parts"], header["history"]
    flat = [part for part in parts if part[0] in ("vector", "one_hot")]
    images = [tuple(part[1]) for part in parts if part[0] in ("image", "float_image")]
    size = history * sum(map(_n_features, flat)) + (history - 1) * _n_remembered(header)
    return [*([(size,)] if flat else []), *images]


def _check_trunks(header: Mapping[str, Any]) -> None:
    """The layers of each trunk fit one to the next, and the head takes what comes out of all trunks."""
    branches, layers, inputs = header["branches"], header["layers"], _trunk_inputs(header)
    _check_integers("branches", branches, 0, MAX_LAYERS, MAX_PARTS)
    if len(branches) != len(inputs) or sum(branches) != len(layers) - 1:
        raise StudentError(
            f"branches: {len(layers) - 1} layers in trunks of {list(branches)} for {len(inputs)} inputs do not add up"
        )
    start, n_features, macs = 0, 0, math.prod(layers[-1][0])
    for shape, n_layers in zip(inputs, branches):
        for i in range(start, start + n_layers):
            shape, of_layer = _output_shape(layers[i], shape, f"layers[{i}]")
            macs += of_layer
        start, n_features = start + n_layers, n_features + math.prod(shape)
    if layers[-1][0][1] != n_features:
        raise StudentError(
            f"shape of the head has {layers[-1][0][1]} inputs, and {n_features} features come out of the trunks"
        )
    if macs > MAX_MACS:
        raise StudentError(f"layers take {macs} multiply-accumulates, at most {MAX_MACS} are read")


def _output_shape(layer: Any, shape: tuple[int, ...], name: str) -> tuple[tuple[int, ...], int]:
    """Shape of a layer's output and its multiply-accumulates, for an input of ``shape``."""
    weight, stride = layer[0], layer[3]
    if len(weight) == 2:
        if weight[1] != math.prod(shape):
            raise StudentError(f"shape of {name} has {weight[1]} inputs, and {math.prod(shape)} come in")
        return (weight[0],), math.prod(weight)
    kernel = weight[2]
    if len(shape) != 3 or weight[1] != shape[0] or kernel > min(shape[1:]):
        raise StudentError(f"shape of {name}, {list(weight)}, does not fit an input of shape {list(shape)}")
    output = (weight[0], *((side - kernel) // stride + 1 for side in shape[1:]))
    unfolded = math.prod(output[1:]) * math.prod(weight[1:])
    if math.prod(output) > MAX_FEATURES or unfolded > MAX_UNFOLDED:
        raise StudentError(f"output of {name} has {math.prod(output)} numbers, at most {MAX_FEATURES} are read")
    return output, unfolded * weight[0]


def _check_action(header: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    shape, nvec, n_out = header["action_shape"], header["action_nvec"], header["layers"][-1][0][0]
    _check_integers("action_shape", shape, 1, MAX_CHANNELS)
    _check_integers("action_nvec", nvec, 1, MAX_CHANNELS, MAX_CHANNELS)
    if type(header["uses_masks"]) is not bool:
        raise StudentError(f"uses_masks must be true or false, got {_kind(header['uses_masks'])}")
    if "action_low" in sizes:
        if nvec or math.prod(shape) != n_out or header["uses_masks"]:
            raise StudentError(f"action_shape {list(shape)} of a Box does not fit {n_out} outputs without nvec and masks")
        return
    n_bits = len(nvec) if set(nvec) == {2} else 0
    if n_out not in (sum(nvec), n_bits) or sum(nvec) > MAX_CHANNELS:
        raise StudentError(f"action_nvec: {n_out} outputs for an action of {list(nvec)[:20]} categories")
    if math.prod(shape) != len(nvec):
        raise StudentError(f"action_shape {list(shape)} does not fit an action of {len(nvec)} dimensions")


def _check_sizes(header: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """The arrays hold as many numbers as the layers, the inputs and the action need."""
    layers, is_box = header["layers"], "action_low" in sizes
    n_out = layers[-1][0][0]
    for i, (shape, _, _, _, n_multipliers) in enumerate(layers):
        expected = 1 if i == len(layers) - 1 and not is_box else shape[0]
        _check_integer(f"multipliers of layers[{i}]", n_multipliers, expected, expected)
    grids = [_n_features(part) for part in header["parts"] if part[0] in ("vector", "one_hot")]
    n_grid = sum(grids) + _n_remembered(header) + sum(part[0] == "float_image" for part in header["parts"])
    action = {name: n_out for name in ("action_low", "action_high", "action_std") if is_box}
    optional = ("action_std", "input_origin")  # only a sampled action, and only a large offset, need them
    needed = {
        "weights": sum(packed_bytes(math.prod(shape), bits) for shape, bits, *_ in layers),
        "biases": sum(shape[0] for shape, *_ in layers),
        "multipliers": sum(layer[4] for layer in layers),
        **{name: n_grid for name in ("input_multiplier", "input_offset", "input_origin") if n_grid},
        **action,
    }
    for name in (*needed, *sizes):
        if name in optional and name not in sizes:
            continue
        if sizes.get(name, 0) != needed.get(name, 0):
            raise StudentError(f"{name} must hold {needed.get(name, 0)} numbers for these layers, got {sizes.get(name, 0)}")


def _check_metadata(metadata: Any) -> None:
    """A dict of texts, numbers, lists and dicts that JSON can hold, and that no reader of it overflows."""
    if not isinstance(metadata, dict):
        raise StudentError(f"metadata must be a dict, got {_kind(metadata)}")
    _check_depth("metadata", metadata)


def _check_depth(name: str, value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(one, str) and _SURROGATE.search(one) for one in level):
            raise StudentError(f"{name} holds half a character, which no file and no terminal can show")
        level = [inner for one in level for inner in _children(one)]
    if level:
        raise StudentError(f"{name} is nested more than {MAX_DEPTH} levels deep")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if _is_list(value) else ()


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise StudentError(f"{name} must be one of {choices}, got {_kind(value)}")


def _check_integers(name: str, values: Any, least: int, most: int, most_values: int = MAX_AXES) -> None:
    if not _is_list(values) or len(values) > most_values:
        raise StudentError(f"{name} must be a list of at most {most_values} integers, got {_kind(values)}")
    for value in values:
        _check_integer(name, value, least, most)


def _check_integer(name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        expected = f"{least}" if least == most else f"an integer of {least} to {most}"
        raise StudentError(f"{name} must be {expected}, got {_kind(value)}")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 200


def _kind(value: Any) -> str:
    """A value for a message: short, and on one line."""
    if isinstance(value, dict) or (_is_list(value) and len(value) > 20):
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 100 else f"a {type(value).__name__} of {len(text)} characters"
