"""Opening an untrusted zip: nothing is extracted, and neither its sizes nor its names are believed."""

from __future__ import annotations

import difflib
import io
import re
import struct
import zipfile
import zlib
from itertools import islice
from pathlib import Path

from sb3_qpd.ordinary_files import read_ordinary
from sb3_qpd.text import plain

MAX_FILE_BYTES = 2**30  # of a file
MAX_MEMBER_BYTES = 512 * 2**20  # of one member of a zip, and of all weights together
MAX_MEMBERS = 2_000  # a model has six members, its weights one for each tensor
WAY_OUT = "If you trust the file, load it yourself (for instance PPO.load) and pass the live model instead of the path."

# exceptions of zipfile on damaged files
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, IndexError)
_HONEST_NAME = re.compile(r"\.?\w[\w.\- ]*(/\.?\w[\w.\- ]*)*/?")  # neither absolute nor upwards, no drive, no NUL


class TeacherError(ValueError):
    """
    A teacher's files or its live model cannot be used.

    :param message: why, and what to do
    """

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, most=10_000))  # names of files are in it


def read_file(path: Path, expected: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """
    The bytes of a file.

    :param path: path of the file
    :param expected: kind of file that should be there, for messages
    :param limit: largest size in bytes
    :raises TeacherError: there is no such file, it is larger, or it cannot be read
    """
    if not path.exists():
        raise TeacherError(f"No such file: {path}. Expected {expected}; check the path. {_nearby(path)}")
    if path.is_dir():
        raise TeacherError(f"{path} is a folder. Expected {expected}")
    try:
        return read_ordinary(path, limit)
    except ValueError as error:
        raise TeacherError(f"{error}. Expected {expected}") from error
    except OSError as error:
        raise TeacherError(f"{path} cannot be read ({error.strerror or error}). Expected {expected}") from error


def _nearby(path: Path) -> str:
    """The nearest folder above a path that exists, and the names in it that are most like the missing one."""
    missing, folder = path, path.parent
    while not folder.is_dir() and folder != folder.parent:
        missing, folder = folder, folder.parent
    names = sorted(one.name for one in islice(folder.iterdir(), 10_000)) if folder.is_dir() else []
    near = difflib.get_close_matches(missing.name, names, n=3)
    return f"In {folder.resolve()} there is no {missing.name}" + (f", but {', '.join(near)}" if near else "")


class Archive:
    """
    The members of a zip.

    :param content: bytes of the zip
    :param what: name of the zip, for messages
    :param otherwise: end of the message where it is no zip at all
    """

    def __init__(self, content: bytes, what: str, otherwise: str) -> None:
        self.what = what
        if content.count(b"PK\x01\x02") > 10 * MAX_MEMBERS:  # its directory alone could fill the memory
            raise TeacherError(f"{what} is a zip of more than {MAX_MEMBERS} members: refused. {WAY_OUT}")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            if min((info.header_offset for info in self._zip.infolist()), default=0) > 0:
                # where its end is cut off, zipfile finds the end of the weights, which are a zip themselves
                raise zipfile.BadZipFile("its beginning does not belong to its end")
        except ZIP_ERRORS as error:
            if content.startswith(b"PK"):
                raise TeacherError(f"{what} is a truncated or damaged zip ({error}). Fetch or save it again") from error
            raise TeacherError(f"{what} is not a zip. {otherwise}") from error
        self._check_names()

    def _check_names(self) -> None:
        originals = [info.orig_filename for info in self._zip.infolist()]
        if len(originals) > MAX_MEMBERS:
            raise TeacherError(f"{self.what} is a zip of more than {MAX_MEMBERS} members: refused. {WAY_OUT}")
        for name in originals:
            if not _HONEST_NAME.fullmatch(name):
                raise TeacherError(f"{self.what} has a member named {name[:80]!r}: refused. {WAY_OUT}")
        if len(set(originals)) < len(originals):
            twice = next(name for name in originals if originals.count(name) > 1)
            raise TeacherError(f"{self.what} has two members named {twice[:80]!r}: refused. {WAY_OUT}")
        self.names = originals

    @property
    def nbytes(self) -> int:
        """Bytes of all members, unpacked, as the directory states them."""
        return sum(info.file_size for info in self._zip.infolist())

    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """
        One member, with its checksum checked. No more is unpacked than the directory states.

        :param name: one of ``names``
        :param limit: largest size in bytes
        """
        info, where = self._zip.getinfo(name), f"{name} in {self.what}"
        if info.file_size > limit:
            raise TeacherError(f"{where} has {info.file_size} bytes, at most {limit} are read: refused. {WAY_OUT}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
            raise TeacherError(f"{where} is packed by a method that SB3 does not use: refused. {WAY_OUT}")
        try:
            with self._zip.open(info) as member:
                content = member.read(info.file_size + 1)
            if len(content) != info.file_size:
                raise zipfile.BadZipFile(f"{len(content)} bytes instead of {info.file_size}")
            return content
        except (*ZIP_ERRORS, NotImplementedError) as error:
            raise TeacherError(f"{where} is truncated or damaged ({error}). Fetch or save the file again") from error
