"""The numpy runtime and the ONNX file on other processors, under emulation. See benchmarks/processors.py."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import gymnasium as gym
import pytest
from students import make_student

PROCESSORS = Path(__file__).parents[2] / "benchmarks" / "processors.py"


def played_on(command: str, folder: Path, *options: str) -> str:
    """Run a W4A4 student on 16 observations of CartPole on another processor; the row of the table that comes of it."""
    env = gym.make("CartPole-v1")
    model = make_student(env.observation_space, env.action_space, (4, 4)).to_integer()
    model.metadata["env"] = {"env_id": "CartPole-v1"}
    model.save(folder / "student.npz")
    arguments = [str(folder / "student.npz"), "--python", command, "--observations", "16", *options]
    done = subprocess.run([sys.executable, str(PROCESSORS), *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-x86_64: make emulators")
def test_a_processor_without_vnni(tmp_path: Path) -> None:
    command = f"qemu-x86_64 -cpu Haswell {shlex.quote(sys.executable)}"
    row = played_on(command, tmp_path, "--path", sysconfig.get_path("purelib"))
    assert "| x86_64 |" in row and row.endswith("| 0 in each |")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None or "AARCH64_PROCESSOR" not in os.environ,
    reason="needs qemu-aarch64 and AARCH64_PROCESSOR, the options of benchmarks/processors.py for an aarch64 interpreter",
)
def test_a_raspberry_pi(tmp_path: Path) -> None:
    command, *options = shlex.split(os.environ["AARCH64_PROCESSOR"])
    row = played_on(command, tmp_path, *options)
    assert "| aarch64 |" in row and row.endswith("| 0 in each |")
