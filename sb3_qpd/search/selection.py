"""Which configurations are the frontier, and which is the winner: by validation episodes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_qpd.search.tasks import Configuration
from sb3_qpd.search.trials import Standard, Trial, by_configuration


@dataclass(frozen=True, eq=False)
class Candidate:
    """
    A configuration of which a trial ran to the end.

    :param configuration: size and bits
    :param trials: its trials, without those that failed
    :param return_mean: mean return over its trials. A trial that was stopped counts with its last score, so that a
        configuration with an unlucky seed is not the better for it
    :param finished: returns of the trials that ran to the end
    """

    configuration: Configuration
    trials: list[Trial]
    return_mean: float
    finished: list[np.ndarray]

    @property
    def is_complete(self) -> bool:
        """Whether no trial was stopped."""
        return len(self.finished) == len(self.trials)


def candidates(trials: Sequence[Trial], stops: dict[int, int]) -> list[Candidate]:
    """
    The configurations to choose from, the smallest first.

    :param trials: all trials
    :param stops: trials that stop -> the rung at which they do
    """
    found = []
    for group in by_configuration(trials):
        scored, finished = [], []
        for trial in group:
            if trial.number in stops:
                scored.append((trial, float(trial.scores[stops[trial.number]].mean())))
            elif trial.result is not None:
                scored.append((trial, float(trial.result.returns.mean())))
                finished.append(trial.result.returns)
        if finished:
            mean = float(np.mean([score for _, score in scored]))
            found.append(Candidate(group[0].configuration, [trial for trial, _ in scored], mean, finished))
    return found


def pareto_front(found: Sequence[Candidate]) -> list[Candidate]:
    """
    The candidates whose return no smaller or equally large one reaches, the smallest first.

    :param found: from :func:`candidates`
    """
    front: list[Candidate] = []
    for one in sorted(found, key=lambda one: (one.configuration.nbytes, -one.return_mean)):
        if not front or one.return_mean > front[-1].return_mean:
            front.append(one)
    return front


def choose(found: Sequence[Candidate], standard: Standard, has_limit: bool) -> tuple[list[Candidate], int | None]:
    """
    The frontier with its winner. A winner that plays worse on average than a smaller, inconclusive student belongs to it too.

    :param found: from :func:`candidates`
    :param standard: what trials are measured by
    :param has_limit: choose the best return, because the size has a limit; else the smallest non-inferior student
    :return: the frontier, the smallest first, and the winner's place; ``None`` where no student is non-inferior
    """
    front = pareto_front(found)
    if has_limit:
        return front, len(front) - 1 if front else None
    for one in sorted(found, key=lambda one: (one.configuration.nbytes, -one.return_mean)):
        if one.is_complete and standard.verdict(one.finished)[0] == "non_inferior":
            points = front if one in front else sorted([*front, one], key=lambda point: point.configuration.nbytes)
            return points, points.index(one)
    return front, None
