"""Quantized students as ordinary SB3 policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qpd.integer import IntegerModel, group_parts
from sb3_qpd.spaces import action_head, float32_bounds, masked, observation_parts
from sb3_qpd.students.architectures import StudentArch, make_arch
from sb3_qpd.students.extractors import QuantCombinedExtractor, QuantExtractor
from sb3_qpd.students.layers import QuantLinear, ValueHead, VectorGrid
from sb3_qpd.students.quantizers import FLOAT_BITS, Quantizer, shared_scales
from sb3_qpd.students.transitions import Transition


class QuantActorCriticPolicy(ActorCriticPolicy):
    """
    An actor-critic policy whose actor is quantized: the trunk is the shared features extractor, the head is quantized too,
    the value head stays float. In evaluation mode it *is* the integer arithmetic of :meth:`to_integer`, at the final bits.

    It trains under :class:`sb3_qpd.QPDDistiller` and under stock ``PPO`` and ``A2C``.

    :param observation_space: what :func:`~sb3_qpd.spaces.observation_parts` takes, images channels first, as SB3 hands them over
    :param action_space: what :func:`~sb3_qpd.spaces.action_head` takes
    :param lr_schedule: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`
    :param student_arch: name in ``STUDENT_ARCHS``, a ``StudentArch`` or a dict of its fields
    :param weight_bits: bits of the inner layers' weights, ``None`` for the architecture's own; 32 is a float student
    :param activation_bits: bits of the hidden activations, ``None`` for the architecture's own
    :param normalized_image: Boxes of floats with three axes are images (channels first), not vectors
    :param uses_masks: its teacher had action masks, and whoever plays it should give them to ``predict``
    :param kwargs: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`; what has no integer twin is refused
    """

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it
    takes_raw_observations: ClassVar[bool] = True

    action_net: QuantLinear
    value_net: ValueHead
    features_extractor: QuantExtractor | QuantCombinedExtractor
    metadata: dict[str, Any]  # JSON values that its integer model carries along
    n_batches: th.Tensor  # that a stock algorithm trained on; -1 once somebody calibrates on purpose
    action_low: th.Tensor  # of a Box, flat: where the policy is, so that no loss has to send them there
    action_high: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        student_arch: str | StudentArch | Mapping[str, Any] = "tiny",
        weight_bits: int | tuple[int, ...] | None = None,
        activation_bits: int | None = None,
        normalized_image: bool = False,
        uses_masks: bool = False,
        **kwargs: Any,
    ) -> None:
        _refuse_without_integer_twin(kwargs)
        self.head, groups = action_head(action_space), group_parts(observation_parts(observation_space, normalized_image))
        self.normalized_image, self.uses_masks, self.metadata = normalized_image, uses_masks, {}
        self.arch = make_arch(student_arch, weight_bits, activation_bits)
        self._action_bounds = float32_bounds(action_space) if isinstance(action_space, spaces.Box) else None
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            activation_fn=nn.ReLU,
            features_extractor_class=QuantExtractor if len(groups) == 1 else QuantCombinedExtractor,
            features_extractor_kwargs={"arch": self.arch, "normalized_image": normalized_image},
            normalize_images=False,
            **kwargs,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        extractor = self.features_extractor
        head = QuantLinear(
            extractor.features_dim,
            self.action_net.out_features,
            input_grid=extractor.output_grid,
            output_grid=None,
            weight_bits=extractor.head_bits,
            per_channel=self.head.is_box,  # argmax needs logits in one unit
        )
        head.load_state_dict(self.action_net.state_dict(), strict=False)
        value_head = ValueHead(extractor.features_dim)
        value_head.load_state_dict(self.value_net.state_dict(), strict=False)
        self.action_net, self.value_net = head, value_head
        self.register_buffer("n_batches", th.tensor(0))
        if isinstance(self.action_space, spaces.Box):
            for name, bound in (("action_low", self.action_space.low), ("action_high", self.action_space.high)):
                self.register_buffer(name, th.tensor(bound.reshape(-1)), persistent=False)
        if any(trunk.is_image for trunk in extractor.trunks):
            self.to(memory_format=th.channels_last)  # type: ignore[call-overload]  # three times as fast on a CPU
        # SB3 made its optimizer before the heads were in place. A student's parameters are many and small: one call for all of
        # them. (Not torch's fused Adam: its threads wait for each other at every parameter, on a busy processor for long.)
        is_adam = self.optimizer_class is th.optim.Adam and "fused" not in self.optimizer_kwargs
        options = {**({"foreach": True} if is_adam else {}), **self.optimizer_kwargs}
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **options)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("net_arch", "activation_fn", "use_sde", "squash_output", "full_std", "use_expln"):
            del data[name]
        for name in ("features_extractor_class", "features_extractor_kwargs", "normalize_images"):
            data.pop(name, None)
        flags = {name: True for name in ("normalized_image", "uses_masks") if getattr(self, name)}
        return data | {"student_arch": self.arch.asdict()} | flags

    # -- distillation -------------------------------------------------------------------------------------------------

    def quantizers(self) -> Iterator[Quantizer]:
        """Each quantizer once."""
        return (module for module in self.modules() if isinstance(module, Quantizer))

    def set_precision(self, transition: Transition, progress: float) -> None:
        """
        Move the training forward along a transition; evaluation mode is not touched.

        :param transition: see :mod:`sb3_qpd.students.transitions`
        :param progress: 0 (float, for those that begin so) to 1 (the target bits)
        """
        for quantizer in self.quantizers():
            if not quantizer.is_float:
                quantizer.precision = transition(progress, quantizer.bits)

    def set_normalization(self, mean: np.ndarray | float, std: np.ndarray | float) -> None:
        """
        Freeze the student's input normalization (the first trunk's, where there are several).

        :param mean: shape of one observation; for images one pixel value that, rounded, becomes the network's zero: around it
            a CNN learns several times as fast as with pixels that are all positive, and in integers it costs nothing
        :param std: shape of one observation; floored at ``extractors.MIN_STD``; pixels are always divided by 255
        """
        self.features_extractor.trunks[0].set_normalization(mean, std)

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
        with shared_scales(self.quantizers()):
            features = self.extract_features(observations)
            return self.action_net(features), self.value_net(features).flatten()

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        SB3's ``predict``, with sb3-contrib's masks.

        :param observation: raw, one or a batch
        :param state: returned as it came
        :param episode_start: not used
        :param deterministic: the most probable action, or one drawn from the distribution
        :param action_masks: which discrete actions are allowed, shape (batch_size, sum of all categories)
        :return: actions, and ``state``
        """
        if action_masks is None:
            actions, state = super().predict(observation, state, episode_start, deterministic)
            if self._action_bounds is not None:
                actions = np.clip(actions.astype(np.float32), *self._action_bounds)
            return actions, state
        self.set_training_mode(False)
        tensor, is_batch = self.obs_to_tensor(observation)
        with th.no_grad():
            actions = self._predict(tensor, deterministic, action_masks).cpu().numpy()
        return (actions if is_batch else actions.squeeze(axis=0)), state

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> th.Tensor:
        head = self.head
        if action_masks is None and (head.is_box or not deterministic):
            return super()._predict(observation, deterministic)
        features: Any = self.extract_features(observation)
        masks = None if action_masks is None else head.check_masks(action_masks, len(features), features.device)
        if masks is not None and not all(bool(one.any(1).all()) for one in head.split(masks)):
            raise ValueError("action_masks allow no action at all for an observation")
        # the argmax of the integers, or of the logits themselves: rounding or a softmax could make two of them equal
        exact = deterministic and not (self.training or self.action_net.is_float)
        outputs = self.action_net.accumulators(features) if exact else self.action_net(features)
        logits = masked(head.logits(outputs), masks, value=-th.inf)
        return head.best(logits) if deterministic else head.sample(logits)

    # -- deployment ---------------------------------------------------------------------------------------------------

    @th.no_grad()
    def to_integer(self, **metadata: Any) -> IntegerModel:
        """
        The policy in integers: what evaluation mode computes, bit for bit.

        :param metadata: JSON values to carry along
        """
        extractor = self.features_extractor
        if extractor.head_bits == FLOAT_BITS or self.arch.activation_bits == FLOAT_BITS:
            raise ValueError("A float student (32 bits) has no integer form: give weight_bits and activation_bits of 2 to 8")
        if not all(bool(th.isfinite(p).all()) for p in self.parameters()):
            raise ValueError("The student's parameters hold NaN or infinity: its training diverged. Lower the learning rate")
        calibrated = all(bool(q.ready) for q in self.quantizers())
        layers: list[Any] = [*(layer for trunk in extractor.trunks for layer in trunk.layers), self.action_net]
        grids = [trunk.input_grid.affine() for trunk in extractor.trunks if isinstance(trunk.input_grid, VectorGrid)]
        m, a = (th.cat(values).cpu().numpy() for values in zip(*grids, strict=True)) if grids else (None, None)
        box: dict[str, Any] = {}
        if self._action_bounds is not None:
            low, high = self._action_bounds
            box = {"action_low": low.reshape(-1), "action_high": high.reshape(-1)}
            box["action_std"] = self.log_std.exp().cpu().numpy()
        return IntegerModel(
            layers=[layer.to_integer() for layer in layers],
            observation_shape=self.observation_space.shape or (),
            input_multiplier=m,
            input_offset=a,
            action_shape=self.head.shape,
            metadata={"calibrated": calibrated, **self.metadata, **metadata},
            parts=extractor.parts,
            branches=tuple(len(trunk.layers) for trunk in extractor.trunks),
            action_nvec=self.head.nvec,
            uses_masks=self.uses_masks,
            **box,
        )


class QuantActorCriticCnnPolicy(QuantActorCriticPolicy):
    """:class:`QuantActorCriticPolicy` for images; anything else is refused."""

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if not is_image_space(observation_space, normalized_image=kwargs.get("normalized_image", False)):
            raise ValueError(
                f"CnnPolicy needs uint8 images of 0 to 255, got {observation_space}: use 'MlpPolicy' (images of "
                "floats: normalized_image=True)"
            )
        super().__init__(observation_space, *args, **kwargs)


class QuantMultiInputActorCriticPolicy(QuantActorCriticPolicy):
    """:class:`QuantActorCriticPolicy` for Dict observations; anything else is refused."""

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any) -> None:
        if not isinstance(observation_space, spaces.Dict):
            raise ValueError(f"MultiInputPolicy needs Dict observations, got {observation_space}: use 'MlpPolicy'")
        super().__init__(observation_space, *args, **kwargs)


def _refuse_without_integer_twin(kwargs: dict[str, Any]) -> None:
    """Refuse what integers cannot express; drop the keywords that say what is so anyway (stock PPO passes some)."""
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
