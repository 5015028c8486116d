"""
Checks of arguments: types, ranges, and names that are chosen from a set.

This module imports nothing heavy. The command checks with it what a user typed, before torch is imported.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, TypeGuard

MAX_SEED = 2**32 - 1  # numpy takes no larger ones


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """
    The nearest known name as a question, after a space.

    :param name: unknown name
    :param known: names that there are
    :return: the question, or ``""`` where no name is near
    """
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def check_choice(argument: str, value: Any, known: Iterable[str]) -> None:
    """
    Refuse a name that is not among the known ones.

    :param argument: name of the argument, for the message
    :param value: chosen name
    :param known: names that there are
    :raises TypeError: the value is no string
    :raises ValueError: the name is unknown. The message holds the known names, and the nearest of them
    """
    names = list(known)
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be one of the names {', '.join(names)}, got {value!r} ({type(value).__name__})")
    if value not in names:
        raise ValueError(f"Unknown {argument} '{value}'. Known: {', '.join(names)}.{did_you_mean(value, names)}")


def check_flags(**flags: Any) -> None:
    """
    Refuse arguments that are neither ``True`` nor ``False``: the text ``"no"`` would count as true.

    :param flags: arguments by their names
    :raises TypeError: an argument is something else
    """
    for name, value in flags.items():
        is_numpy = str(getattr(value, "dtype", "")) == "bool" and value.shape == ()
        if not (isinstance(value, bool) or is_numpy):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_whole(argument: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """
    A whole number as an integer. Floats such as 1e5 are converted.

    :param argument: name of the argument, for the message
    :param value: the number
    :param least: smallest value
    :param most: largest value; ``None`` sets no bound
    :raises ValueError: the value is anything else
    """
    if is_finite(value) and value % 1 == 0 and value >= least and (most is None or value <= most):
        return int(value)
    bounds = f"of at least {least}" if most is None else f"of {least} to {most}"
    raise ValueError(f"{argument} must be a whole number {bounds}, got {value!r}")


def check_count(argument: str, value: Any) -> int:
    """
    A count of at least 1. Floats are refused.

    :param argument: name of the argument, for the message
    :param value: the number
    :raises ValueError: the value is no integer, or is below 1
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise ValueError(f"{argument} must be an integer of at least 1, got {value!r}.")
    return int(value)


def check_seed(argument: str, value: Any) -> int:
    """
    A seed that numpy and every environment can take.

    :param argument: name of the argument, for the message
    :param value: the seed
    :raises ValueError: the value is no whole number of 0 to 2^32 - 1
    """
    return check_whole(argument, value, 0, MAX_SEED)


def check_positive(argument: str, value: Any) -> float:
    """
    A finite number above zero.

    :param argument: name of the argument, for the message
    :param value: the number
    :raises ValueError: the value is anything else
    """
    if not (is_finite(value) and value > 0):
        raise ValueError(f"{argument} must be a positive number, got {value!r}")
    return float(value)


def check_type(argument: str, value: Any, types: type | tuple[type, ...], expected: str) -> None:
    """
    Refuse an argument of another type.

    :param argument: name of the argument, for the message
    :param value: the argument
    :param types: accepted types
    :param expected: the accepted types in words
    :raises TypeError: the argument has another type
    """
    if not isinstance(value, types):
        raise TypeError(f"{argument} must be {expected}, got {value!r} ({type(value).__name__})")


def check_path(argument: str, value: Any) -> None:
    """
    Refuse what is no path.

    :param argument: name of the argument, for the message
    :param value: the path
    :raises TypeError: the argument is neither text nor a ``pathlib.Path``
    """
    check_type(argument, value, (str, os.PathLike), "a path as text or pathlib.Path")


def is_finite(value: Any) -> TypeGuard[float]:
    """
    Whether a value is a finite number. ``True`` and ``False`` are none.

    :param value: anything
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
