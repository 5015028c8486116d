"""Which trials stop. Scores are made up: what counts is the decision that follows from them."""

import numpy as np
import pytest

from sb3_qpd import Evaluation
from sb3_qpd.search.results import find_winner
from sb3_qpd.search.selection import candidates, choose, pareto_front
from sb3_qpd.search.tasks import Configuration, Finished
from sb3_qpd.search.trials import Standard, StopRule, Trial, by_configuration

RUNGS, N = (0.25, 0.5, 0.75), 32


def returns(mean: float, seed: int = 0, spread: float = 5.0) -> np.ndarray:
    return mean + spread * np.random.default_rng(seed).standard_normal(N)


def evaluation(mean: float) -> Evaluation:
    return Evaluation("", returns(mean, seed=1), np.ones(N, int), True, 0, starts="the same")


STANDARD = Standard(evaluation(200.0), evaluation(0.0), returns(200.0, seed=1))  # the margin is 10


def make_trials(*students: tuple[int, int], seeds: int = 1) -> list[Trial]:
    """Trials of students of so many bytes and bits."""
    made = [Configuration(f"{size}-{bits}", "nano", (bits, bits), {}, size) for size, bits in students]
    pairs = [(one, seed) for one in made for seed in range(seeds)]
    return [Trial(number, one, seed) for number, (one, seed) in enumerate(pairs)]


def score(trial: Trial, *means: float) -> None:
    """Scores at the rungs, and after them the result."""
    for rung, mean in enumerate(means[: len(RUNGS)]):
        trial.scores[rung] = returns(mean, seed=trial.number)
    if len(means) > len(RUNGS):
        played = returns(means[-1], seed=trial.number)
        trial.result = Finished(played, 1000, trial.configuration.nbytes, "", 1.0, 1.0)


def make_rule(stops_larger: bool = True) -> StopRule:
    return StopRule(STANDARD, RUNGS, precision_end=0.7, stops_larger=stops_larger)


def stops(trials: list[Trial], stops_larger: bool = True) -> dict[int, int]:
    return make_rule(stops_larger).stops(trials)


def test_a_dominated_trial_stops_and_a_larger_one_stops_no_smaller_one() -> None:
    small, large = trials = make_trials((100, 8), (200, 8))
    score(small, 0, 100)
    score(large, 0, 50)
    assert stops(trials) == {1: 1}  # half of the steps are done: not at the first rung
    score(large, 0, 199)
    assert stops(trials) == {}


def test_what_is_not_clearly_inferior_goes_on() -> None:
    small, large = trials = make_trials((100, 8), (200, 8))
    score(small, 150, 201)
    score(large, 100, 192)  # within the margin
    assert stops(trials) == {}


def test_few_bits_are_judged_when_their_precision_has_fallen() -> None:
    small, large = trials = make_trials((100, 8), (200, 2))
    score(small, 100, 150, 150)
    score(large, 0, 0)
    assert stops(trials) == {}
    score(large, 0, 0, 100)
    assert stops(trials) == {1: 2}


def test_another_seed_stops_no_trial() -> None:
    trials = make_trials((100, 8), (200, 8), seeds=2)
    score(trials[0], 100, 150)
    score(trials[3], 0, 50)
    assert stops(trials) == {}


@pytest.mark.parametrize("stops_larger", [True, False])
def test_larger_ones_stop_when_one_is_good_enough(stops_larger: bool) -> None:
    trials = make_trials((100, 8), (200, 8), (300, 8), seeds=2)
    score(trials[0], 100, 150, 190, 200)
    score(trials[2], 180)
    score(trials[4], 240)  # clearly better than the finished student of its seed
    assert stops(trials, stops_larger) == {}  # the second seed of the smallest is not at its end
    score(trials[1], 100, 150, 190, 201)
    assert stops(trials, stops_larger) == ({2: 0} if stops_larger else {})


def test_a_seed_that_failed_is_no_obstacle() -> None:
    trials = make_trials((100, 8), (200, 8), seeds=2)
    score(trials[0], 100, 150, 190, 200)
    trials[1].failures = 3
    score(trials[2], 180)
    assert stops(trials) == {2: 0}


def test_the_same_trials_stop_in_whichever_order_scores_arrive() -> None:
    rng = np.random.default_rng(0)
    n_stopped = 0
    for _ in range(10):
        students = [(100 * (i + 1), int(bits)) for i, bits in enumerate(rng.choice([8, 2], 6))]
        ability = rng.uniform(100, 205, (12, len(RUNGS) + 1)).cumsum(axis=1) / np.arange(1, len(RUNGS) + 2)
        outcomes, rule = [], make_rule()
        for workers in (1, 3, 12):
            trials = make_trials(*students, seeds=2)
            run(trials, rule, ability, workers, rng)
            outcomes.append(rule.stops(trials))
        assert outcomes[0] == outcomes[1] == outcomes[2]
        n_stopped += len(outcomes[0])
    assert 20 < n_stopped < 100  # of 120


def run(trials: list[Trial], rule: StopRule, ability: np.ndarray, workers: int, rng: np.random.Generator) -> None:
    """As many trials side by side as there are workers; which of them comes to its next rung first is drawn."""
    while True:
        over = rule.stops(trials)
        active = [trial for trial in trials if trial.number not in over and trial.result is None][:workers]
        if not active:
            return
        trial = active[rng.integers(len(active))]
        score(trial, *ability[trial.number, : len(trial.scores) + 1])


def test_the_frontier_and_its_winner() -> None:
    trials = make_trials((100, 8), (200, 8), (300, 8), (400, 8), seeds=2)
    for group, mean in zip(by_configuration(trials), (150, 140, 199, 202), strict=True):
        for trial in group:
            score(trial, mean, mean, mean, mean)
    found = candidates(trials, {})
    points, winner = choose(found, STANDARD, has_limit=False)
    assert [one.configuration.nbytes for one in points] == [100, 300, 400] and winner == 1
    assert choose(found, STANDARD, has_limit=True)[1] == 2
    assert choose(found[:2], STANDARD, has_limit=False)[1] is None


@pytest.mark.parametrize(
    ("verdicts", "chosen", "winner"),
    [
        ("inferior non_inferior non_inferior", 1, 1),
        ("inferior inconclusive non_inferior", 1, 2),
        ("non_inferior inconclusive inferior", 1, 1),  # a smaller one was not chosen, and none takes its place
        ("non_inferior non_inferior", None, None),
    ],
)
def test_test_episodes_confirm_the_winner(verdicts: str, chosen: int | None, winner: int | None) -> None:
    points = [{"verdict": verdict} for verdict in verdicts.split()]
    assert find_winner(points, chosen) == winner


def test_a_stopped_seed_counts_with_its_last_score() -> None:
    lucky, unlucky = trials = make_trials((100, 8), seeds=2)
    score(lucky, 100, 150, 190, 200)
    score(unlucky, 20)
    [one] = candidates(trials, {1: 0})
    assert one.return_mean == pytest.approx(110, abs=3) and not one.is_complete
    assert choose([one], STANDARD, has_limit=False) == ([one], None)
    assert pareto_front([]) == []
