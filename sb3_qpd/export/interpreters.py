"""Exported programs of an interpreter (node, micropython), which a process of that interpreter runs for comparisons."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.export.embedding import state_size
from sb3_qpd.integer import IntegerModel


class NoInterpreter(RuntimeError):
    """The interpreter of an exported program is not installed."""


class Interpreter:
    """
    A process that runs exported programs, many of them one after the other.

    Each request is a line of JSON, and so is its answer. Numbers are sent as their bytes.

    :param name: name of the interpreter's program
    :param options: its options
    :param driver: script that answers requests
    :param package: package of Debian that has the interpreter, for the message
    :raises NoInterpreter: it is not installed
    """

    def __init__(self, name: str, options: Sequence[str], driver: Path, package: str) -> None:
        program = shutil.which(name)
        if program is None:
            raise NoInterpreter(f"No {name} found: install it, for example with `apt-get install {package}`")
        self._name = name
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([program, *options, driver], stdin=pipe, stdout=pipe, text=True, encoding="utf-8")

    def ask(self, method: str, **values: Any) -> dict[str, Any]:
        """
        Send a request.

        :param method: what is asked for
        :param values: its arguments, JSON values
        :return: the answer
        :raises ValueError: the program raised an error, or ended the interpreter
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"method": method, **values}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ValueError(f"{self._name} has ended with the exit code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(f"{self._name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()


class InterpretedPolicy:
    """
    An exported program as a policy. It takes images channels first, also where the program takes them channels last.

    :param path: the program
    :param model: the integer model that it was exported from, for shapes
    :param interpreter: runs the program
    """

    def __init__(self, path: str | os.PathLike[str], model: IntegerModel, interpreter: Interpreter) -> None:
        self._model, self._interpreter = model, interpreter
        loaded = interpreter.ask("load", path=str(Path(path).resolve()))
        self._policy, self._is_channels_last = loaded["policy"], loaded["isChannelsLast"]

    def run(
        self,
        observations: Any,
        action_masks: np.ndarray | None = None,
        state: np.ndarray | None = None,
        random: np.ndarray | None = None,
    ) -> tuple[np.ndarray, ...]:
        """
        Actions and network outputs for a batch.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param action_masks: bool, shape (batch_size, n): allowed actions; ``None`` allows all
        :param state: state of a student with a memory, see :meth:`sb3_qpd.IntegerModel.trace`; ``None`` begins episodes
        :param random: numbers that actions are drawn with, see :meth:`sample`; ``None``: the most probable actions
        :return: actions, and logits or means; the next state of a student with a memory
        """
        given, n = self._given(observations)
        drawn = None if random is None else _encode(np.asarray(random, np.float64))
        allowed = None if action_masks is None else _encode(np.asarray(action_masks, np.uint8))
        answer = self._ask("run", given=given, n=n, masks=allowed, random=drawn, state=self._state(state, n))
        actions = _decode(answer["actions"], np.float64).astype(np.float32 if self._model.is_box else np.int64)
        found = actions.reshape(n, *self._model.action_shape), _decode(answer["outputs"], np.float32).reshape(n, -1)
        if self._model.history == 1:
            return found
        return (*found, _decode(answer["state"], np.int8).reshape(n, self._model.history - 1, -1))

    def sample(self, observations: Any, random: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Draw actions.

        :param observations: see :meth:`run`
        :param random: for each dimension of a discrete action an integer of 32 bits; for a Box action standard normal numbers
        :param action_masks: see :meth:`run`
        """
        return self.run(observations, action_masks, random=random)[0]

    def trace(self, observations: Any, state: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """
        The integers after each step, by the names of :meth:`~sb3_qpd.integer.IntegerModel.step_names`.

        :param observations: see :meth:`run`
        :param state: see :meth:`run`
        """
        given, n = self._given(observations)
        answer = self._ask("trace", given=given, n=n, state=self._state(state, n))
        steps = [_decode(step, np.int32) for step in answer["steps"]]
        named = zip(self._model.step_names(), steps, self._shapes(), strict=True)
        return {name: step.reshape(n, *shape) for name, step, shape in named}

    def measure(self, observations: Any, seconds: float) -> tuple[float, int]:
        """
        Median processor time of one action in seconds, and bytes of memory.

        :param observations: see :meth:`run`
        :param seconds: time to go on for
        """
        given, n = self._given(observations)
        answer = self._ask("measure", given=given, n=n, seconds=seconds)
        return answer["seconds"], answer["memory"]

    def _ask(self, method: str, **values: Any) -> dict[str, Any]:
        return self._interpreter.ask(method, policy=self._policy, **values)

    def _state(self, state: np.ndarray | None, n: int) -> dict[str, str] | None:
        """The state of a student with a memory; zeros begin episodes."""
        if self._model.history == 1:
            return None
        return _encode(np.zeros((n, state_size(self._model)), np.int8) if state is None else np.asarray(state, np.int8))

    def _given(self, observations: Any) -> tuple[list[Any], int]:
        """Each part's key and numbers, and the batch size."""
        given, n = [], 0
        for part in self._model.parts:
            x = np.asarray(observations if part.key is None else observations[part.key])
            n = len(x)
            if part.kind == "image" and self._is_channels_last:
                x = np.moveaxis(x, 1, -1)
            given.append([part.key, _encode(x if x.dtype in (np.uint8, np.float32) else x.astype(np.float64))])
        return given, n

    def _shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the steps, without the batch."""
        shapes, layers = [], iter(self._model.layers)
        for parts, n_layers in zip(self._model.trunks, self._model.branches, strict=True):
            image = parts[0].is_image
            shapes.append(parts[0].shape if image else (-1,))
            for _ in range(n_layers):
                shapes.append(next(layers).output_shape(shapes[-1]))
        return [*shapes, (len(self._model.layers[-1].bias),)]


def _encode(array: np.ndarray) -> dict[str, str]:
    """The type and the bytes of an array, little-endian."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"dtype": array.dtype.str, "data": base64.b64encode(array.tobytes()).decode()}


def _decode(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype).newbyteorder("<")).astype(dtype)
