"""An environment as a class or a function, wherever an environment is taken."""

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import pytest
from toys import QUICK, Pointer, pointers, untrained

from sb3_qpd import QPDDistiller, TeacherLabels, evaluate, load_student, load_teacher
from sb3_qpd.evaluation.benchmark import benchmark
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.verify import verify

SOURCES = {"class": Pointer, "function": lambda: Pointer(n_steps=5), "function of a VecEnv": lambda: pointers(n_envs=2)}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_class_or_a_function_is_an_environment(make: Callable[[], gym.Env], tmp_path: Path) -> None:
    teacher = load_teacher(untrained(pointers(n_envs=1)), env=make)
    student = QPDDistiller(teacher, make, **QUICK).learn(64)
    plan = plan_evaluation(teacher, make, 2)
    report = make_report(student, plan)
    assert report["env"]["env_id"] == ("DummyVecEnv" if "VecEnv" in str(type(make())) else "Pointer")
    assert report["integer"]["episodes"] == 2 and not report["teacher"]["is_cached"]
    assert plan_evaluation(teacher, make).n_episodes >= 100  # planned by episodes of the teacher
    assert evaluate(student.to_integer(make), make, n_episodes=2).episodes == 2
    student.save(tmp_path / "student.zip")
    student.to_integer(make).save(tmp_path / "student.npz")
    assert verify(tmp_path, make, 6, policy=student.policy).holds
    assert [row.name for row in benchmark(tmp_path, make, seconds=0.01)] == ["student, numpy"]
    again = load_student(tmp_path / "student.zip", env=make)
    again.set_teacher(teacher)
    again.set_env(make)
    assert again.learn(16).num_timesteps == 16 and QPDDistiller.load(tmp_path / "student.zip", env=make).env is not None


def test_labels_of_a_class() -> None:
    _, info = TeacherLabels(Pointer, untrained(pointers(n_envs=1))).reset(seed=0)
    assert info["teacher_logits"].shape == (3,)
    with pytest.raises(TypeError, match="env must be an environment, such as gym.make"):
        TeacherLabels("CartPole-v1", untrained("CartPole-v1"))  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda n: Pointer(), lambda: 3, int], ids=["with an argument", "of a number", "int"])
def test_what_makes_no_environment(make: Callable[[], gym.Env]) -> None:
    teacher = load_teacher(untrained(pointers(n_envs=1)))
    message = r"cannot be called without arguments|to build a gymnasium.Env or a VecEnv, got int"
    for call in (evaluate, plan_evaluation, QPDDistiller):
        with pytest.raises(TypeError, match=message):
            call(teacher, make)
