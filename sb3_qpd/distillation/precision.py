"""How a distiller's precision falls: calibration, the transition, the float student, post-training quantization."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import torch as th

from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.collection import CollectingAlgorithm
from sb3_qpd.distillation.hyperparameters import check_memory
from sb3_qpd.distillation.inputs import (
    clip_outliers,
    clip_windows,
    describe_findings,
    find_collapsed,
    find_unresolved,
    saturate_outliers,
)
from sb3_qpd.distillation.origin import exact_keys, take_off_offsets
from sb3_qpd.distillation.schedules import stage_progress, transition_end
from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.budgets import budget_nbytes, is_budget
from sb3_qpd.students.transitions import get_transition

CALIBRATION_SIZE = 1024  # observations from which steps are calibrated
INPUT_SIZE = 4096  # observations on which the input grid is judged
FLOAT_CALIBRATIONS = 20  # how often a float stage refreshes the steps that evaluation mode uses, per learn()

SelfFallingPrecision = TypeVar("SelfFallingPrecision", bound="FallingPrecision")


class FallingPrecision(CollectingAlgorithm):
    """
    The part of an algorithm that moves its student from float to a few bits. Its subclass learns.

    The subclass's constructor sets the attributes that are named here.
    """

    transition: str
    transition_start: float
    transition_end: float
    transition_steps: int
    input_findings: list[dict[str, Any]]  # features with an origin, a robust range or too few levels, see inputs.py
    _transition_progress: float
    _last_calibration: float
    _float_state: dict[str, th.Tensor] | None

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_float_state"]

    @property
    def _progress(self) -> float:
        return 1.0 - self._current_progress_remaining

    def _calibrate(self) -> None:
        assert self._buffer is not None
        self._tell("calibrating")
        self.policy.calibrate(self._without_outliers(self._buffer.sample(CALIBRATION_SIZE)))
        self._last_calibration = self._progress

    def _without_outliers(self, samples: DistillationSamples) -> Any:
        if self.policy.arch.history > 1:
            return clip_windows(samples.observations, self.input_findings, self.policy.features_extractor.parts)  # type: ignore[arg-type]
        return clip_outliers(samples.observations, self.input_findings)

    def _take_off_offsets(self) -> None:
        """Freeze the origin of the student's input. From then on the ring keeps in float64 only what has one."""
        assert self._buffer is not None
        self.input_findings = []
        if not exact_keys(self.policy, is_fitted=False):
            return
        self.input_findings = take_off_offsets(self.policy, self._buffer.newest(INPUT_SIZE))
        self._buffer.to_float32(but=exact_keys(self.policy, is_fitted=True))
        if self.input_findings:
            self._check_budget()
            check_memory(int(self.buffer_size), self._buffer.nbytes)

    def _check_budget(self) -> None:
        """Refuse a student whose input origin takes it beyond its budget: whether it has one shows when learning starts."""
        if not is_budget(self.student_arch) or self.policy.features_extractor.trunks[0].origin is None:
            return
        model, budget = self.policy.to_integer(), budget_nbytes(str(self.student_arch), self._teacher_nbytes)
        if model.nbytes > budget:
            origin, bits = model.input_origin.nbytes, (self.weight_bits, self.activation_bits)  # type: ignore[union-attr]
            fitting = self.find_arch(f"{budget - origin}B", *bits, self.history, self.history_actions)
            raise ValueError(
                f"The observations have offsets that float32 cannot carry. Their input origin of {origin:,} bytes makes the "
                f"student {model.nbytes:,} bytes, and student_arch={self.student_arch!r} is {budget:,}. Give "
                f"student_arch={fitting.to_json()}, or subtract the offsets in the environment"
            )

    def _resolve_inputs(self) -> None:
        """Let rare outliers saturate, and warn of features that the student cannot resolve."""
        assert self._buffer is not None and self.teacher is not None
        samples = self._buffer.newest(INPUT_SIZE)
        saturating = saturate_outliers(self.policy, self.teacher, samples)
        self.input_findings += saturating
        if saturating:
            self._calibrate()
        taken_off = {one["feature"] for one in self.input_findings if one["kind"] == "origin"}
        collapsed = [one for one in find_collapsed(self._last_obs) if one["feature"] not in taken_off]
        unresolved = find_unresolved(self.policy, samples) + collapsed
        self.input_findings += unresolved
        if unresolved:
            warnings.warn(describe_findings(unresolved))

    def _advance_transition(self) -> None:
        """Move precision along. Steps are calibrated when the float stage ends, and refreshed while it lasts."""
        end = transition_end(self.transition_start, self.transition_end, self.transition_steps, self._total_timesteps)
        progress = stage_progress(self._progress, self.transition_start, end)
        if self.transition == "none":
            progress = 0.0  # float to the end; another transition may start from there
        begins = self._transition_progress == 0 < progress
        in_float = self._transition_progress == 0 and self.transition != "scratch"
        if begins and self.transition != "scratch":
            self._float_state = {name: value.clone() for name, value in self.policy.state_dict().items()}
        if in_float and (begins or self._progress - self._last_calibration > 1 / FLOAT_CALIBRATIONS):
            self._calibrate()
        if progress > self._transition_progress:
            self._transition_progress = progress
            self._set_precision()

    def _set_precision(self) -> None:
        self.policy.set_precision(get_transition(self.transition), self._transition_progress)

    def float_student(self: SelfFallingPrecision) -> SelfFallingPrecision | None:
        """
        The student as it was when precision began to fall, in float.

        :return: the float student; ``None`` where precision has not begun to fall, or was low from the start
        """
        state = self.policy.state_dict() if self.transition == "none" else self._float_state
        return None if state is None else self._with_bits(FLOAT_BITS, FLOAT_BITS, state)

    def post_training_quantize(self: SelfFallingPrecision, weight_bits: int, activation_bits: int) -> SelfFallingPrecision:
        """
        The current student at other bits, with newly calibrated steps and no further training: the usual baseline.

        :param weight_bits: bits of the inner weights
        :param activation_bits: bits of the hidden activations
        :return: another distiller with this student
        :raises ValueError: ``learn()`` was not called yet
        """
        if self._buffer is None or not len(self._buffer):
            raise ValueError("Post-training quantization needs observations to calibrate on: call learn() first")
        student = self._with_bits(weight_bits, activation_bits, self.policy.state_dict())
        own_rng = np.random.default_rng(self.seed)  # learning must go on as if this had not been called
        student.policy.calibrate(self._without_outliers(self._buffer.sample(CALIBRATION_SIZE, own_rng)))
        return student
