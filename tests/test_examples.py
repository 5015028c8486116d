"""Each example runs, with less to do."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sb3_qpd import IntegerModel, load_teacher

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def run(script: str, *args: str) -> str:
    done = subprocess.run([sys.executable, EXAMPLES / script, *args], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("teacher", "args"),
    [("LunarLander-v3", ()), ("PongNoFrameskip-v4", ("--atari", "--n-envs", "4"))],
)
def test_demo(tmp_path, teacher, args):
    quick = ("--timesteps", "1500", "--episodes", "2", "--no-check-teacher", "--no-progress")
    if teacher != "LunarLander-v3":
        quick = ("--timesteps", "600", *quick[2:])
    printed = run("demo.py", "--out", str(tmp_path / "demo"), *args, *quick)
    assert "integer" in printed and "teacher" in printed
    out = tmp_path / "demo"
    assert {"student.zip", "student.npz", "report.json", "report.md", "demo.gif"} <= {path.name for path in out.iterdir()}
    with Image.open(out / "demo.gif") as gif:
        assert gif.n_frames > 50 and gif.width > 2 * gif.height * 0.6  # two pictures side by side
    folder = EXAMPLES / "teachers" / "ppo" / f"{teacher}_1"
    assert IntegerModel.load(out / "student.npz").nbytes < 0.05 * load_teacher(folder).nbytes


def test_a_trained_teacher_loads(tmp_path):
    run("train_teacher.py", "CartPole-v1", "--timesteps", "64", "--out", str(tmp_path))
    teacher = load_teacher(tmp_path / "ppo" / "CartPole-v1_1")
    assert teacher.recipe is not None and teacher.recipe.env_id == "CartPole-v1" and teacher.name == "ppo/CartPole-v1"
