"""Files from elsewhere in RL Zoo's programs: each attack runs with ``--trust-files``, and none without it."""

import contextlib
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import yaml
from bounds import bounded
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from teacher_files import Payload, edit_zip, serialized
from toys import QUICK

from sb3_qpd import QPDDistiller
from sb3_qpd.cli import main
from sb3_qpd.zoo import registered
from sb3_qpd.zoo.untrusted import TRUST, plain_value

ENV = "Pendulum-v1"
TRAIN = ["zoo", "train", "--env", ENV, "--device", "cpu", "--verbose", "0", "--eval-freq", "-1", "-n", "16", "-f", "logs"]
ENTRY = {"policy": "MlpPolicy", "n_timesteps": 16, "n_steps": 8, "batch_size": 8}


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> PPO:
    return PPO("MlpPolicy", ENV, n_steps=8, batch_size=8, seed=0, device="cpu")


def run(*arguments: str) -> None:
    """A program of RL Zoo, whatever becomes of it."""
    with contextlib.suppress(SystemExit, Exception):
        main([*arguments])


def command(mark: Path) -> str:
    return f"touch {mark}"


def entry(**settings: Any) -> Callable[[Path, PPO], list[str]]:
    """A ``--conf-file`` with a setting that holds the command."""

    def write(mark: Path, teacher: PPO) -> list[str]:
        text = yaml.safe_dump({ENV: {**ENTRY, **settings}}).replace("COMMAND", command(mark))
        Path("downloaded.yml").write_text(text)
        return [*TRAIN, "--algo", "ppo", "--conf-file", "downloaded.yml"]

    return write


def student_entry(mark: Path, teacher: PPO) -> list[str]:
    """The same for qpd, whose entries may have monitor_kwargs."""
    teacher.save("teacher.zip")
    settings: dict[str, Any] = {"policy": "MlpPolicy", "n_timesteps": 16, "teacher": "teacher.zip"}
    settings |= {"check_teacher": False, "report_episodes": 0}
    settings["monitor_kwargs"] = f"__import__('os').system('{command(mark)}')"
    Path("downloaded.yml").write_text(yaml.safe_dump({ENV: settings}))
    return [*TRAIN, "--algo", "qpd", "--conf-file", "downloaded.yml"]


def _run_folder(teacher: PPO, config: dict[str, Any], statistics: bytes | None) -> None:
    folder = Path("logs", "ppo", f"{ENV}_1")
    (folder / ENV).mkdir(parents=True)
    teacher.save(folder / f"{ENV}.zip")
    (folder / ENV / "args.yml").write_text(yaml.safe_dump({"env": ENV, "env_kwargs": None}))
    (folder / ENV / "config.yml").write_text(yaml.safe_dump({**ENTRY, **config}))
    if statistics is not None:
        (folder / ENV / "vecnormalize.pkl").write_bytes(statistics)


ENJOY = ["zoo", "enjoy", "--algo", "ppo", "--env", ENV, "-f", "logs", "--no-render", "-n", "4", "--device", "cpu"]


def enjoy_statistics(mark: Path, teacher: PPO) -> list[str]:
    _run_folder(teacher, {"normalize": True}, pickle.dumps(Payload(command(mark))))
    return ENJOY


def enjoy_normalize(mark: Path, teacher: PPO) -> list[str]:
    _run_folder(teacher, {"normalize": f"__import__('os').system('{command(mark)}')"}, None)
    return ENJOY


def enjoy_wrapper(mark: Path, teacher: PPO) -> list[str]:
    """A class that is called with the environment, and with arguments of the file's choice."""
    Path("evil_wrapper.py").write_text(f"import os\nos.system({command(mark)!r})\nclass Wrapper:\n    pass\n")
    _run_folder(teacher, {"env_wrapper": "evil_wrapper.Wrapper"}, None)
    return ENJOY


def continued(mark: Path, teacher: PPO) -> list[str]:
    """A student to go on with (-i) whose zip holds a pickle."""
    teacher.save("teacher.zip")
    QPDDistiller(teacher, ENV, **QUICK).save("honest.zip")
    edit_zip(Path("honest.zip"), Path("model.zip"), {"lr_schedule": serialized(pickle.dumps(Payload(command(mark))))})
    params = ["-params", "teacher:teacher.zip", "check_teacher:False", "report_episodes:0", "n_envs:1"]
    return [*TRAIN, "--algo", "qpd", "-i", "model.zip", *params]


EVALUATED = "__import__('os').system('COMMAND')"
ATTACKS: dict[str, Callable[[Path, PPO], list[str]]] = {
    "policy_kwargs": entry(policy_kwargs=EVALUATED),
    "policy_kwargs, in a dict": entry(policy_kwargs=f"dict(net_arch=[{EVALUATED}])"),
    "policy_kwargs, an attribute": entry(
        policy_kwargs="nn.Module.__init__.__globals__['__builtins__']['__import__']('os').system('COMMAND')"
    ),
    "normalize": entry(normalize=EVALUATED),
    "monitor_kwargs": entry(monitor_kwargs=EVALUATED),
    "replay_buffer_kwargs": entry(replay_buffer_kwargs=EVALUATED),
    "a callback that is called": entry(callback=[{"subprocess.Popen": {"args": "COMMAND", "shell": True}}]),
    "monitor_kwargs of a student": student_entry,
    "normalize in enjoy": enjoy_normalize,
    "statistics in enjoy": enjoy_statistics,
    "a wrapper in enjoy": enjoy_wrapper,
    "a student to go on with": continued,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_it_runs_only_where_the_user_trusts_the_file(
    name: str, teacher: PPO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ATTACKS[name](mark, teacher)
    run(*arguments)
    assert not mark.exists()
    run(*arguments, TRUST)
    deadline = time.monotonic() + 20  # Popen does not wait for its command
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mark.exists(), "not an attack: RL Zoo does not run it"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(net_arch=[64, 64])", {"net_arch": [64, 64]}),
        ("dict(log_std_init=-2, ortho_init=False)", {"log_std_init": -2, "ortho_init": False}),
        ("dict(activation_fn=nn.ReLU, net_arch=dict(pi=[256], vf=[256]))", None),
        ("{'a': (1, 2.5), 'b': dict(c=None)}", {"a": (1, 2.5), "b": {"c": None}}),
        ("[400, 300]", [400, 300]),
        ("True", True),
    ],
)
def test_the_forms_that_honest_files_have(text: str, value: Any) -> None:
    expected = {"activation_fn": th.nn.ReLU, "net_arch": {"pi": [256], "vf": [256]}} if value is None else value
    assert plain_value(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "open('x')",
        "dict(**open('x'))",
        "dict(a=open('x'))",
        "nn.modules",
        "nn.functional",
        "nn.Module",
        "th.os",
        "x",
        "lambda: 1",
        "[x for x in ()]",
        "(" * 5_000,
        "-" * 9_000 + "1",
        "9" * 9_000 + "**9",
        "1" * 20_000,
        "'a' * 10",
        "dict()()",
        "f'{1}'",
        "",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with bounded(10, 2**28), pytest.raises(ValueError, match=f"would run as code: refused.*{TRUST}"):
        plain_value(text)


def test_rl_zoos_own_entries_are_read() -> None:
    import rl_zoo3

    seen = 0
    for path in Path(rl_zoo3.__file__).parent.glob("hyperparams/*.yml"):
        for one in yaml.safe_load(path.read_text()).values():
            for key in ("policy_kwargs", "normalize", "replay_buffer_kwargs", "monitor_kwargs"):
                if isinstance(one.get(key), str):
                    assert isinstance(plain_value(one[key]), dict), (path, one[key])
                    seen += 1
    assert seen > 50


def test_statistics_are_those_of_the_file(tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env(ENV, 2), gamma=0.9, clip_reward=3.0, norm_reward=True)
    env.seed(0)
    env.reset()
    for _ in range(20):
        env.step(np.zeros((2, 1)))
    env.save(str(tmp_path / "v.pkl"))
    pickled = VecNormalize.load(str(tmp_path / "v.pkl"), make_vec_env(ENV, 2))
    with registered():
        read = VecNormalize.load(str(tmp_path / "v.pkl"), make_vec_env(ENV, 2))
    assert VecNormalize.load.__module__.startswith("stable_baselines3")  # as before
    for name in ("gamma", "clip_reward", "clip_obs", "epsilon", "norm_obs", "norm_reward", "training"):
        assert getattr(read, name) == getattr(pickled, name)
    for one, other in ((read.obs_rms, pickled.obs_rms), (read.ret_rms, pickled.ret_rms)):
        for name in ("mean", "var", "count"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_array_equal(read.normalize_obs(observations), pickled.normalize_obs(observations))
    with registered(), pytest.raises(ValueError, match=r"statistics of shape \(3,\), the environment's have \(4,\)"):
        VecNormalize.load(str(tmp_path / "v.pkl"), make_vec_env("CartPole-v1", 1))


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))


# To the base of 60 a number takes the square of its length. Keys of one hash take the square of their number
NUMBERS = ["a: 1" + ":1" * 2**18, "a: !!int 1" + ":1" * 30_000, "a: 0x" + "f" * 60_000]
KEYS = "{" + ", ".join(f"{i * (2**61 - 1)}: 1" for i in range(1, 2_000)) + "}"


@pytest.mark.slow
@pytest.mark.parametrize("text", [BOMB, "a: &a [*a]", "a: " + "[" * 5_000, "a: " + "x" * 2**21, *NUMBERS, KEYS])
def test_yaml_bombs(text: str, teacher: PPO, capsys: pytest.CaptureFixture[str]) -> None:
    Path("downloaded.yml").write_text(text)
    _run_folder(teacher, {}, None)
    Path("logs", "ppo", f"{ENV}_1", ENV, "config.yml").write_text(text)
    with registered(), bounded(20, 2**28, of_processor=True):
        for read in (yaml.safe_load, lambda file: yaml.load(file, Loader=yaml.UnsafeLoader)):
            with open("downloaded.yml") as file, pytest.raises(yaml.YAMLError):
                read(file)
    for arguments in ([*TRAIN, "--algo", "ppo", "--conf-file", "downloaded.yml"], ENJOY):
        with bounded(60, 2**30, of_processor=True), pytest.raises(SystemExit) as exit_info:
            main(arguments)
        assert exit_info.value.code == 2
        assert len(capsys.readouterr().err.splitlines()[-1]) < 1_000


SETTINGS: dict[str, dict[str, Any]] = {
    "frames": {"frame_stack": 10**9},
    "frames by name": {"frame_stack": "10"},
    "frames of a wrapper": {"vec_env_wrapper": [{"stable_baselines3.common.vec_env.VecFrameStack": {"n_stack": 10**9}}]},
    "a history": {"env_wrapper": [{"rl_zoo3.wrappers.HistoryWrapper": {"horizon": 10**9}}]},
    "a place": {"env_kwargs": {"log_dir": "/etc"}},
    "a number": {"env_kwargs": {"g": 10**9}},
    "a text": {"env_kwargs": "g"},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("program", ["enjoy", "record_video"])
def test_settings_of_a_run_folder(name: str, program: str, teacher: PPO, capsys: pytest.CaptureFixture[str]) -> None:
    """They would fill the memory, or write into another folder."""
    _run_folder(teacher, SETTINGS[name], None)
    args = {"env": ENV, "env_kwargs": SETTINGS[name].get("env_kwargs")}
    Path("logs", "ppo", f"{ENV}_1", ENV, "args.yml").write_text(yaml.safe_dump(args))
    arguments = [one for one in ENJOY if one not in ("--no-render", "--device", "cpu", "enjoy")]
    arguments = ENJOY if program == "enjoy" else ["zoo", program, *arguments[1:]]
    with bounded(60, 2**30, of_processor=True), pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "The run folder was refused" in capsys.readouterr().err


def test_honest_settings_and_typed_ones(teacher: PPO, capsys: pytest.CaptureFixture[str]) -> None:
    _run_folder(teacher, {"env_kwargs": {"g": 9.0}, "env_wrapper": "gymnasium.wrappers.ClipAction"}, None)
    assert main(ENJOY) == 0
    assert main([*ENJOY, "--env-kwargs", "g:2000.0"]) == 0


def test_a_download_that_would_fill_the_disk_is_not_unpacked(tmp_path: Path) -> None:
    """RL Zoo unpacks train_eval_metrics.zip of a repository."""
    with zipfile.ZipFile(tmp_path / "metrics.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for i in range(3):
            archive.writestr(f"{i}.csv", bytes(2**28))
    with registered(), zipfile.ZipFile(tmp_path / "metrics.zip") as archive:
        with pytest.raises(ValueError, match="metrics.zip unpacks to more than"):
            archive.extractall(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with zipfile.ZipFile(tmp_path / "metrics.zip") as archive:
        assert archive.extractall.__qualname__ == "ZipFile.extractall"  # as before


def test_links_in_a_run_are_not_published(teacher: PPO, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "id_rsa").write_text("secret")
    _run_folder(teacher, {}, None)
    config = Path("logs", "ppo", f"{ENV}_1", ENV, "config.yml")
    config.unlink()
    config.symlink_to(tmp_path / "id_rsa")
    with pytest.raises(SystemExit):
        main(["zoo", "push_to_hub", "--algo", "ppo", "--env", ENV, "-f", "logs", "-orga", "me", "--no-render"])
    assert "config.yml is a link, and may lead out of its folder. Nothing was published" in capsys.readouterr().err


@pytest.mark.parametrize("typed", [["--gym-packages", "my_wrappers"], ["-params", "env_wrapper:'my_wrappers.Own'"]])
def test_what_the_user_types_is_the_users(typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_wrappers.py").write_text("import gymnasium as gym\nclass Own(gym.Wrapper):\n    pass\n")
    Path("mine.yml").write_text(yaml.safe_dump({ENV: {**ENTRY, "env_wrapper": "my_wrappers.Own"}}))
    arguments = [*TRAIN, "--algo", "ppo", "--conf-file", "mine.yml"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert main([*arguments, *typed]) == 0
