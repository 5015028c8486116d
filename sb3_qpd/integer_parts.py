"""
What an integer model consists of: its layers in integers, and the parts of its observation.

Like :mod:`~sb3_qpd.integer` this module is a part of ``policy.py``. It needs numpy and the standard library only, and runs
under Python 3.8 and numpy 1.17.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_qpd.integer_file import (
    packed_bytes,
)

_UNFOLDED = 2**20  # numbers of an unfolded convolution's input: what stays in a processor's cache


def fixed_point(multiplier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Multipliers as integers: M = m 2^-shift with 2^30 <= m < 2^31 and 1 <= shift <= 62.

    A multiplier below 2^-32 maps every int32 to zero, and is stored as zero. One of 2^30 or more saturates every positive
    accumulator. It is stored with the smallest shift, which saturates too.

    :param multiplier: float32, shape (n_channels,)
    :return: m and shift, int64, same shape
    """
    fraction, exponent = np.frexp(multiplier.astype(np.float64))
    m = np.rint(fraction * 2.0**31).astype(np.int64)  # a float32 has 24 bits: exact, and below 2^31
    shift = 31 - exponent.astype(np.int64)
    return np.where(shift > 62, 0, m), np.clip(shift, 1, 62)


@dataclass
class IntegerLayer:
    """
    A convolution or fully connected layer on integers: ``acc = W x + b``, then requantization to the next grid.

    :param weight: int8, shape (n_out, n_in) or (n_out, n_in, kernel, kernel)
    :param bias: int32, shape (n_out,), on the accumulator's grid
    :param multiplier: float32, shape (n_out,): M of ``y = clamp(round(acc M), 0, 2^activation_bits - 1)``; in the head the
        unit of the accumulator, shape (1,) for logits and (n_out,) for a mean action
    :param weight_bits: bits that a weight is packed in
    :param activation_bits: bits of the output; 0 in the head, which keeps its accumulators
    :param stride: stride of a convolution
    """

    weight: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    weight_bits: int
    activation_bits: int
    stride: int = 1

    def __post_init__(self) -> None:
        self._check_numbers()
        axes = tuple(range(1, self.weight.ndim))
        largest_input = 255  # every grid has at most 8 bits
        sums = np.abs(self.weight.astype(np.int16)).sum(axes, dtype=np.int64)
        bound = sums * largest_input + np.abs(self.bias.astype(np.int64))
        if bound.max() >= 2**31:
            raise ValueError(f"An accumulator could reach {bound.max()}, which does not fit int32")
        dtype = np.float32 if bound.max() < 2**24 else np.float64  # floats that hold every sum exactly, in any order
        self._matrix = self.weight.reshape(len(self.weight), -1).T.astype(dtype)
        self._fixed = fixed_point(self.multiplier) if self.activation_bits else None

    def _check_numbers(self) -> None:
        """Files hold numbers of these types and widths only: others would be another policy there."""
        types = [str(array.dtype) for array in (self.weight, self.bias, self.multiplier)]
        if types != ["int8", "int32", "float32"]:
            raise ValueError(f"Weight, bias and multiplier must be int8, int32 and float32, got {', '.join(types)}")
        n_out = len(self.weight)
        if self.weight.size == 0 or self.bias.shape != (n_out,) or self.multiplier.shape not in ((n_out,), (1,)):
            shapes = f"{self.weight.shape}, {self.bias.shape} and {self.multiplier.shape}"
            raise ValueError(f"Weight, bias and multiplier must have as many channels, got the shapes {shapes}")
        end = 2 ** (self.weight_bits - 1)
        if self.weight.min() < -end or self.weight.max() >= end:
            got = f"{self.weight.min()} to {self.weight.max()}"
            raise ValueError(f"Weights of {self.weight_bits} bits must be {-end} to {end - 1}, got {got}")
        if not (np.isfinite(self.multiplier).all() and (self.multiplier >= 0).all()):
            raise ValueError(f"Multipliers must be finite and not negative, got {self.multiplier}")

    def __repr__(self) -> str:
        bits = f"W{self.weight_bits}A{self.activation_bits}" if self.activation_bits else f"W{self.weight_bits}, head"
        return f"IntegerLayer({'x'.join(map(str, self.weight.shape))}, {bits})"

    @property
    def is_conv(self) -> bool:
        return self.weight.ndim == 4

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights, int32 biases and float32 multipliers."""
        return packed_bytes(self.weight.size, self.weight_bits) + 4 * self.bias.size + 4 * self.multiplier.size

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for one input of ``shape``."""
        if not self.is_conv:
            return (len(self.weight),)
        side = [(n - k) // self.stride + 1 for n, k in zip(shape[1:], self.weight.shape[2:])]
        return (len(self.weight), *side)

    def accumulate(self, x: np.ndarray) -> np.ndarray:
        """
        ``W x + b``.

        :param x: integers in float64, shape (batch_size, n_in) or (batch_size, n_in, height, width)
        :return: int64 within the range of int32, channels in axis 1
        """
        x = x.astype(self._matrix.dtype)
        if not self.is_conv:
            return (x.reshape(len(x), len(self._matrix)) @ self._matrix).astype(np.int64) + self.bias
        windows = self._windows(x)
        n = max(1, _UNFOLDED // max(1, math.prod(windows.shape[1:])))
        pieces = [windows[i : i + n].reshape(-1, len(self._matrix)) @ self._matrix for i in range(0, max(len(x), 1), n)]
        acc = np.concatenate(pieces).reshape(*windows.shape[:3], len(self.weight))
        return (acc.astype(np.int64) + self.bias).transpose(0, 3, 1, 2)

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """
        The inputs under the kernel at each of its positions, as a view: numpy 1.17 has no ``sliding_window_view``.

        :param x: shape (batch_size, n_in, height, width)
        :return: shape (batch_size, rows, columns, n_in, kernel, kernel)
        """
        k, s = self.weight.shape[2], self.stride
        if not (1 <= k <= min(x.shape[2:]) and s >= 1):  # the view would reach beyond the array
            raise ValueError(f"A kernel of {k} x {k} with stride {s} does not fit an input of shape {x.shape[1:]}")
        rows, columns = ((n - k) // s + 1 for n in x.shape[2:])
        image, channel, down, right = x.strides
        shape, strides = (len(x), rows, columns, x.shape[1], k, k), (image, s * down, s * right, channel, down, right)
        return np.lib.stride_tricks.as_strided(x, shape, strides, writeable=False)

    def requantize(self, acc: np.ndarray, requantization: str) -> np.ndarray:
        """
        Accumulators to the next layer's grid; the clamp at zero is the ReLU.

        :param acc: shape (batch_size, n_out, ...)
        :param requantization: ``"float32"`` (ONNX Runtime's rule, half to even) or ``"fixed"`` (integers only, half up)
        :return: integers in float64
        """
        per_channel = (-1, *(1,) * (acc.ndim - 2))
        if requantization == "float32":
            with np.errstate(over="ignore"):  # infinity is clamped like any other large number
                y = np.rint(acc.astype(np.float32) * self.multiplier.reshape(per_channel)).astype(np.float64)
        else:
            m, shift = (v.reshape(per_channel) for v in self._fixed)  # type: ignore[union-attr]
            y = ((acc * m + (np.int64(1) << (shift - 1))) >> shift).astype(np.float64)
        return np.clip(y, 0, 2**self.activation_bits - 1)


@dataclass(frozen=True)
class ObservationPart:
    """
    An observation as the environment gives it, or one value of a Dict observation.

    :param kind: ``"vector"``; ``"one_hot"``: indices, each of which becomes zeros and a one; ``"image"``: uint8;
        ``"float_image"``
    :param shape: raw; channels first for images
    :param nvec: number of categories of each index of a ``"one_hot"``
    :param key: in the Dict; ``None``: this is the whole observation
    """

    kind: str
    shape: tuple[int, ...]
    nvec: tuple[int, ...] = ()
    key: str | None = None

    @property
    def is_image(self) -> bool:
        return self.kind in ("image", "float_image")

    @property
    def n_features(self) -> int:
        return sum(self.nvec) if self.kind == "one_hot" else math.prod(self.shape)

    def batch(self, observation: Any, origin: np.ndarray | None = None) -> tuple[np.ndarray, bool]:
        """Check one observation or a batch, add the batch axis, put channels first. For ``origin`` see :func:`to_float32`."""
        array, shape = np.asarray(observation), self.shape
        self._check_dtype(array.dtype)
        accepted = [shape, (*shape[1:], shape[0])] if self.kind == "image" else [shape]
        for given in accepted:
            for is_batch in (False, True):
                if array.shape[int(is_batch) :] == given and array.ndim == len(given) + is_batch:
                    array = array if is_batch else array[None]
                    if given != shape:
                        array = np.moveaxis(array, -1, 1)
                    self._check_values(array, origin)
                    return array, is_batch
        batched = ", ".join(["batch_size", *map(str, shape)])
        raise ValueError(f"Expected {self._what} of shape {shape} or ({batched}), got {array.shape}")

    @property
    def _what(self) -> str:
        return "an observation" if self.key is None else f"observations of {self.key!r}"

    def _check_dtype(self, dtype: np.dtype) -> None:
        if self.kind == "image" and dtype != np.uint8:
            raise ValueError(f"Expected an image of dtype uint8, got {dtype}")
        if self.kind == "one_hot" and not np.issubdtype(dtype, np.integer):
            raise ValueError(f"Expected {self._what} of integers, got dtype {dtype}")
        if not np.issubdtype(dtype, np.number) or np.issubdtype(dtype, np.complexfloating):
            if dtype != np.bool_ or self.kind != "vector":
                raise ValueError(f"Expected an observation of real numbers, got dtype {dtype}")

    def _check_values(self, batch: np.ndarray, origin: np.ndarray | None) -> None:
        if self.kind == "one_hot":
            if not ((batch >= 0) & (batch < np.array(self.nvec).reshape(self.shape))).all():
                largest = ", ".join(str(n - 1) for n in self.nvec)
                raise ValueError(f"Expected {self._what} of 0 to {largest}, got {batch}")
        elif self.kind != "image":
            is_finite = np.isfinite(to_float32(batch, origin))
            if not is_finite.all():
                raise ValueError(describe_not_finite(batch, is_finite, len(self.shape), self.key))

    def features(self, batch: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
        """float32, shape (batch_size, n_features); images keep their shape. For ``origin`` see :func:`to_float32`."""
        return batch.astype(np.float32) if self.is_image else to_float32(self.row(batch), origin)

    def row(self, batch: np.ndarray) -> np.ndarray:
        """Vectors or indices as rows of shape (batch_size, n_features), each index as zeros and a one. Not for images."""
        x = batch.reshape(len(batch), math.prod(self.shape))
        if self.kind == "one_hot":
            x = np.concatenate([np.arange(n) == x[:, i : i + 1] for i, n in enumerate(self.nvec)], axis=1)
        return x


def to_float32(batch: np.ndarray, origin: np.ndarray | None = None) -> np.ndarray:
    """
    Observations in float32. Where they have an origin, it is taken off in float64 first.

    :param batch: raw observations, shape (batch_size, *shape)
    :param origin: float64, of as many numbers as an observation has; ``None`` takes nothing off
    """
    with np.errstate(over="ignore"):  # the caller looks for infinity
        if origin is None:
            return batch.astype(np.float32)
        return (batch.astype(np.float64) - origin.reshape(batch.shape[1:])).astype(np.float32)


def encode_actions(actions: np.ndarray, nvec: tuple[int, ...]) -> np.ndarray:
    """
    Actions as a student sees them: a Box and bits as they are, each category as zeros and a one.

    :param actions: shape (batch_size, n)
    :param nvec: categories of each dimension; ``()`` for a Box and for bits
    :return: float32, shape (batch_size, n), or (batch_size, sum(nvec))
    """
    if not nvec:
        return actions.astype(np.float32)
    columns = [np.arange(n) == actions[:, i : i + 1] for i, n in enumerate(nvec)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def describe_not_finite(values: np.ndarray, is_finite: np.ndarray, n_axes: int, key: str | None) -> str:
    """
    The message for an observation with a number that float32 does not have.

    :param values: one observation or a batch
    :param is_finite: whether each of the values is finite in float32; at least one is not
    :param n_axes: number of axes of one observation
    :param key: key of the values in a Dict observation
    """
    place = tuple(np.argwhere(~is_finite)[0])
    feature = ", ".join(map(str, place[values.ndim - n_axes :])) + ("" if key is None else f" of {key!r}")
    return f"The observation holds {values[place]} in feature {feature}: expected finite numbers of float32"


def group_parts(parts: tuple[ObservationPart, ...]) -> list[tuple[ObservationPart, ...]]:
    """What goes into each trunk of a network: all vectors and indices together, each image alone."""
    vectors = tuple(part for part in parts if not part.is_image)
    return [*([vectors] if vectors else []), *((part,) for part in parts if part.is_image)]
