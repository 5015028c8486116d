import argparse
import base64
import json
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bounds import bounded
from commands import QUICK, mistake
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from stable_baselines3 import PPO
from teacher_files import edit_zip, serialized

from sb3_qpd import IntegerModel, QPDDistiller
from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.cli import main
from sb3_qpd.cli.compress import publish
from sb3_qpd.cli.hyperparameters import flag_names, take_entry
from sb3_qpd.cli.models import open_student
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.export import export
from sb3_qpd.student_folder import OUTPUTS, TARGET_FILES

FILES = ["command.txt", "report.json", "report.md", "student.npz", "student.zip", "student_float.zip"]


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


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("tflite", [], "The target tflite does not support weights of 2 bits in layer 1 (compress with --weight-bits 4 or 8)"),
        ("tflite", ["--env", "CartPoleDict-v0"], "The target tflite does not support weights of 2 bits in layer 1"),
    ],
)
def test_what_a_target_cannot_take_is_known_before_training(
    target: str, more: list[str], message: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = teacher
    if more:
        source = str(tmp_path / "dict.zip")
        PPO("MultiInputPolicy", "CartPoleDict-v0", device="cpu", n_steps=64).save(source)
    arguments = ["--env", "CartPole-v1", *more, "--timesteps", "1e9", "--weight-bits", "2", *QUICK]
    targets = ["--target", "onnx", "--target", target]
    assert message in mistake(capsys, "compress", source, "--out", tmp_path / "out", *arguments, *targets)
    assert not (tmp_path / "out").exists()


def test_a_ring_beyond_the_memory_is_known_before_the_teacher_plays(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes that the teacher had played to plan the evaluation would have been kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = ["--env", "CartPole-v1", "--buffer-size", "1e15", *QUICK]
    assert "needs 16,000,000.0 GB for its observations" in mistake(
        capsys, "compress", teacher, "--out", tmp_path / "x", *arguments
    )
    assert not list(tmp_path.rglob("episodes"))


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


@pytest.mark.parametrize("spaces_too", [False, True], ids=["values", "spaces"])
def test_a_hostile_student_runs_nothing(
    spaces_too: bool, compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    Every pickled value of the zip is replaced by one that would leave a mark if it were decoded. Only the spaces are read:
    a zip with others than spaces there is refused.
    """

    class Mark:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "mark",)

    payload = base64.b64encode(pickle.dumps(Mark())).decode()
    with zipfile.ZipFile(compressed / "student.zip") as source, zipfile.ZipFile(tmp_path / "hostile.zip", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                for key, value in data.items():
                    if isinstance(value, dict) and ":serialized:" in value and (spaces_too or not key.endswith("_space")):
                        value[":serialized:"] = payload
                data["unknown"] = {":type:": "object", ":serialized:": payload}
                content = json.dumps(data).encode()
            target.writestr(name, content)
    arguments = ["--env", "CartPole-v1", "--episodes", "12", "--no-progress"]
    if spaces_too:
        assert "was refused, without running it" in mistake(capsys, "evaluate", tmp_path / "hostile.zip", *arguments)
    else:
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
        ({"hidden": [1] * 10**5}, "more layers than its weights have"),
        ({"hidden": [1] * 10**6}, "more than 500000 values"),
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
    with pytest.raises(ValueError, match="device='x' cannot be used"):
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
        ({"env_id": "x:y; rm -rf z"}, "--no-progress --env ID, or"),  # no command of the file's is printed to be copied
    ],
    ids=["too much", "half a wrapper", "unknown", "a package", "no text", "a command"],
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
    if "sutton_barto_reward" in env.get("env_kwargs", {}):  # the user's own setting is taken
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
    (["TEACHER"], "a/out --no-progress --env ID"),  # the command to type
    (["TEACHER", "--env", "CartPol-v1"], "CartPole-v1"),
    (["TEACHER", "--env", "Acrobot-v1"], "environment: 6 numbers"),
    (["TEACHER", "--env", "CartPole-v1", "--student-arch", "tinny"], "tiny"),
    (["TEACHER", "--env", "CartPole-v1", "--transition", "blent"], "blend"),
    (["TEACHER", "--env", "CartPole-v1", "--weight-bits", "9"], "9"),
    (["TEACHER", "--env", "CartPole-v1", "--weight-bits", "32", "--activation-bits", "32"], "compress makes integers"),
    (["TEACHER", "--env", "CartPole-v1", "--timesteps", "0"], "a whole number from 1 to 1e+11, such as 1000, got '0'"),
    (["TEACHER", "--env", "CartPole-v1", "--timesteps", "-1e6"], "timesteps"),
    (["TEACHER", "--env", "CartPole-v1", "--timesteps", "nan"], "a whole number from 1"),
    (["TEACHER", "--env", "CartPole-v1", "--episodes", "0"], "a whole number of at least 1, such as 1000, got '0'"),
    (["TEACHER", "--env", "CartPole-v1", "--device", "gpu"], "--device 'gpu' cannot be used on this machine"),
    (["TEACHER", "--env", "CartPole-v1", "--vecnormalize", "nowhere.pkl"], "nowhere.pkl"),
    (["TEACHER", "--env", "CartPole-v1", "--env-kwargs", "novalue"], "expected key=value, got 'novalue'"),
    (["TEACHER", "--env", "CartPole-v1", "--env-kwargs", "unknown=1"], "unknown"),
    (["TEACHER", "--env", "CartPole-v1", "--critic-coef", "nan"], "--critic-coef must be a number of at least 0, got nan"),
    (["TEACHER", "--env", "CartPole-v1", "--learning-rate", "1e30"], "--learning-rate must be a number between 0 and 1"),
    (
        ["TEACHER", "--env", "CartPole-v1", "--episodes", "1", "--buffer-size", "1" + 15 * "0"],
        "take a --buffer-size of at most",
    ),
    (["TEACHER", "--env", "CartPole-v1", "--no-such-option"], "--no-such-option"),
    (["TEACHER", "--env", "CartPole-v1", "--target", "onyx"], "Unknown --target 'onyx'. Known: onnx, c, tflite, numpy, "),
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


def saturated(weights: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """
    Weights whose output overflows at every observation: all features of the last layer are 1.

    With the trained features it depended on the observations and on the order of a sum whether the first batch overflows.
    """
    bias = "mlp_extractor.policy_net.2.bias"
    return {**broken(weights, 3e38), bias: th.full_like(weights[bias], 100.0)}


BAD_TEACHERS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN weights": ({"state_dict": lambda weights: broken(weights, math.nan)}, "holds NaN or infinite weights"),
    # finite, but what comes out is not
    "NaN outputs": ({"state_dict": lambda weights: saturated(weights)}, "The teacher's output holds NaN or infinity"),
    "another algorithm": (
        {"data": {"policy_class": serialized(b"cstable_baselines3.her\nHer\n.")}},
        "holds an agent of another algorithm: her",
    ),
    "foreign classes": (
        {"data": {"policy_kwargs": serialized(pickle.dumps({"features_extractor_class": CartPoleEnv}))}},
        "asks for gymnasium.envs.classic_control.cartpole.CartPoleEnv",
    ),
}


@pytest.mark.parametrize("name", BAD_TEACHERS)
def test_teachers_that_cannot_teach(name: str, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "bad.zip", tmp_path / "out"
    changes, message = BAD_TEACHERS[name]
    edit_zip(Path(teacher), path, **changes)
    assert message in mistake(capsys, "compress", path, "--env", "CartPole-v1", "--out", out, "--timesteps", "64", *QUICK)
    assert not out.exists()


def test_settings_that_are_not_given_come_from_the_entry(capsys: pytest.CaptureFixture[str]) -> None:
    """All of the entry's settings, size and bits included, or none of those that the user gives; what was taken is printed."""

    def filled_in(env_id: str, **given: Any) -> dict[str, Any]:
        nothing = dict.fromkeys(["timesteps", *flag_names()])
        args = argparse.Namespace(**{**nothing, **given})
        take_entry(args, EnvRecipe(env_id))
        return {name: value for name, value in vars(args).items() if value is not None}

    hopper = {"timesteps": 500_000, "buffer_size": 500_000, "n_envs": 16, "student_arch": "small"}
    assert filled_in("Hopper-v4") == hopper
    assert "From the entry Hopper-v4 of hyperparams/qpd.yml: timesteps 500000, student_arch small" in capsys.readouterr().out
    assert filled_in("Hopper-v4", timesteps=7, buffer_size=8) == {**hopper, "timesteps": 7, "buffer_size": 8}
    cartpole = {"timesteps": 20_000, "n_envs": 16, "student_arch": "nano", "weight_bits": 4, "activation_bits": 4}
    assert filled_in("CartPole-v1") == cartpole
    by_budget = {"timesteps": 20_000, "n_envs": 16, "student_arch": "300B"}
    assert filled_in("CartPole-v1", student_arch="300B") == by_budget  # a budget chooses bits too
    pong = {"timesteps": 100_000, "n_envs": 16, "student_arch": "tiny", "transition": "abrupt"}
    assert filled_in("PongNoFrameskip-v4") == pong | {"temperature": 0.4, "student_temperature": 1.5}
    breakout = filled_in("BreakoutNoFrameskip-v4")
    assert (breakout["transition"], breakout["transition_steps"]) == ("blend", 200_000)
    assert "critic_coef" not in breakout  # the default of 0.5
    capsys.readouterr()
    assert filled_in("Breaking-v0") == {"timesteps": 100_000} and not capsys.readouterr().out


def test_require_is_an_exit_code(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For CI: the files are written whatever the verdict."""
    arguments = ["--env", "CartPole-v1", "--timesteps", "64", "--episodes", "3", "--require", "non-inferior", *QUICK]
    code = main(["compress", teacher, "--out", str(tmp_path), *arguments])
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == (0 if report["verdict"] == "non_inferior" else 1)
    assert ("required non-inferior, the verdict is" in capsys.readouterr().err) == (code == 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_a_run_ends_early(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once the student passes on validation episodes; the verdict comes from the test episodes all the same."""
    arguments = ["--env", "CartPole-v1", "--timesteps", "5e4", "--episodes", "40", *QUICK, "--stop-when", "non-inferior"]
    assert main(["compress", teacher, "--out", str(tmp_path), *arguments, "--transition", "scratch"]) == 0
    output = capsys.readouterr().out
    assert "of 50000 steps: the student is non-inferior on 40 validation episodes" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["timesteps"] < 50_000 and report["integer"]["episodes"] == 40 and report["evaluation_seed"] == 2_000_000


def test_tensorboard(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files are written, and nothing of the log is printed."""
    arguments = ["--env", "CartPole-v1", "--timesteps", "3e3", "--episodes", "2", "--tensorboard-log", str(tmp_path / "tb")]
    assert main(["compress", teacher, "--out", str(tmp_path / "out"), *arguments, *QUICK]) == 0
    (events,) = (tmp_path / "tb" / "QPD_1").glob("events*")
    assert b"train/actor_loss" in events.read_bytes() and "actor_loss" not in capsys.readouterr().out


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


def test_stagingpublishes_together_and_keeps_what_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.json").write_text("old")
    with AtomicFolder(tmp_path, force=True) as staging:
        (staging.path / "report.json").write_text("new")
        assert (tmp_path / "report.json").read_text() == "old"
        assert staging.commit() == ["report.json"]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"mine.txt": "mine", "report.json": "new"}


def test_force_leaves_nothing_of_an_earlier_run(teacher: str, compressed: Path, tmp_path: Path) -> None:
    model = IntegerModel.load(compressed / "student.npz")
    targets = [target for target, file in TARGET_FILES.items() if file]
    exported = [path.name for target in targets for path in export(model, target, tmp_path / target)]
    ours = {
        "student_onnx.json",
        "report.html",
        "film.gif",
        "benchmark.json",
        "recorded.json",
        "recorded.md",
    }
    assert {*exported, *FILES, *ours} == set(OUTPUTS)
    out = tmp_path / "out"
    out.mkdir()
    for name in (*OUTPUTS, "mine.txt"):
        (out / name).write_text("old")
    (out / "notes").mkdir()  # with a folder inside, files move one by one
    (library,) = export(model, "arduino", out)
    assert library.is_dir()
    arguments = ["--env", "CartPole-v1", "--timesteps", "100", "--episodes", "2", "--transition", "scratch", *QUICK]
    assert main(["compress", teacher, "--out", str(out), "--force", *arguments]) == 0
    left = {*FILES, "mine.txt", "notes"} - {"student_float.zip"}  # from scratch: none
    assert {path.name for path in out.iterdir()} == left
    assert [path.name for path in out.iterdir() if path.is_file() and path.read_bytes() == b"old"] == ["mine.txt"]


class Breaking(CartPoleEnv):
    """Its sensors fail after 50 steps."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        observation, *rest = super().step(action)
        return (observation if self.n_steps < 50 else np.full_like(observation, np.nan), *rest)


class DictCartPole(gym.ObservationWrapper):
    """CartPole, whose observation is a Dict."""

    def __init__(self) -> None:
        super().__init__(CartPoleEnv())
        self.observation_space = gym.spaces.Dict({"obs": self.env.observation_space})

    def observation(self, observation: Any) -> Any:
        return {"obs": observation}


class FarCartPole(gym.ObservationWrapper):
    """Its cart is that far from the origin of a map."""

    def __init__(self) -> None:
        super().__init__(CartPoleEnv())
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return np.array([5.4e6, 0, 0, 0]) + observation


def test_an_origin_goes_into_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PPO("MlpPolicy", "FarCartPole-v0", device="cpu", n_steps=64).save(tmp_path / "teacher.zip")
    arguments = ["--env", "FarCartPole-v0", "--timesteps", "1000", "--episodes", "3", *QUICK]
    out = tmp_path / "out"
    assert main(["compress", str(tmp_path / "teacher.zip"), "--out", str(out), *arguments, "--target", "onnx"]) == 0
    assert "all equal where equality is promised" in capsys.readouterr().out
    assert IntegerModel.load(out / "student.npz").input_origin is not None
    assert "offset is taken off in float64, because float32 cannot carry it: 0 (5400000" in (out / "report.md").read_text()
    assert main(["benchmark", str(out), "--seconds", "0.01"]) == 0
    # TFLite cannot take it, which the first observations show
    arguments = [str(tmp_path / "teacher.zip"), "--out", str(tmp_path / "other"), *arguments, "--target", "tflite"]
    error = mistake(capsys, "compress", *arguments)
    assert "The target tflite does not support observations in float64 with an offset that float32 cannot carry" in error
    assert "Take the target onnx, c" in error and not (tmp_path / "other").exists()


gym.register("FarCartPole-v0", entry_point=FarCartPole, max_episode_steps=200)
gym.register("CartPoleDict-v0", entry_point=DictCartPole, max_episode_steps=200)
gym.register("Breaking-v0", entry_point=Breaking, max_episode_steps=200)


def test_what_goes_wrong_later_leaves_the_student(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "Breaking-v0", "--n-envs", "2", "--timesteps", "400", "--episodes", "2", *QUICK]
    with pytest.raises(SystemExit) as exit_info:
        main(["compress", teacher, "--out", str(tmp_path / "out"), *arguments])
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 1
    assert (
        "error: Breaking-v0 failed at step 100, in sub-environment 0: its observations hold NaN, infinity or a number" in last
        and "stopped after 100 steps; wrote student.npz" in last
    )
    assert IntegerModel.load(tmp_path / "out" / "student.npz").metadata["env"]["env_id"] == "Breaking-v0"


def test_a_student_without_an_integer_form_is_saved(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = QPDDistiller(teacher, "CartPole-v1", n_envs=1, student_arch="nano", device="cpu")
    with th.no_grad():
        student.policy.action_net.bias[0] = th.nan
    with AtomicFolder(tmp_path / "out", force=False) as staging:
        assert publish(student, "CartPole-v1", staging, None)[0] == ["student.zip"]
    assert "no student.npz: The student's parameters hold NaN" in capsys.readouterr().err
