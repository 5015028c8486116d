"""
RL Zoo's run folders: which of the files is the teacher, and what they tell about its environment.

    ppo/LunarLander-v2_1/LunarLander-v2.zip            (best_model.zip where that is missing)
    ppo/LunarLander-v2_1/LunarLander-v2/args.yml       the environment's id and keyword arguments
    ppo/LunarLander-v2_1/LunarLander-v2/config.yml     wrappers, frame stack, whether observations were normalized
    ppo/LunarLander-v2_1/LunarLander-v2/vecnormalize.pkl

The Hub's layout, where all files lie in one folder, is read as well. Statistics are found beside bare zips, too.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.envs.registry import SUCCESSORS, package_of, running_id
from sb3_qpd.envs.zoo_config import named_wrappers
from sb3_qpd.student_folder import INTEGER_MODEL
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.zoo_yaml import read_yaml
from sb3_qpd.teachers.hub import NORMALIZATION_FILES, run_name
from sb3_qpd.teachers.statistics_files import find_statistics
from sb3_qpd.text import plain


@dataclass(frozen=True)
class RunFolder:
    """
    A teacher's zip with the files that were found beside it.

    :param zip_path: path of the model
    :param folder: folder of its args.yml and config.yml, ``None`` for a bare zip
    :param args: contents of args.yml
    :param config: contents of config.yml
    :param statistics: path of the ``VecNormalize`` statistics that belong to the model
    :param other_statistics: files of statistics nearby that belong to other models, or whose owner is not known
    """

    zip_path: Path
    folder: Path | None
    args: dict[str, Any]
    config: dict[str, Any]
    statistics: Path | None = None
    other_statistics: tuple[Path, ...] = ()

    @property
    def env_name(self) -> str:
        """The environment's id in training, or the zip's name where nothing tells the id."""
        env_id = self.args.get("env")
        return plain(env_id if isinstance(env_id, str) else self.zip_path.stem, 100)

    @property
    def normalizes(self) -> bool:
        """Whether the teacher was trained on observations that ``VecNormalize`` had normalized."""
        normalize = self.config.get("normalize", False)
        if isinstance(normalize, dict):
            return bool(normalize.get("norm_obs", True))
        if isinstance(normalize, str):  # such as "dict(norm_obs=False)": RL Zoo would evaluate it
            return not re.search(r"norm_obs['\"]?\s*[=:]\s*False", normalize) and normalize.lower() != "false"
        return bool(normalize)

    @property
    def vecnormalize(self) -> Path | None:
        """The file of statistics, where there is one that was in use."""
        return None if not self.normalizes and "n_timesteps" in self.config else self.statistics

    def warn_of_unused_statistics(self) -> None:
        """Warn where statistics lie nearby and none of them belongs to this model by its name."""
        if self.vecnormalize is not None or not self.other_statistics or "n_timesteps" in self.config:
            return
        names = ", ".join(path.name for path in self.other_statistics[:5])
        warnings.warn(
            f"{self.zip_path.name} is used without normalization, but VecNormalize statistics lie nearby ({names} in "
            f"{self.other_statistics[0].parent}). If the teacher was trained with them, give vecnormalize=PATH"
        )

    def make_recipe(self) -> EnvRecipe | None:
        """
        The recipe of the environment that the teacher was trained on, ``None`` for a bare zip.

        :raises TeacherError: the environment is not registered, or the files ask for one that is not let through
        """
        if "env" not in self.args:
            return None
        way_out = f"Build the environment of {self.zip_path} yourself and pass it as env="
        if self.config.get("vec_env_wrapper"):
            raise TeacherError(f"vec_env_wrapper in a config.yml is not supported. {way_out}")
        env_id = running_id(self.env_name)
        if env_id is None:
            package = package_of(self.env_name)
            first = (
                "Import the package that registers it" if package is None else f"Install its package (pip install {package})"
            )
            raise TeacherError(
                f"The environment {self.env_name!r} is not registered here. {first}, or build it yourself, and pass it as env="
            )
        if env_id != SUCCESSORS.get(self.env_name, self.env_name):
            warnings.warn(f"{self.env_name} is not registered any more: the teacher plays {env_id}, which may differ")
        env_kwargs = self.args.get("env_kwargs") or self.config.get("env_kwargs") or {}
        frame_stack = self.config.get("frame_stack") or (1 if self.config else 0)
        try:
            wrappers = named_wrappers(self.config.get("env_wrapper"), self.env_name)
            recipe = EnvRecipe(env_id, dict(env_kwargs), wrappers, int(frame_stack))
            check_untrusted_recipe(recipe)
        except (ValueError, TypeError, OverflowError) as error:
            raise TeacherError(f"{error} {way_out}") from error
        return recipe


def find_run(path: Path, together: bool = False) -> RunFolder:
    """
    A model's zip with the files that describe its environment and its observations.

    :param path: a zip, or a run folder
    :param together: whether all files beside the zip belong to it, as in a repository. In a run folder they do
    """
    with_suffix = Path(f"{path}.zip")  # SB3 appends it too
    if with_suffix.is_file():
        zip_path = with_suffix
    else:
        zip_path, together = (_find_zip(path), True) if path.is_dir() else (path, together)
    run = zip_path.parent
    inner = [run / zip_path.stem, run / run_name(run)]
    candidates = list(inner)
    if together or _has(run, "args.yml", *NORMALIZATION_FILES):  # a config.yml alone may belong to another program
        candidates.append(run)
    folder = next((one for one in candidates if _has(one, "args.yml", "config.yml", *NORMALIZATION_FILES)), None)
    args, config = (_read_if_there(folder, name) for name in ("args.yml", "config.yml"))
    statistics, others = find_statistics(zip_path, list(dict.fromkeys([*inner, run])))
    return RunFolder(zip_path, folder, args, config, statistics, tuple(others))


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _find_zip(folder: Path) -> Path:
    for name in (f"{run_name(folder)}.zip", "best_model.zip"):
        if (folder / name).is_file():
            return folder / name
    others = sorted(one for one in folder.glob("*.zip") if not one.name.startswith("rl_model_"))
    if len(others) == 1:
        return others[0]
    if (folder / INTEGER_MODEL).is_file():
        raise TeacherError(f"{folder} is the folder of a student. Expected its teacher: a zip, a run folder of RL Zoo")
    found = ", ".join(one.name for one in others) or "no zip"
    raise TeacherError(
        f"{folder} is not a run folder of RL Zoo: expected {run_name(folder)}.zip or best_model.zip in it, found {found}. "
        "Give the run folder (such as ppo/LunarLander-v2_1) or the zip itself"
    )


def _read_if_there(folder: Path | None, name: str) -> dict[str, Any]:
    return read_yaml(folder / name) if folder is not None and (folder / name).is_file() else {}
