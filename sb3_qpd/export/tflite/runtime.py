"""An exported TFLite file as a policy, run by LiteRT."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from sb3_qpd.export import is_step
from sb3_qpd.export.tflite.exporter import pack_flatbuffer


class TflitePolicy:
    """
    An exported file in LiteRT, on the CPU and one thread. Images are given channels first, whatever layout the file takes.

    :param path: what :func:`export_tflite` wrote
    :param xnnpack: False: TFLite's own kernels, which round twice
    """

    def __init__(self, path: str | os.PathLike[str], *, xnnpack: bool = True) -> None:
        self._content, self._xnnpack = Path(path).read_bytes(), xnnpack
        self._interpreter = self._open(self._content)
        self._tracing: Any = None

    def run(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param observations: raw, shape (batch_size, *observation_shape)
        :return: actions, and logits or means
        """
        actions, outputs = self._invoke(self._interpreter, observations)[:2]
        return actions, outputs

    def trace(self, observations: np.ndarray) -> dict[str, np.ndarray]:
        """
        The integers inside, by name: ``input_grid``, ``layer0``, ``layer1``, ..., ``accumulators``; images channels first.

        :param observations: raw, shape (batch_size, *observation_shape)
        """
        model = schema.ModelT.InitFromPackedBuf(self._content)
        graph = model.subgraphs[0]
        names = [tensor.name.decode() for tensor in graph.tensors]
        traced = [i for i, name in enumerate(names) if is_step(name)]
        if self._tracing is None:
            graph.outputs = [*graph.outputs, *traced]
            self._tracing = self._open(pack_flatbuffer(model))
        values = self._invoke(self._tracing, observations)[2:]
        zero_points = [
            0 if graph.tensors[i].quantization is None else graph.tensors[i].quantization.zeroPoint[0] for i in traced
        ]
        integers = [value.astype(np.int64) - zero for value, zero in zip(values, zero_points, strict=True)]
        return {names[i]: np.moveaxis(x, -1, 1) if x.ndim == 4 else x for i, x in zip(traced, integers, strict=True)}

    def _open(self, content: bytes) -> Any:
        from ai_edge_litert import interpreter

        kinds = interpreter.OpResolverType
        kind = kinds.AUTO if self._xnnpack else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        opened = interpreter.Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=kind)
        opened.allocate_tensors()
        return opened

    def _invoke(self, opened: Any, observations: np.ndarray) -> list[np.ndarray]:
        (given,) = opened.get_input_details()
        x = observations.astype(given["dtype"])
        if x.ndim == 4 and tuple(given["shape_signature"][1:]) != x.shape[1:]:
            x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        if tuple(given["shape"]) != x.shape:
            opened.resize_tensor_input(given["index"], x.shape)
            opened.allocate_tensors()
        opened.set_tensor(given["index"], x)
        opened.invoke()
        return [opened.get_tensor(entry["index"]) for entry in opened.get_output_details()]
