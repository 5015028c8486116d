"""Live policies that are not quite SB3's: their labels are what they play, or they are refused."""

import io
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from toys import Anything, Strict

from sb3_qpd import ObsNormalization, TeacherError, load_teacher
from sb3_qpd.teachers.check import check_teacher
from sb3_qpd.teachers.teacher import Teacher

VECTOR = spaces.Box(-3, 3, (4,), np.float32)


class Careful(ActorCriticPolicy):
    """Never takes action 0 where the first number is negative."""

    def get_distribution(self, obs):
        logits = super().get_distribution(obs).distribution.logits.clone()
        logits[:, 0] = th.where(obs[:, 0] < 0, -1e8, logits[:, 0])
        return self.action_dist.proba_distribution(action_logits=logits)

    def _predict(self, observation, deterministic=False):
        return self.get_distribution(observation).get_actions(deterministic=deterministic)


class Halved(ActorCriticPolicy):
    """Plays half of its mean."""

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(0.5 * self.action_net(latent_pi), self.log_std)


class Squashed(ActorCriticPolicy):
    """Puts a tanh behind the Gaussian."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, squash_output=False, **kwargs)
        self.action_dist = SquashedDiagGaussianDistribution(self.action_space.shape[0])
        self._squash_output = True

    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(self.action_net(latent_pi), self.log_std)


class Contrary(ActorCriticPolicy):
    """Plays another action than its distribution says."""

    def _predict(self, observation, deterministic=False):
        return (super()._predict(observation, deterministic) + 1) % 3


class ContraryQ(DQNPolicy):
    def _predict(self, observation, deterministic=True):
        return 1 - super()._predict(observation, deterministic)


class Picky(MaskableActorCriticPolicy):
    def get_distribution(self, obs, action_masks=None):
        distribution = super().get_distribution(obs, action_masks)
        distribution.apply_masking(np.tile([False, True, True], (len(obs), 1)))
        return distribution


class OtherNet(th.nn.Module):
    latent_dim_pi = latent_dim_vf = 8

    def __init__(self, n: int) -> None:
        super().__init__()
        self.actor, self.critic = (th.nn.Sequential(th.nn.Linear(n, 8), th.nn.Tanh()) for _ in range(2))

    def forward(self, x):
        return self.actor(x), self.critic(x)

    def forward_actor(self, x):
        return self.actor(x)

    def forward_critic(self, x):
        return self.critic(x)


class OtherLayers(ActorCriticPolicy):
    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = OtherNet(self.features_dim)


def observations(n: int = 500) -> np.ndarray:
    return np.random.default_rng(1).uniform(-3, 3, (n, 4)).astype(np.float32)


def loud(model):
    """The same model with an actor that is not close to zero."""
    with th.no_grad():
        model.policy.action_net.weight.mul_(50)
    return model


@pytest.mark.parametrize("algo", [PPO, A2C])
def test_an_own_distribution_is_what_is_taught(algo):
    model = loud(algo(Careful, Anything(VECTOR, spaces.Discrete(3)), device="cpu", seed=0))
    teacher, x = load_teacher(model, device="cpu"), observations()
    labels = teacher(x)
    np.testing.assert_array_equal(labels.actor.argmax(1).numpy(), model.predict(x, deterministic=True)[0])
    assert (labels.actor[x[:, 0] < 0, 0] < -1e7).all()
    with th.no_grad():
        th.testing.assert_close(labels.value, model.policy.predict_values(th.as_tensor(x)).flatten())


def test_where_layers_and_actions_differ_the_own_distribution_is_asked():
    """SB3's get_distribution asks the base class for features, so that this method changes nothing that is played."""
    model = loud(PPO("MlpPolicy", Anything(VECTOR, spaces.Discrete(3)), device="cpu", seed=0))
    model.policy.extract_features = lambda x, *args: -x
    teacher, x = load_teacher(model, device="cpu"), observations()
    assert teacher.asks_policy
    np.testing.assert_array_equal(teacher(x).actor.argmax(1).numpy(), model.predict(x, deterministic=True)[0])


def test_an_own_distribution_with_masks():
    model = MaskablePPO(Picky, Strict(VECTOR, spaces.Discrete(3)), device="cpu", seed=0)
    labels = load_teacher(model, device="cpu")(observations())
    assert (labels.actor.argmax(1) != 0).all()


@pytest.mark.parametrize("policy", [Halved, Squashed])
def test_an_own_gaussian(policy):
    box = spaces.Box(np.array([-1, 0], np.float32), np.array([3, 0.5], np.float32))
    model = loud(PPO(policy, Anything(VECTOR, box), device="cpu", seed=0))
    labels, x = load_teacher(model, device="cpu")(observations()), observations()
    np.testing.assert_allclose(
        np.clip(labels.actor.numpy(), box.low, box.high), model.predict(x, deterministic=True)[0], atol=1e-5
    )
    assert labels.log_std.shape == (500, 2)


@pytest.mark.parametrize("policy, algo, n", [(Contrary, PPO, 3), (ContraryQ, DQN, 2)])
def test_other_actions_than_the_labels_are_refused(policy, algo, n):
    options = {"buffer_size": 10} if algo is DQN else {}
    model = algo(policy, Anything(VECTOR, spaces.Discrete(n)), device="cpu", seed=0, **options)
    with pytest.raises(TeacherError, match=f"{policy.__name__} plays other actions than its distribution says, in .* %"):
        load_teacher(model, device="cpu")


class ContraryAlgorithm(PPO):
    """Plays another action than its policy."""

    def predict(self, *args, **kwargs):
        action, state = super().predict(*args, **kwargs)
        return (action + 1) % 3, state


@pytest.mark.parametrize("method", ["predict", "_predict"])
def test_a_method_that_was_set_on_the_policy_is_seen(method):
    model = loud(PPO("MlpPolicy", Anything(VECTOR, spaces.Discrete(3)), device="cpu", seed=0))
    own = {
        "predict": lambda x, *args, **kwargs: (np.zeros(len(x), int), None),
        "_predict": lambda x, deterministic=False: th.zeros(len(x), dtype=th.long),
    }
    setattr(model.policy, method, own[method])
    with pytest.raises(TeacherError, match="ActorCriticPolicy plays other actions than its distribution says"):
        load_teacher(model, device="cpu")


def test_the_predict_of_an_own_algorithm_is_compared():
    model = loud(ContraryAlgorithm("MlpPolicy", Anything(VECTOR, spaces.Discrete(3)), device="cpu", seed=0))
    with pytest.raises(TeacherError, match="ContraryAlgorithm plays other actions than its distribution says, in 100 %"):
        load_teacher(model, device="cpu")


class OnlyThere(ActorCriticPolicy):
    """Contradicts its distribution on observations that no random one resembles."""

    def _predict(self, observation, deterministic=False):
        action = super()._predict(observation, deterministic)
        return th.where((observation == 0.25).all(1), 2 - action, action)


class Quarter(gym.Env):
    observation_space, action_space = VECTOR, spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        return np.full(4, 0.25, np.float32), {}

    def step(self, action):
        return np.full(4, 0.25, np.float32), 0.0, True, False, {}


def test_labels_are_compared_on_observations_of_the_environment_too():
    model = PPO(OnlyThere, Quarter(), device="cpu", seed=0)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([9.0, 0, 0]))
    teacher = load_teacher(model, device="cpu")
    with pytest.raises(TeacherError, match="OnlyThere plays other actions .* in 100 % of"):
        check_teacher(teacher, teacher.vec_env, deterministic=True, seed=0)


def test_own_layers_are_counted():
    model = PPO(OtherLayers, "CartPole-v1", device="cpu", seed=0)
    teacher = load_teacher(model, device="cpu")
    assert teacher.n_parameters == (4 * 8 + 8) + (8 * 2 + 2) and teacher.macs == 4 * 8 + 8 * 2
    usual = load_teacher(PPO("MlpPolicy", "CartPole-v1", device="cpu"), device="cpu")
    assert usual.n_parameters == (4 * 64 + 64) + (64 * 64 + 64) + (64 * 2 + 2)


def test_teachers_print_in_a_line():
    teacher = load_teacher(PPO("MlpPolicy", "CartPole-v1", device="cpu"), device="cpu")
    assert str(teacher) == "<Teacher ppo/CartPole-v1: ActorCriticPolicy, without normalization, on cpu>"
    teacher.normalization = ObsNormalization(np.zeros(300), np.ones(300))
    assert "with normalization" in str(teacher)
    assert (
        str(teacher.normalization)
        == "<ObsNormalization: mean [0. 0. 0. ... 0. 0. 0.], variance [1. 1. 1. ... 1. 1. 1.], clipped at 10>"
    )


def test_a_live_policy():
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10, device="cpu")
    teacher = load_teacher(model.policy, env="Pendulum-v1", device="cpu")
    assert teacher.algo == "sac" and teacher.recipe.env_id == "Pendulum-v1"


def assert_same(teacher: Teacher, model) -> None:
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    np.testing.assert_array_equal(teacher.predict(x, deterministic=True)[0], model.predict(x, deterministic=True)[0])
    np.testing.assert_array_equal(teacher(x).actor.argmax(1).numpy(), model.predict(x, deterministic=True)[0])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_compiled_checkpoints(tmp_path: Path, prefix: str):
    model = loud(PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0))
    model.save(tmp_path / "model.zip")
    weights = model.policy.state_dict()
    for name, key in (("whole", lambda k: prefix + k), ("part", lambda k: k.replace("policy_net.", f"policy_net.{prefix}"))):
        with zipfile.ZipFile(tmp_path / "model.zip") as source, zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as target:
            for member in source.namelist():
                content = source.read(member)
                if member == "policy.pth":
                    buffer = io.BytesIO()
                    th.save({key(one): value for one, value in weights.items()}, buffer)
                    content = buffer.getvalue()
                target.writestr(member, content)
        assert_same(load_teacher(tmp_path / f"{name}.zip", device="cpu"), model)


def test_compiled_models():
    model = loud(PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0))
    plain = load_teacher(model, device="cpu")
    model.policy.mlp_extractor.policy_net = th.compile(model.policy.mlp_extractor.policy_net)
    inner = load_teacher(model, device="cpu")
    model.policy = th.compile(model.policy)
    whole = load_teacher(model, device="cpu")
    assert not any("_orig_mod" in key for teacher in (inner, whole) for key in teacher.policy.state_dict())
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    for teacher in (inner, whole):
        th.testing.assert_close(teacher(x).actor, plain(x).actor)
