"""``sb3-qpd benchmark``: the speed of each form of a student."""

import argparse
import json
from pathlib import Path
from typing import Any

from sb3_qpd.atomic import write_atomically
from sb3_qpd.cli.arguments import STUDENT_SOURCE, add_environment, add_progress, add_teacher, add_trust, positive_number
from sb3_qpd.cli.errors import user_errors
from sb3_qpd.cli.models import check_folder, open_folder
from sb3_qpd.student_folder import BENCHMARK, REPORT


def add_benchmark(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "benchmark",
        help="how fast each form of a student is",
        description="Time of one action and throughput at batch size 64 on one thread, medians, size and peak memory: student "
        "in SB3, numpy, ONNX Runtime, TFLite and C, where the folder has them; the float student and the teacher in ONNX "
        "Runtime too. C also on emulated microcontrollers, where their tools are installed.",
        examples=(
            "benchmark lunar --mhz 168",
            "benchmark lunar --teacher my_agent.zip --save",
        ),
    )
    parser.set_defaults(run=benchmark, device="cpu", env_for="for the observations that it measures with")
    parser.add_argument("folder", metavar="DIR", help=STUDENT_SOURCE)
    add_teacher(parser, "to measure beside the student")
    parser.add_argument("--seconds", type=positive_number, default=1.0, help="for each row and batch size (default: 1)")
    parser.add_argument("--mhz", type=positive_number, default=100.0, help="clock of the microcontrollers (default: 100)")
    parser.add_argument(
        "--save",
        action="store_true",
        default=False,
        help="keep the figures as benchmark.json in DIR, and show them in its page",
    )
    add_trust(parser)
    add_environment(parser)
    add_progress(parser)


def benchmark(args: argparse.Namespace) -> int:
    """
    Measure, and print the table.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("benchmark"):
        folder = check_folder(args)
        if args.save and not Path(args.folder).expanduser().exists():
            raise ValueError(
                f"--save writes into a folder on this machine, and {args.folder} is on the Hub: download it first"
            )
        from sb3_qpd.evaluation.benchmark import benchmark as measure
        from sb3_qpd.evaluation.benchmark import microcontroller_table, microcontrollers, table, to_json

        recipe, given = open_folder(folder, args)
        left_out: list[str] = []
        options = {"progress_bar": args.progress, "trust_code": args.trust_code}
        rows = measure(folder, recipe, given, args.seconds, left_out=left_out, **options)
        emulated = microcontrollers(folder, recipe, **options)
    print(table(rows, left_out))
    if emulated:
        print(f"\n{microcontroller_table(emulated, args.mhz)}")
    if args.save:
        with user_errors("benchmark"):
            write_atomically(folder / BENCHMARK, json.dumps(to_json(rows, emulated, args.mhz), indent=2).encode())
            if (folder / REPORT).is_file():
                from sb3_qpd.pages.folders import write_page

                write_page([folder])
        print(f"Wrote {folder / BENCHMARK}")
    return 0
