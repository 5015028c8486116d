"""Mutants of honest teachers end in a teacher or in a TeacherError; fuzz.py runs any number of them."""

import pytest
from fuzz import run_mutants

COUNT = 1_000


@pytest.mark.slow
def test_mutants_end_in_a_teacher_or_an_error() -> None:
    outcomes = run_mutants(COUNT, seed=1)
    assert not outcomes.bad
    inside = outcomes["teacher"] + outcomes["refused"]
    assert inside + outcomes["zip"] == COUNT and inside >= COUNT / 2
    assert outcomes["teacher"] >= COUNT / 20  # or it would only test that everything is refused
