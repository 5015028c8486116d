"""The command line of a benchmark: its documentation as help, its functions as commands, ``run`` and ``table`` among them."""

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

Function = Callable[[argparse.Namespace], None]


def make_parser(documentation: str | None) -> argparse.ArgumentParser:
    """
    A parser whose help is a module's documentation, line by line.

    :param documentation: ``__doc__`` of the benchmark
    """
    return argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)


class Commands:
    """
    Functions that take parsed arguments, each as a command of its name.

    ``run`` measures and appends rows to the file ``--out``; ``table`` prints the rows of the files ``results``. These two
    arguments are added here, after those that the benchmark adds itself.

    :param documentation: ``__doc__`` of the benchmark
    :param functions: the commands
    """

    def __init__(self, documentation: str | None, *functions: Function) -> None:
        self._parser = make_parser(documentation)
        commands = self._parser.add_subparsers(required=True)
        self._parsers = {function.__name__: commands.add_parser(function.__name__) for function in functions}
        for function in functions:
            self._parsers[function.__name__].set_defaults(function=function)

    def __getitem__(self, name: str) -> argparse.ArgumentParser:
        return self._parsers[name]

    def start(self) -> None:
        """Parse the process's arguments, and call the function."""
        self["run"].add_argument("--out", type=Path, required=True, help="rows of JSON are appended to this file")
        self["table"].add_argument("results", type=Path, nargs="+", help="files of such rows")
        args = self._parser.parse_args()
        args.function(args)


def add_student(parser: argparse.ArgumentParser, *, arch: str, timesteps: float, seeds: list[int] | None = None) -> None:
    """
    Add the arguments of distillation: teacher, size, bits, steps and seeds.

    :param parser: parser of the command
    :param arch: default size
    :param timesteps: default number of environment steps
    :param seeds: default training seeds, ``None`` for a benchmark that counts them
    """
    parser.add_argument("teacher")
    parser.add_argument("--arch", default=arch, help=f"size of the student (default: {arch})")
    parser.add_argument("--bits", type=int, nargs=2, default=[8, 8], metavar=("WEIGHTS", "ACTIVATIONS"))
    parser.add_argument("--timesteps", type=float, default=timesteps)
    if seeds is not None:
        parser.add_argument("--seeds", type=int, nargs="+", default=seeds)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--options``: further arguments of :class:`~sb3_qpd.QPDDistiller`, read as literals."""
    text = "further arguments of QPDDistiller, as a dict in Python's syntax"
    parser.add_argument("--options", type=_options, default={}, help=text)


def _options(text: str) -> dict[str, Any]:
    try:
        options = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"expected a dict such as {{'critic_coef': 0.0}}, got {text}")
    return options
