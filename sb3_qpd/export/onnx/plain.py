"""
A student in plain float32 operators, for runtimes without integer kernels: engines such as Unity's.

Each value is the integer of the integer model, as a float: the grid is ``Round`` and ``Clip``, and so is requantization. While
sums stay below 2^24 and a runtime rounds as the standard says, the values are equal. Runtimes that fuse operators, or compute
with less than float32, differ in rare roundings.
"""

from __future__ import annotations

import numpy as np

from sb3_qpd.export.onnx.graph import STATE, Graph, input_name
from sb3_qpd.integer import IntegerLayer, IntegerModel, ObservationPart


def check_plain(model: IntegerModel) -> None:
    """
    Refuse a student that plain float32 operators cannot take.

    :param model: about to be written
    :raises ValueError: its observations need float64, or it remembers actions that are chosen outside of the graph
    """
    if model.history_actions and model.uses_masks:
        raise ValueError(
            "form='float' does not support a memory of actions with action masks: the masks are applied outside of the graph, "
            "which would remember other actions. Take the default form"
        )
    if model.input_origin is not None:
        raise ValueError(
            "form='float' does not support observations in float64 with an offset that float32 cannot carry: subtract the "
            "offset in the environment, or take the default form"
        )


class PlainGraph(Graph):
    """The graph of :class:`~sb3_qpd.export.onnx.graph.Graph` in float32: inputs, weights and every value between."""

    def __init__(self) -> None:
        super().__init__(is_qdq=False)

    def _to_grid(self, x: str, grid: str, number: str) -> str:
        return self._rounded(x, -128, 127, grid)

    def _window(self, newest: str) -> str:
        return self.node("Concat", [self.node("Flatten", [STATE], "state_flat"), newest], "input_grid", axis=1)

    def _signed(self, grid: str) -> str:
        return grid

    def _action_grid(self, model: IntegerModel) -> str:
        """The most probable action on the input grid. The choice of a discrete one is not in the graph, so it is made here."""
        if model.is_box:
            x = self.node("Flatten", ["action"], "flat_action")
        elif model.n_bits:  # a sum is an integer
            limits = [self.constant(f"f{limit}", np.float32(limit)) for limit in (0, 1)]
            x = self.node("Clip", ["accumulators", *limits], "bits_of_action")
        else:
            names = ["accumulators"] if len(model.action_nvec) == 1 else self.split("accumulators", model)
            chosen = [self._chosen(name, n) for name, n in zip(names, model.action_nvec, strict=True)]
            x = chosen[0] if len(chosen) == 1 else self.node("Concat", chosen, "chosen", axis=1)
        return self._rounded(self._scaled_action(x, model), -128, 127, "action_grid")

    def _chosen(self, scores: str, n: int) -> str:
        """A one for the first of the largest scores, zeros for all others: their differences are integers."""
        largest = self.node("ReduceMax", [scores], f"most_of_{scores}", axes=[1], keepdims=1)
        below = self.node("Sub", [largest, scores], f"lack_of_{scores}")
        is_largest = self.node("Relu", [self.node("Sub", [self.one, below], f"closeness_of_{scores}")], f"ties_of_{scores}")
        earlier = self.constant(f"earlier_{n}", np.triu(np.ones((n, n), np.float32), 1))
        n_earlier = self.node("MatMul", [is_largest, earlier], f"earlier_ties_of_{scores}")
        return self.node("Relu", [self.node("Sub", [is_largest, n_earlier], f"firstness_of_{scores}")], f"chosen_of_{scores}")

    def _one_hot(self, part: ObservationPart) -> str:
        """Indices as zeros and ones: 1 - |index - category|, and no less than 0."""
        name = input_name(part)
        column = self.constant(f"index_of_{name}", np.repeat(np.arange(len(part.nvec)), part.nvec))
        category = np.concatenate([np.arange(n, dtype=np.float32) for n in part.nvec])
        x = self.node("Gather", [self._flat_input(part), column], f"indices_of_{name}", axis=1)
        x = self.node("Sub", [x, self.constant(f"category_of_{name}", category)], f"distance_of_{name}")
        x = self.node("Abs", [x], f"absolute_of_{name}")
        return self.node("Relu", [self.node("Sub", [self.one, x], f"nearness_of_{name}")], f"one_hot_{name}")

    def layer(self, x: str, layer: IntegerLayer, i: int) -> str:
        """A convolution or fully connected layer with its requantization."""
        if layer.is_conv:
            inputs = [x, self._float_weight(layer, i), self._float_bias(layer, i)]
            acc = self.node("Conv", inputs, f"acc{i}", strides=[layer.stride] * 2)
            multiplier = self.constant(f"multiplier{i}", layer.multiplier[:, None, None])
        else:
            acc = self._accumulate(self._flatten(x), layer, i, f"acc{i}")
            multiplier = self._multiplier(layer, i)
        return self._rounded(self.node("Mul", [acc, multiplier], f"scaled{i}"), 0, 2**layer.activation_bits - 1, f"layer{i}")

    def _accumulate(self, x: str, layer: IntegerLayer, i: int, out: str) -> str:
        return self.node("Gemm", [x, self._float_weight(layer, i), self._float_bias(layer, i)], out, transB=1)

    def _head_sums(self, x: str, layer: IntegerLayer, i: int) -> tuple[str, str]:
        acc = self._accumulate(x, layer, i, "accumulators")
        return acc, acc

    def comparable(self, acc: str) -> str:
        return acc

    def real(self, x: str) -> str:
        return x

    def _float_weight(self, layer: IntegerLayer, i: int) -> str:
        return self.constant(f"weight{i}", layer.weight.astype(np.float32))

    def _float_bias(self, layer: IntegerLayer, i: int) -> str:
        return self.constant(f"bias{i}", layer.bias.astype(np.float32))

    def _rounded(self, x: str, low: int, high: int, out: str) -> str:
        """Round half to even, then clamp."""
        limits = [self.constant(f"f{limit}", np.float32(limit)) for limit in (low, high)]
        return self.node("Clip", [self.node("Round", [x], f"rounded_{out}"), *limits], out)
