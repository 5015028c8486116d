"""``sb3-qpd info``, and that it plays and executes nothing."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from commands import mistake
from random_students import draw

from sb3_qpd import IntegerModel
from sb3_qpd.cli import main
from sb3_qpd.cli.demo import TEACHER


def described(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["info", *map(str, argv)]) == 0
    return capsys.readouterr().out


def test_a_student(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IntegerModel.load(compressed / "student.npz")
    told = described(capsys, compressed)
    checksum = hashlib.sha256((compressed / "student.npz").read_bytes()).hexdigest()
    assert told.splitlines()[0] == f"student      {compressed / 'student.npz'}, SHA-256 {checksum}"
    assert "environment  CartPole-v1" in told and "teacher      ppo/" in told
    assert f"size         {model.nbytes} bytes, {model.n_parameters} parameters, {model.macs} multiply" in told
    layers = [line.split() for line in told.splitlines() if line[:1] in "123" and " x " in line]
    assert sum(int(row[-2]) for row in layers) == sum(layer.nbytes for layer in model.layers)
    assert sum(int(row[-1]) for row in layers) == model.macs
    assert f"student.npz {(compressed / 'student.npz').stat().st_size:>14,}  {checksum}".split() in [
        line.split() for line in told.splitlines()
    ]


def test_the_ranges_are_those_of_the_input_grid(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IntegerModel.load(compressed / "student.npz")
    told = described(capsys, compressed / "student.npz").partition("lowest")[2].splitlines()[1:5]
    lowest, highest = (np.array([[float(line.split()[i]) for line in told]], np.float32) for i in (1, 2))
    assert (model.quantize_input(lowest) == -128).all() and (model.quantize_input(highest) == 127).all()


def test_the_zip_and_any_other_file_of_the_folder(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_npz = described(capsys, compressed).splitlines()[1:]
    assert described(capsys, compressed / "report.json").splitlines()[1:] == of_npz
    of_zip = described(capsys, compressed / "student.zip").splitlines()[1:]
    assert [line for line in of_zip if " x " in line] == [line for line in of_npz if " x " in line]


def test_a_float_student_is_refused(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(capsys, "info", compressed / "student_float.zip")
    assert "is a float student, which has no integers" in message


def test_a_teacher(capsys: pytest.CaptureFixture[str]) -> None:
    told = described(capsys, TEACHER)
    assert hashlib.sha256(TEACHER.read_bytes()).hexdigest() in told
    assert "algorithm      ppo, ActorCriticPolicy" in told and "Discrete(2)" in told
    assert "actor          5,128 bytes in float32" in told and "action_net.weight" in told
    assert "environment    not named" in told


def test_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file or folder: nothing.npz" in mistake(capsys, "info", "nothing.npz")


@pytest.mark.parametrize("env", ["CartPole-v1", 3, {"env_id": "\x1b[2JCartPole-v1", "frame_stack": [1]}])
def test_texts_of_a_file_are_shown_as_texts(
    env: object, compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = IntegerModel.load(compressed / "student.npz")
    model.metadata |= {"teacher": "ppo\x1b[31m\nsize 3 bytes", "pipeline": ["Wrapper\x07", 4], "env": env}
    model.save(tmp_path / "odd.npz")
    told = described(capsys, tmp_path / "odd.npz")
    assert "\x1b" not in told and "\x07" not in told and "ppo [31m size 3 bytes, SHA-256" in told
    assert "wrappers     Wrapper, 4\n" in told


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.filterwarnings("ignore:overflow")
def test_students_of_all_kinds(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dicts, images, masks, extreme numbers: the layers add up to the model."""
    model = draw(seed).model
    model.save(tmp_path / "drawn.npz")
    told = described(capsys, tmp_path / "drawn.npz").replace(",", "").splitlines()
    layers = [line.split() for line in told if line[:2].strip().isdigit() and " x " in line]
    assert len(layers) == len(model.layers)
    assert sum(int(row[-2]) for row in layers) == sum(layer.nbytes for layer in model.layers)
    assert sum(int(row[-1]) for row in layers) == model.macs
