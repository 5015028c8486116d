"""Exit codes, and errors of the user as one line on stderr."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sb3_qpd.cli.flags import in_flags
from sb3_qpd.text import plain

EXIT_DIFFERENCE = 1
EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


def one_line(message: object) -> str:
    """
    A message on one line, with the flags of the running command. Control characters are left out: a file's text may have them.

    :param message: an exception or a text; an exception without a text is shown by its name
    """
    return in_flags(plain(str(message), most=100_000)) or type(message).__name__


def is_user_error(error: BaseException) -> bool:
    """
    Whether the user can correct what went wrong, so that one line reports it. Anything else is a bug, with its traceback.

    :param error: what was raised
    """
    if isinstance(error, BrokenPipeError):  # the reader of stdout went away
        return False
    # mistyped environment ids, and YAML files that RL Zoo reads: compared by module, since neither package is imported here
    of_packages = type(error).__module__.startswith(("gymnasium.error", "yaml."))
    return of_packages or isinstance(error, ValueError | TypeError | OSError | ImportError | MemoryError)


@contextmanager
def user_errors(command: str, applies: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """
    Report an error of the user in one line on stderr, and exit with code 2.

    :param command: name of the command, for the message
    :param applies: called when something went wrong; ``False`` lets the traceback through
    """
    try:
        yield
    except Exception as error:
        if not (applies() and is_user_error(error)):
            raise
        print(f"sb3-qpd {command}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE) from error
