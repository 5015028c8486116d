"""
Names and layouts of a graph's inputs and outputs: names of one's own, and those that the plugin of Godot RL Agents reads.

The plugin (https://github.com/edbeeching/godot_rl_agents_plugin, ``onnx/csharp/ONNXInference.cs``) gives each value of the
observation as floats of shape (batch_size, size) by its key, which is ``obs`` for a single one, and ``state_ins`` of shape
(batch_size,). It reads ``output`` of shape (batch_size, size) and ``state_outs``. ``sync.gd`` gives the number 1 as
``state_ins`` at every step and does not use ``state_outs``, so a student with a memory is refused. It clamps Box actions to -1
and 1.
For each discrete action it looks for the first of the largest values, starting from zero: where all are negative, it would
always choose index 0. So the largest value is 1 here, and all smaller ones are at most 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from sb3_qpd.export.onnx.graph import INPUT, Graph, input_name
from sb3_qpd.integer import IntegerModel

GODOT = "godot"


def check_godot(model: IntegerModel) -> None:
    """
    Refuse a student that the plugin could not play.

    :param model: about to be written
    :raises ValueError: it takes something that the plugin does not give, or acts outside of the plugin's bounds
    """
    lacks = []
    if any(part.kind != "vector" for part in model.parts):
        lacks.append("images and indices (it gives flat floats)")
    if model.input_origin is not None:
        lacks.append("observations in float64 with an offset that float32 cannot carry (subtract it in the environment)")
    if model.uses_masks:
        lacks.append("action masks")
    if model.history > 1:
        lacks.append(f"a memory, history={model.history} (its state_ins is one constant number, and it drops state_outs)")
    if model.is_box:
        low, high = float(np.asarray(model.action_low).min()), float(np.asarray(model.action_high).max())
        if low < -1 or high > 1:
            lacks.append(f"Box actions beyond -1 and 1, got bounds of {low:g} and {high:g}")
    if lacks:
        raise ValueError(f"names='godot': Godot RL Agents does not support {'; '.join(lacks)}")


def godot_names(model: IntegerModel) -> dict[str, str]:
    """
    The plugin's names of a graph's inputs by their usual names.

    :param model: the student
    """
    return {input_name(part): "obs" if part.key is None else part.key for part in model.parts}


def write_godot(
    graph: Graph, acc: str, model: IntegerModel, opset: int
) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """
    Add the plugin's outputs to a graph.

    :param graph: the graph, with the head's accumulators in it
    :param acc: name of the accumulators
    :param model: the student
    :param opset: version of the operators in the file
    :return: inputs under their usual names, and outputs
    """
    if model.is_box:
        graph.node("Flatten", ["action"], "output")
    else:
        graph.node("Flatten", [_scores(graph, acc, model, opset)], "output")
    graph.node("Identity", ["state_ins"], "state_outs")
    sizes = {input_name(part): part.n_features for part in model.parts}
    n = len(model.layers[-1].bias) if model.is_box else sum(model.action_nvec)
    state = ["batch"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in sizes.items()]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", n])]
    return (
        [*inputs, helper.make_tensor_value_info("state_ins", TensorProto.FLOAT, state)],
        [*outputs, helper.make_tensor_value_info("state_outs", TensorProto.FLOAT, state)],
    )


def _scores(graph: Graph, acc: str, model: IntegerModel, opset: int) -> str:
    """The distance of each category to the largest accumulator of its dimension, plus 1."""
    wide = graph.comparable(acc)
    if model.n_bits:
        return _below_largest(graph, graph.pairs(wide), 2, opset)
    if len(model.action_nvec) == 1:
        return _below_largest(graph, wide, 1, opset)
    scores = [_below_largest(graph, name, 1, opset) for name in graph.split(wide, model)]
    return graph.node("Concat", scores, "all_scores", axis=1)


def _below_largest(graph: Graph, scores: str, axis: int, opset: int) -> str:
    """``scores - max + 1`` in float32: exactly 1 for the largest, and at most 0 for all that are smaller."""
    largest = f"largest_of_{scores}"
    if opset < 18:  # axes became an input then
        graph.node("ReduceMax", [scores], largest, axes=[axis], keepdims=1)
    else:
        graph.node("ReduceMax", [scores, graph.constant(f"axis{axis}", np.array([axis]))], largest, keepdims=1)
    x = graph.real(graph.node("Sub", [scores, largest], f"below_{scores}"))
    return graph.node("Add", [x, graph.one], f"godot_{scores}")


def rename(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """
    Give inputs and outputs of a graph other names.

    :param proto: changed
    :param names: new names by old ones
    :raises ValueError: there is no such input or output, or a new name is taken
    """
    graph = proto.graph
    known = [value.name for value in (*graph.input, *graph.output)]
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {one.name for one in graph.initializer}
    for old, new in names.items():
        if old not in known:
            raise ValueError(f"names: this student has no input or output {old!r}. It has {', '.join(known)}")
        if not new or new in (taken | set(known)) - set(names) or list(names.values()).count(new) > 1:
            raise ValueError(f"names: {new!r} is empty, given twice or another tensor's; take another name for {old!r}")
    for node in graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(name, name) for name in tensors]
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)


def parse_names(text: str) -> str | dict[str, str]:
    """
    Read names from a command line: ``godot``, or ``observation=obs,action=move``.

    :param text: the argument
    :raises ValueError: it is neither
    """
    if text == GODOT:
        return text
    pairs = [pair.split("=") for pair in text.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise ValueError(f"--names takes godot, or pairs such as {INPUT}=obs,action=move, got {text!r}")
    return {old.strip(): new.strip() for old, new in pairs}
