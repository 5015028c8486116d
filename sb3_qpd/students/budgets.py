"""
A student's size by a budget: ``student_arch="2kB"`` is the best student whose bytes fit.

Which student is the best one of a size is data: ``VECTOR_RULE``, ``IMAGE_RULE`` and ``KERNELS``. docs/sizes.md has the
measurements behind them. This module imports no torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sb3_qpd.students.architectures import FLOAT_BITS, SMALL_KERNELS, StudentArch, conv_output_sides, make_arch
from sb3_qpd.students.sizes import StudentTask, student_nbytes

UNITS = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2}
PERCENT = "%"  # of the teacher's actor in float32
MAX_BYTES = 64 * 1000**2  # a larger student is no compression of any teacher here
MAX_UNITS = 4096  # of a layer; more of them only fill the largest budgets
EXPECTED = f"a number and one of the units {', '.join(UNITS)} or {PERCENT}, such as '2kB' or '0.5%'"

_BUDGET = re.compile(r"(\d+(?:\.\d+)?|\.\d+)([A-Za-z]+|%)", re.ASCII)
_MEANT_AS_BUDGET = re.compile(r"[+-]?\.?\d.*|.*%")


class BudgetError(ValueError):
    """Nothing fits a budget. Its message names the smallest student."""


@dataclass(frozen=True)
class SizeRule:
    """
    One kind of student, which comes in many widths.

    :param n_layers: number of hidden layers of a vector's trunk
    :param least: smallest width at which this kind is taken before the next one
    :param most: largest width
    :param units: fewest units of the layer after the convolutions, in widths
    :param weight_bits: bits of the inner layers' weights
    :param activation_bits: bits of the hidden activations
    """

    n_layers: int
    least: int
    most: int = MAX_UNITS
    units: int = 4
    weight_bits: int = 8
    activation_bits: int = 8


# the first rule that has a width which fits, and then the widest
VECTOR_RULE = (SizeRule(2, least=8), SizeRule(1, least=4), SizeRule(0, least=0), SizeRule(1, least=1))
# the width is that of the first convolution; all other widths are multiples of it, as in `tiny`
IMAGE_RULE = (SizeRule(2, least=1), SizeRule(2, least=1, most=1, units=1))
CHANNELS = (1, 2, 2)  # of each convolution, in widths
VECTOR_UNITS = 2  # of each hidden layer for the vectors of a Dict with images, in widths
# kernel size and stride of each convolution. The first that leaves at most MAX_POSITIONS is taken
KERNELS = (
    ((8, 4), (4, 2), (3, 1)),
    ((8, 4), (4, 2), (3, 2)),
    ((8, 4), (4, 4), (3, 2)),
    ((8, 8), (4, 4), (3, 2)),
    ((16, 16), (4, 4), (3, 2)),
    *SMALL_KERNELS,
)
MAX_POSITIONS = 100  # of an image's last convolution; 84 x 84 pixels leave 49


def is_budget(student_arch: Any) -> bool:
    """
    Whether a size is a budget, well-formed or not, and not a name.

    :param student_arch: any size of a student
    """
    return isinstance(student_arch, str) and _MEANT_AS_BUDGET.fullmatch(student_arch.strip()) is not None


def check_budget(budget: str) -> tuple[Decimal, str]:
    """
    The number and the unit of a budget.

    :param budget: such as ``"2kB"``
    :raises ValueError: it is no number with a known unit, or outside its range
    """
    found = _BUDGET.fullmatch(budget)
    if found is None or found[2] not in (*UNITS, PERCENT):
        raise ValueError(f"student_arch takes a budget of {EXPECTED}, got {budget!r}")
    number, unit = Decimal(found[1]), found[2]
    if unit == PERCENT:
        if not 0 < number <= 100:
            raise ValueError(f"A budget in percent of the teacher must be above 0% and at most 100%, got {budget!r}")
    elif not 1 <= number * UNITS[unit] <= MAX_BYTES:
        raise ValueError(f"A budget in bytes must be at least 1B and at most {MAX_BYTES // 1000**2}MB, got {budget!r}")
    return number, unit


def budget_nbytes(budget: str, teacher_nbytes: int | None = None) -> int:
    """
    The bytes of a budget, rounded down.

    :param budget: such as ``"2kB"``
    :param teacher_nbytes: bytes of the teacher's actor in float32, ``None`` without a teacher
    :raises ValueError: the budget is malformed, or is in percent where there is no teacher
    """
    number, unit = check_budget(budget)
    if unit != PERCENT:
        return int(number * UNITS[unit])
    if teacher_nbytes is None:
        raise ValueError(
            f"student_arch={budget!r} is a share of the teacher's actor, and there is no teacher here. Give bytes, as in '2kB'"
        )
    return int(number * teacher_nbytes / 100)


def next_budget(budget: str) -> str | None:
    """
    Twice a budget.

    :param budget: a budget that may come from a file
    :return: ``None`` where there is none
    """
    try:
        number, unit = check_budget(budget)
        check_budget(larger := f"{(2 * number).normalize():f}{unit}")
    except ValueError:
        return None
    return larger


def check_arch(
    student_arch: str | StudentArch | Mapping[str, Any],
    weight_bits: int | tuple[int, ...] | None = None,
    activation_bits: int | None = None,
) -> StudentArch:
    """
    Refuse a size that no student has, before its spaces are known.

    :param student_arch: see :func:`choose_arch`
    :param weight_bits: see :func:`choose_arch`
    :param activation_bits: see :func:`choose_arch`
    :return: the architecture; of a budget only the bits
    :raises ValueError: an unknown name, field or value, or a malformed budget
    :raises TypeError: any other type
    """
    if not is_budget(student_arch):
        return make_arch(student_arch, weight_bits, activation_bits)
    check_budget(str(student_arch))
    return StudentArch().with_bits(weight_bits, activation_bits)


def choose_arch(
    student_arch: str | StudentArch | Mapping[str, Any],
    weight_bits: int | tuple[int, ...] | None,
    activation_bits: int | None,
    task: StudentTask,
    teacher_nbytes: int | None = None,
) -> StudentArch:
    """
    The architecture for a name, a budget, a dict of fields or a ``StudentArch``.

    :param student_arch: a budget such as ``"2kB"``, or what :func:`~sb3_qpd.students.architectures.make_arch` takes
    :param weight_bits: bits of the weights instead of the architecture's own, or of the rule's
    :param activation_bits: bits of the activations instead of the architecture's own
    :param task: what the student sees and answers
    :param teacher_nbytes: bytes of the teacher's actor in float32, ``None`` without a teacher
    :raises ValueError: an unknown name, field or value, or a budget that nothing fits
    :raises TypeError: any other type
    """
    if not is_budget(student_arch):
        sized = make_arch(student_arch, weight_bits, activation_bits, task.image_shapes)
        return sized.with_memory(task.history, task.history_actions)
    n_bytes = budget_nbytes(str(student_arch), teacher_nbytes)
    if FLOAT_BITS in (weight_bits, activation_bits):
        raise ValueError(
            f"student_arch={student_arch!r} counts bytes of integers, {FLOAT_BITS} bits are float: give 2 to 8 bits"
        )
    for rule in IMAGE_RULE if task.image_shapes else VECTOR_RULE:
        if arch := _widest(rule, n_bytes, task, weight_bits, activation_bits):
            return arch
    raise BudgetError(_describe_smallest(str(student_arch), n_bytes, task, weight_bits, activation_bits, teacher_nbytes))


def describe_choice(budget: str, arch: StudentArch, task: StudentTask, teacher_nbytes: int | None = None) -> str:
    """
    What was chosen for a budget, in one line.

    :param budget: such as ``"2kB"``
    :param arch: the architecture that was chosen
    :param task: see :func:`choose_arch`
    :param teacher_nbytes: see :func:`choose_arch`
    """
    n_bytes = student_nbytes(arch, task)
    of_all = f"{n_bytes:,} of {budget_nbytes(budget, teacher_nbytes):,} bytes"
    return f"{budget}: {arch.describe(bool(task.image_shapes))}, {of_all}"


def _widest(
    rule: SizeRule, n_bytes: int, task: StudentTask, weight_bits: int | tuple[int, ...] | None, activation_bits: int | None
) -> StudentArch | None:
    """The widest student of a rule that fits, ``None`` where none does."""

    def make(width: int, units: int | None = None) -> StudentArch:
        arch = _arch_of(rule, width, task, units)
        return arch.with_bits(weight_bits, activation_bits)

    def fits(arch: StudentArch) -> bool:
        return student_nbytes(arch, task) <= n_bytes

    try:
        width = _largest(lambda width: fits(make(width)), rule.least, rule.most)
    except ValueError:  # weight_bits names another number of layers
        return None
    if width is None:
        return None
    if not task.image_shapes:
        return make(width)
    return make(width, _largest(lambda units: fits(make(width, units)), rule.units * width, MAX_UNITS))


def _largest(fits: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number that fits, by bisection; ``None`` where the least does not."""
    if not fits(least):
        return None
    low, high = least, most + 1  # low fits, high does not count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _arch_of(rule: SizeRule, width: int, task: StudentTask, units: int | None = None) -> StudentArch:
    """
    A student of a rule.

    :param rule: kind of student
    :param width: units of each hidden layer; for images, channels of the first convolution
    :param task: what it sees and answers
    :param units: units of the layer after the convolutions, ``None`` for the fewest
    """
    bits = rule.weight_bits, rule.activation_bits
    memory = task.history or 1, bool(task.history_actions)
    if not task.image_shapes:
        return StudentArch((width,) * rule.n_layers, (), (), *bits, *memory)
    conv = tuple((n * width, *kernel) for n, kernel in zip(CHANNELS, _kernels_for(task), strict=True))
    has_vectors = len(task.groups) > len(task.image_shapes)
    hidden = (VECTOR_UNITS * width,) * rule.n_layers if has_vectors else ()
    return StudentArch(hidden, conv, (rule.units * width if units is None else units,), *bits, *memory)


def _kernels_for(task: StudentTask) -> tuple[tuple[int, int], ...]:
    """The first kernels that fit all images and leave few positions; without such, those that leave the fewest."""
    n_positions = {}
    for kernels in KERNELS:
        conv = tuple((1, *kernel) for kernel in kernels)
        ends = [conv_output_sides(conv, shape[1:]) for shape in task.image_shapes]
        if all(min(end) >= 1 for end in ends):
            n_positions[kernels] = max(math.prod(end) for end in ends)
    few = (kernels for kernels, n in n_positions.items() if n <= MAX_POSITIONS)
    return next(few, min(n_positions, key=lambda kernels: n_positions[kernels]))


def _describe_smallest(
    budget: str,
    n_bytes: int,
    task: StudentTask,
    weight_bits: int | tuple[int, ...] | None,
    activation_bits: int | None,
    teacher_nbytes: int | None,
) -> str:
    """The message for a budget that nothing fits. It names the smallest student there is."""
    smallest: list[tuple[int, StudentArch]] = []
    for rule in (replace(one, least=min(one.least, 1)) for one in (IMAGE_RULE if task.image_shapes else VECTOR_RULE)):
        arch = _arch_of(rule, rule.least, task).with_bits(weight_bits, activation_bits)
        try:
            smallest.append((student_nbytes(arch, task), arch))
        except ValueError:  # weight_bits names another number of layers
            continue
    if not smallest:
        return f"student_arch={budget!r} chooses no student with as many layers as weight_bits={weight_bits} has. Give one"
    least, arch = min(smallest, key=lambda pair: pair[0])
    share = "" if teacher_nbytes is None else f", {100 * least / teacher_nbytes:.2g} % of the teacher"
    least_of_all = f"The smallest student takes {least:,} bytes{share}"
    return f"student_arch={budget!r} is {n_bytes:,} bytes. {least_of_all}: give student_arch={arch.to_json()}"
