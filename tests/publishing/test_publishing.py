"""A student goes to the Hub and comes back, and nothing of this machine goes with it."""

import base64
import contextlib
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from hub_server import HubServer, point_client_at, running_hub
from huggingface_hub import ModelCard, constants, hf_hub_download
from rl_zoo3.utils import SimpleLinearSchedule
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.utils import ConstantSchedule

from sb3_qpd import IntegerModel, QPDDistiller, load_teacher, push_to_hub
from sb3_qpd.cli import main
from sb3_qpd.distillation.schedules import CosineSchedule
from sb3_qpd.envs.recipe import EnvRecipe, describe_env
from sb3_qpd.publishing import film
from sb3_qpd.publishing.config import make_config
from sb3_qpd.publishing.paths import check_no_paths
from sb3_qpd.teachers.hub import teacher_on_hub
from sb3_qpd.zoo.entries import check_entry, check_environment

QUICK = ["--timesteps", "500", "--episodes", "3", "--student-arch", "nano", "--no-check-teacher", "--no-progress", "--no-page"]
PUBLISHED = ["README.md", "config.yml", "policy.py", "replay.mp4", "report.json", "student.npz", "student.onnx", "student.zip"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that compress wrote for a teacher from the Hub."""
    base = tmp_path_factory.mktemp("publishing")
    with pytest.MonkeyPatch.context() as monkeypatch, running_hub() as server:
        point_client_at(server.url, base / "cache", monkeypatch)
        PPO("MlpPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu").learn(64).save("teacher.zip")
        files = {"ppo-CartPole-v1.zip": Path("teacher.zip").read_bytes(), "args.yml": b"env: CartPole-v1"}
        server.publish("sb3/ppo-CartPole-v1", files)
        targets = ["--target", "onnx", "--target", "numpy"]
        assert main(["compress", "sb3/ppo-CartPole-v1", "--out", str(base / "out"), "--device", "cpu", *QUICK, *targets]) == 0
    (base / "out" / "notes.txt").write_text("mine")
    return base / "out"


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def everything_in(content: bytes) -> Iterator[bytes]:
    """A file, the members of zips in it, and what is pickled in an SB3 zip."""
    yield content
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from everything_in(archive.read(name))
    with contextlib.suppress(UnicodeDecodeError):  # numbers may begin with a brace too
        if content.startswith(b"{"):
            yield from (base64.b64decode(v[":serialized:"]) for v in json.loads(content).values() if ":serialized:" in str(v))


def test_there_and_back_again(hub: HubServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(folder), "--repo-id", "me/student", "--message", "First"]) == 0
    repository = hub.repositories["me/student"]
    commit = repository.refs["main"]
    output = capsys.readouterr().out
    assert f"Published {hub.url}/me/student/commit/{commit}" in output
    assert "not published: command.txt, notes.txt, report.md, student_float.zip" in output
    files = repository.commits[commit]
    assert sorted(files) == PUBLISHED and len(repository.commits) == 1
    for name, content in files.items():
        for part in everything_in(content):
            for path in (folder.parent, Path(__file__).parents[2], Path.home(), "/home/", "/Users/"):
                assert str(path).encode() not in part, (name, path)
    assert files["replay.mp4"][4:8] == b"ftyp" and 1_000 < len(files["replay.mp4"]) < 2_000_000

    # what comes back is what went
    back = IntegerModel.load(hf_hub_download("me/student", "student.npz"))
    here = IntegerModel.load(folder / "student.npz")
    observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    np.testing.assert_array_equal(back.logits(observations), here.logits(observations))
    policy = QPDDistiller.load(hf_hub_download("me/student", "student.zip"), device="cpu").policy
    np.testing.assert_array_equal(
        policy.predict(observations, deterministic=True)[0], here.predict(observations, deterministic=True)[0]
    )
    for name in ("student.npz", "student.zip"):  # whose environment is in the report, which comes along
        assert main(["evaluate", f"hub:me/student/{name}", "--episodes", "3", "--no-progress"]) == 0
    mean = json.loads(files["report.json"])["integer"]["return_mean"]
    assert capsys.readouterr().out.count(f"return    {mean:.2f} ") == 2

    push_to_hub(folder, "me/student", replay=False)  # again
    assert len(repository.commits) == 2 and set(repository.commits[repository.refs["main"]]) == set(PUBLISHED)


def test_the_card(hub: HubServer, folder: Path) -> None:
    push_to_hub(folder, "me/student", replay=False)
    files = hub.repositories["me/student"].commits[hub.repositories["me/student"].refs["main"]]
    card, report = ModelCard(files["README.md"].decode()), json.loads(files["report.json"])
    result = card.data.eval_results[0]
    assert (result.dataset_name, result.metric_type) == ("CartPole-v1", "mean_reward")
    assert result.metric_value == f"{report['integer']['return_mean']:.2f} +/- {report['integer']['return_std']:.2f}"
    assert card.data.base_model == "sb3/ppo-CartPole-v1" and "reinforcement-learning" in card.data.tags
    commit = report["teacher_name"].partition("@")[2]
    for text in (
        f"[sb3/ppo-CartPole-v1](https://huggingface.co/sb3/ppo-CartPole-v1/tree/{commit})",
        f"Teacher: SHA-256 `{report['teacher_checksum']}`",
        "| integer ",
        'hf_hub_download("me/student", "student.npz")',
        "| `student.onnx` |",
    ):
        assert text in card.text, text
    entry = yaml.safe_load(files["config.yml"])["CartPole-v1"]
    assert entry["teacher"] == report["teacher_name"] and entry["n_timesteps"] == report["timesteps"]
    assert entry["transition"] == "blend" and entry["student_arch"]["hidden"] == report["student"]["hidden"]
    # `sb3-qpd zoo train --conf-file config.yml` takes it
    check_entry(entry)
    teacher = load_teacher(folder.parent / "teacher.zip", env="CartPole-v1")
    check_environment(teacher, entry, "CartPole-v1")
    assert entry["n_envs"] == 16 and "learning_rate" not in entry and b"# seed: " in files["config.yml"]


def published_entry(student: QPDDistiller, env: EnvRecipe, teacher_name: str = "") -> tuple[dict[str, Any], str]:
    """The entry in a student's config.yml, and the text of the file."""
    buffer = io.BytesIO()
    student.save(buffer)
    report = {
        **{"env": describe_env(env), "teacher_name": teacher_name, "seed": 0, "timesteps": 500, "transition": "blend"},
        "student": student.policy.arch.asdict(),
    }
    text = make_config(report, student.policy.to_integer(), buffer.getvalue()).decode()
    return yaml.safe_load(text)[env.env_id], text


def test_config_of_a_game_stacks_and_wraps_as_its_teacher_saw() -> None:
    pong = load_teacher(Path(__file__).parents[2] / "examples" / "teachers" / "ppo" / "PongNoFrameskip-v4_1", device="cpu")
    assert pong.recipe is not None
    student = QPDDistiller(pong, student_arch="nano", n_envs=2, learning_rate=3e-3, device="cpu")
    for env in (pong.recipe, EnvRecipe("PongNoFrameskip-v4")):  # named, and the usual wrapper
        entry, text = published_entry(student, env, pong.name)
        assert entry["policy"] == "CnnPolicy" and entry["frame_stack"] == 4 and entry["n_envs"] == 2
        assert entry["learning_rate"] == 3e-3
        # ppo/PongNoFrameskip-v4 could be a repository on the Hub, of another user
        assert "teacher" not in entry and "# teacher: ppo/PongNoFrameskip-v4, which is not on the Hub: pass -params" in text
        check_entry({**entry, "teacher": "my/agent"})
        check_environment(pong, entry, "PongNoFrameskip-v4")
    with pytest.raises(ValueError, match="The entry has no teacher: .* pass -params teacher"):
        check_entry(entry)


@pytest.mark.parametrize(
    ("schedule", "written"),
    [(ConstantSchedule(1e-5), 1e-5), (SimpleLinearSchedule(2e-3), "lin_0.002"), (CosineSchedule(1e-2), "cos_0.01")],
    ids=["constant", "linear", "cosine"],
)
def test_learning_rates_that_an_entry_can_name(schedule: Any, written: Any, folder: Path) -> None:
    student = QPDDistiller.load(folder / "student.zip", device="cpu")
    student.learning_rate = schedule
    entry, text = published_entry(student, EnvRecipe("CartPole-v1"))
    assert entry.get("learning_rate") == written
    check_entry({**entry, "teacher": "my/agent"})
    assert "# learning_rate" not in text


def test_the_card_says_that_a_local_teacher_is_not_on_the_hub(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    own = copy(folder, tmp_path / "own")
    report = json.loads((own / "report.json").read_text())
    (own / "report.json").write_text(json.dumps({**report, "teacher_name": "ppo/CartPole-v1"}))
    push_to_hub(own, "me/student", replay=False)
    files = hub.repositories["me/student"].commits.popitem()[1]
    assert "teacher" not in yaml.safe_load(files["config.yml"])["CartPole-v1"]
    card = ModelCard(files["README.md"].decode())
    assert "The teacher is not on the Hub" in card.text and card.data.base_model is None


def test_a_path_in_a_student_is_found(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    """A schedule of the user's own is pickled with the name of the file that it was written in."""
    own = copy(folder, tmp_path / "own")
    student = QPDDistiller.load(own / "student.zip", device="cpu")
    code = compile("lambda progress: 1e-3 * progress", "/mnt/data/ann/train.py", "eval")
    student.learning_rate = eval(code)
    student.save(own / "student.zip")
    with pytest.raises(ValueError, match="learning_rate in data in student.zip names a path of this machine: /.*Nothing was"):
        push_to_hub(own, "me/student", replay=False)
    assert not hub.repositories


def test_a_path_in_a_model_is_found(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    own = copy(folder, tmp_path / "own")
    model = IntegerModel.load(own / "student.npz")
    model.metadata["env"] = {"env_id": "Ant-v5", "env_kwargs": {"xml_file": "/mnt/data/ann/robot.xml"}}
    model.save(own / "student.npz")
    with pytest.raises(ValueError, match="header.npy in student.npz names a path of this machine: /mnt/data/ann/robot.xml"):
        push_to_hub(own, "me/student", replay=False)
    assert not hub.repositories


@pytest.mark.parametrize(
    "value",
    [
        *("/home/ann/robot.xml", "C:\\Users\\ann\\robot.xml", "/Users/ann/robot.xml", "HERE/robot.xml", "file://HERE"),
        *("/mnt/data/ann/robot.xml", "D:\\ann\\robot.xml", "\\\\server\\ann\\robot.xml", "see file:///home/Ünal/robot.xml"),
    ],
)
def test_a_path_in_a_report_is_found(hub: HubServer, folder: Path, tmp_path: Path, value: str) -> None:
    own = copy(folder, tmp_path / "own")
    report: dict[str, Any] = json.loads((own / "report.json").read_text())
    report["env"]["env_kwargs"] = {"sutton_barto_reward": value.replace("HERE", str(tmp_path / "own"))}
    (own / "report.json").write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"report.json names a path of this machine: .*leave report.json out"):
        push_to_hub(own, "me/student", replay=False)
    assert not hub.repositories


def test_what_is_no_path_of_this_machine(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", b'{"a": {":serialized:": 3}, "b": "usr/lib", "c": "m/s", "d": "/", "e": "a:b"}')
        archive.writestr("broken", b"{")
    check_no_paths({"a.zip": buffer.getvalue(), "b.md": b"https://huggingface.co/homepage 1/2 gymnasium/envs"}, tmp_path)


def test_a_path_begins_where_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch archive holds archive/data/0; a pickled path has its length in the byte before it, which can be a letter."""
    home = tmp_path / "data"
    monkeypatch.setenv("HOME", "/data")
    check_no_paths({"policy.pth": b"PK\0\0archive/data/0PK", "a.md": b"archive/data/0 and x/data"}, home)
    for length in range(20, 128):
        path = "/data".ljust(length - 1, "/") + "x"
        with pytest.raises(ValueError, match="a.pkl names a path of this machine: /data/"):
            check_no_paths({"a.pkl": pickle.dumps([path], protocol=4)}, home)
    with pytest.raises(ValueError, match="a.md names a path of this machine: /data/x"):
        check_no_paths({"a.md": b"(/data/x)"}, home)


def test_without_ffmpeg(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "N_FRAMES", 60)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    _, remarks = push_to_hub(folder, "me/student")
    files = hub.repositories["me/student"].commits[hub.repositories["me/student"].refs["main"]]
    assert files["replay.gif"].startswith(b"GIF8") and "replay.mp4" not in files
    assert "a GIF instead of a video: imageio's ffmpeg is not installed (pip install sb3_qpd[film])" in remarks
    assert "![The student plays](replay.gif)" in files["README.md"].decode()


def test_an_environment_that_cannot_be_shown(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    own = copy(folder, tmp_path / "own")
    report = json.loads((own / "report.json").read_text())
    for env_id, remark in (("NotHere-v1", "NotHere"), ("antigravity:CartPole-v1", "would import a module")):
        report["env"]["env_id"] = env_id
        (own / "report.json").write_text(json.dumps(report))
        _, remarks = push_to_hub(own, "me/student")
        assert remarks[0].startswith("no replay: ") and remark in remarks[0]
    assert "antigravity" not in sys.modules  # which opens a browser
    assert not any(name.startswith("replay") for name in hub.repositories["me/student"].commits.popitem()[1])


class Invisible(gym.Wrapper):
    """An environment whose renderer has nothing to show."""

    def render(self) -> None:
        return None


class OnlyOne(gym.Wrapper):
    """The pole may be pushed to one side at a time; the other is an error."""

    pushes = 0

    def action_masks(self) -> np.ndarray:
        return np.arange(2) == self.pushes % 2

    def step(self, action: Any) -> Any:
        assert self.action_masks()[action]
        self.pushes += 1
        return super().step(action)


def test_a_film_of_a_student_that_minds_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(gym.spec("CartPole-v1"), additional_wrappers=(OnlyOne.wrapper_spec(),))
    monkeypatch.setitem(gym.registry, "OnlyOne-v1", spec)
    monkeypatch.setattr(film, "N_FRAMES", 40)
    teacher = load_teacher(MaskablePPO("MlpPolicy", "OnlyOne-v1", n_steps=16, batch_size=16, device="cpu"))
    student = QPDDistiller(teacher, "OnlyOne-v1", student_arch="nano", check_teacher=False, device="cpu").learn(64)
    taken = film.take_film(student.policy.to_integer(), EnvRecipe("OnlyOne-v1"))
    assert len(taken.pictures) == 40 and taken.pictures.shape[3] == 3
    steps = np.diff(taken.returns)
    assert (
        taken.returns[0] == 1 and ((steps == 1) | (taken.returns[1:] == 1)).all()
    )  # CartPole: 1 a step, anew in each episode
    fewer = film.take_film(student.policy.to_integer(), EnvRecipe("OnlyOne-v1"), every=3)
    np.testing.assert_array_equal(fewer.pictures, taken.pictures[::3])
    np.testing.assert_array_equal(fewer.returns, taken.returns[::3])
    assert fewer.fps == taken.fps / 3


def test_a_film_that_fails_keeps_no_student_at_home(
    hub: HubServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film, "N_FRAMES", 60)
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text("#!/bin/sh\necho no such codec >&2\nexit 1\n")
    ffmpeg.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(ffmpeg))
    _, remarks = push_to_hub(folder, "me/student")
    assert remarks[0].startswith("no replay: ")
    monkeypatch.setitem(
        gym.registry, "Invisible-v1", replace(gym.spec("CartPole-v1"), additional_wrappers=(Invisible.wrapper_spec(),))
    )
    own = copy(folder, tmp_path / "own")
    report = json.loads((own / "report.json").read_text())
    report["env"]["env_id"] = "Invisible-v1"
    (own / "report.json").write_text(json.dumps(report))
    _, remarks = push_to_hub(own, "me/student")
    assert remarks[0] == "no replay: Invisible-v1 renders nothing"
    assert len(hub.repositories["me/student"].commits) == 2


def test_a_private_repository(hub: HubServer, folder: Path) -> None:
    push_to_hub(folder, "me/secret", private=True, replay=False)
    assert hub.repositories["me/secret"].private


def test_mistakes(
    hub: HubServer,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def mistake(*arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main(["push", *map(str, arguments), "--no-replay"])
        assert exit_info.value.code == 2
        return capsys.readouterr().err

    assert "--repo-id must be owner/name, got 'student'" in mistake(folder, "--repo-id", "student")
    assert "has no student.npz and no report.json" in mistake(tmp_path, "--repo-id", "me/student")
    with pytest.raises(
        ValueError, match="has no student.npz and no report.json: expected a folder that sb3-qpd compress wrote"
    ):
        push_to_hub(tmp_path, "me/student")
    own = copy(folder, tmp_path / "own")
    report = json.loads((own / "report.json").read_text())
    report["integer"]["bytes"] += 1
    (own / "report.json").write_text(json.dumps(report))
    assert "are not of the same student" in mistake(own, "--repo-id", "me/student")
    for text in ("{}", "[1]", "{"):
        (own / "report.json").write_text(text)
        assert "is not what this version writes" in mistake(own, "--repo-id", "me/student")
    assert not hub.repositories
    hub.creating_fails = True
    assert "do not have the rights" in mistake(folder, "--repo-id", "them/student")
    hub.creating_fails = False
    assert "has no branch 'next'" in mistake(folder, "--repo-id", "me/student", "--branch", "next")
    assert not hub.repositories["me/student"].commits
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "log in with `hf auth login`, or set HF_TOKEN" in mistake(folder, "--repo-id", "me/student")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in mistake(folder, "--repo-id", "me/student")
    assert not hub.repositories["me/student"].commits


def test_which_teachers_are_on_the_hub() -> None:
    for name in ("ppo/CartPole-v1", "ppo/me@home", ""):
        assert teacher_on_hub(name) is None
    for name in ("hub:me/agents/a.zip@", "me/agents@"):
        source = teacher_on_hub(name + 4 * "0123456789")
        assert source is not None and source.repo_id == "me/agents"
