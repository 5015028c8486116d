"""Data-dependent initialization: the units of a student's input, value and logits, fitted once to the first labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.integer import ObservationPart
from sb3_qpd.spaces import half_range
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.families import DeterministicTeacher
from sb3_qpd.teachers.normalization import Normalization, ObsNormalization
from sb3_qpd.teachers.teacher import Teacher

MAX_DEVIATIONS = 8
FAR_DEVIATIONS = 100


def initialize_from_data(policy: QuantActorCriticPolicy, teacher: Teacher, samples: DistillationSamples) -> float:
    """
    Freeze the student's input normalization and the unit of its value. A deterministic teacher's student also gets a
    standard deviation.

    :param policy: the student, before its first update
    :param teacher: the teacher; its normalization is taken over where it has one
    :param samples: observations that the teacher has labelled
    :return: temperature of the teacher's discrete distribution
    """
    if (values := samples.targets.value) is not None:
        policy.set_value_scale(float(values.mean()), float(values.std(correction=0)))
    if isinstance(space := policy.action_space, spaces.Box):
        actions = samples.targets.actor.cpu().numpy()
        policy.set_action_unit(measure_action_unit(actions, space), clip_to(space, actions).mean(0))
        if isinstance(teacher, DeterministicTeacher):  # there is no deviation to learn: explore as the teacher does
            teacher.action_unit = policy.action_unit.clone()
            policy.log_std.data.copy_(teacher.exploration_log_std)
    observations = samples.numpy_observations()
    for trunk in policy.features_extractor.trunks:
        origin = None if trunk.origin is None else trunk.origin.cpu().numpy()
        trunk.set_normalization(*trunk_statistics(trunk.parts, observations, teacher.normalization, origin))
    return 1.0 if policy.head.is_box else teacher.temperature_of(samples.targets)


def measure_action_unit(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """
    The unit of each dimension of a Box action: four standard deviations of the teacher's actions, at most half the range.

    A teacher may use a small part of its box. Isaac Lab's wrapper, for one, makes every unbounded action a Box of -100 to 100.

    :param actions: mean actions of the teacher, shape (n, action_dim)
    :param space: space of the actions
    :return: float32, shape (action_dim,), positive
    """
    clipped, half = clip_to(space, actions), half_range(space).astype(np.float64)
    spread, largest = 4 * clipped.std(0), np.abs(clipped).max(0)
    unit = np.where(spread > 1e-3 * largest, spread, largest)  # a constant action has its own size
    return np.where(unit > 0, np.minimum(unit, half), np.minimum(1.0, half)).astype(np.float32)


def clip_to(space: spaces.Box, actions: np.ndarray) -> np.ndarray:
    """
    Actions as the environment executes them, in float64.

    :param space: space of the actions
    :param actions: mean actions, shape (n, action_dim)
    """
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    return np.clip(actions.astype(np.float64), low, high)


def trunk_statistics(
    parts: tuple[ObservationPart, ...],
    observations: Any,
    normalization: Normalization | None,
    origin: np.ndarray | None = None,
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """
    Mean and standard deviation that normalize the input of one trunk of a student.

    :param parts: parts of the observation that this trunk takes
    :param observations: raw observations, shape (n, *observation_shape), or a dict of such arrays
    :param normalization: the teacher's normalization
    :param origin: offset of each feature that the student takes off first; ``None`` for none
    :return: two numbers for an image, two arrays of one number per feature for vectors. One-hot features keep 0 and 1
    """
    means, stds, used = [], [], 0
    for part in parts:
        raw = observations if part.key is None else observations[part.key]
        if part.is_image:
            raw = raw[-1000:]
            return (float(np.median(raw)), 1.0) if part.kind == "image" else float_image_statistics(raw)
        own = normalization.get(part.key or "") if isinstance(normalization, dict) else normalization
        size = part.n_features
        if part.kind == "one_hot":
            mean, std = np.zeros(size), np.ones(size)
        else:
            offset = 0.0 if origin is None else origin[used : used + size].reshape(part.shape)
            mean, std = input_statistics(raw, own, offset)
        used += size
        means.append(mean.reshape(-1))
        stds.append(std.reshape(-1))
    return np.concatenate(means), np.concatenate(stds)


def float_image_statistics(pixels: np.ndarray) -> tuple[float, float]:
    """
    Mean and standard deviation of images of floats. Pixels far beyond all others, such as a missing depth, are left out.

    :param pixels: raw images, shape (n, *image_shape)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = float(pixels.mean()), float(pixels.std())
        if np.isfinite(std) and np.abs(pixels - mean).max() <= FAR_DEVIATIONS * std:
            return mean, std
    low, high = np.quantile(pixels.astype(np.float64), (0.01, 0.99))
    usual = pixels[(pixels >= low) & (pixels <= high)].astype(np.float64)
    return float(usual.mean()), float(usual.std())


def input_statistics(
    observations: np.ndarray, normalization: ObsNormalization | None, origin: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean and standard deviation that normalize a student's input: the teacher's, or else those of the observations.

    One grid serves all features, so none may reach far beyond the others. A deviation is therefore at least an eighth of the
    largest distance from the mean (a contact that is rarely made). It is one where a feature never moved.

    :param observations: raw observations, shape (n, *observation_shape)
    :param normalization: the teacher's normalization
    :param origin: offset that is taken off the observations first, of the shape of one observation
    :return: mean and standard deviation of what is left, each of the shape of one observation
    """
    raw = observations.astype(np.float64) - origin
    if normalization is None:
        mean, std = raw.mean(0), raw.std(0)
    else:
        mean, std = normalization.mean - origin, np.sqrt(normalization.var + normalization.epsilon)
    largest = np.abs(raw - mean).max(0)
    std = np.maximum(std, largest / MAX_DEVIATIONS)
    return mean, np.where(largest > 1e-9 * (1 + np.abs(mean)), std, 1.0)
