"""Mutants of honest teachers end in a teacher or in a TeacherError; benchmarks/mutants.py runs as many as one likes."""

import importlib.util
from pathlib import Path

MUTANTS = Path(__file__).resolve().parents[2] / "benchmarks" / "mutants.py"
COUNT = 1_000


def test_mutants_end_in_a_teacher_or_an_error() -> None:
    spec = importlib.util.spec_from_file_location("mutants", MUTANTS)
    assert spec is not None and spec.loader is not None
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    outcomes = mutants.run_mutants(COUNT, seed=1)
    assert not outcomes.bad
    inside = outcomes["teacher"] + outcomes["refused"]
    assert inside + outcomes["zip"] == COUNT and inside >= COUNT / 2
    assert outcomes["teacher"] >= COUNT / 20  # or it would only test that everything is refused
