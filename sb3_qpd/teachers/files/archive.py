"""
Opening a zip from elsewhere: nothing is extracted, and neither its sizes nor its names are believed.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

MAX_FILE_BYTES = 2**30  # of any file that is read
MAX_MEMBER_BYTES = 512 * 2**20  # of one member, and of all weights together
MAX_MEMBERS = 2_000  # a model has six members, its weights one for each tensor
WAY_OUT = "If you trust the file, load it yourself (for instance PPO.load) and pass the live model instead of the path."

# what zipfile raises on damaged files
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, IndexError)
_HONEST_NAME = re.compile(r"\.?\w[\w.\- ]*(/\.?\w[\w.\- ]*)*/?")  # neither absolute nor upwards, no drive, no NUL


class TeacherError(ValueError):
    """Something is wrong with a teacher's files."""


def read_file(path: Path, expected: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """
    :param path: of any file
    :param expected: what should be there, for the message
    :param limit: bytes beyond which it is refused
    """
    if not path.exists():
        raise TeacherError(f"No such file: {path}. Expected {expected}; check the path")
    if not path.is_file():
        raise TeacherError(f"{path} is a folder. Expected {expected}")
    if (size := path.stat().st_size) > limit:
        raise TeacherError(f"{path} has {size} bytes, at most {limit} are read: refused. Expected {expected}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise TeacherError(f"{path} cannot be read ({error}). Expected {expected}") from error


class Archive:
    """
    The members of a zip.

    :param content: the zip
    :param what: its name, for the messages
    :param otherwise: what to say where it is no zip at all
    """

    def __init__(self, content: bytes, what: str, otherwise: str) -> None:
        self.what = what
        if content.count(b"PK\x01\x02") > 10 * MAX_MEMBERS:  # its directory alone could fill the memory
            raise TeacherError(f"{what} is a zip of more than {MAX_MEMBERS} members: refused. {WAY_OUT}")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
            if min((info.header_offset for info in self._zip.infolist()), default=0) > 0:
                # with its own end cut off, zipfile finds that of the weights, which are a zip themselves
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
        """What all members say that they hold."""
        return sum(info.file_size for info in self._zip.infolist())

    def read(self, name: str, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """
        One member, its checksum checked; no more is unpacked than it says that it holds.

        :param name: one of ``names``
        :param limit: bytes beyond which it is refused
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
