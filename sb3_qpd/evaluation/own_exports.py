"""
Exported files that this version would write byte for byte from the ``student.npz`` beside them.

A folder may come from elsewhere. Its C and its programs are code, and its ONNX and TFLite files reach runtimes in C++ that a
hostile graph can crash or keep busy for ever. So no file is looked into: the integer model is exported again, and the bytes
are compared. What runs is the copy, in a folder without any other file that a compiler could include.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from sb3_qpd.export import export
from sb3_qpd.integer import IntegerModel, StudentError
from sb3_qpd.student_folder import JS_FILE, MICROPYTHON_FILE, ONNX_FILE, TARGET_FILES, TFLITE_FILE, read_own_file

TRUST = "--trust-code"


def own_copy(path: Path, model: IntegerModel, out: Path) -> Path | None:
    """
    Export a file again, with each of the options that its target has.

    :param path: the file, one of ``TARGET_FILES``, or C of another prefix
    :param model: the student beside it
    :param out: folder for the copy; created where there is none
    :return: the copy where the bytes are the same, else ``None``
    :raises ImportError: a package of the target is missing
    """
    is_c = path.suffix == ".c"
    names = (path.name, f"{path.stem}.h") if is_c else (path.name,)
    try:
        expected = {name: read_own_file(path.with_name(name)) for name in names}
    except (StudentError, FileNotFoundError):  # a link, or C without its header
        return None
    target = "c" if is_c else next(target for target, file in TARGET_FILES.items() if file == path.name)
    if path.name in (ONNX_FILE, TFLITE_FILE):
        model = replace(model, requantization="float32")  # the only one that these targets have
    for options in _options(path.name, expected):
        with suppress(ValueError):  # a student that has no such option, or that the target cannot take
            export(model, target, out, **options)
            if all((out / name).read_bytes() == content for name, content in expected.items()):
                return out / path.name
    return None


def _options(name: str, contents: dict[str, bytes]) -> list[dict[str, Any]]:
    """The options that change a target's file."""
    stem, _, suffix = name.rpartition(".")
    if suffix == "c":
        header = contents[f"{stem}.h"]
        frames = re.search(rb"_N_FRAMES (\d{1,3})\b", header)
        return [
            {
                "name": stem,
                "n_frames": None if frames is None else int(frames[1]),
                "reentrant": b"_state *state" in header,
                "probabilities": b"_HAS_WEIGHTS 1\n" in header,
                "with_value": b"_VALUE_SCALE " in header,
            }
        ]
    layouts = [{"channels_last": channels_last} for channels_last in (False, True)]
    if name in (TFLITE_FILE, JS_FILE):
        return layouts
    if name == MICROPYTHON_FILE:
        return [{}]
    assert name == ONNX_FILE
    forms, names = ("operators", "qdq", "float"), (None, "godot")
    return [{**layout, "form": form, "names": name} for layout, form, name in product(layouts, forms, names)]


def not_run(name: str) -> str:
    """
    The remark about a file that is not run.

    :param name: name of the file
    """
    return f"{name}: not what this version exports from student.npz, and not run. Export it again; {TRUST} runs it as it is"
