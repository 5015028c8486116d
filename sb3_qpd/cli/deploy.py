"""``sb3-qpd export`` and ``sb3-qpd verify``: files for devices, and that all of them are the same policy."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.cli.arguments import EXIT_DIFFERENCE, add_environment, add_folder, positive, user_errors
from sb3_qpd.cli.models import load_teacher, open_student, student_recipe

if TYPE_CHECKING:
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.evaluation.benchmark import Networks
    from sb3_qpd.integer import IntegerModel

ZIPS = ("student.zip", "student_float.zip")


def add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="files for devices",
        description="Write a student as ONNX, C, TFLite, or for numpy alone. DIR gets student.npz too, which verify compares "
        "with; other files in it stay.",
    )
    parser.set_defaults(run=export, device="cpu")
    parser.add_argument("student", type=Path, help="a student's zip or its .npz")
    parser.add_argument("--target", action="append", required=True, help="onnx, c, tflite, numpy; may be given several times")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    parser.add_argument(
        "--requantization", choices=("float32", "fixed"), default=None, help="fixed: no float at all, for C and numpy"
    )
    parser.add_argument("--qdq", action="store_true", default=False, help="ONNX with QuantizeLinear and DequantizeLinear")
    parser.add_argument(
        "--channels-last", action="store_true", default=False, help="ONNX and TFLite that take images channels last"
    )
    add_environment(parser)


def add_verify(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="that all files of a folder are the same policy, bit for bit",
        description="Let the student play, and send what it sees, with the action masks that it is given, through its zip, "
        "its ONNX file, its C code and its TFLite file; policy.py is compared as a file. Exit code 1 if a value differs from "
        "student.npz where equality is promised.",
    )
    parser.set_defaults(run=verify, device="cpu")
    add_folder(parser, teacher="of a Box action: show its jitter beside the student's")
    parser.add_argument("--observations", type=positive, default=1_000, help="how many (default: 1000)")
    add_environment(parser)


def export(args: argparse.Namespace) -> int:
    """All targets, or none."""
    with user_errors("export"):
        from sb3_qpd.export import export as write

        _check_options(args)
        model = _integer_model(args)
        model.requantization = args.requantization or model.requantization
        with AtomicFolder(args.out, force=True) as staging:
            for target in dict.fromkeys(args.target):
                write(model, target, staging.path, **_options(target, args))
            model.save(staging.path / "student.npz")
            sizes = {name: (staging.path / name).stat().st_size for name in sorted(p.name for p in staging.path.iterdir())}
            staging.commit()
    print(f"the student is {model.nbytes} bytes of weights, biases and multipliers")
    for name, size in sizes.items():
        print(f"{size:10}  {args.out / name}")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """An option that no target takes is a mistake, not a wish."""
    for option, given, targets in (
        ("--qdq", args.qdq, ("onnx",)),
        ("--channels-last", args.channels_last, ("onnx", "tflite")),
    ):
        if given and not set(targets) & set(args.target):
            raise ValueError(f"{option} is for {' and '.join(targets)}, the targets are {', '.join(args.target)}")


def _options(target: str, args: argparse.Namespace) -> dict[str, Any]:
    channels_last = {"channels_last": True} if args.channels_last and target in ("onnx", "tflite") else {}
    return {**channels_last, **({"form": "qdq"} if args.qdq and target == "onnx" else {})}


def _integer_model(args: argparse.Namespace) -> "IntegerModel":
    from sb3_qpd.integer import IntegerModel

    path = args.student
    if path.suffix == ".npz":
        return IntegerModel.load(path)
    if (student := open_student(path, args)) is None:
        raise ValueError(f"{path} is not a student's zip or .npz: expected what sb3-qpd compress writes")
    distiller, recipe = student
    return distiller.to_integer(recipe)


def verify(args: argparse.Namespace) -> int:
    """Compare, and say whether it holds."""
    with user_errors("verify"):
        from sb3_qpd.evaluation.verify import verify as compare

        recipe, given = open_folder(args)
        result = compare(args.folder, recipe, args.observations, policy=given.policy, teacher=given.teacher)
    print(result.table())
    return 0 if result.holds else EXIT_DIFFERENCE


def open_folder(args: argparse.Namespace) -> "tuple[EnvRecipe, Networks]":
    """Where the student of ``args.folder`` plays, and its policies: those of the zips that there are, and --teacher."""
    from sb3_qpd.evaluation.benchmark import Networks
    from sb3_qpd.evaluation.verify import load_model

    recipe = student_recipe(args.folder, load_model(args.folder).metadata.get("env"), args)
    args.env, args.env_kwargs = recipe, {}  # the zips' and the teacher's too
    zips = [open_student(path, args) if path.is_file() else None for path in (args.folder / name for name in ZIPS)]
    policy, float_policy = (None if student is None else student[0].policy for student in zips)
    teacher = None if args.teacher is None else load_teacher(args.teacher, args)[0]
    return recipe, Networks(policy, float_policy, teacher)
