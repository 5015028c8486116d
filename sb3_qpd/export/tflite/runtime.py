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
from sb3_qpd.export.tflite.graph import pack_flatbuffer
from sb3_qpd.observations import batch_size

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

    def run(
        self, observations: Any, action_masks: np.ndarray | None = None, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        """
        Actions and network outputs for a batch.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param action_masks: which discrete actions are allowed; ``None`` allows all
        :param state: state of a student with a memory, see :meth:`~sb3_qpd.IntegerModel.trace`; ``None``: episodes begin
        :return: actions, and logits or means; the next state of a student with a memory
        """
        return tuple(self._invoke(self._interpreter, observations, action_masks, state))

    def trace(self, observations: Any, state: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """
        The integers after each step, by name: ``input_grid``, ``layer0``, ``layer1``, ..., ``accumulators``.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param state: see :meth:`run`
        :return: shape (batch_size, n), or (batch_size, channels, height, width) of images
        """
        model = schema.ModelT.InitFromPackedBuf(self._content)
        graph = model.subgraphs[0]
        names = [tensor.name.decode() for tensor in graph.tensors]
        traced = [i for i, name in enumerate(names) if is_step(name)]
        n_outputs = len(graph.outputs)
        if self._tracing is None:
            graph.outputs = [*graph.outputs, *traced]
            self._tracing = self._open(pack_flatbuffer(model))
        values = self._invoke(self._tracing, observations, None, state)[n_outputs:]
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

    def _invoke(
        self, opened: Any, observations: Any, action_masks: np.ndarray | None, state: np.ndarray | None
    ) -> list[np.ndarray]:
        inputs = opened.get_input_details()
        values = [self._value_of(given, observations, action_masks, state) for given in inputs]
        if any(tuple(given["shape"]) != x.shape for given, x in zip(inputs, values, strict=True)):
            for given, x in zip(inputs, values, strict=True):
                opened.resize_tensor_input(given["index"], x.shape)
            opened.allocate_tensors()
        for given, x in zip(inputs, values, strict=True):
            opened.set_tensor(given["index"], x)
        opened.invoke()
        return [opened.get_tensor(entry["index"]) for entry in opened.get_output_details()]

    def _value_of(
        self, given: Any, observations: Any, action_masks: np.ndarray | None, state: np.ndarray | None
    ) -> np.ndarray:
        """An input of the graph, in the type and layout that it takes."""
        name, shape = given["name"], tuple(given["shape_signature"][1:])
        if name == "state":
            return (
                np.zeros((batch_size(observations), *shape), np.int8)
                if state is None
                else np.ascontiguousarray(state, np.int8)
            )
        if name == "action_masks":
            allowed = np.ones(1, bool) if action_masks is None else np.asarray(action_masks, bool)
            return np.ascontiguousarray(np.broadcast_to(allowed, (batch_size(observations), *shape)))
        x = observations[name.removeprefix("observation/")] if isinstance(observations, dict) else observations
        with np.errstate(over="ignore"):
            x = x.astype(given["dtype"])
        is_other_layout = x.ndim == 4 and shape != x.shape[1:]
        return np.ascontiguousarray(np.moveaxis(x, 1, -1) if is_other_layout else x)


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
