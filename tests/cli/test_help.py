"""What ``--help`` says: one line, a default for each option, two examples that the parser takes."""

import argparse
import shlex
from pathlib import Path

import pytest

from sb3_qpd.cli import make_parser
from sb3_qpd.cli.arguments import Parser, with_default

_SUBPARSERS = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
COMMANDS: dict[str, Parser] = dict(_SUBPARSERS.choices)


def test_every_command_has_one_line() -> None:
    lines = {choice.dest: choice.help or "" for choice in _SUBPARSERS._choices_actions}
    assert set(lines) == set(COMMANDS)
    for command, line in lines.items():
        assert 10 < len(line) <= 100 and "\n" not in line, command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_names_its_default(command: str) -> None:
    for action in COMMANDS[command]._actions:
        if action.option_strings and action.dest != "help":
            text = with_default(action)
            assert "(default" in text or (action.required and text.endswith("(required)")), action.dest


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = COMMANDS[command]
    assert len(parser.examples) in (2, 3)
    for example in parser.examples:
        program, *words = shlex.split(example)
        assert program == "sb3-qpd" and words[0] == command
        assert make_parser().parse_args(words).command == command
        assert f"\n  {example}" in parser.format_help()
