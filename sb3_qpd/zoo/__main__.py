"""``python -m sb3_qpd.zoo train ...`` is ``sb3-qpd zoo train ...``."""

import os
import sys

from sb3_qpd.child_processes import leave_current_folder

if __name__ == "__main__":
    leave_current_folder(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

    from sb3_qpd.__main__ import main  # nothing of the command comes from the current folder

    raise SystemExit(main(["zoo", *sys.argv[1:]]))
