"""One noun: a folder, a file in it, or a name on the Hub; and environments of other packages."""

import shutil
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from commands import QUICK, mistake
from hub_server import point_client_at, running_hub
from stable_baselines3 import PPO

from sb3_qpd import IntegerModel, QPDDistiller, TeacherError, evaluate, load_student, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export import export

PLAY = ["--episodes", "3", "--no-progress"]


def returns(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The first line that ``evaluate`` prints."""
    assert main(["evaluate", *map(str, argv), *PLAY]) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_a_folder_or_a_file_in_it(compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        returns(capsys, compressed) == returns(capsys, compressed / "student.npz") == returns(capsys, compressed / "student")
    )
    for number, student in enumerate((compressed, compressed / "student.zip", compressed / "student.npz")):
        assert main(["export", str(student), "--target", "numpy", "--out", str(tmp_path / str(number))]) == 0
    models = [IntegerModel.load(tmp_path / str(number) / "student.npz") for number in range(3)]
    assert len({model.logits([[0.1, 0.2, 0.3, 0.4]]).tobytes() for model in models}) == 1
    for source in (compressed, compressed / "report.json"):
        assert main(["verify", str(source), "--observations", "20"]) == 0


def test_a_file_of_a_teachers_run_folder(teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "ppo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    shutil.copy(teacher, run / "CartPole-v1.zip")
    (run / "CartPole-v1" / "args.yml").write_text("env: CartPole-v1\n")
    expected = returns(capsys, run)
    assert expected == returns(capsys, run / "CartPole-v1.zip") == returns(capsys, run / "CartPole-v1" / "args.yml")


def test_one_noun_in_python(compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, files in it, with and without suffix, and a trailing slash, as text and as paths."""
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = IntegerModel.load(compressed / "student.npz").logits(observations)
    folder = tmp_path / "student"
    shutil.copytree(compressed, folder)
    export(IntegerModel.load(folder), "c", folder)
    monkeypatch.chdir(tmp_path)
    zips = ["student", "student/", folder, "student/student.zip", folder / "student.zip", "student/report.json"]
    for source in [*zips, "student/student", "student/student.npz", folder / "student.npz", folder / "report.md"]:
        np.testing.assert_array_equal(IntegerModel.load(source).logits(observations), expected)
    for source in (*zips, "student/student"):
        np.testing.assert_array_equal(load_student(source).to_integer().logits(observations), expected)
    returns = [evaluate(source, n_episodes=3).returns.tolist() for source in [*zips[:-1], folder / "student.npz"]]
    assert all(one == returns[0] for one in returns)
    for source in (*zips, folder / "policy.c", "student/student"):
        assert verify(source, "CartPole-v1", 10).holds
    assert QPDDistiller.load(folder, device="cpu").policy.arch.weight_bits == 4
    assert IntegerModel.load("student/student.zip").metadata["env"]["env_id"] == "CartPole-v1"


def test_what_the_noun_does_not_mean(compressed: Path) -> None:
    """An export is another form of the student, and an .npz is no SB3 model."""
    export(IntegerModel.load(compressed), "c", compressed)
    with pytest.raises(ValueError, match=r"policy.c' is not a student's .npz .*Load .*student.npz, which lies beside it"):
        IntegerModel.load(compressed / "policy.c")
    for name in ("policy.c", "report.json", "report.md"):
        with pytest.raises(ValueError, match=f"{name} is a file for devices or about a student, and is not played here"):
            evaluate(compressed / name)
    with pytest.raises(ValueError, match="is an integer model, which IntegerModel.load opens.* Open .*student.zip"):
        load_student(compressed / "student.npz")
    with pytest.raises(ValueError, match="A float student .* has no integer form"):
        IntegerModel.load(compressed / "student_float.zip")
    for source in ("runs/none.zip", "runs/none.npz", "none"):
        with pytest.raises(FileNotFoundError, match="There is no file .*none"):
            IntegerModel.load(source)
    with pytest.raises(TeacherError, match="is the folder of a student. Expected its teacher"):
        load_teacher(compressed)
    for path in compressed.glob("policy*"):
        path.unlink()
    for name in ("policy.h", "main.c", "test_vectors.h"):
        (compressed / name).unlink(missing_ok=True)


def test_export_reads_the_folder_of_a_report(compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(compressed / "report.json"), "--target", "numpy", "--out", str(tmp_path)]) == 0
    (tmp_path / "student.onnx").write_bytes(b"")
    message = mistake(capsys, "export", tmp_path / "student.onnx", "--target", "c", "--out", tmp_path / "c")
    assert "student.onnx cannot be exported: expected a student's zip or .npz, or its folder" in message


@pytest.mark.parametrize("command", ["evaluate", "verify", "benchmark", "export"])
def test_an_environment_that_does_not_fit_is_named(
    command: str, compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["--target", "c", "--out", tmp_path / "out"] if command == "export" else []
    message = mistake(capsys, command, compressed, *target, "--env", "Acrobot-v1")
    assert "Acrobot-v1 gives observations of shape (6,), but this IntegerModel of CartPole-v1 takes (4,)" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["evaluate", "verify", "benchmark"])
def test_a_path_of_rl_zoo_that_is_mistyped_is_not_asked_for_on_the_hub(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running_hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        assert "No such file or folder: ppo/CartPole-v1. The folder" in mistake(capsys, command, "ppo/CartPole-v1")
        assert hub.requests == []


def test_names_on_the_hub(
    compressed: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student's repository, one of its files, and a teacher's repository."""
    with running_hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        names = ("student.npz", "student.zip", "report.json")
        hub.publish("me/tiny-cartpole", {name: (compressed / name).read_bytes() for name in names})
        hub.publish("me/ppo-CartPole-v1", {"ppo-CartPole-v1.zip": Path(teacher).read_bytes(), "args.yml": b"env: CartPole-v1"})
        expected = returns(capsys, compressed)
        assert returns(capsys, "me/tiny-cartpole") == returns(capsys, "hub:me/tiny-cartpole/student.zip") == expected
        assert returns(capsys, "me/ppo-CartPole-v1") == returns(capsys, teacher, "--env", "CartPole-v1")
        x = [[0.1, 0.2, 0.3, 0.4]]
        here = IntegerModel.load(compressed).logits(x)
        for opened in (IntegerModel.load("me/tiny-cartpole"), load_student("me/tiny-cartpole").to_integer()):
            np.testing.assert_array_equal(opened.logits(x), here)
        assert evaluate("me/tiny-cartpole", n_episodes=3).distinct_returns >= 1
        assert main(["verify", "me/tiny-cartpole", "--observations", "20"]) == 0
        assert "policy in eval mode" in capsys.readouterr().out
        assert main(["export", "me/tiny-cartpole", "--target", "c", "--out", str(tmp_path / "c")]) == 0
        assert "holds no student.npz" in mistake(capsys, "verify", "me/ppo-CartPole-v1")
        assert "is not a student" in mistake(capsys, "export", "me/ppo-CartPole-v1", "--target", "c", "--out", tmp_path / "x")
    capsys.readouterr()
    assert returns(capsys, "me/tiny-cartpole") == expected  # from the cache: the server is gone


def test_what_is_no_student(compressed: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is the folder of a student: expected its teacher" in mistake(
        capsys, "compress", compressed, "--out", tmp_path / "x"
    )
    assert "is not a student: expected" in mistake(capsys, "export", teacher, "--target", "c", "--out", tmp_path / "x")
    float_zip = compressed / "student_float.zip"
    message = mistake(capsys, "export", float_zip, "--target", "c", "--out", tmp_path / "x")
    assert "is the float student, which has no integers. Export student.zip or student.npz instead" in message


def test_another_environment_than_the_students(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(capsys, "evaluate", compressed, "--env", "Acrobot-v1", *PLAY)
    assert "The student learned in CartPole-v1 and cannot play in Acrobot-v1" in message


def test_the_teacher_of_another_environment(compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PPO("MlpPolicy", "Acrobot-v1", n_steps=8, batch_size=8, device="cpu").save(tmp_path / "acrobot.zip")
    message = mistake(capsys, "benchmark", compressed, "--teacher", tmp_path / "acrobot.zip")
    assert "acrobot.zip is the teacher of another environment than CartPole-v1" in message


def test_devices_that_are_not_here(compressed: Path, teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SB3 would take the CPU without a word."""
    for arguments in (["evaluate", compressed / "student.zip"], ["compress", teacher, "--out", tmp_path / "out"]):
        message = mistake(capsys, *arguments, "--env", "CartPole-v1", "--device", "xpu:7")
        assert "--device 'xpu:7' cannot be used on this machine: " in message
    assert not (tmp_path / "out").exists()


def test_env_names_the_environment_of_an_npz(compressed: Path, tmp_path: Path) -> None:
    options = ["--target", "numpy", "--out", str(tmp_path), "--env", "CartPole-v0"]
    assert main(["export", str(compressed / "student.npz"), *options]) == 0
    assert IntegerModel.load(tmp_path / "student.npz").metadata["env"]["env_id"] == "CartPole-v0"


OWN_ENV = """
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

gym.register("OwnCart-v0", entry_point=CartPoleEnv, max_episode_steps=50)
"""


def test_an_environment_of_ones_own(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named once, it is remembered as this user's choice; where it is not, the command to type is printed."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    (here / "own_cart_envs.py").write_text(OWN_ENV)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(here))])

    def forget_module() -> None:
        gym.registry.pop("OwnCart-v0", None)
        sys.modules.pop("own_cart_envs", None)

    monkeypatch.chdir(here)
    assert "Cannot import 'none_such'" in mistake(capsys, "evaluate", teacher, "--env", "none_such:OwnCart-v0", *PLAY)
    arguments = ["--env", "own_cart_envs:OwnCart-v0", "--timesteps", "64", "--episodes", "2", *QUICK]
    out = tmp_path / "out"
    assert main(["compress", teacher, "--out", str(out), *arguments]) == 0 and str(here) not in sys.path
    monkeypatch.chdir(elsewhere)
    later = [
        ["evaluate", str(out), *PLAY],
        ["evaluate", str(out / "student.zip"), *PLAY],
        ["verify", str(out), "--observations", "20"],
    ]
    for command in later:
        forget_module()
        assert main(command) == 0
    assert "of own_cart_envs:OwnCart-v0 from seed" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "state")  # another user
    for command in later:
        forget_module()
        message = mistake(capsys, *command)
        assert "would import a module" in message
        assert f"Give it: sb3-qpd {' '.join(command)} --env own_cart_envs:OwnCart-v0" in message
        assert "own_cart_envs" not in sys.modules
    # an export names the environment, and builds nothing
    assert main(["export", str(out / "student.zip"), "--target", "numpy", "--out", str(tmp_path / "numpy")]) == 0
    assert IntegerModel.load(tmp_path / "numpy").metadata["env"]["env_id"] == "own_cart_envs:OwnCart-v0"
    assert "own_cart_envs" not in sys.modules
