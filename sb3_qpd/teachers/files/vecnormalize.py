"""A ``vecnormalize.pkl`` as data: the pickle is read and never executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_qpd.ordinary_files import open_ordinary
from sb3_qpd.teachers.files.archive import TeacherError, read_file
from sb3_qpd.teachers.files.known_names import is_known
from sb3_qpd.teachers.files.pickle_reader import ObjectRecord, UnsafePickle, read_pickle, to_array, to_number
from sb3_qpd.teachers.files.space_records import CONTRADICTIONS, check_size

MAX_PICKLE_BYTES = 64 * 2**20
_HEAD = 256  # bytes in which a pickle of a VecNormalize names its class


class NormalizationFile(NamedTuple):
    """Observation statistics of a ``vecnormalize.pkl``, by key for Dict observations."""

    mean: np.ndarray | dict[str, np.ndarray]
    var: np.ndarray | dict[str, np.ndarray]
    epsilon: float
    clip_obs: float


class NormalizationSettings(NamedTuple):
    """
    What a ``VecNormalize`` goes on with.

    :param observations: statistics of observations, ``None`` where they are not normalized
    :param obs_count: observations that they rest on, by key for Dict observations
    :param returns: mean, variance and number of the discounted returns
    :param norm_reward: rewards are normalized
    :param clip_reward: largest absolute value of a normalized reward
    :param gamma: discount factor
    :param epsilon: small number that is added to variances
    """

    observations: NormalizationFile | None
    obs_count: Any
    returns: tuple[float, float, float]
    norm_reward: bool
    clip_reward: float
    gamma: float
    epsilon: float


def read_vecnormalize(path: str | Path) -> NormalizationFile | None:
    """
    Read the frozen observation statistics that SB3's ``VecNormalize.save`` wrote, without executing the pickle.

    :param path: path of a ``vecnormalize.pkl``
    :return: the statistics, or ``None`` where observations were not normalized
    :raises TeacherError: it is another file, or its values contradict each other
    """
    return _read(path, _to_statistics)


def read_settings(path: str | Path) -> NormalizationSettings:
    """
    Read everything that a ``VecNormalize`` needs to go on, without executing the pickle.

    :param path: path of a ``vecnormalize.pkl``
    :raises TeacherError: see :func:`read_vecnormalize`
    """
    return _read(path, _to_settings)


def _read(path: str | Path, convert: Callable[[dict[str, Any]], Any]) -> Any:
    path = Path(path)
    try:
        content = read_file(path, "a vecnormalize.pkl written by VecNormalize.save", MAX_PICKLE_BYTES)
        saved = read_pickle(content, is_known)
        if not isinstance(saved, ObjectRecord) or saved.target.name != "VecNormalize":
            raise UnsafePickle("It is not a VecNormalize")
        return convert(saved.attributes())
    except TeacherError:
        raise
    except CONTRADICTIONS as error:
        reason = f"It has no {error}" if isinstance(error, KeyError) else error
        raise TeacherError(
            f"{path} was refused, without running it. {reason}. Expected the file that VecNormalize.save writes; "
            "if you trust it, load it yourself and pass a live model whose environment is in that VecNormalize"
        ) from error


def is_vecnormalize(path: Path) -> bool:
    """
    Whether a file is a pickle of a ``VecNormalize``, judged by the class that its first bytes name.

    :param path: any file
    """
    try:
        with open_ordinary(path) as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    is_pickle = head.startswith((b"\x80", b"ccopy_reg\n", b"ccopyreg\n"))  # protocols 0 and 1 have no mark of their own
    return is_pickle and b"vec_normalize" in head and b"VecNormalize" in head


def _to_settings(attributes: dict[str, Any]) -> NormalizationSettings:
    observations, rms = _to_statistics(attributes), attributes.get("obs_rms")
    count: Any = None
    if observations is not None and isinstance(rms, dict):
        count = {key: to_number(one.attributes()["count"], float) for key, one in rms.items()}
    elif observations is not None and isinstance(rms, ObjectRecord):
        count = to_number(rms.attributes()["count"], float)
    returns = attributes["ret_rms"].attributes()
    mean, var, n = (to_number(returns[name], float) for name in ("mean", "var", "count"))
    clip_reward, gamma, epsilon = (to_number(attributes[name], float) for name in ("clip_reward", "gamma", "epsilon"))
    if var < 0 or epsilon <= 0:
        raise UnsafePickle(f"Expected a positive epsilon and no negative variance, got {epsilon} and {var}")
    norm_reward = attributes.get("norm_reward", True) is not False
    return NormalizationSettings(observations, count, (mean, var, n), norm_reward, clip_reward, gamma, epsilon)


def _to_statistics(attributes: dict[str, Any]) -> NormalizationFile | None:
    if not attributes.get("norm_obs", True):
        return None
    obs_rms = attributes["obs_rms"]
    mean: Any
    var: Any
    if isinstance(obs_rms, dict):
        moments, size = {}, 0
        for key, one in obs_rms.items():
            moments[key] = _to_moments(one)
            size = check_size(size + moments[key][0].size)
        mean, var = ({key: one[i] for key, one in moments.items()} for i in (0, 1))
    else:
        mean, var = _to_moments(obs_rms)
    epsilon, clip_obs = (to_number(attributes[key], float) for key in ("epsilon", "clip_obs"))
    if epsilon <= 0 or clip_obs <= 0:
        raise UnsafePickle(f"Expected a positive epsilon and clip_obs, got {epsilon} and {clip_obs}")
    return NormalizationFile(mean, var, epsilon, clip_obs)


def _to_moments(obs_rms: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(obs_rms, ObjectRecord) or obs_rms.target.name != "RunningMeanStd":
        raise UnsafePickle("Its statistics are not those of observations")
    mean, var = (to_array(obs_rms.attributes()[key]).astype(np.float64) for key in ("mean", "var"))
    if mean.shape != var.shape or not np.isfinite([mean, var]).all() or (var < 0).any():
        raise UnsafePickle(f"Its mean and variance are not finite numbers of one shape ({mean.shape} and {var.shape})")
    return mean, var
