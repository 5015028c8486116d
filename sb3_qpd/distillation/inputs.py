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
from sb3_qpd.observations import take_rows
from sb3_qpd.students.layers import VectorGrid
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher

MIN_LEVELS = 16  # levels of the grid, or numbers of float32, for the central 90 % of a feature
USUAL_SHARE = 0.8  # share of a feature's values that are certainly no outliers
GAP, HUGE_GAP = 4.0, 1_000.0  # between outliers and the other values, in widths of the latter
TRIED_ROWS = 256  # observations on which the teacher compares ranges


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


def range_without_outliers(values: np.ndarray) -> tuple[float, float]:
    """
    The range of a feature without isolated outliers, such as a 999 of a sensor that sees nothing.

    The range grows from the central 80 % by the values next to it, up to a gap that :func:`_is_sentinel` takes for one. The
    values of a long tail have no such gap. They belong to the range: the student may reach them more often than its teacher.

    :param values: shape (n,)
    :return: lower and upper end
    """
    ordered = np.sort(values)
    low, high = (float(end[0]) for end in shortest_interval(values[:, None], USUAL_SHARE))
    if low == high:
        return float(ordered[0]), float(ordered[-1])
    below, above = ordered[ordered < low][::-1], ordered[ordered > high]
    while True:
        if len(above) and not _is_sentinel(above - high, high - low):
            high, above = float(above[0]), above[1:]
        elif len(below) and not _is_sentinel(low - below, high - low):
            low, below = float(below[0]), below[1:]
        else:
            return low, high


def _is_sentinel(distances: np.ndarray, width: float) -> bool:
    """
    Whether values stand for something else than a measurement: several that are nearly equal, or any that are very far away.

    :param distances: distances of the values from the range, in rising order
    :param width: width of the range
    """
    gap, spread = distances[0], distances[-1] - distances[0]
    is_repeated = len(distances) >= 3 and spread <= 0.1 * gap
    return bool(gap > HUGE_GAP * width or (gap > GAP * width and is_repeated))


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


class Inputs:
    """
    The vector features of one trunk in a batch of raw observations. ``values`` is less the origin, as the grid takes them.

    :param trunk: trunk of a student
    :param observations: raw observations, shape (n, *observation_shape), or a dict of such arrays
    """

    def __init__(self, trunk: Any, observations: Any) -> None:
        self.trunk, self.observations = trunk, observations
        self.grid: VectorGrid = trunk.input_grid
        self.columns: list[tuple[ObservationPart, int, int]] = []  # part, index in the part, index in the trunk
        used = 0
        for part in trunk.parts:
            if part.kind == "vector":
                self.columns += [(part, i, used + i) for i in range(part.n_features)]
            used += part.n_features
        raw = [self._raw(part) for part in trunk.parts if part.kind == "vector"]
        self.values = np.concatenate(raw, axis=1).astype(np.float64) if raw else np.zeros((0, 0))
        self.indices = np.array([index for _, _, index in self.columns], int)
        self.origin = np.zeros(len(self.columns))
        if trunk.origin is not None:
            self.origin = trunk.origin.cpu().numpy()[self.indices]
            self.values -= self.origin

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

    def dtype_of(self, column: int) -> np.dtype:
        return self._raw(self.columns[column][0]).dtype

    def name(self, column: int) -> str:
        part, index, _ = self.columns[column]
        return str(index) if part.key is None else f"{part.key}[{index}]"

    def newest(self, n: int) -> Inputs:
        """The inputs of the last n observations."""
        return Inputs(self.trunk, take_rows(self.observations, slice(-n, None)))

    def replaced(self, column: int, values: np.ndarray) -> Any:
        """The observations with other values of one feature, less its origin."""
        part, index, _ = self.columns[column]
        changed = self._raw(part).copy()
        changed[:, index] = values + self.origin[column]
        changed = changed.reshape(-1, *part.shape)
        return changed if part.key is None else {**self.observations, part.key: changed}


def _inputs(policy: QuantActorCriticPolicy, observations: Any) -> Iterator[Inputs]:
    for trunk in policy.features_extractor.trunks:
        if isinstance(trunk.input_grid, VectorGrid) and not trunk.is_image and not trunk.input_grid.is_float:
            inputs = Inputs(trunk, observations)
            if len(inputs.columns):
                yield inputs


def saturate_outliers(policy: QuantActorCriticPolicy, teacher: Teacher, samples: DistillationSamples) -> list[dict[str, Any]]:
    """
    Give features that isolated outliers leave too few levels the range of their other values. Outliers saturate.

    The teacher decides: its answers to observations on the narrower grid have to be far nearer to its answers to the raw ones.

    :param policy: the student, calibrated, before its first update; its normalization is changed
    :param teacher: the teacher
    :param samples: labelled observations
    :return: a description of each changed feature in JSON values
    """
    changed = []
    for inputs in _inputs(policy, samples.numpy_observations()):
        tried = inputs.newest(TRIED_ROWS)
        levels = np.subtract(*shortest_interval(inputs.values, USUAL_SHARE)[::-1]) / inputs.step
        for column in np.flatnonzero((levels > 0) & (levels < MIN_LEVELS)):
            values = inputs.values[:, column]
            low, high = range_without_outliers(values)
            if low == values.min() and high == values.max():
                continue
            mean, std = (low + high) / 2, (high - low) / (2 * 127 * inputs.scale)
            if not _serves_better(policy, teacher, tried, int(column), (mean, std)):
                continue
            index = inputs.indices[column]
            inputs.grid.mean[index], inputs.grid.std[index] = mean, std
            part, i, _ = inputs.columns[column]
            low, high = (inputs.origin[column] + mean + level * std * inputs.scale for level in (-128, 127))
            limits = {"low": float(low), "high": float(high)}
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


def clip_windows(windows: th.Tensor, findings: list[dict[str, Any]], parts: tuple[ObservationPart, ...]) -> th.Tensor:
    """
    :func:`clip_outliers` of windows.

    :param windows: shape (n, history, n_features)
    :param findings: from :func:`saturate_outliers`
    :param parts: what an observation consists of
    """
    clipped, used = windows.clone(), 0
    for part in parts:
        for one in findings:
            if one["kind"] == "saturates" and one["key"] == part.key:
                clipped[..., used + one["index"]].clamp_(one["low"], one["high"])
        used += part.n_features
    return clipped


def _serves_better(
    policy: QuantActorCriticPolicy, teacher: Teacher, inputs: Inputs, column: int, found: tuple[float, float]
) -> bool:
    """Whether the teacher's answers change less than half as much on a grid with that mean and deviation as on today's."""
    index, raw = inputs.indices[column], inputs.values[:, column]
    today = (float(inputs.grid.mean[index]), float(inputs.grid.std[index]))
    if found[1] >= today[1] / 2:
        return False
    labels, errors = teacher(inputs.observations), []
    for mean, std in (today, found):
        seen = _on_grid(raw, mean, std * inputs.scale)
        errors.append(_difference(policy, labels.actor, teacher(inputs.replaced(column, seen)).actor))
    return 2 * errors[1] < errors[0]


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


def float32_numbers(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    How many numbers float32 has for most values of each feature.

    :param values: in float64, shape (n, n_features)
    :return: numbers for the central 90 %, and whether these are too few; each of shape (n_features,)
    """
    width = np.subtract(*shortest_interval(values, 0.9)[::-1])
    spacing = np.spacing(np.abs(np.median(values, axis=0)).astype(np.float32)).astype(np.float64)
    return width / spacing, (width > 0) & (width < MIN_LEVELS * spacing)


def equal_in_float32(values: np.ndarray) -> np.ndarray:
    """
    Features that differ in float64 and are all the same in float32.

    :param values: in float64, shape (n, n_features)
    :return: shape (n_features,)
    """
    return (np.ptp(values, axis=0) > 0) & (np.ptp(values.astype(np.float32), axis=0) == 0)


def find_unresolved(policy: QuantActorCriticPolicy, samples: DistillationSamples) -> list[dict[str, Any]]:
    """
    Features that the student cannot tell apart as finely as it should.

    :param policy: the student, calibrated
    :param samples: labelled observations
    :return: a description of each such feature in JSON values: ``few_levels`` of the grid for its central 90 %, or an
        ``offset`` at which float32 has few numbers for them
    """
    found = []
    for inputs in _inputs(policy, samples.numpy_observations()):
        levels, too_few = grid_levels(inputs.values, inputs.step)
        numbers, has_offset = float32_numbers(inputs.values)
        for column in range(len(inputs.columns)):
            name = inputs.name(column)
            if too_few[column]:
                found.append({"feature": name, "kind": "few_levels", "levels": round(float(levels[column]), 1)})
            if has_offset[column]:
                found.append({"feature": name, "kind": "offset", "levels": round(float(numbers[column]), 1)})
    return found


def find_collapsed(observations: Any) -> list[dict[str, Any]]:
    """
    Features that differ between environments in float64 and are all the same in float32, which the student takes.

    :param observations: raw observations of several environments, shape (n_envs, *observation_shape), or a dict of such arrays
    :return: a description of each such feature in JSON values, see :func:`find_unresolved`
    """
    found = []
    for key, values in observations.items() if isinstance(observations, dict) else [(None, observations)]:
        if values.dtype != np.float64:
            continue
        raw = values.reshape(len(values), -1)
        for column in np.flatnonzero(equal_in_float32(raw)):
            name = str(column) if key is None else f"{key}[{column}]"
            found.append({"feature": name, "kind": "offset", "levels": 1.0})
    return found


def describe_findings(findings: list[dict[str, Any]]) -> str:
    """
    What a user has to be told about the inputs of a student.

    :param findings: from :func:`saturate_outliers`, :func:`find_unresolved` and :func:`find_collapsed`
    :return: a text with a sentence for each kind, or ``""``
    """
    texts = {
        "few_levels": "too few of the student's 256 input levels for the central 90 % of their values (rare values lie far "
        "beyond these: clip or rescale them in the environment)",
        "offset": "an offset so large that float32 has too few numbers for the central 90 % of their values (declare the "
        "observation space float64, so that the student takes the offset off before it rounds, or subtract the offset in the "
        "environment)",
    }
    parts = []
    for kind, text in texts.items():
        named = [f"{one['feature']} ({one['levels']:g})" for one in findings if one["kind"] == kind]
        if named:
            more = f" and {len(named) - 8} more" if len(named) > 8 else ""
            parts.append(f"Features of the observation with {text}: {', '.join(named[:8])}{more}.")
    offsets = [f"{one['feature']} ({one['origin']:.10g})" for one in findings if one["kind"] == "origin"]
    if offsets:
        more = f" and {len(offsets) - 8} more" if len(offsets) > 8 else ""
        parts.append(
            "Features of the observation whose offset is taken off in float64, because float32 cannot carry it: "
            f"{', '.join(offsets[:8])}{more}."
        )
    far = {one["feature"] for one in findings if one["kind"] == "origin"}  # four digits would show their offset alone
    saturating = []
    for one in (one for one in findings if one["kind"] == "saturates"):
        low, high = (f"{one[end]:.{10 if one['feature'] in far else 4}g}" for end in ("low", "high"))
        saturating.append(f"{one['feature']} ({low} to {high})")
    if saturating:
        more = f" and {len(saturating) - 8} more" if len(saturating) > 8 else ""
        parts.append(f"Features of the observation whose rare values saturate: {', '.join(saturating[:8])}{more}.")
    return " ".join(parts)
