"""
Files for devices: ONNX, C, TFLite, JavaScript, MicroPython, and numpy alone. Each is the policy of an
:class:`~sb3_qpd.integer.IntegerModel`.

A target is a module or package ``export/<name>`` with a function ``export_<name>(model, out_dir, **options) -> list[Path]``
that writes into a folder that exists. It has a row in ``EXPORTERS`` and one in ``requirements.TARGETS``. What every target
needs is done here: the model is checked before a file is written, and the files appear together or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.checks import check_path
from sb3_qpd.export.requirements import check_model, check_target, find_target
from sb3_qpd.integer import IntegerModel

__all__ = [
    "EXPORTERS",
    "check_model",
    "check_target",
    "export",
    "export_arduino",
    "export_c",
    "export_js",
    "export_micropython",
    "export_numpy",
    "export_onnx",
    "export_tflite",
    "find_exporter",
]


def export(model: IntegerModel, target: str, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write a student for one target.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param target: a key of ``EXPORTERS``
    :param out_dir: folder for the files, new or existing; files of the same names are replaced
    :param options: options of the target, see its ``export_<target>``
    :return: the files
    :raises ValueError: if the target is unknown or cannot take the student
    :raises ImportError: if the target needs a package that is not installed
    """
    write = _import_writer(target)
    check_model(model)
    check_path("out_dir", out_dir)
    folder = Path(out_dir)
    with AtomicFolder(folder, force=True, argument="out_dir") as staging:
        paths = write(model, staging.path, **options)
        staging.commit()
    return [folder / path.name for path in paths]


def export_onnx(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write ``student.onnx``.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: see :func:`sb3_qpd.export.onnx.exporter.export_onnx`
    :return: the files
    """
    return export(model, "onnx", out_dir, **options)


def export_c(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write C99 sources.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: see :func:`sb3_qpd.export.c.exporter.export_c`
    :return: the files
    """
    return export(model, "c", out_dir, **options)


def export_tflite(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write ``student.tflite``.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: see :func:`sb3_qpd.export.tflite.exporter.export_tflite`
    :return: the files
    """
    return export(model, "tflite", out_dir, **options)


def export_numpy(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write ``student.npz`` and ``policy.py``.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: none, see :func:`sb3_qpd.export.numpy.export_numpy`
    :return: the files
    """
    return export(model, "numpy", out_dir, **options)


def export_js(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write ``policy.mjs``, one JavaScript module.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: see :func:`sb3_qpd.export.js.exporter.export_js`
    :return: the files
    """
    return export(model, "js", out_dir, **options)


def export_micropython(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write ``policy_micropython.py``.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: none, see :func:`sb3_qpd.export.micropython.exporter.export_micropython`
    :return: the files
    """
    return export(model, "micropython", out_dir, **options)


def export_arduino(model: IntegerModel, out_dir: str | os.PathLike[str], **options: Any) -> list[Path]:
    """
    Write a library folder for Arduino, PlatformIO, ESP-IDF and Zephyr.

    :param model: ``policy.to_integer()``, or ``IntegerModel.load(path)``
    :param out_dir: folder for the files, new or existing
    :param options: see :func:`sb3_qpd.export.arduino.export_arduino`
    :return: the files
    """
    return export(model, "arduino", out_dir, **options)


# name of a target -> the function that writes it
EXPORTERS: dict[str, Callable[..., list[Path]]] = {
    "onnx": export_onnx,
    "c": export_c,
    "tflite": export_tflite,
    "numpy": export_numpy,
    "js": export_js,
    "micropython": export_micropython,
    "arduino": export_arduino,
}


def find_exporter(target: str) -> Callable[..., list[Path]]:
    """
    The function that writes a target.

    :param target: a key of ``EXPORTERS``
    :raises ValueError: if the target is unknown
    :raises ImportError: if it needs a package that is not installed
    """
    _import_writer(target)
    return EXPORTERS[target]


def _import_writer(target: str) -> Callable[..., list[Path]]:
    """The target's own ``export_<target>``, which checks and staging are wrapped around."""
    find_target(target)  # an unknown one is refused
    return getattr(import_module(f"sb3_qpd.export.{target}"), f"export_{target}")
