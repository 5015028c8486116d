"""``sb3-qpd zoo``: RL Zoo's programs."""

import argparse
from typing import Any

from sb3_qpd.cli.arguments import user_errors
from sb3_qpd.zoo import PROGRAMS, has_begun, run


def add_zoo(commands: Any) -> None:
    parser = commands.add_parser(
        "zoo",
        help="RL Zoo's programs, with --algo qpd",
        description="Run one of RL Zoo's programs, which know the algorithm qpd then: sb3-qpd zoo train --algo qpd --env "
        "CartPole-v1. All further arguments are the program's own: sb3-qpd zoo train --help.",
    )
    parser.add_argument("program", choices=PROGRAMS, metavar="PROGRAM", help=", ".join(PROGRAMS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the program's own")
    parser.set_defaults(run=zoo)


def zoo(args: argparse.Namespace) -> int:
    with user_errors(f"zoo {args.program}", applies=lambda: not has_begun()):
        run(args.program, args.arguments)
    return 0
