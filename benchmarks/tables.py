"""The rows that benchmarks measure: kept as lines of JSON, each written as soon as it is known, and shown as Markdown."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Append rows to a file at once, so that an interrupted benchmark loses none."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(*paths: Path, missing_ok: bool = False) -> list[dict[str, Any]]:
    """
    Read all rows of some files.

    :param paths: files of JSON lines
    :param missing_ok: whether a file that does not exist counts as empty
    """
    there = [path for path in paths if path.exists() or not missing_ok]
    return [json.loads(line) for path in there for line in path.read_text().splitlines()]


def table_head(columns: Sequence[str]) -> str:
    """The first two lines of a Markdown table."""
    return "| " + " | ".join(columns) + " |\n" + len(columns) * "|---" + "|"
