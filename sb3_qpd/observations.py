"""Batches of observations, as arrays or as dicts of arrays: size, rows, stacking, joining and cutting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sb3_qpd.integer_parts import ObservationPart, describe_not_finite, to_float32

Observation = np.ndarray | dict[str, np.ndarray]
PIECE_SIZE = 128  # observations for one call of a network


def batch_size(batch: Any) -> int:
    """
    Number of observations in a batch.

    :param batch: array, dict of arrays, or tuple of observations and action masks
    """
    if isinstance(batch, tuple):
        return batch_size(batch[0])
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)


def check_finite(values: Any, n_axes: int, key: str | None = None) -> None:
    """
    Refuse NaN, infinity, and numbers that are infinite in float32.

    :param values: one observation or a batch
    :param n_axes: number of axes of one observation
    :param key: key of the values in a Dict observation
    :raises ValueError: there is such a number; the message names its feature and its value
    """
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return
    is_finite = np.isfinite(to_float32(array) if array.dtype == np.float64 else array)
    if not is_finite.all():
        raise ValueError(f"{describe_not_finite(array, is_finite, n_axes, key)}. Clip or replace it in the environment")


def take_rows(batch: Any, rows: slice | int) -> Any:
    """
    Some rows of a batch, or one row.

    :param batch: array, dict of arrays, ``None``, or tuple of these
    :param rows: a slice gives a batch, an integer a single observation
    """
    if isinstance(batch, tuple):
        return tuple(take_rows(part, rows) for part in batch)
    if isinstance(batch, dict):
        return {key: values[rows] for key, values in batch.items()}
    return None if batch is None else batch[rows]


def observation_rows(parts: tuple[ObservationPart, ...], observations: Any) -> np.ndarray:
    """
    Observations as the rows of a window: each one's vectors and indices, one after the other.

    :param parts: what an observation consists of, without images
    :param observations: raw, shape (batch_size, *observation_shape); a dict of such arrays
    :return: shape (batch_size, n_features)
    """
    values = [observations if part.key is None else observations[part.key] for part in parts]
    return np.concatenate([part.row(value) for part, value in zip(parts, values, strict=True)], axis=1)


def copy_row(batch: Observation, row: int) -> Observation:
    """
    A copy of one observation. An environment may write its next observation into the same memory.

    :param batch: batch of observations
    :param row: index of the observation
    """
    if isinstance(batch, dict):
        return {key: values[row].copy() for key, values in batch.items()}
    return np.array(batch[row])


def stack(observations: Sequence[Any]) -> Observation:
    """
    One batch of single observations, in the environment's dtype.

    :param observations: at least one observation
    """
    if isinstance(observations[0], dict):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


def join(batches: Sequence[Any]) -> Any:
    """
    One batch of several, always as a copy.

    :param batches: batches of one kind: arrays, dicts of arrays, ``None``, or tuples of these
    """
    first = batches[0]
    if isinstance(first, tuple):
        return tuple(join(parts) for parts in zip(*batches, strict=True))
    if first is None:
        return None
    if isinstance(first, dict):
        return {key: np.concatenate([batch[key] for batch in batches]) for key in first}
    return np.concatenate(batches)


def pieces(batches: Iterable[Any], size: int = PIECE_SIZE) -> Iterator[Any]:
    """
    The same observations in batches of ``size``; the last batch may be smaller.

    A network then takes fewer calls than the environment made steps.

    :param batches: batches of any sizes: observations, or tuples of observations and action masks
    :param size: number of observations in a piece
    """
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(join([batch]))  # a copy: an environment may write its next observations over these
        while sum(map(batch_size, waiting)) >= size:
            together = join(waiting)
            yield take_rows(together, slice(size))
            waiting = [take_rows(together, slice(size, None))]
    if any(map(batch_size, waiting)):
        yield join(waiting)
