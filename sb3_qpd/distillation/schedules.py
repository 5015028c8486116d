"""Functions of the progress of ``learn()``: the learning rate, its warm-up, and the progress of the transition."""

from __future__ import annotations

import math
from numbers import Real

from sb3_qpd.checks import check_type

WARM_UP_UPDATES = 200  # a full learning rate from the first update leaves a CNN's ReLUs dead
LINEAR, COSINE = "lin_", "cos_"  # before the first rate in an entry of RL Zoo's syntax: linear to zero, half a cosine to zero
DEFAULT_LEARNING_RATE = 5e-2  # first value of the cosine, for the optimizer MuonAdam


class CosineSchedule:
    """
    A learning rate that falls to zero along half a cosine (patient, consistent teachers: Beyer et al. 2022).

    :param initial: learning rate at the start
    :raises TypeError: it is no number
    """

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it

    def __init__(self, initial: float) -> None:
        check_type("initial", initial, Real, "a number such as 2e-3")
        self.initial = initial

    def __call__(self, progress_remaining: float) -> float:
        return self.initial * 0.5 * (1 - math.cos(math.pi * min(max(progress_remaining, 0.0), 1.0)))

    def __repr__(self) -> str:
        return f"CosineSchedule({self.initial})"


def cosine_of(text: str) -> CosineSchedule:
    """
    The cosine that an entry names.

    :param text: its first rate after :data:`COSINE`
    :raises ValueError: no number comes after it
    """
    return CosineSchedule(float(text.removeprefix(COSINE)))


def warmup_learning_rate(rate: float, n_updates: int, total_updates: int) -> float:
    """
    The learning rate of an update. It grows linearly to the schedule's rate during the first updates.

    :param rate: rate that the schedule gives; a negative one becomes zero
    :param n_updates: number of updates before this one
    :param total_updates: number of updates of the whole run; the warm-up takes at most a twentieth of them
    :return: the learning rate, at least 0
    """
    rate, warm_up = max(rate, 0.0), min(WARM_UP_UPDATES, total_updates // 20)
    return rate * (n_updates + 1) / (warm_up + 1) if n_updates <= warm_up else rate


def transition_end(start: float, end: float, steps: int, total_timesteps: float) -> float:
    """
    The progress of ``learn()`` at which a transition has reached the target precision.

    :param start: progress at which the transition starts
    :param end: progress at which it ends at the latest
    :param steps: environment steps that it takes at most
    :param total_timesteps: environment steps of the run
    """
    return min(end, start + steps / total_timesteps)


def stage_progress(progress: float, start: float, end: float) -> float:
    """
    The share of a stage of learning that has passed.

    :param progress: progress of ``learn()``, 0 to 1
    :param start: progress at which the stage begins
    :param end: progress at which the stage ends
    :return: 0 to 1
    """
    return min(max((progress - start) / max(end - start, 1e-9), 0.0), 1.0)
