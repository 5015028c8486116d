"""A student's folder as ``compress`` writes it, made quickly."""

import tempfile
import warnings
from pathlib import Path

from stable_baselines3 import PPO
from toys import QUICK

from sb3_qpd import QPDDistiller, make_recipe
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.report import write_report


def student_files() -> dict[str, bytes]:
    """The contents of ``student.zip``, ``student.npz``, ``report.json`` and ``report.md``, by name."""
    teacher = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=0, device="cpu")
    student = QPDDistiller(teacher, "CartPole-v1", **QUICK).learn(64)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        student.save(folder / "student.zip")
        student.to_integer("CartPole-v1").save(folder / "student.npz")
        plan = plan_evaluation(student.teacher, make_recipe("CartPole-v1"), 3, cache=False)
        write_report(make_report(student, plan), folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}
