"""Mutants of honest files end in what the file holds or in an error of ours; fuzz.py runs any number of them."""

import random
import time

import pytest
from fuzz import run_mutants
from fuzz_formats import FORMATS
from huggingface_hub import constants

COUNT = 1_000


@pytest.mark.slow
def test_mutants_end_in_a_teacher_or_an_error() -> None:
    outcomes = run_mutants(COUNT, seed=1)
    assert not outcomes.bad
    inside = outcomes["teacher"] + outcomes["refused"]
    assert inside + outcomes["zip"] == COUNT and inside >= COUNT / 2
    assert outcomes["teacher"] >= COUNT / 20  # or it would only test that everything is refused


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_mutants_of_other_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh seed each time; ``fuzz.py --format NAME --seed SEED`` makes the same ones again."""
    for attribute in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE", "HF_HUB_CACHE"):  # the Hub's format changes them
        monkeypatch.setattr(constants, attribute, getattr(constants, attribute))
    monkeypatch.setattr(time, "sleep", time.sleep)
    seed = random.SystemRandom().randrange(10**6)
    print(f"--format {name} --count 100 --seed {seed}")
    outcomes = run_mutants(100, seed, file_format=FORMATS[name])
    assert not outcomes.bad, (seed, outcomes.bad)
    assert outcomes["refused"] + outcomes["student"] == 100 and outcomes["refused"]
