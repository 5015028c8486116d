"""VecEnvs of game engines and simulators that implement only what SB3's learn() needs."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toys import QUICK, Anything

from sb3_qpd import QPDDistiller, load_teacher
from sb3_qpd.envs.inspection import pipeline_of, stacks_frames
from sb3_qpd.players import gives_masks, is_monitored, seed_if_possible
from sb3_qpd.teachers.check import check_teacher


class Engine(VecEnv):
    """Everything that is optional raises, in one of the ways that are in use."""

    error: type[Exception] = NotImplementedError

    def __init__(self) -> None:
        self.t = 0
        super().__init__(2, spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Box(-1, 1, (2,), np.float32))

    def reset(self):
        self.t = 0
        return np.zeros((2, 2), np.float32)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.t += 1
        done = self.t % 5 == 0
        return np.zeros((2, 2), np.float32), -np.abs(self.actions).sum(1), np.full(2, done), [{}, {}]

    def close(self):
        pass

    def seed(self, seed=None):
        raise self.error("not supported")

    def get_attr(self, name, indices=None):
        if name == "render_mode":
            return [None] * self.num_envs
        raise self.error("not supported")

    def set_attr(self, name, value, indices=None):
        raise self.error("not supported")

    def env_method(self, name, *args, indices=None, **kwargs):
        raise self.error("not supported")

    def env_is_wrapped(self, wrapper_class, indices=None):
        raise self.error("not supported")


class Attributes(Engine):
    error = AttributeError


class Godot(Engine):
    def seed(self):
        raise NotImplementedError

    def env_method(self):
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore:The `render_mode` attribute is not defined")
@pytest.mark.parametrize("cls", [Engine, Attributes, Godot])
def test_optional_methods_are_asked_for(cls):
    env = cls()
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(32)
    assert not seed_if_possible(env, 3) and not seed_if_possible(env, None) and not is_monitored(env) and not gives_masks(env)
    assert pipeline_of(env, None) == [] and not stacks_frames(env)
    check = check_teacher(load_teacher(model, device="cpu"), env, deterministic=True, seed=0)
    assert check.teacher.n_complete == check.random.n_complete == 6


def test_methods_that_are_there_are_used():
    env = DummyVecEnv([lambda: Monitor(Anything(spaces.Discrete(2), spaces.Discrete(2)))])
    assert seed_if_possible(env, 3) and env._seeds == [3] and is_monitored(env)


def test_statistics_in_a_wrapper_are_named_once():
    env = gym.wrappers.NormalizeObservation(gym.make("CartPole-v1"))
    model = PPO("MlpPolicy", env, device="cpu")
    with pytest.warns(UserWarning, match="has gymnasium's NormalizeObservation: .* SB3's VecNormalize instead") as seen:
        student = QPDDistiller(model, **QUICK)
        student.set_recipe(None)
    assert (
        student.pipeline == ["NormalizeObservation"] and len([one for one in seen if "gymnasium's" in str(one.message)]) == 1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        QPDDistiller(PPO("MlpPolicy", "CartPole-v1", device="cpu"), **QUICK)
