"""``sb3-qpd demo``: the first command of a new user."""

import json
from pathlib import Path

import pytest

from sb3_qpd import evaluate, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.cli.demo import TEACHER


def test_the_teacher_is_small_and_plays() -> None:
    assert TEACHER.stat().st_size < 20_000
    teacher = load_teacher(TEACHER, env="CartPole-v1")
    assert evaluate(teacher, "CartPole-v1", n_episodes=4, seed=0).return_mean == 500


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the teacher of the package to verified C."""
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["verdict"] == "non_inferior" and report["integer"]["return_mean"] > 480
    assert "all equal where equality is promised" in told and f"The page: {tmp_path / 'demo' / 'report.html'}" in told
    assert told.splitlines()[-1].strip() == "sb3-qpd compress my_agent.zip --env ID --out my_student"
    assert {"student.npz", "policy.c", "report.html"} <= {path.name for path in (tmp_path / "demo").iterdir()}
