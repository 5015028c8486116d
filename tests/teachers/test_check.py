import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_qpd.teachers import check as teacher_check
from sb3_qpd.teachers.check import Play, TeacherCheck, check_teacher
from sb3_qpd.teachers.normalization import ObsNormalization
from sb3_qpd.teachers.teacher import Teacher

MEAN, STD = np.array([10.0, -2.0, 0.3, 50.0]), np.array([3.0, 0.5, 0.02, 20.0])


class Shifted(gym.ObservationWrapper):
    """CartPole in units that cannot be played without normalizing."""

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return (observation * STD + MEAN).astype(np.float32)


class Scripted(ActorCriticPolicy):
    """Balances CartPole from its plain observations: a teacher without training."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, net_arch=[], **kwargs)
        with th.no_grad():
            push = th.tensor([0.1, 0.5, 5.0, 1.5])
            self.action_net.weight.copy_(20 * th.stack([-push, push]))


def shifted_env(n_envs: int = 5) -> VecEnv:
    space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return make_vec_env(
        "CartPole-v1", n_envs, wrapper_class=lambda env: gym.wrappers.TransformObservation(Shifted(env), lambda o: o, space)
    )


def scripted_teacher(normalization: ObsNormalization | None) -> Teacher:
    space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    return Teacher(Scripted(space, spaces.Discrete(2), lambda _: 0.0), normalization=normalization)


@pytest.mark.filterwarnings("error")
def test_a_well_fed_teacher_passes_in_silence():
    check = check_teacher(scripted_teacher(ObsNormalization(MEAN, STD**2)), shifted_env(), deterministic=True, seed=0)
    assert check.above_random and check.teacher.n_complete == check.random.n_complete == 5
    assert check.teacher.returns.mean() > 400 and check.random.returns.mean() < 60
    assert check.teacher.clipped_share == 0
    check.warn()


def test_a_teacher_without_its_normalization_is_flagged():
    check = check_teacher(scripted_teacher(None), shifted_env(), deterministic=True, seed=0)
    assert not check.above_random
    with pytest.warns(UserWarning, match=r"not clearly above a random policy: teacher .* random policy .*vecnormalize.pkl"):
        check.warn()


def test_a_teacher_with_another_runs_normalization_is_flagged():
    check = check_teacher(
        scripted_teacher(ObsNormalization(-MEAN, (0.02 * STD) ** 2)), shifted_env(), deterministic=True, seed=0
    )
    assert check.teacher.clipped_share > 0.5
    with pytest.warns(UserWarning) as caught:
        check.warn()
    (message,) = [str(warning.message) for warning in caught]
    assert "not clearly above" in message and "% of the teacher's normalized inputs are clipped" in message
    options = ("the teacher's vecnormalize=", "another env=", "check_teacher=False")
    assert all(option in message for option in options)


def test_clipped_inputs_alone_are_worth_a_warning():
    good, bad = Play(np.array([500.0, 480.0]), 2, 0.3), Play(np.array([20.0, 9.0]), 2, 0.0)
    with pytest.warns(UserWarning, match="30 % of the teacher's normalized inputs are clipped"):
        TeacherCheck(good, bad).warn()


def test_above_random_means_by_two_standard_errors():
    def check(teacher: list[float], random: list[float]) -> bool:
        return TeacherCheck(Play(np.array(teacher), 5, 0.0), Play(np.array(random), 5, 0.0)).above_random

    assert check([10, 11, 12], [1, 2, 3])
    assert not check([1, 2, 3], [10, 11, 12])
    assert not check([1, 9, 2], [1, 8, 2])
    assert not check([-200] * 5, [-200] * 5)  # Acrobot never solved, by either
    assert check([-100] * 5, [-200] * 5)


def test_a_trained_teacher_passes():
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=256, batch_size=256, n_epochs=10, learning_rate=3e-3, seed=0, device="cpu")
    model.learn(2048)
    check = check_teacher(Teacher(model.policy), make_vec_env("CartPole-v1", 2), deterministic=True, seed=0)
    assert check.above_random
    # three of each sub-environment make at least five
    assert check.teacher.n_complete == 6
    assert str(check).startswith("teacher ") and "(6 episodes), random policy" in str(check)


def test_the_same_seed_gives_the_same_check():
    teacher, checks = scripted_teacher(ObsNormalization(MEAN, STD**2)), []
    for seed in (3, 3, 4):
        checks.append(check_teacher(teacher, shifted_env(), deterministic=True, seed=seed).random.returns)
    np.testing.assert_array_equal(checks[0], checks[1])
    assert (checks[0] != checks[2]).any()


class Lottery(gym.Env):
    """One step for a prize that varies widely; action 1 gets a little more."""

    observation_space, action_space = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), self.np_random.normal(100 if action == 1 else 40, 60), True, False, {}


def always_one() -> Teacher:
    policy = ActorCriticPolicy(Lottery.observation_space, Lottery.action_space, lambda _: 0.0)
    with th.no_grad():
        policy.action_net.bias.copy_(th.tensor([0.0, 50.0]))
    return Teacher(policy)


def test_as_many_episodes_as_it_takes():
    n_complete, n_above = [], 0
    for seed in range(10):
        check = check_teacher(always_one(), DummyVecEnv([Lottery] * 5), deterministic=True, seed=seed)
        n_complete.append(check.teacher.n_complete)
        n_above += check.above_random
    assert n_above >= 8 and min(n_complete) < 80 and max(n_complete) > 5


def test_no_more_episodes_than_the_limit():
    never = always_one()
    never.policy.action_net.bias.data.zero_()
    check = check_teacher(never, DummyVecEnv([lambda: Steps(spaces.Discrete(2), 3)] * 5), deterministic=True, seed=0)
    assert not check.above_random and check.teacher.n_complete == check.random.n_complete == teacher_check.MAX_EPISODES


def test_large_inputs_without_statistics_are_the_cause():
    with pytest.warns(UserWarning, match=r"Likely cause: its inputs go up to [0-9.]+ and it has no statistics"):
        check_teacher(scripted_teacher(None), shifted_env(), deterministic=True, seed=0).warn()


class Steps(gym.Env):
    """Episodes of given lengths, a reward of one per step, and a record of the actions."""

    observation_space = spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, action_space: spaces.Space, length: float) -> None:
        self.action_space, self.length, self.actions = action_space, length, []
        self.n_steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.actions.append(np.copy(action))
        self.n_steps += 1
        return np.zeros(4, np.float32), 1.0, self.n_steps >= self.length, False, {}


def test_short_episodes_are_not_favoured():
    lengths = [1, 1, 1, 1, 40]
    env = DummyVecEnv([lambda length=length: Steps(spaces.Discrete(2), length) for length in lengths])
    check = check_teacher(scripted_teacher(None), env, deterministic=False, seed=0)
    n_each = len(check.teacher.returns) // len(lengths)
    assert n_each > 1 and sorted(check.teacher.returns) == sorted(lengths * n_each)


def test_endless_episodes_end_after_enough_steps(monkeypatch):
    assert teacher_check.MAX_STEPS == 20_000
    monkeypatch.setattr(teacher_check, "MAX_STEPS", 400)
    env = DummyVecEnv([lambda: Steps(spaces.Discrete(2), np.inf)] * 4)
    check = check_teacher(scripted_teacher(None), env, deterministic=False, seed=0)
    assert check.teacher.n_complete == 0
    np.testing.assert_array_equal(check.teacher.returns, [100] * 4)
    assert "(4 unfinished episodes)" in str(check)


def test_random_actions_fill_a_box():
    space = spaces.Box(np.array([-3, 0], np.float32), np.array([7, 0.5], np.float32))
    env = DummyVecEnv([lambda: Steps(space, 100)])
    policy = ActorCriticPolicy(Steps.observation_space, space, lambda _: 0.0)
    check_teacher(Teacher(policy), env, deterministic=True, seed=0)
    actions = np.array(env.envs[0].actions[-2000:])
    assert all(space.contains(action) for action in actions)
    np.testing.assert_allclose(actions.min(0), space.low, atol=0.1)
    np.testing.assert_allclose(actions.max(0), space.high, atol=0.1)


def test_a_check_changes_nothing_about_the_teacher():
    teacher = scripted_teacher(ObsNormalization(MEAN, STD**2))
    before = {name: value.clone() for name, value in teacher.policy.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_teacher(teacher, shifted_env(), deterministic=False, seed=0)
    assert all(th.equal(value, before[name]) for name, value in teacher.policy.state_dict().items())
