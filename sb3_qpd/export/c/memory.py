"""The memory of a student in C: its window on the grid of the first layer, and how actions come to that grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sb3_qpd.export.c.fields import to_byte
from sb3_qpd.integer import IntegerModel


@dataclass(frozen=True)
class Memory:
    """
    The memory of a student in C.

    :param model: a student with a memory
    """

    model: IntegerModel

    @property
    def n_action(self) -> int:
        """Bytes of an action; 0: the student sees no actions."""
        return self.model.n_remembered

    @property
    def n_features(self) -> int:
        """Bytes of an observation."""
        return sum(part.n_features for part in self.model.parts)

    @property
    def step_bytes(self) -> int:
        """Bytes of an observation and of the action after it."""
        return self.n_features + self.n_action

    @property
    def state_bytes(self) -> int:
        """Bytes that are kept between two steps."""
        return (self.model.history - 1) * self.step_bytes

    @property
    def window_bytes(self) -> int:
        """Bytes that the first layer reads: the state, and the newest observation."""
        return self.state_bytes + self.n_features

    @property
    def is_box(self) -> bool:
        """Whether it remembers actions of a Box."""
        return self.n_action > 0 and self.model.is_box

    @property
    def is_bits(self) -> bool:
        """Whether it remembers actions of bits, each of which is one byte."""
        return self.n_action > 0 and self.model.n_bits > 0

    @property
    def nvec(self) -> tuple[int, ...]:
        """Categories of the actions that it remembers, each of which is one byte; ``()`` for others."""
        return self.model.action_nvec if self.n_action and not self.is_box and not self.is_bits else ()

    @property
    def multiplier(self) -> np.ndarray:
        """Multipliers that bring an action to the grid."""
        assert self.model.input_multiplier is not None
        return self.model.input_multiplier[-self.n_action :]

    @property
    def offset(self) -> np.ndarray:
        """Offsets that bring an action to the grid."""
        assert self.model.input_offset is not None
        return self.model.input_offset[-self.n_action :]

    @property
    def absent(self) -> np.ndarray:
        """The byte of each category, or bit, that was not the action."""
        return to_byte(self.offset)

    @property
    def present(self) -> np.ndarray:
        """The byte of each category, or bit, that was the action."""
        return to_byte(self.multiplier + self.offset)

    @property
    def constant_bytes(self) -> int:
        """Bytes of its tables in flash."""
        if not self.n_action:
            return 0
        if not self.model.is_box:
            return 2 * self.n_action + 4 * len(self.nvec)
        return 4 * len(self.steps) + 6 * self.n_action if self.model.requantization == "fixed" else 8 * self.n_action

    # -- actions of a Box without floating point: a sorted table of the integers at which the byte changes ------------------

    @property
    def first(self) -> np.ndarray:
        """The byte of each number of a Box at its least value."""
        return self._bytes_at(self.model.bounds_in_units()[0])

    @property
    def falls(self) -> np.ndarray:
        """Whether the byte of each number falls while the number rises."""
        return (self._bytes_at(self.model.bounds_in_units()[1]) < self.first).astype(int)

    @property
    def steps(self) -> np.ndarray:
        """
        The steps of all numbers of a Box, one number after the other. A step is the least integer, in units of the head, at
        which the byte changes.

        Where there are no steps the array holds one zero, as C has no empty arrays.
        """
        found = np.concatenate(self._steps())
        return found if len(found) else np.zeros(1, np.int64)

    @property
    def ends(self) -> np.ndarray:
        """Where the steps of each number end."""
        return np.cumsum([len(steps) for steps in self._steps()])

    def _steps(self) -> list[np.ndarray]:
        lowest, highest = self.model.bounds_in_units()
        n = np.abs(self._bytes_at(highest) - self.first)
        low = np.repeat(lowest, n)  # the byte is not yet passed here
        high = np.repeat(highest, n)  # it is passed here
        number = np.repeat(np.arange(len(n)), n)
        passed = np.concatenate([np.arange(1, count + 1) for count in n])
        while (high - low > 1).any():
            middle = (low + high) // 2
            has_passed = np.abs(self._bytes_of(middle, number) - self.first[number]) >= passed
            low, high = np.where(has_passed, low, middle), np.where(has_passed, middle, high)
        return np.split(high, np.cumsum(n)[:-1])

    def _bytes_at(self, units: np.ndarray) -> np.ndarray:
        return self._bytes_of(units, np.arange(self.n_action))

    def _bytes_of(self, units: np.ndarray, number: np.ndarray) -> np.ndarray:
        """
        The bytes of an action's numbers, as :meth:`~sb3_qpd.IntegerModel.remember` rounds them.

        :param units: the numbers in units of the head
        :param number: index in the Box of each of them
        """
        low, high = (np.ravel(np.asarray(bound))[number] for bound in (self.model.action_low, self.model.action_high))
        with np.errstate(over="ignore"):
            actions = np.clip(units.astype(np.float32) * self.model.layers[-1].multiplier[number], low, high)
            scaled = actions * self.multiplier[number]
            return to_byte(scaled + self.offset[number])
