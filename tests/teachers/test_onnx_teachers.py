"""Teachers in ONNX files: the labels of the network that was exported, and refusals within bounds of time and memory."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch as th
from bounds import bounded
from commands import mistake
from fuzz_formats import onnx_bytes
from gymnasium import spaces
from onnx import TensorProto, helper, numpy_helper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toys import QUICK, Anything

from sb3_qpd import QPDDistiller, TeacherError, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.evaluation.float_baseline import write_float_onnx

BOX = spaces.Box(-1, 1, (4,), np.float32)
WEIGHT = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
GEMM = helper.make_node("MatMul", ["obs", "w"], ["logits"])


@pytest.fixture(scope="module")
def agent() -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=0)


@pytest.fixture(scope="module")
def exported(agent: PPO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "policy.onnx"
    write_float_onnx(agent.policy, np.zeros((1, 4), np.float32), path)
    return path


def observations(n: int = 33) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (n, 4)).astype(np.float32)


def model(
    nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], weights: dict[str, np.ndarray] | None = None
) -> bytes:
    ends = [[helper.make_tensor_value_info(name, 1, shape) for name, shape in one.items()] for one in (inputs, outputs)]
    initializers = [numpy_helper.from_array(value, name) for name, value in (weights or {"w": WEIGHT}).items()]
    graph = helper.make_graph(nodes, "policy", *ends, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def write(folder: Path, content: bytes) -> Path:
    (folder / "policy.onnx").write_bytes(content)
    return folder / "policy.onnx"


def load(path: Path, env: Any = "CartPole-v1", kind: str | None = "logits", **options: Any) -> Any:
    return load_teacher(path, env=env, kind=kind, device="cpu", **options)


def test_the_labels_of_an_exported_agent(agent: PPO, exported: Path):
    teacher, live, x = load(exported), load_teacher(agent, device="cpu"), observations()
    th.testing.assert_close(teacher(x).actor, live(x).actor)
    np.testing.assert_array_equal(teacher.predict(x, deterministic=True)[0], agent.predict(x, deterministic=True)[0])
    assert teacher.n_parameters == live.n_parameters and len(teacher.checksum) == 64
    assert (teacher.name, teacher.algo, teacher.recipe.env_id) == ("onnx/policy", "onnx", "CartPole-v1")
    student = QPDDistiller(teacher, n_envs=2, **QUICK).learn(64)
    assert student.teacher_checksum == teacher.checksum


@pytest.mark.parametrize("shape", [[1, 4], [8, 4], ["n", 4], [4]])
def test_a_fixed_batch_size(tmp_path: Path, shape: list[Any]):
    x, given = observations(), [*shape[:-1], 2]
    teacher = load(write(tmp_path, onnx_bytes([GEMM], {"w": WEIGHT}, shape, given)))
    np.testing.assert_allclose(teacher(x).actor, x @ WEIGHT, atol=1e-6)


def test_outputs_that_are_found_by_their_names_and_shapes(tmp_path: Path):
    """Unity names its outputs; a gaussian needs two; values are taken where they are named."""
    nodes = [
        helper.make_node("MatMul", ["obs_0", "w"], ["continuous_actions"]),
        helper.make_node("Tanh", ["continuous_actions"], ["deterministic_continuous_actions"]),
        helper.make_node("ReduceSum", ["obs_0"], ["value"], keepdims=0),
        helper.make_node("Identity", ["v"], ["version_number"]),
    ]
    outputs = {
        "version_number": [1],
        "value": [],
        "continuous_actions": ["n", 2],
        "deterministic_continuous_actions": ["n", 2],
    }
    weights = {"w": WEIGHT, "v": np.ones(1, np.float32)}
    env, x = Anything(BOX, spaces.Box(-1, 1, (2,))), observations()
    path = write(tmp_path, model(nodes, {"obs_0": ["n", 4]}, outputs, weights))
    np.testing.assert_allclose(load(path, env, "action")(x).actor, np.tanh(x @ WEIGHT), atol=1e-6)
    both = load(path, env, "gaussian", outputs=["continuous_actions", "deterministic_continuous_actions"])(x)
    np.testing.assert_allclose(both.log_std, np.tanh(x @ WEIGHT), atol=1e-6)


def test_a_value_and_a_dict(tmp_path: Path):
    space = spaces.Dict({"a": BOX, "b": spaces.Discrete(3)})
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["x"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("ReduceSum", ["x", "axis"], ["value"]),
    ]
    weights = {"w": np.ones((7, 2), np.float32), "axis": np.array([1], np.int64)}
    outputs = {"logits": ["n", 2], "value": ["n", 1]}
    content = model(nodes, {"a": ["n", 4], "b": ["n", 3]}, outputs, weights)
    env = Anything(space, spaces.Discrete(2))
    rows = {"a": observations(5), "b": np.array([0, 1, 2, 0, 1])}
    labels = load(write(tmp_path, content), env, outputs=["logits", "value"])(rows)
    expected = rows["a"].sum(1) + 1
    np.testing.assert_allclose(labels.value, expected, atol=1e-6)
    np.testing.assert_allclose(labels.actor[:, 0], expected, atol=1e-6)
    joined = onnx_bytes([GEMM], {"w": np.ones((7, 2), np.float32)}, ["n", 7], ["n", 2])
    np.testing.assert_allclose(load(write(tmp_path, joined), env)(rows).actor[:, 1], expected, atol=1e-6)


def test_statistics_of_vec_normalize_are_taken(tmp_path: Path):
    env = VecNormalize(make_vec_env("CartPole-v1"))
    env.obs_rms.mean, env.obs_rms.var = np.full(4, 0.5), np.full(4, 4.0)
    path, x = write(tmp_path, onnx_bytes([GEMM], {"w": WEIGHT}, ["n", 4], ["n", 2])), observations()
    np.testing.assert_allclose(load(path, env)(x).actor, env.normalize_obs(x) @ WEIGHT, atol=1e-5)


@pytest.mark.parametrize("uses", [False, True])
def test_a_state_that_changes_the_answer_is_refused(tmp_path: Path, uses: bool):
    """Godot's exporter always writes a state."""
    nodes = [helper.make_node("MatMul", ["obs", "w"], ["m"]), helper.make_node("Identity", ["state_ins"], ["state_outs"])]
    nodes.append(helper.make_node("Add", ["m", "state_ins"] if uses else ["m", "m"], ["output"]))
    content = model(nodes, {"obs": ["n", 4], "state_ins": [1]}, {"output": ["n", 2], "state_outs": [1]})
    path = write(tmp_path, content)
    if uses:
        with pytest.raises(TeacherError, match="has a memory: its answer depends on its state"):
            load(path)
    else:
        np.testing.assert_allclose(load(path)(observations()).actor, 2 * observations() @ WEIGHT, atol=1e-6)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"env": None}, TeacherError, "does not name its environment"),
    ({"kind": None}, TeacherError, "Give kind=, one of logits, q_values, gaussian, action, got None"),
    ({"kind": "gaussian"}, TeacherError, "of which none fits kind 'gaussian'|is for Box actions"),
    ({"env": "Acrobot-v1"}, TeacherError, "of which none fits|cannot compute|failed"),
    ({"inputs": ["x"]}, TeacherError, r"has no input x. It has observation \(n, 4\)"),
    ({"outputs": ["x"]}, TeacherError, r"has the outputs actor \(n, 2\), and outputs= names x"),
    ({"outputs": ["actor", "actor", "actor"]}, TeacherError, "Expected 1 for kind"),
]


@pytest.mark.parametrize("options, error, message", WRONG)
def test_arguments_that_do_not_fit(exported: Path, options: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        load(exported, **options)


def test_kind_is_for_onnx_files(agent: PPO):
    with pytest.raises(ValueError, match="kind= is for an ONNX file"):
        load_teacher(agent, kind="logits")


# --- hostile files ---
def external() -> bytes:
    proto = onnx.load_from_string(onnx_bytes([GEMM], {"w": WEIGHT}, ["n", 4], ["n", 2]))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return proto.SerializeToString()


def with_nodes(*nodes: Any, **weights: np.ndarray) -> bytes:
    return onnx_bytes([GEMM, *nodes], {"w": WEIGHT, **weights}, ["n", 4], ["n", 2])


def filled(size: int, dims: int = 1) -> bytes:
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["z"]), helper.make_node("ReduceMax", ["z"], ["r"], keepdims=0)]
    nodes += [helper.make_node("MatMul", ["obs", "w"], ["m"]), helper.make_node("Add", ["m", "r"], ["logits"])]
    return onnx_bytes(nodes, {"w": WEIGHT, "size": np.array([size] * dims, np.int64)}, ["n", 4], ["n", 2])


def lying() -> bytes:
    proto = onnx.load_from_string(onnx_bytes([GEMM], {"w": WEIGHT}, ["n", 4], ["n", 2]))
    proto.graph.initializer[0].dims[0] = 2**40
    return proto.SerializeToString()


def subgraph() -> bytes:
    inner = helper.make_graph([helper.make_node("Identity", ["obs"], ["x"])], "inner", [], [])
    return with_nodes(helper.make_node("If", ["obs"], ["y"], then_branch=inner, else_branch=inner))


def functions() -> bytes:
    proto = onnx.load_from_string(onnx_bytes([GEMM], {"w": WEIGHT}, ["n", 4], ["n", 2]))
    proto.functions.add(name="f", domain="evil")
    return proto.SerializeToString()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "weights in another file": (external(), "weights in another file, which is not opened"),
    "an operator of another library": (
        with_nodes(helper.make_node("Run", ["obs"], ["y"], domain="evil")),
        "operator evil.Run",
    ),
    "an operator that loops": (with_nodes(helper.make_node("Loop", ["", ""], ["y"])), "operator Loop"),
    "a subgraph": (subgraph(), "subgraphs, which a policy does not need"),
    "functions": (functions(), "functions, which a policy does not need"),
    "4 GB of ones": (filled(2**30), "cannot compute|refused by ONNX Runtime"),
    "2^93 ones": (filled(2**31, 3), "cannot compute|refused by ONNX Runtime"),
    "a size that lies": (lying(), "a tensor of .* numbers in 32 bytes"),
    "texts": (with_nodes(text=np.array(["a", "b"])), "the field 6 of Tensor"),
    "a million fields": (b"\x3a\x80\x89\x7a" + b"\x0a\x00" * 1_000_000, "more than 200000 fields|operator"),
    "cut off": (onnx_bytes([GEMM], {"w": WEIGHT}, ["n", 4], ["n", 2])[:-9], "goes beyond its end"),
    "no file of ONNX": (b"hello world", "not an ONNX file, or damaged|is damaged, or has"),
    "nothing": (b"", "holds no operators"),
    "a name that is missing": (with_nodes(helper.make_node("Tanh", ["nothing"], ["y"])), "refused by ONNX Runtime"),
    "NaN": (onnx_bytes([GEMM], {"w": WEIGHT * np.nan}, ["n", 4], ["n", 2]), "NaN or infinity"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_within_bounds(tmp_path: Path, name: str):
    content, message = HOSTILE[name]
    path = write(tmp_path, content)
    with bounded(60, 2**31), pytest.raises(ValueError, match=message):
        load(path, gym.make("CartPole-v1"))


# --- command line ---
def test_the_command_line_takes_an_onnx_file(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = ["evaluate", str(exported), "--env", "CartPole-v1", "--episodes", "3", "--device", "cpu", "--no-progress"]
    assert main([*given, "--teacher-kind", "logits"]) == 0
    assert "3 of CartPole-v1" in capsys.readouterr().out
    assert "An ONNX file does not say what its outputs are" in mistake(capsys, *given)
