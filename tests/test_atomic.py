"""Files that appear together, and the names of a student's files."""

from pathlib import Path

import pytest

from sb3_qpd import export_numpy
from sb3_qpd.atomic import AtomicFolder
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
    assert set(TARGET_FILES) == set(EXPORTERS)
    assert set(TARGET_FILES.values()) <= set(FILES) and set(TARGET_FILES.values()) <= set(OUTPUTS)
    assert "config.yml" not in OUTPUTS and {"student_float.zip", "report.md"} <= set(OUTPUTS)


def test_folder_of_a_file(tmp_path: Path) -> None:
    write(tmp_path, file="")
    assert folder_of(tmp_path / "file") == folder_of(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="There is no folder or file .*nowhere. Expected the folder"):
        folder_of(tmp_path / "nowhere")
