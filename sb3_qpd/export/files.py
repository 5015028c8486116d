"""What the files of several targets have in common: how they are written, tensors' names, metadata without paths."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sb3_qpd.integer import IntegerModel

_DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no quotas


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """
    Write files into a folder that exists.

    :param folder: where to
    :param contents: content of each file by its name
    :return: the files
    :raises OSError: if the disk is full, with the bytes that all files need
    """
    with disk_space(folder, sum(map(len, contents.values()))):
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@contextmanager
def disk_space(folder: Path, n_bytes: int) -> Iterator[None]:
    """
    Name the folder and the bytes that are needed if the disk is full.

    :param folder: where files are written
    :param n_bytes: size of the files together
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OSError(error.errno, f"No space left, at least {n_bytes} bytes needed", str(folder)) from error


def is_step(name: str) -> bool:
    """
    Whether a tensor is a step of :meth:`~sb3_qpd.integer.IntegerModel.trace`.

    :param name: name of a tensor in an ONNX or TFLite file
    """
    return re.fullmatch(r"input_grid\d*|layer\d+|accumulators", name) is not None


def without_paths(value: Any) -> Any:
    """
    Metadata in which a path keeps its last part only: folders of the computer that trained are not published.

    :param value: JSON values, such as an environment's ``env_kwargs``
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    if isinstance(value, str):
        path = next((p for p in (PurePosixPath(value), PureWindowsPath(value)) if p.is_absolute()), None)
        return value if path is None else path.name
    return value


def names_of(model: IntegerModel) -> dict[str, str]:
    """
    The names of a student's environment and teacher, without paths and of a bounded length; empty where there are none.

    :param model: the student
    """
    env = model.metadata.get("env")
    names = {"environment": env.get("env_id") if isinstance(env, dict) else "", "teacher": model.metadata.get("teacher")}
    return {key: without_paths(name)[:100] if isinstance(name, str) else "" for key, name in names.items()}
