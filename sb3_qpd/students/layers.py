"""
Quantized layers: the training forward, the exact evaluation forward and the integer form side by side.

Layers exchange real numbers that lie on a grid (integer times step); only pixels are passed as integers. In training mode a
layer computes in floating point at the precision that the transition has reached. In evaluation mode it computes with
integers in float tensors, by the rule of :class:`sb3_qpd.integer.IntegerLayer`, with the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_qpd.integer import IntegerLayer
from sb3_qpd.students.chain import Chain
from sb3_qpd.students.quantizers import Mixture, Quantizer, mix, mix_gradients
from sb3_qpd.students.rounding import smallest_steps

FLOAT32_EXACT = 2.0**24
# finite but absurd observations, such as 3e38, saturate in training as they do on the grid
MAX_STEPS = 2.0**15
MAX_NORMALIZED = 1e4
MAX_FLOAT32 = th.finfo(th.float32).max


def requantization_multiplier(unit: th.Tensor, output_scale: th.Tensor) -> th.Tensor:
    """
    The multiplier M of :class:`~sb3_qpd.integer.IntegerLayer`, from the unit of the accumulators to the output grid.

    With M = p/q and an even q, every q-th accumulator is a tie. Float32 rounds a tie to even, fixed point rounds it upwards.
    The same happens where M is the float next to p/q. So M is made a few roundings larger near such fractions, and both modes
    agree. Only odd p up to 15 and q up to 1,024 are looked at: other ties are rare.

    :param unit: real value of an accumulator of 1, shape (n_out,) or (1,)
    :param output_scale: step of the output grid
    :return: float32, same shape as ``unit``
    """
    multiplier = unit / output_scale
    p = th.arange(1.0, 16.0, 2.0, device=unit.device)[:, None]
    q = (p / multiplier).round()
    is_near = ((q * multiplier / p - 1).abs() < 2.0**-21) & (q % 2 == 0) & (q <= 1024)
    return th.where(is_near.any(0), multiplier * (1 + 2.0**-20), multiplier)


class PixelGrid(nn.Module):
    """
    The input grid of uint8 images, with step 1/255.

    Pixels stay integers. The first layer scales its few weights instead of all pixels, and subtracts the centre in its bias.
    """

    is_float = False
    carried = 1 / 255  # real value of a pixel of 1
    centre: th.Tensor  # pixel value that is the network's zero

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("step", th.tensor([1 / 255]), persistent=False)
        self.register_buffer("centre", th.zeros(1))

    def scale(self) -> th.Tensor:
        return self.step  # type: ignore[return-value]

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Return the pixels unchanged.

        :param x: pixels of 0 to 255, float32
        """
        return x


class VectorGrid(nn.Module):
    """
    The input grid of float vectors: normalization and quantization to 8 bits as one multiplication and one addition.

        q = clamp(round(x m + a), -128, 127),   m = 1 / (std s),   a = -mean / (std s)

    :param n_features: length of the vector
    :param bits: 8, or 32 for a float student
    :param largest: standard deviations up to which the grid is calibrated; values beyond saturate
    """

    mean: th.Tensor
    std: th.Tensor
    origin: th.Tensor | None  # float64, shape (n_features,): was taken off before; mean is what is left. None: of no feature

    def __init__(self, n_features: int, bits: int = 8, largest: float = MAX_NORMALIZED) -> None:
        super().__init__()
        self.largest = largest
        self.quantizer = Quantizer(bits, signed=True)
        with th.no_grad():
            self.quantizer.log_scale.fill_(float(np.log(4 / 127)))
        self.register_buffer("mean", th.zeros(n_features, dtype=th.float64))
        self.register_buffer("std", th.ones(n_features, dtype=th.float64))
        self.register_buffer("origin", None)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if f"{prefix}mean" in state_dict:  # whether there is an origin is a property of the saved student
            self.origin = th.zeros_like(self.mean) if f"{prefix}origin" in state_dict else None
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def is_float(self) -> bool:
        return self.quantizer.is_float

    def scale(self) -> th.Tensor:
        return self.quantizer.scale()

    def affine(self, scale: th.Tensor | None = None) -> tuple[th.Tensor, th.Tensor]:
        """
        The multiplier m and the offset a in float32, each rounded once from float64, and finite: inf - inf would be NaN.

        :param scale: the step, where it is known already
        """
        step = self.std * (self.scale() if scale is None else scale).detach()  # float64
        return step.reciprocal().float(), (self.mean / step).neg_().clamp_(-MAX_FLOAT32, MAX_FLOAT32).float()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Normalize observations and round them to the grid.

        :param x: raw observations in float32, less the origin where there is one, shape (batch_size, n_features)
        :return: normalized observations on the grid, same shape
        """
        if self.is_float:
            return self._normalized(x)
        return Chain([], self)(x) if self.training else self.exact(x)

    def _normalized(self, x: th.Tensor) -> th.Tensor:
        return ((x - self.mean) / self.std).clamp(-MAX_NORMALIZED, MAX_NORMALIZED).float()

    @th.no_grad()
    def exact(self, x: th.Tensor) -> th.Tensor:
        """
        The forward of evaluation mode.

        :param x: as for :meth:`forward`
        """
        if not self.quantizer.ready:
            self.quantizer.calibrate(self._normalized(x).clamp(-self.largest, self.largest))
        scale = self.scale()
        _, rounded = self._rounded(x, scale)
        return rounded.clamp_(self.quantizer.low, self.quantizer.high) * scale

    def _rounded(self, x: th.Tensor, scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """``x m + a`` before and after it is rounded."""
        m, a = self.affine(scale)
        scaled = x * m  # two roundings: a fused multiplication and addition has other bits
        t = (scaled + a).clamp_(-MAX_STEPS, MAX_STEPS)  # a share of it is not rounded: a huge number would become NaN
        return t, t.round()

    def train_step(self, x: th.Tensor, scale: th.Tensor, float_share: float) -> tuple[th.Tensor, list[th.Tensor]]:
        """
        The training forward, with a share of the observation that is not rounded.

        :param x: as for :meth:`forward`
        :param scale: the step
        :param float_share: the share
        :return: the observation on its grid, and what :meth:`train_gradients` needs
        """
        t, rounded = self._rounded(x, scale)
        if float_share == 1.0:
            return t * scale, []
        q = rounded.clamp(self.quantizer.low, self.quantizer.high)
        y = q * scale
        if float_share:
            y = (t * scale).mul_(float_share).add_(y.mul_(1 - float_share))
        return y, [q, t.masked_fill_(q != rounded, 0.0)]

    def train_gradients(self, grad: th.Tensor, saved: list[th.Tensor], float_share: float) -> th.Tensor:
        """
        The gradient of the step: q - t inside the range and q outside (LSQ). The observation needs none.

        :param grad: gradient of the result
        :param saved: from :meth:`train_step`
        :param float_share: as for :meth:`train_step`
        """
        if not saved:
            return grad.new_zeros(1)
        q, inside = saved
        grad = grad * (1 - float_share) if float_share else grad
        return (grad * q).sum_to_size(1) - (grad * inside).sum_to_size(1)


class QuantLayer(nn.Module):
    """
    The base that :class:`QuantLinear` and :class:`QuantConv2d` share. It comes before ``nn.Linear`` or ``nn.Conv2d``.

    :param input_grid: grid of the input: of the previous layer's output, or of the observation
    :param output_grid: grid of the output after the ReLU; ``None`` for a head
    :param weight_bits: bits of the weights
    :param per_channel: one step for each output channel, or one for the whole layer
    """

    weight: th.Tensor
    bias: Any
    stride: tuple[int, ...] = (1,)

    def _init_quantization(
        self, input_grid: nn.Module, output_grid: Quantizer | None, weight_bits: int, per_channel: bool = True
    ) -> None:
        self.input_grid, self.output_grid = input_grid, output_grid
        self.weight_quantizer = Quantizer(weight_bits, signed=True, n_channels=len(self.weight) if per_channel else 0)
        self.is_float = self.weight_quantizer.is_float or bool(input_grid.is_float)
        self.takes_pixels = isinstance(input_grid, PixelGrid)

    def _apply_layer(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        raise NotImplementedError

    @property
    def input_quantizer(self) -> Quantizer | None:
        """The quantizer of the input grid; pixels have none."""
        if isinstance(self.input_grid, VectorGrid):
            return self.input_grid.quantizer
        return self.input_grid if isinstance(self.input_grid, Quantizer) else None

    def _for_pixels(self, weight: th.Tensor, bias: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Weight and bias for pixels as they are, from those for real numbers."""
        pixels: Any = self.input_grid
        weight = weight * pixels.carried
        return weight, bias - pixels.centre * weight.flatten(1).sum(1)

    def _input_integers(self, x: th.Tensor, input_scale: th.Tensor) -> th.Tensor:
        return x if self.takes_pixels else (x / input_scale).round()

    def weight_scale(self, input_scale: th.Tensor) -> th.Tensor:
        """
        Step of the weights, large enough for the bias to fit its grid.

        :param input_scale: step of the input grid
        :return: shape (n_out,) or (1,)
        """
        self.weight_quantizer.calibrate_once(self.weight)
        scale = self.weight_quantizer.scale()
        (smallest,) = smallest_steps([self.bias.detach()], [input_scale.detach()], [len(scale)])
        return th.where(scale > smallest, scale, smallest)

    def _per_weight(self, scale: th.Tensor) -> th.Tensor:
        return scale.reshape(-1, *(1,) * (self.weight.dim() - 1))

    def _integers(self, input_scale: th.Tensor, weight_scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Weights and bias as integers, in a float32 and a float64 tensor."""
        weight = self.weight_quantizer.quantize(self.weight, self._per_weight(weight_scale))
        # + 0: a bias of -0 could give a logit of -0, which integers do not have
        bias = (self.bias.double() / (input_scale.double() * weight_scale.double())).round() + 0.0
        if self.takes_pixels:
            pixels: Any = self.input_grid
            bias = bias - pixels.centre.double() * weight.double().flatten(1).sum(1)
        return weight, bias

    def _accumulator_unit(self, input_scale: th.Tensor, weight_scale: th.Tensor) -> th.Tensor:
        """Real value of an accumulator of 1, shape (n_out,) or (1,)."""
        return input_scale * weight_scale

    def _output(self, y: th.Tensor) -> th.Tensor:
        """The output of a layer in float: on its grid, or a head's as it is."""
        return y if self.output_grid is None else self.output_grid(y)

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.is_float:
            weight, bias = self._for_pixels(self.weight, self.bias) if self.takes_pixels else (self.weight, self.bias)
            return self._output(self._apply_layer(x, weight, bias))
        return Chain([self])(x) if self.training else self.exact(x)

    def shaped(self, x: th.Tensor) -> th.Tensor:
        """
        The output of the layer before as this layer takes it.

        :param x: shape (batch_size, ...)
        """
        return x

    def train_step(
        self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor, step: th.Tensor | None, mixture: Mixture | None
    ) -> tuple[th.Tensor, list[th.Tensor]]:
        """
        The training forward, see :class:`~sb3_qpd.students.chain.Chain`.

        :param x: the input
        :param weight: weight at the precision of the transition
        :param bias: bias at the precision of the transition
        :param step: step of the output grid; ``None`` where the output is not rounded
        :param mixture: mixture of the output grid; ``None`` for a head
        :return: the output, and what :meth:`train_gradients` needs
        """
        if self.takes_pixels:
            weight, bias = self._for_pixels(weight, bias)
        y = self._apply_layer(x, weight, bias)
        if mixture is None:
            return self._output(y), [x, weight]
        y, saved = mix(y, step, mixture, rectify=True)
        return y, [x, weight, *saved]

    def train_gradients(
        self, grad: th.Tensor, saved: list[th.Tensor], mixture: Mixture | None, needs_input: bool
    ) -> tuple[th.Tensor | None, th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Gradients of the input (``None`` where it is not needed), weight, bias and step of the output grid.

        :param grad: gradient of the output
        :param saved: from :meth:`train_step`
        :param mixture: as for :meth:`train_step`
        :param needs_input: whether the gradient of the input is needed
        """
        x, weight, *of_mixture = saved
        of_step = None
        if mixture is None:
            grad = self._output(grad)  # a multiplication by constants, or nothing
        else:
            grad, of_step = mix_gradients(grad, of_mixture, th.Size([1]), mixture, rectify=True)
        of_x, of_weight, of_bias = self._layer_gradients(grad, x, weight, needs_input)
        if self.takes_pixels:
            pixels: Any = self.input_grid
            of_weight = (of_weight + self._per_weight(-of_bias * pixels.centre)) * pixels.carried
        return of_x, of_weight, of_bias, of_step

    def _layer_gradients(
        self, grad: th.Tensor, x: th.Tensor, weight: th.Tensor, needs_input: bool
    ) -> tuple[th.Tensor | None, th.Tensor, th.Tensor]:
        """Gradients of the input, weight and bias of :meth:`_apply_layer`."""
        raise NotImplementedError

    @th.no_grad()
    def accumulators(self, x: th.Tensor) -> th.Tensor:
        """
        ``W x + b`` as integers, in float32 or, where float32 could be inexact, in float64.

        :param x: as for ``forward``
        """
        input_scale = self.input_grid.scale()  # type: ignore[operator]
        return self._accumulate(x, input_scale, self.weight_scale(input_scale))

    def _accumulate(self, x: th.Tensor, input_scale: th.Tensor, weight_scale: th.Tensor) -> th.Tensor:
        weight, bias = self._integers(input_scale, weight_scale)
        # On CUDA always use float64: convolutions may use TF32 or Winograd, and reading the bound would synchronize. On a CPU
        # NNPACK would use inexact transforms as well
        dtype = th.float32 if x.device.type == "cpu" and _bound(weight, bias) < FLOAT32_EXACT else th.float64
        with th.backends.nnpack.flags(enabled=False):
            return self._apply_layer(self._input_integers(x, input_scale).to(dtype), weight.to(dtype), bias.to(dtype))

    @th.no_grad()
    def real_output(self, x: th.Tensor) -> th.Tensor:
        """
        The exact output after the ReLU, before it is rounded. The output grid is calibrated on it.

        :param x: as for ``forward``
        """
        input_scale = self.input_grid.scale()  # type: ignore[operator]
        weight_scale = self.weight_scale(input_scale)
        acc = self._accumulate(x, input_scale, weight_scale).float()
        return (acc * self._per_channel(input_scale * weight_scale, acc)).relu()

    @th.no_grad()
    def exact(self, x: th.Tensor) -> th.Tensor:
        """
        The forward of evaluation mode.

        :param x: the input
        """
        input_scale = self.input_grid.scale()  # type: ignore[operator]
        weight_scale = self.weight_scale(input_scale)
        acc = self._accumulate(x, input_scale, weight_scale).float()
        unit = self._accumulator_unit(input_scale, weight_scale)
        if self.output_grid is None:
            return acc * unit
        if not self.output_grid.ready:
            self.output_grid.calibrate((acc * self._per_channel(unit, acc)).relu())
        output_scale = self.output_grid.scale()
        multiplier = requantization_multiplier(unit, output_scale)
        q = (acc * self._per_channel(multiplier, acc)).round().clamp(0, self.output_grid.high)
        return q * output_scale

    @staticmethod
    def _per_channel(values: th.Tensor, like: th.Tensor) -> th.Tensor:
        return values.reshape(-1, *(1,) * (like.dim() - 2))

    @th.no_grad()
    def to_integer(self) -> IntegerLayer:
        """
        The layer in integers.

        :raises ValueError: the layer is float
        """
        if self.is_float:
            raise ValueError("A float layer (32 bits) has no integer form: build the student with weight_bits of 2 to 8")
        input_scale = self.input_grid.scale()  # type: ignore[operator]
        weight_scale = self.weight_scale(input_scale)
        weight, bias = self._integers(input_scale, weight_scale)
        unit = self._accumulator_unit(input_scale, weight_scale)
        multiplier = unit if self.output_grid is None else requantization_multiplier(unit, self.output_grid.scale())
        return IntegerLayer(
            weight=weight.cpu().numpy().astype(np.int8),
            bias=bias.cpu().numpy().astype(np.int32),
            multiplier=multiplier.cpu().numpy(),
            weight_bits=self.weight_quantizer.bits,
            activation_bits=0 if self.output_grid is None else self.output_grid.bits,
            stride=self.stride[0],
        )


def _bound(weight: th.Tensor, bias: th.Tensor) -> float:
    """The largest absolute value that an accumulator of 8-bit inputs can have."""
    return float((weight.abs().flatten(1).sum(1).double() * 255 + bias.abs()).max())


class QuantLinear(QuantLayer, nn.Linear):
    """
    A fully connected layer, followed by a ReLU and the output grid unless it is a head.

    :param in_features: length of the input
    :param out_features: length of the output
    :param kwargs: see :class:`QuantLayer`
    """

    def __init__(self, in_features: int, out_features: int, **kwargs: Any) -> None:
        nn.Linear.__init__(self, in_features, out_features)
        self._init_quantization(**kwargs)

    def _apply_layer(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        return F.linear(x, weight, bias)

    def shaped(self, x: th.Tensor) -> th.Tensor:
        return x if x.dim() == 2 else x.flatten(1)

    def _layer_gradients(
        self, grad: th.Tensor, x: th.Tensor, weight: th.Tensor, needs_input: bool
    ) -> tuple[th.Tensor | None, th.Tensor, th.Tensor]:
        return (grad @ weight if needs_input else None), grad.t() @ x, grad.sum(0)


class QuantMeanHead(QuantLinear):
    """
    A head whose outputs are the mean of a Box action.

    An optimizer such as Adam changes weights by absolute steps, which suit actions of order one. So an action whose unit is
    below 0.1 or above 10 leaves the layer multiplied by its unit, in the integer form as part of the multiplier.

    :param in_features: length of the input
    :param action_unit: the unit in which errors of each action are measured, shape (action_dim,)
    :param kwargs: see :class:`QuantLayer`
    """

    action_unit: th.Tensor
    output_unit: th.Tensor  # what an output of 1 stands for

    def __init__(self, in_features: int, action_unit: th.Tensor, **kwargs: Any) -> None:
        super().__init__(in_features, len(action_unit), **kwargs)
        self.register_buffer("action_unit", action_unit.float())
        self.register_buffer("output_unit", th.ones(len(action_unit)))

    def set_action_unit(self, action_unit: th.Tensor) -> None:
        """
        Freeze the units.

        :param action_unit: shape (action_dim,), positive
        """
        self.action_unit.copy_(action_unit)
        is_usual = (self.action_unit >= 0.1) & (self.action_unit <= 10.0)
        self.output_unit.copy_(th.where(is_usual, th.ones_like(self.action_unit), self.action_unit))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("action_unit", "output_unit"):  # students of older versions have none
            state_dict.setdefault(f"{prefix}{name}", getattr(self, name))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _accumulator_unit(self, input_scale: th.Tensor, weight_scale: th.Tensor) -> th.Tensor:
        return input_scale * weight_scale * self.output_unit

    def _output(self, y: th.Tensor) -> th.Tensor:
        return y * self.output_unit


class QuantConv2d(QuantLayer, nn.Conv2d):
    """
    A convolution without padding, followed by a ReLU and the output grid.

    :param in_channels: channels of the input
    :param out_channels: channels of the output
    :param kernel_size: side of the kernel
    :param stride: stride
    :param kwargs: see :class:`QuantLayer`
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, **kwargs: Any) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, stride)
        self._init_quantization(**kwargs)

    def _apply_layer(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        return F.conv2d(x, weight, bias, self.stride)

    def _layer_gradients(
        self, grad: th.Tensor, x: th.Tensor, weight: th.Tensor, needs_input: bool
    ) -> tuple[th.Tensor | None, th.Tensor, th.Tensor]:
        sizes, needed = [self.out_channels], [needs_input, True, True]
        no_padding, dilation, stride = [0, 0], [1, 1], list(self.stride)
        return th.ops.aten.convolution_backward(
            grad, x, weight, sizes, stride, no_padding, dilation, False, no_padding, 1, needed
        )


class ValueHead(nn.Linear):
    """
    A float value head. Its output is ``std (w x + b) + mean``, with the frozen mean and deviation of the teacher's values.

    :param in_features: length of the features
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features, 1)
        self.register_buffer("mean", th.zeros(()))
        self.register_buffer("std", th.ones(()))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return self.train_step(x, self.weight, self.bias)

    def train_step(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        """
        The output, see :class:`~sb3_qpd.students.chain.Chain`.

        :param x: the features
        :param weight: its weight
        :param bias: its bias
        """
        return F.linear(x, weight, bias) * self.std + self.mean

    def train_gradients(self, grad: th.Tensor, x: th.Tensor, weight: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Gradients of the features, the weight and the bias.

        :param grad: gradient of the output
        :param x: the features
        :param weight: its weight
        """
        grad = grad * self.std
        return grad @ weight, grad.t() @ x, grad.sum(0)
