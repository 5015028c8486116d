"""Spaces of gym and gymnasium, rebuilt from the records of a pickle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.spaces import ACTIONS, OBSERVATIONS
from sb3_qpd.teachers.files.archive import WAY_OUT, TeacherError
from sb3_qpd.teachers.files.pickle_reader import MAX_ARRAY_SIZE, ObjectRecord, UnsafePickle, to_array, to_dtype, to_number

# exceptions that values of a pickle raise where they are not those of a space or of statistics
CONTRADICTIONS = (UnsafePickle, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError)


def refusal(what: str, error: Exception) -> TeacherError:
    """
    The error for a value that is not taken from a file.

    :param what: name of the value
    :param error: the reason
    """
    return TeacherError(f"{what} was refused, without running it. {error}. {WAY_OUT}")


def to_space(value: Any, what: str) -> spaces.Space:
    """
    A new gymnasium space with the values that a pickle holds for a space of gym or gymnasium.

    :param value: record from a pickle
    :param what: name of the value, for messages; it begins with "action" for an action space
    :raises TeacherError: another kind of space, or contradicting values
    """
    if not isinstance(value, ObjectRecord) or ".spaces" not in value.target.module:
        raise TeacherError(f"The {what} is not a space of gym or gymnasium. {WAY_OUT}")
    kind = value.target.name
    is_action = what.startswith("action")
    if kind not in _SPACES or (is_action and kind == "Dict"):
        supported = ACTIONS if is_action else OBSERVATIONS
        raise TeacherError(f"The {what} is a {kind} space, which is not supported. Supported: {supported}")
    try:
        return _SPACES[kind](value.attributes())
    except CONTRADICTIONS as error:
        raise refusal(f"The {what}", error) from error


def _to_box(attributes: dict[str, Any]) -> spaces.Box:
    low, high = to_array(attributes["low"]), to_array(attributes["high"])
    shape = attributes.get("_shape", attributes.get("shape", low.shape))
    if shape != low.shape or shape != high.shape:
        raise UnsafePickle(f"A Box whose shape and bounds contradict (bounds {low.shape} and {high.shape})")
    return spaces.Box(low, high, dtype=to_dtype(attributes["dtype"]).type)


def _to_discrete(attributes: dict[str, Any]) -> spaces.Discrete:
    return spaces.Discrete(to_number(attributes["n"], int), start=to_number(attributes.get("start", 0), int))


def _to_multi_discrete(attributes: dict[str, Any]) -> spaces.MultiDiscrete:
    nvec = to_array(attributes["nvec"])
    start = to_array(attributes["start"]) if "start" in attributes else np.zeros_like(nvec)
    if nvec.ndim != 1 or nvec.dtype.kind not in "iu" or not ((0 < nvec) & (nvec < 2**20)).all() or start.shape != nvec.shape:
        raise UnsafePickle("A MultiDiscrete space needs one axis of positive numbers of categories")
    return spaces.MultiDiscrete(nvec, start=start)


def _to_multi_binary(attributes: dict[str, Any]) -> spaces.MultiBinary:
    n = attributes["n"]
    sizes = [to_number(size, int) for size in (n if isinstance(n, tuple | list) else [n])]
    if not sizes or len(sizes) > 8 or not all(0 < size < 2**20 for size in sizes):
        raise UnsafePickle("A MultiBinary space needs positive sizes")
    return spaces.MultiBinary(sizes if isinstance(n, tuple | list) else sizes[0])


def _to_dict(attributes: dict[str, Any]) -> spaces.Dict:
    """The keys stay in the order of the file, in which SB3 concatenates their features."""
    values = attributes["spaces"]
    items = values.items if isinstance(values, ObjectRecord) else list(values.items())  # gym had an OrderedDict
    if not all(isinstance(key, str) and isinstance(one, ObjectRecord) and one.target.name != "Dict" for key, one in items):
        raise UnsafePickle("A Dict space whose values are not spaces, or which is nested")
    parts, size = [], 0
    for key, one in items:
        part = to_space(one, f"observation_space {key!r}")
        parts.append((key, part))
        size = check_size(size + math.prod(part.shape or ()))
    return spaces.Dict(parts)


def check_size(size: int) -> int:
    """
    Refuse observations of too many numbers. A few bytes of a file may be the values of every key, so all keys count.

    :param size: numbers so far
    :return: the same
    """
    if size > MAX_ARRAY_SIZE:
        raise UnsafePickle(f"Observations of more than {MAX_ARRAY_SIZE} numbers")
    return size


_SPACES: dict[str, Callable[[dict[str, Any]], spaces.Space]] = {
    "Box": _to_box,
    "Discrete": _to_discrete,
    "MultiDiscrete": _to_multi_discrete,
    "MultiBinary": _to_multi_binary,
    "Dict": _to_dict,
}
