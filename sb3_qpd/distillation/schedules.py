"""What follows the progress of ``learn()``: the learning rate, its warm-up, and how much of the transition has passed."""

from __future__ import annotations

import math

WARM_UP_UPDATES = 200  # the learning rate rises: at once, it leaves a CNN's ReLUs dead
# where the cosine begins
DEFAULT_LEARNING_RATE_IMAGES = 1e-2
DEFAULT_LEARNING_RATE_VECTORS = 2e-3


class CosineSchedule:
    """
    A learning rate that falls to zero along half a cosine (patient, consistent teachers: Beyer et al. 2022).

    :param initial: value at the start
    """

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it

    def __init__(self, initial: float) -> None:
        self.initial = initial

    def __call__(self, progress_remaining: float) -> float:
        return self.initial * 0.5 * (1 - math.cos(math.pi * min(max(progress_remaining, 0.0), 1.0)))

    def __repr__(self) -> str:
        return f"CosineSchedule({self.initial})"


def warmup_learning_rate(rate: float, n_updates: int, total_updates: int) -> float:
    """
    The learning rate of an update: a share of the schedule's in the first ones, which grows linearly.

    :param rate: the schedule's; below zero it would climb the loss, and is zero
    :param n_updates: updates before this one
    :param total_updates: of the whole run; a twentieth of a short one warms up
    """
    rate, warm_up = max(rate, 0.0), min(WARM_UP_UPDATES, total_updates // 20)
    return rate * (n_updates + 1) / (warm_up + 1) if n_updates <= warm_up else rate


def stage_progress(progress: float, start: float, end: float) -> float:
    """
    How much of a stage of learning has passed, in [0, 1].

    :param progress: of ``learn()``
    :param start: progress at which the stage begins
    :param end: progress at which it ends
    """
    return min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)
