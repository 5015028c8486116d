"""
Errors and warnings in the words of the command line.

The package names arguments of Python: ``learning_rate must be ...``, ``take history=1``. Where the command has a flag for such
an argument, its messages name the flag: ``--learning-rate must be ...``, ``take --history 1``.
"""

import argparse
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# arguments whose flag has another name, and the name under which argparse keeps the flag's value
OTHER_NAMES = {
    "activation_bits": "bits",
    "inputs": "teacher_inputs",
    "kind": "teacher_kind",
    "name": "prefix",
    "out_dir": "out",
    "outputs": "teacher_outputs",
    "student_arch": "sizes",
    "total_timesteps": "timesteps",
    "weight_bits": "bits",
}
FORMS = {"form='float'": "--float", "form='qdq'": "--qdq"}  # one argument, two flags

_VALUE = r"""'[^']*'|"[^"]*"|\{[^{}]*\}|\([^()]*\)|[^\s,;:()'"]*[^\s,;:()'".]"""
# Words of others, which stay as they are: texts in quotes, calls such as reset(seed=3), paths and URLs
_OTHERS = r"""(?<!\w)'[^']*'(?!\w)|(?<!\w)"[^"]*"|(?<![\w.])[\w.]+\((?:[^()]|\([^()]*\))*\)|(?<!\S)[^\s=]*[/\\]\S*"""
_MORE = r"""[\w/\\'"(=]|[.-]\w"""  # behind a name: it is a part of something longer
# Such a text, or an argument with or without a value
_ARGUMENT = re.compile(rf"""{_OTHERS}|(?<![\w'"./\\-])(?<!\w\()(?:model\.)?([a-z]\w*)(=(?:{_VALUE})?)?(?!{_MORE})""")
# The first word of a message where it is the name of an argument. Elsewhere `seed` or `history` may be a plain word.
_SUBJECT = re.compile(r"Unknown [a-z]+(?= ')|[a-z]+(?= (?:must|takes)\b|:)")

_command: ContextVar[argparse.ArgumentParser | None] = ContextVar("command", default=None)


@contextmanager
def messages_of(parser: argparse.ArgumentParser) -> Iterator[None]:
    """
    Let messages name the flags of a command, for as long as it runs.

    :param parser: parser of the command
    """
    token = _command.set(parser)
    try:
        yield
    finally:
        _command.reset(token)


def in_flags(message: str, parser: argparse.ArgumentParser | None = None) -> str:
    """
    A message with flags in the place of the arguments of Python that it names.

    :param message: text of an error or a warning
    :param parser: parser of the command, ``None`` for the one that runs. Without any the message stays as it is
    """
    parser = parser or _command.get()
    if parser is None:
        return message
    for form, flag in FORMS.items():
        if flag in parser._option_string_actions:
            message = message.replace(form, flag)
    subject = _SUBJECT.match(message)
    end_of_subject = subject.end() if subject else 0

    def flag_of(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name is None or (value is None and "_" not in name and match.end() != end_of_subject):
            return match[0]
        return _flag(parser, name, value and value[1:]) or match[0]

    return _ARGUMENT.sub(flag_of, message)


def _flag(parser: argparse.ArgumentParser, name: str, value: str | None) -> str | None:
    """The flag of an argument with its value as one types it. ``None`` where the command has none."""
    options = {action.dest: action for action in parser._actions if action.option_strings}
    action = options.get(name) or options.get(OTHER_NAMES.get(name, ""))
    if action is None:
        return None
    flags = [flag for flag in action.option_strings if flag.startswith("--")]
    if action.nargs == 0:
        negative = [flag for flag in flags if flag.startswith("--no-")]
        fitting = negative if value == "False" else [flag for flag in flags if flag not in negative]
        return next(iter(fitting), None)
    return f"{flags[0]} {_typed(value)}" if value else flags[0]


def _typed(value: str) -> str:
    """A value of Python as one types it in a shell."""
    if value[0] in "'\"":
        value = value[1:-1]
    elif value[0] == "(":
        value = value[1:-1].replace(" ", "").rstrip(",")
    return shlex.quote(value)
