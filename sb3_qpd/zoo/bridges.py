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
from typing import Any

import huggingface_sb3
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from sb3_qpd.reader import ZooLoader, read_yaml

CARD_NAME = {"QPDDistiller": "QPD"}  # RL Zoo finds an algorithm on the Hub by the lower case of the name on the card
# of args.yml: folders of somebody's machine
_PATHS = ("tensorboard_log", "trained_agent", "optimization_log_path", "storage", "conf_file", "log_folder")


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
            mend(Path(folder_path))
        return upload(self, folder_path=folder_path, **kwargs)

    upload_folder._mends_students = True  # type: ignore[attr-defined]
    HfApi.upload_folder = upload_folder  # type: ignore[method-assign]


def mend(folder: Path) -> None:
    """
    Make a folder fit to be published: a teacher by its name, no other paths, commands that work.

    :param folder: what RL Zoo is about to upload
    """
    config = read_yaml(folder / "config.yml")
    if not isinstance(teacher := config.get("teacher"), str):
        return  # no student's
    name = _name_of(teacher, folder)
    args: dict[str, Any] = {
        key: "" if key in _PATHS and value else value for key, value in read_yaml(folder / "args.yml").items()
    }
    if isinstance(args.get("hyperparams"), dict) and "teacher" in args["hyperparams"]:
        args["hyperparams"] = {**args["hyperparams"], "teacher": name}
    (folder / "args.yml").write_text(yaml.safe_dump(args), encoding="utf-8")
    (folder / "config.yml").write_text(yaml.safe_dump({**config, "teacher": name}), encoding="utf-8")
    card = (folder / "README.md").read_text(encoding="utf-8").replace(teacher, name)
    card = re.sub(r"python -m rl_zoo3\.(\w+)", r"python -m sb3_qpd.zoo \1", card)
    card = card.replace("pip install rl_zoo3", "pip install 'sb3_qpd[zoo]'")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _name_of(teacher: str, folder: Path) -> str:
    """A Hub id stays; of a path only what the student remembers: ``<algo>/<Env>``."""
    if not Path(teacher).expanduser().exists():
        return teacher
    data = next(folder.glob("qpd-*/data"), None)
    return "" if data is None else str(json.loads(data.read_text(encoding="utf-8")).get("teacher_name", ""))
