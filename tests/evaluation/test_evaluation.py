import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_qpd import QPDDistiller, load_teacher, make_recipe
from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.evaluation import episodes
from sb3_qpd.evaluation.episodes import evaluate, microseconds_per_action
from sb3_qpd.evaluation.own_episodes import Jitter, replay
from sb3_qpd.players import ObservationRecorder, RandomPolicy


class Counting(gym.Env):
    """An episode's length and return follow from its seed: length 1 + seed % 7, every step is worth the action."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 1 + int(self.np_random_seed) % 7
        return np.array([self.left, 1e300]), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.array([self.left, 1e300]), float(action), self.left == 0, False, {}


gym.register("Counting-v0", entry_point=Counting)


class AlwaysTwo:
    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
        self.batches.append(observation)
        return np.full(len(observation), 2), None


def expected_lengths(n_episodes: int, seed: int) -> list[int]:
    return [1 + (seed + k) % 7 for k in range(n_episodes)]


@pytest.mark.parametrize("n_envs", [1, 3, 32])
def test_episode_k_starts_from_its_own_seed(n_envs: int) -> None:
    evaluation = evaluate(AlwaysTwo(), "Counting-v0", n_episodes=20, seed=5, n_envs=n_envs)
    assert evaluation.lengths.tolist() == expected_lengths(20, seed=5)
    np.testing.assert_array_equal(evaluation.returns, 2 * evaluation.lengths)
    assert evaluation.starts == "Counting-v0: episode k from reset(seed=5 + k)"


def test_observations_are_raw_and_batched() -> None:
    policy = AlwaysTwo()
    evaluate(policy, "Counting-v0", n_episodes=20, seed=0, n_envs=8)
    assert policy.batches[0].shape == (8, 2)
    assert all(batch.dtype == np.float64 and (batch[:, 1] == 1e300).all() for batch in policy.batches)


def test_a_plain_environment_will_do() -> None:
    evaluation = evaluate(AlwaysTwo(), Counting(), n_episodes=9, seed=1)
    assert evaluation.lengths.tolist() == expected_lengths(9, seed=1)
    assert evaluation.starts == "Counting: episode k from reset(seed=1 + k)"


@pytest.mark.parametrize("make", [Counting, lambda: DummyVecEnv([Counting])], ids=["class", "function"])
def test_a_class_or_a_function_will_do(make: Any) -> None:
    assert evaluate(AlwaysTwo(), make, n_episodes=3, seed=1).episodes == 3
    with pytest.raises(TypeError, match="cannot be called without arguments"):
        evaluate(AlwaysTwo(), Fixed, n_episodes=3)


@pytest.mark.parametrize("reward", [np.nan, np.inf])
def test_returns_that_are_not_finite_are_refused(reward: float) -> None:
    env = gym.wrappers.TransformReward(Counting(), lambda _: reward)
    with pytest.raises(ValueError, match=f"An episode of Counting returned {reward}: expected finite rewards"):
        evaluate("random", env, n_episodes=2)


class Fixed(Counting):
    """Episodes of a fixed length, one step worth one."""

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = self.length
        return np.zeros(2), {}


@pytest.mark.parametrize("wrap", [lambda env: env, Monitor])
def test_short_episodes_of_a_vectorized_environment_have_no_advantage(wrap: Any) -> None:
    env = DummyVecEnv([lambda: wrap(Fixed(2)), lambda: wrap(Fixed(30))])
    evaluation = evaluate(AlwaysTwo(), env, n_episodes=5)
    assert evaluation.lengths.tolist() == [2, 30, 2, 30, 2]  # 3 of the first, 2 of the second, in any order
    np.testing.assert_array_equal(evaluation.returns, 2 * evaluation.lengths)
    assert evaluation.starts == ""


def test_a_learning_vec_normalize_is_refused() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))]))
    with pytest.raises(ValueError, match=r"env\.training = False"):
        evaluate("random", env, n_episodes=1)
    env.training = False
    assert evaluate("random", env, n_episodes=3).returns.min() >= 8  # raw: normalized rewards would be smaller


def test_who_takes_raw_observations_plays_in_no_vec_normalize() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))]), training=False)
    live = PPO("MlpPolicy", env, device="cpu")
    student = QPDDistiller(live, student_arch="nano", device="cpu")
    teacher, integer = load_teacher(live), student.policy.to_integer()
    for player in (teacher, student, student.policy, integer, ObservationRecorder(integer)):
        with pytest.raises(ValueError, match=r"takes raw observations.*env\.venv"):
            evaluate(player, env, n_episodes=1)
        assert evaluate(player, env.venv, n_episodes=1).episodes == 1
    assert evaluate(live, env, n_episodes=1).episodes == 1


def test_random_policy_is_reproducible() -> None:
    one, other = (evaluate("random", "CartPole-v1", n_episodes=10, n_envs=4) for _ in range(2))
    np.testing.assert_array_equal(one.returns, other.returns)
    assert one.name == "random" and one.distinct_returns > 3
    space = spaces.Box(-1, 1, (3,))
    actions, _ = RandomPolicy(space, seed=1).predict(np.zeros((5, 2)))
    assert actions.shape == (5, 3) and all(space.contains(action) for action in actions)


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3, start=2), spaces.MultiDiscrete([3, 2], start=[4, -7])], ids=["discrete", "multi-discrete"]
)
def test_random_actions_are_counted_from_zero_as_those_of_policies(space: spaces.Space) -> None:
    drawn, _ = RandomPolicy(space).predict(np.zeros((200, 2)))
    assert drawn.min(0).tolist() == np.zeros(space.shape).tolist()
    assert drawn.max(0).tolist() == (np.array(getattr(space, "nvec", 3)) - 1).tolist()


def test_mistakes() -> None:
    for source in ("greedy", Path("teacher.zip"), "nothere.npz"):
        with pytest.raises(ValueError, match=f"no file or folder '{source}'. Expected the folder, .npz or zip of a student"):
            evaluate(source, "CartPole-v1", n_episodes=1)
    with pytest.raises(ValueError, match="must have a predict method, be 'random' or the path .*, got 7"):
        evaluate(7, "CartPole-v1", n_episodes=1)  # type: ignore[arg-type]
    for name, value in (("n_episodes", 0), ("n_episodes", 1e2), ("n_envs", 0), ("max_episode_steps", -1)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1, got {value}"):
            evaluate("random", "CartPole-v1", **{name: value})
    with pytest.raises(ValueError, match="does not say in which environment it plays"):
        evaluate("random")
    with pytest.raises(ValueError, match="CartPole-v1"):
        evaluate("random", "CartPol-v1", n_episodes=1)


def test_sampled_actions_are_reproducible_and_leave_the_generator_alone() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
    th.manual_seed(3)
    expected = th.rand(1)
    th.manual_seed(3)
    one = evaluate(model, "CartPole-v1", n_episodes=10, deterministic=False)
    assert th.rand(1) == expected
    other = evaluate(model, "CartPole-v1", n_episodes=10, deterministic=False)
    np.testing.assert_array_equal(one.returns, other.returns)
    assert one.starts == other.starts and one.is_paired_with(other)


def test_recorder_keeps_a_uniform_sample() -> None:
    recorder = ObservationRecorder(AlwaysTwo(), n_observations=200)
    for start in range(0, 4_000, 8):
        recorder.predict(np.arange(start, start + 8)[:, None])
    kept = recorder.observations
    assert recorder.n_seen == 4_000 and kept.shape == (200, 1)
    assert len(np.unique(kept)) == 200
    assert 1_700 < kept.mean() < 2_300 and kept.min() < 200 and kept.max() > 3_800


def test_recorder_copies() -> None:
    recorder = ObservationRecorder(AlwaysTwo())
    buffer = np.zeros((2, 2))
    recorder.predict(buffer)
    buffer[:] = 1
    assert not recorder.observations.any()


def test_time_per_action() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    assert microseconds_per_action(model, np.zeros((4, 4), np.float32), n_calls=20) > 0


class Endless(Counting):
    """An environment whose episodes never end by themselves, with a limit only where one is registered."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2), 1.0, False, False, {}


gym.register("Endless-v0", entry_point=Endless)
gym.register("Long-v0", entry_point=Endless, max_episode_steps=300)


def endless_vec_env() -> DummyVecEnv:
    return DummyVecEnv([Endless, Endless])


@pytest.mark.parametrize("make", [lambda: "Endless-v0", Endless, endless_vec_env], ids=["id", "environment", "VecEnv"])
def test_an_episode_that_never_ends_is_an_error(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"An episode of .* had not ended after 50 steps.*max_episode_steps="):
        evaluate(AlwaysTwo(), make(), n_episodes=2, max_episode_steps=50)
    monkeypatch.setattr(episodes, "MAX_EPISODE_STEPS", 60)
    with pytest.raises(ValueError, match="had not ended after 60 steps"):
        evaluate(AlwaysTwo(), make(), n_episodes=2)


def test_registered_limits_are_longer_than_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "MAX_EPISODE_STEPS", 100)
    for env in ("Long-v0", gym.make("Long-v0"), DummyVecEnv([lambda: gym.make("Long-v0")])):
        assert evaluate(AlwaysTwo(), env, n_episodes=1).lengths.tolist() == [300]
    recipe_of_a_game, game = make_recipe("PongNoFrameskip-v4"), gym.make("PongNoFrameskip-v4")
    assert episodes.step_limit(recipe_of_a_game.make_vec_env(1)) == episodes.step_limit([game]) == 108_000


class Engine(VecEnv):
    """A vectorized environment of a simulator, with no more than SB3's ``learn`` asks for. Episodes have five steps."""

    def __init__(self) -> None:
        super().__init__(3, spaces.Box(-1, 1, (2,), np.float32), spaces.Box(-1, 1, (1,), np.float32))

    def seed(self) -> None:  # type: ignore[override]
        raise NotImplementedError

    def reset(self) -> np.ndarray:
        self.t = 0
        return np.zeros((3, 2), np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        self.t += 1
        dones = np.full(3, self.t % 5 == 0)
        return np.zeros((3, 2), np.float32), np.ones(3, np.float32), dones, [{} for _ in range(3)]

    def close(self) -> None:
        pass

    def get_attr(self, name: str, indices: Any = None) -> Any:
        if name == "render_mode":  # VecEnv's own constructor asks
            raise AttributeError(name)
        raise NotImplementedError(name)

    def set_attr(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def env_method(self) -> None:  # type: ignore[override]
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        raise NotImplementedError


def test_a_vectorized_environment_of_a_simulator() -> None:
    env = Engine()
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=48, device="cpu").learn(48)
    student = QPDDistiller(model, env, student_arch="nano", device="cpu", check_teacher=False).policy.to_integer()
    for player in (model, student, "random", load_teacher(model)):
        evaluation = evaluate(player, env, n_episodes=7)
        assert evaluation.lengths.tolist() == evaluation.returns.tolist() == [5] * 7 and evaluation.starts == ""
    seen = list(replay(student, env, 10, 0, Jitter()))
    assert [len(batch) for batch in seen] == [3, 3, 3, 1]


def test_paths_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=64)
    teacher.save(tmp_path / "teacher.zip")
    student = QPDDistiller(teacher, "CartPole-v1", student_arch="nano", device="cpu", check_teacher=False).learn(64)
    folder = tmp_path / "student"
    folder.mkdir()
    student.save(folder / "student.zip")
    student.to_integer("CartPole-v1").save(folder / "student.npz")
    expected = evaluate(student.policy.to_integer(), "CartPole-v1", n_episodes=3).returns
    for source in (folder, str(folder), folder / "student.npz"):
        np.testing.assert_array_equal(evaluate(source, n_episodes=3).returns, expected)
    np.testing.assert_array_equal(evaluate(folder / "student.zip", "CartPole-v1", n_episodes=3).returns, expected)
    with pytest.raises(ValueError, match="does not say in which environment it plays"):
        evaluate(folder / "student.zip", n_episodes=3)
    (folder / "report.json").write_text('{"env": {"env_id": "CartPole-v1"}}')
    np.testing.assert_array_equal(evaluate(folder / "student.zip", n_episodes=3).returns, expected)
    np.testing.assert_array_equal(
        evaluate(tmp_path / "teacher.zip", "CartPole-v1", n_episodes=3).returns,
        evaluate(teacher, "CartPole-v1", n_episodes=3).returns,
    )
    with pytest.raises(ValueError, match="report.json is a file .* is not played here. Expected student.npz"):
        evaluate(folder / "report.json")


def test_a_students_file_names_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "innocent.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    teacher = PPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=64)
    student = QPDDistiller(teacher, "CartPole-v1", student_arch="nano", device="cpu", check_teacher=False).learn(64)
    for env in ({"env_id": "innocent:CartPole-v1"}, {"env_id": 7}, "CartPole-v1", {"env_id": "NotHere-v1"}):
        student.policy.to_integer(env=env).save(tmp_path / "student.npz")
        with pytest.raises(ValueError, match="Give env= yourself"):
            evaluate(tmp_path)
        assert evaluate(tmp_path, "CartPole-v1", n_episodes=1).episodes == 1
    assert not (tmp_path / "ran").exists()


def test_another_environment_is_named() -> None:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    student = QPDDistiller(model, "CartPole-v1", student_arch="nano", device="cpu", check_teacher=False).learn(64)
    integer = student.to_integer("CartPole-v1")
    message = r"Pendulum-v1 gives observations of shape \(3,\), but this {} takes \(4,\)"
    for player, name in ((model, "PPO"), (integer, "IntegerModel of CartPole-v1"), (ObservationRecorder(model), "PPO")):
        with pytest.raises(ValueError, match=message.format(name)):
            evaluate(player, "Pendulum-v1", n_episodes=1)


def test_results_print_in_a_line() -> None:
    text = str(evaluate("random", "Counting-v0", n_episodes=20))
    assert re.fullmatch(
        r"<Evaluation of random: return [\d.]+ ± [\d.]+, 95 % interval of the mean \[[\d.]+, [\d.]+\], 20 episodes "
        r"\(\d+ distinct returns\), deterministic actions>",
        text,
    )


def test_atari_plays_whole_games() -> None:
    one = evaluate("random", "BreakoutNoFrameskip-v4", n_episodes=5, n_envs=2, seed=7)
    assert one.starts == "BreakoutNoFrameskip-v4: game k of sub-environment i of 2, seed 7"
    assert one.lengths.min() > 60  # a life is some 30 steps long
    other = evaluate("random", "BreakoutNoFrameskip-v4", n_episodes=5, n_envs=2, seed=7)
    np.testing.assert_array_equal(one.returns, other.returns)
    np.testing.assert_array_equal(one.lengths, other.lengths)


def test_lost_lives_do_not_end_a_game() -> None:
    def play(**options: bool) -> np.ndarray:
        env = AtariVecEnv("BreakoutNoFrameskip-v4", 2, **options)
        return evaluate("random", env, n_episodes=4, seed=7).returns

    whole = play()
    assert whole.sum() > 0
    np.testing.assert_array_equal(play(terminal_on_life_loss=True, clip_reward=True), whole)


def test_masks_of_another_size_are_refused() -> None:
    policy = RandomPolicy(gym.spaces.Discrete(3))
    with pytest.raises(
        ValueError, match=r"action_masks\(\) must return 3 values, one for each action of Discrete\(3\), got 2"
    ):
        policy.predict(np.zeros((5, 2)), action_masks=np.ones((5, 2)))
