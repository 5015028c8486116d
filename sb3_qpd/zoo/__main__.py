"""``python -m sb3_qpd.zoo train ...`` is ``sb3-qpd zoo train ...``."""

import sys

from sb3_qpd.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["zoo", *sys.argv[1:]]))
