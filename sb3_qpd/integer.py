"""
The student as integers: packed weights, int32 accumulators, a numpy interpreter, and a file without pickle.

This module needs numpy and the standard library only. Copied to a device together with an ``.npz`` it is a complete
installation: ``IntegerModel.load("student.npz").predict(observation)``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FORMAT_VERSION = 1
REQUANTIZATIONS = ("float32", "fixed")
_PIECE = 256  # observations that go through the network at once
_UNFOLDED = 2**20  # numbers of an unfolded convolution's input: what stays in a processor's cache
# exp(-d) for the sampler: d in units of 1/256 nat, the high part in steps of a quarter nat (24 bits: the tail counts too)
_HIGH_TABLE = np.array([round(2**24 * math.exp(-i / 4)) for i in range(64)], dtype=np.uint64)
_LOW_TABLE = np.array([round(65535 * math.exp(-i / 256)) for i in range(64)], dtype=np.uint64)


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

    One below 2^-32 brings every int32 to zero, and is zero itself; one of 2^30 or more brings every positive integer to the
    top of the grid, and so does its m with the smallest shift.

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
        axes = tuple(range(1, self.weight.ndim))
        largest_input = 255  # every grid has at most 8 bits
        bound = np.abs(self.weight.astype(np.int64)).sum(axes) * largest_input + np.abs(self.bias.astype(np.int64))
        if bound.max() >= 2**31:
            raise ValueError(f"An accumulator could reach {bound.max()}, which does not fit int32")
        if not (np.isfinite(self.multiplier).all() and (self.multiplier >= 0).all()):
            raise ValueError(f"Multipliers must be finite and not negative, got {self.multiplier}")
        dtype = np.float32 if bound.max() < 2**24 else np.float64  # floats that hold every sum exactly, in any order
        self._matrix = self.weight.reshape(len(self.weight), -1).T.astype(dtype)
        self._fixed = fixed_point(self.multiplier) if self.activation_bits else None

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
        side = [(n - k) // self.stride + 1 for n, k in zip(shape[1:], self.weight.shape[2:], strict=True)]
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
        k, s = self.weight.shape[2], self.stride
        windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::s, ::s]
        windows = windows.transpose(0, 2, 3, 1, 4, 5)  # (batch_size, height, width, n_in, k, k)
        n = max(1, _UNFOLDED // max(1, math.prod(windows.shape[1:])))
        pieces = [windows[i : i + n].reshape(-1, len(self._matrix)) @ self._matrix for i in range(0, max(len(x), 1), n)]
        acc = np.concatenate(pieces).reshape(*windows.shape[:3], len(self.weight))
        return (acc.astype(np.int64) + self.bias).transpose(0, 3, 1, 2)

    def requantize(self, acc: np.ndarray, requantization: str) -> np.ndarray:
        """
        Accumulators to the next layer's grid; the clamp at zero is the ReLU.

        :param acc: shape (batch_size, n_out, ...)
        :param requantization: ``"float32"`` (ONNX Runtime's rule, half to even) or ``"fixed"`` (integers only, half up)
        :return: integers in float64
        """
        per_channel = (-1, *(1,) * (acc.ndim - 2))
        if requantization == "float32":
            y = np.rint(acc.astype(np.float32) * self.multiplier.reshape(per_channel)).astype(np.float64)
        else:
            m, shift = (v.reshape(per_channel) for v in self._fixed)  # type: ignore[union-attr]
            y = ((acc * m + (np.int64(1) << (shift - 1))) >> shift).astype(np.float64)
        return np.clip(y, 0, 2**self.activation_bits - 1)


@dataclass
class IntegerModel:
    """
    A student in integer arithmetic, with SB3's ``predict`` on raw observations.

    :param layers: trunk and head, in order
    :param observation_shape: shape of one observation; channels first for images
    :param input_multiplier: float32, one for each feature of a vector: ``q = clamp(round(x m + a), -128, 127)``, one
        multiplication and one addition in float32; ``None`` for uint8 images, which are a grid already
    :param input_offset: a of the above
    :param action_low: float32, shape (action_dim,): bounds of a Box action; ``None`` for discrete actions
    :param action_high: see ``action_low``
    :param action_shape: shape of one action
    :param action_std: float32, shape (action_dim,): standard deviation of a sampled Box action
    :param requantization: ``"float32"`` or ``"fixed"``, see :class:`IntegerLayer`
    :param metadata: JSON values that travel with the model (teacher, environment, versions)
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

    def __post_init__(self) -> None:
        self.observation_shape = tuple(int(n) for n in self.observation_shape)
        self.action_shape = tuple(int(n) for n in self.action_shape)
        if self.requantization not in REQUANTIZATIONS:
            raise ValueError(f"requantization must be one of {REQUANTIZATIONS}, got '{self.requantization}'")
        self._rng = np.random.default_rng()
        if not self.is_box:
            # the logits' unit in 1/256 nat, as an integer and a shift
            fraction, exponent = math.frexp(float(self.layers[-1].multiplier[0]) * 256)
            self._nat_multiplier, self._nat_shift = np.uint64(round(fraction * 2**30)), 30 - exponent

    @property
    def is_box(self) -> bool:
        return self.action_low is not None

    @property
    def is_image(self) -> bool:
        return self.input_multiplier is None

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
        total, shape = 0, self.observation_shape
        for layer in self.layers:
            shape = layer.output_shape(shape)
            total += layer.weight.size * math.prod(shape[1:])
        return total

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the generator that sampled actions come from."""
        self._rng = np.random.default_rng(seed)

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def quantize_input(self, observations: np.ndarray) -> np.ndarray:
        """
        Raw observations to the input grid.

        :param observations: shape (batch_size, *observation_shape)
        :return: integers in float64: 0 to 255 for images, -128 to 127 for vectors
        """
        if self.is_image:
            return observations.astype(np.float64)
        x = observations.reshape(len(observations), math.prod(self.observation_shape)).astype(np.float32)
        with np.errstate(over="ignore"):  # infinity is clamped like any other large number
            scaled = x * self.input_multiplier  # type: ignore[operator]
        return np.clip(np.rint(scaled + self.input_offset), -128, 127).astype(np.float64)

    def trace(self, observations: np.ndarray) -> Iterator[np.ndarray]:
        """
        The integers after each step: the input grid, each layer's output, at last the head's accumulators.

        :param observations: raw, shape (batch_size, *observation_shape)
        """
        x = self.quantize_input(observations)
        yield x
        for layer in self.layers[:-1]:
            x = layer.requantize(layer.accumulate(x), self.requantization)
            yield x
        yield self.layers[-1].accumulate(x)

    def accumulators(self, observations: np.ndarray) -> np.ndarray:
        """The head's accumulators: int64 within the range of int32, shape (batch_size, n_out)."""
        return self._accumulators(self._batch(observations)[0])

    def _accumulators(self, batch: np.ndarray) -> np.ndarray:
        """In pieces, for the memory that all layers take."""
        pieces = [batch[i : i + _PIECE] for i in range(0, max(len(batch), 1), _PIECE)]
        return np.concatenate([list(self.trace(piece))[-1] for piece in pieces])

    def logits(self, observations: np.ndarray) -> np.ndarray:
        """
        Logits, or the mean action before it is clipped, in float32.

        :param observations: raw, single or batched
        :return: shape (batch_size, n_actions) or (batch_size, action_dim)
        """
        return self.accumulators(observations).astype(np.float32) * self.layers[-1].multiplier

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for raw observations, with SB3's signature.

        :param observation: one observation or a batch; images in either channel order
        :param state: returned as it came, there is no memory
        :param episode_start: not used
        :param deterministic: the most probable action, or one drawn from the distribution
        :return: actions in environment units, and ``state``
        """
        batch, is_batch = self._batch(observation)
        actions = self.actions(self._accumulators(batch), deterministic)
        return (actions if is_batch else actions.squeeze(axis=0)), state

    def actions(self, accumulators: np.ndarray, deterministic: bool = True) -> np.ndarray:
        """
        Actions in environment units.

        :param accumulators: the head's, shape (batch_size, n_out)
        :param deterministic: see :meth:`predict`
        :return: shape (batch_size, *action_shape)
        """
        if self.is_box:
            return self._box_actions(accumulators, deterministic)
        if deterministic:
            return accumulators.argmax(1)
        return self.sample(accumulators, self._rng.integers(0, 2**32, len(accumulators), np.uint64))

    def sample(self, accumulators: np.ndarray, random_bits: np.ndarray) -> np.ndarray:
        """
        Draw discrete actions with integer arithmetic alone.

        Each action weighs exp(-(largest logit - its logit)), from two tables of 64 entries (high and low part of the
        difference); the first action whose running sum passes ``random_bits / 2^32`` of the total is taken.

        :param accumulators: the head's, shape (batch_size, n_actions)
        :param random_bits: uniform 32-bit numbers, shape (batch_size,)
        :return: action indices, shape (batch_size,)
        """
        difference = (accumulators.max(1, keepdims=True) - accumulators).astype(np.uint64)
        units = self._in_units(difference)
        high, low = np.minimum(units >> np.uint64(6), 63), units & np.uint64(63)
        # 24 bits for up to 256 actions, fewer beyond: their sum stays below 2^32
        shift = 16 + max(0, (accumulators.shape[1] - 1).bit_length() - 8)
        weights = (_HIGH_TABLE[high] * _LOW_TABLE[low]) >> np.uint64(shift)
        weights[units >= 4096] = 0
        running = weights.cumsum(1)
        threshold = (random_bits.astype(np.uint64) * running[:, -1]) >> np.uint64(32)
        return (running <= threshold[:, None]).sum(1)

    def _in_units(self, difference: np.ndarray) -> np.ndarray:
        """Differences of accumulators in 1/256 nat, rounded half up."""
        # beyond 16 nats the weight is zero: cap before the product could overflow
        difference = np.minimum(difference, np.uint64(2**32 - 1))
        product, shift = difference * self._nat_multiplier, self._nat_shift
        if shift <= 0:
            return np.where(product > 0, np.uint64(4096), np.uint64(0))
        shift = min(shift, 63)
        return (product + (np.uint64(1) << np.uint64(shift - 1))) >> np.uint64(shift)

    def _box_actions(self, acc: np.ndarray, deterministic: bool) -> np.ndarray:
        unit = self.layers[-1].multiplier
        if self.requantization == "fixed":
            low, high = (np.rint(np.asarray(bound, np.float64) / unit) for bound in (self.action_low, self.action_high))
            acc = np.clip(acc, low, high)
        actions = acc.astype(np.float32) * unit
        if not deterministic:
            actions = actions + self._rng.standard_normal(actions.shape, np.float32) * self.action_std
        actions = np.clip(actions, self.action_low, self.action_high)
        return actions.reshape(-1, *self.action_shape)

    def _batch(self, observation: np.ndarray) -> tuple[np.ndarray, bool]:
        """Check one observation or a batch, add the batch axis, put channels first."""
        array = np.asarray(observation)
        shape = self.observation_shape
        accepted = [shape]
        if self.is_image:
            accepted.append((*shape[1:], shape[0]))
            if array.dtype != np.uint8:
                raise ValueError(f"Expected an image of dtype uint8, got {array.dtype}")
        elif not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
            raise ValueError(f"Expected an observation of real numbers, got dtype {array.dtype}")
        for given in accepted:
            for is_batch in (False, True):
                if array.shape[int(is_batch) :] == given and array.ndim == len(given) + is_batch:
                    array = array if is_batch else array[None]
                    if given != shape:
                        array = np.moveaxis(array, -1, 1)
                    if not self.is_image and not np.isfinite(array.astype(np.float32)).all():
                        raise ValueError("The observation holds NaN, infinity or a number beyond float32: not a valid input")
                    return array, is_batch
        raise ValueError(
            f"Expected an observation of shape {shape} or (batch_size, {', '.join(map(str, shape))}), got {array.shape}"
        )

    # -- file ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write an ``.npz`` without pickle; it appears whole or not at all.

        :param path: ``.npz`` is appended where it is missing
        """
        target = os.fspath(path)
        target = target if target.endswith(".npz") else target + ".npz"
        header = {
            "format": FORMAT_VERSION,
            "observation_shape": self.observation_shape,
            "action_shape": self.action_shape,
            "requantization": self.requantization,
            "layers": [
                [list(layer.weight.shape), layer.weight_bits, layer.activation_bits, layer.stride, layer.multiplier.size]
                for layer in self.layers
            ],
            "metadata": self.metadata,
        }
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
            os.replace(temporary, target)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IntegerModel:
        """Read what :meth:`save` wrote; nothing in the file is executed."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(arrays["header"].tobytes())
            if header["format"] == FORMAT_VERSION:
                return cls._from_file(header, arrays)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"'{os.fspath(path)}' is not a student's .npz (IntegerModel.save writes one): {error}") from error
        raise ValueError(f"This file has format {header['format']}, this version reads {FORMAT_VERSION}: update sb3_qpd")

    @classmethod
    def _from_file(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> IntegerModel:
        layers, used, channels, units = [], 0, 0, 0
        for shape, weight_bits, activation_bits, stride, n_multipliers in header["layers"]:
            n_bytes, n_out = math.ceil(math.prod(shape) * weight_bits / 8), shape[0]
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
        fields |= {name: header[name] for name in ("observation_shape", "action_shape", "requantization", "metadata")}
        return cls(layers=layers, **fields)


_FLOAT_FIELDS = ("input_multiplier", "input_offset", "action_low", "action_high", "action_std")
