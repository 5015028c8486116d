"""
The origin of the student's input: offsets that are taken off in float64, because float32 cannot carry them.

Of UTM metres such as 5,400,000.25 float32 has every half metre, of Unix timestamps every second minute. Where the environment
gives float64 or wide integers, the student sees what is left of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.inputs import Inputs, equal_in_float32, float32_numbers
from sb3_qpd.students.policies import QuantActorCriticPolicy


def has_wide_numbers(space: spaces.Space) -> bool:
    """
    Whether float32 may not carry the numbers of a space: those of a Box of float64 or of integers of 32 bits and more.

    :param space: an observation space, or that of one value of a Dict
    """
    dtype = np.dtype(space.dtype) if isinstance(space, spaces.Box) else None
    return dtype is not None and (dtype == np.float64 or (dtype.kind in "iu" and dtype.itemsize >= 4))


def exact_keys(policy: QuantActorCriticPolicy, is_fitted: bool) -> set[str | None]:
    """
    Keys of the observations that have to be kept in float64; ``None`` stands for an observation that is no Dict.

    :param policy: the student
    :param is_fitted: whether the student's origin is frozen; until then every vector of wide numbers may turn out to need one
    """
    keys, used = set[str | None](), 0
    trunk, space = policy.features_extractor.trunks[0], policy.observation_space
    for part in trunk.parts:
        own = slice(used, used + part.n_features)
        used += part.n_features
        if is_fitted:
            is_exact = trunk.origin is not None and bool(trunk.origin[own].any())
        else:
            is_exact = part.kind == "vector" and has_wide_numbers(space if part.key is None else space[part.key])  # type: ignore[index]
        if is_exact:
            keys.add(part.key)
    return keys


def take_off_offsets(policy: QuantActorCriticPolicy, samples: DistillationSamples) -> list[dict[str, Any]]:
    """
    Give features whose offset leaves float32 too few numbers an origin: their median, which the student takes off in float64.

    :param policy: the student, before its normalization is fitted
    :param samples: labelled observations. Those in float64 are what the environment gave, others were rounded already
    :return: a description of each such feature in JSON values
    """
    trunk = policy.features_extractor.trunks[0]
    inputs = Inputs(trunk, samples.numpy_observations())
    if not len(inputs.columns):
        return []
    numbers, too_few = float32_numbers(inputs.values)
    is_exact = np.array([inputs.dtype_of(column) == np.float64 for column in range(len(inputs.columns))])
    columns = np.flatnonzero(is_exact & (too_few | equal_in_float32(inputs.values)))
    if not len(columns):
        return []
    origin = np.zeros(sum(part.n_features for part in trunk.parts))
    origin[inputs.indices[columns]] = np.median(inputs.values[:, columns], axis=0)
    trunk.set_origin(origin)
    return [
        {
            "feature": inputs.name(int(column)),
            "kind": "origin",
            "origin": float(origin[inputs.indices[column]]),
            "levels": round(float(numbers[column]), 1),
        }
        for column in columns
    ]
