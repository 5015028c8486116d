"""A search for absolute paths of this machine, which no published file may name."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickletools
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sb3_qpd.publishing.config import is_pickled
from sb3_qpd.teachers.files.archive import Archive
from sb3_qpd.teachers.files.zoo_yaml import parse_yaml

_HOMES = rb"(?:/home/|/Users/|/root/|[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/))[\w.@\x80-\xff-]+"
MAX_UNPACKED_BYTES = 512 * 2**20  # of all zips in one file
MAX_NESTED_ZIPS = 2  # a student's zip holds its weights as a zip
# Where a path may begin: archive/data/0 is not /data/0. In a binary file two bytes stand before a text, its kind and its
# length, and both may look like letters
_TEXT, _BINARY = rb"(?<![\w.-])", rb"(?<![\w.-]{3})"


def check_no_paths(files: Mapping[str, bytes], folder: Path) -> None:
    """
    Refuse files that name a path of this machine or a home folder.

    Members of zips are searched too. In JSON, YAML and pickles, any text that is an absolute path is refused.

    :param files: contents of the files to publish, by name
    :param folder: folder that they were read from
    :raises ValueError: names the file and the path
    """
    own = {folder.resolve(), Path.cwd(), Path.home(), Path(tempfile.gettempdir()).resolve(), Path(__file__).parents[1]}
    known = b"|".join(re.escape(str(path).encode()) for path in own if len(path.parts) > 1) or rb"(?!)"
    text, binary = (re.compile(rb"%s|%s(?:%s)(?![\w.-])" % (_HOMES, before, known)) for before in (_TEXT, _BINARY))
    for name, content in files.items():
        for where, part in _parts(name, content, [MAX_UNPACKED_BYTES]):
            path = next((one for one in _texts(where, part) if _is_absolute(one) or text.search(one.encode())), None)
            if path is None and (found := (binary if b"\0" in part else text).search(part)) is not None:
                path = re.split(rb"[^\x21-\x7e]|[\"'<>]", part[found.start() : found.start() + 120])[0].decode()
            if path is not None:
                raise ValueError(
                    f"{where} names a path of this machine: {path[:120]}. Nothing was published. Save the student again "
                    f"without it, or leave {name} out of {folder}"
                )


def _is_absolute(text: str) -> bool:
    return (text.startswith("/") and len(PurePosixPath(text).parts) > 1) or PureWindowsPath(text).is_absolute()


def _texts(where: str, content: bytes) -> Iterator[str]:
    """Every text in a JSON or YAML document, or in a pickle, which is not executed."""
    try:
        if content.startswith(b"\x80"):
            yield from (arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, str))
        elif content.startswith(b"{"):
            yield from _walk(json.loads(content))
        elif where.endswith(".yml"):
            yield from _walk(parse_yaml(content, where))
    except (ValueError, IndexError, RecursionError):
        return


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in chain(value, value.values()) if isinstance(value, dict) else value:
            yield from _walk(one)


def _parts(where: str, content: bytes, room: list[int], depth: int = 0) -> Iterator[tuple[str, bytes]]:
    """
    A file, the members of a zip, the header of an integer model, and the pickles in the JSON of an SB3 model.

    :param room: bytes that may still be unpacked; a small zip can hold any number of them
    :param depth: number of zips around the content
    """
    yield where, content
    if content.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(content)):
        if depth == MAX_NESTED_ZIPS:
            raise ValueError(f"{where} is a zip in {depth} zips: refused. Nothing was published. Save the student again")
        archive = Archive(content, where, "Save the student again")
        for name in archive.names:
            member = archive.read(name, room[0])
            room[0] -= len(member)
            yield from _parts(f"{name} in {where}", member, room, depth + 1)
    elif where.startswith("header.npy in "):
        yield where, content[max(content.find(b'{"'), 0) :]  # its JSON
    elif content.startswith(b"{"):
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            return
        for key, value in values.items():
            if is_pickled(value):
                try:
                    yield f"{key} in {where}", base64.b64decode(value[":serialized:"])
                except (binascii.Error, ValueError, TypeError):
                    continue
