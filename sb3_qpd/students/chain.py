"""The training forward of layers one after the other, and its gradient, as one autograd function."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch as th

from sb3_qpd.students.quantizers import MIN_SCALE, Mixture, Quantizer
from sb3_qpd.students.rounding import Gradients, Rounding, Tensors

if TYPE_CHECKING:
    from sb3_qpd.students.layers import QuantLayer, ValueHead, VectorGrid


class Chain:
    """
    Layers one after the other, in their training forward.

    The time of a small student's update is the number of its operations. So autograd sees one function, and an operation on
    parameters works on all layers. Values and gradients have the bits that each layer alone would have.

    :param layers: the layers, none of them float
    :param input_grid: the grid that rounds the input; ``None`` where the input is on its grid already, as pixels are
    :param value_head: a head that takes what the last layer takes
    """

    def __init__(
        self, layers: Sequence[QuantLayer], input_grid: VectorGrid | None = None, value_head: ValueHead | None = None
    ) -> None:
        self.layers, self.input_grid, self.value_head = list(layers), input_grid, value_head
        self.weight_quantizers = [layer.weight_quantizer for layer in layers]
        outputs = [layer.output_grid for layer in layers if layer.output_grid is not None]
        self.grids = outputs if input_grid is None else [input_grid.quantizer, *outputs]
        self._quantizers = [*self.weight_quantizers, *self.grids]
        self.n_value = 0 if value_head is None else 2  # weight and bias
        self._plan: _Plan | None = None

    def __call__(self, x: th.Tensor) -> Any:
        """
        The training forward.

        :param x: input of the input grid, or of the first layer
        :return: output of the last layer; where there is a value head a tuple of it and the value, shape (batch_size, 1)
        """
        if not all(one.ready for one in self._quantizers):
            self._calibrate(x)
        mixtures = [one.mixture for one in self._quantizers]
        if self._plan is None or self._plan.widths != [one.widths for one in mixtures]:
            self._plan = _Plan(self, mixtures)
        elif self._plan.mixtures != mixtures:
            self._plan = self._plan.at(mixtures)
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        value = () if self.value_head is None else (self.value_head.weight, self.value_head.bias)
        logs = [one.log_scale for one in self._plan.quantizers]
        return _Run.apply(self, self._plan, x, *value, *weights, *biases, *logs)

    @th.no_grad()
    def _calibrate(self, x: th.Tensor) -> None:
        """Calibrate as evaluation mode does: each grid on the integers of the layer before it."""
        x = x if self.input_grid is None else self.input_grid.exact(x)
        for layer in self.layers:
            x = layer.exact(layer.shaped(x))


class _Plan:
    """
    What a chain computes at one precision.

    :param chain: the chain
    :param mixtures: mixture of bit widths of each quantizer, those of the weights first
    """

    def __init__(self, chain: Chain, mixtures: list[Mixture]) -> None:
        quantizers, layers = chain.weight_quantizers, chain.layers
        n = len(layers)
        self.widths = [one.widths for one in mixtures]
        self.n_layers, self.has_input_grid = n, chain.input_grid is not None
        # the layers whose parameters are rounded, the grids whose steps are needed, and the places of these in ``grids``
        self.rounded = [i for i in range(n) if not quantizers[i].trains_in_float]
        before = [layers[i].input_quantizer for i in self.rounded]
        wanted = {id(grid) for grid in (*before, *chain.grids[: chain.input_grid is not None])}
        grids = [one for one in chain.grids if not one.trains_in_float or id(one) in wanted]
        places = {id(grid): i for i, grid in enumerate(grids)}
        self.inputs = [places.get(id(grid)) for grid in before]
        self.output_places = [places.get(id(layer.output_grid)) for layer in layers]
        self.quantizers: list[Quantizer] = [*(quantizers[i] for i in self.rounded), *grids]
        n_steps = [len(one.log_scale) for one in self.quantizers]
        self.sizes = [sum(n_steps[: len(self.rounded)]), *n_steps[len(self.rounded) :]]
        self.all_sizes = n_steps
        self.rounding: Rounding | None = None
        if self.rounded:
            shapes = [layers[i].weight.shape for i in self.rounded]
            self.rounding = Rounding(shapes, n_steps[: len(shapes)], [mixtures[i] for i in self.rounded])
        self._take(mixtures)

    def _take(self, mixtures: list[Mixture]) -> None:
        n = self.n_layers
        self.mixtures = mixtures
        self.float_share = mixtures[n].float_share if self.has_input_grid else 0.0
        outputs = mixtures[n + self.has_input_grid :]
        self.outputs = [*outputs, *[None] * (n - len(outputs))]  # a head has none

    def at(self, mixtures: list[Mixture]) -> _Plan:
        """
        The same bit widths with other shares. A backward pass may still need this plan.

        :param mixtures: as in the constructor
        """
        other = copy.copy(self)
        if self.rounding is not None:
            other.rounding = self.rounding.at([mixtures[i] for i in self.rounded])
        other._take(mixtures)
        return other


class _Run(th.autograd.Function):
    """The forward of a :class:`Chain` from its input, its weights, biases and logarithms of steps."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, plan: _Plan, x: th.Tensor, *tensors: th.Tensor) -> Any:
        n, of_value, tensors = len(chain.layers), tensors[: chain.n_value], tensors[chain.n_value :]
        weights, biases, steps, saved = _parameters(chain, plan, tensors[:n], tensors[n : 2 * n], tensors[2 * n :])
        counts, shapes, features = [len(saved)], [], x
        if chain.input_grid is not None:
            x, kept = chain.input_grid.train_step(x, steps[0], plan.float_share)
            counts.append(len(kept))
            saved += kept
        for i, layer in enumerate(chain.layers):
            shapes.append(x.shape)
            features = layer.shaped(x)
            place = plan.output_places[i]
            step = None if place is None else steps[place]
            x, kept = layer.train_step(features, weights[i], biases[i], step, plan.outputs[i])
            counts.append(len(kept))
            saved += kept
        ctx.chain, ctx.plan, ctx.shapes, ctx.counts = chain, plan, shapes, counts
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, *of_value[:1])
        return x if chain.value_head is None else (x, chain.value_head.train_step(features, *of_value))

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor | None, of_value: th.Tensor | None = None) -> Any:
        chain, plan, tensors = ctx.chain, ctx.plan, iter(ctx.saved_tensors)
        kept = [list(islice(tensors, count)) for count in ctx.counts]
        n, has_grid = len(chain.layers), chain.input_grid is not None
        of_weights: Gradients = [None] * n
        of_biases: Gradients = [None] * n
        of_grids: Gradients = [None] * (len(plan.sizes) - 1)
        needs_input = has_grid or ctx.needs_input_grad[2]
        of_features, of_value_head = None, (None,) * chain.n_value
        if of_value is not None:
            features, weight = kept[-1][0], next(tensors)
            of_features, *of_value_head = chain.value_head.train_gradients(of_value, features, weight)
        for i in reversed(range(n)):
            layer, saved = chain.layers[i], kept.pop()
            if grad is not None:
                found = layer.train_gradients(grad, saved, plan.outputs[i], needs_input or i > 0)
                grad, of_weights[i], of_biases[i], of_step = found
                if of_step is not None:
                    of_grids[plan.output_places[i]] = of_step
            if i == n - 1 and of_features is not None:
                grad = of_features if grad is None else grad + of_features
            if grad is not None and grad.shape != ctx.shapes[i]:
                grad = grad.reshape(ctx.shapes[i])
        if has_grid and grad is not None:
            of_grids[0] = chain.input_grid.train_gradients(grad, kept[1], plan.float_share)
            grad = None
        of_weights, of_logs = _parameter_gradients(plan, of_weights, of_grids, kept[0])
        return None, None, grad, *of_value_head, *of_weights, *of_biases, *of_logs


def _parameters(chain: Chain, plan: _Plan, weights: Tensors, biases: Tensors, logs: Tensors) -> Any:
    """
    Weights, biases and steps of the training forward.

    :return: weights, biases, the step of each grid, and what :func:`_parameter_gradients` needs
    """
    if not logs:
        return weights, biases, [], []
    exact = th.cat(logs).double().exp()
    own, *grids = exact.clamp_min(MIN_SCALE).float().split_with_sizes(plan.sizes)
    if plan.rounding is None:
        return weights, biases, grids, [exact]
    inputs = [
        chain.layers[i].input_grid.scale() if place is None else grids[place]  # type: ignore[operator]
        for i, place in zip(plan.rounded, plan.inputs, strict=True)
    ]
    given = [biases[i] for i in plan.rounded]
    is_bound, steps = plan.rounding.fit_biases(own, given, inputs)
    rounded, ratios, integers = plan.rounding.weights([weights[i] for i in plan.rounded], steps)
    weights = _replaced(weights, plan.rounded, rounded)
    biases = _replaced(biases, plan.rounded, plan.rounding.biases(given, inputs, steps))
    return weights, biases, grids, [exact, is_bound, *ratios, *integers]


def _parameter_gradients(
    plan: _Plan, of_weights: Gradients, of_grids: Gradients, saved: list[th.Tensor]
) -> tuple[Gradients, Tensors]:
    """Gradients of the weights, and of the logarithms of the steps. A bias has that of the rounded one."""
    if not saved:
        return of_weights, []
    exact, of_own = saved[0], []
    if plan.rounding is not None:
        is_bound, kept = saved[1], saved[2:]
        n = len(kept) // 2
        grads = [of_weights[i] for i in plan.rounded]
        found, of_steps = plan.rounding.gradients(grads, kept[:n], kept[n:])
        of_weights = _replaced(of_weights, plan.rounded, found)
        of_own = [th.cat(of_steps).masked_fill_(is_bound, 0.0)]
    given = [exact.new_zeros(n, dtype=th.float32) if g is None else g for g, n in zip(of_grids, plan.sizes[1:], strict=True)]
    of_exact = th.cat([*of_own, *given]).masked_fill_(exact < MIN_SCALE, 0.0)
    return of_weights, (of_exact * exact).float().split_with_sizes(plan.all_sizes)


def _replaced(values: Sequence[Any], indices: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """A list with other values at some indices."""
    result = list(values)
    for i, value in zip(indices, new, strict=True):
        result[i] = value
    return result
