"""Students' zips: older ones open, new ones name no module, and ``load_student`` executes nothing."""

import base64
import io
import json
import pickle
import re
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bounds import bounded
from stable_baselines3.common.vec_env import DummyVecEnv
from teacher_files import Payload, edit_zip, read_data, serialized
from toys import QUICK, Pointer, actor_of, assert_same_bits, pointers, untrained

from sb3_qpd import IntegerModel, QPDDistiller, load_student
from sb3_qpd.cli import main
from sb3_qpd.integer import StudentError

HERE = Path(__file__).parent
OBSERVATIONS = Pointer.sample(50)


@pytest.fixture(scope="module")
def student() -> QPDDistiller:
    return QPDDistiller(untrained(pointers()), **QUICK).learn(80)


@pytest.fixture(scope="module")
def zip_path(student: QPDDistiller, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student") / "student.zip"
    student.save(path)
    return path


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_a_zip_from_before_the_folders(kind):
    """It names modules that are gone. W4A4 students of LunarLander and Pong, with what they said of observations."""
    said = np.load(HERE / f"old_student_{kind}.npz")
    assert re.search(rb"sb3_qpd\.policies", everything_in(HERE / f"old_student_{kind}.zip"))
    student = load_student(HERE / f"old_student_{kind}.zip", device="cpu")
    integer = assert_same_bits(student.policy, said["observations"])
    np.testing.assert_array_equal(integer.logits(said["observations"]), said["logits"])
    np.testing.assert_array_equal(student.predict(said["observations"], deterministic=True)[0], said["actions"])


def everything_in(path: Path) -> bytes:
    """The data of a zip, its pickles decoded, and its other members."""
    data = read_data(path)
    pickles = [
        base64.b64decode(one[":serialized:"]) for one in data.values() if isinstance(one, dict) and ":serialized:" in one
    ]
    with zipfile.ZipFile(path) as archive:
        members = [archive.read(name) for name in archive.namelist()]
    return b"\n".join([json.dumps(data).encode(), *pickles, *members])


def test_a_zip_names_the_package_and_no_module(zip_path):
    content = everything_in(zip_path)
    assert b"sb3_qpd" in content and not re.findall(rb"sb3_qpd\.[a-z]\w*", content)


@pytest.mark.parametrize("key", ["policy_class", "learning_rate", "lr_schedule", "_last_episode_starts", "unknown"])
def test_nothing_is_executed(zip_path, tmp_path, key):
    marker = tmp_path / "executed"
    hostile = pickle.dumps(Payload(f"touch {marker}"))
    value = {**read_data(zip_path)["policy_class"], **serialized(hostile)} if key == "policy_class" else serialized(hostile)
    path = edit_zip(zip_path, tmp_path / "hostile.zip", {key: value})
    loaded = load_student(path, device="cpu")
    assert not marker.exists() and loaded.policy is not None
    pickle.loads(hostile)
    assert marker.exists(), "the payload works"


@pytest.mark.parametrize("key", ["observation_space", "action_space", "policy_kwargs"])
def test_pickles_that_are_needed_are_refused(zip_path, tmp_path, key):
    marker = tmp_path / "executed"
    path = edit_zip(zip_path, tmp_path / "hostile.zip", {key: serialized(pickle.dumps(Payload(f"touch {marker}")))})
    with pytest.raises(ValueError, match="hostile.zip"):
        load_student(path, device="cpu")
    assert not marker.exists()


def test_pickled_weights_are_refused(zip_path, tmp_path):
    marker = tmp_path / "executed"
    for name in ("policy.pth", "policy.optimizer.pth"):
        path = edit_zip(zip_path, tmp_path / "hostile.zip", members={name: pickle.dumps(Payload(f"touch {marker}"))})
        if name == "policy.pth":
            with pytest.raises(ValueError, match="policy.pth"):
                load_student(path, device="cpu")
        else:  # the optimizer is made anew
            load_student(path, device="cpu")
        assert not marker.exists()


def state_of(content: dict[str, th.Tensor]) -> bytes:
    buffer = io.BytesIO()
    th.save(content, buffer)
    return buffer.getvalue()


def rewritten(source: Path, target: Path, **members: bytes) -> Path:
    """The same zip, packed, with other members."""
    with zipfile.ZipFile(source) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in {**contents, **members}.items():
            archive.writestr(name, content)
    return target


SWOLLEN = {
    "weights of 400 MiB": lambda zip_path: {"policy.pth": state_of({"x": th.zeros(100 * 2**20)})},
    "weights of 400 MiB of nothing": lambda zip_path: {"policy.pth": bytes(400 * 2**20)},
    "5,000 tensors": lambda zip_path: {"policy.pth": state_of({str(i): th.zeros(1) for i in range(5_000)})},
    "a tensor of 70 axes": lambda zip_path: {"policy.pth": state_of({"x": th.zeros((1,) * 64)})},
    "data of 64 MiB": lambda zip_path: {"data": b" " * 2**26},
    "data 900 deep": lambda zip_path: {"data": b'{"a": ' * 900 + b"1" + b"}" * 900},
    "data that is a list": lambda zip_path: {"data": b"[1]"},
    "data of a million values": lambda zip_path: {"data": b'{"a": [' + b"1," * 10**6 + b"1]}"},
}


@pytest.mark.parametrize("name", SWOLLEN)
def test_zips_that_swell_are_refused_within_bounds(zip_path, tmp_path, name):
    path = rewritten(zip_path, tmp_path / "student.zip", **SWOLLEN[name](zip_path))
    with bounded(4, 2**30, of_processor=True), pytest.raises(StudentError, match="student.zip"):
        load_student(path, device="cpu")


LISTS = ["batch_size", "buffer_size", "num_timesteps", "verbose", "beta", "transition", "_n_updates", "roll_in", "use_sde"]


@pytest.mark.parametrize("value", [[1], {"a": 1}, [[[1]]]])
@pytest.mark.parametrize("key", [*LISTS, "policy_kwargs", "policy_class", "observation_space", "seed"])
def test_lists_and_dicts_where_none_should_be(zip_path, tmp_path, key, value):
    path = edit_zip(zip_path, tmp_path / "student.zip", {key: value})
    if key in ("batch_size",) and isinstance(value, list):
        pass  # a setting whose default is None may be anything until it is used
    try:
        load_student(path, device="cpu").to_integer()
    except StudentError as error:
        assert "student.zip" in str(error)
    else:
        assert key in ("batch_size", "seed", "policy_class") or value == [1]


@pytest.mark.parametrize(
    "arch", [[8], "huge", {"hidden": [10**9]}, {"hidden": 8}, {"hidden": [[8]]}, {"conv": [[1, 2, 3]]}, {"a": 1}, None, 3]
)
def test_networks_that_cannot_be(zip_path, tmp_path, arch):
    kwargs = {**read_data(zip_path)["policy_kwargs"], "student_arch": arch}
    path = edit_zip(zip_path, tmp_path / "student.zip", {"policy_kwargs": kwargs})
    with bounded(4, 2**30, of_processor=True), pytest.raises(StudentError, match="student.zip"):
        load_student(path, device="cpu")


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"env": ' + b"[" * 10**5, b" " * 2**24, b'{"a": NaN}'])
def test_a_report_beside_it_has_limits(zip_path, tmp_path, content, capsys):
    (tmp_path / "student.zip").write_bytes(zip_path.read_bytes())
    (tmp_path / "report.json").write_bytes(content)
    with bounded(20, 2**30), pytest.raises(SystemExit) as exit_info:
        main(["evaluate", str(tmp_path / "student.zip"), "--episodes", "1", "--no-progress"])
    assert exit_info.value.code == 2 and "report.json" in capsys.readouterr().err


def test_a_report_beside_it_imports_no_module(zip_path, tmp_path, monkeypatch):
    """A text in the place of the environment's settings would be an id, and its module would be imported."""
    (tmp_path / "evil_envs.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "student.zip").write_bytes(zip_path.read_bytes())
    (tmp_path / "report.json").write_text('{"env": "evil_envs:Cart-v0"}')
    assert "env" not in IntegerModel.load(tmp_path / "student.zip").metadata
    assert main(["export", str(tmp_path / "student.zip"), "--target", "numpy", "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "mark").exists() and "evil_envs" not in sys.modules


@pytest.mark.parametrize(
    "env", [None, "CartPole-v1", lambda: gym.make("CartPole-v1"), lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")])]
)
def test_environments(tmp_path, env):
    teacher = untrained("CartPole-v1")
    QPDDistiller(teacher, **QUICK).learn(32).save(tmp_path / "student.zip")
    loaded = load_student(str(tmp_path / "student.zip"), env() if callable(env) else env, device="cpu")
    assert (loaded.env is None) == (env is None)
    if env is not None:
        loaded.teacher = teacher
        assert loaded.learn(32).num_timesteps >= 32


def test_the_student_is_the_one_that_was_saved(student, zip_path):
    loaded = load_student(zip_path, device="cpu")
    np.testing.assert_array_equal(actor_of(loaded.policy, OBSERVATIONS), actor_of(student.policy, OBSERVATIONS))
    assert loaded.teacher is None and loaded.num_timesteps == student.num_timesteps
    assert loaded.teacher_checksum == student.teacher_checksum and loaded.policy.metadata == student.policy.metadata
    again = io.BytesIO()
    loaded.save(again)


def test_a_teacher_is_refused_by_name(tmp_path):
    untrained("CartPole-v1").save(tmp_path / "teacher.zip")
    with pytest.raises(ValueError, match="teacher.zip holds no student of sb3_qpd.*load_teacher"):
        load_student(tmp_path / "teacher.zip")


def test_files_that_are_no_zip(tmp_path):
    with pytest.raises(ValueError, match="nothere.zip"):
        load_student(tmp_path / "nothere.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="Expected a student's zip"):
        load_student(tmp_path / "text.zip")


@pytest.mark.parametrize("rate", [None, 0.01], ids=["the default schedule", "a number"])
def test_a_student_learns_on(tmp_path, rate):
    """With the learning rate that it was saved with."""
    QPDDistiller(untrained(pointers()), **QUICK, learning_rate=rate).learn(80).save(tmp_path / "student.zip")
    student = load_student(tmp_path / "student.zip", env=pointers(), device="cpu")
    plain = QPDDistiller.load(tmp_path / "student.zip", device="cpu")
    assert repr(student.learning_rate) == repr(plain.learning_rate) and student.lr_schedule(0.5) == plain.lr_schedule(0.5) > 0
    before = {name: value.clone() for name, value in student.policy.named_parameters()}
    student.teacher = untrained(pointers())
    student.learn(80)
    assert any((value != before[name]).any() for name, value in student.policy.named_parameters())
