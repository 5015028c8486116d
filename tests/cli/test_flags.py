"""Errors and warnings of a command name its flags, where the package names arguments of Python."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from commands import COMMANDS, arguments_of_python, mistake

from sb3_qpd.cli import main
from sb3_qpd.cli.flags import in_flags

MESSAGES = [
    ("compress", "learning_rate must be a number, got -1.0", "--learning-rate must be a number, got -1.0"),
    ("compress", "beta must be a share", "--beta must be a share"),
    ("compress", "Unknown transition 'blent'. Known: blend", "Unknown --transition 'blent'. Known: blend"),
    ("compress", "Give vec_env='subproc'", "Give --vec-env subproc"),
    ("compress", "weight_bits=(8, 4, 4) names 3 layers", "--weight-bits 8,4,4 names 3 layers"),
    ("compress", 'take student_arch={"hidden": [1]}, or less', """take --student-arch '{"hidden": [1]}', or less"""),
    ("compress", "switch it off with check_teacher=False.", "switch it off with --no-check-teacher."),
    ("compress", "history_actions=True needs history=2.", "--history-actions needs --history 2."),
    ("compress", "give env=, an id, or kind=: this one", "give --env, an id, or --teacher-kind: this one"),
    ("compress", "total_timesteps must be at least 1", "--timesteps must be at least 1"),
    ("compress", "tau=0.5 and hidden=(1,) stay", "tau=0.5 and hidden=(1,) stay"),  # no flags
    ("compress", "X failed in reset(seed=3): history of a seed", "X failed in reset(seed=3): history of a seed"),
    ("compress", "a/weight_bits/x.zip has 'weight_bits'", "a/weight_bits/x.zip has 'weight_bits'"),
    ("compress", *["reset(options=None, seed=3) and Arch(hidden=(8, 8), history=2)"] * 2),  # calls
    ("compress", "got student_arch=Arch(hidden=(8,))", "got student_arch=Arch(hidden=(8,))"),
    ("compress", "Unknown policy 'my weight_bits net'", "Unknown policy 'my weight_bits net'"),
    ("compress", *["batch_size-4.zip, x/lr=1,batch_size=4 and http://x.org/?seed=3"] * 2),  # paths and a URL
    ("compress", "the seeds' n_envs and the teacher's n_envs", "the seeds' --n-envs and the teacher's --n-envs"),
    ("compress", "weight_bits=(8,) names 1 layer", "--weight-bits 8 names 1 layer"),
    ("export", "name 'foo' is not defined", "name 'foo' is not defined"),
    ("compress", "progress=True", "progress=True"),  # there is only --no-progress
    ("evaluate", "weight_bits must be 8", "weight_bits must be 8"),  # a flag of another command
    ("frontier", "student_arch='9B' is 9 bytes", "--sizes 9B is 9 bytes"),
    ("frontier", "give another out= or study_name=", "give another --out or --study-name"),
    ("export", "form='float' does not take this", "--float does not take this"),
    ("export", "take model.requantization='float32'", "take --requantization float32"),
    ("export", "names: there is no input", "--names: there is no input"),
    ("export", "with_value=True and probabilities=True are for C", "--with-value and --probabilities are for C"),
]


@pytest.mark.parametrize("command, message, expected", MESSAGES)
def test_arguments_become_flags(command: str, message: str, expected: str) -> None:
    assert in_flags(message, COMMANDS[command]) == expected
    assert in_flags(message) == message  # without a command, Python's names stay


def test_the_words_that_may_not_stand_in_a_message() -> None:
    line = "error: learning_rate must be 1, got env=3, --env 3, reset(seed=3), 'weight_bits', of a seed"
    assert arguments_of_python(COMMANDS["compress"], line) == ["learning_rate", "env"]


EXPORTS = [
    (["npz", "--target", "c", "--with-value"], "--with-value takes a student's zip, and "),
    (["npz", "--target", "c", "--with-value"], "student.npz has no value head. Give "),
    (["npz", "--target", "onnx", "--channels-last"], "--channels-last is for images, this student takes"),
    (["npz", "--target", "js", "--channels-last"], "--channels-last is for images, this student takes"),
    (["npz", "--target", "onnx", "--names", "x=y"], "--names: this student has no input or output 'x'"),
    (["npz", "--target", "c", "--prefix", "main"], "--prefix must be a lower-case C identifier"),
    (["fixed", "--target", "onnx"], "does not support --requantization fixed (take --requantization float32). Take"),
]


@pytest.mark.parametrize("words, message", EXPORTS)
def test_what_an_export_cannot_serve(
    words: list[str], message: str, compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"npz": compressed / "student.npz", "fixed": tmp_path / "fixed"}
    if words[0] == "fixed":
        fixed = ["--requantization", "fixed", "--target", "numpy", "--out", str(tmp_path / "fixed")]
        assert main(["export", str(compressed), *fixed]) == 0
    assert message in mistake(capsys, "export", names[words[0]], *words[1:], "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_warnings_and_late_errors_name_flags_too(
    teacher: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(message: Warning, *where: Any) -> None:  # pytest keeps warnings to itself otherwise
        sys.stderr.write(warnings.formatwarning(message, *where[:3]))

    monkeypatch.setattr(warnings, "showwarning", show)
    arguments = ["--env", "CartPole-v1", "--episodes", "2", "--timesteps", "16", "--n-envs", "8", "--max-episode-steps", "3"]
    quick = ["--no-check-teacher", "--no-progress", "--device", "cpu", "--student-arch", "nano", "--batch-size", "4000"]
    with pytest.raises(SystemExit):
        main(["compress", teacher, "--out", str(tmp_path / "out"), *arguments, *quick])
    lines = capsys.readouterr().err.splitlines()
    assert any("at --gradient-steps 0.004 give no" in line and "--batch-size below 4000" in line for line in lines)
    assert "raise the limit: --max-episode-steps" in lines[-1]
    assert not [found for line in lines if (found := arguments_of_python(COMMANDS["compress"], line))]
