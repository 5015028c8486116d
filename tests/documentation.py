"""The pages of the documentation, the commands in them, and what they explain."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code on a page."""

    page: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The blocks between fences, and those that are indented, which have no language."""
    text = page.read_text(encoding="utf-8")
    for _, language, content in FENCE.findall(text):
        yield Block(page.name, language, content)
    for found in re.findall(r"(?:(?<=\n\n)(?: {4,}[^\n]*\n)+)", FENCE.sub("\n", text)):
        yield Block(page.name, "", found)


def commands(block: Block) -> Iterator[list[str]]:
    """The command lines of a block as words, without comments. Lines that end in a backslash are joined."""
    if block.language not in ("", "bash", "console", "sh"):
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # an apostrophe: prose, or output of a program
            continue
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
            words = words[1:]
        if words:
            yield words
