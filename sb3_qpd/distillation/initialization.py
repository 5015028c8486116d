"""The units that a student works in, fitted once to what the teacher saw and said: its input's, its value's, its logits'."""

from __future__ import annotations

from typing import Any

import numpy as np

from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.integer import ObservationPart
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.families import DeterministicTeacher
from sb3_qpd.teachers.normalization import Normalization, ObsNormalization
from sb3_qpd.teachers.teacher import Teacher

MAX_DEVIATIONS = 8


def initialize_from_data(policy: QuantActorCriticPolicy, teacher: Teacher, samples: DistillationSamples) -> float:
    """
    Freeze the student's input normalization, the unit of its value and, where no teacher teaches one, its deviation.

    :param policy: the student, before its first update
    :param teacher: whose normalization is taken over where it has one
    :param samples: what it has labelled
    :return: temperature of the teacher's discrete distribution
    """
    if (values := samples.targets.value) is not None:
        policy.set_value_scale(float(values.mean()), float(values.std(correction=0)))
    if policy.head.is_box and isinstance(teacher, DeterministicTeacher):  # no deviation to learn: it explores as its teacher
        policy.log_std.data.copy_(teacher.exploration_log_std)
    tensors = samples.observations
    if isinstance(tensors, dict):
        observations: Any = {key: value.cpu().numpy() for key, value in tensors.items()}
    else:
        observations = tensors.cpu().numpy()
    for trunk in policy.features_extractor.trunks:
        trunk.set_normalization(*trunk_statistics(trunk.parts, observations, teacher.normalization))
    return 1.0 if policy.head.is_box else teacher.temperature_of(samples.targets)


def trunk_statistics(
    parts: tuple[ObservationPart, ...], observations: Any, normalization: Normalization | None
) -> tuple[np.ndarray | float, np.ndarray | float]:
    """
    Mean and deviation that the input of one trunk of a student is normalized with.

    :param parts: of the observation, that go into it
    :param observations: raw, shape (n, *observation_shape); a dict of such arrays
    :param normalization: the teacher's
    :return: of an image two numbers, of vectors one for each feature; zeros and ones stay zeros and ones
    """
    means, stds = [], []
    for part in parts:
        raw = observations if part.key is None else observations[part.key]
        if part.is_image:
            raw = raw[-1000:]
            return (float(np.median(raw)), 1.0) if part.kind == "image" else (float(raw.mean()), float(raw.std()))
        own = normalization.get(part.key or "") if isinstance(normalization, dict) else normalization
        size = part.n_features
        mean, std = (np.zeros(size), np.ones(size)) if part.kind == "one_hot" else input_statistics(raw, own)
        means.append(mean.reshape(-1))
        stds.append(std.reshape(-1))
    return np.concatenate(means), np.concatenate(stds)


def input_statistics(observations: np.ndarray, normalization: ObsNormalization | None) -> tuple[np.ndarray, np.ndarray]:
    """
    Mean and deviation that a student's input is normalized with: the teacher's where it has them, else the observations'.

    No feature may reach far beyond the others: one grid serves them all. So a deviation is at least an eighth of the largest
    distance from the mean that was seen (a contact that is rarely made), and one where a feature never moved.

    :param observations: raw, shape (n, *observation_shape)
    :param normalization: the teacher's
    :return: mean and deviation, shape of one observation
    """
    raw = observations.astype(np.float64)
    if normalization is None:
        mean, std = raw.mean(0), raw.std(0)
    else:
        mean, std = normalization.mean, np.sqrt(normalization.var + normalization.epsilon)
    largest = np.abs(raw - mean).max(0)
    std = np.maximum(std, largest / MAX_DEVIATIONS)
    return mean, np.where(largest > 1e-9 * (1 + np.abs(mean)), std, 1.0)
