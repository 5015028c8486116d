"""The parser of the command, the types of its arguments, and the arguments that several commands have."""

import argparse
import ast
import difflib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from sb3_qpd.cli.errors import EXIT_MISTAKE
from sb3_qpd.cli.flags import in_flags
from sb3_qpd.students.budgets import check_arch

STUDENT_SOURCE = "a folder that compress or zoo train wrote, a file in it, or its name on the Hub: owner/name[@revision]"
TEACHER_SOURCE = (
    "a zip saved by SB3 or sb3-contrib, a file of policy.save(), an ONNX file with --teacher-kind, a run folder of RL Zoo, a "
    "file in it, or a model on the Hub: owner/name[@revision]"
)


class Help(argparse.RawDescriptionHelpFormatter):
    """Help that names the default of every option, and keeps the examples at its end as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str:
        return with_default(action)


def with_default(action: argparse.Action) -> str:
    """
    The help of an argument, with its default where the text does not name it.

    :param action: the argument
    """
    text = action.help or ""
    if not action.option_strings or "(default" in text or action.dest in ("help", "version"):
        return text
    if action.required:
        return f"{text} (required)"
    if action.nargs == 0:
        return f"{text} (default: off)"
    is_empty = action.default in (None, [], argparse.SUPPRESS)
    return f"{text} (default: none)" if is_empty else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """
    A parser that reports an error in one line, without the usage, and proposes the nearest options.

    :param examples: command lines without the program's name, which the help shows at its end
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        self.examples = tuple(f"sb3-qpd {example}" for example in examples)
        shown = "examples:\n" + "\n".join(f"  {example}" for example in self.examples)
        super().__init__(*args, **{"epilog": shown if examples else None, "formatter_class": Help, **kwargs})
        self.set_defaults(parser=self)  # of the command that is given, for its messages

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument "):  # others repeat what the user typed
            message = in_flags(message, self)
        self.exit(EXIT_MISTAKE, f"{self.prog}: error: {message.removesuffix('.')}. See {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Refuse unknown arguments here, where the command's own options are known, and not in the parser above it."""
        given = sys.argv[1:] if args is None else list(args)
        namespace, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(self._describe_unknown(unknown, given))
        return namespace, unknown

    def _describe_unknown(self, unknown: Sequence[str], given: Sequence[str]) -> str:
        options = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        if options:
            return f"unrecognized arguments: {' '.join(unknown)}" + "".join(map(self._nearest, options))
        before = [word for word in given[: given.index(unknown[0])] if word.startswith("--")]
        after = f" after {before[-1]}, which takes fewer values" if before else ""
        return f"unexpected arguments{after}: {' '.join(unknown)}"

    def _nearest(self, option: str) -> str:
        known = [one for one in self._option_string_actions if one.startswith("--")]
        name = option.strip("-")
        near = [one for one in known if name in one.split("-") or one.endswith(name)]
        near = near[:3] or difflib.get_close_matches(option, known, n=2)
        return f" (did you mean {' or '.join(near)}?)" if near else ""


def add_teacher(parser: argparse.ArgumentParser, purpose: str) -> None:
    """
    Add ``--teacher`` to a command that compares a student with its teacher.

    :param parser: parser of the command
    :param purpose: what the command needs the teacher for
    """
    parser.add_argument("--teacher", default=None, help=f"{purpose}: {TEACHER_SOURCE}")


def add_environment(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--env``, ``--env-kwargs``, ``--vecnormalize`` and the options of a teacher in an ONNX file.

    :param parser: parser of the command
    """
    parser.add_argument(
        "--env",
        type=env_id,
        default=None,
        help="environment id (default: the one that a run folder or a student's file names). my_envs:Cart-v0 imports my_envs, "
        "of the current folder too, which registers Cart-v0; later commands remember that you chose it",
    )
    parser.add_argument(
        "--env-kwargs", type=env_setting, nargs="+", default=[], metavar="KEY=VALUE", help="for gym.make, Python literals"
    )
    parser.add_argument(
        "--vecnormalize", type=existing_file, default=None, metavar="PATH", help="the teacher's vecnormalize.pkl"
    )
    add_onnx(parser)


def add_onnx(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--teacher-kind``, ``--teacher-inputs`` and ``--teacher-outputs``.

    :param parser: parser of a command that takes a teacher
    """
    kinds = ("logits", "q_values", "gaussian", "action")
    parser.add_argument("--teacher-kind", choices=kinds, default=None, help="of a teacher in an ONNX file: what it outputs")
    for name, what in (("inputs", "its inputs, in the order of the observation's keys"), ("outputs", "its outputs")):
        text = f"of a teacher in an ONNX file: names of {what} (default: found)"
        parser.add_argument(f"--teacher-{name}", nargs="+", metavar="NAME", default=None, help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--device``.

    :param parser: parser of the command
    """
    parser.add_argument("--device", default="auto", help="device of the networks: auto (default), cpu, cuda")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--no-progress``.

    :param parser: parser of the command
    """
    parser.add_argument("--no-progress", dest="progress", action="store_false", default=True, help="no progress bars")


def add_resume(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--resume``.

    :param parser: parser of a command whose unfinished work is kept
    """
    parser.add_argument(
        "--resume", action="store_true", default=False, help="go on where the same command was killed or stopped before"
    )


def add_test_episodes(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--episodes``.

    :param parser: parser of a command that plans its test episodes
    """
    parser.add_argument(
        "--episodes", type=whole_number(), default=None, help="test episodes (default: 100 to 1000, from the teacher's spread)"
    )


def add_cache(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--no-cache``.

    :param parser: parser of a command that keeps the teacher's episodes
    """
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        default=True,
        help="play the teacher's episodes even where they are kept",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--trust-code``.

    :param parser: parser of a command that runs a student's exports
    """
    parser.add_argument(
        "--trust-code",
        action="store_true",
        default=False,
        help="compile and run exports of the folder that this version would not write so from its student.npz: files of "
        "another version, changed files. They can run any code, so only for a folder that you trust",
    )


def add_step_limit(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--max-episode-steps``.

    :param parser: parser of the command
    """
    parser.add_argument(
        "--max-episode-steps",
        type=whole_number(),
        default=None,
        help="an episode that is longer is an error (default: 10000, or the environment's own limit where that is larger)",
    )


def env_id(text: str) -> str:
    """
    An environment id. For ``package:Id-v0`` the current folder becomes importable, as with ``python -m``.

    :param text: what the user typed
    """
    if ":" in text and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return text


def whole_number(least: int = 1, most: int | None = None) -> Callable[[str], int]:
    """
    The type of a whole number. ``1e6`` is one.

    :param least: smallest value
    :param most: largest value, ``None`` for no bound
    """
    described = f"a whole number of at least {least}" if most is None else f"a whole number from {least} to {most:g}"

    def convert(text: str) -> int:
        value = _to_whole(text)
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"expected {described}, such as {max(least, 1000):g}, got {text!r}")
        return value

    return convert


def number(text: str) -> float:
    """
    A number with or without a fraction.

    :param text: what the user typed
    """
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, such as 0.5 or 1e-3, got {text!r}") from None


def positive_number(text: str) -> float:
    """
    A number above zero.

    :param text: what the user typed
    """
    value = number(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above zero, got {text!r}")
    return value


def bits(text: str) -> int | tuple[int, ...]:
    """
    One number of bits for all layers, or one for each layer: ``8,4,4``.

    :param text: what the user typed
    """
    values = [_to_whole(part) for part in text.split(",")]
    if None in values:
        raise argparse.ArgumentTypeError(f"expected bits such as 8, or 8,4,4 for each layer, got {text!r}")
    numbers = tuple(value for value in values if value is not None)
    return numbers[0] if len(numbers) == 1 else numbers


def architecture(text: str) -> str | dict[str, Any]:
    """
    The name of a student's size, a budget such as ``2kB``, or fields as JSON or as a Python literal: ``{"hidden": [12, 12]}``.

    :param text: what the user typed
    """
    value: str | dict[str, Any] = text
    if text.lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except ValueError as error:
            try:
                value = ast.literal_eval(text.strip())
            except (ValueError, SyntaxError):
                raise argparse.ArgumentTypeError(
                    f"""expected a name such as tiny, or JSON such as '{{"hidden": [12, 12]}}', got {text!r} ({error})"""
                ) from None
    try:
        check_arch(value)
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def key_value(text: str) -> tuple[str, Any]:
    """
    ``key=value`` or RL Zoo's ``key:value``. The value is a Python literal, else text.

    :param text: what the user typed
    """
    key, separator, value = text.partition("=") if "=" in text else text.partition(":")
    if not (separator and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    with suppress(ValueError, SyntaxError):
        return key, ast.literal_eval(value)
    return key, value


def env_setting(text: str) -> tuple[str, Any]:
    """
    A keyword argument of ``gym.make``. ``render_mode`` is refused: it slows every step down, and nothing is shown.

    :param text: what the user typed
    """
    key, value = key_value(text)
    if key == "render_mode" and value is not None:
        raise argparse.ArgumentTypeError(
            "render_mode is not for this command, which plays many environments and shows none. sb3-qpd zoo enjoy shows an "
            "agent, sb3-qpd zoo record_video films it"
        )
    return key, value


def existing_file(text: str) -> str:
    """
    The path of a file that exists.

    :param text: what the user typed
    """
    if not Path(text).expanduser().is_file():
        raise argparse.ArgumentTypeError(f"no such file: {text}. Check the path")
    return text


def _to_whole(text: str) -> int | None:
    """The whole number that a text is, ``None`` for any other text."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value.is_integer() else None
