"""Recorded observations: what a student learns from where there is no simulator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.checks import is_finite
from sb3_qpd.distillation.recording_files import KEY, MASKS, Recording, first_no_flag, read_recording
from sb3_qpd.integer import IntegerModel, ObservationPart
from sb3_qpd.observations import check_finite, join, take_rows
from sb3_qpd.spaces import action_head
from sb3_qpd.teachers.own_policies import N_COMPARED, plays_differently, settle_labels
from sb3_qpd.teachers.teacher import Teacher

HELD_OUT = 0.1  # share of the samples, in whole episodes
BLOCK = 500  # samples of a block, where a recording does not say where its episodes end
MIN_BLOCKS = 20
EXPECTED = "an array, a dict of arrays, a list of episodes, the path of an .npz, or a Minari dataset (object, id or folder)"

RecordingSource = Any  # what EXPECTED names


class RecordedObservations:
    """
    Observations of whole episodes that were recorded, of which a share is held out.

    Where the source does not say where episodes end, or holds a single one, blocks of consecutive observations take their
    place.

    :param source: an array of shape (n, *observation_shape), or a dict of such arrays; an iterable of episodes, each of such a
        form; the path of an ``.npz``; a Minari dataset, its id or its folder
    :param held_out: share of the observations that the student never learns from
    :param action_masks: which discrete actions were allowed, shape (n, sum of all categories), for the teacher of a
        ``MaskablePPO``. ``None`` takes the array ``action_masks`` of an ``.npz``
    :raises ValueError: there are too few observations, or they contradict themselves
    """

    def __init__(self, source: RecordingSource, held_out: float = HELD_OUT, action_masks: np.ndarray | None = None) -> None:
        if not is_finite(held_out) or not 0 <= held_out < 1:
            raise ValueError(f"held_out must be a share from 0 to below 1, got {held_out!r}")
        recording = _recording(source)
        self.name, self.spaces, self._own = recording.name, recording.spaces, recording.own
        self.observations = recording.observations
        self.masks = recording.masks if action_masks is None else _mask_array(action_masks)
        n = _length(self.observations)
        if n < 2:
            raise ValueError(f"{self.name} holds {n} observations: at least 2 are needed. Expected {EXPECTED}")
        self.has_episodes = recording.ends is not None and len(recording.ends) > 1  # of one episode, blocks are held out
        ends = recording.ends if self.has_episodes and recording.ends is not None else _blocks(n)
        self.episodes = [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        self._split(held_out)

    def __len__(self) -> int:
        return _length(self.observations)

    def __repr__(self) -> str:
        kind = "episodes" if self.has_episodes else "blocks"
        return f"<RecordedObservations {self.name}: {len(self)} in {len(self.episodes)} {kind}, {len(self.held_out)} held out>"

    def _split(self, share: float) -> None:
        """Draw episodes until the share is reached. At least one is learned from."""
        order, wanted = np.random.default_rng(0).permutation(len(self.episodes)), share * len(self)
        held: list[int] = []
        while wanted > 0 and len(held) < len(order) - 1:
            episode = self.episodes[order[len(held)]]
            held.append(int(order[len(held)]))
            wanted -= episode.stop - episode.start
        self.held_out = [self.episodes[i] for i in sorted(held)]
        known = set(held)
        self.learned = [episode for i, episode in enumerate(self.episodes) if i not in known]

    def take(self, rows: np.ndarray) -> tuple[Any, np.ndarray | None]:
        """
        Some observations, and their action masks where there are any.

        :param rows: their indices
        """
        return take_rows(self.observations, rows), take_rows(self.masks, rows)  # type: ignore[arg-type]

    def side_by_side(self, episodes: list[slice]) -> Iterator[np.ndarray]:
        """
        Indices of the first observations of all episodes, then of the second ones, and so on. Longer episodes come first, so
        that those which go on are the first ones of each step.

        :param episodes: from ``held_out`` or ``learned``
        """
        longest = sorted(episodes, key=lambda episode: episode.start - episode.stop)
        starts, lengths = np.array([(episode.start, episode.stop - episode.start) for episode in longest]).T
        for step in range(lengths[0]):
            yield starts[lengths > step] + step

    def fit(self, teacher: Teacher) -> None:
        """
        Give the observations the form that a teacher takes, and refuse those of another task. Images get channels first.

        :param teacher: the teacher
        :raises ValueError: other keys, shapes or numbers than the teacher's observations have, or no action masks for a
            teacher that was trained with them
        """
        if self.spaces is not None:
            _check_actions(teacher, self.spaces[1], self.name)
        self._fit_parts(teacher.parts, "teacher")
        if teacher.uses_masks and self.masks is None:
            raise ValueError(
                f"The teacher was trained with action masks, and {self.name} has none: add an array {MASKS} of shape "
                f"({len(self)}, {sum(teacher.head.nvec)}), True where an action was allowed, to the .npz, or give it to "
                "RecordedObservations"
            )
        self._fit_masks(teacher.head.nvec if teacher.uses_masks else ())
        if plays_differently(teacher.policy):
            settle_labels(teacher, take_rows(self.observations, slice(N_COMPARED)))

    def fit_student(self, model: IntegerModel) -> None:
        """
        Give the observations the form that a student takes, as :meth:`fit` does for a teacher. Action masks may be missing.

        :param model: the student
        :raises ValueError: the recording has other keys, shapes or numbers
        """
        self._fit_parts(model.parts, "student")
        self._fit_masks(model.action_nvec if model.uses_masks else ())

    def _fit_parts(self, parts: Sequence[ObservationPart], player: str) -> None:
        wanted = {part.key: part for part in parts}
        given = self.observations if isinstance(self.observations, dict) else {None: self.observations}
        if wanted.keys() != given.keys():
            if own := [key for key in self._own if key in wanted]:
                raise ValueError(
                    f"The {player}'s observations have a key {own[0]!r}, and {self.name} has an array of this name, which "
                    f"recordings use for themselves. Write the key's array as {KEY}{own[0]}"
                )
            raise ValueError(
                f"{self.name} holds {_keys(given)}, the {player}'s observations are {_keys(wanted)}: it is a recording of "
                "another environment, or without its wrappers"
            )
        fitted = {key: _fitted(part, given[key], self.name, player) for key, part in wanted.items()}
        self.observations = fitted[None] if None in fitted else fitted

    def _fit_masks(self, nvec: Sequence[int]) -> None:
        """Check action masks for these categories. ``nvec`` is empty for a player without masks: they are dropped."""
        if self.masks is None or not nvec:
            self.masks = None
            return
        shape, name = (len(self), sum(nvec)), f"{MASKS} of {self.name}"
        if self.masks.shape != shape:
            got = f"{self.masks.dtype} of shape {self.masks.shape}"
            raise ValueError(f"{name} must be an array of True and False of shape {shape}, got {got}")
        if (place := first_no_flag(self.masks)) is not None:
            value = np.asarray(self.masks[place]).item()
            raise ValueError(
                f"{name} hold {value!r} in row {place[0]}, column {place[1]}: expected True where an action was allowed, else "
                "False"
            )
        self.masks = self.masks.astype(bool)
        for i, allowed in enumerate(np.split(self.masks, np.cumsum(nvec)[:-1], axis=1)):
            if not (is_allowed := allowed.any(1)).all():
                row = int(np.argmin(is_allowed))
                raise ValueError(f"{name} allow no action in row {row}, dimension {i}: leave out rows that no action followed")


def _recording(source: RecordingSource) -> Recording:
    if isinstance(source, str | Path) or hasattr(source, "iterate_episodes"):
        return read_recording(source)
    if isinstance(source, Mapping | np.ndarray):
        return Recording("the recording", _arrays(source), None)
    if not isinstance(source, Iterable):
        raise TypeError(f"observations must be {EXPECTED}, got {source!r} ({type(source).__name__})")
    episodes = [_arrays(episode) for episode in source]
    episodes = [episode for episode in episodes if _length(episode)]
    if not episodes:
        raise ValueError(f"The recording holds no episode with an observation. Expected {EXPECTED}")
    kinds = {_form(episode) for episode in episodes}
    if len(kinds) > 1:
        first, second = sorted(kinds, key=str)[:2]
        raise ValueError(f"The episodes of the recording differ in form: {first} and {second}. All must have one shape")
    return Recording("the recording", join(episodes), np.cumsum([_length(episode) for episode in episodes]))


def _arrays(value: Any) -> Any:
    """An array, or a dict of arrays of one length."""
    if not isinstance(value, Mapping):
        return _array(value, "")
    arrays = {str(key): _array(one, f" {key!r}") for key, one in value.items()}
    if len({len(one) for one in arrays.values()}) != 1:
        raise ValueError(f"The recording's arrays have unequal lengths: { ({key: len(one) for key, one in arrays.items()}) }")
    return arrays


def _array(value: Any, key: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"The recorded observations{key} are no array ({error}). Expected {EXPECTED}") from error
    if array.dtype.kind not in "fiub" or array.ndim < 1:
        raise ValueError(
            f"The recorded observations{key} must be rows of numbers, got an array of {array.dtype} and shape {array.shape}"
        )
    return array


def _mask_array(action_masks: Any) -> np.ndarray:
    try:
        return np.asarray(action_masks)
    except ValueError as error:
        raise ValueError(f"{MASKS} must be an array of True and False with equally long rows ({error})") from error


def _length(observations: Any) -> int:
    if isinstance(observations, dict):
        return len(next(iter(observations.values()))) if observations else 0
    return len(observations)


def _form(observations: Any) -> tuple[Any, ...]:
    if isinstance(observations, dict):
        return tuple((key, one.shape[1:]) for key, one in observations.items())
    return observations.shape[1:]


def _blocks(n: int) -> np.ndarray:
    """Ends of blocks of consecutive samples."""
    n_blocks = min(n, max(MIN_BLOCKS, -(-n // BLOCK)))
    return np.linspace(0, n, n_blocks + 1).astype(int)[1:]


def _keys(given: Mapping[str | None, Any]) -> str:
    return "one array" if set(given) == {None} else f"a dict of {', '.join(sorted(map(str, given)))}"


def _fitted(part: ObservationPart, values: np.ndarray, name: str, player: str) -> np.ndarray:
    where = name if part.key is None else f"{name}, key {part.key!r},"
    shape = values.shape[1:]
    if shape != part.shape and part.is_image and len(shape) == 3 and (shape[2], *shape[:2]) == part.shape:
        values = np.moveaxis(values, 3, 1)
    elif shape != part.shape:
        raise ValueError(
            f"{where} holds observations of shape {shape}, the {player} takes {part.shape}: it is a recording of another "
            "environment, or without its wrappers"
        )
    try:
        check_finite(values, len(part.shape), part.key)
    except ValueError as error:
        raise ValueError(f"{where} cannot be used: {error}") from error
    if part.kind == "image" and values.dtype != np.uint8:
        raise ValueError(f"{where} holds images of {values.dtype}, the {player} takes uint8. Record raw observations")
    if part.kind == "one_hot":
        whole = values.astype(np.int64)
        if (whole != values).any() or (whole < 0).any() or (whole >= np.asarray(part.nvec).reshape(part.shape or ())).any():
            raise ValueError(f"{where} holds other numbers than whole ones from 0 to below {part.nvec}")
        return whole
    return values


def _check_actions(teacher: Teacher, actions: Any, name: str) -> None:
    """A recording of another environment may have observations of the same shape, and other actions."""
    if action_head(actions) != teacher.head:
        ours = teacher.action_space
        raise ValueError(f"{name} was recorded with actions of {actions}, the teacher's are {ours}: of another environment")
