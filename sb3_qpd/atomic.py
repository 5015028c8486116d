"""Files that appear together, or not at all."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


class AtomicFolder:
    """
    Files are written into a hidden folder on the same disk and move into ``out`` together, or not at all.

    :param out: where to
    :param force: files of the same names may be replaced
    """

    def __init__(self, out: Path, force: bool) -> None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file. Expected a new or empty folder")
        if out.is_dir() and any(out.iterdir()) and not force:
            raise ValueError(f"--out {out} is not empty. Take another folder, or --force to replace what is in the way")
        self.out = out
        base = out.absolute()
        while not base.exists():
            base = base.parent
        try:
            self.path = Path(tempfile.mkdtemp(prefix=".sb3-qpd-", dir=base))
        except OSError as error:
            raise ValueError(f"--out {out} cannot be written ({error.strerror}). Take another folder") from error

    def __enter__(self) -> "AtomicFolder":
        return self

    def commit(self, replacing: Iterable[str] = ()) -> list[str]:
        """
        :param replacing: names of files that do not stay in ``out``, whether or not there are new ones
        :return: names of the files
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for name in replacing:
            (self.out / name).unlink(missing_ok=True)
        paths = sorted(self.path.iterdir(), key=lambda path: (path.name == "report.json", path.name))  # last: all is there
        for path in paths:
            os.replace(path, self.out / path.name)
        return [path.name for path in paths]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not stop the saving that the first one asked for."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
