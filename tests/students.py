"""What the tests of layers, policies and integer models share: students of all kinds, observations, and rough treatment."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_qpd.students.architectures import StudentArch
from sb3_qpd.students.layers import QuantLayer
from sb3_qpd.students.policies import QuantActorCriticPolicy

VECTOR = spaces.Box(-np.inf, np.inf, (5,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
DISCRETE = spaces.Discrete(6)
BOX = spaces.Box(np.array([-1, -2, 0], np.float32), np.array([1, 0.5, 10], np.float32))
SPACES = {
    "vector, discrete": (VECTOR, DISCRETE),
    "vector, Box": (VECTOR, BOX),
    "image, discrete": (IMAGE, DISCRETE),
    "image, Box": (IMAGE, BOX),
}
BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3), "W2A8": (2, 8)}
ARCH = StudentArch(hidden=(16, 12), conv=((6, 8, 4), (8, 3, 1)), conv_hidden=(16,))


def some_observations(space: spaces.Box, n: int = 256, seed: int = 0) -> np.ndarray:
    """Ordinary and nasty ones: all sizes, ties, constants, extremes."""
    rng = np.random.default_rng(seed)
    if space.dtype == np.uint8:
        images = rng.integers(0, 256, (n, *space.shape), dtype=np.uint8)
        images[: n // 4] = (images[: n // 4] > 250) * 255  # mostly black
        images[0], images[1] = 0, 255
        images[2], images[2, :, ::2, ::2] = 0, 255
        images[3], images[3, 0, 0, 0] = 0, 1
        return images
    vectors = rng.standard_normal((n, *space.shape)) * 10.0 ** rng.integers(-3, 4, (n, 1))
    vectors[: n // 2] = rng.standard_normal((n // 2, *space.shape))
    vectors[0], vectors[1], vectors[2], vectors[3] = 0, 3e38, -3e38, 1e-42
    return vectors.astype(np.float32)


def make_student(
    observation_space: spaces.Box = VECTOR,
    action_space: spaces.Space = DISCRETE,
    bits: tuple[Any, int] = (8, 8),
    arch: Any = ARCH,
    seed: int = 0,
    **kwargs: Any,
) -> QuantActorCriticPolicy:
    """A calibrated student with random weights, in evaluation mode."""
    th.manual_seed(seed)
    policy = QuantActorCriticPolicy(
        observation_space, action_space, lambda _: 1e-3, arch, weight_bits=bits[0], activation_bits=bits[1], **kwargs
    )
    with th.no_grad():
        policy.action_net.weight.mul_(100)  # SB3 starts with nearly uniform actions
        for layer in quant_layers(policy):
            layer.bias.normal_(0, 0.1)
    typical = some_observations(observation_space, 128)[32:64]
    policy.calibrate(policy.obs_to_tensor(typical)[0].float())
    policy.set_training_mode(False)
    return policy


def quant_layers(policy: QuantActorCriticPolicy) -> list[QuantLayer]:
    """Trunks and head, in order."""
    trunks = policy.features_extractor.trunks
    return [*(layer for trunk in trunks for layer in trunk.layers), policy.action_net]


def actor_output(policy: QuantActorCriticPolicy, observations: np.ndarray) -> np.ndarray:
    with th.no_grad():
        return policy.actor_and_value(policy.obs_to_tensor(observations)[0])[0].numpy()


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """Every bit, the sign of zero included."""
    assert one.dtype == other.dtype and one.shape == other.shape
    np.testing.assert_array_equal(one, other)
    assert one.tobytes() == other.tobytes()


def assert_twins(policy: QuantActorCriticPolicy, observations: np.ndarray) -> None:
    """Evaluation mode and integer model give the same bits."""
    assert_same_bits(actor_output(policy, observations), policy.to_integer().logits(observations))


def _noise(policy: QuantActorCriticPolicy) -> None:
    for parameter in policy.parameters():
        parameter.add_(th.randn_like(parameter) * (0.1 + parameter.abs().mean()))


def _scales(policy: QuantActorCriticPolicy) -> None:
    for quantizer in policy.quantizers():
        quantizer.log_scale.add_(th.randn_like(quantizer.log_scale) * 2)


def _huge_biases(policy: QuantActorCriticPolicy) -> None:
    for i, layer in enumerate(quant_layers(policy)):
        layer.bias[i % len(layer.bias)] = 1e6 * (-1) ** i
        layer.bias[-1] = 3e9


def _tiny_weights_huge_biases(policy: QuantActorCriticPolicy) -> None:
    for layer in quant_layers(policy):
        layer.weight.mul_(1e-7)
        layer.weight_quantizer.log_scale.sub_(16)
        layer.bias.mul_(1e4)


def _dead_channels(policy: QuantActorCriticPolicy) -> None:
    for layer in quant_layers(policy):
        layer.weight[::2] = 0
        layer.bias[::2] = -1


def _zero_layers(policy: QuantActorCriticPolicy) -> None:
    for layer in quant_layers(policy)[:2]:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _large_weights(policy: QuantActorCriticPolicy) -> None:
    """Far beyond their grids: every weight at the end of its range."""
    for layer in quant_layers(policy):
        layer.weight.mul_(1e5)


TREATMENTS: dict[str, Callable[[QuantActorCriticPolicy], None]] = {
    f.__name__.strip("_"): f
    for f in (_noise, _scales, _huge_biases, _tiny_weights_huge_biases, _dead_channels, _zero_layers, _large_weights)
}


@th.no_grad()
def treat(policy: QuantActorCriticPolicy, name: str, seed: int = 0) -> None:
    """What training could do to a student at its worst."""
    th.manual_seed(seed)
    TREATMENTS[name](policy)
