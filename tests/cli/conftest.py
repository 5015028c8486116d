from pathlib import Path

import pytest
from commands import QUICK
from stable_baselines3 import PPO

from sb3_qpd.cli import main


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zip, which does not name its environment."""
    path = tmp_path_factory.mktemp("teacher") / "ppo_cartpole.zip"
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=256).learn(3_000).save(path)
    return str(path)


@pytest.fixture(scope="session")
def compressed(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "a" / "b"
    arguments = ["--env", "CartPole-v1", "--timesteps", "2e3", "--episodes", "12", "--weight-bits", "4", "--seed", "3"]
    assert main(["compress", teacher, "--out", str(out), *arguments, *QUICK, "--baselines"]) == 0
    return out
