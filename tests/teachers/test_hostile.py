"""Hostile files: what runs a command elsewhere runs none here, and what exhausts others is refused within bounds."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from bounds import bounded
from hostile import REFUSED, RUNNING, SETTINGS, WEIGHT_BOMBS, YAML_BOMBS, statistics_of
from stable_baselines3 import PPO

from sb3_qpd import EnvRecipe, QPDDistiller, TeacherError, TeacherLabels, load_teacher
from sb3_qpd.teachers.files.vecnormalize import read_vecnormalize
from sb3_qpd.teachers.files.zoo_yaml import read_yaml

HOSTILE = Path(__file__).with_name("hostile.py")
READERS = {".pkl": read_vecnormalize, ".yml": read_yaml}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "ppo.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, n_steps=64, device="cpu").save(path)
    return path


@pytest.fixture(scope="module")
def corpus(honest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Every attack, written and given to its victim: the file, and the mark that a command of it leaves."""
    base, written = tmp_path_factory.mktemp("corpus"), {}
    for index, (name, attack) in enumerate(RUNNING.items()):
        folder, mark = base / str(index), base / f"mark{index}"
        folder.mkdir()
        written[name] = attack.write(folder, f"touch {mark}", honest), mark
    lines = "\n".join(json.dumps([RUNNING[name].victim, str(path)]) for name, (path, _) in written.items())
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HOSTILE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, HOSTILE], input=lines, capture_output=True, text=True, timeout=500, env=env)
    assert done.returncode == 0, done.stderr[-2_000:]
    return written


def load_here(path: Path) -> Any:
    return READERS[path.suffix](path) if path.suffix in READERS else load_teacher(path, device="cpu")


@pytest.mark.parametrize("name", RUNNING)
def test_runs_elsewhere_and_not_here(corpus: dict[str, tuple[Path, Path]], name: str) -> None:
    path, mark = corpus[name]
    assert mark.exists(), "not an attack: its victim does not run it"
    mark.unlink()
    try:
        load_here(path)
    except TeacherError:
        pass
    assert not mark.exists()


def test_there_are_enough_of_them() -> None:
    ways = {name.split(", ", 1)[1] if name.startswith(("zip, ", "statistics, ", "policy, ")) else name for name in RUNNING}
    assert len(ways) >= 30 and len(ways) + len(REFUSED) + len(YAML_BOMBS) + len(SETTINGS) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_refused_within_bounds(honest: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(REFUSED[name](honest.read_bytes()))
    with bounded(60, 2**30), pytest.raises(TeacherError, match="."):
        load_teacher(path, device="cpu")


@pytest.mark.parametrize("name", WEIGHT_BOMBS)
def test_the_same_bombs_as_a_policy_by_itself(tmp_path: Path, name: str) -> None:
    path = tmp_path / "policy.pth"
    path.write_bytes(WEIGHT_BOMBS[name])
    with bounded(60, 2**30), pytest.raises(TeacherError, match="."):
        load_teacher(path, device="cpu")


@pytest.mark.parametrize(("n_keys", "size"), [(1, 50_000_000), (100, 20_000_000), (100, 2**20)])
def test_statistics_are_refused_within_bounds(tmp_path: Path, n_keys: int, size: int) -> None:
    path = tmp_path / "vecnormalize.pkl"
    path.write_bytes(statistics_of(n_keys, size))
    with bounded(60, 2**30), pytest.raises(TeacherError, match="refused"):
        read_vecnormalize(path)


@pytest.mark.parametrize("name", YAML_BOMBS)
def test_yaml_is_refused_within_bounds(honest: Path, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path, honest, YAML_BOMBS[name].replace("a: ", "env_wrapper: ", 1))
    with bounded(60, 2**30), pytest.raises(TeacherError):
        load_teacher(run, device="cpu")


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_an_environment_are_refused(honest: Path, tmp_path: Path, name: str) -> None:
    """Nothing is built when a teacher is loaded: all of these would come to pass in the first environment."""
    config, found = SETTINGS[name]
    run = write_run(tmp_path, honest, config)
    with bounded(60, 2**30):
        with pytest.raises(TeacherError, match=f"{re.escape(found)}.*yourself and pass it as env=") as refused:
            load_teacher(run, device="cpu")
        assert len(str(refused.value)) < 700
        own = EnvRecipe("CartPole-v1", {"size": 10**9})  # the user's own is not looked at
        assert load_teacher(run, device="cpu", env=own).recipe == own


def test_settings_that_are_not_read(honest: Path, tmp_path: Path) -> None:
    config = "{n_envs: 1.0e+9, n_timesteps: 1.0e+30, buffer_size: 1000000000, n_stack: 1000000000, history_length: 1000000000}"
    with bounded(60, 2**30):
        recipe = load_teacher(write_run(tmp_path, honest, config), device="cpu").recipe
        assert recipe == EnvRecipe("CartPole-v1")
        recipe.make_vec_env(1).reset()


@pytest.mark.parametrize(
    "settings",
    [
        "render_mode: rgb_array",
        "horizon: 500",
        "episode_length: 5000",
        "seed: 123456",
        "profile: easy",
        "path_type: straight",
        "max_episode_steps: 400",
        "healthy_z_range: [0.8, .inf]",
    ],
)
def test_honest_settings_are_taken(honest: Path, tmp_path: Path, settings: str) -> None:
    run = write_run(tmp_path, honest, f"frame_stack: 4\nenv_kwargs: {{{settings}}}")
    recipe = load_teacher(run, device="cpu").recipe
    assert recipe is not None and list(recipe.env_kwargs) == [settings.partition(":")[0]]


def test_with_an_environment_of_ones_own_the_folders_is_left_alone(honest: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path, honest, "env_kwargs: {xml_file: /etc/passwd}")
    student = QPDDistiller(run, "CartPole-v1", n_envs=2, device="cpu", check_teacher=False).learn(64)
    student.save(tmp_path / "student")
    QPDDistiller.load(tmp_path / "student", gym.make("CartPole-v1"), teacher=run)
    TeacherLabels(gym.make("CartPole-v1"), run).reset()
    with pytest.raises(TeacherError, match="'xml_file': '/etc/passwd'"):
        QPDDistiller(run)


def test_settings_that_do_exhaust_memory() -> None:
    histories = EnvRecipe("Pendulum-v1", {}, (("rl_zoo3.wrappers.HistoryWrapper", {"horizon": 900}),) * 3)
    with pytest.raises(MemoryError), bounded(60, 2**30):
        histories.make_env()


def write_run(folder: Path, zip_path: Path, config: str) -> Path:
    """A run folder for CartPole-v1."""
    run = folder / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    (run / "CartPole-v1.zip").write_bytes(zip_path.read_bytes())
    (run / "CartPole-v1" / "args.yml").write_text("env: CartPole-v1")
    (run / "CartPole-v1" / "config.yml").write_text(config)
    return run


def test_an_honest_file_is_within_bounds(honest: Path) -> None:
    with bounded(60, 2**30):
        assert load_teacher(honest, device="cpu").algo == "ppo"


def test_a_lie_about_a_size_exhausts_zipfile(honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(REFUSED["a member that lies about its size"](honest.read_bytes()))
    with pytest.raises(MemoryError), bounded(60, 2**30), zipfile.ZipFile(path) as archive:
        archive.read("data")


def test_the_bounds_themselves() -> None:
    with pytest.raises(TimeoutError), bounded(0.05, 2**30):
        while True:
            pass
    with pytest.raises(MemoryError), bounded(10, 2**26):
        bytes(2**28)
