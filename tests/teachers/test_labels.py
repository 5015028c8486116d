"""TeacherLabels: the environment as it was, with the teacher's words in info."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from sb3_contrib import ARS
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from toys import Quadrant, untrained

from sb3_qpd import TeacherLabels, load_teacher

ALL: dict[str, tuple[type[BaseAlgorithm], str, set[str]]] = {
    "PPO discrete": (PPO, "CartPole-v1", {"teacher_logits", "teacher_value"}),
    "A2C box": (A2C, "Pendulum-v1", {"teacher_mean", "teacher_std", "teacher_value"}),
    "DQN": (DQN, "CartPole-v1", {"teacher_logits", "teacher_value"}),
    "SAC": (SAC, "Pendulum-v1", {"teacher_mean", "teacher_std", "teacher_value"}),
    "TD3": (TD3, "Pendulum-v1", {"teacher_mean", "teacher_value"}),
    "ARS": (ARS, "Pendulum-v1", {"teacher_mean"}),
}


def model_of(algo: type[BaseAlgorithm], env: str) -> Any:
    settings: dict[str, Any] = {"buffer_size": 10} if algo in (DQN, SAC, TD3) else {}
    return algo("MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}, **settings)  # type: ignore[call-arg]


@pytest.mark.parametrize(("algo", "env_id", "keys"), ALL.values(), ids=ALL)
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_passes_gymnasiums_check(algo, env_id, keys):
    env = TeacherLabels(gym.make(env_id), model_of(algo, env_id))
    check_env(env)
    assert keys == {key for key in env.reset(seed=0)[1] if key.startswith("teacher_")}
    again = env.spec.make()
    for key, value in again.reset(seed=0)[1].items():
        np.testing.assert_array_equal(value, env.reset(seed=0)[1][key])


@pytest.mark.parametrize(("algo", "env_id", "keys"), ALL.values(), ids=ALL)
def test_labels_are_those_of_the_observation_that_is_returned(algo, env_id, keys):
    model = model_of(algo, env_id)
    teacher = load_teacher(model, device="cpu")
    env, plain = TeacherLabels(gym.make(env_id), teacher), gym.make(env_id)
    env.action_space.seed(0)
    observation, info = env.reset(seed=3)
    np.testing.assert_array_equal(observation, plain.reset(seed=3)[0])
    for _ in range(5):
        output = teacher(observation[None])
        actor = info["teacher_mean" if "teacher_mean" in keys else "teacher_logits"]
        np.testing.assert_array_equal(actor, output.actor[0])
        if "teacher_std" in keys:
            np.testing.assert_array_equal(info["teacher_std"], output.log_std[0].exp())
        if "teacher_value" in keys:
            assert info["teacher_value"] == output.value[0].item()
        action = env.action_space.sample()
        observation, *rest, info = env.step(action)
        expected, *same, _ = plain.step(action)
        np.testing.assert_array_equal(observation, expected)
        assert rest == same


def test_raw_observations_go_to_a_teacher_that_normalizes():
    model = untrained("Pendulum-v1")
    vec_env = VecNormalize(model.get_env(), clip_obs=1.0)
    vec_env.obs_rms.mean += 0.5
    model.set_env(vec_env)
    env = TeacherLabels(gym.make("Pendulum-v1"), model)
    observation, info = env.reset(seed=0)
    expected = model.predict(vec_env.normalize_obs(observation), deterministic=True)[0]
    np.testing.assert_allclose(np.clip(info["teacher_mean"], -2, 2), expected, rtol=1e-6)


def test_images_as_the_environment_gives_them():
    env = TeacherLabels(Quadrant(), untrained(Quadrant(), policy="CnnPolicy"))
    observation, info = env.reset(seed=0)
    assert observation.shape == (36, 36, 3) and info["teacher_logits"].shape == (4,)


def test_infos_of_vectorized_environments():
    model = model_of(SAC, "Pendulum-v1")
    envs = gym.vector.SyncVectorEnv([lambda: TeacherLabels(gym.make("Pendulum-v1"), model)] * 3)
    _, infos = envs.reset(seed=0)
    assert infos["teacher_mean"].shape == infos["teacher_std"].shape == (3, 1) and infos["teacher_value"].shape == (3,)


def test_temperature():
    model = model_of(DQN, "CartPole-v1")
    cold, plain = (TeacherLabels(gym.make("CartPole-v1"), model, temperature=t).reset(seed=0)[1] for t in (0.1, 1.0))
    np.testing.assert_allclose(cold["teacher_logits"], 10 * plain["teacher_logits"], rtol=1e-5)
    assert cold["teacher_value"] == plain["teacher_value"]
    with pytest.raises(ValueError, match="temperature must be a positive number, got 0"):
        TeacherLabels(gym.make("CartPole-v1"), model, temperature=0)


def test_an_environment_that_is_not_the_teachers():
    with pytest.raises(
        ValueError, match=r"observations are not the teacher's.\nteacher: 4 numbers, .*\nenvironment: 6 numbers, "
    ):
        TeacherLabels(gym.make("Acrobot-v1"), untrained("CartPole-v1"))
    other = gym.wrappers.TransformAction(gym.make("CartPole-v1"), lambda action: action % 2, spaces.Discrete(4))
    with pytest.raises(ValueError, match="(?s)environment's actions are not the teacher's.*Discrete"):
        TeacherLabels(other, untrained("CartPole-v1"))
