"""
Checkpoints: a run that was killed goes on where its last checkpoint was.

A checkpoint is a folder. Nothing in it is written twice in the same place, and each file appears whole or not at all:

- ``state-0.npz`` and ``state-1.npz``: the state of learning, in turns. The newest that can be read counts;
- ``ring-00000001.npz``, ...: what the ring of observations got between two checkpoints. Files that the ring has left behind
  are removed, so that they together hold about one ring;
- ``actions.bin``: the actions since the environments were seeded. It only grows, and the state says how much of it counts.

Writing a checkpoint changes nothing: the student is the same with and without. When a run goes on, its environments are
seeded again and play the recorded actions. If they come to the recorded observations, rewards and ends of episodes, the
student will be the one of a run that was never interrupted, bit for bit. Otherwise they begin new episodes.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_qpd.atomic import open_locked
from sb3_qpd.distillation.buffers import BufferPosition
from sb3_qpd.distillation.checkpoint_files import (
    ACTIONS,
    LOCK,
    SEGMENT,
    STATE_FILES,
    CheckpointError,
    check_ordinary,
    newest_steps,
    read_archive,
    write_archive,
)
from sb3_qpd.distillation.learning_state import decode, encode, learning_state, numbers_of, restore_learning, settings_of
from sb3_qpd.failures import EnvironmentFailure, environment_failures
from sb3_qpd.players import seed_if_possible
from sb3_qpd.version import __version__

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller

MIN_SECONDS = 60.0  # between two checkpoints, where no number of steps is given
MAX_SHARE = 0.025  # of the time of learning that checkpoints may take then
MAX_ACTION_BYTES = 2**28  # a longer record is given up: to play it again would take too long
MAX_REPLAY_SECONDS = 300.0
MIN_REPLAY_SECONDS = 2.0  # before its length is estimated
STATE_BYTES = 2**20  # of a state, beside its tensors


class Checkpoint:
    """
    Where and how often a run keeps its state.

    :param folder: folder of the checkpoint, created with the first one
    :param every: environment steps between two checkpoints, rounded up to the end of a round of 2,048 steps. ``None``: once a
        minute, and less often where a checkpoint takes more than 2.5 % of the time
    :param resume: go on from what is in the folder. A folder without a checkpoint is the start of a new run
    :param after_write: called after each checkpoint, for example to copy the folder to another machine
    """

    def __init__(
        self,
        folder: str | Path,
        every: int | None = None,
        resume: bool = False,
        after_write: Callable[[], None] | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be a number of environment steps of at least 1, or None, got {every!r}")
        # absolute: a simulator may change the current folder
        self.folder, self.every, self.resume, self.after_write = Path(folder).absolute(), every, resume, after_write

    @property
    def num_timesteps(self) -> int | None:
        """Environment steps of the state in the folder; ``None`` where there is none."""
        return newest_steps(self.folder)

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Recording:
    """The actions since the environments were seeded, and checksums of what the environments gave."""

    def __init__(self) -> None:
        self.is_complete = True  # False: it was given up, or the environments were not seeded at its start
        self.n_steps = 0
        self.dtype, self.shape = "", [0]  # of the actions of one step
        self.n_bytes, self.action_checksum = 0, 0  # of what is on the disk
        self.first_checksum, self.answer_checksum = 0, 0  # of the first observations; of rewards and ends of episodes
        self._new: list[np.ndarray] = []

    def start(self, observations: Any) -> None:
        """
        Begin after a reset.

        :param observations: the first observations of all environments
        """
        self.first_checksum = checksum_of_observations(observations)

    def add(self, actions: np.ndarray, rewards: np.ndarray, dones: np.ndarray) -> None:
        """
        Keep a step of all environments.

        :param actions: what was sent
        :param rewards: shape (n_envs,)
        :param dones: shape (n_envs,)
        """
        if not self.is_complete:
            return
        actions = np.asarray(actions)
        self.dtype, self.shape = actions.dtype.str, list(actions.shape)
        self._new.append(actions)
        self.n_steps += 1
        self.answer_checksum = checksum_of(rewards, dones, self.answer_checksum)
        if self.n_steps * actions.nbytes > MAX_ACTION_BYTES:
            self.give_up()

    def give_up(self) -> None:
        """Keep no more actions: the environments will begin new episodes when the run goes on."""
        self.is_complete, self._new, self.n_steps = False, [], 0

    def write(self, path: Path) -> None:
        """
        Append the new actions to the file and sync it. What a killed process appended before is cut off.

        :param path: the file
        """
        if not self._new:
            return
        if self.n_bytes > (path.stat().st_size if path.is_file() else 0):  # its folder was moved or removed
            self.give_up()
            return
        content = b"".join(np.ascontiguousarray(one).tobytes() for one in self._new)
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.truncate(self.n_bytes)
            file.seek(self.n_bytes)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.action_checksum = zlib.crc32(content, self.action_checksum)
        self.n_bytes += len(content)
        self._new = []

    def read(self, path: Path) -> np.ndarray | None:
        """
        The actions in the file.

        :param path: the file
        :return: shape (n_steps, *shape); ``None`` where the file does not hold them
        """
        dtype, shape = np.dtype(self.dtype or np.int64), tuple(self.shape)
        if dtype.kind not in "biuf" or min(shape, default=0) < 0 or not 0 <= self.n_bytes <= MAX_ACTION_BYTES:
            return None
        if not self.n_steps:
            return np.zeros((0, *shape), dtype)
        with open(path, "rb") as file:
            content = file.read(self.n_bytes)
        if zlib.crc32(content) != self.action_checksum or len(content) != self.n_steps * math.prod(shape) * dtype.itemsize:
            return None
        return np.frombuffer(content, dtype).reshape(self.n_steps, *shape)

    def state(self) -> dict[str, Any]:
        """Everything but the actions that are on the disk."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def restore(self, state: dict[str, Any]) -> None:
        """
        Go on with the recording of another process.

        :param state: from :meth:`state`
        """
        for name, value in self.state().items():
            setattr(self, name, type(value)(state[name]))
        self.shape = [int(size) for size in self.shape]


def checksum_of_observations(observations: Any) -> int:
    """
    A checksum of a batch of observations.

    :param observations: array, or a dict of arrays
    """
    parts = observations.values() if isinstance(observations, dict) else [observations]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(np.ascontiguousarray(part).tobytes(), checksum)
    return checksum


def checksum_of(rewards: np.ndarray, dones: np.ndarray, before: int = 0) -> int:
    """
    A checksum of rewards and ends of episodes.

    :param rewards: shape (n_envs,)
    :param dones: shape (n_envs,)
    :param before: checksum of the steps before
    """
    return zlib.crc32(np.asarray(dones, bool).tobytes(), zlib.crc32(np.asarray(rewards, np.float32).tobytes(), before))


class CheckpointWriter:
    """
    Writes the checkpoints of one call of ``learn()``, and reads the one that it goes on from.

    :param checkpoint: where and how often
    :param distiller: the distiller, before its first step
    :param callback: its callbacks
    :raises CheckpointError: the folder holds a checkpoint and ``resume`` is False, or the checkpoint is another run's
    """

    def __init__(self, checkpoint: Checkpoint, distiller: QPDDistiller, callback: BaseCallback) -> None:
        self._checkpoint, self._distiller, self._callback = checkpoint, distiller, callback
        self._numbers = numbers_of(callback)
        self.recording = Recording()
        self.recording.is_complete = distiller.num_timesteps == 0 and distiller.seed is not None
        self._settings = settings_of(distiller, distiller._total_timesteps)
        self._segments: dict[int, BufferPosition] = {}  # number -> what was in the ring at its end
        self._in_last_state: set[int] = set()
        self._written = BufferPosition(0, 0)
        self._n_states = 0
        self._has_warned = False
        self.n_written, self.seconds = 0, 0.0  # checkpoints of this process, and what they took
        self._lock: IO[bytes] | None = None
        try:
            self.found = self._find()
        except BaseException:
            self.close()
            raise
        self._note_time()

    @property
    def folder(self) -> Path:
        return self._checkpoint.folder

    def _find(self) -> dict[str, Any] | None:
        """The newest state that can be read, for :meth:`resume`."""
        existing = [self.folder / name for name in STATE_FILES if (self.folder / name).exists()]
        check_ordinary(self.folder)
        if not existing:
            return None
        if not self._checkpoint.resume:
            raise CheckpointError(
                f"{self.folder} holds a checkpoint of an unfinished run, after {self._checkpoint.num_timesteps} steps. Go on "
                "from it by resume=True, or remove the folder to begin anew"
            )
        try:
            self._take_lock()
        except BlockingIOError as error:
            raise CheckpointError(
                f"{self.folder} is in use: another process writes its checkpoints there. Wait for it, or take another folder"
            ) from error
        states, errors = [], []
        limit = 2 * self._bytes_of_state()
        for path in existing:
            try:
                values, arrays = read_archive(path, limit)
                states.append((int(values["num_timesteps"]), int(values["number"]), values, arrays))
            except CheckpointError as error:
                errors.append(error)
            except (KeyError, TypeError, ValueError) as error:
                errors.append(CheckpointError(f"{path} is no checkpoint: {error}"))
        if not states:
            raise errors[0]
        for damaged in errors:
            warnings.warn(f"{damaged}. The other state is taken")
        *_, values, arrays = max(states, key=lambda state: state[:2])
        self._check_run(values)
        return {**values, "arrays": arrays}

    def _take_lock(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = open_locked(self.folder / LOCK, wait=False)

    def close(self) -> None:
        """Let other processes write into the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check_run(self, values: dict[str, Any]) -> None:
        theirs = values.get("settings")
        if not isinstance(theirs, dict):
            raise CheckpointError(f"{self.folder} is no checkpoint: it names no settings")
        for name, ours in self._settings.items():
            if theirs.get(name) != ours:
                raise CheckpointError(
                    f"{self.folder} is the checkpoint of another run: its {name} is {str(theirs.get(name))[:200]}, this run's "
                    f"is {ours[:200]}. Repeat the settings of that run, or remove the folder to begin anew"
                )
        if values.get("version") != __version__:
            warnings.warn(f"The checkpoint is from sb3_qpd {values.get('version')!s:.40}, this is {__version__}")

    def start(self) -> int:
        """
        Bring distiller and environments to the state that was found, or begin to record.

        :return: number of rounds that were made before
        """
        distiller, found = self._distiller, self.found
        if found is None:
            self.recording.start(distiller._last_obs)
            self._note_time()
            return 0
        try:
            arrays = found["arrays"]
            self.recording.restore(found["recording"])
            self._restore_ring(found)
            is_exact = self._play_again(decode(found["observations"], arrays))
            restore_learning(distiller, self._callback, decode(found["state"], arrays))
            self._n_states, iteration = int(found["number"]), int(found["iteration"])
        except (CheckpointError, EnvironmentFailure):
            distiller.num_timesteps = 0  # this process has learned nothing yet
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, OverflowError) as error:
            distiller.num_timesteps = 0
            raise CheckpointError(f"{self.folder} does not fit this run: {error}. Remove it to begin anew") from error
        if not is_exact:
            self._begin_episodes()
        distiller._num_timesteps_at_start = distiller.num_timesteps
        if distiller._bar is not None:
            distiller._bar.pbar.update(distiller.num_timesteps)
        how = "as if it had not been interrupted" if is_exact else "the environments begin new episodes"
        print(f"Going on after {distiller.num_timesteps} of {distiller._total_timesteps} steps: {how}")
        found.pop("arrays")
        self._note_time()
        return iteration

    @property
    def is_finished(self) -> bool:
        """Whether the state that was found is the end of learning."""
        return self.found is not None and bool(self.found["is_finished"])

    def _note_time(self) -> None:
        self._last_steps, self._last_time = self._distiller.num_timesteps, time.perf_counter()

    def _restore_ring(self, found: dict[str, Any]) -> None:
        distiller = self._distiller
        buffer = distiller._buffer
        assert buffer is not None
        targets = distiller._ask_teacher()
        for number, rows, frames in found["segments"]:
            buffer.put_back(read_archive(self._segment(int(number)), 2 * buffer.nbytes + STATE_BYTES)[1], targets)
            self._segments[int(number)] = BufferPosition(int(rows), int(frames))
        self._written = buffer.position
        if list(self._written) != found["position"]:
            raise ValueError(f"the ring ends at {list(self._written)}, expected {found['position']}")
        self._in_last_state = set(self._segments)

    def _segment(self, number: int) -> Path:
        return self.folder / f"ring-{number:08}.npz"

    def _play_again(self, expected: Any) -> bool:
        """
        Bring the environments to their state by the recorded actions.

        :param expected: observations at the end
        :return: whether they came to it
        """
        distiller, recording = self._distiller, self.recording
        env, actions = distiller.env, recording.read(self.folder / ACTIONS) if recording.is_complete else None
        assert env is not None
        if actions is None or not seed_if_possible(env, distiller.seed):
            return False
        observations: Any = env.reset()
        if checksum_of_observations(observations) != recording.first_checksum:
            return False
        checksum, start = 0, time.perf_counter()
        for step in range(recording.n_steps):
            with environment_failures(env, step=step * env.num_envs, name=distiller._env_name):
                observations, rewards, dones, _ = env.step(actions[step])
            checksum = checksum_of(rewards, dones, checksum)
            seconds = time.perf_counter() - start
            if seconds > MIN_REPLAY_SECONDS and seconds / (step + 1) * recording.n_steps > MAX_REPLAY_SECONDS:
                return False
        if checksum != recording.answer_checksum or not _are_equal(observations, expected):
            return False
        distiller._last_obs = observations
        if recording.n_steps:
            distiller._last_episode_starts = dones
        return True

    def _begin_episodes(self) -> None:
        """New episodes in all environments, with a seed that the run did not begin with."""
        distiller = self._distiller
        env = distiller.env
        assert env is not None
        self.recording.give_up()
        seed_if_possible(env, None if distiller.seed is None else int(distiller._rng.integers(900_000)))
        distiller._last_obs = env.reset()  # type: ignore[assignment]
        distiller._last_episode_starts = np.ones(env.num_envs, bool)
        distiller._turns.start_all()
        distiller._students.start_all()

    def write_if_due(self, iteration: int) -> None:
        """
        Write a checkpoint where it is time.

        :param iteration: number of rounds that were made
        """
        every = self._checkpoint.every
        if every is not None:
            is_due = self._distiller.num_timesteps - self._last_steps >= every
        else:
            slowest = self.seconds / max(self.n_written, 1)
            is_due = time.perf_counter() - self._last_time >= max(MIN_SECONDS, slowest / MAX_SHARE)
        if is_due:
            self.write(iteration)

    def finish(self, iteration: int) -> None:
        """
        Write the end of learning, so that what follows can be repeated alone. A short run without a checkpoint gets none.

        :param iteration: number of rounds that were made
        """
        if (self.n_written or self._checkpoint.every is not None) and not self.is_finished:
            self.write(iteration, is_finished=True)

    def write(self, iteration: int, is_finished: bool = False) -> None:
        """
        Write a checkpoint. Where the disk does not take it, a warning says so, once, and learning goes on.

        :param iteration: number of rounds that were made
        :param is_finished: whether learning has ended
        """
        start = time.perf_counter()
        try:
            self._write(iteration, is_finished)
        except OSError as error:
            if not self._has_warned:
                reason = "another process writes there" if isinstance(error, BlockingIOError) else error.strerror or error
                warnings.warn(
                    f"No checkpoint after {self._distiller.num_timesteps} steps: {reason}. It needs about "
                    f"{self._bytes_needed():,} bytes in {self.folder}. Learning goes on without"
                )
            self._has_warned = True
        else:
            self.n_written += 1
            if self._checkpoint.after_write is not None:
                self._checkpoint.after_write()
        self.seconds += time.perf_counter() - start
        self._note_time()

    def _bytes_needed(self) -> int:
        buffer = self._distiller._buffer
        assert buffer is not None
        return self._bytes_of_state() + buffer.nbytes

    def _bytes_of_state(self) -> int:
        """Student, float student and two moments of the optimizer; the observations; and what is small."""
        tensors = sum(value.nbytes for value in self._distiller.policy.state_dict().values())
        observations: Any = self._distiller._last_obs
        parts = observations.values() if isinstance(observations, dict) else [observations]
        return STATE_BYTES + 4 * tensors + sum(part.nbytes for part in parts)

    def _write(self, iteration: int, is_finished: bool) -> None:
        distiller = self._distiller
        buffer = distiller._buffer
        assert buffer is not None
        self._take_lock()
        if not all(self._segment(number).exists() for number in self._segments):  # its folder was moved or removed
            self._segments, self._written = {}, BufferPosition(0, 0)
        position, segments, number = buffer.position, dict(self._segments), self._n_states + 1
        if position != self._written:
            write_archive(self._segment(number), None, buffer.rows_since(self._written))
            segments[number] = position
        self.recording.write(self.folder / ACTIONS)
        segments = {key: end for key, end in segments.items() if buffer.holds_anything_before(end)}
        arrays: dict[str, np.ndarray] = {}
        values = {
            "num_timesteps": distiller.num_timesteps,
            "number": number,
            "version": __version__,
            "settings": self._settings,
            "is_finished": is_finished,
            "iteration": iteration,
            "segments": [[key, *end] for key, end in segments.items()],
            "position": list(position),
            "recording": self.recording.state(),
            "observations": encode(distiller._last_obs, arrays),
            "state": encode(learning_state(distiller, self._callback, self._numbers), arrays),
        }
        write_archive(self.folder / STATE_FILES[number % 2], values, arrays)
        self._segments, self._written, self._n_states = segments, position, number
        self._remove_segments(keep=self._in_last_state | set(segments))
        self._in_last_state = set(segments)

    def _remove_segments(self, keep: set[int]) -> None:
        """Remove what neither of the two states names."""
        for path in self.folder.glob("ring-*.npz"):
            match = SEGMENT.fullmatch(path.name)
            if match and int(match[1]) not in keep:
                with suppress(OSError):
                    path.unlink()


def _are_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and ours.keys() == theirs.keys() and all(_are_equal(ours[k], theirs[k]) for k in ours)
    return np.array_equal(ours, theirs)
