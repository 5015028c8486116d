import io
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from sb3_contrib import ARS, QRDQN, TQC, TRPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecCheckNan, VecFrameStack, VecNormalize
from teacher_files import ATTACKS, edit_zip, read_data, serialized
from toys import Anything

from sb3_qpd import QPDDistiller, evaluate
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.teachers.check import check_spaces
from sb3_qpd.teachers.families import TEACHERS
from sb3_qpd.teachers.files.agent_file import read_agent
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.normalization import remove_vec_normalize
from sb3_qpd.teachers.policy_builder import policy_arguments
from sb3_qpd.teachers.teacher import Teacher

ALGOS = {cls.__name__.lower(): cls for cls in (A2C, ARS, DDPG, DQN, PPO, QRDQN, SAC, TQC, TRPO)}
BATCHES: dict[Any, dict[str, int]] = {A2C: {}, PPO: {"batch_size": 32, "n_epochs": 2}, TRPO: {"batch_size": 32}}


def train(algo: type[BaseAlgorithm], policy: str, env: Any, **kwargs: Any) -> Any:
    return algo(policy, env, n_steps=64, seed=0, device="cpu", **BATCHES[algo], **kwargs).learn(64)


def random_observations(space: spaces.Space, n: int = 256) -> Any:
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Dict):
        return {key: random_observations(one, n) for key, one in space.items()}
    if space.dtype == np.uint8:
        return rng.integers(0, 256, (n, *space.shape), dtype=np.uint8)
    return rng.normal(scale=2, size=(n, *space.shape)).astype(space.dtype)


def image_env(**kwargs: Any) -> FakeImageEnv:
    return FakeImageEnv(screen_height=40, screen_width=40, **kwargs)


MODELS = {
    "ppo discrete": lambda: train(PPO, "MlpPolicy", "CartPole-v1"),
    "ppo box": lambda: train(PPO, "MlpPolicy", "Pendulum-v1", policy_kwargs=dict(log_std_init=-1, ortho_init=False)),
    "a2c discrete": lambda: train(A2C, "MlpPolicy", "CartPole-v1"),
    "trpo discrete": lambda: train(TRPO, "MlpPolicy", "CartPole-v1"),
    "trpo box": lambda: train(TRPO, "MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16])),
    "a2c gsde": lambda: train(A2C, "MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=dict(full_std=False)),
    "ppo gsde squashed": lambda: train(
        PPO, "MlpPolicy", "Pendulum-v1", use_sde=True, policy_kwargs=dict(squash_output=True, use_expln=True)
    ),
    "other networks": lambda: train(
        PPO,
        "MlpPolicy",
        "CartPole-v1",
        policy_kwargs=dict(
            net_arch=dict(pi=[8], vf=[16, 4]),
            activation_fn=th.nn.ELU,
            features_extractor_class=FlattenExtractor,
            optimizer_class=th.optim.SGD,
            optimizer_kwargs={},
        ),
    ),
    "linear": lambda: train(PPO, "MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[])),
    "cnn": lambda: train(PPO, "CnnPolicy", image_env(), policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=32))),
    "cnn with two extractors": lambda: train(
        A2C,
        "CnnPolicy",
        image_env(n_channels=3),
        policy_kwargs=dict(
            share_features_extractor=False,
            features_extractor_kwargs=dict(features_dim=16),
            net_arch=[8],
            normalize_images=True,
        ),
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory) -> tuple[Any, Path]:
    """A model and the zip that it saved."""
    model = MODELS[request.param]()
    path = tmp_path_factory.mktemp("models") / "model.zip"
    model.save(path)
    return model, path


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ppo") / "cartpole.zip"
    train(PPO, "MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[16, 8])).save(path)
    return path


class OwnExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=5)
        self.net = th.nn.Linear(observation_space.shape[0], 5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)


class OwnPolicy(ActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=OwnExtractor, **kwargs)


# --- the same actions as SB3 ---
def assert_same_actions(teacher: Teacher, model: Any) -> None:
    observations = random_observations(teacher.observation_space)
    expected, _ = model.predict(observations, deterministic=True)
    np.testing.assert_array_equal(teacher.predict(observations, deterministic=True)[0], expected)
    assert not any(parameter.requires_grad for parameter in teacher.policy.parameters())
    sampled, _ = teacher.predict(observations)
    assert sampled.shape == expected.shape and teacher.action_space.contains(sampled[0])


def test_a_zip_acts_as_its_model(pair):
    model, path = pair
    teacher = load_teacher(path, device="cpu")
    assert teacher.algo == type(model).__name__.lower() and teacher.name == f"{teacher.algo}/model"
    assert teacher.recipe is None and teacher.vec_env is None and teacher.normalization is None
    assert teacher.checksum == read_agent(path, TEACHERS).checksum
    assert_same_actions(teacher, model)


def test_a_live_model_acts_as_itself(pair):
    model, _ = pair
    teacher = load_teacher(model, device="cpu")
    assert teacher.policy is not model.policy and teacher.vec_env is model.get_env()
    assert_same_actions(teacher, model)
    theirs = {parameter.data_ptr() for parameter in model.policy.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in teacher.policy.parameters()}
    assert all(parameter.requires_grad for parameter in model.policy.parameters())


def load_with_sb3(path: Path) -> Any:
    """SB3's own class, which decodes nothing: every pickled value is replaced by a checked one or a dummy."""
    file = read_agent(path, TEACHERS)
    kwargs = policy_arguments(file)
    if file.algo in ("a2c", "ppo", "trpo"):
        kwargs.pop("use_sde", None)  # an argument of its own there
    kind = next((kind for kind in ("Cnn", "Linear", "MultiInput") if kind in file.policy_class_name), "Mlp")
    algo: Any = ALGOS[file.algo]
    vetted: dict[str, Any] = {
        "policy_class": algo.policy_aliases[f"{kind}Policy"],
        "observation_space": file.observation_space,
        "action_space": file.action_space,
        "policy_kwargs": kwargs,
        "learning_rate": 0.0,
        "lr_schedule": lambda _: 0.0,
        "clip_range": lambda _: 0.0,
        "train_freq": (1, "step"),
        "target_entropy": 0.0,
    }
    pickled = [key for key, value in read_data(path).items() if isinstance(value, dict) and ":serialized:" in value]
    return algo.load(
        io.BytesIO(path.read_bytes()),
        device="cpu",
        custom_objects={
            **{key: vetted.get(key) for key in pickled},
            "policy_kwargs": kwargs,
            "buffer_size": 1,
            "replay_buffer_kwargs": {},
        },
    )


@pytest.mark.filterwarnings("ignore:You are probably loading a (A2C/PPO|DQN) model")
def test_every_published_teacher_acts_as_under_sb3(teachers, monkeypatch):
    def refuse(*args: Any) -> None:
        raise AssertionError("SB3 decoded a pickle")

    monkeypatch.setattr(cloudpickle, "loads", refuse)
    folders = [path.parent for algo in ALGOS for path in sorted(teachers.rglob(f"{algo}/*/*.zip"))]
    assert len(folders) == 25
    for folder in folders:
        teacher = load_teacher(folder, device="cpu")
        env_id = folder.name.removesuffix("_1")
        assert teacher.name == f"{folder.parent.name}/{env_id}" and str(teachers) not in teacher.name
        assert (teacher.normalization is not None) == (folder / env_id / "vecnormalize.pkl").exists()
        assert teacher.recipe is not None and gym.spec(teacher.recipe.env_id)
        model = load_with_sb3(folder / f"{env_id}.zip")
        observations = random_observations(teacher.observation_space, 256)
        expected, _ = model.predict(observations, deterministic=True)
        np.testing.assert_array_equal(teacher.policy.predict(observations, deterministic=True)[0], expected)


def test_published_environments(teachers):
    recipe = load_teacher(teachers / "ppo/LunarLander-v2_1").recipe
    assert recipe == EnvRecipe("LunarLander-v3")
    assert load_teacher(teachers / "ppo/HalfCheetah-v3_1").recipe == EnvRecipe("HalfCheetah-v4")
    pong = load_teacher(teachers / "own/ppo/PongNoFrameskip-v4_1").recipe
    assert pong.env_wrappers == (("stable_baselines3.common.atari_wrappers.AtariWrapper", {}),) and pong.frame_stack == 4


# --- old layouts ---
def test_keys_of_zips_before_1_7(pair, tmp_path):
    model, path = pair

    def without_copies(weights: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        return {key: value for key, value in weights.items() if not key.startswith(("pi_features", "vf_features"))}

    old = edit_zip(path, tmp_path / "model.zip", state_dict=without_copies)
    if model.policy.share_features_extractor:
        assert_same_actions(load_teacher(old, device="cpu"), model)
    else:  # a zip as old as that cannot have two
        with pytest.raises(TeacherError, match="pi_features_extractor.cnn.0.weight should have shape .* got nothing"):
            load_teacher(old)


@pytest.mark.parametrize("net_arch", [[16, 8], [16, {"pi": [8], "vf": [8]}], [16, 8, {}]], ids=str)
def test_shared_layers_of_zips_before_1_8(saved, tmp_path, net_arch):
    model = PPO.load(saved, device="cpu")
    n_shared = sum(isinstance(size, int) for size in net_arch)

    def share(weights: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        old = {}
        for key, value in weights.items():
            for index in (0, 2):
                is_shared = index // 2 < n_shared
                new_index = index if is_shared else index - 2 * n_shared
                for branch in ("policy_net", "value_net"):
                    new_branch = "shared_net" if is_shared else branch
                    key = key.replace(f"mlp_extractor.{branch}.{index}.", f"mlp_extractor.{new_branch}._{new_index}.")
            old[key.replace("._", ".")] = value
        return old

    # both branches had the same layers then
    for index in (0, 2)[:n_shared]:
        model.policy.mlp_extractor.value_net[index].load_state_dict(model.policy.mlp_extractor.policy_net[index].state_dict())
    model.save(tmp_path / "new.zip")
    kwargs = serialized(pickle.dumps({"net_arch": net_arch}))
    old = edit_zip(tmp_path / "new.zip", tmp_path / "old.zip", {"policy_kwargs": kwargs}, state_dict=share)
    assert any("shared_net" in key for key in read_agent(old, TEACHERS).state_dict)
    teacher = load_teacher(old, device="cpu")
    assert_same_actions(teacher, model)
    observations = random_observations(teacher.observation_space)
    with th.no_grad():
        values = model.policy.predict_values(th.as_tensor(observations)).flatten()
    assert th.equal(teacher(observations).value, values)


@pytest.mark.parametrize("net_arch", [[{"pi": [16, 8], "vf": [16, 8]}], {"pi": (16, 8), "vf": [16, 8]}], ids=str)
def test_net_arch_as_it_was_written(saved, tmp_path, net_arch):
    path = edit_zip(
        saved,
        tmp_path / "m.zip",
        {"policy_kwargs": {":serialized:": serialized(pickle.dumps({"net_arch": net_arch}))[":serialized:"]}},
    )
    assert_same_actions(load_teacher(path, device="cpu"), PPO.load(saved, device="cpu"))


# --- normalization ---
@pytest.fixture(scope="module")
def normalized() -> Any:
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0), clip_obs=3.0)
    return train(PPO, "MlpPolicy", env)


def test_normalization_of_a_live_model(normalized, tmp_path):
    env = normalized.get_vec_normalize_env()
    teacher = load_teacher(normalized, device="cpu")
    observations = random_observations(teacher.observation_space)
    expected, _ = normalized.predict(env.normalize_obs(observations), deterministic=True)
    np.testing.assert_array_equal(teacher.predict(observations, deterministic=True)[0], expected)
    assert teacher.vec_env is env.venv and teacher.name == "ppo/Pendulum-v1"
    assert isinstance(normalized.env, VecNormalize), "the caller's model keeps its environment"
    mean = teacher.normalization.mean.copy()
    env.obs_rms.update(np.full((10, 3), 100.0))
    np.testing.assert_array_equal(teacher.normalization.mean, mean)


def test_normalization_from_a_file(normalized, tmp_path):
    normalized.save(tmp_path / "model.zip")
    env = normalized.get_vec_normalize_env()
    env.save(tmp_path / "elsewhere.pkl")
    teacher = load_teacher(str(tmp_path / "model"), vecnormalize=str(tmp_path / "elsewhere.pkl"), device="cpu")
    observations = random_observations(teacher.observation_space)
    expected, _ = normalized.predict(env.normalize_obs(observations), deterministic=True)
    np.testing.assert_array_equal(teacher.predict(observations, deterministic=True)[0], expected)
    assert load_teacher(normalized, vecnormalize=tmp_path / "elsewhere.pkl").normalization.same_as(teacher.normalization)
    with pytest.raises(TeacherError, match="No such file: .*nowhere.pkl. Expected a vecnormalize.pkl"):
        load_teacher(tmp_path / "model.zip", vecnormalize=tmp_path / "nowhere.pkl")


def test_normalization_of_a_given_environment(normalized, tmp_path):
    normalized.save(tmp_path / "model.zip")
    env = normalized.get_vec_normalize_env()
    teacher = load_teacher(tmp_path / "model.zip", env=env)
    assert teacher.vec_env is env.venv and teacher.normalization.clip_obs == 3.0
    other = VecNormalize(make_vec_env("Pendulum-v1"))
    with pytest.raises(TeacherError, match="(?s)other statistics than the teacher's.*teacher: .*environment: "):
        load_teacher(normalized, env=other)


def test_statistics_of_another_shape(normalized, saved, tmp_path):
    normalized.get_vec_normalize_env().save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(TeacherError, match=r"observations of shape \(3,\), the teacher takes \(4,\)"):
        load_teacher(saved, vecnormalize=tmp_path / "vecnormalize.pkl")


def test_normalization_is_taken_off_under_other_wrappers():
    base = make_vec_env("Pendulum-v1", n_envs=2, seed=0)
    env = VecCheckNan(VecFrameStack(VecNormalize(base, norm_obs=False), 2))
    raw, normalization = remove_vec_normalize(env)
    assert normalization is None and isinstance(raw, VecCheckNan) and isinstance(raw.venv, VecFrameStack)
    assert raw.venv.venv is base and isinstance(env.venv.venv, VecNormalize)
    assert raw.reset().shape == (2, 6) and raw.step(np.zeros((2, 1), np.float32))[1].min() < -0.01
    assert remove_vec_normalize(base) == (base, None)


def test_dict_statistics():
    env = VecNormalize(
        make_vec_env(
            lambda: gym.wrappers.TransformObservation(
                gym.make("CartPole-v1"), lambda o: {"a": o}, spaces.Dict(a=gym.make("CartPole-v1").observation_space)
            )
        )
    )
    raw, normalization = remove_vec_normalize(env)
    assert raw is env.venv and isinstance(normalization, dict)
    np.testing.assert_array_equal(normalization["a"].mean, env.obs_rms["a"].mean)


# --- live models ---
def test_own_policy_and_extractor_of_a_live_model():
    model = train(PPO, OwnPolicy, "CartPole-v1")
    teacher = load_teacher(model, device="cpu")
    assert isinstance(teacher.policy, OwnPolicy)
    assert_same_actions(teacher, model)


def test_a_live_model_without_an_environment(saved):
    teacher = load_teacher(PPO.load(saved))
    assert teacher.vec_env is None and teacher.recipe is None and teacher.name == "ppo"


def test_a_model_in_the_middle_of_training():
    model = train(PPO, "MlpPolicy", "Pendulum-v1", use_sde=True)
    # leaves tensors with a gradient in the distribution, which deepcopy refuses
    model.policy.evaluate_actions(th.zeros(2, 3), th.zeros(2, 1))
    model.policy.reset_noise()
    assert_same_actions(load_teacher(model, device="cpu"), model)


def test_a_loaded_teacher_is_as_it_is():
    teacher = load_teacher(PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu"))
    assert load_teacher(teacher) is teacher
    for options in ({"vecnormalize": "nowhere.pkl"}, {"env": "CartPole-v1"}):
        with pytest.raises(ValueError, match="this one is there already"):
            load_teacher(teacher, **options)
    unknown = PPO("MlpPolicy", "CartPole-v1")
    unknown.policy = unknown.policy.features_extractor
    with pytest.raises(TeacherError, match="PPO with a FlattenExtractor is not supported. Supported: a2c, ars, "):
        load_teacher(unknown)
    with pytest.raises(TeacherError, match="PPO: Observations of Discrete.* are not supported. Supported: Box"):
        # SB3 would take what starts at 1 for an index
        space = spaces.Discrete(3, start=1)
        env = gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda o: 1, space)
        load_teacher(PPO("MlpPolicy", env))
    broken = PPO("MlpPolicy", "CartPole-v1")
    broken.policy.action_net.weight.data[0, 0] = th.nan
    with pytest.raises(TeacherError, match="action_net.weight in the PPO model holds NaN"):
        load_teacher(broken)
    with pytest.raises(TypeError, match="Expected a path, a live SB3 model or a Teacher, got int"):
        load_teacher(3)


def test_a_name_of_a_policy_is_no_teacher():
    with pytest.raises(TeacherError, match="MlpPolicy is no teacher. The first argument is the teacher"):
        load_teacher("MlpPolicy", env="CartPole-v1")


def test_an_environment_as_a_class_or_a_function(saved):
    for env in (CartPoleEnv, lambda: gym.make("CartPole-v1"), lambda: make_vec_env("CartPole-v1", 3)):
        teacher = load_teacher(saved, env=env, device="cpu")
        assert teacher.recipe is None and teacher.vec_env.num_envs in (1, 3)
    with pytest.raises(TypeError, match="given as <lambda>, which cannot be called without arguments"):
        load_teacher(saved, env=lambda needed: None)
    with pytest.raises(TypeError, match="to build a gymnasium.Env or a VecEnv, got dict"):
        load_teacher(saved, env=dict)


def test_a_teacher_of_images_is_laid_out_without_torchs_compiler(tmp_path, monkeypatch):
    """It takes more than a second to import, in every command with such a teacher."""
    PPO("CnnPolicy", image_env(), n_steps=8, batch_size=8, device="cpu").save(tmp_path / "teacher.zip")
    for name in ("torch._dynamo", "torch.fx.experimental.symbolic_shapes"):
        monkeypatch.setitem(sys.modules, name, None)  # its import is an error
    load_teacher(tmp_path / "teacher.zip", env=image_env(), device="cpu")


def test_images_that_were_normalized():
    """VecNormalize makes floats of uint8 images; the environment without it gives the images themselves."""
    raw = DummyVecEnv([lambda: Anything(spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Discrete(3))])
    env = VecNormalize(raw, norm_reward=False)
    for policy in ("CnnPolicy", "MlpPolicy"):
        model = PPO(policy, env, n_steps=64, policy_kwargs={"normalize_images": False}, device="cpu", seed=0).learn(64)
        env.training = False
        teacher = load_teacher(model, device="cpu")
        assert teacher.vec_env.observation_space.dtype == np.uint8
        check_spaces(teacher, teacher.vec_env.observation_space, teacher.action_space)
        images = np.random.default_rng(0).integers(0, 256, (20, 3, 40, 40), np.uint8)
        expected, _ = model.predict(env.normalize_obs(images), deterministic=True)
        np.testing.assert_array_equal(teacher(images).actor.argmax(1).numpy(), expected)
        with pytest.raises(ValueError, match="teacher: 3 x 40 x 40 floats\nenvironment: 2 x 40 x 40 pixels"):
            check_spaces(teacher, spaces.Box(0, 255, (2, 40, 40), np.uint8), teacher.action_space)


def test_actions_that_do_not_start_at_zero_are_sb3s():
    model = PPO("MlpPolicy", Anything(spaces.Box(-1, 1, (3,)), spaces.Discrete(4, start=2)), device="cpu", seed=0)
    teacher, x = load_teacher(model, device="cpu"), np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    np.testing.assert_array_equal(teacher(x).actor.argmax(1).numpy(), model.predict(x, deterministic=True)[0])


def test_observations_of_another_shape_name_the_teacher(teachers):
    teacher = load_teacher(teachers / "ppo/Ant-v3_1", env="Ant-v4", device="cpu")
    with pytest.raises(ValueError, match=r"ppo/Ant-v3 takes observations of shape \(112,\), got \(1, 27\)"):
        teacher(np.zeros((1, 27)))
    message = (
        "(?s)teacher: 112 numbers, .*environment: 27 numbers, .*Ant-v3. Without env= it plays Ant-v4 with ZeroContactForces"
    )
    with pytest.raises(ValueError, match=message):
        check_spaces(teacher, gym.make("Ant-v4").observation_space, teacher.action_space)


@pytest.mark.parametrize("name, at_least", [("ppo/Ant-v3_1", 500), ("tqc/FetchReach-v1_1", -6)])
@pytest.mark.filterwarnings("ignore:.*(is not registered any more|is out of date)")
def test_published_teachers_of_environments_that_changed(teachers, name, at_least):
    pytest.importorskip("gymnasium_robotics" if "Fetch" in name else "mujoco")
    teacher = load_teacher(teachers / name, device="cpu")
    env = teacher.recipe.make_vec_env(4, seed=0)
    check_spaces(teacher, env.observation_space, env.action_space)
    assert evaluate(teacher, teacher.recipe, n_episodes=4, seed=0).returns.mean() > at_least
    student = QPDDistiller(teacher, n_envs=2, student_arch="nano", check_teacher=False, device="cpu", seed=0).learn(400)
    assert student.to_integer().predict(env.reset(), deterministic=True)[0].shape == (4, *env.action_space.shape)


def test_a_teacher_is_returned_as_it_is(saved):
    teacher = load_teacher(saved)
    assert load_teacher(teacher) is teacher


def test_given_environments(saved):
    assert load_teacher(saved, env="CartPole-v1").recipe == EnvRecipe("CartPole-v1")
    assert load_teacher(saved, env=EnvRecipe("CartPole-v1", {"sutton_barto_reward": True})).recipe.env_kwargs
    env = gym.make("CartPole-v1")
    teacher = load_teacher(saved, env=env)
    assert teacher.vec_env.num_envs == 1 and teacher.recipe is None
    model = PPO.load(saved, env=env)
    assert load_teacher(model, env="CartPole-v1").vec_env is None


# --- files that SB3's classes cannot be built from ---
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"net_arch": [16, 9]}, r"policy_net.2.weight should have shape \(9, 16\), got \(8, 16\)"),
        ({"net_arch": [16]}, r"action_net.weight should have shape \(2, 16\), got \(2, 8\)"),
        ({"net_arch": [16, 8, 4]}, "policy_net.4.weight should have shape .* got nothing"),
        ({"net_arch": [10**9, 10**9]}, "net_arch in policy_kwargs: Expected layer sizes as positive integers"),
        ({"net_arch": [-1]}, "positive integers"),
        ({"net_arch": ["16", 8]}, "positive integers"),
        ({"net_arch": [{"pi": [16, 8], "q": [1]}]}, "layer sizes of pi and vf"),
        ({"net_arch": {"pi": 16}}, "layer sizes of pi and vf"),
        ({"net_arch": "big"}, "Expected layer sizes as a list or a dict, got a str"),
        ({"net_arch": [16, 8], "activation_fn": th.nn.Linear}, "activation_fn .*Expected one of CELU, .*got torch.nn.*Linear"),
        ({"net_arch": [16, 8], "activation_fn": "ReLU"}, "activation_fn .*Expected one of CELU, .*got a str"),
        ({"net_arch": [16, 8], "ortho_init": 1}, "ortho_init in policy_kwargs: Expected True or False, got a int"),
        ({"net_arch": [16, 8], "log_std_init": "0"}, "log_std_init in policy_kwargs: Expected a number, got a str"),
        *(({"net_arch": [16, 8], "log_std_init": n}, "log_std_init.* less than") for n in (10**30, -(10**30), np.inf, np.nan)),
        ({"net_arch": [16, 8], "features_extractor_kwargs": {"net": 3}}, "Expected a dict of features_dim"),
        ({"net_arch": [16, 8], "features_extractor_kwargs": {"features_dim": 3}}, "contradict each other"),
        ({"net_arch": [16, 8], "sde_net_arch": [64]}, "separate network for gSDE"),
        ({"net_arch": [16, 8], "squash_output": True}, "contradict each other: squash_output"),
        ({"net_arch": [16, 8], "use_sde": True}, "contradict each other"),
        ({"net_arch": [16, 8], "n_quantiles": 25}, "policy_kwargs names 'n_quantiles', known are activation_fn"),
    ],
    ids=str,
)
def test_policy_kwargs_that_do_not_fit(saved, tmp_path, kwargs, message):
    path = edit_zip(saved, tmp_path / "edited.zip", {"policy_kwargs": serialized(pickle.dumps(kwargs))})
    with pytest.raises(TeacherError, match=message):
        load_teacher(path)


@pytest.mark.parametrize(
    "data, message",
    [
        ({"observation_space": spaces.Box(-1, 1, (5,))}, r"policy_net.0.weight should have shape \(16, 5\), got \(16, 4\)"),
        ({"action_space": spaces.Discrete(3)}, r"action_net.weight should have shape \(3, 8\), got \(2, 8\)"),
        ({"action_space": spaces.Box(-1, 1, (2,))}, r"log_std should have shape \(2,\), got nothing"),
        ({"observation_space": spaces.Discrete(10**9)}, "more than 1048576 numbers"),
        (
            {"policy_class": "stable_baselines3.common.policies.MultiInputActorCriticPolicy"},
            "CombinedExtractor cannot",
        ),
        ({"policy_class": "stable_baselines3.common.policies.ActorCriticCnnPolicy"}, "A CNN needs images"),
    ],
    ids=str,
)
def test_spaces_and_policies_that_do_not_fit(saved, tmp_path, data, message):
    changed = {}
    for key, value in data.items():
        module, _, name = value.rpartition(".") if isinstance(value, str) else ("", "", "")
        changed[key] = serialized(f"c{module}\n{name}\n.".encode() if name else pickle.dumps(value))
    with pytest.raises(TeacherError, match=message):
        load_teacher(edit_zip(saved, tmp_path / "edited.zip", changed))


def test_missing_and_unknown_weights(saved, tmp_path):
    for change, message in (
        (
            lambda w: {k: v for k, v in w.items() if k != "value_net.bias"},
            r"value_net.bias should have shape \(1,\), got nothing",
        ),
        (lambda w: {**w, "lstm_actor.weight": th.zeros(3)}, "contradict each other: .*lstm_actor.weight"),
        (lambda w: {**w, "mlp_extractor.shared_net.x.weight": th.zeros(3)}, "contradict each other: invalid literal.*'x'"),
    ):
        with pytest.raises(TeacherError, match=message):
            load_teacher(edit_zip(saved, tmp_path / "edited.zip", state_dict=change))


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_zips_do_not_run(saved, tmp_path, attack):
    marker = tmp_path / "ran"
    payload = serialized(ATTACKS[attack](f"touch {marker}"))
    needed = edit_zip(saved, tmp_path / "needed.zip", {"policy_kwargs": payload})
    with pytest.raises(TeacherError, match="refused, without running it"):
        load_teacher(needed)
    unneeded = edit_zip(saved, tmp_path / "unneeded.zip", dict.fromkeys(("zzz", "lr_schedule", "ep_info_buffer"), payload))
    assert_same_actions(load_teacher(unneeded, device="cpu"), PPO.load(saved, device="cpu"))
    assert not marker.exists()


def test_loading_is_quiet(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_teacher(saved)
