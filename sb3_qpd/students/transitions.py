"""
How precision falls during ``learn()``: each transition maps progress to a mixture of bit widths.

A mixture is a dict from bits to its share; 32 means float. Each quantizer asks with its own target bits, so that the first
layer and the head stop at 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from sb3_qpd.checks import check_choice
from sb3_qpd.students.architectures import FLOAT_BITS

Precision = Mapping[int, float]
# (progress of the transition in [0, 1], target bits) -> mixture
Transition = Callable[[float, int], Precision]


def none(progress: float, bits: int) -> Precision:
    """Float to the end; the student is quantized after training (post-training quantization)."""
    return {FLOAT_BITS: 1.0}


def scratch(progress: float, bits: int) -> Precision:
    """Low precision from the first step."""
    return {bits: 1.0}


def abrupt(progress: float, bits: int) -> Precision:
    """Float, then low precision from the start of the transition on (quantization delay; QuaRL, Krishnan et al. 2019)."""
    return {bits if progress > 0 else FLOAT_BITS: 1.0}


def blend(progress: float, bits: int) -> Precision:
    """
    A share of the low precision that grows linearly: x <- (1 - a) x + a Q(x).

    In a long blend a student can come to need the float share, and is lost when the share ends. So QPDDistiller limits the
    steps, see docs/results.md. Binary-Relax, Yin et al. 2018: https://arxiv.org/abs/1801.06313
    """
    return {FLOAT_BITS: 1.0 - progress, bits: progress}


def progressive(progress: float, bits: int) -> Precision:
    """
    8, then 4, then 2 bits, each for an equal part of the transition, down to the target.

    Zhuang et al. 2018: https://arxiv.org/abs/1711.00205
    """
    if progress <= 0:
        return {FLOAT_BITS: 1.0}
    stages = [b for b in (8, 4, 2) if b > bits] + [bits]
    return {stages[min(int(progress * len(stages)), len(stages) - 1)]: 1.0}


def mixture(progress: float, bits: int) -> Precision:
    """
    A softmax over 8, 4 and 2 bits (down to the target) whose temperature falls until only the target is left.

    DQA, Ke et al. 2021 (mixture of quantizers with a cooled softmax). The scores are distances from a position that moves from
    8 bits to the target.
    """
    if progress <= 0:
        return {FLOAT_BITS: 1.0}
    if progress >= 1:
        return {bits: 1.0}
    widths = [b for b in (8, 4, 2) if b > bits] + [bits]
    # from nearly all at 8 bits (progress 0) to nearly all at the target (progress 1)
    position = progress * (len(widths) - 1)
    cooling = 4.0 + progress  # with faster cooling the coarse shares would fall for a while
    scores = [math.exp(-cooling * abs(i - position)) for i in range(len(widths))]
    return {width: score / sum(scores) for width, score in zip(widths, scores, strict=True)}


TRANSITIONS: dict[str, Transition] = {f.__name__: f for f in (none, scratch, abrupt, blend, progressive, mixture)}


def get_transition(name: str) -> Transition:
    """
    A transition by its name.

    :param name: key of ``TRANSITIONS``
    :raises ValueError: there is no transition of this name
    """
    check_choice("transition", name, TRANSITIONS)
    return TRANSITIONS[name]
