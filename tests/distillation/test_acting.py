"""Whose turn it is while observations are collected."""

import numpy as np
import pytest

from sb3_qpd.distillation.roll_in import RollIn


def play(turns: RollIn, lengths: list[int]) -> list[list[bool]]:
    """One environment plays episodes of these lengths. Returned: whether the teacher acted in each step of each episode."""
    episodes = []
    for length in lengths:
        episode = []
        for step in range(length):
            episode.append(bool(turns.teacher_acts()[0]))
            turns.end_step(np.array([step == length - 1]))
        episodes.append(episode)
    return episodes


@pytest.mark.parametrize(("beta", "expected"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_beta_is_the_share_of_whole_episodes_by_the_teacher(beta, expected):
    episodes = play(RollIn(1, beta, False, np.random.default_rng(0)), [3] * 2000)
    assert all(len(set(episode)) == 1 for episode in episodes)
    assert np.mean([episode[0] for episode in episodes]) == pytest.approx(expected, abs=0.03)


def test_nobody_rolls_in_before_the_length_of_the_teachers_episodes_is_known():
    episodes = play(RollIn(1, 0.0, True, np.random.default_rng(0)), [50] * 20)
    assert not np.any(episodes)


def test_the_teachers_first_steps_are_uniform_up_to_its_own_length():
    turns = RollIn(1, 0.3, True, np.random.default_rng(0))
    play(turns, [20] * 300)  # its length is known to a fraction of a step
    episodes = play(turns, [40] * 3000)
    shared = [sum(episode) for episode in episodes if not all(episode)]
    assert all(episode == sorted(episode, reverse=True) for episode in episodes), "the teacher comes first, then the student"
    # by then the teacher's own episodes have 40 steps too
    late = shared[len(shared) // 2 :]
    assert min(late) == 0
    assert max(late) == pytest.approx(40, abs=1)
    assert np.mean(late) == pytest.approx(20, abs=1)


def test_an_episode_that_fails_in_the_teachers_first_steps_does_not_count_as_its_length():
    turns = RollIn(1, 0.3, True, np.random.default_rng(0))
    play(turns, [200] * 300)
    for _ in range(300):  # whole episodes of the teacher have 200 steps, all others break off after one
        whole = bool(np.isinf(turns._left[0]))
        play(turns, [200 if whole else 1])
    assert turns._teacher_length == pytest.approx(200, abs=1)


def test_environments_take_turns_on_their_own():
    turns = RollIn(1000, 0.25, False, np.random.default_rng(0))
    before = turns.teacher_acts()
    assert before.mean() == pytest.approx(0.25, abs=0.05)
    ended = np.arange(1000) < 500
    turns.end_step(ended)
    after = turns.teacher_acts()
    np.testing.assert_array_equal(after[500:], before[500:])
    assert (after[:500] != before[:500]).any()


def test_the_same_seed_gives_the_same_turns():
    first, second = (play(RollIn(1, 0.25, True, np.random.default_rng(7)), [5, 9, 4] * 30) for _ in range(2))
    assert first == second
