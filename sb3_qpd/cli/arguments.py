"""What the commands share: arguments, and one-line messages for user errors."""

import argparse
import ast
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

EXIT_DIFFERENCE = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """One line for a mistake, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"{self.prog}: error: {message}. See {self.prog} --help\n")


def add_folder(parser: argparse.ArgumentParser, *, teacher: str) -> None:
    """
    A folder with a student in all its forms, and the teacher to compare it with.

    :param parser: of the command
    :param teacher: what the command wants it for
    """
    parser.add_argument("folder", type=Path, metavar="DIR", help="with student.npz and what was exported")
    parser.add_argument("--teacher", default=None, help=teacher)


def add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--env", type=env_id, default=None, help="environment id (default: what a run folder or a student's file says)"
    )
    parser.add_argument(
        "--env-kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE", help="for gym.make, Python literals"
    )
    parser.add_argument("--vecnormalize", default=None, metavar="PATH", help="the teacher's vecnormalize.pkl")


def env_id(text: str) -> str:
    """``package:Id-v0`` finds a package of the current folder, as it does with ``python -m``; subprocesses find it too."""
    if ":" in text and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return text


def timesteps(text: str) -> int:
    """A positive number of steps; ``1e6`` is one."""
    number = float(text) if _is_float(text) else math.nan
    if not (math.isfinite(number) and number >= 1):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, such as 1e6, got {text!r}")
    return int(number)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def key_value(text: str) -> tuple[str, Any]:
    """``key=value`` or RL Zoo's ``key:value``; the value is a Python literal, or else a string."""
    key, separator, value = text.partition("=") if "=" in text else text.partition(":")
    if not (separator and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    with suppress(ValueError, SyntaxError):
        return key, ast.literal_eval(value)
    return key, value


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- user errors ---
def one_line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__


def is_user_error(error: BaseException) -> bool:
    """Whether a user can mend what went wrong, so that one line says it; anything else is a bug, with its traceback."""
    # of a mistyped id, and of a YAML file that RL Zoo reads; neither is imported for a command that needs it not
    is_theirs = type(error).__module__.startswith(("gymnasium.error", "yaml."))
    return is_theirs or isinstance(error, ValueError | TypeError | OSError | ImportError | MemoryError)


@contextmanager
def user_errors(command: str, applies: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """
    What goes wrong inside is the user's to mend: one line on stderr, exit code 2.

    :param command: for the message
    :param applies: asked when something went wrong; False: it is a bug, with its traceback
    """
    try:
        yield
    except Exception as error:
        if not (applies() and is_user_error(error)):
            raise
        print(f"sb3-qpd {command}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE) from error
