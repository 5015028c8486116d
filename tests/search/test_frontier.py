"""
Whole searches. One that is not disturbed is the measure for all others: killed, resumed, and on a cluster.

A training seed breaks the environment, so that trials fail in every search.
"""

import hashlib
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cracked_env
import gymnasium as gym
import pytest
from stable_baselines3 import PPO

from sb3_qpd import IntegerModel, QPDDistiller, frontier
from sb3_qpd.cli import main
from sb3_qpd.distillation.checkpoint_files import newest_steps

SIZES = [{"hidden": [4]}, "nano"]
STEPS = 4_200  # a trial writes a checkpoint after 2,048 and 4,096
SEARCH: dict[str, Any] = {
    **{"env": "cracked_env:Cracked-v0", "sizes": SIZES, "bits": [8, 2], "seeds": 2, "seed": cracked_env.BROKEN_SEED},
    **{"timesteps": STEPS, "episodes": 20, "workers": 2, "checkpoint_every": 1, "n_envs": 8, "cache": False, "device": "cpu"},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "ppo_cartpole.zip"
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=256).learn(3_000).save(path)
    return str(path)


@pytest.fixture(scope="module")
def whole(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    frontier(teacher, out, **SEARCH, targets=["numpy"])
    return out


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "frontier.json").read_text(encoding="utf-8"))


def result_of(content: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on times, kills and places."""
    trials = [
        {key: trial[key] for key in ("id", "state", "steps", "scores", "checksum", "bytes")} for trial in content["trials"]
    ]
    points = [{key: value for key, value in one.items() if key not in ("exports", "verified")} for one in content["points"]]
    return {
        "trials": trials,
        "points": points,
        **{key: content[key] for key in ("chosen", "winner", "candidates", "validation", "test")},
    }


def files_of(out: Path) -> dict[str, bytes]:
    """The integer models, which hold no times."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("points/*/student.npz"))}


def checkpoints(out: Path) -> list[Path]:
    return list(out.glob("unfinished/trials/*/state-?.npz"))


def wait_for_new_checkpoint(out: Path) -> Callable[[], None]:
    """A function that waits for a checkpoint that is not there yet."""
    before = {path: path.stat().st_mtime_ns for path in checkpoints(out)}
    return lambda: wait_for(
        lambda: any(path.stat().st_mtime_ns != before.get(path) for path in checkpoints(out) if path.exists())
    )


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_search(whole: Path, teacher: str) -> None:
    content = read(whole)
    assert {path.name for path in whole.iterdir()} == {"report.html", "frontier.json", "points", "search.log"}
    assert content["format"] == 1 and content["candidates"] == 4 and len(content["trials"]) == 8
    failed = [trial for trial in content["trials"] if trial["seed"] == cracked_env.BROKEN_SEED]
    for trial in failed:
        assert trial["state"] == "failed" and trial["attempts"] == 3 and "the wheel came off" in trial["error"]
    for trial in (trial for trial in content["trials"] if trial not in failed):
        assert trial["state"] in ("finished", "stopped") and trial["attempts"] == 1 and trial["error"] is None
    sizes = [point["bytes"] for point in content["points"]]
    assert sizes == sorted(sizes) and sizes
    for point in content["points"]:
        assert point["seeds"] == [12, 13] and {
            "student.zip",
            "student.npz",
            "report.json",
            "report.md",
            "report.html",
            "policy.py",
        } <= {path.name for path in (whole / point["folder"]).iterdir()}
        assert point["verified"] is True and IntegerModel.load(whole / point["folder"]).nbytes == point["bytes"]
    # scoring a student changes nothing in it
    first = next(trial for trial in content["trials"] if trial["state"] == "finished")
    distiller = QPDDistiller(
        teacher,
        "cracked_env:Cracked-v0",
        student_arch=json.loads(first["size"]) if first["size"][0] == "{" else first["size"],
        **{"weight_bits": first["weight_bits"], "activation_bits": first["activation_bits"], "seed": first["seed"]},
        **{"n_envs": 8, "device": "cpu", "check_teacher": False},
    ).learn(STEPS, log_interval=None)
    distiller.to_integer().save(whole.parent / "alone.npz")
    assert hashlib.sha256((whole.parent / "alone.npz").read_bytes()).hexdigest() == first["checksum"]


def start_driver(teacher: str, out: Path, search: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A search in a process of its own."""
    code = "import sys, json; from sb3_qpd import frontier; frontier(*sys.argv[1:3], **json.loads(sys.argv[3]))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", code, teacher, str(out), json.dumps(search)], env=environment)


@pytest.mark.slow
def test_driver_and_workers_are_killed(whole: Path, teacher: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start_driver(teacher, out, SEARCH)
    wait_for(lambda: checkpoints(out) or driver.poll() is not None)
    driver.kill()
    driver.wait()
    with pytest.raises(ValueError, match="holds an unfinished search. Add resume=True to go on, or give another out="):
        frontier(teacher, out, **SEARCH)
    with pytest.raises(ValueError, match="is another search: its timesteps is 4200, this one's is 5000"):
        frontier(teacher, out, **{**SEARCH, "timesteps": 5_000}, resume=True)

    def kill_workers() -> None:
        wait_for_new_checkpoint(out)()
        for process in mp.active_children():
            process.kill()

    killer = threading.Thread(target=kill_workers, daemon=True)
    killer.start()
    content = frontier(teacher, out, **SEARCH, resume=True)
    killer.join()
    errors = [trial["error"] for trial in content["trials"] if trial["state"] != "failed" and trial["error"]]
    assert errors and all("it was killed, perhaps because the memory was full" in error for error in errors)
    assert result_of(read(out)) == result_of(read(whole)) and files_of(out) == files_of(whole)
    assert {path.name for path in out.iterdir()} == {"report.html", "frontier.json", "points", "search.log"}
    assert not list(tmp_path.glob(".*"))


def watch_steps(out: Path, until: threading.Event) -> dict[str, list[int]]:
    """Environment steps of each trial's newest checkpoint, whenever they change."""
    steps: dict[str, list[int]] = {}
    while not until.wait(0.02):
        for folder in out.glob("unfinished/trials/*"):
            newest, seen = newest_steps(folder), steps.setdefault(folder.name, [])
            if newest is not None and newest not in seen[-1:]:
                seen.append(newest)
    return steps


@pytest.mark.slow
def test_driver_and_one_of_two_nodes_are_killed(
    whole: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes never use the folder of the search: checkpoints travel to it, and from it to the node that goes on."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests its default of 15 is hardly served
    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    is_over = threading.Event()
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with ThreadPoolExecutor() as threads:
            watched = threads.submit(watch_steps, out, is_over)
            driver = start_driver(teacher, out, {**SEARCH, "ray": cluster.address})
            wait_for(lambda: checkpoints(out) or driver.poll() is not None)
            driver.kill()
            driver.wait()
            before = {path: path.stat().st_mtime_ns for path in checkpoints(out)}
            assert before

            def kill_node() -> None:
                wait_for(
                    lambda: any(before.get(path) != path.stat().st_mtime_ns for path in checkpoints(out) if path.exists())
                )
                cluster.remove_node(second, allow_graceful=False)

            killer = threads.submit(kill_node)
            try:
                frontier(teacher, out, **SEARCH, ray=cluster.address, resume=True)
            finally:
                is_over.set()
            killer.result()
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
    assert result_of(read(out)) == result_of(read(whole)) and files_of(out) == files_of(whole)
    steps = watched.result()
    assert any(len(seen) > 1 for seen in steps.values())
    assert all(seen == sorted(seen) for seen in steps.values()), steps  # no trial has begun anew


@pytest.mark.slow
def test_ctrl_c_leaves_what_there_is(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--env", "cracked_env:Cracked-v0", "--sizes", "nano", "--bits", "8", "--seeds", "1", "--seed", "20"]
    options += ["--timesteps", "3e3", "--episodes", "20", "--workers", "1", "--checkpoint-every", "1", "--n-envs", "8"]
    command = ["frontier", teacher, "--out", str(out), *options, "--device", "cpu"]

    def interrupt() -> None:
        wait_for(lambda: checkpoints(out))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    try:
        assert main(command) == 130
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
    assert not mp.active_children() and read(out)["points"] == []
    assert main([*command, "--resume"]) == 0
    assert read(out)["trials"][0]["state"] == "finished"
    assert "nano-W8A8" in capsys.readouterr().out


class Unpicklable:
    """Makes an environment, and holds what cannot be sent to another process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self) -> gym.Env:
        return gym.make("CartPole-v1")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"env": Unpicklable()}, ValueError, "environment cannot be sent to other processes .*Register it in a module"),
        ({"sizes": ["9B", "nano"]}, ValueError, "student_arch='9B' is 9 bytes. The smallest student takes"),
        ({"max_bytes": 50}, ValueError, "No student fits max_bytes=50: the smallest of these sizes and bits is hidden-4-W"),
        ({"weight_bits": 4}, ValueError, "weight_bits is set by the search itself. Give sizes= and bits="),
        ({"n_env": 4}, TypeError, "Unknown argument 'n_env' of a search. Did you mean 'n_envs'"),
        ({"storage": "nosql://x"}, ValueError, "The storage nosql://x cannot be opened"),
        ({"targets": ["onyx"]}, ValueError, "Did you mean 'onnx'"),
        ({"ray": "127.0.0.1:1"}, ConnectionError, "No Ray cluster answers at 127.0.0.1:1 .*ray start --head"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes(changes: dict[str, Any], error: type[Exception], message: str, teacher: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        frontier(teacher, tmp_path / "out", **{**SEARCH, **changes})
    assert not list(tmp_path.iterdir())


def test_a_live_environment_is_refused(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CartPole-v1 exists in this one. Give env= as an id"):
        frontier(teacher, tmp_path / "out", **{**SEARCH, "env": gym.make("CartPole-v1")})


@pytest.mark.parametrize(
    ("module", "package", "extra"), [("study", "optuna", "frontier"), ("ray_workers", "ray", "ray")], ids=["optuna", "ray"]
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"sb3_qpd.search.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'sb3_qpd\[{extra}\]'"):
        __import__(f"sb3_qpd.search.{module}")
