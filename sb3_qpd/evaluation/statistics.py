"""What returns prove: percentile bootstrap intervals, the margin, the verdict. Plain arrays, nobody plays here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

MARGIN = 0.05  # share of the teacher's return that a student may lose
MIN_EPISODES = 100
MAX_EPISODES = 1_000
N_RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Evaluation:
    """
    Whole episodes of one contender.

    :param name: who played
    :param returns: raw return of each episode, shape (n_episodes,)
    :param lengths: steps of each episode, shape (n_episodes,)
    :param deterministic: whether it played its most likely action
    :param seed: first seed of the episodes
    :param seconds: wall time
    :param starts: how the episodes began; evaluations with equal ``starts`` played the same episodes. Empty: not reproducible
    """

    name: str
    returns: np.ndarray
    lengths: np.ndarray
    deterministic: bool
    seed: int
    seconds: float = 0.0
    starts: str = ""

    @property
    def episodes(self) -> int:
        return len(self.returns)

    @property
    def return_mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def return_std(self) -> float:
        return float(np.std(self.returns))

    @property
    def return_iqm(self) -> float:
        """Mean of the middle half of the episodes."""
        return float(stats.trim_mean(self.returns, 0.25))

    @cached_property
    def ci95(self) -> tuple[float, float]:
        """95 % percentile bootstrap interval of the mean."""
        return interval95(bootstrap_means(self.returns))

    @property
    def distinct_returns(self) -> int:
        """Few of them: the episodes are copies of few games, and the interval is too narrow."""
        return len(np.unique(self.returns))

    def is_paired_with(self, other: "Evaluation") -> bool:
        """Whether both played the same episodes, one by one."""
        return bool(self.starts) and self.starts == other.starts and self.episodes == other.episodes


@dataclass(frozen=True)
class Comparison:
    """
    A student against its teacher.

    :param difference: student - teacher, mean returns
    :param difference_ci95: its 95 % bootstrap interval
    :param margin: loss that still counts as equal, see :func:`margin_of`
    :param verdict: "non_inferior", "inferior" or "inconclusive"
    :param score: (student - random) / (teacher - random); None where the teacher is not above random
    :param ratio: student / teacher; None where the teacher's return is not positive
    :param paired: whether both played the same episodes, so that these were resampled together
    :param episodes_needed: for 80 % power at this margin; None where the margin is zero
    """

    difference: float
    difference_ci95: tuple[float, float]
    margin: float
    verdict: str
    score: float | None
    score_ci95: tuple[float, float] | None
    ratio: float | None
    ratio_ci95: tuple[float, float] | None
    paired: bool
    episodes_needed: int | None


def margin_of(teacher: Evaluation, random: Evaluation) -> float:
    """5 % of the teacher's mean where that is positive, else of its lead over the random policy (zero where it has none)."""
    mean = teacher.return_mean
    return MARGIN * (mean if mean > 0 else max(0.0, mean - random.return_mean))


def episodes_needed(teacher: Evaluation, random: Evaluation) -> int | None:
    """
    Episodes at which an exactly equal student passes with 80 % power: 15.7 (sd / margin)^2, from the teacher's spread.

    :return: not bounded, see :func:`plan_episodes`; None where the margin is zero
    """
    margin = margin_of(teacher, random)
    return None if margin == 0.0 else max(1, math.ceil(15.7 * (teacher.return_std / margin) ** 2))


def plan_episodes(needed: int | None, minimum: int = MIN_EPISODES, maximum: int = MAX_EPISODES) -> int:
    """How many episodes to play, fixed before the run: what is needed, within bounds."""
    return maximum if needed is None else min(max(needed, minimum), maximum)


def compare(student: Evaluation, teacher: Evaluation, random: Evaluation) -> Comparison:
    """
    :param student: an evaluation of the deployed student
    :param teacher: of its teacher, best on the same episodes
    :param random: of the random policy
    """
    margin = margin_of(teacher, random)
    paired = student.is_paired_with(teacher)
    student_means = bootstrap_means(student.returns)
    teacher_means = bootstrap_means(teacher.returns, seed=0 if paired else 1)
    random_means = bootstrap_means(random.returns, seed=0 if student.is_paired_with(random) else 2)
    score, score_ci95 = _quotient(
        student.return_mean - random.return_mean,
        teacher.return_mean - random.return_mean,
        student_means - random_means,
        teacher_means - random_means,
    )
    ratio, ratio_ci95 = _quotient(student.return_mean, teacher.return_mean, student_means, teacher_means)
    difference_ci95 = interval95(student_means - teacher_means)
    return Comparison(
        difference=student.return_mean - teacher.return_mean,
        difference_ci95=difference_ci95,
        margin=margin,
        verdict=verdict_of(difference_ci95, margin),
        score=score,
        score_ci95=score_ci95,
        ratio=ratio,
        ratio_ci95=ratio_ci95,
        paired=paired,
        episodes_needed=episodes_needed(teacher, random),
    )


def _quotient(
    numerator: float, denominator: float, numerators: np.ndarray, denominators: np.ndarray
) -> tuple[float | None, tuple[float, float] | None]:
    """A quotient and its interval, each None where the denominator (or one of its resamples) is not positive."""
    if denominator <= 0.0:
        return None, None
    return numerator / denominator, interval95(numerators / denominators) if (denominators > 0.0).all() else None


def bootstrap_means(values: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0) -> np.ndarray:
    """
    Means of resampled episodes. Equal lengths and seeds draw equal episodes, which is how paired contenders are resampled.

    :param values: one per episode, shape (n_episodes,)
    :param n_resamples: how many means
    :param seed: of the draws
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
    :param n_resamples: how many resampled means
    :param seed: of the draws
    :return: lower and upper bound
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
    """Percentile interval (never BCa: it is NaN on constant data)."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return float(low), float(high)


def verdict_of(difference_ci95: tuple[float, float], margin: float) -> str:
    """
    :param difference_ci95: 95 % interval of student - teacher
    :param margin: loss that still counts as equal
    :return: "non_inferior" (lower bound above -margin), "inferior" (upper bound below -margin), else "inconclusive"
    """
    low, high = difference_ci95
    # with a margin of zero: nothing is lost where the difference is exactly nothing
    if low > -margin or low == high == 0.0:
        return "non_inferior"
    return "inferior" if high < -margin else "inconclusive"
