"""Which files an argument names: a folder, a file in it, or a repository on the Hub."""

import re
from pathlib import Path

from sb3_qpd.cli.arguments import TEACHER_SOURCE
from sb3_qpd.student_folder import DEVICE_FILES, INTEGER_MODEL, STUDENT_ZIP, folder_of

AGENT_SUFFIXES = (".zip", ".pth", ".pt", ".onnx")  # of files that are an agent by themselves
_ADDRESS = re.compile(r"https?://[^/]+/(?P<repo>[^/]+/[^/?]+)(/(blob|resolve)/[^/]+/(?P<file>[^?]+))?")
_HUB_NAME = re.compile(r"(?P<owner>[A-Za-z0-9][\w.-]*)/[A-Za-z0-9][\w.-]*(@.+)?")


def check_source(text: str) -> None:
    """
    Refuse a path that does not exist. Nothing heavy is imported for that, so that the answer comes at once.

    :param text: a path, or a model on the Hub
    :raises ValueError: there is no such file, and it is no name on the Hub
    """
    path = Path(text).expanduser()
    if text.startswith("hub:") or path.exists() or Path(f"{path}.zip").is_file():
        return
    if address := _ADDRESS.match(text):
        name = address["repo"] if address["file"] is None else f"hub:{address['repo']}/{address['file']}"
        raise ValueError(f"Expected a path, or a model on the Hub as owner/name, got the address {text}: write {name}")
    on_hub = _HUB_NAME.fullmatch(text)
    if on_hub and path.suffix not in (*AGENT_SUFFIXES, ".npz") and not Path(on_hub["owner"]).is_dir():
        return
    hint = f". A model of this name on the Hub is hub:{text}" if on_hub else ""
    raise ValueError(f"{_no_such_file(text)}{hint}")


def check_teacher_source(text: str, argument: str) -> None:
    """
    Refuse a path that does not exist, and a student where its teacher is expected.

    :param text: the teacher: a path, or a model on the Hub
    :param argument: name of the argument, for the message
    :raises ValueError: it cannot be a teacher
    """
    check_source(text)
    path = Path(text).expanduser()
    if path.suffix == ".npz" or ((path / INTEGER_MODEL).is_file() and (path / STUDENT_ZIP).is_file()):
        kind = "the folder of a student" if path.is_dir() else "a student"
        raise ValueError(f"{text} is {kind}: expected its teacher as {argument}, {TEACHER_SOURCE}")


def find_student(text: str, for_export: bool = False) -> Path | None:
    """
    The student's file that an argument names.

    :param text: a student's zip or ``.npz``, its folder, or its repository on the Hub
    :param for_export: a report or a config.yml then stands for the folder that it lies in
    :return: the zip or ``.npz``, ``None`` where the argument names a teacher
    """
    check_source(text)
    path = _download_student(text) or Path(text).expanduser()
    if path.is_dir():
        return path / INTEGER_MODEL if (path / INTEGER_MODEL).is_file() else None
    if path.suffix == ".npz":
        return path
    beside = path.parent / INTEGER_MODEL
    if path.is_file() and path.suffix != ".zip" and beside.is_file():
        if for_export and path.name not in DEVICE_FILES:
            return beside
        raise ValueError(
            f"{path} cannot be {'exported' if for_export else 'played'}: expected a student's zip or .npz, or its folder "
            f"{path.parent}. sb3-qpd verify {path.parent} compares what was exported with the student"
        )
    if path.suffix != ".zip" and not Path(f"{path}.zip").is_file():
        return None
    from sb3_qpd.distillation.student_zip import is_student

    zip_path = path if path.is_file() else Path(f"{path}.zip")  # SB3 appends .zip too
    return zip_path if is_student(zip_path) else None


def find_teacher(text: str) -> str:
    """
    The teacher that an argument names, as :func:`~sb3_qpd.load_teacher` takes it.

    :param text: a zip, a run folder of RL Zoo, a file in it, or a model on the Hub
    :return: the argument, or the run folder of a file that is no agent
    """
    check_source(text)
    path = Path(text).expanduser()
    if not path.is_file() or path.suffix in AGENT_SUFFIXES:
        return text
    folders = [folder for folder in path.absolute().parents[:2] if any(folder.glob("*.zip"))]
    return str(folders[0]) if folders else text


def find_folder(text: str) -> Path:
    """
    The folder of a student's files that an argument names.

    :param text: the folder, a file in it, or a repository on the Hub
    :raises ValueError: no student lies there
    """
    check_source(text)
    path = _download_student(text) or Path(text).expanduser()
    is_here = path.exists() or Path(f"{path}.zip").is_file()
    folder = folder_of(path) if is_here else path  # else a teacher's repository
    if not (folder / INTEGER_MODEL).is_file():
        raise ValueError(
            f"{text} holds no {INTEGER_MODEL}, which the other files are compared with. Expected the folder of a student, a "
            "file in it, or its name on the Hub: sb3-qpd compress and sb3-qpd export write one"
        )
    return folder


def _download_student(text: str) -> Path | None:
    """The folder of a student's repository, or the file of one. ``None``: a path, or a teacher's repository."""
    if Path(text).expanduser().exists() or Path(f"{text}.zip").is_file():
        return None
    from sb3_qpd.teachers.families import TEACHERS
    from sb3_qpd.teachers.hub import download, download_student, parse_source

    source = parse_source(text)
    if source is None:
        return None
    if source.looks_like_run_folder(TEACHERS):  # the Hub would be asked in vain, for half a minute
        raise ValueError(_no_such_file(text))
    if source.filename is not None:
        return download(source).path
    return download_student(source)


def _no_such_file(text: str) -> str:
    """A message that tells what the nearest folder that exists holds."""
    folder = Path(text).expanduser().absolute().parent
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(one.name for one in folder.iterdir() if not one.name.startswith("."))
    held = f"{', '.join(names[:6]) or 'nothing'}{', ...' if len(names) > 6 else ''}"
    return f"No such file or folder: {text}. The folder {folder} holds {held}"
