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

import numpy as np

from sb3_qpd.export.c.text import read_template, rename
from sb3_qpd.export.c.vectors import frames_of
from sb3_qpd.integer import IntegerModel


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
    A student's C, compiled into a shared library.

    Like the C it has static memory, so it must not be used from several threads at once. ``library`` is the loaded library,
    for functions of the C that have no method here.

    :param folder: folder that ``export_c`` wrote into
    :param cflags: options for the compiler
    :param name: name that was given to ``export_c``
    :param compiler: command of the compiler; by default :func:`find_compiler` finds it
    :raises FileNotFoundError: if the folder has no such C file
    :raises RuntimeError: if there is no compiler, or it fails
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        cflags: Sequence[str] = ("-O3",),
        name: str = "policy",
        compiler: Sequence[str] | None = None,
    ) -> None:
        folder = Path(folder).resolve()
        if not (folder / f"{name}.c").exists():
            raise FileNotFoundError(f"No {name}.c in '{folder}': export_c writes it")
        command = list(compiler) if compiler is not None else find_compiler()
        with tempfile.TemporaryDirectory() as build:
            source, library = Path(build, "harness.c"), Path(build, "harness.so")
            source.write_text(rename(read_template("harness.c"), name), encoding="utf-8")
            run_compiler([*command, *cflags, "-fPIC", "-shared", "-I", folder, source, "-o", library])
            self.library = ctypes.CDLL(str(library))  # stays mapped when its file is gone
        four, six = ctypes.c_int32 * 4, ctypes.c_int32 * 6
        kind = six.in_dll(self.library, "harness_kind")
        self.is_image, self.is_box, self.is_fixed, self.n_outputs, self.is_indices, self.n_actions = kind
        self.ram = ctypes.c_int32.in_dll(self.library, "harness_ram").value  # static bytes, the stack of frames included
        self.is_double = bool(ctypes.c_int32.in_dll(self.library, "harness_is_double").value)
        self._observation = tuple(four.in_dll(self.library, "harness_observation"))  # frames, height, width, channels

    def outputs(self, observations: np.ndarray) -> np.ndarray:
        """
        The head's accumulators, as :meth:`IntegerModel.accumulators` computes them.

        :param observations: raw observations, shape (batch_size, *observation_shape)
        :return: int32, shape (batch_size, n_out)
        """
        batch = self._prepare(observations)
        outputs = np.empty((len(batch), self.n_outputs), np.int32)
        self._call("harness_outputs", _pointer(batch), ctypes.c_int64(len(batch)), _pointer(outputs))
        return outputs

    def trace(self, observations: np.ndarray, model: IntegerModel) -> tuple[list[np.ndarray], np.ndarray]:
        """
        The integers after each step, as :meth:`IntegerModel.trace` yields them, and the actions.

        :param observations: raw observations, shape (batch_size, *observation_shape)
        :param model: the integer model, for the shapes of its layers
        :return: input grid, outputs of each layer and accumulators of the head; and the most probable (or mean) actions
        :raises ValueError: if the C was exported from a model with other layers
        """
        n = len(observations)
        shapes = [model.observation_shape if model.is_image else (model.parts[0].n_features,)]
        for layer in model.layers[:-1]:
            shapes.append(layer.output_shape(shapes[-1]))
        sizes = [*(math.prod(shape) for shape in shapes), 4 * len(model.layers[-1].weight)]
        buffer = np.empty((n, sum(sizes)), np.uint8)
        actions = self._act(observations, None, buffer)
        *parts, outputs = np.split(buffer, np.cumsum(sizes)[:-1], axis=1)
        steps: list[np.ndarray] = [
            np.moveaxis(x.reshape(n, *shape[1:], shape[0]), -1, 1) for x, shape in zip(parts, shapes, strict=True)
        ]
        if not model.is_image:
            steps[0] = steps[0].astype(np.int16) - 128
        return [*steps, np.ascontiguousarray(outputs).view(np.int32)], actions

    def act(self, observation: np.ndarray, random_bits: int | np.ndarray | None = None) -> np.ndarray:
        """
        The action for one observation, in units of the environment.

        :param observation: raw observation, shape ``observation_shape``
        :param random_bits: a uint32 for each index of a discrete action, to draw it with; ``None`` takes the most probable one
        :return: an index, an array of indices, or the mean of a Box action as a flat array
        """
        return self.actions(observation[None], None if random_bits is None else np.array([random_bits]))[0]

    def actions(self, observations: np.ndarray, random_bits: np.ndarray | None = None) -> np.ndarray:
        """
        The actions for a batch of observations, see :meth:`act`.

        :param observations: raw observations, shape (batch_size, *observation_shape)
        :param random_bits: uint32, shape (batch_size,) or, for an action of n indices, (batch_size, n)
        :return: shape (batch_size,), (batch_size, n) or (batch_size, action_dim)
        """
        return self._act(observations, random_bits, None)

    def _act(self, observations: np.ndarray, random_bits: np.ndarray | None, trace: np.ndarray | None) -> np.ndarray:
        if self.is_box and random_bits is not None:
            raise ValueError("random_bits are for discrete actions, this student has a Box: act(observation) gives its mean")
        batch = self._prepare(observations)
        shape = (len(batch), self.n_actions) if self.n_actions else (len(batch),)
        bits = None if random_bits is None else np.ascontiguousarray(np.reshape(random_bits, shape), np.uint32)
        actions, box_actions = np.zeros(shape, np.int32), np.zeros((len(batch), self.n_outputs), np.float32)
        given = [_pointer(batch), ctypes.c_int64(len(batch)), None if bits is None else _pointer(bits)]
        traced = (None, ctypes.c_int64(0)) if trace is None else (_pointer(trace), ctypes.c_int64(trace.size))
        self._call("harness_act", *given, _pointer(actions), _pointer(box_actions), *traced)
        return box_actions if self.is_box else actions.astype(np.int64)

    def _prepare(self, observations: np.ndarray) -> np.ndarray:
        """A batch in C's layout. C checks the values itself."""
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

    def _call(self, function: str, *arguments: object) -> None:
        if code := getattr(self.library, function)(*arguments):
            reason = _REASONS.get(code, "see the codes in the header")
            raise ValueError(f"The C policy returned {code}: {reason}")


_REASONS = {
    -2: "the observation holds NaN or infinity",
    -4: "the observation holds a number that is none of its categories",
    -100: "it was exported from a model with other layers",
}


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)
