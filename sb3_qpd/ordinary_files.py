"""
Reading files from elsewhere that may be something else: a link, a pipe that never ends, a device, a file that grows.

What is checked is the open file, not its path: between a check of the path and the opening another file could take its place.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

# a pipe would wait for its writer; these two are missing on Windows
_WITHOUT_WAITING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_ordinary(path: str | Path, follow_links: bool = True) -> IO[bytes]:
    """
    Open an ordinary file for reading.

    :param path: the file
    :param follow_links: ``False``: a link is refused. In a folder from elsewhere it may lead to any file of this machine
    :raises OSError: there is no such file, it cannot be read, or it is a folder, a pipe, a device, a socket, or a link
    """
    if not follow_links and os.path.islink(path):  # Windows has no O_NOFOLLOW
        raise OSError(errno.ELOOP, "it is a link, and may lead out of its folder", str(path))
    descriptor = os.open(path, _WITHOUT_WAITING | (0 if follow_links else _NO_LINK))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return os.fdopen(descriptor, "rb")


def read_ordinary(path: str | Path, limit: int, follow_links: bool = True) -> bytes:
    """
    The bytes of an ordinary file. What is appended meanwhile is left out.

    :param path: the file
    :param limit: largest size in bytes
    :param follow_links: see :func:`open_ordinary`
    :raises OSError: see :func:`open_ordinary`
    :raises ValueError: the file is larger
    """
    with open_ordinary(path, follow_links) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise ValueError(f"{path} has {size} bytes, at most {limit} are read: refused")
        return file.read(size)
