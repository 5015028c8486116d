"""
The settings of a search: sizes, bits, seeds, steps, and when a trial is scored.

This module imports nothing heavy: the command checks with it what a user typed, before torch is imported.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from sb3_qpd.checks import MAX_SEED, check_seed, check_type, check_whole, is_finite
from sb3_qpd.students.architectures import BITS, StudentArch
from sb3_qpd.students.budgets import budget_nbytes

DEFAULT_SIZES = ("nano", "tiny", "small")
DEFAULT_BITS = ((8, 8), (4, 4))
DEFAULT_TIMESTEPS = 100_000  # where an environment has no entry in qpd.yml
# progress of learning at which a trial is scored, see StopRule: early, and once the precision has fallen
DEFAULT_RUNGS = (0.25, 0.75)
RUNG_EPISODES = 32
MAX_TRIALS = 10_000
JOURNAL_SUFFIX = ".log"  # as RL Zoo's --storage has it

Size = str | StudentArch | Mapping[str, Any]
Bits = tuple[int, int]  # of weights and of activations


@dataclass(frozen=True)
class SearchSettings:
    """
    The settings of a search. A search goes on only under the same settings.

    :param sizes: sizes of students, as ``student_arch`` takes them
    :param bits: bits of weights and activations, in pairs
    :param seeds: number of training seeds of each size and bits
    :param timesteps: environment steps of a trial
    :param max_bytes: largest student: bytes, or percent of the teacher's float32 actor as in ``"0.5%"``
    :param rungs: progress of learning at which a trial is scored, between 0 and 1. ``()``: no trial is stopped
    :param rung_episodes: validation episodes of such a score
    :param seed: first training seed of the search
    :param hyperparameters: other arguments of :class:`~sb3_qpd.QPDDistiller`
    """

    sizes: tuple[Size, ...] = DEFAULT_SIZES
    bits: tuple[Bits, ...] = DEFAULT_BITS
    seeds: int = 3
    timesteps: int = DEFAULT_TIMESTEPS
    max_bytes: int | str | None = None
    rungs: tuple[float, ...] = DEFAULT_RUNGS
    rung_episodes: int = RUNG_EPISODES
    seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_type("sizes", self.sizes, Sequence, "a list of sizes, such as ['nano', 'tiny']")
        if isinstance(self.sizes, str) or not self.sizes:
            raise ValueError(f"sizes must be a list of at least one size, such as ['nano', 'tiny'], got {self.sizes!r}")
        object.__setattr__(self, "sizes", _without_repeats(self.sizes))
        object.__setattr__(self, "bits", _without_repeats([parse_bits(one) for one in _as_list(self.bits)]))
        object.__setattr__(self, "seeds", check_whole("seeds", self.seeds, most=1_000))
        object.__setattr__(self, "timesteps", check_whole("timesteps", self.timesteps))
        object.__setattr__(self, "rungs", _checked_rungs(self.rungs))
        check_whole("rung_episodes", self.rung_episodes, least=2)
        check_seed("seed", self.seed)
        if self.seed + 2 * self.seeds > MAX_SEED:
            raise ValueError(f"seed must leave room for {2 * self.seeds} seeds below {MAX_SEED}, got {self.seed}")
        if self.max_bytes is not None:
            parse_max_bytes(self.max_bytes)
        n_trials = len(self.sizes) * len(self.bits) * self.seeds
        if n_trials > MAX_TRIALS:
            raise ValueError(f"Expected sizes, bits and seeds that make at most {MAX_TRIALS:,} trials, got {n_trials:,}")

    @property
    def rung_steps(self) -> list[int]:
        """Environment steps at which a trial is scored."""
        return [math.ceil(rung * self.timesteps) for rung in self.rungs]

    @property
    def search_seeds(self) -> list[int]:
        """Training seeds of the trials."""
        return [self.seed + i for i in range(self.seeds)]

    @property
    def fresh_seeds(self) -> list[int]:
        """Training seeds of the students that are shown, which no trial has used."""
        return [self.seed + self.seeds + i for i in range(self.seeds)]

    def candidates(self) -> list[tuple[Size, Bits]]:
        """Every size with every bits."""
        return list(product(self.sizes, self.bits))

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return {
            "sizes": [describe_size(size) for size in self.sizes],
            "bits": [describe_bits(bits) for bits in self.bits],
            **{"seeds": self.seeds, "seed": self.seed, "timesteps": self.timesteps, "max_bytes": self.max_bytes},
            **{"rungs": list(self.rungs), "rung_episodes": self.rung_episodes},
            "hyperparameters": {name: _plain(value) for name, value in sorted(self.hyperparameters.items())},
        }


def parse_bits(value: Any) -> Bits:
    """
    Bits of weights and activations.

    :param value: one number for both, a pair, or a text such as ``"4"`` or ``"W2A8"``
    :raises ValueError: a number is not one of 2 to 8
    """
    pair: Any = value
    if isinstance(value, str):
        match = re.fullmatch(r"(?:[Ww]?(\d)|[Ww](\d)[Aa](\d))", value.strip())
        pair = None if match is None else (match[1] or match[2], match[1] or match[3])
        pair = None if pair is None else (int(pair[0]), int(pair[1]))
    elif isinstance(value, int) and not isinstance(value, bool):
        pair = (value, value)
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int and n in BITS for n in pair)):
        raise ValueError(f"bits must be numbers of 2 to 8 such as 4, or of weights and activations as W2A8, got {value!r}")
    return (pair[0], pair[1])


def parse_max_bytes(value: Any, teacher_bytes: int | None = 1) -> int:
    """
    The largest number of bytes that a student may have.

    :param value: bytes, or a budget as in :func:`~sb3_qpd.students.budgets.budget_nbytes`
    :param teacher_bytes: bytes of the teacher's float32 actor, ``None`` where they are not known
    :raises ValueError: the value is anything else
    """
    if isinstance(value, str):
        with suppress(ValueError):
            return budget_nbytes(f"{value}B" if value.isdecimal() else value, teacher_bytes)
    elif is_finite(value) and value >= 1:
        return int(value)
    raise ValueError(
        f"max_bytes must be bytes such as 2000, 2kB or 1MB, or percent of the teacher's actor such as 0.5%, got {value!r}"
    )


def check_storage(storage: str | None, study_name: str) -> None:
    """
    Refuse a storage or a name of a study that cannot be used. Nothing is loaded or opened.

    :param storage: URL of an Optuna storage, or a journal file that ends in ``.log``; ``None``: the default
    :param study_name: name of the study in it
    :raises ValueError: the storage is neither a URL nor a journal file, or the name is empty
    """
    if storage is not None:
        check_type("storage", storage, str, "a URL such as sqlite:///search.db")
        if "://" not in storage and not storage.endswith(JOURNAL_SUFFIX):
            raise ValueError(
                f"storage must be a URL of Optuna such as sqlite:///search.db, or the path of a journal file that ends in "
                f"{JOURNAL_SUFFIX}, got {storage!r}"
            )
    check_type("study_name", study_name, str, "a name")
    if not study_name.strip():
        raise ValueError(f"study_name must be a name such as frontier, got {study_name!r}")


def describe_bits(bits: Bits) -> str:
    """
    Bits in one word.

    :param bits: number of bits of weights, and of activations
    """
    return "W{}A{}".format(*bits)


def describe_size(size: Size) -> str:
    """
    A size as it was typed: a name as it is, fields as JSON.

    :param size: name, fields, or a ``StudentArch``
    """
    if isinstance(size, str):
        return size
    return json.dumps(dict(size) if isinstance(size, Mapping) else size.asdict())


def _as_list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"bits must be a list such as [8, 4] or [(8, 8), (2, 8)], got {value!r}")
    return value


def _without_repeats(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value for i, value in enumerate(values) if value not in values[:i])


def _checked_rungs(rungs: Any) -> tuple[float, ...]:
    if not isinstance(rungs, list | tuple) or not all(is_finite(rung) and 0 < rung < 1 for rung in rungs):
        raise ValueError(f"rungs must be shares of the steps between 0 and 1, such as (0.25, 0.75), got {rungs!r}")
    if list(rungs) != sorted(set(rungs)):
        raise ValueError(f"rungs must rise, got {rungs!r}")
    return tuple(float(rung) for rung in rungs)


def _plain(value: Any) -> Any:
    """A hyperparameter as a JSON value; a schedule by its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else getattr(value, "__qualname__", repr(value))
