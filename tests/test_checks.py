"""Checks of arguments: what is refused, and what the message says."""

import math

import numpy as np
import pytest

from sb3_qpd.checks import check_choice, check_count, check_flags, check_positive, check_seed, check_whole, did_you_mean


def test_names() -> None:
    check_choice("transition", "blend", ("blend", "none"))
    with pytest.raises(ValueError, match=r"^Unknown transition 'blent'. Known: blend, none. Did you mean 'blend'\?$"):
        check_choice("transition", "blent", ("blend", "none"))
    with pytest.raises(TypeError, match=r"transition must be one of the names blend, none, got \['blend'\] \(list\)"):
        check_choice("transition", ["blend"], ("blend", "none"))
    assert did_you_mean("xyz", ["blend"]) == ""


@pytest.mark.parametrize("value", [True, False, np.True_, np.array(False)])
def test_flags(value: object) -> None:
    check_flags(roll_in=value)


@pytest.mark.parametrize("value", ["no", 1, 0, None, math.nan, [True], np.array([True])])
def test_no_flags(value: object) -> None:
    with pytest.raises(TypeError, match="roll_in must be True or False, got "):
        check_flags(roll_in=value)


def test_numbers() -> None:
    assert check_whole("n", 1e5) == 100_000 and check_whole("n", np.int64(3), most=3) == 3 and check_whole("n", 0, 0) == 0
    assert check_seed("seed", 2**32 - 1) == 2**32 - 1 and check_count("n", np.int32(2)) == 2
    assert check_positive("t", np.float32(0.5)) == 0.5
    for value in (0, -1, 0.5, "3", None, True, math.nan, math.inf, [3], 4):
        with pytest.raises(ValueError, match="n must be a whole number of 1 to 3, got "):
            check_whole("n", value, most=3)
    for value in (0, 2.0, "3", None, True, math.nan):
        with pytest.raises(ValueError, match="n must be an integer of at least 1, got "):
            check_count("n", value)
    for value in (-1, 2**32, "a", 0.5, None):
        with pytest.raises(ValueError, match="seed must be a whole number of 0 to 4294967295, got "):
            check_seed("seed", value)
    for value in (0, -1.0, math.inf, math.nan, "1", True):
        with pytest.raises(ValueError, match="t must be a positive number, got "):
            check_positive("t", value)
