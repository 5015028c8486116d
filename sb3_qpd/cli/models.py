"""Teachers and students from the files that a command is given."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.envs import EnvRecipe
    from sb3_qpd.evaluation import Player
    from sb3_qpd.teachers import Teacher


def load_teacher(path: str, args: argparse.Namespace) -> "tuple[Teacher, EnvRecipe]":
    """A teacher, and the environment that its folder or --env names."""
    from sb3_qpd import loading
    from sb3_qpd.envs import make_recipe

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
    from sb3_qpd.hub import download, find_source

    source = find_source(name)
    return None if source is None or source.filename is None else download(source).path


def open_student(path: Path, args: argparse.Namespace) -> "tuple[QPDDistiller, EnvRecipe] | None":
    """A student's zip, and the environment that the report beside it or --env names; None: it is no student's."""
    if (data := _student_data(path)) is None:
        return None
    recipe = student_recipe(path, _read_env(path.with_name("report.json")), args)
    return _load_student(path, data, recipe, args), recipe


def student_recipe(path: Path, recorded: dict[str, Any] | None, args: argparse.Namespace) -> "EnvRecipe":
    """
    Where a student plays.

    :param path: for the message
    :param recorded: the environment as its files describe it
    :param args: --env and --env-kwargs
    """
    from sb3_qpd.envs import EnvRecipe, make_recipe

    if args.env is None and recorded is None:
        raise ValueError(f"{path} does not say in which environment it plays. Give it: --env ID")
    recipe = args.env
    if recipe is None:
        if not isinstance(recorded, dict) or not isinstance(recorded.get("env_id"), str) or ":" in recorded["env_id"]:
            # "package:Id-v0" imports the package: that is for the user to ask for, not for a file
            raise ValueError(f"{path} does not name its environment by a plain id. Give it: --env ID")
        wrappers = tuple((name, kwargs) for name, kwargs in recorded.get("env_wrappers", ()))
        recipe = EnvRecipe(**{**recorded, "env_wrappers": wrappers})
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


def _student_data(path: Path) -> dict[str, Any] | None:
    """The JSON of a zip that says its policy is one of this package; anything else is left to the teachers' reader."""
    from sb3_qpd.archive import Archive, read_file

    try:
        archive = Archive(read_file(path, "a student's zip"), str(path), "Expected a student's zip")
        data = json.loads(archive.read("data"))
        return data if str(data["policy_class"]["__module__"]).startswith("sb3_qpd.") else None
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return None


def _load_student(path: Path, data: dict[str, Any], recipe: "EnvRecipe", args: argparse.Namespace) -> "QPDDistiller":
    """SB3 loads it, but decodes no pickle: the spaces are the environment's, and nothing else that is pickled is needed."""
    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.policies import QuantActorCriticPolicy

    policy_kwargs = data.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict) or ":serialized:" in policy_kwargs or "student_arch" not in policy_kwargs:
        raise ValueError(f"{path} does not describe its network in plain values. Expected a student that sb3_qpd saved")
    env = recipe.make_vec_env(1, training=False)
    env.close()
    pickled = {key: None for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    known = {
        "policy_class": QuantActorCriticPolicy,
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "learning_rate": 0.0,
        "student_arch": policy_kwargs["student_arch"],
    }
    return QPDDistiller.load(path, device=_checked_device(args.device), custom_objects={**pickled, **known})


def _read_env(report: Path) -> dict[str, Any] | None:
    """The environment that the report beside a student's zip names."""
    return json.loads(report.read_text(encoding="utf-8")).get("env") if report.is_file() else None
