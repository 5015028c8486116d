"""Every family of teachers: freshly trained, read from its zip, distilled, in integers, saved and loaded again."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from devices import needs_gpu
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from teacher_files import edit_zip, serialized
from toys import BOX, DISCRETE, ODD_BOXES, QUICK, Pointer, Quadrant, assert_saves_and_loads, pointers

from sb3_qpd import QPDDistiller, TeacherError, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.teachers.check import check_teacher
from sb3_qpd.teachers.families import TEACHERS, ARSTeacher, DeterministicTeacher, QValueTeacher, SquashedGaussianTeacher
from sb3_qpd.teachers.policy_builder import BLUEPRINTS
from sb3_qpd.teachers.teacher import TeacherOutput

SMALL = {"net_arch": [16, 8]}
OFF_POLICY = {"learning_starts": 64, "batch_size": 32, "buffer_size": 500, "train_freq": 8}
ON_POLICY = {"n_steps": 64}


def train(algo: type[BaseAlgorithm], action_space: spaces.Space = DISCRETE, policy: str = "MlpPolicy", **kwargs: Any) -> Any:
    """A few hundred steps: weights that are no longer those of the initialization."""
    settings: dict[str, Any] = {"n_delta": 2, "n_top": 1} if algo is ARS else ON_POLICY
    if algo in (CrossQ, DDPG, DQN, QRDQN, SAC, TD3, TQC):
        settings = OFF_POLICY
    env = Quadrant() if policy == "CnnPolicy" else Pointer(action_space)
    kwargs = {"policy_kwargs": SMALL, **kwargs}
    kwargs["policy_kwargs"] = dict(kwargs["policy_kwargs"])  # SB3 adds to it
    model: Any = algo(policy, env, seed=0, device="cpu", **settings, **kwargs)  # type: ignore[call-arg]
    return model.learn(200, **({"use_masking": False} if algo is MaskablePPO else {}))


CNN = {"features_extractor_kwargs": {"features_dim": 16}}
MODELS = {
    **{f"{algo.__name__} discrete": lambda algo=algo: train(algo) for algo in (A2C, PPO, TRPO, MaskablePPO, DQN, QRDQN, ARS)},
    **{
        f"{algo.__name__} box": lambda algo=algo: train(algo, BOX)
        for algo in (A2C, PPO, TRPO, SAC, TQC, CrossQ, TD3, DDPG, ARS)
    },
    "SAC gSDE": lambda: train(SAC, BOX, use_sde=True, policy_kwargs={**SMALL, "use_expln": True}),
    "TQC gSDE without clipping": lambda: train(
        TQC, BOX, use_sde=True, policy_kwargs={"net_arch": {"pi": [8], "qf": [6]}, "clip_mean": 0.0, "n_quantiles": 5}
    ),
    "CrossQ gSDE": lambda: train(CrossQ, BOX, use_sde=True),
    "CrossQ without batch norm": lambda: train(
        CrossQ, BOX, policy_kwargs={"net_arch": {"pi": [], "qf": [8]}, "batch_norm": False}
    ),
    "TD3 with three critics": lambda: train(TD3, BOX, policy_kwargs={**SMALL, "n_critics": 3, "activation_fn": th.nn.Tanh}),
    "SAC in two dimensions": lambda: train(SAC, ODD_BOXES["two dimensions"]),
    "TD3 unequal bounds": lambda: train(TD3, ODD_BOXES["unequal bounds"]),
    "linear ARS discrete": lambda: train(ARS, policy="LinearPolicy", policy_kwargs={}),
    "linear ARS box": lambda: train(ARS, BOX, "LinearPolicy", policy_kwargs={"with_bias": True, "squash_output": True}),
    "unsquashed ARS": lambda: train(ARS, BOX, policy_kwargs={"net_arch": [8], "squash_output": False}),
    "DQN default network": lambda: train(DQN, policy_kwargs={}),
    "DQN images": lambda: train(DQN, policy="CnnPolicy", policy_kwargs=CNN),
    "QRDQN images": lambda: train(QRDQN, policy="CnnPolicy", policy_kwargs={**CNN, "n_quantiles": 4, "net_arch": [8]}),
}


pytestmark = pytest.mark.filterwarnings("ignore:.*has no action_masks", "ignore:You have specified a mini-batch")


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory) -> tuple[Any, Path]:
    """A model and the zip that it saved."""
    model = MODELS[request.param]()
    path = tmp_path_factory.mktemp("models") / "model.zip"
    model.save(path)
    return model, path


def observations_of(model: Any, n: int = 200) -> np.ndarray:
    space = model.observation_space
    if space.dtype == np.uint8:
        return np.random.default_rng(0).integers(0, 256, (n, *space.shape), dtype=np.uint8)
    return Pointer.sample(n)


@th.no_grad()
def value_of(model: Any, observations: np.ndarray) -> th.Tensor | None:
    """In SB3's own words."""
    obs = model.policy.obs_to_tensor(observations)[0]
    model.policy.set_training_mode(False)
    if isinstance(model, DQN):
        return model.q_net(obs).max(1).values
    if isinstance(model, QRDQN):
        return model.quantile_net(obs).mean(1).max(1).values
    if isinstance(model, ARS):
        return None
    if hasattr(model.policy, "predict_values"):
        return model.policy.predict_values(obs).flatten()
    action = model.actor(obs, deterministic=True) if isinstance(model, SAC | TQC | CrossQ) else model.actor(obs)
    q_values = model.critic(obs, action)
    if isinstance(model, TQC):
        return q_values.mean(2).min(1).values
    return th.cat(q_values, 1).min(1).values


def test_acts_and_labels_as_its_model(pair):
    model, path = pair
    observations = observations_of(model)
    expected, _ = model.predict(observations, deterministic=True)
    for source in (path, model):
        teacher = load_teacher(source, device="cpu")
        assert teacher.algo == type(model).__name__.lower() and type(teacher) is TEACHERS[teacher.algo]
        np.testing.assert_array_equal(teacher.predict(observations, deterministic=True)[0], expected)
        labels = teacher(observations)
        if isinstance(teacher.action_space, spaces.Box):
            low, high = teacher.action_space.low, teacher.action_space.high
            mean = np.clip(labels.actor.numpy().reshape(expected.shape), low, high)
            np.testing.assert_allclose(mean, expected, atol=1e-5 * (high - low).max())
            assert (labels.log_std is None) == isinstance(teacher, DeterministicTeacher)
        else:
            np.testing.assert_array_equal(labels.actor.argmax(1).numpy(), expected)
        value = value_of(model, observations)
        if value is None:
            assert labels.value is None
        else:  # the teacher's images are channels-last
            th.testing.assert_close(labels.value, value, rtol=1e-5 if observations.ndim == 4 else 0, atol=0)
        sampled = teacher.sample(labels).reshape(expected.shape)
        assert all(teacher.action_space.contains(action) for action in sampled.astype(expected.dtype))
        assert teacher.macs > 0 and teacher.nbytes == 4 * teacher.n_parameters


def test_labels_where_its_network_is(pair, monkeypatch):
    """Noise of gSDE too, which is no parameter; torch's own look at distributions would ask for numbers."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", False)
    model, path = pair
    teacher = load_teacher(path, device="cpu").to("meta")
    assert all(one.is_meta for one in teacher(observations_of(model)) if one is not None)
    if teacher.use_sde:
        assert getattr(teacher.policy, "actor", teacher.policy).action_dist.exploration_mat.is_meta


@needs_gpu
def test_labels_on_a_gpu_are_those_of_the_cpu(pair, monkeypatch):
    model, path = pair
    observations, teacher = observations_of(model), load_teacher(path, device="cpu")
    expected = teacher(observations)
    monkeypatch.setattr(th.backends.cudnn, "allow_tf32", False)
    labels = teacher.to("cuda")(observations)
    for name, other in expected._asdict().items():
        one = getattr(labels, name)
        assert (one is None) == (other is None)
        if one is not None:  # 1 - tanh(mean)^2, whose logarithm a deviation has, is coarse where the action is at its bound
            th.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=0.2 if name == "log_std" else 1e-3)
    actions = [teacher.sample(labels), *(teacher.predict(observations, deterministic=one)[0] for one in (False, True))]
    assert all(len(one) == len(observations) for one in actions)


@pytest.mark.slow
def test_is_distilled_converted_saved_and_loaded(pair, tmp_path):
    model, path = pair
    teacher = load_teacher(path, env=model.get_env(), device="cpu")
    student = QPDDistiller(teacher, **QUICK).learn(80)
    assert student._n_updates > 0 and student.teacher_name == f"{teacher.algo}/model"
    observations = observations_of(model)
    loaded = assert_saves_and_loads(student, tmp_path, observations)
    assert loaded._teacher_temperature == student._teacher_temperature
    assert isinstance(student.teacher, DeterministicTeacher) or student._teacher_temperature == 1


def test_whatever_has_an_adapter_can_be_read_from_a_file():
    policies = [policy for blueprint in BLUEPRINTS.values() for policy in blueprint.policies.values()]
    for adapter in TEACHERS.values():
        assert any(issubclass(policy, adapter.policies) for policy in policies)
    for policy in policies:
        assert any(issubclass(policy, adapter.policies) for adapter in TEACHERS.values())


# --- teachers without a distribution ---
@pytest.fixture(scope="module")
def dqn() -> QValueTeacher:
    return load_teacher(train(DQN), device="cpu")  # type: ignore[return-value]


@pytest.fixture(scope="module")
def td3() -> DeterministicTeacher:
    return load_teacher(train(TD3, BOX), device="cpu")  # type: ignore[return-value]


def test_temperature_is_a_share_of_how_far_actions_are_apart(dqn):
    targets = TeacherOutput(th.tensor([[1.0, 3.0], [0.0, 10.0]]))
    assert dqn.temperature_of(targets) == pytest.approx(0.1 * 3)
    assert dqn.temperature_of(TeacherOutput(1000 * targets.actor + 7)) == pytest.approx(0.1 * 3000)
    assert dqn.temperature_of(TeacherOutput(th.ones(3, 2))) > 0  # all actions are the same: anything but zero
    colder = QValueTeacher(dqn.policy, temperature=0.01)
    assert colder.temperature_of(targets) == pytest.approx(0.03)


def test_what_a_student_learns_does_not_depend_on_the_unit_of_the_rewards():
    states = []
    for unit in (1.0, 1024.0):
        model = train(DQN)
        with th.no_grad():
            for parameter in model.q_net.q_net[-1].parameters():
                parameter *= unit
        student = QPDDistiller(load_teacher(model, env=pointers(), device="cpu"), critic_coef=0, **QUICK).learn(160)
        states.append(student.policy.action_net.weight.detach())
    th.testing.assert_close(states[0], states[1])


def test_exploration_of_discrete_actions(dqn):
    scores = th.zeros(20_000, 4).index_fill_(1, th.tensor([2]), 1.0)
    th.manual_seed(0)
    actions = dqn.sample(TeacherOutput(scores))
    shares = np.bincount(actions, minlength=4) / len(actions)
    np.testing.assert_allclose(shares, [0.025, 0.025, 0.925, 0.025], atol=0.01)
    never = QValueTeacher(dqn.policy, exploration=0.0)
    assert (never.sample(TeacherOutput(scores)) == 2).all()


def test_exploration_of_box_actions(td3):
    middle = th.from_numpy((BOX.low + BOX.high) / 2).expand(20_000, 2)
    th.manual_seed(0)
    actions = td3.sample(TeacherOutput(middle))
    np.testing.assert_allclose(actions.std(0), 0.1 * (BOX.high - BOX.low) / 2, rtol=0.05)
    beyond = td3.sample(TeacherOutput(middle + 100))
    assert (beyond == BOX.high).all()


def test_a_student_explores_as_its_deterministic_teacher(td3):
    student = QPDDistiller(td3, env=pointers(BOX), **QUICK).learn(160)
    th.testing.assert_close(student.policy.log_std.exp(), 0.1 * student.policy.action_unit)


def test_the_value_head_of_a_student_of_ars_is_not_trained():
    teacher = load_teacher(train(ARS, BOX), device="cpu")
    student = QPDDistiller(teacher, env=pointers(BOX), **QUICK)
    before = student.policy.value_net.weight.clone()
    student.learn(160)
    assert isinstance(teacher, ARSTeacher) and student._n_updates > 0
    assert th.equal(student.policy.value_net.weight, before)


def test_settings_of_exploration_that_make_no_sense(dqn):
    with pytest.raises(ValueError, match="exploration is a share between 0 and 1, got 2"):
        QValueTeacher(dqn.policy, exploration=2)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        QValueTeacher(dqn.policy, temperature=0)


def test_a_policy_of_another_family(dqn):
    with pytest.raises(TypeError, match="A SquashedGaussianTeacher needs a policy of the kind SACPolicy or .*, got DQNPolicy"):
        SquashedGaussianTeacher(dqn.policy)
    space = spaces.Box(-1, 1, (3,))
    with pytest.raises(TypeError, match="A QValueTeacher needs .* DQNPolicy or QRDQNPolicy, got ActorCriticPolicy"):
        QValueTeacher(ActorCriticPolicy(space, DISCRETE, lambda _: 0.0))


def test_check_of_the_teacher(dqn, td3):
    for teacher, space in ((dqn, DISCRETE), (td3, BOX)):
        check = check_teacher(teacher, pointers(space), deterministic=True, seed=0)
        assert check.teacher.n_complete == check.random.n_complete >= 8


# --- the squashed Gaussian's deviation ---
def test_deviation_in_environment_units():
    model = train(SAC, ODD_BOXES["unequal bounds"])
    with th.no_grad():  # narrow enough for the first order to be exact
        model.actor.log_std.weight.zero_()
        model.actor.log_std.bias.fill_(-5)
    observation = Pointer.sample(1)
    labels = load_teacher(model, device="cpu")(observation)
    th.manual_seed(0)
    obs = model.policy.obs_to_tensor(np.repeat(observation, 50_000, 0))[0]
    with th.no_grad():
        actions = model.policy.unscale_action(model.actor(obs).numpy())
    np.testing.assert_allclose(labels.log_std.exp().numpy()[0], actions.std(0), rtol=0.02, atol=1e-5)
    np.testing.assert_allclose(labels.actor.numpy()[0], actions.mean(0), rtol=1e-3)


# --- files ---
@pytest.mark.parametrize(
    "algo, kwargs, message",
    [
        (DQN, {"net_arch": [10**5, 10**5]}, r"q_net.q_net.0.weight should have shape \(100000, 3\), got \(16, 3\)"),
        (DQN, {**SMALL, "n_quantiles": 5}, "policy_kwargs names 'n_quantiles', known are activation_fn, "),
        (DQN, {**SMALL, "use_sde": True}, "policy_kwargs names 'use_sde'"),
        (DQN, {"net_arch": {"pi": [16]}}, "Expected layer sizes as a list, got a dict"),
        (QRDQN, {**SMALL, "n_quantiles": 10**6}, r"quantile_net.4.weight should have shape \(3000000, 8\)"),
        (SAC, {**SMALL, "n_critics": 10**6}, "describe 2000002 layers, the file has 32 weights"),
        (SAC, {**SMALL, "n_critics": 0}, "n_critics in policy_kwargs: Expected a positive integer"),
        (SAC, {**SMALL, "use_sde": True}, r"actor.log_std should have shape \(8, 2\), got nothing"),
        (SAC, {"net_arch": {"pi": [16, 8], "vf": [16, 8]}}, "Expected the layer sizes of pi and qf as lists"),
        (SAC, {**SMALL, "clip_mean": "2"}, "clip_mean in policy_kwargs: Expected a number"),
        (CrossQ, {**SMALL, "batch_norm": False}, "actor.latent_pi.0.weight should have shape .*"),
        (TD3, {"net_arch": [16]}, r"actor.mu.2.weight should have shape \(2, 16\), got \(8, 16\)"),
        (ARS, {"net_arch": [16, 8, 10**5]}, "action_net.4.weight should have shape"),
        (ARS, {**SMALL, "with_bias": False}, "contradict each other: .*action_net.0.bias"),
        (ARS, {**SMALL, "ortho_init": True}, "policy_kwargs names 'ortho_init', known are activation_fn, net_arch, "),
    ],
    ids=str,
)
def test_policy_kwargs_that_do_not_fit(tmp_path, algo, kwargs, message):
    train(algo, DISCRETE if algo in (DQN, QRDQN) else BOX).save(tmp_path / "model.zip")
    path = edit_zip(tmp_path / "model.zip", tmp_path / "edited.zip", {"policy_kwargs": serialized(pickle.dumps(kwargs))})
    with pytest.raises(TeacherError, match=message):
        load_teacher(path)


def test_weights_of_linear_ars_as_they_were_named(tmp_path):
    model = train(ARS, BOX, "LinearPolicy", policy_kwargs={})
    model.save(tmp_path / "new.zip")
    old = edit_zip(
        tmp_path / "new.zip", tmp_path / "old.zip", state_dict=lambda w: {"action_net.weight": w["action_net.0.weight"]}
    )
    observations = Pointer.sample(50)
    expected, _ = model.predict(observations)
    np.testing.assert_array_equal(load_teacher(old, device="cpu").predict(observations)[0], expected)


# --- the command line ---
@pytest.mark.parametrize("algo, env", [(DQN, "CartPole-v1"), (SAC, "Pendulum-v1")])
def test_compress(tmp_path, capsys, algo, env):
    algo("MlpPolicy", env, buffer_size=10, policy_kwargs=dict(SMALL), seed=0).save(tmp_path / "teacher.zip")
    options = "--timesteps 320 --episodes 2 --student-arch nano --device cpu --no-check-teacher --no-progress".split()
    assert main(["compress", str(tmp_path / "teacher.zip"), "--env", env, "--out", str(tmp_path / "out"), *options]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"student.zip", "student.npz", "report.json"}
    for played in (tmp_path / "teacher.zip", tmp_path / "out" / "student.npz"):
        assert main(["evaluate", str(played), "--env", env, "--episodes", "2", "--no-progress"]) == 0
    assert "2 of " in capsys.readouterr().out
