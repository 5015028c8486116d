"""What the distiller's hyperparameters may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from sb3_qpd.distillation.objective import BOX_LOSSES
from sb3_qpd.students.transitions import get_transition

WHOLE = ("batch_size", "buffer_size")  # RL Zoo's entries have floats, such as 1e5
POSITIVE = ("gradient_steps", "temperature")
NOT_NEGATIVE = ("critic_coef", "entropy_coef", "learning_starts")


def check_hyperparameters(given: Mapping[str, Any]) -> None:
    """
    Refuse what cannot work before anything is built.

    :param given: a distiller's attributes; of those that have a usual value, ``None`` is one that is not chosen yet
    """
    get_transition(given["transition"])
    start, end = given["transition_start"], given["transition_end"]
    if not 0 <= start <= end <= 1:
        raise ValueError(
            f"Expected 0 <= transition_start <= transition_end <= 1, got transition_start={start}, transition_end={end}"
        )
    if given["box_loss"] not in BOX_LOSSES:
        raise ValueError(f"box_loss must be one of {BOX_LOSSES}, got '{given['box_loss']}'")
    if not 0 <= given["beta"] <= 1:
        raise ValueError(f"beta is a share of episodes between 0 and 1, got {given['beta']}")
    _check_numbers(given)


def _check_numbers(given: Mapping[str, Any]) -> None:
    for name in WHOLE:
        positive_int(name, given[name])
    for name in POSITIVE:
        if given[name] is not None and not (_is_finite(given[name]) and given[name] > 0):
            raise ValueError(f"{name} must be a positive number, got {given[name]}")
    for name in NOT_NEGATIVE:
        if not (_is_finite(given[name]) and given[name] >= 0):
            raise ValueError(f"{name} must be a number of at least 0, got {given[name]}")
    if not given["max_grad_norm"] > 0:  # infinity: no bound
        raise ValueError(f"max_grad_norm must be positive, got {given['max_grad_norm']}")
    rate = given["learning_rate"]
    if not (rate is None or callable(rate) or (_is_finite(rate) and 0 <= rate <= 1)):
        raise ValueError(f"learning_rate must be a number between 0 and 1 or a schedule, got {rate}")


def positive_int(name: str, value: Any) -> int | None:
    """
    :param name: for the message
    :param value: a whole number of at least 1, ``None`` for one that is not chosen yet
    """
    if value is None:
        return None
    if not (_is_finite(value) and value >= 1 and value % 1 == 0):
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    return int(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
