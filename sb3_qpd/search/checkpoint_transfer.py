"""The checkpoint of a trial on another machine: its files travel, so that no disk has to be shared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sb3_qpd.atomic import write_atomically
from sb3_qpd.distillation.checkpoint_files import STATE_FILES, checkpoint_paths


@dataclass(frozen=True)
class Changes:
    """
    The changes that a write made in the folder of a checkpoint.

    :param files: contents of the files that are new or have changed, by name
    :param names: names of all files of the checkpoint
    """

    files: dict[str, bytes]
    names: frozenset[str]


class ChangeFinder:
    """
    Finds the changes that each write made in the folder of a checkpoint.

    :param folder: folder of the checkpoint
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = _stamps(folder)

    def changes(self) -> Changes:
        """The changes since the last call. No process may write to the folder meanwhile."""
        stamps = _stamps(self._folder)
        changed = [name for name, stamp in stamps.items() if self._known.get(name) != stamp]
        self._known = stamps
        return Changes({name: (self._folder / name).read_bytes() for name in changed}, frozenset(stamps))


def read_checkpoint(folder: Path) -> dict[str, bytes]:
    """
    The files of a checkpoint.

    :param folder: folder of the checkpoint, whether or not it exists
    :return: contents by name
    """
    return {name: (folder / name).read_bytes() for name in _stamps(folder)}


def write_checkpoint(folder: Path, files: Mapping[str, bytes]) -> None:
    """
    Write files of a checkpoint. A state comes after the files that it names, so that an interruption leaves a whole one.

    :param folder: folder of the checkpoint, created where it is missing
    :param files: contents by name
    :raises OSError: the disk does not take them
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name in STATE_FILES):
        write_atomically(folder / name, files[name])


def apply_changes(folder: Path, changes: Changes) -> None:
    """
    Repeat the changes that a write made in another folder.

    :param folder: folder of the checkpoint
    :param changes: changes of one write. Those of all earlier writes were applied to the folder before
    :raises OSError: the disk does not take them
    """
    write_checkpoint(folder, changes.files)
    for name in _stamps(folder).keys() - changes.names:
        with suppress(OSError):
            (folder / name).unlink()


def _stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Name of each file of a checkpoint -> inode, size and time of its last change."""
    statuses = {path.name: path.lstat() for path in checkpoint_paths(folder)}
    return {name: (status.st_ino, status.st_size, status.st_mtime_ns) for name, status in statuses.items()}
