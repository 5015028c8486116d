"""``sb3-qpd demo``: the whole way in half a minute, with a teacher that is installed with the package."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from sb3_qpd.cli.arguments import whole_number

TEACHER = Path(__file__).with_name("demo_teacher.zip")  # PPO on CartPole, two layers of 32 units
OUT = "sb3-qpd-demo"
# a student of 284 bytes plays as well after these steps
SETTINGS = ("--env", "CartPole-v1", "--student-arch", "nano", "--weight-bits", "8", "--activation-bits", "8")
LENGTH = ("--timesteps", "1e4", "--episodes", "50", "--no-check-teacher")


def add_demo(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "demo",
        help="try it: a CartPole teacher becomes a student of 284 bytes, in half a minute",
        description="Compress the teacher that is installed with the package, export the student as C, and verify the C. "
        "Every file is written into DIR. Files of an earlier demo in DIR are replaced.",
        examples=("demo", "demo --out my_first_student --seed 1"),
    )
    parser.set_defaults(run=demo)
    parser.add_argument("--out", type=Path, default=Path(OUT), metavar="DIR", help="folder for the files")
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="seed of student and environments")


def demo(args: argparse.Namespace) -> int:
    """
    Run ``compress`` with settings that suit the teacher, and say what to try next.

    :param args: arguments of the command
    :return: exit code
    """
    from sb3_qpd.cli import make_parser  # which adds this command

    settings = ["--seed", str(args.seed), *SETTINGS, *LENGTH, "--target", "c"]
    given = ["compress", str(TEACHER), "--out", str(args.out), "--force", *settings]
    compress = make_parser().parse_args(given)
    compress.command_line = shlex.join(["sb3-qpd", *given])
    code = compress.run(compress)
    if code == 0:
        print(_what_next(args.out))
    return code


def _what_next(out: Path) -> str:
    return (
        "\nTry next:\n"
        f"    sb3-qpd info {out}\n"
        f"    cc -O3 {out / 'main.c'} {out / 'policy.c'} -o policy && ./policy\n"
        "    sb3-qpd compress my_agent.zip --env ID --out my_student"
    )
