"""The range of each feature that a student's input grid covers."""

import numpy as np

from sb3_qpd.integer import IntegerModel


def feature_ranges(model: IntegerModel) -> np.ndarray:
    """
    The least and the greatest value of each feature that the input grid tells apart. Values beyond count as its end.

    :param model: the student
    :return: float64, shape (n_features, 2); no rows for students whose only input are pixels or indices
    """
    if model.input_multiplier is None or model.input_offset is None or all(part.kind == "one_hot" for part in model.parts):
        return np.zeros((0, 2))
    multiplier, offset = (values.astype(np.float64).ravel() for values in (model.input_multiplier, model.input_offset))
    origin = 0.0 if model.input_origin is None else model.input_origin.ravel()
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a multiplier of 0: the feature is constant
        ends = [(end - offset) / multiplier + origin for end in (-128, 127)]
    of_features = len(multiplier) - model.n_remembered  # those of remembered actions follow
    return np.sort(np.stack(ends, axis=1), axis=1)[:of_features]
