"""
Files for devices: ONNX, C, TFLite, and numpy alone. Each computes what the :class:`~sb3_qpd.integer.IntegerModel` computes.

A target is a module ``export/<name>.py`` with a function ``export_<name>(model, out_dir, **options) -> list[Path]`` that
writes into a folder that exists, and a row in ``EXPORTERS``. What every target needs is done here: the model is checked before
a file is written, and the files appear together or not at all.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.integer import IntegerLayer, IntegerModel

LARGEST_INPUT = 255  # of any layer: no grid has more than 8 bits


def export(model: IntegerModel, target: str, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write a student for one target.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param target: a key of ``EXPORTERS``
    :param out_dir: where to; files of the same names are replaced
    :param options: the target's own
    :return: the files
    """
    return find_exporter(target)(model, out_dir, **options)


def find_exporter(target: str) -> Callable[..., list[Path]]:
    """
    What writes a target; an error if it is unknown, or needs a package that is not installed.

    :param target: a key of ``EXPORTERS``
    """
    if target not in EXPORTERS:
        near = difflib.get_close_matches(target, EXPORTERS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"Unknown target '{target}'. Known: {', '.join(EXPORTERS)}.{hint}")
    import_module(f"sb3_qpd.export.{target}")
    return EXPORTERS[target]


def export_onnx(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """Write ``student.onnx``; see :func:`export` and, for the options, :func:`sb3_qpd.export.onnx.exporter.export_onnx`."""
    return _export("onnx", model, out_dir, options)


def export_c(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """Write C99 sources; see :func:`export` and, for the options, :func:`sb3_qpd.export.c.exporter.export_c`."""
    return _export("c", model, out_dir, options)


def export_tflite(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """Write ``student.tflite``; see :func:`export` and, for the options, :func:`sb3_qpd.export.tflite.exporter.export_tflite`."""
    return _export("tflite", model, out_dir, options)


def export_numpy(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """Write ``student.npz`` and ``policy.py``; see :func:`export` and :func:`sb3_qpd.export.numpy.export_numpy`."""
    return _export("numpy", model, out_dir, options)


# name of a target -> what writes it
EXPORTERS: dict[str, Callable[..., list[Path]]] = {
    "onnx": export_onnx,
    "c": export_c,
    "tflite": export_tflite,
    "numpy": export_numpy,
}


def check_model(model: IntegerModel) -> None:
    """
    Refuse what no target should be given: a student without ranges, or one whose accumulators could overflow.

    :param model: about to be written
    """
    if not isinstance(model, IntegerModel):
        raise TypeError(f"Expected an IntegerModel (policy.to_integer() makes one), got {type(model).__name__}")
    if not model.metadata.get("calibrated", True):
        raise ValueError(
            "This student has never seen an observation: its ranges are a guess. Let it learn, or call policy.calibrate("
            "observations), and export it then"
        )
    for i, layer in enumerate(model.layers):
        if (bound := accumulator_bound(layer)) >= 2**31:
            raise ValueError(f"An accumulator of layer {i} could reach {bound}, which does not fit int32")


def accumulator_bound(layer: IntegerLayer) -> int:
    """The largest absolute value that an accumulator, or a partial sum in any order, could reach with any input."""
    return int(accumulator_bounds(layer).max())


def accumulator_bounds(layer: IntegerLayer) -> np.ndarray:
    """:func:`accumulator_bound` of each output channel, int64."""
    weight, bias = np.abs(layer.weight.astype(np.int64)), np.abs(layer.bias.astype(np.int64))
    return weight.reshape(len(weight), -1).sum(1) * LARGEST_INPUT + bias


def is_step(name: str) -> bool:
    """Whether a tensor of this name in an exported file is a step of :meth:`IntegerModel.trace`."""
    return re.fullmatch(r"input_grid\d*|layer\d+|accumulators", name) is not None


def check_supported_by(model: IntegerModel, target: str, *, indices: bool, multi_action: bool) -> None:
    """
    Refuse by name what a target cannot do.

    :param model: about to be written
    :param target: for the message
    :param indices: whether it can take Discrete and MultiDiscrete observations
    :param multi_action: whether it can give MultiDiscrete and MultiBinary actions
    """
    kinds = {part.kind for part in model.parts}
    refused = {
        "Dict observations": model.is_dict,
        "images of floats": "float_image" in kinds,
        "Discrete and MultiDiscrete observations": "one_hot" in kinds and not indices,
        "MultiDiscrete and MultiBinary actions": not model.is_box and bool(model.action_shape) and not multi_action,
        "action masks": model.uses_masks,
    }
    if names := [name for name, is_refused in refused.items() if is_refused]:
        raise ValueError(f"The target {target} does not support {' and '.join(names)}: take the target onnx or numpy")


def without_paths(value: Any) -> Any:
    """A path of somebody's machine (an environment's ``xml_file``, say) keeps its last part only."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        path = next((p for p in (PurePosixPath(value), PureWindowsPath(value)) if p.is_absolute()), None)
        return value if path is None else path.name
    return value


def _export(target: str, model: IntegerModel, out_dir: str | os.PathLike[str], options: dict[str, Any]) -> list[Path]:
    check_model(model)
    out_dir = Path(out_dir)
    write = getattr(import_module(f"sb3_qpd.export.{target}"), f"export_{target}")
    with AtomicFolder(out_dir, force=True) as staging:
        paths = write(model, staging.path, **options)
        staging.commit()
    return [out_dir / path.name for path in paths]
