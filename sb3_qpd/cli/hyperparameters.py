"""
A flag of ``compress`` for each argument of :class:`~sb3_qpd.QPDDistiller`.

Names, types, defaults and help are read from the class's source text. Importing it would import torch, and ``--help`` would
take seconds.
"""

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sb3_qpd.cli.arguments import architecture, bits, number, whole_number
from sb3_qpd.search.settings import DEFAULT_TIMESTEPS
from sb3_qpd.students.architectures import FLOAT_BITS, StudentArch
from sb3_qpd.students.budgets import check_arch, is_budget
from sb3_qpd.students.transitions import TRANSITIONS
from sb3_qpd.zoo import MAX_N_ENVS

if TYPE_CHECKING:
    from sb3_qpd.envs.recipe import EnvRecipe

SOURCE = Path(__file__).parents[1] / "distillation" / "distiller.py"

# arguments that get no flag here, and why
LEFT_OUT = {
    "teacher": "the command's own argument",
    "env": "--env and --env-kwargs",
    "observations": "the command's own --observations",
    "policy": "follows from the observations",
    "policy_kwargs": "--student-arch, --weight-bits and --activation-bits describe the network",
    "stats_window_size": "of a log that compress does not print",
    "verbose": "compress decides what it prints",
    "_init_setup_model": "for SB3's loader",
}

# a type in the annotation -> the type of the flag; the first that fits
_TYPES: dict[str, Callable[[str], Any]] = {
    "StudentArch": architecture,
    "tuple[int, ...]": bits,
    "int": whole_number(),
    "float": number,
    "str": str,
}
_SPECIAL: dict[str, Callable[[str], Any]] = {
    "seed": whole_number(least=0, most=2**32 - 1),
    "n_envs": whole_number(most=MAX_N_ENVS),
    "learning_starts": whole_number(least=0),
    "restart_envs": whole_number(least=0),
}


# help where the docstring speaks to Python alone
_HELP = {
    "student_arch": "name of a size such as nano, tiny, small; a budget such as 2kB, 500B or 0.5% of the teacher; "
    """or JSON of its fields: '{"hidden": [12, 12]}'""",
    "weight_bits": "bits of the inner weights, 2 to 8: one number, or one for each layer: 8,4,4 (default: the size's own)",
    "tensorboard_log": "folder for TensorBoard's files",
    "transition": f"how precision falls: {', '.join(TRANSITIONS)}",
    "activation_bits": "bits of the hidden activations, 2 to 8 (default: the size's own)",
    "gradient_steps": "gradient steps per environment step, usually below 1 (default: 16 / batch size)",
    "n_envs": "number of environments side by side (default: 16)",
    "vec_env": "where they run: dummy (this process), subproc (processes), ray (a cluster)",
    "env_timeout": "longest time in seconds that an environment may take to answer, for subproc and ray (default: no limit)",
    "restart_envs": "restarts of a failed environment, for subproc and ray (default: 0 for subproc, 100 for ray)",
    "device": "device of student and teacher: auto, cpu or cuda",
    "batch_size": "samples per gradient step (default: 256 for vectors, 128 for images)",
    "learning_rate": "first learning rate of a cosine to zero (default: 5e-2)",
}


class Hyperparameter(NamedTuple):
    """
    An argument of ``QPDDistiller``.

    :param name: its name
    :param annotation: its type, as written
    :param default: its default value, ``None`` also where that is no literal
    :param help: its ``:param:`` of the docstring, as plain text
    """

    name: str
    annotation: str
    default: Any
    help: str


@cache
def hyperparameters() -> tuple[Hyperparameter, ...]:
    """The arguments of ``QPDDistiller``, in order."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    distiller = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "QPDDistiller")
    init = next(node for node in distiller.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    docs = inspect.cleandoc(ast.get_docstring(distiller) or "")
    described = dict(re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", docs, re.MULTILINE | re.DOTALL))
    positional, keywords = init.args.args[1:], init.args.kwonlyargs
    pairs = [*zip(positional, init.args.defaults, strict=True), *zip(keywords, init.args.kw_defaults, strict=True)]
    return tuple(
        Hyperparameter(arg.arg, ast.unparse(arg.annotation), _literal(default), _plain(described.get(arg.arg, "")))
        for arg, default in pairs
        if arg.annotation is not None
    )


def flag_names() -> list[str]:
    """Names of the arguments that have a flag."""
    return [one.name for one in hyperparameters() if one.name not in LEFT_OUT]


def add_hyperparameters(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """
    Add a flag for each argument of ``QPDDistiller``. A flag that is not given is ``None``.

    :param parser: parser of the command
    :param without: arguments that the command has no flag for
    """
    group = parser.add_argument_group("the distiller (default: the environment's entry in hyperparams/qpd.yml, else as said)")
    for one in hyperparameters():
        if one.name in LEFT_OUT or one.name in without:
            continue
        flag = "--" + one.name.replace("_", "-")
        text = _HELP.get(one.name, one.help) + ("" if one.default is None else f" (default: {one.default})")
        options: dict[str, Any] = {"default": None, "help": text.replace("%", "%%")}
        if one.annotation in ("bool", "bool | None"):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        else:
            group.add_argument(flag, type=flag_type(one), metavar="X", **options)


def given_hyperparameters(args: argparse.Namespace) -> dict[str, Any]:
    """
    The arguments of ``QPDDistiller`` that were given as flags.

    :param args: arguments of the command
    """
    return {name: value for name in flag_names() if (value := getattr(args, name, None)) is not None}


def distiller_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """
    The given flags as arguments of ``QPDDistiller``. It would read a number as a constant learning rate, so the rate becomes
    the cosine that the flag's help promises.

    :param args: arguments of the command
    """
    from sb3_qpd.distillation.schedules import CosineSchedule

    given = given_hyperparameters(args)
    if "learning_rate" in given:
        given["learning_rate"] = CosineSchedule(given["learning_rate"])
    return given


def take_entry(args: argparse.Namespace, recipe: "EnvRecipe | None") -> None:
    """
    Take what the user did not give from the environment's entry in ``qpd.yml``: steps, size, bits and the other settings.

    What a student sees stays the teacher's: of the entry's keys only the arguments of ``QPDDistiller`` that the command has a
    flag for count.

    :param args: arguments of the command
    :param recipe: environment of the student, ``None`` where there is none
    """
    if recipe is None:
        args.timesteps = args.timesteps or DEFAULT_TIMESTEPS
        return
    from sb3_qpd.distillation.schedules import cosine_of
    from sb3_qpd.zoo.entries import read_entries

    entries, name = read_entries(), recipe.env_id.rpartition(":")[2]
    if recipe.is_atari and name not in entries:
        name = "atari"
    entry = dict(entries.get(name, {}))
    if "learning_rate" in entry:
        entry["learning_rate"] = cosine_of(entry["learning_rate"]).initial  # the cosine's first rate, as in the flag
    # an entry's bits suit its own size
    own_bits = ("weight_bits", "activation_bits") if is_budget(getattr(args, "student_arch", None)) else ()
    keys = [key for key in flag_names() if key in entry and key not in own_bits]
    taken = {key: entry[key] for key in keys if getattr(args, key, "no flag") is None}
    for key, value in taken.items():
        setattr(args, key, value)
    if args.timesteps is None and "n_timesteps" in entry:
        args.timesteps = int(entry["n_timesteps"])
        taken = {"timesteps": args.timesteps, **taken}
    if taken:
        settings = ", ".join(f"{key} {value}" for key, value in taken.items())
        print(f"From the entry {name} of hyperparams/qpd.yml: {settings}")
    args.timesteps = args.timesteps or DEFAULT_TIMESTEPS


def check_hyperparameter_flags(args: argparse.Namespace) -> None:
    """
    Refuse values that no distiller takes. Torch is not imported for that.

    An entry of ``qpd.yml`` may change what is not given, so the widest values stand in for it.

    :param args: arguments of the command
    :raises ValueError: a value is unknown, or outside its range
    """
    from sb3_qpd.distillation.hyperparameters import check_hyperparameters, check_vec_env, check_workers

    defaults = {one.name: one.default for one in hyperparameters()}
    given = given_hyperparameters(args)
    values = {**defaults, "transition_start": 0.0, "transition_end": 1.0, **given}
    check_hyperparameters(values)
    check_vec_env(values["vec_env"])
    check_workers(values["vec_env"], values["env_timeout"], values["restart_envs"])
    arch = check_arch(values["student_arch"], values["weight_bits"], values["activation_bits"])
    # without --history only the teacher tells whether history_actions fits: a recurrent one gives its student a history
    actions = values["history_actions"] if values["history"] is not None else None
    check_integer(arch.with_memory(values["history"], actions))


def check_integer(arch: StudentArch) -> None:
    """
    Refuse a float student: ``compress`` makes integers.

    :param arch: sizes and bits of the student
    :raises ValueError: its bits are those of a float
    """
    if arch.activation_bits == FLOAT_BITS:  # and so are the weights
        raise ValueError(
            f"compress makes integers, and {FLOAT_BITS} bits are float. Give --weight-bits and --activation-bits of 2 to 8: "
            "student_float.zip is written all the same, and --baselines trains a float student to the end"
        )


def flag_type(parameter: Hyperparameter) -> Callable[[str], Any]:
    """
    What turns the text of a flag into the argument.

    :param parameter: argument of ``QPDDistiller``
    """
    if parameter.name in _SPECIAL:
        return _SPECIAL[parameter.name]
    kinds = parameter.annotation.split(" | ")
    return next((convert for kind, convert in _TYPES.items() if kind in kinds), str)


def _literal(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _plain(text: str) -> str:
    """A ``:param:`` without the marks of reStructuredText."""
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", " ".join(text.split()))
    return text.replace("`", "")
