import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qpd.envs.recipe import ATARI_WRAPPER, EnvRecipe
from sb3_qpd.envs.registry import SUCCESSORS, running_id
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.run_folder import find_run

CONFIG = {"n_timesteps": 1e5, "policy": "MlpPolicy", "policy_kwargs": "dict(activation_fn=nn.ReLU)"}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[4])).save(path)
    return path


@pytest.fixture
def make_run(model_path, tmp_path):
    """Write a run folder as RL Zoo does, around a model for CartPole."""

    def make(env: str | None = "CartPole-v1", args: dict[str, Any] | None = None, zip_name: str = "", **config: Any) -> Path:
        name = (env or "CartPole-v1").replace("/", "-")
        run = tmp_path / "ppo" / f"{name}_1"
        (run / name).mkdir(parents=True)
        shutil.copy(model_path, run / (zip_name or f"{name}.zip"))
        if env is not None:
            written = OrderedDict({"algo": "ppo", "env": env, "env_kwargs": None, **(args or {})})
            (run / name / "args.yml").write_text(yaml.dump(written))
        (run / name / "config.yml").write_text(yaml.dump(OrderedDict({**CONFIG, **config})))
        return run

    return make


@pytest.fixture(scope="module")
def statistics(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "vecnormalize.pkl"
    VecNormalize(make_vec_env("CartPole-v1")).save(path)
    return path


def test_a_run_folder(make_run):
    run = make_run(args={"env_kwargs": {"sutton_barto_reward": True}})
    teacher = load_teacher(run)
    assert teacher.name == "ppo/CartPole-v1" and teacher.normalization is None
    assert teacher.recipe == EnvRecipe("CartPole-v1", {"sutton_barto_reward": True})
    for same in (run / "CartPole-v1.zip", run / "CartPole-v1", str(run) + "/"):
        assert load_teacher(same).recipe == teacher.recipe
    teacher.recipe.make_env().reset()


def test_best_model_where_the_final_one_is_missing(make_run):
    run = make_run(zip_name="best_model.zip")
    for path in (run, run / "best_model.zip", run / "best_model"):
        teacher = load_teacher(path)
        assert teacher.name == "ppo/CartPole-v1" and teacher.recipe is not None


def test_the_final_model_comes_first(make_run, model_path):
    run = make_run()
    for name in ("best_model.zip", "rl_model_1000_steps.zip"):
        shutil.copy(model_path, run / name)
    assert find_run(run).zip_path == run / "CartPole-v1.zip"


def test_the_layout_of_the_hub(make_run, tmp_path, statistics):
    run = make_run(normalize=True)
    hub = tmp_path / "ppo-CartPole-v1"
    hub.mkdir()
    shutil.copy(run / "CartPole-v1.zip", hub / "ppo-CartPole-v1.zip")
    for name in ("args.yml", "config.yml"):
        shutil.copy(run / "CartPole-v1" / name, hub)
    shutil.copy(statistics, hub / "vec_normalize.pkl")
    for source in (hub, hub / "ppo-CartPole-v1.zip", hub / "ppo-CartPole-v1"):
        teacher = load_teacher(source)
        assert teacher.name == "ppo/CartPole-v1" and teacher.normalization is not None and teacher.recipe is not None
    (hub / "args.yml").unlink()
    assert load_teacher(hub / "ppo-CartPole-v1.zip").normalization is not None


def test_a_config_beside_a_zip_may_belong_to_another_program(model_path, tmp_path):
    shutil.copy(model_path, tmp_path / "teacher.zip")
    (tmp_path / "config.yml").write_text("normalize: true")
    assert find_run(tmp_path / "teacher.zip").folder is None
    assert find_run(tmp_path).folder == tmp_path


def test_a_checkpoint_in_a_run_folder(make_run, model_path):
    run = make_run()
    shutil.copy(model_path, run / "rl_model_1000_steps.zip")
    assert find_run(run / "rl_model_1000_steps.zip").make_recipe() == find_run(run).make_recipe() is not None


def test_the_folder_one_is_in(make_run, monkeypatch):
    monkeypatch.chdir(make_run())
    for source in (".", ""):
        assert load_teacher(source).name == "ppo/CartPole-v1"


def test_a_folder_without_args(make_run):
    teacher = load_teacher(make_run(env=None))
    assert teacher.recipe is None and teacher.name == "ppo/CartPole-v1"


def test_a_bare_zip_knows_no_environment(model_path):
    run = find_run(model_path)
    assert run.folder is None and run.make_recipe() is None and not run.normalizes


def test_not_a_run_folder(tmp_path, make_run, model_path):
    with pytest.raises(TeacherError, match="not a run folder of RL Zoo: expected .*best_model.zip in it, found no zip"):
        load_teacher(tmp_path)
    run = make_run(zip_name="first.zip")
    assert find_run(run).zip_path.name == "first.zip"
    shutil.copy(model_path, run / "second.zip")
    with pytest.raises(TeacherError, match="found first.zip, second.zip. Give the run folder"):
        load_teacher(run)
    with pytest.raises(TeacherError, match="No such file: .*gone"):
        load_teacher(tmp_path / "gone")


# --- normalization ---
@pytest.mark.parametrize("normalize", [True, "True", {"norm_obs": True}, {"norm_reward": False}, "dict(norm_reward=False)"])
def test_normalization(make_run, statistics, normalize):
    run = make_run(normalize=normalize)
    with pytest.raises(
        TeacherError,
        match=r"no vecnormalize.pkl in .*CartPole-v1. Put it there, or say where it is: vecnormalize=PATH",
    ):
        load_teacher(run)
    with pytest.raises(TeacherError, match="no vecnormalize.pkl in"):
        load_teacher(run, env="CartPole-v1")
    assert load_teacher(run, vecnormalize=statistics).normalization is not None
    assert load_teacher(run, env=VecNormalize(make_vec_env("CartPole-v1"))).normalization is not None
    shutil.copy(statistics, run / "CartPole-v1")
    assert load_teacher(run).normalization is not None


@pytest.mark.parametrize(
    "normalize", [False, None, "False", {"norm_obs": False}, "dict(norm_obs=False, norm_reward=True)", "{'norm_obs': False}"]
)
def test_no_normalization(make_run, statistics, normalize):
    run = make_run(normalize=normalize)
    assert load_teacher(run).normalization is None
    shutil.copy(statistics, run / "CartPole-v1")  # RL Zoo would not read it either
    assert load_teacher(run).normalization is None


def test_statistics_are_taken_where_no_config_speaks_of_them(make_run, statistics):
    run = make_run()
    (run / "CartPole-v1" / "config.yml").unlink()
    shutil.copy(statistics, run / "CartPole-v1")
    assert load_teacher(run).normalization is not None


# --- environments ---
@pytest.mark.parametrize("old, new", sorted(SUCCESSORS.items()))
def test_successors_run_today(old, new):
    assert running_id(old) == new and new in gym.registry


@pytest.mark.parametrize(
    "env_id, expected",
    [
        ("CartPole-v1", "CartPole-v1"),
        ("CarRacing-v0", "CarRacing-v3"),
        ("FrozenLake-v0", "FrozenLake-v1"),
        ("HalfCheetah-v5", "HalfCheetah-v5"),
        ("PongNoFrameskip-v4", "PongNoFrameskip-v4"),
        ("PongNoFrameskip-v3", "PongNoFrameskip-v4"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("CartPole-v9", None),
        ("HalfCheetahBulletEnv-v0", None),
        ("NoVersion", None),
        pytest.param("CartPole-v" + "9" * 5_000, None, id="a version of 5,000 digits"),
    ],
)
def test_ids_that_run_today(env_id, expected):
    assert running_id(env_id) == expected


def test_renamed_environments(make_run):
    with pytest.warns(UserWarning, match="FrozenLake-v0 is not registered any more: the teacher plays FrozenLake-v1"):
        assert load_teacher(make_run(env="FrozenLake-v0")).recipe == EnvRecipe("FrozenLake-v1")
    teacher = load_teacher(make_run(env="LunarLander-v2"))
    assert teacher.name == "ppo/LunarLander-v2" and teacher.recipe == EnvRecipe("LunarLander-v3")


@pytest.mark.parametrize("env", ["HalfCheetahBulletEnv-v0", "antigravity:Fly-v0"])
def test_an_unknown_environment(make_run, env):
    run = make_run(env=env)
    with pytest.raises(TeacherError, match=f"'{env}' is not registered here. .*pass it as env="):
        load_teacher(run)
    assert load_teacher(run, env="CartPole-v1").recipe == EnvRecipe("CartPole-v1")


def test_no_module_that_a_file_names_is_imported(make_run, tmp_path, monkeypatch):
    (tmp_path / "hostile_package.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    run = make_run(env="hostile_package:CartPole-v1")
    with pytest.raises(TeacherError, match="not registered here"):
        load_teacher(run)
    shutil.rmtree(run)
    run = make_run(env_wrapper="hostile_package.Wrapper")
    with pytest.raises(TeacherError, match=r"'hostile_package.Wrapper' is not among those .*env="):
        load_teacher(run)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "setting, expected",
    [
        (None, ()),
        (ATARI_WRAPPER, ((ATARI_WRAPPER, {}),)),
        (["gym.wrappers.FlattenObservation"], (("gymnasium.wrappers.FlattenObservation", {}),)),
        (
            ["utils.wrappers.TimeFeatureWrapper", {"utils.wrappers.FrameSkip": {"skip": 2}}],
            (("sb3_contrib.common.wrappers.TimeFeatureWrapper", {}), ("rl_zoo3.wrappers.FrameSkip", {"skip": 2})),
        ),
        ([{"rl_zoo3.wrappers.HistoryWrapper": None}], (("rl_zoo3.wrappers.HistoryWrapper", {}),)),
    ],
)
def test_wrappers(make_run, setting, expected):
    recipe = load_teacher(make_run(env_wrapper=setting, frame_stack=2)).recipe
    assert recipe.env_wrappers == expected and recipe.frame_stack == 2


@pytest.mark.parametrize(
    "config, message",
    [
        ({"env_wrapper": "os.system"}, "'os.system' is not among those that may be named"),
        (
            {"env_wrapper": [{"stable_baselines3.common.monitor.Monitor": {"filename": "mark"}}]},
            "'stable_baselines3.common.monitor.Monitor' is not among those that may be named",
        ),
        ({"env_wrapper": [3]}, "Expected wrappers by name, got '3'"),
        ({"env_wrapper": [{"gymnasium.wrappers.TimeLimit": 3}]}, "Expected wrappers by name"),
        (
            {"vec_env_wrapper": "stable_baselines3.common.vec_env.VecCheckNan"},
            "vec_env_wrapper in a config.yml is not supported",
        ),
        ({"frame_stack": "many"}, "many.*pass it as env="),
        ({"frame_stack": -1}, "frame_stack.*pass it as env="),
        ({"frame_stack": 10**9}, "frame_stack must be .* to 64, got 1000000000.*pass it as env="),
        ({"frame_stack": float("inf")}, "infinity.*pass it as env="),
    ],
)
def test_settings_that_cannot_be_followed(make_run, config, message):
    run = make_run(**config)
    with pytest.raises(TeacherError, match=f"{message}.*"):
        load_teacher(run)
    assert load_teacher(run, env="CartPole-v1").recipe == EnvRecipe("CartPole-v1")


def test_environment_arguments_that_are_none(make_run):
    with pytest.raises(TeacherError, match="pass it as env="):
        load_teacher(make_run(args={"env_kwargs": [1]}))
