"""What the command does to its process: signals, pipes, settings, and how little it imports."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch as th
from commands import QUICK, mistake

from sb3_qpd import IntegerModel
from sb3_qpd.cli import LARGE_PAGES, main

LONG = 600  # seconds, on however busy a machine

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
            time.sleep({seconds})
        return super().step(action)

gym.register("Slow-v0", entry_point="slow_env:Slow", max_episode_steps=200)
"""


def interrupt_after_steps(process: subprocess.Popen[str], sign: Path) -> str:
    """Ctrl-C as a terminal sends it: to the whole group, subprocesses of environments included."""
    deadline = time.monotonic() + LONG
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT if sign.exists() else signal.SIGKILL)
    _, errors = process.communicate(timeout=LONG)
    assert sign.exists(), f"the student did not learn: {errors}"
    return errors


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for another process on Windows")
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
def test_ctrl_c_saves_what_there_is(vec_env: str, teacher: str, tmp_path: Path) -> None:
    sign, modules = tmp_path / "learning", tmp_path / "modules"
    modules.mkdir()
    (modules / "slow_env.py").write_text(SLOW_ENV.format(is_slow=vec_env == "subproc", seconds=LONG))
    code = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it may be ignored
from pathlib import Path
import sb3_qpd.distillation.distiller as module
from sb3_qpd.cli import main

class Distiller(module.QPDDistiller):
    def _train(self):
        super()._train()
        if self.num_timesteps == 40 * self.n_envs:
            Path({str(sign)!r}).touch()
            time.sleep({LONG})

module.QPDDistiller = Distiller
code = main(sys.argv[1:])
Path({str(sign)!r}).write_text(str("torch._dynamo" in sys.modules))
sys.exit(code)
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
    assert sign.read_text() == "False"  # torch's compiler takes more than a second to import, and learning does not need it
    assert {"student.npz", "student.zip"} <= {path.name for path in out.iterdir()}
    assert IntegerModel.load(out / "student.npz").predict([0.0] * 4)[0] in (0, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["learning", "modules", "out"]


class Interrupting:
    """A finder of modules that finds none, and raises Ctrl-C's exception at the command's module."""

    def find_spec(self, name: str, *args: object) -> None:
        if name == "sb3_qpd.cli":
            raise KeyboardInterrupt


def test_ctrl_c_while_the_command_is_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from sb3_qpd.__main__ import main as program

    monkeypatch.delitem(sys.modules, "sb3_qpd.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert program(["--version"]) == 130
    assert capsys.readouterr().err == "sb3-qpd: interrupted\n"


def test_help_is_instant_and_module_runs() -> None:
    code = "import sys, sb3_qpd.cli; print(sorted({'torch', 'numpy', 'gymnasium'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    done = subprocess.run([sys.executable, "-m", "sb3_qpd", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "compress" in done.stdout and "evaluate" in done.stdout


def test_no_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert "arguments are required: command" in mistake(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "STUDENT", "--episodes", "2", "--no-progress", "--env", "os:CartPole-v1"],  # os: any importable module
        ["evaluate", "STUDENT", "--env", "no_such_module:CartPole-v1"],
        ["zoo", "train", "--algo", "qpd", "--env", "CartPole-v1", "--gym-packages", "no_such_module", "--num-threads", "1"],
        ["compress", "--help"],
    ],
    ids=lambda arguments: " ".join(arguments[:2] + arguments[-1:]),
)
def test_the_process_is_left_as_it_was(
    arguments: list[str], compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    monkeypatch.delenv(LARGE_PAGES, raising=False)

    def state() -> tuple[object, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)]
        return warnings.formatwarning, [*sys.path], [*sys.argv], {**os.environ}, handlers, th.get_num_threads(), Path.cwd()

    before = state()
    with contextlib.suppress(SystemExit):
        main([str(compressed) if argument == "STUDENT" else argument for argument in arguments])
    after = state()
    environment = after[3]
    assert isinstance(environment, dict)
    for name in environment.keys() - before[3].keys():  # type: ignore[attr-defined]
        assert not name.startswith(("THP", "SB3")), name  # other packages set variables of their own when imported
    assert after[:3] == before[:3] and after[4:] == before[4:]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGPIPE on Windows")
@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "STUDENT", "--episodes", "2", "--no-progress"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str], compressed: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = [str(compressed) if argument == "STUDENT" else argument for argument in arguments]
    command = [sys.executable, "-m", "sb3_qpd", *arguments]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(write)
    assert done.stderr == "" and done.returncode in (
        (0, 141) if "--help" in arguments else (141,)
    )  # 0: argparse ignores that its help could not be written


MISTAKES_KNOWN_AT_ONCE = [
    (["evaluate", "none.npz"], "No such file or folder: none.npz. The folder"),
    (["verify", "none"], "No such file or folder: none."),
    (
        ["compress", "ppo/CartPole-v1", "--out", "out"],
        "holds CartPole-v1_1. A model of this name on the Hub is hub:ppo/CartPole-v1",
    ),
    (["compress", "https://huggingface.co/sb3/x", "--out", "out"], "write sb3/x"),
    (["evaluate", "https://huggingface.co/sb3/x/blob/main/a/y.zip"], "write hub:sb3/x/a/y.zip"),
    (["compress", "x.zip", "--out", "o", "--student-arch", "tinny"], "Unknown --student-arch 'tinny'"),
    (["compress", "x.zip", "--out", "o", "--student-arch", "2 kb"], "such as '2kB' or '0.5%', got '2 kb'"),
    (["compress", "x.zip", "--out", "o", "--student-arch", "200%"], "above 0% and at most 100%, got '200%'"),
    (["compress", "x.zip", "--out", "o", "--student-arch", "2kB", "--weight-bits", "9"], "Bits must be one of (2, 3, 4"),
    (["compress", "x.zip", "--out", "ppo"], "--out ppo is not empty"),
    (
        ["export", "student.npz", "--target", "onnx", "--requantization", "fixed", "--out", "o"],
        "--requantization fixed is not for the target onnx",
    ),
    (
        ["export", "student.npz", "--target", "c", "--target", "onnx", "--requantization", "fixed", "--out", "o"],
        "is not for the target onnx",
    ),
    (["export", "student.npz", "--target", "onyx", "--out", "o"], "Unknown --target 'onyx'"),
    (["compress", "student.npz", "--target", "onyx", "--out", "o"], "Did you mean 'onnx'?"),
    (["compress", "student.npz", "--out", "o"], "student.npz is a student: expected its teacher as TEACHER"),
    (["export", "student.npz", "--target", "c", "--qdq", "--out", "o"], "--qdq is for onnx, the targets are c"),
    (["evaluate", "student.onnx"], "sb3-qpd verify . compares"),
    (["evaluate", "student.npz", "--vecnormalize", "student.npz"], "--vecnormalize is for a teacher"),
    (["evaluate", "student.npz", "--device", "cuda"], "computed by numpy, on the CPU"),
    (["verify", "student.npz", "--vecnormalize", "student.npz"], "give --teacher too"),
    (["benchmark", ".", "--teacher", "none.zip"], "No such file or folder: none.zip"),
    (["compress", "x.zip", "--out", "o", "--weight-bits", "9"], "Bits must be one of (2, 3, 4, 5, 6, 7, 8)"),
    (["compress", "x.zip", "--out", "o", "--activation-bits", "32"], "in both its weights and its activations"),
    (["compress", "x.zip", "--out", "o", "--weight-bits", "32", "--activation-bits", "32"], "compress makes integers"),
    (["compress", "x.zip", "--out", "o", "--transition", "blent"], "Did you mean 'blend'?"),
    (["compress", "x.zip", "--out", "o", "--box-loss", "hubert"], "Did you mean 'huber'?"),
    (["compress", "x.zip", "--out", "o", "--vec-env", "dumy"], "Did you mean 'dummy'?"),
    (["compress", "x.zip", "--out", "o", "--beta", "2"], "--beta must be a share of episodes between 0 and 1, got 2.0"),
    (["compress", "x.zip", "--out", "o", "--temperature", "0"], "--temperature must be a positive number, got 0.0"),
    (["compress", "x.zip", "--out", "o", "--learning-rate", "-1"], "--learning-rate must be a number between 0 and 1"),
    (["compress", "x.zip", "--out", "o", "--transition-start", "2"], "got --transition-start 2.0"),
    (["benchmark", ".", "--teacher", "."], ". is the folder of a student: expected its teacher as --teacher"),
    (["verify", ".", "--teacher", "student.npz"], "student.npz is a student: expected its teacher as --teacher"),
    (["frontier", "x.zip", "--out", "o", "--bits", "9"], "--bits must be numbers of 2 to 8 such as 4"),
    (["frontier", "x.zip", "--out", "o", "--sizes", "nanno"], "Unknown --sizes 'nanno'"),
    (["frontier", "x.zip", "--out", "o", "--max-bytes", "much"], "--max-bytes must be bytes such as 2000, 2kB or 1MB"),
    (["frontier", "x.zip", "--out", "o", "--rungs", "0.5", "0.2"], "--rungs must rise"),
    (["frontier", "x.zip", "--out", "o", "--storage", "search.db"], "--storage must be a URL of Optuna"),
    (["frontier", "x.zip", "--out", "o", "--sizes", "gigantic"], "small, medium, large. See sb3-qpd frontier --help"),
    (["frontier", "x.zip", "--out", "o", "--transition", "blent"], "Did you mean 'blend'?"),
    (["frontier", "x.zip", "--out", "o", "--target", "onyx"], "Did you mean 'onnx'?"),
    (["frontier", "x.zip", "--out", "ppo"], "--out ppo is not empty"),
    (["frontier", "none.zip", "--out", "o"], "No such file or folder: none.zip"),
    (["push", "none", "--repo-id", "me/x"], "There is no folder or file none."),
]


# an environment is looked up by Gymnasium, which takes less than a second
MISTAKES_KNOWN_TO_GYMNASIUM = [
    (["compress", "x.zip", "--out", "o", "--env", "CartPole-v9"], "No environment 'CartPole-v9'"),
    (["evaluate", "student.npz", "--env", "LunarLander-v3", "--env-kwargs", "gravty=-9"], "Did you mean 'gravity'?"),
    (["export", "student.npz", "--target", "c", "--out", "o", "--env", "CartPol-v1"], "Did you mean CartPole-v1"),
    (
        ["verify", ".", "--env", "ALE/Pong-v5", "--env-kwargs", "frame_skip=3"],
        "has no setting 'frame_skip'. Did you mean 'frameskip'?",
    ),
    (["frontier", "x.zip", "--out", "o", "--env", "CartPole-v9"], "No environment 'CartPole-v9'"),
    (["benchmark", ".", "--env", "no_such_module:Cart-v0"], "Cannot import 'no_such_module'"),
]


@pytest.mark.parametrize(
    ("mistakes", "light"),
    [(MISTAKES_KNOWN_AT_ONCE, set()), (MISTAKES_KNOWN_TO_GYMNASIUM, {"gymnasium"})],
    ids=["at once", "by Gymnasium"],
)
def test_what_is_known_at_once_is_said_before_torch_is_imported(
    mistakes: list[tuple[list[str], str]], light: set[str], tmp_path: Path
) -> None:
    """All in one process, in which torch must not be imported at the end."""
    (tmp_path / "ppo" / "CartPole-v1_1").mkdir(parents=True)
    for name in ("student.npz", "student.onnx", "student.zip", "x.zip"):
        (tmp_path / name).write_bytes(b"not looked at")
    code = """
import json, sys
from sb3_qpd.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        print(main(arguments))
    except SystemExit as error:
        print(error.code)
print(sorted({"torch", "gymnasium", "stable_baselines3", "huggingface_hub"} & set(sys.modules)))
"""
    commands = json.dumps([arguments for arguments, _ in mistakes])
    done = subprocess.run([sys.executable, "-c", code, commands], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines() == ["2"] * len(mistakes) + [str(sorted(light))], done.stderr
    for line, (_, message) in zip(done.stderr.splitlines(), mistakes, strict=True):
        assert message in line
