import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

from sb3_qpd import QPDDistiller, load_teacher, make_recipe
from sb3_qpd.evaluation.comparison import (
    EvaluationPlan,
    agreement,
    describe_env,
    make_report,
    parity_of,
    plan_evaluation,
    versions,
)
from sb3_qpd.evaluation.episodes import TEST_SEED
from sb3_qpd.evaluation.report import table, to_json, to_markdown, verdict_line, write_report

CONTENDERS = ("random", "teacher", "float", "integer")


@pytest.fixture(scope="module")
def distiller() -> QPDDistiller:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=256)
    model.learn(3_000)
    student = QPDDistiller(
        load_teacher(model, env="CartPole-v1"), student_arch="nano", seed=0, device="cpu", check_teacher=False
    )
    return student.learn(2_000)


@pytest.fixture(scope="module")
def report(distiller: QPDDistiller) -> dict[str, Any]:
    baseline = QPDDistiller(
        distiller.teacher,
        student_arch="nano",
        seed=0,
        device="cpu",
        check_teacher=False,
        transition="none",
        weight_bits=32,
        activation_bits=32,
    ).learn(1_000)
    arena = plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"), 20)
    baselines = {"full float": baseline, "post-training": baseline.post_training_quantize(8, 8)}
    return make_report(distiller, arena, baselines)


def test_report_has_what_it_promises(report: dict[str, Any], distiller: QPDDistiller) -> None:
    for name in CONTENDERS:
        section = report[name]
        assert {"return_mean", "return_std", "return_iqm", "ci95", "episodes", "deterministic"} <= section.keys()
        assert section["other_mode"]["deterministic"] is not section["deterministic"] or name == "random"
        assert section["episodes"] == 20
        if name != "random":
            assert section["bytes"] > 0 and section["params"] > 0 and section["macs"] > 0
            assert section["microseconds_per_action"] > 0
    model = distiller.policy.to_integer()
    assert report["integer"]["bytes"] == model.nbytes
    assert report["float"]["bytes"] == 4 * model.n_parameters
    assert report["size_percent"] == pytest.approx(100 * model.nbytes / distiller.teacher.nbytes)
    assert report["size_percent_of_int8_teacher"] == pytest.approx(4 * report["size_percent"])
    assert report["params_percent"] > 0 and report["macs_percent"] > 0
    assert report["parity"] == 1.0
    assert 0 <= report["teacher_agreement"] <= 1
    assert report["verdict"] in ("non_inferior", "inferior", "inconclusive")
    assert report["margin"] == pytest.approx(0.05 * report["teacher"]["return_mean"])
    assert report["ratio"] == pytest.approx(report["integer"]["return_mean"] / report["teacher"]["return_mean"])
    assert report["weight_bits"] == 8 and report["activation_bits"] == 8
    assert report["timesteps"] >= 2_000 and report["seconds"] > 0 and report["evaluation_seconds"] > 0
    assert report["seed"] == 0 and report["evaluation_seed"] == TEST_SEED
    assert report["teacher_name"] == distiller.teacher.name and "teacher_checksum" in report
    assert {"sb3_qpd", "python", "stable-baselines3", "gymnasium", "numpy", "torch"} <= report["versions"].keys()
    assert report["paired"]


def test_baselines_are_compared_too(report: dict[str, Any]) -> None:
    assert set(report["baselines"]) == {"full float", "post-training"}
    for section in report["baselines"].values():
        assert section["verdict"] in ("non_inferior", "inferior", "inconclusive")
    assert report["baselines"]["post-training"]["bytes"] == report["integer"]["bytes"]
    assert report["baselines"]["full float"]["bytes"] == report["float"]["bytes"]


def test_report_is_strict_json_and_readable(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.json", "report.md"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "new" / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse) == to_json(report)
    markdown = (tmp_path / "new" / "report.md").read_text()
    assert markdown == to_markdown(report)
    for name in (*CONTENDERS, "full float", "post-training"):
        assert f"\n| {name} " in markdown
    assert "The integer student is" in markdown and "bit-equal" in markdown
    assert str(tmp_path) not in text + markdown


def test_table_is_aligned(report: dict[str, Any]) -> None:
    assert len({len(line) for line in table(report).splitlines()}) == 1


def test_what_means_nothing_is_left_out(report: dict[str, Any]) -> None:
    without = {**report, "score": None, "score_ci95": None, "ratio": None, "ratio_ci95": None, "float": None}
    assert "score" not in verdict_line(without) and "ratio" not in verdict_line(without)
    assert "| float " not in to_markdown(without)


def test_strict() -> None:
    value = {
        "a": np.float32(1.5),
        "b": (np.int64(2), float("nan")),
        "c": np.array([np.inf, 1.0]),
        3: None,
        "d": np.bool_(True),
    }
    assert to_json(value) == {"a": 1.5, "b": [2, None], "c": [None, 1.0], "3": None, "d": True}


def test_a_failed_write_leaves_the_old_report(report: dict[str, Any], tmp_path: Path) -> None:
    write_report(report, tmp_path)
    before = (tmp_path / "report.json").read_text()
    with pytest.raises(TypeError):
        write_report({**report, "verdict": object()}, tmp_path)
    assert (tmp_path / "report.json").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_episodes_follow_from_the_teachers_spread(distiller: QPDDistiller) -> None:
    arena = plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"))
    assert 100 <= arena.n_episodes <= 1_000
    assert arena.deterministic and arena.seed == TEST_SEED
    fixed = plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"), 12)
    assert (fixed.n_episodes, fixed.n_other) == (12, 12)
    assert plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"), 200).n_other == 50
    assert not plan_evaluation(distiller.teacher, make_recipe("PongNoFrameskip-v4"), 12).deterministic


def test_parity_counts_bits(distiller: QPDDistiller) -> None:
    observations = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    model = distiller.policy.to_integer()
    assert parity_of(distiller.policy, model, observations) == 1.0
    model.layers[-1].bias[0] += 1
    assert parity_of(distiller.policy, model, observations) == 0.5


def test_agreement_of_a_teacher_with_itself(distiller: QPDDistiller) -> None:
    observations = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    assert agreement(distiller.teacher, distiller.teacher, observations) == 1.0
    box = load_teacher(PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
    assert agreement(box, box, observations[:, :3]) == 0.0

    class Opposite:
        def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, None]:
            return np.full((len(observation), 1), 2.0) + box.predict(observation, deterministic=True)[0], None

    assert agreement(box, Opposite(), observations[:, :3]) == pytest.approx(1.0, abs=1e-6)  # half the range of [-2, 2]


def test_environment_and_versions_are_plain_values() -> None:
    described = describe_env(make_recipe("LunarLander-v3", {"gravity": -9.0}))
    assert json.loads(json.dumps(described)) == described
    assert described["env_id"] == "LunarLander-v3" and described["env_kwargs"] == {"gravity": -9.0}
    assert json.dumps(versions())


def test_arena_plays_both_modes() -> None:
    arena = EvaluationPlan("CartPole-v1", n_episodes=4, n_other=2, deterministic=False)
    assert (arena.play("random", "random").deterministic, arena.play("random", "random").episodes) == (False, 4)
    other = arena.play("random", "random", other_mode=True)
    assert (other.deterministic, other.episodes) == (True, 2)
