"""Files that appear together, and the names of a student's files."""

import tempfile
from pathlib import Path

import pytest

from sb3_qpd import export_numpy
from sb3_qpd.atomic import AtomicFolder, atomic_file, save_elsewhere, write_atomically
from sb3_qpd.export import EXPORTERS
from sb3_qpd.student_folder import FILES, OUTPUTS, TARGET_FILES, folder_of


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)


def test_all_files_or_none(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with pytest.raises(KeyError), AtomicFolder(out, force=False) as folder:
        write(folder.path, one="1", two="2")
        raise KeyError
    assert not list(tmp_path.iterdir())
    with AtomicFolder(out, force=False) as folder:
        write(folder.path, one="1", two="2")
        assert folder.commit() == ["one", "two"]
    assert sorted(path.name for path in out.iterdir()) == ["one", "two"] and not list(tmp_path.glob(".sb3-qpd-*"))


def test_old_files_go_with_the_commit(tmp_path: Path) -> None:
    write(tmp_path, one="old", two="old", mine="mine")
    with AtomicFolder(tmp_path, force=True) as folder:
        write(folder.path, one="new")
        folder.commit(replacing=("one", "two", "three"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "new", "mine": "mine"}


def test_mistakes_name_the_folder(tmp_path: Path) -> None:
    write(tmp_path, file="")
    with pytest.raises(ValueError, match="^The folder .*file is a file. Expected a new or empty folder"):
        AtomicFolder(tmp_path / "file", force=True)
    with pytest.raises(ValueError, match="is not empty. Take another folder, or --force"):
        AtomicFolder(tmp_path, force=False)
    with pytest.raises(ValueError, match="cannot be written"):
        AtomicFolder(Path("/proc/nowhere"), force=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_named_by_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match=r"No space left, more than 10 bytes needed: '.*out'"):
        with AtomicFolder(out, force=False) as folder:
            write(folder.path, one="0123456789")
            with open("/dev/full", "w") as file:
                file.write("more")
    assert not list(tmp_path.iterdir())


def test_an_export_into_a_file_speaks_of_no_option(tmp_path: Path) -> None:
    from students import make_student

    write(tmp_path, file="")
    with pytest.raises(ValueError, match="^out_dir .*file is a file. Expected a new or empty folder$"):
        export_numpy(make_student().to_integer(), tmp_path / "file")


def test_every_target_has_its_file() -> None:
    assert list(TARGET_FILES) == list(EXPORTERS)
    assert set(TARGET_FILES.values()) - {None} <= set(FILES) & set(OUTPUTS)
    assert "config.yml" not in OUTPUTS and {"student_float.zip", "report.md"} <= set(OUTPUTS)


def test_folder_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, file="")
    assert folder_of(tmp_path / "file") == folder_of(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="There is no folder or file .*nowhere. Expected the folder"):
        folder_of(tmp_path / "nowhere")


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    for out in (tmp_path / "new", tmp_path / "a" / "b", tmp_path):
        with AtomicFolder(out, force=True):
            with pytest.raises(ValueError, match="is in use: another process is writing there"):
                AtomicFolder(out, force=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_process_works_in_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, one="old", mine="mine")
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    with AtomicFolder(Path("."), force=True) as folder:
        write(folder.path, one="new", two="new")
        folder.commit(replacing=("one", "two"))
    assert tmp_path.stat().st_ino == before
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "new", "two": "new", "mine": "mine"}


def test_rights_are_those_of_other_folders_and_of_the_old_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").mkdir()
    for mode in (None, 0o750):
        with AtomicFolder(tmp_path / "out", force=True) as folder:
            write(folder.path, one="1", two="2")
            folder.commit()
        expected = (tmp_path / "usual").stat().st_mode & 0o777 if mode is None else mode
        assert (tmp_path / "out").stat().st_mode & 0o777 == expected
        (tmp_path / "out").chmod(0o750)


def test_a_file_is_replaced_where_a_link_points(tmp_path: Path) -> None:
    write(tmp_path, file="old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    with pytest.raises(KeyError), atomic_file(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "file").read_text() == "new" and len(list(tmp_path.iterdir())) == 2
    write_atomically("/dev/null", b"a device is no file to replace")
    assert not Path("/dev/null").is_file()


def test_a_student_is_saved_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def fails(folder: Path) -> None:
        raise OSError

    assert save_elsewhere(fails, "student") is None and not list(tmp_path.iterdir())
    folder = save_elsewhere(lambda folder: write(folder, one="1"), "student")
    assert folder is not None and folder.parent == tmp_path and (folder / "one").read_text() == "1"


def test_folders_take_the_place_of_folders_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where folders cannot be exchanged, those of a search are replaced one by one."""
    monkeypatch.chdir(tmp_path)
    for name in ("points/old", "unfinished/trials", "mine"):
        (tmp_path / name).mkdir(parents=True)
    with AtomicFolder(tmp_path, force=True) as folder:
        (folder.path / "points" / "new").mkdir(parents=True)
        (folder.path / "frontier.json").write_text("{}")
        folder.commit(replacing=("points", "unfinished"))
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "points",
        "points/new",
        "frontier.json",
        "mine",
    }
