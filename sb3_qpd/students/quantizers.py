"""Quantizers: learned step sizes (LSQ), their straight-through gradients and their calibration."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

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
_VALUES_AT_ONCE = 16_384  # larger arrays leave the cache, smaller ones take longer to start than to compute


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """
    Smallest and largest integer of a number of bits.

    :param bits: number of bits
    :param signed: two's complement, or unsigned
    """
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


@functools.cache
def _outside(low: int, high: int, rectify: bool) -> tuple[float, float]:
    """
    The ends of the open interval of x / s that has a gradient.

    They are the float32 values just below ``low`` and just above ``high``, so that the interval includes both, and 0 in place
    of the first where a ReLU comes before.
    """
    below, above = np.nextafter(np.array([low, high], np.float32), np.array([-np.inf, np.inf], np.float32))
    return 0.0 if rectify else float(below), float(above)


class Part(NamedTuple):
    """
    One bit width of a mixture.

    :param low: smallest integer
    :param high: largest integer
    :param outside: x / s at and below the first, and at and above the second, have no gradient
    :param finer: its step, relative to the step at the target bits
    :param share: its share of the mixture
    """

    low: int
    high: int
    outside: tuple[float, float]
    finer: float = 1.0
    share: float = 1.0


class Mixture(NamedTuple):
    """
    How the training forward rounds a tensor: a float share, and parts of several bit widths.

    :param parts: bit widths with their shares
    :param float_share: share that is not rounded
    :param widths: bits of each part
    """

    parts: tuple[Part, ...]
    float_share: float = 0.0
    widths: tuple[int, ...] = ()


@functools.lru_cache(maxsize=64)  # in a step of a transition many quantizers have the same mixture
def _make_mixture(bits: int, signed: bool, precision: tuple[tuple[int, float], ...]) -> Mixture:
    """The mixture of a quantizer of ``bits`` target bits, at a precision: pairs of bits and their shares."""
    steps = NORMAL_STEP if signed else HALF_NORMAL_STEP
    parts, widths, float_share = [], [], 0.0
    for width, share in precision:
        if width == FLOAT_BITS:
            float_share = share
        elif share:
            low, high = integer_range(width, signed)
            finer = 1.0 if width == bits else steps[width] / steps[bits]
            parts.append(Part(low, high, _outside(low, high, not signed), finer, share))
            widths.append(width)
    return Mixture(tuple(parts), float_share, tuple(widths))


def mix(x: th.Tensor, scale: th.Tensor | None, mixture: Mixture, rectify: bool) -> tuple[th.Tensor, list[th.Tensor]]:
    """
    The sum of ``share clamp(round(x / s), low, high) s`` over the parts of a mixture, and the share of x.

    Few passes over memory take most of the time of images, and few operations that of vectors.

    :param x: any shape
    :param scale: step at the target bits, broadcastable to ``x``; ``None`` where nothing is rounded
    :param mixture: the mixture
    :param rectify: whether to take ``relu(x)`` instead of ``x``
    :return: same shape as ``x``, and what :func:`mix_gradients` needs
    """
    total: th.Tensor | None = None
    saved = [x] if mixture.float_share and rectify else []
    if mixture.float_share:
        total = x.relu() if rectify else x
        total = total if mixture.float_share == 1.0 else total * mixture.float_share
    for part in mixture.parts:
        assert scale is not None
        step = scale if part.finer == 1.0 else scale * part.finer
        ratio = x / step
        q = ratio.round().clamp_(part.low, part.high)
        y = q * step if part.share == 1.0 else (q * step).mul_(part.share)
        total = y if total is None else total.add_(y)
        saved += [ratio, q]
    assert total is not None  # shares add up to one
    return total, saved


def mix_gradients(
    grad: th.Tensor, saved: list[th.Tensor], scale_shape: th.Size, mixture: Mixture, rectify: bool
) -> tuple[th.Tensor, th.Tensor | None]:
    """
    Straight-through gradient of the tensor, and LSQ's of the step; ``None`` where nothing is rounded.

    :param grad: gradient of the result
    :param saved: from :func:`mix`
    :param scale_shape: shape of the step
    :param mixture: as for :func:`mix`
    :param rectify: as for :func:`mix`
    """
    of_x: th.Tensor | None = None
    of_scale: th.Tensor | None = None
    saved = list(saved)
    for part in reversed(mixture.parts):  # the order in which autograd would add: floats depend on it
        q, ratio = saved.pop(), saved.pop()
        outer = grad if part.share == 1.0 else grad * part.share
        inside = th.ops.aten.hardtanh_backward(outer, ratio, *part.outside)  # zero outside, in one pass
        # d(q s)/ds = q - x/s inside, the bound outside
        slope = (outer * q).sub_(inside * ratio).sum_to_size(scale_shape)
        slope *= lsq_damping(part.high, q.numel(), slope.numel())
        if part.finer != 1.0:
            slope *= part.finer
        of_x = inside if of_x is None else of_x.add_(inside)
        of_scale = slope if of_scale is None else of_scale.add_(slope)
    if mixture.float_share:
        in_float = grad if mixture.float_share == 1.0 else grad * mixture.float_share
        in_float = th.ops.aten.threshold_backward(in_float, saved.pop(), 0) if rectify else in_float
        of_x = in_float if of_x is None else of_x.add_(in_float)
    assert of_x is not None
    return of_x, of_scale


class _Mix(th.autograd.Function):
    """:func:`mix` and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor, scale: th.Tensor, mixture: Mixture, rectify: bool) -> th.Tensor:
        y, saved = mix(x, scale, mixture, rectify)
        ctx.arguments = scale.shape, mixture, rectify
        ctx.save_for_backward(*saved)
        return y

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, th.Tensor | None, None, None]:
        return *mix_gradients(grad, ctx.saved_tensors, *ctx.arguments), None, None


def lsq_damping(high: int, n_values: int, n_steps: int) -> float:
    """
    The factor of a step's gradient in LSQ, which makes it as large as that of a weight.

    :param high: largest integer
    :param n_values: number of values that are rounded
    :param n_steps: number of their steps
    """
    return (high * max(1, n_values // n_steps)) ** -0.5


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
    return _Mix.apply(x, scale, Mixture((Part(low, high, _outside(low, high, rectify)),)), rectify)


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
    for some in factors.split(max(1, _VALUES_AT_ONCE // x.numel())):
        scales = some[:, None] * largest  # (n_factors, n_rows)
        steps = scales[..., None]
        errors = (x / steps).round_().clamp_(low, high).mul_(steps).sub_(x).square_().sum(-1)
        first = errors.argmin(0, keepdim=True)  # the first of equal ones
        scale, error = scales.gather(0, first)[0], errors.gather(0, first)[0]
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
        self.precision = {bits: 1.0}
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
        return to_scale(self.log_scale) if self._shared_scale is None else self._shared_scale

    @property
    def trains_in_float(self) -> bool:
        """Whether the transition has not begun, so that the training forward does not round."""
        return self.mixture.float_share == 1.0

    @property
    def precision(self) -> Mapping[int, float]:
        """The mixture of bit widths that the training forward has: bits and their shares, which add up to one."""
        return self._precision

    @precision.setter
    def precision(self, precision: Mapping[int, float]) -> None:
        self._precision = precision
        self.mixture = _make_mixture(self.bits, self.signed, tuple(precision.items()))

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
        if self.trains_in_float:
            return x if self.signed else x.relu()
        return _Mix.apply(x, scale, self.mixture, not self.signed)

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
        if not self.training:
            scale = self.scale()
            return self.quantize(x, scale) * scale
        return self.mix(x, self.scale()) if not self.trains_in_float else x if self.signed else x.relu()


def to_scale(log_scale: th.Tensor) -> th.Tensor:
    """
    Steps in float32 from their logarithms.

    :param log_scale: any shape
    """
    return log_scale.double().exp().clamp_min(MIN_SCALE).float()


@contextmanager
def shared_scales(quantizers: Iterable[Quantizer]) -> Iterator[None]:
    """
    A context in which the steps of all quantizers come from one computation, with the same bits as each alone.

    The many operations of a small student's update take more time than its few numbers.

    :param quantizers: quantizers of one policy. Those that are float or not calibrated are left out
    """
    chosen = [one for one in quantizers if not one.is_float and one.ready]
    if not chosen:
        yield
        return
    scales = to_scale(th.cat([one.log_scale for one in chosen])).split([len(one.log_scale) for one in chosen])
    for quantizer, scale in zip(chosen, scales, strict=True):
        quantizer._shared_scale = scale
    try:
        yield
    finally:
        for quantizer in chosen:
            quantizer._shared_scale = None
