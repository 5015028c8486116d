"""
The size of a student, computed before it is built.

This module imports no torch, and numpy only when a size is computed: ``--help`` is shown without either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sb3_qpd.students.architectures import StudentArch, conv_output_sides

if TYPE_CHECKING:
    from sb3_qpd.integer import ObservationPart

BYTES_OF_GRID = 8  # of each feature of a vector: a float32 multiplier and a float32 offset
BYTES_OF_BOUNDS = 12  # of each dimension of a Box action: float32 bounds and deviation
BYTES_OF_CHANNEL = 8  # an int32 bias and a float32 multiplier


@dataclass(frozen=True)
class StudentTask:
    """
    What a student sees and what it has to answer.

    :param parts: what an observation consists of, see :func:`sb3_qpd.spaces.observation_parts`
    :param n_outputs: number of the head's outputs
    :param is_box: whether the action is a Box
    :param history: number of observations that the student sees, ``None`` for the architecture's own
    :param history_actions: whether it also sees the actions between them, ``None`` for the architecture's own
    """

    parts: tuple[ObservationPart, ...]
    n_outputs: int
    is_box: bool = False
    history: int | None = None
    history_actions: bool | None = None

    @property
    def image_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the images, channels first."""
        return [part.shape for part in self.parts if part.is_image]

    @property
    def groups(self) -> list[tuple[ObservationPart, ...]]:
        """The parts of each trunk of a student: one trunk for each image, and one for all other values."""
        from sb3_qpd.integer import group_parts

        return list(group_parts(self.parts))


@dataclass(frozen=True)
class _Layer:
    """
    Sizes of a layer.

    :param n_weights: number of weights
    :param n_out: number of output channels
    :param n_positions: number of positions at which a convolution applies its weights
    """

    n_weights: int
    n_out: int
    n_positions: int = 1


def student_nbytes(arch: StudentArch, task: StudentTask) -> int:
    """
    :attr:`sb3_qpd.IntegerModel.nbytes` of a student without an input origin.

    Only learning finds out whether the input needs an origin. It takes eight bytes more for each feature.

    :param arch: sizes and bits
    :param task: what the student sees and answers
    :raises ValueError: ``weight_bits`` names another number of layers, or the convolutions do not fit an image
    """
    from sb3_qpd.integer_file import packed_bytes

    trunks, head = _layers(arch, task)
    layers = [layer for trunk in trunks for layer in trunk]
    if len(trunks) > 1:
        bits = [one for trunk in arch.trunk_bits([len(trunk) for trunk in trunks]) for one in trunk]
    else:
        bits = arch.layer_bits(len(layers) + 1)
    total = sum(packed_bytes(one.n_weights, n) for one, n in zip((*layers, head), bits, strict=True))
    total += BYTES_OF_CHANNEL * sum(layer.n_out for layer in layers)
    total += 4 * head.n_out + 4 * (head.n_out if task.is_box else 1)
    total += BYTES_OF_BOUNDS * head.n_out * task.is_box
    features = task.n_outputs * arch.history_actions
    features += sum(1 if part.kind == "float_image" else part.n_features for part in task.parts if part.kind != "image")
    return total + BYTES_OF_GRID * features


def student_macs(arch: StudentArch, task: StudentTask) -> int:
    """
    :attr:`sb3_qpd.IntegerModel.macs` of a student.

    :param arch: sizes and bits
    :param task: what the student sees and answers
    """
    trunks, head = _layers(arch, task)
    return sum(one.n_weights * one.n_positions for trunk in trunks for one in trunk) + head.n_weights


def _layers(arch: StudentArch, task: StudentTask) -> tuple[list[list[_Layer]], _Layer]:
    """The layers of each trunk, and the head."""
    trunks, n_features = [], 0
    for group in task.groups:
        layers, n_out = _trunk(arch, group, task.n_outputs)
        trunks.append(layers)
        n_features += n_out
    return trunks, _Layer(n_features * task.n_outputs, task.n_outputs)


def _trunk(arch: StudentArch, group: tuple[ObservationPart, ...], n_action: int) -> tuple[list[_Layer], int]:
    """The layers of a trunk, and the number of its outputs. An action that it sees has ``n_action`` numbers."""
    size, shape = arch.history * sum(part.n_features for part in group), group[0].shape
    size += (arch.history - 1) * n_action * arch.history_actions
    is_image = group[0].is_image
    layers = list(_convolutions(arch, shape)) if is_image else []
    if layers:
        size = layers[-1].n_out * layers[-1].n_positions
    for units in arch.image_hidden if is_image else arch.hidden:
        layers.append(_Layer(size * units, units))
        size = units
    return layers, size


def _convolutions(arch: StudentArch, shape: tuple[int, ...]) -> Iterator[_Layer]:
    channels, sides = shape[0], shape[1:]
    for one in arch.conv:
        n_out, kernel, _ = one
        sides = conv_output_sides((one,), sides)
        if min(sides) < 1:
            raise ValueError(f"The convolutions {arch.conv} do not fit images of shape {shape}")
        yield _Layer(n_out * channels * kernel**2, n_out, math.prod(sides))
        channels = n_out
