"""The exported C, compiled for this computer and called from Python."""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sb3_qpd.export.c.fields import fields_of
from sb3_qpd.export.c.layout import lay_out
from sb3_qpd.export.c.text import read_template, rename
from sb3_qpd.export.c.vectors import DTYPES, c_observations, frames_of
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size

HOST_FLAGS = ("-O3", "-march=native")


def find_compiler() -> list[str]:
    """
    The command of the C compiler: ``$CC``, or the first of cc, gcc and clang that is installed.

    :raises RuntimeError: if there is none
    """
    given = shlex.split(os.environ.get("CC", ""))
    for command in [given] if given else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    wanted = f"$CC = {shlex.join(given)}" if given else "cc, gcc or clang"
    raise RuntimeError(f"No C compiler found ({wanted}): install one, for example with `apt-get install gcc`, or set CC")


def run_compiler(command: Sequence[str | os.PathLike[str]]) -> None:
    """
    Run a compiler.

    :param command: the compiler and its arguments
    :raises RuntimeError: if it fails, with its messages
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(map(str, command))} failed:\n{done.stderr or done.stdout}")


class CPolicy:
    """
    A student's C, compiled into a shared library, and called from Python.

    :meth:`load` is the shortest way to one. Its :meth:`predict` gives what :meth:`IntegerModel.predict` gives, in a few
    microseconds. Like the C it has static memory: threads must not use one object at the same time. The state of a student
    with a memory is given at each call, as to the integer model. Without a state an episode begins. ``library`` is the loaded
    library, for functions of the C that have no method here.

    :param folder: folder that ``export_c`` wrote into
    :param cflags: options for the compiler
    :param name: name that was given to ``export_c``
    :param compiler: command of the compiler; by default :func:`find_compiler` finds it
    :param model: the student that the C was exported from; :meth:`predict`, Dict observations and images of floats need it
    :raises FileNotFoundError: if the folder has no such C file
    :raises RuntimeError: if there is no compiler, or it fails
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        cflags: Sequence[str] = ("-O3",),
        name: str = "policy",
        compiler: Sequence[str] | None = None,
        model: IntegerModel | None = None,
    ) -> None:
        folder = Path(folder).resolve()
        if not (folder / f"{name}.c").exists():
            raise FileNotFoundError(f"No {name}.c in '{folder}': export_c writes it")
        command = list(compiler) if compiler is not None else find_compiler()
        with tempfile.TemporaryDirectory() as build:
            source, library = Path(build, "harness.c"), Path(build, "harness.so")
            source.write_text(rename(read_template("harness.c"), name), encoding="utf-8")
            run_compiler([*command, *cflags, "-fPIC", "-shared", "-I", folder, source, "-o", library])
            self.library = ctypes.PyDLL(str(library))  # stays mapped when its file is gone; a call is too short for threads
        four, six = ctypes.c_int32 * 4, ctypes.c_int32 * 6
        kind = six.in_dll(self.library, "harness_kind")
        self.is_image, self.is_box, self.is_fixed, self.n_outputs, self.is_indices, self.n_actions = kind
        self.ram = ctypes.c_int32.in_dll(self.library, "harness_ram").value  # static bytes, the stack of frames included
        self.is_double = bool(ctypes.c_int32.in_dll(self.library, "harness_is_double").value)
        self._observation = tuple(four.in_dll(self.library, "harness_observation"))  # frames, height, width, channels
        self._state_size = ctypes.c_int32.in_dll(self.library, "harness_state_size").value
        self._model = model
        if model is not None:
            self._prepare_predict(model)

    @classmethod
    def load(cls, source: str | os.PathLike[str] | IntegerModel, cflags: Sequence[str] = HOST_FLAGS) -> CPolicy:
        """
        Write the C of a student, and compile it. No C of a folder is compiled, so the student may come from elsewhere.

        :param source: an integer model, or what :meth:`IntegerModel.load` takes
        :param cflags: options for the compiler
        :raises RuntimeError: if there is no compiler, or it fails
        """
        from sb3_qpd.export import export_c

        model = source if isinstance(source, IntegerModel) else IntegerModel.load(source)
        with tempfile.TemporaryDirectory() as folder:
            export_c(model, folder)
            return cls(folder, cflags, model=model)

    def _prepare_predict(self, model: IntegerModel) -> None:
        """Arrays over the memory of the C's in which a single observation and its action lie."""
        library, part, n = self.library, model.parts[0], max(self.n_actions, 1)
        self._one = library.harness_one
        self._one.argtypes, self._one.restype = (ctypes.c_int,), ctypes.c_int
        name, dtype, size = ("box_action", np.float32, self.n_outputs) if self.is_box else ("action", np.int64, n)
        self._action = self._memory(f"harness_one_{name}", dtype, size).reshape(model.action_shape)
        self._bits = self._memory("harness_one_bits", np.uint32, n)
        state_shape = (1, model.history - 1, -1) if self._state_size else (0,)
        self._state = self._memory("harness_one_state", np.int8, self._state_size).reshape(state_shape)
        if model.is_dict or part.is_image:
            self._input_shape: tuple[int, ...] | None = None  # all observations take the other way
        elif part.kind == "one_hot":
            self._input = self._memory("harness_one_indices", np.int64, math.prod(part.shape)).reshape(part.shape)
            self._input_shape, self._input_dtypes = part.shape, _INTEGERS
        else:
            raw = DTYPES[fields_of(model)[0].raw_type]
            self._input = self._memory("harness_one_observation", raw, math.prod(part.shape)).reshape(part.shape)
            self._input_shape, self._input_dtypes = part.shape, _NUMBERS

    def _memory(self, name: str, dtype: Any, size: int) -> np.ndarray:
        """An array over a variable of the library."""
        memory = (ctypes.c_char * (np.dtype(dtype).itemsize * size)).in_dll(self.library, name)
        return np.frombuffer(memory, dtype)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Actions for raw observations, bit for bit those of :meth:`IntegerModel.predict`, with the same signature.

        A single vector, or indices, take the shortest way. Batches, images, Dict observations, masks and sampled actions of a
        Box take longer: the integer model checks the observation and chooses the action, and C computes the network.

        :param observation: see :meth:`IntegerModel.predict`
        :param state: see :meth:`IntegerModel.predict`
        :param episode_start: see :meth:`IntegerModel.predict`
        :param deterministic: see :meth:`IntegerModel.predict`
        :param action_masks: see :meth:`IntegerModel.predict`
        :return: actions in environment units, and ``state``
        """
        model = self._known_model()
        if (
            type(observation) is np.ndarray
            and observation.shape == self._input_shape
            and observation.dtype.char in self._input_dtypes
            and action_masks is None
            and (deterministic or not self.is_box)
            and (not self._state_size or self._write_state(state, episode_start))
        ):
            self._write(observation)
            if not deterministic:
                self._bits[:] = model.random_bits(1).reshape(-1)
            if not self._one(not deterministic):  # else the integer model says what is wrong
                return self._action.copy(), ((self._state.copy(),) if self._state_size else state)
        batch, is_batch = model._batch(observation)
        before = model.remember(batch, state, episode_start)[0] if self._state_size else None
        actions = model.actions(self.outputs(batch, before).astype(np.int64), deterministic, action_masks)
        if before is not None:
            state = (model.remember(batch, (before,), actions=actions)[1],)
        return (actions if is_batch else actions.squeeze(axis=0)), state

    def _write_state(self, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> bool:
        """Put a state where C reads it. ``False``: it is no state of this student, and the integer model raises the error."""
        if state is None or (episode_start is not None and np.all(episode_start)):
            self._state[:] = 0
            return True
        is_state = state[0].dtype == np.int8 and state[0].shape == self._state.shape
        if is_state:
            self._state[:] = state[0]
        return is_state

    def _write(self, observation: np.ndarray) -> None:
        """Put an observation where C reads it. What overflows there becomes infinite, which C refuses."""
        if observation.dtype == self._input.dtype:
            self._input[...] = observation
            return
        with np.errstate(over="ignore"):
            self._input[...] = observation

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed the generator that sampled actions come from."""
        self._known_model().set_random_seed(seed)

    def outputs(self, observations: Any, state: np.ndarray | None = None) -> np.ndarray:
        """
        The head's accumulators, as :meth:`IntegerModel.accumulators` computes them.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param state: see :meth:`IntegerModel.trace`
        :return: int32, shape (batch_size, n_out)
        """
        batch = self._prepare(observations)
        outputs = np.empty((len(batch), self.n_outputs), np.int32)
        self._call("harness_outputs", *self._given(batch, state), _pointer(outputs))
        return outputs

    def weights(
        self, observations: Any, action_masks: np.ndarray | None = None, state: np.ndarray | None = None
    ) -> np.ndarray:
        """
        The weights that actions are drawn with, see :meth:`IntegerModel.weights`.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param action_masks: for students that were taught with masks, shape (batch_size, sum(action_nvec))
        :param state: see :meth:`IntegerModel.trace`
        :return: uint32, shape (batch_size, sum(action_nvec))
        :raises ValueError: the C was exported without ``probabilities=True``
        """
        model, batch = self._known_model(), self._prepare(observations)
        if not hasattr(self.library, "harness_weights"):
            raise ValueError("This C has no weights: export it with probabilities=True")
        masks = None if action_masks is None else np.ascontiguousarray(action_masks, np.uint8)
        weights = np.empty((len(batch), sum(model.action_nvec)), np.uint32)
        self._call("harness_weights", *self._given(batch, state), _pointer(masks), _pointer(weights))
        return weights

    def values(self, observations: Any, state: np.ndarray | None = None) -> np.ndarray:
        """
        The values of observations, see :func:`~sb3_qpd.export.value_head.values_of`.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param state: see :meth:`IntegerModel.trace`
        :return: int32, shape (batch_size,)
        :raises ValueError: the C was exported without ``with_value=True``
        """
        if not hasattr(self.library, "harness_values"):
            raise ValueError("This C has no value head: export it with with_value=True")
        batch = self._prepare(observations)
        values = np.empty(len(batch), np.int32)
        self._call("harness_values", *self._given(batch, state), _pointer(values))
        return values

    def trace(
        self, observations: Any, model: IntegerModel, state: np.ndarray | None = None
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """
        The integers after each step, as :meth:`IntegerModel.trace` yields them, and the actions.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param model: the integer model, for the shapes of its layers
        :param state: see :meth:`IntegerModel.trace`
        :return: input grid and outputs of each layer of each trunk, accumulators of the head, and (with a memory) the state of
            the next step; and the most probable (or mean) actions
        :raises ValueError: if the C was exported from a model with other layers
        """
        n, shapes, shifts = batch_size(observations), list[tuple[int, ...]](), list[int]()
        for trunk in lay_out(model).trunks:
            shapes += [trunk.input_shape, *(layer.output_shape for layer in trunk.layers)]
            shifts += [trunk.shift, *(0 for _ in trunk.layers)]
        sizes = [*(math.prod(shape) for shape in shapes), 4 * len(model.layers[-1].weight)]
        buffer, after = np.empty((n, sum(sizes)), np.uint8), np.zeros((n, self._state_size), np.int8)
        actions = self._act(observations, None, buffer, state=state, after=after)
        *parts, outputs = np.split(buffer, np.cumsum(sizes)[:-1], axis=1)
        steps: list[np.ndarray] = [
            np.moveaxis(x.reshape(n, *shape[1:], shape[0]), -1, 1) for x, shape in zip(parts, shapes, strict=True)
        ]
        steps = [x.astype(np.int16) - shift if shift else x for x, shift in zip(steps, shifts, strict=True)]
        steps.append(np.ascontiguousarray(outputs).view(np.int32))
        return ([*steps, after.reshape(n, model.history - 1, -1)] if self._state_size else steps), actions

    def act(self, observation: Any, random_bits: int | np.ndarray | None = None) -> np.ndarray:
        """
        The action for one observation, in units of the environment.

        :param observation: raw observation, shape ``observation_shape``; a dict of arrays for Dict observations
        :param random_bits: a uint32 for each index of a discrete action, to draw it with; ``None`` takes the most probable one
        :return: an index, an array of indices, or the mean of a Box action as a flat array
        """
        one = {key: x[None] for key, x in observation.items()} if isinstance(observation, dict) else observation[None]
        return self.actions(one, None if random_bits is None else np.array([random_bits]))[0]

    def actions(
        self,
        observations: Any,
        random_bits: np.ndarray | None = None,
        action_masks: np.ndarray | None = None,
        state: np.ndarray | None = None,
    ) -> np.ndarray:
        """
        The actions for a batch of observations, see :meth:`act`.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param random_bits: uint32, shape (batch_size,) or, for an action of n indices, (batch_size, n)
        :param action_masks: for students that were taught with masks, shape (batch_size, sum(action_nvec))
        :param state: see :meth:`IntegerModel.trace`
        :return: shape (batch_size,), (batch_size, n) or (batch_size, action_dim)
        """
        return self._act(observations, random_bits, None, action_masks, state)

    def run(
        self, observations: Any, action_masks: np.ndarray | None = None, state: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        The most probable (or mean) actions, and the head's accumulators.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param action_masks: for students that were taught with masks, shape (batch_size, sum(action_nvec))
        :param state: see :meth:`IntegerModel.trace`
        """
        return self.actions(observations, None, action_masks, state), self.outputs(observations, state)

    def _act(
        self,
        observations: Any,
        random_bits: np.ndarray | None,
        trace: np.ndarray | None,
        action_masks: np.ndarray | None = None,
        state: np.ndarray | None = None,
        after: np.ndarray | None = None,
    ) -> np.ndarray:
        if self.is_box and random_bits is not None:
            raise ValueError("random_bits are for discrete actions, this student has a Box: act(observation) gives its mean")
        batch = self._prepare(observations)
        shape = (len(batch), self.n_actions) if self.n_actions else (len(batch),)
        bits = None if random_bits is None else np.ascontiguousarray(np.reshape(random_bits, shape), np.uint32)
        masks = None if action_masks is None else np.ascontiguousarray(action_masks, np.uint8)
        actions, box_actions = np.zeros(shape, np.int32), np.zeros((len(batch), self.n_outputs), np.float32)
        given = *self._given(batch, state), *map(_pointer, (masks, bits, actions, box_actions, after, trace))
        self._call("harness_act", *given, ctypes.c_int64(0 if trace is None else trace.size))
        return box_actions if self.is_box else actions.astype(np.int64)

    def _prepare(self, observations: Any) -> np.ndarray:
        """A batch in C's layout. C checks the values itself."""
        if self._model is not None and (self._model.is_dict or self._model.parts[0].kind == "float_image"):
            return c_observations(self._model, 1, observations, is_raw=True)
        n_frames, height, width, channels = self._observation
        expected = (n_frames * channels, height, width) if self.is_image else (width,)
        flat = observations if self.is_image else observations.reshape(len(observations), -1)
        if flat.shape[1:] != expected:
            raise ValueError(f"Expected observations of shape (batch_size, *{expected}), got {observations.shape}")
        if not self.is_image:
            return np.ascontiguousarray(flat, np.int32 if self.is_indices else np.float64 if self.is_double else np.float32)
        if flat.dtype != np.uint8:
            raise ValueError(f"Expected images of dtype uint8, got {flat.dtype}")
        return np.ascontiguousarray(frames_of(flat, n_frames))

    def _given(self, batch: np.ndarray, state: np.ndarray | None) -> tuple[object, ...]:
        """The first arguments of a function of the harness. ctypes keeps arrays alive that its pointers came from."""
        if state is not None and (state.dtype != np.int8 or state.size != len(batch) * self._state_size):
            wanted = f"a state of int8 with {self._state_size} numbers for each observation"
            raise ValueError(f"Expected {wanted}, got {state.dtype} of shape {state.shape}")
        states = None if state is None else np.ascontiguousarray(state)
        return _pointer(batch), _pointer(states), ctypes.c_int64(len(batch))

    def _known_model(self) -> IntegerModel:
        if self._model is None:
            raise ValueError("Give the student's integer model, CPolicy(folder, model=model), or use CPolicy.load")
        return self._model

    def _call(self, function: str, *arguments: object) -> None:
        if code := getattr(self.library, function)(*arguments):
            _raise(code)


_INTEGERS = frozenset("bBhHiIlLqQ")  # characters of dtypes
_NUMBERS = _INTEGERS | frozenset("?efdg")
_REASONS = {
    -2: "the observation holds NaN or infinity",
    -4: "the observation holds a number that is none of its categories",
    -5: "action_masks allow no action at all for an observation",
    -100: "it was exported from a model with other layers",
}


def _raise(code: int) -> NoReturn:
    raise ValueError(f"The C policy returned {code}: {_REASONS.get(code, 'see the codes in the header')}")


def _pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)
