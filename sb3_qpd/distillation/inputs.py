"""
How well the student's input grid resolves each feature: a robust range for rare outliers, and what has to be told.

One 8-bit grid serves all features, each in units of its own deviation. A sensor that reads 999 where it sees nothing makes
this deviation so large that the usual values share a few levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th

from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.losses import multi_categorical_kl
from sb3_qpd.integer import ObservationPart
from sb3_qpd.students.layers import VectorGrid
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher

NORMAL_WIDTH = 3.29  # width of the central 90 % of a normal variable, in standard deviations
HALF_TO_CENTRAL = 2.44  # the same, in widths of its central half
MIN_LEVELS = 16  # levels of the grid, or numbers of float32, for these 90 %
TRIED_ROWS = 256  # observations on which the teacher compares ranges
MAX_RANGES = 24  # ranges that it compares, each twice as wide as the one before


def shortest_interval(values: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """
    The shortest interval that holds a share of the values, for each feature. Rare outliers lie outside.

    :param values: shape (n, n_features)
    :param share: 0 to 1
    :return: lower and upper ends, each of shape (n_features,)
    """
    ordered, n = np.sort(values, axis=0), max(1, int(np.ceil(share * len(values))))
    low, high = ordered[: len(values) - n + 1], ordered[n - 1 :]
    start = (high - low).argmin(0)
    columns = np.arange(values.shape[1])
    return low[start, columns], high[start, columns]


def central_width(values: np.ndarray) -> np.ndarray:
    """
    Width of the central 90 % of each feature, estimated from its central half where outliers are frequent.

    :param values: shape (n, n_features)
    :return: shape (n_features,); 0 where 90 % of the values are equal
    """
    width, half = (np.subtract(*shortest_interval(values, share)[::-1]) for share in (0.9, 0.5))
    return np.where(half > 0, np.minimum(width, HALF_TO_CENTRAL * half), width)


def grid_levels(values: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Levels of a grid for most values of each feature.

    :param values: raw values in float64, shape (n, n_features)
    :param step: step of the grid in raw units, shape (n_features,)
    :return: levels for the central 90 %, and whether these are too few: fewer than 16, or than twice the distinct central
        values of a discrete feature; each of shape (n_features,)
    """
    low, high = shortest_interval(values, 0.9)
    levels = (high - low) / step
    return levels, _are_too_few(values, low, high, levels)


def _are_too_few(values: np.ndarray, low: np.ndarray, high: np.ndarray, levels: np.ndarray) -> np.ndarray:
    too_few = (high > low) & (levels < MIN_LEVELS)
    for i in np.flatnonzero(too_few):
        central = values[(values[:, i] >= low[i]) & (values[:, i] <= high[i]), i]
        too_few[i] = levels[i] < 2 * (len(np.unique(central)) - 1)
    return too_few


class _Inputs:
    """
    The vector features of one trunk in a batch of raw observations.

    :param trunk: trunk of a student
    :param observations: raw observations, shape (n, *observation_shape), or a dict of such arrays
    """

    def __init__(self, trunk: Any, observations: Any) -> None:
        self.grid: VectorGrid = trunk.input_grid
        self.observations = observations
        self.columns: list[tuple[ObservationPart, int, int]] = []  # part, index in the part, index in the trunk
        used = 0
        for part in trunk.parts:
            if part.kind == "vector":
                self.columns += [(part, i, used + i) for i in range(part.n_features)]
            used += part.n_features
        raw = [self._raw(part) for part in trunk.parts if part.kind == "vector"]
        self.values = np.concatenate(raw, axis=1).astype(np.float64) if raw else np.zeros((0, 0))
        self.indices = np.array([index for _, _, index in self.columns], int)

    def _raw(self, part: ObservationPart) -> np.ndarray:
        value = self.observations if part.key is None else self.observations[part.key]
        return value.reshape(len(value), -1)

    @property
    def scale(self) -> float:
        """Step of the grid in deviations."""
        return self.grid.scale().item()

    @property
    def step(self) -> np.ndarray:
        """Step of the grid in raw units, shape (n_columns,)."""
        return self.grid.std.cpu().numpy()[self.indices] * self.scale

    def name(self, column: int) -> str:
        part, index, _ = self.columns[column]
        return str(index) if part.key is None else f"{part.key}[{index}]"

    def replaced(self, column: int, values: np.ndarray) -> Any:
        """The observations with other values of one feature."""
        part, index, _ = self.columns[column]
        changed = self._raw(part).copy()
        changed[:, index] = values
        changed = changed.reshape(-1, *part.shape)
        return changed if part.key is None else {**self.observations, part.key: changed}


def _inputs(policy: QuantActorCriticPolicy, observations: Any) -> Iterator[_Inputs]:
    for trunk in policy.features_extractor.trunks:
        if isinstance(trunk.input_grid, VectorGrid) and not trunk.is_image and not trunk.input_grid.is_float:
            inputs = _Inputs(trunk, observations)
            if len(inputs.columns):
                yield inputs


def _numpy(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: value.cpu().numpy() for key, value in observations.items()}
    return observations.cpu().numpy()


def saturate_outliers(policy: QuantActorCriticPolicy, teacher: Teacher, samples: DistillationSamples) -> list[dict[str, Any]]:
    """
    Give features that rare outliers leave too few levels a narrower range, beyond which they saturate.

    The teacher decides by its answers to observations that are rounded to several ranges, see :func:`_best_range`.

    :param policy: the student, calibrated, before its first update; its normalization is changed
    :param teacher: the teacher
    :param samples: labelled observations
    :return: a description of each changed feature in JSON values
    """
    changed = []
    for inputs in _inputs(policy, _numpy(samples.observations)):
        suspects = central_width(inputs.values) / inputs.step
        few = _Inputs.__new__(_Inputs)  # fewer rows for the teacher
        few.__dict__.update(vars(inputs), observations=_first_rows(inputs.observations))
        for column in np.flatnonzero((suspects > 0) & (suspects < MIN_LEVELS)):
            found = _best_range(policy, teacher, inputs, few, int(column))
            if found is None:
                continue
            mean, std = found
            index = inputs.indices[column]
            inputs.grid.mean[index], inputs.grid.std[index] = mean, std
            part, i, _ = inputs.columns[column]
            limits = {"low": mean - 128 * std * inputs.scale, "high": mean + 127 * std * inputs.scale}
            changed.append({"feature": inputs.name(int(column)), "kind": "saturates", "key": part.key, "index": i, **limits})
    return changed


def clip_outliers(observations: Any, findings: list[dict[str, Any]]) -> Any:
    """
    Observations with the features that saturate clipped to their range, for a calibration.

    :param observations: raw observations as tensors, shape (n, *observation_shape), or a dict of such tensors
    :param findings: from :func:`saturate_outliers`
    :return: the observations; a copy where a feature saturates
    """
    for one in findings:
        if one["kind"] != "saturates":
            continue
        values = (observations if one["key"] is None else observations[one["key"]]).clone()
        values.flatten(1)[:, one["index"]].clamp_(one["low"], one["high"])
        observations = values if one["key"] is None else {**observations, one["key"]: values}
    return observations


def _first_rows(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: value[-TRIED_ROWS:] for key, value in observations.items()}
    return observations[-TRIED_ROWS:]


def _best_range(
    policy: QuantActorCriticPolicy, teacher: Teacher, inputs: _Inputs, few: _Inputs, column: int
) -> tuple[float, float] | None:
    """
    Mean and deviation of the widest range at which the teacher's answers change at most twice as much as at the best one.

    The student meets states that are rare for its teacher: a range is not narrowed for a small gain.

    :return: mean and deviation; ``None`` where today's range will do
    """
    values = inputs.values[:, column]
    index, scale = inputs.indices[column], inputs.scale
    today = (float(inputs.grid.mean[index]), float(inputs.grid.std[index]))
    narrow = float(central_width(values[:, None])[0]) / NORMAL_WIDTH
    n_steps = int(np.clip(np.ceil(np.log2(today[1] / narrow)), 1, MAX_RANGES))
    candidates = [today, *((float(np.median(values)), narrow * 2.0**i) for i in reversed(range(n_steps)))]
    labels, raw = teacher(few.observations), values[-TRIED_ROWS:]
    errors = []
    for mean, std in candidates:
        seen = _on_grid(raw, mean, std * scale)
        errors.append(_difference(policy, labels.actor, teacher(few.replaced(column, seen)).actor))
    chosen = int(np.argmax(np.array(errors) <= 2 * min(errors)))  # they go from wide to narrow
    return None if chosen == 0 else candidates[chosen]


def _on_grid(values: np.ndarray, mean: float, step: float) -> np.ndarray:
    """
    Values as the student can tell them apart on its grid.

    The values beyond one end look alike, and the student learns what they mean: they stand for their median.
    """
    levels = np.rint((values - mean) / step)
    seen = mean + step * levels
    for is_beyond in (levels < -128, levels > 127):
        if is_beyond.any():
            seen[is_beyond] = np.median(values[is_beyond])
    return seen


def _difference(policy: QuantActorCriticPolicy, labels: th.Tensor, others: th.Tensor) -> float:
    """How far the teacher's answers lie apart: a squared error in the actions' units, or a divergence."""
    if policy.head.is_box:
        low, high, unit = (one.to(labels.device) for one in (policy.action_low, policy.action_high, policy.action_unit))
        error = ((labels.clamp(low, high) - others.clamp(low, high)) / unit).square().sum(1)
    else:
        error = multi_categorical_kl(others, labels, nvec=policy.head.nvec)
    return float(error.mean())


def find_unresolved(policy: QuantActorCriticPolicy, samples: DistillationSamples) -> list[dict[str, Any]]:
    """
    Features that the student cannot tell apart as finely as it should.

    :param policy: the student, calibrated
    :param samples: labelled observations
    :return: a description of each such feature in JSON values: ``few_levels`` of the grid for its central 90 %, or an
        ``offset`` at which float32 has few numbers for them
    """
    found = []
    for inputs in _inputs(policy, _numpy(samples.observations)):
        levels, too_few = grid_levels(inputs.values, inputs.step)
        width = np.subtract(*shortest_interval(inputs.values, 0.9)[::-1])
        spacing = np.spacing(np.abs(np.median(inputs.values, axis=0)).astype(np.float32)).astype(np.float64)
        for column in range(len(inputs.columns)):
            name = inputs.name(column)
            if too_few[column]:
                found.append({"feature": name, "kind": "few_levels", "levels": round(float(levels[column]), 1)})
            if 0 < width[column] < MIN_LEVELS * spacing[column]:
                numbers = round(float(width[column] / spacing[column]), 1)
                found.append({"feature": name, "kind": "offset", "levels": numbers})
    return found


def describe_findings(findings: list[dict[str, Any]]) -> str:
    """
    What a user has to be told about the inputs of a student.

    :param findings: from :func:`saturate_outliers` and :func:`find_unresolved`
    :return: a text with a sentence for each kind, or ``""``
    """
    texts = {
        "few_levels": "too few of the student's 256 input levels for the central 90 % of their values (rare values lie far "
        "beyond these: clip or rescale them in the environment)",
        "offset": "an offset so large that float32 has too few numbers for the central 90 % of their values (subtract the "
        "offset in the environment)",
    }
    parts = []
    for kind, text in texts.items():
        named = [f"{one['feature']} ({one['levels']:g})" for one in findings if one["kind"] == kind]
        if named:
            more = f" and {len(named) - 8} more" if len(named) > 8 else ""
            parts.append(f"Features of the observation with {text}: {', '.join(named[:8])}{more}.")
    rare = [one for one in findings if one["kind"] == "saturates"]
    saturating = [f"{one['feature']} ({one['low']:.4g} to {one['high']:.4g})" for one in rare]
    if saturating:
        more = f" and {len(saturating) - 8} more" if len(saturating) > 8 else ""
        parts.append(f"Features of the observation whose rare values saturate: {', '.join(saturating[:8])}{more}.")
    return " ".join(parts)
