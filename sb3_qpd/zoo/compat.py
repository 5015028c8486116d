"""
Replacements for what is broken or unsafe in the packages that RL Zoo's programs stand on.

Each function says what is wrong and where that is reported; ``tests/zoo/test_compat.py`` fails as soon as one can go. They are
in force while a program of RL Zoo runs (:func:`sb3_qpd.zoo.registered`).

Two defects of RL Zoo are handled elsewhere. ``StudentManager`` removes the empty run folder of ``-optimize`` (to be filed:
``setup_experiment`` creates the folder before it knows that there is no run) and takes ``--trial-id 0``
(DLR-RM/rl-baselines3-zoo#498: ```self.trial_id``` is tested for truth). And RL Zoo imports ``requests``, ``pandas`` and
``seaborn`` without requiring them (to be filed), so that this package requires them.
"""

import argparse
import functools
import importlib
import json
import re
import sys
from pathlib import Path
from pprint import pformat
from typing import Any, NamedTuple

import huggingface_sb3
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from rl_zoo3 import utils as zoo_utils

from sb3_qpd.publishing.paths import check_no_paths
from sb3_qpd.teachers.files.zoo_yaml import read_yaml
from sb3_qpd.teachers.hub import parse_source, teacher_on_hub
from sb3_qpd.zoo import untrusted

CARD_NAME = {"QPDDistiller": "QPD"}  # RL Zoo finds an algorithm on the Hub by the lower case of the name on the card
# keys of args.yml whose values are folders and files of the machine that trained
_PATHS = ("tensorboard_log", "trained_agent", "optimization_log_path", "storage", "conf_file", "log_folder")
_PASS_TEACHER = "-params teacher:PATH"


class Replacement(NamedTuple):
    """
    An attribute of another package, and what it is to be.

    :param owner: module or class
    :param name: the attribute
    :param value: its new value
    """

    owner: Any
    name: str
    value: Any


def replacements(trust_files: bool = False) -> list[Replacement]:
    """
    All replacements that the installed packages need.

    :param trust_files: let RL Zoo evaluate, unpickle and import what its files say
    """
    functions = [generate_metadata, missing_files, text_arguments, sanitized_upload, links_in_runs]
    return [one for function in (*functions, *([] if trust_files else [untrusted_files])) for one in function()]


def generate_metadata() -> list[Replacement]:
    """
    The function ``generate_metadata``, which ``rl_zoo3.push_to_hub`` imports from ``huggingface_sb3``.

    sb3-team-hf-integration 3.2 has renamed it, and returns another type. The ImportError is reported in
    huggingface/huggingface_sb3#54 (comment of 2026-01-13).
    """
    module = importlib.import_module("huggingface_sb3.push_to_hub")  # the name huggingface_sb3.push_to_hub is a function
    if hasattr(module, "generate_metadata"):
        return []

    def generate(model_name: str, *args: Any) -> dict[str, Any]:
        return module._generate_metadata(CARD_NAME.get(model_name, model_name), *args).to_dict()

    return [Replacement(module, "generate_metadata", generate)]


def missing_files() -> list[Replacement]:
    """
    ``huggingface_sb3.load_from_hub``, with the error that RL Zoo expects for a missing ``vec_normalize.pkl``.

    ``rl_zoo3.load_from_hub`` catches the HTTPError of ``requests``; huggingface_hub 1 raises its own. To be filed for RL Zoo:
    catch ``EntryNotFoundError``. DLR-RM/rl-baselines3-zoo#252 is the same for ``train_eval_metrics.zip``.
    """
    load = untrusted.original(huggingface_sb3.load_from_hub)

    @functools.wraps(load)
    def load_from_hub(*args: Any, **kwargs: Any) -> str:
        from requests.exceptions import HTTPError

        try:
            return load(*args, **kwargs)
        except EntryNotFoundError as error:
            raise HTTPError(str(error)) from error

    return [Replacement(huggingface_sb3, "load_from_hub", load_from_hub)]


def untrusted_files() -> list[Replacement]:
    """
    What RL Zoo evaluates, unpickles and imports of its files, downloaded ones too: read as data by
    :mod:`~sb3_qpd.zoo.untrusted`. Part of it is DLR-RM/rl-baselines3-zoo#505.
    """
    return [Replacement(*change) for change in untrusted.changes()]


def text_arguments() -> list[Replacement]:
    """
    ``StoreDict`` of RL Zoo's command line, which evaluates each value, so that text needs two pairs of quotes.

    ``-params teacher:logs/ppo/CartPole-v1_1`` was a NameError with its traceback. What cannot be evaluated is text here. To be
    filed: fall back to the text.
    """

    class StoreDict(argparse.Action):
        """Keep ``key:value`` arguments as a dict. A value that is no Python expression is text."""

        def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
            pairs = [argument.partition(":") for argument in values]
            setattr(namespace, self.dest, {key: _evaluated(value) for key, _, value in pairs})

    return [Replacement(zoo_utils, "StoreDict", StoreDict)]


def sanitized_upload() -> list[Replacement]:
    """
    ``HfApi.upload_folder``, which sanitizes the folder of a student before it is uploaded.

    ``rl_zoo3.push_to_hub`` publishes paths of the machine that trained, and a card whose commands do not know ``qpd``. The
    paths are to be filed for RL Zoo; the commands are right for its own algorithms.
    """
    upload = untrusted.original(HfApi.upload_folder)

    @functools.wraps(upload)
    def upload_folder(self: HfApi, *, folder_path: str | Path, **kwargs: Any) -> Any:
        if (Path(folder_path) / "config.yml").is_file():
            sanitize_run_folder(Path(folder_path))
        for name, content in _published(Path(folder_path)).items():
            print(f"sending {name}, {len(content)} bytes")
        return upload(self, folder_path=folder_path, **kwargs)

    return [Replacement(HfApi, "upload_folder", upload_folder)]


def links_in_runs() -> list[Replacement]:
    """
    ``rl_zoo3.utils.get_model_path``, which refuses a run to publish whose files are links.

    ``rl_zoo3.push_to_hub`` copies what they lead to, such as a key at home, and publishes it. To be filed for RL Zoo.
    """
    find = untrusted.original(zoo_utils.get_model_path)

    @functools.wraps(find)
    def get_model_path(*args: Any, **kwargs: Any) -> Any:
        name, model_path, log_path = find(*args, **kwargs)
        if sys.argv[0].endswith("push_to_hub"):
            inside = [path for pattern in ("*", "*/*") for path in Path(log_path).glob(pattern)]
            link = next((path for path in (Path(model_path), *inside) if path.is_symlink()), None)
            if link is not None:
                raise ValueError(
                    f"{link} is a link, and may lead out of its folder. Nothing was published. Put the file there"
                )
        return name, model_path, log_path

    return [Replacement(zoo_utils, "get_model_path", get_model_path)]


def sanitize_run_folder(folder: Path) -> None:
    """
    Make a student's folder fit to be published: the teacher by its name on the Hub or left out, no other paths, and a card
    whose commands work. A folder of another algorithm stays as it is.

    :param folder: what RL Zoo is about to upload
    :raises ValueError: a path of this machine would be published
    """
    config = read_yaml(folder / "config.yml")
    if not isinstance(teacher := config.get("teacher"), str):
        return
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
    card = _sanitized_card((folder / "README.md").read_text(encoding="utf-8"), config)
    (folder / "README.md").write_text(card, encoding="utf-8")
    check_no_paths(_published(folder), folder)


def _evaluated(text: str) -> Any:
    """The value of an expression with the names that RL Zoo's own ``eval`` has; any other text as it is."""
    try:
        return eval(text, {**vars(zoo_utils)})
    except Exception:  # whatever the text raises: it is typed by the user
        return text


def _name_on_hub(teacher: str, folder: Path) -> str | None:
    """
    The teacher's name on the Hub. A path has none: ``ppo/CartPole-v1``, as a student names a teacher from this machine, would
    be the repository of another user.
    """
    data = next(folder.glob("qpd-*/data"), None)
    if data is not None and (known := json.loads(data.read_text(encoding="utf-8")).get("teacher_name")):
        return known if teacher_on_hub(known) else None
    return teacher if parse_source(teacher) else None


def _with_teacher(values: dict[str, Any], name: str | None) -> dict[str, Any]:
    rest = {key: value for key, value in values.items() if key != "teacher"}
    return rest if name is None else {**rest, "teacher": name}


def _sanitized_card(card: str, config: dict[str, Any]) -> str:
    """The card with the hyperparameters written anew: RL Zoo wraps long texts, and a path would not be found in the pieces."""
    left_out = "" if "teacher" in config else f"\nThe teacher is not on the Hub: pass `{_PASS_TEACHER}`.\n"
    block = f"# Hyperparameters\n```python\n{pformat(config)}\n```\n{left_out}"
    card = re.sub(r"# Hyperparameters\n```python\n.*?\n```\n", lambda _: block, card, count=1, flags=re.DOTALL)
    card = re.sub(r"python -m rl_zoo3\.(\w+)", r"python -m sb3_qpd.zoo \1", card)
    return card.replace("pip install rl_zoo3", "pip install sb3_qpd")


def _published(folder: Path) -> dict[str, bytes]:
    """The files that ``upload_folder`` takes: all but the client's own notes."""
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {str(name): path.read_bytes() for name, path in names.items() if name.parts[0] not in (".cache", ".git")}
