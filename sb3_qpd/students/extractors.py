"""The student's trunk as a features extractor of Stable-Baselines3."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_qpd.integer import ObservationPart, group_parts
from sb3_qpd.spaces import observation_parts
from sb3_qpd.students.architectures import FLOAT_BITS, STUDENT_ARCHS, StudentArch, conv_output_sides
from sb3_qpd.students.chain import Chain
from sb3_qpd.students.layers import PixelGrid, QuantConv2d, QuantLinear, VectorGrid
from sb3_qpd.students.quantizers import Quantizer

FAR_PIXEL = 32.0  # standard deviations beyond which a float pixel, such as a missing depth, saturates
MIN_STD = 1e-8  # smallest standard deviation that normalizes an input


class QuantExtractor(BaseFeaturesExtractor):
    """
    The whole trunk of a student: input grid, then convolutions (images) and fully connected layers, each with its ReLU.

    :param observation_space: an image, channels first, or a vector; the values of a Dict are concatenated to one vector
    :param arch: sizes and bits
    :param normalized_image: see :func:`~sb3_qpd.spaces.observation_parts`
    :param parts: the parts of the observation to take; ``None`` takes all
    :param output_grid: grid of the last layer, shared with other trunks; ``None`` makes one
    :param weight_bits: bits of each layer's weights; ``None`` takes the architecture's
    :param n_action: numbers of an action, for a student that sees those that were taken
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        arch: StudentArch,
        normalized_image: bool = False,
        parts: tuple[ObservationPart, ...] | None = None,
        output_grid: Quantizer | None = None,
        weight_bits: list[int] | None = None,
        n_action: int = 0,
    ) -> None:
        self.parts = observation_parts(observation_space, normalized_image) if parts is None else parts
        self.is_image, shape = self.parts[0].is_image, self.parts[0].shape
        conv, hidden = (arch.conv, arch.image_hidden) if self.is_image else ((), arch.hidden)
        if self.is_image and not (conv or hidden):
            raise ValueError("A student of images needs a layer: give conv, conv_hidden or hidden in student_arch, or a name")
        self.history, n_features = arch.history, sum(part.n_features for part in self.parts)
        check_history(self.history, self.parts)
        self.n_action = n_action if arch.history_actions else 0
        n_features += self.n_action
        flat = self.history * n_features
        super().__init__(observation_space, _features_dim(shape, conv, hidden, flat))
        bits = arch.layer_bits(len(conv) + len(hidden) + 1) if weight_bits is None else [*weight_bits, 0]
        self.head_bits = bits[-1]
        self.input_grid = self._make_input_grid(n_features, FLOAT_BITS if arch.activation_bits == FLOAT_BITS else 8)
        outputs = [_activation_grid(arch.activation_bits) for _ in bits[:-1]]
        if output_grid is not None:
            if not outputs:
                raise ValueError("This student_arch has no hidden layers (hidden), which Dict observations with images need")
            outputs[-1] = output_grid
        layers: list[nn.Module] = []
        grid: nn.Module = self.input_grid
        size = shape[0] if conv else flat
        for channels, kernel, stride in conv:
            i = len(layers)
            layers.append(
                QuantConv2d(size, channels, kernel, stride, input_grid=grid, output_grid=outputs[i], weight_bits=bits[i])
            )
            size, grid = channels, outputs[i]
        if conv:
            size = _features_dim(shape, conv, (), flat)
        for units in hidden:
            i = len(layers)
            layers.append(QuantLinear(size, units, input_grid=grid, output_grid=outputs[i], weight_bits=bits[i]))
            size, grid = units, outputs[i]
        self.layers = nn.ModuleList(layers)
        self.output_grid = grid

    def _make_input_grid(self, n_features: int, bits: int) -> PixelGrid | VectorGrid:
        if self.parts[0].kind == "image":
            return PixelGrid()
        return VectorGrid(1, bits, largest=FAR_PIXEL) if self.is_image else VectorGrid(n_features, bits)

    @property
    def trunks(self) -> list[QuantExtractor]:
        """This trunk alone; :class:`QuantCombinedExtractor` has several."""
        return [self]

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: raw pixels or vectors in float32, with indices one-hot encoded
        :return: features on the last grid, shape (batch_size, features_dim)
        """
        if self.training and len(self.layers) and not self.layers[0].is_float:
            return self._chain(self.input(observations)).flatten(1)
        return self._through(observations, list(self.layers)).flatten(1)

    def make_chain(self, *heads: Any) -> Chain:
        """
        The layers as one function, for the training forward.

        :param heads: the heads of actor and value, where they are part of it
        """
        layers: list[Any] = [*self.layers, *heads[:1]]
        return Chain(layers, self.input_grid if isinstance(self.input_grid, VectorGrid) else None, *heads[1:])

    @cached_property
    def _chain(self) -> Chain:
        return self.make_chain()

    def real_output(self, observations: PyTorchObs) -> th.Tensor:
        """
        Features before they are rounded to the last grid, see :meth:`QuantLayer.real_output`.

        :param observations: as for :meth:`forward`
        """
        *layers, last = self.layers
        x = self._through(observations, layers)
        return last.real_output(x.flatten(1) if isinstance(last, QuantLinear) else x).flatten(1)  # type: ignore[operator]

    def _through(self, observations: PyTorchObs, layers: list[nn.Module]) -> th.Tensor:
        x = self.input_grid(self.input(observations))
        for layer in layers:
            x = layer(layer.shaped(x))  # type: ignore[operator]
        return x

    @property
    def origin(self) -> th.Tensor | None:
        """Offset of each feature, taken off in float64. It is zero where float32 can carry it; ``None``: it can for all."""
        return getattr(self.input_grid, "origin", None)

    def without_origin(self, observations: PyTorchObs) -> PyTorchObs:
        """
        Raw observations less the origin, which is taken off in float64. Only what is left is rounded to float32.

        :param observations: raw observations in the environment's dtype, before SB3 converts them to float32
        """
        if self.origin is None:
            return observations
        if self.history > 1:
            return (observations.double() - self.origin).float()  # type: ignore[union-attr]
        taken: dict[str | None, th.Tensor] = {}
        for part, own in zip(self.parts, self.origin.split([part.n_features for part in self.parts]), strict=True):
            if part.kind == "vector":
                value: Any = observations if part.key is None else observations[part.key]  # type: ignore[index]
                taken[part.key] = (value.double() - own.reshape(part.shape)).float()
        return {**observations, **taken} if isinstance(observations, dict) else taken.get(None, observations)  # type: ignore[dict-item]

    def set_origin(self, origin: np.ndarray) -> None:
        """
        Freeze what :meth:`without_origin` takes off, before the normalization.

        :param origin: a number for each feature of the input, zero where float32 carries its values
        """
        grid = self.input_grid
        assert isinstance(grid, VectorGrid) and not self.is_image
        grid.origin = th.zeros_like(grid.mean)  # the actions that a student sees have none
        grid.origin[: len(origin)].copy_(th.as_tensor(origin))

    def input(self, observations: PyTorchObs) -> th.Tensor:
        """
        What the input grid takes: an image, or all other values as one vector.

        :param observations: as for :meth:`forward`
        """
        if self.history > 1:
            return self._without_nan(observations)  # type: ignore[arg-type]
        values = [observations if part.key is None else observations[part.key] for part in self.parts]  # type: ignore[index]
        if self.is_image:
            return values[0].contiguous(memory_format=th.channels_last)  # type: ignore[union-attr]
        flat = [value.flatten(1) for value in values]  # type: ignore[union-attr]
        return flat[0] if len(flat) == 1 else th.cat(flat, dim=1)

    def check_windows(self, windows: Any) -> None:
        """
        Refuse observations that are no windows.

        :param windows: shape (batch_size, history, n_features), the newest observation last, see
            :func:`~sb3_qpd.observations.observation_rows`. Where the student sees actions, the action that followed an
            observation is beside it. Beside the newest one is NaN
        :raises ValueError: they have another shape
        """
        shape = (self.history, *self._grid_shape)
        if isinstance(windows, dict) or windows.shape[1:] != shape:
            got = "a dict" if isinstance(windows, dict) else tuple(windows.shape[1:])
            raise ValueError(
                f"A student with a memory (history={self.history}) takes windows of shape {shape}, got {got}. It learns with "
                "QPDDistiller alone, and predict() carries its window as state"
            )

    def _without_nan(self, windows: th.Tensor) -> th.Tensor:
        """NaN marks numbers before an episode. It becomes the mean of the normalization, which is zero in integers."""
        assert isinstance(self.input_grid, VectorGrid)
        return th.where(windows.isnan(), self.input_grid.mean.to(windows.dtype), windows)

    def set_normalization(self, mean: np.ndarray | float, std: np.ndarray | float) -> None:
        """
        Freeze the normalization of the input, see :meth:`QuantActorCriticPolicy.set_normalization`.

        :param mean: mean of the input, less its origin
        :param std: standard deviation of the input
        """
        grid = self.input_grid
        if isinstance(grid, PixelGrid):
            grid.centre.fill_(float(np.rint(mean)))
            return
        n = len(grid.mean) - self.n_action
        grid.mean[:n].copy_(th.as_tensor(np.asarray(mean, np.float64).reshape(-1)))
        grid.std[:n].copy_(th.as_tensor(np.maximum(np.asarray(std, np.float64).reshape(-1), MIN_STD)))

    def set_action_normalization(self, mean: np.ndarray, std: np.ndarray) -> None:
        """
        Freeze the normalization of the Box actions that a student sees. Discrete ones are zeros and ones, and have none.

        :param mean: shape (action_dim,)
        :param std: shape (action_dim,)
        """
        grid = self.input_grid
        assert isinstance(grid, VectorGrid) and self.n_action
        grid.mean[-self.n_action :].copy_(th.as_tensor(mean))
        grid.std[-self.n_action :].copy_(th.as_tensor(np.maximum(std, MIN_STD)))

    @property
    def _grid_shape(self) -> tuple[int, ...]:
        assert isinstance(self.input_grid, VectorGrid)
        return tuple(self.input_grid.mean.shape)


class QuantCombinedExtractor(BaseFeaturesExtractor):
    """
    One trunk for each image of a Dict observation and one for all other values. Their features are concatenated on one grid.

    :param observation_space: space of Dict observations
    :param arch: sizes and bits of every trunk
    :param normalized_image: see :func:`~sb3_qpd.spaces.observation_parts`
    """

    trunks: Any

    def __init__(self, observation_space: spaces.Dict, arch: StudentArch, normalized_image: bool = False) -> None:
        super().__init__(observation_space, 1)  # the size is not known yet, as in SB3's CombinedExtractor
        self.parts = observation_parts(observation_space, normalized_image)
        groups = group_parts(self.parts)
        sizes = [len(arch.conv) + len(arch.image_hidden) if group[0].is_image else len(arch.hidden) for group in groups]
        bits = arch.trunk_bits(sizes)
        self.head_bits, self.output_grid = bits[-1][0], _activation_grid(arch.activation_bits)
        self.trunks = nn.ModuleList(
            QuantExtractor(observation_space, arch, False, group, self.output_grid, own)
            for group, own in zip(groups, bits[:-1], strict=True)
        )
        self._features_dim = sum(trunk.features_dim for trunk in self.trunks)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: as for :class:`QuantExtractor`
        :return: features on the shared grid, shape (batch_size, features_dim)
        """
        if not (self.output_grid.ready or self.output_grid.is_float):  # the grid has to fit the features of all trunks
            self.output_grid.calibrate(th.cat([trunk.real_output(observations) for trunk in self.trunks], dim=1))
        return th.cat([trunk(observations) for trunk in self.trunks], dim=1)


def check_history(history: int, parts: tuple[ObservationPart, ...]) -> None:
    """
    Refuse a memory for observations that it does not support.

    :param history: number of observations that a student sees
    :param parts: what an observation consists of
    :raises ValueError: it sees several, and they have images
    """
    if history > 1 and any(part.is_image for part in parts):
        raise ValueError(
            f"history={history}: a student with a memory takes vectors and indices, and these observations have images. Give "
            "history=1, and stack frames with Stable-Baselines3's VecFrameStack, also for the teacher: the buffer stores each "
            "frame once"
        )


def _activation_grid(bits: int) -> Quantizer:
    grid = Quantizer(bits, signed=False)
    with th.no_grad():
        grid.log_scale.fill_(float(np.log(6 / grid.high)))  # a range of 6 until it is calibrated
    return grid


def _features_dim(shape: tuple[int, ...], conv: tuple[tuple[int, int, int], ...], hidden: tuple[int, ...], flat: int) -> int:
    if hidden:
        return hidden[-1]
    if not conv:
        return flat
    sides = conv_output_sides(conv, shape[1:])
    if min(sides) < 1:
        raise ValueError(
            f"The convolutions {conv} of this student_arch do not fit images of shape {shape}: give smaller kernels, such as "
            'student_arch={"conv": [[8, 3, 1], [16, 3, 1]], "conv_hidden": [32]}, or a name, whose kernels adapt '
            f"({', '.join(STUDENT_ARCHS)})"
        )
    return conv[-1][0] * sides[0] * sides[1]
