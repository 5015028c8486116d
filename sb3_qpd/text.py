"""
Text from files, made harmless for the place where it is shown.

A name in an ``args.yml``, a pickle or a ``report.json`` may hold terminal escapes, HTML, or a link. :func:`plain` is for
terminals and comments, :func:`markdown` for reports and model cards.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

MOST = 2_000  # characters of one text
_MARKUP = re.compile(r"[\\`\[\]|]")
# GitHub and the Hub make links of these words. An entity for one of their characters does not prevent it: some renderers look
# for links after they have replaced the entities. An invisible space does
_LINK = re.compile(r"(?i)\bwww(?=\.)|\w:(?=//)|\b(?:mailto|xmpp):|(?<=[\w.+-])@(?=[\w-]+\.\w)")
_BREAK = "&#8203;"


def plain(text: str, most: int = MOST) -> str:
    """
    Text on one line, without control characters: escapes of terminals, marks that turn the writing direction, half characters.

    :param text: from a file
    :param most: number of characters to keep
    """
    kept = "".join(letter if unicodedata.category(letter)[0] != "C" else " " for letter in text[: 2 * most])
    return " ".join(kept.split())[:most]


def markdown(text: str) -> str:
    """
    Text that Markdown shows as it is: no HTML, no link, no image, no code, no cell of a table.

    :param text: from a file
    """
    text = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _MARKUP.sub(lambda found: f"\\{found[0]}", text)
    return _LINK.sub(lambda found: f"{found[0]}{_BREAK}", text)


def every_text(value: Any, convert: Callable[[str], str]) -> Any:
    """
    JSON values with every text in them converted, keys too.

    :param value: texts, numbers, and mappings and lists of these
    :param convert: :func:`plain` or :func:`markdown`
    """
    if isinstance(value, str):
        return convert(value)
    if isinstance(value, Mapping):
        return {every_text(key, convert): every_text(item, convert) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(every_text(item, convert) for item in value)
    return value
