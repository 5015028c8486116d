"""Teachers that are functions: what they answer is what is taught, and another answer is refused with the reason."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from toys import QUICK, Pointer

from sb3_qpd import IntegerModel, QPDDistiller, Teacher, TeacherError, load_teacher
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.report import to_markdown
from sb3_qpd.teachers.families import DeterministicTeacher

VECTOR, BOX = spaces.Box(-3, 3, (4,), np.float32), spaces.Box(np.array([-1, 0], np.float32), np.array([3, 0.5], np.float32))
SHA = "ab" * 32


def observations(n: int = 50) -> np.ndarray:
    return np.random.default_rng(1).uniform(-3, 3, (n, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def agents() -> dict[str, Any]:
    options = {"policy_kwargs": {"net_arch": [8]}, "device": "cpu", "seed": 0}
    return {
        "ppo": PPO("MlpPolicy", "CartPole-v1", **options),
        "sac": SAC("MlpPolicy", "Pendulum-v1", buffer_size=9, **options),
    }


def logits_of(agent: Any) -> Any:
    def logits(x: np.ndarray) -> np.ndarray:
        with th.no_grad():
            return agent.policy.get_distribution(th.as_tensor(x)).distribution.logits.numpy()

    return logits


def test_logits_are_the_labels_of_the_agent_itself(agents: dict[str, Any]):
    agent, x = agents["ppo"], observations()
    value = lambda x: agent.policy.predict_values(th.as_tensor(x)).detach()  # noqa: E731
    spaces_ = agent.observation_space, agent.action_space
    teacher = Teacher.from_function(logits_of(agent), *spaces_, "logits", value=value, name="cleanrl/ppo", checksum=SHA)
    live = load_teacher(agent, device="cpu")
    th.testing.assert_close(teacher(x).actor.log_softmax(1), live(x).actor.log_softmax(1))
    th.testing.assert_close(teacher(x).value, live(x).value)
    np.testing.assert_array_equal(teacher.predict(x, deterministic=True)[0], agent.predict(x, deterministic=True)[0])
    assert teacher.predict(x[0], deterministic=True)[0] == agent.predict(x[0], deterministic=True)[0]
    assert teacher.nbytes == 0 and teacher.macs == 0 and load_teacher(teacher) is teacher


def test_a_torch_module_is_copied_and_counted(agents: dict[str, Any]):
    agent = agents["ppo"]
    module = th.nn.Sequential(agent.policy.mlp_extractor.policy_net, agent.policy.action_net)
    teacher = Teacher.from_function(module, agent.observation_space, agent.action_space, "logits")
    live, x = load_teacher(agent, device="cpu"), observations()
    th.testing.assert_close(teacher(x).actor, live(x).actor)
    assert (teacher.n_parameters, teacher.macs) == (live.n_parameters, live.macs)
    before = teacher(x).actor
    with th.no_grad():
        module[1].bias.add_(1)
    assert th.equal(teacher(x).actor, before)
    with th.no_grad():
        module[1].bias.sub_(1)


def test_a_gaussian_and_its_deviation():
    def gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x[:, :2], np.array([-1.0, -2.0])

    teacher = Teacher.from_function(gaussian, VECTOR, BOX, "gaussian")
    x = observations()
    labels = teacher(x)
    np.testing.assert_array_equal(labels.actor.numpy(), x[:, :2])
    assert labels.log_std.shape == (50, 2) and labels.value is None
    played = teacher.predict(x, deterministic=True)[0]
    np.testing.assert_array_equal(played, np.clip(x[:, :2], BOX.low, BOX.high))
    assert (teacher.predict(x)[0] != played).any() and BOX.contains(teacher.predict(x[0])[0])


@pytest.mark.parametrize(
    "space, answer, best",
    [
        (spaces.Discrete(3), lambda x: (x[:, 0] > 0).astype(int), lambda x: (x[:, 0] > 0).astype(int)),
        (spaces.MultiDiscrete([2, 3]), lambda x: np.tile([1, 2], (len(x), 1)), lambda x: np.tile([1, 2], (len(x), 1))),
        (spaces.MultiBinary(2), lambda x: np.tile([0, 1], (len(x), 1)), lambda x: np.tile([0, 1], (len(x), 1))),
        (BOX, lambda x: x[:, :2] * 0.1, lambda x: np.clip(x[:, :2] * 0.1, BOX.low, BOX.high)),
    ],
)
def test_actions_of_a_rule(space: spaces.Space, answer: Any, best: Any):
    teacher, x = Teacher.from_function(answer, VECTOR, space, "action"), observations()
    assert isinstance(teacher, DeterministicTeacher) and teacher.name == "lambda"
    np.testing.assert_array_equal(teacher.predict(x)[0], best(x).astype(np.float32))
    assert len(teacher.sample(teacher(x))) == 50  # explores


def test_q_values_have_a_value_and_a_temperature():
    teacher = Teacher.from_function(lambda x: x[:, :2] * 100, VECTOR, spaces.Discrete(2), "q_values")
    labels = teacher(observations())
    assert th.equal(labels.value, labels.actor.amax(1)) and teacher.temperature_of(labels) > 1


def test_a_dict_of_arrays():
    space = spaces.Dict({"a": VECTOR, "b": spaces.Discrete(3)})
    seen = []

    def logits(x: dict[str, np.ndarray]) -> np.ndarray:
        seen.append({key: value.shape for key, value in x.items()})
        return np.eye(3)[x["b"]]

    teacher = Teacher.from_function(logits, space, spaces.Discrete(3), "logits")
    assert seen[0] == {"a": (3, 4), "b": (3,)}
    assert teacher.predict({"a": np.zeros(4, np.float32), "b": np.int64(2)}, deterministic=True)[0] == 2


def test_a_student_learns_a_rule_and_its_report_knows_no_size():
    def rule(x: np.ndarray) -> np.ndarray:
        return ((x - Pointer.offset) / Pointer.scale).argmax(1)

    env = Pointer()
    teacher = Teacher.from_function(rule, env.observation_space, env.action_space, "action", name="rule", checksum=SHA)
    student = QPDDistiller(teacher, Pointer, n_envs=4, **{**QUICK, "check_teacher": True}).learn(4_000)
    model: IntegerModel = student.to_integer()
    assert (student.teacher_name, student.teacher_checksum) == ("rule", SHA)
    assert (model.metadata["teacher"], model.metadata["teacher_checksum"]) == ("rule", SHA)
    x = Pointer.sample(500)
    assert np.mean(model.predict(x, deterministic=True)[0] == rule(x)) > 0.8
    report = make_report(student, plan_evaluation(teacher, Pointer, 20))
    assert report["size_percent"] is None and "bytes" not in report["teacher"]
    assert "the teacher's size is not known" in to_markdown(report)
    with pytest.raises(ValueError, match="teacher"):
        QPDDistiller(teacher, Pointer, **{**QUICK, "student_arch": "5%"})


WRONG = [
    ("logits", spaces.Discrete(3), lambda x: x, r"answered logits of shape \(3, 4\): expected shape \(3, 3\)"),
    (
        "logits",
        spaces.Discrete(3),
        lambda x: np.zeros((1, 3)),
        r"logits of shape \(1, 3\): expected shape \(3, 3\), one row for",
    ),
    ("logits", spaces.Discrete(3), lambda x: np.zeros((9, 1)), r"logits of shape \(9, 1\)"),
    ("logits", spaces.Discrete(3), lambda x: "left", "answered a str: expected an array"),
    ("logits", spaces.Discrete(3), lambda x: None, "answered a NoneType"),
    ("logits", spaces.Discrete(3), lambda x: 1 / 0, r"failed on a batch of 3 observations \(ZeroDivisionError"),
    ("action", spaces.Discrete(3), lambda x: np.full(len(x), 3), "other numbers: expected whole actions of Discrete"),
    ("action", spaces.Discrete(3), lambda x: np.full(len(x), 0.5), "other numbers"),
    ("action", BOX, lambda x: np.zeros(len(x)), r"action of shape \(3,\): expected shape \(3, 2\)"),
    ("gaussian", BOX, lambda x: np.zeros((len(x), 2)), "answered a ndarray: expected a tuple of mean and log_std"),
    ("gaussian", BOX, lambda x: (np.zeros((len(x), 2)), np.zeros(3)), r"log_std of shape \(3,\)"),
    ("gaussian", spaces.Discrete(3), lambda x: x, "is for Box actions, the teacher's actions are Discrete"),
    ("logits", BOX, lambda x: x, "is for discrete actions"),
    ("q_values", spaces.MultiBinary(2), lambda x: x, "is for Discrete actions"),
]


@pytest.mark.parametrize("kind, space, function, message", WRONG)
def test_wrong_answers_are_refused(kind: str, space: spaces.Space, function: Any, message: str):
    with pytest.raises(TeacherError, match=message):
        Teacher.from_function(function, VECTOR, space, kind)


def test_nan_and_a_batch_size_that_changes_later():
    answers = iter([np.zeros((3, 2)), np.zeros((1, 2)), np.zeros((3, 2))])
    teacher = Teacher.from_function(lambda x: next(answers), VECTOR, spaces.Discrete(2), "logits")
    with pytest.raises(TeacherError, match=r"shape \(3, 2\): expected shape \(50, 2\)"):
        teacher(observations())
    with pytest.raises(ValueError, match="NaN or infinity"):
        Teacher.from_function(lambda x: np.full((len(x), 2), np.nan), VECTOR, spaces.Discrete(2), "logits")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"function": 3}, TypeError, "function must be a function or a torch module, got 3"),
        ({"value": 3}, TypeError, "value must be a function"),
        ({"kind": "logit"}, ValueError, "logits"),
        ({"observation_space": 3}, TypeError, "observation_space must be a gymnasium space"),
        ({"action_space": spaces.Box(-np.inf, np.inf, (1,))}, TeacherError, "no finite bounds"),
        ({"checksum": "abc"}, ValueError, "checksum must be a SHA-256"),
        ({"name": 3}, TypeError, "name must be a name"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str):
    given = {
        "function": lambda x: np.zeros((len(x), 2)),
        "observation_space": VECTOR,
        "action_space": spaces.Discrete(2),
        "kind": "logits",
    }
    with pytest.raises(error, match=message):
        Teacher.from_function(**{**given, **arguments})
