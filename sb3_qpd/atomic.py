"""
Files and folders that appear whole or not at all, also where the process or the machine stops in between.

A file is written beside its place, synced to the disk, and renamed. A folder is built beside its place and exchanged with the
old one by one system call. Where that is not possible (see :meth:`AtomicFolder.commit`), the next command on the folder
finishes what was begun, or takes it back.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from sb3_qpd.ordinary_files import read_ordinary

try:
    import fcntl
except ImportError:  # Windows: two processes are not kept apart there
    fcntl = None  # type: ignore[assignment]

LAST = "report.json"  # where files move one by one, it follows the others: where it is, they are
CHECKPOINT = "checkpoint"  # folder of an unfinished run, inside the run's result folder
UNFINISHED = "unfinished"  # the same of a search for the smallest student

OWN = ".sb3-qpd-"  # hidden files and folders of this module
JOURNAL = f"{OWN}commit"
REPLACED = f"{OWN}replaced.json"
COPY = f"{OWN}copy"
MAX_KEPT = 1_000  # files that a commit carries over into the new folder
MAX_JOURNAL = 2**20  # bytes of the names in a journal
MAX_NAME = 240  # bytes of a file's name that leave room for more in a file system

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name))
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """
    A binary file that replaces another one when it is complete and on the disk. After an error the old one is as it was.

    A symbolic link stays one: the file that it names is replaced. Writers of the same file wait for each other. What a killed
    writer left is overwritten by the next one. A link that lies where this function writes is removed, and not followed.

    :param path: the file; its folder has to exist
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():  # a device or a pipe cannot be replaced
        with open(target, "wb") as file:
            yield file
        return
    temporary = target.with_name(f".{_short(target.name)}.tmp")
    with open_locked(temporary) as file:
        try:
            if target.exists():
                shutil.copymode(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    sync_folder(target.parent)


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """
    Write a file, see :func:`atomic_file`.

    :param path: the file; its folder has to exist
    :param content: all bytes of the file
    """
    with atomic_file(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """
    Wait until the names in a folder are on the disk.

    :param folder: an existing folder
    """
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that sync no folders
            raise
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Wait until all files below a folder, and their names, are on the disk."""
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if path.is_file() and not path.is_symlink():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        sync_folder(Path(root))


def open_locked(path: Path, wait: bool = True) -> IO[bytes]:
    """
    An empty file that no other process has open through this function.

    :param path: the file; created where there is none
    :param wait: wait for the other process
    :raises BlockingIOError: another process has it, and ``wait`` is False
    """
    flags = [getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    while True:
        _make_way(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | sum(flags), 0o666)
        try:
            _lock(descriptor, wait)
            is_there = path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path))
        except BaseException:
            os.close(descriptor)
            raise
        if is_there:
            file = os.fdopen(descriptor, "r+b")
            file.truncate(0)
            return file
        os.close(descriptor)  # its last owner renamed or removed it between the two calls


def _make_way(path: Path) -> None:
    """
    Remove what no file of this module is, from where one is written: a link, a pipe, a second name of another file.

    A folder from elsewhere may hold such a thing, and writing would destroy the file that it stands for.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    is_own = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    if not is_own and not stat.S_ISDIR(status.st_mode):
        path.unlink(missing_ok=True)


def _short(name: str) -> str:
    """A file's name, or a checksum where a longer name than this one would not fit."""
    return name if len(os.fsencode(name)) <= MAX_NAME else hashlib.sha256(os.fsencode(name)).hexdigest()


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _lock(descriptor: int, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # network file systems without locks
            raise


class UnwritableFolder(OSError, ValueError):
    """A folder that cannot be written: a mistake where the user named it, a failing disk later."""


class AtomicFolder:
    """
    Files are written into a hidden folder on the same disk. :meth:`commit` puts them into ``out``; without it they vanish.

    A second process that opens the same folder is refused. What a killed process left beside the folder is removed, and a
    commit that it had begun is finished or taken back.

    :param out: folder that the files are for; created by :meth:`commit` where there is none. A link stays one
    :param force: accept a folder that holds files; those of the same names are replaced
    :param argument: the caller's name for ``out``, with which error messages begin: ``out_dir`` or ``--out``
    :raises ValueError: ``out`` is a file, holds files without ``force``, is in use, or cannot be written
    """

    def __init__(self, out: Path, force: bool, argument: str = "The folder") -> None:
        self.out, self._argument = out, argument
        self._place = Path(os.path.realpath(out))
        if self._place.exists() and not self._place.is_dir():
            raise ValueError(f"{argument} {out} is a file. Expected a new or empty folder")
        self._made: list[Path] = []
        self._is_open = False
        try:
            self._open()
        except BlockingIOError as error:
            self._remove_parents()
            raise ValueError(
                f"{argument} {out} is in use: another process is writing there. Wait for it, or take another folder"
            ) from error
        except OSError as error:
            self._remove_parents()
            raise UnwritableFolder(f"{argument} {out} cannot be written ({error.strerror}). Take another folder") from error
        if not force and any(path.name != CHECKPOINT for path in self._others()):
            self._close()
            raise ValueError(f"{argument} {out} is not empty. Take another folder, or --force to replace the files in it")

    def _open(self) -> None:
        """Take the lock, finish what a killed process began, and try that a folder can be created."""
        parent, place = self._place.parent, self._place
        self._made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        parent.mkdir(parents=True, exist_ok=True)
        # never renamed: a mount point, a folder in a parent that cannot be written, and the hidden folder of another commit
        is_fixed = os.path.ismount(place) or not os.access(parent, os.W_OK | os.X_OK) or place.name.startswith(OWN)
        self._base = place if place.is_dir() and is_fixed else parent
        stem = f"{OWN}{place.name[:100]}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
        self._new, self._old, self._lock_path = (self._base / f"{stem}.{kind}" for kind in ("new", "old", "lock"))
        self._lock = open_locked(self._lock_path, wait=False)
        self._is_open = True
        try:
            self._recover()
            self._new.mkdir()
            self._new.rmdir()
        except BaseException:
            self._close()
            raise

    def _recover(self) -> None:
        if _is_folder(self._old) and not self._place.exists():  # the process ended between the two renames
            os.rename(self._old, self._place)
        for left_over in (self._old, self._new, self._place / COPY):
            _remove_any(left_over)
        if _is_folder(self._place / JOURNAL):
            _roll_forward(self._place)
        else:
            _remove_any(self._place / JOURNAL)

    def __enter__(self) -> "AtomicFolder":
        return self

    @property
    def place(self) -> Path:
        """The folder as an absolute path without links, whatever becomes of the current folder."""
        return self._place

    @property
    def path(self) -> Path:
        """The hidden folder, created at the first use: a process that is killed before leaves none."""
        self._new.mkdir(exist_ok=True)
        return self._new

    def check_room(self, n_bytes: int) -> None:
        """
        Refuse a disk that is known to be too full.

        :param n_bytes: bytes that the files will need
        :raises ValueError: there is less room
        """
        free = shutil.disk_usage(self._base).free
        if free < n_bytes:
            raise ValueError(
                f"{self._argument} {self.out} needs about {n_bytes:,} bytes, and {free:,} are free on its disk. Make room, or "
                "take another folder"
            )

    def _others(self) -> list[Path]:
        """What lies in the folder, without hidden files of this module."""
        if not self._place.is_dir():
            return []
        return [path for path in self._place.iterdir() if not path.name.startswith(OWN)]

    def commit(self, replacing: Iterable[str] = ()) -> list[str]:
        """
        Put the files where they belong. At every instruction the folder is the old one or the new one.

        A new folder is renamed, and an existing one exchanged (``renameat2``), together with its other files. A single file is
        renamed. Some folders cannot be exchanged: a mount point, the current folder, one with folders or very many files in
        it. There a journal is the commit point, and the files follow one by one: a process that is killed between them leaves
        the rest to the next command on the folder.

        :param replacing: names of files that are deleted from ``out``, whether or not there are new ones
        :return: names of the files
        """
        for path in self.path.iterdir():
            if path.name.startswith(OWN):  # of a commit into this folder that could not clean up
                _remove_any(path)
        names = sorted(path.name for path in self._new.iterdir())
        others = self._others()
        kept = [path for path in others if path.name not in {*names, *replacing}]
        removed = sorted({path.name for path in others} - {path.name for path in kept} - {*names})
        _sync_tree(self._new)
        if not self._commit_at_once(names, others, kept, removed):
            self._commit_by_journal(removed)
        self._made = []
        sync_folder(self._place.parent)
        return names

    def _commit_at_once(self, names: list[str], others: list[Path], kept: list[Path], removed: list[str]) -> bool:
        """
        Commit by one rename or exchange.

        :return: whether that was possible
        """
        if others and len(names) == 1 and not removed and not _is_folder(self._new / names[0]):
            os.replace(self._new / names[0], self._place / names[0])
            sync_folder(self._place)
            return True
        if self._base is self._place or not _can_be_exchanged(self._place, kept):
            return False
        try:
            if not others:
                _rename_onto_empty(self._new, self._place)
                return True
            for path in kept:
                _carry_over(path, self._new / path.name)
            _sync_tree(self._new)
            shutil.copymode(self._place, self._new)
            _exchange(self._new, self._place, self._old)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EXDEV):  # a mount that os.path.ismount does not see
                raise
            for path in kept:
                _remove_any(self._new / path.name)
            return False
        return True

    def _commit_by_journal(self, removed: list[str]) -> None:
        self._place.mkdir(exist_ok=True)
        (self._new / REPLACED).write_text(json.dumps(removed), encoding="utf-8")
        _sync_tree(self._new)
        try:
            os.rename(self._new, self._place / JOURNAL)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copytree(self._new, self._place / COPY)
            _sync_tree(self._place / COPY)
            os.rename(self._place / COPY, self._place / JOURNAL)
        sync_folder(self._place)
        _roll_forward(self._place)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        written = sum(path.stat().st_size for path in self._new.iterdir()) if self._new.is_dir() else 0
        self._close()
        if not isinstance(error, OSError):
            return
        is_full = error.errno in _NO_ROOM and error.filename is None
        if is_full and error.strerror == os.strerror(error.errno or 0):  # else the writer said already how much it needs
            error.strerror = f"No space left, more than {written} bytes needed"
        if is_full or str(error.filename).startswith(str(self._new)):
            error.filename = str(self.out)  # the hidden folder means nothing to a reader, and is gone

    def _close(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        shutil.rmtree(self._new, ignore_errors=True)
        if self._place.exists():
            shutil.rmtree(self._old, ignore_errors=True)
        with suppress(OSError):
            os.unlink(self._lock_path)
        self._lock.close()
        self._remove_parents()

    def _remove_parents(self) -> None:
        """Remove the empty folders that were created for nothing."""
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()


def _rename_onto_empty(new: Path, place: Path) -> None:
    if os.name == "nt" and place.is_dir():
        place.rmdir()
    os.rename(new, place)


def _can_be_exchanged(place: Path, kept: list[Path]) -> bool:
    """Whether a folder is only a place for results: a process that works in it would be left in a removed folder."""
    here = _if_known(Path.cwd)
    if here is not None and place in (here.resolve(), *here.resolve().parents):
        return False
    # hidden files are another process's, which writes into a folder inside
    if len(kept) > MAX_KEPT or (place.is_dir() and any(path.name.startswith(OWN) for path in place.iterdir())):
        return False
    return all(path.name == CHECKPOINT or path.is_symlink() or path.is_file() for path in kept)


def _carry_over(source: Path, target: Path) -> None:
    """The same file under a second name, so that its content is not copied."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for path in source.iterdir():
            _carry_over(path, target / path.name)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(new: Path, place: Path, old: Path) -> None:
    """Exchange two folders, and remove the one that was in the place of the other."""
    if _rename_exchange(new, place):
        sync_folder(place.parent)
        _remove(new)
        return
    os.rename(place, old)  # from here to the next line there is none; see AtomicFolder._recover
    try:
        os.rename(new, place)
    except OSError:
        os.rename(old, place)
        raise
    sync_folder(place.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    """Remove a folder that nobody reads any more. What is left of it after an error is removed by the next command."""
    shutil.rmtree(folder, ignore_errors=True)


def _remove_any(path: Path) -> None:
    if _is_folder(path):
        _remove(path)
    else:
        with suppress(NotADirectoryError):  # it lies in a folder that is none
            path.unlink(missing_ok=True)


def _rename_exchange(one: Path, other: Path) -> bool:
    """Exchange two names by one system call, where system and file system have it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _roll_forward(place: Path) -> None:
    """
    Finish a commit whose files move one by one. It may be repeated from any point.

    :raises ValueError: the journal is damaged, or from elsewhere and names what lies outside the folder
    """
    journal = place / JOURNAL
    replaced = journal / REPLACED
    names = _read_names(replaced) if os.path.lexists(replaced) else []
    for path in sorted(journal.iterdir(), key=lambda path: (path.name == LAST, path.name)):
        if path != replaced:
            if _is_folder(path) and _is_folder(place / path.name):
                _remove(place / path.name)  # a folder cannot be renamed onto one that holds files
            os.replace(path, place / path.name)
    for name in names:
        if name in (CHECKPOINT, UNFINISHED) or not _is_folder(place / name):  # of folders a run leaves these alone
            _remove_any(place / name)
    sync_folder(place)
    replaced.unlink(missing_ok=True)
    journal.rmdir()


def _read_names(path: Path) -> list[str]:
    """The names that a journal removes. They come from a file, so that each must be the name of a file in the folder."""
    try:
        names = json.loads(read_ordinary(path, MAX_JOURNAL, follow_links=False))
        if not isinstance(names, list) or not all(map(_is_name, names)):
            raise ValueError("expected a list of names of files")
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is damaged, or not of sb3-qpd: {error}. Remove the folder {path.parent}") from error
    return names


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and os.path.basename(name) == name and "\0" not in name


def save_elsewhere(write: Callable[[Path], Any], name: str) -> Path | None:
    """
    Save into the first folder that takes the files, where the one that was asked for cannot be written.

    :param write: writes the files into a new folder
    :param name: beginning of the name of that folder
    :return: the folder; ``None`` where no disk takes the files
    """
    known = (_if_known(Path.home), _if_known(Path.cwd))
    bases: list[str | None] = [None, *(str(base) for base in known if base is not None)]
    for base in bases:  # None: the folder for temporary files
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
        except OSError:
            continue
        try:
            write(folder)
            _sync_tree(folder)
            return folder
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
    return None


def _if_known(find: Callable[[], Path]) -> Path | None:
    """The home, or the current folder; ``None`` for a user without one, and where the folder was removed meanwhile."""
    try:
        return find()
    except (OSError, RuntimeError):
        return None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and requests to end inside, so that a second one does not stop the saving that the first one asked for."""
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread
        yield
        return
    previous = [(number, signal.signal(number, signal.SIG_IGN)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in previous:
            if handler is not None:
                signal.signal(number, handler)
