"""Quantized students as ordinary SB3 policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qpd.architectures import StudentArch, make_arch
from sb3_qpd.integer import IntegerModel
from sb3_qpd.layers import PixelGrid, QuantConv2d, QuantLayer, QuantLinear, ValueHead, VectorGrid
from sb3_qpd.quantizers import FLOAT_BITS, Quantizer
from sb3_qpd.transitions import Transition

MIN_STD = 1e-8


class QuantExtractor(BaseFeaturesExtractor):
    """
    The whole trunk of a student: input grid, then convolutions (images) and fully connected layers, each with its ReLU.

    :param observation_space: Box of vectors or uint8 images, channels first
    :param arch: sizes and bits
    """

    def __init__(self, observation_space: spaces.Box, arch: StudentArch) -> None:
        self.is_image = is_image_space(observation_space)
        conv, hidden = (arch.conv, arch.conv_hidden) if self.is_image else ((), arch.hidden)
        if self.is_image and not conv:
            raise ValueError("This student_arch has no convolutions (conv), which image observations need")
        flat = get_flattened_obs_dim(observation_space)
        super().__init__(observation_space, _features_dim(observation_space.shape, conv, hidden, flat))
        input_bits = FLOAT_BITS if arch.activation_bits == FLOAT_BITS else 8
        self.input_grid = PixelGrid() if self.is_image else VectorGrid(flat, input_bits)
        bits = arch.layer_bits(len(conv) + len(hidden) + 1)
        self.head_bits = bits[-1]
        layers: list[nn.Module] = []
        grid: nn.Module = self.input_grid
        size = observation_space.shape[0] if self.is_image else flat
        for channels, kernel, stride in conv:
            output = _activation_grid(arch.activation_bits)
            layers.append(
                QuantConv2d(size, channels, kernel, stride, input_grid=grid, output_grid=output, weight_bits=bits[len(layers)])
            )
            size, grid = channels, output
        if conv:
            size = _features_dim(observation_space.shape, conv, (), flat)
        for units in hidden:
            output = _activation_grid(arch.activation_bits)
            layer = QuantLinear(size, units, input_grid=grid, output_grid=output, weight_bits=bits[len(layers)])
            layers.append(layer)
            size, grid = units, output
        self.layers = nn.ModuleList(layers)
        self.output_grid = grid

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: raw, float32: pixels of 0 to 255, or vectors
        :return: features on the last grid, shape (batch_size, features_dim)
        """
        if self.is_image:
            x = self.input_grid(observations.contiguous(memory_format=th.channels_last))
        else:
            x = self.input_grid(observations.flatten(1))
        for layer in self.layers:
            if isinstance(layer, QuantLinear):
                x = x.flatten(1)
            x = layer(x)
        return x.flatten(1)


def _activation_grid(bits: int) -> Quantizer:
    grid = Quantizer(bits, signed=False)
    with th.no_grad():
        grid.log_scale.fill_(float(np.log(6 / grid.high)))  # what counts before anything was seen; then calibrated
    return grid


def _features_dim(shape: tuple[int, ...], conv: tuple[tuple[int, int, int], ...], hidden: tuple[int, ...], flat: int) -> int:
    if hidden:
        return hidden[-1]
    if not conv:
        return flat
    sides = list(shape[1:])
    for _, kernel, stride in conv:
        sides = [(side - kernel) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"The convolutions {conv} of this student_arch do not fit images of shape {shape}")
    return conv[-1][0] * sides[0] * sides[1]


class QuantActorCriticPolicy(ActorCriticPolicy):
    """
    An actor-critic policy whose actor is quantized: the trunk is the shared features extractor, the head is quantized too,
    the value head stays float. In evaluation mode it *is* the integer arithmetic of :meth:`to_integer`, at the final bits.

    It trains under :class:`sb3_qpd.QPDDistiller` and under stock ``PPO`` and ``A2C``.

    :param observation_space: Box: vectors, or uint8 images (channels first, as SB3 hands them over)
    :param action_space: Discrete or Box
    :param lr_schedule: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`
    :param student_arch: name in ``STUDENT_ARCHS``, a ``StudentArch`` or a dict of its fields
    :param weight_bits: bits of the inner layers' weights, ``None`` for the architecture's own; 32 is a float student
    :param activation_bits: bits of the hidden activations, ``None`` for the architecture's own
    :param kwargs: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`; what has no integer twin is refused
    """

    action_net: QuantLinear
    value_net: ValueHead
    features_extractor: QuantExtractor
    n_batches: th.Tensor  # that a stock algorithm trained on; -1 once somebody calibrates on purpose

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        student_arch: str | StudentArch | Mapping[str, Any] = "tiny",
        weight_bits: int | tuple[int, ...] | None = None,
        activation_bits: int | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse_without_integer_twin(observation_space, action_space, kwargs)
        self.arch = make_arch(student_arch, weight_bits, activation_bits)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            activation_fn=nn.ReLU,
            features_extractor_class=QuantExtractor,
            features_extractor_kwargs={"arch": self.arch},
            normalize_images=False,
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        extractor = self.features_extractor
        is_box = isinstance(self.action_space, spaces.Box)
        head = QuantLinear(
            extractor.features_dim,
            self.action_net.out_features,
            input_grid=extractor.output_grid,
            output_grid=None,
            weight_bits=extractor.head_bits,
            per_channel=is_box,  # argmax needs logits in one unit
        )
        head.load_state_dict(self.action_net.state_dict(), strict=False)
        value_head = ValueHead(extractor.features_dim)
        value_head.load_state_dict(self.value_net.state_dict(), strict=False)
        self.action_net, self.value_net = head, value_head
        self.register_buffer("n_batches", th.tensor(0))
        if extractor.is_image:
            self.to(memory_format=th.channels_last)  # type: ignore[call-overload]  # three times as fast on a CPU
        # SB3 made its optimizer before the heads were in place. One kernel for each parameter: a student's are many and small
        is_adam = self.optimizer_class is th.optim.Adam and "foreach" not in self.optimizer_kwargs
        options = {**({"fused": True} if is_adam else {}), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **options)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("net_arch", "activation_fn", "use_sde", "squash_output", "full_std", "use_expln"):
            del data[name]
        for name in ("features_extractor_class", "features_extractor_kwargs", "normalize_images"):
            data.pop(name, None)
        return data | {"student_arch": self.arch.asdict()}

    # -- distillation -------------------------------------------------------------------------------------------------

    def quantizers(self) -> Iterator[Quantizer]:
        """Each quantizer once."""
        return (module for module in self.modules() if isinstance(module, Quantizer))

    def set_precision(self, transition: Transition, progress: float) -> None:
        """
        Move the training forward along a transition; evaluation mode is not touched.

        :param transition: see :mod:`sb3_qpd.transitions`
        :param progress: 0 (float, for those that begin so) to 1 (the target bits)
        """
        for quantizer in self.quantizers():
            if not quantizer.is_float:
                quantizer.precision = transition(progress, quantizer.bits)

    def set_normalization(self, mean: np.ndarray | float, std: np.ndarray | float) -> None:
        """
        Freeze the student's input normalization.

        :param mean: shape of one observation; for images one pixel value that, rounded, becomes the network's zero: around it
            a CNN learns several times as fast as with pixels that are all positive, and in integers it costs nothing
        :param std: shape of one observation; floored at ``MIN_STD``; pixels are always divided by 255
        """
        grid = self.features_extractor.input_grid
        if isinstance(grid, PixelGrid):
            grid.centre.fill_(float(np.rint(mean)))
        elif isinstance(grid, VectorGrid):
            grid.mean.copy_(th.as_tensor(np.asarray(mean, np.float64).reshape(-1)))
            grid.std.copy_(th.as_tensor(np.maximum(np.asarray(std, np.float64).reshape(-1), MIN_STD)))

    def set_value_scale(self, mean: float, std: float) -> None:
        """Mean and deviation of the teacher's values: the unit that the value head works in."""
        self.value_net.mean.fill_(mean)
        self.value_net.std.fill_(max(std, 1e-6))

    def calibrate(self, observations: PyTorchObs) -> None:
        """
        Set every step to the one of least squared error, layer by layer, each fed by the integers before it. From then on
        only learning moves them.

        :param observations: raw, shape (batch_size, *observation_shape)
        """
        self._calibrate(observations)
        self.n_batches.fill_(-1)

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        See :class:`~stable_baselines3.common.policies.ActorCriticPolicy`. Stock algorithms train through this and never
        calibrate, and their first policy sees little of the environment: steps are set anew at batches 1, 2, 4, 8, ...
        """
        if self.training and self.n_batches >= 0:
            n = int(self.n_batches)
            if n & (n - 1) == 0:
                self._calibrate(obs)
            self.n_batches += 1
        return super().evaluate_actions(obs, actions)

    @th.no_grad()
    def _calibrate(self, observations: PyTorchObs) -> None:
        was_training = self.training
        for quantizer in self.quantizers():
            quantizer.ready.fill_(False)
        self.set_training_mode(False)
        self.actor_and_value(observations)
        self.set_training_mode(was_training)

    def actor_and_value(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        Logits or mean action, and value in the teacher's units, in the current mode.

        :param observations: raw, shape (batch_size, *observation_shape)
        :return: shapes (batch_size, n_actions or action_dim) and (batch_size,)
        """
        features = self.extract_features(observations)
        return self.action_net(features), self.value_net(features).flatten()

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if deterministic and isinstance(self.action_space, spaces.Discrete):
            features: Any = self.extract_features(observation)
            # the argmax of the integers, or of the logits themselves: rounding or a softmax could make two of them equal
            outputs = self.action_net if self.training or self.action_net.is_float else self.action_net.accumulators
            return outputs(features).argmax(1)
        return super()._predict(observation, deterministic)

    # -- deployment ---------------------------------------------------------------------------------------------------

    @th.no_grad()
    def to_integer(self, **metadata: Any) -> IntegerModel:
        """
        The policy in integers: what evaluation mode computes, bit for bit.

        :param metadata: JSON values to carry along
        """
        extractor, space = self.features_extractor, self.action_space
        if extractor.head_bits == FLOAT_BITS or self.arch.activation_bits == FLOAT_BITS:
            raise ValueError("A float student (32 bits) has no integer form: give weight_bits and activation_bits of 2 to 8")
        if not all(bool(th.isfinite(p).all()) for p in self.parameters()):
            raise ValueError("The student's parameters hold NaN or infinity: its training diverged. Lower the learning rate")
        calibrated = all(bool(q.ready) for q in self.quantizers())
        layers = [layer.to_integer() for layer in (*extractor.layers, self.action_net) if isinstance(layer, QuantLayer)]
        m, a = (None, None) if isinstance(extractor.input_grid, PixelGrid) else extractor.input_grid.affine()
        box: dict[str, Any] = {}
        if isinstance(space, spaces.Box):
            low, high = (bound.reshape(-1).astype(np.float32) for bound in (space.low, space.high))
            # the nearest float32 of a float64 bound may lie outside the Box
            low = np.where(low < space.low.reshape(-1), np.nextafter(low, np.float32(np.inf)), low)
            high = np.where(high > space.high.reshape(-1), np.nextafter(high, np.float32(-np.inf)), high)
            box = {"action_low": low, "action_high": high, "action_shape": space.shape}
            box["action_std"] = self.log_std.exp().cpu().numpy()
        return IntegerModel(
            layers=layers,
            observation_shape=self.observation_space.shape,  # type: ignore[arg-type]
            input_multiplier=None if m is None else m.cpu().numpy(),
            input_offset=None if a is None else a.cpu().numpy(),
            metadata={"calibrated": calibrated, **metadata},
            **box,
        )


class QuantActorCriticCnnPolicy(QuantActorCriticPolicy):
    """:class:`QuantActorCriticPolicy` for images; anything else is refused."""

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if not is_image_space(observation_space):
            raise ValueError(f"CnnPolicy needs uint8 images of 0 to 255, got {observation_space}: use 'MlpPolicy'")
        super().__init__(observation_space, *args, **kwargs)


def _refuse_without_integer_twin(observation_space: spaces.Space, action_space: spaces.Space, kwargs: dict[str, Any]) -> None:
    """Refuse what integers cannot express; drop the keywords that say what is so anyway (stock PPO passes some)."""
    if not isinstance(observation_space, spaces.Box):
        raise ValueError(f"Expected a Box observation space (vectors or uint8 images), got {observation_space}")
    if not isinstance(action_space, spaces.Discrete | spaces.Box):
        raise ValueError(f"Expected a Discrete or Box action space, got {action_space}")
    only = {
        "use_sde": False,
        "squash_output": False,
        "net_arch": [],
        "activation_fn": nn.ReLU,
        "share_features_extractor": True,
        "normalize_images": True,
    }
    for name, value in only.items():
        given = kwargs.pop(name, None)
        if given is not None and given != value and not (name == "net_arch" and not any(_units(given))):
            raise ValueError(f"A quantized policy has {name}={value}, got {given}: sizes go into student_arch")
    for name in ("features_extractor_class", "features_extractor_kwargs"):
        if kwargs.pop(name, None):
            raise ValueError(f"{name} has no integer twin: describe the network with student_arch")


def _units(net_arch: Any) -> list[int]:
    return [units for branch in net_arch.values() for units in branch] if isinstance(net_arch, dict) else list(net_arch)
