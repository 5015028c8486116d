"""The ring of labelled observations. Frames that stacked observations share are stored once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd.distillation.stores import DictStore, HistoryStore, Rows, VectorStore, make_store, put_into_ring, ring_parts
from sb3_qpd.teachers.teacher import TeacherOutput


class DistillationSamples(NamedTuple):
    """
    A batch of raw observations and the teacher's labels.

    The observations have the shape (batch_size, *observation_shape). Dict observations are a dict of such tensors.
    """

    observations: th.Tensor | dict[str, th.Tensor]
    targets: TeacherOutput

    def numpy_observations(self) -> Any:
        """The observations as arrays: shape (n, *observation_shape), or a dict of such arrays."""
        if isinstance(self.observations, dict):
            return {key: values.cpu().numpy() for key, values in self.observations.items()}
        return self.observations.cpu().numpy()


class BufferPosition(NamedTuple):
    """
    How much was ever stored in a buffer.

    :param rows: number of observations
    :param frames: number of single frames, 0 where frames are not stored apart
    """

    rows: int
    frames: int


class DistillationBuffer:
    """
    A ring of observations with the teacher's targets. Distillation is supervised: each observation is labelled once, and old
    ones stay valid.

    :param buffer_size: number of observations, rounded up to a multiple of ``n_envs``
    :param observation_space: space of one raw observation
    :param n_envs: number of environments that add at each step
    :param device: device of the batches; a GPU gets them through pinned memory
    :param seed: seed of the sampling
    :param stacked: whether observations are stacked frames, channels first, of which each frame is stored once
    :param exact_keys: keys of the values of a Dict that are kept in float64; ``None`` stands for any other observation
    :param history: number of observations in a window that :meth:`sample` draws; 1 draws observations without windows
    :param n_action: numbers of the actions in a window, 0 for windows without actions
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        n_envs: int,
        *,
        device: th.device | str = "cpu",
        seed: int | None = None,
        stacked: bool = False,
        exact_keys: Collection[str | None] = (),
        history: int = 1,
        n_action: int = 0,
    ) -> None:
        self.capacity = -(-buffer_size // n_envs) * n_envs
        self.n_envs, self.device = n_envs, th.device(device)
        self._store = make_store(self.capacity, observation_space, n_envs, stacked, exact_keys, history, n_action)
        self._targets: dict[str, np.ndarray] = {}  # a ring for each field of TeacherOutput that the teacher has
        self._added = 0
        self._rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return min(self._added, self.capacity)

    @property
    def nbytes(self) -> int:
        """Bytes of observations and targets of a full ring."""
        return self._store.nbytes + sum(ring.nbytes for ring in self._targets.values())

    def add(
        self,
        observations: Any,
        targets: TeacherOutput,
        episode_starts: np.ndarray | None = None,
        actions: np.ndarray | None = None,
    ) -> None:
        """
        Store one step of every environment.

        :param observations: raw observations, shape (n_envs, *observation_shape), or a dict of such arrays
        :param targets: the teacher's labels of these observations
        :param episode_starts: whether an observation is the first one of an episode. Only windows need it
        :param actions: the actions that are taken, as the student sees them. Only windows with actions need them
        """
        if isinstance(self._store, HistoryStore):
            assert episode_starts is not None
            self._store.start(episode_starts, actions)
        arrays = {name: t.cpu().numpy() for name, t in targets._asdict().items() if t is not None}
        self._make_rings(arrays)
        slots = (self._added + np.arange(self.n_envs)) % self.capacity
        self._store.add(slots, observations)
        for name, ring in self._targets.items():
            ring[slots] = arrays[name]
        self._added += self.n_envs

    @property
    def actions(self) -> np.ndarray:
        """The actions of a ring whose windows have some, without a copy: shape (n, n_action)."""
        assert isinstance(self._store, HistoryStore)
        return self._store.actions

    def to_float32(self, but: Collection[str | None]) -> None:
        """
        Round observations that are kept in float64 to float32, which takes half the memory.

        :param but: keys of the values that stay in float64
        """
        if isinstance(single := self._single_observations, DictStore):
            single.to_float32(but)
        elif isinstance(single, VectorStore) and None not in but:
            single.to_float32()

    @property
    def _single_observations(self) -> Any:
        """The store of observations without those before them."""
        return self._store.inner if isinstance(self._store, HistoryStore) else self._store

    def window_of(self, observations: Any, episode_starts: np.ndarray) -> Any:
        """
        What the student sees at the next step, before it is added: windows, or the observations themselves.

        :param observations: see :meth:`add`
        :param episode_starts: see :meth:`add`
        """
        store = self._store
        return store.window_of(observations, episode_starts) if isinstance(store, HistoryStore) else observations

    @property
    def position(self) -> BufferPosition:
        """What was stored so far: where a later call of :meth:`rows_since` begins."""
        return BufferPosition(self._added, self._store.position)

    def rows_since(self, position: BufferPosition) -> Rows:
        """
        What was stored after a position and is still in the ring, as views. :meth:`put_back` takes it.

        :param position: an earlier :attr:`position`
        """
        start = max(position.rows, self._added - self.capacity)
        targets = {f"target_{name}": ring_parts(ring, start, self._added) for name, ring in self._targets.items()}
        return {"start": [np.array([start])], **self._store.rows(start, self._added, position.frames), **targets}

    def holds_anything_before(self, position: BufferPosition) -> bool:
        """
        Whether the ring still holds a row or a frame that was stored before a position.

        :param position: an earlier :attr:`position`
        """
        return position.rows > self._added - self.capacity or self._store.holds_before(position.frames)

    def put_back(self, rows: Mapping[str, np.ndarray], targets: TeacherOutput) -> None:
        """
        Store again what :meth:`rows_since` gave, in the order in which it was given.

        :param rows: arrays by name
        :param targets: labels of the same teacher, for their shapes
        :raises ValueError: the rows are another ring's
        """
        self._make_rings({name: t.cpu().numpy() for name, t in targets._asdict().items() if t is not None})
        labels = {name.removeprefix("target_"): array for name, array in rows.items() if name.startswith("target_")}
        start, n_rows = int(rows["start"][0]), {len(array) for array in labels.values()}
        if len(n_rows) != 1 or start < 0 or labels.keys() != self._targets.keys():
            raise ValueError("the rows are not those of this ring")
        for name, ring in self._targets.items():
            put_into_ring(ring, start, labels[name])
        self._store.put_back(start, rows)
        self._added = start + n_rows.pop()

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the generator of the samples, as plain values."""
        return self._rng.bit_generator.state  # type: ignore[return-value]

    @rng_state.setter
    def rng_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def _make_rings(self, arrays: Mapping[str, np.ndarray]) -> None:
        if not self._targets:
            self._targets = {name: np.zeros((self.capacity, *a.shape[1:]), a.dtype) for name, a in arrays.items()}

    def labels(self, name: str) -> np.ndarray:
        """
        All stored labels of one kind, without a copy.

        :param name: field of :class:`~sb3_qpd.TeacherOutput`
        """
        return self._targets[name][: len(self)]

    def sample(self, batch_size: int, rng: np.random.Generator | None = None) -> DistillationSamples:
        """
        Draw a batch, uniformly and with replacement.

        :param batch_size: number of samples
        :param rng: generator of the draws; ``None`` is the buffer's own, whose state the draw changes
        :raises ValueError: the buffer is empty
        """
        rng = self._rng if rng is None else rng
        if not len(self):
            raise ValueError("The buffer is empty: add observations before you sample")
        slots = rng.integers(0, len(self), batch_size)
        valid = self._store.is_valid(slots)
        while not valid.all():
            slots[~valid] = rng.integers(0, len(self), (~valid).sum())
            valid = self._store.is_valid(slots)
        return self._samples(slots, self.device)

    def newest(self, n: int) -> DistillationSamples:
        """
        The observations stored last, for statistics, without windows. Where episodes are very short, some are missing.

        They stay on the CPU: a GPU need not hold thousands of images, and every device computes the same statistics.

        :param n: number of observations; all are taken where there are fewer
        """
        n = min(n, len(self))
        slots = (self._added - n + np.arange(n)) % self.capacity
        if isinstance(self._store, HistoryStore):
            return self._samples(slots, th.device("cpu"), self._store.inner.get(slots))
        return self._samples(slots[self._store.is_valid(slots)], th.device("cpu"))

    def _samples(self, slots: np.ndarray, device: th.device, stored: Any = None) -> DistillationSamples:
        targets = {name: _sent(ring[slots], device) for name, ring in self._targets.items()}
        stored = self._store.get(slots) if stored is None else stored
        if isinstance(stored, dict):
            observations: Any = {key: _sent(value, device) for key, value in stored.items()}
        else:
            observations = _sent(stored, device)
        return DistillationSamples(observations, TeacherOutput(**targets))


def _sent(array: np.ndarray, device: th.device) -> th.Tensor:
    """A tensor on the device. A GPU gets it asynchronously: torch keeps the pinned memory until the copy is done."""
    tensor = th.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class FloatPixels:
    """Batches of images in float32, always in the same memory: allocating it takes longer than filling it."""

    def __init__(self) -> None:
        self._memory: th.Tensor | None = None

    def __call__(self, observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor | dict[str, th.Tensor]:
        if isinstance(observations, dict) or observations.dtype != th.uint8:
            return observations
        if self._memory is None or self._memory.shape != observations.shape:
            self._memory = th.empty_like(observations, dtype=th.float32)
        return self._memory.copy_(observations)


def observation_bytes(capacity: int, space: spaces.Space, stacked: bool) -> int:
    """
    Bytes that the observations of a ring take, without its targets.

    :param capacity: number of observations
    :param space: space of one raw observation
    :param stacked: whether observations are stacked frames, of which each is stored once
    """
    if isinstance(space, spaces.Dict):
        return sum(observation_bytes(capacity, one, False) for one in space.values())
    shape = (space.shape or ())[1:] if stacked else space.shape or ()
    return capacity * math.prod(shape) * (1 if space.dtype == np.uint8 else 4)
