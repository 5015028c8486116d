"""An exported ONNX file as a policy, run by ONNX Runtime."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sb3_qpd.export.files import is_step
from sb3_qpd.export.onnx.graph import INPUT, MASKS, NEXT_STATE, STATE


class OnnxPolicy:
    """
    An exported file in ONNX Runtime on the CPU.

    It takes images channels first, also where the file takes them channels last.

    :param path: file that :func:`~sb3_qpd.export.export_onnx` wrote
    :param optimize: let the runtime optimize the graph
    :param n_threads: number of threads for one operator
    :raises ImportError: if ONNX Runtime is not installed
    """

    def __init__(self, path: str | os.PathLike[str], *, optimize: bool = True, n_threads: int = 1) -> None:
        self._optimize, self._n_threads = optimize, n_threads
        self._proto = onnx.load(os.fspath(path))
        self._tracing: Any = None
        nodes = self._proto.graph.node
        self.form = "qdq" if any(node.op_type == "DequantizeLinear" for node in nodes) else "operators"
        properties = {one.key: one.value for one in self._proto.metadata_props}
        self._names = {new: old for old, new in json.loads(properties.get("names", "{}")).items()}
        # of files that leave the choice of the action to an engine
        self._action_shape = json.loads(properties["action_shape"]) if "action_shape" in properties else None
        if self._action_shape is not None:
            space = json.loads(properties["action_space"])
            self._nvec = space.get("nvec", [space.get("n")])
            if any(one.name == "output" for one in self._proto.graph.output):
                self._proto.graph.output.append(onnx.ValueInfoProto(name="mean" if "shape" in space else "logits"))
        self._session = self._open(self._proto)
        self._inputs = {one.name: one.type.tensor_type for one in self._proto.graph.input}
        self._channels_last = {node.input[0] for node in nodes if node.op_type == "Transpose"}
        # input grids of vectors: in the file they are 128 higher than in the integer model
        quantized = [node.output[0] for node in nodes if node.op_type in ("QuantizeLinear", "Concat")]
        is_plain = all(node.op_type != "QuantizeLinear" for node in nodes)
        self._shifted = [] if is_plain else [name for name in quantized if name.startswith("input_grid")]

    def run(
        self, observations: Any, action_masks: np.ndarray | None = None, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """
        Actions and network outputs for a batch.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param action_masks: bool, shape (batch_size, n): allowed actions of a student with masks; ``None`` allows all
        :param state: state of a student with a memory, see :meth:`sb3_qpd.IntegerModel.trace`; ``None`` begins episodes
        :return: actions, and logits or means; the next state of a student with a memory
        """
        found = self._session.run(None, self._prepare(observations, action_masks, state))
        names = [self._names.get(one.name, one.name) for one in self._session.get_outputs()]
        values: dict[str, Any] = dict(zip(names, found, strict=True))
        after = [values.pop(NEXT_STATE).astype(np.int8)] if NEXT_STATE in values else []
        if self._action_shape is None:
            return *values.values(), *after
        outputs = values["mean" if "mean" in values else "logits"]
        scores = values.get("output", outputs)
        actions = scores if "mean" in values else self._choose(scores, action_masks)
        return np.reshape(actions, (len(outputs), *self._action_shape)), outputs, *after

    def _choose(self, scores: np.ndarray, action_masks: np.ndarray | None) -> np.ndarray:
        """What an engine does with the logits of a discrete action: the first of the largest, in each dimension."""
        if scores.shape[1] < sum(self._nvec):  # the logit of 0 is 0
            scores = np.stack([np.zeros_like(scores), scores], axis=2).reshape(len(scores), -1)
        if action_masks is not None:
            scores = np.where(np.asarray(action_masks, bool).reshape(scores.shape), scores, -np.inf)
        return np.stack([one.argmax(1) for one in np.split(scores, np.cumsum(self._nvec)[:-1], axis=1)], axis=1)

    def trace(self, observations: Any, state: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """
        The integers after each step, by name: ``input_grid``, ``layer0``, ``layer1``, ..., ``accumulators``.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param state: see :meth:`run`
        """
        names = [name for node in self._proto.graph.node for name in node.output if is_step(name)]
        if self._tracing is None:
            proto = onnx.ModelProto()
            proto.CopyFrom(self._proto)
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            self._tracing = self._open(proto)
        values = dict(zip(names, self._tracing.run(names, self._prepare(observations, None, state)), strict=True))
        return {name: value.astype(np.int16) - 128 if name in self._shifted else value for name, value in values.items()}

    def _open(self, proto: onnx.ModelProto) -> Any:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise ImportError("Running an ONNX file needs onnxruntime: pip install 'sb3_qpd[export]'") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._n_threads
        options.log_severity_level = 3
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if self._optimize else level.ORT_DISABLE_ALL
        return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _prepare(self, observations: Any, action_masks: np.ndarray | None, state: np.ndarray | None) -> dict[str, np.ndarray]:
        """The graph's inputs by name, in the types and layouts that it takes."""
        given: dict[str, np.ndarray] = {}
        for given_name, tensor in self._inputs.items():
            name = self._names.get(given_name, given_name)
            if name == "state_ins":
                given[given_name] = np.zeros(len(next(iter(given.values()))), np.float32)
                continue
            if name == MASKS:
                n = len(next(iter(given.values())))
                shape = n, tensor.shape.dim[1].dim_value
                masks = np.ones(shape, bool) if action_masks is None else np.asarray(action_masks, bool).reshape(shape)
                given[given_name] = masks
                continue
            if name == STATE:
                shape = (len(next(iter(given.values()))), *(dim.dim_value for dim in tensor.shape.dim[1:]))
                kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)  # int8; float32 in plain float operators
                given[given_name] = np.zeros(shape, kind) if state is None else np.ascontiguousarray(state, kind)
                continue
            x = observations if name == INPUT else observations[name.removeprefix(f"{INPUT}/")]
            x = np.moveaxis(x, 1, -1) if given_name in self._channels_last else x
            x = x.reshape(len(x), -1) if len(tensor.shape.dim) == 2 else x  # Godot has flat observations
            given[given_name] = np.ascontiguousarray(x, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return given
