"""A teacher's observation statistics: SB3's ``VecNormalize``, frozen, and its removal from an environment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from sb3_qpd.integer import ObservationPart
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.vecnormalize import read_vecnormalize


@dataclass(frozen=True, repr=False)
class ObsNormalization:
    """
    Frozen observation statistics of SB3's ``VecNormalize``: ``clip((obs - mean) / sqrt(var + epsilon), -c, c)``.

    :param mean: running mean of the raw observations, shape of one observation
    :param var: running variance, same shape
    :param epsilon: small number that is added to the variance
    :param clip_obs: c, the largest absolute value of a normalized observation
    :param n_frames: number of normalized frames that an observation stacks on its last axis; the statistics repeat for each
    """

    mean: np.ndarray
    var: np.ndarray
    epsilon: float = 1e-8
    clip_obs: float = 10.0
    n_frames: int = 1

    def __repr__(self) -> str:
        mean, var = (np.array2string(np.ravel(values), precision=4, threshold=8) for values in (self.mean, self.var))
        return f"<ObsNormalization: mean {mean}, variance {var}, clipped at {self.clip_obs:g}>"

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        scaled = (observations - self.mean) / np.sqrt(self.var + self.epsilon)
        clipped = np.clip(scaled, -self.clip_obs, self.clip_obs).astype(np.float32)
        return clipped if self.n_frames == 1 else np.where(self._padding(observations), np.float32(0), clipped)

    def _padding(self, observations: np.ndarray) -> np.ndarray:
        """
        True where a stack holds no frame yet, as in an episode's first observations: its oldest frames are all zeros.

        In training, ``VecFrameStack`` came after ``VecNormalize``, so these zeros are not normalized. An older frame that
        really was all zeros cannot be told apart.
        """
        frames = observations.reshape(-1, *self.mean.shape[:-1], self.n_frames, self.mean.shape[-1] // self.n_frames)
        is_empty = (np.moveaxis(frames, -2, 1).reshape(len(frames), self.n_frames, -1) == 0).all(2)
        is_empty[:, -1] = False  # the newest frame is always a real one
        is_padding = np.logical_and.accumulate(is_empty, axis=1).reshape(-1, *(1,) * (frames.ndim - 3), self.n_frames, 1)
        return np.broadcast_to(is_padding, frames.shape).reshape(observations.shape)

    def stacked(self, n_frames: int) -> ObsNormalization:
        """
        The statistics for a stack of frames, from those of one frame.

        :param n_frames: number of frames
        """
        mean, var = (np.concatenate([value] * n_frames, axis=-1) for value in (self.mean, self.var))
        return replace(self, mean=mean, var=var, n_frames=n_frames)

    def same_as(self, other: ObsNormalization) -> bool:
        """
        Whether two sets of statistics give the same normalized observations, to a tolerance of 1e-5.

        :param other: statistics
        """
        return bool(
            self.mean.shape == other.mean.shape
            and np.allclose(self.mean, other.mean, rtol=1e-5, atol=1e-8)
            and np.allclose(self.var, other.var, rtol=1e-5, atol=1e-8)
            and self.clip_obs == other.clip_obs
        )


# Dict observations have statistics for each normalized key
Normalization = ObsNormalization | dict[str, ObsNormalization]


def read_normalization(path: str | Path) -> Normalization | None:
    """
    Statistics from a ``vecnormalize.pkl``, which is read as data.

    :param path: the file
    :return: the statistics, ``None`` where the file says that observations were not normalized
    """
    statistics = read_vecnormalize(path)
    return None if statistics is None else to_normalization(*statistics)


def to_normalization(mean: Any, var: Any, epsilon: float, clip_obs: float) -> Normalization:
    """
    Statistics of one observation, or of each key of a Dict observation.

    :param mean: running mean, or a dict of means
    :param var: running variance, or a dict of variances
    :param epsilon: see :class:`ObsNormalization`
    :param clip_obs: see :class:`ObsNormalization`
    """
    if not isinstance(mean, dict):
        return ObsNormalization(mean, var, epsilon, clip_obs)
    return {key: ObsNormalization(mean[key], var[key], epsilon, clip_obs) for key in mean}


def fit_to_observations(
    normalization: Normalization, parts: tuple[ObservationPart, ...], observation_space: spaces.Space
) -> Normalization:
    """
    Statistics for the observations that a teacher takes. Statistics of one frame serve for a stack of normalized frames.

    :param normalization: statistics
    :param parts: parts of the teacher's observation
    :param observation_space: observation space of the teacher, for the message
    :raises TeacherError: statistics of other shapes
    """
    shapes = {part.key: part.shape for part in parts if part.kind != "one_hot"}
    by_key: dict[Any, ObsNormalization] = normalization if isinstance(normalization, dict) else {None: normalization}
    fitted = {key: _fit(one, shapes.get(key)) for key, one in by_key.items()}
    if None in fitted.values():
        got = {key: one.mean.shape for key, one in by_key.items()}
        raise TeacherError(
            f"The normalization statistics are for observations of shape {got.get(None, got)}, the teacher takes "
            f"{observation_space.shape or observation_space}. Expected the vecnormalize.pkl of the same run"
        )
    return fitted if isinstance(normalization, dict) else fitted[None]  # type: ignore[return-value]


def _fit(normalization: ObsNormalization, shape: tuple[int, ...] | None) -> ObsNormalization | None:
    own = normalization.mean.shape
    if not shape or own == shape:
        return normalization if own == shape else None
    if not own or own[:-1] != shape[:-1] or shape[-1] % own[-1]:
        return None
    return normalization.stacked(shape[-1] // own[-1])


def are_same(one: Normalization, other: Normalization) -> bool:
    """
    Whether two sets of statistics give the same normalized observations.

    :param one: statistics
    :param other: statistics
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(one[key].same_as(other[key]) for key in one)
    return isinstance(one, ObsNormalization) and isinstance(other, ObsNormalization) and one.same_as(other)


def remove_vec_normalize(vec_env: VecEnv) -> tuple[VecEnv, Normalization | None]:
    """
    The same environments without their ``VecNormalize``: with raw observations and rewards.

    :param vec_env: environments whose ``VecNormalize``, if any, may be under other wrappers
    :return: the environments without it, and its statistics of observations, ``None`` where it normalized none
    """
    normalize = unwrap_vec_normalize(vec_env)
    if normalize is None:
        return vec_env, None
    raw = _without(vec_env, normalize)
    if not normalize.norm_obs:
        return raw, None
    rms: Any = normalize.obs_rms
    if isinstance(rms, dict):
        mean, var = {key: one.mean.copy() for key, one in rms.items()}, {key: one.var.copy() for key, one in rms.items()}
    else:
        mean, var = rms.mean.copy(), rms.var.copy()
    return raw, to_normalization(mean, var, normalize.epsilon, normalize.clip_obs)


def _without(vec_env: VecEnv, wrapper: VecNormalize) -> VecEnv:
    """A copy of a chain of wrappers without one of them. The caller's chain stays as it is."""
    if vec_env is wrapper or not isinstance(vec_env, VecEnvWrapper):
        return wrapper.venv
    outer = object.__new__(type(vec_env))
    outer.__dict__.update(vec_env.__dict__, venv=_without(vec_env.venv, wrapper))
    return outer
