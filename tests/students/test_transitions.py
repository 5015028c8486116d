import itertools

import numpy as np
import pytest
from pytest import approx

from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.transitions import TRANSITIONS, abrupt, blend, get_transition, mixture, none, progressive, scratch

GRID = [*np.linspace(0, 1, 201).tolist(), 1e-12, 1 - 1e-12]
TARGETS = (8, 7, 6, 5, 4, 3, 2)
FALLING = {name: transition for name, transition in TRANSITIONS.items() if name not in ("none", "scratch")}


def mean_error(precision: dict[int, float]) -> float:
    """The error of a grid falls by about four with each bit."""
    return sum(share * (0.0 if bits == FLOAT_BITS else 4.0**-bits) for bits, share in precision.items())


@pytest.mark.parametrize("bits", TARGETS)
@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
def test_shares_sum_to_one_and_never_go_below_the_target(transition, bits):
    for progress in GRID:
        precision = transition(progress, bits)
        assert sum(precision.values()) == approx(1.0)
        assert all(0 <= share <= 1 for share in precision.values())
        assert set(precision) <= {FLOAT_BITS, 8, 4, 2, bits} and min(precision) >= bits


@pytest.mark.parametrize("bits", TARGETS)
@pytest.mark.parametrize("transition", FALLING.values(), ids=FALLING)
def test_starts_in_float_ends_at_the_target_and_falls_in_between(transition, bits):
    assert {b: share for b, share in transition(0.0, bits).items() if share} == {FLOAT_BITS: 1.0}
    assert {b: share for b, share in transition(1.0, bits).items() if share} == {bits: 1.0}
    errors = [mean_error(transition(progress, bits)) for progress in sorted(GRID)]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_none_stays_in_float_and_scratch_never_is(progress):
    assert none(progress, 4) == {FLOAT_BITS: 1.0}
    assert scratch(progress, 4) == {4: 1.0}


def test_abrupt_switches_as_soon_as_the_transition_starts():
    assert abrupt(0.0, 4) == {FLOAT_BITS: 1.0}
    assert abrupt(1e-9, 4) == abrupt(1.0, 4) == {4: 1.0}


def test_blend_is_linear():
    assert blend(0.25, 4) == {FLOAT_BITS: 0.75, 4: 0.25}


def test_progressive_takes_each_width_for_an_equal_part():
    assert [progressive(p, 2) for p in (0.01, 0.3, 0.4, 0.6, 0.7, 1.0)] == [{8: 1}, {8: 1}, {4: 1}, {4: 1}, {2: 1}, {2: 1}]
    assert [progressive(p, 4) for p in (0.01, 0.49, 0.5, 1.0)] == [{8: 1}, {8: 1}, {4: 1}, {4: 1}]
    assert [progressive(p, 3) for p in (0.2, 0.5, 0.9)] == [{8: 1}, {4: 1}, {3: 1}]
    assert progressive(0.01, 8) == {8: 1}


def test_mixture_moves_from_eight_bits_to_the_target():
    assert max(mixture(0.01, 2), key=mixture(0.01, 2).get) == 8
    assert max(mixture(0.5, 2), key=mixture(0.5, 2).get) == 4
    assert mixture(0.99, 2)[2] > 0.95
    assert set(mixture(0.5, 4)) == {8, 4}
    # it cools: the leading share grows
    assert mixture(0.99, 2)[2] > mixture(0.01, 2)[8]


def test_unknown_name_lists_those_known_and_the_nearest():
    with pytest.raises(ValueError, match="Unknown transition 'blended'. Known: none, scratch, .* Did you mean 'blend'?"):
        get_transition("blended")
    with pytest.raises(ValueError, match="Unknown transition 'xyz'. Known: none.*mixture.$"):
        get_transition("xyz")
