"""What QPDDistiller takes: teachers, environments, spaces, policies; and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize, VecTransposeImage
from toys import (
    BOX,
    DISCRETE,
    ODD_BOXES,
    QUICK,
    Anything,
    Pointer,
    Quadrant,
    assert_same_bits,
    assert_saves_and_loads,
    pointers,
    sample,
    untrained,
)

from sb3_qpd import (
    AtariVecEnv,
    EnvRecipe,
    QPDDistiller,
    QuantActorCriticCnnPolicy,
    QuantActorCriticPolicy,
    StudentArch,
    TeacherError,
    load_teacher,
)


class OwnExtractor(BaseFeaturesExtractor):
    """A user's own: no loader knows it."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 5)
        self.net = th.nn.Linear(3, 5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations / 100).sin()


class OwnPolicy(ActorCriticPolicy):
    """A user's own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, net_arch=[7], **kwargs)


@pytest.fixture(scope="module")
def cartpole_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "CartPole-v1.zip"
    untrained("CartPole-v1").save(path)
    return path


# -- teachers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("algo", [PPO, A2C, TRPO])
def test_live_teachers_of_every_family(algo, action_space, tmp_path):
    model = untrained(pointers(action_space), algo)
    student = QPDDistiller(model, **QUICK).learn(160)
    assert student._n_updates == 10
    assert student.env is model.get_env() and student.env.num_envs == 8
    assert student.teacher_name == f"{algo.__name__.lower()}"
    assert_saves_and_loads(student, tmp_path, Pointer.sample(200))


@pytest.mark.parametrize(
    "model",
    [
        lambda: untrained(Pointer(), policy_kwargs={"features_extractor_class": OwnExtractor}),
        lambda: untrained(Pointer(), policy=OwnPolicy),
        lambda: untrained(Pointer(BOX), use_sde=True),
        lambda: untrained(Pointer(BOX), use_sde=True, policy_kwargs={"squash_output": True}),
        lambda: untrained(Pointer(ODD_BOXES["two dimensions"]), use_sde=True, policy_kwargs={"squash_output": True}),
        lambda: load_teacher(untrained(Pointer())),
    ],
    ids=["extractor", "policy", "gSDE", "squashed", "squashed in two dimensions", "Teacher"],
)
def test_teachers_of_a_users_own(model):
    student = QPDDistiller(model(), **QUICK).learn(64)
    assert student._n_updates == 4
    assert_same_bits(student.policy, Pointer.sample(200))


def test_a_zip_needs_an_environment(cartpole_zip):
    with pytest.raises(ValueError, match="does not say which environment .* give env=, an id or an environment"):
        QPDDistiller(cartpole_zip)
    for path in (cartpole_zip, str(cartpole_zip), str(cartpole_zip.with_suffix(""))):
        student = QPDDistiller(path, env="CartPole-v1", n_envs=3, **QUICK).learn(96.0)
        assert student.env.num_envs == 3 and student.num_timesteps == 96 and student._n_updates == 6
        assert student.teacher_name == "ppo/CartPole-v1" and len(student.teacher_checksum) == 64


def test_a_run_folder_needs_none(cartpole_zip, tmp_path):
    folder = tmp_path / "ppo" / "CartPole-v1_1"
    (folder / "CartPole-v1").mkdir(parents=True)
    shutil.copy(cartpole_zip, folder)
    (folder / "CartPole-v1" / "args.yml").write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - env\n    - CartPole-v1\n"
    )
    (folder / "CartPole-v1" / "config.yml").write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - n_envs\n    - 8\n"
    )
    student = QPDDistiller(folder, **QUICK).learn(320)
    assert student.env.num_envs == 16 and student.env.envs[0].spec.id == "CartPole-v1"
    assert_same_bits(student.policy, np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32))


def test_a_published_folder(teachers):
    student = QPDDistiller(teachers / "trpo" / "LunarLanderContinuous-v2_1", n_envs=2, **QUICK).learn(64)
    assert student.env.envs[0].spec.id == "LunarLanderContinuous-v3" or student.env.envs[0].spec.kwargs["continuous"]
    assert student.teacher_name == "trpo/LunarLanderContinuous-v2"


def test_a_teacher_is_left_as_it_was():
    model = untrained(pointers())
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    observations = Pointer.sample(50)
    actions = model.predict(observations, deterministic=True)[0]
    QPDDistiller(model, **QUICK).learn(160)
    for name, value in model.policy.state_dict().items():
        assert th.equal(value, before[name]) and value.device.type == "cpu"
    np.testing.assert_array_equal(model.predict(observations, deterministic=True)[0], actions)
    assert all(parameter.requires_grad for parameter in model.policy.parameters())
    model.learn(128)  # it can go on


# -- environments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "n_envs"),
    [
        (lambda: "CartPole-v1", 16),
        (lambda: EnvRecipe("CartPole-v1", {"sutton_barto_reward": True}), 16),
        (lambda: gym.make("CartPole-v1"), 1),
        (lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3), 3),
        (lambda: make_vec_env("CartPole-v1", 2, vec_env_cls=SubprocVecEnv), 2),
    ],
    ids=["id", "recipe", "Env", "DummyVecEnv", "SubprocVecEnv"],
)
def test_every_kind_of_environment(env, n_envs, cartpole_zip):
    student = QPDDistiller(cartpole_zip, env(), **QUICK).learn(n_envs * 20)
    assert student.env.num_envs == n_envs and student.num_timesteps == n_envs * 20
    assert student._n_updates == n_envs * 20 // 16
    assert_same_bits(student.policy, np.random.default_rng(0).normal(size=(200, 4)))
    student.env.close()


def test_environments_to_build(cartpole_zip):
    student = QPDDistiller(cartpole_zip, "CartPole-v1", n_envs=2, vec_env="subproc", **QUICK).learn(40)
    assert isinstance(student.env, SubprocVecEnv)
    student.env.close()


@pytest.mark.parametrize("action_space", ODD_BOXES.values(), ids=ODD_BOXES)
@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("box_loss", ["huber", "squared_error", "gaussian_kl"])
def test_boxes_of_every_kind(action_space, n_envs, box_loss):
    # the environment raises where an action is outside its space
    student = QPDDistiller(untrained(pointers(action_space, n_envs)), box_loss=box_loss, gradient_steps=0.5, **QUICK)
    student.learn(40)
    assert student._n_updates == 20
    assert all(th.isfinite(parameter).all() for parameter in student.policy.parameters())
    integer = assert_same_bits(student.policy, Pointer.sample(200))
    for deterministic in (True, False):
        actions = integer.predict(Pointer.sample(200), deterministic=deterministic)[0]
        assert actions.shape == (200, *action_space.shape)
        assert np.all(actions >= action_space.low) and np.all(actions <= action_space.high)


def test_images_of_a_users_own(tmp_path):
    model = untrained(
        make_vec_env(Quadrant, 2), policy="CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}}
    )
    student = QPDDistiller(model, batch_size=32, **QUICK).learn(64)
    assert student._n_updates == 32 and isinstance(student.env, VecTransposeImage)
    images = np.stack([Quadrant().reset(seed=i)[0] for i in range(20)])
    assert_saves_and_loads(student, tmp_path, images.transpose(0, 3, 1, 2))
    # either order of the channels
    np.testing.assert_array_equal(
        student.predict(images, deterministic=True)[0], student.policy.to_integer().predict(images, deterministic=True)[0]
    )
    assert student.predict(images[0], deterministic=True)[0] == student.predict(images, deterministic=True)[0][0]


class SmallGrid(Quadrant):
    """Images below NatureCNN's 36 pixels, as MiniGrid's."""

    side = 7


@pytest.mark.parametrize("arch", ["nano", {"hidden": [9]}, {"conv": [[4, 3, 1]], "conv_hidden": [8]}])
def test_small_images_and_flat_students(arch, tmp_path):
    """Also those of a teacher with an MlpPolicy, and a zip remembers the kernels that were chosen."""
    student = QPDDistiller(untrained(make_vec_env(SmallGrid, 2)), batch_size=32, **{**QUICK, "student_arch": arch}).learn(64)
    images = np.stack([SmallGrid().reset(seed=i)[0] for i in range(20)])
    assert_saves_and_loads(student, tmp_path, images.transpose(0, 3, 1, 2))


def test_kernels_that_do_not_fit_are_refused_with_some_that_do():
    arch = {"conv": [[8, 8, 4]], "conv_hidden": [8]}
    with pytest.raises(ValueError, match=r"do not fit images of shape \(3, 7, 7\): give smaller kernels, .*nano, tiny"):
        QPDDistiller(untrained(make_vec_env(SmallGrid, 2)), **{**QUICK, "student_arch": arch})
    with pytest.raises(ValueError, match="A student of images needs a layer"):
        QPDDistiller(untrained(make_vec_env(SmallGrid, 2)), **{**QUICK, "student_arch": {}})


class OwnCnn(BaseFeaturesExtractor):
    """A user's own, for images of floats: SB3 itself takes them for vectors."""

    def __init__(self, observation_space: spaces.Box, channels: int = 2) -> None:
        super().__init__(observation_space, 4)
        self.net = th.nn.Sequential(th.nn.Conv2d(channels, 4, 3), th.nn.ReLU(), th.nn.AdaptiveAvgPool2d(1), th.nn.Flatten())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations if observations.shape[1] == 2 else observations.movedim(-1, 1))


def test_float_images_of_a_teacher_with_its_own_convolutions(tmp_path):
    space = spaces.Box(0, 1, (2, 20, 24), np.float32)
    env = make_vec_env(lambda: Anything(space, DISCRETE), 2)
    student = QPDDistiller(untrained(env, policy_kwargs={"features_extractor_class": OwnCnn}), batch_size=16, **QUICK).learn(
        32
    )
    assert student.policy.features_extractor.is_image and student.policy.to_integer().nbytes < 3_000
    assert_saves_and_loads(student, tmp_path, sample(space, 20))
    last = make_vec_env(lambda: Anything(spaces.Box(0, 1, (20, 24, 2), np.float32), DISCRETE), 2)
    with pytest.warns(UserWarning, match="float images with the channels last.*Put the channels first"):
        flat = QPDDistiller(untrained(last, policy_kwargs={"features_extractor_class": OwnCnn}), **QUICK)
    assert not flat.policy.features_extractor.is_image


class Silent(DummyVecEnv):
    """As bridges to game engines are: what SB3's learn() does not need is missing."""

    def seed(self) -> Any:  # type: ignore[override]
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        raise NotImplementedError

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        if attr_name == "render_mode":  # VecEnv's constructor asks
            return [None] * self.num_envs
        raise AttributeError(attr_name)


def test_environments_that_have_only_what_learning_needs():
    env = Silent([Pointer] * 2)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, device="cpu").learn(32)
    with pytest.warns(UserWarning, match="Silent takes no seed"):
        assert QPDDistiller(model, env, **QUICK).learn(40).num_timesteps == 40


def test_frames_are_stored_once():
    env = AtariVecEnv("PongNoFrameskip-v4", 2, seed=0)
    model = untrained(env, policy="CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}})
    student = QPDDistiller(model, batch_size=16, buffer_size=100, **QUICK).learn(16)
    assert len(student._buffer._store._frames) < 200  # of 400 that the stacks have
    newest = student._buffer.newest(2).observations.numpy()
    targets = student.teacher(newest)
    np.testing.assert_allclose(targets.actor, student._buffer.newest(2).targets.actor, atol=1e-5)
    assert_same_bits(student.policy, student._buffer.newest(16).observations.numpy())
    env.close()


def test_stacked_color_images_are_stored_as_they_are():
    env = VecFrameStack(make_vec_env(Quadrant, 2), 2)
    model = untrained(env, policy="CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}})
    student = QPDDistiller(model, batch_size=16, buffer_size=40, **QUICK).learn(24)
    assert student.policy.observation_space.shape == (6, 36, 36)
    assert student._buffer.newest(24).observations.shape == (24, 6, 36, 36)


def test_stacked_frames_are_stored_once():
    env = VecFrameStack(make_vec_env(lambda: gym.wrappers.GrayscaleObservation(Quadrant(), keep_dim=True), 2), 3)
    model = untrained(env, policy="CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}})
    student = QPDDistiller(model, batch_size=16, buffer_size=40, **QUICK).learn(60)
    assert len(student._buffer._store._frames) < 90  # of 120 that the stacks have
    samples = student._buffer.sample(40)
    np.testing.assert_allclose(student.teacher(samples.observations.numpy()).actor, samples.targets.actor, atol=1e-5)


def test_set_env(cartpole_zip):
    student = QPDDistiller(cartpole_zip, "CartPole-v1", n_envs=2, **QUICK).learn(20)
    before = student.env
    student.set_env("CartPole-v1")
    assert student.env is not before and student.env.num_envs == 2
    student.learn(20, reset_num_timesteps=False)
    assert student.num_timesteps == 40
    with pytest.raises(ValueError, match="[Ss]paces do not match"):
        student.set_env(pointers(n_envs=2))


# -- normalization ----------------------------------------------------------------------------------------------------


def normalized(n_steps: int = 50) -> VecNormalize:
    env = VecNormalize(pointers(n_envs=4))
    env.reset()
    for _ in range(n_steps):
        env.step(np.zeros(4, int))
    return env


def test_normalization_comes_along_with_a_live_model():
    env = normalized()
    model = untrained(env)
    student = QPDDistiller(model, **QUICK).learn(64)
    assert student.get_vec_normalize_env() is None and not isinstance(student.env, VecNormalize)
    assert model.get_env() is env  # its own stays whole
    raw = Pointer.sample(100)
    np.testing.assert_array_equal(
        student.teacher.predict(raw, deterministic=True)[0], model.predict(env.normalize_obs(raw), deterministic=True)[0]
    )
    grid = student.policy.features_extractor.input_grid
    np.testing.assert_array_equal(grid.mean, env.obs_rms.mean)
    np.testing.assert_allclose(grid.std, np.sqrt(env.obs_rms.var + env.epsilon))
    assert student._buffer.newest(50).observations[:, 1].mean() < -150  # raw


def test_normalization_of_the_environment(tmp_path):
    env = normalized()
    model = untrained(pointers(n_envs=4))
    model.save(tmp_path / "teacher")
    student = QPDDistiller(tmp_path / "teacher.zip", env, **QUICK)
    assert student.env is env.venv
    np.testing.assert_array_equal(student.teacher.normalization.mean, env.obs_rms.mean)
    assert QPDDistiller(student.teacher, env, **QUICK).env is env.venv  # the same statistics again
    other = normalized(20)
    with pytest.raises(TeacherError, match="other statistics than the teacher's") as error:
        QPDDistiller(student.teacher, other, **QUICK)
    assert str(error.value).count("ObsNormalization: mean [") == 2  # the teacher's and the environment's
    with pytest.raises(TeacherError, match="other statistics than the teacher's"):
        student.set_env(other)


def test_normalization_from_observations():
    student = QPDDistiller(untrained(pointers()), **QUICK).learn(2_000)
    grid = student.policy.features_extractor.input_grid
    assert np.all(np.abs(grid.mean.numpy() - Pointer.offset) < 0.3 * Pointer.scale)
    np.testing.assert_allclose(grid.std, Pointer.scale, rtol=0.2)
    values = student._buffer.newest(2_000).targets.value
    assert float(student.policy.value_net.mean) == pytest.approx(float(values.mean()), abs=0.3 * float(values.std()))
    assert float(student.policy.value_net.std) == pytest.approx(float(values.std()), rel=0.3)


# -- the check of the teacher -----------------------------------------------------------------------------------------


def test_a_teacher_that_is_no_better_than_chance_is_told():
    student = QPDDistiller(untrained(pointers()), **{**QUICK, "check_teacher": True})
    with pytest.warns(
        UserWarning, match="not clearly above a random policy.*vecnormalize.pkl is missing.*check_teacher=False"
    ):
        student.learn(32)
    assert student.num_timesteps == 32


def test_the_teacher_is_checked_where_it_will_be_copied(teachers):
    folder, arguments = teachers / "ppo" / "CartPole-v1_1", {**QUICK, "check_teacher": True}
    QPDDistiller(folder, n_envs=2, **arguments).learn(32)  # no warning
    backwards = gym.wrappers.TransformObservation(gym.make("CartPole-v1"), lambda observation: -observation, None)
    with pytest.warns(UserWarning, match="not clearly above a random policy"):
        QPDDistiller(folder, backwards, **arguments).learn(32)


# -- policies ---------------------------------------------------------------------------------------------------------


class OwnStudent(QuantActorCriticPolicy):
    """A user's own."""


@pytest.mark.parametrize("policy", [None, "MlpPolicy", QuantActorCriticPolicy, OwnStudent])
def test_policies(policy):
    student = QPDDistiller(untrained(pointers(n_envs=2)), policy=policy, **QUICK).learn(32)
    assert type(student.policy) is (OwnStudent if policy is OwnStudent else QuantActorCriticPolicy)


def test_policies_that_do_not_fit():
    model = untrained(pointers(n_envs=2))
    with pytest.raises(ValueError, match="CnnPolicy needs uint8 images .* use 'MlpPolicy'"):
        QPDDistiller(model, policy="CnnPolicy")
    with pytest.raises(ValueError, match="MultiInputPolicy needs Dict observations, .* use 'MlpPolicy'"):
        QPDDistiller(model, policy="MultiInputPolicy")
    with pytest.raises(ValueError, match="Unknown policy 'LstmPolicy'. Known: MlpPolicy, CnnPolicy, MultiInputPolicy"):
        QPDDistiller(model, policy="LstmPolicy")
    with pytest.raises(TypeError, match="must be a QuantActorCriticPolicy, got ActorCriticPolicy"):
        QPDDistiller(model, policy=ActorCriticPolicy)
    images = untrained(make_vec_env(Quadrant, 1), policy="CnnPolicy")
    assert type(QPDDistiller(images, policy="CnnPolicy", **QUICK).policy) is QuantActorCriticCnnPolicy
    assert type(QPDDistiller(images, **QUICK).policy) is QuantActorCriticPolicy


@pytest.mark.parametrize(
    ("student_arch", "hidden"),
    [("tiny", (16, 16)), (StudentArch(hidden=(5,)), (5,)), ({"hidden": [4, 6, 5]}, (4, 6, 5)), (StudentArch(), ())],
    ids=["name", "StudentArch", "dict", "linear"],
)
def test_sizes(student_arch, hidden, tmp_path):
    student = QPDDistiller(untrained(pointers()), **{**QUICK, "student_arch": student_arch}).learn(160)
    assert student.policy.arch.hidden == hidden
    assert_saves_and_loads(student, tmp_path, Pointer.sample(100))


def test_raw_values_as_a_yaml_file_has_them():
    student = QPDDistiller(
        untrained(pointers()),
        **QUICK,
        weight_bits=[8, 4, 8],
        activation_bits=4,
        buffer_size=1e3,
        batch_size=64.0,
        learning_starts=1e2,
        gradient_steps=1,
        learning_rate=1e-3,
        policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.0}},
    ).learn(1e2)
    assert student._n_updates == 104
    assert [layer.weight_bits for layer in student.policy.to_integer().layers] == [8, 4, 8]


class Indifferent(QPDDistiller):
    """Its loss says nothing."""

    def _loss(self, samples):
        loss, parts = super()._loss(samples)
        return 0 * loss, parts


def test_a_subclass_may_have_another_loss():
    student = Indifferent(untrained(pointers()), **QUICK)
    before = student.policy.action_net.weight.clone()
    student.learn(400)
    assert student._n_updates > 0 and th.equal(student.policy.action_net.weight, before)


class Stop(BaseCallback):
    """Ends learning early, after a look at the student in other bits."""

    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.wanted = n_calls

    def _on_step(self) -> bool:
        if self.model._is_fitted:
            self.model.post_training_quantize(4, 4)
        return self.n_calls < self.wanted


def test_a_look_changes_nothing():
    one, other = (QPDDistiller(untrained(pointers()), **QUICK) for _ in range(2))
    one.learn(400)
    other.learn(400, callback=Stop(10**9))
    for (name, a), b in zip(one.policy.state_dict().items(), other.policy.state_dict().values(), strict=True):
        assert th.equal(a, b), name


def test_stopped_by_a_callback_it_knows_where_the_environments_are():
    student = QPDDistiller(untrained(pointers()), **QUICK)
    student.learn(400, callback=Stop(7))
    env = student.env
    while hasattr(env, "venv"):
        env = env.venv
    inside = [one.unwrapped for one in env.envs]
    np.testing.assert_array_equal(student._last_obs, np.stack([one.offset + one.scale * one.z for one in inside]))
