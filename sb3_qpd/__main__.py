"""``python -m sb3_qpd`` is the command ``sb3-qpd``."""

from sb3_qpd.cli import main

raise SystemExit(main())
