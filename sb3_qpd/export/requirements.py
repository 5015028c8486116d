"""
What each target can take of a student.

Most of it follows from spaces, bits and masks, so :func:`check_target` can refuse a target before a student is trained. Only
what depends on the trained weights is left to the exporters: multipliers and accumulators outside a target's range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sb3_qpd.checks import check_choice
from sb3_qpd.integer import REQUANTIZATIONS, IntegerLayer, IntegerModel, ObservationPart

LARGEST_INPUT = 255  # of any layer: no grid has more than 8 bits
ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class StudentFacts:
    """
    What decides which targets can take a student.

    :param parts: what an observation consists of, see :func:`sb3_qpd.spaces.observation_parts`
    :param is_box: the action is a Box
    :param action_shape: shape of one action, ``()`` for a Discrete one
    :param uses_masks: the student takes action masks
    :param weight_bits: bits of the weights, one number for each layer, head included
    :param activation_bits: bits of the outputs, one number for each hidden layer
    :param requantization: ``"float32"`` or ``"fixed"``, see :class:`~sb3_qpd.integer.IntegerLayer`
    :param has_origin: the student takes offsets off in float64, see :class:`~sb3_qpd.integer.IntegerModel`
    :param history: number of observations that the student sees
    """

    parts: tuple[ObservationPart, ...]
    is_box: bool
    action_shape: tuple[int, ...] = ()
    uses_masks: bool = False
    weight_bits: tuple[int, ...] = (8,)
    activation_bits: tuple[int, ...] = (8,)
    requantization: str = "float32"
    has_origin: bool = False
    history: int = 1

    @classmethod
    def of_model(cls, model: IntegerModel) -> StudentFacts:
        """
        Facts of an integer model.

        :param model: trained or not: ``policy.to_integer()`` of a new policy will do
        """
        return cls(
            parts=model.parts,
            is_box=model.is_box,
            action_shape=model.action_shape,
            uses_masks=model.uses_masks,
            weight_bits=tuple(layer.weight_bits for layer in model.layers),
            activation_bits=tuple(layer.activation_bits for layer in model.layers[:-1]),
            requantization=model.requantization,
            has_origin=model.input_origin is not None,
            history=model.history,
        )


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

    def lacks(self, student: StudentFacts) -> Iterator[str]:
        """
        What the student has and the target does not support, in words.

        :param student: facts of the student
        """
        if student.has_origin and not self.origins:
            yield "observations in float64 with an offset that float32 cannot carry (subtract it in the environment)"
        yield from _other_bits("weights", student.weight_bits, self.weight_bits, "--weight-bits")
        yield from _other_bits("activations", student.activation_bits, self.activation_bits, "--activation-bits")
        if student.requantization not in self.requantizations:
            (mode,) = self.requantizations
            change = f"set model.requantization = {mode!r}, or --requantization {mode}"
            yield f"requantization={student.requantization!r} ({change})"


def _other_bits(what: str, bits: tuple[int, ...], supported: tuple[int, ...], flag: str) -> Iterator[str]:
    """The first layer whose bits a target does not have."""
    for i, n in enumerate(bits):
        if n not in supported:
            yield f"{what} of {n} bits in layer {i} ({flag} {_either(supported)})"
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


def check_target(target: str, student: StudentFacts) -> None:
    """
    Refuse a target that cannot take a student, with what it does not support and the targets that do.

    Needs neither a trained student nor the packages of the target.

    :param target: a key of ``TARGETS``
    :param student: facts of the student
    :raises ValueError: if the target is unknown, or cannot take the student
    """
    if lacks := list(find_target(target).lacks(student)):
        fit = tuple(name for name, other in TARGETS.items() if not any(other.lacks(student)))
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
