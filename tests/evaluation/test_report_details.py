"""What a report says of layers and of single actions."""

import json
import re

import numpy as np
import pytest
from gymnasium import spaces
from random_students import draw

from sb3_qpd.evaluation.agreement import agreement_of, agreement_table
from sb3_qpd.evaluation.layer_costs import layer_costs
from sb3_qpd.evaluation.report import _on_one_line


@pytest.mark.parametrize("seed", range(40))
def test_costs_of_layers_add_up(seed: int) -> None:
    """For vectors, images and Dicts, and all kinds of actions: bytes and multiply-accumulates are those of the model."""
    student = draw(seed)
    costs = layer_costs(student.model, student.observations)
    assert sum(one["bytes"] for one in costs) == student.model.nbytes
    assert sum(one["macs"] for one in costs) == student.model.macs
    assert [one["name"] for one in costs] == student.model.step_names() and costs[-1]["kind"] == "head"
    for one in costs:
        shares = [one[name] for name in ("weight_range", "range", "saturated", "idle") if name in one]
        assert all(0 <= share <= 1 for share in shares) and 1 <= one.get("accumulator_bits", 1) <= 32


def test_images_with_channels_last_cost_the_same() -> None:
    student = next(one for one in map(draw, range(40)) if [part.kind for part in one.model.parts] == ["image"])
    channels_last = np.moveaxis(student.observations, 1, 3)
    assert layer_costs(student.model, channels_last) == layer_costs(student.model, student.observations)


def test_confusion_of_actions() -> None:
    theirs, ours = np.array([[0, 2], [1, 2], [1, 0], [0, 1]]), np.array([[0, 2], [0, 2], [1, 1], [0, 1]])
    space = spaces.MultiDiscrete([2, 3])
    first, second = (one["counts"].tolist() for one in agreement_table(theirs, ours, space))
    assert first == [[2, 0], [1, 1]] and second == [[0, 1, 0], [0, 1, 0], [0, 0, 2]]
    assert agreement_of(theirs, ours, space) == 6 / 8 == (2 + 1 + 0 + 1 + 2) / 8
    assert agreement_table(theirs[:, 0], ours[:, 0], spaces.Discrete(2))[0]["counts"].tolist() == first
    assert agreement_table(np.zeros(3, int), np.zeros(3, int), spaces.Discrete(33)) == []  # too many to show


def test_errors_of_continuous_actions() -> None:
    theirs = np.stack([np.linspace(-1, 1, 101), np.zeros(101)], axis=1).astype(np.float32)
    unit = theirs[:, 0].std()
    ours = theirs + np.array([unit, -0.5], np.float32)
    space = spaces.Box(-1, 1, (2,))
    first, second = agreement_table(theirs, ours, space)
    assert first["errors"] == pytest.approx([1] * 5) and first["mean_abs"] == pytest.approx(1)
    assert second["errors"] == pytest.approx([-0.5] * 5)  # the teacher never moves it: half the range is the unit
    assert agreement_of(theirs, ours, space) == pytest.approx(np.mean([first["mean_abs"], second["mean_abs"]]))


def test_lists_of_numbers_stand_on_one_line() -> None:
    value = {"a": [1, -2.5, 3e-7, None], "b": ["[\n 1]", [[1, 2], [3]], []], "c": [{"d": [0]}]}
    text = _on_one_line(json.dumps(value, indent=2))
    assert json.loads(text) == value
    assert '"a": [1, -2.5, 3e-07, null]' in text and re.search(r"\[1, 2\],\s+\[3\]", text) and '"d": [0]' in text
