"""The undistilled exports answer as SB3's ``predict`` does, for every family of teachers and for real teachers."""

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from commands import mistake
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, CrossQ, MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize
from toys import Anything, Strict

from sb3_qpd import Teacher, TeacherError, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.export.c.undistilled import export_undistilled_c
from sb3_qpd.export.float_actor import ACTIVATIONS, Activation, FloatActor
from sb3_qpd.export.onnx.undistilled import export_undistilled_onnx
from sb3_qpd.observations import batch_size, stack, take_rows
from sb3_qpd.teachers.float_layers import TOLERANCE, float_actor

VECTOR, PICTURE = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (4, 36, 36), np.uint8)
COLORS = spaces.Box(0, 255, (36, 36, 3), np.uint8)
PARTS = spaces.Dict({"joints": VECTOR, "picture": PICTURE, "room": spaces.Discrete(3)})
BOX = spaces.Box(np.array([-1, 0], np.float32), np.array([3, 0.5], np.float32))
OFF = {"buffer_size": 9}
TEACHERS = Path(__file__).parents[2] / "examples" / "teachers"


def normalized() -> VecNormalize:
    env = VecNormalize(make_vec_env("Pendulum-v1"), clip_obs=1.5)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.5, -0.5, 1.0]), np.array([0.5, 2.0, 9.0])
    return env


def normalized_dict() -> VecNormalize:
    space = spaces.Dict({"int32_t": VECTOR, "action": spaces.Discrete(3), "*/": spaces.MultiBinary(2)})
    env = VecNormalize(make_vec_env(lambda: Anything(space, BOX)), norm_obs_keys=["int32_t"], clip_obs=0.9)
    env.obs_rms["int32_t"].mean, env.obs_rms["int32_t"].var = np.array([0.5, -0.5, 0.1]), np.array([0.5, 2.0, 0.1])
    return env


CASES: dict[str, tuple[Any, Any, str, dict[str, Any]]] = {
    "ppo": (PPO, "CartPole-v1", "MlpPolicy", {}),
    "ppo, VecNormalize": (PPO, normalized, "MlpPolicy", {}),
    "ppo, squashed gSDE": (PPO, "Pendulum-v1", "MlpPolicy", {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "ppo, own extractor of the actor": (PPO, Anything(PICTURE, BOX), "CnnPolicy", {"share_features_extractor": False}),
    "ppo, colors": (PPO, Anything(COLORS, spaces.Discrete(3)), "CnnPolicy", {}),
    "ppo, Dict": (PPO, Anything(PARTS, spaces.MultiBinary(2)), "MultiInputPolicy", {}),
    "ppo, Dict of vectors": (PPO, normalized_dict, "MultiInputPolicy", {}),
    "ppo, indices": (PPO, Anything(spaces.MultiDiscrete([2, 3]), BOX), "MlpPolicy", {}),
    "ppo, many dimensions": (PPO, Anything(spaces.Box(-1, 1, (20,)), spaces.Box(-0.4, 0.4, (17,))), "MlpPolicy", {}),
    "ppo, MultiBinary": (PPO, Anything(VECTOR, spaces.MultiBinary(3)), "MlpPolicy", {}),
    "maskable": (MaskablePPO, Strict(VECTOR, spaces.MultiDiscrete([2, 3])), "MlpPolicy", {}),
    "dqn": (DQN, "CartPole-v1", "MlpPolicy", OFF),
    "qrdqn": (QRDQN, "CartPole-v1", "MlpPolicy", OFF),
    "sac": (SAC, "Pendulum-v1", "MlpPolicy", OFF),
    "sac, gSDE": (SAC, "Pendulum-v1", "MlpPolicy", {**OFF, "use_sde": True}),
    "td3": (TD3, Anything(VECTOR, BOX), "MlpPolicy", OFF),
    "tqc": (TQC, "Pendulum-v1", "MlpPolicy", OFF),
    "crossq": (CrossQ, "Pendulum-v1", "MlpPolicy", OFF),
    "ars": (ARS, "Pendulum-v1", "MlpPolicy", {}),
    "ars, linear": (ARS, "CartPole-v1", "LinearPolicy", {}),
}


def make(case: str) -> Any:
    algo, env, policy, options = CASES[case]
    kwargs: dict[str, Any] = {} if policy == "LinearPolicy" else {"net_arch": [6]}
    if policy == "CnnPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim": 8}
    kwargs |= {key: options[key] for key in ("share_features_extractor",) if key in options} | options.get("policy_kwargs", {})
    rest = {key: value for key, value in options.items() if key not in ("share_features_extractor", "policy_kwargs")}
    model = algo(policy, env() if callable(env) else env, policy_kwargs=kwargs, device="cpu", seed=1, **rest)
    if algo is CrossQ:
        with th.no_grad():
            for module in model.policy.actor.modules():
                if hasattr(module, "ra_mean"):
                    module.ra_mean.uniform_(-1, 1)
                    module.ra_var.uniform_(0.5, 2)
    return model


def sample(teacher: Teacher, n: int) -> Any:
    space = teacher.observation_space
    space.seed(3)
    return stack([space.sample() for _ in range(n)])


def run_onnx(path: Path, actor: FloatActor, observations: Any) -> tuple[np.ndarray, np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = observations if isinstance(observations, dict) else {None: observations}
    floats = {key: value.astype(np.float32) if value.dtype == np.int8 else value for key, value in given.items()}
    feeds = {"observation" if key is None else f"observation/{key}": value for key, value in floats.items()}
    action, outputs = session.run(None, feeds)
    return action, outputs


class CActor:
    """The C of a teacher in a shared library."""

    def __init__(self, actor: FloatActor, folder: Path) -> None:
        export_undistilled_c(actor, folder)
        flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "policy.c", "-o", "policy.so", "-lm"], cwd=folder, check=True)
        self.library, self.actor = ctypes.CDLL(str(folder / "policy.so")), actor
        self.parts = [one.part for one in actor.parts]

    def __call__(self, observations: Any) -> tuple[np.ndarray, np.ndarray]:
        actor, n = self.actor, batch_size(observations)
        n_action = len(actor.nvec) if actor.nvec else actor.n_outputs
        outputs = np.zeros((n, actor.n_outputs), np.float32)
        actions = np.zeros((n, n_action), np.float32 if actor.is_box else np.int32)
        for i in range(n):
            given = self.observe(take_rows(observations, i))
            assert self.library.policy_outputs(*given, outputs[i].ctypes) == 0
            assert self.library.policy_act(*given, actions[i].ctypes) == 0
        return actions.reshape(n, *actor.shape), outputs

    def observe(self, observation: Any) -> list[Any]:
        dtypes = {"one_hot": np.int32, "image": np.uint8}
        if isinstance(observation, dict):
            fields = [(f"part{i}", dtypes.get(one.kind, np.float32), one.shape) for i, one in enumerate(self.parts)]
            self.kept = np.zeros((), np.dtype([(name, dtype, (int(np.prod(shape)),)) for name, dtype, shape in fields], True))
            for (name, *_), one in zip(fields, self.parts, strict=True):
                value = np.moveaxis(observation[one.key], 0, -1) if one.kind == "image" else observation[one.key]
                self.kept[name] = np.ravel(value)
            return [self.kept.ctypes]
        if self.parts[0].kind != "image":
            self.kept = np.ascontiguousarray(observation, dtypes.get(self.parts[0].kind, np.float32))
            return [self.kept.ctypes]
        self.library.policy_reset()
        channels = len(observation)
        frames = observation.reshape(1 if channels == 3 else channels, -1, *observation.shape[1:])
        for frame in frames:
            pixels = np.ascontiguousarray(np.moveaxis(frame, 0, -1))
            assert self.library.policy_push_frame(pixels.ctypes) == 0
        return []


def assert_same(ours: tuple[np.ndarray, np.ndarray], teacher: Teacher, actor: FloatActor, observations: Any) -> None:
    """Outputs within the tolerance, and the actions of ``predict``; ties within the tolerance may go either way."""
    actions, outputs = ours
    labels = teacher(observations).actor.numpy()
    theirs, played = labels[:, 1::2] if actor.is_binary else labels, teacher.predict(observations, deterministic=True)[0]
    if actor.is_box:
        unit = (actor.high - actor.low) / 2
        low, high = actor.low, actor.high
        assert np.abs((np.clip(outputs, low, high) - np.clip(theirs, low, high)) / unit).max() < TOLERANCE
        assert (np.abs(actions - played) <= TOLERANCE * unit.reshape(actor.shape)).all()
        return
    assert np.abs(outputs - theirs).max() < TOLERANCE * max(1, np.abs(theirs).max())
    assert (actions == played).reshape(len(actions), -1).all(1).mean() > 0.98


@pytest.mark.parametrize("case", CASES)
def test_exports_answer_as_the_teacher_does(tmp_path: Path, case: str):
    teacher = load_teacher(make(case), device="cpu")
    actor, x = float_actor(teacher), sample(teacher, 30)
    assert_same((actor.actions(x), actor.outputs(x)), teacher, actor, x)
    export_undistilled_onnx(actor, tmp_path)
    assert_same(run_onnx(tmp_path / "teacher.onnx", actor, x), teacher, actor, x)
    assert_same(CActor(actor, tmp_path)(x), teacher, actor, x)


OTHERS = "ELU GELU Hardtanh LeakyReLU ReLU6 SELU SiLU Sigmoid Softplus Softsign".split()


@pytest.mark.parametrize("name", OTHERS)
def test_activations(tmp_path: Path, name: str):
    kwargs = {"net_arch": [6], "activation_fn": getattr(th.nn, name)}
    teacher = load_teacher(PPO("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, device="cpu", seed=0), device="cpu")
    actor, x = float_actor(teacher), 2 * np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    assert any(isinstance(layer, Activation) and layer.kind in ACTIVATIONS for layer in actor.layers)
    export_undistilled_onnx(actor, tmp_path)
    assert_same(run_onnx(tmp_path / "teacher.onnx", actor, x), teacher, actor, x)
    assert_same(CActor(actor, tmp_path)(x), teacher, actor, x)


@pytest.mark.parametrize("folder", sorted(path.name for path in TEACHERS.glob("*/*")))
def test_teachers_that_ship_with_the_project(tmp_path: Path, folder: str):
    teacher = load_teacher(next(TEACHERS.glob(f"*/{folder}")), device="cpu")
    is_image = teacher.parts[0].is_image
    x = np.random.default_rng(0).normal(size=(200, *teacher.observation_space.shape)).astype(np.float32)
    x = sample(teacher, 5) if is_image else x
    actor = float_actor(teacher)
    export_undistilled_onnx(actor, tmp_path)
    assert_same(run_onnx(tmp_path / "teacher.onnx", actor, x), teacher, actor, x)
    assert_same(CActor(actor, tmp_path)(x), teacher, actor, x)


def test_the_c_refuses_what_it_cannot_take(tmp_path: Path):
    actor = float_actor(load_teacher(make("ppo"), device="cpu"))
    c = CActor(actor, tmp_path)
    action = np.zeros(1, np.int32)
    assert c.library.policy_act(None, action.ctypes) == -1
    assert c.library.policy_act(np.zeros(4, np.float32).ctypes, None) == -1
    assert c.library.policy_act(np.full(4, np.nan, np.float32).ctypes, action.ctypes) == -2
    (tmp_path / "indices").mkdir()
    indices = CActor(float_actor(load_teacher(make("ppo, indices"), device="cpu")), tmp_path / "indices")
    assert indices.library.policy_outputs(np.array([0, 3], np.int32).ctypes, np.zeros(2, np.float32).ctypes) == -4
    (tmp_path / "dict").mkdir()
    parts = CActor(float_actor(load_teacher(make("ppo, Dict of vectors"), device="cpu")), tmp_path / "dict")
    header, outputs = (tmp_path / "dict" / "policy.h").read_text(), np.zeros(2, np.float32)
    assert all(field in header for field in ("float key[2];", "int32_t action;", "float int32_t_[3];"))
    for key, value, code in (("action", 3, -4), ("int32_t", np.array([0, np.inf, 0]), -2), ("action", 2, 0)):
        one = {"*/": np.zeros(2), "action": 0, "int32_t": np.zeros(3), key: value}
        assert parts.library.policy_outputs(*parts.observe(one), outputs.ctypes) == code
    assert parts.library.policy_act(None, outputs.ctypes) == -1
    (tmp_path / "image").mkdir()
    image = CActor(float_actor(load_teacher(make("ppo, colors"), device="cpu")), tmp_path / "image")
    assert image.library.policy_act(action.ctypes) == -3 and image.library.policy_push_frame(None) == -1


class Halved(ActorCriticPolicy):
    def _get_action_dist_from_latent(self, latent_pi):
        return self.action_dist.proba_distribution(0.5 * self.action_net(latent_pi), self.log_std)


def test_teachers_that_cannot_be_exported():
    own = PPO(Halved, "Pendulum-v1", device="cpu", seed=0)
    with th.no_grad():
        own.policy.action_net.weight.mul_(50)
    with pytest.raises(TeacherError, match="do not give the teacher's own answer"):
        float_actor(load_teacher(own, device="cpu"))
    with pytest.raises(TeacherError, match="A layer Mish is not exported"):
        kwargs = {"activation_fn": th.nn.Mish}
        float_actor(load_teacher(PPO("MlpPolicy", "CartPole-v1", policy_kwargs=kwargs, device="cpu"), device="cpu"))
    rule = Teacher.from_function(lambda x: np.zeros(len(x), int), VECTOR, spaces.Discrete(2), "action")
    with pytest.raises(TeacherError, match="is a function or an ONNX file"):
        float_actor(rule)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make("ppo").save(tmp_path / "model.zip")
    given = ["export", tmp_path / "model.zip", "--undistilled", "--out", tmp_path / "out"]
    assert main([*map(str, given), "--target", "onnx", "--target", "c"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["policy.c", "policy.h", "teacher.onnx"]
    assert "bytes of float32 weights" in capsys.readouterr().out
    assert "--target tflite, --qdq is for students" in mistake(capsys, *given, "--target", "tflite", "--qdq")
    options = ["--float", "--names", "godot", "--prefix", "lander_", "--reentrant", "--probabilities", "--with-value"]
    named = ", ".join(one for one in options if one.startswith("--"))
    assert f"{named} is for students" in mistake(capsys, *given, "--target", "c", *options)
    assert "No such file" in mistake(capsys, "export", "missing.zip", *given[2:], "--target", "c")
