"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sb3_qpd.pages import frontier_figures as figures
from sb3_qpd.pages import run_figures
from sb3_qpd.pages.content import Figure, Page, Section, Table, cell, facts_table, row
from sb3_qpd.pages.frontier_page import WORDS
from sb3_qpd.pages.run import Policy, Run
from sb3_qpd.pages.run_page import RETURNS_CAPTION

MAX_RUNS = 15  # that can be told apart


def comparison_page(runs: Sequence[Run]) -> Page:
    """
    The page of several runs. Returns are compared where all runs have the same environment and teacher, else shares of the way
    from the random policy to the teacher.

    :param runs: the runs
    :raises ValueError: there are too many
    """
    if len(runs) > MAX_RUNS:
        raise ValueError(f"One page compares at most {MAX_RUNS} runs, got {len(runs)}. Name fewer folders")
    is_same = len({(run.env_id, run.checksum, run.teacher) for run in runs}) == 1
    good = [run for run in runs if run.verdict == "non_inferior"]
    smallest = min(good, key=lambda run: run.policy("integer").n_bytes or float("inf"), default=None)
    headline = f"{len(good)} of {len(runs)} students play as well as their teachers"
    if smallest is not None and is_same and smallest.policy("integer").n_bytes:
        headline += f"; the smallest of them has {smallest.policy('integer').n_bytes:,.0f} bytes, in {smallest.label}"
    sections = [_size(runs, is_same), _learning(runs) if is_same else None, _returns(runs) if is_same else None, _repeat(runs)]
    return Page(
        title=f"{len(runs)} students compared",
        headline=headline + ".",
        kind="good" if len(good) == len(runs) else "open",
        explanation=f"All students learned from {runs[0].teacher} on {runs[0].env_id}."
        if is_same
        else "The students learned from different teachers: 100 % is the teacher's return, 0 % that of random actions.",
        cards=(),
        sections=[section for section in sections if section is not None],
    )


def _name(run: Run) -> str:
    return run.label or f"{run.student} {run.bits}"


def _size(runs: Sequence[Run], is_same: bool) -> Section:
    students = [one for run in runs if (one := _student(run, is_same)) is not None]
    header = ("folder", "environment", "student", "bytes", "return", "teacher", "difference", "95 % from", "to", "verdict")
    rows = [
        row(
            *(_name(run), run.env_id, f"{run.student} {run.bits}", cell(run.policy("integer").n_bytes, "{:,.0f}")),
            *(cell(run.policy("integer").mean), cell(run.policy("teacher").mean), cell(run.difference, "{:+,.2f}")),
            *(cell(end, "{:+,.2f}") for end in run.difference_interval or (None, None)),
            WORDS[run.verdict],
        )
        for run in runs
    ]
    table = Table("runs", "The runs", header, rows)
    if not students:
        return Section("size", "Return and size", tables=[table])
    first = runs[0]
    if is_same:
        drawing = figures.size_and_return(students, first.policy("teacher"), first.random, first.margin, connected=False)
    else:
        unit = "% of the way from random to teacher"
        drawing = figures.size_and_return(students, None, None, None, unit=unit, connected=False)
    alt = "; ".join(f"{one.name}: {one.mean:,.1f} at {one.n_bytes:,.0f} bytes" for one in students)
    caption = (
        "Figure 1. Return against size of each student, with 95 % intervals. Color and form tell the bits of the weights."
    )
    return Section("size", "Return and size", figures=[Figure("size", caption, alt, drawing)], tables=[table])


def _student(run: Run, is_same: bool) -> figures.Student | None:
    policy, teacher = run.policy("integer"), run.policy("teacher")
    if not policy.n_bytes:
        return None
    values = (policy.mean, *policy.interval)
    if not is_same:
        low = 0.0 if run.random is None else run.random.mean
        if teacher.mean <= low:
            return None
        values = tuple(100 * (value - low) / (teacher.mean - low) for value in values)  # type: ignore[assignment]
    bits = run.bits.removeprefix("W").partition("A")[0]
    return figures.Student(_name(run), int(bits) if bits.isdecimal() else None, policy.n_bytes, values[0], values[1:])


def _learning(runs: Sequence[Run]) -> Section | None:
    curves = [
        (_name(run), [score[:2] for score in run.learning.scores]) for run in runs if run.learning and run.learning.scores
    ]
    if not curves:
        return None
    rows = [row(name, cell(steps, "{:,.0f}"), cell(mean)) for name, scores in curves for steps, mean in scores]
    table = Table("curves", "Validations", ("folder", "steps", "return"), rows)
    caption = "Figure 2. Return of the integer students on validation episodes while they learned."
    alt = "; ".join(f"{name}: {scores[-1][1]:,.1f} at the end" for name, scores in curves)
    drawing = figures.validation_curves(curves, runs[0].policy("teacher"), runs[0].random)
    return Section("learning", "Learning", figures=[Figure("curves", caption, alt, drawing, [table])])


def _returns(runs: Sequence[Run]) -> Section | None:
    students = [replace(run.policy("integer"), name=_name(run)) for run in runs]
    policies: list[Policy] = [policy for policy in (runs[0].policy("teacher"), *students) if policy.returns]
    if len(policies) < 2:
        return None
    alt = "; ".join(f"{policy.name}: mean {policy.mean:,.1f}" for policy in policies)
    margin, teacher = runs[0].margin, runs[0].policy("teacher")
    drawing = run_figures.distributions(policies, None if margin is None else teacher.mean - margin)
    return Section("returns", "Distribution of returns", figures=[Figure("returns", RETURNS_CAPTION, alt, drawing)])


def _repeat(runs: Sequence[Run]) -> Section:
    tables = [
        facts_table(f"facts-{i}", _name(run), [*({"Command": run.command} if run.command else {}).items(), *run.facts.items()])
        for i, run in enumerate(runs)
    ]
    return Section("repeat", "How to repeat them", tables=tables)
