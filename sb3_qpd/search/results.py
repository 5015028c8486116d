"""The result of a search: the retrained students, ``frontier.json``, and the folder that holds both."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.atomic import UNFINISHED, AtomicFolder, write_atomically
from sb3_qpd.envs.recipe import describe_env
from sb3_qpd.evaluation.comparison import versions
from sb3_qpd.evaluation.report import to_json
from sb3_qpd.evaluation.statistics import Evaluation, bootstrap_over_seeds
from sb3_qpd.failures import describe_error
from sb3_qpd.pages.folders import write_page
from sb3_qpd.search.selection import Candidate
from sb3_qpd.search.settings import SearchSettings, describe_size
from sb3_qpd.search.tasks import Configuration, Finished, Job, Task
from sb3_qpd.search.trials import Standard, Trial, judge
from sb3_qpd.student_folder import FRONTIER, PAGE

FORMAT = 1
POINTS = "points"  # folder of the students, inside the result folder
RETRAINING = "retraining"  # folder of those that are trained already, inside that of the unfinished search
RUN = "run.json"
JOURNAL = "search.log"


class RetrainedStudents:
    """
    The students that were trained with fresh seeds, on the disk: what a killed search had of them is kept.

    :param folder: folder of the unfinished search
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / RETRAINING

    def folder_of(self, task: Task) -> Path:
        """
        The folder of a student's files.

        :param task: its task
        """
        return self._folder / task.name

    def keep(self, task: Task, result: Finished) -> None:
        """
        Write the files of a student, and what it returned.

        :param task: its task
        :param result: what its worker sent
        """
        folder = self.folder_of(task)
        folder.parent.mkdir(parents=True, exist_ok=True)
        facts = {"returns": result.returns.tolist(), "nbytes": result.nbytes, "notes": result.notes, "seconds": result.seconds}
        with AtomicFolder(folder, force=True) as staging:
            for name, content in result.files.items():
                (staging.path / name).write_bytes(content)
            (staging.path / RUN).write_text(json.dumps(facts), encoding="utf-8")
            staging.commit()

    def read(self, task: Task) -> dict[str, Any] | None:
        """
        What a student returned.

        :param task: its task
        :return: ``None`` where it is not trained yet
        """
        try:
            return json.loads((self.folder_of(task) / RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class Outcome:
    """
    What is known at the end of a search.

    :param chosen: the frontier by validation episodes
    :param winner: the winner's place in it, or ``None``
    :param tasks: tasks of the retrained students of each point
    :param seconds: wall times
    """

    chosen: list[Candidate]
    winner: int | None
    tasks: list[list[Task]]
    seconds: dict[str, float]


def describe_search(
    job: Job, settings: SearchSettings, standard: Standard, trials: Sequence[Trial], stops: dict[int, int], command: str
) -> dict[str, Any]:
    """
    ``frontier.json`` without its points.

    :param job: the job
    :param settings: what was searched
    :param standard: what trials were measured by
    :param trials: all trials
    :param stops: trials that stop -> the rung at which they do
    :param command: command line
    """
    teacher, theirs = job.teacher, standard.teacher
    kept = [_describe_trial(trial, stops, job) for trial in trials]
    return {
        "format": FORMAT,
        "command": command,
        "versions": _versions(),
        "teacher": {"name": teacher.name, "algorithm": teacher.algo, "bytes": teacher.nbytes, "checksum": teacher.checksum},
        "environment": describe_env(job.env),
        "deterministic": job.plan.deterministic,
        "settings": settings.to_json(),
        "validation": {
            "episodes": theirs.episodes,
            "teacher": {"mean": theirs.return_mean, "interval": theirs.ci95},
            "random": {"mean": standard.random.return_mean},
            "margin": standard.margin,
        },
        "trials": [one for one in kept if one is not None],
        "points": [],
        "chosen": None,
        "winner": None,
        "candidates": len({trial.configuration.name for trial in trials}),
        "seconds": {
            "trials": sum(trial.seconds for trial in trials),
            "processor": sum(trial.processor_seconds for trial in trials),
        },
    }


def _describe_trial(trial: Trial, stops: dict[int, int], job: Job) -> dict[str, Any] | None:
    """
    A trial that has come to an end; ``None`` for one that has not.

    A stopped trial may have gone on for a while, because the score of another one came late. What it did then is left out.
    """
    stop = stops.get(trial.number)
    result = trial.result if stop is None else None
    if result is None and stop is None and not trial.has_failed:
        return None
    played = [(job.rung_steps[rung], one) for rung, one in sorted(trial.scores.items()) if stop is None or rung <= stop]
    if result is not None:
        played.append((result.steps, result.returns))
    steps, returns = played[-1] if played else (0, None)
    return {
        "id": trial.number,
        **_describe_configuration(trial.configuration),
        "seed": trial.seed,
        "bytes": trial.configuration.nbytes if result is None else result.nbytes,
        "state": "stopped" if stop is not None else "failed" if result is None else "finished",
        "steps": steps,
        "scores": [[steps, float(one.mean())] for steps, one in played],
        "return_mean": None if returns is None else float(returns.mean()),
        "interval": None if returns is None else bootstrap_over_seeds([returns]),
        "seconds": trial.seconds,
        "attempts": trial.failures + (not trial.has_failed),
        "error": trial.error,
        "checksum": None if result is None else result.checksum,
    }


def _describe_configuration(configuration: Configuration) -> dict[str, Any]:
    return {
        "size": describe_size(configuration.size),
        "student_arch": configuration.arch,
        "weight_bits": configuration.bits[0],
        "activation_bits": configuration.bits[1],
    }


def describe_points(
    outcome: Outcome, students: RetrainedStudents, teacher: Evaluation, random: Evaluation, needed: int | None
) -> tuple[list[dict[str, Any]], int | None]:
    """
    The points of the frontier, scored on test episodes.

    :param outcome: what was chosen
    :param students: the retrained students
    :param teacher: test episodes of the teacher
    :param random: test episodes of the random policy
    :param needed: episodes for 80 % power
    :return: the points, and the place of the one that validation episodes chose. A point whose student could not be retrained
        is left out
    """
    points: list[dict[str, Any]] = []
    chosen = None
    for place, (one, tasks) in enumerate(zip(outcome.chosen, outcome.tasks, strict=True)):
        runs = {task.seed: run for task in tasks if (run := students.read(task)) is not None}
        if students.read(tasks[0]) is None:
            continue
        if place == outcome.winner:
            chosen = len(points)
        returns = [np.array(run["returns"]) for run in runs.values()]
        verdict, interval = judge(returns, teacher, random, needed)
        mean = float(np.mean(returns))
        points.append(
            {
                **_describe_configuration(one.configuration),
                "bytes": runs[tasks[0].seed]["nbytes"],
                "folder": f"{POINTS}/{one.configuration.name}",
                "seeds": list(runs),
                "return_mean": mean,
                "interval": bootstrap_over_seeds(returns),
                "return_mean_per_seed": [float(seed.mean()) for seed in returns],
                "difference": {"mean": mean - teacher.return_mean, "interval": interval},
                "verdict": verdict,
                "trials": [trial.number for trial in one.trials],
                **runs[tasks[0].seed]["notes"],
            }
        )
    return points, chosen


def find_winner(points: Sequence[Mapping[str, Any]], chosen: int | None) -> int | None:
    """
    The point that a search for the smallest student ends with.

    It is the chosen one. Where test episodes do not confirm that one, it is the next larger point that is non-inferior there.

    :param points: the points of the frontier, the smallest first
    :param chosen: place of the one that validation episodes chose
    :return: its place; the chosen one's where no larger point is non-inferior
    """
    if chosen is None:
        return None
    larger = range(chosen, len(points))
    return next((place for place in larger if points[place]["verdict"] == "non_inferior"), chosen)


def describe_test(teacher: Evaluation, random: Evaluation, margin: float) -> dict[str, Any]:
    """
    The teacher's test episodes, beside which the points stand.

    :param teacher: test episodes of the teacher
    :param random: test episodes of the random policy
    :param margin: loss of return that still counts as equal
    """
    return {
        "episodes": teacher.episodes,
        "teacher": {"mean": teacher.return_mean, "interval": teacher.ci95},
        "random": {"mean": random.return_mean},
        "margin": margin,
    }


def write_unfinished(content: dict[str, Any], out: Path) -> None:
    """
    Write what an interrupted search has found. The search can go on.

    :param content: see :func:`describe_search`
    :param out: result folder
    """
    write_atomically(out / FRONTIER, _text(content))


def publish(
    content: dict[str, Any], outcome: Outcome, students: RetrainedStudents, staging: AtomicFolder, journal: Path
) -> None:
    """
    Put the result in place of the unfinished search, as a whole.

    :param content: contents of ``frontier.json``
    :param outcome: what was chosen
    :param students: the retrained students
    :param staging: the result folder
    :param journal: journal file of the search, where it has one
    """
    folders = {point["folder"] for point in content["points"]}
    for one, tasks in zip(outcome.chosen, outcome.tasks, strict=True):
        folder = f"{POINTS}/{one.configuration.name}"
        if folder in folders:
            shutil.copytree(students.folder_of(tasks[0]), staging.path / folder, ignore=shutil.ignore_patterns(RUN))
    if journal.is_file():
        shutil.copyfile(journal, staging.path / JOURNAL)
    (staging.path / FRONTIER).write_bytes(_text(content))
    staging.commit(replacing=(UNFINISHED, POINTS, JOURNAL))


def write_pages(out: Path, points: Sequence[dict[str, Any]]) -> None:
    """
    Write the page of each student, and that of the search. A page that cannot be made does not lose the result.

    :param out: result folder
    :param points: points of the frontier
    """
    for folder in (*(out / point["folder"] for point in points), out):
        try:
            write_page([folder])
        except Exception as error:  # of any kind: the search has ended, and the page can be made later
            warnings.warn(f"No {PAGE} in {folder}: {describe_error(error)}. sb3-qpd report makes it", stacklevel=2)


def _text(content: dict[str, Any]) -> bytes:
    return (json.dumps(to_json(content), indent=2, allow_nan=False) + "\n").encode()


def _versions() -> dict[str, str]:
    found = versions()
    for package in ("optuna", "ray"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def summary(content: dict[str, Any]) -> str:
    """
    The points of a frontier as a table, and the winner in a sentence.

    :param content: contents of ``frontier.json``
    """
    rows = [["", "student", "bytes", "return", "95 % interval", "student - teacher", "verdict"]]
    for place, point in enumerate(content["points"]):
        rows.append(
            [
                "*" if place == content["winner"] else "",
                point["folder"].rpartition("/")[2],
                str(point["bytes"]),
                f"{point['return_mean']:.2f}",
                "[{:.2f}, {:.2f}]".format(*point["interval"]),
                "{:+.2f} [{:+.2f}, {:+.2f}]".format(point["difference"]["mean"], *point["difference"]["interval"]),
                point["verdict"],
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", _sentence(content)])


def _sentence(content: dict[str, Any]) -> str:
    tried = f"{content['candidates']} sizes and bits were tried in {len(content['trials'])} trials."
    if content["winner"] is None:
        return f"No student was non-inferior to the teacher on validation episodes. {tried}"
    point = content["points"][content["winner"]]
    seeds = f"{len(point['seeds'])} fresh seed{'' if len(point['seeds']) == 1 else 's'}"
    played = f"{content['test']['episodes']} test episodes for each of {seeds}"
    chosen = content["points"][content["chosen"]]
    if chosen is point:
        return f"The winner (*), chosen on validation episodes: {_named(point)} on {played}. {tried}"
    return (
        f"The winner (*): {_named(point)} on {played}. Validation episodes chose {_named(chosen)} on test episodes. "
        f"The winner is the next larger student. {tried}"
    )


def _named(point: Mapping[str, Any]) -> str:
    return f"{point['folder'].rpartition('/')[2]}, {point['bytes']} bytes, {point['verdict'].replace('_', '-')}"
