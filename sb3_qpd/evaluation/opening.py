"""Policies from paths and names: a student's folder or one of its files, a teacher's zip or run folder, a model on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch as th

from sb3_qpd.distillation.student_zip import is_student, load_student
from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import Player
from sb3_qpd.student_folder import C_FILE, CONFIG, FILES, INTEGER_MODEL, REPORT, REPORT_TEXT, reported_env
from sb3_qpd.teachers.families import TEACHERS
from sb3_qpd.teachers.hub import HubSource, download, download_student, parse_source
from sb3_qpd.teachers.loading import load_teacher


def open_player(
    source: str | Path, *, needs_env: bool = True, device: th.device | str = "auto"
) -> tuple[Player, EnvRecipe | None]:
    """
    Open what a path or a name means, and execute nothing in it.

    :param source: a student's folder, its ``student.npz`` or one of its zips; a teacher as
        :func:`~sb3_qpd.teachers.loading.load_teacher` takes it; either as a model on the Hub
    :param needs_env: the caller wants the environment that the files name; an unsafe one is refused then
    :param device: device of a policy in torch; an integer model needs none
    :return: the policy, and its environment, ``None`` where the files name none or ``needs_env`` is ``False``
    :raises ValueError: it is neither a student nor a teacher
    """
    path = _find_file(source)
    if path.suffix == ".npz":
        model = IntegerModel.load(path)
        return model, _recorded_env(path, model.metadata.get("env")) if needs_env else None
    if path.is_file() and path.suffix != ".zip" and path.name in (*FILES, REPORT_TEXT):
        raise ValueError(
            f"{path} is a file for devices or about a student, and is not played here. Expected {INTEGER_MODEL}, a zip or the "
            f"folder; sb3-qpd verify {path.parent} compares ONNX, TFLite and {C_FILE} with the student"
        )
    if is_student(path):
        return load_student(path, device=device), _recorded_env(path, reported_env(path)) if needs_env else None
    teacher = load_teacher(source, device=device, needs_env=needs_env)
    return teacher, teacher.recipe


def _find_file(source: str | Path) -> Path:
    """The file that is opened; of a student's folder the integer model, which needs no torch."""
    on_hub = parse_source(source) if isinstance(source, str) else None
    path = Path(source).expanduser() if on_hub is None else _download(on_hub)
    if not path.exists() and not Path(f"{path}.zip").is_file():
        raise ValueError(
            f"There is no file or folder {str(source)!r}. Expected the folder, .npz or zip of a student, the zip or run "
            "folder of a teacher, a model on the Hub as owner/name, or, to play at random, the word random"
        )
    if not path.exists():
        return Path(f"{path}.zip")
    return path / INTEGER_MODEL if (path / INTEGER_MODEL).is_file() else path


def _download(source: HubSource) -> Path:
    """The folder of a student's repository; the file of a teacher's, or the one that is named."""
    is_repository = source.filename is None and not source.looks_like_run_folder(TEACHERS)
    folder = download_student(source) if is_repository else None
    return download(source).path if folder is None else folder


def open_integer_model(source: str | Path) -> IntegerModel:
    """
    The integer model that a path or a name on the Hub means, see :meth:`sb3_qpd.IntegerModel.load`.

    :param source: a student's folder, a file in it, or its repository on the Hub
    :raises ValueError: there is no student
    """
    path = _find_file(source)
    if path.suffix != ".npz" and not path.is_dir() and path.name in (REPORT, REPORT_TEXT, CONFIG):
        path = path.with_name(INTEGER_MODEL)
    if path.suffix == ".npz":
        return IntegerModel.load(path)
    return load_student(path, device="cpu").to_integer(reported_env(path))


def _recorded_env(path: Path, recorded: Any) -> EnvRecipe | None:
    """The environment of a file, which may come from elsewhere."""
    if recorded is None:
        return None
    try:
        recipe = EnvRecipe.from_json(recorded)
        check_untrusted_recipe(recipe)
        return make_recipe(recipe)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"The environment that {path} names is not used: {error} Give env= yourself") from error
