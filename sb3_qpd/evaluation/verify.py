"""
Verification that the files of a student are the same policy. Real observations go through each of them, and every value that
differs from :class:`~sb3_qpd.integer.IntegerModel` is counted, layer by layer.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sb3_qpd.checks import check_count, check_flags, check_seed, check_type
from sb3_qpd.distillation.recordings import RecordedObservations
from sb3_qpd.envs.recipe import EnvSource, is_env_source
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.evaluation.fitting import check_batch, check_teacher_of
from sb3_qpd.evaluation.implementations import (
    MASKED_ACTION,
    Folder,
    Implementation,
    Steps,
    find_implementations,
    integer_steps,
)
from sb3_qpd.evaluation.own_episodes import Jitter, recorded_steps, replay, replay_masked
from sb3_qpd.evaluation.own_exports import not_run
from sb3_qpd.export.numpy import interpreter
from sb3_qpd.integer import IntegerModel, StudentError
from sb3_qpd.observations import batch_size, pieces, take_rows
from sb3_qpd.players import Player, check_player
from sb3_qpd.student_folder import (
    C_FILE,
    INTEGER_MODEL,
    NUMPY_FILE,
    STUDENT_ZIP,
    TARGET_FILES,
    folder_of,
    read_own_file,
)
from sb3_qpd.students.policies import QuantActorCriticPolicy


@dataclass
class Difference:
    """
    How one implementation differs from the integer model in one step.

    :param implementation: name of the implementation
    :param step: step of the computation
    :param is_exact: equality is promised
    :param n_values: number of compared values
    :param n_differing: how many of them differ
    :param largest: largest distance of two values
    :param n_rows: number of compared observations
    :param n_equal_rows: how many of them gave equal values
    """

    implementation: str
    step: str
    is_exact: bool
    n_values: int = 0
    n_differing: int = 0
    largest: float = 0.0
    n_rows: int = 0
    n_equal_rows: int = 0

    def add(self, expected: np.ndarray, got: np.ndarray) -> None:
        """
        Count a batch.

        :param expected: values of the integer model, shape (batch_size, ...)
        :param got: values of the implementation, same shape
        """
        a, b = (np.reshape(values, (len(expected), -1)) for values in (expected, got))
        differs = a != b
        self.n_values += a.size
        self.n_rows += len(a)
        self.n_equal_rows += len(a)
        if differs.any():
            self.n_differing += int(differs.sum())
            self.n_equal_rows -= int(differs.any(1).sum())
            distance = np.abs(a.astype(np.float64) - b).max()  # NaN if any is
            self.largest = max(self.largest, np.inf if np.isnan(distance) else float(distance))

    @property
    def agreement(self) -> float:
        """Share of the observations that give the same in this step."""
        return self.n_equal_rows / max(self.n_rows, 1)


@dataclass(repr=False)
class Verification:
    """
    The differences that were counted.

    :param n_observations: number of observations that went through every implementation
    :param n_masked: how many of them came with action masks; ``None``: the student was taught without
    :param rows: differences by implementation and step
    :param files: file of each implementation
    :param jitter: mean change of a Box action from step to step, by player
    :param has_other_copy: ``policy.py`` is another file than this version's interpreter
    :param left_out: files that could not be compared here, and why
    :param folder: folder of the files, for the command to copy
    :param foreign: files that are not what this version exports from the integer model, and were not run
    """

    n_observations: int = 0
    n_masked: int | None = None
    rows: dict[tuple[str, str], Difference] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    jitter: dict[str, float] = field(default_factory=dict)
    has_other_copy: bool = False
    left_out: list[str] = field(default_factory=list)
    folder: str = "DIR"
    foreign: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        result = "all equal where equality is promised" if self.holds else f"different: {', '.join(self.stale_files)}"
        return f"<Verification: {self.n_observations} observations, {len(self.files)} forms, {result}>"

    @property
    def differences(self) -> list[Difference]:
        """All differences, in the order of the table."""
        return list(self.rows.values())

    def add(
        self,
        model: IntegerModel,
        implementations: Iterable[Implementation],
        observations: Any,
        masks: np.ndarray | None = None,
        state: np.ndarray | None = None,
    ) -> Steps:
        """
        Send a batch through every implementation.

        :param model: the integer model, which the others are compared with
        :param implementations: the others
        :param observations: batch of raw observations
        :param masks: the actions that the environment allowed then
        :param state: the observations before these, see :meth:`~sb3_qpd.IntegerModel.trace`
        :return: every step of the model
        """
        check_batch(model, observations)
        expected = integer_steps(model, observations, masks, state)
        self.n_observations += batch_size(observations)
        if model.uses_masks:
            self.n_masked = (self.n_masked or 0) + (0 if masks is None else len(masks))
        for implementation in implementations:
            self.files[implementation.name] = implementation.file
            got = implementation.steps(observations, masks, state)
            for step in (name for name in expected if name in got):
                row = self.rows.setdefault(
                    (implementation.name, step), Difference(implementation.name, step, implementation.is_exact)
                )
                row.add(expected[step], got[step])
        return expected

    @property
    def holds(self) -> bool:
        """Something was compared, and nothing differs where equality is promised."""
        return self.n_observations > 0 and not self.stale_files

    @property
    def stale_files(self) -> list[str]:
        """
        The files that are another student's. ``student.npz`` is the one where every other file differs from it.
        """
        promised = {self.files.get(row.implementation, row.implementation) for row in self.differences if row.is_exact}
        differing = [
            self.files.get(row.implementation, row.implementation)
            for row in self.differences
            if row.is_exact and row.n_differing
        ]
        stale, promised = list(dict.fromkeys([*differing, *self.foreign])), {*promised, *self.foreign}
        if len(promised) > 1 and set(stale) == promised:
            stale = [INTEGER_MODEL]
        return [*stale, *([NUMPY_FILE] if self.has_other_copy else [])]

    def table(self) -> str:
        """The differences as text."""
        lines = [f"{self.n_observations} observations, compared with the integer model"]
        lines.append(f"{'':24} {'step':13} {'values':>12} {'differing':>10} {'largest':>10}  same action")
        for row in self.differences:
            agreement = f"  {row.agreement:.4%}" if row.step in ("action", MASKED_ACTION) else ""
            note = "" if row.is_exact else "  (not promised)"
            counts = f"{row.n_values:12} {row.n_differing:10} {row.largest:10.3g}"
            lines.append(f"{row.implementation:24} {row.step:13} {counts}{agreement}{note}")
        lines += self._remarks()
        if self.n_masked is not None:
            lines.append(f"{self.n_masked} of the observations came with action masks")
            without = dict.fromkeys(name for name, _ in self.rows if (name, MASKED_ACTION) not in self.rows)
            lines += [f"{name}: masks were not compared" for name in without]
        lines += [f"mean |a_t - a_(t-1)| of {player}: {value:.4g}" for player, value in self.jitter.items()]
        return "\n".join(lines)

    def _remarks(self) -> list[str]:
        remarks = [f"not compared: {reason}" for reason in [*self.left_out, *map(not_run, self.foreign)]]
        if self.has_other_copy:
            remarks.append("policy.py is not what this version writes: export it again")
        if self.holds:
            return [*remarks, "all equal where equality is promised"]
        if not self.stale_files:
            return [*remarks, "nothing was compared"]
        remarks.append(f"DIFFERENT where equality is promised: {', '.join(self.stale_files)}")
        targets = [target for target, file in TARGET_FILES.items() if file in self.stale_files]
        source = STUDENT_ZIP if INTEGER_MODEL in self.stale_files else INTEGER_MODEL
        if STUDENT_ZIP in self.stale_files:
            remarks.append(f"{STUDENT_ZIP} and {INTEGER_MODEL} are two students: export the one that you mean again")
        elif source == STUDENT_ZIP:
            remarks.append(f"{INTEGER_MODEL} is another student than all other files: export {STUDENT_ZIP} again")
        else:
            prefixed = [file.removesuffix(".c") for file in self.stale_files if file.endswith(".c") and file != C_FILE]
            options = " ".join([f"--target {target}" for target in targets] + [f"--target c --prefix {p}_" for p in prefixed])
            folder = shlex.quote(self.folder)
            remarks.append(f"Export the stale files again: sb3-qpd export {folder}/{source} {options} --out {folder}")
        return remarks


def verify(
    folder: str | Path,
    source: EnvSource | RecordedObservations | np.ndarray | Mapping[str, np.ndarray],
    n_observations: int = 1_000,
    *,
    policy: QuantActorCriticPolicy | None = None,
    teacher: Player | None = None,
    seed: int = VALIDATION_SEED,
    trust_code: bool = False,
    progress_bar: bool = False,
) -> Verification:
    """
    Compare every form of a student with its integer model.

    The folder may come from elsewhere. An export runs only where it is byte for byte what this version writes from
    ``student.npz``; any other one counts as different. A form that cannot be run here (no C compiler, no ONNX Runtime) is left
    out, and the result says so.

    :param folder: folder with ``student.npz`` and what was exported from it, or a file in it
    :param source: environment that the student plays in, its id, or a class or function that makes one; or raw observations,
        shape (n, *observation_shape), a dict of them for Dict observations; or a recording, of which held-out episodes are
        taken where there are any
    :param n_observations: number of observations
    :param policy: the student as an SB3 policy, to compare it too
    :param teacher: its jitter is shown beside the student's
    :param seed: seed of the environment
    :param trust_code: run exports that this version would not write so too, in processes with limits of time and memory. Their
        C can run any code
    :param progress_bar: show one on stderr
    :raises ValueError: the folder holds no student, or nothing to compare it with
    """
    is_env = is_env_source(source)
    if not is_env:
        known = (np.ndarray, Mapping, RecordedObservations)
        check_type("source", source, known, "an environment, its id, a recording, or an array of observations (or a dict)")
    check_count("n_observations", n_observations)
    check_seed("seed", seed)
    check_flags(progress_bar=progress_bar, trust_code=trust_code)
    if policy is not None:
        check_type("policy", policy, QuantActorCriticPolicy, "the policy of a student, such as distiller.policy")
    if teacher is not None:
        check_player("teacher", teacher)
    folder = folder_of(folder)
    model, result, jitter = load_model(folder), Verification(folder=str(folder)), Jitter()
    with tempfile.TemporaryDirectory() as scratch:
        given = Folder(folder, model, Path(scratch), trust_code, result.left_out, result.foreign)
        implementations = list(find_implementations(given, policy))
    result.has_other_copy = _is_another_interpreter(folder / NUMPY_FILE)
    if not implementations and not result.foreign:
        found = "; ".join(result.left_out) or "expected student.zip, or what was exported"
        raise ValueError(f"{folder} holds nothing to compare with {INTEGER_MODEL}: {found}")
    if teacher is not None:
        check_teacher_of(model, teacher)
    if isinstance(source, RecordedObservations):
        seen: Any = recorded_steps(model, source, n_observations)
    else:
        seen = replay_masked(model, source, n_observations, seed, jitter) if is_env else _batch(model, source, n_observations)  # type: ignore[arg-type]
    total = n_observations if is_env else min(n_observations, _size(source))
    with tqdm(total=total, desc="verify", unit="observation", disable=not progress_bar) as bar:
        for observations, masks, state in pieces(seen):
            result.add(model, implementations, observations, masks, state)
            bar.update(batch_size(observations))
    if model.is_box and is_env:
        result.jitter["the student"] = jitter.mean
        if teacher is not None:
            result.jitter["the teacher"] = _jitter_of(teacher, source, n_observations, seed)  # type: ignore[arg-type]
    return result


def _is_another_interpreter(path: Path) -> bool:
    """``policy.py`` is compared as a file, and never run."""
    try:
        return os.path.lexists(path) and read_own_file(path) != interpreter()
    except StudentError:  # a link
        return True


def _batch(model: IntegerModel, source: Any, n_observations: int) -> Iterator[tuple[Any, None, np.ndarray | None]]:
    """The given observations. For a student with a memory they are those of one episode."""
    observations = take_rows(source if isinstance(source, np.ndarray) else dict(source), slice(n_observations))
    if model.history == 1:
        yield observations, None, None
        return
    check_batch(model, observations)
    state: Any = None
    for row in range(batch_size(observations)):
        one = take_rows(observations, slice(row, row + 1))
        yield one, None, model.remember(one, state)[0]
        _, state = model.predict(one, state, deterministic=True)


def _size(source: Any) -> int:
    return len(source) if isinstance(source, RecordedObservations) else batch_size(source)


def _jitter_of(player: Player, env: EnvSource, n_observations: int, seed: int) -> float:
    jitter = Jitter()
    for _ in replay(player, env, n_observations, seed, jitter):
        pass
    return jitter.mean


def load_model(folder: str | Path) -> IntegerModel:
    """
    The integer model of a folder, which the other files are compared with.

    :param folder: folder of a student, or a file in it
    :raises ValueError: there is none
    """
    folder = folder_of(folder)
    path = folder / INTEGER_MODEL
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {INTEGER_MODEL}, which the other files are compared with: sb3-qpd export writes one"
        )
    return IntegerModel.load(path)
