"""The page of a run of ``compress``: what stands in each section."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from sb3_qpd.pages import run_figures as figures
from sb3_qpd.pages.content import Cell, Figure, Page, Section, Table, cell, facts_table, row, times
from sb3_qpd.pages.run import Policy, Run

HEADLINES = {
    "non_inferior": "The student plays as well as its teacher",
    "inferior": "The student plays worse than its teacher",
    "inconclusive": "Undecided: these episodes do not show whether the student plays as well as its teacher",
    "no_claim": "No claim: the teacher itself hardly plays better than random actions",
    "unknown": "The report names no verdict",
}
RETURNS_CAPTION = (
    "Figure 3. Returns of single episodes. Thick bars reach over the middle half, a line is the median, a diamond the mean."
)
KINDS = {"non_inferior": "good", "inferior": "bad"}


def run_page(run: Run) -> Page:
    """
    The page of a run.

    :param run: the run
    """
    return Page(
        title=f"{run.student} {run.bits} student of {run.teacher} on {run.env_id}",
        headline=headline(run),
        kind=KINDS.get(run.verdict, "open"),
        explanation=explanation(run),
        cards=cards(run),
        sections=[section for section in (*run_sections(run), *ending(run)) if section is not None],
    )


def headline(run: Run) -> str:
    """
    The verdict in one sentence, with the sizes where the student is as good.

    :param run: the run
    """
    sentence, ratio = HEADLINES[run.verdict], _ratio(run)
    if run.verdict != "non_inferior" or ratio is None or ratio <= 1:
        return sentence + "."
    student, teacher = run.policy("integer").n_bytes or 0, run.policy("teacher").n_bytes or 0
    return f"{sentence} and is {times(ratio)} times smaller: {student:,.0f} bytes instead of {teacher:,.0f}."


def _ratio(run: Run) -> float | None:
    student, teacher = run.policy("integer").n_bytes, run.policy("teacher").n_bytes
    return teacher / student if student and teacher else None


def explanation(run: Run) -> str:
    """
    What the verdict rests on.

    :param run: the run
    """
    student, teacher = run.policy("integer"), run.policy("teacher")
    text = f"Mean return of {student.episodes:,} episodes: student {student.mean:,.2f}, teacher {teacher.mean:,.2f}"
    text += "." if run.random is None else f", random actions {run.random.mean:,.2f}."
    if run.difference is not None and run.difference_interval is not None and run.margin is not None:
        low, high = run.difference_interval
        text += (
            f" The difference is {run.difference:+,.2f}, and with 95 % confidence between {low:+,.2f} and {high:+,.2f}."
            f" A loss of up to {run.margin:,.2f} counts as equal."
        )
    return text


def cards(run: Run) -> list[tuple[str, str]]:
    """
    The key figures.

    :param run: the run
    """
    student, teacher, ratio = run.policy("integer"), run.policy("teacher"), _ratio(run)
    found = [(f"{student.mean:,.1f}", f"return of the student (teacher: {teacher.mean:,.1f})")]
    if student.n_bytes:
        found.append((figures.drawing.bytes_label(student.n_bytes), "size of the student, weights and all"))
    if ratio is not None:
        found.append((f"1/{times(ratio)}" if ratio > 1 else f"{1 / ratio:.1f}", "of its teacher's size in float32"))
    if student.macs:
        found.append((f"{student.macs:,.0f}", "multiply-accumulates for one action"))
    if run.agreement is not None and run.agreement_unit == "share":
        found.append((f"{100 * run.agreement:.1f} %", "of actions are the teacher's"))
    return found


def run_sections(run: Run) -> list[Section | None]:
    """
    The sections with figures.

    :param run: the run
    """
    return [_film(run), _size(run), _learning(run), _returns(run), _agreement(run), _layers(run), _speed(run)]


def ending(run: Run) -> list[Section | None]:
    """
    How to repeat the run: command, settings, versions, checksums, notes.

    :param run: the run
    """
    note = "The folder does not hold the command that made it." if not run.command else "The command that made this folder:"
    tables = [facts_table("facts", "Settings and checksums", run.facts.items())]
    if run.versions:
        tables.append(facts_table("versions", "Versions", run.versions.items()))
    notes = Section("notes", "What to know before believing it", notes=run.notes) if run.notes else None
    return [notes, Section("repeat", "How to repeat it", (note,), tables=tables, command=run.command)]


def policy_table(name: str, policies: Sequence[Policy]) -> Table:
    """
    A table of policies: returns with intervals, sizes and times.

    :param name: unique name in the page
    :param policies: its rows
    """
    header = ("policy", "return", "95 % from", "to", "episodes", "bytes", "multiply-accumulates", "µs per action in Python")
    rows = [
        row(
            *(policy.name, cell(policy.mean), cell(policy.interval[0]), cell(policy.interval[1])),
            *(cell(policy.episodes, "{:,}"), cell(policy.n_bytes, "{:,.0f}"), cell(policy.macs, "{:,.0f}")),
            cell(policy.microseconds, "{:,.0f}"),
        )
        for policy in policies
    ]
    return Table(name, "Returns and sizes", header, rows)


def _size(run: Run) -> Section:
    sized = [policy for policy in run.policies if policy.n_bytes]
    table = policy_table("size", run.policies)
    texts = ("How much memory each policy takes, and how well it plays.",)
    if not sized:
        return Section("size", "Return and size", texts, tables=[table])
    alt = "; ".join(f"{one.name}: return {one.mean:,.1f} at {one.n_bytes:,.0f} bytes" for one in sized)
    caption = "Figure 1. Mean return against size. Bars are 95 % intervals. Up and to the left is better."
    return Section("size", "Return and size", texts, [Figure("size", caption, alt, figures.size_and_return(run), [table])])


def _film(run: Run) -> Section | None:
    if run.film is None:
        return None
    still = _first_picture(run.film)
    if not still:
        return None
    caption = "Left the teacher, right the integer student, from the same first state."
    alt = f"A film of the teacher and the integer student at play on {run.env_id}, side by side."
    return Section("film", "Side by side", figures=[Figure("film", caption, alt, picture=run.film, still=still)])


def _first_picture(film: bytes) -> bytes:
    """The first picture as a PNG; empty where it is no GIF, or one of more than 4,000 pixels a side."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(film), formats=["GIF"]) as picture:
            if max(picture.size) > 4_000:
                return b""
            buffer = io.BytesIO()
            picture.convert("RGB").save(buffer, "PNG")
            return buffer.getvalue()
    except Exception:  # of any kind: decoders raise their own on damaged files
        return b""


def _learning(run: Run) -> Section | None:
    learning = run.learning
    if learning is None or not (learning.has_rows or learning.scores):
        return None
    columns, has_kl = learning.columns, "kl" in learning.columns
    names = {
        "steps": "steps",
        "actor_loss": "loss of the action",
        "critic_loss": "loss of the value",
        **({"kl": "KL in nats"} if has_kl else {"action_error": "error of the action"}),
        "agreement": "equal actions",
        "mean_weight_bits": "mean bits of a weight",
        "transition": "progress of the transition",
    }
    shown = [name for name in names if name in columns]
    rows = [
        row(*(cell(value, "{:,.0f}" if name == "steps" else "{:.4g}") for name, value in zip(shown, values, strict=True)))
        for values in zip(*(columns[name] for name in shown), strict=True)
    ]
    scores = [
        row(cell(steps, "{:,.0f}"), cell(mean), cell(low), cell(high), cell(n, "{:,}"))
        for steps, mean, (low, high), n in learning.scores
    ]
    validation = Table(
        *("validation", "Return of the integer student on validation episodes"),
        *(("steps", "return", "95 % from", "to", "episodes"), scores),
    )
    parts = [f"last validation return {learning.scores[-1][1]:,.1f}"] if learning.scores else []
    alt = f"Curves over the environment steps. {'; '.join(parts) or 'No validation was played'}."
    caption = (
        "Figure 2. How the student learned. The shaded band is the transition: the stronger, the lower the precision. Losses "
        "are of single batches at the precision of training; return and divergence are of the integers. The "
        "diamond is the finished student on test episodes."
    )
    drawing = figures.learning_curves(learning, run.policy("integer"), run.policy("teacher"), run.random, has_kl)
    record = Table("learning", "The record of learning", [names[name] for name in shown], rows)
    figure = Figure("learning", caption, alt, drawing, [record, *([validation] if scores else [])])
    return Section("learning", "Learning", figures=[figure])


def _returns(run: Run) -> Section | None:
    shown = [policy for policy in run.policies if policy.returns]
    if not shown:
        return None
    header = ("policy", "episodes", "least", "quarter", "median", "three quarters", "largest")
    quantiles = [np.quantile(policy.returns, [0, 0.25, 0.5, 0.75, 1]) for policy in shown]
    rows = [
        row(policy.name, cell(len(policy.returns), "{:,}"), *(cell(float(value)) for value in values))
        for policy, values in zip(shown, quantiles, strict=True)
    ]
    n = max(len(policy.returns) for policy in shown)
    columns = [[*map(cell, policy.returns), *[Cell("")] * (n - len(policy.returns))] for policy in shown]
    single = [row(cell(i, "{:,}"), *values) for i, values in enumerate(zip(*columns, strict=True))]
    episodes = Table("episodes", "Return of each episode", ("episode", *(policy.name for policy in shown)), single)
    alt = "; ".join(f"{one.name}: median {values[2]:,.1f}" for one, values in zip(shown, quantiles, strict=True))
    caption = RETURNS_CAPTION
    line = run.policy("teacher").mean - run.margin if run.margin is not None else None
    others = [policy for policy in shown if policy.key != "random"]
    drawn = others if figures.is_far(run.random, others) else shown
    if drawn is not shown and run.random is not None:
        caption += f" The random policy, with a mean of {run.random.mean:,.1f}, is too far away to be drawn."
    if line is not None:
        caption += " The dotted line is the least mean that counts as equal to the teacher's."
    figure = Figure(
        "returns", caption, alt, figures.distributions(drawn, line), [Table("returns", "Quantiles", header, rows), episodes]
    )
    return Section("returns", "Distribution of returns", figures=[figure])


def _agreement(run: Run) -> Section | None:
    if run.confusion:
        return _confusion(run)
    if not run.errors:
        return None
    header = ("dimension", "5 %", "25 %", "median", "75 %", "95 %", "mean absolute error")
    rows = [
        row(cell(i, "{:.0f}"), *(cell(value, "{:.3f}") for value in quantiles), cell(mean, "{:.3f}"))
        for i, (quantiles, mean) in enumerate(run.errors)
    ]
    worst = max(range(len(run.errors)), key=lambda i: run.errors[i][1])
    alt = (
        f"Errors of {len(run.errors)} dimensions; the largest mean error is {run.errors[worst][1]:.3f}, in dimension {worst}."
    )
    caption = (
        "Figure 4. Errors of the student's action for each dimension, on observations of its own episodes: 5 to 95 % (thin), "
        "the middle half (thick), the median (diamond). The unit is the standard deviation of the teacher's actions."
    )
    figure = Figure("agreement", caption, alt, figures.box_errors(run.errors), [Table("agreement", "Errors", header, rows)])
    return Section("agreement", "Agreement by action", figures=[figure])


def _confusion(run: Run) -> Section:
    rows = [
        row(
            f"dimension {d}, teacher {i}" if len(run.confusion) > 1 else f"teacher {i}", *(cell(one, "{:,}") for one in counts)
        )
        for d, matrix in enumerate(run.confusion)
        for i, counts in enumerate(matrix)
    ]
    n = max(map(len, run.confusion))
    rows = [[*cells, *[Cell("")] * (n + 1 - len(cells))] for cells in rows]
    table = Table("agreement", "Counts of actions", ("", *(f"student {i}" for i in range(n))), rows)
    total = sum(map(sum, (row for matrix in run.confusion for row in matrix)))
    same = sum(matrix[i][i] for matrix in run.confusion for i in range(len(matrix)))
    alt = f"Student and teacher chose the same action {same:,} times of {total:,}."
    caption = (
        "Figure 4. What the student chose (column) where the teacher chose an action (row), on observations of the student's "
        "own episodes. On the diagonal both agree. The stronger the color, the larger the share of the row."
    )
    figure = Figure("agreement", caption, alt, figures.confusion(run.confusion), [table])
    return Section("agreement", "Agreement by action", (alt,), [figure])


def _layers(run: Run) -> Section | None:
    if not run.layers:
        return None
    header = (
        *(
            "layer",
            "weights",
            "bits of weights",
            "bytes",
            "multiply-accumulates",
            "range of weights used",
            "range of outputs used",
        ),
        *("outputs at an end", "outputs that never change", "bits of the accumulator"),
    )
    names = ("weight_range", "range", "saturated", "idle")
    rows = [
        row(
            *(figures.layer_name(layer), layer.shape, layer.weight_bits, cell(layer.n_bytes, "{:,.0f}")),
            cell(layer.macs, "{:,.0f}"),
            *(Cell("") if name not in layer.ranges else _percent(layer.ranges[name]) for name in names),
            layer.accumulator_bits,
        )
        for layer in run.layers
    ]
    largest = max(run.layers, key=lambda layer: layer.n_bytes)
    alt = f"{len(run.layers)} layers; most bytes are in {figures.layer_name(largest)}: {largest.n_bytes:,.0f}."
    caption = "Figure 5. What each layer costs, and how much of its integer grid its outputs use on real observations."
    drawing = figures.layer_shares(run.layers)
    figure = Figure("layers", caption, alt, drawing, [Table("layers", "Costs of the layers", header, rows)])
    return Section("layers", "Cost of each layer", figures=[figure])


def _percent(share: float) -> Cell:
    return Cell(f"{100 * share:.1f} %", share)


def _speed(run: Run) -> Section | None:
    boards = _boards(run)
    if not run.speeds:
        return Section("speed", "Time and memory", tables=boards) if boards else None
    header = ("form", "µs per action", "bytes of the file", "peak memory in kB")
    rows = [
        row(one.name, cell(one.microseconds, "{:,.1f}"), cell(one.n_bytes, "{:,.0f}"), cell(one.memory / 1000, "{:,.1f}"))
        for one in run.speeds
    ]
    fastest = min(run.speeds, key=lambda one: one.microseconds)
    alt = f"The fastest of {len(run.speeds)} forms is {fastest.name}: {fastest.microseconds:,.3g} µs per action."
    caption = (
        "Figure 6. Time of one action at batch size 1 on one thread, median. Peak memory is of a fresh process, libraries "
        "included; for C it is the RAM of the code alone."
    )
    figure = Figure("speed", caption, alt, figures.speeds(run), [Table("speed", "Time and memory of each form", header, rows)])
    return Section("speed", "Time and memory", figures=[figure], tables=boards)


def _boards(run: Run) -> list[Table]:
    if not run.boards:
        return []
    header = list(run.boards[0])
    rows = [row(*(board.get(name, "") for name in header)) for board in run.boards]
    return [Table("boards", "C on emulated microcontrollers", header, rows)]
