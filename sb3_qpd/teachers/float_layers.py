"""The layers of a teacher's actor, read off its torch modules, for the export of the undistilled network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSPolicy
from sb3_contrib.common.torch_layers import BatchRenorm1d
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_qpd.export.float_actor import Activation, Conv, Dense, FloatActor, InputPart, Layer
from sb3_qpd.integer import ObservationPart
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.normalization import ObsNormalization
from sb3_qpd.teachers.own_policies import sample_observations
from sb3_qpd.teachers.teacher import Teacher

TOLERANCE = 1e-4  # of an output: relative to the largest one, or to half the range of a Box action
N_COMPARED, LARGEST = 64, 10.0
# class of torch -> activation and the names of its parameters
_ACTIVATIONS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.ReLU: ("relu", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.Hardtanh: ("clip", ("min_val", "max_val")),
    nn.ReLU6: ("clip", ("min_val", "max_val")),
    nn.Tanh: ("tanh", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.ELU: ("elu", ("alpha",)),
    nn.SiLU: ("silu", ()),
    nn.Softsign: ("softsign", ()),
}
_SELU = (1.6732632423543772, 1.0507009873554805)


def float_actor(teacher: Teacher) -> FloatActor:
    """
    A teacher's actor as numbers, compared with the teacher's own labels.

    :param teacher: any teacher with a network of SB3's
    :raises TeacherError: a layer that is not let through, or another answer than the teacher's
    """
    if getattr(teacher.policy, "is_function", False):
        raise TeacherError(f"{teacher.name} is a function or an ONNX file, whose layers are not known: it cannot be exported")
    extractor, modules, unscales = _network(teacher)
    space, head = teacher.action_space, teacher.head
    bounds = {}
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.reshape(-1).astype(np.float32), "high": space.high.reshape(-1).astype(np.float32)}
    recipe = teacher.recipe
    metadata = {"teacher": teacher.name, "teacher_checksum": teacher.checksum, "env": recipe.to_json() if recipe else None}
    actor = FloatActor(
        parts=tuple(_part(part, teacher, extractor) for part in teacher.parts),
        layers=_folded(tuple(layer for module in modules for layer in _layers(module)), teacher),
        nvec=head.nvec,
        shape=head.shape,
        is_binary=head.is_binary,
        unscales=unscales,
        metadata=metadata,
        **bounds,
    )
    _compare(actor, teacher)
    return actor


def _network(teacher: Teacher) -> tuple[Any, list[nn.Module], bool]:
    """The features extractor, the modules behind it, and whether their output is an action in [-1, 1]."""
    policy = teacher.policy
    if isinstance(policy, DQNPolicy):
        return policy.q_net.features_extractor, [policy.q_net.q_net], False
    if isinstance(policy, QRDQNPolicy):
        return policy.quantile_net.features_extractor, [policy.quantile_net.quantile_net], False
    if isinstance(policy, ARSPolicy):
        return policy.features_extractor, [policy.action_net], bool(policy.squash_output) and teacher.head.is_box
    if isinstance(policy, TD3Policy):
        return policy.actor.features_extractor, [policy.actor.mu], True
    if isinstance(policy, SACPolicy | TQCPolicy | CrossQPolicy):
        return policy.actor.features_extractor, [policy.actor.latent_pi, policy.actor.mu, nn.Tanh()], True
    squash = [nn.Tanh()] if policy.squash_output else []
    extractor = policy.features_extractor if policy.share_features_extractor else policy.pi_features_extractor
    net = getattr(policy.mlp_extractor, "policy_net", policy.mlp_extractor)
    return extractor, [net, policy.action_net, *squash], bool(squash)


def _part(part: ObservationPart, teacher: Teacher, extractor: nn.Module) -> InputPart:
    own = extractor.extractors[str(part.key)] if isinstance(extractor, CombinedExtractor) else extractor
    layers = tuple(_layers(own))
    if part.is_image and not isinstance(own, NatureCNN):
        raise TeacherError(f"The images of {teacher.name} go through a {type(own).__name__}, expected SB3's NatureCNN")
    normalization = teacher.normalization
    if isinstance(normalization, dict):
        normalization = normalization.get(part.key or "")
    if normalization is not None:
        return _normalized(part, normalization, layers, teacher)
    scaled = part.kind == "image" and teacher.policy.normalize_images
    return InputPart(part, np.zeros(()), np.asarray(1 / 255 if scaled else 1.0), layers=layers)


def _normalized(part: ObservationPart, own: ObsNormalization, layers: tuple[Layer, ...], teacher: Teacher) -> InputPart:
    if own.n_frames != 1 or part.kind != "vector":
        what = "stacked frames" if own.n_frames != 1 else f"{part.kind} observations"
        raise TeacherError(f"{teacher.name} normalizes {what} by VecNormalize, which is not exported. Distill it instead")
    return InputPart(part, own.mean, 1 / np.sqrt(own.var + own.epsilon), float(own.clip_obs), layers)


def _layers(module: nn.Module) -> Iterator[Layer]:
    """The layers of a module in order; flattening is not one."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _layers(child)
    elif isinstance(module, NatureCNN):
        yield from _layers(module.cnn)
        yield from _layers(module.linear)
    elif isinstance(module, nn.Linear):
        bias = np.zeros(module.out_features, np.float32) if module.bias is None else _array(module.bias)
        yield Dense(_array(module.weight), bias)
    elif isinstance(module, nn.Conv2d):
        yield _conv(module)
    elif isinstance(module, BatchRenorm1d):
        yield _batch_norm(module)
    elif not isinstance(module, nn.Flatten | FlattenExtractor | nn.Identity | nn.Dropout):
        yield _activation(module)


def _conv(module: nn.Conv2d) -> Conv:
    unusual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
    if any(getattr(module, name) != usual for name, usual in unusual.items()) or module.bias is None:
        raise TeacherError("A convolution with padding, dilation or groups is not exported. Distill the teacher instead")
    return Conv(_array(module.weight), _array(module.bias), tuple(module.stride))  # type: ignore[arg-type]


def _batch_norm(module: Any) -> Dense:
    """A batch normalization that has learned: a factor and an offset for each feature, as a diagonal layer."""
    factor = _array(module.scale) / np.sqrt(_array(module.ra_var) + np.float32(module.eps))
    return Dense(np.diag(factor), _array(module.bias) - factor * _array(module.ra_mean))


def _activation(module: nn.Module) -> Activation:
    for cls, (kind, names) in _ACTIVATIONS.items():
        if type(module) is cls:
            return Activation(kind, tuple(float(getattr(module, name)) for name in names))
    if type(module) is nn.SELU:
        return Activation("selu", _SELU)
    if type(module) is nn.Softplus and module.beta == 1:
        return Activation("softplus")
    if type(module) is nn.GELU and module.approximate == "none":
        return Activation("gelu")
    raise TeacherError(f"A layer {type(module).__name__} is not exported. Distill the teacher instead")


def _array(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float32)


def _folded(layers: tuple[Layer, ...], teacher: Teacher) -> tuple[Layer, ...]:
    """Neighbouring linear layers as one, and the mean over quantiles inside the last layer."""
    folded: list[Layer] = []
    for layer in layers:
        before = folded[-1] if folded else None
        if isinstance(layer, Dense) and isinstance(before, Dense):
            wide, bias = layer.weight.astype(np.float64), before.bias.astype(np.float64)
            weight = (wide @ before.weight).astype(np.float32)
            folded[-1] = Dense(weight, (wide @ bias + layer.bias).astype(np.float32))
        else:
            folded.append(layer)
    if isinstance(teacher.policy, QRDQNPolicy) and isinstance(last := folded[-1], Dense):
        n = sum(teacher.head.nvec)
        weight = last.weight.reshape(-1, n, last.weight.shape[1]).mean(0)
        folded[-1] = Dense(weight, last.bias.reshape(-1, n).mean(0))
    return tuple(folded)


def _as_float32(observations: Any, bounded: bool) -> Any:
    """Numbers as a device has them. Random ones of an unbounded space would overflow."""
    if isinstance(observations, dict):
        return {key: _as_float32(values, bounded) for key, values in observations.items()}
    if observations.dtype.kind != "f":
        return observations
    return (np.clip(observations, -LARGEST, LARGEST) if bounded else observations).astype(np.float32)


def _compare(actor: FloatActor, teacher: Teacher) -> None:
    """Refuse an actor that answers otherwise than the teacher, for instance of an own class that changes its distribution."""
    observations = _as_float32(sample_observations(teacher, N_COMPARED), teacher.normalization is None)
    ours, labels = actor.outputs(observations), teacher(observations).actor
    theirs = (labels[:, 1::2] if actor.is_binary else labels).cpu().numpy()
    unit = np.maximum((actor.high - actor.low) / 2, 1e-8) if actor.is_box else max(float(np.abs(theirs).max()), 1.0)
    if actor.is_box:
        ours, theirs = (np.clip(one, actor.low, actor.high) for one in (ours, theirs))
    error = float(np.max(np.abs(ours - theirs) / unit))
    if not math.isfinite(error) or error > TOLERANCE:
        raise TeacherError(
            f"The layers of {teacher.name} do not give the teacher's own answer (a difference of {error:.2g}): its class or "
            "its layers are not SB3's. It cannot be exported undistilled"
        )
