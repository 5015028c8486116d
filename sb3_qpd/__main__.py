"""The program: ``sb3-qpd``, and ``python -m sb3_qpd``, which is the same."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command. Ctrl-C ends it in one line, also while Python still imports its modules.

    :param argv: see :func:`sb3_qpd.cli.main`
    :return: exit code
    """
    try:
        from sb3_qpd.cli import main as run

        return run(argv)
    except KeyboardInterrupt:
        print("sb3-qpd: interrupted", file=sys.stderr)
        return 130  # EXIT_INTERRUPTED, which may not be imported yet


if __name__ == "__main__":
    from sb3_qpd.child_processes import leave_current_folder

    leave_current_folder(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    raise SystemExit(main())  # nothing of the command comes from the current folder
