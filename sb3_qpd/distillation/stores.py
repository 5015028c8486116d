"""Where a ring keeps its observations: vectors, Dicts, windows of either, and stacked frames that are stored once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.integer import ObservationPart
from sb3_qpd.observations import observation_rows
from sb3_qpd.spaces import observation_parts

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


class HistoryStore(_WholeObservations):
    """
    Windows of an episode's last observations. Each observation is stored once, in the order of the steps.

    :param inner: store of single observations
    :param capacity: number of observations, a multiple of ``n_envs``
    :param parts: what an observation consists of
    :param history: number of observations in a window
    :param n_envs: number of environments; each adds one observation at a time
    :param n_action: numbers of the actions in a window, 0 for windows without actions
    :raises ValueError: the ring is too small for a window of each environment
    """

    def __init__(
        self,
        inner: VectorStore | DictStore,
        capacity: int,
        parts: tuple[ObservationPart, ...],
        history: int,
        n_envs: int,
        n_action: int = 0,
    ) -> None:
        if capacity < 2 * history * n_envs:
            raise ValueError(
                f"buffer_size must be at least {2 * history * n_envs} for history={history} and {n_envs} environments, got "
                f"{capacity}"
            )
        self.inner, self._parts = inner, parts
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

    def add(self, slots: np.ndarray, observations: Any) -> None:
        self.inner.add(slots, observations)
        self._ages[slots] = self._newest_ages
        self._n_added += len(slots)

    def get(self, slots: np.ndarray) -> np.ndarray:
        """
        Windows, the newest observation last. What lies before the episode is NaN.

        :param slots: places in the ring, shape (n,)
        :return: float32 or float64, shape (n, history, n_features), see :func:`~sb3_qpd.observations.observation_rows`
        """
        return self._windows(slots, self._ages[slots])

    def _windows(self, slots: np.ndarray, ages: np.ndarray) -> np.ndarray:
        lags = np.arange(self._history - 1, -1, -1)
        rows = (slots[:, None] - lags * self._n_envs) % self._capacity
        windows = observation_rows(self._parts, self.inner.get(rows.reshape(-1))).reshape(*rows.shape, -1)
        if windows.dtype != np.float64:
            windows = windows.astype(np.float32, copy=False)
        if self._actions.shape[1]:
            actions = self._actions[rows]
            actions[:, -1] = np.nan  # the newest action is what a student has to find
            windows = np.concatenate([windows, actions], axis=2)
        windows[lags > ages[:, None]] = np.nan
        return windows

    def window_of(self, observations: Any, episode_starts: np.ndarray) -> np.ndarray:
        """
        The windows that end in the next observations, before these are added.

        :param observations: raw, shape (n_envs, *observation_shape), or a dict of such arrays
        :param episode_starts: as for :meth:`start`
        :return: see :meth:`get`
        """
        slots = (self._n_added + np.arange(self._n_envs)) % self._capacity
        windows = self._windows(slots, self._ages_of(episode_starts))
        newest = observation_rows(self._parts, observations)
        windows[:, -1, : newest.shape[1]] = newest
        return windows

    @property
    def actions(self) -> np.ndarray:
        """All stored actions, without a copy: shape (n, n_action)."""
        return self._actions[: self._n_added]

    def is_valid(self, slots: np.ndarray) -> np.ndarray:
        """Whether a window is whole: the oldest rows of the ring have lost what was before them."""
        n_newer = (self._n_added - 1 - slots) % self._capacity
        return n_newer + self._ages[slots].astype(np.int64) * self._n_envs < min(self._n_added, self._capacity)

    def rows(self, start: int, stop: int, position: int) -> Rows:
        own: dict[str, np.ndarray] = {"ages": self._ages}
        if self._actions.shape[1]:
            own["actions"] = self._actions
        parts = {name: ring_parts(ring, start, stop) for name, ring in own.items()}
        return {**self.inner.rows(start, stop, position), **parts}

    def put_back(self, start: int, rows: Mapping[str, np.ndarray]) -> None:
        self.inner.put_back(start, rows)
        put_into_ring(self._ages, start, rows["ages"])
        if self._actions.shape[1]:
            put_into_ring(self._actions, start, rows["actions"])
        self._n_added = start + len(rows["ages"])
        if len(rows["ages"]) >= self._n_envs:
            self._newest_ages = rows["ages"][-self._n_envs :].copy()

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + self._ages.nbytes + self._actions.nbytes


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


def make_store(
    capacity: int,
    space: spaces.Space,
    n_envs: int,
    stacked: bool,
    exact_keys: Collection[str | None],
    history: int,
    n_action: int,
) -> Any:
    """
    The store for the observations of a ring, see :class:`~sb3_qpd.distillation.buffers.DistillationBuffer`.

    :param capacity: number of observations
    :param space: space of one raw observation
    :param n_envs: number of environments that add at each step
    :param stacked: whether observations are stacked frames, channels first
    :param exact_keys: keys of the values that are kept in float64
    :param history: number of observations in a window
    :param n_action: numbers of the actions in a window
    """
    if stacked and history == 1:
        return FrameStore(capacity, space.shape, n_envs)  # type: ignore[arg-type]
    single: VectorStore | DictStore
    if isinstance(space, spaces.Dict):
        single = DictStore(capacity, space, exact_keys)
    else:
        single = VectorStore(capacity, space.shape, np.dtype(space.dtype), None in exact_keys)  # type: ignore[arg-type]
    if history == 1:
        return single
    return HistoryStore(single, capacity, observation_parts(space), history, n_envs, n_action)
