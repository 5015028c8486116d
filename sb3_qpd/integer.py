"""
The student as integers: packed weights, int32 accumulators, a numpy interpreter, and a file without pickle.

This module, :mod:`~sb3_qpd.integer_parts` and :mod:`~sb3_qpd.integer_file` need numpy and the standard library only. The
target ``numpy`` writes them into one ``policy.py``, which is a complete installation together with an ``.npz``:
``IntegerModel.load("student.npz").predict(observation)``. Devices have older software than the computers that train: the
modules run under Python 3.8 and numpy 1.17.
"""

from __future__ import annotations  # Python 3.8 or newer is needed

import importlib
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from sb3_qpd.integer_file import (
    FLOAT_FIELDS,
    FORMAT_VERSION,
    OPTIONAL_FIELDS,
    REQUANTIZATIONS,
    StudentError,
    check_header,
    pack,
    packed_bytes,
    read_npz,
    unpack,
    write_npz,
)
from sb3_qpd.integer_parts import (
    IntegerLayer,
    ObservationPart,
    encode_actions,
    fixed_point,
    group_parts,
)

if sys.version_info < (3, 8):  # noqa: UP036 - a copy of this file has no package that could ask for it
    raise ImportError("This file needs Python 3.8 and numpy 1.17 or newer, this is Python {}.{}".format(*sys.version_info))

__all__ = [
    "FORMAT_VERSION",
    "REQUANTIZATIONS",
    "IntegerLayer",
    "IntegerModel",
    "ObservationPart",
    "StudentError",
    "fixed_point",
    "group_parts",
    "pack",
    "unpack",
    "weight_shift",
]

# fields of a model that its file's header holds as they are
_HEADER = (
    *("observation_shape", "action_shape", "requantization", "metadata", "branches", "action_nvec", "uses_masks"),
    *("history", "history_actions"),
)
_PIECE = 256  # observations that go through the network at once
_HUB_NAME = re.compile(r"hub:.+|[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?<!\.npz)(?<!\.zip)(@.+)?")
# exp(-d) for the sampler: d in units of 1/256 nat, the high part in steps of a quarter nat (24 bits: the tail counts too)
EXP_HIGH = np.array([round(2**24 * math.exp(-i / 4)) for i in range(64)], dtype=np.uint64)
EXP_LOW = np.array([round(65535 * math.exp(-i / 256)) for i in range(64)], dtype=np.uint64)


def weight_shift(n_actions: int) -> int:
    """
    Bits that the sampler drops from the product of two table entries, so that the sum of all weights stays below 2^32.

    :param n_actions: categories to choose from
    :return: 16, which leaves 24 bits, for up to 256 categories; more beyond
    """
    return 16 + max(0, (n_actions - 1).bit_length() - 8)


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
    :param input_origin: float64, as many numbers as ``input_multiplier`` has: offsets of vectors that float32 cannot carry,
        zero for all other features. They are taken off in float64, and x of the above is the rest in float32. ``None``: no
        feature has one
    :param history: number of observations that the network sees: the newest one and those before it in the episode, which
        ``predict`` keeps in its ``state``. Before an episode's first observation the window holds zeros of the input grid
    :param history_actions: the network also sees the actions between these observations. Their multipliers and offsets follow
        those of the observation
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
    input_origin: np.ndarray | None = None
    history: int = 1
    history_actions: bool = False
    takes_raw_observations: ClassVar[bool] = True

    def __repr__(self) -> str:
        bits = "/".join(dict.fromkeys(str(layer.weight_bits) for layer in self.layers))
        outputs = "Box" if self.is_box else f"discrete {self.action_nvec}"
        inputs = ", ".join(f"{part.kind} {part.shape}" for part in self.parts)
        inputs += f", {self.history} of them" if self.history > 1 else ""
        inputs += " and the actions between" if self.history_actions else ""
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
        check_header(self._header(), self._sizes())
        self._check_numbers()
        self._origins = self._split_origin()
        self._rng = np.random.default_rng()

    def _default_part(self) -> ObservationPart:
        return ObservationPart("image" if self.input_multiplier is None else "vector", self.observation_shape)

    def _header(self) -> dict[str, Any]:
        """The model without its numbers, see :func:`~sb3_qpd.integer_file.check_header`."""
        layers = [
            [list(layer.weight.shape), layer.weight_bits, layer.activation_bits, layer.stride, layer.multiplier.size]
            for layer in self.layers
        ]
        parts = [[part.kind, part.shape, part.nvec, part.key] for part in self.parts]
        return {"layers": layers, "parts": parts, **{name: getattr(self, name) for name in _HEADER}}

    @property
    def _format(self) -> int:
        """The lowest format that holds the model."""
        return 4 if self.history > 1 else 3 if self.input_origin is not None else 1 if self.is_plain else 2

    def _sizes(self) -> dict[str, int]:
        """Number of elements of each array in the file; of the weights their packed bytes."""
        floats = {name: getattr(self, name) for name in OPTIONAL_FIELDS}
        return {
            "weights": sum(packed_bytes(layer.weight.size, layer.weight_bits) for layer in self.layers),
            "biases": sum(layer.bias.size for layer in self.layers),
            "multipliers": sum(layer.multiplier.size for layer in self.layers),
            **{name: np.size(values) for name, values in floats.items() if values is not None},
        }

    def _check_numbers(self) -> None:
        """The forms of a student would differ in the rounding of other types, and in what they make of infinity."""
        for name in FLOAT_FIELDS:
            values = getattr(self, name)
            if values is not None and not (np.asarray(values).dtype == np.float32 and np.isfinite(values).all()):
                raise ValueError(f"{name} must hold finite numbers of float32, got {np.asarray(values).dtype} {values}")
        if self.is_box and not (np.asarray(self.action_low) <= np.asarray(self.action_high)).all():
            raise ValueError(f"action_low must not be above action_high, got {self.action_low} and {self.action_high}")
        if self.action_std is not None and (self.action_std < 0).any():
            raise ValueError(f"action_std must not be negative, got {self.action_std}")

    def _split_origin(self) -> dict[str | None, np.ndarray]:
        """The origin of each part that has one, by its key."""
        if self.input_origin is None:
            return {}
        origin, found, used = np.asarray(self.input_origin), {}, 0
        is_number = origin.dtype == np.float64 and np.isfinite(origin).all()
        if self.input_multiplier is None or not is_number or origin.shape != np.shape(self.input_multiplier):
            raise ValueError(f"input_origin must hold a finite float64 for each input multiplier, got {origin.dtype} {origin}")
        for part in (part for parts in self.trunks for part in parts):
            n = 0 if part.kind == "image" else 1 if part.is_image else part.n_features
            if origin[used : used + n].any():
                if part.kind != "vector":
                    raise ValueError(f"Only vectors have an input origin, got one for a part of kind '{part.kind}'")
                found[part.key] = origin[used : used + n]
            used += n
        return found

    def origin_of(self, part: ObservationPart) -> np.ndarray | None:
        """
        The origin of a part, which is taken off in float64: a number for each feature.

        :param part: one of ``parts``
        :return: float64, shape (n_features,); ``None``: the part is rounded to float32 as it is
        """
        return self._origins.get(part.key)

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
    def has_images(self) -> bool:
        """Whether the observation, or a part of it, is an image."""
        return any(part.is_image for part in self.parts)

    @property
    def is_dict(self) -> bool:
        return self.parts[0].key is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is a model of one vector or uint8 image and of one Box or Discrete action, without a memory."""
        is_single = len(self.action_nvec) < 2 and not self.n_bits and self.history == 1
        return is_single and not self.uses_masks and self.input_origin is None and self.parts == (self._default_part(),)

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
        """Bytes that a device holds: packed weights, biases, multipliers, input grid and origin, action bounds, deviation."""
        extras = [np.asarray(getattr(self, name)) for name in OPTIONAL_FIELDS if getattr(self, name) is not None]
        return sum(layer.nbytes for layer in self.layers) + sum(a.nbytes for a in extras)

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
        """
        Seed the generator that sampled actions come from.

        :param seed: ``None`` takes one from the operating system
        """
        self._rng = np.random.default_rng(seed)

    # -- arithmetic ---------------------------------------------------------------------------------------------------

    def quantize_input(self, observations: Any) -> np.ndarray:
        """
        Raw observations to the input grid of the (first) trunk.

        :param observations: shape (batch_size, *observation_shape); a dict of such arrays
        :return: integers in float64: 0 to 255 for uint8 images, else -128 to 127
        """
        return next(self._grids(observations))

    def input_grids(self, observations: Any, state: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """
        What goes into each trunk: raw observations on its input grid, see :meth:`quantize_input`, after those before them.

        :param observations: see :meth:`quantize_input`
        :param state: see :meth:`trace`
        """
        for grid in self._grids(observations):
            if self.history > 1:
                before = np.zeros(self._state_shape(len(grid)), np.int8) if state is None else state
                grid = np.concatenate([before.reshape(len(grid), math.prod(before.shape[1:])), grid], axis=1)
            yield grid

    def _grids(self, observations: Any) -> Iterator[np.ndarray]:
        """Raw observations to the input grid of each trunk, see :meth:`quantize_input`."""
        used = 0
        for parts in self.trunks:
            values = [observations if part.key is None else observations[part.key] for part in parts]
            if parts[0].kind == "image":
                yield values[0].astype(np.float64)
                continue
            x = np.concatenate([part.features(value, self.origin_of(part)) for part, value in zip(parts, values)], axis=1)
            n = 1 if parts[0].is_image else x.shape[1]
            with np.errstate(over="ignore"):  # infinity is clamped like any other large number
                scaled = x * self.input_multiplier[used : used + n]  # type: ignore[index]
                shifted = scaled + self.input_offset[used : used + n]  # type: ignore[index]
            used += n
            yield np.clip(np.rint(shifted), -128, 127).astype(np.float64)

    def batch_of(self, observations: Any) -> Any:
        """
        Observations as :meth:`trace` takes them: checked, with a batch axis, and images with channels first.

        :param observations: see :meth:`predict`
        """
        return self._batch(observations)[0]

    def trace(self, observations: Any, state: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """
        The integers after each step: of each trunk the input grid and each layer's output, at last the head's accumulators.

        :param observations: raw, shape (batch_size, *observation_shape); a dict of such arrays
        :param state: observations before these on the input grid, the oldest one first, each with the action that followed it
            where the model sees actions: int8, shape (batch_size, history - 1, n_features). ``None``: episodes begin
        """
        features = []
        for x, (_, layers) in zip(self.input_grids(observations, state), self._branches()):
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

    def accumulators(self, observations: Any, state: np.ndarray | None = None) -> np.ndarray:
        """
        The sums of the head.

        :param observations: raw, single or batched
        :param state: see :meth:`trace`
        :return: int64 within the range of int32, shape (batch_size, n_out)
        """
        return self._accumulators(self._batch(observations)[0], state)

    def _accumulators(self, batch: Any, state: np.ndarray | None = None) -> np.ndarray:
        """In pieces, for the memory that all layers take."""
        rows = [slice(i, i + _PIECE) for i in range(0, max(self._size(batch), 1), _PIECE)]
        pieces = ({key: x[part] for key, x in batch.items()} if self.is_dict else batch[part] for part in rows)
        states = [None if state is None else state[part] for part in rows]
        return np.concatenate([list(self.trace(*piece))[-1] for piece in zip(pieces, states)])

    def _size(self, batch: Any) -> int:
        return len(batch[self.parts[0].key] if self.is_dict else batch)

    def _state_shape(self, batch_size: int) -> tuple[int, ...]:
        return (batch_size, self.history - 1, self.n_features + self.n_remembered)

    @property
    def n_features(self) -> int:
        """Numbers of one observation, with each index as zeros and a one."""
        return sum(part.n_features for part in self.parts)

    @property
    def n_remembered(self) -> int:
        """Numbers of an action that the network sees: those of a Box, or one for each of the head's outputs."""
        return self.layers[-1].bias.size if self.history_actions else 0

    def remember(
        self,
        observations: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        actions: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        The states of a model with a memory around one step, see :meth:`trace`.

        :param observations: see :meth:`predict`
        :param state: see :meth:`predict`
        :param episode_start: see :meth:`predict`
        :param actions: the actions of this step, for a model that sees them; ``None`` leaves them out of the next state
        :return: the state that this step's action depends on, and the state of the next step
        """
        batch = self._batch(observations)[0]
        n = self._size(batch)
        shape = self._state_shape(n)
        before = np.zeros(shape, np.int8) if state is None else np.array(state[0])
        if before.dtype != np.int8 or before.shape != shape:
            raise ValueError(f"Expected a state of int8 and shape {shape}, got {before.dtype} and {before.shape}")
        if episode_start is not None:
            before[np.broadcast_to(np.asarray(episode_start, bool), n)] = 0
        newest = next(self._grids(batch)).astype(np.int8)
        if self.history_actions:
            newest = np.concatenate([newest, self._action_grid(actions, n)], axis=1)
        return before, np.concatenate([before[:, 1:], newest[:, None]], axis=1)

    def _action_grid(self, actions: np.ndarray | None, batch_size: int) -> np.ndarray:
        """Actions on the input grid, int8."""
        n = self.n_remembered
        if actions is None:
            return np.zeros((batch_size, n), np.int8)
        x = encode_actions(np.asarray(actions).reshape(batch_size, -1), () if self.is_box or self.n_bits else self.action_nvec)
        scaled = x * self.input_multiplier[-n:]  # type: ignore[index]
        shifted = scaled + self.input_offset[-n:]  # type: ignore[index]
        return np.clip(np.rint(shifted), -128, 127).astype(np.int8)

    def logits(self, observations: Any, state: np.ndarray | None = None) -> np.ndarray:
        """
        Logits, or the mean action before it is clipped, in float32.

        :param observations: raw, single or batched
        :param state: see :meth:`trace`
        :return: shape (batch_size, n_out): of all dimensions of a discrete action, one after the other
        """
        return self.accumulators(observations, state).astype(np.float32) * self.layers[-1].multiplier

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
        :param state: what the previous call returned, or ``None``: all episodes begin. A model without a memory returns it
            as it came
        :param episode_start: whether an observation is the first one of an episode, shape (batch_size,)
        :param deterministic: the most probable action, or one drawn from the distribution
        :param action_masks: which discrete actions are allowed, shape (batch_size, sum(action_nvec))
        :return: actions in environment units, and ``state``
        """
        batch, is_batch = self._batch(observation)
        before = None
        if self.history > 1:
            before, _ = self.remember(batch, state, episode_start)
        actions = self.actions(self._accumulators(batch, before), deterministic, action_masks)
        if before is not None:
            state = (self.remember(batch, (before,), actions=actions)[1],)
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
            return self.sample(accumulators, self.random_bits(len(accumulators)), action_masks)
        if action_masks is None and len(self.action_nvec) == 1 and not self.n_bits:
            return accumulators.argmax(1).reshape(-1, *self.action_shape)
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
        return self._joined([self._draw(self._weights(*choice), bits[:, i]) for i, choice in enumerate(choices)])

    def random_bits(self, n: int) -> np.ndarray:
        """
        Random numbers for :meth:`sample`, from the generator that :meth:`set_random_seed` seeds.

        :param n: number of observations
        :return: uint64 below 2^32, shape (n,) for a Discrete action, else (n, number of dimensions)
        """
        shape = (n, len(self.action_nvec))[: 2 if self.action_shape else 1]
        return self._rng.integers(0, 2**32, shape, np.uint64)

    def weights(self, accumulators: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        The integer weights that :meth:`sample` draws with.

        In each dimension, the probability of a category is its weight, divided by the sum of that dimension's weights.

        :param accumulators: the head's, shape (batch_size, n_out)
        :param action_masks: see :meth:`predict`
        :return: uint64 within the range of uint32, shape (batch_size, sum(action_nvec))
        """
        if self.is_box:
            raise ValueError("weights are for discrete actions, this student has a Box action")
        return np.concatenate([self._weights(*choice) for choice in self._choices(accumulators, action_masks)], axis=1)

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

    def _weights(self, scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """The weights of one dimension of an action, see :meth:`sample`; shape (batch_size, its categories)."""
        largest = np.where(allowed, scores, np.iinfo(np.int64).min).max(1, keepdims=True)
        units = self._in_units(np.where(allowed, largest - scores, 0).astype(np.uint64))
        high, low = np.minimum(units >> np.uint64(6), 63), units & np.uint64(63)
        weights = (EXP_HIGH[high] * EXP_LOW[low]) >> np.uint64(weight_shift(scores.shape[1]))
        weights[(units >= 4096) | ~allowed] = 0
        return weights

    @staticmethod
    def _draw(weights: np.ndarray, random_bits: np.ndarray) -> np.ndarray:
        """Draw one dimension of an action, see :meth:`sample`; shape (batch_size,)."""
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
            return self.parts[0].batch(observation, self.origin_of(self.parts[0]))
        keys = [part.key for part in self.parts]
        if not isinstance(observation, Mapping) or not set(keys) <= set(observation):
            got = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise ValueError(f"Expected observations as a dict of {keys}, got {got}")
        read = {part.key: part.batch(observation[part.key], self.origin_of(part)) for part in self.parts}
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
        header = self._header()
        check_header(header, self._sizes())  # a model may have been changed since it was built
        later = () if self.is_plain else ("parts", "branches", "action_nvec", "uses_masks")
        of_memory = ("history", "history_actions") if self.history > 1 else ()
        names = ("observation_shape", "action_shape", "requantization", "layers", "metadata", *later, *of_memory)
        arrays = {name: getattr(self, name) for name in OPTIONAL_FIELDS if getattr(self, name) is not None}
        write_npz(
            target if target.endswith(".npz") else target + ".npz",
            {"format": self._format, **{name: header[name] for name in names}},
            {
                "weights": np.concatenate([pack(layer.weight, layer.weight_bits) for layer in self.layers]),
                "biases": np.concatenate([layer.bias for layer in self.layers]),
                "multipliers": np.concatenate([layer.multiplier for layer in self.layers]),
                **arrays,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IntegerModel:
        """
        Read what :meth:`save` wrote. Nothing in the file is executed, and it may come from elsewhere.

        :param path: an ``.npz``; ``.npz`` is appended where it is missing. A folder means the ``student.npz`` in it. Where the
            whole package is installed: also the student's zip, its report, or its repository on the Hub
        :raises FileNotFoundError: there is no such file
        :raises StudentError: it is not a student's, or what it says is not a student; the message names the field
        """
        other = _load_other(os.fspath(path), is_name=isinstance(path, str))
        if other is not None:
            return other
        return cls._read(_find_file(os.fspath(path)))

    @classmethod
    def _read(cls, path: str, content: bytes | None = None) -> IntegerModel:
        """The model of an ``.npz``, or of bytes that were read from it."""
        header, arrays = read_npz(path, content)
        try:
            return cls._from_file(header, arrays)
        except ValueError as error:
            raise StudentError(f"'{path}' is not a student's .npz (IntegerModel.save writes one): {error}") from error

    @classmethod
    def _from_file(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> IntegerModel:
        """A model from a header and arrays that fit each other."""
        layers, used, channels, units = [], 0, 0, 0
        for shape, weight_bits, activation_bits, stride, n_multipliers in header["layers"]:
            n_bytes, n_out = packed_bytes(math.prod(shape), weight_bits), shape[0]
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
        fields: dict[str, Any] = {name: arrays[name] for name in OPTIONAL_FIELDS if name in arrays}
        fields.update({name: header[name] for name in _HEADER})
        parts = [ObservationPart(kind, tuple(shape), tuple(nvec), key) for kind, shape, nvec, key in header["parts"]]
        return cls(layers=layers, parts=tuple(parts), **fields)


def _find_file(path: str) -> str:
    """The ``.npz`` that a path means, whether or not it exists."""
    path = os.path.expanduser(path)
    if os.path.isdir(path):
        inside = os.path.join(path, "student.npz")
        return inside if os.path.isfile(inside) else path
    return path if path.endswith((".npz", ".zip")) or os.path.isfile(path) else path + ".npz"


def _load_other(source: str, is_name: bool) -> IntegerModel | None:
    """
    The model of a student's zip, of its report's folder, or of a name on the Hub, which the whole package opens.

    :return: ``None`` where the source is none of these, or where this file is installed alone
    """
    is_file = os.path.isfile(source) and source.endswith((".zip", "report.json", "report.md", "config.yml"))
    on_hub = is_name and not os.path.isdir(os.path.dirname(source)) and _HUB_NAME.fullmatch(source)
    if not is_file and not on_hub:
        return None
    try:
        opening = importlib.import_module("sb3_qpd.evaluation.opening")
    except ImportError:
        return None
    return opening.open_integer_model(source)
