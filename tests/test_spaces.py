"""Every algorithm on every space that it supports, Dict observations, action masks, and the pipelines around observations."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import QUICK, Anything, Strict, actor_of, assert_saves_and_loads, assert_same_bits, sample

from sb3_qpd import QPDDistiller, load_teacher

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
OBSERVATIONS: dict[str, spaces.Space] = {
    "vector": spaces.Box(-1, 1, (3,)),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "image": IMAGE,
    "image, channels first": spaces.Box(0, 255, (1, 40, 36), np.uint8),
    "float image": spaces.Box(0, 1, (2, 36, 36)),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(4),
    "Dict": spaces.Dict(
        {"camera": IMAGE, "joints": spaces.Box(-9, 9, (3,)), "gear": spaces.Discrete(4), "buttons": spaces.MultiDiscrete([2, 3])}
    ),
    "Dict of vectors": spaces.Dict({"b": spaces.Box(-1, 1, (2,)), "a": spaces.MultiBinary(2)}),
}
ACTIONS: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-3, 7, (2,)),
}
ON_POLICY, OFF_POLICY, Q_VALUE = (A2C, PPO, TRPO), (SAC, TQC, TD3, DDPG), (DQN, QRDQN)
NO_IMAGES = [name for name in OBSERVATIONS if "image" not in name and "Dict" not in name]
CASES: list[tuple[Any, str, str]] = [
    *((algo, "vector", action) for algo in ON_POLICY for action in ACTIONS if action != "Discrete"),
    *((MaskablePPO, "vector", action) for action in ("MultiDiscrete", "MultiBinary")),
    *((algo, name, "Discrete") for algo in (*ON_POLICY, MaskablePPO, *Q_VALUE) for name in OBSERVATIONS),
    *((algo, name, "Box") for algo in OFF_POLICY for name in OBSERVATIONS),
    *((CrossQ, name, "Box") for name in NO_IMAGES),
    *((ARS, name, "Discrete") for name in NO_IMAGES),
    (ARS, "vector", "Box"),
]

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch", "ignore:.*has no action_masks")


def policy_of(space: spaces.Space) -> tuple[str, dict[str, Any]]:
    """SB3's policy for observations, small."""
    if isinstance(space, spaces.Dict):
        options = {"features_extractor_kwargs": {"cnn_output_dim": 8}} if "camera" in space.spaces else {}
        return "MultiInputPolicy", {"net_arch": [8], **options}
    if len(space.shape or ()) < 3:
        return "MlpPolicy", {"net_arch": [8]}
    if space.dtype == np.uint8:
        return "CnnPolicy", {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
    extractor = {"features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}}
    return "CnnPolicy", {"net_arch": [8], "normalize_images": False, **extractor}


def train(algo: Any, env: Any, n_steps: int = 64, **kwargs: Any) -> Any:
    """Weights that are no longer those of the initialization; thousands of steps would show no more, at a minute a case."""
    settings: dict[str, Any] = {"n_delta": 1, "n_top": 1} if algo is ARS else {"n_steps": 32}
    if algo in (*OFF_POLICY, *Q_VALUE, CrossQ):
        settings = {"learning_starts": 16, "batch_size": 8, "buffer_size": 100, "train_freq": 16}
    elif algo is not ARS and algo is not A2C:
        settings["batch_size"] = 32
    policy, policy_kwargs = policy_of(env.observation_space)
    if algo in (PPO, MaskablePPO):
        settings["n_epochs"] = 2
    model = algo(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **settings, **kwargs)
    return model.learn(n_steps, **({"use_masking": isinstance(env, Strict)} if algo is MaskablePPO else {}))


def distill(teacher: Any, **kwargs: Any) -> QPDDistiller:
    return QPDDistiller(teacher, **{**QUICK, "n_envs": None, "batch_size": 32, **kwargs}).learn(80)


@pytest.mark.parametrize("algo, observation, action", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_every_algorithm_on_every_space(algo, observation, action, tmp_path):
    model = train(algo, Anything(OBSERVATIONS[observation], ACTIONS[action]))
    model.save(tmp_path / "model.zip")
    teacher = load_teacher(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    observations = sample(model.observation_space, 50)
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(teacher.predict(observations, deterministic=True)[0], expected)
    labels = teacher(observations)
    if action == "Box":
        np.testing.assert_allclose(np.clip(labels.actor.numpy(), -3, 7), expected, atol=1e-4)
    else:
        np.testing.assert_array_equal(teacher.head.best(labels.actor).numpy(), expected)
    assert teacher.macs > 0
    student = distill(teacher)
    assert student._n_updates > 0
    assert_saves_and_loads(student, tmp_path, observations)
    assert_same_bits(student.post_training_quantize(4, 4).policy, observations)
