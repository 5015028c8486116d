"""Test vectors: a few observations, with the outputs and actions of the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sb3_qpd.checks import check_type
from sb3_qpd.export.c.fields import Field, fields_of
from sb3_qpd.export.value_head import values_of
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, take_rows

_N_IMAGES, _N_VECTORS = 2, 32
DTYPES = {"uint8_t": np.uint8, "int8_t": np.int8, "int32_t": np.int32, "float": np.float32, "double": np.float64}


def frames_of(observations: np.ndarray, n_frames: int) -> np.ndarray:
    """
    Split stacked images into frames, as a device gets them one by one, the oldest first.

    :param observations: uint8, shape (batch_size, channels, height, width)
    :param n_frames: number of frames in an observation
    :return: uint8, channels last: shape (batch_size, n_frames, height, width, channels // n_frames)
    """
    n, channels, height, width = observations.shape
    return observations.reshape(n, n_frames, channels // n_frames, height, width).transpose(0, 1, 3, 4, 2)


def some_observations(model: IntegerModel, n: int) -> Any:
    """
    Random raw observations all over the input grid and a little beyond, the same ones each time.

    :param model: the student
    :param n: number of observations
    :return: shape (n, *observation_shape); a dict of such arrays for Dict observations
    """
    rng = np.random.default_rng(0)
    values = {field.part.key: _some_values(field, n, rng) for field in fields_of(model)}
    return values if model.is_dict else values[None]


def _some_values(field: Field, n: int, rng: np.random.Generator) -> np.ndarray:
    part = field.part
    if part.kind == "image":
        return rng.integers(0, 256, (n, *part.shape), np.uint8)
    if part.kind == "one_hot":
        return rng.integers(0, np.array(part.nvec).reshape(part.shape), (n, *part.shape))
    grid, largest = rng.uniform(-140, 140, (n, field.size)), np.finfo(np.float32).max
    with np.errstate(divide="ignore", invalid="ignore"):  # a feature whose multiplier is zero or nearly zero
        x = (grid - field.offset) / field.multiplier
    x = np.clip(np.nan_to_num(x), -largest, largest).astype(np.float32).reshape(n, *part.shape)
    return x if field.origin is None else x + field.origin.reshape(part.shape)


class Vectors(NamedTuple):
    """
    The content of ``test_vectors.h``.

    :param observations: observations as C takes them, see :func:`c_observations`
    :param outputs: the head's accumulators, shape (batch_size, n_out)
    :param actions: the most probable actions; means of a Box in the unit of ``policy_act``
    :param random_bits: uint32 for each index of a discrete action; ``None`` for a Box
    :param samples: the actions that are drawn with ``random_bits``, in an episode of their own; ``None`` for a Box
    :param weights: the weights that they are drawn with; ``None`` for a Box
    :param masks: the categories that are allowed; ``None``: the student takes no masks
    :param values: what ``policy_value`` gives; ``None``: the C has no value head
    """

    observations: np.ndarray
    outputs: np.ndarray
    actions: np.ndarray
    random_bits: np.ndarray | None = None
    samples: np.ndarray | None = None
    weights: np.ndarray | None = None
    masks: np.ndarray | None = None
    values: np.ndarray | None = None


def make_vectors(model: IntegerModel, n_frames: int, observations: Any, with_values: bool = False) -> Vectors:
    """
    Some observations, with the outputs and actions of the student.

    :param model: the student
    :param n_frames: number of frames in an observation; 1 for vectors
    :param observations: raw observations, of which evenly spaced ones are taken; ``None`` draws some. A student with a memory
        takes them for one episode
    :param with_values: whether the model has a value head
    """
    n = _N_IMAGES if model.has_images else _N_VECTORS
    observations = some_observations(model, n) if observations is None else _spaced(model, observations, n)
    n = len(model.accumulators(observations))  # checks shape and dtype
    masks = some_masks(model, n) if model.uses_masks else None
    states = _states(model, observations, lambda acc, row: model.actions(acc, action_masks=take_rows(masks, row)))
    outputs = model.accumulators(observations, states)
    given = c_observations(model, n_frames, observations)
    values = values_of(model, observations, states) if with_values else None
    if model.is_box and model.requantization == "fixed":
        return Vectors(given, outputs, np.clip(outputs, *model.bounds_in_units()), values=values)
    if model.is_box:
        return Vectors(given, outputs, model.actions(outputs).reshape(n, -1), values=values)
    shape = (n, len(model.action_nvec))[: 2 if model.action_shape else 1]
    bits = np.random.default_rng(1).integers(0, 2**32, shape, np.uint64)
    drawn = _states(model, observations, lambda acc, row: model.sample(acc, bits[row], take_rows(masks, row)))
    samples, weights = model.sample(model.accumulators(observations, drawn), bits, masks), model.weights(outputs, masks)
    return Vectors(given, outputs, model.actions(outputs, action_masks=masks), bits, samples, weights, masks, values)


def _states(model: IntegerModel, observations: Any, choose: Callable[[np.ndarray, slice], np.ndarray]) -> np.ndarray | None:
    """
    The states of a student at each observation of one episode, see :meth:`~sb3_qpd.IntegerModel.trace`.

    :param model: the student
    :param observations: raw observations of the episode
    :param choose: gives the action of a step, from the head's accumulators and the row of the observation
    :return: ``None``: the student has no memory
    """
    if model.history == 1:
        return None
    states, state = list[np.ndarray](), None
    for row in range(batch_size(observations)):
        one = take_rows(observations, slice(row, row + 1))
        states.append(model.remember(one, state)[0])
        action = choose(model.accumulators(one, states[-1]), slice(row, row + 1))
        state = (model.remember(one, (states[-1],), actions=action)[1],)
    return np.concatenate(states)


def _spaced(model: IntegerModel, observations: Any, n: int) -> Any:
    """Evenly spaced ones of given observations, at most n."""
    if model.is_dict:
        check_type("observations", observations, Mapping, "a dict of arrays, shape (n, *shape) each")
        return {key: _spaced_rows(np.asarray(values), n) for key, values in observations.items()}
    check_type("observations", observations, (np.ndarray, list, tuple), "an array, shape (n, *observation_shape)")
    return _spaced_rows(np.asarray(observations), n)


def _spaced_rows(values: np.ndarray, n: int) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, min(n, len(values))).astype(int)]


def some_masks(model: IntegerModel, n: int) -> np.ndarray:
    """
    Random action masks, which allow a category in each dimension.

    :param model: the student
    :param n: number of masks
    :return: uint8 of 0 and 1, shape (n, sum(action_nvec))
    """
    rng, nvec = np.random.default_rng(2), model.action_nvec
    masks = rng.integers(0, 2, (n, sum(nvec)), np.uint8)
    masks[np.arange(n)[:, None], np.cumsum((0, *nvec[:-1])) + rng.integers(0, nvec, (n, len(nvec)))] = 1
    return masks


def c_observations(model: IntegerModel, n_frames: int, observations: Any, is_raw: bool = False) -> np.ndarray:
    """
    Raw observations in the form that C takes: uint8 frames, int32 indices, float32, float64, or the int8 grid of fixed mode.

    :param model: the student
    :param n_frames: number of frames in an observation; 1 for vectors
    :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
    :param is_raw: in units of the environment, as ``policy_quantize`` takes them in fixed mode
    :return: shape (batch_size, n); frames (batch_size, n_frames, size); Dict observations (batch_size,), of C's struct
    """
    if model.is_image:
        batch, _ = model.parts[0].batch(observations)  # channels first
        frames = frames_of(batch, n_frames)
        return frames.reshape(*frames.shape[:2], -1)
    fields = fields_of(model)
    if not model.is_dict:
        return _in_c(fields[0], np.asarray(observations), is_raw)
    types = [(field.name, _dtype(field, is_raw), () if field.is_scalar else (field.size,)) for field in fields]
    structs = np.zeros(len(observations[fields[0].part.key]), np.dtype(types, align=True))
    for field in fields:
        structs[field.name] = _in_c(field, observations[field.part.key], is_raw).reshape(structs[field.name].shape)
    return structs


def _in_c(field: Field, values: np.ndarray, is_raw: bool) -> np.ndarray:
    """The values of a field, shape (batch_size, size): images with channels last, and floats of fixed mode on their grid."""
    part = field.part
    with np.errstate(over="ignore"):  # C refuses infinity
        if field.is_fixed and field.has_grid and not is_raw:
            grid = part.features(values, field.origin).reshape(len(values), -1) * field.multiplier + field.offset
            values = np.clip(np.rint(grid), -128, 127).reshape(values.shape)
        if part.is_image:
            channels_first = part.batch(values)[0] if part.kind == "image" else values
            values = np.moveaxis(channels_first, 1, -1)
        return np.ascontiguousarray(values.reshape(len(values), field.size), _dtype(field, is_raw))


def _dtype(field: Field, is_raw: bool) -> np.dtype:
    return np.dtype(DTYPES[field.raw_type if is_raw else field.c_type])
