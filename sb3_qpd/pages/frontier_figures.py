"""The figures of a search and of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from sb3_qpd.pages import drawing
from sb3_qpd.pages.drawing import INK, MUTED, RANDOM, SURFACE, TEACHER, Drawing, color_of, draw, marker_of, ticks
from sb3_qpd.pages.frontier import Frontier, Trial
from sb3_qpd.pages.run import Policy
from sb3_qpd.pages.run_figures import byte_limits, cut_below, error_bar, is_far, legend_below, lines, steps_axis

MAX_CURVES = 400  # more are a thicket, and a large page


@dataclass(frozen=True)
class Student:
    """
    A point of Figure 1.

    :param name: its label
    :param bits: bits of its weights, which color it
    :param n_bytes: its size in bytes
    :param mean: its mean return
    :param interval: 95 % interval of that mean
    """

    name: str
    bits: int | None
    n_bytes: float
    mean: float
    interval: tuple[float, float]


def size_and_return(
    students: Sequence[Student],
    teacher: Policy | None,
    random: Policy | None,
    margin: float | None,
    trials: Sequence[Trial] = (),
    winner: Student | None = None,
    unit: str = "return",
    connected: bool = True,
) -> Drawing:
    """
    Figure 1: return against bytes, points colored by bits, every trial faint.

    :param students: the strong points
    :param teacher: the teacher, for its line
    :param random: the random policy, for its line
    :param margin: loss that still counts as equal
    :param trials: the faint points
    :param winner: the student with a ring around it
    :param unit: name of the vertical axis
    :param connected: whether a line joins the students, which are sorted by bytes
    """
    faint = [(trial.n_bytes, trial.mean, trial.bits) for trial in trials if trial.n_bytes and trial.mean is not None]
    sizes = [one.n_bytes for one in students] + [n_bytes for n_bytes, _, _ in faint]

    zoomed = is_far(random, [Policy("", one.name, one.mean, one.interval, 0, [], None, None, None) for one in students])

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        rows = canvas.subplots(2 if zoomed else 1, 1, sharex=True, squeeze=False, height_ratios=[1.4, 1] if zoomed else [1])
        upper, lower = rows[0, 0], rows[-1, 0]
        for axes in rows[:, 0]:
            lines(axes, teacher, None if axes is upper and zoomed else random, margin if axes is upper else None)
            _faint_points(axes, faint)
            if connected:
                x, y = [one.n_bytes for one in students], [one.mean for one in students]
                axes.plot(x, y, color=MUTED, linewidth=1.2, zorder=2)
            for one in students:
                error_bar(axes, one.n_bytes, one.mean, one.interval, color_of(one.bits), marker_of(one.bits), 9)
            axes.set_ylabel(unit)
        if winner is not None:
            upper.plot([winner.n_bytes], [winner.mean], "o", ms=19, mfc="none", mec=INK, mew=1.6)
            upper.plot([], [], "o", ms=10, mfc="none", mec=INK, mew=1.6, label="winner")
        upper.set_xlim(*byte_limits(sizes, is_narrow))
        drawing.byte_ticks(upper, 5 if is_narrow else 8)
        _limit(upper, students, [], teacher, None if zoomed else random, margin)
        if not zoomed or faint:
            _limit(lower, students, [mean for _, mean, _ in faint], teacher, random, margin)
        upper.yaxis.set_major_locator(ticks(6))
        lower.yaxis.set_major_locator(ticks(5))
        lower.set_xlabel("bytes (logarithmic)")
        for bits in sorted({one.bits for one in students} | {bits for _, _, bits in faint}, key=lambda one: -(one or 0)):
            upper.plot([], [], marker_of(bits), color=color_of(bits), mec=SURFACE, ms=8, label=f"{bits or 'other'} bits")
        avoid = [(n_bytes, mean) for n_bytes, mean, _ in faint] if len(faint) < 200 else []
        avoid += [(one.n_bytes, float(y)) for one in students for y in np.linspace(*one.interval, 24)]
        drawing.place_labels(upper, [(one.n_bytes, one.mean, one.name) for one in students], avoid)
        legend_below(canvas, [upper, lower], is_narrow)

    return draw("size", plot, 6.0 if zoomed else 4.6, 6.6 if zoomed else 5.2)


def _faint_points(axes: Axes, points: Sequence[tuple[float, float, int | None]]) -> None:
    for bits in {bits for _, _, bits in points}:
        places = [(n_bytes, mean) for n_bytes, mean, own in points if own == bits]
        axes.plot(*zip(*places, strict=True), marker_of(bits), color=color_of(bits), alpha=0.35, ms=5, mew=0)


def _limit(
    axes: Axes,
    students: Sequence[Student],
    means: Sequence[float],
    teacher: Policy | None,
    random: Policy | None,
    margin: float | None,
) -> None:
    """All students, both lines and the margin are inside; of the trials only those that are not far below random actions."""
    values = [end for one in students for end in one.interval]
    values += [*teacher.interval, teacher.mean - (margin or 0)] if teacher is not None else []
    values += [random.mean] if random is not None else []
    values = values or [*means] or [0.0, 1.0]
    low, high = min(values), max([*values, *means])
    if means and random is None:
        low = min(low, *means)
    room = 0.08 * max(high - low, 1e-9)
    axes.set_ylim(low - room, high + room)


def trial_curves(frontier: Frontier) -> Drawing:
    """
    Validation returns of all trials over their steps. A cross is where one was stopped early.

    :param frontier: the search
    """
    scored = [trial for trial in frontier.trials if trial.scores]
    shown = sorted(scored, key=lambda trial: trial.state != "finished")[:MAX_CURVES]

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        axes = canvas.subplots()
        if frontier.teacher is not None:
            axes.axhline(frontier.teacher.mean, color=TEACHER, linewidth=1.5, label="teacher")
        if frontier.random is not None:
            axes.axhline(frontier.random.mean, color=RANDOM, linewidth=1.5, linestyle=(0, (6, 3)), label="random policy")
        for trial in shown:
            steps, means = zip(*trial.scores, strict=True)
            is_finished = trial.state == "finished"
            color = color_of(trial.bits)
            axes.plot(steps, means, color=color, linewidth=1.6 if is_finished else 1, alpha=0.85 if is_finished else 0.45)
            axes.plot(steps[-1], means[-1], marker_of(trial.bits) if is_finished else "x", color=color, ms=5)
        for bits in sorted({trial.bits for trial in shown}, key=lambda one: -(one or 0)):
            axes.plot([], [], marker_of(bits) + "-", color=color_of(bits), label=f"{bits or 'other'} bits")
        if any(trial.state != "finished" for trial in shown):
            axes.plot([], [], "x", color=MUTED, label="stopped early")
        _finish_curves(canvas, axes, frontier.teacher, frontier.random, is_narrow)

    return draw("trials", plot, 4.2, 4.6)


def validation_curves(
    curves: Sequence[tuple[str, Sequence[tuple[float, float]]]], teacher: Policy | None, random: Policy | None
) -> Drawing:
    """
    Validation returns of several runs over their steps.

    :param curves: (name, (steps, mean return) of each validation)
    :param teacher: the teacher, for its line
    :param random: the random policy, for its line
    """
    styles = [(color_of(bits), dashes) for dashes in ("-", (0, (5, 2)), (0, (1, 1.5))) for bits in (8, 4, 3, 2, None)]

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        axes = canvas.subplots()
        if teacher is not None:
            axes.axhline(teacher.mean, color=TEACHER, linewidth=1.5, label="teacher")
        if random is not None:
            axes.axhline(random.mean, color=RANDOM, linewidth=1.5, linestyle=(0, (6, 3)), label="random policy")
        for (name, scores), (color, dashes) in zip(curves, styles, strict=False):
            steps, means = zip(*scores, strict=True)
            axes.add_line(Line2D(steps, means, color=color, linestyle=dashes, marker="o", markersize=4, label=name))  # type: ignore[arg-type]
        axes.autoscale_view()
        _finish_curves(canvas, axes, teacher, random, is_narrow)

    return draw("curves", plot, 3.8, 4.4)


def _finish_curves(canvas: Canvas, axes: Axes, teacher: Policy | None, random: Policy | None, is_narrow: bool) -> None:
    """The axes and the legend of validation returns over steps."""
    cut_below(axes, teacher, random)
    axes.set_xlim(left=0)
    steps_axis(axes, is_narrow)
    axes.set_ylabel("validation return")
    legend_below(canvas, [axes], is_narrow)
