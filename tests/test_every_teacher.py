"""The benchmark that takes every teacher of a folder all the way, with little to do."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
LITTLE = ("--steps", "300", "--episodes", "1", "--observations", "40")
TARGETS = ["onnx", "c", "tflite", "numpy"]  # the others need node and micropython, which may be missing


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the benchmark in this process; the exit code and the rows come back."""

    def run(folder: Path, *options: str) -> tuple[Any, list[dict[str, Any]]]:
        out = tmp_path / "rows.jsonl"
        script = ROOT / "benchmarks" / "every_teacher.py"
        monkeypatch.syspath_prepend(script.parent)
        monkeypatch.setattr(
            sys, "argv", [script.name, str(folder), *LITTLE, "--targets", *TARGETS, "--out", str(out), *options]
        )
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(script), run_name="__main__")
        return end.value.code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    return run


def test_a_teacher_goes_all_the_way(run, capsys):
    code, (row,) = run(ROOT / "examples" / "teachers", "--only", "*LunarLander*")
    assert code == 0 and "error" not in row
    assert row["teacher"] == "ppo/LunarLander-v3_1" and row["env"] == "LunarLander-v3"
    assert row["teacher_returns"][0] > 200 > row["student_returns"][0]
    assert row["exports"] == TARGETS and row["refused"] == {} and row["not_compared"] == []
    assert {"policy in eval mode", "ONNX Runtime", "C on this computer", "TFLite, XNNPACK"} <= set(row["forms"])
    assert row["values"] > 40 * len(row["forms"]) and row["differing"] == 0
    table = capsys.readouterr().out
    assert "| ppo/LunarLander-v3_1 | LunarLander-v3 |" in table and "1 teachers, 0 of them failed" in table


def test_an_error_is_a_row_and_the_next_teacher_follows(run, tmp_path, capsys):
    for algo in ("a2c", "ppo"):
        folder = tmp_path / "teachers" / algo / "CartPole-v1_1"
        folder.mkdir(parents=True)
        (folder / "CartPole-v1.zip").write_text("not a zip")
    code, rows = run(tmp_path / "teachers")
    assert code == 1 and [row["teacher"] for row in rows] == ["a2c/CartPole-v1_1", "ppo/CartPole-v1_1"]
    assert all(row["error"].startswith("TeacherError: ") and "CartPole-v1.zip" in row["error"] for row in rows)
    printed = capsys.readouterr().out
    assert "ppo/CartPole-v1_1, error: TeacherError: " in printed and "2 teachers, 2 of them failed" in printed


def test_no_teacher_is_an_error(run, tmp_path, capsys):
    assert run(tmp_path) == (2, [])
    assert "expected run folders such as ppo/LunarLander-v2_1" in capsys.readouterr().err
