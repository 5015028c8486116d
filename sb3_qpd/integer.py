"""
The student as integers: packed weights, int32 accumulators, a numpy interpreter, and a file without pickle.

This module needs numpy and the standard library only. Copied to a device together with an ``.npz`` it is a complete
installation: ``IntegerModel.load("student.npz").predict(observation)``. Devices have older software than the computers that
train: the module runs under Python 3.8 and numpy 1.17.
"""

from __future__ import annotations  # Python 3.8 or newer is needed

import io
import json
import math
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

if sys.version_info < (3, 8):  # noqa: UP036 - a copy of this file has no package that could ask for it
    raise ImportError("This file needs Python 3.8 and numpy 1.17 or newer, this is Python {}.{}".format(*sys.version_info))

FORMAT_VERSION = 2  # 1: one vector or uint8 image, one Box or Discrete action; such a model is still written as 1
REQUANTIZATIONS = ("float32", "fixed")
MAX_BYTES = 64 * 2**20  # of a file's arrays together: unpacked they are several times as large
_PIECE = 256  # observations that go through the network at once
_UNFOLDED = 2**20  # numbers of an unfolded convolution's input: what stays in a processor's cache
# exp(-d) for the sampler: d in units of 1/256 nat, the high part in steps of a quarter nat (24 bits: the tail counts too)
EXP_HIGH = np.array([round(2**24 * math.exp(-i / 4)) for i in range(64)], dtype=np.uint64)
EXP_LOW = np.array([round(65535 * math.exp(-i / 256)) for i in range(64)], dtype=np.uint64)


def pack(weight: np.ndarray, bits: int) -> np.ndarray:
    """
    Integers as a little-endian bit stream of ``bits`` bits each, offset by 2^(bits - 1).

    :param weight: signed integers, any shape
    :param bits: 2 to 8
    :return: uint8, shape (ceil(size * bits / 8),)
    """
    unsigned = (weight.reshape(-1).astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    planes = np.unpackbits(unsigned[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`pack`: int8 of the given shape."""
    size = math.prod(shape)
    planes = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
    unsigned = np.packbits(planes, axis=1, bitorder="little")[:, 0].astype(np.int16)
    return (unsigned - 2 ** (bits - 1)).astype(np.int8).reshape(shape)


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


def weight_shift(n_actions: int) -> int:
    """
    Bits that the sampler drops from the product of two table entries, so that the sum of all weights stays below 2^32.

    :param n_actions: categories to choose from
    :return: 16, which leaves 24 bits, for up to 256 categories; more beyond
    """
    return 16 + max(0, (n_actions - 1).bit_length() - 8)


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
        return math.ceil(self.weight.size * self.weight_bits / 8) + 4 * self.bias.size + 4 * self.multiplier.size

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

    def batch(self, observation: Any) -> tuple[np.ndarray, bool]:
        """Check one observation or a batch, add the batch axis, put channels first."""
        array, shape = np.asarray(observation), self.shape
        self._check_dtype(array.dtype)
        accepted = [shape, (*shape[1:], shape[0])] if self.kind == "image" else [shape]
        for given in accepted:
            for is_batch in (False, True):
                if array.shape[int(is_batch) :] == given and array.ndim == len(given) + is_batch:
                    array = array if is_batch else array[None]
                    if given != shape:
                        array = np.moveaxis(array, -1, 1)
                    self._check_values(array)
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

    def _check_values(self, batch: np.ndarray) -> None:
        if self.kind == "one_hot":
            if not ((batch >= 0) & (batch < np.array(self.nvec).reshape(self.shape))).all():
                largest = ", ".join(str(n - 1) for n in self.nvec)
                raise ValueError(f"Expected {self._what} of 0 to {largest}, got {batch}")
        elif self.kind != "image" and not np.isfinite(batch.astype(np.float32)).all():
            raise ValueError("The observation holds NaN, infinity or a number beyond float32: not a valid input")

    def features(self, batch: np.ndarray) -> np.ndarray:
        """float32, shape (batch_size, n_features); images keep their shape."""
        if self.is_image:
            return batch.astype(np.float32)
        x = batch.reshape(len(batch), math.prod(self.shape))
        if self.kind == "one_hot":
            x = np.concatenate([np.arange(n) == x[:, i : i + 1] for i, n in enumerate(self.nvec)], axis=1)
        return x.astype(np.float32)


def group_parts(parts: tuple[ObservationPart, ...]) -> list[tuple[ObservationPart, ...]]:
    """What goes into each trunk of a network: all vectors and indices together, each image alone."""
    vectors = tuple(part for part in parts if not part.is_image)
    return [*([vectors] if vectors else []), *((part,) for part in parts if part.is_image)]


@dataclass(repr=False)
class IntegerModel:
    """
    A student in integer arithmetic, with SB3's ``predict`` on raw observations.

    Each image of a Dict observation goes through a trunk of its own, and so do all of its other values, one after the other
    as one vector; the head takes what comes out of all trunks.

    :param layers: trunk (or trunks, that of the vector first, then those of the images in order) and head
    :param observation_shape: shape of one observation; channels first for images; ``()`` for a Dict
    :param input_multiplier: float32, one for each feature of a vector: ``q = clamp(round(x m + a), -128, 127)``, one
        multiplication and one addition in float32; one for a float image; uint8 images are a grid already, and a model of
        nothing else has ``None``
    :param input_offset: a of the above
    :param action_low: float32, shape (action_dim,): bounds of a Box action; ``None`` for discrete actions
    :param action_high: see ``action_low``
    :param action_shape: shape of one action
    :param action_std: float32, shape (action_dim,): standard deviation of a sampled Box action
    :param requantization: ``"float32"`` or ``"fixed"``, see :class:`IntegerLayer`
    :param metadata: JSON values that travel with the model (teacher, environment, versions)
    :param parts: what an observation consists of; by default one vector or uint8 image of ``observation_shape``
    :param branches: number of layers of each trunk
    :param action_nvec: categories of each dimension of a MultiDiscrete or MultiBinary action, by default one of all outputs.
        With one output for each dimension (MultiBinary) that is the logit of 1, the logit of 0 being 0
    :param uses_masks: the student was taught with action masks and should be given them
    """

    layers: list[IntegerLayer]
    observation_shape: tuple[int, ...]
    input_multiplier: np.ndarray | None = None
    input_offset: np.ndarray | None = None
    action_low: np.ndarray | None = None
    action_high: np.ndarray | None = None
    action_shape: tuple[int, ...] = ()
    action_std: np.ndarray | None = None
    requantization: str = "float32"
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: tuple[ObservationPart, ...] = ()
    branches: tuple[int, ...] = ()
    action_nvec: tuple[int, ...] = ()
    uses_masks: bool = False
    takes_raw_observations: ClassVar[bool] = True

    def __repr__(self) -> str:
        bits = "/".join(dict.fromkeys(str(layer.weight_bits) for layer in self.layers))
        outputs = "Box" if self.is_box else f"discrete {self.action_nvec}"
        inputs = ", ".join(f"{part.kind} {part.shape}" for part in self.parts)
        return (
            f"<IntegerModel: {inputs} to a {outputs} action, {len(self.layers)} layers of {bits}-bit weights, "
            f"{self.n_parameters:,} parameters, {self.nbytes:,} bytes>"
        )

    def __post_init__(self) -> None:
        self.observation_shape = tuple(int(n) for n in self.observation_shape)
        self.action_shape = tuple(int(n) for n in self.action_shape)
        self.parts = tuple(self.parts) or (self._default_part(),)
        self.branches = tuple(int(n) for n in self.branches) or (len(self.layers) - 1,)
        self.action_nvec = () if self.is_box else tuple(int(n) for n in self.action_nvec) or (len(self.layers[-1].bias),)
        self._check_form()
        self._check_numbers()
        if self.requantization not in REQUANTIZATIONS:
            raise ValueError(f"requantization must be one of {REQUANTIZATIONS}, got '{self.requantization}'")
        self._rng = np.random.default_rng()

    def _default_part(self) -> ObservationPart:
        return ObservationPart("image" if self.input_multiplier is None else "vector", self.observation_shape)

    def _check_form(self) -> None:
        if (len(self.branches), sum(self.branches)) != (len(self.trunks), len(self.layers) - 1):
            raise ValueError(f"{len(self.layers) - 1} layers in trunks of {self.branches} for {len(self.trunks)} inputs")
        n_out = self.layers[-1].bias.size
        if not self.is_box and n_out not in (sum(self.action_nvec), self.n_bits):
            raise ValueError(f"{n_out} outputs for an action of {self.action_nvec} categories")

    def _check_numbers(self) -> None:
        """The forms of a student would differ in the rounding of other types, and in what they make of infinity."""
        for name in _FLOAT_FIELDS:
            values = getattr(self, name)
            if values is not None and not (np.asarray(values).dtype == np.float32 and np.isfinite(values).all()):
                raise ValueError(f"{name} must hold finite numbers of float32, got {np.asarray(values).dtype} {values}")
        if self.is_box and not (np.asarray(self.action_low) <= np.asarray(self.action_high)).all():
            raise ValueError(f"action_low must not be above action_high, got {self.action_low} and {self.action_high}")

    @property
    def trunks(self) -> list[tuple[ObservationPart, ...]]:
        """What goes into each trunk."""
        return group_parts(self.parts)

    @property
    def is_box(self) -> bool:
        return self.action_low is not None

    @property
    def is_image(self) -> bool:
        """Whether the observation is a uint8 image."""
        return self.parts[0].kind == "image" and not self.is_dict

    @property
    def is_dict(self) -> bool:
        return self.parts[0].key is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is a model of one vector or uint8 image and of one Box or Discrete action."""
        is_single = len(self.action_nvec) < 2 and not self.n_bits
        return is_single and not self.uses_masks and self.parts == (self._default_part(),)

    @property
    def n_bits(self) -> int:
        """Dimensions of a MultiBinary action whose logits of 0 are 0; 0 for other actions."""
        nvec = self.action_nvec
        return len(nvec) if set(nvec) == {2} and self.layers[-1].bias.size == len(nvec) else 0

    @property
    def nat_scale(self) -> tuple[int, int]:
        """
        The unit of the logits in 1/256 nat, as a multiplier m and a shift s of 1 to 63.

        A difference d of accumulators is ``(d m + 2^(s - 1)) >> s`` units: what :meth:`sample` looks up in its tables.
        """
        fraction, exponent = math.frexp(float(self.layers[-1].multiplier[0]) * 256)
        multiplier, shift = round(fraction * 2**30), 30 - exponent
        if shift < 1:  # 2^20 nats and more: any difference is beyond the tables
            return (8192 if multiplier else 0), 1
        return multiplier, min(shift, 63)

    @property
    def nbytes(self) -> int:
        """Bytes that a device holds: packed weights, biases, multipliers, input grid, action bounds and deviation."""
        extras = (self.input_multiplier, self.input_offset, self.action_low, self.action_high, self.action_std)
        return sum(layer.nbytes for layer in self.layers) + sum(4 * a.size for a in extras if a is not None)

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum(layer.weight.size + layer.bias.size for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one action."""
        total = self.layers[-1].weight.size
        for parts, layers in self._branches():
            shape: tuple[int, ...] = parts[0].shape
            for layer in layers:
                shape = layer.output_shape(shape)
                total += layer.weight.size * math.prod(shape[1:])
        return total

    def _branches(self) -> Iterator[tuple[tuple[ObservationPart, ...], list[IntegerLayer]]]:
        """Each trunk's input and layers."""
        start = 0
        for parts, n_layers in zip(self.trunks, self.branches):
            yield parts, self.layers[start : start + n_layers]
            start += n_layers

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the generator that sampled actions come from."""
        self._rng = np.random.default_rng(seed)

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def quantize_input(self, observations: Any) -> np.ndarray:
        """
        Raw observations to the input grid of the (first) trunk.

        :param observations: shape (batch_size, *observation_shape); a dict of such arrays
        :return: integers in float64: 0 to 255 for uint8 images, else -128 to 127
        """
        return next(self.input_grids(observations))

    def input_grids(self, observations: Any) -> Iterator[np.ndarray]:
        """Raw observations to the input grid of each trunk, see :meth:`quantize_input`."""
        used = 0
        for parts in self.trunks:
            values = [observations if part.key is None else observations[part.key] for part in parts]
            if parts[0].kind == "image":
                yield values[0].astype(np.float64)
                continue
            x = np.concatenate([part.features(value) for part, value in zip(parts, values)], axis=1)
            n = 1 if parts[0].is_image else x.shape[1]
            with np.errstate(over="ignore"):  # infinity is clamped like any other large number
                scaled = x * self.input_multiplier[used : used + n]  # type: ignore[index]
                shifted = scaled + self.input_offset[used : used + n]  # type: ignore[index]
            used += n
            yield np.clip(np.rint(shifted), -128, 127).astype(np.float64)

    def trace(self, observations: Any) -> Iterator[np.ndarray]:
        """
        The integers after each step: of each trunk the input grid and each layer's output, at last the head's accumulators.

        :param observations: raw, shape (batch_size, *observation_shape); a dict of such arrays
        """
        features = []
        for x, (_, layers) in zip(self.input_grids(observations), self._branches()):
            yield x
            for layer in layers:
                x = layer.requantize(layer.accumulate(x), self.requantization)
                yield x
            features.append(x.reshape(len(x), math.prod(x.shape[1:])))
        yield self.layers[-1].accumulate(np.concatenate(features, axis=1))

    def step_names(self) -> list[str]:
        """
        Names of the steps of :meth:`trace`: ``input_grid``, ``layer0``, ..., ``accumulators``.

        A second trunk begins with ``input_grid1``.
        """
        names, start = [], 0
        for trunk, n_layers in enumerate(self.branches):
            names += [f"input_grid{trunk or ''}", *(f"layer{i}" for i in range(start, start + n_layers))]
            start += n_layers
        return [*names, "accumulators"]

    def accumulators(self, observations: Any) -> np.ndarray:
        """The head's accumulators: int64 within the range of int32, shape (batch_size, n_out)."""
        return self._accumulators(self._batch(observations)[0])

    def _accumulators(self, batch: Any) -> np.ndarray:
        """In pieces, for the memory that all layers take."""
        size = len(batch[self.parts[0].key] if self.is_dict else batch)
        rows = [slice(i, i + _PIECE) for i in range(0, max(size, 1), _PIECE)]
        pieces = ({key: x[part] for key, x in batch.items()} if self.is_dict else batch[part] for part in rows)
        return np.concatenate([list(self.trace(piece))[-1] for piece in pieces])

    def logits(self, observations: Any) -> np.ndarray:
        """
        Logits, or the mean action before it is clipped, in float32.

        :param observations: raw, single or batched
        :return: shape (batch_size, n_out): of all dimensions of a discrete action, one after the other
        """
        return self.accumulators(observations).astype(np.float32) * self.layers[-1].multiplier

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for raw observations, with SB3's signature (sb3-contrib's, where there are masks).

        :param observation: one observation or a batch, a dict of them for Dict observations; uint8 images in either channel
            order
        :param state: returned as it came, there is no memory
        :param episode_start: not used
        :param deterministic: the most probable action, or one drawn from the distribution
        :param action_masks: which discrete actions are allowed, shape (batch_size, sum(action_nvec))
        :return: actions in environment units, and ``state``
        """
        batch, is_batch = self._batch(observation)
        actions = self.actions(self._accumulators(batch), deterministic, action_masks)
        return (actions if is_batch else actions.squeeze(axis=0)), state

    def actions(
        self, accumulators: np.ndarray, deterministic: bool = True, action_masks: np.ndarray | None = None
    ) -> np.ndarray:
        """
        Actions in environment units.

        :param accumulators: the head's, shape (batch_size, n_out)
        :param deterministic: see :meth:`predict`
        :param action_masks: see :meth:`predict`
        :return: shape (batch_size, *action_shape)
        """
        if self.is_box:
            if action_masks is not None:
                raise ValueError("action_masks are for discrete actions, this student has a Box action")
            return self._box_actions(accumulators, deterministic)
        if not deterministic:
            shape = (len(accumulators), len(self.action_nvec))[: 2 if self.action_shape else 1]
            return self.sample(accumulators, self._rng.integers(0, 2**32, shape, np.uint64), action_masks)
        lowest = np.iinfo(np.int64).min
        choices = self._choices(accumulators, action_masks)
        return self._joined([np.where(allowed, scores, lowest).argmax(1) for scores, allowed in choices])

    def sample(self, accumulators: np.ndarray, random_bits: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Draw discrete actions with integer arithmetic alone, each dimension by itself.

        Each category weighs exp(-(largest logit - its logit)), from two tables of 64 entries (high and low part of the
        difference); the first one whose running sum passes ``random_bits / 2^32`` of the total is taken.

        :param accumulators: the head's, shape (batch_size, n_out)
        :param random_bits: uniform 32-bit numbers, shape (batch_size,) or, a number for each dimension, (batch_size, n)
        :param action_masks: see :meth:`predict`
        :return: shape (batch_size, *action_shape)
        """
        bits = np.asarray(random_bits).reshape(len(accumulators), len(self.action_nvec))
        choices = self._choices(accumulators, action_masks)
        return self._joined([self._draw(*choice, bits[:, i]) for i, choice in enumerate(choices)])

    def _choices(self, accumulators: np.ndarray, action_masks: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each dimension of a discrete action the scores of its categories, and which of them are allowed."""
        scores, n = accumulators, len(accumulators)
        if self.n_bits:
            scores = np.stack([np.zeros_like(scores), scores], axis=2).reshape(n, 2 * self.n_bits)
        allowed = np.ones(scores.shape, bool) if action_masks is None else np.asarray(action_masks, bool)
        if allowed.size != scores.size:
            raise ValueError(f"Expected action_masks of shape {scores.shape}, got {allowed.shape}")
        ends = np.cumsum(self.action_nvec)[:-1]
        choices = list(zip(np.split(scores, ends, 1), np.split(allowed.reshape(scores.shape), ends, 1)))
        if not all(mask.any(1).all() for _, mask in choices):
            raise ValueError("action_masks allow no action at all for an observation")
        return choices

    def _joined(self, indices: list[np.ndarray]) -> np.ndarray:
        return np.stack(indices, axis=1).reshape(len(indices[0]), *self.action_shape)

    def _draw(self, scores: np.ndarray, allowed: np.ndarray, random_bits: np.ndarray) -> np.ndarray:
        """Draw one dimension of an action, see :meth:`sample`; shape (batch_size,)."""
        largest = np.where(allowed, scores, np.iinfo(np.int64).min).max(1, keepdims=True)
        units = self._in_units(np.where(allowed, largest - scores, 0).astype(np.uint64))
        high, low = np.minimum(units >> np.uint64(6), 63), units & np.uint64(63)
        weights = (EXP_HIGH[high] * EXP_LOW[low]) >> np.uint64(weight_shift(scores.shape[1]))
        weights[(units >= 4096) | ~allowed] = 0
        running = weights.cumsum(1)
        threshold = (random_bits.astype(np.uint64) * running[:, -1]) >> np.uint64(32)
        return (running <= threshold[:, None]).sum(1)

    def _in_units(self, difference: np.ndarray) -> np.ndarray:
        """Differences of accumulators in 1/256 nat, rounded half up."""
        # beyond 16 nats the weight is zero: cap before the product could overflow
        difference = np.minimum(difference, np.uint64(2**32 - 1))
        multiplier, shift = self.nat_scale
        return (difference * np.uint64(multiplier) + np.uint64(2 ** (shift - 1))) >> np.uint64(shift)

    def _box_actions(self, acc: np.ndarray, deterministic: bool) -> np.ndarray:
        unit = self.layers[-1].multiplier
        if self.requantization == "fixed":
            acc = np.clip(acc, *self.bounds_in_units())
        actions = acc.astype(np.float32) * unit
        if not deterministic:
            actions = actions + self._rng.standard_normal(actions.shape, np.float32) * self.action_std
        actions = np.clip(actions, self.action_low, self.action_high)
        return actions.reshape(-1, *self.action_shape)

    def bounds_in_units(self) -> tuple[np.ndarray, np.ndarray]:
        """
        The bounds of a Box action in units of the head, within int32: to these, fixed mode clips the accumulators.

        :return: int64, shape (action_dim,) each; all of int32 where the unit is zero, because the mean is zero then
        """
        limits, unit = np.iinfo(np.int32), self.layers[-1].multiplier.astype(np.float64)

        def in_units(bound: Any, without_unit: int) -> np.ndarray:
            units = np.full(unit.shape, float(without_unit))
            np.divide(bound, unit, out=units, where=unit > 0)
            return np.clip(np.rint(units), limits.min, limits.max).astype(np.int64)

        return in_units(self.action_low, limits.min), in_units(self.action_high, limits.max)

    def _batch(self, observation: Any) -> tuple[Any, bool]:
        """Check one observation or a batch, add the batch axis, put channels first."""
        if not self.is_dict:
            return self.parts[0].batch(observation)
        keys = [part.key for part in self.parts]
        if not isinstance(observation, Mapping) or not set(keys) <= set(observation):
            got = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ValueError(f"Expected observations as a dict of {keys}, got {got}")
        read = {part.key: part.batch(observation[part.key]) for part in self.parts}
        if len({(len(batch), is_batch) for batch, is_batch in read.values()}) > 1:
            shapes = {key: np.shape(observation[key]) for key in keys}
            raise ValueError(f"Expected one observation, or batches of one size, got the shapes {shapes}")
        return {key: batch for key, (batch, _) in read.items()}, next(iter(read.values()))[1]

    # -- file ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write an ``.npz`` without pickle; it appears whole or not at all.

        :param path: ``.npz`` is appended where it is missing
        """
        target = os.fspath(path)
        target = target if target.endswith(".npz") else target + ".npz"
        header: dict[str, Any] = {
            "format": 1 if self.is_plain else FORMAT_VERSION,
            "observation_shape": self.observation_shape,
            "action_shape": self.action_shape,
            "requantization": self.requantization,
            "layers": [
                [list(layer.weight.shape), layer.weight_bits, layer.activation_bits, layer.stride, layer.multiplier.size]
                for layer in self.layers
            ],
            "metadata": self.metadata,
        }
        if not self.is_plain:
            header["parts"] = [[part.kind, part.shape, part.nvec, part.key] for part in self.parts]
            header.update({name: getattr(self, name) for name in ("branches", "action_nvec", "uses_masks")})
        floats = {name: getattr(self, name) for name in _FLOAT_FIELDS if getattr(self, name) is not None}
        temporary = f"{target}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(
                    file,
                    header=np.frombuffer(json.dumps(header).encode(), np.uint8),
                    weights=np.concatenate([pack(layer.weight, layer.weight_bits) for layer in self.layers]),
                    biases=np.concatenate([layer.bias for layer in self.layers]).astype(np.int32),
                    multipliers=np.concatenate([layer.multiplier for layer in self.layers]).astype(np.float32),
                    **floats,
                )
                file.flush()
                os.fsync(file.fileno())  # a machine that stops now leaves the old file or the new one
            os.replace(temporary, target)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IntegerModel:
        """
        Read what :meth:`save` wrote. Nothing in the file is executed.

        :param path: an ``.npz``; ``.npz`` is appended where it is missing. A folder means the ``student.npz`` in it
        :raises FileNotFoundError: there is no such file
        :raises ValueError: it is not a student's
        """
        path = _find_file(os.fspath(path))
        try:
            arrays = _read_arrays(path)
            header = json.loads(arrays["header"].tobytes())
            if header["format"] in range(1, FORMAT_VERSION + 1):
                return cls._from_file(header, arrays)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {path}. Expected the .npz of a student: check the path") from error
        except Exception as error:
            beside = os.path.join(os.path.dirname(path), "student.npz")
            hint = f". Load {beside}, which lies beside it" if not path.endswith(".npz") and os.path.isfile(beside) else ""
            raise ValueError(f"'{path}' is not a student's .npz (IntegerModel.save writes one): {error}{hint}") from error
        raise ValueError(f"This file has format {header['format']}, this version reads up to {FORMAT_VERSION}: update sb3_qpd")

    @classmethod
    def _from_file(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> IntegerModel:
        layers, used, channels, units = [], 0, 0, 0
        for shape, weight_bits, activation_bits, stride, n_multipliers in header["layers"]:
            if not (len(shape) in (2, 4) and all(0 < size < 2**31 for size in shape) and 2 <= weight_bits <= 8):
                raise ValueError("the header describes a layer that cannot be")
            n_bytes, n_out = math.ceil(math.prod(shape) * weight_bits / 8), shape[0]
            if used + n_bytes > len(arrays["weights"]):  # unpacking would pad them
                raise ValueError("the header describes more weights than there are")
            layers.append(
                IntegerLayer(
                    weight=unpack(arrays["weights"][used : used + n_bytes], weight_bits, tuple(shape)),
                    bias=arrays["biases"][channels : channels + n_out],
                    multiplier=arrays["multipliers"][units : units + n_multipliers],
                    weight_bits=weight_bits,
                    activation_bits=activation_bits,
                    stride=stride,
                )
            )
            used, channels, units = used + n_bytes, channels + n_out, units + n_multipliers
        if (used, channels, units) != tuple(len(arrays[name]) for name in ("weights", "biases", "multipliers")):
            raise ValueError("the header describes other layers than the arrays hold")
        fields: dict[str, Any] = {name: arrays[name] for name in _FLOAT_FIELDS if name in arrays}
        fields.update({name: header[name] for name in ("observation_shape", "action_shape", "requantization", "metadata")})
        if header["format"] > 1:
            fields["parts"] = [
                ObservationPart(kind, tuple(shape), tuple(nvec), key) for kind, shape, nvec, key in header["parts"]
            ]
            fields.update({name: header[name] for name in ("branches", "action_nvec", "uses_masks")})
        return cls(layers=layers, **fields)


def _find_file(path: str) -> str:
    """The ``.npz`` that a path means, whether or not it exists."""
    if os.path.isdir(path):
        inside = os.path.join(path, "student.npz")
        return inside if os.path.isfile(inside) else path
    return path if path.endswith(".npz") or os.path.isfile(path) else path + ".npz"


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz``; no more is unpacked than a student can have, whatever the file says of its sizes."""
    if os.path.isdir(path):
        raise ValueError("it is a folder without student.npz")
    if os.path.getsize(path) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(info.file_size for info in members) > MAX_BYTES:
            raise ValueError(f"its arrays have more than {MAX_BYTES} bytes")
        for info in members:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack without a bound
                raise ValueError(f"{info.filename} is packed by a method that numpy does not use")
            with archive.open(info) as member:
                content = io.BytesIO(member.read(info.file_size + 1))
            array = np.lib.format.read_array(content, allow_pickle=False)
            if array.dtype.kind not in "uif":
                raise ValueError(f"{info.filename} holds {array.dtype} instead of numbers")
            name = info.filename
            arrays[name[:-4] if name.endswith(".npy") else name] = array
    return arrays


_FLOAT_FIELDS = ("input_multiplier", "input_offset", "action_low", "action_high", "action_std")
