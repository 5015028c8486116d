"""
Teachers in ONNX files, as other frameworks export them: Isaac Lab, Godot RL Agents, Unity ML-Agents, torch itself.

The file says nothing of the environment and little of its outputs. So the spaces come from the environment, and ``kind`` says
what the outputs are. ONNX Runtime computes on the CPU, within a bound of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.integer import ObservationPart
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.onnx_file import OnnxFile, read_onnx
from sb3_qpd.teachers.functions import KINDS, teacher_from_function
from sb3_qpd.teachers.teacher import Teacher

MEMORY = 2**31  # bytes that a file may take while it computes
# inputs beside the observation that exporters write: a state that memoryless policies ignore, and the actions that are allowed
STATES, MASKS = ("state_ins", "recurrent_in"), ("action_masks",)
# names of outputs, the best one first
ACTIONS = ("deterministic_continuous_actions", "deterministic_discrete_actions", "continuous_actions", "discrete_actions")
_DTYPES = {
    **{"float": np.float32, "float16": np.float16, "double": np.float64, "bool": np.bool_},
    **{name: np.dtype(name).type for name in ("uint8", "int8", "int16", "int32", "int64")},
}


@dataclass(frozen=True)
class Tensor:
    """
    An input or output of a file.

    :param name: its name
    :param dtype: its type of numbers
    :param shape: its shape; ``None`` for a size that is free
    """

    name: str
    dtype: Any
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {tuple('n' if size is None else size for size in self.shape)}".replace("'", "")


class OnnxNetwork:
    """
    A file in ONNX Runtime, as a function of a batch of raw observations.

    :param file: the file
    :param parts: parts of an observation
    :param inputs: names of the inputs for these parts, ``None`` to find them
    :raises TeacherError: the runtime refuses the file, or its inputs do not fit the observations
    """

    def __init__(self, file: OnnxFile, parts: tuple[ObservationPart, ...], inputs: Sequence[str] | None) -> None:
        self.file, self.parts = file, parts
        self.n_parameters = file.n_parameters
        self._session = _open(file)
        self.inputs, self.outputs = ([_tensor(one, file) for one in found] for found in _ends(self._session))
        self._observed = self._find_inputs(inputs)
        self.wanted: tuple[str, ...] = ()
        self.states: float = 0.0

    def _find_inputs(self, names: Sequence[str] | None) -> list[Tensor]:
        known = {one.name: one for one in self.inputs}
        if names is not None:
            if missing := [name for name in names if name not in known]:
                raise TeacherError(f"{self.file.path} has no input {', '.join(missing)}. It has {_listed(self.inputs)}")
            found = [known[name] for name in names]
        elif all(part.key in known for part in self.parts):
            found = [known[str(part.key)] for part in self.parts]
        else:
            found = [one for one in self.inputs if one.name not in (*STATES, *MASKS)]
        others = [one for one in self.inputs if one not in found and one.name not in (*STATES, *MASKS)]
        is_joined = len(found) == 1 and len(self.parts) > 1 and not any(part.is_image for part in self.parts)
        if others or (len(found) != len(self.parts) and not is_joined):
            raise TeacherError(
                f"{self.file.path} takes {_listed(self.inputs)}, an observation has {len(self.parts)} part(s). Name the "
                "inputs in the order of the parts: inputs=. A network with a state is not supported"
            )
        return found

    def __call__(self, observations: Any) -> Any:
        """
        The wanted outputs for a batch: one array, or a tuple of them.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        """
        rows = self._rows(observations)
        n, size = len(rows[0]), self._batch_size
        pieces = [self._run([row[at : at + size] for row in rows], size) for at in range(0, n, size)] if size else []
        outputs = [np.concatenate(one) for one in zip(*pieces, strict=True)] if size else self._run(rows, n)
        return outputs[0] if len(self.wanted) == 1 else tuple(outputs)

    def _rows(self, observations: Any) -> list[np.ndarray]:
        """An array for each input."""
        given = [np.asarray(observations if part.key is None else observations[part.key]) for part in self.parts]
        n = len(given[0])
        if len(self._observed) < len(given):
            flat = [_one_hot(part, values).reshape(n, -1) for part, values in zip(self.parts, given, strict=True)]
            return [np.concatenate(flat, axis=1)]
        return [self._fitted(*one) for one in zip(self._observed, self.parts, given, strict=True)]

    def _fitted(self, tensor: Tensor, part: ObservationPart, values: np.ndarray) -> np.ndarray:
        width = tensor.shape[-1] if tensor.shape else None
        if part.kind == "one_hot" and len(tensor.shape) == 2 and width == part.n_features:
            return _one_hot(part, values)
        if len(tensor.shape) == 2 and values.ndim != 2:
            return values.reshape(len(values), -1)
        return values

    @property
    def _batch_size(self) -> int:
        """Observations that go in at once, 0 for any number. 1 also stands for inputs without an axis for the batch."""
        if self._is_unbatched:
            return 1
        return next((one.shape[0] for one in self._observed if one.shape and one.shape[0] is not None), 0)

    @property
    def _is_unbatched(self) -> bool:
        return all(one.shape == part.shape for one, part in zip(self._observed, self.parts, strict=False))

    def _run(self, rows: list[np.ndarray], size: int) -> list[np.ndarray]:
        n = len(rows[0])
        feeds = {}
        for tensor, values in zip(self._observed, rows, strict=True):
            padded = values if n == size else np.concatenate([values, np.zeros((size - n, *values.shape[1:]), values.dtype)])
            feeds[tensor.name] = (padded[0] if self._is_unbatched else padded).astype(tensor.dtype)
        for tensor in self.inputs:
            if tensor.name in (*STATES, *MASKS):
                value = 1.0 if tensor.name in MASKS else self.states
                shape = [size if i == 0 and one is None else one or 1 for i, one in enumerate(tensor.shape)]
                feeds[tensor.name] = np.full(shape, value, tensor.dtype)
        try:
            outputs = self._session.run(list(self.wanted), feeds)
        except Exception as error:  # the runtime raises exceptions of its own
            raise TeacherError(f"{self.file.path} cannot compute: {_reason(error)}") from error
        return [one[None] if self._is_unbatched else one[:n] if np.ndim(one) and len(one) == size else one for one in outputs]


def _one_hot(part: ObservationPart, values: np.ndarray) -> np.ndarray:
    if part.kind != "one_hot":
        return values
    columns = values.reshape(len(values), -1).T
    return np.concatenate([np.eye(n, dtype=np.float32)[one.astype(int)] for n, one in zip(part.nvec, columns, strict=True)], 1)


def load_onnx(
    path: Path,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    kind: str | None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Teacher:
    """
    A teacher from an ONNX file.

    :param path: the file
    :param observation_space: the environment's, images channels first
    :param action_space: the environment's
    :param kind: see :meth:`sb3_qpd.Teacher.from_function`
    :param inputs: names of the inputs in the order of the observation's parts, ``None`` to find them
    :param outputs: names of the outputs: the actor's, or mean and log_std of a Gaussian; then the value's, if any
    :raises TeacherError: the file is refused, or does not fit the spaces
    """
    if kind not in KINDS:
        raise TeacherError(
            f"An ONNX file does not say what its outputs are. Give kind=, one of {', '.join(KINDS)}, got {kind!r}"
        )
    try:
        parts, head = observation_parts(observation_space), action_head(action_space)
    except ValueError as error:
        raise TeacherError(str(error)) from error
    network = OnnxNetwork(read_onnx(path), parts, inputs)
    width = (len(head.shape) and int(np.prod(head.shape))) or 1
    widths = {width} if head.is_box or kind == "action" else {sum(head.nvec), head.n_outputs}
    names = _find_outputs(network, kind, widths, outputs)
    n_actor = 2 if kind == "gaussian" else 1
    network.wanted = tuple(names[:n_actor])
    value = _of(network, names[n_actor]) if len(names) > n_actor else None
    name, checksum = f"onnx/{path.stem}", network.file.checksum
    options: dict[str, Any] = {"value": value, "name": name, "checksum": checksum, "algo": "onnx"}
    teacher = teacher_from_function(network, observation_space, action_space, kind, **options)
    _check_memoryless(network, observation_space)
    return teacher


def _of(network: OnnxNetwork, name: str) -> Any:
    def value(observations: Any) -> Any:
        before, network.wanted = network.wanted, (name,)
        try:
            return network(observations)
        finally:
            network.wanted = before

    return value


def _find_outputs(network: OnnxNetwork, kind: str, widths: set[int], names: Sequence[str] | None) -> list[str]:
    known = [one.name for one in network.outputs]
    n_actor = 2 if kind == "gaussian" else 1
    if names is not None:
        if any(name not in known for name in names) or not n_actor <= len(names) <= n_actor + 1:
            raise TeacherError(
                f"{network.file.path} has the outputs {_listed(network.outputs)}, and outputs= names "
                f"{', '.join(names) or 'none'}. Expected {n_actor} for kind {kind!r}, then that of the value, if any"
            )
        return list(names)
    fitting = [one.name for one in network.outputs if _width(one, network) in (None, *widths)]
    best = [name for name in ACTIONS if name in fitting][:1] if kind == "action" else []
    found = best or fitting[:n_actor]
    if len(found) < n_actor:
        raise TeacherError(
            f"{network.file.path} has the outputs {_listed(network.outputs)}, of which none fits kind {kind!r} with "
            f"{' or '.join(map(str, sorted(widths)))} numbers an observation. Give another kind= or outputs="
        )
    return found


def _width(output: Tensor, network: OnnxNetwork) -> int | None:
    """Numbers of an output for one observation, ``None`` where the file does not say."""
    own = output.shape if network._is_unbatched else output.shape[1:]
    return None if None in own else int(np.prod([size or 0 for size in own]))


def _check_memoryless(network: OnnxNetwork, space: spaces.Space) -> None:
    """An exporter's state that changes the answer is a memory."""
    if not any(one.name in STATES for one in network.inputs):
        return
    from sb3_qpd.teachers.functions import sample_batch

    batch, answers = sample_batch(space, 3), []
    for network.states in (1.0, 0.0):
        answers.append(np.concatenate([np.ravel(one) for one in np.atleast_1d(network(batch))]))
    if not np.array_equal(answers[0], answers[1]):
        raise TeacherError(
            f"{network.file.path} has a memory: its answer depends on its state. Such teachers are not supported"
        )


@cache
def _bound_memory() -> None:
    """Once for the process: an arena for the sessions that ask for it."""
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    # it grows by what is asked for: doubled, it would reach its bound too early
    onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": MEMORY, "arena_extend_strategy": 1}))


def _open(file: OnnxFile) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX teachers need ONNX Runtime: pip install 'sb3_qpd[export]'") from error
    _bound_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.inter_op_num_threads = 4, 1, 1
    # the optimizer computes constants outside of the arena
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        # without a fallback, which prints texts of the file
        settings = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
        return onnxruntime.InferenceSession(file.content, options, **settings)
    except Exception as error:  # the runtime raises exceptions of its own
        raise TeacherError(f"{file.path} is refused by ONNX Runtime: {_reason(error)}") from error


def _ends(session: Any) -> tuple[list[Any], list[Any]]:
    return session.get_inputs(), session.get_outputs()


def _tensor(one: Any, file: OnnxFile) -> Tensor:
    kind = one.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise TeacherError(f"{file.path} has {one.name} of the type {one.type}, expected numbers")
    return Tensor(one.name, _DTYPES[kind], tuple(size if isinstance(size, int) else None for size in one.shape))


def _listed(tensors: list[Tensor]) -> str:
    return ", ".join(map(str, tensors)) or "nothing"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
