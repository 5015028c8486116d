"""Each replacement works and is still needed. A test that fails here after an update of a package says which one can go."""

import argparse
import inspect
import re
from collections.abc import Iterator
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path
from pprint import pformat
from typing import Any

import huggingface_sb3
import pytest
import requests
import yaml

from sb3_qpd.teachers.files.zoo_yaml import read_yaml
from sb3_qpd.zoo import UNDECLARED, compat, registered


def source(package: str, file: str) -> str:
    """The text of an installed module."""
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")


def function(package: str, file: str, name: str) -> str:
    text = source(package, file)
    start = text.index(f"def {name}(")
    return text[start : text.find("\n    def ", start)]


@pytest.mark.parametrize("package", UNDECLARED)
def test_packages_that_rl_zoo_imports_without_requiring_them(package: str) -> None:
    needed = [one for one in requires("rl_zoo3") or () if re.match(rf"{package}\b", one) and "extra" not in one]
    assert not needed, f"rl_zoo3 requires {package} now: take it out of setup.py"
    text = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    required = re.search(r"^REQUIRED = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert required is not None and f'"{package}>=' in required[1]


def test_generate_metadata_is_still_missing() -> None:
    assert "generate_metadata" in source("rl_zoo3", "push_to_hub.py").split("class ")[0]
    text = source("huggingface_sb3", "push_to_hub.py")
    assert "def generate_metadata(" not in text, "delete compat.generate_metadata (but keep the name on the card)"


def test_a_missing_file_is_still_another_error() -> None:
    from huggingface_hub.errors import EntryNotFoundError

    assert "except HTTPError" in source("rl_zoo3", "load_from_hub.py"), "delete compat.missing_files"
    assert not issubclass(EntryNotFoundError, requests.exceptions.HTTPError), "delete compat.missing_files"


@pytest.mark.parametrize("file", ["utils.py", "enjoy.py", "record_video.py", "push_to_hub.py"])
def test_yaml_is_still_read_unsafely(file: str) -> None:
    assert "yaml.UnsafeLoader" in source("rl_zoo3", file), (
        f"rl_zoo3/{file} is safe: see whether the loaders of zoo/untrusted.py can go"
    )


def test_the_card_still_has_commands_without_qpd() -> None:
    assert "python -m rl_zoo3.enjoy --algo {algo_name}" in source("rl_zoo3", "push_to_hub.py"), (
        "see compat.sanitize_run_folder"
    )


def test_a_search_still_leaves_an_empty_run() -> None:
    text = function("rl_zoo3", "exp_manager.py", "setup_experiment")
    assert text.index("create_log_folder") < text.index("return None"), "StudentManager need not remove it any more"


def test_trial_zero_is_still_ignored() -> None:
    text = function("rl_zoo3", "exp_manager.py", "read_hyperparameters")
    assert "self.study_name and self.trial_id:" in text, "delete StudentManager._take_trial_zero"


def test_arguments_are_still_evaluated() -> None:
    assert "= eval(value)" in source("rl_zoo3", "utils.py"), "see whether compat.text_arguments can go"


def test_normalize_is_still_evaluated() -> None:
    assert 'eval(hyperparams["normalize"])' in source("rl_zoo3", "utils.py"), "see whether untrusted.plain_value can go"


@pytest.fixture(autouse=True)
def replaced() -> Iterator[None]:
    with registered(), registered():  # twice is once
        yield


def test_other_packages_are_as_before() -> None:
    """What a program of RL Zoo ran with does not stay in the process."""
    import rl_zoo3
    from rl_zoo3 import exp_manager

    with registered():
        places = [(one.owner, one.name) for one in compat.replacements()] + [(exp_manager, "ExperimentManager")]
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in places:
            patch.setattr(owner, name, "as before", raising=False)
        patch.delitem(rl_zoo3.ALGOS, "qpd")
        with pytest.raises(RuntimeError), registered():
            assert "qpd" in rl_zoo3.ALGOS and all(getattr(owner, name) != "as before" for owner, name in places)
            raise RuntimeError
        assert "qpd" not in rl_zoo3.ALGOS
        assert [getattr(owner, name) for owner, name in places] == ["as before"] * len(places)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("logs/ppo/CartPole-v1_1", "logs/ppo/CartPole-v1_1"),
        ("'logs/ppo/CartPole-v1_1'", "logs/ppo/CartPole-v1_1"),
        ("sb3/ppo-CartPole-v1", "sb3/ppo-CartPole-v1"),
        ("my agent.zip", "my agent.zip"),
        ("C:\\agents", "C:\\agents"),
        ("1e-3", 1e-3),
        ("dict(a=[1])", {"a": [1]}),
        ("None", None),
    ],
)
def test_arguments_without_quotes_are_text(text: str, value: Any) -> None:
    from rl_zoo3.utils import StoreDict

    parser = argparse.ArgumentParser()
    parser.add_argument("-params", nargs="+", action=StoreDict)
    assert parser.parse_args(["-params", f"teacher:{text}", "n_envs:4"]).params == {"teacher": value, "n_envs": 4}


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
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        get_saved_hyperparams(str(tmp_path))
    with pytest.raises(yaml.YAMLError):  # args.yml is read by RL Zoo itself
        yaml.load((tmp_path / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("text", ["__import__('os').mkdir('MARK')", "dict(norm_obs=__import__('os').mkdir('MARK'))", "[1"])
def test_a_hostile_normalize_runs_nothing(text: str, tmp_path: Path) -> None:
    from rl_zoo3 import get_saved_hyperparams

    text = text.replace("MARK", str(tmp_path / "mark"))
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"normalize": text}))
    with pytest.raises(ValueError, match="which RL Zoo would run as code: refused"):
        get_saved_hyperparams(str(tmp_path))
    assert not (tmp_path / "mark").exists()
    (tmp_path / "config.yml").write_text(yaml.safe_dump({"normalize": "dict(norm_obs=True, clip_obs=5.0)"}))
    assert get_saved_hyperparams(str(tmp_path))[0]["normalize_kwargs"] == {"norm_obs": True, "clip_obs": 5.0}


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
    compat.sanitize_run_folder(folder)
    assert read_yaml(folder / "config.yml") == {"policy": "MlpPolicy"}
    assert "# teacher: not on the Hub, pass -params teacher" in (folder / "config.yml").read_text()
    published = read_yaml(folder / "args.yml")
    assert published["seed"] == 3 and published["hyperparams"] == {}
    card = (folder / "README.md").read_text()
    assert "python -m sb3_qpd.zoo enjoy --algo qpd" in card and "pip install sb3_qpd" in card
    assert "'policy': 'MlpPolicy'" in card and "The teacher is not on the Hub" in card and "# Environment Arguments" in card
    everything = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    for text in (str(tmp_path), "/home/", "my_agent", "agents/ppo"):
        assert text not in everything


def test_a_teacher_of_the_hub_is_published_at_its_commit(tmp_path: Path) -> None:
    run_to_publish(tmp_path / "hub", "sb3/ppo-CartPole-v1", f"sb3/ppo-CartPole-v1@{COMMIT}")
    compat.sanitize_run_folder(tmp_path / "hub")
    assert read_yaml(tmp_path / "hub" / "config.yml")["teacher"] == f"sb3/ppo-CartPole-v1@{COMMIT}"
    assert f"'teacher': 'sb3/ppo-CartPole-v1@{COMMIT}'" in (tmp_path / "hub" / "README.md").read_text()


def test_nothing_is_uploaded_that_names_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path under a key that sanitize_run_folder does not know."""
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
        compat.sanitize_run_folder(folder)
        assert read_yaml(folder / "config.yml") == config
    assert (tmp_path / "ppo" / "README.md").read_text() == "python -m rl_zoo3.enjoy"
