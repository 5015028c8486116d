"""Quantizers: learned step sizes (LSQ), their straight-through gradients and their calibration."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_qpd.students.architectures import FLOAT_BITS

# Steps of b-bit uniform quantizers with least mean squared error, in standard deviations. The variable is normal (signed
# integers -2^(b-1) .. 2^(b-1) - 1) or half-normal (unsigned integers 0 .. 2^b - 1). Max, Quantizing for minimum distortion,
# 1960. Only ratios are used: how much finer a grid is when it has more bits.
NORMAL_STEP = {2: 1.0484, 3: 0.6018, 4: 0.3386, 5: 0.1888, 6: 0.1042, 7: 0.0569, 8: 0.0308}
HALF_NORMAL_STEP = {2: 0.6508, 3: 0.3534, 4: 0.1932, 5: 0.1055, 6: 0.0573, 7: 0.0309, 8: 0.0165}
MIN_SCALE = 1e-8
_CANDIDATES = 71  # 0.025 decades apart: the min-max step is one of them
_MAX_SAMPLES = 16_384


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """
    Smallest and largest integer of a number of bits.

    :param bits: number of bits
    :param signed: two's complement, or unsigned
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@functools.cache
def _just_outside(low: int, high: int) -> tuple[float, float]:
    """The float32 values just below ``low`` and just above ``high``, so that an open interval includes both."""
    below, above = np.nextafter(np.array([low, high], np.float32), np.array([-np.inf, np.inf], np.float32))
    return float(below), float(above)


class _FakeQuantize(th.autograd.Function):
    """
    ``clamp(round(x / s), low, high) * s`` with LSQ's gradients, in few passes over memory, which take most of the time.

    With ``rectify`` the argument is ``relu(x)``, and the gradient ends at 0.
    """

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, scale: th.Tensor, low: int, high: int, rectify: bool) -> th.Tensor:
        ratio = x / scale
        q = ratio.round().clamp_(low, high)
        ctx.save_for_backward(ratio, q)
        below, above = _just_outside(low, high)
        ctx.outside = (0.0 if rectify else below, above)
        ctx.high, ctx.scale_shape = high, scale.shape
        return q * scale

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, th.Tensor, None, None, None]:
        ratio, q = ctx.saved_tensors
        grad_x = th.ops.aten.hardtanh_backward(grad, ratio, *ctx.outside)  # zero outside, in one pass
        # d(q s)/ds = q - x/s inside, the bound outside; scaled as in LSQ to the size of a weight's gradient
        grad_scale = (grad * q).sub_(grad_x * ratio).sum_to_size(ctx.scale_shape)
        damping = (ctx.high * max(1, q.numel() // ctx.scale_shape.numel())) ** -0.5
        return grad_x, grad_scale * damping, None, None, None


def fake_quantize(x: th.Tensor, scale: th.Tensor, low: int, high: int, rectify: bool = False) -> th.Tensor:
    """
    Round a tensor to a grid, in floating point, with a straight-through gradient for the tensor and LSQ's for the step.

        y = s clamp(round(x / s), low, high)

    Esser et al., Learned Step Size Quantization, 2020: https://arxiv.org/abs/1902.08153

    :param x: any shape
    :param scale: step s > 0, broadcastable to ``x``
    :param low: smallest integer
    :param high: largest integer
    :param rectify: whether to round ``relu(x)`` instead of ``x``; ``low`` is then 0
    :return: same shape as ``x``, rounded half to even
    """
    return _FakeQuantize.apply(x, scale, low, high, rectify)


def mse_scale(x: th.Tensor, low: int, high: int) -> th.Tensor:
    """
    The step of least squared error for each row, searched on a geometric grid around and below the min-max step.

    :param x: shape (n_rows, n_values)
    :param low: smallest integer
    :param high: largest integer
    :return: shape (n_rows,), never zero
    """
    x = x.detach().double()
    largest = th.maximum(x.amax(1) / high, x.amin(1) / low) if low < 0 else x.amax(1) / high
    largest = th.where(largest > MIN_SCALE, largest, th.full_like(largest, 1 / high))  # all zero: a range of one
    # from the widest down: among equal errors the widest step is kept
    factors = th.logspace(0.05, -1.7, _CANDIDATES, dtype=x.dtype, device=x.device)
    best, best_error = largest.clone(), th.full_like(largest, float("inf"))
    for factor in factors:
        scale = largest * factor
        q = (x / scale[:, None]).round().clamp(low, high)
        error = (q * scale[:, None] - x).square().sum(1)
        better = error < best_error
        best, best_error = th.where(better, scale, best), th.where(better, error, best_error)
    return best.clamp_min(MIN_SCALE).float()


class Quantizer(nn.Module):
    """
    A uniform quantizer with a learned step, for a whole tensor or for each output channel.

    The training forward is in floating point at ``precision``, a mixture of bit widths that a transition moves from float to
    the target. :meth:`quantize` gives the integers at the target bits, for evaluation mode and export.
    The step is calibrated on the first tensor. Its logarithm is the parameter, so that an optimizer changes it relatively.

    :param bits: target bits; 32 does not quantize
    :param signed: two's complement integers, or unsigned integers after a ReLU, which is then part of the quantizer
    :param n_channels: number of steps, one for each index of dimension 0; 0 for one step for the whole tensor
    """

    ready: th.Tensor

    def __init__(self, bits: int, signed: bool, n_channels: int = 0) -> None:
        super().__init__()
        self.bits, self.signed, self.n_channels = bits, signed, n_channels
        self.low, self.high = integer_range(min(bits, 8), signed)
        self.log_scale = nn.Parameter(th.zeros(max(1, n_channels)))
        self.register_buffer("ready", th.tensor(False))
        self.precision: Mapping[int, float] = {bits: 1.0}
        self._shared_scale: th.Tensor | None = None  # the step, while shared_scales() is active

    def _apply(self, fn: Any, recurse: bool = True) -> Quantizer:
        # `ready` stays on the CPU: every forward reads it, and reading from a GPU would synchronize
        ready = self.ready
        super()._apply(fn, recurse)
        self.ready = ready
        return self

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}, n_channels={self.n_channels}"

    @property
    def is_float(self) -> bool:
        return self.bits == FLOAT_BITS

    def scale(self) -> th.Tensor:
        """The step at the target bits in float32, shape (n_channels,) or (1,); the same bits on every processor."""
        return _to_scale(self.log_scale) if self._shared_scale is None else self._shared_scale

    @property
    def trains_in_float(self) -> bool:
        """Whether the transition has not begun, so that the training forward does not round."""
        return self.precision.get(FLOAT_BITS) == 1.0

    def _rows(self, x: th.Tensor) -> th.Tensor:
        if self.n_channels:
            return x.reshape(self.n_channels, -1)
        values = x[x != 0]  # a zero is exact on every grid
        if len(values) > _MAX_SAMPLES:
            # random indices: a regular stride could coincide with the layout and see one pixel of every map
            drawn = th.randint(len(values), (_MAX_SAMPLES,), generator=th.Generator().manual_seed(0))
            values = values[drawn.to(x.device)]
        return values[None] if len(values) else x.reshape(1, -1)[:, :1]

    @th.no_grad()
    def calibrate(self, x: th.Tensor) -> None:
        """
        Set the step to the one of least squared error.

        :param x: values to quantize, any shape; channels in dimension 0
        """
        self.log_scale.copy_(mse_scale(self._rows(x), self.low, self.high).double().log())
        self.ready.fill_(True)

    def calibrate_once(self, x: th.Tensor) -> None:
        """
        Calibrate, unless it has been done before.

        :param x: as for :meth:`calibrate`
        """
        if self._shared_scale is None and not self.is_float and not self.ready:
            self.calibrate(x)

    def mix(self, x: th.Tensor, scale: th.Tensor) -> th.Tensor:
        """
        The training forward: a mixture of ``x`` rounded at several bit widths.

        :param x: any shape
        :param scale: step at the target bits, broadcastable to ``x``
        :return: same shape as ``x``
        """
        steps = NORMAL_STEP if self.signed else HALF_NORMAL_STEP
        total: th.Tensor | None = None
        for bits, share in self.precision.items():
            if share == 0.0:
                continue
            if bits == FLOAT_BITS:
                part = x if self.signed else x.relu()
            else:
                low, high = integer_range(bits, self.signed)
                finer = scale if bits == self.bits else scale * (steps[bits] / steps[self.bits])
                part = fake_quantize(x, finer, low, high, rectify=not self.signed)
            part = part if share == 1.0 else part * share
            total = part if total is None else total + part
        assert total is not None  # shares add up to one
        return total

    def quantize(self, x: th.Tensor, scale: th.Tensor) -> th.Tensor:
        """
        Integers at the target bits, in a float tensor.

        :param x: any shape
        :param scale: step, broadcastable to ``x``
        :return: same shape as ``x``
        """
        return (x / scale).round().clamp(self.low, self.high)

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.is_float:
            return x if self.signed else x.relu()
        if self._shared_scale is None and not self.ready:
            self.calibrate(x if self.signed else x.relu())
        scale = self.scale()
        return self.mix(x, scale) if self.training else self.quantize(x, scale) * scale


def _to_scale(log_scale: th.Tensor) -> th.Tensor:
    return log_scale.double().exp().clamp_min(MIN_SCALE).float()


@contextmanager
def shared_scales(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """
    A context in which the steps of all quantizers come from one computation, with the same bits as each alone.

    The many operations of a small student's update take more time than its few numbers.

    :param quantizers: quantizers of one policy. Those that are float or not calibrated are left out
    """
    chosen = [one for one in quantizers if not one.is_float and not (one.training and one.trains_in_float) and one.ready]
    if not chosen:
        yield
        return
    scales = _to_scale(th.cat([one.log_scale for one in chosen])).split([len(one.log_scale) for one in chosen])
    for quantizer, scale in zip(chosen, scales, strict=True):
        quantizer._shared_scale = scale
    try:
        yield
    finally:
        for quantizer in chosen:
            quantizer._shared_scale = None
