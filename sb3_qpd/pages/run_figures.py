"""The figures of a run of ``compress``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sb3_qpd.pages import drawing
from sb3_qpd.pages.drawing import FLOAT, INK, MUTED, RANDOM, STUDENT, TEACHER, Drawing, draw, ticks
from sb3_qpd.pages.run import Layer, Learning, Policy, Run

COLORS = {"random": RANDOM, "teacher": TEACHER, "float": FLOAT, "integer": STUDENT}
MAX_DOTS = 200  # of one policy
MAX_CELLS = 8  # categories up to which a confusion matrix shows its counts


def size_and_return(run: Run) -> Drawing:
    """
    Figure 1 of a run: return against bytes, with the lines of teacher and random policy.

    Where the random policy is far below, a second axis shows it, and the first one all others enlarged.

    :param run: the run
    """
    sized = [policy for policy in run.policies if policy.n_bytes]
    zoomed = is_far(run.random, sized)
    sizes = [policy.n_bytes or 1 for policy in sized]
    # policies of the same size stand beside each other
    placed = [
        (size * 1.08 ** sizes[:i].count(size), policy) for i, (size, policy) in enumerate(zip(sizes, sized, strict=True))
    ]

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        rows = canvas.subplots(2 if zoomed else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1.3] if zoomed else [1])
        upper, lower = rows[0, 0], rows[-1, 0]
        for axes in {upper, lower}:
            random = None if zoomed and axes is upper else run.random
            lines(axes, run.policy("teacher"), random, run.margin if axes is upper else None)
            for x, policy in placed:
                color = COLORS.get(policy.key, MUTED)
                error_bar(axes, x, policy.mean, policy.interval, color, "o", 8 if axes is upper else 5)
            axes.set_ylabel("return")
            axes.margins(y=0.2)
            axes.yaxis.set_major_locator(ticks(6 if axes is upper else 3))
        upper.set_xlim(*byte_limits(sizes, is_narrow))
        drawing.byte_ticks(upper, 5 if is_narrow else 8)
        lower.set_xlabel("bytes (logarithmic)")
        bars = [(x, float(y)) for x, policy in placed for y in np.linspace(*policy.interval, 24)]
        first = sorted(placed, key=lambda one: one[1].key not in ("integer", "teacher"))
        between = "\n" if is_narrow else " "
        drawing.place_labels(upper, [(x, policy.mean, policy.name.replace(" ", between)) for x, policy in first], bars)
        legend_below(canvas, [upper, lower], is_narrow)

    return draw("size", plot, 4.6 if zoomed else 3.7, 4.9 if zoomed else 3.9)


def is_far(random: Policy | None, others: Sequence[Policy]) -> bool:
    """
    Whether the random policy is so far below the others that an axis for all of them would show no differences.

    :param random: the random policy
    :param others: the other policies
    """
    if random is None or not others:
        return False
    values = [value for policy in others for value in (policy.returns or policy.interval)]
    return max(values) - random.mean > 2 * (max(values) - float(np.quantile(values, 0.02)))


def byte_limits(sizes: Sequence[float], is_narrow: bool) -> tuple[float, float]:
    """
    Limits of an axis of bytes, with room for labels.

    :param sizes: what has to be seen
    :param is_narrow: whether the window is narrow
    """
    room = 5.0 if is_narrow else 2.2
    return min(sizes) / room, max(sizes) * room


def legend_below(canvas: Canvas, all_axes: Sequence[Axes], is_narrow: bool) -> None:
    """
    One legend for several axes, below them.

    :param canvas: the figure
    :param all_axes: the axes
    :param is_narrow: whether the window is narrow
    """
    found = {label: handle for axes in all_axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if found:
        canvas.legend(list(found.values()), list(found), loc="outside lower left", ncols=1 if is_narrow else 3)


def lines(axes: Axes, teacher: Policy | None, random: Policy | None, margin: float | None) -> None:
    """
    Horizontal lines of the teacher with its interval, of what a student may lose, and of the random policy.

    :param axes: what is drawn into
    :param teacher: the teacher
    :param random: the random policy
    :param margin: loss that still counts as equal
    """
    if teacher is not None:
        axes.axhspan(*teacher.interval, color=TEACHER, alpha=0.16, linewidth=0)
        axes.axhline(teacher.mean, color=TEACHER, linewidth=1.5, label="teacher, with its 95 % interval")
        if margin is not None and margin > 0:
            axes.axhline(teacher.mean - margin, color=TEACHER, linewidth=1.2, linestyle=(0, (2, 2)), label="margin")
    if random is not None:
        axes.axhline(random.mean, color=RANDOM, linewidth=1.5, linestyle=(0, (6, 3)), label="random policy")


def error_bar(
    axes: Axes, x: float, mean: float, interval: tuple[float, float], color: str, marker: str, size: float = 8
) -> None:
    """
    A point with its interval.

    :param axes: what is drawn into
    :param x: place on the horizontal axis
    :param mean: place on the vertical axis
    :param interval: both ends of the interval
    :param color: color of point and bar
    :param marker: form of the point
    :param size: its size in points
    """
    axes.plot([x, x], interval, color=color, linewidth=2, solid_capstyle="butt")
    axes.plot([x], [mean], marker, color=color, markersize=size, markeredgecolor=drawing.SURFACE, markeredgewidth=1)


def distributions(policies: Sequence[Policy], margin_line: float | None = None) -> Drawing:
    """
    Distributions of returns side by side: each episode a dot, with median, quartiles and mean.

    :param policies: policies with returns
    :param margin_line: least mean return of a student that counts as equal
    """
    shown = policies[::-1]

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        axes = canvas.subplots()
        rng = np.random.default_rng(0)
        for row, policy in enumerate(shown):
            color = COLORS.get(policy.key, MUTED)
            returns = np.sort(policy.returns)
            dots = returns if len(returns) <= MAX_DOTS else np.quantile(returns, np.linspace(0, 1, MAX_DOTS))
            axes.plot(dots, row - 0.12 - 0.26 * rng.random(len(dots)), "o", color=color, markersize=3.2, alpha=0.45, mew=0)
            low, middle, high = np.quantile(returns, [0.25, 0.5, 0.75])
            axes.plot([low, high], [row + 0.14] * 2, color=color, linewidth=7, alpha=0.55, solid_capstyle="butt")
            axes.plot([middle] * 2, [row + 0.03, row + 0.25], color=INK, linewidth=1.8)
            axes.plot([policy.mean], [row + 0.14], "D", color=INK, markersize=5, markeredgecolor=drawing.SURFACE)
        if margin_line is not None:
            axes.axvline(margin_line, color=TEACHER, linewidth=1.2, linestyle=(0, (2, 2)))
        names = [policy.name.replace(" ", "\n", 1) if is_narrow else policy.name for policy in shown]
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(-0.6, len(shown) - 0.5)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(ticks(4 if is_narrow else 8))
        axes.set_xlabel("return of an episode")

    return draw("returns", plot, 0.8 + 0.62 * len(shown))


def learning_curves(learning: Learning, student: Policy, teacher: Policy, random: Policy | None, has_kl: bool) -> Drawing:
    """
    Curves over the steps, one below the other: validation return, loss, distance from the teacher. A band is the transition.

    :param learning: the record
    :param student: the finished integer student, for the point at the end
    :param teacher: the teacher, for its line
    :param random: the random policy, for its line
    :param has_kl: whether the distance is a divergence, else an error of the action
    """
    columns = learning.columns
    distance = "kl" if has_kl else "action_error"
    parts = [name for name in ("scores", "actor_loss", distance, "mean_weight_bits") if name == "scores" or name in columns]
    parts = parts if learning.scores else parts[1:]
    end = max([step or 0 for step in columns["steps"]] + [score[0] for score in learning.scores])
    titles = {
        "scores": "Return of the integer student on validation episodes",
        "actor_loss": "Loss of the action (and, dashed, of the value)",
        "kl": "KL divergence of the integer student from its teacher, in nats",
        "action_error": "Error of the integer student's action, in its units",
        "mean_weight_bits": "Mean bits of a weight in training",
    }

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        grid = canvas.subplots(len(parts), 1, sharex=True, squeeze=False)[:, 0]
        for axes, part in zip(grid, parts, strict=True):
            _transition_band(axes, columns)
            axes.set_title(_wrapped(titles[part], is_narrow))
            if part == "scores":
                _score_curve(axes, learning, teacher, random)
                _final_score(axes, student, end)
                cut_below(axes, teacher, random)
            else:
                _column_curve(axes, columns, part)
        grid[-1].set_xlim(0, max(end, 1) * 1.02)
        steps_axis(grid[-1], is_narrow)

    return draw("learning", plot, 0.6 + 1.75 * len(parts), 0.6 + 1.75 * len(parts))


def steps_axis(axes: Axes, is_narrow: bool) -> None:
    """
    Ticks and label of an axis of environment steps.

    :param axes: axes, whose x axis it is
    :param is_narrow: whether the drawing is for narrow windows
    """
    axes.xaxis.set_major_locator(ticks(4 if is_narrow else 8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda steps, _: f"{steps:,.0f}"))
    axes.set_xlabel("environment steps")


def _wrapped(title: str, is_narrow: bool) -> str:
    """A title in two lines where it is too long for a narrow window."""
    if not is_narrow or len(title) < 42:
        return title
    middle = title.rfind(" ", 0, 42)
    return f"{title[:middle]}\n{title[middle + 1 :]}"


def _transition_band(axes: Axes, columns: dict[str, list[float | None]]) -> None:
    """Darker with the share of the low precision."""
    shares = columns.get("transition")
    if shares is None:
        return
    steps = [0.0, *(step or 0.0 for step in columns["steps"])]
    for begin, end, share in zip(steps, steps[1:], shares, strict=False):
        if share and end > begin:
            axes.axvspan(begin, end, color=STUDENT, alpha=0.14 * min(max(share, 0.0), 1.0), linewidth=0)


def _score_curve(axes: Axes, learning: Learning, teacher: Policy, random: Policy | None) -> None:
    steps, means, intervals, _ = zip(*learning.scores, strict=True)
    low, high = zip(*intervals, strict=True)
    axes.axhline(teacher.mean, color=TEACHER, linewidth=1.5)
    axes.annotate(
        *("teacher", (0, teacher.mean), (4, 3)),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=TEACHER,
        fontsize=9,
    )
    if random is not None:
        axes.axhline(random.mean, color=RANDOM, linewidth=1.5, linestyle=(0, (6, 3)))
    axes.fill_between(steps, low, high, color=STUDENT, alpha=0.2, linewidth=0)
    axes.plot(steps, means, "o-", color=STUDENT, markersize=4)
    axes.margins(y=0.15)


def _final_score(axes: Axes, student: Policy, steps: float) -> None:
    """The finished student on test episodes. The last validation may be long before the end."""
    axes.plot([steps] * 2, student.interval, color=INK, linewidth=1.5)
    axes.plot([steps], [student.mean], "D", color=INK, markersize=5, markeredgecolor=drawing.SURFACE)


def cut_below(axes: Axes, teacher: Policy | None, random: Policy | None) -> None:
    """
    Cut an axis of returns off below the random policy: a student that has learned little may be far below it.

    :param axes: the axes, after drawing
    :param teacher: the teacher
    :param random: the random policy
    """
    if teacher is not None and random is not None and random.mean < teacher.mean:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], random.mean - 0.3 * (teacher.mean - random.mean)))


def _column_curve(axes: Axes, columns: dict[str, list[float | None]], name: str) -> None:
    pairs = {"actor_loss": ((name, "-"), ("critic_loss", (0, (4, 2))))}.get(name, ((name, "-"),))
    for column, style in pairs:
        if column in columns:
            values = [np.nan if value is None else value for value in columns[column]]
            marker = "o" if np.isfinite(values).sum() == 1 else ""  # a line of one value cannot be seen
            steps = [step or 0 for step in columns["steps"]]
            axes.plot(steps, values, marker=marker, color=INK, linestyle=style, linewidth=1.6, markersize=4)
    if name == "mean_weight_bits":
        axes.set_ylim(0, 34)
        axes.set_yticks([2, 8, 16, 32])
        return
    drawn = [value for column, _ in pairs for value in columns.get(column, ()) if value is not None]
    if drawn and min(drawn) > 0 and max(drawn) > 20 * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_ylim(bottom=min([0.0, *drawn]))
        axes.yaxis.set_major_locator(ticks(4))


def confusion(matrices: Sequence[Sequence[Sequence[int]]]) -> Drawing:
    """
    Confusion matrices: what the student did where the teacher chose an action. Each row is shaded by its shares.

    :param matrices: counts for each dimension of the action, at most four are drawn
    """
    shown = matrices[:4]

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        n_columns = 1 if is_narrow else min(len(shown), 2)
        grid = canvas.subplots(-(-len(shown) // n_columns), n_columns, squeeze=False).ravel()
        for axes in grid[len(shown) :]:
            axes.remove()
        for i, (axes, matrix) in enumerate(zip(grid, shown, strict=False)):
            _matrix(axes, np.array(matrix))
            if len(shown) > 1:
                axes.set_title(f"dimension {i}")

    rows = -(-len(shown) // min(len(shown), 2))
    return draw("agreement", plot, 3.7 * rows, 3.4 * len(shown))


def _matrix(axes: Axes, counts: np.ndarray) -> None:
    n = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.argwhere(counts > 0):
        alpha = 0.08 + 0.42 * float(shares[row, column])
        color = STUDENT if row == column else TEACHER
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, alpha=alpha, linewidth=0))
        if n <= MAX_CELLS:
            axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", fontsize=9, color=INK)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_aspect("equal", anchor="W")
    step = max(1, -(-n // 12))
    axes.set_xticks(range(0, n, step))
    axes.set_yticks(range(0, n, step))
    axes.grid(visible=False)
    axes.set_xlabel("action of the student")
    axes.set_ylabel("action of the teacher")


def box_errors(errors: Sequence[tuple[list[float], float]]) -> Drawing:
    """
    Errors of each dimension of a Box action: quantiles 5, 25, 50, 75 and 95 % of student - teacher.

    :param errors: for each dimension its quantiles and its mean absolute error
    """

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        axes = canvas.subplots()
        axes.axvline(0, color=TEACHER, linewidth=1.5)
        for row, (quantiles, _) in enumerate(errors):
            axes.plot([quantiles[0], quantiles[4]], [row] * 2, color=STUDENT, linewidth=1.5)
            axes.plot([quantiles[1], quantiles[3]], [row] * 2, color=STUDENT, linewidth=7, alpha=0.6, solid_capstyle="butt")
            axes.plot([quantiles[2]], [row], "D", color=INK, markersize=5)
        axes.set_yticks(range(len(errors)), [f"dimension {i}" for i in range(len(errors))])
        axes.set_ylim(len(errors) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(_wrapped("student - teacher, in units of the teacher's spread", is_narrow))

    return draw("agreement", plot, 0.9 + 0.36 * len(errors))


def layer_shares(layers: Sequence[Layer]) -> Drawing:
    """
    Bytes and multiply-accumulates of each layer, side by side, as shares of all.

    :param layers: the costs
    """

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        shape = (3, 1) if is_narrow else (1, 3)
        grid = canvas.subplots(*shape, sharey=True, squeeze=False).ravel()
        names = [layer_name(layer) for layer in layers]
        parts = (
            ("Bytes", [layer.n_bytes for layer in layers], "{:,.0f}"),
            ("Multiply-accumulates", [layer.macs for layer in layers], "{:,.0f}"),
            ("Range used of the output's grid", [100 * layer.ranges.get("range", np.nan) for layer in layers], "{:.0f} %"),
        )
        for axes, (title, values, form) in zip(grid, parts, strict=True):
            axes.barh(range(len(layers)), np.nan_to_num(values), color=STUDENT, alpha=0.75, height=0.62)
            end = max([value for value in values if value == value] + [1e-9])
            for row, value in enumerate(values):
                if value == value:
                    axes.text(value + end * 0.02, row, form.format(value), va="center", fontsize=9, color=INK)
            axes.set_xlim(0, end * 1.38)
            axes.set_title(title)
            axes.set_yticks(range(len(layers)), names)
            axes.set_xticks([])
            axes.tick_params(axis="y", length=0)
            axes.spines["bottom"].set_visible(False)
            axes.grid(visible=False)
        grid[0].set_ylim(len(layers) - 0.4, -0.6)

    height = 0.5 + 0.36 * len(layers)
    return draw("layers", plot, height, 3 * height)


def layer_name(layer: Layer) -> str:
    """
    A layer's name for people.

    :param layer: the layer
    """
    if layer.kind == "input":
        return "input"
    return "head" if layer.kind == "head" else f"{layer.kind} {layer.shape}".replace("fully connected", "dense")


def speeds(run: Run) -> Drawing:
    """
    Time of one action of each form that was measured, on a logarithmic axis.

    :param run: with the rows of ``benchmark.json``
    """
    rows = [(one.name, one.microseconds) for one in run.speeds]

    def plot(canvas: Canvas, is_narrow: bool) -> None:
        axes = canvas.subplots()
        values = [value for _, value in rows]
        axes.set_xscale("log")
        low = min(values) / 3
        axes.set_xlim(low, max(values) * (14 if is_narrow else 4))
        for row, (name, value) in enumerate(rows):
            color = TEACHER if name.startswith("teacher") else FLOAT if name.startswith("float") else STUDENT
            axes.barh(row, value - low, left=low, color=color, alpha=0.75, height=0.62)
            axes.text(value * 1.08, row, f"{value:,.3g} µs", va="center", fontsize=9, color=INK)
        names = [name.replace(", ", ",\n", 1) if is_narrow else name for name, _ in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_major_locator(LogLocator(numticks=4 if is_narrow else 7))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("µs per action (logarithmic)")

    return draw("speed", plot, 0.8 + 0.34 * len(rows), 0.8 + 0.5 * len(rows))
