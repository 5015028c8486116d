"""
Bridges over defects of the packages that RL Zoo's programs stand on. Each says what is wrong, and
``tests/test_zoo_bridges.py`` fails as soon as it can go.

Two more are no code: ``requests`` (imported by ``rl_zoo3.load_from_hub``) and ``pandas`` (by ``train -optimize``) are
required by nobody, so that our extra ``zoo`` requires them. And ``StudentManager`` bridges two of RL Zoo's own: the empty run
folder that ``-optimize`` leaves, and ``--trial-id 0``.
"""

import functools
import importlib
import json
import re
from pathlib import Path
from pprint import pformat
from typing import Any

import huggingface_sb3
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from sb3_qpd.publishing.paths import check_no_paths
from sb3_qpd.teachers.files.zoo_yaml import ZooLoader, read_yaml
from sb3_qpd.teachers.hub import parse_source, teacher_on_hub

CARD_NAME = {"QPDDistiller": "QPD"}  # RL Zoo finds an algorithm on the Hub by the lower case of the name on the card
# of args.yml: folders of somebody's machine
_PATHS = ("tensorboard_log", "trained_agent", "optimization_log_path", "storage", "conf_file", "log_folder")
_PASS_TEACHER = "-params teacher:\"'PATH'\""


def build() -> None:
    """All bridges, in this process; building them again changes nothing."""
    for bridge in (generate_metadata, missing_files, unsafe_yaml, model_card):
        bridge()


def generate_metadata() -> None:
    """``rl_zoo3.push_to_hub`` imports ``generate_metadata``, which sb3-team-hf-integration 3.2 has renamed and retyped."""
    # the name huggingface_sb3.push_to_hub is that of a function
    module = importlib.import_module("huggingface_sb3.push_to_hub")
    if hasattr(module, "generate_metadata"):
        return

    def generate(model_name: str, *args: Any) -> dict[str, Any]:
        return module._generate_metadata(CARD_NAME.get(model_name, model_name), *args).to_dict()

    module.generate_metadata = generate  # type: ignore[attr-defined]


def missing_files() -> None:
    """``rl_zoo3.load_from_hub`` expects requests' error for a missing ``vec_normalize.pkl``; huggingface_hub 1 has its own."""
    if hasattr(huggingface_sb3.load_from_hub, "__wrapped__"):
        return
    load = huggingface_sb3.load_from_hub

    @functools.wraps(load)
    def load_from_hub(*args: Any, **kwargs: Any) -> str:
        from requests.exceptions import HTTPError

        try:
            return load(*args, **kwargs)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    huggingface_sb3.load_from_hub = load_from_hub


def unsafe_yaml() -> None:
    """RL Zoo reads config.yml and args.yml with ``yaml.UnsafeLoader``, downloaded ones too: a file could run anything."""
    yaml.UnsafeLoader = ZooLoader  # type: ignore[misc, assignment]


def model_card() -> None:
    """
    ``rl_zoo3.push_to_hub`` publishes paths of this machine, and commands that do not know qpd; what it uploads is mended.
    """
    upload = HfApi.upload_folder
    if hasattr(upload, "_mends_students"):
        return

    @functools.wraps(upload)
    def upload_folder(self: HfApi, *, folder_path: str | Path, **kwargs: Any) -> Any:
        if (Path(folder_path) / "config.yml").is_file():
            sanitize_run_folder(Path(folder_path))
        return upload(self, folder_path=folder_path, **kwargs)

    upload_folder._mends_students = True  # type: ignore[attr-defined]
    HfApi.upload_folder = upload_folder  # type: ignore[method-assign]


def sanitize_run_folder(folder: Path) -> None:
    """
    Make a folder fit to be published: a teacher by its name on the Hub or none, no other paths, commands that work.

    :param folder: what RL Zoo is about to upload
    """
    config = read_yaml(folder / "config.yml")
    if not isinstance(teacher := config.get("teacher"), str):
        return  # no student's
    name = _name_on_hub(teacher, folder)
    config = _with_teacher(config, name)
    args: dict[str, Any] = {
        key: "" if key in _PATHS and value else value for key, value in read_yaml(folder / "args.yml").items()
    }
    if isinstance(args.get("hyperparams"), dict) and "teacher" in args["hyperparams"]:
        args["hyperparams"] = _with_teacher(args["hyperparams"], name)
    (folder / "args.yml").write_text(yaml.safe_dump(args), encoding="utf-8")
    left_out = "" if name else f"# teacher: not on the Hub, pass {_PASS_TEACHER}\n"
    (folder / "config.yml").write_text(yaml.safe_dump(config) + left_out, encoding="utf-8")
    card = _mended_card((folder / "README.md").read_text(encoding="utf-8"), config)
    (folder / "README.md").write_text(card, encoding="utf-8")
    check_no_paths(_published(folder), folder)


def _name_on_hub(teacher: str, folder: Path) -> str | None:
    """Of a path nothing is told; ``ppo/CartPole-v1``, as the student remembers one, would be somebody's repository."""
    data = next(folder.glob("qpd-*/data"), None)
    if data is not None and (known := json.loads(data.read_text(encoding="utf-8")).get("teacher_name")):
        return known if teacher_on_hub(known) else None
    return teacher if parse_source(teacher) else None


def _with_teacher(values: dict[str, Any], name: str | None) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key != "teacher"}
    return rest if name is None else {**rest, "teacher": name}


def _mended_card(card: str, config: dict[str, Any]) -> str:
    """The hyperparameters are written anew: RL Zoo breaks long texts into pieces, in which a path would not be found."""
    left_out = "" if "teacher" in config else f"\nThe teacher is not on the Hub: pass `{_PASS_TEACHER}`.\n"
    block = f"# Hyperparameters\n```python\n{pformat(config)}\n```\n{left_out}"
    card = re.sub(r"# Hyperparameters\n```python\n.*?\n```\n", lambda _: block, card, count=1, flags=re.DOTALL)
    card = re.sub(r"python -m rl_zoo3\.(\w+)", r"python -m sb3_qpd.zoo \1", card)
    return card.replace("pip install rl_zoo3", "pip install 'sb3_qpd[zoo]'")


def _published(folder: Path) -> dict[str, bytes]:
    """What ``upload_folder`` takes: all but the client's own notes."""
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in names.items() if name.parts[0] not in (".cache", ".git")}
