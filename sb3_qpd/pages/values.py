"""
Values of JSON from elsewhere. Each function takes any JSON value and returns one of its type, or the absence of one.

A ``report.json`` or ``frontier.json`` may be damaged or hostile. A figure is drawn from what is sound, and left out otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sb3_qpd.text import plain

LARGEST = 1e15  # of a number. Axes of larger ones have no useful ticks
MOST_TEXT = 300  # characters of one text


def number(value: Any) -> float | None:
    """
    A finite number, else ``None``.

    :param value: any JSON value
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and abs(value) <= LARGEST else None


def positive(value: Any) -> float | None:
    """
    A number above zero, else ``None``.

    :param value: any JSON value
    """
    found = number(value)
    return found if found is not None and found > 0 else None


def text(value: Any, most: int = MOST_TEXT) -> str:
    """
    A text of one line without control characters. A number becomes its text, and any other value the empty text.

    :param value: any JSON value
    :param most: number of characters to keep
    """
    if isinstance(value, str):
        return plain(value, most)
    found = number(value)
    if found is None:
        return ""
    return str(int(found)) if found.is_integer() else f"{found:g}"


def fields(value: Any) -> Mapping[str, Any]:
    """
    An object, else an empty one.

    :param value: any JSON value
    """
    return value if isinstance(value, Mapping) else {}


def items(value: Any, most: int) -> list[Any]:
    """
    The first items of a list, else none.

    :param value: any JSON value
    :param most: number of items to keep
    """
    return value[:most] if isinstance(value, list) else []


def objects(value: Any, most: int) -> Iterator[Mapping[str, Any]]:
    """
    The objects among the first items of a list.

    :param value: any JSON value
    :param most: number of items to look at
    """
    return (one for one in items(value, most) if isinstance(one, Mapping))


def numbers(value: Any, most: int) -> list[float]:
    """
    The numbers among the first items of a list.

    :param value: any JSON value
    :param most: number of items to look at
    """
    return [found for one in items(value, most) if (found := number(one)) is not None]


def interval(value: Any) -> tuple[float, float] | None:
    """
    Both ends of an interval in ascending order, else ``None``.

    :param value: any JSON value
    """
    found = numbers(value, 3)
    return (found[0], found[1]) if len(found) == 2 and found[0] <= found[1] else None


def texts(value: Any, most: int) -> dict[str, str]:
    """
    The first entries of an object as texts.

    :param value: any JSON value
    :param most: number of entries to keep
    """
    return {text(key): text(one) for key, one in list(fields(value).items())[:most]}
