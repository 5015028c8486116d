"""``sb3-qpd zoo``: RL Zoo's programs."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from sb3_qpd.cli.arguments import Parser, whole_number
from sb3_qpd.cli.errors import user_errors
from sb3_qpd.cli.remembered import remember
from sb3_qpd.zoo import ALGO, PROGRAMS, has_begun, run

TRUST = "--trust-files"


def add_zoo(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "zoo",
        help="RL Zoo's programs, with --algo qpd",
        description="Run one of RL Zoo's programs, which know the algorithm qpd then: sb3-qpd zoo train --algo qpd --env "
        "CartPole-v1. All further arguments are the program's own: sb3-qpd zoo train --help. One more is ours: --trust-files "
        "lets RL Zoo run what its YAML files say and unpickle its models and statistics; without it they are read as data.",
        examples=(
            "zoo train --algo qpd --env CartPole-v1 -params teacher:my_agent.zip",
            "zoo enjoy --algo qpd --env CartPole-v1 -f logs",
        ),
    )
    parser.add_argument("program", choices=PROGRAMS, metavar="PROGRAM", help=", ".join(PROGRAMS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's own")
    parser.set_defaults(run=zoo)


def zoo(args: argparse.Namespace) -> int:
    """
    Run the program.

    :param args: arguments of the command
    :return: exit code
    """
    arguments = [argument for argument in args.arguments if argument != TRUST]
    _take_gym_packages(arguments)
    options: dict[str, Any] = {"trust_files": TRUST in args.arguments}
    if args.program == "train":
        arguments, of_checkpoints = _take_checkpoint_options(arguments)
        options |= of_checkpoints
    with user_errors(f"zoo {args.program}"):
        _check_device(arguments)
    with user_errors(f"zoo {args.program}", applies=lambda: not has_begun()):
        run(args.program, arguments, **options)
    return 0


def _check_device(arguments: Sequence[str]) -> None:
    """A GPU that is missing is an error for students, as in ``compress``. SB3 would take the CPU and say nothing."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--algo", default="")
    known, _ = parser.parse_known_args(arguments)
    if known.algo == ALGO and known.device != "auto":
        from sb3_qpd.devices import check_device

        check_device(known.device, "--device ")


def _take_checkpoint_options(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take out the two options of ``train`` that are not RL Zoo's."""
    parser = Parser(prog="sb3-qpd zoo train", add_help=False, allow_abbrev=False)
    parser.add_argument("--checkpoint-every", type=whole_number(least=0), default=None)
    parser.add_argument("--resume", action="store_true", default=False)
    known, others = argparse.ArgumentParser.parse_known_args(parser, list(arguments))
    return others, {"checkpoint_every": known.checkpoint_every, "resume": known.resume}


def _take_gym_packages(arguments: Sequence[str]) -> None:
    """The packages of ``--gym-packages`` may lie in the current folder; that the user chose them is remembered."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gym-packages", nargs="+", default=[])
    parser.add_argument("--env", default="")
    known, _ = parser.parse_known_args(arguments)
    if known.gym_packages and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for package in known.gym_packages:
        if known.env:
            remember(f"{package}:{known.env}")
