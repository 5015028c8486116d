"""ONNX for engines: other names, the inputs and outputs of Godot RL Agents' plugin, and plain float32 operators."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch as th
from gymnasium import spaces
from memory import SPACES as WITH_MEMORY
from memory import assert_same_step, episodes, observations_of
from memory import make_policy as make_with_memory
from random_students import RandomStudent, draw
from students import BITS, DISCRETE, IMAGE, SPACES, VECTOR, assert_same_bits, make_student, some_observations
from test_export_spaces import OBSERVATIONS
from test_export_spaces import make_student as make_of_space
from toys import sample

from sb3_qpd import IntegerModel, QuantActorCriticPolicy, export_onnx
from sb3_qpd.cli import main
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.onnx.names import parse_names
from sb3_qpd.export.onnx.runtime import OnnxPolicy

# operators of Barracuda 2.0, the oldest of Unity's runtimes, that a student could have; its successors have all of them
UNITY = {
    *("Abs", "Add", "Cast", "Clip", "Concat", "Conv", "Flatten", "Gather", "Gemm", "Identity", "Max", "Min", "Mul"),
    *("ReduceMax", "Relu", "Reshape", "Round", "Split", "Sub", "Transpose", "Unsqueeze"),
}
UNIT_BOX = spaces.Box(np.array([-1, -0.5], np.float32), np.array([1, 0.25], np.float32))


def plays_godot(path: Path, model: IntegerModel, observations: dict[str, np.ndarray]) -> np.ndarray:
    """
    Actions as the plugin finds them: ``RunInference`` of ONNXInference.cs and ``_extract_action_dict`` of sync.gd.

    :param observations: by key; ``obs`` for a single one
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (shape,) = (output.shape for output in session.get_outputs() if output.name == "output")
    actions = []
    for i in range(len(next(iter(observations.values())))):
        given: dict[str, Any] = {key: x[i].astype(np.float32).reshape(1, -1) for key, x in observations.items()}
        output, state = session.run(["output", "state_outs"], {**given, "state_ins": np.array([1.0], np.float32)})
        assert state.tolist() == [1.0] and output.dtype == np.float32 and output.shape == (1, shape[1])
        numbers = output[0].tolist()
        if model.is_box:
            actions.append(np.clip(np.float32(numbers), -1, 1))
            continue
        chosen, index = [], 0
        for size in model.action_nvec:
            largest, found = 0.0, 0
            for j in range(size):
                if numbers[index + j] > largest:
                    largest, found = numbers[index + j], j
            chosen.append(found)
            index += size
        actions.append(np.array(chosen))
    return np.stack(actions).reshape(-1, *model.action_shape)


@pytest.mark.parametrize("form", ["operators", "qdq", "float"])
@pytest.mark.parametrize("action", ["Discrete", "MultiDiscrete", "MultiDiscrete of one", "MultiBinary"])
def test_godot_chooses_the_students_actions(action: str, form: str, tmp_path: Path) -> None:
    policy, observations = make_of_space("vector", action, 4), sample(spaces.Box(-1, 1, (3,)), 100)
    with th.no_grad():
        policy.action_net.bias.sub_(1e3)  # all logits below zero, where the plugin's search begins
    model = policy.to_integer()
    assert model.logits(observations).max() < 0
    path = export_onnx(model, tmp_path, form=form, names="godot")[0]
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(plays_godot(path, model, {"obs": observations}), expected)
    actions, outputs = OnnxPolicy(path).run(observations)
    assert_same_bits(actions, expected)
    assert_same_bits(outputs, model.logits(observations))


def test_godot_takes_a_box_action(tmp_path: Path) -> None:
    model, observations = make_student(VECTOR, UNIT_BOX).to_integer(), some_observations(VECTOR, 100)
    path = export_onnx(model, tmp_path, names="godot")[0]
    expected = model.predict(observations, deterministic=True)[0]
    assert_same_bits(plays_godot(path, model, {"obs": observations}), expected)
    assert_same_bits(OnnxPolicy(path).run(observations)[0], expected)


def test_godot_gives_each_key_of_a_dict(tmp_path: Path) -> None:
    space = spaces.Dict(obs=spaces.Box(-1, 1, (2, 3)), ray=spaces.Box(-1, 1, (4,)))
    th.manual_seed(0)
    policy = QuantActorCriticPolicy(space, DISCRETE, lambda _: 0.0, "nano")
    with th.no_grad():
        policy.action_net.weight.mul_(100)
    policy.calibrate(policy.obs_to_tensor(sample(space, 64))[0])
    model, observations = policy.to_integer(), sample(space, 50, seed=1)
    path = export_onnx(model, tmp_path, names="godot")[0]
    inputs = {one.name: [dim.dim_value for dim in one.type.tensor_type.shape.dim[1:]] for one in onnx.load(path).graph.input}
    assert inputs == {"obs": [6], "ray": [4], "state_ins": []}
    expected = model.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(plays_godot(path, model, observations), expected)
    assert_same_bits(OnnxPolicy(path).run(observations)[0], expected)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("image, discrete", "does not support images and indices"),
        ("vector, Box", "does not support Box actions beyond -1 and 1, got bounds of -2 and 10"),
    ],
)
def test_what_godot_cannot_play(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"names='godot': Godot RL Agents {message}"):
        export_onnx(make_student(*SPACES[kind]).to_integer(), tmp_path, names="godot")
    with pytest.raises(ValueError, match="does not support action masks"):
        export_onnx(make_of_space("vector", "Discrete", 8, uses_masks=True).to_integer(), tmp_path, names="godot")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["operators", "qdq", "float"])
def test_names_of_ones_own(form: str, tmp_path: Path) -> None:
    model, observations = make_student().to_integer(), some_observations(VECTOR, 50)
    names = {"observation": "action", "logits": "observation"}  # other inputs' and outputs' old names too
    if form != "float":
        names["action"] = "move"
    path = export_onnx(model, tmp_path, form=form, names=names)[0]
    graph = onnx.load(path).graph
    assert [value.name for value in graph.input] == ["action"]
    assert [value.name for value in graph.output] == (["observation"] if form == "float" else ["move", "observation"])
    actions, outputs = OnnxPolicy(path).run(observations)
    assert_same_bits(outputs, model.logits(observations))
    assert_same_bits(actions, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize(
    "names, message",
    [
        ({"obs": "x"}, "names: this student has no input or output 'obs'. It has observation, action, logits"),
        ({"observation": "accumulators"}, "names: 'accumulators' is empty, given twice or another tensor's"),
        ({"observation": "a", "action": "a"}, "names: 'a' is empty, given twice"),
        ({"observation": "action"}, "names: 'action' is empty, given twice or another tensor's"),
        ("unity", "names must be a dict or 'godot', got 'unity'"),
    ],
)
def test_wrong_names(names: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(make_student().to_integer(), tmp_path, names=names)


def test_names_of_the_command_line() -> None:
    assert parse_names("godot") == "godot"
    assert parse_names("observation=obs, action=move") == {"observation": "obs", "action": "move"}
    for wrong in ("unity", "observation=", "a=b=c", ""):
        with pytest.raises(ValueError, match="--names takes godot, or pairs such as observation=obs,action=move"):
            parse_names(wrong)


@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W2A8"])
@pytest.mark.parametrize("kind", SPACES)
def test_plain_float_operators(kind: str, bits: str, tmp_path: Path) -> None:
    """Every value is the integer of the integer model; of the sums none leaves float32's integers here."""
    space, actions = SPACES[kind]
    model, observations = make_student(space, actions, BITS[bits]).to_integer(), some_observations(space, 60)
    path, agreement = export_onnx(model, tmp_path, form="float")
    proto = onnx.load(path)
    assert {node.op_type for node in proto.graph.node} <= UNITY - {"Cast", "ReduceMax"}
    assert proto.opset_import[0].version == 13
    tensors = [*proto.graph.input, *proto.graph.output]
    assert {value.type.tensor_type.elem_type for value in tensors} == {onnx.TensorProto.FLOAT}
    policy = OnnxPolicy(path, optimize=False)
    steps = dict(zip(model.step_names(), model.trace(observations), strict=True))
    for name, values in policy.trace(observations).items():
        np.testing.assert_array_equal(values, steps[name], err_msg=name)
    got, outputs = policy.run(observations)
    assert_same_bits(outputs, model.logits(observations))
    assert_same_bits(got, model.predict(observations, deterministic=True)[0])
    found = json.loads(agreement.read_text())
    assert found["not optimized"] == {"equal_actions": 1.0, "equal_outputs": 1.0, "largest_difference": 0.0}
    assert found["optimized"]["equal_actions"] >= 0.9 and found["random_observations"] == (64 if model.is_image else 2000)


@pytest.mark.parametrize("observation", ["Discrete", "MultiDiscrete", "MultiBinary", "float image", "Dict"])
def test_plain_float_operators_take_all_observations(observation: str, tmp_path: Path) -> None:
    model = make_of_space(observation, "MultiDiscrete", 8, uses_masks=True).to_integer()
    path = export_onnx(model, tmp_path, form="float")[0]
    assert {node.op_type for node in onnx.load(path).graph.node} <= UNITY - {"Cast", "ReduceMax"}
    observations, rng = sample(OBSERVATIONS[observation], 40, seed=1), np.random.default_rng(0)
    masks = rng.random((40, sum(model.action_nvec))) < 0.6
    masks[:, np.cumsum(model.action_nvec) - 1] = True
    for given in (None, masks):  # masks are the caller's: the file gives logits
        actions, outputs = OnnxPolicy(path, optimize=False).run(observations, given)
        assert_same_bits(outputs, model.logits(observations))
        assert_same_bits(actions, model.predict(observations, deterministic=True, action_masks=given)[0])


def test_plain_float_operators_of_random_students(tmp_path: Path) -> None:
    """Equality is not promised, and sums beyond 2^24 break it: the file loads, and is near where numbers are ordinary."""
    n_refused = 0
    for seed in range(15):
        student: RandomStudent = draw(seed)
        try:
            path, _ = export_onnx(student.model, tmp_path / str(seed), form="float")
        except ValueError as error:
            assert "observations in float64 with an offset" in str(error) and student.model.input_origin is not None
            n_refused += 1
            continue
        with np.errstate(over="ignore"):
            actions, outputs = OnnxPolicy(path, optimize=False).run(student.observations)
            assert outputs.shape == student.model.logits(student.observations).shape
        assert actions.shape == student.model.predict(student.observations, deterministic=True)[0].shape
    assert n_refused < 10


@pytest.mark.parametrize("has_actions", [True, False])
@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_plain_float_operators_carry_a_state(kind: str, has_actions: bool, tmp_path: Path) -> None:
    """Over episodes the state is float32 in the file, and the next steps see the most probable action."""
    model = make_with_memory(kind, 2 if kind == "box" else 4, history_actions=has_actions).to_integer()
    path, agreement = export_onnx(model, tmp_path, form="float")
    proto, mine = onnx.load(path), None
    assert {node.op_type for node in proto.graph.node} <= UNITY | {"MatMul", "Slice"}
    tensors = [*proto.graph.input, *proto.graph.output]
    assert {value.type.tensor_type.elem_type for value in tensors} == {onnx.TensorProto.FLOAT}
    policies = [OnnxPolicy(path, optimize=optimize) for optimize in (True, False)]
    for observations, starts in episodes(kind, 25):
        before, _ = model.remember(observations, mine, starts)
        expected, mine = model.predict(observations, mine, starts, deterministic=True)
        for policy in policies:
            assert_same_step(policy, model, observations, before, expected, mine[0])
    assert json.loads(agreement.read_text())["not optimized"]["equal_actions"] == 1.0


def test_of_tied_actions_the_first_is_remembered(tmp_path: Path) -> None:
    model = make_with_memory("bits", 4, history_actions=True).to_integer()
    *hidden, head = model.layers
    tied = replace(head, weight=np.zeros_like(head.weight), bias=np.array([5, 5, -7, -7, -7], np.int32))
    model = replace(model, layers=[*hidden, tied])
    path = export_onnx(model, tmp_path, form="float")[0]
    observations = observations_of("bits", 9)
    expected, state = model.predict(observations, deterministic=True)
    actions, _, after = OnnxPolicy(path).run(observations)
    assert_same_bits(actions, expected)
    assert not expected.any() and state is not None and np.array_equal(after, state[0])


def test_names_of_a_state(tmp_path: Path) -> None:
    model, observations = make_with_memory("box").to_integer(), observations_of("box", 20)
    path = export_onnx(model, tmp_path, names={"state": "memory_in", "next_state": "memory_out"})[0]
    expected, state = model.predict(observations, deterministic=True)
    actions, _, after = OnnxPolicy(path).run(observations)
    assert_same_bits(actions, expected)
    assert state is not None and np.array_equal(after, state[0])
    assert [one.name for one in onnx.load(path).graph.input] == ["observation", "memory_in"]
    with pytest.raises(ValueError, match="a memory, history=4 .its state_ins is one constant number, and it drops state_outs"):
        export_onnx(model, tmp_path, names="godot")


def test_masks_are_applied_after_plain_float_operators(tmp_path: Path) -> None:
    model = make_with_memory("discrete", history_actions=True).to_integer()
    model.uses_masks = True
    with pytest.raises(ValueError, match="a memory of actions with action masks: the masks are applied outside"):
        export_onnx(model, tmp_path, form="float")


def test_verify_knows_them(tmp_path: Path) -> None:
    space = spaces.Box(-1, 1, (4,))
    make_student(space, spaces.Discrete(2)).to_integer(env={"env_id": "CartPole-v1"}).save(tmp_path / "student.npz")
    start = ["export", str(tmp_path / "student.npz"), "--target", "onnx", "--out", str(tmp_path)]
    for options, is_exact in ((["--names", "godot"], True), (["--float"], False), (["--float", "--names", "godot"], False)):
        assert main([*start, *options]) == 0
        result = verify(tmp_path, some_observations(space, 50))
        assert result.holds and {row.is_exact for row in result.differences} == {is_exact} and not result.foreign
    assert (tmp_path / "student_onnx.json").is_file()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--target", "c", "--names", "godot"], "--names is for onnx, the targets are c"),
        (["--target", "c", "--float"], "--float is for onnx, the targets are c"),
        (["--target", "onnx", "--float", "--qdq"], "--qdq and --float are two forms of the ONNX file"),
        (["--target", "onnx", "--names", "unity"], "--names takes godot, or pairs"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_student().to_integer().save(tmp_path / "student.npz")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "student.npz"), *options, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_channels_last(tmp_path: Path) -> None:
    model, observations = make_student(IMAGE, DISCRETE).to_integer(), some_observations(IMAGE, 8)
    path = export_onnx(model, tmp_path, form="float", channels_last=True, names={"observation": "camera"})[0]
    assert_same_bits(OnnxPolicy(path, optimize=False).run(observations)[1], model.logits(observations))
