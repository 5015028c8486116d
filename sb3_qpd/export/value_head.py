"""
The value head in integers, for devices that want to know how good a state is.

A student's value head is float, and no part of the integer model. For an export it becomes a row of 8-bit weights on the
features that the actor's head takes too. It travels in the metadata of the model: ``student.npz`` beside the C holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_qpd.integer import IntegerLayer, IntegerModel

if TYPE_CHECKING:
    from sb3_qpd.students.policies import QuantActorCriticPolicy

KEY = "value_head"  # of the metadata
_LARGEST_BIAS = 2**30


def add_value_head(model: IntegerModel, policy: QuantActorCriticPolicy) -> None:
    """
    Add the value head of a policy to its integer model, rounded to 8 bits.

    :param model: ``policy.to_integer()``; its metadata is changed
    :param policy: the student as an SB3 policy
    """
    head = policy.value_net
    scale = float(policy.action_net.input_grid.scale().detach())  # type: ignore[operator]
    std, mean = float(head.std), float(head.mean)
    weight = head.weight.detach().cpu().double().numpy()[0] * scale * std
    bias = float(head.bias.detach()) * std + mean
    unit = float(np.float32(max(np.abs(weight).max() / 127, abs(bias) / _LARGEST_BIAS))) or 1.0
    rounded = np.clip(np.rint(weight / unit), -127, 127).astype(int)
    model.metadata[KEY] = {"weight": rounded.tolist(), "bias": round(bias / unit), "unit": unit}


def find_value_head(model: IntegerModel) -> IntegerLayer | None:
    """
    The value head that :func:`add_value_head` added. A value is its accumulator times its multiplier.

    :param model: the model, which may have come from elsewhere
    :return: a head of one output; ``None``: the model has none
    :raises ValueError: the metadata hold something else under its name
    """
    found: Any = model.metadata.get(KEY)
    if found is None:
        return None
    n = model.layers[-1].weight.shape[1]
    try:
        weight, bias, unit = np.array([found["weight"]]), int(found["bias"]), np.float32(found["unit"])
        fits = weight.shape == (1, n) and weight.dtype.kind == "i" and np.abs(weight).max() < 128 and abs(bias) < 2**31
        if not fits:
            raise ValueError(f"expected {n} weights of 8 bits")
        return IntegerLayer(weight.astype(np.int8), np.array([bias], np.int32), np.array([unit]), 8, 0)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"The value head in the student's metadata is none: {error}. Export the student again") from error


def values_of(model: IntegerModel, observations: Any, state: np.ndarray | None = None) -> np.ndarray:
    """
    The values of observations: integers, in units of the value head's multiplier.

    :param model: a model with a value head
    :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
    :param state: see :meth:`~sb3_qpd.IntegerModel.trace`
    :return: int64 within the range of int32, shape (batch_size,)
    :raises ValueError: the model has no value head
    """
    layer = find_value_head(model)
    if layer is None:
        raise ValueError("This student has no value head. Add it: add_value_head(model, policy)")
    *steps, _ = model.trace(model.batch_of(observations), state)
    ends = np.cumsum([1 + n_layers for n_layers in model.branches]) - 1
    return layer.accumulate(np.concatenate([steps[end].reshape(len(steps[end]), -1) for end in ends], axis=1))[:, 0]
