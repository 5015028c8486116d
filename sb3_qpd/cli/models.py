"""Teachers and students from the files that a command is given."""

import argparse
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as th

    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.envs import EnvRecipe
    from sb3_qpd.evaluation import Player
    from sb3_qpd.policies import QuantActorCriticPolicy
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
    from sb3_qpd.run_folder import check_foreign

    if args.env is None and recorded is None:
        raise ValueError(f"{path} does not say in which environment it plays. Give it: --env ID")
    recipe = args.env
    if recipe is None:
        if not isinstance(recorded, dict) or not isinstance(recorded.get("env_id"), str):
            raise ValueError(f"{path} does not name its environment by a plain id. Give it: --env ID")
        try:
            recipe = EnvRecipe.restore(recorded)
            own = dict(args.env_kwargs)  # what the user gives himself is not the file's
            check_foreign(replace(recipe, env_kwargs={k: v for k, v in recipe.env_kwargs.items() if k not in own}))
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
    """
    SB3 loads it from a zip that is written here: of the file's it has plain values and the checked weights alone.

    The spaces are the environment's. Nothing pickled is decoded, and no teacher or environment that the file names is looked
    for.
    """
    import torch as th

    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.policies import QuantActorCriticPolicy

    policy_kwargs = data.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict) or ":serialized:" in policy_kwargs or "student_arch" not in policy_kwargs:
        raise ValueError(f"{path} does not describe its network in plain values. Expected a student that sb3_qpd saved")
    env = recipe.make_vec_env(1, training=False)
    env.close()
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    make = partial(QuantActorCriticPolicy, env.observation_space, env.action_space, lambda _: 0.0, **policy_kwargs)
    weights = _student_weights(path, policy_kwargs, make)
    known = {
        **{"policy_class": QuantActorCriticPolicy, "learning_rate": 0.0, **spaces},
        **{"n_envs": 1, "student_arch": policy_kwargs["student_arch"]},
    }
    model = QPDDistiller(_init_setup_model=False)
    settings = vars(model).keys() - {*model._excluded_save_params(), *known}
    plain = {key: data[key] for key in settings & data.keys() if ":serialized:" not in json.dumps(data[key])}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", json.dumps({**plain, **dict.fromkeys(known)}))
        for name, state in (("policy", weights), ("policy.optimizer", make().optimizer.state_dict())):
            with archive.open(f"{name}.pth", "w", force_zip64=True) as member:
                th.save(state, member)
    buffer.seek(0)
    return QPDDistiller.load(buffer, device=_checked_device(args.device), custom_objects=known)


def _student_weights(
    path: Path, policy_kwargs: dict[str, Any], make: "Callable[[], QuantActorCriticPolicy]"
) -> "dict[str, th.Tensor]":
    """The weights, which are those of the network that the file describes: it is laid out, without memory, to compare."""
    import torch as th

    from sb3_qpd.archive import Archive, read_file
    from sb3_qpd.weights import read_weights

    archive = Archive(read_file(path, "a student's zip"), str(path), "Expected a student's zip")
    if "policy.pth" not in archive.names:
        raise ValueError(f"{path} has no weights: expected a member policy.pth")
    weights = read_weights(archive.read("policy.pth"), f"policy.pth of {path}")
    if len(json.dumps(policy_kwargs)) > 2_000 + 20 * len(weights):  # a million small layers take long even to lay out
        raise ValueError(f"{path} describes a network of more layers than its weights have")
    try:
        with th.device("meta"):
            policy = make()
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{path} describes a network that cannot be: {error}") from error
    for name, expected in policy.state_dict().items():
        shape = tuple(weights[name].shape) if name in weights else "nothing"
        if shape != tuple(expected.shape):
            raise ValueError(
                f"{path} describes another network than its weights are: {name} has {shape}, not {expected.shape}"
            )
    return weights


def _read_env(report: Path) -> dict[str, Any] | None:
    """The environment that the report beside a student's zip names."""
    return json.loads(report.read_text(encoding="utf-8")).get("env") if report.is_file() else None
