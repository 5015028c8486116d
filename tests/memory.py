"""Students with a memory, untrained but calibrated, and episodes for them."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from students import assert_same_bits
from toys import BOX, Pointer

from sb3_qpd import IntegerModel, QuantActorCriticPolicy
from sb3_qpd.observations import take_rows

K, N_ENVS = 4, 3
VECTORS = {
    "discrete": (spaces.Box(-np.inf, np.inf, (3,), np.float64), spaces.Discrete(3)),
    "box": (spaces.Box(-1, 1, (2, 2)), BOX),
    "bits": (spaces.MultiBinary(5), spaces.MultiDiscrete([2, 3])),
    "bytes": (spaces.Box(0, 255, (6,), np.uint8), spaces.Discrete(2)),
    "switches": (spaces.MultiBinary(5), spaces.MultiBinary(3)),
}
PARTS = {"pose": spaces.Box(-9, 9, (2,), np.float64), "gear": spaces.Discrete(3), "lamps": spaces.MultiBinary(2)}
OTHERS = {
    "index": (spaces.Discrete(5), BOX),
    "indices": (spaces.MultiDiscrete([3, 2]), spaces.Discrete(3)),
    "dict": (spaces.Dict(PARTS), spaces.MultiDiscrete([2, 3])),
}
SPACES = VECTORS | OTHERS


def make_policy(kind: str, history: int = K, **arch: Any) -> QuantActorCriticPolicy:
    """An untrained policy, calibrated on windows of which some begin an episode."""
    observation_space, action_space = SPACES[kind]
    th.manual_seed(0)
    arch = {"hidden": [8, 8], "history": history, **arch}
    policy = QuantActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, student_arch=arch)
    raw = flat(kind, observations_of(kind, 64 * history))
    is_index = np.isin(raw, (0, 1)).all(0) & (kind in OTHERS)
    policy.set_normalization(np.where(is_index, 0, raw.mean(0)), np.where(is_index, 1, raw.std(0) + 0.1))
    with th.no_grad():
        policy.action_net.weight.mul_(30)
    windows = raw.reshape(64, history, -1)
    windows[:20, : history // 2] = np.nan
    if policy.arch.history_actions:
        n_action = policy.head.n_outputs
        actions = np.random.default_rng(3).integers(0, 2, (64, history, n_action)).astype(float)
        actions[:20, : history // 2] = actions[:, -1] = np.nan
        windows = np.concatenate([windows, actions], axis=2)
        if policy.head.is_box:
            policy.features_extractor.trunks[0].set_action_normalization(BOX.low / 2, BOX.high / 3)
    policy.calibrate(th.as_tensor(windows))
    return policy


def observations_of(kind: str, n: int, seed: int = 0) -> Any:
    rng, space = np.random.default_rng(seed), SPACES[kind][0]
    if kind == "discrete":
        return Pointer.offset + Pointer.scale * rng.normal(size=(n, 3))
    if kind in ("bits", "switches"):
        return rng.integers(0, 2, (n, 5)).astype(np.int8)
    if kind == "bytes":
        return rng.integers(0, 256, (n, 6)).astype(np.uint8)
    if kind == "index":
        return rng.integers(0, 5, n)
    if kind == "indices":
        return rng.integers(0, [3, 2], (n, 2))
    if kind == "dict":
        lamps = rng.integers(0, 2, (n, 2)).astype(np.int8)
        return {"gear": rng.integers(0, 3, n), "lamps": lamps, "pose": rng.uniform(-9, 9, (n, 2))}
    return rng.uniform(-1, 1, (n, *space.shape)).astype(np.float32)


def flat(kind: str, observations: Any) -> np.ndarray:
    """The numbers of each observation in one row, indices as zeros and a one, by their definition."""
    if kind == "index":
        return np.eye(5)[observations]
    if kind == "indices":
        return np.concatenate([np.eye(3)[observations[:, 0]], np.eye(2)[observations[:, 1]]], axis=1)
    if kind == "dict":  # in Gymnasium's order of keys
        return np.concatenate([np.eye(3)[observations["gear"]], observations["lamps"], observations["pose"]], axis=1)
    return observations.reshape(len(observations), -1).astype(float)


def episodes(kind: str, n_steps: int = 40) -> Any:
    """Observations and starts of episodes, step after step."""
    steps = observations_of(kind, n_steps * N_ENVS, seed=1)
    starts = np.random.default_rng(2).random((n_steps, N_ENVS)) < 0.2
    starts[0] = True
    for step in range(n_steps):
        yield take_rows(steps, slice(step * N_ENVS, (step + 1) * N_ENVS)), starts[step]


def by_hand(rows: list[np.ndarray], starts: list[np.ndarray]) -> np.ndarray:
    """The windows by their definition: NaN before an episode."""
    windows = np.full((N_ENVS, K, *rows[0].shape[1:]), np.nan)
    for env in range(N_ENVS):
        for lag in range(min(K, len(rows))):
            windows[env, K - 1 - lag] = rows[-1 - lag][env]
            if starts[-1 - lag][env]:
                break
    return windows


def assert_same_step(
    policy: Any, model: IntegerModel, observations: Any, before: Any, actions: Any, after: np.ndarray
) -> None:
    """
    A file's step has the bits of the integer model: all values on the way, actions, outputs and the state after it.

    :param policy: the file in its runtime
    :param model: the integer model
    :param observations: a batch
    :param before: the state before the step
    :param actions: the model's most probable actions
    :param after: the model's state after the step
    """
    trace = policy.trace(observations, before)
    for name, values in zip(model.step_names(), model.trace(observations, before), strict=True):
        np.testing.assert_array_equal(trace[name], values)
    found, outputs, state = policy.run(observations, None, before)
    assert_same_bits(found, actions)
    assert_same_bits(outputs, model.logits(observations, before))
    assert_same_bits(state, after)
