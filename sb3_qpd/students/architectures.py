"""Sizes and bits of students, as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sb3_qpd.checks import check_choice

FLOAT_BITS = 32  # not quantized: the float student, and the first stage of a transition
BITS = (2, 3, 4, 5, 6, 7, 8)
MAX_HISTORY = 64  # observations that a student sees at once


def _is_bits(value: Any) -> bool:
    return isinstance(value, int) and (value in BITS or value == FLOAT_BITS)


def _tuples(value: Any) -> Any:
    """Nested lists, which JSON and YAML give, as tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _is_positive(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(n, int) and n > 0 for n in value)


@dataclass(frozen=True)
class StudentArch:
    """
    Sizes and bits of a student. ``hidden`` is the trunk for vectors; ``conv`` and ``conv_hidden`` are the trunk for images.
    Without ``conv`` an image is flattened, and ``conv_hidden`` (or else ``hidden``) is its trunk.

    :param hidden: units of each fully connected layer of the trunk for vectors; ``()`` is a linear policy
    :param conv: (channels, kernel size, stride) of each convolution, without padding
    :param conv_hidden: units of each fully connected layer after the convolutions
    :param weight_bits: bits of the inner layers' weights, or one number for each layer, head included; 32 is float. With one
        number, first layer and head have at least 8 bits (LSQ, Esser et al. 2020)
    :param activation_bits: bits of every hidden activation; 32 is float
    :param history: number of observations that the student sees: the newest one, and those before it in the episode
    :param history_actions: whether it also sees the actions that were taken between these observations
    """

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it

    hidden: tuple[int, ...] = ()
    conv: tuple[tuple[int, int, int], ...] = ()
    conv_hidden: tuple[int, ...] = ()
    weight_bits: int | tuple[int, ...] = 8
    activation_bits: int = 8
    history: int = 1
    history_actions: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden", "conv", "conv_hidden", "weight_bits"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        for name in ("hidden", "conv_hidden"):
            if not _is_positive(getattr(self, name)):
                raise ValueError(f"{name} takes positive integers, got {getattr(self, name)}")
        if not (isinstance(self.conv, tuple) and all(_is_positive(layer) and len(layer) == 3 for layer in self.conv)):
            raise ValueError(f"conv takes (channels, kernel size, stride) triples, got {self.conv}")
        all_bits = (*(self.weight_bits if isinstance(self.weight_bits, tuple) else (self.weight_bits,)), self.activation_bits)
        got = f"got weight_bits={self.weight_bits!r}, activation_bits={self.activation_bits!r}"
        if not all(_is_bits(bits) for bits in all_bits):
            raise ValueError(f"Bits must be one of {BITS}, or {FLOAT_BITS} for float, as integers: {got}")
        if FLOAT_BITS in all_bits and set(all_bits) != {FLOAT_BITS}:
            raise ValueError(
                f"A student is float ({FLOAT_BITS} bits) in both its weights and its activations, or in neither, {got}"
            )

        if type(self.history) is not int or not 1 <= self.history <= MAX_HISTORY:
            raise ValueError(f"history takes an integer of 1 to {MAX_HISTORY} observations, got {self.history!r}")
        if type(self.history_actions) is not bool or (self.history_actions and self.history == 1):
            got = f"history_actions={self.history_actions!r}, history={self.history}"
            raise ValueError(f"history_actions is True or False, and needs a history of 2 or more, got {got}")

    def __repr__(self) -> str:
        return f"StudentArch({', '.join(f'{name}={value!r}' for name, value in self.asdict().items())})"

    @property
    def image_hidden(self) -> tuple[int, ...]:
        """Fully connected layers of an image's trunk: without convolutions, those for vectors will do."""
        return self.conv_hidden if self.conv or self.conv_hidden else self.hidden

    def layer_bits(self, n_layers: int) -> list[int]:
        """
        Bits of the weights of each layer, head included.

        :param n_layers: number of layers of trunk and head together
        :raises ValueError: ``weight_bits`` names another number of layers
        """
        if isinstance(self.weight_bits, tuple):
            if len(self.weight_bits) != n_layers:
                raise ValueError(f"weight_bits names {len(self.weight_bits)} layers, this student has {n_layers}")
            return list(self.weight_bits)
        outer = max(8, self.weight_bits)
        return [outer if i in (0, n_layers - 1) else self.weight_bits for i in range(n_layers)]

    def trunk_bits(self, sizes: list[int]) -> list[list[int]]:
        """
        Bits of the weights of several trunks that share one head. Each trunk has a first layer.

        :param sizes: number of layers of each trunk
        :return: bits of the layers of each trunk, then of the head
        """
        if not isinstance(self.weight_bits, tuple):
            return [*(self.layer_bits(n + 1)[:-1] for n in sizes), self.layer_bits(1)]
        bits = iter(self.layer_bits(sum(sizes) + 1))
        return [[next(bits) for _ in range(n)] for n in (*sizes, 1)]

    def describe(self, has_images: bool) -> str:
        """
        The sizes and bits that a student uses, in one line.

        :param has_images: whether the student sees images. A student of vectors has no convolutions
        """
        names = ("hidden", "conv", "conv_hidden") if has_images else ("hidden",)
        sizes = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        memory = f", history={self.history}" if self.history > 1 else ""
        memory += ", history_actions=True" if self.history_actions else ""
        return f"{sizes}, weight_bits={self.weight_bits}, activation_bits={self.activation_bits}{memory}"

    def with_bits(self, weight_bits: int | tuple[int, ...] | None, activation_bits: int | None) -> StudentArch:
        """
        The same sizes at other bits.

        :param weight_bits: bits of the weights; ``None`` keeps them
        :param activation_bits: bits of the activations; ``None`` keeps them
        """
        changes: dict[str, Any] = {"weight_bits": weight_bits, "activation_bits": activation_bits}
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def with_memory(self, history: int | None, history_actions: bool | None) -> StudentArch:
        """
        The same student with another memory.

        :param history: number of observations that it sees; ``None`` keeps it
        :param history_actions: whether it also sees the actions between them; ``None`` keeps it
        """
        changes: dict[str, Any] = {"history": history, "history_actions": history_actions}
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def asdict(self) -> dict[str, Any]:
        """The fields as plain values. Those of a memory are left out where there is none: older versions read the rest too."""
        left_out = {"history"} if self.history == 1 else set()
        left_out |= set() if self.history_actions else {"history_actions"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def to_json(self) -> str:
        """Hidden layers and fields that differ from their defaults, as JSON for ``student_arch`` or ``--student-arch``."""
        shown = {name: value for name, value in asdict(self).items() if name == "hidden" or value != getattr(type(self), name)}
        return json.dumps(shown)


def _atari(c1: int, c2: int, c3: int, fc: int, stride: int = 1) -> dict[str, Any]:
    """NatureCNN's kernels and strides with other widths. A stride in the third layer makes the first dense layer smaller."""
    return {"conv": ((c1, 8, 4), (c2, 4, 2), (c3, 3, stride)), "conv_hidden": (fc,)}


# small, medium and large are the students of Rusu et al., Policy Distillation, 2016
STUDENT_ARCHS: dict[str, StudentArch] = {
    "nano": StudentArch(hidden=(8, 8), **_atari(4, 8, 8, 8)),
    "tiny": StudentArch(hidden=(16, 16), **_atari(8, 16, 16, 32)),
    "small": StudentArch(hidden=(32, 32), **_atari(16, 16, 16, 64)),
    "medium": StudentArch(hidden=(64, 64), **_atari(16, 16, 16, 128)),
    "large": StudentArch(hidden=(256, 256), **_atari(16, 32, 32, 256)),
}


# kernel size and stride of three convolutions for images that are too small for NatureCNN's, from large to small ones
SMALL_KERNELS = (
    ((4, 2), (4, 2), (3, 1)),
    ((3, 2), (3, 1), (3, 1)),
    ((3, 1), (3, 1), (3, 1)),
    ((2, 1), (2, 1), (2, 1)),
    ((1, 1), (1, 1), (1, 1)),
)


def conv_output_sides(conv: tuple[tuple[int, int, int], ...], sides: tuple[int, ...]) -> tuple[int, ...]:
    """
    Height and width after convolutions without padding.

    :param conv: (channels, kernel size, stride) of each convolution
    :param sides: height and width of the image
    :return: height and width; below 1 where the image is too small
    """
    for _, kernel, stride in conv:
        sides = tuple((side - kernel) // stride + 1 for side in sides)
        if min(sides) < 1:
            break
    return sides


def fit_to_images(arch: StudentArch, shapes: Iterable[tuple[int, ...]]) -> StudentArch:
    """
    The architecture with smaller kernels and strides where an image is too small for its own.

    :param arch: a named architecture, with three convolutions
    :param shapes: shapes of the images, channels first
    """
    sides = [shape[1:] for shape in shapes]
    own = tuple((kernel, stride) for _, kernel, stride in arch.conv)
    for kernels in (own, *SMALL_KERNELS):
        conv = tuple((channels, *one) for (channels, _, _), one in zip(arch.conv, kernels, strict=True))
        if all(min(conv_output_sides(conv, one)) >= 1 for one in sides):
            return replace(arch, conv=conv)
    return arch


def make_arch(
    student_arch: str | StudentArch | Mapping[str, Any],
    weight_bits: int | tuple[int, ...] | None = None,
    activation_bits: int | None = None,
    image_shapes: Iterable[tuple[int, ...]] = (),
) -> StudentArch:
    """
    The architecture for a name, a dict of fields or a ``StudentArch``.

    :param student_arch: a key of ``STUDENT_ARCHS``, a dict of the fields of a ``StudentArch``, or a ``StudentArch``
    :param weight_bits: bits of the weights instead of the architecture's own
    :param activation_bits: bits of the activations instead of the architecture's own
    :param image_shapes: shapes of the images, channels first, that a named architecture has to fit
    :raises ValueError: unknown name, field or value
    :raises TypeError: any other type
    """
    if isinstance(student_arch, str):
        check_choice("student_arch", student_arch, STUDENT_ARCHS)
        arch = fit_to_images(STUDENT_ARCHS[student_arch], image_shapes)
    elif isinstance(student_arch, StudentArch):
        arch = student_arch
    elif isinstance(student_arch, Mapping):
        try:
            arch = StudentArch(**student_arch)
        except TypeError as error:
            fields = ", ".join(f"'{name}'" for name in StudentArch.__dataclass_fields__)
            raise ValueError(f"student_arch takes the fields {fields}; got {sorted(student_arch)}") from error
    else:
        raise TypeError(f"student_arch must be a name, a dict or a StudentArch, got {type(student_arch).__name__}")
    return arch.with_bits(weight_bits, activation_bits)
