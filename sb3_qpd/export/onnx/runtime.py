"""An exported ONNX file as a policy, run by ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sb3_qpd.export import is_step
from sb3_qpd.export.onnx.exporter import INPUT, MASKS


# --- in ONNX Runtime ---
class OnnxPolicy:
    """
    An exported file in ONNX Runtime, on the CPU. Images are given channels first, whatever layout the file takes.

    :param path: what :func:`export_onnx` wrote
    :param optimize: let the runtime optimize the graph
    :param n_threads: for one operator
    """

    def __init__(self, path: str | os.PathLike[str], *, optimize: bool = True, n_threads: int = 1) -> None:
        self._optimize, self._n_threads = optimize, n_threads
        self._proto = onnx.load(os.fspath(path))
        self._session = self._open(self._proto)
        self._tracing: Any = None
        nodes = self._proto.graph.node
        self.form = "qdq" if any(node.op_type == "DequantizeLinear" for node in nodes) else "operators"
        self._inputs = {one.name: one.type.tensor_type for one in self._proto.graph.input}
        self._channels_last = {node.input[0] for node in nodes if node.op_type == "Transpose"}
        # the input grids of vectors, which are 128 higher in the file
        quantized = [node.output[0] for node in nodes if node.op_type == "QuantizeLinear"]
        self._shifted = [name for name in quantized if name.startswith("input_grid")]

    def run(self, observations: Any, action_masks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """
        :param observations: raw, shape (batch_size, *observation_shape); a dict of such arrays
        :param action_masks: what is allowed, where the student was taught with masks; ``None``: everything
        :return: actions, and logits or means
        """
        return tuple(self._session.run(None, self._prepare(observations, action_masks)))

    def trace(self, observations: Any) -> dict[str, np.ndarray]:
        """
        The integers inside, by name: ``input_grid``, ``layer0``, ``layer1``, ..., ``accumulators``.

        :param observations: raw, shape (batch_size, *observation_shape)
        """
        names = [name for node in self._proto.graph.node for name in node.output if is_step(name)]
        if self._tracing is None:
            proto = onnx.ModelProto()
            proto.CopyFrom(self._proto)
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
            self._tracing = self._open(proto)
        values = dict(zip(names, self._tracing.run(names, self._prepare(observations)), strict=True))
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

    def _prepare(self, observations: Any, action_masks: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """What the graph's inputs take."""
        given: dict[str, np.ndarray] = {}
        for name, tensor in self._inputs.items():
            if name == MASKS:
                n = len(next(iter(given.values())))
                shape = n, tensor.shape.dim[1].dim_value
                given[name] = np.ones(shape, bool) if action_masks is None else np.asarray(action_masks, bool).reshape(shape)
                continue
            x = observations if name == INPUT else observations[name.removeprefix(f"{INPUT}/")]
            x = np.moveaxis(x, 1, -1) if name in self._channels_last else x
            given[name] = np.ascontiguousarray(x, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return given
