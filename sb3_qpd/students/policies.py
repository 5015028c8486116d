"""Quantized students as ordinary policies of Stable-Baselines3."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_qpd.atomic import write_atomically
from sb3_qpd.integer import IntegerModel, encode_actions
from sb3_qpd.observations import check_finite, observation_rows
from sb3_qpd.spaces import action_head, float32_bounds, half_range, masked, observation_parts
from sb3_qpd.students.architectures import FLOAT_BITS, StudentArch
from sb3_qpd.students.budgets import choose_arch
from sb3_qpd.students.chain import Chain
from sb3_qpd.students.extractors import QuantCombinedExtractor, QuantExtractor, check_history
from sb3_qpd.students.layers import QuantLinear, QuantMeanHead, ValueHead, VectorGrid
from sb3_qpd.students.optimizer import WEIGHT_DECAY, MuonAdam, muon_groups
from sb3_qpd.students.quantizers import Quantizer, shared_scales
from sb3_qpd.students.sizes import StudentTask
from sb3_qpd.students.transitions import Transition
from sb3_qpd.students.watch import Watch


class QuantActorCriticPolicy(ActorCriticPolicy):
    """
    An actor-critic policy whose actor is quantized. The shared features extractor is the trunk. Trunk and action head are
    quantized; the value head stays float. Evaluation mode *is* the integer arithmetic of
    :meth:`to_integer`, at the final bits.

    It trains under :class:`sb3_qpd.QPDDistiller` and under stock ``PPO`` and ``A2C``.

    :param observation_space: a space that ``observation_parts`` in ``spaces.py`` takes; images are channels first
    :param action_space: a space that ``action_head`` in ``spaces.py`` takes
    :param lr_schedule: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`
    :param student_arch: name in ``STUDENT_ARCHS``, a budget in bytes such as ``"2kB"``, a ``StudentArch`` or a dict of its
        fields
    :param weight_bits: bits of the inner layers' weights, ``None`` for the architecture's own; 32 is a float student
    :param activation_bits: bits of the hidden activations, ``None`` for the architecture's own
    :param normalized_image: whether Boxes of floats with three axes are images (channels first), not vectors
    :param uses_masks: whether the student was taught with action masks, so that ``predict`` needs them
    :param kwargs: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`. Options without an integer form are
        refused
    """

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it
    takes_raw_observations: ClassVar[bool] = True
    # missing in the zips of older versions
    added_state: ClassVar[tuple[str, ...]] = ("action_net.action_unit", "action_net.output_unit")

    action_net: QuantLinear
    value_net: ValueHead
    features_extractor: QuantExtractor | QuantCombinedExtractor
    metadata: dict[str, Any]  # JSON values that its integer model carries along
    n_batches: th.Tensor  # batches that a stock algorithm trained on; -1 after calibrate()
    action_low: th.Tensor  # bounds of a Box action, shape (action_dim,), on the policy's device
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
        _refuse_without_integer_form(kwargs)
        self.head, parts = action_head(action_space), observation_parts(observation_space, normalized_image)
        self.normalized_image, self.uses_masks, self.metadata = normalized_image, uses_masks, {}
        self._kept: tuple[Watch, IntegerModel | None] | None = None
        task = StudentTask(parts, self.head.n_outputs, self.head.is_box)
        self.arch = choose_arch(student_arch, weight_bits, activation_bits, task)
        check_history(self.arch.history, parts)  # before an extractor gets arguments that only one with a memory takes
        self._action_bounds = float32_bounds(action_space) if isinstance(action_space, spaces.Box) else None
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[],
            activation_fn=nn.ReLU,
            features_extractor_class=QuantExtractor if len(task.groups) == 1 else QuantCombinedExtractor,
            features_extractor_kwargs={"arch": self.arch, "normalized_image": normalized_image, **self._seen_actions},
            normalize_images=False,
            **kwargs,
        )

    @property
    def _seen_actions(self) -> dict[str, Any]:
        return {"n_action": self.head.n_outputs} if self.arch.history_actions else {}

    def encode_actions(self, actions: np.ndarray) -> np.ndarray:
        """
        Actions as a student that sees them takes them, see :func:`~sb3_qpd.integer.encode_actions`.

        :param actions: shape (batch_size, *action_shape)
        """
        nvec = () if self.head.is_box or self.head.is_binary else self.head.nvec
        return encode_actions(np.reshape(actions, (len(actions), -1)), nvec)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        extractor = self.features_extractor
        options: dict[str, Any] = {
            "output_grid": None,
            "input_grid": extractor.output_grid,
            "weight_bits": extractor.head_bits,
        }
        head: QuantLinear
        if isinstance(self.action_space, spaces.Box):
            head = QuantMeanHead(extractor.features_dim, th.from_numpy(half_range(self.action_space)), **options)
        else:  # argmax needs all logits in one unit
            head = QuantLinear(extractor.features_dim, self.action_net.out_features, per_channel=False, **options)
        head.load_state_dict(self.action_net.state_dict(), strict=False)
        value_head = ValueHead(extractor.features_dim)
        value_head.load_state_dict(self.value_net.state_dict(), strict=False)
        self.action_net, self.value_net = head, value_head
        self.register_buffer("n_batches", th.tensor(0))
        if isinstance(self.action_space, spaces.Box):
            for name, bound in (("action_low", self.action_space.low), ("action_high", self.action_space.high)):
                bound = bound if np.issubdtype(bound.dtype, np.floating) else bound.astype(np.float32)
                self.register_buffer(name, th.tensor(bound.reshape(-1)), persistent=False)
        if self.arch.history_actions:  # no action has followed the newest observation: its inputs are always zero
            first = next(iter(extractor.trunks[0].layers), self.action_net)
            first.weight.data[:, -self.head.n_outputs :] = 0.0
        if self._has_images:
            self.to(memory_format=th.channels_last)  # type: ignore[call-overload]  # three times as fast on a CPU
        self.optimizer = self._make_optimizer(lr_schedule(1))

    @property
    def _has_images(self) -> bool:
        return any(trunk.is_image for trunk in self.features_extractor.trunks)

    def _make_optimizer(self, learning_rate: float) -> th.optim.Optimizer:
        """SB3 made its optimizer before the quantized heads existed."""
        make: Any = self.optimizer_class
        if issubclass(make, MuonAdam):
            settings = {"weight_decay": 0.0 if self._has_images else WEIGHT_DECAY, **self.optimizer_kwargs}
            return make(muon_groups(self.features_extractor, self.parameters()), lr=learning_rate, **settings)
        # foreach updates the many small parameters in one call. Torch's fused Adam is slower on a busy processor: its threads
        # wait for each other at every parameter
        is_adam = make is th.optim.Adam and "fused" not in self.optimizer_kwargs
        settings = {**({"foreach": True} if is_adam else {}), **self.optimizer_kwargs}
        return make(self.parameters(), lr=learning_rate, **settings)

    def save(self, path: Any) -> None:
        """
        Save the policy. A file appears whole, or the one that was there stays.

        :param path: path of the file, or a binary file that is open
        """
        if not isinstance(path, str | os.PathLike):
            super().save(path)
            return
        memory = io.BytesIO()  # torch turns an error of the disk into one of its own format
        super().save(memory)  # type: ignore[arg-type]
        write_atomically(path, memory.getvalue())

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        for name in ("net_arch", "activation_fn", "use_sde", "squash_output", "full_std", "use_expln"):
            del data[name]
        for name in ("features_extractor_class", "features_extractor_kwargs", "normalize_images"):
            data.pop(name, None)
        flags = {name: True for name in ("normalized_image", "uses_masks") if getattr(self, name)}
        return data | {"student_arch": self.arch.asdict()} | flags

    def quantizers(self) -> Iterator[Quantizer]:
        """All quantizers, each once."""
        return (module for module in self.modules() if isinstance(module, Quantizer))

    def set_precision(self, transition: Transition, progress: float) -> None:
        """
        Set the precision of the training forward. Evaluation mode always has the target bits.

        :param transition: see :mod:`sb3_qpd.students.transitions`
        :param progress: progress of the transition, 0 to 1 (the target bits)
        """
        for quantizer in self.quantizers():
            if not quantizer.is_float:
                quantizer.precision = transition(progress, quantizer.bits)

    def set_normalization(self, mean: np.ndarray | float, std: np.ndarray | float) -> None:
        """
        Freeze the normalization of the student's input, or of the first trunk's where there are several.

        :param mean: mean, shape of one observation. For images it is one pixel value, which is rounded and becomes the
            network's zero: a CNN then learns several times as fast, and in integers it costs nothing
        :param std: standard deviation, shape of one observation, at least ``extractors.MIN_STD``. Pixels are always divided
            by 255
        """
        self.features_extractor.trunks[0].set_normalization(mean, std)

    def set_value_scale(self, mean: float, std: float) -> None:
        """
        Freeze the unit of the value head.

        :param mean: mean of the teacher's values
        :param std: standard deviation of the teacher's values
        """
        self.value_net.mean.fill_(mean)
        self.value_net.std.fill_(max(std, 1e-6))

    @property
    def action_unit(self) -> th.Tensor:
        """
        The unit of each dimension of a Box action, shape (action_dim,), in which losses and errors are measured.

        It is half the range, and less where the teacher uses little of the range.
        """
        if not isinstance(self.action_net, QuantMeanHead):
            raise ValueError(f"Only Box actions have units, this student's actions are {self.action_space}")
        return self.action_net.action_unit

    @th.no_grad()
    def set_action_unit(self, unit: np.ndarray, mean: np.ndarray) -> None:
        """
        Freeze the units of a Box action, before training. Head and standard deviation start at their scale.

        :param unit: unit of each dimension, shape (action_dim,), positive
        :param mean: mean of each dimension of the teacher's actions, shape (action_dim,)
        """
        head = self.action_net
        assert isinstance(head, QuantMeanHead)
        head.set_action_unit(th.as_tensor(unit, device=head.action_unit.device))
        self.log_std.add_(head.output_unit.log())
        bias = th.as_tensor(mean, dtype=th.float32, device=head.bias.device) / head.output_unit
        head.bias.copy_(th.where(bias.abs() > 10.0, bias, head.bias))  # too far for an optimizer's absolute steps

    def calibrate(self, observations: PyTorchObs) -> None:
        """
        Set every step to the one of least squared error, layer by layer, each on the integers of the layer before it.

        From then on only learning changes them.

        :param observations: raw observations, shape (batch_size, *observation_shape)
        """
        self._calibrate(observations)
        self.n_batches.fill_(-1)

    def extract_features(  # type: ignore[override]
        self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor | None = None
    ) -> th.Tensor | tuple[th.Tensor, th.Tensor]:
        """
        See :class:`~stable_baselines3.common.policies.ActorCriticPolicy`. The origin is taken off before SB3 makes float32.

        :param obs: raw observations, shape (batch_size, *observation_shape)
        :param features_extractor: see :class:`~stable_baselines3.common.policies.ActorCriticPolicy`
        """
        trunk = self.features_extractor.trunks[0]
        if self.arch.history > 1:  # rows of features, which SB3's preprocessing does not know
            trunk.check_windows(obs)
            windows: Any = trunk.without_origin(obs)
            return (features_extractor or self.features_extractor)(windows.float())
        return super().extract_features(trunk.without_origin(obs), features_extractor)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """
        See :class:`~stable_baselines3.common.policies.ActorCriticPolicy`, which would pass over :meth:`extract_features`.

        :param obs: raw observations, shape (batch_size, *observation_shape)
        """
        features: Any = self.extract_features(obs)
        return self._get_action_dist_from_latent(features)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        See :class:`~stable_baselines3.common.policies.ActorCriticPolicy`, which would pass over :meth:`extract_features`.

        :param obs: raw observations, shape (batch_size, *observation_shape)
        """
        return self.value_net(self.extract_features(obs))

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        See :class:`~stable_baselines3.common.policies.ActorCriticPolicy`.

        Stock algorithms train through this method and never calibrate, and their first policy sees little of the environment.
        So steps are calibrated at batches 1, 2, 4, 8, ...

        :param obs: raw observations, shape (batch_size, *observation_shape)
        :param actions: shape (batch_size, *action_shape)
        :return: values, log probabilities and entropies
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
        Logits or mean action, and value in the teacher's units, in the current mode (training or evaluation).

        :param observations: raw observations, shape (batch_size, *observation_shape)
        :return: shapes (batch_size, n_actions or action_dim) and (batch_size,)
        """
        if self.training and not self.action_net.is_float and len(self.features_extractor.trunks) == 1:
            # SB3 gives an extractor what its own preprocessing makes of the observations
            actor, value = self.extract_features(observations, self._train_step)  # type: ignore[arg-type]
            return actor, value.flatten()
        with shared_scales([] if self.training else self.quantizers()):
            features = self.extract_features(observations)
            return self.action_net(features), self.value_net(features).flatten()

    def _train_step(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Outputs of both heads in training mode, one function for all layers."""
        return self._chain(self.features_extractor.trunks[0].input(observations))

    @cached_property
    def _chain(self) -> Chain:
        return self.features_extractor.trunks[0].make_chain(self.action_net, self.value_net)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        SB3's ``predict``, with sb3-contrib's action masks.

        :param observation: one raw observation or a batch
        :param state: what the previous call returned, or ``None``: all episodes begin. A student without a memory returns it
            unchanged
        :param episode_start: whether an observation is the first one of an episode, shape (batch_size,)
        :param deterministic: most probable actions, else sampled ones
        :param action_masks: whether a discrete action is allowed, shape (batch_size, sum of all categories)
        :return: actions, and ``state``
        :raises ValueError: the observation holds NaN, infinity or a number beyond float32
        """
        if (model := self._integer_model()) is not None:
            with suppress(ValueError):  # an input that it refuses: SB3 takes it another way, or says what is wrong
                before = None if model.history == 1 else model.remember(observation, state, episode_start)[0]
                actions = self._predict_in_integers(model, observation, deterministic, action_masks, before)
                after = state if before is None else (model.remember(observation, (before,), actions=actions)[1],)
                if self.training:  # a walk through all modules
                    self.set_training_mode(False)
                return actions, after
        self._check_finite(observation)
        if self.arch.history > 1:
            return self._predict_window(observation, state, episode_start, deterministic, action_masks)
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

    def window_of(self, observations: Any, state: np.ndarray | None) -> Any:
        """
        What the network takes in place of observations and an integer model's state, which it rounds to the same integers.

        :param observations: batch of raw observations
        :param state: see :meth:`~sb3_qpd.IntegerModel.trace`; ``None``: there is no memory, or all episodes begin
        :return: the observations as tensors, or windows of them
        """
        given, _ = self.obs_to_tensor(observations)
        if self.arch.history == 1:
            return given
        newest = self._newest_rows(given)
        grid: Any = self.features_extractor.trunks[0].input_grid
        shape = (len(newest), self.arch.history - 1, newest.shape[1])
        if state is None:
            before = th.full(shape, th.nan, dtype=th.float64, device=newest.device)
        else:
            before = th.as_tensor(state, device=newest.device) * (grid.std * grid.scale()) + grid.mean
            before = before if grid.origin is None else before + grid.origin
        return th.cat([before, newest[:, None]], dim=1)

    def _predict_window(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None,
        episode_start: np.ndarray | None,
        deterministic: bool,
        action_masks: np.ndarray | None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """:meth:`predict` in torch with a memory: the state is a window of raw observations, NaN before an episode."""
        self.set_training_mode(False)
        tensor, is_batch = self.obs_to_tensor(observation)
        newest = self._newest_rows(tensor)
        shape = (len(newest), self.arch.history - 1, newest.shape[1])
        before = np.full(shape, np.nan) if state is None else np.array(state[0])
        if before.dtype != np.float64 or before.shape != shape:
            raise ValueError(
                f"Expected a state of float64 and shape {shape}, got {before.dtype} and {before.shape}. Begin with state=None "
                "where the student has changed"
            )
        if episode_start is not None:
            before[np.broadcast_to(np.asarray(episode_start, bool), len(before))] = np.nan
        windows = th.cat([th.as_tensor(before, device=newest.device), newest[:, None]], dim=1)
        with th.no_grad():
            actions = self._predict(windows, deterministic, action_masks).cpu().numpy().reshape(-1, *self.head.shape)
        if self._action_bounds is not None:
            actions = np.clip(actions.astype(np.float32), *self._action_bounds)
        after = windows[:, 1:].cpu().numpy()
        if self.arch.history_actions:
            after[:, -1, -self.head.n_outputs :] = self.encode_actions(actions)
        return (actions if is_batch else actions.squeeze(axis=0)), (after,)

    def _newest_rows(self, observations: PyTorchObs) -> th.Tensor:
        """Observations as rows of a window, in float64. Their actions are not chosen yet, so they are NaN."""
        if isinstance(observations, dict):
            arrays: Any = {key: value.cpu().numpy() for key, value in observations.items()}
        else:
            arrays = observations.cpu().numpy()
        for part in self.features_extractor.parts:
            if part.kind == "one_hot":  # an index that is no category would be all zeros
                part.batch(arrays if part.key is None else arrays[part.key])
        rows = observation_rows(self.features_extractor.parts, arrays).astype(np.float64)
        if self.arch.history_actions:
            rows = np.concatenate([rows, np.full((len(rows), self.head.n_outputs), np.nan)], axis=1)
        return th.as_tensor(rows, device=self.device)

    def _check_finite(self, observation: Any) -> None:
        space = self.observation_space
        if isinstance(observation, tuple):  # of Gymnasium's reset(): SB3 says what is wrong
            return
        if not isinstance(observation, Mapping):
            check_finite(observation, len(space.shape or ()))
        elif isinstance(space, spaces.Dict):
            for key, one in space.items():
                if key in observation:
                    check_finite(observation[key], len(one.shape or ()), key)

    def _integer_model(self) -> IntegerModel | None:
        """
        Evaluation mode in numpy, which takes a fraction of torch's time for one observation. It is made when a parameter has
        changed. ``None``: torch has to do it, because the student is float, uncalibrated, diverged or on a GPU.
        """
        if self.action_net.is_float or not self.action_net.weight.is_cpu:
            return None
        if self._kept is None or not self._kept[0].is_unchanged():
            watch = Watch(self.features_extractor, self.action_net)
            is_usable = all(one.ready for one in self.quantizers()) and self._is_finite()
            self._kept = watch, self.to_integer() if is_usable else None
        return self._kept[1]

    def _predict_in_integers(
        self,
        model: IntegerModel,
        observation: Any,
        deterministic: bool,
        action_masks: np.ndarray | None,
        before: np.ndarray | None,
    ) -> np.ndarray:
        if deterministic:
            state = None if before is None else (before,)
            return model.predict(observation, state, deterministic=True, action_masks=action_masks)[0]
        accumulators, part = model.accumulators(observation, before), model.parts[0]
        outputs = th.from_numpy(accumulators.astype(np.float32) * model.layers[-1].multiplier)
        with th.no_grad():
            actions = self._sample(outputs, action_masks).numpy().reshape(-1, *self.head.shape)
        if self._action_bounds is not None:
            actions = np.clip(actions, *self._action_bounds)
        first = observation if part.key is None else observation[part.key]
        return actions if np.ndim(first) > len(part.shape) else actions.squeeze(axis=0)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> th.Tensor:
        head = self.head
        if action_masks is None and (head.is_box or not deterministic):
            return super()._predict(observation, deterministic)
        features: Any = self.extract_features(observation)
        if not deterministic:
            return self._sample(self.action_net(features), action_masks)
        # argmax of the integers, or of the logits: rounding or a softmax could make two of them equal
        exact = not (self.training or self.action_net.is_float)
        outputs = self.action_net.accumulators(features) if exact else self.action_net(features)
        return head.best(masked(head.logits(outputs), self._masks(action_masks, outputs), value=-th.inf))

    def _sample(self, outputs: th.Tensor, action_masks: np.ndarray | None) -> th.Tensor:
        """
        Actions drawn from the distribution.

        Without masks they are the numbers that SB3's distributions draw. To make such a distribution takes twice the time.

        :param outputs: the head's, shape (batch_size, n_actions or action_dim)
        :param action_masks: as for :meth:`predict`
        """
        head = self.head
        if action_masks is not None:
            return head.sample(masked(head.logits(outputs), self._masks(action_masks, outputs), value=-th.inf))
        if head.is_box:
            return outputs + th.empty_like(outputs).normal_() * self.log_std.exp()
        if head.is_binary:
            return self.action_dist.proba_distribution(outputs).sample()
        logits = head.split(outputs) if len(head.nvec) > 1 else (outputs,)
        normalized = [one - one.logsumexp(1, keepdim=True) for one in logits]
        drawn = [th.multinomial(one.softmax(1), 1, replacement=True) for one in normalized]
        return (th.cat(drawn, dim=1) if len(drawn) > 1 else drawn[0]).reshape(len(outputs), *head.shape)

    def _masks(self, action_masks: np.ndarray | None, outputs: th.Tensor) -> th.Tensor | None:
        if action_masks is None:
            return None
        masks = self.head.check_masks(action_masks, len(outputs), outputs.device)
        if not all(bool(one.any(1).all()) for one in self.head.split(masks)):
            raise ValueError("action_masks allow no action at all for an observation")
        return masks

    def _is_finite(self) -> bool:
        return all(bool(th.isfinite(p).all()) for p in self.parameters())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": None}  # a copy or a pickle makes its own

    @th.no_grad()
    def to_integer(self, **metadata: Any) -> IntegerModel:
        """
        The policy in integers, with the bits of evaluation mode.

        :param metadata: JSON values to store with the model
        :raises ValueError: the student is float, or its parameters are not finite
        """
        extractor = self.features_extractor
        if extractor.head_bits == FLOAT_BITS or self.arch.activation_bits == FLOAT_BITS:
            raise ValueError("A float student (32 bits) has no integer form: give weight_bits and activation_bits of 2 to 8")
        if not self._is_finite():
            raise ValueError("The student's parameters hold NaN or infinity: its training diverged. Lower the learning rate")
        calibrated = all(bool(q.ready) for q in self.quantizers())
        layers: list[Any] = [*(layer for trunk in extractor.trunks for layer in trunk.layers), self.action_net]
        grids = [trunk.input_grid for trunk in extractor.trunks if isinstance(trunk.input_grid, VectorGrid)]
        affine = [grid.affine() for grid in grids]
        m, a = (th.cat(values).cpu().numpy() for values in zip(*affine, strict=True)) if grids else (None, None)
        if self.arch.history > 1:
            _check_zero_is_mean(grids[0], affine[0])
        origins = [th.zeros_like(grid.mean) if grid.origin is None else grid.origin for grid in grids]
        has_origin = any(grid.origin is not None for grid in grids)
        box: dict[str, Any] = {}
        if self._action_bounds is not None:
            low, high = self._action_bounds
            box = {"action_low": low.reshape(-1), "action_high": high.reshape(-1)}
            box["action_std"] = self.log_std.exp().cpu().numpy()
            metadata = {"action_unit": self.action_unit.tolist(), **metadata}
        integers = [layer.to_integer() for layer in layers]
        if self.arch.history_actions:  # the inputs for the action that is still to come
            integers[0] = replace(integers[0], weight=integers[0].weight[:, : -self.head.n_outputs])
        return IntegerModel(
            layers=integers,
            observation_shape=self.observation_space.shape or (),
            input_multiplier=m,
            input_offset=a,
            action_shape=self.head.shape,
            metadata={"calibrated": calibrated, **self.metadata, **metadata},
            parts=extractor.parts,
            branches=tuple(len(trunk.layers) for trunk in extractor.trunks),
            action_nvec=self.head.nvec,
            uses_masks=self.uses_masks,
            history=self.arch.history,
            history_actions=self.arch.history_actions,
            input_origin=th.cat(origins).cpu().numpy() if has_origin else None,
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


def _check_zero_is_mean(grid: VectorGrid, affine: tuple[th.Tensor, th.Tensor]) -> None:
    """Before an episode begins, torch sees the mean of each feature, and integers see zero. Both have to be the same."""
    m, a = affine
    if bool((grid.mean.float() * m + a).round().any()):
        raise ValueError(
            "A feature of the observation lies too far from zero for its deviation: its mean is not zero on the input grid, "
            "which a student with a memory needs. Declare the observation space float64, or subtract the offset in the "
            "environment"
        )


def _refuse_without_integer_form(kwargs: dict[str, Any]) -> None:
    """Refuse options without an integer form. Drop keywords at the only possible value: stock PPO passes some."""
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
            raise ValueError(f"A quantized policy needs {name}={value}, got {given}: sizes go into student_arch")
    for name in ("features_extractor_class", "features_extractor_kwargs"):
        if kwargs.pop(name, None):
            raise ValueError(f"{name} has no integer form: leave it out and describe the network with student_arch")


def _units(net_arch: Any) -> list[int]:
    return [units for branch in net_arch.values() for units in branch] if isinstance(net_arch, dict) else list(net_arch)
