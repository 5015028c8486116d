"""How often a file in plain float32 operators agrees with the integer model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.embedding import state_size
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.integer import IntegerModel

N_VECTORS, N_IMAGES = 2_000, 64


def measure_agreement(path: Path, model: IntegerModel) -> dict[str, Any]:
    """
    Compare a file with its integer model on random observations, in ONNX Runtime with and without its optimizations.

    :param path: the file
    :param model: that it was written from
    :return: JSON values: for both runs the share of equal actions and outputs, and the largest difference of an output
    """
    observations = random_observations(model, N_IMAGES if model.has_images else N_VECTORS)
    state = random_state(model, N_VECTORS)
    expected, actions, found = model.logits(observations, state), model.actions(model.accumulators(observations, state)), {}
    n = len(actions)
    for optimize in (True, False):
        got, outputs, *_ = OnnxPolicy(path, optimize=optimize).run(observations, None, state)
        found["optimized" if optimize else "not optimized"] = {
            "equal_actions": float((got.reshape(n, -1) == actions.reshape(n, -1)).all(1).mean()),
            "equal_outputs": float((outputs == expected).mean()),
            "largest_difference": float(np.abs(outputs.astype(np.float64) - expected).max()),
        }
    return {"compared_with": "student.npz", "random_observations": n, **found}


def random_state(model: IntegerModel, n: int) -> np.ndarray | None:
    """
    Random states of a student with a memory; ``None`` for other students.

    :param model: the student
    :param n: number of states
    """
    if model.history == 1:
        return None
    size = state_size(model) // (model.history - 1)
    return np.random.default_rng(1).integers(-128, 128, (n, model.history - 1, size)).astype(np.int8)


def random_observations(model: IntegerModel, n: int) -> Any:
    """
    Random raw observations all over the input grid and a little beyond, the same ones each time.

    :param model: the student
    :param n: number of observations
    """
    rng, values, used = np.random.default_rng(0), {}, 0
    for part in (part for parts in model.trunks for part in parts):
        if part.kind == "image":
            values[part.key] = rng.integers(0, 256, (n, *part.shape), np.uint8)
            continue
        size = 1 if part.is_image else part.n_features
        m, a = (np.asarray(one)[used : used + size] for one in (model.input_multiplier, model.input_offset))
        used += size
        if part.kind == "one_hot":
            values[part.key] = rng.integers(0, np.reshape(part.nvec, part.shape), (n, *part.shape))
            continue
        shape, largest = (n, size if part.kind == "vector" else int(np.prod(part.shape))), np.finfo(np.float32).max
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # a multiplier may be zero, or nearly so
            x = np.nan_to_num((rng.uniform(-140, 140, shape) - a) / m)
        values[part.key] = np.clip(x, -largest, largest).astype(np.float32).reshape(n, *part.shape)
    return values if model.is_dict else values[None]
