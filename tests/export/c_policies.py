"""What the tests of C share: students as integer models, their compiled C, and comparisons without tolerance."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from students import DISCRETE, make_student

from sb3_qpd import IntegerModel
from sb3_qpd.export.c.exporter import export_c
from sb3_qpd.export.c.runtime import CPolicy
from sb3_qpd.integer import IntegerLayer

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")


def integers(observation_space, action_space=DISCRETE, bits=(8, 8), requantization="float32", **kwargs) -> IntegerModel:
    model = make_student(observation_space, action_space, bits, **kwargs).to_integer()
    model.requantization = requantization
    return model


def compiled(model: IntegerModel, folder: Path, cflags=("-O2",), **kwargs) -> CPolicy:
    export_c(model, folder, **kwargs)
    return CPolicy(folder, cflags, name=kwargs.get("name", "policy"))


def linear(n_actions: int, unit: float, seed: int = 0) -> IntegerModel:
    """A linear policy on two features whose logits are in units of ``unit``."""
    weight = np.random.default_rng(seed).integers(-90, 90, (n_actions, 2)).astype(np.int8)
    head = IntegerLayer(weight, np.zeros(n_actions, np.int32), np.array([unit], np.float32), 8, 0)
    return IntegerModel([head], (2,), np.full(2, 10, np.float32), np.zeros(2, np.float32))


def assert_same(c: CPolicy, model: IntegerModel, observations: np.ndarray) -> None:
    """Outputs, and every step before them, with no tolerance."""
    outputs = c.outputs(observations)
    np.testing.assert_array_equal(outputs, model.accumulators(observations))
    for ours, theirs in zip(c.trace(observations[:64], model)[0], model.trace(observations[:64]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_same_actions(c: CPolicy, model: IntegerModel, observations: np.ndarray) -> None:
    actions = c.actions(observations)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(actions[:3], [c.act(observation) for observation in observations[:3]])
    np.testing.assert_array_equal(actions.reshape(expected.shape), expected)
