"""Students with a memory, untrained but calibrated, and episodes for them."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from toys import BOX, Pointer

from sb3_qpd import QuantActorCriticPolicy

K, N_ENVS = 4, 3
SPACES = {
    "discrete": (spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Discrete(3)),
    "box": (spaces.Box(-1, 1, (2, 2)), BOX),
    "bits": (spaces.MultiBinary(5), spaces.MultiDiscrete([2, 3])),
    "bytes": (spaces.Box(0, 255, (6,), np.uint8), spaces.Discrete(2)),
    "switches": (spaces.MultiBinary(5), spaces.MultiBinary(3)),
}


def make_policy(kind: str, history: int = K, **arch: Any) -> QuantActorCriticPolicy:
    """An untrained policy, calibrated on windows of which some begin an episode."""
    observation_space, action_space = SPACES[kind]
    th.manual_seed(0)
    arch = {"hidden": [8, 8], "history": history, **arch}
    policy = QuantActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, student_arch=arch)
    raw = observations_of(kind, 64 * history).reshape(64, history, *observation_space.shape)
    policy.set_normalization(raw.reshape(64 * history, -1).mean(0), raw.reshape(64 * history, -1).std(0) + 0.1)
    with th.no_grad():
        policy.action_net.weight.mul_(30)
    windows = raw.astype(np.float64)
    windows[:20, : history // 2] = np.nan
    if policy.arch.history_actions:
        windows = windows.reshape(64, history, -1)
        n_action = policy.head.n_outputs
        actions = np.random.default_rng(3).integers(0, 2, (64, history, n_action)).astype(float)
        actions[:20, : history // 2] = actions[:, -1] = np.nan
        windows = np.concatenate([windows, actions], axis=2)
        if policy.head.is_box:
            policy.features_extractor.trunks[0].set_action_normalization(BOX.low / 2, BOX.high / 3)
    policy.calibrate(th.as_tensor(windows))
    return policy


def observations_of(kind: str, n: int, seed: int = 0) -> np.ndarray:
    rng, space = np.random.default_rng(seed), SPACES[kind][0]
    if kind == "discrete":
        return Pointer.offset + Pointer.scale * rng.normal(size=(n, 3))
    if kind in ("bits", "switches"):
        return rng.integers(0, 2, (n, 5)).astype(np.int8)
    if kind == "bytes":
        return rng.integers(0, 256, (n, 6)).astype(np.uint8)
    return rng.uniform(-1, 1, (n, *space.shape)).astype(np.float32)


def episodes(kind: str, n_steps: int = 40) -> Any:
    """Observations and starts of episodes, step after step."""
    steps = observations_of(kind, n_steps * N_ENVS, seed=1).reshape(n_steps, N_ENVS, *SPACES[kind][0].shape)
    starts = np.random.default_rng(2).random((n_steps, N_ENVS)) < 0.2
    starts[0] = True
    return zip(steps, starts, strict=True)


def by_hand(steps: list[np.ndarray], starts: list[np.ndarray]) -> np.ndarray:
    """The windows by their definition: NaN before an episode."""
    windows = np.full((N_ENVS, K, *steps[0].shape[1:]), np.nan)
    for env in range(N_ENVS):
        for lag in range(min(K, len(steps))):
            windows[env, K - 1 - lag] = steps[-1 - lag][env]
            if starts[-1 - lag][env]:
                break
    return windows
