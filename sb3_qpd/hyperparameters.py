"""What the distiller's hyperparameters may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sb3_qpd.objective import BOX_LOSSES
from sb3_qpd.transitions import get_transition

POSITIVE = ("batch_size", "buffer_size", "gradient_steps", "temperature", "max_grad_norm")


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
    for name in POSITIVE:
        if given[name] is not None and not given[name] > 0:
            raise ValueError(f"{name} must be positive, got {given[name]}")
