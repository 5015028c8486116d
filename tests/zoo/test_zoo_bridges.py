"""
Each bridge works, and is still needed: a test that fails here after an update says which bridge can go.
"""

import inspect
import re
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from pprint import pformat
from typing import Any

import huggingface_sb3
import pytest
import yaml

from sb3_qpd.teachers.files.zoo_yaml import read_yaml
from sb3_qpd.zoo import UNDECLARED
from sb3_qpd.zoo import compat as bridges

requests = pytest.importorskip("requests", reason="the extra zoo is not installed")


def source(package: str, file: str) -> str:
    """The text of an installed module, as it is before any bridge."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")


def function(package: str, file: str, name: str) -> str:
    text = source(package, file)
    start = text.index(f"def {name}(")
    return text[start : text.find("\n    def ", start)]


# --- still needed? ---
@pytest.mark.parametrize("package", ["requests", "pandas", "seaborn"])
def test_packages_that_rl_zoo_imports_without_requiring_them(package: str) -> None:
    needed = [one for one in requires("rl_zoo3") or () if re.match(rf"{package}\b", one) and "extra" not in one]
    assert not needed, f"rl_zoo3 requires {package} now: take it out of the extra `zoo` in setup.py"
    extra = re.search(r'"zoo": \[(.*?)\]', (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8"))
    assert extra is not None and f'"{package}' in extra[1]
    assert package in UNDECLARED


def test_generate_metadata_is_still_missing() -> None:
    assert "generate_metadata" in source("rl_zoo3", "push_to_hub.py").split("class ")[0]
    text = source("huggingface_sb3", "push_to_hub.py")
    assert "def generate_metadata(" not in text, "delete bridges.generate_metadata (but keep the name on the card)"


def test_a_missing_file_is_still_another_error() -> None:
    from huggingface_hub.errors import EntryNotFoundError

    assert "except HTTPError" in source("rl_zoo3", "load_from_hub.py"), "delete bridges.missing_files"
    assert not issubclass(EntryNotFoundError, requests.exceptions.HTTPError), "delete bridges.missing_files"


@pytest.mark.parametrize("file", ["utils.py", "enjoy.py", "record_video.py", "push_to_hub.py"])
def test_yaml_is_still_read_unsafely(file: str) -> None:
    assert "yaml.UnsafeLoader" in source("rl_zoo3", file), f"rl_zoo3/{file} is safe: see whether bridges.unsafe_yaml can go"


def test_the_card_still_has_commands_without_qpd() -> None:
    assert "python -m rl_zoo3.enjoy --algo {algo_name}" in source("rl_zoo3", "push_to_hub.py"), (
        "see bridges.sanitize_run_folder"
    )


def test_a_search_still_leaves_an_empty_run() -> None:
    text = function("rl_zoo3", "exp_manager.py", "setup_experiment")
    assert text.index("create_log_folder") < text.index("return None"), "StudentManager need not remove it any more"


def test_trial_zero_is_still_ignored() -> None:
    text = function("rl_zoo3", "exp_manager.py", "read_hyperparameters")
    assert "self.study_name and self.trial_id:" in text, "delete StudentManager._take_trial_zero"


# --- and do they work? ---
@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    bridges.build()
    bridges.build()  # twice is once


def test_metadata_is_a_dict_with_the_algorithms_key() -> None:
    from huggingface_sb3.push_to_hub import generate_metadata  # type: ignore[attr-defined]

    metadata = generate_metadata("QPDDistiller", "CartPole-v1", 500.0, 0.0)
    assert isinstance(metadata, dict) and metadata["model-index"][0]["name"].lower() == "qpd"
    assert generate_metadata("PPO", "CartPole-v1", 500.0, 0.0)["model-index"][0]["name"] == "PPO"


def test_a_missing_file_is_the_error_that_rl_zoo_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert "repo_id" in inspect.signature(huggingface_sb3.load_from_hub).parameters
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")

    def offline(**_: object) -> str:  # the client's own answer where it has no file and no network
        raise LocalEntryNotFoundError("no such file here")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(requests.exceptions.HTTPError, match="no such file here"):
        huggingface_sb3.load_from_hub("me/ppo-CartPole-v1", "vec_normalize.pkl")


def test_a_hostile_config_runs_nothing(tmp_path: Path) -> None:
    from rl_zoo3.utils import get_saved_hyperparams

    (tmp_path / "config.yml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'mark'}']\n")
    with pytest.raises(yaml.YAMLError):
        get_saved_hyperparams(str(tmp_path))
    assert not (tmp_path / "mark").exists()


COMMIT = "0123456789" * 4


def run_to_publish(folder: Path, teacher: str, teacher_name: str, **more: Any) -> dict[str, Any]:
    """A folder as RL Zoo fills it before the upload; what its config.yml holds."""
    (folder / "qpd-CartPole-v1").mkdir(parents=True)
    (folder / "qpd-CartPole-v1" / "data").write_text(f'{{"teacher_name": "{teacher_name}"}}')
    config = {"teacher": teacher, "policy": "MlpPolicy", **more}
    args = {"env": "CartPole-v1", "tensorboard_log": "/home/me/tb", "log_folder": "/home/me/logs", "seed": 3}
    (folder / "config.yml").write_text(yaml.dump(config))
    (folder / "args.yml").write_text(yaml.dump({**args, "hyperparams": {"teacher": teacher}}))
    card = (
        f"python -m rl_zoo3.enjoy --algo qpd\npip install rl_zoo3\n\n## Hyperparameters\n```python\n{pformat(config)}\n```\n"
    )
    (folder / "README.md").write_text(card + "\n# Environment Arguments\n```python\n{}\n```\n")
    return config


@pytest.mark.parametrize(
    "teacher",
    [
        "HERE/teachers/ppo/CartPole-v1_1",
        "HERE/my_agent",  # a zip, without .zip
        "/home/alice/gone/my_agent",  # moved meanwhile
        "/home/alice/a folder/with a name/that pformat/breaks into/several pieces/because it is/so long/my_agent.zip",
        "agents/ppo",  # relative, moved meanwhile: looks like a Hub id
    ],
)
def test_what_is_published_names_no_teacher_that_lay_here(teacher: str, tmp_path: Path) -> None:
    (tmp_path / "teachers" / "ppo" / "CartPole-v1_1").mkdir(parents=True)
    (tmp_path / "my_agent.zip").touch()
    folder = tmp_path / "hub"
    run_to_publish(folder, teacher.replace("HERE", str(tmp_path)), "ppo/CartPole-v1")
    bridges.sanitize_run_folder(folder)
    assert read_yaml(folder / "config.yml") == {"policy": "MlpPolicy"}
    assert "# teacher: not on the Hub, pass -params teacher" in (folder / "config.yml").read_text()
    published = read_yaml(folder / "args.yml")
    assert published["seed"] == 3 and published["hyperparams"] == {}
    card = (folder / "README.md").read_text()
    assert "python -m sb3_qpd.zoo enjoy --algo qpd" in card and "pip install 'sb3_qpd[zoo]'" in card
    assert "'policy': 'MlpPolicy'" in card and "The teacher is not on the Hub" in card and "# Environment Arguments" in card
    everything = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    for text in (str(tmp_path), "/home/", "my_agent", "agents/ppo"):
        assert text not in everything


def test_a_teacher_of_the_hub_is_published_at_its_commit(tmp_path: Path) -> None:
    run_to_publish(tmp_path / "hub", "sb3/ppo-CartPole-v1", f"sb3/ppo-CartPole-v1@{COMMIT}")
    bridges.sanitize_run_folder(tmp_path / "hub")
    assert read_yaml(tmp_path / "hub" / "config.yml")["teacher"] == f"sb3/ppo-CartPole-v1@{COMMIT}"
    assert f"'teacher': 'sb3/ppo-CartPole-v1@{COMMIT}'" in (tmp_path / "hub" / "README.md").read_text()


def test_nothing_is_uploaded_that_names_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a key that sanitize_run_folder does not know."""
    from huggingface_hub import HfApi

    sent: list[str] = []
    monkeypatch.setattr(HfApi, "create_commit", lambda self, *args, **kwargs: sent.append("sent"))
    run_to_publish(tmp_path / "hub", "sb3/ppo-CartPole-v1", "", env_kwargs={"xml_file": "/home/alice/robot.xml"})
    with pytest.raises(ValueError, match=r"README.md names a path of this machine: /home/alice.* Nothing was published"):
        HfApi(endpoint="http://127.0.0.1:9").upload_folder(repo_id="me/qpd", folder_path=tmp_path / "hub")
    assert not sent


def test_a_hub_id_stays_and_other_algorithms_too(tmp_path: Path) -> None:
    for name, config in (("qpd", {"teacher": "sb3/ppo-CartPole-v1"}), ("ppo", {"policy": "MlpPolicy"})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yml").write_text(yaml.dump(config))
        (folder / "args.yml").write_text(yaml.dump({"tensorboard_log": ""}))
        (folder / "README.md").write_text("python -m rl_zoo3.enjoy")
        bridges.sanitize_run_folder(folder)
        assert read_yaml(folder / "config.yml") == config
    assert (tmp_path / "ppo" / "README.md").read_text() == "python -m rl_zoo3.enjoy"
