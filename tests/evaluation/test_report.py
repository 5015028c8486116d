import io
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO

from sb3_qpd import QPDDistiller, load_teacher, make_recipe
from sb3_qpd.cli import make_parser
from sb3_qpd.envs.recipe import describe_env
from sb3_qpd.evaluation.agreement import agreement, spread_of
from sb3_qpd.evaluation.comparison import EvaluationPlan, make_report, parity_of, plan_evaluation, versions
from sb3_qpd.evaluation.episodes import TEST_SEED
from sb3_qpd.evaluation.report import (
    VERDICTS,
    console_summary,
    next_step,
    notes_of,
    table,
    to_json,
    to_markdown,
    verdict_line,
    write_report,
)
from sb3_qpd.publishing.card import card

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
    plan = plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"), 20)
    baselines = {"full float": baseline, "post-training": baseline.post_training_quantize(8, 8)}
    return make_report(distiller, plan, baselines)


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
    assert report["verdict"] in VERDICTS
    assert report["lead"] == pytest.approx(report["teacher"]["return_mean"] - report["random"]["return_mean"])
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
        assert section["verdict"] in VERDICTS
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
    assert f"**{verdict_line(report)}**\n\n{next_step(report)}\n" in markdown and "bit-equal" in markdown
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
    plan = plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"))
    assert 100 <= plan.n_episodes <= 1_000 and plan.needed <= plan.n_episodes
    assert plan.deterministic and plan.seed == TEST_SEED
    fixed = plan_evaluation(distiller.teacher, make_recipe("CartPole-v1"), 12)
    assert (fixed.n_episodes, fixed.n_other, fixed.needed) == (12, 12, None)
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

    actions = box.predict(observations[:, :3], deterministic=True)[0]
    assert agreement(box, Opposite(), observations[:, :3]) == pytest.approx(2.0 / actions.std(), rel=1e-3)


def test_box_errors_are_in_units_of_what_the_teacher_does() -> None:
    """However wide the Box is; where the teacher never moves, and where it fills its Box, half the range is the unit."""
    rng = np.random.default_rng(0)
    actions = np.stack([rng.normal(0, 0.5, 4_000), np.full(4_000, 0.3), rng.choice([-9.0, 11.0], 4_000)], axis=1)
    for bound in (4.0, 100.0, 1e4, float(np.finfo(np.float32).max)):
        spread = spread_of(actions.astype(np.float32), spaces.Box(-bound, bound, (3,)))
        assert spread == pytest.approx([0.5, bound, min(10.0, bound)], rel=0.02)
    fixed = spaces.Box(np.array([1.0], np.float32), np.array([1.0], np.float32))
    assert spread_of(np.ones((9, 1), np.float32), fixed) == 1.0


def test_environment_and_versions_are_plain_values() -> None:
    described = describe_env(make_recipe("LunarLander-v3", {"gravity": -9.0}))
    assert json.loads(json.dumps(described)) == described
    assert described["env_id"] == "LunarLander-v3" and described["env_kwargs"] == {"gravity": -9.0}
    assert json.dumps(versions())


def test_a_plan_plays_both_modes() -> None:
    plan = EvaluationPlan("CartPole-v1", n_episodes=4, n_other=2, deterministic=False)
    assert (plan.play("random", "random").deterministic, plan.play("random", "random").episodes) == (False, 4)
    other = plan.play("random", "random", other_mode=True)
    assert (other.deterministic, other.episodes) == (True, 2)


def edited(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A report with other values, and the notes that follow from them."""
    sections = {name: {**report[name], **changes.pop(name)} for name in CONTENDERS if name in changes}
    changed = {**report, **sections, **changes}
    return {**changed, "notes": notes_of(changed)}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_report_without_a_claim(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Report, card and console say the same; nowhere stands that the student is as good."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    hopeless = edited(report, verdict="no_claim", lead=-524.0, lead_ci95=[-530.0, -518.0], margin=0.0, episodes_needed=None)
    markdown, shown = to_markdown(hopeless), console_summary(hopeless, stream=Terminal())
    model_card = card(hopeless, "me/student", ["student.npz"])
    for text in (markdown, shown, model_card):
        assert "No claim about the integer student: its teacher is not clearly above the random policy" in text
        assert "teacher - random policy: -524.00 [-530.00, -518.00]" in text and "vecnormalize.pkl" in text
        assert "non-inferior" not in text
        assert "Next: see what the teacher does, then give what it lacks: `sb3-qpd evaluate TEACHER`" in text
    assert "nothing can be claimed" in markdown
    assert "\033[1;31mNo claim" in shown and "\033" not in console_summary(hopeless, stream=io.StringIO())
    assert "\033" not in console_summary(edited(report, verdict="inferior"), stream=Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in console_summary(hopeless, stream=Terminal())
    alive = edited(report, verdict="no_claim", lead=10.0, margin=50.0)
    assert "A random policy in the student's place would pass: the margin of 50.00 is larger" in verdict_line(alive)


def test_too_few_episodes_are_named(report: dict[str, Any]) -> None:
    short = edited(report, verdict="inconclusive", integer={"episodes": 3}, episodes_needed=110)
    assert "3 episodes are too few: it takes 110" in verdict_line(short)
    assert "Fewer than 20 episodes give no verdict. It takes at least 110." in short["notes"]
    weak = edited(report, verdict="inconclusive", integer={"episodes": 50}, episodes_needed=1_501)
    assert "50 episodes are too few: it takes 1501" in verdict_line(weak)
    assert any("1501 episodes were needed, beyond the usual cap of 1000" in note for note in weak["notes"])


def test_intervals_without_width_are_said_to_be_so(report: dict[str, Any]) -> None:
    constant = edited(report, integer={"episodes": 100, "distinct_returns": 1, "return_mean": 500.0})
    assert any(
        "All 100 episodes of the student returned 500.00: its interval has no width" in note and "3.0 %" in note
        for note in constant["notes"]
    )
    equal = edited(report, integer={"episodes": 20, "distinct_returns": 19}, difference_ci95=[0.0, 0.0])
    assert any("differ by the same return in every episode" in note for note in equal["notes"])
    few = edited(report, integer={"episodes": 100, "distinct_returns": 3}, difference_ci95=[-1.0, 1.0])
    assert any("Only 3 distinct returns in 100 episodes" in note for note in few["notes"])


@pytest.mark.parametrize(
    ("changes", "advice", "options"),
    [
        (
            {"verdict": "inconclusive", "episodes_needed": 110, "difference_ci95": [-9.0, 1.0], "margin": 5.0},
            "play 110 episodes",
            "--episodes 110",
        ),
        (
            {
                **{"verdict": "inconclusive", "episodes_needed": 110, "timesteps": 2_000},
                **{"difference_ci95": [-90.0, -80.0], "margin": 5.0},
            },
            "let the student learn for longer",
            "--timesteps 8000",
        ),
        ({"verdict": "inconclusive", "timesteps": 2_000}, "let the student learn for longer", "--timesteps 8000"),
        ({"verdict": "inferior", "timesteps": 10**6, "student_arch": "tiny"}, "take a larger student", "--student-arch small"),
        ({"verdict": "inferior", "timesteps": 10**6, "student_arch": "large"}, "learn for longer", "--timesteps 4000000"),
        ({"verdict": "inferior", "timesteps": 10**6, "student_arch": "2kB"}, "take a larger student", "--student-arch 4kB"),
        (
            {"verdict": "inferior", "weight_bits": 3, "float": {"return_mean": 1e6}},
            "take more bits, as the float student plays better",
            "--weight-bits 8 --activation-bits 8",
        ),
    ],
)
def test_what_to_do_next(report: dict[str, Any], changes: dict[str, Any], advice: str, options: str) -> None:
    step = next_step(edited(report, **{"episodes_needed": 20, **changes}), "sb3-qpd compress 'a b.zip' --out out", "out")
    assert step.startswith("Next: ") and advice in step and "\n" not in step
    assert step.endswith(f"`sb3-qpd compress 'a b.zip' --out out --force {options}`")


def test_an_option_does_not_stand_twice(report: dict[str, Any]) -> None:
    given = "sb3-qpd compress x.zip --force --timesteps=9 --env-kwargs a=1 b=2 --out out --episodes 3"
    step = next_step(edited(report, verdict="inferior", timesteps=2_000), given, "out")
    assert step.endswith("`sb3-qpd compress x.zip --env-kwargs a=1 b=2 --out out --episodes 3 --force --timesteps 8000`")


def test_too_few_episodes_are_not_asked_for_again(report: dict[str, Any]) -> None:
    """Without --episodes the command finds out how many it takes."""
    short = edited(report, verdict="inconclusive", integer={"episodes": 3}, episodes_needed=110, timesteps=2_000)
    behind = {**short, "difference_ci95": [-90.0, -80.0], "margin": 5.0}
    assert next_step(behind, "sb3-qpd compress x.zip --episodes 3 --out out").endswith(
        "`sb3-qpd compress x.zip --out out --force --timesteps 8000`"
    )


def test_commands_to_copy_are_commands(report: dict[str, Any]) -> None:
    """They go through the command line's own parser."""
    passed = next_step(edited(report, verdict="non_inferior"), "", "my out")
    assert passed == "Next: export the student for a device: `sb3-qpd export 'my out' --target c --out 'my out'`"
    assert make_parser().parse_args(shlex.split(passed.split("`")[1])[1:]).target == ["c"]
    hopeless = next_step(edited(report, verdict="no_claim"), teacher="a.zip --env CartPole-v1")
    assert hopeless.endswith("`sb3-qpd evaluate a.zip --env CartPole-v1`")
    assert make_parser().parse_args(shlex.split(hopeless.split("`")[1])[1:]).model == "a.zip"
    failed = next_step(edited(report, verdict="inferior", timesteps=2_000))
    args = make_parser().parse_args(shlex.split(failed.split("`")[1])[1:])
    assert (args.teacher, args.timesteps, args.student_arch, args.force) == ("TEACHER", 8_000, "nano", True)
    assert next_step(edited(report, verdict="inferior"), None) == "Next: let the student learn for longer."


def test_the_report_names_the_command_that_was_typed(report: dict[str, Any], tmp_path: Path) -> None:
    step = next_step(edited(report, verdict="inferior", timesteps=2_000), "sb3-qpd compress a.zip --env X-v0 --seed 7", "out")
    write_report(report, tmp_path, step)
    assert step.endswith("`sb3-qpd compress a.zip --env X-v0 --seed 7 --force --timesteps 8000`")
    assert step in (tmp_path / "report.md").read_text() and "a.zip" not in (tmp_path / "report.json").read_text()


def test_a_command_that_is_made_from_the_report_is_complete(report: dict[str, Any]) -> None:
    env = {"env_id": "LunarLander-v3", "env_kwargs": {"gravity": -9.0, "name": "a b"}, "env_wrappers": [], "frame_stack": 1}
    failed = next_step(edited(report, verdict="inferior", timesteps=2_000, env=env, seed=5, transition="abrupt"))
    args = make_parser().parse_args(shlex.split(failed.split("`")[1])[1:])
    assert (args.env, dict(args.env_kwargs)) == ("LunarLander-v3", env["env_kwargs"])
    assert (args.seed, args.transition, args.timesteps) == (5, "abrupt", 8_000)
    wrapped = next_step(edited(report, verdict="inferior", env={**env, "env_wrappers": [["a.B", {}]]}))
    assert "--env" not in wrapped  # the teacher's run folder names it, with its wrappers


def test_the_teachers_episodes_are_kept(distiller: QPDDistiller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = EvaluationPlan(make_recipe("CartPole-v1"), 2, 2)
    first, second = (make_report(distiller, plan) for _ in range(2))
    assert not first["teacher"]["is_cached"] and second["teacher"]["is_cached"] and second["random"]["is_cached"]
    assert not second["integer"]["is_cached"] and any("played by an earlier run and kept" in note for note in second["notes"])
    for name in ("return_mean", "ci95", "distinct_returns"):
        assert first["teacher"][name] == second["teacher"][name] and first["random"][name] == second["random"][name]
    assert first["difference_ci95"] == second["difference_ci95"] and second["paired"]


def test_notes_name_the_inputs_that_a_student_cannot_resolve(report: dict[str, Any]) -> None:
    findings = [
        {"feature": "3", "kind": "few_levels", "levels": 5.0},
        {"feature": "0", "kind": "saturates", "low": -2.0, "high": 2.5},
        {"feature": "gps[1]", "kind": "origin", "origin": 5400000.25, "levels": 6.7},
    ]
    text = to_markdown(edited(report, input_findings=findings))
    assert "of their values (rare values lie far beyond these: clip or rescale them in the environment): 3 (5)." in text
    assert "Features of the observation whose rare values saturate: 0 (-2 to 2.5)." in text
    assert (
        "offset is taken off in float64, because float32 cannot carry it: gps\\[1\\] (5400000.25)." in text
    )  # as Markdown shows it
    assert "saturate" not in to_markdown(edited(report, input_findings=[]))


def test_the_next_command_names_each_option_once(report: dict[str, Any]) -> None:
    again = edited(report, verdict="inconclusive", episodes_needed=684, difference_ci95=(-1.0, 1.0), margin=5.0)
    line = next_step(again, "sb3-qpd compress 'my teacher' --force --episodes 100 --seed 3", "out")
    assert "`sb3-qpd compress 'my teacher' --seed 3 --force --episodes 684`" in line
