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
from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.quantizers import Quantizer

BIAS_LIMIT = 2.0**23  # biases, and accumulators of students of usual width, are then exact in float32
FLOAT32_EXACT = 2.0**24
# finite but absurd observations, such as 3e38, saturate in training as they do on the grid
MAX_STEPS = 2.0**15
MAX_NORMALIZED = 1e4


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

    def affine(self) -> tuple[th.Tensor, th.Tensor]:
        """The multiplier m and the offset a in float32, each rounded once from float64, and finite: inf - inf would be NaN."""
        step, largest = self.std * self.scale().detach().double(), th.finfo(th.float32).max
        return (1 / step).float(), (-self.mean / step).clamp(-largest, largest).float()

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        Normalize observations and round them to the grid.

        :param x: raw observations in float32, less the origin where there is one, shape (batch_size, n_features)
        :return: normalized observations on the grid, same shape
        """
        if self.is_float or not self.quantizer.ready:
            normalized = ((x - self.mean) / self.std).clamp(-MAX_NORMALIZED, MAX_NORMALIZED).float()
            self.quantizer.calibrate_once(normalized.clamp(-self.largest, self.largest))
            if self.is_float:
                return normalized
        with th.no_grad():
            m, a = self.affine()
            scaled = x * m  # two roundings: a fused multiplication and addition has other bits
            t = (scaled + a).clamp(-MAX_STEPS, MAX_STEPS)  # a share of it is not rounded: a huge number would become NaN
            rounded = t.round()
            q = rounded.clamp(self.quantizer.low, self.quantizer.high)
        scale = self.scale()
        if not self.training:
            return q * scale
        # value q s, gradient q - t inside the range and q outside (LSQ); the observation needs no gradient
        quantized = q * scale + (scale.detach() - scale) * th.where(q == rounded, t, 0.0)
        float_share = self.quantizer.precision.get(FLOAT_BITS, 0.0)
        if float_share == 0.0:
            return quantized
        return float_share * (t * scale.detach()) + (1 - float_share) * quantized


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

    def _apply_layer(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        raise NotImplementedError

    @property
    def is_float(self) -> bool:
        return self.weight_quantizer.is_float or bool(self.input_grid.is_float)

    def _float_layer(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor) -> th.Tensor:
        """The layer in float, on real numbers or on pixels."""
        if isinstance(self.input_grid, PixelGrid):
            weight = weight * self.input_grid.carried
            bias = bias - self.input_grid.centre * weight.flatten(1).sum(1)
        return self._apply_layer(x, weight, bias)

    def _input_integers(self, x: th.Tensor, input_scale: th.Tensor) -> th.Tensor:
        return x if isinstance(self.input_grid, PixelGrid) else (x / input_scale).round()

    def weight_scale(self, input_scale: th.Tensor) -> th.Tensor:
        """
        Step of the weights, large enough for the bias to fit its grid.

        :param input_scale: step of the input grid
        :return: shape (n_out,) or (1,)
        """
        self.weight_quantizer.calibrate_once(self.weight)
        smallest = self.bias.detach().abs() / (input_scale.detach() * BIAS_LIMIT)
        if not self.weight_quantizer.n_channels:
            smallest = smallest.amax(0, keepdim=True)
        scale = self.weight_quantizer.scale()
        return th.where(scale > smallest, scale, smallest)

    def _per_weight(self, scale: th.Tensor) -> th.Tensor:
        return scale.reshape(-1, *(1,) * (self.weight.dim() - 1))

    def _integers(self, input_scale: th.Tensor, weight_scale: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Weights and bias as integers, in a float32 and a float64 tensor."""
        weight = self.weight_quantizer.quantize(self.weight, self._per_weight(weight_scale))
        # + 0: a bias of -0 could give a logit of -0, which integers do not have
        bias = (self.bias.double() / (input_scale.double() * weight_scale.double())).round() + 0.0
        if isinstance(self.input_grid, PixelGrid):
            bias = bias - self.input_grid.centre.double() * weight.double().flatten(1).sum(1)
        return weight, bias

    def _accumulator_unit(self, input_scale: th.Tensor, weight_scale: th.Tensor) -> th.Tensor:
        """Real value of an accumulator of 1, shape (n_out,) or (1,)."""
        return input_scale * weight_scale

    def _output(self, y: th.Tensor) -> th.Tensor:
        """The output of a layer in float: on its grid, or a head's as it is."""
        return y if self.output_grid is None else self.output_grid(y)

    def forward(self, x: th.Tensor) -> th.Tensor:
        if self.is_float:
            return self._output(self._float_layer(x, self.weight, self.bias))
        return self._train_forward(x) if self.training else self._exact_forward(x)

    def _train_forward(self, x: th.Tensor) -> th.Tensor:
        if self.weight_quantizer.trains_in_float:
            self.weight_quantizer.calibrate_once(self.weight)
            return self._output(self._float_layer(x, self.weight, self.bias))
        with th.no_grad():  # the step gets its gradient where the grid is applied
            input_scale = self.input_grid.scale()  # type: ignore[operator]
        weight_scale = self.weight_scale(input_scale)
        weight = self.weight_quantizer.mix(self.weight, self._per_weight(weight_scale))
        with th.no_grad():
            grid = input_scale * weight_scale
            rounding = (self.bias / grid).round() * grid - self.bias
            if (float_share := self.weight_quantizer.precision.get(FLOAT_BITS, 0.0)) > 0.0:
                rounding = (1 - float_share) * rounding
        return self._output(self._float_layer(x, weight, self.bias + rounding))

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
    def _exact_forward(self, x: th.Tensor) -> th.Tensor:
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
        return super().forward(x) * self.std + self.mean
