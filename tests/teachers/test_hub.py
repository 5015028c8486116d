"""The real client of the Hub, against a server on this machine."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from forked import run_forked
from hub_server import HubServer, point_client_at, running_hub
from huggingface_hub import constants
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qpd import QPDDistiller, TeacherError, load_teacher
from sb3_qpd.cli import main
from sb3_qpd.teachers.hub import HubSource, download, parse_source

CONFIG = b"!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - true\n  - - n_timesteps\n    - 1000.0\n"
ARGS = b"!!python/object/apply:collections.OrderedDict\n- - - env\n    - Pendulum-v1\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository as RL Zoo pushes one."""
    folder = tmp_path_factory.mktemp("run")
    env = VecNormalize(make_vec_env("Pendulum-v1", seed=0))
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, n_steps=64, seed=0, device="cpu").learn(64)
    model.save(folder / "ppo-Pendulum-v1.zip")
    env.save(folder / "vec_normalize.pkl")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "config.yml": CONFIG, "args.yml": ARGS, "train_eval_metrics.zip": b"PK", "README.md": b"# PPO"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server, and the client pointed at it with a cache of its own: what HF_ENDPOINT and HF_HOME do before an import."""
    with running_hub() as server:
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        yield server


def blobs(cache: Path) -> list[str]:
    """Whatever the cache holds of files' contents."""
    return sorted(path.name for path in cache.rglob("blobs/*"))


# --- what is a path, what is on the Hub ---
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("sb3/ppo-CartPole-v1", HubSource("sb3/ppo-CartPole-v1")),
        ("sb3/ppo-CartPole-v1@v1.0", HubSource("sb3/ppo-CartPole-v1", None, "v1.0")),
        ("sb3/ppo-CartPole-v1@refs/pr/1", HubSource("sb3/ppo-CartPole-v1", None, "refs/pr/1")),
        ("hub:sb3/ppo-CartPole-v1", HubSource("sb3/ppo-CartPole-v1")),
        ("hub:me/agents/best.zip", HubSource("me/agents", "best.zip")),
        ("hub:me/agents/runs/1/best.zip@main", HubSource("me/agents", "runs/1/best.zip", "main")),
        ("ppo.zip", None),
        ("models/ppo.zip", None),
        ("./models/ppo", None),
        ("../models/ppo", None),
        ("/models/ppo", None),
        ("~/ppo", None),
        ("rl-trained-agents/ppo/CartPole-v1_1", None),
        ("models\\ppo", None),
    ],
)
def test_what_a_source_is(source: str, expected: HubSource | None) -> None:
    assert parse_source(source) == expected
    if expected is not None:
        assert parse_source(str(expected)) == expected


def test_what_is_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_source("models/ppo") is not None
    Path("models").mkdir()
    Path("models/ppo.zip").touch()
    assert parse_source("models/ppo") is None and parse_source("hub:models/ppo") is not None


@pytest.mark.parametrize("source", ["hub:", "hub:ppo", "hub:/a/b", "hub:a/../b", "hub:a/b@"])
def test_sources_that_are_neither(source: str) -> None:
    with pytest.raises(TeacherError, match="Expected hub:owner/name"):
        parse_source(source)


# --- downloads ---
def test_a_teacher_with_all_that_belongs_to_it(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.publish("sb3/ppo-Pendulum-v1", run)
    teacher = load_teacher("sb3/ppo-Pendulum-v1")
    assert teacher.name == f"sb3/ppo-Pendulum-v1@{commit}" and teacher.algo == "ppo"
    assert teacher.recipe is not None and teacher.recipe.env_id == "Pendulum-v1"
    (tmp_path / "ppo-Pendulum-v1.zip").write_bytes(run["ppo-Pendulum-v1.zip"])
    (tmp_path / "vec_normalize.pkl").write_bytes(run["vec_normalize.pkl"])
    local = load_teacher(tmp_path / "ppo-Pendulum-v1.zip", vecnormalize=tmp_path / "vec_normalize.pkl")
    assert teacher.checksum == local.checksum and teacher.normalization is not None
    observations = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(teacher(observations).actor.numpy(), local(observations).actor.numpy())
    # the metrics of its training are not needed
    assert not any("train_eval_metrics" in request for request in hub.requests)


def test_a_student_remembers_repository_revision_and_checksum(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.publish("sb3/ppo-Pendulum-v1", run)
    student = QPDDistiller("sb3/ppo-Pendulum-v1", student_arch="nano", device="cpu", n_envs=1)
    student.save(tmp_path / "student.zip")
    loaded = QPDDistiller.load(tmp_path / "student.zip", device="cpu")
    assert loaded.teacher_name == f"sb3/ppo-Pendulum-v1@{commit}"
    assert loaded.teacher_checksum == load_teacher(loaded.teacher_name).checksum != ""


def test_revisions(hub: HubServer, run: dict[str, bytes]) -> None:
    zip_name = "ppo-Pendulum-v1.zip"
    first = hub.publish("sb3/ppo-Pendulum-v1", run)
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, device="cpu").save("other.zip")
    config = b"{normalize: false, n_timesteps: 1}"
    other = {zip_name: Path("other.zip").read_bytes(), "config.yml": config, "args.yml": b"env: CartPole-v1"}
    second = hub.publish("sb3/ppo-Pendulum-v1", other)
    hub.repositories["sb3/ppo-Pendulum-v1"].refs |= {"v1": first, "refs/pr/1": second}
    for revision, commit in (("v1", first), (first, first), ("main", second), ("refs/pr/1", second)):
        teacher = load_teacher(f"sb3/ppo-Pendulum-v1@{revision}")
        assert teacher.name.endswith(commit)
        assert teacher.recipe.env_id == ("Pendulum-v1" if commit == first else "CartPole-v1")
    # what a student remembers is a source that gives the same teacher, whatever becomes of the branch
    assert load_teacher(load_teacher("sb3/ppo-Pendulum-v1@v1").name).recipe.env_id == "Pendulum-v1"
    with pytest.raises(TeacherError, match=r"has no revision 'v9'. Expected a branch, a tag or a commit's whole hash"):
        load_teacher("sb3/ppo-Pendulum-v1@v9")


def test_one_file_of_several(hub: HubServer, run: dict[str, bytes]) -> None:
    model = run["ppo-Pendulum-v1.zip"]
    commit = hub.publish("me/agents", {"a.zip": model, "runs/b.zip": model, "runs/args.yml": ARGS})
    teacher = load_teacher("hub:me/agents/runs/b.zip")
    assert teacher.name == f"hub:me/agents/runs/b.zip@{commit}" and teacher.recipe.env_id == "Pendulum-v1"
    # the only zip of the top folder is meant where no file is named
    assert load_teacher("me/agents").name == f"hub:me/agents/a.zip@{commit}"
    hub.publish("me/agents", {"c.zip": model})
    with pytest.raises(TeacherError, match=r"several zips, none named agents.zip. Say which: hub:me/agents/a.zip or hub:"):
        load_teacher("me/agents")


def test_a_repository_of_run_folders(hub: HubServer, run: dict[str, bytes]) -> None:
    """A run folder as RL Zoo writes it: the statistics are in a folder with the environment's name."""
    folder, env = "logs/ppo/Pendulum-v1_1", "logs/ppo/Pendulum-v1_1/Pendulum-v1"
    files = {f"{env}/{name}": run[name] for name in ("args.yml", "config.yml")}
    files |= {f"{env}/vecnormalize.pkl": run["vec_normalize.pkl"]}
    files |= {f"{folder}/{name}": run["ppo-Pendulum-v1.zip"] for name in ("Pendulum-v1.zip", "best_model.zip")}
    hub.publish("me/logs", files)
    for name in ("Pendulum-v1.zip", "best_model.zip"):
        teacher = load_teacher(f"hub:me/logs/{folder}/{name}")
        assert teacher.normalization is not None and teacher.recipe.env_id == "Pendulum-v1"
    with pytest.raises(TeacherError, match=rf"its zips in folders. Say which: hub:me/logs/{folder}/Pendulum-v1.zip or hub:"):
        load_teacher("me/logs")


def test_what_is_missing(hub: HubServer, run: dict[str, bytes]) -> None:
    with pytest.raises(
        TeacherError, match=r"sb3/ppo-Cartpole: there is no such file or folder here, and http://127.* has no "
    ):
        load_teacher("sb3/ppo-Cartpole")
    hub.publish("me/agents", run)
    with pytest.raises(TeacherError, match=r"me/agents has no file gone.zip. What it has: http://127.*/me/agents/tree/main"):
        load_teacher("hub:me/agents/gone.zip")
    hub.publish("me/unnormalized", {name: data for name, data in run.items() if name != "vec_normalize.pkl"})
    with pytest.raises(TeacherError, match="trained on normalized observations .* there is no vecnormalize.pkl"):
        load_teacher("me/unnormalized")


def test_a_private_repository_needs_a_token(hub: HubServer, run: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.publish("me/ppo-Pendulum-v1", run)
    hub.repositories["me/ppo-Pendulum-v1"].private = True
    with pytest.raises(TeacherError, match="that you may read. .* log in with `hf auth login`, or set HF_TOKEN"):
        load_teacher("me/ppo-Pendulum-v1")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert load_teacher("me/ppo-Pendulum-v1").algo == "ppo"


def test_a_gated_repository(hub: HubServer, run: dict[str, bytes]) -> None:
    hub.publish("me/gated", run)
    hub.repositories["me/gated"].gated = True
    with pytest.raises(TeacherError, match="me/gated: Access to model me/gated is restricted.* ask for access.* log in with"):
        load_teacher("me/gated")


def test_a_student_is_no_teacher(hub: HubServer, tmp_path: Path) -> None:
    student = QPDDistiller(PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu"), student_arch="nano", device="cpu")
    student.save(tmp_path / "student.zip")
    hub.publish("me/lander", {"student.zip": (tmp_path / "student.zip").read_bytes()})
    with pytest.raises(TeacherError, match="holds a student of this package, .*sb3-qpd evaluate .*hub:owner/name/student.npz"):
        load_teacher("me/lander")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, "holds no zip.*It looks like a model of transformers"),
        ({"q-learning.pkl": b""}, "It looks like a pickled Q-table"),
        ({"ppo.cleanrl_model": b""}, "It looks like a model of CleanRL"),
        ({"SoccerTwos.onnx": b""}, "It looks like an exported network"),
        ({"README.md": b""}, "It holds README.md"),
        ({}, "It holds nothing"),
    ],
)
def test_repositories_of_something_else(hub: HubServer, files: dict[str, bytes], message: str) -> None:
    hub.publish("me/other", files)
    with pytest.raises(TeacherError, match=message):
        load_teacher("me/other")


def test_a_zip_of_something_else(hub: HubServer) -> None:
    hub.publish("me/other", {"other.zip": b"PK\x05\x06" + bytes(18)})
    with pytest.raises(TeacherError, match="not one saved by Stable-Baselines3.*holds nothing"):
        load_teacher("me/other")


# --- a bad network ---
def test_an_answer_that_breaks_off_is_fetched_on(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    hub.publish("sb3/ppo-Pendulum-v1", run)
    hub.cuts = 3
    assert load_teacher("sb3/ppo-Pendulum-v1").normalization is not None
    assert hub.cuts == 0 and not list((tmp_path / "cache").rglob("*.incomplete"))


def test_answers_that_always_break_off(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    hub.publish("sb3/ppo-Pendulum-v1", run)
    hub.cuts = 1_000
    with pytest.raises(TeacherError, match="could not be fetched from http://127.*Nothing incomplete was kept; try again"):
        load_teacher("sb3/ppo-Pendulum-v1")
    assert not blobs(tmp_path / "cache")
    hub.cuts = 0
    assert load_teacher("sb3/ppo-Pendulum-v1").algo == "ppo"


def test_a_server_that_stumbles_and_one_that_is_down(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    hub.publish("sb3/ppo-Pendulum-v1", run)
    hub.errors = 2
    assert load_teacher("sb3/ppo-Pendulum-v1").algo == "ppo"
    hub.publish("me/agents", {"agents.zip": run["ppo-Pendulum-v1.zip"]})
    hub.errors = 1_000
    with pytest.raises(
        TeacherError,
        match="there is no .*, and http://127.* cannot be reached .*500.*, and the cache .* has not all",
    ):
        load_teacher("me/agents")
    assert load_teacher("sb3/ppo-Pendulum-v1").algo == "ppo"  # from the cache


def test_a_damaged_cache(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    hub.publish("sb3/ppo-Pendulum-v1", run)
    load_teacher("sb3/ppo-Pendulum-v1")
    for name, size in (("ppo-Pendulum-v1.zip", 64), ("args.yml", 40)):
        blob = next((tmp_path / "cache").rglob(f"snapshots/*/{name}")).resolve()
        assert len(blob.name) == size
        content = blob.read_bytes()
        blob.write_bytes(content[:-1] + b"x")
        with pytest.raises(TeacherError, match=rf"{name} of .* is damaged: .*Delete .*{blob.name} and fetch it again"):
            load_teacher("sb3/ppo-Pendulum-v1")
        blob.unlink()
        load_teacher("sb3/ppo-Pendulum-v1")


def test_a_file_that_is_too_large_is_not_fetched(
    hub: HubServer, run: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("sb3/ppo-Pendulum-v1", run)
    monkeypatch.setattr("sb3_qpd.teachers.hub.MAX_FILE_BYTES", 1_000)
    with pytest.raises(TeacherError, match=r"ppo-Pendulum-v1.zip of .* has \d+ bytes, at most 1000 are read: refused"):
        load_teacher("sb3/ppo-Pendulum-v1")
    assert not blobs(tmp_path / "cache") and not any(request.startswith("GET") for request in hub.requests)


@pytest.mark.parametrize(
    "address, name",
    [
        ("https://huggingface.co/sb3/ppo-CartPole-v1", "sb3/ppo-CartPole-v1"),
        ("https://huggingface.co/sb3/ppo-CartPole-v1/", "sb3/ppo-CartPole-v1"),
        ("https://hf.co/sb3/x/tree/v1", "sb3/x@v1"),
        ("https://huggingface.co/sb3/x/blob/main/best.zip", "hub:sb3/x/best.zip@main"),
        ("http://huggingface.co/sb3/x/resolve/main/a/best.zip?download=true", "hub:sb3/x/a/best.zip@main"),
    ],
)
def test_addresses_of_pages_are_named_as_repositories(address: str, name: str) -> None:
    with pytest.raises(TeacherError, match=f"got the address .*. Write {name}$"):
        load_teacher(address)


def test_a_mistyped_run_folder_is_not_looked_for_on_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ppo" / "CartPole-v1_1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TeacherError, match=rf"No such file: ppo/CartPole-v1. .* In {tmp_path}/ppo there is no CartPole-v1, but"
    ):
        load_teacher("ppo/CartPole-v1")
    with pytest.raises(TeacherError, match=rf"No such file: sac/CartPole-v1. .* In {tmp_path} there is no sac"):
        load_teacher("sac/CartPole-v1")
    assert not hub.requests


def test_statistics_of_a_checkpoint(hub: HubServer, run: dict[str, bytes]) -> None:
    files = {"rl_model_9_steps.zip": run["ppo-Pendulum-v1.zip"], "rl_model_vecnormalize_9_steps.pkl": run["vec_normalize.pkl"]}
    hub.publish("me/agents", files)
    assert load_teacher("hub:me/agents/rl_model_9_steps.zip").normalization is not None


# --- without a network ---
def test_from_the_cache(hub: HubServer, run: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish("sb3/ppo-Pendulum-v1", run)
    hub.publish("me/agents", {"a.zip": run["ppo-Pendulum-v1.zip"]})
    for source in ("sb3/ppo-Pendulum-v1", "me/agents"):
        load_teacher(source)
    n_requests = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for source in ("sb3/ppo-Pendulum-v1", f"sb3/ppo-Pendulum-v1@{commit}", "me/agents", "hub:me/agents/a.zip"):
        assert load_teacher(source).algo == "ppo"
    assert load_teacher("sb3/ppo-Pendulum-v1").normalization is not None
    assert len(hub.requests) == n_requests
    with pytest.raises(TeacherError, match="HF_HUB_OFFLINE is set, and the cache .* has not all of it. Load it once with a"):
        load_teacher("sb3/ppo-CartPole-v1")


def test_a_cache_that_another_tool_filled(hub: HubServer, run: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not note what the Hub has not: no vecnormalize.pkl, no report.json."""
    hub.publish("sb3/ppo-Pendulum-v1", run)
    hub.publish("me/raw", {"raw.zip": run["ppo-Pendulum-v1.zip"], "config.yml": CONFIG.replace(b"true", b"false")})
    for name in ("sb3/ppo-Pendulum-v1", "me/raw"):
        huggingface_hub.snapshot_download(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_teacher("sb3/ppo-Pendulum-v1").normalization is not None
    assert load_teacher("me/raw").normalization is None


def test_half_of_a_teacher_in_the_cache_is_none(
    hub: HubServer, run: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its statistics it would see something that it was not trained on."""
    hub.publish("sb3/ppo-Pendulum-v1", run)
    huggingface_hub.hf_hub_download("sb3/ppo-Pendulum-v1", "ppo-Pendulum-v1.zip")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match="the cache .* has not all of it"):
        load_teacher("sb3/ppo-Pendulum-v1")


def test_no_server_answers(run: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as server:
        server.publish("sb3/ppo-Pendulum-v1", run)
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        load_teacher("sb3/ppo-Pendulum-v1")
    assert load_teacher("sb3/ppo-Pendulum-v1").algo == "ppo"
    with pytest.raises(TeacherError, match="cannot be reached .*refused.*, and the cache"):
        load_teacher("sb3/ppo-CartPole-v1")


def test_many_at_once(hub: HubServer, run: dict[str, bytes]) -> None:
    hub.publish("sb3/ppo-Pendulum-v1", run)
    names: list[str] = []
    threads = [
        threading.Thread(target=lambda: names.append(download(HubSource("sb3/ppo-Pendulum-v1")).name)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 4 and len(set(names)) == 1


# --- as a user has it ---
@pytest.mark.slow
def test_the_command_line_with_environment_variables(hub: HubServer, run: dict[str, bytes], tmp_path: Path) -> None:
    """The commands are processes: the client reads where the Hub and its cache are when it is imported."""
    commit = hub.publish("sb3/ppo-Pendulum-v1", run)
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}

    def command(*arguments: str, **more: str) -> str:
        done = run_forked("-m", "sb3_qpd", *arguments, "--no-progress", folder=tmp_path, **variables, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    quick = ["--timesteps", "300", "--episodes", "3", "--student-arch", "nano", "--no-check-teacher", "--no-page"]
    command("compress", "sb3/ppo-Pendulum-v1", "--out", "out", *quick)
    assert list((tmp_path / "home").glob("**/ppo-Pendulum-v1.zip")) and not (tmp_path / "cache").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["teacher_name"] == f"sb3/ppo-Pendulum-v1@{commit}" and report["env"]["env_id"] == "Pendulum-v1"
    assert f"nano student of sb3/ppo-Pendulum-v1@{commit}" in (tmp_path / "out" / "report.md").read_text()
    n_asked = len(hub.requests)
    assert "2 of Pendulum-v1" in command("evaluate", "sb3/ppo-Pendulum-v1", "--episodes", "2", HF_HUB_OFFLINE="1")
    assert len(hub.requests) == n_asked


def test_mistakes_on_the_command_line(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistake(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_info:
            main([*arguments, "--no-progress"])
        assert exit_info.value.code == 2
        return capsys.readouterr().err

    error = mistake("evaluate", "sb3/ppo-Nowhere-v1")
    assert re.fullmatch(r"sb3-qpd evaluate: error: sb3/ppo-Nowhere-v1: there is no such file .*HF_TOKEN\n", error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in mistake("compress", "sb3/ppo-Nowhere-v1", "--out", "out")
    assert "HF_HUB_OFFLINE is set" in mistake("evaluate", "hub:me/student/student.npz")
    assert not Path("out").exists()


def test_import_does_not_load_the_client() -> None:
    code = "import sys, sb3_qpd, sb3_qpd.teachers.hub; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
