"""The trials of a search, and the rule by which they stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sb3_qpd.evaluation.statistics import Evaluation, bootstrap_over_seeds, margin_of, verdict_of
from sb3_qpd.search.tasks import Configuration, Finished

MAX_ATTEMPTS = 3
FULL_BITS = 8
MIN_PROGRESS = 0.5  # of learning, before trials are compared with each other


@dataclass
class Trial:
    """
    One student of the search: a size, its bits, and a training seed.

    :param number: its place in the order of the search: the smallest configuration first, its seeds side by side
    :param configuration: size and bits
    :param seed: training seed
    :param scores: returns on validation episodes at the rungs that it came to, by number of the rung
    :param result: what a trial that ran to the end returned
    :param error: why the last attempt failed
    :param failures: number of failed attempts
    :param seconds: wall time of all attempts
    :param processor_seconds: processor time of all attempts
    """

    number: int
    configuration: Configuration
    seed: int
    scores: dict[int, np.ndarray] = field(default_factory=dict)
    result: Finished | None = None
    error: str | None = None
    failures: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0

    @property
    def has_failed(self) -> bool:
        """Whether no more attempts are made."""
        return self.result is None and self.failures >= MAX_ATTEMPTS

    @property
    def name(self) -> str:
        """A name for tables and folders."""
        return f"{self.number:04d}-{self.configuration.name}-seed-{self.seed}"


@dataclass(frozen=True)
class Standard:
    """
    What trials are measured by.

    :param teacher: validation episodes of the teacher
    :param random: validation episodes of the random policy
    :param teacher_at_rungs: returns of the teacher on the episodes of a rung
    """

    teacher: Evaluation
    random: Evaluation
    teacher_at_rungs: np.ndarray

    @property
    def margin(self) -> float:
        """Loss of return that still counts as equal."""
        return margin_of(self.teacher, self.random)

    def verdict(self, returns_per_seed: Sequence[np.ndarray]) -> tuple[str, tuple[float, float]]:
        """
        The verdict over a configuration on validation episodes.

        :param returns_per_seed: returns of each seed's student
        :return: the verdict, and the 95 % interval of student - teacher
        """
        return judge(returns_per_seed, self.teacher, self.random)


def judge(
    returns_per_seed: Sequence[np.ndarray], teacher: Evaluation, random: Evaluation, needed: int | None = None
) -> tuple[str, tuple[float, float]]:
    """
    The verdict over students of several training seeds: seeds are resampled, then episodes.

    :param returns_per_seed: returns of each seed's student, on the teacher's episodes
    :param teacher: episodes of the teacher
    :param random: episodes of the random policy
    :param needed: episodes for 80 % power, as planned
    :return: the verdict, and the 95 % interval of student - teacher
    """
    interval = bootstrap_over_seeds([returns - teacher.returns for returns in returns_per_seed])
    lead = teacher.return_mean - random.return_mean
    lead_ci95 = bootstrap_over_seeds([teacher.returns - random.returns])
    margin = margin_of(teacher, random)
    return (
        verdict_of(interval, margin, lead=lead, lead_ci95=lead_ci95, n_episodes=teacher.episodes, needed=needed),
        interval,
    )


class StopRule:
    """
    The rule by which trials stop. Its decisions follow from scores alone.

    A trial is compared only with *earlier* ones, whose students are smaller or of equal size. So a large student never stops
    a small one by playing better. At a rung a trial stops in two cases:

    1. It is clearly inferior and dominated: it loses more than the margin to the teacher, and an earlier trial of the same
       seed plays better at the same rung. Each difference lies more than two standard errors beyond its bound. This case
       waits for half of the steps, and below 8 bits for the end of the precision's fall. Scores say little before.
    2. An earlier configuration is good enough: all its trials ran to the end, and it is non-inferior on validation episodes.
       A larger student is then of use only if it plays better. The trial stops unless it is clearly better than the finished
       student of its seed in that configuration. A search for the best student below a limit leaves this case out.

    An earlier trial counts as far as this rule lets it come. So the same trials stop, whatever the order in which scores
    arrive: with one worker or many, after a kill, and where a trial went on because another one's score came late.

    :param standard: what trials are measured by
    :param rungs: progress of learning at each rung
    :param precision_end: progress of learning at which the precision has fallen
    :param stops_larger: whether the second case applies
    """

    def __init__(self, standard: Standard, rungs: Sequence[float], precision_end: float, stops_larger: bool = True) -> None:
        self._standard, self._rungs, self._stops_larger = standard, list(rungs), stops_larger
        self._precision_end = precision_end
        self._verdicts: dict[tuple[int, ...], str] = {}

    def stops(self, trials: Iterable[Trial]) -> dict[int, int]:
        """
        The trials that stop.

        :param trials: all trials of the search, in their order
        :return: number of the trial -> the rung at which it stops
        """
        stops: dict[int, int] = {}
        earlier: dict[int, list[Trial]] = {}  # seed -> trials of other configurations
        good_enough: dict[int, Trial] | None = None
        for group in by_configuration(trials):
            for trial in group:
                rung = self._stops_at(trial, earlier.get(trial.seed, []), stops, good_enough)
                if rung is not None:
                    stops[trial.number] = rung
            for trial in group:
                earlier.setdefault(trial.seed, []).append(trial)
            if good_enough is None and self._stops_larger and self._is_good_enough(group, stops):
                good_enough = {trial.seed: trial for trial in group}
        return stops

    def _stops_at(
        self, trial: Trial, earlier: Sequence[Trial], stops: dict[int, int], good_enough: dict[int, Trial] | None
    ) -> int | None:
        for rung in range(len(self._rungs)):
            returns = trial.scores.get(rung)
            if returns is None:
                return None
            if good_enough is not None and not _beats(returns, good_enough.get(trial.seed)):
                return rung
            rivals = [one for one in earlier if stops.get(one.number, rung) >= rung and rung in one.scores]
            if self._is_comparable(trial, rung) and self._is_dominated(returns, rung, rivals):
                return rung
        return None

    def _is_comparable(self, trial: Trial, rung: int) -> bool:
        has_full_bits = min(trial.configuration.bits) >= FULL_BITS
        return self._rungs[rung] >= (MIN_PROGRESS if has_full_bits else max(MIN_PROGRESS, self._precision_end))

    def _is_dominated(self, returns: np.ndarray, rung: int, rivals: Sequence[Trial]) -> bool:
        standard = self._standard
        if not _is_better(standard.teacher_at_rungs - standard.margin, returns):
            return False
        return any(_is_better(rival.scores[rung], returns) for rival in rivals)

    def _is_good_enough(self, group: Sequence[Trial], stops: dict[int, int]) -> bool:
        results = [trial.result for trial in group if trial.result is not None and trial.number not in stops]
        if not results or len(results) < sum(not trial.has_failed for trial in group):
            return False
        key = tuple(trial.number for trial in group)
        if key not in self._verdicts:  # results do not change
            self._verdicts[key] = self._standard.verdict([result.returns for result in results])[0]
        return self._verdicts[key] == "non_inferior"


def by_configuration(trials: Iterable[Trial]) -> list[list[Trial]]:
    """
    The trials of each configuration.

    :param trials: trials in their order
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.configuration.name, []).append(trial)
    return list(groups.values())


def _beats(returns: np.ndarray, finished: Trial | None) -> bool:
    """Whether returns are clearly better than those of a finished trial on the same episodes."""
    result = None if finished is None else finished.result
    return result is not None and _is_better(returns, result.returns[: len(returns)])


def _is_better(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the mean return is higher by more than two standard errors of the paired differences."""
    differences = ours - theirs
    return bool(differences.mean() > 2 * differences.std(ddof=1) / np.sqrt(len(differences)))
