"""
Files of recorded observations: ``.npz`` and Minari datasets. Nothing in them is executed.

An ``.npz`` holds ``observations`` (or ``obs``), or one array for each key of a Dict. Where it also marks ends of episodes
under one of the usual names, whole episodes are held out. ``action_masks`` says which actions were allowed. A key of a Dict
with such a name is written as ``observations/action_masks``.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.text import plain

MAX_BYTES = 2**34  # of all arrays together
MAX_MEMBERS = 200
NAMES = ("observations", "obs")
ENDS = (("episode_ends",), ("dones",), ("terminations", "truncations"), ("terminals", "timeouts"), ("terminals",))
STARTS = "episode_starts"
MASKS = "action_masks"
# other arrays that recordings hold beside their observations
NOT_OBSERVED = ("actions", "acts", "rewards", "rews", "infos", "next_observations", "next_obs", "episode_returns", "logprobs")
KEY = "observations/"  # written in front of a Dict's key that has one of the names above
_OWN = {*(mark for marks in ENDS for mark in marks), STARTS, MASKS, *NOT_OBSERVED}
# exceptions of zipfile and of numpy's reader of headers on damaged files
_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, SyntaxError, OSError, ValueError, TypeError),
    *(EOFError, LookupError, NotImplementedError, RuntimeError, MemoryError),
)


@dataclass(frozen=True)
class Recording:
    """
    Observations in the order in which they were made.

    :param name: name of the source, for messages
    :param observations: array of shape (n, *observation_shape), or a dict of such arrays
    :param ends: number of observations up to the end of each episode, ``None`` where ends are not known
    :param spaces: observation and action space, where the source names them
    :param masks: which actions were allowed, one row for each observation; ``None`` where the source does not say
    :param own: names of arrays that were not read as the key of a Dict, since recordings use these names for themselves
    """

    name: str
    observations: Any
    ends: np.ndarray | None
    spaces: tuple[spaces.Space, spaces.Space] | None = None
    masks: np.ndarray | None = None
    own: tuple[str, ...] = ()


def read_recording(source: Any) -> Recording:
    """
    Read a file, a folder or a dataset.

    :param source: path of an ``.npz``, a Minari dataset, its id or its folder
    :raises ValueError: there is nothing, or it cannot be read
    """
    if hasattr(source, "iterate_episodes"):
        return _from_minari(source, f"the Minari dataset {getattr(source, 'id', '')}".rstrip())
    path = Path(source).expanduser()
    if path.is_file():
        return read_npz(path)
    if path.is_dir():
        return _from_minari(_open_folder(path), f"the Minari dataset in {path}")
    if path.suffix in (".npz", ".npy", ".hdf5", ".h5") or not isinstance(source, str):
        raise ValueError(f"No such file: {path}. Expected an .npz of recorded observations, or a Minari dataset")
    return _from_minari(_open_id(source), f"the Minari dataset {source}")


# --- npz ---
def read_npz(path: Path) -> Recording:
    """
    Read an ``.npz``. Each array is measured before it is unpacked, and no object in it is unpickled.

    :param path: path of the file
    :raises ValueError: another file, or arrays that contradict each other
    """
    name = plain(str(path), 300)
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read_arrays(archive, name)
    except _ERRORS as error:
        if isinstance(error, _Refused):
            raise
        raise ValueError(f"{name} cannot be read as an .npz ({plain(str(error), 200)}). Write it with numpy.savez") from error
    own = {key: arrays.pop(key) for key in [*arrays] if key in _OWN}
    observations = _find_observations(arrays, name)
    n = len(next(iter(observations.values())))
    ends = _find_ends(own, n, name)
    whole = next((observations[key] for key in NAMES if [*arrays] == [key]), None)
    taken = (*own, *(() if whole is None else arrays))
    return Recording(name, observations if whole is None else whole, ends, masks=own.get(MASKS), own=taken)


class _Refused(ValueError):
    """A file that is refused with a message of its own."""


def _read_arrays(archive: zipfile.ZipFile, name: str) -> dict[str, np.ndarray]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS or sum(one.file_size for one in members) > MAX_BYTES:
        raise _Refused(f"{name} holds more than {MAX_MEMBERS} arrays or {MAX_BYTES} bytes: refused. Split it")
    arrays = {}
    for member in members:
        key = plain(member.filename.removesuffix(".npy"), 100)
        with archive.open(member) as file:
            arrays[key] = _read_array(file, member.file_size, f"{key} in {name}")
    return arrays


def _read_array(file: Any, size: int, what: str) -> np.ndarray:
    head = io.BytesIO(file.read(min(size, 2**16)))
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    if dtype.kind not in "fiub":
        raise _Refused(f"{what} is an array of {plain(str(dtype), 40)}: only numbers are read, and nothing is unpickled")
    if len(shape) < 1 or head.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize != size:
        raise _Refused(f"{what} has the shape {shape}, which does not fit its {size} bytes. Write it again")
    content = bytearray(size - head.tell())
    used = head.readinto(content)
    view = memoryview(content)
    while used < len(content):
        piece = file.read(min(2**24, len(content) - used))
        if not piece:
            raise _Refused(f"{what} is cut off")
        view[used : used + len(piece)] = piece
        used += len(piece)
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _find_observations(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The observation's arrays by their keys, all of one length."""
    observations = {key.removeprefix(KEY): one for key, one in arrays.items()}
    if not observations:
        raise ValueError(f"{name} holds no observations: expected an array named observations, or one for each key of a Dict")
    if len(observations) < len(arrays):
        raise ValueError(f"{name} holds a key twice, with and without {KEY} in front: {', '.join(arrays)}. Leave one out")
    if len({len(one) for one in arrays.values()}) > 1:
        raise ValueError(f"{name} holds arrays of unequal lengths: { ({key: len(one) for key, one in arrays.items()}) }")
    return observations


def _find_ends(arrays: dict[str, np.ndarray], n: int, name: str) -> np.ndarray | None:
    """Where episodes end, from the first names that the file has. The last observation ends an episode in any case."""
    found = next((keys for keys in ENDS if all(key in arrays for key in keys)), None)
    if found is not None:
        flags = np.any([_flags(arrays, key, n, name) for key in found], axis=0)
    elif STARTS in arrays:
        flags = np.roll(_flags(arrays, STARTS, n, name), -1)
    elif lonely := [key for keys in ENDS for key in keys if key in arrays]:
        raise ValueError(
            f"{name} has {lonely[0]} without its partner, so the ends of some episodes are missing. Expected one of "
            f"{'; '.join(' with '.join(keys) for keys in ENDS)}; {STARTS}"
        )
    else:
        return None
    flags[-1:] = True
    return np.flatnonzero(flags) + 1


def _flags(arrays: dict[str, np.ndarray], key: str, n: int, name: str) -> np.ndarray:
    """The marks of episodes under a name, as a new array."""
    array, meaning = arrays[key], "starts" if key == STARTS else "ends"
    if array.shape != (n,):
        got = f"{len(array)} marks" if array.ndim == 1 else f"an array of shape {array.shape}"
        raise ValueError(
            f"{key} in {name} must have {n} marks, one for each observation: 1 where an episode {meaning}, else 0. Got {got}"
        )
    if (row := first_no_flag(array)) is not None:
        raise ValueError(
            f"{key} in {name} holds {array[row].item()!r} in row {row[0]}: expected 1 where an episode {meaning}, else 0"
        )
    return array.astype(bool)


def first_no_flag(array: np.ndarray) -> tuple[int, ...] | None:
    """
    The place of the first value that is neither True nor False, 1 nor 0.

    :param array: an array of any type
    :return: its index, ``None`` where there is no such value
    """
    if array.dtype.kind in "biuf":
        is_flag = np.isin(array, (0, 1))
    else:  # of texts or objects, where "1" is no flag
        is_flag = np.frompyfunc(lambda one: isinstance(one, Real | np.bool_) and one in (0, 1), 1, 1)(array).astype(bool)
    wrong = np.argwhere(~is_flag)
    return tuple(wrong[0].tolist()) if len(wrong) else None


# --- Minari ---
def _minari() -> Any:
    try:
        return import_module("minari")
    except ImportError as error:
        raise ImportError("Minari datasets need a package: pip install 'sb3_qpd[minari]'") from error


def _open_id(name: str) -> Any:
    """A dataset by its id: the one that is here, else it is downloaded."""
    try:
        return _minari().load_dataset(name, download=True)
    except ImportError:
        raise
    except Exception as error:  # the network, the server and the file formats raise their own
        raise ValueError(
            f"There is no file or folder {plain(name, 100)}, and no Minari dataset of this id could be opened or downloaded "
            f"({plain(' '.join(str(error).split()), 200)}). minari list local shows the datasets that are here"
        ) from error


def _open_folder(path: Path) -> Any:
    folder = path / "data" if (path / "data").is_dir() else path
    try:
        return _minari().MinariDataset(folder)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not the folder of a Minari dataset ({plain(' '.join(str(error).split()), 200)}). Expected a folder "
            "with data/metadata.json"
        ) from error


def _from_minari(dataset: Any, name: str) -> Recording:
    """All observations but each episode's last, which no action follows."""
    try:
        episodes = [_without_last(episode.observations) for episode in dataset.iterate_episodes()]
        known = dataset.observation_space, dataset.action_space
    except Exception as error:  # of h5py, pyarrow and Minari, on damaged files
        raise ValueError(f"{name} cannot be read ({plain(' '.join(str(error).split()), 200)})") from error
    lengths = [len(next(iter(one.values())) if isinstance(one, dict) else one) for one in episodes]
    episodes = [one for one, length in zip(episodes, lengths, strict=True) if length]
    if not episodes:
        raise ValueError(f"{name} holds no episode with an observation")
    if isinstance(episodes[0], dict):
        observations: Any = {key: np.concatenate([one[key] for one in episodes]) for key in episodes[0]}
    else:
        observations = np.concatenate(episodes)
    return Recording(name, observations, np.cumsum([length for length in lengths if length]), known)


def _without_last(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {str(key): _without_last(one) for key, one in observations.items()}
    if not isinstance(observations, np.ndarray):
        raise ValueError(f"observations are {type(observations).__name__}, expected arrays or one Dict of arrays")
    return observations[:-1]
