"""What the tests of several commands share."""

import argparse
import re

import pytest

from sb3_qpd.cli import main, make_parser

# options of compress for tests that need a student, whichever
QUICK = [
    "--no-check-teacher",
    "--no-progress",
    "--no-page",
    "--device",
    "cpu",
    "--student-arch",
    "nano",
    "--activation-bits",
    "8",
]

_SUBPARSERS = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
COMMANDS: dict[str, argparse.ArgumentParser] = dict(_SUBPARSERS.choices)


def mistake(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The only line on stderr of a command that exits with 2. It names flags, and no argument of Python that has one."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in argv])
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == 1 and errors[0] == lines[-1], lines
    if argv and argv[0] in COMMANDS:
        assert not arguments_of_python(COMMANDS[str(argv[0])], errors[0])
    return errors[0]


def arguments_of_python(parser: argparse.ArgumentParser, line: str) -> list[str]:
    """Names of a command's flags as Python spells them, with or without a value, that stand in a message."""
    names = "|".join(action.dest for action in parser._actions if any(one.startswith("--") for one in action.option_strings))
    found = re.findall(rf"(?<![\w'\"./(-])(?:({names})=|((?:{names})\b))", line)
    return [name or bare for name, bare in found if name or "_" in bare]
