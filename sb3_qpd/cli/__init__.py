"""
The command ``sb3-qpd``.

    sb3-qpd demo                                    try it, in half a minute
    sb3-qpd compress TEACHER --out DIR              teacher in, integer student and evidence out
    sb3-qpd frontier TEACHER --out DIR              the smallest student that plays as well
    sb3-qpd evaluate MODEL                          play a teacher or a student
    sb3-qpd info MODEL                              what a teacher or a student is
    sb3-qpd export STUDENT --target onnx --out DIR  files for devices
    sb3-qpd verify DIR                              that all files of a folder are the same policy, bit for bit
    sb3-qpd benchmark DIR                           how fast each of them is
    sb3-qpd report DIR [DIR ...]                    the results as a page, report.html; several runs side by side
    sb3-qpd push DIR --repo-id OWNER/NAME           publish a student on the Hugging Face Hub
    sb3-qpd zoo train --algo qpd --env ID           RL Zoo's programs: train, enjoy, record_video, push_to_hub, ...

An error of the user is one line on stderr and exit code 2, before any training starts, and no half-written file is left. What
goes wrong later, with exit code 1, leaves the student as far as it came. Heavy packages are imported inside the commands, so
that ``--help`` is instant.
"""

import math
import os
import shlex
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from sb3_qpd.atomic import SIGNALS
from sb3_qpd.child_processes import safe_import_path
from sb3_qpd.cli.arguments import Parser
from sb3_qpd.cli.benchmark import add_benchmark
from sb3_qpd.cli.compress import add_compress
from sb3_qpd.cli.demo import add_demo
from sb3_qpd.cli.deploy import add_export, add_verify
from sb3_qpd.cli.errors import EXIT_CLOSED_PIPE, EXIT_INTERRUPTED, one_line
from sb3_qpd.cli.evaluate import add_evaluate
from sb3_qpd.cli.flags import messages_of
from sb3_qpd.cli.frontier import add_frontier
from sb3_qpd.cli.info import add_info
from sb3_qpd.cli.push import add_push
from sb3_qpd.cli.report import add_report
from sb3_qpd.cli.zoo import add_zoo
from sb3_qpd.version import __version__

TOGETHER = 2.0  # seconds after a request to end, in which further ones belong to it
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch reads it once: large tensors in large pages, see docs/performance.md


class Terminated(KeyboardInterrupt):
    """
    A request to end: what ``kill``, ``docker stop``, a scheduler or a closed terminal send. It ends a command as Ctrl-C does.

    :param number: number of the signal
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command. The process is left as it was.

    :param argv: arguments without the program's name, ``None`` for the process's own
    :return: exit code
    """
    with _own_settings(), safe_import_path(), _requests_to_end():
        try:
            try:
                return _run(argv)
            finally:
                sys.stdout.flush()  # a reader that has closed its end is noticed here, and not when Python exits
        except BrokenPipeError:
            _discard_output()
            return EXIT_CLOSED_PIPE
        except Terminated as error:
            print(f"sb3-qpd: {error}", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("sb3-qpd: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED


def make_parser() -> Parser:
    """The parser of the program, with all its commands."""
    parser = Parser(
        prog="sb3-qpd",
        description="Distill Stable-Baselines3 agents into tiny integer policies.",
        examples=("demo", "compress my_agent.zip --env LunarLander-v3 --out lunar"),
    )
    parser.add_argument("--version", action="version", version=f"sb3-qpd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for add in (
        add_demo,
        add_compress,
        add_frontier,
        add_evaluate,
        add_info,
        add_export,
        add_verify,
        add_benchmark,
        add_report,
        add_push,
        add_zoo,
    ):
        add(commands)
    return parser


def _run(argv: Sequence[str] | None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    args = make_parser().parse_args(given)
    args.command_line = shlex.join(["sb3-qpd", *given])  # for messages that say what to type
    with messages_of(args.parser):
        return args.run(args)


@contextmanager
def _own_settings() -> Iterator[None]:
    """What the command sets for the whole process, for as long as it runs: one-line warnings, large pages, import paths."""
    formatwarning, path, large_pages = warnings.formatwarning, [*sys.path], os.environ.get(LARGE_PAGES)
    warnings.formatwarning = lambda message, *_, **__: f"sb3-qpd: warning: {one_line(message)}\n"
    os.environ.setdefault(LARGE_PAGES, "1")
    try:
        yield
    finally:
        warnings.formatwarning = formatwarning
        sys.path[:] = path
        if large_pages is None:
            os.environ.pop(LARGE_PAGES, None)


@contextmanager
def _requests_to_end() -> Iterator[None]:
    """
    Raise :class:`Terminated` for the signals that would end the process at once. Ignored ones (``nohup``) stay ignored.

    A terminal that closes, and a service that stops, send several together. Only the first of them counts: the next one would
    be raised while the first is handled, and stop the saving.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main thread
        yield
        return
    last = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before < TOGETHER:
            return
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    usual = (signal.SIG_DFL, signal.default_int_handler)
    taken = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) in usual}
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _discard_output() -> None:
    """Send what Python still has to write to nowhere: writing it to a closed pipe would print an error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
