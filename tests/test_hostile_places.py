"""Where this package writes, a folder from elsewhere may hold links, pipes and a journal: nothing outside is touched."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bounds import bounded
from students import make_student

from sb3_qpd.atomic import COPY, JOURNAL, REPLACED, AtomicFolder, save_elsewhere, write_atomically
from sb3_qpd.integer_file import StudentError, read_npz
from sb3_qpd.ordinary_files import open_ordinary, read_ordinary
from sb3_qpd.student_folder import read_report
from sb3_qpd.teachers.files.archive import TeacherError, read_file
from sb3_qpd.teachers.files.vecnormalize import is_vecnormalize

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")

# what may lie at a path instead of an ordinary file: each leads to ``victim`` or to a wait without end
TRAPS: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, victim: path.symlink_to(victim),
    "second name": lambda path, victim: os.link(victim, path),
    "link to nowhere": lambda path, victim: path.symlink_to(victim.with_name("nowhere")),
    "link to a folder": lambda path, victim: path.symlink_to(victim.parent),
    "pipe": lambda path, victim: os.mkfifo(path),
}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of the user's in a folder of its own."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "key").write_text("precious")
    return folder / "key"


def is_untouched(victim: Path) -> bool:
    return [path.name for path in victim.parent.iterdir()] == ["key"] and victim.read_text() == "precious"


def commit(out: Path, *names: str) -> None:
    with AtomicFolder(out, force=True) as folder:
        for name in names:
            (folder.path / name).write_text("new")
        folder.commit()


@pytest.mark.parametrize("trap", TRAPS)
def test_a_file_is_written_through_no_link(trap: str, victim: Path, tmp_path: Path) -> None:
    TRAPS[trap](tmp_path / ".student.zip.tmp", victim)
    with bounded(20, 2**28):
        write_atomically(tmp_path / "student.zip", b"new")
    assert (tmp_path / "student.zip").read_bytes() == b"new" and is_untouched(victim)
    assert {path.name for path in tmp_path.iterdir()} == {"student.zip", "mine"}


@pytest.mark.parametrize("trap", [*TRAPS, "file"])
@pytest.mark.parametrize("kind", ["lock", "new", "old", "journal", "copy"])
def test_a_folder_is_written_through_no_link(kind: str, trap: str, victim: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with AtomicFolder(out, force=True) as folder:
        places = {"lock": folder._lock_path, "new": folder._new, "old": folder._old}
    place = {**places, "journal": out / JOURNAL, "copy": out / COPY}[kind]
    make = TRAPS.get(trap, lambda path, victim: path.write_text(""))
    make(place, victim)
    with bounded(20, 2**28):
        commit(out, "one", "two")
    assert {path.name for path in out.iterdir()} == {"one", "two"} and is_untouched(victim)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


def journal(out: Path, content: bytes) -> Path:
    (out / JOURNAL).mkdir(parents=True)
    (out / JOURNAL / REPLACED).write_bytes(content)
    return out / JOURNAL / REPLACED


@pytest.mark.parametrize("name", ["..", ".", "", "../mine", "/", "a/b", "\0"])
def test_a_journal_removes_nothing_outside(name: str, victim: Path, tmp_path: Path) -> None:
    """The name ``..`` emptied the folder above."""
    out = tmp_path / "out"
    journal(out, json.dumps([name]).encode())
    with pytest.raises(ValueError, match=r"is damaged, or not of sb3-qpd: .*Remove the folder .*sb3-qpd-commit"):
        AtomicFolder(out, force=True)
    assert is_untouched(victim) and {path.name for path in tmp_path.iterdir()} == {"out", "mine"}


@pytest.mark.parametrize("content", [b"", b"7", b"[7]", b"[" * 100_000, b"\xff", b"[" + b" " * 2**21 + b"]"])
def test_damaged_journals(content: bytes, tmp_path: Path) -> None:
    journal(tmp_path / "out", content)
    with pytest.raises(ValueError, match="is damaged, or not of sb3-qpd"):
        AtomicFolder(tmp_path / "out", force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_a_journal_removes_no_folder_but_the_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "out"
    journal(out, b'["mine", "checkpoint", "old.txt"]')
    for name in ("mine", "checkpoint"):
        (out / name).mkdir()
        (out / name / "file").write_text("")
    (out / "old.txt").write_text("")
    commit(out, "new.txt")
    assert {path.name for path in out.iterdir()} == {"mine", "new.txt"}


def test_a_journal_is_no_link_and_holds_none(victim: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    names = journal(out, b"")
    names.unlink()
    names.symlink_to(victim)
    with pytest.raises(ValueError, match="is damaged, or not of sb3-qpd"):
        AtomicFolder(out, force=True)
    assert is_untouched(victim)


def test_a_folder_that_is_written_inside_the_result_folder_stays(tmp_path: Path) -> None:
    """Its hidden files are those of another process, and are not exchanged with the folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("")
    with AtomicFolder(out / "inner", force=False) as inner:
        (inner.path / "one").write_text("1")
        commit(out, "two", "three")
        inner.commit()
    assert (out / "inner" / "one").read_text() == "1"
    assert {path.name for path in out.iterdir()} == {"inner", "mine", "two", "three"}


@pytest.mark.parametrize("name", ["a b", "a\nb", "x" * 255, "ä" * 127, "\u202ex", "\udcff", "-rf", "~"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        commit(tmp_path / name, "one", "two")
    write_atomically(tmp_path / name / name, b"new")
    assert {path.name for path in (tmp_path / name).iterdir()} == {"one", "two", name}


def test_the_current_folder_is_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(here)
    with AtomicFolder(tmp_path / "out", force=True) as folder:
        (folder.path / "one").write_text("1")
        shutil.rmtree(here)
        folder.commit()
    assert (tmp_path / "out" / "one").read_text() == "1"
    other = save_elsewhere(lambda folder: (folder / "one").write_text("1"), "student")
    assert other is not None
    shutil.rmtree(other)


def test_a_folder_that_may_be_written_and_not_read(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    drop = tmp_path / "drop"
    drop.mkdir()
    drop.chmod(0o733)
    for folder in (tmp_path, *tmp_path.parents[:3]):  # the third under xdist
        folder.chmod(0o755)
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            commit(drop / "out", "one", "two")
            write_atomically(drop / "file", b"new")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert (drop / "out" / "one").read_text() == "new" and (drop / "file").read_bytes() == b"new"


# -- reading -----------------------------------------------------------------------------------------------------------


def test_only_ordinary_files_are_opened(victim: Path, tmp_path: Path) -> None:
    assert read_ordinary(victim, 8) == b"precious"
    with pytest.raises(ValueError, match="has 8 bytes, at most 7 are read"):
        read_ordinary(victim, 7)
    (tmp_path / "link").symlink_to(victim)
    assert read_ordinary(tmp_path / "link", 8) == b"precious"
    os.mkfifo(tmp_path / "pipe")
    for path, follow, message in (
        (tmp_path / "link", False, "it is a link"),
        (tmp_path / "pipe", True, "no ordinary file"),
        (Path("/dev/zero"), True, "no ordinary file"),
        (tmp_path, True, "directory"),
    ):
        with bounded(20, 2**28), pytest.raises(OSError, match=message):
            open_ordinary(path, follow)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_every_reader_ends(kind: str, tmp_path: Path) -> None:
    """Also where the file is exchanged after its path was checked: the open file is what counts."""
    path = tmp_path / "student.npz"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(100 * 2**30)
    with bounded(20, 2**28):
        with pytest.raises(StudentError):
            read_npz(str(path))
        with pytest.raises(StudentError):
            read_report(path)
        with pytest.raises(TeacherError):
            read_file(path, "a model")
        assert not is_vecnormalize(path)


# -- the integer model, which stands alone -------------------------------------------------------------------------------


def test_what_a_killed_process_left_of_an_npz_is_removed(victim: Path, tmp_path: Path) -> None:
    model, path = make_student().to_integer(), tmp_path / "student.npz"
    left, other = tmp_path / ".student.npz.0123abcd.tmp", tmp_path / ".student.npz.mine.tmp"
    for one in (left, other):
        one.write_text("half")
        os.utime(one, (0, 0))
    running = tmp_path / ".student.npz.89abcdef.tmp"  # another process's, which writes now
    running.write_text("half")
    model.save(path)
    assert {one.name for one in tmp_path.iterdir()} == {"mine", path.name, other.name, running.name}
    path.unlink()
    path.symlink_to(victim)
    model.save(path)
    assert is_untouched(victim) and not path.is_symlink()
