"""``sb3-qpd export`` and ``sb3-qpd verify``: files for devices, and that all of them are the same policy."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.cli.arguments import STUDENT_SOURCE, add_environment, add_progress, add_teacher, add_trust, whole_number
from sb3_qpd.cli.errors import EXIT_DIFFERENCE, user_errors
from sb3_qpd.cli.models import (
    check_chosen_env,
    check_device,
    check_environment,
    check_folder,
    check_no_teacher_options,
    open_folder,
    open_policy,
    student_recipe,
)
from sb3_qpd.cli.sources import find_student
from sb3_qpd.cli.undistilled import add_undistilled, check_undistilled, export_undistilled
from sb3_qpd.student_folder import INTEGER_MODEL, TARGET_NAMES, find_zip, reported_env

if TYPE_CHECKING:
    from sb3_qpd.integer import IntegerModel

# option -> the targets that have it
TARGETS_OF_OPTION = {
    "--qdq": ("onnx",),
    "--float": ("onnx",),
    "--names": ("onnx",),
    "--channels-last": ("onnx", "tflite", "js"),
    "--prefix": ("c",),
    "--reentrant": ("c",),
    "--probabilities": ("c",),
    "--with-value": ("c",),
}


def add_export(commands: Any) -> None:
    """
    Add the command ``export``.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "export",
        help="files for devices",
        description="Write a student in files for devices, engines and browsers. DIR gets student.npz too, which verify "
        "compares with; other files in it stay.",
        examples=(
            "export lunar --target c --out lunar",
            "export lunar/student.zip --target onnx --target numpy --out device",
        ),
    )
    parser.set_defaults(run=export, device="cpu", env_for="for the settings of --env-kwargs")
    parser.add_argument("student", help=f"a student's zip or .npz; {STUDENT_SOURCE}")
    parser.add_argument("--target", action="append", required=True, help=f"may be given several times: {TARGET_NAMES}")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to")
    parser.add_argument(
        "--requantization", choices=("float32", "fixed"), default=None, help="fixed: no float at all; not for ONNX and TFLite"
    )
    parser.add_argument("--qdq", action="store_true", default=False, help="ONNX with QuantizeLinear and DequantizeLinear")
    parser.add_argument(
        "--float", action="store_true", default=False, help="ONNX in plain float32 operators of opset 13, for engines"
    )
    parser.add_argument(
        "--names", default=None, help="ONNX with other inputs and outputs: godot, or pairs such as observation=obs,action=move"
    )
    parser.add_argument(
        "--channels-last", action="store_true", default=False, help="ONNX, TFLite and JS take images channels last"
    )
    parser.add_argument(
        "--prefix",
        type=_c_prefix,
        default=None,
        metavar="lander_",
        help="C: prefix of files and public names, in place of policy_",
    )
    parser.add_argument(
        "--reentrant",
        action="store_true",
        default=False,
        help="C: functions that take their memory as an argument, for threads",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        default=False,
        help="C: a function for the weights that discrete actions are drawn with",
    )
    parser.add_argument(
        "--with-value", action="store_true", default=False, help="C: a function for the value, of a student's zip; in 8 bits"
    )
    add_undistilled(parser)
    add_environment(parser)


def _c_prefix(text: str) -> str:
    name = text.rstrip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"expected a prefix of C names in lower case, such as lander_, got {text!r}")
    return name


def add_verify(commands: Any) -> None:
    """
    Add the command ``verify``.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "verify",
        help="that all files of a folder are the same policy, bit for bit",
        description="Let the student play, and send what it sees, with the action masks that it is given, through its zip, "
        "its ONNX file, its C code, its TFLite file, its JavaScript and its MicroPython; policy.py is compared as a file. "
        "Exit code 1 if a value differs from student.npz where equality is promised, or if a file is not what this version "
        "exports from student.npz: such a file is not run without --trust-code.",
        examples=(
            "verify lunar",
            "verify lunar --observations 10000 --teacher my_agent.zip",
            "verify rover --recording flights.npz",
        ),
    )
    parser.set_defaults(run=verify, device="cpu", env_for="or --recording FILE, for the observations that it compares")
    parser.add_argument("folder", metavar="DIR", help=STUDENT_SOURCE)
    add_teacher(parser, "of a Box action, to show its jitter beside the student's")
    parser.add_argument("--observations", type=whole_number(), default=1_000, help="how many (default: 1000)")
    parser.add_argument(
        "--recording",
        default=None,
        metavar="FILE",
        help="take recorded observations, and play in no environment: an .npz, or the id or folder of a Minari dataset",
    )
    add_trust(parser)
    add_environment(parser)
    add_progress(parser)


def export(args: argparse.Namespace) -> int:
    """
    Write all targets, or none.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("export"):
        if args.undistilled:
            check_undistilled(args, _given_options(args))
            check_environment(args)
            return _print_sizes(export_undistilled(args), args)
        _check_options(args)
        check_environment(args)
        path = find_student(args.student, for_export=True)
        if path is None:
            raise ValueError(f"{args.student} is not a student: expected {STUDENT_SOURCE}")
        from sb3_qpd.export import export as write
        from sb3_qpd.export import find_exporter

        for target in args.target:
            find_exporter(target)
        model = _integer_model(path, args)
        model.requantization = args.requantization or model.requantization
        with AtomicFolder(args.out, force=True, argument="--out") as staging:
            for target in dict.fromkeys(args.target):
                write(model, target, staging.path, **_options(target, args))
            model.save(staging.path / INTEGER_MODEL)
            sizes = {path.name: _size(path) for path in sorted(staging.path.iterdir())}
            staging.commit()
    print(f"the student is {model.nbytes} bytes of weights, biases and multipliers")
    if args.with_value:
        from sb3_qpd.export.value_head import find_value_head

        value = find_value_head(model)
        assert value is not None  # a file without one was refused, and a zip's was added
        print(f"its value head is {value.nbytes} bytes more")
    if "env" not in model.metadata:
        print("its environment is not known, and the files name none. --env ID names it")
    return _print_sizes(sizes, args)


def _print_sizes(sizes: dict[str, int], args: argparse.Namespace) -> int:
    for name, size in sizes.items():
        print(f"{size:10}  {args.out / name}")
    return 0


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _check_options(args: argparse.Namespace) -> None:
    """Refuse unknown targets, options that no target has, and a requantization that one of them lacks."""
    from sb3_qpd.export import find_target

    lacking = [name for name in args.target if args.requantization not in (None, *find_target(name).requantizations)]
    if lacking:  # the requantization is the student's: all of its files have it
        names = " and ".join(lacking)
        raise ValueError(
            f"--requantization {args.requantization} is not for the target {names}: export it apart, with "
            "--requantization float32"
        )
    if args.qdq and args.float:
        raise ValueError("--qdq and --float are two forms of the ONNX file: give one of them")
    for option in _given_options(args):
        targets = TARGETS_OF_OPTION[option]
        if not set(targets) & set(args.target):
            raise ValueError(f"{option} is for {' and '.join(targets)}, the targets are {', '.join(args.target)}")


def _given_options(args: argparse.Namespace) -> list[str]:
    """The options of targets that were given."""
    return [option for option in TARGETS_OF_OPTION if getattr(args, option.strip("-").replace("-", "_"))]


def _names(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    from sb3_qpd.export.onnx.names import parse_names

    return {"names": parse_names(given)}


def _options(target: str, args: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, dict[str, Any]] = {
        "--qdq": {"form": "qdq"} if args.qdq else {},
        "--float": {"form": "float"} if args.float else {},
        "--names": _names(args.names),
        "--channels-last": {"channels_last": True} if args.channels_last else {},
        "--prefix": {"name": args.prefix} if args.prefix else {},
        "--reentrant": {"reentrant": True} if args.reentrant else {},
        "--probabilities": {"probabilities": True} if args.probabilities else {},
        "--with-value": {"with_value": True} if args.with_value else {},
    }
    options: dict[str, Any] = {}
    for option, targets in TARGETS_OF_OPTION.items():
        options |= given[option] if target in targets else {}
    return options


def _integer_model(path: Path, args: argparse.Namespace) -> "IntegerModel":
    """The integer model of a student. It names its environment; only one that the user chose is built."""
    check_no_teacher_options(args, path)
    model = _load_integers(path, args) if path.suffix == ".npz" else _convert_zip(path, args)
    if args.env is not None or args.env_kwargs:
        recipe = student_recipe(path, model.metadata.get("env"), args)
        check_chosen_env(model, recipe)
        model.metadata["env"] = recipe.to_json()
    return model


def _load_integers(path: Path, args: argparse.Namespace) -> "IntegerModel":
    from sb3_qpd.export.value_head import find_value_head
    from sb3_qpd.integer import IntegerModel

    model = IntegerModel.load(path)
    if args.with_value and find_value_head(model) is None:
        zip_path = find_zip(path.parent)
        raise ValueError(f"--with-value takes a student's zip, and {path} has no value head. Give {zip_path or 'the zip'}")
    return model


def _convert_zip(path: Path, args: argparse.Namespace) -> "IntegerModel":
    from sb3_qpd.distillation.student_zip import load_student
    from sb3_qpd.students.architectures import FLOAT_BITS

    student = load_student(path, device=check_device(args.device))
    if student.policy.arch.activation_bits == FLOAT_BITS:
        raise ValueError(f"{path} is the float student, which has no integers. Export student.zip or student.npz instead")
    model = student.to_integer(reported_env(path))
    if args.with_value:
        from sb3_qpd.export.value_head import add_value_head

        add_value_head(model, student.policy)
    return model


def verify(args: argparse.Namespace) -> int:
    """
    Compare all forms of a student, and print whether they are the same.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("verify"):
        folder = check_folder(args)
        if args.recording is not None and (args.teacher is not None or args.env is not None):
            raise ValueError("--recording plays no episode: leave out --env and --teacher, whose jitter needs an environment")
        from sb3_qpd.evaluation.verify import verify as compare

        options = {"progress_bar": args.progress, "trust_code": args.trust_code}
        if args.recording is None:
            recipe, given = open_folder(folder, args)
            result = compare(folder, recipe, args.observations, policy=given.policy, teacher=given.teacher, **options)
        else:
            from sb3_qpd.distillation.recordings import RecordedObservations

            recording = RecordedObservations(args.recording)
            result = compare(folder, recording, args.observations, policy=open_policy(folder, args), **options)
    print(result.table())
    return 0 if result.holds else EXIT_DIFFERENCE
