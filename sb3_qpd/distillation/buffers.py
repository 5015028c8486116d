"""The ring of labelled observations. Frames that stacked observations share are stored once."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

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


Rows = dict[str, list[np.ndarray]]  # arrays by name, each in parts that follow each other


def ring_parts(ring: np.ndarray, start: int, stop: int) -> list[np.ndarray]:
    """
    The rows from one position to another, as one view, or two where they go round the end of the ring.

    :param ring: the ring; row i of all that were ever stored lies at i modulo its length
    :param start: position of the first row
    :param stop: position after the last row, at most the ring's length later
    """
    first, n = start % len(ring), stop - start
    return [ring[first : first + n], *([ring[: first + n - len(ring)]] if first + n > len(ring) else [])]


def put_into_ring(ring: np.ndarray, start: int, rows: np.ndarray) -> None:
    """
    Write rows at their position.

    :param ring: see :func:`ring_parts`
    :param start: position of the first row
    :param rows: rows of the ring's dtype and shape
    :raises ValueError: rows of another dtype or shape, or more than the ring holds
    """
    if rows.dtype != ring.dtype or rows.shape[1:] != ring.shape[1:] or len(rows) > len(ring) or start < 0:
        raise ValueError(f"expected rows of {ring.dtype} and {ring.shape[1:]}, got {rows.dtype} and {rows.shape[1:]}")
    for part in ring_parts(ring, start, start + len(rows)):
        part[:], rows = rows[: len(part)], rows[len(part) :]


class _WholeObservations:
    """What holds for stores with one row for each observation: the rows alone say where the next one belongs."""

    position = 0

    def holds_before(self, position: int) -> bool:
        return False

    def is_valid(self, slots: np.ndarray) -> np.ndarray:
        return np.ones(len(slots), bool)


class VectorStore(_WholeObservations):
    """
    Unstacked observations: uint8 as it is, anything else in float32, or in float64 for as long as it is needed.

    :param capacity: number of observations
    :param shape: shape of one observation
    :param dtype: dtype of the environment's observations
    :param is_exact: whether observations are kept in float64
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], dtype: np.dtype, is_exact: bool = False) -> None:
        number = np.float64 if is_exact else np.float32
        self._data = np.zeros((capacity, *shape), dtype if dtype == np.uint8 else number)

    def to_float32(self) -> None:
        """Round what is kept in float64, and what will be added."""
        if self._data.dtype == np.float64:
            self._data = self._data.astype(np.float32)

    def add(self, slots: np.ndarray, observations: np.ndarray) -> None:
        self._data[slots] = observations

    def get(self, slots: np.ndarray) -> np.ndarray:
        return self._data[slots]

    def rows(self, start: int, stop: int, position: int) -> Rows:
        return {"data": ring_parts(self._data, start, stop)}

    def put_back(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        if rows["data"].dtype == np.float32:
            self.to_float32()  # as the ring was before these rows were added
        put_into_ring(self._data, start, rows["data"])

    @property
    def nbytes(self) -> int:
        return self._data.nbytes


class HistoryStore(VectorStore):
    """
    Vectors that come back as windows of an episode's last observations. Each is stored once, in the order of the steps.

    :param capacity: number of observations, a multiple of ``n_envs``
    :param shape: shape of one observation
    :param dtype: dtype of the environment's observations
    :param is_exact: whether observations are kept in float64
    :param history: number of observations in a window
    :param n_envs: number of environments; each adds one observation at a time
    :param n_action: numbers of the actions in a window, 0 for windows without actions
    :raises ValueError: the ring is too small for a window of each environment
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        is_exact: bool,
        history: int,
        n_envs: int,
        n_action: int = 0,
    ) -> None:
        if capacity < 2 * history * n_envs:
            raise ValueError(
                f"buffer_size must be at least {2 * history * n_envs} for history={history} and {n_envs} environments, got "
                f"{capacity}"
            )
        super().__init__(capacity, shape, dtype, is_exact)
        self._history, self._n_envs, self._capacity = history, n_envs, capacity
        # observations of the same episode before each one, as far as a window reaches; -1: there was none in any episode
        self._ages = np.zeros(capacity, np.int8)
        self._newest_ages = np.full(n_envs, -1, np.int8)
        self._n_added = 0
        self._actions = np.zeros((capacity, n_action), np.float32)

    def _ages_of(self, episode_starts: np.ndarray) -> np.ndarray:
        older = np.minimum(self._newest_ages + 1, self._history - 1)
        return np.where(episode_starts, 0, older).astype(np.int8)

    def start(self, episode_starts: np.ndarray, actions: np.ndarray | None) -> None:
        """
        Say which of the observations that are added next begin an episode, and what follows them.

        :param episode_starts: shape (n_envs,)
        :param actions: the actions that are taken then, as the student sees them, shape (n_envs, n_action)
        """
        self._newest_ages = self._ages_of(episode_starts)
        if actions is not None and self._actions.shape[1]:
            self._actions[(self._n_added + np.arange(self._n_envs)) % self._capacity] = actions

    def add(self, slots: np.ndarray, observations: np.ndarray) -> None:
        super().add(slots, observations)
        self._ages[slots] = self._newest_ages
        self._n_added += len(slots)

    def get(self, slots: np.ndarray) -> np.ndarray:
        """
        Windows, the newest observation last. What lies before the episode is NaN.

        :param slots: places in the ring, shape (n,)
        :return: float32 or float64, shape (n, history, *observation_shape)
        """
        return self._windows(slots, self._ages[slots])

    def _windows(self, slots: np.ndarray, ages: np.ndarray) -> np.ndarray:
        lags = np.arange(self._history - 1, -1, -1)
        rows = (slots[:, None] - lags * self._n_envs) % self._capacity
        windows = self._data[rows]
        if windows.dtype == np.uint8:
            windows = windows.astype(np.float32)
        if self._actions.shape[1]:
            actions = self._actions[rows]
            actions[:, -1] = np.nan  # the newest action is what a student has to find
            windows = np.concatenate([windows.reshape(*rows.shape, -1), actions], axis=2)
        windows[lags > ages[:, None]] = np.nan
        return windows

    def window_of(self, observations: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
        """
        The windows that end in the next observations, before these are added.

        :param observations: shape (n_envs, *observation_shape)
        :param episode_starts: as for :meth:`start`
        :return: see :meth:`get`
        """
        slots = (self._n_added + np.arange(self._n_envs)) % self._capacity
        windows = self._windows(slots, self._ages_of(episode_starts))
        if self._actions.shape[1]:
            windows[:, -1, : -self._actions.shape[1]] = observations.reshape(len(windows), -1)
        else:
            windows[:, -1] = observations
        return windows

    @property
    def actions(self) -> np.ndarray:
        """All stored actions, without a copy: shape (n, n_action)."""
        return self._actions[: self._n_added]

    def plain(self, slots: np.ndarray) -> np.ndarray:
        """
        Single observations without those before them.

        :param slots: places in the ring
        """
        return super().get(slots)

    def is_valid(self, slots: np.ndarray) -> np.ndarray:
        """Whether a window is whole: the oldest rows of the ring have lost what was before them."""
        n_newer = (self._n_added - 1 - slots) % self._capacity
        return n_newer + self._ages[slots].astype(np.int64) * self._n_envs < min(self._n_added, self._capacity)

    def rows(self, start: int, stop: int, position: int) -> Rows:
        own: dict[str, np.ndarray] = {"ages": self._ages}
        if self._actions.shape[1]:
            own["actions"] = self._actions
        return {**super().rows(start, stop, position), **{name: ring_parts(ring, start, stop) for name, ring in own.items()}}

    def put_back(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        super().put_back(start, rows)
        put_into_ring(self._ages, start, rows["ages"])
        if self._actions.shape[1]:
            put_into_ring(self._actions, start, rows["actions"])
        self._n_added = start + len(rows["ages"])
        if len(rows["ages"]) >= self._n_envs:
            self._newest_ages = rows["ages"][-self._n_envs :].copy()

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._ages.nbytes + self._actions.nbytes


class DictStore(_WholeObservations):
    """
    Dict observations, with one :class:`VectorStore` for each key.

    :param capacity: number of observations
    :param space: space of one observation
    :param exact_keys: keys of the observations that are kept in float64
    """

    def __init__(self, capacity: int, space: spaces.Dict, exact_keys: Collection[str | None] = ()) -> None:
        self._stores = {
            key: VectorStore(capacity, one.shape, np.dtype(one.dtype), key in exact_keys)  # type: ignore[arg-type]
            for key, one in space.items()
        }

    def to_float32(self, but: Collection[str | None]) -> None:
        for key, store in self._stores.items():
            if key not in but:
                store.to_float32()

    def add(self, slots: np.ndarray, observations: dict[str, np.ndarray]) -> None:
        for key, store in self._stores.items():
            store.add(slots, observations[key])

    def get(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        return {key: store.get(slots) for key, store in self._stores.items()}

    def rows(self, start: int, stop: int, position: int) -> Rows:
        # numbers, as a key may be any text
        return {f"data{i}": store.rows(start, stop, 0)["data"] for i, store in enumerate(self._stores.values())}

    def put_back(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        for i, store in enumerate(self._stores.values()):
            store.put_back(start, {"data": rows[f"data{i}"]})

    @property
    def nbytes(self) -> int:
        return sum(store.nbytes for store in self._stores.values())


class FrameStore:
    """
    Stacked images, channels first, as indices into a ring of single frames.

    An observation whose older frames are the newer ones of its environment's previous observation adds one frame. Any other
    observation adds its whole stack. Each comes back bit for bit. Where episodes are very short, the frames of an
    observation may be overwritten: it is then marked invalid.

    :param capacity: number of observations
    :param shape: shape of one observation, (n_frames, height, width)
    :param n_envs: number of environments; each adds one observation at a time
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], n_envs: int) -> None:
        self._depth = shape[0]
        # room for the whole stacks of some first observations, and in any case for those of the newest step
        self._n_frames = capacity + capacity // 9 + n_envs * self._depth**2
        self._frames = np.zeros((self._n_frames, *shape[1:]), np.uint8)
        self._index = np.full((capacity, self._depth), -1, np.int64)
        self._last = np.zeros((n_envs, *shape), np.uint8)
        self._last_index = np.full((n_envs, self._depth), -1, np.int64)
        self._next = 0

    def add(self, slots: np.ndarray, observations: np.ndarray) -> None:
        for env, (slot, stack) in enumerate(zip(slots, observations, strict=True)):
            known = self._last_index[env, 1:]
            continues = known[0] >= 0 and np.array_equal(stack[:-1], self._last[env, 1:])
            new = stack[-1:] if continues else stack
            ids = np.arange(self._next, self._next + len(new))
            self._frames[ids % self._n_frames] = new
            self._next += len(new)
            self._last_index[env] = np.concatenate([known, ids])[-self._depth :]
            self._index[slot] = self._last_index[env]
        self._last[:] = observations

    def get(self, slots: np.ndarray) -> np.ndarray:
        # channels last in memory, as convolutions like it, channels first by its shape
        ids = self._index[slots] % self._n_frames
        batch = np.empty((len(slots), *self._frames.shape[1:], self._depth), np.uint8)
        for i in range(self._depth):
            batch[..., i] = self._frames[ids[:, i]]
        return np.moveaxis(batch, -1, 1)

    @property
    def position(self) -> int:
        """Number of frames that were ever stored."""
        return self._next

    def holds_before(self, position: int) -> bool:
        return position > self._next - self._n_frames

    def rows(self, start: int, stop: int, position: int) -> Rows:
        first = max(position, self._next - self._n_frames)
        return {
            "index": ring_parts(self._index, start, stop),
            "frames": ring_parts(self._frames, first, self._next),
            "next": [np.array([self._next])],
        }

    def put_back(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        put_into_ring(self._index, start, rows["index"])
        self._next = int(rows["next"][0])
        put_into_ring(self._frames, self._next - len(rows["frames"]), rows["frames"])
        n_envs = len(self._last)
        if len(rows["index"]) >= n_envs:
            self._last_index[:] = rows["index"][-n_envs:]
            slots = (start + len(rows["index"]) - n_envs + np.arange(n_envs)) % len(self._index)
            self._last[:] = self.get(slots)

    def is_valid(self, slots: np.ndarray) -> np.ndarray:
        return self._index[slots].min(1) >= self._next - self._n_frames

    @property
    def nbytes(self) -> int:
        return self._frames.nbytes + self._index.nbytes + self._last.nbytes + self._last_index.nbytes


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
        self._store = _make_store(self.capacity, observation_space, n_envs, stacked, exact_keys, history, n_action)
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
        if isinstance(self._store, DictStore):
            self._store.to_float32(but)
        elif isinstance(self._store, VectorStore) and None not in but:
            self._store.to_float32()

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
            return self._samples(slots, th.device("cpu"), self._store.plain(slots))
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


def _make_store(
    capacity: int,
    space: spaces.Space,
    n_envs: int,
    stacked: bool,
    exact_keys: Collection[str | None],
    history: int,
    n_action: int,
) -> Any:
    if history > 1:
        sizes: Any = (capacity, space.shape, np.dtype(space.dtype), None in exact_keys, history, n_envs, n_action)
        return HistoryStore(*sizes)
    if isinstance(space, spaces.Dict):
        return DictStore(capacity, space, exact_keys)
    if stacked:
        return FrameStore(capacity, space.shape, n_envs)  # type: ignore[arg-type]
    return VectorStore(capacity, space.shape, np.dtype(space.dtype), None in exact_keys)  # type: ignore[arg-type]
