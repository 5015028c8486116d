"""The version of this package, from ``version.txt``."""

from pathlib import Path

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()
