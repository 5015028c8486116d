"""``sb3-qpd benchmark``: how fast each form of a student is."""

import argparse
from typing import Any

from sb3_qpd.cli.arguments import add_environment, add_folder, user_errors
from sb3_qpd.cli.deploy import open_folder


def add_benchmark(commands: Any) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="how fast each form of a student is",
        description="Time of one action and throughput at batch size 64 on one thread, medians, size and peak memory: student "
        "in SB3, numpy, ONNX Runtime, TFLite and C, where the folder has them; the float student and the teacher in ONNX "
        "Runtime too. C also on emulated microcontrollers, where their tools are installed.",
    )
    parser.set_defaults(run=benchmark, device="cpu")
    add_folder(parser, teacher="a teacher's zip, run folder or name on the Hub")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each row and batch size (default: 1)")
    parser.add_argument("--mhz", type=float, default=100.0, help="clock of the microcontrollers (default: 100)")
    add_environment(parser)


def benchmark(args: argparse.Namespace) -> int:
    """Measure, and print the table."""
    with user_errors("benchmark"):
        from sb3_qpd.evaluation.benchmark import benchmark as measure
        from sb3_qpd.evaluation.benchmark import microcontroller_table, microcontrollers, table

        recipe, given = open_folder(args)
        rows = measure(args.folder, recipe, given, args.seconds)
        emulated = microcontrollers(args.folder, recipe)
    print(table(rows))
    if emulated:
        print(f"\n{microcontroller_table(emulated, args.mhz)}")
    return 0
