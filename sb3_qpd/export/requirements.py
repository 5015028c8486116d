"""
Which students each target can take.

Bits and the mode of requantization are known before a student is trained, so :func:`check_target` can refuse a target then.
The exporters check what depends on the trained weights: multipliers and accumulators outside a target's range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sb3_qpd.checks import check_choice
from sb3_qpd.integer import REQUANTIZATIONS, IntegerLayer, IntegerModel

LARGEST_INPUT = 255  # of any layer: no grid has more than 8 bits
ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Target:
    """
    What a target supports.

    :param weight_bits: bits that weights may have
    :param activation_bits: bits that outputs of hidden layers may have
    :param requantizations: modes of requantization
    :param origins: observations in float64, whose offset is taken off before they are rounded
    """

    weight_bits: tuple[int, ...] = ALL_BITS
    activation_bits: tuple[int, ...] = ALL_BITS
    requantizations: tuple[str, ...] = REQUANTIZATIONS
    origins: bool = True

    def lacks(self, model: IntegerModel) -> Iterator[str]:
        """
        Everything that the student needs and the target does not support, in words.

        :param model: trained or not: ``policy.to_integer()`` of a new policy will do
        """
        if model.input_origin is not None and not self.origins:
            yield "observations in float64 with an offset that float32 cannot carry (subtract it in the environment)"
        weights = [layer.weight_bits for layer in model.layers]
        yield from _other_bits("weights", weights, self.weight_bits, "--weight-bits")
        activations = [layer.activation_bits for layer in model.layers[:-1]]
        yield from _other_bits("activations", activations, self.activation_bits, "--activation-bits")
        if model.requantization not in self.requantizations:
            (mode,) = self.requantizations
            yield f"requantization={model.requantization!r} (take model.requantization={mode!r})"


def _other_bits(what: str, bits: list[int], supported: tuple[int, ...], flag: str) -> Iterator[str]:
    """The first layer whose bits a target does not have."""
    for i, n in enumerate(bits):
        if n not in supported:
            yield f"{what} of {n} bits in layer {i} (compress with {flag} {_either(supported)})"
            return


def _either(choices: tuple[object, ...]) -> str:
    """``a, b or c``."""
    *others, last = map(str, choices)
    return f"{', '.join(others)} or {last}" if others else last


TARGETS = {
    "onnx": Target(requantizations=("float32",)),
    "c": Target(),
    "tflite": Target(
        weight_bits=(4, 8),
        activation_bits=(8,),
        requantizations=("float32",),
        origins=False,  # it has no subtraction in float64
    ),
    "numpy": Target(),  # takes every student
    "js": Target(),
    "micropython": Target(),
    "arduino": Target(),
}


def find_target(name: str) -> Target:
    """
    What a target supports.

    :param name: a key of ``TARGETS``
    :raises ValueError: if there is no such target
    """
    check_choice("target", name, TARGETS)
    return TARGETS[name]


def check_target(target: str, model: IntegerModel) -> None:
    """
    Refuse a target that cannot take a student, with what it does not support and the targets that do.

    Needs neither a trained student nor the packages of the target.

    :param target: a key of ``TARGETS``
    :param model: trained or not: ``policy.to_integer()`` of a new policy will do
    :raises ValueError: if the target is unknown, or cannot take the student
    """
    if lacks := list(find_target(target).lacks(model)):
        fit = tuple(name for name, other in TARGETS.items() if not any(other.lacks(model)))
        way_out = f"Take the target {_either(fit)}" if fit else "No target does"
        raise ValueError(f"The target {target} does not support {'; '.join(lacks)}. {way_out}")


def check_model(model: IntegerModel) -> None:
    """
    Refuse a student that no target should be given: one without ranges, or one whose accumulators could overflow.

    :param model: about to be written
    :raises TypeError: if it is no integer model
    :raises ValueError: if it has no ranges, or an accumulator could leave int32
    """
    if not isinstance(model, IntegerModel):
        raise TypeError(f"Expected an IntegerModel (policy.to_integer() makes one), got {type(model).__name__}")
    if not model.metadata.get("calibrated", True):
        raise ValueError(
            "This student has never seen an observation: its ranges are a guess. Let it learn, or call policy.calibrate("
            "observations), and export it then"
        )
    for i, layer in enumerate(model.layers):
        if (bound := accumulator_bound(layer)) >= 2**31:
            raise ValueError(f"An accumulator of layer {i} could reach {bound}, which does not fit int32")


def accumulator_bound(layer: IntegerLayer) -> int:
    """
    The largest absolute value that an accumulator, or a partial sum in any order, could reach with any input.

    :param layer: its inputs are 0 to 255 or -128 to 127
    """
    return int(accumulator_bounds(layer).max())


def accumulator_bounds(layer: IntegerLayer) -> np.ndarray:
    """
    :func:`accumulator_bound` of each output channel.

    :param layer: its inputs are 0 to 255 or -128 to 127
    :return: int64, shape (n_out,)
    """
    weight, bias = np.abs(layer.weight.astype(np.int64)), np.abs(layer.bias.astype(np.int64))
    return weight.reshape(len(weight), -1).sum(1) * LARGEST_INPUT + bias
