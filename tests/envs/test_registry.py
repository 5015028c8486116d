"""Registered environments: packages of other authors, old ids and their observations, hints."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from sb3_qpd import EnvRecipe
from sb3_qpd.envs.registry import find_spec, running_id, without_harmless_warnings
from sb3_qpd.envs.wrappers import ZeroContactForces
from sb3_qpd.envs.zoo_config import OLD_OBSERVATIONS, named_wrappers

MY_ENVS = """
import gymnasium as gym
gym.register("Cart-v0", entry_point="my_envs:Cart")
class Cart(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(2)
"""


@pytest.fixture
def my_envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_envs.py").write_text(MY_ENVS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_envs", None)
    gym.registry.pop("Cart-v0", None)


def test_a_module_of_ones_own(my_envs):
    assert find_spec("my_envs:Cart-v0").id == "Cart-v0"
    for _ in range(2):  # imported or not
        with pytest.raises(ValueError) as error:
            find_spec("my_envs:Kart-v0")
        assert str(error.value).endswith("Did you mean my_envs:Cart-v0?") and str(error.value).count("Did you mean") == 1
    with pytest.raises(ValueError, match="The module my_envs registers my_envs:Cart-v0."):
        find_spec("my_envs:Something-v3")
    with pytest.raises(ValueError, match="The module json registers no environment"):
        find_spec("json:Something-v3")


@pytest.mark.parametrize(
    "env_id, package",
    [("PandaReach-v3", "panda-gym"), ("HalfCheetahBulletEnv-v0", "pybullet"), ("MiniGrid-Empty-5x5-v0", "minigrid")],
)
def test_packages_that_are_not_installed(env_id, package):
    if env_id in gym.registry:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ValueError, match=f"registered by another package: pip install {package}"):
        find_spec(env_id)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_the_observation_of_old_ants(version):
    pytest.importorskip("mujoco")
    assert running_id(f"Ant-v{version}") == "Ant-v4"
    recipe = EnvRecipe("Ant-v4", env_wrappers=named_wrappers("utils.wrappers.TimeFeatureWrapper", f"Ant-v{version}"))
    assert recipe.wrapper_names == ["ZeroContactForces", "TimeFeatureWrapper"]
    observation, _ = recipe.make_env().reset(seed=0)
    plain, _ = gym.make("Ant-v4").reset(seed=0)
    assert observation.shape == (27 + 84 + 1,)
    np.testing.assert_allclose(observation[:27], plain, rtol=1e-6)
    assert not observation[27:111].any() and observation[111] == 1


def test_other_environments_keep_their_observations():
    assert set(OLD_OBSERVATIONS) == {"Ant-v1", "Ant-v2", "Ant-v3"}
    assert named_wrappers(None, "HalfCheetah-v3") == ()
    with pytest.raises(ValueError, match="for the vectors of Ant-v4, got observations of Discrete"):
        ZeroContactForces(gym.make("FrozenLake-v1"))


@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
def test_robots_of_gymnasium_robotics():
    pytest.importorskip("gymnasium_robotics")
    assert running_id("FetchReach-v1") == "FetchReach-v4"  # the registered v1 needs bindings that cannot be installed
    env = EnvRecipe("FetchReach-v4").make_env()
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"observation", "achieved_goal", "desired_goal"}
    env.step(env.action_space.sample())


def test_the_bridge_over_mujocos_joint_types_is_needed():
    """When this fails, ``registry._compare_joint_types`` can go."""
    pytest.importorskip("gymnasium_robotics")
    code = "import numpy, mujoco; print(mujoco.mjtJoint.mjJNT_HINGE == numpy.int32(3))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_mujoco_is_silent_about_gymnasiums_models(tmp_path, monkeypatch, capfd):
    """MuJoCo 4 prints a line for each HalfCheetah, and writes a file into the current folder."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    recipe = EnvRecipe("HalfCheetah-v4")
    recipe.make_env().close()
    recipe.make_vec_env(2).close()
    assert capfd.readouterr().err == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("has_own_handler", [True, False])
def test_other_warnings_of_mujoco_are_heard(has_own_handler):
    mujoco = pytest.importorskip("mujoco")
    seen: list[str] = []
    mujoco.set_mju_user_warning(seen.append if has_own_handler else None)
    model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>")
    data = mujoco.MjData(model)
    try:
        with warnings.catch_warnings(record=True) as caught, without_harmless_warnings(gym.spec("HalfCheetah-v4")):
            data.qpos[:] = float("nan")
            mujoco.mj_step(model, data)
        assert (mujoco.get_mju_user_warning() is not None) == has_own_handler
    finally:
        mujoco.set_mju_user_warning(None)
    heard = seen if has_own_handler else [str(warning.message) for warning in caught]
    assert len(heard) == 1 and "Nan, Inf or huge value in QPOS" in heard[0]
