"""The files of a student: their names, what each is, which of them are published, and which ``compress`` writes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sb3_qpd.checks import check_path
from sb3_qpd.ordinary_files import read_ordinary

INTEGER_MODEL = "student.npz"
STUDENT_ZIP = "student.zip"
FLOAT_ZIP = "student_float.zip"  # the same student before its precision fell
ONNX_FILE = "student.onnx"
TFLITE_FILE = "student.tflite"
C_FILE = "policy.c"
NUMPY_FILE = "policy.py"
JS_FILE = "policy.mjs"
MICROPYTHON_FILE = "policy_micropython.py"
REPORT = "report.json"
REPORT_TEXT = "report.md"
RECORDED = "recorded.json"  # how well a student of recorded observations does on those that were held out
RECORDED_TEXT = "recorded.md"
CONFIG = "config.yml"
PAGE = "report.html"
COMMAND = "command.txt"  # the command line that made the folder, as RL Zoo names it; it may hold paths, and stays here
FILM = "film.gif"  # teacher and student side by side
BENCHMARK = "benchmark.json"
FRONTIER = "frontier.json"  # of a search, above the folders of its students

# Files that are published: name -> description for the model card. Other files in the folder stay on the user's machine.
FILES = {
    INTEGER_MODEL: "the integer model: what a device runs, with numpy alone",
    STUDENT_ZIP: "the student as an SB3 model; in evaluation mode it computes the same bits",
    ONNX_FILE: "for ONNX Runtime, the same bits",
    "student_onnx.json": "how often the ONNX file in float32 agrees with the integer model",
    TFLITE_FILE: "for TFLite",
    C_FILE: "the student in C99",
    "policy.h": "the C interface",
    "policy_README.md": "how to use the C code",
    "main.c": "checks the C code against test_vectors.h",
    "test_vectors.h": "observations, and the student's outputs for them",
    NUMPY_FILE: "runs student.npz with numpy alone",
    JS_FILE: "for browsers and node, the same bits",
    MICROPYTHON_FILE: "for MicroPython, the same bits",
    REPORT: "everything that was measured",
    CONFIG: "how it was distilled: for `sb3-qpd zoo train --algo qpd --conf-file config.yml`",
}

# Files that compress and its exports write. A new run replaces all of them, so that no file of an earlier student remains.
OUTPUTS = (
    *(name for name in FILES if name != CONFIG),
    FLOAT_ZIP,
    REPORT_TEXT,
    PAGE,
    COMMAND,
    FILM,
    BENCHMARK,
    RECORDED,
    RECORDED_TEXT,
)

# Zips of a repository that are not the model that it publishes; the first is RL Zoo's.
NO_MODELS = ("train_eval_metrics.zip", FLOAT_ZIP)

# Exports and what belongs to them: forms of a student that only a device, or verify, runs
DEVICE_FILES = tuple(name for name in FILES if name not in (INTEGER_MODEL, STUDENT_ZIP, REPORT, CONFIG))

MAX_FILE_BYTES = 256 * 2**20  # of any file of a student
# Which file each export target writes first; the others of its files go with it.
TARGET_FILES: dict[str, str | None] = {
    "onnx": ONNX_FILE,
    "c": C_FILE,
    "tflite": TFLITE_FILE,
    "numpy": NUMPY_FILE,
    "js": JS_FILE,
    "micropython": MICROPYTHON_FILE,
    "arduino": None,  # a folder, whose name is the environment's
}
TARGET_NAMES = ", ".join(TARGET_FILES)


def c_files(folder: Path) -> list[str]:
    """
    The C files of the exports in a folder: ``policy.c``, and those of other prefixes, which have a README beside them.

    :param folder: folder of a student
    """
    named = sorted(path.name.removesuffix("_README.md") + ".c" for path in folder.glob("*_README.md"))
    return [name for name in dict.fromkeys([C_FILE, *named]) if os.path.lexists(folder / name)]


# files of the library folder that the target arduino writes, by their paths in it; {} is the name of its example
_LIBRARY_FILES = (
    r"README\.md|LICENSE\.txt|library\.properties|keywords\.txt|library\.json|CMakeLists\.txt|idf_component\.yml|"
    r"zephyr/(module\.yml|CMakeLists\.txt|Kconfig)|src/\w+\.[ch]|examples/{0}/({0}\.ino|check\.c|\w*test_vectors\.h)"
)


def arduino_libraries(folder: Path) -> list[str]:
    """
    The library folders that the target ``arduino`` wrote, and to which nothing was added.

    :param folder: folder of a student
    """
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name.endswith("Policy") and _is_own_library(path))


def _is_own_library(library: Path) -> bool:
    if library.is_symlink() or not library.is_dir():
        return False
    try:
        about, readme = (
            read_ordinary(library / name, 2**16, follow_links=False) for name in ("library.properties", "README.md")
        )
    except (OSError, ValueError):
        return False
    if not about.startswith(f"name={library.name}\n".encode()) or b"Written by sb3_qpd" not in readme:
        return False
    pattern = re.compile(_LIBRARY_FILES.format(re.escape(library.name.removesuffix("Policy") or "Policy")))
    files = (path.relative_to(library).as_posix() for path in library.rglob("*") if path.is_symlink() or not path.is_dir())
    return all(pattern.fullmatch(file) for file in files)


def find_zip(folder: Path) -> Path | None:
    """
    The student as an SB3 model.

    :param folder: the folder that ``compress`` wrote, or a run folder of RL Zoo
    """
    names = (STUDENT_ZIP, re.sub(r"_\d+$", "", folder.resolve().name) + ".zip")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def read_own_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """
    Read an ordinary file. A link is refused: in a folder from elsewhere it may lead to any file of this machine.

    :param path: path of the file
    :param limit: largest size in bytes
    :raises StudentError: it is a link, a device or a folder, or larger
    """
    from sb3_qpd.integer_file import StudentError  # which needs numpy: the command's --help does not

    try:
        return read_ordinary(path, limit, follow_links=False)
    except ValueError as error:
        raise StudentError(str(error)) from error
    except OSError as error:
        if path.is_symlink():
            raise StudentError(f"{path} is a link, and may lead out of its folder. Put the file itself there") from error
        if os.path.lexists(path) and not path.is_file():
            raise StudentError(f"{path} is no ordinary file. Expected a file that sb3-qpd wrote") from error
        raise


def read_report(path: Path) -> dict[str, Any]:
    """
    Read a ``report.json``, which may come from elsewhere.

    :param path: path of the file
    :raises StudentError: it is no JSON object, or larger or deeper than a report
    """
    from sb3_qpd.integer_file import MAX_JSON_BYTES, StudentError, read_json

    try:
        return read_json(str(path), read_ordinary(path, MAX_JSON_BYTES))
    except StudentError:
        raise
    except (OSError, ValueError) as error:
        raise StudentError(f"{path} cannot be read: {error}") from error


def reported_env(zip_path: Path) -> dict[str, Any] | None:
    """
    The environment that the report beside a student's zip describes. Nothing of it is checked or imported.

    :param zip_path: the zip
    :return: ``None`` where there is no report, as for a student of recorded observations
    """
    report = zip_path.with_name(REPORT)
    env = read_report(report).get("env") if report.is_file() else None
    return env if isinstance(env, dict) else None  # a text would be an id, whose module is imported


def folder_of(path: str | Path) -> Path:
    """
    The folder of a student that a user names by the folder itself or by a file in it.

    :param path: a folder, or one of its files
    :raises FileNotFoundError: nothing exists at that path
    """
    check_path("folder", path)
    path = Path(path).expanduser()
    if any(Path(f"{path}{suffix}").is_file() for suffix in (".zip", ".npz")) and not path.exists():
        return path.parent  # SB3 appends the suffix too
    if not path.exists():
        raise FileNotFoundError(
            f"There is no folder or file {path}. Expected the folder that sb3-qpd compress or export wrote, or a file in it; "
            "check the path"
        )
    return path if path.is_dir() else path.parent
