"""An exported TFLite file as a policy, run by LiteRT."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from sb3_qpd.export.files import is_step
from sb3_qpd.export.tflite.exporter import pack_flatbuffer

_NOTICE = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"


class TflitePolicy:
    """
    An exported file in LiteRT, on one thread of the CPU.

    It takes images channels first, also where the file takes them channels last.

    :param path: file that :func:`~sb3_qpd.export.export_tflite` wrote
    :param xnnpack: use XNNPACK; without it TFLite's own kernels round twice
    """

    def __init__(self, path: str | os.PathLike[str], *, xnnpack: bool = True) -> None:
        self._content, self._xnnpack = Path(path).read_bytes(), xnnpack
        self._interpreter = self._open(self._content)
        self._tracing: Any = None

    def run(self, observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Actions and network outputs for a batch.

        :param observations: raw observations, shape (batch_size, *observation_shape)
        :return: actions, and logits or means
        """
        actions, outputs = self._invoke(self._interpreter, observations)[:2]
        return actions, outputs

    def trace(self, observations: np.ndarray) -> dict[str, np.ndarray]:
        """
        The integers after each step, by name: ``input_grid``, ``layer0``, ``layer1``, ..., ``accumulators``.

        :param observations: raw observations, shape (batch_size, *observation_shape)
        :return: shape (batch_size, n), or (batch_size, channels, height, width) of images
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
        with without_notice():
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


@contextmanager
def without_notice() -> Iterator[None]:
    """
    Drop the runtime's notice that it uses XNNPACK; everything else written to stderr meanwhile is passed on.

    The notice comes from C++, once per process, and Python has no switch for it: TF_CPP_MIN_LOG_LEVEL is not asked
    (https://github.com/tensorflow/tensorflow/issues/58050).
    """
    if sys.stderr is None:  # closed: nothing to keep clean
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            os.write(2, captured.read().replace(_NOTICE, b""))
