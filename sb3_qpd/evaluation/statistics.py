"""
What returns prove: percentile bootstrap intervals, the margin, the verdict. This module computes on arrays and plays nothing.

**Which verdict is given when** (:func:`verdict_of`). ``difference`` is student - teacher, ``lead`` is teacher - random policy,
and each has a 95 % bootstrap interval.

- ``no_claim``: the lead is not larger than the width of its interval and the margin together. A random policy in the
  student's place could pass, so that a comparison with this teacher proves nothing.
- ``inferior``: the interval of the difference lies below -margin.
- ``non_inferior``: it lies above -margin, and the episodes are at least as many as 80 % power takes. This number is planned
  before the run from the teacher's spread. Without a plan it follows from the spread that was measured.
- ``inconclusive``: every other case. So are fewer than 20 episodes, whose bootstrap interval is not reliable.

**Intervals without width.** Where every episode returns the same (CartPole's 500), each resample has the same mean, and the
interval is a point. This is an honest result in two cases, and the verdict stands in both. If the game has no randomness at
all, one episode is all there is to know. If the episodes differ, no other return occurred in n of them: by the rule of three
an unseen return has a probability below 3 / n at 95 % confidence. The report says which share that is. An interval may also
be too narrow because the episodes are copies of few distinct games; the report gives the number of distinct returns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sb3_qpd.checks import check_count, check_type

MARGIN = 0.05  # share of the teacher's return that a student may lose
MIN_EPISODES = 100  # of a plan
MAX_EPISODES = 1_000
MIN_VERDICT_EPISODES = 20  # fewer give no verdict
POWER = 7.85  # (1.96 + 0.84)^2: a one-sided test at 97.5 % that an equal student passes in 80 % of the cases
N_RESAMPLES = 10_000


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """
    Whole episodes of one policy.

    :param name: name of the policy
    :param returns: raw return of each episode, shape (n_episodes,)
    :param lengths: steps of each episode, shape (n_episodes,)
    :param deterministic: whether the policy played its most probable actions, else sampled ones
    :param seed: first seed of the episodes
    :param seconds: wall time of playing
    :param starts: how the episodes began; evaluations with equal ``starts`` played the same episodes. Empty: not reproducible
    :param is_cached: the episodes were played by an earlier run and kept, see :mod:`sb3_qpd.evaluation.cache`
    """

    name: str
    returns: np.ndarray
    lengths: np.ndarray
    deterministic: bool
    seed: int
    seconds: float = 0.0
    starts: str = ""
    is_cached: bool = False

    def __repr__(self) -> str:
        mode = "deterministic" if self.deterministic else "sampled"
        low, high = self.ci95
        return (
            f"<Evaluation of {self.name}: return {self.return_mean:.2f} ± {self.return_std:.2f}, 95 % interval of the mean "
            f"[{low:.2f}, {high:.2f}], {self.episodes} episodes ({self.distinct_returns} distinct returns), {mode} actions>"
        )

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    @property
    def return_mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        """Standard deviation of the returns."""
        return float(np.std(self.returns))

    @property
    def return_iqm(self) -> float:
        """Interquartile mean: the mean of the middle half of the episodes."""
        first, end = self.episodes // 4, self.episodes - self.episodes // 4
        return float(np.mean(np.partition(self.returns, (first, end - 1))[first:end]))

    @cached_property
    def ci95(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval of the mean."""
        return interval95(bootstrap_means(self.returns))

    @property
    def distinct_returns(self) -> int:
        """Number of distinct returns. A small one means copies of few games, and an interval that is too narrow."""
        return len(np.unique(self.returns))

    def is_paired_with(self, other: "Evaluation") -> bool:
        """
        Whether both policies played the same episodes, one by one.

        :param other: evaluation of the other policy
        """
        return bool(self.starts) and self.starts == other.starts and self.episodes == other.episodes


@dataclass(frozen=True, repr=False)
class Comparison:
    """
    A student beside its teacher.

    :param difference: student - teacher, mean returns
    :param difference_ci95: 95 % bootstrap interval of the difference
    :param margin: loss that still counts as equal, see :func:`margin_of`
    :param lead: teacher - random policy, mean returns
    :param lead_ci95: 95 % bootstrap interval of the lead
    :param verdict: ``"non_inferior"``, ``"inferior"``, ``"inconclusive"`` or ``"no_claim"``, see :func:`verdict_of`
    :param score: (student - random) / (teacher - random); ``None`` where the teacher is not above random
    :param score_ci95: 95 % bootstrap interval of the score
    :param ratio: student / teacher; ``None`` where the teacher's return is not positive
    :param ratio_ci95: 95 % bootstrap interval of the ratio
    :param paired: whether both played the same episodes, so that these were resampled together
    :param episodes_needed: episodes for 80 % power at this margin, at least 20: those that were planned, else by the spread of
        these evaluations; ``None`` where the margin is zero
    """

    difference: float
    difference_ci95: tuple[float, float]
    margin: float
    lead: float
    lead_ci95: tuple[float, float]
    verdict: str
    score: float | None
    score_ci95: tuple[float, float] | None
    ratio: float | None
    ratio_ci95: tuple[float, float] | None
    paired: bool
    episodes_needed: int | None

    def __repr__(self) -> str:
        low, high = self.difference_ci95
        return (
            f"<Comparison: {self.verdict}, student - teacher {self.difference:.2f} [{low:.2f}, {high:.2f}], "
            f"margin {self.margin:.2f}>"
        )


def margin_of(teacher: Evaluation, random: Evaluation) -> float:
    """
    Loss that still counts as equal: 5 % of the teacher's mean where that is positive, else 5 % of its lead over random.

    :param teacher: evaluation of the teacher
    :param random: evaluation of the random policy
    :return: at least zero; zero where the teacher has neither
    """
    mean = teacher.return_mean
    return MARGIN * (mean if mean > 0 else max(0.0, mean - random.return_mean))


def episodes_needed(teacher: Evaluation, random: Evaluation) -> int | None:
    """
    Episodes at which an exactly equal student passes with 80 % power: 15.7 (sd / margin)^2, from the teacher's spread.

    This is the number to plan with, before a student exists: it takes the student's spread to be the teacher's, and the
    episodes to be unpaired.

    :param teacher: evaluation of the teacher
    :param random: evaluation of the random policy
    :return: not bounded, see :func:`plan_episodes`; ``None`` where the margin is zero
    """
    margin = margin_of(teacher, random)
    return None if margin == 0.0 else max(1, math.ceil(2 * POWER * (teacher.return_std / margin) ** 2))


def plan_episodes(needed: int | None, minimum: int = MIN_EPISODES, maximum: int = MAX_EPISODES) -> int:
    """
    How many episodes to play, fixed before the run: what is needed, within bounds.

    :param needed: from :func:`episodes_needed`
    :param minimum: lower bound
    :param maximum: upper bound
    """
    return maximum if needed is None else min(max(needed, minimum), maximum)


def compare(student: Evaluation, teacher: Evaluation, random: Evaluation, planned: int | None = None) -> Comparison:
    """
    Compare a student with its teacher.

    :param student: evaluation of the deployed student
    :param teacher: evaluation of its teacher, best on the same episodes
    :param random: evaluation of the random policy
    :param planned: episodes for 80 % power, as they were found before the run; ``None``: by the spread of these evaluations
    """
    for name, one in (("student", student), ("teacher", teacher), ("random", random)):
        check_type(name, one, Evaluation, "an Evaluation, which evaluate(...) returns")
    if planned is not None:
        check_count("planned", planned)
    margin = margin_of(teacher, random)
    paired = student.is_paired_with(teacher)
    student_means = bootstrap_means(student.returns)
    teacher_means = bootstrap_means(teacher.returns, seed=0 if paired else 1)
    random_means = bootstrap_means(random.returns, seed=0 if student.is_paired_with(random) else 2)
    lead = teacher.return_mean - random.return_mean
    score, score_ci95 = _quotient(
        student.return_mean - random.return_mean, lead, student_means - random_means, teacher_means - random_means
    )
    ratio, ratio_ci95 = _quotient(student.return_mean, teacher.return_mean, student_means, teacher_means)
    difference_ci95, lead_ci95 = interval95(student_means - teacher_means), interval95(teacher_means - random_means)
    needed = planned if planned and margin else _episodes_needed_here(student, teacher, margin)
    n_episodes = min(student.episodes, teacher.episodes)
    return Comparison(
        difference=student.return_mean - teacher.return_mean,
        difference_ci95=difference_ci95,
        margin=margin,
        lead=lead,
        lead_ci95=lead_ci95,
        verdict=verdict_of(difference_ci95, margin, lead=lead, lead_ci95=lead_ci95, n_episodes=n_episodes, needed=needed),
        score=score,
        score_ci95=score_ci95,
        ratio=ratio,
        ratio_ci95=ratio_ci95,
        paired=paired,
        episodes_needed=needed,
    )


def _episodes_needed_here(student: Evaluation, teacher: Evaluation, margin: float) -> int | None:
    """Episodes for 80 % power, by the measured variance of the difference of two episodes; ``None`` for a margin of zero."""
    if margin == 0.0:
        return None
    is_paired = student.is_paired_with(teacher)
    variance = np.var(student.returns - teacher.returns) if is_paired else np.var(student.returns) + np.var(teacher.returns)
    return max(MIN_VERDICT_EPISODES, math.ceil(POWER * float(variance) / margin**2))


def _quotient(
    numerator: float, denominator: float, numerators: np.ndarray, denominators: np.ndarray
) -> tuple[float | None, tuple[float, float] | None]:
    """A quotient and its interval, each None where the denominator (or one of its resamples) is not positive."""
    if denominator <= 0.0:
        return None, None
    return numerator / denominator, interval95(numerators / denominators) if (denominators > 0.0).all() else None


def bootstrap_means(values: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0) -> np.ndarray:
    """
    Means of resampled episodes.

    Equal lengths and seeds draw equal episodes: this is how paired evaluations are resampled together.

    :param values: one value for each episode, shape (n_episodes,)
    :param n_resamples: number of means
    :param seed: seed of the draws
    :return: shape (n_resamples,)
    """
    rng = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    n_rows = max(1, 1_000_000 // len(values))  # bounds the memory
    rows = [min(n_rows, n_resamples - start) for start in range(0, n_resamples, n_rows)]
    return np.concatenate([values[rng.integers(len(values), size=(n, len(values)))].mean(axis=1) for n in rows])


def bootstrap_over_seeds(
    returns_per_seed: Sequence[np.ndarray], n_resamples: int = N_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """
    95 % percentile interval of the mean over training runs: seeds are resampled, then the episodes of each drawn seed.

    :param returns_per_seed: returns (or paired differences to the teacher's) of each training seed, shapes (n_episodes,)
    :param n_resamples: number of resampled means
    :param seed: seed of the draws
    :return: lower and upper bound
    :raises ValueError: there are no returns
    """
    if len(returns_per_seed) == 0:
        raise ValueError("bootstrap_over_seeds needs the returns of at least one training seed, got none.")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(returns_per_seed), size=(n_resamples, len(returns_per_seed)))
    means = np.empty(drawn.shape)
    for index, returns in enumerate(returns_per_seed):
        chosen = drawn == index
        means[chosen] = bootstrap_means(returns, int(chosen.sum()), seed=seed + 1 + index) if chosen.any() else 0.0
    return interval95(means.mean(axis=1))


def interval95(samples: np.ndarray) -> tuple[float, float]:
    """
    95 % percentile interval. (Never the BCa bootstrap: it is NaN on constant data.)

    :param samples: resampled values, shape (n_resamples,)
    :return: lower and upper bound
    """
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def verdict_of(
    difference_ci95: tuple[float, float],
    margin: float,
    *,
    lead: float,
    lead_ci95: tuple[float, float] = (0.0, 0.0),
    n_episodes: int,
    needed: int | None = None,
) -> str:
    """
    The verdict over a student; the rules and their reasons stand in the module's docstring.

    :param difference_ci95: 95 % interval of student - teacher
    :param margin: loss that still counts as equal
    :param lead: teacher - random policy, mean returns
    :param lead_ci95: 95 % interval of the lead
    :param n_episodes: episodes behind the interval, of the teacher or the student, whichever has fewer
    :param needed: episodes for 80 % power; ``None`` skips this check
    :return: ``"non_inferior"``, ``"inferior"``, ``"inconclusive"`` or ``"no_claim"``
    """
    is_short = n_episodes < MIN_VERDICT_EPISODES
    # the interval of a few episodes may be wide or a point: only their mean counts then
    if lead <= 0 or (not is_short and lead <= (lead_ci95[1] - lead_ci95[0]) + margin):
        return "no_claim"
    low, high = difference_ci95
    has_power = needed is None or n_episodes >= needed
    if not is_short and high < -margin:
        return "inferior"
    return "non_inferior" if not is_short and has_power and low > -margin else "inconclusive"
