"""What the tests of the distiller share: small environments of a user's own, and checks that every student has to pass."""

import functools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_qpd import IntegerModel, QPDDistiller, QuantActorCriticPolicy
from sb3_qpd.spaces import action_head

# a small student on the CPU that always comes out the same
QUICK: dict[str, Any] = {"student_arch": "nano", "device": "cpu", "seed": 0, "check_teacher": False}

DISCRETE = spaces.Discrete(3)
BOX = spaces.Box(-3, 7, (2,))
ODD_BOXES = {
    "two dimensions": spaces.Box(-3, 7, (2, 1)),
    "float64": spaces.Box(-3, 7, (2,), np.float64),
    "one fixed": spaces.Box(np.array([-1, 2], np.float32), np.array([1, 2], np.float32)),
    "unequal bounds": spaces.Box(np.array([-100, 0.25], np.float32), np.array([1, 0.5], np.float32)),
}


class Pointer(gym.Env):
    """
    The right action can be read off the observation: float64, unbounded, each feature of another size.

    :param action_space: the largest feature is the right index, or the features are the right action
    :param n_steps: length of an episode
    """

    offset, scale = np.array([5.0, -200.0, 0.01]), np.array([1.0, 100.0, 0.01])

    def __init__(self, action_space: spaces.Space = DISCRETE, n_steps: int = 10) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space, self.n_steps = action_space, n_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        self.z = self.np_random.normal(size=3)
        return self.offset + self.scale * self.z

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        reward = self._reward(action)
        self.t += 1
        return self._observe(), reward, False, self.t >= self.n_steps, {}

    def _reward(self, action: Any) -> float:
        if isinstance(self.action_space, spaces.Discrete):
            return float(action == self.z.argmax())
        space: Any = self.action_space
        share = (np.ravel(action) - space.low.ravel()) / np.maximum(space.high - space.low, 1e-6).ravel()
        return 1 - float(np.abs(share - 1 / (1 + np.exp(-self.z[: share.size]))).mean())

    @classmethod
    def sample(cls, n: int, seed: int = 0) -> np.ndarray:
        """Observations that no training has seen."""
        return cls.offset + cls.scale * np.random.default_rng(seed).normal(size=(n, 3))


class Quadrant(gym.Env):
    """Images as most environments give them, channels last: the action is the index of the bright quadrant."""

    side = 36

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (self.side, self.side, 3), np.uint8)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        image = self.np_random.integers(0, 100, (self.side, self.side, 3), np.uint8)
        self.bright, half = int(self.np_random.integers(4)), self.side // 2
        row, column = divmod(self.bright, 2)
        image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 100
        return image

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.bright)
        self.t += 1
        return self._observe(), reward, False, self.t >= 10, {}


class Anything(gym.Env):
    """
    Any spaces: observations are drawn from theirs, and the reward is what a weighted sum of them says of the action.

    :param observation_space: of observations
    :param action_space: of actions
    :param n_steps: length of an episode
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, n_steps: int = 10) -> None:
        self.observation_space, self.action_space, self.n_steps = observation_space, action_space, n_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        self.observation = self.observation_space.sample()
        return self.observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        values = self.observation.values() if isinstance(self.observation, dict) else [self.observation]
        reward = float(np.cos(sum(float(np.mean(value)) for value in values) + np.sum(action)))
        self.t += 1
        return self._observe(), reward, False, self.t >= self.n_steps, {}


class Strict(Anything):
    """Some actions are not allowed, others in each state: to take one is an error."""

    def _observe(self) -> Any:
        self.masks = [self.np_random.random(n) < 0.5 for n in action_head(self.action_space).nvec]
        for mask in self.masks:
            mask[self.np_random.integers(len(mask))] = True
        return super()._observe()

    def action_masks(self) -> np.ndarray:
        return np.concatenate(self.masks)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not all(mask[int(choice)] for mask, choice in zip(self.masks, np.ravel(action), strict=True)):
            raise ValueError(f"{action!r} is not allowed now: {self.masks}")
        return super().step(action)


def sample(space: spaces.Space, n: int, seed: int = 0) -> Any:
    """A batch of observations."""
    space.seed(seed)
    drawn = [space.sample() for _ in range(n)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in drawn]) for key in space}
    return np.stack(drawn)


def pointers(action_space: spaces.Space = DISCRETE, n_envs: int = 8) -> VecEnv:
    return make_vec_env(Pointer, n_envs, seed=0, env_kwargs={"action_space": action_space})


def untrained(env: Any, algo: type[BaseAlgorithm] = PPO, policy: Any = "MlpPolicy", **kwargs: Any) -> Any:
    """An untrained teacher: enough for tests in which its score does not matter."""
    batch = {"batch_size": 16} if algo is PPO else {}
    return algo(policy, env, device="cpu", seed=0, n_steps=16, **batch, **kwargs)  # type: ignore[call-arg]


@functools.cache
def taught(kind: str = "discrete") -> PPO:
    """A teacher that knows its task, after two seconds; it takes normalized observations."""
    env = VecNormalize(pointers(BOX if kind == "box" else DISCRETE), norm_reward=False)
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 128, "n_epochs": 5, "gamma": 0.0, "learning_rate": 5e-3}
    return PPO("MlpPolicy", env, **settings, seed=0, device="cpu").learn(4_000)


def score(model: Any, action_space: spaces.Space = DISCRETE, n_episodes: int = 40) -> float:
    """Mean return of a model that takes raw observations; 10 is perfect."""
    env = Monitor(Pointer(action_space))
    env.reset(seed=1)
    return float(np.mean(evaluate_policy(model, env, n_episodes, return_episode_rewards=True)[0]))


class Watch(BaseCallback):
    """Looks at the model every so many steps of the vectorized environment."""

    def __init__(self, look: Any, every: int = 1) -> None:
        super().__init__()
        self.look, self.every, self.seen = look, every, []

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            self.seen.append(self.look(self.model))
        return True


def actor_of(policy: QuantActorCriticPolicy, observations: Any) -> np.ndarray:
    """Logits or means in evaluation mode."""
    policy.set_training_mode(False)
    with th.no_grad():
        return policy.actor_and_value(policy.obs_to_tensor(observations)[0])[0].numpy()


def assert_same_bits(policy: QuantActorCriticPolicy, observations: Any) -> IntegerModel:
    """The policy in evaluation mode is the integer model, with no tolerance; and so are the actions."""
    actor = actor_of(policy, observations)
    integer = policy.to_integer()
    np.testing.assert_array_equal(actor, integer.logits(observations))
    actions = policy.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(actions, integer.predict(observations, deterministic=True)[0])
    assert actions.shape == integer.predict(observations)[0].shape == policy.predict(observations)[0].shape
    return integer


def assert_different_states(a: Any, b: Any) -> None:
    a, b = a.policy.state_dict(), b.policy.state_dict()
    assert not all(th.equal(a[name], b[name]) for name in a)


def assert_equal_states(a: Any, b: Any) -> None:
    """Two policies hold the same numbers."""
    a, b = a.policy.state_dict(), b.policy.state_dict()
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert th.equal(value, b[name]), name


def assert_saves_and_loads(student: QPDDistiller, path: Path, observations: Any) -> QPDDistiller:
    """A student comes back from its zip bit for bit, with neither teacher nor environment, and from its npz as well."""
    student.save(path / "student.zip")
    loaded = QPDDistiller.load(path / "student.zip", device="cpu")
    assert loaded.teacher is None and loaded.env is None
    assert_equal_states(student, loaded)
    integer = assert_same_bits(loaded.policy, observations)
    integer.save(path / "student.npz")
    np.testing.assert_array_equal(
        IntegerModel.load(path / "student.npz").logits(observations), actor_of(student.policy, observations)
    )
    return loaded
