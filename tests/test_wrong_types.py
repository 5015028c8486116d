"""Every argument of the public functions refuses a value of another type, and the message names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toys import QUICK, untrained

from sb3_qpd import QPDDistiller, TeacherLabels, compare, evaluate, load_student, load_teacher, make_recipe
from sb3_qpd.envs import EnvRecipe
from sb3_qpd.evaluation.benchmark import Networks, benchmark
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export import export

WRONG: dict[str, Any] = {"object": object(), "list": [1], "array": np.array([1, 2]), "negative": -1, "NaN": float("nan")}


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("student")
    teacher = load_teacher(untrained("CartPole-v1"))
    student = QPDDistiller(teacher, "CartPole-v1", n_envs=2, **QUICK).learn(200)
    student.save(folder / "student.zip")
    model = student.to_integer()
    model.save(folder / "student.npz")
    played = evaluate(model, "CartPole-v1", n_episodes=2)
    plan = plan_evaluation(teacher, "CartPole-v1", 1)
    untrained("CartPole-v1").save(folder / "teacher.zip")

    def learn(**arguments: Any) -> None:
        QPDDistiller(teacher, "CartPole-v1", n_envs=1, **QUICK).learn(**{"total_timesteps": 1, **arguments})

    learn.__signature__ = inspect.signature(
        QPDDistiller.learn
    ).replace(  # type: ignore[attr-defined]
        parameters=list(inspect.signature(QPDDistiller.learn).parameters.values())[1:]
    )
    return {
        "QPDDistiller": (QPDDistiller, {"teacher": teacher, **QUICK}),
        "learn": (learn, {}),
        "evaluate": (evaluate, {"policy": model, "env": "CartPole-v1", "n_episodes": 1}),
        "load_teacher": (load_teacher, {"source": folder / "teacher.zip", "env": "CartPole-v1"}),
        "load_student": (load_student, {"path": folder / "student.zip"}),
        "export": (export, {"model": model, "target": "numpy", "out_dir": folder / "out"}),
        "verify": (verify, {"folder": folder, "source": "CartPole-v1", "n_observations": 2, "policy": student.policy}),
        "benchmark": (benchmark, {"folder": folder, "recipe": "CartPole-v1", "given": Networks(), "seconds": 0.01}),
        "plan_evaluation": (plan_evaluation, {"teacher": teacher, "env": "CartPole-v1", "n_episodes": 1}),
        "make_report": (make_report, {"distiller": student, "plan": plan}),
        "compare": (compare, {"student": played, "teacher": played, "random": played}),
        "TeacherLabels": (TeacherLabels, {"env": gym.make("CartPole-v1"), "teacher": teacher}),
        "make_recipe": (make_recipe, {"env": "CartPole-v1"}),
        "EnvRecipe": (EnvRecipe, {"env_id": "CartPole-v1"}),
    }


NAMES = (
    *("QPDDistiller", "learn", "evaluate", "load_teacher", "load_student", "export", "verify", "benchmark"),
    *("plan_evaluation", "make_report", "compare", "TeacherLabels", "make_recipe", "EnvRecipe"),
)
# words by which a message names an argument, where these are not its name
WORDS = {
    ("load_teacher", "source"): "Expected a path",
    ("QPDDistiller", "teacher"): "Expected a path",
    ("TeacherLabels", "teacher"): "Expected a path",
    ("QPDDistiller", "weight_bits"): "weight_bits|Bits",
    ("QPDDistiller", "activation_bits"): "activation_bits|Bits",
    ("export", "model"): "IntegerModel",
    ("make_recipe", "env"): "environment id",
    ("benchmark", "recipe"): "env must be",
    ("verify", "source"): "source|Expected observations",
}
# arguments whose values are free
ANY = {("QPDDistiller", "_init_setup_model"), ("benchmark", "left_out"), ("export", "options")}


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_checked(
    name: str, calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call, arguments = calls[name]
    for parameter in inspect.signature(call).parameters:
        if (name, parameter) in ANY:
            continue
        for kind, value in WRONG.items():
            with pytest.raises((TypeError, ValueError), match=WORDS.get((name, parameter), parameter)) as caught:
                call(**{**arguments, parameter: value})
            assert Path(str(caught.traceback[-1].path)).is_relative_to(Path(inspect.getfile(QPDDistiller)).parents[1]), (
                parameter,
                kind,
                str(caught.value),
            )
