"""An environment that fails is named, with the call and the cause. So is a package that it lacks."""

import subprocess
import sys
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import QUICK, Pointer, pointers, untrained

from sb3_qpd import EnvRecipe, QPDDistiller, evaluate, make_recipe
from sb3_qpd.envs.registry import check_env_kwargs, find_spec
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.failures import EnvironmentFailure
from sb3_qpd.players import seed_if_possible


class TakesNoSeed(Pointer):
    """Its ``reset`` raises as soon as it gets a seed."""

    error: Exception = RuntimeError("the simulator takes no seed")

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> Any:
        if seed is not None:
            raise self.error
        return super().reset(**kwargs)


class Asserts(TakesNoSeed):
    error = AssertionError()


class SeedFails(DummyVecEnv):
    def seed(self, seed: int | None = None) -> Any:
        raise RuntimeError("no seeding here")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (TakesNoSeed, r"TakesNoSeed failed in reset\(.*\): RuntimeError: the simulator takes no seed"),
        (Asserts, r"Asserts failed in reset\(.*\): AssertionError in test_failures.py, line \d+"),
        (SeedFails([Pointer]), r"Pointer failed in seed\(\d+\): RuntimeError: no seeding here"),
    ],
    ids=["RuntimeError", "AssertionError", "seed()"],
)
def test_an_environment_that_fails_is_named(env: Any, message: str, tmp_path: Any) -> None:
    teacher = untrained(pointers(n_envs=1))
    with pytest.raises(EnvironmentFailure, match=message):
        evaluate(teacher, env, n_episodes=1)
    for check_teacher in (False, True):
        with pytest.raises(EnvironmentFailure, match=message):
            QPDDistiller(teacher, env, **{**QUICK, "check_teacher": check_teacher, "seed": 0}).learn(16)
    student = QPDDistiller(teacher, **QUICK).learn(16)
    student.to_integer().save(tmp_path / "student.npz")
    with pytest.raises(EnvironmentFailure, match=message):
        verify(tmp_path, env, 4, policy=student.policy)


def test_a_seed_that_is_not_taken_is_no_failure() -> None:
    """Game engines have no ``seed``, or one without an argument."""

    class NoSeed(DummyVecEnv):
        def seed(self) -> Any:  # type: ignore[override]
            raise NotImplementedError

    assert not seed_if_possible(NoSeed([Pointer]), 0) and seed_if_possible(DummyVecEnv([Pointer]), 0)


def test_the_error_of_a_callback_is_not_the_environments() -> None:
    class Fails(BaseCallback):
        def _init_callback(self) -> None:
            raise RuntimeError("no folder")

        def _on_step(self) -> bool:
            return True

    with pytest.raises(RuntimeError, match="^no folder$"):
        QPDDistiller(untrained(pointers(n_envs=1)), **QUICK).learn(16, callback=Fails())


@pytest.mark.parametrize("entry_point", ["attribute", "string"])
def test_an_environment_that_cannot_be_built(entry_point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Pointer):
        def __init__(self) -> None:
            raise OSError("no device")

    monkeypatch.setattr(sys.modules[__name__], "Broken", Broken, raising=False)
    gym.register("Broken-v0", f"{__name__}:Broken" if entry_point == "string" else Broken)
    with pytest.raises(EnvironmentFailure, match="Broken-v0 failed in gym.make: OSError: no device"):
        EnvRecipe("Broken-v0").make_env()
    del gym.registry["Broken-v0"]


def test_settings_that_an_environment_lacks() -> None:
    message = "LunarLander-v3 has no setting 'gravty'. Did you mean 'gravity'. Its settings: render_mode, continuous, gravity"
    with pytest.raises(ValueError, match=message):
        make_recipe("LunarLander-v3", {"gravty": -9.0})
    with pytest.raises(ValueError, match=message):
        EnvRecipe("LunarLander-v3", {"gravty": -9.0}).make_vec_env(1)
    for name in ("gravity", "max_episode_steps", "disable_env_checker", "render_mode"):
        check_env_kwargs(find_spec("LunarLander-v3"), {name: None})
    check_env_kwargs(find_spec("HalfCheetah-v5"), {"whatever": 1})  # it takes **kwargs


LACKING = """
import sys
sys.modules[sys.argv[1]] = None
from sb3_qpd import EnvRecipe
try:
    EnvRecipe(sys.argv[2]).make_env()
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("module", "env_id", "install"),
    [
        ("Box2D", "LunarLander-v3", "pip install box2d (sb3_qpd requires it"),
        ("mujoco", "HalfCheetah-v4", 'pip install "gymnasium[mujoco]"'),
    ],
)
def test_a_package_that_is_missing(module: str, env_id: str, install: str) -> None:
    done = subprocess.run([sys.executable, "-c", LACKING, module, env_id], capture_output=True, text=True, check=True)
    assert f"{env_id} needs a package that is not installed: {install}" in done.stdout and "swig" not in done.stdout
