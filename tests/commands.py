"""What the tests of several commands share."""

import pytest

from sb3_qpd.cli import main

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


def mistake(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The only line on stderr of a command that exits with 2."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in argv])
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == 1 and errors[0] == lines[-1], lines
    return errors[0]
