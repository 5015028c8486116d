"""Nothing is lost: the process ends at every call that writes, each of them fails, and a run is killed while it learns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forked processes are killed, under glibc's LD_PRELOAD"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (compiler := shutil.which("gcc")) is None:
        pytest.skip("needs gcc, for the library that ends the process")
    path = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", path, HERE / "shim.c", "-ldl"], check=True)
    return path


def test_every_call_that_writes(shim: Path, tmp_path: Path) -> None:
    """The process ends at each of them; then each of them fails once, as on a full disk."""
    command = [sys.executable, HERE / "crash_points.py", shim, tmp_path, "ENOSPC"]
    done = subprocess.run(command, env={**ENVIRONMENT, "LD_PRELOAD": str(shim)}, capture_output=True, text=True, timeout=1_800)
    assert done.returncode == 0, done.stderr
    stages = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(stages) == 20
    for stage in stages:
        assert stage["violations"] == [], stage
        assert stage["points"] >= 6
    replaced = stages[0]
    assert replaced["stage"] == "replace" and replaced["old"] > 50 and replaced["new"] > 5  # on both sides of the commit


def random_kills(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, HERE / "random_kills.py", folder, *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=1_800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    result = random_kills(tmp_path, "--kills", "4")
    assert result["equal"] == result["runs"] >= 1 and result["kills"] >= 4
    assert result["repeated"] <= 4 * 64  # two rounds: the one that was not kept, and the one in which it ended
