"""Small random students of all kinds, and observations for them: those of the table in ``targets.py``."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd import IntegerModel, QuantActorCriticPolicy
from sb3_qpd.spaces import observation_parts

N = 200  # observations
VECTOR, IMAGE, FLOATS = spaces.Box(-1, 1, (4,)), spaces.Box(0, 255, (4, 36, 36), np.uint8), spaces.Box(0, 1, (2, 36, 36))
JOINTS = spaces.Dict(gear=spaces.Discrete(4), joints=VECTOR)
CAMERAS = spaces.Dict(camera=IMAGE, depth=FLOATS, gear=spaces.Discrete(4), joints=VECTOR)
BOX, DISCRETE, SEVERAL = spaces.Box(-1, 1, (3,)), spaces.Discrete(3), spaces.MultiDiscrete([3, 2, 4])
UTM = np.array([5_400_000.25, 0, 0, -1.7e9])  # offsets that float32 cannot carry


@dataclass(frozen=True)
class Kind:
    """
    A kind of student.

    :param name: name in the table
    :param observations: space of the observations
    :param actions: space of the actions
    :param bits: bits of weights and activations
    :param uses_masks: whether the student takes action masks
    :param origin: offsets of the observations, taken off in float64
    :param requantization: see :class:`~sb3_qpd.integer.IntegerModel`
    :param history: number of observations that the student sees
    :param history_actions: whether the student also sees the actions between them
    """

    name: str
    observations: spaces.Space
    actions: spaces.Space
    bits: int = 8
    uses_masks: bool = False
    origin: np.ndarray | None = None
    requantization: str = "float32"
    history: int = 1
    history_actions: bool = False


KINDS = [
    Kind("vector to Discrete", VECTOR, DISCRETE),
    Kind("vector to Box", VECTOR, BOX),
    Kind("vector to MultiDiscrete", VECTOR, SEVERAL),
    Kind("vector to MultiBinary", VECTOR, spaces.MultiBinary(3)),
    Kind("vector, action masks", VECTOR, DISCRETE, uses_masks=True),
    Kind("vector, action masks, MultiDiscrete", VECTOR, SEVERAL, uses_masks=True),
    Kind("vector with large offsets (float64)", VECTOR, DISCRETE, origin=UTM),
    Kind("vector, W4A8", VECTOR, DISCRETE, bits=4),
    Kind("vector, W3A3", VECTOR, DISCRETE, bits=3),
    Kind("vector, `fixed`", VECTOR, DISCRETE, requantization="fixed"),
    Kind("Discrete observations", spaces.Discrete(5), DISCRETE),
    Kind("MultiDiscrete observations", spaces.MultiDiscrete([3, 2, 4]), DISCRETE),
    Kind("MultiBinary observations", spaces.MultiBinary((2, 2)), DISCRETE),
    Kind("image of bytes", IMAGE, DISCRETE),
    Kind("image of bytes to Box, W4A8", IMAGE, BOX, bits=4),
    Kind("image of bytes, `fixed`", IMAGE, DISCRETE, requantization="fixed"),
    Kind("image of floats", FLOATS, DISCRETE),
    Kind("Dict of vector and index", JOINTS, DISCRETE),
    Kind("Dict, action masks", JOINTS, SEVERAL, uses_masks=True),
    Kind("Dict, `fixed`", JOINTS, BOX, requantization="fixed"),
    Kind("Dict with images of both kinds", CAMERAS, DISCRETE),
    Kind("Dict with images, `fixed`", CAMERAS, SEVERAL, requantization="fixed"),
    Kind("vector, memory", VECTOR, DISCRETE, history=4),
    Kind("vector to Box, memory", VECTOR, BOX, history=4),
    Kind("vector, memory, `fixed`", VECTOR, DISCRETE, history=4, requantization="fixed"),
    Kind("vector, memory of actions", VECTOR, DISCRETE, history=4, history_actions=True),
    Kind("vector to Box, memory of actions", VECTOR, BOX, history=4, history_actions=True),
    Kind("Dict, memory of actions", JOINTS, SEVERAL, history=4, history_actions=True),
]


def make_student(kind: Kind) -> IntegerModel:
    """A calibrated policy with random weights, in integers."""
    th.manual_seed(0)
    activation_bits = 8 if kind.bits == 4 else kind.bits
    options: Any = {"weight_bits": kind.bits, "activation_bits": activation_bits, "uses_masks": kind.uses_masks}
    arch = {"hidden": [8, 8], "history": kind.history, "history_actions": kind.history_actions} if kind.history > 1 else "nano"
    policy = QuantActorCriticPolicy(kind.observations, kind.actions, lambda _: 0.0, arch, normalized_image=True, **options)
    if kind.origin is not None:
        policy.features_extractor.set_origin(kind.origin)
    with th.no_grad():
        policy.action_net.weight.mul_(100)  # new policies have nearly uniform actions
    policy.calibrate(policy.obs_to_tensor(some_observations(kind, 64))[0] if kind.history == 1 else some_windows(kind))
    return replace(policy.to_integer(), requantization=kind.requantization)


def some_windows(kind: Kind) -> th.Tensor:
    """Windows of random observations, each but the newest one with an action; NaN before an episode."""
    drawn = some_observations(kind, 64 * kind.history)
    parts = [
        part.features(drawn if part.key is None else drawn[part.key], None) for part in observation_parts(kind.observations)
    ]
    windows = np.concatenate(parts, axis=1).reshape(64, kind.history, -1).astype(np.float64)
    if kind.history_actions:
        n_outputs = 3 if kind.actions is not SEVERAL else int(SEVERAL.nvec.sum())
        actions = np.random.default_rng(3).integers(0, 2, (64, kind.history, n_outputs)).astype(float)
        actions[:, -1] = np.nan
        windows = np.concatenate([windows, actions], axis=2)
    windows[:20, :2] = np.nan
    return th.as_tensor(windows)


def some_observations(kind: Kind, n: int = N) -> Any:
    """Random observations of the space."""
    space: Any = kind.observations
    space.seed(0)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in drawn]) for key in space}
    return np.stack(drawn) if kind.origin is None else np.stack(drawn) + kind.origin
