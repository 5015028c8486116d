"""Weights and biases of several layers, rounded together for a training forward."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_qpd.students.quantizers import Mixture, lsq_damping

BIAS_LIMIT = 2.0**23  # biases, and accumulators of students of usual width, are then exact in float32
Tensors = list[th.Tensor] | tuple[th.Tensor, ...]
Gradients = list[th.Tensor | None]  # None: the loss does not depend on it


class Rounding:
    """
    How the parameters of some layers are rounded, at least of one.

    The time of a small student's update is the number of its operations. So each operation works on all layers
    (``foreach``). The bits are those of each layer alone. A layer has one part for each bit width of its mixture.

    :param shapes: shape of each layer's weight
    :param n_steps: number of steps of each layer's weight: n_out, or 1 for one step for all outputs
    :param mixtures: mixture of bit widths of each layer's weight
    """

    def __init__(self, shapes: Sequence[th.Size], n_steps: list[int], mixtures: Sequence[Mixture]) -> None:
        self.n_steps = n_steps
        self.step_shapes = [(n, *(1,) * (len(shape) - 1)) for n, shape in zip(n_steps, shapes, strict=True)]
        self.layers = [layer for layer, mixture in enumerate(mixtures) for _ in mixture.parts]  # of each part
        parts = [part for mixture in mixtures for part in mixture.parts]
        self.lows, self.highs = [part.low for part in parts], [part.high for part in parts]
        self.outsides = [part.outside for part in parts]
        self.has_single_parts = self.layers == list(range(len(n_steps)))
        self.finer = _factors([part.finer for part in parts])
        self.dampings = [
            lsq_damping(part.high, shapes[layer].numel(), n_steps[layer])
            for layer, part in zip(self.layers, parts, strict=True)
        ]
        self._take(mixtures)

    def _take(self, mixtures: Sequence[Mixture]) -> None:
        self.shares = _factors([part.share for mixture in mixtures for part in mixture.parts])
        self.float_shares = [mixture.float_share for mixture in mixtures]
        self.has_float_shares = any(self.float_shares)

    def at(self, mixtures: Sequence[Mixture]) -> Rounding:
        """
        The same bit widths with other shares.

        :param mixtures: mixture of bit widths of each layer's weight
        """
        other = copy.copy(self)
        other._take(mixtures)
        return other

    def fit_biases(self, own: th.Tensor, biases: Tensors, inputs: Tensors) -> tuple[th.Tensor, Tensors]:
        """
        The steps of the weights, enlarged where a bias would not fit its grid.

        :param own: the learned steps of all layers, one after the other
        :param biases: bias of each layer
        :param inputs: step of each layer's input grid
        :return: whether a step is the smallest, and has no gradient, shape as ``own``; the steps of each layer
        """
        smallest = th.cat(smallest_steps(biases, inputs, self.n_steps))
        return own <= smallest, th.maximum(own, smallest).split_with_sizes(self.n_steps)

    def weights(self, weights: Tensors, steps: Tensors) -> tuple[list[th.Tensor], Tensors, Tensors]:
        """
        Rounded weights.

        :param weights: weight of each layer
        :param steps: steps of each layer's weight
        :return: the weights of the training forward; for the gradient, w / s and the integers of each part
        """
        broadcast = [step.view(shape) for step, shape in zip(steps, self.step_shapes, strict=True)]
        of_parts: Any = [broadcast[layer] for layer in self.layers]
        if self.finer:
            of_parts = th._foreach_mul(of_parts, self.finer)
        ratios = th._foreach_div([weights[layer] for layer in self.layers], of_parts)
        integers = th._foreach_round(ratios)
        th._foreach_clamp_min_(integers, self.lows)
        th._foreach_clamp_max_(integers, self.highs)
        rounded = th._foreach_mul(integers, of_parts)
        if self.shares:
            th._foreach_mul_(rounded, self.shares)
        return self._sums(weights, rounded), ratios, integers

    def _sums(self, float_parts: Tensors, parts: Tensors) -> list[Any]:
        """For each layer its float share, then its parts in order. Floats depend on the order."""
        if self.has_single_parts and not self.has_float_shares:
            return list(parts)
        if self.has_single_parts and all(self.float_shares):
            in_float = th._foreach_mul(float_parts, self.float_shares)
            th._foreach_add_(in_float, parts)
            return list(in_float)
        total = [x * share if share else None for x, share in zip(float_parts, self.float_shares, strict=True)]
        for layer, part in zip(self.layers, parts, strict=True):
            so_far = total[layer]
            total[layer] = part if so_far is None else so_far + part
        return total

    def biases(self, biases: Tensors, inputs: Tensors, steps: Tensors) -> Tensors:
        """
        Rounded biases; their gradient is that of the biases.

        :param biases: bias of each layer
        :param inputs: step of each layer's input grid
        :param steps: steps of each layer's weight
        """
        grids = th._foreach_mul(inputs, steps)
        change = th._foreach_div(biases, grids)
        th._foreach_round_(change)
        th._foreach_mul_(change, grids)
        th._foreach_sub_(change, biases)
        if self.has_float_shares:
            th._foreach_mul_(change, [1 - share for share in self.float_shares])
        return th._foreach_add(biases, change)

    def gradients(self, grads: Gradients, ratios: Tensors, integers: Tensors) -> tuple[Gradients, Tensors]:
        """
        Gradients of the weights and of their steps, see ``fake_quantize``.

        :param grads: gradients of the rounded weights; where there is none, the weight has none, and its steps have zeros
        :param ratios: from :meth:`weights`
        :param integers: from :meth:`weights`
        """
        if any(grad is None for grad in grads):
            return self._gradients_without(grads, ratios, integers)
        known: list[Any] = grads
        outer: Any = [known[layer] for layer in self.layers]
        if self.shares:
            outer = th._foreach_mul(outer, self.shares)
        of_parts = list(map(_inside, outer, ratios, self.outsides))
        slopes = th._foreach_mul(outer, integers)
        th._foreach_sub_(slopes, th._foreach_mul(of_parts, ratios))
        of_steps = [
            slope.sum_to_size(self.step_shapes[layer]).view(-1) for slope, layer in zip(slopes, self.layers, strict=True)
        ]
        th._foreach_mul_(of_steps, self.dampings)
        if self.finer:
            th._foreach_mul_(of_steps, self.finer)
        if self.has_single_parts and all(self.float_shares):
            th._foreach_add_(of_parts, th._foreach_mul(known, self.float_shares))
        elif not self.has_single_parts or self.has_float_shares:
            return self._backward_sums(of_parts, known), self._backward_sums(of_steps)
        return list(of_parts), of_steps

    def _gradients_without(self, grads: Gradients, ratios: Tensors, integers: Tensors) -> tuple[Gradients, Tensors]:
        """:meth:`gradients` where a weight has none."""
        like = {layer: ratio for layer, ratio in zip(self.layers, ratios, strict=True)}
        filled: Gradients = [th.zeros_like(like[i]) if grad is None else grad for i, grad in enumerate(grads)]
        found, of_steps = self.gradients(filled, ratios, integers)
        return [None if grad is None else one for grad, one in zip(grads, found, strict=True)], of_steps

    def _backward_sums(self, parts: Tensors, grads: Sequence[Any] = ()) -> list[Any]:
        """
        For each layer the sum over its parts, from the last to the first, and over its float share: the order in which
        autograd would add.
        """
        total: list[Any] = [None] * len(self.n_steps)
        for layer, part in zip(reversed(self.layers), reversed(parts), strict=True):
            total[layer] = part if total[layer] is None else total[layer] + part
        for layer, (grad, share) in enumerate(zip(grads, self.float_shares, strict=False)):
            total[layer] = total[layer] + grad * share if share else total[layer]
        return total


def _factors(values: list[float]) -> list[float]:
    """Factors to multiply by; none where all are 1."""
    return [] if all(value == 1.0 for value in values) else values


def _inside(grad: th.Tensor, ratio: th.Tensor, outside: tuple[float, float]) -> th.Tensor:
    return th.ops.aten.hardtanh_backward(grad, ratio, *outside)


def smallest_steps(biases: Tensors, inputs: Tensors, n_steps: Sequence[int]) -> list[th.Tensor]:
    """
    The smallest steps of the weights of some layers at which each bias fits its grid.

    :param biases: bias of each layer, shape (n_out,)
    :param inputs: step of each layer's input grid
    :param n_steps: number of steps of each layer's weight: n_out, or 1 for one step for all outputs
    :return: for each layer, shape (n_steps,)
    """
    smallest = th._foreach_abs(biases)
    th._foreach_div_(smallest, th._foreach_mul(inputs, BIAS_LIMIT))
    return [one if len(one) == n else one.amax(0, keepdim=True) for one, n in zip(smallest, n_steps, strict=True)]
