"""Test vectors: a few observations, with the outputs and actions of the student."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sb3_qpd.checks import check_type
from sb3_qpd.integer import IntegerModel

_N_IMAGES, _N_VECTORS = 2, 32


def frames_of(observations: np.ndarray, n_frames: int) -> np.ndarray:
    """
    Split stacked images into frames, as a device gets them one by one, the oldest first.

    :param observations: uint8, shape (batch_size, channels, height, width)
    :param n_frames: number of frames in an observation
    :return: uint8, channels last: shape (batch_size, n_frames, height, width, channels // n_frames)
    """
    n, channels, height, width = observations.shape
    return observations.reshape(n, n_frames, channels // n_frames, height, width).transpose(0, 1, 3, 4, 2)


def some_observations(model: IntegerModel, n: int) -> np.ndarray:
    """
    Random raw observations all over the input grid and a little beyond, the same ones each time.

    :param model: the student
    :param n: number of observations
    """
    rng = np.random.default_rng(0)
    if model.is_image:
        return rng.integers(0, 256, (n, *model.observation_shape), np.uint8)
    if model.parts[0].kind == "one_hot":
        return rng.integers(0, np.array(model.parts[0].nvec).reshape(model.observation_shape), (n, *model.observation_shape))
    assert model.input_multiplier is not None and model.input_offset is not None
    grid, largest = rng.uniform(-140, 140, (n, model.input_multiplier.size)), np.finfo(np.float32).max
    with np.errstate(divide="ignore", invalid="ignore"):  # a feature whose multiplier is zero or nearly zero
        x = (grid - model.input_offset) / model.input_multiplier
    x = np.clip(np.nan_to_num(x), -largest, largest).astype(np.float32).reshape(n, *model.observation_shape)
    origin = model.origin_of(model.parts[0])
    return x if origin is None else x + origin.reshape(model.observation_shape)


class Vectors(NamedTuple):
    """
    The content of ``test_vectors.h``.

    :param observations: observations as C takes them, shape (batch_size, n); frames (batch_size, n_frames, size)
    :param outputs: the head's accumulators, shape (batch_size, n_out)
    :param actions: the most probable actions; means of a Box in the unit of ``policy_act``
    :param random_bits: uint32 for each index of a discrete action; ``None`` for a Box
    :param samples: the actions that are drawn with ``random_bits``; ``None`` for a Box
    """

    observations: np.ndarray
    outputs: np.ndarray
    actions: np.ndarray
    random_bits: np.ndarray | None = None
    samples: np.ndarray | None = None


def make_vectors(model: IntegerModel, n_frames: int, observations: np.ndarray | None) -> Vectors:
    """
    Some observations, with the outputs and actions of the student.

    :param model: the student
    :param n_frames: number of frames in an observation; 1 for vectors
    :param observations: raw observations, of which evenly spaced ones are taken; ``None`` draws some
    """
    n = _N_IMAGES if model.is_image else _N_VECTORS
    if observations is None:
        observations = some_observations(model, n)
    else:
        check_type("observations", observations, (np.ndarray, list, tuple), "an array, shape (n, *observation_shape)")
        observations = np.asarray(observations)[np.linspace(0, len(observations) - 1, min(n, len(observations))).astype(int)]
    outputs = model.accumulators(observations)  # checks shape and dtype too
    given = c_observations(model, n_frames, observations)
    if model.is_box and model.requantization == "fixed":
        return Vectors(given, outputs, np.clip(outputs, *model.bounds_in_units()))
    if model.is_box:
        return Vectors(given, outputs, model.actions(outputs).reshape(len(outputs), -1))
    shape = (len(outputs), len(model.action_nvec))[: 2 if model.action_shape else 1]
    random_bits = np.random.default_rng(1).integers(0, 2**32, shape, np.uint64)
    return Vectors(given, outputs, model.actions(outputs), random_bits, model.sample(outputs, random_bits))


def c_observations(model: IntegerModel, n_frames: int, observations: np.ndarray) -> np.ndarray:
    """
    Raw observations in the form that C takes: uint8 frames, int32 indices, float32, float64, or the int8 grid of fixed mode.

    :param model: the student
    :param n_frames: number of frames in an observation; 1 for vectors
    :param observations: raw observations, shape (batch_size, *observation_shape)
    :return: shape (batch_size, n); frames (batch_size, n_frames, size)
    """
    if model.is_image:
        batch, _ = model.parts[0].batch(observations)  # channels first
        frames = frames_of(batch, n_frames)
        return frames.reshape(*frames.shape[:2], -1)
    if model.parts[0].kind == "vector" and model.requantization == "fixed":
        return model.quantize_input(observations).astype(np.int8)
    real = np.float32 if model.origin_of(model.parts[0]) is None else np.float64
    return observations.reshape(len(observations), -1).astype(real if model.parts[0].kind == "vector" else np.int32)
