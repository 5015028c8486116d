"""Students of recorded observations: what is learned, what is held out, and which recordings are refused."""

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from bounds import bounded
from commands import QUICK as QUICK_OPTIONS
from commands import mistake
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from toys import QUICK, Anything, Pointer, Strict, assert_equal_states

import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import Checkpoint, QPDDistiller, RecordedObservations, Teacher, TeacherError, export_onnx, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.distillation import recording_files
from sb3_qpd.distillation.checkpoint_files import CheckpointError
from sb3_qpd.distillation.recorded_env import N_STREAMS, RecordedEnv
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.evaluation.held_out import measure_held_out, measurement_files
from sb3_qpd.evaluation.verify import Verification, verify

PARTS = spaces.Dict({"joints": spaces.Box(-1, 1, (3,)), "room": spaces.Discrete(3)})
ROWS = np.random.default_rng(0).normal(size=(2_000, 4)).astype(np.float32)


def rule(x: np.ndarray) -> np.ndarray:
    return ((x - Pointer.offset) / Pointer.scale).argmax(1)


@pytest.fixture(scope="module")
def pointer() -> Teacher:
    env = Pointer()
    return Teacher.from_function(rule, env.observation_space, env.action_space, "action", name="rule")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "cartpole.zip"
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=0).save(path)
    return path


def test_a_student_learns_without_an_environment(pointer: Teacher):
    episodes = [Pointer.sample(50, seed) for seed in range(40)]
    student = QPDDistiller(pointer, observations=episodes, **{**QUICK, "check_teacher": True}).learn(4_000)
    assert student.num_timesteps == 4_000 and "env" not in student.to_integer().metadata
    measured = measure_held_out(student)
    assert (measured["observations"], measured["episodes"], measured["held_out"]["episodes"]) == (2_000, 40, 4)
    assert measured["held_out"]["agreement"] > 0.8 and measured["held_out"]["kl"] > 0
    assert measured["returns"] == "not measured"
    text = measurement_files(measured)["recorded.md"].decode()
    assert "not measured: there was no environment" in text and "200" in text
    x = Pointer.sample(500, seed=99)
    assert np.mean(student.to_integer().predict(x, deterministic=True)[0] == rule(x)) > 0.8


def test_the_same_seed_gives_the_same_student(pointer: Teacher):
    rows = Pointer.sample(500)
    students = [QPDDistiller(pointer, observations=rows, **QUICK).learn(300).policy.state_dict() for _ in range(2)]
    assert all((students[0][key] == students[1][key]).all() for key in students[0])


def test_a_loaded_student_goes_on_with_other_observations(pointer: Teacher, tmp_path: Path):
    QPDDistiller(pointer, observations=Pointer.sample(100), **QUICK).learn(64).save(tmp_path / "student")
    student = QPDDistiller.load(tmp_path / "student", teacher=pointer, observations=Pointer.sample(200), device="cpu")
    assert student.recording is not None and len(student.recording) == 200
    assert student.learn(64, reset_num_timesteps=False).num_timesteps == 128


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps >= 250:
            raise KeyboardInterrupt
        return True


def test_a_run_that_goes_on_has_the_same_bits(pointer: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", 64)
    rows, folder = [Pointer.sample(30, seed) for seed in range(9)], tmp_path / "checkpoint"
    whole = QPDDistiller(pointer, observations=rows, **QUICK).learn(400)
    with pytest.raises(KeyboardInterrupt):
        QPDDistiller(pointer, observations=rows, **QUICK).learn(400, callback=Stop(), checkpoint=Checkpoint(folder, every=64))
    with pytest.raises(CheckpointError, match="observations"):
        other = QPDDistiller(pointer, observations=rows[:8], **QUICK)
        other.learn(400, checkpoint=Checkpoint(folder, every=64, resume=True))
    again = QPDDistiller(pointer, observations=rows, **QUICK)
    again.learn(400, checkpoint=Checkpoint(folder, every=64, resume=True))
    assert_equal_states(whole, again)


def test_each_observation_is_given_once_before_any_is_given_again(pointer: Teacher):
    rows = np.arange(3 * 230, dtype=np.float64).reshape(-1, 3)
    recording = RecordedObservations([rows[:100], rows[100:110], rows[110:]], held_out=0)
    recording.fit(pointer)
    env = RecordedEnv(recording, pointer.observation_space, pointer.action_space)
    env.seed(0)
    streams, dones = [env.reset()], []
    for _ in range(99):
        observations, rewards, done, infos = env.step(np.zeros(N_STREAMS, int))
        assert not rewards.any() and len(infos) == N_STREAMS
        streams.append(observations)
        dones.append(done)
    firsts = np.array(streams)[:, :, 0] / 3
    for column, ends in zip(firsts.T, np.array(dones).T, strict=True):
        steps = np.diff(column)
        assert (steps[~ends] == 1).all() and set(column[1:][ends]) <= {0, 100, 110}
    assert {0, 100, 110} == set(firsts[0])


def test_held_out_episodes_are_whole_and_never_learned(pointer: Teacher):
    recording = RecordedObservations([np.full((n, 3), n, np.float64) for n in range(1, 30)], held_out=0.3)
    rows = [np.concatenate(list(recording.side_by_side(part))) for part in (recording.held_out, recording.learned)]
    held, learned = (set(np.unique(recording.take(part)[0])) for part in rows)
    assert not held & learned and held | learned == set(range(1, 30))
    assert 0.3 <= len(rows[0]) / len(recording) < 0.4
    assert "29 episodes" in repr(recording)


def test_with_an_environment_returns_are_measured(pointer: Teacher):
    student = QPDDistiller(pointer, Pointer, observations=Pointer.sample(2_000), **QUICK).learn(2_000)
    assert student.to_integer().metadata["env"]["env_id"] == "Pointer"
    report = make_report(student, plan_evaluation(pointer, Pointer, 5))
    assert any("learned from RecordedObservations" in note for note in report["notes"])
    assert measure_held_out(student)["returns"] == "see report.json"


def test_dict_observations_and_images(tmp_path: Path):
    model = PPO("MultiInputPolicy", Anything(PARTS, spaces.Discrete(2)), n_steps=8, batch_size=8, device="cpu", seed=0)
    rows = {"joints": np.random.default_rng(0).uniform(-1, 1, (200, 3)), "room": np.arange(200) % 3}
    np.savez(tmp_path / "rows.npz", **rows, actions=np.zeros(200), rewards=np.zeros(200), dones=np.arange(200) % 20 == 19)
    student = QPDDistiller(model, observations=tmp_path / "rows.npz", **QUICK).learn(200)
    assert student.recording is not None and len(student.recording.episodes) == 10
    with pytest.raises(ValueError, match="other numbers than whole ones from 0 to below"):
        QPDDistiller(model, observations={**rows, "room": rows["room"] + 1}, **QUICK)
    space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    pictures = PPO("CnnPolicy", Anything(space, spaces.Discrete(2)), n_steps=8, batch_size=8, device="cpu", seed=0)
    recording = RecordedObservations(np.zeros((40, 36, 36, 3), np.uint8))
    recording.fit(load_teacher(pictures, device="cpu"))
    assert recording.observations.shape == (40, 3, 36, 36)
    with pytest.raises(ValueError, match="images of float32, the teacher takes uint8"):
        RecordedObservations(np.zeros((40, 36, 36, 3), np.float32)).fit(load_teacher(pictures, device="cpu"))


@pytest.mark.parametrize(
    "marks, n",
    [
        ({"episode_starts": np.arange(100) % 10 == 0}, 10),
        ({"terminals": np.arange(100) % 50 == 49, "timeouts": np.arange(100) % 20 == 19}, 6),
        ({"dones": np.zeros(100)}, 20),
        ({}, 20),
    ],
)
def test_ends_of_episodes_in_a_file(tmp_path: Path, marks: dict[str, np.ndarray], n: int):
    np.savez_compressed(tmp_path / "rows.npz", obs=ROWS[:100], **marks)
    recording = RecordedObservations(tmp_path / "rows.npz")
    assert len(recording.episodes) == n and recording.has_episodes == (n != 20)


SOURCES: list[tuple[Any, type[Exception], str]] = [
    (np.zeros((0, 4)), ValueError, "holds 0 observations"),
    ([], ValueError, "no episode with an observation"),
    (3, TypeError, "observations must be an array, a dict of arrays"),
    (np.array(["a", "b"]), ValueError, "must be rows of numbers"),
    ([np.zeros((3, 4)), np.zeros((3, 5))], ValueError, "differ in form"),
    ({"a": np.zeros((3, 4)), "b": np.zeros((4, 4))}, ValueError, "unequal lengths"),
    ("missing.npz", ValueError, "No such file: missing.npz"),
    (Path("missing"), ValueError, "No such file"),
    (ROWS[:, :3], ValueError, r"shape \(3,\), the teacher takes \(4,\): it is a recording of another"),
    ({"x": ROWS}, ValueError, "a dict of x, the teacher's observations are one array"),
    (np.where(np.arange(8_000).reshape(2_000, 4) == 6_001, np.nan, ROWS), ValueError, "cannot be used: .* nan"),
    (ROWS.astype(np.float64) * 1e300, ValueError, "cannot be used"),
]


@pytest.mark.parametrize("source, error, message", SOURCES)
def test_recordings_that_cannot_be_learned_from(cartpole: Path, source: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        QPDDistiller(cartpole, observations=source, **QUICK)


def test_other_arguments_that_are_refused(cartpole: Path):
    with pytest.raises(ValueError, match="need a teacher"):
        QPDDistiller(observations=ROWS, **QUICK)
    with pytest.raises(ValueError, match="held_out must be a share"):
        RecordedObservations(ROWS, held_out=1)
    with pytest.raises(ValueError, match="environment's observations are not the teacher's"):
        QPDDistiller(cartpole, "Acrobot-v1", observations=ROWS, **QUICK)
    with pytest.raises(ValueError, match="Only a student that learns from recorded observations"):
        measure_held_out(QPDDistiller(cartpole, "CartPole-v1", n_envs=1, **QUICK))


def test_an_own_policy_is_compared_on_the_recording():
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0)
    usual = model.policy._predict
    model.policy._predict = lambda x, deterministic=False: usual(x, deterministic) ^ (x > 0.2).all(1)
    rows = np.abs(ROWS) + 0.3
    with pytest.raises(TeacherError, match="plays other actions than its distribution says"):
        QPDDistiller(model, observations=rows, **QUICK)


# --- files ---
def member(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, (7,))


HOSTILE: dict[str, tuple[bytes, str]] = {
    "no zip": (b"x" * 100, "cannot be read as an .npz"),
    "nothing": (b"", "cannot be read as an .npz"),
    "a pickle": (member("observations.npy", npy(np.array([Touch()], dtype=object))), "only numbers are read"),
    "a size that lies": (member("observations.npy", npy(ROWS[:2]).replace(b"(2, 4)", b"(9, 4)")), "does not fit its"),
    "10^18 rows": (member("observations.npy", npy(ROWS[:2]).replace(b"(2, 4), } ", b"(10**18,),}")), "cannot be read"),
    "cut off": (member("observations.npy", npy(ROWS)[:-9]), "does not fit its"),
    "no array": (member("observations.npy", b"hello"), "cannot be read"),
    "no observations": (member("actions.npy", npy(ROWS)), "holds no observations"),
    "a scalar": (member("observations.npy", npy(np.float32(1))), "does not fit"),
    "too large": (member("observations.npy", bytes(2**27)), "holds more than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    content, message = HOSTILE[name]
    monkeypatch.setattr(recording_files, "MAX_BYTES", 2**26)
    (tmp_path / "rows.npz").write_bytes(content)
    with bounded(60, 2**30), pytest.raises(ValueError, match=message):
        RecordedObservations(tmp_path / "rows.npz")


FLAGS = np.arange(9) == 8


@pytest.mark.parametrize(
    "marks, message",
    [
        ({"dones": np.zeros(3)}, "dones in .*rows.npz must have 9 marks, one for each .* episode ends, else 0. Got 3 marks"),
        (
            {"episode_starts": np.zeros(8)},
            "episode_starts in .* must have 9 marks, .* 1 where an episode starts.* Got 8 marks",
        ),
        ({"terminations": FLAGS, "truncations": np.zeros(10)}, "truncations in .* must have 9 marks.* Got 10 marks"),
        ({"dones": np.zeros((9, 1))}, r"dones in .* Got an array of shape \(9, 1\)"),
        ({"dones": np.where(np.arange(9) == 4, 7, FLAGS)}, "dones in .* holds 7 in row 4: expected 1 where an episode ends"),
        ({"episode_starts": np.where(FLAGS, np.nan, 0)}, "holds nan in row 8: expected 1 where an episode starts, else 0"),
        (
            {"terminations": FLAGS},
            "has terminations without its partner.* Expected one of episode_ends; dones; terminations with",
        ),
    ],
)
def test_marks_that_do_not_fit(tmp_path: Path, marks: dict[str, np.ndarray], message: str):
    """The error names the marks with their expected and given number, or the wrong value with its row."""
    np.savez(tmp_path / "rows.npz", observations=ROWS[:9], **marks)
    with pytest.raises(ValueError, match=message):
        RecordedObservations(tmp_path / "rows.npz")


def test_keys_with_the_names_of_a_recording(tmp_path: Path):
    """A Dict's key with a name that recordings use is refused, and read with observations/ in front of it."""
    space = spaces.Dict({"joints": spaces.Box(-1, 1, (3,)), "action_masks": spaces.Box(0, 1, (2,)), "obs": spaces.Discrete(3)})
    policy = PPO("MultiInputPolicy", Anything(space, spaces.Discrete(2)), n_steps=8, batch_size=8, device="cpu", seed=0)
    teacher = load_teacher(policy, device="cpu")
    rows = {"joints": np.full((40, 3), 0.5), "action_masks": np.full((40, 2), 0.25), "obs": np.arange(40) % 3}
    np.savez(tmp_path / "rows.npz", **rows, dones=np.arange(40) % 10 == 9)
    with pytest.raises(ValueError, match="a key 'action_masks', .* Write the key's array as observations/action_masks"):
        RecordedObservations(tmp_path / "rows.npz").fit(teacher)
    marked = {("observations/action_masks" if key == "action_masks" else key): one for key, one in rows.items()}
    np.savez(tmp_path / "rows.npz", **marked, dones=np.arange(40) % 10 == 9, action_masks=np.full((40, 2), 7))
    recording = RecordedObservations(tmp_path / "rows.npz")
    recording.fit(teacher)
    assert len(recording.episodes) == 4 and recording.masks is None
    for key, one in rows.items():
        np.testing.assert_array_equal(recording.observations[key], one)
    np.savez(tmp_path / "rows.npz", **marked, **{"observations/obs": rows["obs"]})
    with pytest.raises(ValueError, match="holds a key twice, with and without observations/ in front"):
        RecordedObservations(tmp_path / "rows.npz")


def test_the_only_key_has_the_name_of_a_recording(tmp_path: Path):
    env = Anything(spaces.Dict({"obs": spaces.Box(-1, 1, (3,))}), spaces.Discrete(2))
    teacher = load_teacher(PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0), device="cpu")
    np.savez(tmp_path / "rows.npz", obs=np.zeros((40, 3)))
    with pytest.raises(ValueError, match="a key 'obs', .* Write the key's array as observations/obs"):
        RecordedObservations(tmp_path / "rows.npz").fit(teacher)
    np.savez(tmp_path / "rows.npz", **{"observations/obs": np.zeros((40, 3))})
    recording = RecordedObservations(tmp_path / "rows.npz")
    recording.fit(teacher)
    assert recording.observations["obs"].shape == (40, 3)


# --- Minari ---
@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dataset of CartPole in a folder of its own."""
    minari = pytest.importorskip("minari")
    from minari.data_collector import EpisodeBuffer

    patch, rng = pytest.MonkeyPatch(), np.random.default_rng(0)
    patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
    episodes = []
    for number, n in enumerate((9, 20, 31, 12, 8, 40)):
        ends = np.arange(n) == n - 1
        numbers = {"actions": rng.integers(0, 2, n), "rewards": np.ones(n), "terminations": ends, "truncations": ends & False}
        rows = rng.normal(size=(n + 1, 4)).astype(np.float32)
        episodes.append(EpisodeBuffer(id=number, observations=rows, infos={}, **numbers))
    box = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    yield minari.create_dataset_from_buffers(
        "cartpole/test-v0", buffer=episodes, observation_space=box, action_space=spaces.Discrete(2)
    )
    patch.undo()


@pytest.mark.filterwarnings("ignore")
def test_a_minari_dataset_by_object_id_and_folder(dataset: Any, cartpole: Path):
    sources = [dataset, "cartpole/test-v0", Path(str(dataset.storage.data_path)), Path(str(dataset.storage.data_path)).parent]
    recordings = [RecordedObservations(source) for source in sources]
    for recording in recordings:
        assert len(recording) == dataset.total_steps and len(recording.episodes) == 6
        np.testing.assert_array_equal(recording.observations, recordings[0].observations)
    student = QPDDistiller(cartpole, observations=recordings[0], **QUICK).learn(100)
    assert student.num_timesteps >= 100


@pytest.mark.filterwarnings("ignore")
def test_minari_datasets_that_are_refused(dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = PPO("MlpPolicy", Anything(spaces.Box(-5, 5, (4,), np.float32), spaces.Discrete(3)), device="cpu")
    with pytest.raises(ValueError, match=r"recorded with actions of Discrete\(2\), the teacher's are Discrete\(3\)"):
        QPDDistiller(other, observations=dataset, **QUICK)
    with pytest.raises(ValueError, match="is not the folder of a Minari dataset"):
        RecordedObservations(tmp_path)

    def offline(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    import minari

    monkeypatch.setattr(minari, "load_dataset", offline)
    with pytest.raises(ValueError, match="no Minari dataset of this id could be opened or downloaded .*no network"):
        RecordedObservations("nobody/nothing-v0")


def test_minari_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3_qpd\[minari\]'"):
        RecordedObservations("cartpole/test-v0")


# --- action masks ---
def masked_recording(n: int = 600) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    masks = rng.random((n, 5)) < 0.6
    masks[np.arange(n), rng.integers(0, 2, n)] = masks[np.arange(n), rng.integers(2, 5, n)] = True
    return {"observations": rng.uniform(-1, 1, (n, 3)).astype(np.float32), "action_masks": masks}


@pytest.fixture(scope="module")
def masking() -> MaskablePPO:
    model = MaskablePPO("MlpPolicy", Strict(spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 3])), device="cpu", seed=0)
    with th.no_grad():
        model.policy.action_net.weight.mul_(100)
    return model


def test_a_student_is_taught_under_the_recorded_masks(masking: MaskablePPO, tmp_path: Path):
    recorded = masked_recording()
    np.savez(tmp_path / "rows.npz", **recorded)
    student = QPDDistiller(masking, observations=tmp_path / "rows.npz", **QUICK).learn(4_000)
    assert student.uses_masks and student.to_integer().uses_masks
    stored, of_ring = student._buffer.labels("masks"), student._buffer._store.get(np.arange(len(student._buffer)))
    row_of = {row.tobytes(): i for i, row in enumerate(recorded["observations"])}
    rows = [row_of[row.tobytes()] for row in of_ring]
    assert np.array_equal(stored, recorded["action_masks"][rows]) and len(set(rows)) > 500
    held = np.concatenate(list(student.recording.side_by_side(student.recording.held_out)))
    x, masks = student.recording.take(held)
    theirs, _ = masking.predict(x, deterministic=True, action_masks=masks)
    ours, _ = student.predict(x, deterministic=True, action_masks=masks)
    measured = measure_held_out(student)["held_out"]
    assert measured["agreement"] == pytest.approx((theirs == ours).all(1).mean()) and measured["agreement"] > 0.6
    assert measured["kl"] < 1
    student.to_integer().save(tmp_path / "student.npz")
    export_onnx(student.to_integer(), tmp_path)
    result = verify(tmp_path, student.recording, 50, policy=student.policy)
    assert result.holds and result.n_masked == 50 and ("ONNX Runtime", "masked_action") in result.rows
    with pytest.raises(ValueError, match="action_masks of the recording must be an array of True and False of shape"):
        verify(tmp_path, RecordedObservations(recorded["observations"], action_masks=masks), policy=student.policy)
    given = RecordedObservations(recorded["observations"], action_masks=recorded["action_masks"])
    assert_equal_states(QPDDistiller(masking, observations=given, **QUICK).learn(4_000), student)


@pytest.mark.parametrize(
    "masks, message",
    [
        (None, r"has none: add an array action_masks of shape \(600, 5\), True where an action was allowed"),
        (np.ones((600, 4), bool), r"must be an array of True and False of shape \(600, 5\), got bool of shape \(600, 4\)"),
        (np.ones((599, 5), bool), r"of shape \(600, 5\), got bool of shape \(599, 5\)"),
        (np.full((600, 5), 0.5), "hold 0.5 in row 0, column 0: expected True where an action was allowed, else False"),
        (np.where(np.arange(3000).reshape(600, 5) == 38, 2, 1), "hold 2 in row 7, column 3"),
        (np.where(np.arange(3000).reshape(600, 5) == 38, -1, 1), "hold -1 in row 7, column 3"),
        (np.where(np.arange(3000).reshape(600, 5) == 38, np.nan, 1), "hold nan in row 7, column 3"),
        (np.where(np.arange(3000).reshape(600, 5) == 38, "no", True).astype(object), "hold 'True' in row 0, column 0"),
        (np.where(np.arange(3000).reshape(600, 5) == 38, None, True), "hold None in row 7, column 3"),
        (np.array([[np.bool_(True)] * 5] * 600, dtype=object), None),
        ([[True, False], [True]], "action_masks must be an array of True and False with equally long rows"),
        (np.arange(3000).reshape(600, 5) != 2 * 5 + 1, None),
        (np.arange(3000).reshape(600, 5) // 5 != 7, "allow no action in row 7, dimension 0: leave out rows"),
    ],
)
def test_masks_that_do_not_fit(masking: MaskablePPO, masks: Any, message: str | None):
    rows = masked_recording()["observations"]
    if message is None:
        QPDDistiller(masking, observations=RecordedObservations(rows, action_masks=masks), **QUICK)
        return
    with pytest.raises(ValueError, match=message):
        QPDDistiller(masking, observations=RecordedObservations(rows, action_masks=masks), **QUICK)


def test_masks_of_other_teachers_have_no_effect(cartpole: Path, tmp_path: Path):
    np.savez(tmp_path / "rows.npz", observations=ROWS, action_masks=np.ones((len(ROWS), 9)))
    student = QPDDistiller(load_teacher(cartpole, device="cpu"), observations=tmp_path / "rows.npz", **QUICK)
    assert not student.uses_masks and student.recording.masks is None


# --- memory ---
def test_a_student_with_a_memory_of_a_recurrent_teacher(tmp_path: Path):
    """Held-out figures follow from predict on whole episodes, with the states of both."""
    kwargs = {"lstm_hidden_size": 6, "net_arch": [5]}
    env = Anything(PARTS, spaces.Discrete(3))
    teacher = RecurrentPPO("MultiInputLstmPolicy", env, n_steps=8, device="cpu", seed=0, policy_kwargs=kwargs)
    with th.no_grad():
        for name, value in teacher.policy.named_parameters():
            value.normal_(std=0.7, generator=th.Generator().manual_seed(len(name)))
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 30, 40)
    episodes = [{"joints": rng.uniform(-1, 1, (n, 3)), "room": rng.integers(0, 3, n)} for n in lengths]
    options = {**QUICK, "history": 3, "batch_size": 32}
    student = QPDDistiller(teacher, observations=RecordedObservations(episodes, held_out=0.3), **options).learn(3_000)
    equal = []
    for episode in student.recording.held_out:
        rows = np.arange(episode.start, episode.stop)
        observations, _ = student.recording.take(rows)
        theirs = ours = None
        for row in range(len(rows)):
            one = {key: value[row : row + 1] for key, value in observations.items()}
            start = np.array([row == 0])
            action, theirs = teacher.predict(one, theirs, start, deterministic=True)
            mine, ours = student.predict(one, ours, start, deterministic=True)
            equal.append(action == mine)
    measured = measure_held_out(student)["held_out"]
    assert measured["agreement"] == pytest.approx(np.mean(equal)) and measured["observations"] == len(equal)
    student.to_integer().save(tmp_path / "student.npz")
    export_onnx(student.to_integer(), tmp_path)
    result = verify(tmp_path, student.recording, 60, policy=student.policy)
    assert result.holds and result.n_observations == 60 and ("ONNX Runtime", "next_state") in result.rows
    with pytest.raises(ValueError, match="history_actions needs the actions between observations, and those of a recording"):
        QPDDistiller(teacher, observations=episodes, **options, history_actions=True)


# --- command line ---
NEEDS_ENV = {
    "evaluate": "to play episodes",
    "benchmark": "for the observations that it measures with",
    "verify": "or --recording FILE, for the observations that it compares",
}


def test_compress_without_an_environment(cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(tmp_path / "rows.npz", observations=ROWS)
    out = tmp_path / "out"
    arguments = ["--observations", str(tmp_path / "rows.npz"), "--timesteps", "300", "--out", str(out), *QUICK_OPTIONS]
    assert main(["compress", str(cartpole), *arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("recorded.json", "recorded.md", "student.npz", "student.zip", "student_float.zip")
    ]
    assert json.loads((out / "recorded.json").read_text())["held_out"]["observations"] == 200
    assert "not measured: there was no environment" in capsys.readouterr().out
    assert main(["export", str(out), "--target", "c", "--out", str(tmp_path / "npz")]) == 0
    assert main(["export", str(out / "student.zip"), "--target", "c", "--out", str(tmp_path / "zip")]) == 0
    assert capsys.readouterr().out.count("the files name none. --env ID names it") == 2
    assert (tmp_path / "zip" / "policy.c").read_bytes() == (tmp_path / "npz" / "policy.c").read_bytes()
    for command, reason in NEEDS_ENV.items():
        message = mistake(capsys, command, out)
        assert f"does not say in which environment it plays. sb3-qpd {command} needs it, {reason}" in message
        assert message.endswith(f"Give it: sb3-qpd {command} {out} --env ID")
    settings = ["--target", "c", "--out", tmp_path / "x", "--env-kwargs", "gravity=9"]
    assert "needs it, for the settings of --env-kwargs" in mistake(capsys, "export", out / "student.zip", *settings)


def test_exports_are_verified_on_held_out_observations(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    np.savez(tmp_path / "rows.npz", observations=ROWS)
    out, seen = tmp_path / "out", []
    add = Verification.add
    monkeypatch.setattr(Verification, "add", lambda *args: [seen.append(args[3]), add(*args)][1])
    arguments = ["--observations", str(tmp_path / "rows.npz"), "--timesteps", "300", "--out", str(out), *QUICK_OPTIONS]
    assert main(["compress", str(cartpole), *arguments, "--target", "onnx", "--target", "numpy"]) == 0
    held = RecordedObservations(tmp_path / "rows.npz")
    rows = {row.tobytes() for row in held.take(np.concatenate(list(held.side_by_side(held.held_out))))[0]}
    assert {row.tobytes() for row in np.concatenate(seen)} == rows and len(rows) == 200
    assert "200 observations, compared with the integer model" in capsys.readouterr().out
    assert main(["verify", str(out), "--recording", str(tmp_path / "rows.npz"), "--observations", "50"]) == 0
    assert "50 observations, compared with" in (printed := capsys.readouterr().out) and "policy in eval mode" in printed
    (out / "student.onnx").write_bytes((out / "student.onnx").read_bytes()[:-1])
    assert main(["verify", str(out), "--recording", str(tmp_path / "rows.npz"), "--observations", "50"]) == 1
    with pytest.raises(SystemExit):
        main(["verify", str(out), "--recording", str(tmp_path / "rows.npz"), "--env", "CartPole-v1"])
    assert "--recording plays no episode" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", observations=ROWS[:, :3])
    with pytest.raises(SystemExit):
        main(["verify", str(out), "--recording", str(tmp_path / "other.npz")])
    assert "of shape (3,), the student takes (4,)" in capsys.readouterr().err
    other = ["--force", "--target", "tflite", "--weight-bits", "3"]
    assert "tflite does not support weights of 3 bits" in mistake(capsys, "compress", str(cartpole), *arguments, *other)


def test_compress_with_an_environment(cartpole: Path, tmp_path: Path):
    np.savez(tmp_path / "rows.npz", observations=ROWS)
    arguments = ["--observations", str(tmp_path / "rows.npz"), "--timesteps", "300", "--out", str(tmp_path / "out")]
    more = ["--env", "CartPole-v1", "--episodes", "3", "--no-record", *QUICK_OPTIONS]
    assert main(["compress", str(cartpole), *arguments, *more]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "in 20 blocks, 2 held out" in report["recording"] and (tmp_path / "out" / "recorded.md").is_file()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--observations", "missing.npz"], "No such file: missing.npz"),
        (["--observations", "missing.npz", "--require", "non-inferior", "--film"], "--require, --film plays episodes"),
    ],
)
def test_mistakes(cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str):
    arguments = ["compress", str(cartpole), "--out", str(tmp_path / "out"), *more, *QUICK_OPTIONS]
    assert message in mistake(capsys, *arguments)
