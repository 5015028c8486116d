"""A command that is run in a downloaded folder, and its child processes, import nothing from there."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sb3_qpd import IntegerModel
from sb3_qpd.cli import main

MODULES = sorted(
    {*sys.stdlib_module_names, "numpy", "cloudpickle", "torch", "gymnasium", "stable_baselines3", "usercustomize"}
)

NEEDS_RAY = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")]
VEC_ENVS = ["subproc", pytest.param("ray", marks=NEEDS_RAY)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command as pip installs it: a script in a folder of its own."""
    path = tmp_path_factory.mktemp("bin") / "sb3-qpd"
    path.write_text("import sys\nif __name__ == '__main__':\n    from sb3_qpd.__main__ import main\n    sys.exit(main())\n")
    return path


@pytest.fixture
def downloaded(compressed: Path, tmp_path: Path) -> Path:
    """A student's folder with a module of every name; each leaves a mark where it is imported."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in ("student.npz", "student.zip", "report.json"):
        shutil.copy(compressed / name, folder)
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'a').write('{name} ')\nraise SystemExit(3)\n")
    return folder


def run(program: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(program), *arguments, "--no-progress"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def marks(folder: Path) -> str:
    mark = folder.parent / "mark"
    return mark.read_text() if mark.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("benchmark", ".", "--seconds", "0.01"), ("verify", "student.npz", "--observations", "5")]
)
def test_nothing_of_the_folder_is_imported(program: Path, downloaded: Path, arguments: tuple[str, ...]) -> None:
    done = run(program, downloaded, *arguments)
    assert not marks(downloaded) and done.returncode == 0, done.stderr


@pytest.mark.slow
def test_workers_of_a_search_import_nothing_either(program: Path, downloaded: Path, teacher: str) -> None:
    options = ["--env", "CartPole-v1", "--sizes", "nano", "--bits", "8", "--seeds", "1", "--timesteps", "128"]
    games = ["--workers", "1", "--episodes", "2", "--validation-episodes", "2", "--out", str(downloaded.parent / "out")]
    done = run(program, downloaded, "frontier", teacher, *options, *games, "--device", "cpu")
    assert not marks(downloaded) and done.returncode == 0, done.stderr
    assert (downloaded.parent / "out" / "report.html").exists()


def test_settings_of_matplotlib_are_not_the_folders(program: Path, tmp_path: Path) -> None:
    """Its backend may be any module, which would be imported. RL Zoo's programs import matplotlib."""
    (tmp_path / "matplotlibrc").write_text("backend: module://evil_backend\n")
    plots = [str(program), "zoo", "all_plots", "-a", "ppo", "-e", "CartPole-v1", "-f", "."]
    errors = []
    for arguments in (plots, ["-c", "from matplotlib import pyplot; pyplot.figure()"]):
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True)
        errors.append(done.stderr)
    assert ["evil_backend" in text for text in errors] == [False, True]


@pytest.mark.parametrize("vec_env", VEC_ENVS)
def test_environments_in_processes_import_nothing_either(program: Path, downloaded: Path, teacher: str, vec_env: str) -> None:
    options = ["--env", "CartPole-v1", "--vec-env", vec_env, "--n-envs", "2", "--timesteps", "64", "--episodes", "2"]
    quick = ["--no-check-teacher", "--device", "cpu", "--student-arch", "nano", "--out", str(downloaded.parent / "out")]
    done = run(program, downloaded, "compress", teacher, *options, *quick)
    assert not marks(downloaded) and done.returncode == 0, done.stderr


def test_the_modules_do_run_elsewhere(downloaded: Path) -> None:
    """What the command's children would do without care."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-c", "import cloudpickle"], cwd=downloaded, capture_output=True, env=env)
    assert "cloudpickle" in marks(downloaded)


@pytest.mark.parametrize("vec_env", VEC_ENVS)
def test_an_environment_of_the_users_choice_is_imported(program: Path, downloaded: Path, teacher: str, vec_env: str) -> None:
    """The folder comes last on the import path, so that its modules replace no installed ones."""
    for name in MODULES:
        if name not in ("numpy", "signal", "cloudpickle", "torch", "json"):
            (downloaded / f"{name}.py").unlink()  # such as winreg, which is missing here and looked for
    (downloaded / "my_envs.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Mine(CartPoleEnv):\n    pass\n"
        "gym.register('Mine-v0', entry_point='my_envs:Mine', max_episode_steps=50)\n"
    )
    options = ["--env", "my_envs:Mine-v0", "--vec-env", vec_env, "--n-envs", "2", "--timesteps", "64", "--episodes", "2"]
    quick = ["--no-check-teacher", "--device", "cpu", "--student-arch", "nano", "--out", str(downloaded.parent / "out")]
    quick.append("--no-page")  # the page of the other test imports what it needs
    done = run(program, downloaded, "compress", teacher, *options, *quick)
    assert done.returncode == 0, done.stderr
    assert not marks(downloaded)
    assert IntegerModel.load(downloaded.parent / "out").metadata["env"]["env_id"] == "my_envs:Mine-v0"


def test_the_variable_is_as_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (None, "1"):
        if value is None:
            monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONSAFEPATH", value)
        with pytest.raises(SystemExit):
            main(["--help"])
        assert os.environ.get("PYTHONSAFEPATH") == value
