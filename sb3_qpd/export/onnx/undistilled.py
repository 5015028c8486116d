"""The target ``onnx`` of an undistilled teacher: its float actor in ordinary operators, with its normalization inside."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sb3_qpd.export.files import without_paths, write_files
from sb3_qpd.export.float_actor import Activation, Conv, Dense, FloatActor, InputPart, Layer
from sb3_qpd.version import __version__

FILE = "teacher.onnx"
INPUT, OUTPUTS, ACTION = "observation", "outputs", "action"  # the input of a Dict's key is observation/key
OPSET, IR_VERSION = 17, 8
_OPERATORS = {
    **{"relu": "Relu", "leaky_relu": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid", "elu": "Elu", "selu": "Selu"},
    **{"softplus": "Softplus", "softsign": "Softsign"},
}
_ATTRIBUTES = {"leaky_relu": ("alpha",), "elu": ("alpha",), "selu": ("alpha", "gamma")}


def export_undistilled_onnx(actor: FloatActor, out_dir: Path) -> list[Path]:
    """
    Write ``teacher.onnx``: raw observations in, ``action`` and ``outputs`` (logits, Q-values or the mean action) out.

    :param actor: the teacher's actor
    :param out_dir: a folder that exists
    :return: the file
    """
    return write_files(out_dir, {FILE: _Graph(actor).to_bytes()})


class _Graph:
    def __init__(self, actor: FloatActor) -> None:
        self.actor = actor
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def to_bytes(self) -> bytes:
        actor = self.actor
        features = [self.part(one) for one in actor.parts]
        x = features[0] if len(features) == 1 else self.node("Concat", features, axis=1)
        for layer in actor.layers:
            x = self.layer(layer, x)
        if actor.unscales:
            half = (actor.high - actor.low) / 2
            scaled = self.node("Mul", [self.node("Add", [x, self.constant(1.0)]), self.constant(half)])
            x = self.node("Add", [scaled, self.constant(actor.low)])
        self.node("Identity", [x], OUTPUTS)
        action_type = TensorProto.FLOAT if actor.is_box else TensorProto.INT64
        self.action()
        ends = [
            helper.make_tensor_value_info(ACTION, action_type, ["batch", *actor.shape]),
            helper.make_tensor_value_info(OUTPUTS, TensorProto.FLOAT, ["batch", actor.n_outputs]),
        ]
        graph = helper.make_graph(self.nodes, "teacher", self.inputs, ends, self.constants)
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="sb3_qpd", producer_version=__version__, opset_imports=opset)
        model.ir_version = IR_VERSION
        helper.set_model_props(model, {"sb3_qpd": json.dumps(without_paths(actor.metadata))})
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString()

    def part(self, one: InputPart) -> str:
        part = one.part
        name = INPUT if part.key is None else f"{INPUT}/{part.key}"
        kinds = {"image": TensorProto.UINT8, "one_hot": TensorProto.INT64}
        kind = kinds.get(part.kind, TensorProto.FLOAT)
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch", *part.shape]))
        if part.kind == "one_hot":
            return self.one_hot(name, part.nvec)
        x = self.node("Cast", [name], to=TensorProto.FLOAT) if part.kind == "image" else name
        for mean in one.split_mean:
            x = self.node("Sub", [x, self.constant(mean)]) if np.any(mean) else x
        if np.any(one.factor != 1):
            x = self.node("Mul", [x, self.constant(one.factor)])
        if math.isfinite(one.clip):
            x = self.node("Clip", [x, self.constant(-one.clip), self.constant(one.clip)])
        for layer in one.layers:
            x = self.layer(layer, x)
        return self.node("Flatten", [x])

    def one_hot(self, name: str, nvec: tuple[int, ...]) -> str:
        flat = self.node("Reshape", [name, self.constant([-1, len(nvec)], np.int64)])
        values, hot = self.constant([0, 1]), []
        for i, n in enumerate(nvec):
            index = self.node("Gather", [flat, self.constant(i, np.int64)], axis=1)
            hot.append(self.node("OneHot", [index, self.constant(n, np.int64), values]))
        return hot[0] if len(hot) == 1 else self.node("Concat", hot, axis=1)

    def layer(self, layer: Layer, x: str) -> str:
        if isinstance(layer, Conv):
            weights = [self.constant(layer.weight), self.constant(layer.bias)]
            return self.node("Conv", [x, *weights], strides=list(layer.stride))
        if isinstance(layer, Dense):
            weights = [self.constant(layer.weight), self.constant(layer.bias)]
            return self.node("Gemm", [self.node("Flatten", [x]), *weights], transB=1)
        return self.activation(layer, x)

    def activation(self, layer: Activation, x: str) -> str:
        if layer.kind == "clip":
            return self.node("Clip", [x, *(self.constant(bound) for bound in layer.parameters)])
        if layer.kind == "silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if layer.kind == "gelu":
            erf = self.node("Erf", [self.node("Mul", [x, self.constant(1 / math.sqrt(2))])])
            return self.node("Mul", [self.node("Mul", [x, self.constant(0.5)]), self.node("Add", [erf, self.constant(1.0)])])
        attributes: dict[str, Any] = dict(zip(_ATTRIBUTES.get(layer.kind, ()), layer.parameters, strict=True))
        return self.node(_OPERATORS[layer.kind], [x], **attributes)

    def action(self) -> None:
        actor = self.actor
        shape = self.constant([-1, *actor.shape], np.int64)
        if actor.is_box:
            clipped = self.node("Min", [self.node("Max", [OUTPUTS, self.constant(actor.low)]), self.constant(actor.high)])
            self.node("Reshape", [clipped, shape], ACTION)
        elif actor.is_binary:
            chosen = self.node("Cast", [self.node("Greater", [OUTPUTS, self.constant(0.0)])], to=TensorProto.INT64)
            self.node("Reshape", [chosen, shape], ACTION)
        else:
            ends = np.cumsum([0, *actor.nvec])
            pieces = [
                self.node("Slice", [OUTPUTS, *(self.constant([n], np.int64) for n in (start, end, 1))])
                for start, end in itertools.pairwise(ends)
            ]
            best = [self.node("ArgMax", [one], axis=1, keepdims=1) for one in pieces]
            joined = best[0] if len(best) == 1 else self.node("Concat", best, axis=1)
            self.node("Reshape", [joined, shape], ACTION)
