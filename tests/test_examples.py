"""Each example runs, with less to do."""

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import run_forked
from hub_server import running_hub
from PIL import Image
from stable_baselines3 import PPO

from sb3_qpd import IntegerModel, QPDDistiller, load_teacher

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

Script = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """A function that runs a script in this process, where torch is imported already; it returns what was printed."""

    def run(script: str, *args: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *args])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as end:
            assert not end.code
        return capsys.readouterr().out

    return run


def start(script: str, *args: str) -> str:
    """Run a script as a user does, in a process of its own; returns what was printed."""
    command = [sys.executable, EXAMPLES / script, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_demo(printed: str, out: Path, teacher: str, n_episodes: int) -> dict[str, Any]:
    """The files of a demo are there and fit each other. Returns the report."""
    assert "integer" in printed and "teacher" in printed
    report = json.loads((out / "report.json").read_text())
    assert report["parity"] == 1.0 and report["integer"]["episodes"] == n_episodes
    assert printed.splitlines()[-1] == f"The page: {out / 'report.html'}"
    names = {"student.zip", "student.npz", "report.json", "report.md", "report.html", "film.gif"}
    assert names <= {path.name for path in out.iterdir()}
    with Image.open(out / "film.gif") as gif:
        assert gif.n_frames > 50 and gif.width > 2 * gif.height * 0.6  # two pictures side by side
    folder = EXAMPLES / "teachers" / "ppo" / f"{teacher}_1"
    assert IntegerModel.load(out / "student.npz").nbytes < 0.05 * load_teacher(folder).nbytes
    return report


QUICK_DEMO = ("--no-check-teacher", "--no-progress")


@pytest.mark.slow
def test_demo(tmp_path):
    """A sixth of the demo's steps is enough for nine tenths of the teacher's return."""
    printed = start("demo.py", "--out", str(tmp_path / "demo"), "--timesteps", "1e4", "--episodes", "20", *QUICK_DEMO)
    report = check_demo(printed, tmp_path / "demo", "LunarLander-v3", 20)
    assert report["integer"]["return_mean"] >= 0.9 * report["teacher"]["return_mean"] > 200


@pytest.mark.slow
def test_demo_of_a_game(tmp_path, run):
    """Games end after 300 steps. The student has learned nothing yet; the teacher is ahead by then."""
    games = ("--env-kwargs", "max_num_frames_per_episode=1200", "--episodes", "2")
    learning = ("--n-envs", "4", "--timesteps", "600", "--gradient-steps", "0.02")
    printed = run("demo.py", "--out", str(tmp_path / "demo"), "--atari", *games, *learning, *QUICK_DEMO)
    report = check_demo(printed, tmp_path / "demo", "PongNoFrameskip-v4", 2)
    assert report["teacher"]["return_mean"] > 0 > -2 > report["random"]["return_mean"]


def test_a_trained_teacher_loads(tmp_path):
    start("train_teacher.py", "CartPole-v1", "--timesteps", "256", "--out", str(tmp_path))
    teacher = load_teacher(tmp_path / "ppo" / "CartPole-v1_1")
    assert teacher.recipe is not None and teacher.recipe.env_id == "CartPole-v1" and teacher.name == "ppo/CartPole-v1"


LUNAR_LANDER = EXAMPLES / "teachers" / "ppo" / "LunarLander-v3_1"
SHORT = ("--timesteps", "600", "--episodes", "2")


@pytest.fixture
def play(run: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """A function that runs a script of at most 40 lines in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def play(script: str, *args: str) -> str:
        assert len((EXAMPLES / script).read_text().splitlines()) <= 40
        return run(script, *args)

    return play


@pytest.mark.slow
def test_distill_from_hub(tmp_path, monkeypatch):
    """From a hub on 127.0.0.1; its client reads where that is when it is imported, so in a process of its own."""
    monkeypatch.chdir(tmp_path)
    folder = LUNAR_LANDER / "LunarLander-v3"
    files = {name: (folder / name).read_bytes() for name in ("config.yml", "args.yml")}
    files["ppo-LunarLander-v3.zip"] = (LUNAR_LANDER / "LunarLander-v3.zip").read_bytes()
    with running_hub() as hub:
        hub.publish("me/ppo-LunarLander-v3", files)
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = run_forked(EXAMPLES / "distill_from_hub.py", "me/ppo-LunarLander-v3", *SHORT, **variables)
        assert done.returncode == 0, done.stderr
    assert "me/ppo-LunarLander-v3" in done.stdout and "-> 788 bytes" in done.stdout
    assert (tmp_path / "student.npz").is_file()


def test_the_same_script_takes_a_folder(tmp_path, play):
    printed = play("distill_from_hub.py", str(LUNAR_LANDER), *SHORT)
    assert "ppo/LunarLander-v3: 19,984 bytes -> 788 bytes" in printed
    assert IntegerModel.load(tmp_path / "student.npz").nbytes == 788


def test_distill_zoo_folder(play):
    printed = play("distill_zoo_folder.py", *SHORT)
    assert "teacher: 2" in printed and "verdict: " in printed


def test_distill_live_model(play):
    printed = play("distill_live_model.py", "--teacher-timesteps", "256", *SHORT)
    assert "252 bytes, return " in printed


def test_custom_student(play):
    printed = play("custom_student.py", *SHORT)
    assert "(12, 20) weights of 4 bits" in printed and "bytes, return " in printed


def test_fine_tune_then_export(tmp_path, play):
    """A student, PPO on top of it, and C of what came out."""
    student = QPDDistiller(load_teacher(LUNAR_LANDER), student_arch="nano", check_teacher=False, device="cpu", seed=0)
    student.learn(800).save(tmp_path / "student.zip")
    settings = ("--timesteps", "256", "--episodes", "2")
    printed = play("finetune_ppo.py", "student.zip", "LunarLander-v3", *settings)
    assert "before: " in printed and "after: " in printed
    before, after = student.policy, PPO.load(tmp_path / "finetuned.zip", device="cpu").policy
    assert type(after) is type(before) and after.arch == before.arch
    moved = (after.value_net.mean == before.value_net.mean) & (after.value_net.weight != before.value_net.weight).any()
    assert moved  # the distilled value head went on, in its own units
    printed = play("export_to_c.py", "finetuned.npz")
    assert "policy.c" in printed and "the C chose the same 100 actions" in printed


def test_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cells run in order, with less to learn. They are Python without magics, so no kernel is needed."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "tutorial.ipynb").read_text())["cells"]
    quick = {"TEACHER_STEPS": "2_048", "STUDENT_STEPS": "800", "EPISODES": "3"}
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            lines = [re.sub(rf"^({'|'.join(quick)}) = .*", lambda m: f"{m[1]} = {quick[m[1]]}", one) for one in cell["source"]]
            exec("".join(lines), names)
    printed = capsys.readouterr().out
    assert "18,440 bytes -> 284 bytes" in printed and "0 of 32 test vectors differ" in printed
    assert set(names["returns"]) == {"teacher", "integer student"}
