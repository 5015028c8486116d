"""
A teacher's float actor as numbers: its layers, its normalization and its action. The undistilled exports are written from it.

It computes in float32 with numpy, as the exported files do, and needs neither torch nor SB3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sb3_qpd.integer import ObservationPart


@dataclass(frozen=True)
class Dense:
    """
    A fully connected layer.

    :param weight: float32, shape (n_out, n_in)
    :param bias: float32, shape (n_out,)
    """

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) @ self.weight.T + self.bias


@dataclass(frozen=True)
class Conv:
    """
    A convolution without padding.

    :param weight: float32, shape (n_out, n_in, height, width)
    :param bias: float32, shape (n_out,)
    :param stride: steps in rows and columns
    """

    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, int]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(x, self.weight.shape[2:], axis=(2, 3))
        windows = windows[:, :, :: self.stride[0], :: self.stride[1]]
        return np.einsum("nchwij,ocij->nohw", windows, self.weight, optimize=True) + self.bias[:, None, None]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """
        Shape of the output for one image.

        :param shape: channels, height, width
        """
        rows, columns = (
            (size - k) // step + 1 for size, k, step in zip(shape[1:], self.weight.shape[2:], self.stride, strict=True)
        )
        return len(self.weight), rows, columns


@dataclass(frozen=True)
class Activation:
    """
    A function of each number.

    :param kind: key of ``ACTIVATIONS``
    :param parameters: numbers of the function: the slope of a leaky ReLU, the bounds of a clip, alpha of an ELU
    """

    kind: str
    parameters: tuple[float, ...] = ()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return ACTIVATIONS[self.kind](x, *self.parameters).astype(np.float32)


def _expm1(x: np.ndarray, alpha: float) -> np.ndarray:
    return alpha * np.expm1(np.minimum(x, 0))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "clip": lambda x, low, high: np.clip(x, low, high),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "elu": lambda x, alpha: np.where(x > 0, x, _expm1(x, alpha)),
    "selu": lambda x, alpha, scale: scale * np.where(x > 0, x, _expm1(x, alpha)),
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "gelu": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2))),
}
Layer = Dense | Conv | Activation


@dataclass(frozen=True)
class InputPart:
    """
    A part of the observation, and the layers that it alone goes through.

    :param part: shape, kind and key
    :param mean: is taken off each feature, shape of the part or ()
    :param factor: multiplies what is left, same shape
    :param clip: largest absolute value afterwards
    :param layers: the convolutions of an image, and what follows them
    """

    part: ObservationPart
    mean: np.ndarray
    factor: np.ndarray
    clip: float = math.inf
    layers: tuple[Layer, ...] = ()

    @property
    def split_mean(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean in two float32 numbers that follow each other: a small deviation would make one's rounding large."""
        high = self.mean.astype(np.float32)
        return high, (self.mean - high).astype(np.float32)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        if self.part.kind == "one_hot":
            columns = observations.reshape(len(observations), -1).T
            hot = [np.eye(n, dtype=np.float32)[one.astype(int)] for n, one in zip(self.part.nvec, columns, strict=True)]
            return np.concatenate(hot, axis=1)
        high, low = self.split_mean
        x = (observations.astype(np.float32) - high - low) * self.factor.astype(np.float32)
        x = np.clip(x, -self.clip, self.clip)
        for layer in self.layers:
            x = layer(x)
        return x.reshape(len(x), -1)


@dataclass(frozen=True)
class FloatActor:
    """
    A float actor.

    :param parts: the parts of an observation
    :param layers: what their features go through together
    :param nvec: categories of each index of a discrete action; () for a Box action
    :param shape: shape of an action
    :param is_binary: whether each output is the logit of 1
    :param low: bounds of a Box action
    :param high: see ``low``
    :param unscales: whether the outputs are actions in [-1, 1], else in environment units
    :param metadata: name and checksum of the teacher, its environment, and its frame stack
    """

    parts: tuple[InputPart, ...]
    layers: tuple[Layer, ...]
    nvec: tuple[int, ...]
    shape: tuple[int, ...]
    is_binary: bool = False
    low: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    unscales: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_box(self) -> bool:
        return not self.nvec

    @property
    def n_outputs(self) -> int:
        return len(next(layer.bias for layer in reversed(self.layers) if isinstance(layer, Dense)))

    @property
    def n_parameters(self) -> int:
        layers = [*self.layers, *(layer for part in self.parts for layer in part.layers)]
        return sum(layer.weight.size + layer.bias.size for layer in layers if not isinstance(layer, Activation))

    def outputs(self, observations: Any) -> np.ndarray:
        """
        Logits or Q-values, or the mean of a Box action in environment units, before it is clipped.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        """
        given = [np.asarray(observations if one.part.key is None else observations[one.part.key]) for one in self.parts]
        x = np.concatenate([one(values) for one, values in zip(self.parts, given, strict=True)], axis=1)
        for layer in self.layers:
            x = layer(x)
        return self.low + 0.5 * (x + 1) * (self.high - self.low) if self.unscales else x

    def actions(self, observations: Any) -> np.ndarray:
        """
        The actions, as SB3's ``predict(deterministic=True)`` gives them.

        :param observations: see :meth:`outputs`
        """
        outputs = self.outputs(observations)
        n = len(outputs)
        if self.is_box:
            return np.clip(outputs, self.low, self.high).reshape(n, *self.shape)
        if self.is_binary:
            return (outputs > 0).astype(np.int64).reshape(n, *self.shape)
        ends: Sequence[int] = np.cumsum(self.nvec)[:-1]  # type: ignore[assignment]
        return np.stack([one.argmax(1) for one in np.split(outputs, ends, axis=1)], axis=1).reshape(n, *self.shape)
