"""How a distiller's precision falls: calibration, the transition, the float student, post-training quantization."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import numpy as np
import torch as th

from sb3_qpd.distillation.collection import CollectingAlgorithm
from sb3_qpd.distillation.inputs import clip_outliers, describe_findings, find_collapsed, find_unresolved, saturate_outliers
from sb3_qpd.distillation.schedules import stage_progress
from sb3_qpd.students.architectures import FLOAT_BITS
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
    input_findings: list[dict[str, Any]]  # features with a robust range or too few levels, see inputs.py
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
        self.policy.calibrate(clip_outliers(self._buffer.sample(CALIBRATION_SIZE).observations, self.input_findings))
        self._last_calibration = self._progress

    def _resolve_inputs(self) -> None:
        """Let rare outliers saturate, and warn of features that the student cannot resolve."""
        assert self._buffer is not None and self.teacher is not None
        samples = self._buffer.newest(INPUT_SIZE)
        self.input_findings = saturate_outliers(self.policy, self.teacher, samples)
        if self.input_findings:
            self._calibrate()
        unresolved = find_unresolved(self.policy, samples) + find_collapsed(self._last_obs)
        self.input_findings += unresolved
        if unresolved:
            warnings.warn(describe_findings(unresolved))

    def _advance_transition(self) -> None:
        """Move precision along. Steps are calibrated when the float stage ends, and refreshed while it lasts."""
        progress = stage_progress(self._progress, self.transition_start, self.transition_end)
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
        observations = self._buffer.sample(CALIBRATION_SIZE, own_rng).observations
        student.policy.calibrate(clip_outliers(observations, self.input_findings))
        return student
