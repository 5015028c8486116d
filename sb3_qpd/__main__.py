"""``python -m sb3_qpd`` is the command ``sb3-qpd``."""

import os

from sb3_qpd.child_processes import leave_current_folder

leave_current_folder(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from sb3_qpd.cli import main  # noqa: E402  # nothing of the command comes from the current folder

raise SystemExit(main())
