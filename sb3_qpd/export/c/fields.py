"""The parts of an observation in C: a field of a struct for each key of a Dict, with the numbers that bring it to its grid."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sb3_qpd.integer import IntegerModel, ObservationPart

# keywords of C and C++, and macros in lower case that compilers or headers define
_TAKEN = frozenset(
    "alignas alignof and and_eq arm asm assert auto bitand bitor bool break case catch char class compl complex concept const "
    "consteval constexpr constinit const_cast continue co_await co_return co_yield decltype default delete do double "
    "dynamic_cast else enum errno explicit export extern false far final float for friend goto huge i386 if imaginary import "
    "inline int int8_t int16_t int32_t int64_t linux long mips module mutable namespace near new noexcept noreturn not not_eq "
    "nullptr operator or or_eq override pascal private protected public register reinterpret_cast requires restrict return "
    "short signed sizeof sparc static static_assert static_cast stderr stdin stdout struct sun switch template this "
    "thread_local throw true try typedef typeid typename typeof typeof_unqual uint8_t uint16_t uint32_t uint64_t union unix "
    "unsigned using virtual void volatile wchar_t while xor xor_eq".split()
)

_LONGEST = 40  # of a name: C promises to tell 63 characters apart, some of which go before and after it


def c_names(keys: Sequence[str]) -> list[str]:
    """
    A valid C identifier for each key of a Dict; all of them differ.

    Letters become lower case. Anything but ASCII letters and digits becomes one ``_``, none at an end. The first 40 characters
    count. A name that would begin with a digit, or with ``policy_`` or ``test_``, gets ``key_`` in front. A keyword or a known
    macro gets ``_`` at its end. Of equal names the second one gets ``_2``, the third one ``_3``.

    :param keys: keys of the Dict, in order
    """
    names: list[str] = []
    for key in keys:
        plain = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")[:_LONGEST].strip("_")
        plain = plain if re.match(r"(?!(policy|test)(_|$))[a-z]", plain) else f"key_{plain}".rstrip("_")
        plain = f"{plain}_" if plain in _TAKEN else plain
        name, number = plain, 1
        while name in names:
            number += 1
            name = f"{plain.rstrip('_')}_{number}"
        names.append(name)
    return names


@dataclass(frozen=True)
class Field:
    """
    A part of an observation in C.

    :param part: the part
    :param name: its name in the struct; ``observation`` where the observation is no Dict
    :param is_fixed: the policy has no floats: what is not an integer comes on its grid of 8 bits
    :param multiplier: multipliers of its input grid, float32; empty for images of bytes
    :param offset: offsets of its input grid
    :param origin: numbers that are subtracted first, in float64; ``None``: there are none
    """

    part: ObservationPart
    name: str
    is_fixed: bool
    multiplier: np.ndarray
    offset: np.ndarray
    origin: np.ndarray | None

    @property
    def kind(self) -> str:
        return self.part.kind

    @property
    def has_grid(self) -> bool:
        """Whether its numbers are not integers, and go to a grid."""
        return self.kind in ("vector", "float_image")

    @property
    def raw_type(self) -> str:
        """C type of its numbers in units of the environment."""
        integers = {"image": "uint8_t", "one_hot": "int32_t"}
        return integers.get(self.kind, "float" if self.origin is None else "double")

    @property
    def c_type(self) -> str:
        """C type of its numbers as the policy takes them."""
        return "int8_t" if self.is_fixed and self.has_grid else self.raw_type

    @property
    def size(self) -> int:
        return math.prod(self.part.shape)

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number, and no array."""
        return self.part.key is not None and self.part.shape == ()

    @property
    def declarator(self) -> str:
        """Its name in a declaration."""
        return self.name if self.is_scalar else f"{self.name}[{self.size}]"

    def macro(self, what: str) -> str:
        """
        The macro of numbers that bring the field to its grid.

        :param what: ``"MULTIPLIER"``, ``"OFFSET"`` or ``"ORIGIN"``
        """
        return f"POLICY_OBSERVATION_{what}" if self.part.key is None else f"POLICY_{what}_OF_{self.name.upper()}"

    @property
    def comment(self) -> str:
        """What it holds."""
        shape = " x ".join(map(str, self.part.shape))
        if self.part.is_image:
            channels, height, width = self.part.shape
            of_pixel = "one channel" if channels == 1 else f"{channels} channels, side by side"
            return f"{height} x {width} pixels of {of_pixel}"
        if self.kind == "one_hot":
            return "0 to " + ", ".join(str(n - 1) for n in self.part.nvec)
        return f"{shape}, the last axis changes fastest" if len(self.part.shape) > 1 else "a number" if not shape else shape

    @property
    def affine(self) -> str:
        """How many multipliers and offsets there are, as a factor of an index: one for each number, or one for all."""
        return "0" if self.part.is_image else "1"

    def of(self, pointer: str) -> str:
        """
        Its numbers, in an expression.

        :param pointer: pointer to the struct, or to the numbers where the observation is no Dict
        """
        if self.part.key is None:
            return pointer
        return f"{'&' if self.is_scalar else ''}{pointer}->{self.name}"

    @property
    def absent(self) -> np.ndarray:
        """The bytes that stand for a category which is not the index: on the first layer's grid, 128 higher."""
        return to_byte(self.offset)

    @property
    def present(self) -> np.ndarray:
        """The bytes that stand for a category which is the index."""
        return to_byte(self.multiplier + self.offset)

    @property
    def constant_bytes(self) -> int:
        """Bytes of its tables in flash."""
        if self.kind == "one_hot":
            return 2 * self.part.n_features + 4 * len(self.part.nvec)
        if self.is_fixed or self.kind == "image":
            return 0
        return 8 * len(self.multiplier) + (0 if self.origin is None else 8 * self.size)


def to_byte(grid: np.ndarray) -> np.ndarray:
    """
    Bytes of the first layer's input, 128 higher than its grid.

    :param grid: numbers on the grid before they are rounded
    """
    return (np.clip(np.rint(grid), -128, 127) + 128).astype(int)


def fields_of(model: IntegerModel) -> list[Field]:
    """
    The fields of a student's observation, in the order of its parts.

    :param model: the student
    """
    parts, found, used = model.parts, dict[str | None, Field](), 0
    keys = [part.key for part in parts if part.key is not None]
    names = dict(zip(keys, c_names(keys), strict=True))
    for part in (part for group in model.trunks for part in group):
        n = 0 if part.kind == "image" else 1 if part.is_image else part.n_features
        grid = slice(used, used + n)
        m, a = (np.zeros(0, np.float32) if x is None else x[grid] for x in (model.input_multiplier, model.input_offset))
        name = "observation" if part.key is None else names[part.key]
        found[part.key] = Field(part, name, model.requantization == "fixed", m, a, model.origin_of(part))
        used += n
    return [found[part.key] for part in parts]
