"""Students in files, and the contract that Stable-Baselines3 and RL Zoo have with an algorithm."""

import base64
import inspect
import io
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import (
    BOX,
    DISCRETE,
    QUICK,
    Pointer,
    Quadrant,
    actor_of,
    assert_equal_states,
    assert_same_bits,
    assert_saves_and_loads,
    pointers,
    untrained,
)

from sb3_qpd import QPDDistiller, QuantActorCriticPolicy, StudentArch, load_teacher
from sb3_qpd.distillation.schedules import CosineSchedule
from sb3_qpd.teachers.teacher import Teacher

OBSERVATIONS = Pointer.sample(200)


@pytest.fixture(scope="module")
def model() -> PPO:
    return untrained(pointers())


@pytest.fixture(scope="module")
def student(model: PPO) -> QPDDistiller:
    return QPDDistiller(model, **QUICK, weight_bits=4).learn(400)


@pytest.fixture(scope="module")
def zip_path(student: QPDDistiller, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("student") / "student.zip"
    student.save(path)
    return path


def adam_steps(student: QPDDistiller) -> list[float]:
    """The counts of steps of the parameters that Adam updates. A quantizer's step size joins when its rounding begins."""
    return [float(state["step"]) for state in student.policy.optimizer.state.values() if "step" in state]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
@pytest.mark.parametrize("transition", ["blend", "none"])
def test_what_comes_out_can_be_saved(action_space, transition, tmp_path):
    student = QPDDistiller(untrained(pointers(action_space)), **QUICK, transition=transition).learn(200)
    assert_saves_and_loads(student, tmp_path, OBSERVATIONS)
    assert_saves_and_loads(student.post_training_quantize(4, 3), tmp_path, OBSERVATIONS)
    float_student = student.float_student()
    float_student.save(tmp_path / "float.zip")
    loaded = QPDDistiller.load(tmp_path / "float.zip", device="cpu")
    np.testing.assert_array_equal(actor_of(loaded.policy, OBSERVATIONS), actor_of(float_student.policy, OBSERVATIONS))


def decoded(data: dict[str, Any]) -> bytes:
    """Everything that is in a zip's data, pickles included."""
    values = [value for value in data.values() if isinstance(value, dict)]
    pickles = [base64.b64decode(value[":serialized:"]) for value in values if ":serialized:" in value]
    return b"\n".join([json.dumps(data).encode(), *pickles])


def test_a_zip_holds_neither_teacher_nor_paths(tmp_path):
    untrained("CartPole-v1", policy_kwargs={"net_arch": [256, 256]}).save(tmp_path / "teacher.zip")
    student = QPDDistiller(
        str(tmp_path / "teacher.zip"), env="CartPole-v1", n_envs=2, tensorboard_log=str(tmp_path / "tb"), **QUICK
    )
    student.learn(64)
    student.save(tmp_path / "student.zip")
    assert (tmp_path / "student.zip").stat().st_size < 60_000 < (tmp_path / "teacher.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "student.zip") as archive:
        data = json.loads(archive.read("data"))
        weights = th.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    assert sum(value.numel() for value in weights.values()) < 600
    for path in (tmp_path, pathlib.Path(__file__).parent, pathlib.Path.home()):
        assert str(path).encode() not in decoded(data)
    assert b"torch" not in decoded(data).replace(b"torch.optim", b"")  # no tensor lies outside policy.pth
    loaded = QPDDistiller.load(tmp_path / "student.zip", device="cpu")
    assert loaded.teacher_name == student.teacher_name == "ppo/teacher"
    assert loaded.teacher_checksum == load_teacher(tmp_path / "teacher.zip").checksum


def test_images_do_not_stay_in_the_zip(tmp_path):
    images = untrained(
        make_vec_env(Quadrant, 4), policy="CnnPolicy", policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}}
    )
    student = QPDDistiller(images, batch_size=16, **QUICK).learn(16)
    student.save(tmp_path / "student.zip")
    with zipfile.ZipFile(tmp_path / "student.zip") as archive:
        data = json.loads(archive.read("data"))
    assert (
        "_last_obs" not in data
        and max(len(str(value)) for name, value in data.items() if name != "policy_class" and "space" not in name) < 4_000
    )


def test_a_learning_rate_is_found_where_older_zips_look(monkeypatch, tmp_path):
    """The cosine is pickled by the name of its module, which was the distiller's."""
    student = QPDDistiller(untrained(pointers()), **{**QUICK, "learning_rate": CosineSchedule(0.5)})
    monkeypatch.setattr(CosineSchedule, "__module__", "sb3_qpd.distillation.distiller")
    student.save(tmp_path / "older.zip")
    monkeypatch.undo()
    learning_rate = QPDDistiller.load(tmp_path / "older.zip").learning_rate
    assert type(learning_rate) is CosineSchedule and learning_rate.initial == 0.5


def test_a_policy_of_its_own(student, tmp_path):
    student.policy.save(tmp_path / "policy.zip")
    policy = QuantActorCriticPolicy.load(tmp_path / "policy.zip", device="cpu")
    np.testing.assert_array_equal(actor_of(policy, OBSERVATIONS), actor_of(student.policy, OBSERVATIONS))
    assert policy.arch == student.policy.arch


# -- going on ---------------------------------------------------------------------------------------------------------


def test_learning_goes_on_after_loading(model, student, zip_path):
    loaded = QPDDistiller.load(zip_path, env=pointers(n_envs=2), teacher=model, device="cpu")
    grid = loaded.policy.features_extractor.input_grid
    mean, value_scale = grid.mean.clone(), loaded.policy.value_net.std.clone()
    assert loaded._transition_progress == 1 and loaded.n_envs == 2
    assert_equal_states(student, loaded)
    assert adam_steps(loaded) == adam_steps(student) and max(adam_steps(loaded)) == student._n_updates
    momenta = [state["momentum"] for state in loaded.policy.optimizer.state.values() if "momentum" in state]
    saved = [state["momentum"] for state in student.policy.optimizer.state.values() if "momentum" in state]
    assert len(momenta) == len(saved) > 0 and all(th.equal(a, b) for a, b in zip(momenta, saved, strict=True))
    loaded.learn(200, reset_num_timesteps=False)
    assert loaded.num_timesteps == 600 and loaded._transition_progress == 1
    assert th.equal(grid.mean, mean) and th.equal(loaded.policy.value_net.std, value_scale)  # the normalization is kept
    assert not th.equal(loaded.policy.action_net.weight, student.policy.action_net.weight)
    assert_same_bits(loaded.policy, OBSERVATIONS)


def test_the_teacher_brings_its_environment(model, zip_path):
    loaded = QPDDistiller.load(zip_path, teacher=model, device="cpu")
    assert loaded.env is model.env
    assert loaded.learn(80).num_timesteps == 80


def test_a_loaded_student_is_given_a_teacher_as_an_attribute(model, zip_path, tmp_path):
    model.save(tmp_path / "teacher.zip")
    for teacher in (model, str(tmp_path / "teacher.zip")):
        loaded = QPDDistiller.load(zip_path, env=pointers(), device="cpu", check_teacher=False)
        loaded.teacher = teacher
        assert loaded.learn(80).num_timesteps == 80 and isinstance(loaded.teacher, Teacher)
        loaded.teacher = teacher
        loaded.set_env(VecNormalize(pointers()))
        assert loaded.learn(80).num_timesteps == 80 and loaded.teacher.normalization is not None
    loaded.teacher = untrained(Quadrant(), policy="CnnPolicy")
    for _ in range(2):
        with pytest.raises(ValueError, match="observations are not the teacher's"):
            loaded.learn(80)


def test_learning_after_loading_needs_both(model, zip_path):
    with pytest.raises(ValueError, match="learn.. needs a teacher: .*QPDDistiller.load.path, env=env, teacher=teacher"):
        QPDDistiller.load(zip_path, env=pointers(), device="cpu").learn(10)
    with pytest.raises(ValueError, match="learn.. needs an environment"):
        QPDDistiller.load(zip_path, teacher=PPO.load(saved(model)), device="cpu").learn(10)
    loaded = QPDDistiller.load(zip_path, device="cpu")
    loaded.teacher = load_teacher(model)
    loaded.set_env(pointers())
    assert loaded.learn(16).num_timesteps == 16


def saved(model: BaseAlgorithm) -> io.BytesIO:
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    return buffer


def test_sizes_and_bits_cannot_change_afterwards(model, zip_path):
    for arguments in ({"student_arch": "tiny"}, {"weight_bits": 8}, {"student_arch": StudentArch(hidden=(9,))}):
        with pytest.raises(ValueError, match="size and bits cannot change afterwards"):
            QPDDistiller.load(zip_path, env=pointers(), teacher=model, device="cpu", **arguments)
    same = {"student_arch": "nano", "weight_bits": 4, "policy": "MlpPolicy", "transition": "blend"}
    assert QPDDistiller.load(zip_path, device="cpu", **same).policy.arch.weight_bits == 4


def test_environments_that_do_not_fit(model, zip_path):
    with pytest.raises(ValueError, match="spaces do not match"):
        QPDDistiller.load(zip_path, env="CartPole-v1", teacher=model, device="cpu")
    with pytest.raises(ValueError, match=r"observations are not the teacher's.\nteacher: .*\(4,\)"):
        QPDDistiller.load(zip_path, env=pointers(), teacher=untrained("CartPole-v1"), device="cpu")


def test_environments_by_any_name(zip_path, tmp_path):
    cartpole = untrained("CartPole-v1")
    QPDDistiller(cartpole, **QUICK).learn(32).save(tmp_path / "student.zip")
    loaded = QPDDistiller.load(tmp_path / "student.zip", "CartPole-v1", "cpu", n_envs=3, teacher=cartpole)
    assert loaded.env.num_envs == loaded.n_envs == 3
    assert loaded.learn(30).num_timesteps == 30
    normalized = VecNormalize(pointers())
    assert QPDDistiller.load(zip_path, env=normalized, device="cpu").env is normalized.venv


# -- parameters -------------------------------------------------------------------------------------------------------


def test_parameters(model, student, zip_path):
    other = QPDDistiller(model, **{**QUICK, "seed": 5}, weight_bits=4)
    assert not np.array_equal(actor_of(other.policy, OBSERVATIONS), actor_of(student.policy, OBSERVATIONS))
    for source in (student.get_parameters(), zip_path, str(zip_path)):
        other = QPDDistiller(model, **{**QUICK, "seed": 5}, weight_bits=4)
        other.set_parameters(source)
        assert_equal_states(other, student)
        np.testing.assert_array_equal(actor_of(other.policy, OBSERVATIONS), actor_of(student.policy, OBSERVATIONS))
        assert adam_steps(other) == adam_steps(student)
    assert set(student.get_parameters()) == {"policy", "policy.optimizer"}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        other.set_parameters({"policy": student.policy.state_dict()})
    other.set_parameters({"policy": student.policy.state_dict()}, exact_match=False)
    with pytest.raises(RuntimeError, match="[Uu]nexpected key"):
        other.set_parameters({**student.get_parameters(), "policy": {"nothing": th.zeros(1)}})


def test_an_older_zip_with_adams_moments_learns_on(model, student, tmp_path):
    adam = QPDDistiller(model, **QUICK, weight_bits=4, learning_rate=1e-2, policy_kwargs={"optimizer_class": th.optim.Adam})
    adam.learn(400)
    parameters = {**student.get_parameters(), "policy.optimizer": adam.policy.optimizer.state_dict()}
    older = QPDDistiller(model, **QUICK, weight_bits=4)
    older.set_parameters(parameters)
    assert_equal_states(older, student)
    rates = {group["lr"] for group in older.policy.optimizer.param_groups}
    assert rates == {adam.policy.optimizer.param_groups[0]["lr"]} and not older.policy.optimizer.state
    older.learn(200)
    assert not np.array_equal(actor_of(older.policy, OBSERVATIONS), actor_of(student.policy, OBSERVATIONS))


def test_the_state_dict_is_complete_at_construction(model, student):
    fresh = QPDDistiller(model, **QUICK, weight_bits=4)
    a, b = fresh.policy.state_dict(), student.policy.state_dict()
    assert {name: (value.shape, value.dtype) for name, value in a.items()} == {
        name: (value.shape, value.dtype) for name, value in b.items()
    }
    # the optimizer holds each parameter of the deployed network, once
    grouped = [id(parameter) for group in fresh.policy.optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in fresh.policy.parameters())


def test_policy_kwargs_alone_rebuild_the_network(student):
    policy = student.policy_class(
        student.observation_space, student.action_space, lambda _: 0.0, use_sde=student.use_sde, **student.policy_kwargs
    )
    policy.load_state_dict(student.policy.state_dict())
    np.testing.assert_array_equal(actor_of(policy, OBSERVATIONS), actor_of(student.policy, OBSERVATIONS))
    assert isinstance(policy, ActorCriticPolicy) and json.loads(json.dumps(student.policy_kwargs))


def test_students_train_on_under_stock_algorithms(student):
    for algo in (PPO, A2C):
        other = algo(QuantActorCriticPolicy, pointers(), n_steps=16, device="cpu", policy_kwargs=student.policy_kwargs, seed=0)
        other.policy.load_state_dict(student.policy.state_dict())
        other.learn(256)
        assert_same_bits(other.policy, OBSERVATIONS)


# -- prediction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_predict(action_space, tmp_path):
    student = QPDDistiller(untrained(pointers(action_space)), **QUICK).learn(160)
    student.save(tmp_path / "student")
    student = QPDDistiller.load(tmp_path / "student", device="cpu")  # neither teacher nor environment
    for deterministic in (True, False):
        batch, state = student.predict(OBSERVATIONS, deterministic=deterministic)
        assert batch.shape == (200, *action_space.shape) and state is None
        assert all(action_space.contains(action) for action in batch)
    single, _ = student.predict(OBSERVATIONS[0], deterministic=True)
    np.testing.assert_array_equal(single, student.predict(OBSERVATIONS, deterministic=True)[0][0])
    assert action_space.contains(single if action_space is BOX else int(single))
    mean, std = evaluate_policy(student, Monitor(Pointer(action_space)), 5)
    assert np.isfinite(mean) and np.isfinite(std)


def test_sampled_actions_follow_the_logits():
    student = QPDDistiller(untrained(pointers()), **QUICK).learn(160)
    one = np.repeat(OBSERVATIONS[:1], 20_000, axis=0)
    expected = th.as_tensor(actor_of(student.policy, one[:1])).softmax(1)[0].numpy()
    for actions in (student.predict(one)[0], student.policy.to_integer().predict(one)[0]):
        np.testing.assert_allclose(np.bincount(actions, minlength=3) / len(one), expected, atol=0.02)


# -- RL Zoo's contract ------------------------------------------------------------------------------------------------

HYPERPARAMETERS = [
    name
    for name in inspect.signature(QPDDistiller).parameters
    if name not in ("teacher", "env", "observations", "policy", "vec_env", "stats_window_size", "device", "_init_setup_model")
]


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_attributes_are_named_like_keywords(name, student):
    """``load(path, **yaml)`` writes keywords straight into attributes."""
    assert name in vars(student) and not hasattr(QPDDistiller, name)


def test_keywords_of_load_count(model, zip_path):
    keywords: dict[str, Any] = {
        "seed": 7,
        "tensorboard_log": None,
        "verbose": 0,
        "batch_size": 32,
        "buffer_size": 1e3,
        "learning_rate": lambda remaining: 1e-2 * remaining,
        "gradient_steps": 0.5,
        "transition": "progressive",
        "beta": 1.0,
        "check_teacher": False,
        "student_arch": "nano",
        "weight_bits": 4,
    }
    loaded = QPDDistiller.load(zip_path, env=pointers(), device="cpu", teacher=model, **keywords).learn(200)
    assert all(getattr(loaded, name) == value for name, value in keywords.items())
    assert loaded._buffer.capacity == 1_000 and loaded._n_updates == 25 + 100
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 8 / 200)
    for name, value in {"transition": "blent", "beta": 2, "batch_size": 0}.items():
        with pytest.raises(ValueError, match=name):
            QPDDistiller.load(zip_path, device="cpu", **{name: value})


def test_how_base_algorithm_and_rl_zoo_construct(model):
    bare = QPDDistiller(policy=QuantActorCriticPolicy, env=None, device="cpu", _init_setup_model=False)
    assert bare.env is None and bare.teacher is None and getattr(bare, "policy", None) is None
    yaml = {"policy": "MlpPolicy", "teacher": model, "student_arch": "nano", "weight_bits": 4, "learning_starts": 100}
    student = QPDDistiller(env=pointers(), tensorboard_log=None, seed=0, verbose=0, device="cpu", **yaml)
    assert student.policy.arch.weight_bits == 4 and student.use_sde is False
    student.env.close()
    del student.env  # Optuna's way
    assert list(inspect.signature(QPDDistiller.learn).parameters) == [*inspect.signature(PPO.learn).parameters, "checkpoint"]


def test_the_zoos_enjoy(zip_path, student):
    custom_objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = QPDDistiller.load(zip_path, custom_objects=custom_objects, device="cpu", seed=3)
    np.testing.assert_array_equal(
        loaded.predict(OBSERVATIONS, deterministic=True)[0], student.predict(OBSERVATIONS, deterministic=True)[0]
    )
    assert loaded.get_env() is None and loaded.get_vec_normalize_env() is None and loaded.learning_rate == 0.0


def test_the_zoos_push_to_hub(zip_path, tmp_path):
    eval_env = DummyVecEnv([Pointer])
    loaded = QPDDistiller.load(zip_path, env=eval_env, custom_objects={}, device="cpu", seed=0)
    assert loaded.get_env() is eval_env  # nothing is wrapped around it
    loaded.save(tmp_path / "again.zip")
    assert_equal_states(QPDDistiller.load(tmp_path / "again.zip", device="cpu"), loaded)
    assert type(loaded).__name__ == "QPDDistiller"
