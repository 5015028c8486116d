"""Finding the ``VecNormalize`` statistics that belong to a model's zip."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from sb3_qpd.teachers.files.vecnormalize import is_vecnormalize

MAX_FILES = 1_000  # looked at in one folder
MAX_FOLDERS = 100  # looked at beside and below the model's own
_SUFFIXES = (".pkl", ".pickle", ".p", "")  # VecNormalize.save adds none
# vecnormalize, vec_normalize, VecNorm, vec-norm, normalizer, obs_rms, ... in a file's name
_WORD = re.compile(
    r"vec[_-]?norm(ali[sz]e[rd]?)?|norm(ali[sz](er|ation))?|obs[_-]?rms|env[_-]?stats?|stat(istic)?s", re.IGNORECASE
)
_STEPS = re.compile(r"(?:^|(?<=_))(\d+)(?:_?steps?)?$", re.IGNORECASE)


def find_statistics(zip_path: Path, folders: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """
    The statistics that belong to a model, by the names under which they are saved.

    For a model ``rl_model_2000_steps.zip`` these files are taken, the first ones before the others:

    1. a file with the model's own name: ``rl_model_vecnormalize_2000_steps.pkl`` (SB3's ``CheckpointCallback``),
       ``model_vecnormalize.pkl`` beside ``model.zip`` (Isaac Lab), ``vecnormalize_model.pkl``
    2. a file with its steps: ``vecnormalize_2000_steps.pkl``
    3. a file with its name without the steps: ``rl_model_vecnormalize.pkl``
    4. a file for all models of the folder: ``vecnormalize.pkl`` (RL Zoo), ``vec_normalize.pkl`` (SB3's examples, the Hub)
    5. whatever the file's name, where the folder holds one model and one pickle of a ``VecNormalize``, unless both names tell
       steps and these differ

    Upper and lower case, and ``_``, ``-`` or nothing between words, make no difference. The suffix may be missing.

    :param zip_path: path of the model
    :param folders: folders to look in; of two files with the same rank, the one in the first folder is taken
    :return: the file, ``None`` where none belongs to this model; and the other files of statistics, also those in the folders
        above, below and beside the model's
    """
    seen = [path for folder in folders for path in _statistics_in(folder)]
    ranked = [(rank, i, path) for i, path in enumerate(seen) if (rank := _rank(path.stem, zip_path.stem)) is not None]
    found = min(ranked)[2] if ranked else None
    if (
        found is None
        and len(seen) == 1
        and seen[0].parent == zip_path.parent
        and len(list(zip_path.parent.glob("*.zip"))) == 1
        and not _has_other_steps(seen[0].stem, zip_path.stem)
    ):
        found = seen[0]
    around = [
        path
        for folder in (zip_path.parent.parent, *_folders_of_statistics(zip_path.parent))
        for path in _statistics_in(folder)
        if _rank(path.stem, zip_path.stem) is not None
    ]
    return found, [path for path in dict.fromkeys([*seen, *around]) if path != found]


def _folders_of_statistics(folder: Path) -> list[Path]:
    """Folders below and beside a model's with a name such as ``stats``, without models of their own."""
    near = [entry for parent in (folder, folder.parent) for entry in _entries(parent)]
    named = sorted(Path(entry) for entry in near if _WORD.fullmatch(entry.name))
    folders = [one for one in named if one.is_dir() and one != folder]
    return [one for one in folders[:MAX_FOLDERS] if next(one.glob("*.zip"), None) is None]


def _statistics_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    paths = [Path(entry) for entry in _entries(folder) if not entry.is_dir(follow_symlinks=False)]
    files = [path for path in paths if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return [
        path
        for path in sorted(files)
        if is_vecnormalize(path) or re.fullmatch(r"vec[_-]?normali[sz]e\.pkl", path.name, re.IGNORECASE)
    ]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The first entries of a folder. Each entry knows its kind, so that folders beside a model cost no call of the system."""
    try:
        with os.scandir(folder) as entries:
            return list(islice(entries, MAX_FILES))
    except OSError:  # a folder that may not be read
        return []


def _rank(name: str, model: str) -> int | None:
    """How closely statistics belong to a model, by their names without suffix; ``None``: they do not."""
    if _WORD.search(name) is None:
        return None
    rest, own = _plain(_WORD.sub("", name, count=1)), _plain(model)
    if rest == own or (rest and rest in (re.sub("_?model$", "", own), re.sub("^model_?", "", own))):
        return 1
    steps = _STEPS.search(own)
    without_steps = _STEPS.sub("", own).strip("_") if steps else own
    rest_steps = _STEPS.search(rest)
    if rest_steps is not None:
        return 2 if steps is not None and rest_steps[1] == steps[1] and rest_steps[0] == rest else None
    if rest and steps and rest == without_steps:
        return 3
    return None if rest else 4


def _has_other_steps(name: str, model: str) -> bool:
    """Whether two names tell steps, and other ones."""
    own, other = (_STEPS.search(_plain(one)) for one in (model, name))
    return own is not None and other is not None and own[1] != other[1]


def _plain(name: str) -> str:
    """Lower case, with one ``_`` between words."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")
