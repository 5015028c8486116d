"""The page of a search for the smallest student, and the page that compares several runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sb3_qpd.pages import frontier_figures as figures
from sb3_qpd.pages.content import Figure, Page, Section, Table, cell, facts_table, row, times
from sb3_qpd.pages.drawing import bytes_label
from sb3_qpd.pages.frontier import Frontier, Point
from sb3_qpd.pages.run_page import KINDS, run_sections

SMALLEST = "smallest student that plays as well as its teacher"
MAX_SCORES = 5_000  # rows of the table of validations
WORDS = {
    "non_inferior": "as good as the teacher",
    "inferior": "worse than the teacher",
    "inconclusive": "undecided",
    "no_claim": "no claim",
    "unknown": "unknown",
}


def frontier_page(frontier: Frontier) -> Page:
    """
    The page of a search.

    :param frontier: the search
    """
    shown = frontier.winner or max(frontier.points, key=lambda point: point.mean, default=None)
    sections = [_size(frontier), _trials(frontier)]
    if shown is not None and shown.run is not None:
        of_run = [section for section in run_sections(shown.run) if section is not None and section.name != "size"]
        place = f"{shown.name}, {shown.n_bytes:,.0f} bytes"
        role = "winner" if shown is frontier.winner else "best point"
        about = Section("student", f"The {role}: {place}", (f"The sections below are of this student, from {shown.folder}.",))
        sections += [about, *of_run]
    return Page(
        title=f"Frontier of {frontier.teacher_name} on {frontier.env_id}",
        headline=_headline(frontier),
        kind=KINDS.get(frontier.winner.verdict, "open") if frontier.winner else "open",
        explanation=_explanation(frontier),
        cards=_cards(frontier),
        sections=[*(section for section in sections if section is not None), _ending(frontier)],
    )


def _headline(frontier: Frontier) -> str:
    winner, teacher = frontier.winner, frontier.teacher
    if not frontier.points and not frontier.has_ended:
        return f"The search has not ended: {len(frontier.trials):,} trials so far."
    if not frontier.points:
        return f"The search found no student: none of {len(frontier.trials):,} trials gave one."
    if winner is None:
        return f"No winner: none of {frontier.candidates:,} sizes and bits is shown to be as good on validation episodes."
    size = f"{winner.n_bytes:,.0f} bytes"
    if winner.verdict != "non_inferior":
        return f"No student that was tried is shown to play as well as its teacher; the chosen one has {size}."
    kind = "best student below the limit plays as well as its teacher and" if frontier.has_limit else SMALLEST
    if teacher is None or not teacher.n_bytes:
        return f"The {kind} has {size}."
    ratio = times(teacher.n_bytes / winner.n_bytes)
    return f"The {kind} has {size}: it is {ratio} times smaller."


def _explanation(frontier: Frontier) -> str:
    text = f"{frontier.candidates:,} sizes and bits were tried in {len(frontier.trials):,} trials, on validation episodes."
    if frontier.points:
        text += " Those on the frontier were trained again with fresh seeds and scored once, on test episodes."
    winner = frontier.winner
    if winner is not None and winner.difference is not None and winner.difference_interval is not None:
        low, high = winner.difference_interval
        text += f" The winner's return is {winner.difference:+,.2f} from its teacher's,"
        text += f" with 95 % confidence {low:+,.2f} to {high:+,.2f}."
    chosen = frontier.chosen
    if chosen is not None and chosen is not winner:
        text += f" Validation episodes chose {chosen.name} with {chosen.n_bytes:,.0f} bytes: {WORDS[chosen.verdict]} on test"
        text += " episodes. The winner is the next larger student that is as good as the teacher on them."
    return text


def _cards(frontier: Frontier) -> list[tuple[str, str]]:
    states = Counter(trial.state for trial in frontier.trials)
    found = []
    if frontier.winner is not None:
        teacher = "" if frontier.teacher is None else f" (teacher: {frontier.teacher.mean:,.1f})"
        found += [
            (bytes_label(frontier.winner.n_bytes), f"size of the winner, {frontier.winner.name}"),
            (f"{frontier.winner.mean:,.1f}", f"return of the winner{teacher}"),
        ]
    found += [(f"{len(frontier.points)}", "students on the frontier"), (f"{len(frontier.trials):,}", "trials")]
    return [*found, (f"{states['stopped']:,}", "of them stopped early")] if states["stopped"] else found


def _student(point: Point) -> figures.Student:
    return figures.Student(point.name, point.bits, point.n_bytes, point.mean, point.interval)


def _size(frontier: Frontier) -> Section | None:
    scored = [trial for trial in frontier.trials if trial.n_bytes and trial.mean is not None]
    if not scored and not frontier.points:
        return None
    points = sorted(frontier.points, key=lambda point: point.n_bytes)
    drawing = figures.size_and_return(
        [_student(point) for point in points],
        *(frontier.teacher, frontier.random, frontier.margin, frontier.trials),
        winner=None if frontier.winner is None else _student(frontier.winner),
    )
    alt = "; ".join(f"{point.name}: return {point.mean:,.1f} at {point.n_bytes:,.0f} bytes" for point in points)
    caption = (
        "Figure 1. Return against size. Strong points are the frontier, on test episodes with 95 % intervals. Faint points "
        "are all trials, on validation episodes; any far below random actions is outside. Color and form tell the bits of the "
        "weights."
    )
    figure = Figure("size", caption, alt or "No point on the frontier.", drawing, [_trial_table(frontier)])
    return Section(
        "size", "Return and size", figures=[figure], tables=[_point_table(points, frontier.winner)] if points else []
    )


def _point_table(points: Sequence[Point], winner: Point | None) -> Table:
    header = ("student", "bytes", "return", "95 % from", "to", "difference", "95 % from", "to", "verdict", "seeds")
    rows = [
        row(
            *(point.name + (" (winner)" if point is winner else ""), cell(point.n_bytes, "{:,.0f}"), cell(point.mean)),
            *(cell(point.interval[0]), cell(point.interval[1]), cell(point.difference, "{:+,.2f}")),
            *(cell(end, "{:+,.2f}") for end in point.difference_interval or (None, None)),
            *(WORDS[point.verdict], point.seeds),
        )
        for point in points
    ]
    return Table("points", "The frontier, on test episodes", header, rows)


def _trial_table(frontier: Frontier) -> Table:
    header = (
        "trial",
        "size",
        "bits",
        "seed",
        "bytes",
        "state",
        "steps",
        "validation return",
        "95 % from",
        "to",
        "seconds",
        "error",
    )
    rows = [
        row(
            *(trial.name, trial.size, f"W{trial.bits or '?'}A{trial.activation_bits or '?'}", trial.seed),
            *(cell(trial.n_bytes, "{:,.0f}"), trial.state, cell(trial.steps, "{:,.0f}"), cell(trial.mean)),
            *(cell(end) for end in trial.interval or (None, None)),
            *(cell(trial.seconds, "{:,.0f}"), trial.error),
        )
        for trial in frontier.trials
    ]
    return Table("trials", "All trials, on validation episodes", header, rows)


def _trials(frontier: Frontier) -> Section | None:
    scored = [trial for trial in frontier.trials if trial.scores]
    if not scored:
        return None
    states = Counter(trial.state for trial in frontier.trials)
    longest = max(trial.steps for trial in frontier.trials)
    taken, whole = sum(trial.steps for trial in frontier.trials), longest * len(frontier.trials)
    text = (
        f"{states['finished']:,} trials ran to the end, {states['stopped']:,} were stopped early, {states['failed']:,} failed."
    )
    text += f" Together they took {taken:,.0f} of {whole:,.0f} steps ({100 * taken / max(whole, 1):.0f} %)."
    caption = (
        "Figure 2. Return of each trial on validation episodes while it learned. A cross is where a trial was stopped early."
    )
    rows = [row(trial.name, cell(steps, "{:,.0f}"), cell(mean)) for trial in scored for steps, mean in trial.scores]
    if len(scored) > figures.MAX_CURVES:
        caption += f" {figures.MAX_CURVES} of {len(scored):,} trials are drawn."
    table = Table("scores", "Validations", ("trial", "steps", "return"), rows[:MAX_SCORES])
    return Section("trials", "Trials", (text,), [Figure("trials", caption, text, figures.trial_curves(frontier), [table])])


def _ending(frontier: Frontier) -> Section:
    tables = [facts_table("facts", "Settings and checksums", frontier.facts.items())]
    if frontier.versions:
        tables.append(facts_table("versions", "Versions", frontier.versions.items()))
    note = "The command that made this folder:" if frontier.command else "The folder does not hold the command that made it."
    return Section("repeat", "How to repeat it", (note,), tables=tables, command=frontier.command)
