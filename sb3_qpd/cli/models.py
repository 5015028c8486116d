"""Teachers, students and environments, as the arguments of a command name them."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sb3_qpd.cli.remembered import recall, remember
from sb3_qpd.cli.sources import check_teacher_source, find_folder, find_teacher
from sb3_qpd.student_folder import FLOAT_ZIP, find_zip, reported_env

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.evaluation.benchmark import Networks
    from sb3_qpd.integer import IntegerModel
    from sb3_qpd.players import Player
    from sb3_qpd.students.policies import QuantActorCriticPolicy
    from sb3_qpd.teachers.teacher import Teacher


@overload
def load_teacher(source: str, args: argparse.Namespace) -> "tuple[Teacher, EnvRecipe]": ...


@overload
def load_teacher(source: str, args: argparse.Namespace, needs_env: bool) -> "tuple[Teacher, EnvRecipe | None]": ...


def load_teacher(source: str, args: argparse.Namespace, needs_env: bool = True) -> "tuple[Teacher, EnvRecipe | None]":
    """
    Load a teacher, and find the environment that its folder or ``--env`` names.

    :param source: path, or name on the Hub
    :param args: arguments of the command, with ``--env``, ``--env-kwargs``, ``--vecnormalize`` and ``--device``
    :param needs_env: ``False`` takes only an environment of ``--env``, and none where it is not given
    """
    source = find_teacher(source)
    from sb3_qpd.envs.recipe import make_recipe
    from sb3_qpd.teachers import loading

    recipe = None if args.env is None else _chosen_recipe(args)
    options: dict[str, Any] = {"vecnormalize": args.vecnormalize, "env": recipe, "needs_env": needs_env}
    named: dict[str, Any] = {name: getattr(args, f"teacher_{name}", None) for name in ("kind", "inputs", "outputs")}
    teacher = loading.load_teacher(source, device=check_device(args.device), **options, **named)
    if teacher.recipe is None and not needs_env:
        return teacher, None
    if teacher.recipe is None:
        raise ValueError(f"{source} does not say which environment it was trained on. {_with_env(args)}")
    teacher.recipe = make_recipe(teacher.recipe, dict(args.env_kwargs))
    return teacher, teacher.recipe


def open_player(source: str, path: Path | None, args: argparse.Namespace) -> "tuple[Player, EnvRecipe, str]":
    """
    Open a teacher or a student for ``evaluate``.

    :param source: path, or name on the Hub
    :param path: the student's file, ``None`` for a teacher
    :param args: arguments of the command
    :return: the player, its environment, and a line about its size
    """
    if path is None:
        teacher, recipe = load_teacher(source, args)
        return teacher, recipe, _size(teacher.nbytes, teacher)
    if path.suffix == ".npz":
        model, recipe = open_integer_model(path, args)
        return model, recipe, _size(model.nbytes, model)
    return *open_student(path, args), f"{path.stat().st_size} bytes as a zip"


def check_environment(args: argparse.Namespace) -> None:
    """
    Refuse an environment of ``--env`` that does not exist, and settings that it does not have, before torch is imported.

    :param args: arguments of the command
    """
    if args.env is None:
        return
    from sb3_qpd.envs.registry import check_env_kwargs, find_spec

    check_env_kwargs(find_spec(args.env), dict(args.env_kwargs))


def check_no_teacher_options(args: argparse.Namespace, path: Path) -> None:
    """
    Refuse ``--vecnormalize``, and ``--device`` with an ``.npz``, where they would change nothing.

    :param args: arguments of the command
    :param path: the student's file
    """
    if args.vecnormalize is not None:
        raise ValueError(f"--vecnormalize is for a teacher: the student {path} has its own normalization. Leave it out")
    if path.suffix == ".npz" and args.device not in ("auto", "cpu"):
        raise ValueError(
            f"--device {args.device}: the integers of {path} are computed by numpy, on the CPU. Leave it out, or give the zip"
        )


def open_integer_model(path: Path, args: argparse.Namespace) -> "tuple[IntegerModel, EnvRecipe]":
    """
    Open an ``.npz``.

    :param path: the integer model
    :param args: arguments of the command
    :return: the model and its environment, which ``--env`` names, or else the file
    """
    from sb3_qpd.integer import IntegerModel

    model = IntegerModel.load(path)
    return model, student_recipe(path, model.metadata.get("env"), args)


def open_student(path: Path, args: argparse.Namespace) -> "tuple[QPDDistiller, EnvRecipe]":
    """
    Open a student's zip.

    :param path: the zip
    :param args: arguments of the command
    :return: the student and its environment, which ``--env`` names, or else the report beside the zip
    """
    from sb3_qpd.distillation.student_zip import load_student

    recipe = student_recipe(path, reported_env(path), args)
    return load_student(path, device=check_device(args.device)), recipe


def check_folder(args: argparse.Namespace) -> Path:
    """
    Check the arguments of a command that takes a student's folder and its teacher, before torch is imported.

    :param args: arguments of the command
    :return: the folder
    """
    folder = find_folder(args.folder)
    if args.teacher is not None:
        check_teacher_source(args.teacher, "--teacher")
    elif args.vecnormalize is not None:
        raise ValueError("--vecnormalize is for the teacher: give --teacher too, or leave it out")
    check_environment(args)
    return folder


def open_folder(folder: Path, args: argparse.Namespace) -> "tuple[EnvRecipe, Networks]":
    """
    Open everything in a student's folder that needs torch, and the teacher.

    :param folder: with ``student.npz``
    :param args: arguments of the command, with ``--teacher``
    :return: the environment, and the policies: those of the zips that there are, and the teacher's
    """
    from sb3_qpd.evaluation.benchmark import Networks
    from sb3_qpd.evaluation.verify import load_model

    model = load_model(folder)
    recipe = student_recipe(folder, model.metadata.get("env"), args)
    if args.env is not None:
        check_chosen_env(model, recipe)
    where = argparse.Namespace(**{**vars(args), "env": recipe, "env_kwargs": []})  # the zips' and the teacher's too
    float_zip = folder / FLOAT_ZIP
    zips = (find_zip(folder), float_zip if float_zip.is_file() else None)
    policy, float_policy = (None if path is None else open_student(path, where)[0].policy for path in zips)
    teacher = None if args.teacher is None else _load_matching_teacher(args.teacher, where)
    return recipe, Networks(policy, float_policy, teacher)


def open_policy(folder: Path, args: argparse.Namespace) -> "QuantActorCriticPolicy | None":
    """
    The policy of a student's zip, which needs no environment.

    :param folder: folder of the student
    :param args: arguments of the command, with ``--device``
    :return: ``None`` where there is no zip
    """
    from sb3_qpd.distillation.student_zip import load_student

    path = find_zip(folder)
    return None if path is None else load_student(path, device=check_device(args.device)).policy


def _load_matching_teacher(source: str, args: argparse.Namespace) -> "Teacher":
    """A teacher that can play in the student's environment."""
    from sb3_qpd.teachers.check import check_spaces

    teacher, recipe = load_teacher(source, args)
    env = recipe.make_vec_env(1)
    try:
        check_spaces(teacher, env.observation_space, env.action_space)
    except ValueError as error:
        raise ValueError(f"--teacher {source} is the teacher of another environment than {recipe.env_id}: {error}") from error
    finally:
        env.close()
    return teacher


def student_recipe(path: Path, recorded: dict[str, Any] | None, args: argparse.Namespace) -> "EnvRecipe":
    """
    The environment of a student.

    :param path: the student's file or folder, for messages
    :param recorded: the environment as its files describe it
    :param args: arguments of the command: ``--env`` comes first
    """
    from sb3_qpd.envs.recipe import make_recipe

    if args.env is not None:
        return _chosen_recipe(args)
    return make_recipe(_recorded_recipe(path, recorded, args), dict(args.env_kwargs))


def check_chosen_env(model: "IntegerModel", recipe: "EnvRecipe") -> None:
    """
    Refuse an environment of the user that gives other observations than the student takes.

    :param model: the student
    :param recipe: the environment
    """
    from sb3_qpd.evaluation.fitting import check_env

    env = recipe.make_vec_env(1)
    try:
        check_env(model, env.observation_space, recipe.env_id)
    finally:
        env.close()


@contextmanager
def named_environments(recorded: str | None, recipe: "EnvRecipe") -> Iterator[None]:
    """
    Add the names of both environments to an error, where the user plays a student in another one than it was taught in.

    :param recorded: id of the environment that the student's file names
    :param recipe: where it plays
    """
    try:
        yield
    except ValueError as error:
        if recorded in (None, recipe.env_id):
            raise
        raise ValueError(f"The student learned in {recorded} and cannot play in {recipe.env_id}: {error}") from error


def check_device(name: str) -> str:
    """
    Refuse a device that is not here: SB3 would compute on the CPU without a word.

    :param name: ``--device``
    """
    from sb3_qpd import devices

    devices.check_device(name, "--device ")
    return name


def _chosen_recipe(args: argparse.Namespace) -> "EnvRecipe":
    """The environment of ``--env``, which exists. What the user typed is remembered."""
    from sb3_qpd.envs.recipe import make_recipe

    recipe = make_recipe(args.env, dict(args.env_kwargs))
    if isinstance(args.env, str):
        remember(args.env)
    return recipe


def _recorded_recipe(path: Path, recorded: Any, args: argparse.Namespace) -> "EnvRecipe":
    """The environment that a file names, once its settings are checked. A module is imported only if the user named it."""
    from sb3_qpd.envs.limits import check_untrusted_recipe
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.envs.registry import running_id

    if recorded is None:
        needs = f"{args.parser.prog} needs it, {args.env_for}"
        raise ValueError(f"{path} does not say in which environment it plays. {needs}. {_with_env(args)}")
    if not isinstance(recorded, dict) or not isinstance(recorded.get("env_id"), str):
        raise ValueError(f"{path} does not name its environment by a plain id. {_with_env(args)}")
    own = dict(args.env_kwargs)  # the user's own settings are not the file's
    env_id = recorded["env_id"]
    try:
        recipe = EnvRecipe.from_json(recorded)
        chosen = None if running_id(env_id) else recall(env_id)
        if chosen is not None:
            sys.path.append(chosen[1])
        named = env_id if chosen is None else env_id.rpartition(":")[2]
        kwargs = {key: value for key, value in recipe.env_kwargs.items() if key not in own}
        check_untrusted_recipe(replace(recipe, env_id=named, env_kwargs=kwargs))
        return recipe if chosen is None else replace(recipe, env_id=chosen[0])
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error} {_with_env(args, env_id)}, or --env-kwargs KEY=VALUE") from error


def _with_env(args: argparse.Namespace, env_id: str = "ID") -> str:
    """The command itself, with the environment that it lacks. A file's text is shown only where it is no more than an id."""
    shown = env_id if re.fullmatch(r"[\w./:-]{1,100}", env_id) else "ID"
    return f"Give it: {getattr(args, 'command_line', 'sb3-qpd ...')} --env {shown}"


def _size(nbytes: int, actor: Any) -> str:
    if not nbytes:
        return "its size is not known"
    return f"{nbytes} bytes, {actor.n_parameters} parameters, {actor.macs} multiply-accumulates"
