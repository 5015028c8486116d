"""Test vectors: a few observations and what the student makes of them, as C arrays."""

from __future__ import annotations

import numpy as np

from sb3_qpd.export.c_text import array, float_literal, unsigned_literal
from sb3_qpd.integer import IntegerModel

_N_IMAGES, _N_VECTORS = 2, 32


def frames_of(observations: np.ndarray, n_frames: int) -> np.ndarray:
    """
    Stacked images as the frames that a device gets one by one, the oldest first.

    :param observations: uint8, shape (batch_size, channels, height, width)
    :param n_frames: frames of an observation
    :return: channels last, shape (batch_size, n_frames, height, width, channels // n_frames)
    """
    n, channels, height, width = observations.shape
    return observations.reshape(n, n_frames, channels // n_frames, height, width).transpose(0, 1, 3, 4, 2)


def some_observations(model: IntegerModel, n: int) -> np.ndarray:
    """Raw observations all over the input grid and a little beyond, the same ones each time."""
    rng = np.random.default_rng(0)
    if model.is_image:
        return rng.integers(0, 256, (n, *model.observation_shape), np.uint8)
    if model.parts[0].kind == "one_hot":
        return rng.integers(0, np.array(model.parts[0].nvec).reshape(model.observation_shape), (n, *model.observation_shape))
    assert model.input_multiplier is not None and model.input_offset is not None
    grid, largest = rng.uniform(-140, 140, (n, model.input_multiplier.size)), np.finfo(np.float32).max
    with np.errstate(divide="ignore", invalid="ignore"):  # a feature whose multiplier is zero or nearly zero
        x = (grid - model.input_offset) / model.input_multiplier
    return np.clip(np.nan_to_num(x), -largest, largest).astype(np.float32).reshape(n, *model.observation_shape)


def vectors_text(model: IntegerModel, n_frames: int, observations: np.ndarray | None) -> str:
    """
    Observations, outputs and actions as C arrays.

    :param model: the student
    :param n_frames: frames of an observation, where it is an image
    :param observations: raw; evenly spaced ones are taken
    """
    n = _N_IMAGES if model.is_image else _N_VECTORS
    if observations is None:
        observations = some_observations(model, n)
    else:
        observations = np.asarray(observations)[np.linspace(0, len(observations) - 1, min(n, len(observations))).astype(int)]
    outputs = model.accumulators(observations)  # checks shape and dtype too
    texts = [f"#define POLICY_N_VECTORS {len(observations)}\n", _observations(model, n_frames, observations)]
    texts.append(array("int32_t", "test_outputs", outputs))
    if model.is_box:
        fixed = model.requantization == "fixed"
        actions = model.predict(observations, deterministic=True)[0].reshape(len(outputs), -1)
        texts.append(
            array("int32_t", "test_actions", np.clip(outputs, *model.bounds_in_units()))
            if fixed
            else array("float", "test_actions", actions, float_literal)
        )
    else:
        shape = (len(outputs), len(model.action_nvec))[: 2 if model.action_shape else 1]
        random_bits = np.random.default_rng(1).integers(0, 2**32, shape, np.uint64)
        texts.append(array("int32_t", "test_actions", model.actions(outputs)))
        texts.append(array("uint32_t", "test_random_bits", random_bits, unsigned_literal))
        texts.append(array("int32_t", "test_samples", model.sample(outputs, random_bits)))
    return "\n".join(texts)


def _observations(model: IntegerModel, n_frames: int, observations: np.ndarray) -> str:
    if model.is_image:
        batch, _ = model._batch(observations)
        frames = frames_of(batch, n_frames)
        return array("uint8_t", "test_frames", frames.reshape(*frames.shape[:2], -1))
    if model.parts[0].kind == "one_hot":
        return array("int32_t", "test_observations", observations.reshape(len(observations), -1))
    if model.requantization == "fixed":
        return array("int8_t", "test_observations", model.quantize_input(observations).astype(np.int64))
    flat = observations.reshape(len(observations), -1).astype(np.float32)
    return array("float", "test_observations", flat, float_literal)
