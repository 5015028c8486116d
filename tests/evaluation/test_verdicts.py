import re

import numpy as np
import pytest
from scipy.stats import trim_mean

from sb3_qpd.evaluation.statistics import (
    Evaluation,
    bootstrap_means,
    bootstrap_over_seeds,
    compare,
    episodes_needed,
    interval95,
    margin_of,
    plan_episodes,
    verdict_of,
)


def played(returns: np.ndarray | list[float], starts: str = "the same") -> Evaluation:
    returns = np.asarray(returns, dtype=np.float64)
    return Evaluation("a policy", returns, np.ones(len(returns), dtype=int), True, 0, starts=starts)


def noise(mean: float, sd: float, n: int = 400, seed: int = 0) -> np.ndarray:
    return mean + sd * np.random.default_rng(seed).standard_normal(n)


def test_figures_of_an_evaluation() -> None:
    evaluation = played([0, 1, 2, 3, 4, 5, 6, 100])
    assert evaluation.episodes == 8
    assert evaluation.return_mean == np.mean(evaluation.returns)
    assert evaluation.return_std == np.std(evaluation.returns)
    assert evaluation.return_iqm == np.mean([2, 3, 4, 5])  # the middle half
    assert evaluation.distinct_returns == 8
    low, high = evaluation.ci95
    assert low < evaluation.return_mean < high


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 101, 1_000])
def test_interquartile_mean_is_scipys(n: int) -> None:
    returns = noise(10, 300, n)
    assert played(returns).return_iqm == trim_mean(returns, 0.25)


def test_interval_of_constant_returns_is_a_point() -> None:
    assert played([500.0] * 100).ci95 == (500.0, 500.0)


def test_interval_agrees_with_the_normal_one() -> None:
    returns = noise(10, 2, n=1000)
    low, high = played(returns).ci95
    half = 1.96 * returns.std() / np.sqrt(1000)
    assert low == pytest.approx(returns.mean() - half, abs=0.02)
    assert high == pytest.approx(returns.mean() + half, abs=0.02)


def test_bootstrap_means_come_in_bounded_pieces() -> None:
    means = bootstrap_means(noise(0, 1, n=3_000), n_resamples=1_001)
    assert means.shape == (1_001,)
    assert means.std() == pytest.approx(1 / np.sqrt(3_000), rel=0.1)


@pytest.mark.parametrize(
    ("interval", "margin", "verdict"),
    [
        ((-0.9, 2.0), 1.0, "non_inferior"),
        ((-1.0, 2.0), 1.0, "inconclusive"),  # above, not at
        ((-3.0, -0.5), 1.0, "inconclusive"),
        ((-3.0, -1.1), 1.0, "inferior"),
        ((0.0, 0.0), 1.0, "non_inferior"),
        ((-2.0, -2.0), 1.0, "inferior"),
    ],
)
def test_verdict(interval: tuple[float, float], margin: float, verdict: str) -> None:
    assert verdict_of(interval, margin, lead=100.0, n_episodes=100) == verdict
    assert verdict_of(interval, margin, lead=100.0, n_episodes=19) == "inconclusive"
    assert verdict_of(interval, margin, lead=0.0, n_episodes=100) == "no_claim"


@pytest.mark.parametrize(
    ("lead", "lead_ci95", "margin", "n_episodes", "verdict"),
    [
        (-524.0, (-530.0, -518.0), 0.0, 100, "no_claim"),  # a forgotten vecnormalize.pkl
        (-524.0, (-524.0, -524.0), 0.0, 1, "no_claim"),  # more episodes would not mend it
        (3.0, (1.0, 5.0), 1.0, 100, "no_claim"),  # above random, but by less than the width of the interval
        (4.5, (2.5, 6.5), 1.0, 100, "no_claim"),  # by more than its width, but a random policy could pass for the teacher
        (6.0, (4.0, 8.0), 1.0, 100, "non_inferior"),
        (3.0, (1.0, 5.0), 1.0, 5, "inconclusive"),  # an interval of five episodes proves nothing either way
        (10.0, (10.0, 10.0), 50.0, 100, "no_claim"),  # reward for being alive: the margin is more than there is to learn
    ],
)
def test_no_claim_without_a_teacher(
    lead: float, lead_ci95: tuple[float, float], margin: float, n_episodes: int, verdict: str
) -> None:
    assert verdict_of((0.0, 0.1), margin, lead=lead, lead_ci95=lead_ci95, n_episodes=n_episodes) == verdict


def test_below_the_planned_power_no_student_passes() -> None:
    """A third of the episodes that 80 % power takes, and all of them. A clear loss needs no power."""
    for interval, few, all_of_them in (
        ((-4.0, 0.0), "inconclusive", "non_inferior"),
        ((1.0, 5.0), "inconclusive", "non_inferior"),
        ((-9.0, -1.0), "inconclusive", "inconclusive"),
        ((-54.0, -50.0), "inferior", "inferior"),
    ):
        assert verdict_of(interval, 5.0, lead=100.0, n_episodes=30, needed=90) == few
        assert verdict_of(interval, 5.0, lead=100.0, n_episodes=90, needed=90) == all_of_them


def test_few_episodes_are_inconclusive_and_say_how_many_it_takes() -> None:
    teacher, random = noise(200, 40, 300), noise(0, 10, 300, seed=1)
    for n in (1, 2, 19):
        comparison = compare(played(teacher[:n]), played(teacher[:n]), played(random[:n]))
        assert comparison.verdict == "inconclusive" and comparison.episodes_needed >= 20
    apart = compare(played(teacher[:30], "one"), played(noise(200, 40, 30, seed=2), "other"), played(random[:30]))
    assert apart.verdict == "inconclusive" and 90 < apart.episodes_needed < 300


def test_planned_episodes_have_their_power_whatever_the_spread_is_then() -> None:
    student, teacher = played(noise(199, 42, 300), "one"), played(noise(200, 41, 300, seed=1), "another")
    random = played(noise(0, 10, 300, seed=2))
    measured, planned = compare(student, teacher, random), compare(student, teacher, random, planned=280)
    assert 240 < measured.episodes_needed < 300 and planned.episodes_needed == 280
    assert compare(student, teacher, random, planned=1_501).verdict == "inconclusive"
    assert planned.verdict == measured.verdict == "non_inferior"


def test_a_game_whose_returns_are_all_equal_is_an_honest_case() -> None:
    """CartPole's 500 everywhere: the interval is a point, and the verdict stands."""
    perfect = compare(played([500.0] * 20), played([500.0] * 20), played(noise(22, 10, 20)))
    assert perfect.difference_ci95 == (0.0, 0.0) and perfect.verdict == "non_inferior" and perfect.episodes_needed == 20
    lost = compare(played([9.0] * 20), played([500.0] * 20), played(noise(22, 10, 20)))
    assert lost.difference_ci95 == (-491.0, -491.0) and lost.verdict == "inferior"


@pytest.mark.parametrize(
    ("teacher", "random", "margin"),
    [(200.0, -180.0, 10.0), (-80.0, -500.0, 21.0), (-500.0, -400.0, 0.0), (0.0, -10.0, 0.5)],
)
def test_margin(teacher: float, random: float, margin: float) -> None:
    assert margin_of(played([teacher]), played([random])) == pytest.approx(margin)


def test_episodes_needed() -> None:
    teacher = played([190.0, 210.0])  # mean 200, deviation 10: margin 10
    assert episodes_needed(teacher, played([0.0])) == 16
    assert episodes_needed(played([-1.0, -3.0]), played([0.0])) is None
    assert plan_episodes(16) == 100
    assert plan_episodes(112) == 112
    assert plan_episodes(1_501) == 1_000
    assert plan_episodes(None) == 1_000
    assert plan_episodes(16, minimum=10) == 16


def test_needed_episodes_have_the_power_they_promise() -> None:
    """Four in five of equal students pass, unpaired, with as many episodes as are asked for."""
    sd, mean = 40.0, 200.0
    needed = episodes_needed(played([mean - sd, mean + sd]), played([0.0]))
    passed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        student, teacher = rng.normal(mean, sd, (2, needed))
        difference = interval95(bootstrap_means(student, 1_000, seed=0) - bootstrap_means(teacher, 1_000, seed=1))
        passed += verdict_of(difference, 0.05 * mean, lead=mean, n_episodes=needed) == "non_inferior"
    assert 0.7 < passed / 200 < 0.9


def test_compare_scores_and_ratios() -> None:
    comparison = compare(played(noise(150, 1)), played(noise(200, 1, seed=1)), played(noise(-100, 1, seed=2)))
    assert comparison.verdict == "inferior"
    assert comparison.score == pytest.approx(250 / 300, abs=0.01)
    assert comparison.ratio == pytest.approx(0.75, abs=0.01)
    assert comparison.score_ci95[0] < comparison.score < comparison.score_ci95[1]
    assert comparison.ratio_ci95[0] < comparison.ratio < comparison.ratio_ci95[1]
    assert comparison.margin == pytest.approx(10, abs=0.1)
    assert comparison.lead == pytest.approx(300, abs=0.2) and comparison.lead_ci95[0] < comparison.lead
    assert re.fullmatch(r"<Comparison: inferior, student - teacher -[\d.]+ \[-[\d., -]+\], margin [\d.]+>", str(comparison))


def test_quotients_that_mean_nothing_are_not_given() -> None:
    negative = compare(played([-90.0] * 9), played([-80.0] * 9), played([-500.0] * 9))
    assert negative.ratio is None and negative.ratio_ci95 is None
    assert negative.score == pytest.approx(410 / 420)
    hopeless = compare(played([-90.0] * 9), played([-80.0] * 9), played([-10.0] * 9))
    assert hopeless.score is None and hopeless.episodes_needed is None and hopeless.verdict == "no_claim"
    # a teacher that is above random only by chance has a score, but no interval of it
    doubtful = compare(played(noise(0, 1, 20)), played(noise(0.2, 1, 20)), played(noise(0, 1, 20, seed=3)))
    assert doubtful.score_ci95 is None


def test_pairing_resamples_the_same_episodes() -> None:
    easy_and_hard = noise(100, 50)
    student, teacher = easy_and_hard - 1, easy_and_hard
    paired = compare(played(student), played(teacher), played([0.0]))
    apart = compare(played(student, "one"), played(teacher, "another"), played([0.0]))
    assert paired.paired and paired.difference_ci95 == pytest.approx((-1.0, -1.0))
    assert not apart.paired and apart.difference_ci95[1] - apart.difference_ci95[0] > 5
    assert paired.verdict == "non_inferior"


def test_pairing_needs_reproducible_starts_and_equal_numbers() -> None:
    assert played([1, 2]).is_paired_with(played([3, 4]))
    assert not played([1, 2]).is_paired_with(played([3, 4, 5]))
    assert not played([1, 2], "").is_paired_with(played([3, 4], ""))


def test_bootstrap_over_seeds_is_wider_where_seeds_differ() -> None:
    alike = [noise(100, 10, 100, seed) for seed in range(5)]
    differing = [returns + 20 * (seed - 2) for seed, returns in enumerate(alike)]
    low, high = bootstrap_over_seeds(alike)
    assert low < 100 < high and high - low < 5
    low_2, high_2 = bootstrap_over_seeds(differing)
    assert high_2 - low_2 > 5 * (high - low)
    assert bootstrap_over_seeds([np.ones(3)]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="at least one training seed"):
        bootstrap_over_seeds([])
