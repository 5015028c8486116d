"""What a page consists of. The template ``page.html.jinja`` shows it; all texts in it are escaped there."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sb3_qpd.pages.drawing import Drawing


@dataclass(frozen=True)
class Cell:
    """
    A cell of a table.

    :param text: what is shown
    :param value: the exact number behind it, as an attribute of the element
    """

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """
    A table. The first cell of a row is its header.

    :param name: unique name in the page
    :param caption: what the table shows
    :param header: names of the columns
    :param rows: its cells
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """
    A figure with a text for those who do not see it, and the numbers behind it.

    :param name: unique name in the page
    :param caption: how to read it
    :param alt: what it shows, in a sentence
    :param drawing: the drawing; ``None`` where it is a picture
    :param tables: its numbers
    :param picture: a moving GIF
    :param still: its first picture as a PNG, for readers that want no motion
    """

    name: str
    caption: str
    alt: str
    drawing: Drawing | None = None
    tables: Sequence[Table] = ()
    picture: bytes = b""
    still: bytes = b""

    @property
    def picture_address(self) -> str:
        """The GIF as a ``data:`` address."""
        return "data:image/gif;base64," + base64.b64encode(self.picture).decode()

    @property
    def still_address(self) -> str:
        """The PNG as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.still).decode()


@dataclass(frozen=True)
class Section:
    """
    A section of a page.

    :param name: unique name in the page
    :param title: its heading
    :param texts: paragraphs before figures and tables
    :param figures: its figures
    :param tables: its tables
    :param command: a command line, shown as code
    :param notes: a list of sentences
    """

    name: str
    title: str
    texts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    command: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """
    A page.

    :param title: what was compressed
    :param headline: the result in one sentence
    :param kind: ``good``, ``bad`` or ``open``, the color of the headline
    :param explanation: what the sentence rests on
    :param cards: (number, what it is) of the key figures
    :param sections: the sections, those without content left out
    """

    title: str
    headline: str
    kind: str
    explanation: str
    cards: Sequence[tuple[str, str]]
    sections: Sequence[Section] = field(default_factory=list)


def cell(value: float | None, form: str = "{:,.2f}") -> Cell:
    """
    A cell with a number; an empty one where there is none.

    :param value: the number
    :param form: how it is shown
    """
    return Cell("") if value is None else Cell(form.format(value), value)


def row(*cells: Any) -> list[Cell]:
    """
    A row of cells.

    :param cells: cells, and texts that become cells
    """
    return [one if isinstance(one, Cell) else Cell(str(one)) for one in cells]


def facts_table(name: str, caption: str, facts: Iterable[tuple[str, str]]) -> Table:
    """
    A table of names and texts.

    :param name: unique name in the page
    :param caption: what the table shows
    :param facts: the rows
    """
    return Table(name, caption, ("", ""), [row(*fact) for fact in facts])


def times(ratio: float) -> str:
    """
    How many times smaller, in few digits.

    :param ratio: size before / size after
    """
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
