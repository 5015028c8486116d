"""
The files of a checkpoint, read as data: arrays and JSON values in a zip. Nothing in them is executed.

The format is that of ``.npz``. Arrays are written without a copy in memory, those of bytes (images) compressed.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from sb3_qpd.atomic import atomic_file, open_locked, write_atomically
from sb3_qpd.ordinary_files import open_ordinary

VALUES = "values.json"
MAX_JSON = 2**26
MAX_STATE = 2**34  # of a file whose values alone are read
MAX_MEMBERS = 10_000  # a state has some hundred
MAX_IN_MEMORY = 2**24
CHUNK = 2**22  # bytes that are compressed at once
# states that alternate: an error of the disk while one is written leaves the other
STATE_FILES = ("state-0.npz", "state-1.npz")
SEGMENT = re.compile(r"ring-(\d{8})\.npz")
ACTIONS = "actions.bin"
LOCK = ".sb3-qpd-lock"  # held by the process that writes there

# what Python's zip reader, zlib and numpy raise about files that are damaged or not theirs
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError),
    *(NotImplementedError, RuntimeError, OverflowError, RecursionError, MemoryError, UnicodeError),
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that belongs to another run."""


def write_archive(path: Path, values: Any, arrays: Mapping[str, np.ndarray | Sequence[np.ndarray]]) -> int:
    """
    Write values and arrays into one file, which appears whole or not at all.

    :param path: the file; its folder has to exist
    :param values: JSON values; numbers may be infinite
    :param arrays: arrays by name, or parts of arrays that follow each other along the first axis
    :return: bytes of the file
    """
    n_bytes = sum(part.nbytes for parts in arrays.values() for part in ([parts] if isinstance(parts, np.ndarray) else parts))
    if n_bytes > MAX_IN_MEMORY:
        with atomic_file(path) as file:
            _write_zip(file, values, arrays)
    else:  # one call that writes, where a zip of many small arrays takes hundreds
        memory = io.BytesIO()
        _write_zip(memory, values, arrays)
        write_atomically(path, memory.getvalue())
    return path.stat().st_size


def _write_zip(file: IO[bytes], values: Any, arrays: Mapping[str, np.ndarray | Sequence[np.ndarray]]) -> None:
    with zipfile.ZipFile(file, "w", compresslevel=1) as archive:
        archive.writestr(VALUES, json.dumps(values), zipfile.ZIP_DEFLATED)
        for name, parts in arrays.items():
            parts = [parts] if isinstance(parts, np.ndarray) else parts
            # of a name, not of a ZipInfo, whose level would be the slow default
            archive.compression = zipfile.ZIP_DEFLATED if parts[0].dtype == np.uint8 else zipfile.ZIP_STORED
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_npy(member, parts)


def _write_npy(member: IO[bytes], parts: Sequence[np.ndarray]) -> None:
    first = parts[0]
    shape = (sum(map(len, parts)), *first.shape[1:]) if first.ndim else ()
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    for part in parts:
        content = memoryview(np.ascontiguousarray(part).reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        for start in range(0, len(content), CHUNK):
            member.write(content[start : start + CHUNK])


def read_archive(path: Path, max_bytes: int) -> tuple[Any, dict[str, np.ndarray]]:
    """
    Read what :func:`write_archive` wrote. Every part is measured before it is unpacked, and checked by its checksum.

    :param path: the file
    :param max_bytes: bytes that the arrays may have together
    :raises CheckpointError: the file is missing, damaged, too large, or something else
    """
    try:
        with _open_archive(path, max_bytes) as archive:
            members = archive.infolist()
            sizes = [member.file_size for member in members]
            if len(members) > MAX_MEMBERS or sum(sizes) > max_bytes + MAX_JSON:
                raise ValueError(f"it unpacks to {sum(sizes):,} bytes, and at most {max_bytes:,} belong to this run")
            if any(member.comment for member in members):  # a damaged length turns the members that follow into a comment
                raise ValueError("its list of members has comments, which no checkpoint has")
            values = json.loads(_unpacked(archive, archive.getinfo(VALUES), MAX_JSON))
            arrays = {
                member.filename.removesuffix(".npy"): _parse_npy(_unpacked(archive, member, max_bytes + 1_000))
                for member in members
                if member.filename != VALUES
            }
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {str(error) or type(error).__name__}") from error
    return values, arrays


def read_values(path: Path) -> Any:
    """
    Read the JSON values alone.

    :param path: a file that :func:`write_archive` wrote
    :raises CheckpointError: see :func:`read_archive`
    """
    try:
        with _open_archive(path, MAX_STATE) as archive:
            return json.loads(_unpacked(archive, archive.getinfo(VALUES), MAX_JSON))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {str(error) or type(error).__name__}") from error


@contextmanager
def _open_archive(path: Path, max_bytes: int) -> Iterator[zipfile.ZipFile]:
    """A zip whose directory, which Python reads at once, is bounded as its content is."""
    with open_ordinary(path, follow_links=False) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes + MAX_JSON:  # nothing in it is larger than unpacked
            raise ValueError(f"it has {size:,} bytes, and at most {max_bytes:,} belong to this run")
        if size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                entries = sum(1 for _ in islice(re.finditer(b"PK\x01\x02", content), 10 * MAX_MEMBERS))
            if entries == 10 * MAX_MEMBERS:
                raise ValueError(f"it has more than {MAX_MEMBERS} members")
        with zipfile.ZipFile(file) as archive:
            yield archive


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    if member.file_size > limit:
        raise ValueError(f"{member.filename} has {member.file_size:,} bytes, expected at most {limit:,}")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
        raise ValueError(f"{member.filename} is packed by a method that no checkpoint uses")
    with archive.open(member) as file:
        return file.read(member.file_size + 1)


def _parse_npy(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("expected version 1.0 of the npy format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=1_000)
    if dtype.hasobject or is_fortran or dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise ValueError(f"expected plain numbers, got {dtype}")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"an array of the shape {shape} has {len(content) - file.tell():,} bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)


def checkpoint_paths(folder: Path) -> list[Path]:
    """
    The files of a checkpoint, and whatever else has the name of one.

    :param folder: folder of a checkpoint, whether or not it exists
    """
    fixed = [folder / name for name in (*STATE_FILES, ACTIONS)]
    segments = [path for path in folder.glob("ring-*.npz") if SEGMENT.fullmatch(path.name)]
    return [*(path for path in fixed if os.path.lexists(path)), *segments]


def check_ordinary(folder: Path) -> None:
    """
    Refuse a checkpoint that holds links, pipes or devices: what is written to them would end elsewhere.

    :param folder: folder of a checkpoint, whether or not it exists
    :raises CheckpointError: names the file
    """
    for path in checkpoint_paths(folder):
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path} is a link, or no ordinary file. Expected the files of a checkpoint; remove it")


def is_in_use(folder: Path) -> bool:
    """
    Whether another process writes its checkpoints into a folder.

    :param folder: folder of a checkpoint, whether or not it exists
    """
    if not (folder / LOCK).is_file():
        return False
    try:
        open_locked(folder / LOCK, wait=False).close()
    except BlockingIOError:
        return True
    return False


def newest_values(folder: Path) -> dict[str, Any] | None:
    """
    The JSON values of the newest state in a checkpoint's folder.

    :param folder: folder of a checkpoint, whether or not it exists
    :return: its values; ``None`` where no state can be read
    """
    states = []
    for name in STATE_FILES:
        try:
            values = read_values(folder / name)
        except CheckpointError:
            continue
        if isinstance(values, dict) and type(values.get("num_timesteps")) is int:
            states.append(values)
    return max(states, key=lambda values: values["num_timesteps"], default=None)


def newest_steps(folder: Path) -> int | None:
    """
    Environment steps of the newest state in a checkpoint's folder.

    :param folder: folder of a checkpoint, whether or not it exists
    :return: its steps; ``None`` where no state can be read
    """
    values = newest_values(folder)
    return None if values is None else values["num_timesteps"]
