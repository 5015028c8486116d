"""``sb3-qpd export TEACHER --undistilled``: the teacher's float network for a device, before anything is compressed."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.cli.models import load_teacher
from sb3_qpd.cli.sources import check_teacher_source

if TYPE_CHECKING:
    from sb3_qpd.export.float_actor import FloatActor

TARGETS = ("onnx", "c")


def add_undistilled(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--undistilled``.

    :param parser: parser of the command
    """
    parser.add_argument(
        "--undistilled",
        action="store_true",
        default=False,
        help="of a teacher in place of a student: its float actor with its normalization, as onnx or c. So a device can be "
        "tried before anything is compressed",
    )


def check_undistilled(args: argparse.Namespace, options: Sequence[str]) -> None:
    """
    Refuse targets and options that are for students.

    :param args: arguments of the command
    :param options: the options of targets that were given
    :raises ValueError: such a target or option
    """
    targets = [f"--target {target}" for target in args.target if target not in TARGETS]
    if wrong := [*targets, *(["--requantization"] if args.requantization else []), *options]:
        raise ValueError(f"{', '.join(wrong)} is for students, --undistilled writes {' or '.join(TARGETS)}. Leave it out")
    check_teacher_source(args.student, "TEACHER with --undistilled")


def export_undistilled(args: argparse.Namespace) -> dict[str, int]:
    """
    Write all targets, or none.

    :param args: arguments of the command
    :return: bytes of each file by its name
    """
    teacher, _ = load_teacher(args.student, args, needs_env=False)
    from sb3_qpd.teachers.float_layers import float_actor

    actor = float_actor(teacher)
    with AtomicFolder(args.out, force=True, argument="--out") as staging:
        for target in dict.fromkeys(args.target):
            _write(actor, target, staging)
        sizes = {path.name: path.stat().st_size for path in sorted(staging.path.iterdir())}
        staging.commit()
    print(f"the actor of {teacher.name} is {4 * actor.n_parameters} bytes of float32 weights and biases")
    return sizes


def _write(actor: "FloatActor", target: str, staging: AtomicFolder) -> None:
    if target == "onnx":
        from sb3_qpd.export.onnx.undistilled import export_undistilled_onnx

        export_undistilled_onnx(actor, staging.path)
    else:
        from sb3_qpd.export.c.undistilled import export_undistilled_c

        export_undistilled_c(actor, staging.path)
