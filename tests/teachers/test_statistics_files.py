"""Which VecNormalize statistics belong to a model, by the names under which they are saved."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.statistics_files import find_statistics


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[bytes, bytes]:
    """A model's zip and its statistics."""
    folder = tmp_path_factory.mktemp("saved")
    env = VecNormalize(make_vec_env("CartPole-v1"))
    PPO("MlpPolicy", env, policy_kwargs={"net_arch": [4]}, device="cpu").save(folder / "model.zip")
    env.save(str(folder / "stats.pkl"))
    return (folder / "model.zip").read_bytes(), (folder / "stats.pkl").read_bytes()


def write(folder: Path, saved: tuple[bytes, bytes], *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(saved[name.endswith(".pkl")])


@pytest.mark.parametrize(
    "model, statistics",
    [
        ("rl_model_2000_steps", "rl_model_vecnormalize_2000_steps"),  # SB3's CheckpointCallback
        ("model", "model_vecnormalize"),  # Isaac Lab
        ("model_2000_steps", "model_vecnormalize_2000_steps"),
        ("ppo_cartpole", "vec_normalize"),  # SB3's examples, the Hub
        ("CartPole-v1", "vecnormalize"),  # RL Zoo
        ("ppo_cartpole", "ppo_cartpole_vecnormalize"),
        ("ppo_cartpole", "vecnormalize_ppo_cartpole"),
        ("ppo-cartpole", "VecNormalize_PPO_cartpole"),
        ("best_model", "best_vecnormalize"),
        ("best_model", "vec_normalize_best_model"),
        ("final_model", "vec-norm-final"),
        ("ppo_500000", "vecnormalize_500000"),
        ("rl_model_2000_steps", "rl_model_vecnormalize"),
        ("model", "stats"),
        ("model", "obs_rms"),
        ("model", "my_env"),  # the only one beside the only model
    ],
)
def test_names_of_statistics(tmp_path, saved, model, statistics):
    write(tmp_path, saved, f"{model}.zip", f"{statistics}.pkl")
    assert find_statistics(tmp_path / f"{model}.zip", [tmp_path])[0] == tmp_path / f"{statistics}.pkl"
    assert load_teacher(tmp_path / f"{model}.zip", device="cpu").normalization is not None


@pytest.mark.parametrize("name", ["vec_normalize.pickle", "vecnormalize", "model_vecnormalize.p"])
def test_the_suffix_is_free(tmp_path, saved, name):
    write(tmp_path, saved, "model.zip", "other.zip", "stats.pkl")
    (tmp_path / "stats.pkl").rename(tmp_path / name)
    assert find_statistics(tmp_path / "model.zip", [tmp_path])[0] == tmp_path / name


def test_a_steps_own_come_before_the_final_ones(tmp_path, saved):
    names = [f"rl_model_{word}{steps}_steps" for steps in (1000, 2000) for word in ("", "vecnormalize_")]
    write(tmp_path, saved, *(f"{name}{'.pkl' if 'vec' in name else '.zip'}" for name in names), "vecnormalize.pkl")
    for steps in (1000, 2000):
        found, others = find_statistics(tmp_path / f"rl_model_{steps}_steps.zip", [tmp_path])
        assert found == tmp_path / f"rl_model_vecnormalize_{steps}_steps.pkl" and len(others) == 2
    write(tmp_path, saved, "rl_model_3000_steps.zip")
    assert find_statistics(tmp_path / "rl_model_3000_steps.zip", [tmp_path])[0] == tmp_path / "vecnormalize.pkl"


def test_statistics_of_the_run_come_after_a_checkpoints_own(tmp_path, saved):
    run = tmp_path / "ppo" / "CartPole-v1_1"
    write(run, saved, "CartPole-v1.zip", "rl_model_9_steps.zip", "CartPole-v1/vecnormalize.pkl")
    for name in ("CartPole-v1.zip", "rl_model_9_steps.zip"):
        assert load_teacher(run / name, device="cpu").run.statistics == run / "CartPole-v1" / "vecnormalize.pkl"
    write(run, saved, "rl_model_vecnormalize_9_steps.pkl")
    assert load_teacher(run / "rl_model_9_steps.zip", device="cpu").run.statistics.parent == run


@pytest.mark.parametrize(
    "others",
    [
        ("other_vecnormalize.pkl", "other.zip"),
        ("rl_model_vecnormalize_5_steps.pkl",),
        ("../vecnormalize.pkl",),
        ("stats/vecnormalize.pkl",),
        ("../stats/vec_normalize.pkl",),
    ],
)
def test_statistics_that_are_not_used_are_named(tmp_path, saved, others):
    folder = tmp_path / "deep" / "er"
    write(folder, saved, "rl_model_7_steps.zip", "rl_model_5_steps.zip", *others)
    name = Path(others[0]).name
    with pytest.warns(UserWarning, match=f"used without normalization, but VecNormalize statistics lie nearby .{name} in "):
        teacher = load_teacher(folder / "rl_model_7_steps.zip", device="cpu")
    assert teacher.normalization is None


def test_other_pickles_are_none(tmp_path, saved):
    write(tmp_path, saved, "model.zip")
    (tmp_path / "replay_buffer.pkl").write_bytes(b"\x80\x04N.")
    (tmp_path / "stats.pkl").write_bytes(b"\x80\x04N.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_teacher(tmp_path / "model.zip", device="cpu").normalization is None


def test_checkpoints_of_sb3(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    model.learn(256, callback=CheckpointCallback(32, str(tmp_path), save_vecnormalize=True))
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    for steps in (64, 128, 192, 256):
        teacher = load_teacher(tmp_path / f"rl_model_{steps}_steps.zip", device="cpu")
        own = VecNormalize.load(str(tmp_path / f"rl_model_vecnormalize_{steps}_steps.pkl"), env.venv)
        np.testing.assert_allclose(teacher.normalize(x), own.normalize_obs(x), rtol=1e-6)


def test_the_only_statistics_are_not_taken_for_those_of_another_step(tmp_path, saved):
    write(tmp_path, saved, "model_1000.zip", "vecnormalize_2000.pkl")
    with pytest.warns(UserWarning, match=r"lie nearby .vecnormalize_2000.pkl in "):
        assert load_teacher(tmp_path / "model_1000.zip", device="cpu").normalization is None


def test_statistics_of_another_run_are_not_named(tmp_path, saved):
    write(tmp_path, saved, "run_1/model.zip", "run_2/model.zip", "run_2/vecnormalize.pkl")
    assert find_statistics(tmp_path / "run_1" / "model.zip", [tmp_path / "run_1"]) == (None, [])
