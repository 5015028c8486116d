import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import ATARI_WRAPPER, EnvRecipe, load_wrapper, make_recipe

BREAKOUT, PONG = "BreakoutNoFrameskip-v4", "PongNoFrameskip-v4"
WALL = np.s_[-1, 23:37, 4:80]  # of the newest frame
AIR = np.s_[-1, 38:76, 4:80]  # between the wall and the paddle: empty but for the ball


def play(env: VecEnv, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[dict]]]:
    """Observations, rewards, dones, infos of all steps; actions of shape (n_steps, n_envs)."""
    steps = [env.step(row) for row in actions]
    observations, rewards, dones, infos = zip(*steps, strict=True)
    return np.stack(observations), np.stack(rewards), np.stack(dones), list(infos)


def noops(env: VecEnv, n_steps: int) -> np.ndarray:
    return np.zeros((n_steps, env.num_envs), dtype=np.int64)


def random_actions(env: VecEnv, n_steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(env.action_space.n, size=(n_steps, env.num_envs))


@pytest.mark.parametrize("terminal_on_life_loss", [False, True])
def test_breakout_score_and_wall_survive_a_lost_life(terminal_on_life_loss):
    env = AtariVecEnv(BREAKOUT, 8, seed=0, terminal_on_life_loss=terminal_on_life_loss)
    first, lives, scores = env.reset(), env.lives, np.zeros(8)
    full_wall = first[0][WALL]
    n_checked = 0
    before = first
    for actions in random_actions(env, 200):
        observations, rewards, dones, infos = env.step(actions)
        scores += rewards
        for i in np.flatnonzero(env.lives < lives):
            assert dones[i] == terminal_on_life_loss
            assert "episode" not in infos[i]
            if terminal_on_life_loss:
                np.testing.assert_array_equal(infos[i]["terminal_observation"], observations[i])
                assert infos[i]["TimeLimit.truncated"] is False
            if scores[i] > 0:
                np.testing.assert_array_equal(observations[i][WALL], before[i][WALL])
                assert (observations[i][WALL] != full_wall).any()
                n_checked += 1
        for i in np.flatnonzero(["episode" in info for info in infos]):
            assert infos[i]["episode"]["r"] == scores[i]  # of all five lives
            scores[i] = 0
        before, lives = observations, env.lives
    assert n_checked > 3


@pytest.mark.parametrize("env_id", [BREAKOUT, "ALE/Breakout-v5"])
def test_ball_is_in_play_without_the_player_pressing_fire(env_id):
    env = AtariVecEnv(env_id, 4, seed=1)
    env.reset()
    lives, since_lost, n_lost = env.lives, np.zeros(4), 0
    seen = np.zeros(4, dtype=bool)
    for actions in noops(env, 120):
        observations, _, _, _ = env.step(actions)
        lost = env.lives != lives  # a life, or the game: five again
        assert seen[lost].all()  # the ball was seen in every life
        n_lost += lost.sum()
        seen = np.array([observation[AIR].any() for observation in observations]) & ~lost | seen & ~lost
        since_lost = np.where(lost, 0, since_lost + 1)
        assert since_lost.max() < 60  # no game waits for FIRE
        lives = env.lives
    assert n_lost > 12


def test_end_of_game():
    env = AtariVecEnv(BREAKOUT, 4, seed=0, terminal_on_life_loss=True)
    env.reset()
    _, rewards, dones, infos = play(env, noops(env, 250))
    for i in range(4):
        steps = [t for t in range(250) if "episode" in infos[t][i]]
        assert 1 <= len(steps) <= 2  # several lost lives, but one or two games
        assert dones[:, i].sum() > 4
        info, length = infos[steps[0]][i], steps[0] + 1
        assert info["episode"]["l"] == length
        assert info["episode"]["r"] == rewards[:length, i].sum()
        assert info["episode"]["t"] > 0
        assert info["TimeLimit.truncated"] is False
        assert all(
            set(infos[t][i]) == {"TimeLimit.truncated", "terminal_observation"} for t in range(length - 1) if dones[t, i]
        )
        assert all(infos[t][i] == {} for t in range(250) if not dones[t, i])


def test_terminal_observation_is_of_the_game_that_ended():
    env = AtariVecEnv(BREAKOUT, 4, seed=0)
    env.reset()
    observations, _, dones, infos = play(env, noops(env, 150))
    for t, i in np.argwhere(dones):
        final = infos[t][i]["terminal_observation"]
        np.testing.assert_array_equal(final[:-1], observations[t - 1, i, 1:])  # the frames move on by one
        assert not observations[t, i, :-1].any()  # of the next game there is one frame
    assert dones.any(axis=0).all()


def test_time_limit_truncates():
    env = AtariVecEnv(PONG, 2, seed=0, max_num_frames_per_episode=200)
    env.reset()
    _, _, dones, infos = play(env, noops(env, 101))
    assert np.flatnonzero(dones[:, 0]).tolist() == np.flatnonzero(dones[:, 1]).tolist() == [49, 99]
    for t in (49, 99):
        assert infos[t][0]["TimeLimit.truncated"] is True
        assert infos[t][0]["episode"]["l"] == 50
        assert infos[t][0]["terminal_observation"].shape == (4, 84, 84)


def test_life_lost_at_the_time_limit_is_a_truncation():
    """ALE's own signal of a lost life calls it terminated, though it begins the next game."""
    settings = {"seed": 0, "noop_max": 0, "terminal_on_life_loss": True}
    env = AtariVecEnv(BREAKOUT, 1, **settings)
    env.reset()
    _, _, dones, _ = play(env, noops(env, 60))
    n_steps = int(np.flatnonzero(dones)[0]) + 1
    env = AtariVecEnv(BREAKOUT, 1, max_num_frames_per_episode=4 * n_steps, **settings)
    env.reset()
    _, _, dones, infos = play(env, noops(env, n_steps))
    assert dones[-1, 0]
    assert infos[-1][0]["TimeLimit.truncated"] is True
    assert infos[-1][0]["episode"]["l"] == n_steps


def test_clip_reward_keeps_the_score_raw():
    raw, clipped = (
        AtariVecEnv("MsPacmanNoFrameskip-v4", 2, seed=0, max_num_frames_per_episode=400, clip_reward=clip)
        for clip in (False, True)
    )
    raw.reset(), clipped.reset()
    _, raw_rewards, _, raw_infos = play(raw, random_actions(raw, 100))
    _, rewards, _, infos = play(clipped, random_actions(raw, 100))
    assert raw_rewards.max() >= 10
    assert rewards.dtype == raw_rewards.dtype == np.float32
    np.testing.assert_array_equal(rewards, np.sign(raw_rewards))
    for i in range(2):
        assert infos[-1][i]["episode"]["r"] == raw_infos[-1][i]["episode"]["r"] == raw_rewards[:, i].sum()


@pytest.mark.parametrize("env_id", [PONG, "ALE/Pong-v5"])
def test_seeds(env_id):
    env = AtariVecEnv(env_id, 3, seed=7)
    actions = random_actions(env, 120)
    start, (first, *_) = env.reset(), play(env, actions)
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), start)
    np.testing.assert_array_equal(play(env, actions)[0], first)
    assert (env.reset() != start).any() or (play(env, actions)[0] != first).any()  # not seeded again: other games

    shifted = AtariVecEnv(env_id, 1, seed=8)
    np.testing.assert_array_equal(shifted.reset()[0], start[1])  # sub-environment i gets seed + i
    np.testing.assert_array_equal(play(shifted, actions[:, 1:2])[0][:, 0], first[:, 1])


def test_games_differ_without_a_seed():
    env = AtariVecEnv("ALE/Breakout-v5", 4, noop_max=0)
    env.reset()
    observations, *_ = play(env, np.repeat(random_actions(env, 80)[:, :1], 4, axis=1))
    assert len({observation.tobytes() for observation in observations[-1]}) > 2


def test_actions_are_checked_before_they_are_sent():
    env = AtariVecEnv(BREAKOUT, 2, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=r"BreakoutNoFrameskip-v4 are 0 to 3, got \[0, 4\]"):
        env.step(np.array([0, 4]))
    with pytest.raises(ValueError, match="0 to 3"):
        env.step(np.array([-1, 0]))
    with pytest.raises(ValueError, match=r"shape \(2,\), one for each game, got \(3,\)"):
        env.step(np.zeros(3, dtype=int))
    with pytest.raises(ValueError, match="shape"):
        env.step(np.zeros((2, 1), dtype=int))
    with pytest.raises(TypeError, match="integers, got float32"):
        env.step(np.zeros(2, dtype=np.float32))
    observations, *_ = env.step(np.array([0, 3], dtype=np.uint8))  # and it goes on
    assert observations.shape == (2, 4, 84, 84)


def test_step_async_and_wait():
    env = AtariVecEnv(PONG, 2, seed=0)
    start = env.reset()
    with pytest.raises(RuntimeError, match="without step_async"):
        env.step_wait()
    env.step_async(np.zeros(2, dtype=int))
    with pytest.raises(RuntimeError, match="called twice"):
        env.step_async(np.zeros(2, dtype=int))
    env.seed(0)
    np.testing.assert_array_equal(env.reset(), start)  # the pending step is dropped
    env.step_async(np.zeros(2, dtype=int))
    env.close()


def test_registered_settings_and_their_replacements():
    assert AtariVecEnv(PONG, 1).action_space.n == 6
    assert AtariVecEnv("ALE/Pong-v5", 1, full_action_space=True).action_space.n == 18
    assert AtariVecEnv(PONG, 1, frame_stack=2).observation_space.shape == (2, 84, 84)

    def n_different_games(env_id: str, **env_kwargs) -> int:
        env = AtariVecEnv(env_id, 2, seed=0, noop_max=0, **env_kwargs)
        env.reset()
        observations, *_ = play(env, np.repeat(random_actions(env, 30)[:, :1], 2, axis=1))
        return len({observations[:, i].tobytes() for i in range(2)})

    assert n_different_games(PONG) == 1
    assert n_different_games("ALE/Pong-v5") == 2
    assert n_different_games("ALE/Pong-v5", repeat_action_probability=0.0) == 1
    assert n_different_games(PONG, repeat_action_probability=0.25) == 2


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"AtariVecEnv plays .*got 'Pong-v4': use make_atari_env"):
        AtariVecEnv("Pong-v4")
    with pytest.raises(ValueError, match="Did you mean PongNoFrameskip-v4"):
        AtariVecEnv("PongNoFrameSkip-v4")
    with pytest.raises(TypeError, match=r"has no frameskip, mode, only repeat_action_probability"):
        AtariVecEnv(PONG, frameskip=4, mode=1)
    with pytest.raises(ValueError, match=r"repeat_action_probability must be in \[0, 1\), got 25"):
        AtariVecEnv(PONG, repeat_action_probability=25)
    with pytest.raises(ValueError, match="n_envs must be at least 1, got 0"):
        AtariVecEnv(PONG, 0)


def test_vec_env_methods():
    env = AtariVecEnv(PONG, 3, seed=0)
    env.reset()
    assert env.env_is_wrapped(Monitor) == [True] * 3
    assert env.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0, 2]) == [False] * 2
    assert env.get_attr("render_mode", indices=0) == ["rgb_array"]
    assert env.get_attr("spec")[0].id == PONG
    assert not env.has_attr("action_masks")
    assert env.env_method("get_action_meanings", indices=[1])[0][:2] == ["NOOP", "FIRE"]
    with pytest.raises(AttributeError, match="no method 'action_masks'"):
        env.env_method("action_masks")
    env.set_attr("clip_reward", True)
    assert env.clip_reward
    with pytest.raises(ValueError, match="all 3 games at once"):
        env.set_attr("clip_reward", False, indices=0)
    assert env.render().shape == (2 * 84, 2 * 84, 3)
    assert env.get_images()[0].shape == (84, 84, 3)
    assert env.reset_infos == [{"lives": 0}] * 3
    env.close()
    env.close()


def test_ppo_learns_on_it_and_evaluate_policy_counts_whole_games():
    env = AtariVecEnv(BREAKOUT, 2, seed=0, terminal_on_life_loss=True, clip_reward=True)
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0).learn(32)
    assert model.get_env() is env  # nothing had to be transposed or monitored
    scores, lengths = evaluate_policy(model, env, n_eval_episodes=2, deterministic=False, return_episode_rewards=True)
    assert len(scores) == 2
    assert min(lengths) > 90  # five lives of more than 20 actions each


def test_atari_recipes():
    recipe = make_recipe(PONG)
    assert recipe.is_atari and recipe.is_native and recipe.frame_stack == 4
    env = recipe.make_vec_env(2, seed=0)
    assert isinstance(env, AtariVecEnv) and not env.terminal_on_life_loss and not env.clip_reward

    wrapper = {"terminal_on_life_loss": True, "clip_reward": True, "frame_skip": 4}
    recipe = EnvRecipe("ALE/Pong-v5", {"full_action_space": True}, ((ATARI_WRAPPER, wrapper),))
    env = recipe.make_vec_env(2)
    assert isinstance(env, AtariVecEnv) and env.terminal_on_life_loss and env.clip_reward and env.action_space.n == 18
    env = recipe.make_vec_env(2, training=False)
    assert isinstance(env, AtariVecEnv) and not env.terminal_on_life_loss and not env.clip_reward


@pytest.mark.parametrize(
    "recipe",
    [
        EnvRecipe("Pong-v4"),
        EnvRecipe(PONG, {"mode": 0}),
        EnvRecipe(PONG, env_wrappers=((ATARI_WRAPPER, {"frame_skip": 2}),)),
        EnvRecipe(PONG, env_wrappers=((ATARI_WRAPPER, {}), ("gymnasium.wrappers.TimeLimit", {"max_episode_steps": 9}))),
    ],
    ids=["frameskip", "mode", "frame_skip", "wrapper"],
)
def test_other_atari_has_sb3_wrappers(recipe):
    assert recipe.is_atari and not recipe.is_native
    env = recipe.make_vec_env(2, seed=0)
    assert env.observation_space.shape == env.reset().shape[1:] == (4, 84, 84)
    assert env.env_is_wrapped(AtariWrapper) == [True] * 2
    assert env.env_is_wrapped(Monitor) == [True] * 2
    assert isinstance(env.venv, VecFrameStack)


def test_other_recipes():
    recipe = make_recipe("CartPole-v1", {"render_mode": "rgb_array"})
    assert not recipe.is_atari and recipe.frame_stack == 1
    assert make_recipe(recipe, {"max_episode_steps": 5}).env_kwargs == {"render_mode": "rgb_array", "max_episode_steps": 5}
    env = recipe.make_vec_env(2, seed=0)
    assert type(env) is DummyVecEnv and env.env_is_wrapped(Monitor) == [True] * 2
    assert env.render_mode == "rgb_array"
    stacked = EnvRecipe("CartPole-v1", frame_stack=3).make_vec_env(2)
    assert stacked.observation_space.shape == (12,)


def test_wrappers_of_a_recipe():
    wrappers = (
        ("gymnasium.wrappers.TimeLimit", {"max_episode_steps": 3}),
        ("gymnasium.wrappers.RescaleAction", {"min_action": -1, "max_action": 1}),
    )
    env = EnvRecipe("Pendulum-v1", env_wrappers=wrappers).make_env()
    assert isinstance(env, gym.wrappers.RescaleAction) and isinstance(env.env, gym.wrappers.TimeLimit)
    assert isinstance(env.env.env, Monitor)
    assert env.action_space.high == 1
    vec_env = EnvRecipe("Pendulum-v1", env_wrappers=wrappers).make_vec_env(1)
    vec_env.reset()
    dones = [vec_env.step(np.zeros((1, 1)))[2][0] for _ in range(3)]
    assert dones == [False, False, True]


@pytest.mark.parametrize("env_id", [PONG, "Pong-v4", "CartPole-v1"])
def test_subproc(env_id):
    env = make_recipe(env_id).make_vec_env(2, seed=0, vec_env="subproc")
    assert isinstance(env, AtariVecEnv) or isinstance(env.unwrapped, SubprocVecEnv)
    assert len(env.reset()) == 2
    env.close()


@pytest.mark.parametrize(
    ("env_id", "package", "shape"),
    [("HalfCheetah-v4", "mujoco", (17,)), ("LunarLander-v3", "Box2D", (8,)), ("BipedalWalker-v3", "Box2D", (24,))],
)
def test_mujoco_and_box2d_recipes(env_id, package, shape):
    pytest.importorskip(package)
    assert make_recipe(env_id).make_env().reset(seed=0)[0].shape == shape


def test_recipe_errors():
    with pytest.raises(ValueError, match=r"No environment 'CartPoel-v1': .*Did you mean CartPole-v1"):
        make_recipe("CartPoel-v1")
    with pytest.raises(ValueError, match=r"LunarLander-v3"):
        make_recipe("LunarLander-v2")
    with pytest.raises(ValueError, match="import that first, or write my_module:"):
        make_recipe("qqqqqqqqqqqqqqqqqqq")
    with pytest.raises(ValueError, match="Cannot import 'no_such_package'"):
        make_recipe("no_such_package:Env-v0")
    with pytest.raises(TypeError, match="must be a string, got int"):
        make_recipe(3)
    with pytest.raises(ValueError, match="Unknown vec_env 'thread'. Known: dummy, subproc"):
        make_recipe("CartPole-v1").make_vec_env(1, vec_env="thread")
    with pytest.raises(ValueError, match="frame_stack must be"):
        EnvRecipe("CartPole-v1", frame_stack=-1)
    with pytest.raises(ValueError, match="No environment 'Gone-v0'"):
        EnvRecipe("Gone-v0").make_env()  # a recipe may be of an environment that is not installed


@pytest.mark.parametrize(
    "name",
    [
        *("os.system", "system", "gymnasium.wrappersx.TimeLimit", "utils.wrappers.TimeFeatureWrapper"),
        *("stable_baselines3.common.monitor.Monitor", "stable_baselines3.common.monitor.csv"),
        *(f"gymnasium.wrappers.{name}" for name in ("RecordVideo", "HumanRendering", "RenderCollection")),
        *("gymnasium.wrappers.rendering.RecordVideo", "gymnasium.wrappers.TransformReward", "rl_zoo3.train.TimeLimit"),
    ],
)
def test_wrappers_that_a_recipe_may_not_name(name):
    with pytest.raises(ValueError, match=rf"{name}' is not among those that may be named"):
        EnvRecipe("CartPole-v1", env_wrappers=((name, {}),))


@pytest.mark.parametrize(
    "module, names",
    [
        ("gymnasium.wrappers", "FlattenObservation FrameStackObservation RecordEpisodeStatistics TimeLimit"),
        ("gymnasium.wrappers.transform_observation", "GrayscaleObservation ResizeObservation"),
        ("stable_baselines3.common.atari_wrappers", "AtariWrapper MaxAndSkipEnv WarpFrame"),
        ("sb3_contrib.common.wrappers", "TimeFeatureWrapper"),
        ("rl_zoo3.wrappers", "FrameSkip HistoryWrapper MaskVelocityWrapper YAMLCompatResizeObservation"),
    ],
)
def test_wrappers_that_a_recipe_may_name(module, names):
    for name in names.split():
        EnvRecipe("CartPole-v1", env_wrappers=((f"{module}.{name}", {}),))
        assert issubclass(load_wrapper(f"{module}.{name}"), gym.Wrapper)


def test_wrappers_that_are_not_there():
    for name in ("gymnasium.wrappers.rendering.ClipReward", "gymnasium.wrappers.gone.TimeLimit"):
        with pytest.raises(ValueError, match=rf"There is no wrapper '{name}'"):
            EnvRecipe("CartPole-v1", env_wrappers=((name, {}),)).make_env()


@pytest.mark.parametrize("frame_stack", [-1, 65, 10**9, float("inf"), float("nan")])
def test_no_recipe_stacks_more_frames_than_memory_has(frame_stack):
    with pytest.raises(ValueError, match="frame_stack must be 0 .the usual number. to 64"):
        EnvRecipe("CartPole-v1", frame_stack=frame_stack)


@pytest.mark.parametrize(
    ("env_id", "settings", "wrappers", "named"),
    [
        ("LunarLander-v3", {"gravity": 5.0}, (), "LunarLander-v3 failed in gym.make .*'gravity': 5.0"),
        (
            "CartPole-v1",
            {},
            (("gymnasium.wrappers.TimeLimit", {"max_episode_steps": "x"}),),
            "TimeLimit .*'max_episode_steps'",
        ),
        ("CartPole-v1", {}, (("gymnasium.wrappers.ResizeObservation", {"shape": [0]}),), "ResizeObservation .*'shape'"),
        ("CartPole-v1", {}, (("gymnasium.wrappers.FrameStackObservation", {"stack_size": -1}),), "FrameStackObservation"),
        ("CartPole-v1", {}, (("rl_zoo3.wrappers.HistoryWrapper", {"horizon": "x"}),), "HistoryWrapper .*'horizon'"),
        ("CartPole-v1", {}, (("gymnasium.wrappers.ClipAction", {"unknown": 1}),), "ClipAction .*'unknown'"),
    ],
)
def test_a_setting_that_breaks_a_constructor_is_named(env_id, settings, wrappers, named):
    """Files bring such settings: each ended in another traceback."""
    with pytest.raises(ValueError, match=f"{named}.* cannot be built|{named}"):
        EnvRecipe(env_id, settings, wrappers).make_vec_env(1)


def test_what_is_wrong_with_an_environment_is_told_before_there_are_subprocesses():
    with pytest.raises(ValueError, match="CartPole-v1 has no setting .unknown."):
        EnvRecipe("CartPole-v1", {"unknown": 1}).make_vec_env(2, vec_env="subproc")
