import argparse
import base64
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bounds import bounded
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from teacher_files import edit_zip, serialized

from sb3_qpd import IntegerModel, QPDDistiller
from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.cli import main
from sb3_qpd.cli.arguments import key_value
from sb3_qpd.cli.compress import OUTPUTS, _defaults_from_zoo, _publish
from sb3_qpd.cli.models import open_student
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.comparison import EvaluationPlan
from sb3_qpd.export import EXPORTERS, export

FILES = ["report.json", "report.md", "student.npz", "student.zip", "student_float.zip"]
QUICK = ["--no-check-teacher", "--no-progress", "--device", "cpu", "--student-arch", "nano"]


# the environments' 41st step outlasts the interrupt, which comes while the student learns
SLOW_ENV = """
import time
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Slow(CartPoleEnv):
    n_steps = 0

    def step(self, action):
        self.n_steps += 1
        if self.n_steps > 40 and {is_slow}:
            time.sleep(60)
        return super().step(action)

gym.register("Slow-v0", entry_point="slow_env:Slow", max_episode_steps=200)
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A zip, which does not name its environment."""
    path = tmp_path_factory.mktemp("teacher") / "ppo_cartpole.zip"
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=256).learn(3_000).save(path)
    return str(path)


@pytest.fixture(scope="module")
def compressed(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compressed") / "a" / "b"
    arguments = ["--env", "CartPole-v1", "--timesteps", "2e3", "--episodes", "12", "--weight-bits", "4", "--seed", "3"]
    assert main(["compress", teacher, "--out", str(out), *arguments, *QUICK, "--baselines"]) == 0
    return out


def mistake(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The only line on stderr of a command that exits with 2."""
    with pytest.raises(SystemExit) as exit_info:
        main([str(argument) for argument in argv])
    assert exit_info.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if "error: " in line]
    assert len(errors) == 1 and errors[0] == lines[-1], lines
    return errors[0]


def test_compress_writes_everything(compressed: Path) -> None:
    assert sorted(path.name for path in compressed.iterdir()) == FILES
    report = json.loads((compressed / "report.json").read_text())
    assert report["weight_bits"] == 4 and report["seed"] == 3 and report["integer"]["episodes"] == 12
    assert report["timesteps"] >= 2_000 and report["parity"] == 1.0
    assert set(report["baselines"]) == {"full float", "post-training"}
    model = IntegerModel.load(compressed / "student.npz")
    assert model.nbytes == report["integer"]["bytes"]
    assert model.metadata["env"]["env_id"] == "CartPole-v1"
    assert model.metadata["teacher_checksum"] == report["teacher_checksum"] != ""
    assert QPDDistiller.load(compressed / "student.zip", device="cpu").policy.arch.weight_bits == 4
    assert not list(compressed.parent.parent.glob(".sb3-qpd-*"))


def test_compress_exports_and_verifies(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "CartPole-v1", "--timesteps", "500", "--episodes", "3", "--weight-bits", "2", *QUICK]
    out = tmp_path / "out"
    assert main(["compress", teacher, "--out", str(out), *arguments, "--target", "onnx", "--target", "numpy"]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "student.onnx", "policy.py"])
    output = capsys.readouterr().out
    assert "Exported policy.py, student.npz, student.onnx" in output and "all equal where equality is promised" in output
    # a student that a target does not take is saved all the same
    error = mistake(capsys, "compress", teacher, "--out", tmp_path / "two", *arguments, "--target", "tflite")
    assert "TFLite has weights of 8 or 4 bits, layer 1 has 2" in error
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == FILES


def test_all_targets_of_compress_or_none(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "CartPole-v1", "--timesteps", "300", "--episodes", "3", "--weight-bits", "2", *QUICK]
    targets = ["--target", "onnx", "--target", "tflite"]  # TFLite does not take 2 bits
    assert "8 or 4" in mistake(capsys, "compress", teacher, "--out", tmp_path / "out", *arguments, *targets)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


def test_a_run_folder_needs_no_env(teachers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = teachers / "ppo" / "CartPole-v1_1"
    arguments = ["--timesteps", "500", "--episodes", "3", "--out", str(tmp_path), *QUICK]
    assert main(["compress", str(folder), *arguments]) == 0
    assert "| integer " in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--episodes", "2", "--no-progress"]) == 0
    assert "return    500.00 ± 0.00" in capsys.readouterr().out


def test_evaluate_every_kind_of_file(teacher: str, compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    returns = {}
    for model in (teacher, compressed / "student.zip", compressed / "student_float.zip", compressed / "student.npz"):
        env = ["--env", "CartPole-v1"] if model == teacher else []
        assert main(["evaluate", str(model), *env, "--episodes", "12", "--no-progress"]) == 0
        output = capsys.readouterr().out
        assert "12 of CartPole-v1 from seed 2000000, deterministic actions" in output
        returns[str(model)] = output.splitlines()[0]
    # the zip in eval mode is the integer model, and the report says what both play
    assert returns[str(compressed / "student.zip")] == returns[str(compressed / "student.npz")]
    mean = json.loads((compressed / "report.json").read_text())["integer"]["return_mean"]
    assert f"return    {mean:.2f} " in returns[str(compressed / "student.npz")]


def test_a_hostile_student_runs_nothing(compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every pickled value of the zip is replaced by one that would leave a mark if it were decoded."""

    class Mark:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "mark",)

    payload = base64.b64encode(pickle.dumps(Mark())).decode()
    with zipfile.ZipFile(compressed / "student.zip") as source, zipfile.ZipFile(tmp_path / "hostile.zip", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                for value in data.values():
                    if isinstance(value, dict) and ":serialized:" in value:
                        value[":serialized:"] = payload
                data["unknown"] = {":type:": "object", ":serialized:": payload}
                content = json.dumps(data).encode()
            target.writestr(name, content)
    arguments = ["--env", "CartPole-v1", "--episodes", "12", "--no-progress"]
    assert main(["evaluate", str(tmp_path / "hostile.zip"), *arguments]) == 0
    assert main(["evaluate", str(compressed / "student.npz"), *arguments]) == 0
    hostile, clean = (line for line in capsys.readouterr().out.splitlines() if line.startswith("return "))
    assert hostile == clean
    assert not (tmp_path / "mark").exists()
    pickle.loads(base64.b64decode(payload))
    assert (tmp_path / "mark").exists()  # it would have


@pytest.mark.parametrize(
    "arch, message",
    [
        ({"hidden": [200_000, 200_000]}, "describes another network than its weights are"),
        ({"hidden": [10**30]}, "describes a network that cannot be"),
        ({"hidden": [1] * 10**6}, "more layers than its weights have"),
        (
            {"conv": [[10**6, 10**6, 1]], "hidden": [8, 8], "weight_bits": 4},
            None,
        ),  # which an observation of a vector has no use for
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_student_that_describes_a_huge_network(
    compressed: Path, tmp_path: Path, arch: dict[str, Any], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = edit_zip(compressed / "student.zip", tmp_path / "huge.zip", {"policy_kwargs": {"student_arch": arch}})
    arguments = ("evaluate", path, "--env", "CartPole-v1", "--episodes", "2", "--no-progress")
    with bounded(60, 2**30):
        if message is None:
            assert main([str(argument) for argument in arguments]) == 0
        else:
            assert message in mistake(capsys, *arguments)


def test_a_student_names_neither_its_teacher_nor_its_environment(compressed: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """These would be fetched and imported when it is loaded."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    named = {"teacher": "nowhere.zip", "env": "evil:CartPole-v1", "_recipe": "evil:CartPole-v1", "predict": 3, "device": "x"}
    path = edit_zip(compressed / "student.zip", tmp_path / "student.zip", named)
    found = open_student(path, argparse.Namespace(env="CartPole-v1", env_kwargs=[], device="cpu"))
    assert found is not None and found[0].teacher is None and found[0].env is None and not (tmp_path / "mark").exists()
    with pytest.raises(Exception, match="nowhere.zip"):
        QPDDistiller.load(path, device="cpu")
    assert (tmp_path / "mark").exists()  # it would have


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"env_id": "CartPole-v1", "env_kwargs": {"sutton_barto_reward": 5000}}, "'sutton_barto_reward': 5000"),
        ({"env_id": "CartPole-v1", "env_wrappers": [["gymnasium.wrappers.ClipAction"]]}, "--env-kwargs KEY=VALUE"),
        ({"env_id": "CartPole-v1", "colour": 1}, "--env-kwargs KEY=VALUE"),
        ({"env_id": "no_such_package:CartPole-v1"}, "would import a module: a file may name a plain id"),
        ({"env_id": 1}, "does not name its environment by a plain id"),
    ],
    ids=["too much", "half a wrapper", "unknown", "a package", "no text"],
)
def test_what_a_students_file_says_of_its_environment(
    compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], env: dict[str, Any], message: str
) -> None:
    model = IntegerModel.load(compressed / "student.npz")
    model.metadata["env"] = env
    model.save(tmp_path / "student.npz")
    command = ["evaluate", str(tmp_path / "student.npz"), "--episodes", "2", "--no-progress"]
    assert message in mistake(capsys, *command)
    assert main([*command, "--env", "CartPole-v1"]) == 0
    if "sutton_barto_reward" in env.get("env_kwargs", {}):  # the user may say it himself
        assert main([*command, "--env-kwargs", "sutton_barto_reward=True"]) == 0


def test_evaluate_options(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--episodes", "3", "--seed", "7", "--stochastic", "--env-kwargs", "sutton_barto_reward=True", "--no-progress"]
    assert main(["evaluate", str(compressed / "student.npz"), *options]) == 0
    output = capsys.readouterr().out
    assert "return    -1.00 ± 0.00" in output and "from seed 7, sampled actions" in output


def test_a_teacher_by_name(capsys: pytest.CaptureFixture[str], teacher: str, tmp_path: Path) -> None:
    options = ["--env", "CartPole-v1", "--out", str(tmp_path / "out"), "--timesteps", "64", "--episodes", "2"]
    options += ["--student-arch", "nano", "--no-check-teacher", "--no-progress", "--device", "cpu"]
    assert main(["compress", "--teacher", teacher, *options]) == 0
    assert "not allowed with argument" in mistake(capsys, "compress", teacher, "--teacher", teacher, *options)
    assert "one of the arguments teacher --teacher is required" in mistake(capsys, "compress", *options)


BAD_COMPRESS = [
    (["nowhere.zip", "--env", "CartPole-v1"], "nowhere.zip"),
    (["TEACHER"], "Give it: --env ID"),
    (["TEACHER", "--env", "CartPol-v1"], "CartPole-v1"),
    (["TEACHER", "--env", "Acrobot-v1"], "environment: Box"),
    (["TEACHER", "--env", "CartPole-v1", "--student-arch", "tinny"], "tiny"),
    (["TEACHER", "--env", "CartPole-v1", "--transition", "blent"], "blend"),
    (["TEACHER", "--env", "CartPole-v1", "--weight-bits", "9"], "9"),
    (["TEACHER", "--env", "CartPole-v1", "--weight-bits", "32", "--activation-bits", "32"], "compress makes integers"),
    (["TEACHER", "--env", "CartPole-v1", "--timesteps", "0"], "at least 1, such as 1e6, got '0'"),
    (["TEACHER", "--env", "CartPole-v1", "--timesteps", "-1e6"], "timesteps"),
    (["TEACHER", "--env", "CartPole-v1", "--timesteps", "nan"], "at least 1"),
    (["TEACHER", "--env", "CartPole-v1", "--episodes", "0"], "positive integer, got '0'"),
    (["TEACHER", "--env", "CartPole-v1", "--device", "gpu"], "cuda, got 'gpu'"),
    (["TEACHER", "--env", "CartPole-v1", "--vecnormalize", "nowhere.pkl"], "nowhere.pkl"),
    (["TEACHER", "--env", "CartPole-v1", "--env-kwargs", "novalue"], "expected key=value, got 'novalue'"),
    (["TEACHER", "--env", "CartPole-v1", "--env-kwargs", "unknown=1"], "unknown"),
    (["TEACHER", "--env", "CartPole-v1", "--critic-coef", "nan"], "critic_coef must be a number of at least 0, got nan"),
    (["TEACHER", "--env", "CartPole-v1", "--learning-rate", "1e30"], "learning_rate must be a number between 0 and 1"),
    (["TEACHER", "--env", "CartPole-v1", "--episodes", "1", "--buffer-size", "1" + 15 * "0"], "a smaller buffer_size"),
    (["TEACHER", "--env", "CartPole-v1", "--no-such-option"], "--no-such-option"),
    (["TEACHER", "--env", "CartPole-v1", "--target", "onyx"], "Unknown target 'onyx'. Known: onnx, c, tflite, numpy"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_COMPRESS, ids=lambda value: " ".join(value[-2:]) if value else "")
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [teacher if argument == "TEACHER" else argument for argument in arguments]
    error = mistake(capsys, "compress", *arguments, "--out", tmp_path / "a" / "out", "--no-progress")
    assert error.startswith("sb3-qpd") and message in error
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_teachers(tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = Path(teacher).read_bytes()
    for name, data in {"text.zip": b"not a zip", "half.zip": content[: len(content) // 2], "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(data)
        assert name in mistake(capsys, "evaluate", tmp_path / name, "--env", "CartPole-v1", "--no-progress")
    out = tmp_path / "out"
    assert "half.zip" in mistake(capsys, "compress", tmp_path / "half.zip", "--env", "CartPole-v1", "--out", out)
    assert not out.exists()


def broken(weights: dict[str, th.Tensor], value: float) -> dict[str, th.Tensor]:
    return {**weights, "action_net.weight": th.full_like(weights["action_net.weight"], value)}


BAD_TEACHERS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN weights": ({"state_dict": lambda weights: broken(weights, math.nan)}, "holds NaN or infinite weights"),
    # finite, but what comes out is not, and not at the first observation
    "NaN outputs": ({"state_dict": lambda weights: broken(weights, 3e38)}, "The teacher's output holds NaN or infinity"),
    "another algorithm": (
        {"data": {"policy_class": serialized(b"cstable_baselines3.her\nHer\n.")}},
        "holds an agent of another algorithm: her",
    ),
    "foreign classes": (
        {"data": {"policy_kwargs": serialized(pickle.dumps({"features_extractor_class": CartPoleEnv}))}},
        "asks for gymnasium.envs.classic_control.cartpole.CartPoleEnv",
    ),
}


@pytest.mark.parametrize("name", [*BAD_TEACHERS, "recurrent"])
def test_teachers_that_cannot_teach(name: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "bad.zip", tmp_path / "out"
    if name == "recurrent":
        message = "students have no memory"
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cpu", policy_kwargs={"lstm_hidden_size": 8}).save(path)
    else:
        changes, message = BAD_TEACHERS[name]
        edit_zip(Path(teacher), path, **changes)
    assert message in mistake(capsys, "compress", path, "--env", "CartPole-v1", "--out", out, "--timesteps", "64", *QUICK)
    assert not out.exists()


def test_how_long_to_learn_is_what_qpd_yml_says() -> None:
    def filled_in(env_id: str, **given: Any) -> tuple[Any, Any]:
        args = argparse.Namespace(**{"timesteps": None, "buffer_size": None, **given})
        _defaults_from_zoo(args, EnvRecipe(env_id))
        return args.timesteps, args.buffer_size

    assert filled_in("Hopper-v4") == (500_000, 500_000) and filled_in("LunarLanderContinuous-v3") == (200_000, None)
    assert filled_in("PongNoFrameskip-v4") == (100_000, None) == filled_in("Breaking-v0")
    assert filled_in("Hopper-v4", timesteps=7, buffer_size=8) == (7, 8)


def test_a_package_of_the_current_folder(
    compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The console script does not look there by itself; only a package that somebody typed is looked for."""
    (tmp_path / "own_env.py").write_text(SLOW_ENV.format(is_slow=False).replace("slow_env:Slow", "own_env:Slow"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    play = ["evaluate", str(compressed / "student.npz"), "--episodes", "2", "--no-progress"]
    assert main([*play, "--env", "CartPole-v1"]) == 0 and str(tmp_path) not in sys.path
    assert "Cannot import 'none_such'" in mistake(capsys, *play, "--env", "none_such:Slow-v0")
    assert main([*play, "--env", "own_env:Slow-v0"]) == 0


def test_out_is_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is a file" in mistake(capsys, "compress", "nowhere.zip", "--out", tmp_path / "file")
    assert "cannot be written" in mistake(capsys, "compress", "nowhere.zip", "--out", tmp_path / "file" / "below")
    assert "cannot be written" in mistake(capsys, "compress", "nowhere.zip", "--out", "/proc/nowhere")
    assert "--force" in mistake(capsys, "compress", "nowhere.zip", "--out", tmp_path / "full")
    assert "nowhere.zip" in mistake(capsys, "compress", "nowhere.zip", "--out", tmp_path / "full", "--force")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_staging_publishes_together_and_keeps_what_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.json").write_text("old")
    with AtomicFolder(tmp_path, force=True) as staging:
        (staging.path / "report.json").write_text("new")
        assert (tmp_path / "report.json").read_text() == "old"
        assert staging.commit() == ["report.json"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mine.txt": "mine", "report.json": "new"}


def test_force_leaves_nothing_of_an_earlier_run(teacher: str, compressed: Path, tmp_path: Path) -> None:
    model = IntegerModel.load(compressed / "student.npz")
    exported = [path.name for target in EXPORTERS for path in export(model, target, tmp_path / target)]
    assert set(exported) | set(FILES) == set(OUTPUTS)
    out = tmp_path / "out"
    out.mkdir()
    for name in (*OUTPUTS, "mine.txt"):
        (out / name).write_text("old")
    arguments = ["--env", "CartPole-v1", "--timesteps", "100", "--episodes", "2", "--transition", "scratch", *QUICK]
    assert main(["compress", teacher, "--out", str(out), "--force", *arguments]) == 0
    assert {path.name for path in out.iterdir()} == {*FILES, "mine.txt"} - {"student_float.zip"}  # from scratch: none
    assert [path.name for path in out.iterdir() if path.read_bytes() == b"old"] == ["mine.txt"]


class Breaking(CartPoleEnv):
    """Its sensors fail after 50 steps."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        observation, *rest = super().step(action)
        return (observation if self.n_steps < 50 else np.full_like(observation, np.nan), *rest)


gym.register("Breaking-v0", entry_point=Breaking, max_episode_steps=200)


def test_what_goes_wrong_later_leaves_the_student(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "Breaking-v0", "--n-envs", "2", "--timesteps", "400", "--episodes", "2", *QUICK]
    with pytest.raises(SystemExit) as exit_info:
        main(["compress", teacher, "--out", str(tmp_path / "out"), *arguments])
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 1
    assert "error: The teacher's output holds NaN or infinity" in last and "stopped after 100 steps; wrote student.npz" in last
    assert IntegerModel.load(tmp_path / "out" / "student.npz").metadata["env"]["env_id"] == "Breaking-v0"


def test_a_student_without_an_integer_form_is_saved(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = QPDDistiller(teacher, "CartPole-v1", n_envs=1, student_arch="nano", device="cpu")
    with th.no_grad():
        student.policy.action_net.bias[0] = th.nan
    with AtomicFolder(tmp_path / "out", force=False) as staging:
        assert _publish(student, EvaluationPlan("CartPole-v1", 1, 1), staging) == ["student.zip"]
    assert "no student.npz: The student's parameters hold NaN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gravity=-9.5", ("gravity", -9.5)),
        ("continuous:True", ("continuous", True)),
        ("render_mode=rgb_array", ("render_mode", "rgb_array")),
        ("size=(3, 4)", ("size", (3, 4))),
        ("map=a:b", ("map", "a:b")),
    ],
)
def test_key_value(text: str, expected: tuple[str, Any]) -> None:
    assert key_value(text) == expected


def interrupt_after_steps(process: subprocess.Popen[str], sign: Path) -> str:
    """Ctrl-C as a terminal sends it: to the whole group, subprocesses of environments included."""
    deadline = time.monotonic() + 120
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    return errors


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for another process on Windows")
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_ctrl_c_saves_what_there_is(vec_env: str, teacher: str, tmp_path: Path) -> None:
    sign, modules = tmp_path / "learning", tmp_path / "modules"
    modules.mkdir()
    (modules / "slow_env.py").write_text(SLOW_ENV.format(is_slow=vec_env == "subproc"))
    code = f"""
import signal, sys, time
from pathlib import Path
import sb3_qpd.distiller as module
from sb3_qpd.cli import main

class Distiller(module.QPDDistiller):
    def _train(self):
        super()._train()
        if self.num_timesteps == 40 * self.n_envs:
            Path({str(sign)!r}).touch()
            time.sleep(60)

module.QPDDistiller = Distiller
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it may be ignored
sys.exit(main(sys.argv[1:]))
"""
    arguments = ["compress", teacher, "--env", "slow_env:Slow-v0", "--vec-env", vec_env, "--n-envs", "2"]
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--timesteps", "800", "--episodes", "5", *QUICK, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    errors = interrupt_after_steps(process, sign)
    assert process.returncode == 130, errors
    assert "stopped after 80 steps; wrote student.npz, student.zip" in errors and str(out) in errors
    assert "Traceback" not in errors
    assert {"student.npz", "student.zip"} <= {path.name for path in out.iterdir()}
    assert IntegerModel.load(out / "student.npz").predict([0.0] * 4)[0] in (0, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning", "modules", "out"]


def test_help_is_instant_and_module_runs() -> None:
    code = "import sys, sb3_qpd.cli; print(sorted({'torch', 'numpy', 'gymnasium'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "sb3_qpd", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "compress" in done.stdout and "evaluate" in done.stdout


def test_no_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "command" in mistake(capsys)
