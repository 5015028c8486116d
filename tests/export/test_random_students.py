"""
Students that no test has seen before, in all of their forms; each run draws others. The number in a test's name is the seed:

    STUDENT_SEED=123 pytest tests/export/test_random_students.py

repeats that student, with every compilation. For thousands of them see ``tests/all_forms.py``.
"""

import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from all_forms import compare
from random_students import RandomStudent, draw

N_STUDENTS = 60
SHARE = 0.3  # of the compilations of C, which take the time; a repeated student has all of them

GIVEN = os.environ.get("STUDENT_SEED")
# the processes of pytest-xdist have to draw the same seeds
FIRST = int(os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:8], 16)
SEEDS = range(FIRST, FIRST + N_STUDENTS) if GIVEN is None else [int(GIVEN)]


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
@pytest.mark.parametrize("seed", SEEDS)
def test_all_forms_are_one_policy(seed: int, tmp_path: Path) -> None:
    student = draw(seed)
    print(student)
    counts = compare(student, tmp_path, SHARE if GIVEN is None else 1.0)
    assert {"npz: equal", "ONNX: equal"} <= set(counts)


def test_a_seed_is_a_student() -> None:
    for seed in range(8):
        one, other = draw(seed), draw(seed)
        assert str(one) == str(other)
        with np.errstate(over="ignore"):
            assert one.model.logits(one.observations).tobytes() == other.model.logits(other.observations).tobytes()


def has_origin(student: RandomStudent) -> bool:
    return any(student.model.origin_of(part) is not None for part in student.model.parts)


def test_all_kinds_are_drawn() -> None:
    """Of observations, offsets, actions and sizes, made by hand and by a policy."""
    students = [draw(seed) for seed in range(100)]
    models = [student.model for student in students]
    assert {part.kind for model in models for part in model.parts} == {"vector", "one_hot", "image", "float_image"}
    assert any(model.is_dict for model in models) and any(model.uses_masks for model in models)
    for is_of_kind in (lambda one: one.policy is None, lambda one: one.policy is not None, lambda one: one.model.is_dict):
        assert any(is_of_kind(one) and has_origin(one) for one in students)
    assert any(student.policy is None for student in students) and any(student.policy is not None for student in students)
    heads = {"Box" if model.is_box else "bits" if model.n_bits else len(model.action_nvec) > 1 for model in models}
    assert heads == {"Box", "bits", True, False}
    layers = [layer for model in models for layer in model.layers]
    assert {layer.weight_bits for layer in layers} == set(range(2, 9))
    assert {layer.activation_bits for layer in layers} == {0, *range(2, 9)}
    assert {len(model.layers) for model in models} >= set(range(1, 7))
    wide = [{layer.weight_bits == 8 for layer in model.layers if layer.weight.size > 2560} for model in models]
    assert {True, False} in wide  # what unpacked weights and others need to be told apart
