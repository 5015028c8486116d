"""Checkpoints: a run that goes on is the run that was not interrupted, and what is in the folder is read as data."""

import functools
import json
import os
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bounds import bounded
from gymnasium import spaces
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecTransposeImage
from test_origin import ROBOT, Far, robot
from toys import BOX, QUICK, Anything, Pointer, Quadrant, Strict, assert_equal_states, pointers, untrained

import sb3_qpd.distillation.checkpoints as checkpoints
import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import Checkpoint, QPDDistiller
from sb3_qpd.atomic import open_locked
from sb3_qpd.distillation.buffers import DistillationBuffer
from sb3_qpd.distillation.checkpoint_files import (
    STATE_FILES,
    CheckpointError,
    is_in_use,
    newest_steps,
    read_archive,
    write_archive,
)
from sb3_qpd.teachers.teacher import TeacherOutput

STEPS, EVERY = 400, 64
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", EVERY)


class Stop(BaseCallback):
    """
    Interrupts a run.

    :param steps: environment steps before
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.steps:
            raise KeyboardInterrupt
        return True


def images(n_envs: int = 4) -> Any:
    return VecFrameStack(VecTransposeImage(make_vec_env(Quadrant, n_envs, seed=0)), 2)


def anything(kind: Any, *args: Any) -> Any:
    return make_vec_env(kind, 4, seed=0, env_kwargs=dict(zip(("observation_space", "action_space"), args, strict=True)))


def maskable() -> Any:
    from sb3_contrib import MaskablePPO

    env = anything(Strict, spaces.Box(-1, 1, (3,)), spaces.Discrete(4))
    return untrained(env, MaskablePPO)


def recurrent() -> Any:
    from sb3_contrib import RecurrentPPO

    return RecurrentPPO("MlpLstmPolicy", pointers(), n_steps=8, device="cpu", seed=0, policy_kwargs={"lstm_hidden_size": 8})


class FarPointer(Pointer):
    """The first feature has an offset that float32 cannot carry."""

    offset = np.array([5_400_000.25, -200.0, 0.01])


def robots() -> Any:
    return make_vec_env(Far, 4, seed=0, env_kwargs={"space": ROBOT, "draw": robot})


ACTIONS_TOO = {"hidden": [8], "history": 3, "history_actions": True}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vector": (lambda: untrained(pointers()), {"buffer_size": 160}),
    "blend": (lambda: untrained(pointers()), {"transition": "progressive", "roll_in": False}),
    "scratch": (lambda: untrained(pointers()), {"transition": "scratch", "weight_bits": 4}),
    "box": (lambda: untrained(pointers(BOX)), {"box_loss": "gaussian_kl"}),
    "deterministic": (lambda: TD3("MlpPolicy", pointers(BOX), device="cpu", seed=0), {}),
    "q values": (lambda: DQN("MlpPolicy", pointers(), device="cpu", seed=0, buffer_size=100), {}),
    "images": (lambda: untrained(images(), policy="CnnPolicy"), {"buffer_size": 100, "student_arch": "nano"}),
    "dict": (lambda: untrained(anything(Anything, DICT, spaces.Discrete(3)), policy="MultiInputPolicy"), {"buffer_size": 100}),
    "masks": (maskable, {}),
    "recurrent": (recurrent, {}),
    "memory": (lambda: untrained(pointers()), {"history": 3, "buffer_size": 160}),
    "memory of actions": (lambda: untrained(pointers(BOX)), {"student_arch": ACTIONS_TOO}),
    "memory of a Dict": (lambda: untrained(robots(), policy="MultiInputPolicy"), {"history": 3, "buffer_size": 160}),
    "origin": (lambda: untrained(make_vec_env(FarPointer, 4, seed=0)), {}),
    "origin, small ring": (lambda: untrained(make_vec_env(FarPointer, 4, seed=0)), {"buffer_size": 160}),
    "origin in a dict": (lambda: untrained(robots(), policy="MultiInputPolicy"), {}),
}


def make(kind: str, **changes: Any) -> QPDDistiller:
    teacher, options = KINDS[kind]
    return QPDDistiller(teacher(), **{**QUICK, "batch_size": 32, "gradient_steps": 0.125, **options, **changes})


def interrupted(folder: Path, kind: str = "vector", steps: int = 250, **changes: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        make(kind, **changes).learn(STEPS, callback=Stop(steps), checkpoint=Checkpoint(folder, every=EVERY))
    return folder


def resumed(folder: Path, kind: str = "vector", **changes: Any) -> QPDDistiller:
    return make(kind, **changes).learn(STEPS, checkpoint=Checkpoint(folder, every=EVERY, resume=True))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of an interrupted run, of which each test takes a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distilling, "ROLLOUT_STEPS", EVERY)
        return interrupted(tmp_path_factory.mktemp("unfinished"))


@functools.cache
def whole(kind: str) -> QPDDistiller:
    """The run of a kind that was not interrupted. Tests only look at it."""
    return make(kind).learn(STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_is_the_one_that_was_not_interrupted(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its policy, its optimizer, its ring, its counts, and the student before the transition."""
    folder = interrupted(tmp_path / "a", kind, steps=350)  # after the transition
    student = resumed(folder, kind)
    assert "steps: as if it had not been interrupted" in capsys.readouterr().out
    assert_equal_states(whole(kind), student)
    assert_equal_optimizers(whole(kind), student)
    assert_equal_rings(whole(kind), student)
    assert student.num_timesteps == whole(kind).num_timesteps and student._n_updates == whole(kind)._n_updates
    if (before := whole(kind).float_student()) is not None:
        after = student.float_student()
        assert after is not None
        assert_equal_states(before, after)


@pytest.mark.parametrize("kind", ["origin", "origin, small ring", "origin in a dict"])
def test_the_ring_of_a_student_with_an_origin_goes_on(kind: str, tmp_path: Path) -> None:
    """Values with an origin stay in float64. The others are rounded at the first update, those of a checkpoint too."""
    student = resumed(interrupted(tmp_path, kind, steps=80), kind)  # before the first update
    assert [one["kind"] for one in student.input_findings] == [one["kind"] for one in whole(kind).input_findings]
    assert "origin" in {one["kind"] for one in student.input_findings}
    assert_equal_states(whole(kind), student)
    dtypes = assert_equal_rings(whole(kind), student)
    assert dtypes == ({"float32", "float64"} if "dict" in kind else {"float64"})


def assert_equal_rings(one: QPDDistiller, other: QPDDistiller) -> set[str]:
    """Two rings hold the same observations in the same types, which are returned."""
    (ours, theirs), dtypes = (ring_of(student) for student in (one, other)), set()
    assert ours.keys() == theirs.keys()
    for key, ring in ours.items():
        assert ring.dtype == theirs[key].dtype
        np.testing.assert_array_equal(ring, theirs[key])
        dtypes.add(str(ring.dtype))
    return dtypes


def ring_of(student: QPDDistiller) -> dict[str, np.ndarray]:
    """The observations in the ring of a distiller, by their keys."""
    assert student._buffer is not None
    stored = student._buffer._store.get(np.arange(len(student._buffer)))
    return stored if isinstance(stored, dict) else {"": stored}


def assert_equal_optimizers(one: QPDDistiller, other: QPDDistiller) -> None:
    """Muon's momentum and Adam's moments, in their groups, are the same."""
    ours, theirs = (student.policy.optimizer.state_dict() for student in (one, other))
    assert {group["muon"] for group in theirs["param_groups"]} == {True, False}
    assert theirs["param_groups"] == ours["param_groups"] and theirs["state"].keys() == ours["state"].keys()
    names = set()
    for index, state in ours["state"].items():
        assert state.keys() == theirs["state"][index].keys()
        for name, value in state.items():
            names.add(name)
            assert th.equal(value, theirs["state"][index][name]), (index, name)
    assert names == {"momentum", "step", "exp_avg", "exp_avg_sq"}


def test_a_run_is_interrupted_again_and_again(tmp_path: Path) -> None:
    kept = make("vector").learn(STEPS, checkpoint=Checkpoint(tmp_path / "kept", every=EVERY))
    assert_equal_states(whole("vector"), kept)  # checkpoints change nothing
    interrupted(tmp_path, steps=30)  # before the first checkpoint
    for steps in (80, 85, 200, 350):
        with pytest.raises(KeyboardInterrupt):
            make("vector").learn(STEPS, callback=Stop(steps), checkpoint=Checkpoint(tmp_path, every=EVERY, resume=True))
    student = resumed(tmp_path)
    assert_equal_states(whole("vector"), student)
    again = resumed(tmp_path)  # the end of learning is a state too
    assert_equal_states(whole("vector"), again)
    assert again.num_timesteps == STEPS


class Drifting(Pointer):
    """It draws from a generator that no seed reaches."""

    generator = np.random.default_rng()

    def _observe(self) -> np.ndarray:
        return super()._observe() + self.generator.normal() / 100


def test_an_environment_that_cannot_be_brought_back_begins_new_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def student() -> QPDDistiller:
        return QPDDistiller(untrained(make_vec_env(Drifting, 4, seed=0)), **QUICK)

    with pytest.raises(KeyboardInterrupt):
        student().learn(STEPS, callback=Stop(250), checkpoint=Checkpoint(tmp_path, every=EVERY))
    done = student().learn(STEPS, checkpoint=Checkpoint(tmp_path, every=EVERY, resume=True))
    assert "the environments begin new episodes" in capsys.readouterr().out
    assert done.num_timesteps == STEPS and len(done._buffer) == STEPS  # type: ignore[arg-type]


def test_a_replay_that_would_take_too_long_is_given_up(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(checkpoints, "MIN_REPLAY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_REPLAY_SECONDS", 0.0)
    assert resumed(tmp_path).num_timesteps == STEPS
    assert "the environments begin new episodes" in capsys.readouterr().out


def test_numbers_of_callbacks_go_on(tmp_path: Path) -> None:
    def callback() -> EvalCallback:
        return EvalCallback(make_vec_env(Pointer, 1), n_eval_episodes=1, eval_freq=20, verbose=0)

    first = callback()
    with pytest.raises(KeyboardInterrupt):
        make("vector").learn(STEPS, callback=[first, Stop(250)], checkpoint=Checkpoint(tmp_path, every=EVERY))
    second = callback()
    make("vector").learn(STEPS, callback=[second, Stop(10**6)], checkpoint=Checkpoint(tmp_path, every=EVERY, resume=True))
    assert second.n_calls == STEPS // 8 and second.best_mean_reward >= first.best_mean_reward


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_folder_holds_about_one_ring(tmp_path: Path) -> None:
    student = make("vector", buffer_size=160)
    student.learn(1_000, checkpoint=Checkpoint(tmp_path, every=EVERY))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert {"actions.bin", *STATE_FILES} < set(names)
    assert 160 // EVERY <= len(names) - 3 <= 160 // EVERY + 3
    assert newest_steps(tmp_path) == 1_000 and Checkpoint(tmp_path).num_timesteps == 1_000
    Checkpoint(tmp_path).discard()
    assert not tmp_path.exists() and newest_steps(tmp_path) is None


def test_a_checkpoint_is_not_overwritten(unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=r"holds a checkpoint of an unfinished run, after 192 steps.*resume=True"):
        make("vector").learn(STEPS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="every must be a number"):
        Checkpoint(tmp_path, every=0)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"seed": 1}, "seed"),
        ({"beta": 0.5}, "beta"),
        ({"weight_bits": 4}, "student_arch"),
        ({"learning_rate": 1e-3, "policy_kwargs": {"optimizer_class": th.optim.Adam}}, "optimizer"),
    ],
)
def test_a_checkpoint_of_another_run(changes: dict[str, Any], name: str, unfinished: Path, tmp_path: Path) -> None:
    if name == "optimizer":
        interrupted(tmp_path, learning_rate=1e-3)
    else:
        shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=f"is the checkpoint of another run: its {name} is"):
        resumed(tmp_path, **changes)


def flip(path: Path, position: int) -> None:
    """Invert all bits of one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 255
    path.write_bytes(content)


def test_a_damaged_byte_is_noticed_or_changes_nothing(unfinished: Path, tmp_path: Path) -> None:
    """Some bytes of a zip, such as the dates of its members, are read by no program."""
    path = tmp_path / STATE_FILES[0]
    shutil.copy(unfinished / STATE_FILES[0], path)
    values, arrays = read_archive(path, 10**7)
    with zipfile.ZipFile(path) as archive:
        directory, size = archive.start_dir, path.stat().st_size
    n_refused = 0
    # the list of members is at the end; a flipped length in it hides members
    for position in [*range(directory, directory + 200), *np.random.default_rng(0).integers(size, size=200).tolist()]:
        flip(path, position)
        try:
            damaged = read_archive(path, 10**7)
        except CheckpointError:
            n_refused += 1
        else:
            assert damaged[0] == values
            np.testing.assert_equal(damaged[1], arrays)
        flip(path, position)
    assert n_refused > 200


def test_a_damaged_state_leaves_the_other_one(unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    steps = {name: read_archive(tmp_path / name, 10**7)[0]["num_timesteps"] for name in STATE_FILES}
    newest = max(steps, key=lambda name: steps[name])
    with zipfile.ZipFile(tmp_path / newest) as archive:
        largest = max(archive.infolist(), key=lambda member: member.compress_size)
    flip(tmp_path / newest, largest.header_offset + largest.compress_size)
    with pytest.warns(UserWarning, match="is damaged, or no checkpoint: .*The other state is taken"):
        student = resumed(tmp_path)
    assert_equal_states(whole("vector"), student)


def test_nothing_is_learned_from_a_checkpoint_that_cannot_be_read(unfinished: Path, tmp_path: Path) -> None:
    for damage in ("states", "ring", "actions"):
        folder = tmp_path / damage
        shutil.copytree(unfinished, folder)
        for path in folder.glob({"states": "state-*", "ring": "ring-*", "actions": "actions.bin"}[damage]):
            path.write_bytes(path.read_bytes()[:-20])
        if damage == "actions":  # without them, new episodes begin
            assert resumed(folder).num_timesteps == STEPS
            continue
        student = make("vector")
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint"):
            student.learn(STEPS, checkpoint=Checkpoint(folder, resume=True))
        assert student.num_timesteps == 0


def edit(path: Path, change: Any) -> None:
    values, arrays = read_archive(path, 10**7)
    change(values, arrays)
    write_archive(path, values, arrays)


HOSTILE: dict[str, Any] = {
    "no settings": lambda values, arrays: values.pop("settings"),
    "a list": lambda values, arrays: values.update(settings=[]),
    "text for a number": lambda values, arrays: values.update(number="two"),
    "no state": lambda values, arrays: values.pop("state"),
    "deep": lambda values, arrays: values.update(state={"list": [{"list": [{"list": [1]}]}]}),
    "unknown array": lambda values, arrays: values.update(state={"tensor": "nothing"}),
    "a path": lambda values, arrays: values.update(segments=[["../../x", 1, 1]]),
    "negative": lambda values, arrays: values.update(segments=[[-1, -1, -1]]),
    "counters": lambda values, arrays: values["state"]["dict"][0].__setitem__(1, {"dict": [["num_timesteps", "1"]]}),
    "other tensors": lambda values, arrays: arrays.update(dict.fromkeys(arrays, np.zeros(3))),
    "actions": lambda values, arrays: values["recording"].update(shape=[-1], n_bytes=-5),
    "dtype": lambda values, arrays: values["recording"].update(dtype="O"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_values(name: str, unfinished: Path, tmp_path: Path) -> None:
    shutil.copytree(unfinished, tmp_path, dirs_exist_ok=True)
    for state in STATE_FILES:
        edit(tmp_path / state, HOSTILE[name])
    student = make("vector")
    try:
        student.learn(STEPS, checkpoint=Checkpoint(tmp_path, every=EVERY, resume=True))
    except CheckpointError:
        assert student.num_timesteps == 0
    else:
        assert name in ("actions", "dtype") and student.num_timesteps == STEPS  # new episodes begin


def test_hostile_arrays(tmp_path: Path) -> None:
    def with_member(content: bytes) -> Path:
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("values.json", "{}")
            archive.writestr("a.npy", content)
        return path

    header = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': %s, 'fortran_order': False, 'shape': %s, }".ljust(117) + b"\n"
    for descr, shape in (
        (b"'|O'", b"(1,)"),
        (b"'<f4'", b"(1000000000000,)"),
        (b"'<f4'", b"(-1,)"),
        (b"[('a', 'O')]", b"(1,)"),
    ):
        with pytest.raises(CheckpointError, match="is damaged, or no checkpoint"):
            read_archive(with_member(header.replace(b"%s", descr, 1).replace(b"%s", shape, 1) + b"\x00" * 8), 10**6)
    with pytest.raises(CheckpointError, match=r"unpacks to .* bytes, and at most 1,000 belong to this run"):
        read_archive(with_member(b"\x00" * 10**8), 1_000)
    (tmp_path / "x.npz").write_bytes(json.dumps({"no": "zip"}).encode())
    with pytest.raises(CheckpointError, match="no checkpoint"):
        read_archive(tmp_path / "x.npz", 1_000)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_archive(tmp_path / "none.npz", 1_000)


def test_bombs_in_a_checkpoint(tmp_path: Path) -> None:
    """A directory of a million members, a method that unpacks without bound, and a file larger than the run's."""
    path = tmp_path / "state-0.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("values.json", json.dumps({"num_timesteps": 1, "text": "x" * 10**7}))
    with pytest.raises(CheckpointError, match="packed by a method that no checkpoint uses"):
        read_archive(path, 10**6)
    assert newest_steps(tmp_path) is None
    entry = b"PK\x01\x02" + bytes(42)
    path.write_bytes(entry * 10**6 + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entry) * 10**6, 0, 0))
    with bounded(20, 2**28):
        with pytest.raises(CheckpointError, match="more than 10000 members"):
            read_archive(path, 10**6)
        assert newest_steps(tmp_path) is None
    with path.open("wb") as file:
        file.truncate(100 * 2**30)
    with bounded(20, 2**28), pytest.raises(CheckpointError, match=r"it has 107,374,182,400 bytes"):
        read_archive(path, 10**6)
    with bounded(20, 2**28):
        assert newest_steps(tmp_path) is None


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
@pytest.mark.parametrize("name", ["state-0.npz", "state-1.npz", "actions.bin", "ring-00000001.npz", ".sb3-qpd-lock"])
def test_a_checkpoint_writes_through_no_link(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for make in (lambda path: path.symlink_to(victim), os.mkfifo):
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        make(folder / name)
        with bounded(60, 2**29):
            if name.startswith("."):  # it is removed
                make_and_learn(folder)
            else:
                with pytest.raises(CheckpointError, match="is a link, or no ordinary file"):
                    make_and_learn(folder)
        assert victim.read_text() == "precious"
        shutil.rmtree(folder)


def make_and_learn(folder: Path) -> None:
    make("vector").learn(EVERY, checkpoint=Checkpoint(folder, every=EVERY, resume=True))


class Act(BaseCallback):
    """
    Does something once.

    :param steps: environment steps before
    :param action: what
    """

    def __init__(self, steps: int, action: Any) -> None:
        super().__init__()
        self.steps, self.action = steps, action

    def _on_step(self) -> bool:
        if self.action is not None and self.num_timesteps >= self.steps:
            action, self.action = self.action, None
            action()
        return True


def test_a_folder_that_is_moved_or_removed_while_learning(tmp_path: Path) -> None:
    """The next checkpoint holds the whole ring again. The environments begin new episodes."""
    for action in (lambda: (tmp_path / "a").rename(tmp_path / "moved"), lambda: shutil.rmtree(tmp_path / "a")):
        with pytest.raises(KeyboardInterrupt):
            callbacks = [Act(150, action), Stop(350)]
            make("vector").learn(STEPS, callback=callbacks, checkpoint=Checkpoint(tmp_path / "a", every=EVERY))
        assert newest_steps(tmp_path / "a") == 320
        student = resumed(tmp_path / "a")
        assert student.num_timesteps == STEPS and student._buffer is not None and len(student._buffer) == 160
        shutil.rmtree(tmp_path / "a")
    assert resumed(tmp_path / "moved").num_timesteps == STEPS


def test_a_simulator_that_changes_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(KeyboardInterrupt):
        callbacks = [Act(100, lambda: os.chdir(tmp_path)), Stop(350)]
        make("vector").learn(STEPS, callback=callbacks, checkpoint=Checkpoint("a", every=EVERY))
    assert newest_steps(tmp_path / "here" / "a") == 320 and not (tmp_path / "a").exists()


@pytest.mark.skipif(os.name == "nt", reason="no locks on Windows")
def test_two_runs_with_one_folder(tmp_path: Path) -> None:
    """The second is refused where it would go on, and otherwise learns without checkpoints."""

    def go_on_too() -> None:
        assert is_in_use(tmp_path / "a")
        with pytest.raises(CheckpointError, match="is in use: another process writes its checkpoints there"):
            resumed(tmp_path / "a")

    student = make("vector").learn(STEPS, callback=Act(150, go_on_too), checkpoint=Checkpoint(tmp_path / "a", every=EVERY))
    assert not is_in_use(tmp_path / "a") and newest_steps(tmp_path / "a") == student.num_timesteps
    with pytest.raises(CheckpointError, match="another run") as refused:
        resumed(tmp_path / "a", temperature=2.0)
    assert not is_in_use(tmp_path / "a"), refused  # nor while its exception is kept
    (tmp_path / "b").mkdir()
    with open_locked(tmp_path / "b" / ".sb3-qpd-lock", wait=False), pytest.warns(UserWarning, match="another process writes"):
        make("vector").learn(STEPS, checkpoint=Checkpoint(tmp_path / "b", every=EVERY))
    assert newest_steps(tmp_path / "b") is None


def test_a_disk_that_takes_no_checkpoint_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(
        UserWarning, match=r"No checkpoint after 64 steps: .*It needs about .* bytes in .*Learning goes on"
    ) as seen:
        student = make("vector").learn(STEPS, checkpoint=Checkpoint(tmp_path / "file" / "x", every=EVERY))
    assert student.num_timesteps == STEPS
    assert sum("No checkpoint" in str(one.message) for one in seen) == 1


def test_time_decides_where_no_number_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("vector").learn(STEPS, checkpoint=tmp_path / "short")
    assert not (tmp_path / "short").exists()  # a run of seconds needs none
    monkeypatch.setattr(checkpoints, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "MAX_SHARE", 1e9)
    make("vector").learn(STEPS, checkpoint=tmp_path / "a")
    assert newest_steps(tmp_path / "a") == STEPS


# -- the ring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
def test_a_ring_comes_back_from_its_increments(stacked: bool) -> None:
    rng = np.random.default_rng(0)
    space = spaces.Box(0, 255, (3, 4, 4), np.uint8)

    def ring() -> DistillationBuffer:
        return DistillationBuffer(24, space, 2, seed=0, stacked=stacked)

    written, parts, stack = ring(), [], rng.integers(0, 256, (2, 3, 4, 4), np.uint8)
    position = written.position
    for step in range(70):
        stack = np.concatenate([stack[:, 1:], rng.integers(0, 256, (2, 1, 4, 4), np.uint8)], axis=1)
        if step % 9 == 0:
            stack = rng.integers(0, 256, stack.shape, np.uint8)  # an episode begins
        written.add(stack, TeacherOutput(th.full((2, 1), float(step))))
        if step % 5 == 4:
            rows = written.rows_since(position)
            parts.append((written.position, {name: np.concatenate(some).copy() for name, some in rows.items()}))
            position = written.position
        again = ring()
        for end, rows in parts:
            if written.holds_anything_before(end):
                again.put_back(rows, TeacherOutput(th.zeros(2, 1)))
        if step % 5 == 4:
            assert again.position == written.position
            for ours, theirs in ((again.newest(24), written.newest(24)), (again.sample(50), written_sample(written))):
                assert th.equal(ours.observations, theirs.observations) and th.equal(ours.targets.actor, theirs.targets.actor)
    with pytest.raises(ValueError, match="expected rows of"):
        ring().put_back({**parts[0][1], "target_actor": np.zeros((10, 7), np.float32)}, TeacherOutput(th.zeros(2, 1)))


def written_sample(buffer: DistillationBuffer) -> Any:
    return buffer.sample(50, np.random.default_rng(0))


def test_gymnasium_environments_with_a_limit_are_brought_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CartPole by its id: the wrappers of gymnasium and the monitor belong to the state of the environment."""
    teacher = untrained(gym.make("CartPole-v1"))
    options = {**QUICK, "n_envs": 4, "vec_env": "dummy"}
    whole = QPDDistiller(teacher, "CartPole-v1", **options).learn(STEPS)
    with pytest.raises(KeyboardInterrupt):
        student = QPDDistiller(teacher, "CartPole-v1", **options)
        student.learn(STEPS, callback=Stop(250), checkpoint=Checkpoint(tmp_path, every=EVERY))
    done = QPDDistiller(teacher, "CartPole-v1", **options)
    assert_equal_states(whole, done.learn(STEPS, checkpoint=Checkpoint(tmp_path, every=EVERY, resume=True)))
    assert "as if" in capsys.readouterr().out
    assert whole._students.returns == done._students.returns
    ours, theirs = ([(one["r"], one["l"]) for one in student.ep_info_buffer or ()] for student in (whole, done))
    assert ours == theirs
