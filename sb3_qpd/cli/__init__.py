"""
The command ``sb3-qpd``.

    sb3-qpd compress TEACHER --out DIR              teacher in, integer student and evidence out
    sb3-qpd evaluate MODEL                          play a teacher, a student's zip or its .npz
    sb3-qpd export STUDENT --target onnx --out DIR  files for devices
    sb3-qpd verify DIR                              that all files of a folder are the same policy, bit for bit
    sb3-qpd benchmark DIR                           how fast each of them is
    sb3-qpd push DIR --repo-id OWNER/NAME           a student for everybody, on the Hugging Face Hub
    sb3-qpd zoo train --algo qpd --env ID           RL Zoo's programs: train, enjoy, record_video, push_to_hub, ...

A mistake is one line on stderr and exit code 2, before any training starts; nothing half-written is left. What goes wrong
later, with exit code 1, leaves the student as far as it came. Whatever is heavy is imported inside the commands, so that
``--help`` is instant.
"""

import os
import sys
import warnings
from collections.abc import Sequence

from sb3_qpd.cli.arguments import EXIT_INTERRUPTED, Parser, one_line
from sb3_qpd.cli.benchmark import add_benchmark
from sb3_qpd.cli.compress import add_compress
from sb3_qpd.cli.deploy import add_export, add_verify
from sb3_qpd.cli.evaluate import add_evaluate
from sb3_qpd.cli.push import add_push
from sb3_qpd.cli.zoo import add_zoo


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: without the program's name; None: the process's own
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch: large tensors in large pages, see docs/performance.md
    warnings.formatwarning = lambda message, *_, **__: f"sb3-qpd: warning: {one_line(message)}\n"
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("sb3-qpd: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def make_parser() -> Parser:
    parser = Parser(prog="sb3-qpd", description="Distill Stable-Baselines3 agents into tiny integer policies.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for add in (add_compress, add_evaluate, add_export, add_verify, add_benchmark, add_push, add_zoo):
        add(commands)
    return parser
