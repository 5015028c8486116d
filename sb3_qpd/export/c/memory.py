"""A student with a memory in C: the code of a student without one that takes whole windows, and the window in front of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sb3_qpd.integer import IntegerModel, ObservationPart


def window_model(model: IntegerModel) -> IntegerModel:
    """
    The student without a memory whose observation is a whole window, the oldest observation first.

    :param model: any student; one without a memory is returned as it is
    """
    k, size = model.history, model.history * model.parts[0].n_features
    if k == 1:
        return model
    grid: dict[str, Any] = {
        name: np.tile(values, k)
        for name in ("input_multiplier", "input_offset", "input_origin")
        if (values := getattr(model, name)) is not None
    }
    return replace(model, history=1, observation_shape=(size,), parts=(ObservationPart("vector", (size,)),), **grid)


def before_episode(model: IntegerModel) -> np.ndarray:
    """
    The raw observation that stands before an episode: the one that is zero on the input grid.

    :param model: a student with a memory
    :return: float32, shape (n_features,), or float64 where the student has an input origin
    :raises ValueError: float32 has no such number for a feature
    """
    return _raw(model, np.zeros((1, model.parts[0].n_features), np.int8))[0]


def raw_windows(model: IntegerModel, observations: np.ndarray, state: np.ndarray | None) -> np.ndarray:
    """
    Windows of raw observations for :func:`window_model`, which rounds them to the same integers.

    :param model: a student with a memory
    :param observations: raw observations, shape (batch_size, *observation_shape)
    :param state: see :meth:`~sb3_qpd.IntegerModel.trace`; ``None`` begins episodes
    :return: shape (batch_size, history * n_features)
    """
    n = len(observations)
    grid = np.zeros((n, model.history - 1, model.parts[0].n_features), np.int8) if state is None else state
    before = _raw(model, grid.reshape(-1, grid.shape[2])).reshape(n, -1)
    return np.concatenate([before, observations.reshape(n, -1).astype(before.dtype)], axis=1)


def episode_windows(model: IntegerModel, observations: np.ndarray) -> np.ndarray:
    """
    The windows of one episode.

    :param model: a student with a memory
    :param observations: raw observations of the episode, shape (n, *observation_shape)
    :return: shape (n, history * n_features)
    """
    k, first = model.history, before_episode(model)
    steps = observations.reshape(len(observations), -1).astype(first.dtype)
    padded = np.concatenate([np.tile(first, (k - 1, 1)), steps])
    return np.concatenate([padded[lag : lag + len(steps)] for lag in range(k)], axis=1)


def _raw(model: IntegerModel, grid: np.ndarray) -> np.ndarray:
    """Raw observations that a model rounds to these integers."""
    assert model.input_multiplier is not None and model.input_offset is not None
    m, a = (values.astype(np.float64) for values in (model.input_multiplier, model.input_offset))
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.where(m > 0, (grid - a) / m, 0.0)
    x = x.astype(np.float32) if model.input_origin is None else x.astype(np.float32) + model.input_origin
    found = model.quantize_input(x.reshape(len(x), *model.observation_shape))
    if (found != grid).any():
        feature = int(np.argwhere(found != grid)[0, 1])
        raise ValueError(
            f"No number of float32 is {grid[found != grid][0]} on the input grid of feature {feature}, which C needs for the "
            "window of a student with a memory. Subtract the offset of this feature in the environment"
        )
    return x
