"""Files that appear together, or not at all."""

import errno
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

LAST = "report.json"  # appears after the other files: where it is, they are


class AtomicFolder:
    """
    Files are written into a hidden folder on the same disk. :meth:`commit` moves them into ``out``; without it they vanish.

    :param out: folder that the files are for; created by :meth:`commit` where there is none
    :param force: accept a folder that holds files; those of the same names are replaced
    :param argument: the caller's name for ``out``, with which error messages begin: ``out_dir`` or ``--out``
    :raises ValueError: ``out`` is a file, holds files without ``force``, or cannot be written
    """

    def __init__(self, out: Path, force: bool, argument: str = "The folder") -> None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"{argument} {out} is a file. Expected a new or empty folder")
        if out.is_dir() and any(out.iterdir()) and not force:
            raise ValueError(f"{argument} {out} is not empty. Take another folder, or --force to replace the files in it")
        self.out = out
        base = out.absolute()
        while not base.exists():
            base = base.parent
        try:
            self.path = Path(tempfile.mkdtemp(prefix=".sb3-qpd-", dir=base))
        except OSError as error:
            raise ValueError(f"{argument} {out} cannot be written ({error.strerror}). Take another folder") from error

    def __enter__(self) -> "AtomicFolder":
        return self

    def commit(self, replacing: Iterable[str] = ()) -> list[str]:
        """
        Move the files to where they belong.

        :param replacing: names of files that are deleted from ``out``, whether or not there are new ones
        :return: names of the files
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for name in replacing:
            (self.out / name).unlink(missing_ok=True)
        paths = sorted(self.path.iterdir(), key=lambda path: (path.name == LAST, path.name))
        for path in paths:
            os.replace(path, self.out / path.name)
        return [path.name for path in paths]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        written = sum(path.stat().st_size for path in self.path.iterdir()) if self.path.is_dir() else 0
        shutil.rmtree(self.path, ignore_errors=True)
        if not isinstance(error, OSError):
            return
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
        if is_full and error.strerror == os.strerror(error.errno or 0):  # else the writer said already how much it needs
            error.strerror = f"No space left, more than {written} bytes needed"
        if is_full or str(error.filename).startswith(str(self.path)):
            error.filename = str(self.out)  # the hidden folder means nothing to a reader, and is gone


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C inside, so that a second one does not stop the saving that the first one asked for."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
