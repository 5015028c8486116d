"""RL Zoo's programs with qpd: runs, what they leave, user errors, searches. All on a CartPole teacher that is made here."""

import contextlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from forked import run_forked
from hub_server import point_client_at, running_hub
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import load_results
from toys import assert_equal_states, assert_same_bits

import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import IntegerModel, QPDDistiller, load_teacher
from sb3_qpd.atomic import CHECKPOINT, open_locked
from sb3_qpd.cli import main
from sb3_qpd.distillation.checkpoint_files import LOCK, STATE_FILES, write_archive
from sb3_qpd.distillation.schedules import COSINE
from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import ATARI_WRAPPER
from sb3_qpd.envs.zoo_config import from_zoo_entry
from sb3_qpd.students.architectures import make_arch
from sb3_qpd.zoo.command_line import with_options
from sb3_qpd.zoo.entries import check_entry, check_environment, expand_env_id, known_keys, read_entries

ENV = "CartPole-v1"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as RL Zoo writes it."""
    folder = tmp_path_factory.mktemp("teacher") / "ppo" / f"{ENV}_1"
    (folder / ENV).mkdir(parents=True)
    PPO("MlpPolicy", make_vec_env(ENV, 8), device="cpu", seed=0, n_steps=64).learn(4_000).save(folder / f"{ENV}.zip")
    (folder / ENV / "args.yml").write_text(yaml.safe_dump({"algo": "ppo", "env": ENV}))
    (folder / ENV / "config.yml").write_text(yaml.safe_dump({"policy": "MlpPolicy", "n_timesteps": 4_000}))
    return folder


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """RL Zoo looks at the current directory."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def train(folder: Path, *arguments: str, params: dict[str, Any] | None = None) -> None:
    """``sb3-qpd zoo train`` in a folder, short and silent."""
    quick = {"check_teacher": False, "report_episodes": 0, "n_envs": 4, "learning_starts": 64, **(params or {})}
    given = [f"{key}:{value!r}" for key, value in quick.items()]
    command = ["zoo", "train", "--algo", "qpd", "--env", ENV, "--device", "cpu", "--verbose", "0", "--eval-freq", "-1"]
    folder.mkdir(exist_ok=True)
    with inside(folder):
        assert main([*command, *arguments, "-params", *given]) == 0


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a student was trained, with everything that RL Zoo can leave."""
    folder = tmp_path_factory.mktemp("run")
    often = ["--eval-freq", "400", "--save-freq", "400", "--tensorboard-log", "tb", "-P"]
    train(
        folder,
        "-n",
        "800",
        "--seed",
        "3",
        *often,
        params={"teacher": str(teacher), "report_episodes": 3, "check_teacher": True},
    )
    return folder


def test_the_run_folder(run: Path, teacher: Path) -> None:
    folder = run / "logs" / "qpd" / f"{ENV}_1"
    checkpoints = {f"rl_model_{n}_steps.zip" for n in (400, 800)}
    ours = {"student.npz", "report.json", "report.md"}
    monitors = {f"{i}.monitor.csv" for i in range(4)}
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {f"{ENV}.zip", "best_model.zip", "evaluations.npz", *checkpoints, *ours, *monitors}
    assert {path.name for path in (folder / ENV).iterdir()} == {"args.yml", "config.yml", "command.txt"}
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [400, 800]
    assert 0 < load_results(str(folder))["l"].sum() <= 800  # only what the student was trained on
    assert list((run / "tb" / ENV).glob("QPD_1/events*"))
    config = (folder / ENV / "config.yml").read_text()
    assert str(teacher) in config and "student_arch" in config  # as RL Zoo: what to train it again with


def test_the_report_names_the_next_command(run: Path, teacher: Path) -> None:
    """With the arguments of the run, the teacher included, and with the number of episodes as RL Zoo takes it."""
    folder = run / "logs" / "qpd" / f"{ENV}_1"
    report = json.loads((folder / "report.json").read_text())
    line = re.search("Next: .*`(.*)`", (folder / "report.md").read_text())
    assert line is not None and report["verdict"] in ("inconclusive", "no_claim")
    words = shlex.split(line[1])
    if report["verdict"] == "no_claim":
        assert words == ["sb3-qpd", "evaluate", str(teacher)]
    else:
        assert (
            words[:5] == ["sb3-qpd", "zoo", "train", "--algo", "qpd"] and ["--seed", "3"] == words[words.index("--seed") :][:2]
        )
        assert f"report_episodes:{report['episodes_needed']}" in words


NEXT = [
    (
        "-params teacher:a/b report_episodes:5 -n 100",
        "--timesteps 400",
        True,
        "-params report_episodes:174 teacher:a/b -n 400",
    ),
    ("-params teacher:a/b", "--episodes 174", True, "-params report_episodes:174 teacher:a/b"),
    ("--env X-v0", "--student-arch small", False, "--env X-v0 -params student_arch:small"),
    (
        "--hyperparams weight_bits:4 seed:1",
        "--weight-bits 8 --activation-bits 8",
        False,
        "--hyperparams weight_bits:8 activation_bits:8 seed:1",
    ),
    ("--n-timesteps 5 -f logs", "--timesteps 20", False, "-f logs -n 20"),
]


@pytest.mark.parametrize(("given", "options", "has_too_few", "expected"), NEXT)
def test_a_command_with_other_settings(given: str, options: str, has_too_few: bool, expected: str) -> None:
    dropped = {"--force", "--episodes"} if has_too_few else {"--force"}
    assert with_options(f"sb3-qpd zoo train {given}", options, dropped, 174) == f"sb3-qpd zoo train {expected}"


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", ["train", "enjoy"])
def test_a_gpu_that_is_not_there(program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SB3 would take the CPU and say nothing."""
    with inside(tmp_path), pytest.raises(SystemExit) as exit_info:
        main(["zoo", program, "--algo", "qpd", "--env", "CartPole-v1", "--device", "cuda"])
    assert exit_info.value.code == 2
    assert "--device 'cuda' cannot be used on this machine" in capsys.readouterr().err


def test_a_run_that_was_interrupted_goes_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", 64)
    options: tuple[str, ...] = ("-n", "400", "--checkpoint-every", "64")
    params = {"teacher": str(teacher)}
    train(tmp_path / "whole", *options, "--seed", "3", params=params)
    whole = QPDDistiller.load(tmp_path / "whole" / "logs" / "qpd" / f"{ENV}_1" / f"{ENV}.zip", device="cpu")
    learn = QPDDistiller._train

    def interrupted(self: QPDDistiller) -> None:
        learn(self)
        if self.num_timesteps >= 200:
            raise KeyboardInterrupt

    monkeypatch.setattr(QPDDistiller, "_train", interrupted)
    folder = tmp_path / "logs" / "qpd" / f"{ENV}_1"
    train(tmp_path, *options, "--seed", "3", params=params)
    assert (folder / "checkpoint").is_dir() and (folder / f"{ENV}.zip").is_file()  # what there is
    monkeypatch.setattr(QPDDistiller, "_train", learn)
    train(tmp_path, *options, "--resume", params=params)  # RL Zoo draws a seed: the run's own counts
    assert "Found a checkpoint after 192 steps" in capsys.readouterr().out
    assert [path.name for path in folder.parent.iterdir()] == [f"{ENV}_1"] and not (folder / "checkpoint").exists()
    student = QPDDistiller.load(folder / f"{ENV}.zip", device="cpu")
    assert student.num_timesteps == 400
    assert_equal_states(student, whole)


@pytest.mark.skipif(os.name == "nt", reason="no locks on Windows")
def test_a_run_that_still_learns_is_left_alone(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process holds the lock. What a killed one left is named, and --resume would take it."""
    checkpoint = tmp_path / "logs" / "qpd" / f"{ENV}_1" / CHECKPOINT
    checkpoint.mkdir(parents=True)
    write_archive(checkpoint / STATE_FILES[0], {"num_timesteps": 192}, {})
    before = (checkpoint / STATE_FILES[0]).read_bytes()
    options = ("-n", "64", "--checkpoint-every", "0")
    with open_locked(checkpoint / LOCK):
        train(tmp_path, *options, "--resume", params={"teacher": str(teacher)})
    told = capsys.readouterr().out
    assert f"Found no checkpoint of {ENV}" in told and "192" not in told
    assert (tmp_path / "logs" / "qpd" / f"{ENV}_2" / "student.npz").is_file()
    assert (checkpoint / STATE_FILES[0]).read_bytes() == before
    train(tmp_path, *options, params={"teacher": str(teacher)})
    assert "holds an unfinished run of 192 steps" in capsys.readouterr().out


def test_student_npz_is_the_final_model(run: Path) -> None:
    folder = run / "logs" / "qpd" / f"{ENV}_1"
    student = QPDDistiller.load(folder / f"{ENV}.zip", device="cpu")
    observations = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    assert_same_bits(student.policy, observations)
    integer = IntegerModel.load(folder / "student.npz")
    np.testing.assert_array_equal(integer.logits(observations), student.policy.to_integer().logits(observations))
    assert integer.metadata["env"]["env_id"] == ENV and integer.metadata["teacher"] == f"ppo/{ENV}"
    report = json.loads((folder / "report.json").read_text())
    assert report["integer"]["episodes"] == 3 and report["seed"] == 3 and report["timesteps"] == 800
    assert report["weight_bits"] == 4 and report["teacher_name"] == f"ppo/{ENV}" and report["parity"] == 1.0


def test_the_entrys_own_teacher_comes_from_the_hub(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"ppo-{ENV}.zip": (teacher / f"{ENV}.zip").read_bytes(), "args.yml": (teacher / ENV / "args.yml").read_bytes()}
    with running_hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        commit = hub.publish(f"sb3/ppo-{ENV}", files)
        train(tmp_path, "-n", "200", params={"report_episodes": 2})
    report = json.loads((tmp_path / "logs" / "qpd" / f"{ENV}_1" / "report.json").read_text())
    assert report["teacher_name"] == f"sb3/ppo-{ENV}@{commit}"


def test_our_own_commands_read_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "logs" / "qpd" / f"{ENV}_1"
    returns = []
    for name in (f"{ENV}.zip", "student.npz"):  # the report beside the zip names the environment
        assert main(["evaluate", str(folder / name), "--episodes", "3", "--no-progress"]) == 0
        returns.append(capsys.readouterr().out.splitlines()[0])
    assert returns[0] == returns[1]


def test_enjoy_plays_the_integer_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(run):
        assert main(["zoo", "enjoy", "--algo", "qpd", "--env", ENV, "-f", "logs", "--no-render", "-n", "600"]) == 0
    shown = [float(number) for number in _rewards(capsys.readouterr().out)]
    model, env = IntegerModel.load(run / "logs" / "qpd" / f"{ENV}_1" / "student.npz"), make_vec_env(ENV, 1, seed=0)
    observations, returns, total = env.reset(), [], 0.0
    for _ in range(600):
        observations, rewards, dones, _ = env.step(model.predict(observations, deterministic=True)[0])
        total += float(rewards[0])
        if dones[0]:
            returns.append(total)
            total = 0.0
    assert returns and shown == returns


def test_enjoy_best_and_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["zoo", "enjoy", "--algo", "qpd", "--env", ENV, "-f", "logs", "--no-render", "-n", "520"]
    with inside(run):
        for choice in (["--load-best"], ["--load-last-checkpoint"], ["--load-checkpoint", "400"]):
            assert main([*common, *choice]) == 0
            assert "Mean reward" in capsys.readouterr().out


def test_record_video_writes_one(run: Path) -> None:
    with inside(run):
        assert main(["zoo", "record_video", "--algo", "qpd", "--env", ENV, "-f", "logs", "-n", "12", "-o", "videos"]) == 0
    videos = list((run / "videos").glob("*.mp4"))
    assert len(videos) == 1 and videos[0].stat().st_size > 1_000


def test_a_student_goes_on_learning(run: Path, teacher: Path, tmp_path: Path) -> None:
    best = run / "logs" / "qpd" / f"{ENV}_1" / "best_model.zip"
    before = QPDDistiller.load(best, device="cpu")
    train(tmp_path, "-n", "200", "--save-freq", "4", "-i", str(best), params={"teacher": str(teacher)})
    folder = tmp_path / "logs" / "qpd" / f"{ENV}_1"
    after = QPDDistiller.load(folder / f"{ENV}.zip", device="cpu")
    assert after._n_updates > before._n_updates and after.policy.arch == before.policy.arch
    first = QPDDistiller.load(folder / "rl_model_4_steps.zip", device="cpu")  # after one step of the four environments
    assert first._transition_progress >= before._transition_progress > 0  # one from the start would be at 0


def test_environments_in_processes_of_their_own(teacher: Path, tmp_path: Path) -> None:
    memory = {"history": 3, "history_actions": True}
    train(tmp_path, "-n", "128", "--vec-env", "subproc", params={"teacher": str(teacher), "n_envs": 2, **memory})
    model = IntegerModel.load(tmp_path / "logs" / "qpd" / f"{ENV}_1" / "student.npz")
    assert model.metadata["pipeline"] == []  # known to be none, though they are in other processes
    assert model.history == 3 and model.history_actions
    assert (tmp_path / "logs" / "qpd" / f"{ENV}_1" / "student.npz").is_file()


def test_another_algorithm_finds_nothing_changed(tmp_path: Path) -> None:
    with inside(tmp_path):
        command = ["zoo", "train", "--algo", "ppo", "--env", ENV, "-n", "64", "--device", "cpu", "--eval-freq", "-1"]
        assert main([*command, "-params", "n_steps:8", "n_envs:2", "batch_size:8", "normalize:True"]) == 0
    folder = tmp_path / "logs" / "ppo" / f"{ENV}_1"
    assert (folder / f"{ENV}.zip").is_file() and (folder / ENV / "vecnormalize.pkl").is_file()
    assert not (folder / "student.npz").exists()
    # and that run is a teacher
    train(tmp_path, "-n", "64", params={"teacher": str(folder), "n_envs": 2, "learning_starts": 16})
    assert IntegerModel.load(tmp_path / "logs" / "qpd" / f"{ENV}_1" / "student.npz").metadata["teacher"] == f"ppo/{ENV}"


def test_plots_of_a_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    with inside(run):
        assert main(["zoo", "plot_train", "-a", "qpd", "-e", ENV, "-f", "logs", "-w", "2"]) == 0
        assert main(["zoo", "all_plots", "-a", "qpd", "-e", ENV, "-f", "logs", "-o", "plots", "--no-display"]) == 0
    assert list(run.glob("plots*"))


def test_a_missing_package_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("rl_zoo3.plots")]:
        monkeypatch.delitem(sys.modules, name)  # as in a process that has not plotted yet
    monkeypatch.setitem(sys.modules, "seaborn", None)
    with pytest.raises(SystemExit):
        main(["zoo", "plot_train", "-a", "qpd", "-e", ENV, "-f", "logs"])
    assert "plot_train needs the package seaborn, which sb3_qpd requires: pip install seaborn" in capsys.readouterr().err


@pytest.mark.slow
def test_tracked_offline(teacher: Path, tmp_path: Path) -> None:
    """With ``--track``: the log and the settings reach Weights & Biases, here a file. TensorBoard is patched: in a process."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    settings = [f"teacher:{str(teacher)!r}", "check_teacher:False", "report_episodes:0", "n_envs:4", "learning_starts:64"]
    command = ["train", "--algo", "qpd", "--env", ENV, "-n", "400", "--eval-freq", "200", "--track", "-params", *settings]
    done = run_forked("-m", "sb3_qpd.zoo", *command, folder=tmp_path, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert all(key in content for key in (b"train/actor_loss", b"eval/mean_reward", b"student_arch"))


@pytest.mark.slow
def test_push_load_and_enjoy_again(run: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a hub on 127.0.0.1; its client reads its settings when it is imported, so in a process of its own."""
    arguments = ["--algo", "qpd", "--env", ENV, "-f", "logs"]
    play = ["--no-render", "-n", "600"]
    programs = [
        (run, ["push_to_hub", *arguments, "-orga", "me", "--no-render"]),
        (tmp_path, ["load_from_hub", *arguments, "-orga", "me"]),
        (tmp_path, ["enjoy", *arguments, *play]),
    ]
    script = tmp_path / "script.py"
    script.write_text("""
import json, os, runpy, sys
for folder, arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.argv = ["sb3_qpd.zoo", *arguments]
    print("program:", arguments[0], flush=True)
    try:
        runpy.run_module("sb3_qpd.zoo", run_name="__main__")
    except SystemExit as end:
        assert not end.code, arguments
""")
    with running_hub() as hub:
        private = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": hub.token, "TRUST_REMOTE_CODE": "1"}
        private["HF_HUB_DISABLE_TELEMETRY"] = "1"
        done = run_forked(script, json.dumps([(str(folder), given) for folder, given in programs]), **private)
        assert done.returncode == 0, done.stderr
        played = done.stdout.partition("program: enjoy")[2]
        files = hub.repositories["me/qpd-CartPole-v1"].commits[hub.repositories["me/qpd-CartPole-v1"].refs["main"]]
        assert {f"qpd-{ENV}.zip", "README.md", "config.yml", "args.yml", "results.json"} <= {*files}
        published = b"".join(content for name, content in files.items() if not name.endswith(".zip")).decode(errors="replace")
        assert str(teacher) not in published and str(run) not in published
        card = files["README.md"].decode()
        assert f"python -m sb3_qpd.zoo enjoy --algo qpd --env {ENV}" in card and "rl_zoo3.enjoy" not in card
        assert "name: QPD\n" in card  # in lower case the key by which RL Zoo finds it
    capsys.readouterr()
    with inside(run):  # the same in this process, of what was not published
        assert main(["zoo", "enjoy", *arguments, *play]) == 0
    assert _rewards(played) == _rewards(capsys.readouterr().out) != []


def _rewards(output: str) -> list[str]:
    return re.findall(r"Episode Reward: ([\d.]+)", output)


class OwnWrapper(gym.Wrapper):
    """A user's own, which no recipe may name."""


def trained_with(teacher: Path, folder: Path, **config: Any) -> str:
    """The teacher in a run folder whose config.yml says more."""
    copied = shutil.copytree(teacher, folder / "ppo" / teacher.name)
    file = copied / ENV / "config.yml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **config}))
    return str(copied)


@pytest.mark.parametrize(("text", "half"), [("cos_0.01", 0.005), ("lin_0.01", 0.005), (0.01, 0.01)])
def test_learning_rates_of_an_entry(text: Any, half: float, teacher: Path, tmp_path: Path) -> None:
    """A cosine is ours, the others are RL Zoo's. At a quarter of the run the cosine is still high."""
    train(tmp_path, "-n", "64", params={"teacher": str(teacher), "learning_rate": text})
    student = QPDDistiller.load(tmp_path / "logs" / "qpd" / f"{ENV}_1" / f"{ENV}.zip", device="cpu")
    late = {"cos_0.01": 0.01 * 0.5 * (1 - math.cos(math.pi / 4)), "lin_0.01": 0.0025}.get(text, 0.01)
    assert [student.lr_schedule(left) for left in (1.0, 0.5, 0.25)] == pytest.approx([0.01, half, late])


def test_a_wrapper_of_ones_own(teacher: Path, tmp_path: Path) -> None:
    """It is played in the environments that RL Zoo builds, where the teacher's config.yml names it too."""
    own = f"{__name__}.OwnWrapper"
    params = {"teacher": trained_with(teacher, tmp_path, env_wrapper=[{own: {}}]), "env_wrapper": own, "report_episodes": 2}
    train(tmp_path, "-n", "64", params=params)
    report = json.loads((tmp_path / "logs" / "qpd" / f"{ENV}_1" / "report.json").read_text())
    assert report["env"] == {"env_id": ENV} and report["integer"]["episodes"] == 2


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {"env_wrapper": f"{__name__}.OwnWrapper"}),
        ({"env_wrapper": f"{__name__}.OwnWrapper"}, {}),
        ({"env_wrapper": f"{__name__}.OwnWrapper"}, {"env_wrapper": [{f"{__name__}.OwnWrapper": {"factor": 0.5}}]}),
        ({"vec_env_wrapper": "somebodys.Wrapper"}, {}),
        ({"frame_stack": 2}, {"env_wrapper": f"{__name__}.OwnWrapper"}),
    ],
)
def test_another_wrapper_than_the_teachers(
    theirs: dict[str, Any], ours: dict[str, Any], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, tmp_path / "run", params={"teacher": trained_with(teacher, tmp_path, **theirs), **ours})
    key = next(iter(theirs or ours))
    assert f"The teacher ppo/{ENV} was trained " in message and f"Set {key}" in message


def test_a_teacher_that_says_nothing_of_wrappers(teacher: Path, tmp_path: Path) -> None:
    """Of a bare zip only the shapes are known."""
    bare = shutil.copy(teacher / f"{ENV}.zip", tmp_path / "bare.zip")
    train(tmp_path, "-n", "64", params={"teacher": str(bare), "env_wrapper": f"{__name__}.OwnWrapper"})
    assert (tmp_path / "logs" / "qpd" / f"{ENV}_1" / "student.npz").is_file()


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str, params: dict[str, Any]) -> str:
    """The one line of an error, which came before anything was written."""
    with pytest.raises(SystemExit) as exit_info:
        train(folder, *arguments, params=params)
    assert exit_info.value.code == 2
    assert not list(folder.rglob("*.zip")) and not list(folder.rglob(f"{ENV}_*"))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sb3-qpd zoo train: error: ")]
    assert len(lines) == 1
    return lines[0]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"critc_coef": 0.5}, "Unknown hyperparameter 'critc_coef' of qpd. Did you mean 'critic_coef'?"),
    ({"gamma": 0.5}, "Unknown hyperparameter 'gamma' of qpd."),
    ({"teacher": None}, "The entry has no teacher: expected a Hub id such as sb3/ppo-CartPole-v1, a run folder or a zip"),
    ({"teacher": "nowhere/ppo.zip"}, "nowhere/ppo.zip"),
    ({"policy": None}, "The entry has no policy"),
    ({"n_timesteps": "1e5"}, "write !!float 1e5"),
    ({"normalize": True}, "normalize is not for students: each side has its own statistics."),
    ({"normalize": "dict(norm_obs=False)"}, "Remove normalize from the entry"),
    ({"frame_stack": 4}, f"The teacher ppo/{ENV} was trained on 1 stacked frames, this entry stacks 4. Set frame_stack: 1"),
    (
        {"env_wrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper"},
        "was trained with env_wrapper: none, this entry has ['sb3_contrib.common.wrappers.TimeFeatureWrapper']",
    ),
    ({"n_timesteps": -5.0}, "n_timesteps must be at least 1 and at most 1e+11, got -5.0"),
    ({"n_timesteps": 0.5}, "n_timesteps must be at least 1 and at most 1e+11, got 0.5"),
    ({"buffer_size": 1e12}, "take a buffer_size of at most"),
    ({"n_timesteps": 1e15}, "at most 1e+11, got 1000000000000000.0"),
    ({"n_envs": 100_000}, "n_envs must be at most 4096, got 100000"),
    ({"n_envs": 0}, "n_envs must be an integer of at least 1, got 0"),
    ({"n_envs": 2.0}, "n_envs must be an integer of at least 1, got 2.0"),
    ({"frame_stack": 10**9}, "frame_stack must be at most 64, got 1000000000"),
    ({"frame_stack": "four"}, "frame_stack must be an integer of at least 1, got 'four'"),
    *(
        ({"report_episodes": value}, "report_episodes must be 0 (no report) or an integer")
        for value in ("abc", None, 2.5, -3, 1)
    ),
    ({"learning_rate": "fast"}, "linear to zero (lin_0.001), or a cosine to zero (cos_0.001), got 'fast'"),
    ({"learning_rate": "exp_0.01"}, "or a cosine to zero (cos_0.001), got 'exp_0.01'"),
    ({"learning_rate": "cos_2"}, "or a cosine to zero (cos_0.001), got 'cos_2'"),
    (
        {"callback": "rl_zoo3.callbacks.Nobodys"},
        "The entry names a class that does not exist: module 'rl_zoo3.callbacks' has no attribute",
    ),
    ({"vec_env_wrapper": "stable_baselines3.common.vec_env.VecNormalize"}, "The entry's vec_env_wrapper normalizes"),
    ({"student_arch": "nanno"}, "Unknown student_arch 'nanno'. Known: nano"),
    ({"transition": "blent"}, "blend"),
    ({"weight_bits": 9}, "Bits must be one of"),
    ({"history_actions": True}, "history_actions is True or False, and needs a history of 2 or more"),
]


@pytest.mark.parametrize(("params", "message"), MISTAKES, ids=lambda value: next(iter(value), "") if value else "")
def test_mistakes_are_one_line_before_any_training(
    params: dict[str, Any], message: str, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, tmp_path, params={"teacher": str(teacher), **params})


def test_a_progress_bar_does_not_hide_what_went_wrong(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RL Zoo ends it, though it never began."""
    message = refused(capsys, tmp_path, "-P", params={"teacher": str(teacher), "buffer_size": 1e12})
    assert "take a buffer_size of at most" in message


def test_a_wrapper_that_is_not_there(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The teacher is a bare zip, so that nothing else is wrong with it."""
    bare = shutil.copy(teacher / f"{ENV}.zip", tmp_path / "bare.zip")
    params = {"teacher": str(bare), "env_wrapper": f"{__name__}.OwnWraper"}
    message = refused(capsys, tmp_path / "run", params=params)
    assert message.endswith("has no attribute 'OwnWraper'. Expected dotted names, as in an import")


@pytest.mark.parametrize("content", [[1], None, {ENV: [1]}, {ENV: None}, {ENV: "text"}], ids=str)
def test_a_file_that_is_no_mapping(content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yml").write_text(yaml.safe_dump(content))
    message = refused(capsys, tmp_path, "--conf-file", "own.yml", params={})
    assert f"Expected a mapping of environments to mappings of hyperparameters in own.yml, for {ENV} too" in message


def test_a_model_to_continue_that_is_not_there(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, tmp_path, "-i", "nowhere.zip", params={"teacher": str(teacher)})
    assert "trained_agent must be a valid path to a .zip file" in message


@pytest.mark.parametrize(
    ("theirs", "env_id", "is_other"),
    [
        ("HalfCheetah-v3", "Walker2d-v4", True),  # of equal shapes
        ("HalfCheetah-v3", "HalfCheetah-v4", False),
        ("LunarLander-v2", "LunarLander-v3", False),
        ("SomebodysCheetah-v0", "HalfCheetah-v4", True),
    ],
)
def test_a_teacher_of_an_environment_of_equal_shapes(theirs: str, env_id: str, is_other: bool, teacher: Path) -> None:
    loaded = load_teacher(teacher, device="cpu")
    assert loaded.run is not None
    loaded.run = replace(loaded.run, args={"env": theirs})
    with warnings.catch_warnings(record=True) as caught:
        check_environment(loaded, {}, env_id)
    said = [str(warning.message) for warning in caught]
    assert said == (
        [f"The teacher ppo/{ENV} was trained on {theirs}, its student learns on {env_id}: is that intended?"]
        if is_other
        else []
    )


def test_a_mistake_ends_a_search_before_its_first_trial(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = {"teacher": str(teacher), "box_loss": "hubber"}
    assert "huber" in refused(capsys, tmp_path, "-optimize", "--n-trials", "1", params=params)


def test_a_teacher_of_another_environment(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, tmp_path, "--env", "Acrobot-v1", params={"teacher": str(teacher)})
    assert "The environment's observations are not the teacher's." in message
    assert not list(tmp_path.rglob("*.monitor.csv"))


def test_statistics_of_somebody_else_in_the_current_folder(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """RL Zoo would take them without a word."""
    from stable_baselines3.common.vec_env import VecNormalize

    (tmp_path / ENV).mkdir()
    VecNormalize(make_vec_env(ENV, 1)).save(str(tmp_path / ENV / "vecnormalize.pkl"))
    with pytest.raises(SystemExit):
        train(tmp_path, "-n", "64", params={"teacher": str(teacher)})
    assert f"RL Zoo found {ENV}/vecnormalize.pkl" in capsys.readouterr().err
    assert not (tmp_path / "logs" / "qpd" / f"{ENV}_1").exists()


def test_mistakes_that_are_rl_zoos_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with inside(tmp_path), pytest.raises(SystemExit):
        main(["zoo", "train", "--algo", "qpd", "--env", "CartPol-v1"])
    assert "you maybe meant CartPole-v1?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["zoo", "trian"])
    assert "invalid choice: 'trian'" in capsys.readouterr().err


def test_a_yaml_file_that_cannot_be_read_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that RL Zoo reads for train, and one that it reads for enjoy."""
    (tmp_path / "qpd.yml").write_text("CartPole-v1: [1,")
    folder = tmp_path / "logs" / "qpd" / f"{ENV}_1"
    (folder / ENV).mkdir(parents=True)
    (folder / f"{ENV}.zip").write_bytes((run / "logs" / "qpd" / f"{ENV}_1" / f"{ENV}.zip").read_bytes())
    (folder / ENV / "config.yml").write_text("!!python/object/apply:os.getcwd []")
    for program, more, message in (
        ("train", ["--conf-file", str(tmp_path / "qpd.yml")], "expected the node content"),
        ("enjoy", ["-f", "logs", "--no-render"], "could not determine a constructor"),
    ):
        with inside(tmp_path), pytest.raises(SystemExit) as exit_info:
            main(["zoo", program, "--algo", "qpd", "--env", ENV, *more])
        lines = capsys.readouterr().err.splitlines()
        assert exit_info.value.code == 2 and lines[-1].startswith(f"sb3-qpd zoo {program}: error: ") and message in lines[-1]


def test_help_is_the_programs_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["zoo", "train", "--help"])
    output = capsys.readouterr().out
    assert exit_info.value.code == 0
    assert output.startswith("usage: sb3-qpd zoo train [-h]") and "qpd" in output and "--n-startup-trials" in output


@pytest.mark.parametrize("name", read_entries())
def test_every_entry_is_whole(name: str) -> None:
    entry = read_entries()[name]
    check_entry(entry)
    assert make_arch(entry["student_arch"], entry.get("weight_bits"), entry.get("activation_bits")).hidden
    assert entry["n_envs"] > 1 and isinstance(entry["n_timesteps"], float)
    assert entry.get("learning_rate", COSINE).startswith(COSINE)  # the form that compress has a flag for
    if name != "atari":
        assert name in gym.registry
        assert from_zoo_entry(entry, name, {}) is not None


def test_one_entry_serves_every_game() -> None:
    entry = read_entries()["atari"]
    assert expand_env_id(entry["teacher"], "PongNoFrameskip-v4") == "sb3/ppo-PongNoFrameskip-v4"
    recipe = from_zoo_entry(entry, "PongNoFrameskip-v4", {})
    assert recipe is not None and recipe.is_native and recipe.frame_stack == 4
    assert [wrapper for wrapper, _ in recipe.env_wrappers] == [ATARI_WRAPPER]


def test_a_game_runs_in_ales_vector_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training, evaluation and monitor; settings that it does not have take SB3's wrappers."""
    pong = str(Path(__file__).parents[2] / "examples" / "teachers" / "ppo" / "PongNoFrameskip-v4_1")
    limit = {"max_num_frames_per_episode": 240}  # games of 60 steps
    arguments = ("--env", "PongNoFrameskip-v4", "-n", "256", "--eval-freq", "128", "--eval-episodes", "1")
    built: list[Any] = []
    make = AtariVecEnv.__init__

    def look(self: AtariVecEnv, *args: Any, **kwargs: Any) -> None:
        built.append(kwargs)
        make(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AtariVecEnv, "__init__", look)
        few = {"buffer_size": 256, "gradient_steps": 0.02}  # it need not learn the game
        train(tmp_path, *arguments, params={"teacher": pong, "env_kwargs": limit, **few})
        assert len(built) == 2 and all(kwargs["max_num_frames_per_episode"] == 240 for kwargs in built)
        folder = tmp_path / "logs" / "qpd" / "PongNoFrameskip-v4_1"
        results = load_results(str(folder))
        assert results["l"].tolist() == [60] * 4 and (folder / "best_model.zip").is_file()
        wrapper = [{ATARI_WRAPPER: {"screen_size": 84, "action_repeat_probability": 0.1}}]
        with pytest.raises(SystemExit):  # the teacher was trained with other wrappers
            train(tmp_path, *arguments, params={"teacher": pong, "env_wrapper": wrapper})
        assert len(built) == 2
    assert "Set env_wrapper to the teacher's" in capsys.readouterr().err


def test_what_a_game_is_seen_through_must_be_the_teachers() -> None:
    """The Pong teacher that ships with the project: four frames, AtariWrapper."""
    pong = load_teacher(Path(__file__).parents[2] / "examples" / "teachers" / "ppo" / "PongNoFrameskip-v4_1", device="cpu")
    entry = read_entries()["atari"]

    def check(**changes: Any) -> None:
        check_environment(pong, {**entry, **changes}, "PongNoFrameskip-v4")

    check()
    check(env_wrapper=[{ATARI_WRAPPER: {"terminal_on_life_loss": False, "clip_reward": False}}])  # seen the same
    check(vec_env_wrapper="somebody.s.Wrapper")  # not known: the shapes have to tell
    with pytest.raises(ValueError, match="was trained on 4 stacked frames, this entry stacks 1. Set frame_stack: 4"):
        check(frame_stack=None)
    with pytest.raises(ValueError, match="this entry has none. Set env_wrapper to the teacher's"):
        check(env_wrapper=None)
    with pytest.raises(ValueError, match="'screen_size': 42"):
        check(env_wrapper=[{ATARI_WRAPPER: {"screen_size": 42}}])


def test_known_keys() -> None:
    known = known_keys()
    assert {"teacher", "student_arch", "n_envs", "frame_stack", "policy_kwargs", "report_episodes"} <= {*known}
    assert not {"seed", "env", "verbose", "vec_env", "_init_setup_model"} & {*known}


SEARCH = ["--study-name", "students", "--n-evaluations", "2", "--eval-episodes", "2", "--no-optim-plots", "-n", "256"]


@pytest.mark.slow
def test_two_processes_search_one_study(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"teacher:{str(teacher)!r}", "check_teacher:False", "n_envs:4", "learning_starts:64", "report_episodes:0"]
    command = ["train", "--algo", "qpd", "--env", ENV, "--device", "cpu", "-optimize"]
    command += ["--n-trials", "2", "--storage", "study.log", *SEARCH, "-params", *given]
    options: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "sb3_qpd.zoo", *command], **options) as other, inside(tmp_path):
        while not Path("study.log").exists() and other.poll() is None:
            time.sleep(0.05)  # the other process has to import torch, and this one would be done by then
        assert main(["zoo", *command]) == 0
        outputs = [capsys.readouterr().out, other.communicate(timeout=900)[0]]
    assert other.returncode == 0, outputs
    assert any("Number of finished trials:  4" in output for output in outputs)
    assert all("Return against size (students that no smaller one beats):" in output for output in outputs)
    assert not (tmp_path / "logs" / "qpd" / f"{ENV}_1").exists()  # RL Zoo leaves an empty one, which enjoy then takes
    reports = sorted((tmp_path / "logs" / "qpd").glob("report_*.csv"))
    assert reports and "user_attrs_bytes" in reports[-1].read_text().splitlines()[0]
    # the parameters of a trial, of the first one too, come back
    params = {"teacher": str(teacher)}
    arguments = ["-n", "64", "--storage", "study.log", "--study-name", "students", "--trial-id", "0"]
    with inside(tmp_path):
        import optuna

        backend = optuna.storages.journal.JournalFileBackend("study.log")
        trials = optuna.load_study(study_name="students", storage=optuna.storages.JournalStorage(backend)).trials
    train(tmp_path, *arguments, params=params)
    student = QPDDistiller.load(tmp_path / "logs" / "qpd" / f"{ENV}_1" / f"{ENV}.zip", device="cpu")
    first = trials[0].params
    assert student.policy.arch == make_arch(first["student_arch"], first["weight_bits"], first["activation_bits"])
    assert student.critic_coef == first["critic_coef"] and student.transition == first["transition"]
    assert student.lr_schedule(1.0) == pytest.approx(first["learning_rate"])
    finished = [trial for trial in trials if "bytes" in trial.user_attrs]
    assert finished and all(200 < trial.user_attrs["bytes"] < 4_000 for trial in finished)


def test_a_smaller_search_space(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not searched is the entry's."""
    monkeypatch.setattr(
        "sb3_qpd.zoo.search.sample_qpd_params",
        lambda trial, *_: {"weight_bits": trial.suggest_categorical("weight_bits", [3])},
    )
    params = {"teacher": str(teacher), "student_arch": "nano", "activation_bits": 8}
    train(tmp_path, "-optimize", "--n-trials", "1", *SEARCH, params=params)
    policy = QPDDistiller(teacher, ENV, student_arch="nano", weight_bits=3, activation_bits=8, device="cpu").policy
    assert re.search(rf" {policy.to_integer().nbytes} .* - W3A- -", capsys.readouterr().out)


def test_the_front_of_a_study() -> None:
    import optuna

    from sb3_qpd.zoo.search import front_table, pareto_front

    students = [(300, 10.0), (200, 5.0), (400, 9.0), (200, 4.0), (500, 11.0), (None, 99.0)]
    params = {"student_arch": "nano", "weight_bits": 8, "activation_bits": 8, "transition": "blend"}
    trials = [
        optuna.trial.create_trial(
            value=value,
            params=params,
            distributions={key: optuna.distributions.CategoricalDistribution([choice]) for key, choice in params.items()},
            user_attrs={} if size is None else {"bytes": size},
        )
        for size, value in students
    ]
    front = pareto_front(trials)
    assert [(trial.user_attrs["bytes"], trial.value) for trial in front] == [(200, 5.0), (300, 10.0), (500, 11.0)]
    assert "200        5.00  nano W8A8 blend" in front_table(front)
    assert pareto_front([]) == []


def test_a_run_shorter_than_eval_freq_has_a_best_model(teacher: Path, tmp_path: Path) -> None:
    """The documentation's own commands: an entry of 20,000 steps, and RL Zoo's --eval-freq of 25,000."""
    train(tmp_path, "-n", "400", "--eval-freq", "25000", "--eval-episodes", "1", params={"teacher": str(teacher)})
    folder = tmp_path / "logs" / "qpd" / f"{ENV}_1"
    assert np.load(folder / "evaluations.npz")["timesteps"].tolist() == [100, 200, 300, 400]
    assert (folder / "best_model.zip").is_file()


def test_an_environment_of_the_current_folder(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--gym-packages finds it, a teacher's path needs no quotes, and later commands know whose environment it is."""
    lines = ["import gymnasium as gym", "from gymnasium.envs.classic_control.cartpole import CartPoleEnv"]
    lines.append("gym.register('ZooCart-v0', entry_point=CartPoleEnv, max_episode_steps=100)")
    (tmp_path / "zoo_cart_envs.py").write_text("\n".join(lines))
    entry = {"policy": "MlpPolicy", "teacher": "none", "n_timesteps": 64, "n_envs": 4, "student_arch": "nano"}
    (tmp_path / "own.yml").write_text(yaml.safe_dump({"ZooCart-v0": entry}))
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    bare = shutil.copy(teacher / f"{ENV}.zip", tmp_path / "my_teacher.zip")
    command = ["zoo", "train", "--algo", "qpd", "--env", "ZooCart-v0", "--gym-packages", "zoo_cart_envs", "--device", "cpu"]
    settings = ["-params", "teacher:my_teacher.zip", "check_teacher:False", "report_episodes:0"]
    path = [*sys.path]
    with inside(tmp_path):
        with pytest.raises(SystemExit):
            main([*command, *settings])
        assert "has no entry for ZooCart-v0. Write one into a file of your own" in capsys.readouterr().err
        assert main([*command, "--conf-file", "own.yml", *settings]) == 0
    assert Path(bare).is_file() and sys.path == path
    del gym.registry["ZooCart-v0"], sys.modules["zoo_cart_envs"]  # as in another process, in another folder
    folder = tmp_path / "logs" / "qpd" / "ZooCart-v0_1"
    assert main(["evaluate", str(folder), "--episodes", "2", "--no-progress"]) == 0
    assert "2 of zoo_cart_envs:ZooCart-v0" in capsys.readouterr().out
    assert main(["verify", str(folder / "student.npz"), "--observations", "20"]) == 0
    assert "policy in eval mode" in capsys.readouterr().out  # ZooCart-v0.zip is the student's
