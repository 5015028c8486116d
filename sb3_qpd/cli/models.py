"""Teachers and students from the files that a command is given."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.players import Player
    from sb3_qpd.teachers.teacher import Teacher


def load_teacher(path: str, args: argparse.Namespace) -> "tuple[Teacher, EnvRecipe]":
    """A teacher, and the environment that its folder or --env names."""
    from sb3_qpd.envs.recipe import make_recipe
    from sb3_qpd.teachers import loading

    recipe = None if args.env is None else make_recipe(args.env, dict(args.env_kwargs))
    teacher = loading.load_teacher(path, vecnormalize=args.vecnormalize, env=recipe, device=_checked_device(args.device))
    if teacher.recipe is None:
        raise ValueError(f"{path} does not say which environment it was trained on. Give it: --env ID")
    teacher.recipe = make_recipe(teacher.recipe, dict(args.env_kwargs))
    return teacher, teacher.recipe


def open_player(source: str, args: argparse.Namespace) -> "tuple[Player, EnvRecipe, str]":
    """Who plays, where, and how large it is."""
    path = _student_of_hub(source) or Path(source)
    if path.suffix == ".npz":
        from sb3_qpd.integer import IntegerModel

        model = IntegerModel.load(path)
        return model, student_recipe(path, model.metadata.get("env"), args), _size(model.nbytes, model)
    if (student := open_student(path, args)) is not None:
        return *student, f"{path.stat().st_size} bytes as a zip"
    teacher, recipe = load_teacher(source, args)
    return teacher, recipe, _size(teacher.nbytes, teacher)


def _student_of_hub(name: str) -> Path | None:
    """One file of a repository, such as ``hub:owner/name/student.npz``; a repository as a whole is a teacher's."""
    from sb3_qpd.teachers.hub import download, parse_source

    source = parse_source(name)
    return None if source is None or source.filename is None else download(source).path


def open_student(path: Path, args: argparse.Namespace) -> "tuple[QPDDistiller, EnvRecipe] | None":
    """A student's zip, and the environment that the report beside it or --env names; ``None`` where it is not a student's."""
    from sb3_qpd.distillation.student_zip import is_student, load_student

    if not is_student(path):
        return None
    recipe = student_recipe(path, _read_env(path.with_name("report.json")), args)
    return load_student(path, device=_checked_device(args.device)), recipe


def student_recipe(path: Path, recorded: dict[str, Any] | None, args: argparse.Namespace) -> "EnvRecipe":
    """
    Where a student plays.

    :param path: for the message
    :param recorded: the environment as its files describe it
    :param args: --env and --env-kwargs
    """
    from sb3_qpd.envs.limits import check_untrusted_recipe
    from sb3_qpd.envs.recipe import EnvRecipe, make_recipe

    if args.env is None and recorded is None:
        raise ValueError(f"{path} does not say in which environment it plays. Give it: --env ID")
    recipe = args.env
    if recipe is None:
        if not isinstance(recorded, dict) or not isinstance(recorded.get("env_id"), str):
            raise ValueError(f"{path} does not name its environment by a plain id. Give it: --env ID")
        try:
            recipe = EnvRecipe.from_json(recorded)
            own = dict(args.env_kwargs)  # what the user gives himself is not the file's
            check_untrusted_recipe(replace(recipe, env_kwargs={k: v for k, v in recipe.env_kwargs.items() if k not in own}))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path}: {error} Give it yourself: --env-kwargs KEY=VALUE, or --env ID") from error
    return make_recipe(recipe, dict(args.env_kwargs))


def _checked_device(name: str) -> str:
    import torch as th

    try:
        th.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}") from error
    return name


def _size(nbytes: int, actor: Any) -> str:
    return f"{nbytes} bytes, {actor.n_parameters} parameters, {actor.macs} multiply-accumulates"


def _read_env(report: Path) -> dict[str, Any] | None:
    """The environment that the report beside a student's zip names."""
    return json.loads(report.read_text(encoding="utf-8")).get("env") if report.is_file() else None
