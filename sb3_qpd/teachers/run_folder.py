"""
RL Zoo's run folders: which of the files is the teacher, and what they say of its environment.

    ppo/LunarLander-v2_1/LunarLander-v2.zip            (best_model.zip where that is missing)
    ppo/LunarLander-v2_1/LunarLander-v2/args.yml       the environment's id and keyword arguments
    ppo/LunarLander-v2_1/LunarLander-v2/config.yml     wrappers, frame stack, whether observations were normalized
    ppo/LunarLander-v2_1/LunarLander-v2/vecnormalize.pkl

The Hub's layout, where all of it lies in one folder, is read as well.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sb3_qpd.envs.limits import check_untrusted_recipe
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.envs.registry import SUCCESSORS, running_id
from sb3_qpd.envs.zoo_config import named_wrappers
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.zoo_yaml import read_yaml
from sb3_qpd.teachers.hub import NORMALIZATION_FILES, run_name


@dataclass(frozen=True)
class RunFolder:
    """
    A teacher's zip with the files that were found beside it.

    :param zip_path: the model
    :param folder: where its args.yml and config.yml lie, ``None`` for a bare zip
    :param args: contents of args.yml
    :param config: contents of config.yml
    """

    zip_path: Path
    folder: Path | None
    args: dict[str, Any]
    config: dict[str, Any]

    @property
    def env_name(self) -> str:
        """The environment's id in training, or the zip's name where nothing tells the id."""
        env_id = self.args.get("env")
        return env_id if isinstance(env_id, str) else self.zip_path.stem

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
        if self.folder is None or (not self.normalizes and "n_timesteps" in self.config):
            return None
        return next((self.folder / name for name in NORMALIZATION_FILES if (self.folder / name).is_file()), None)

    def make_recipe(self) -> EnvRecipe | None:
        """How to build the environment, ``None`` for a bare zip."""
        if "env" not in self.args:
            return None
        way_out = f"Build the environment of {self.zip_path} yourself and pass it as env= (or --env, --env-kwargs)"
        if self.config.get("vec_env_wrapper"):
            raise TeacherError(f"vec_env_wrapper in a config.yml is not supported. {way_out}")
        env_id = running_id(self.env_name)
        if env_id is None:
            raise TeacherError(
                f"The environment {self.env_name!r} is not registered here. Import the package that registers it, "
                "or build it yourself, and pass it as env="
            )
        if env_id != SUCCESSORS.get(self.env_name, self.env_name):
            warnings.warn(f"{self.env_name} is not registered any more: the teacher plays {env_id}, which may differ")
        env_kwargs = self.args.get("env_kwargs") or self.config.get("env_kwargs") or {}
        frame_stack = self.config.get("frame_stack") or (1 if self.config else 0)
        try:
            recipe = EnvRecipe(env_id, dict(env_kwargs), named_wrappers(self.config.get("env_wrapper")), int(frame_stack))
            check_untrusted_recipe(recipe)
        except (ValueError, TypeError, OverflowError) as error:
            raise TeacherError(f"{error} {way_out}") from error
        return recipe


def find_run(path: Path, together: bool = False) -> RunFolder:
    """
    :param path: a zip, or a run folder
    :param together: whatever lies beside the zip belongs to it, as in a repository; so it does in a folder that is given
    :return: the zip with whatever describes its environment
    """
    with_suffix = Path(f"{path}.zip")  # SB3 appends it too
    if with_suffix.is_file():
        zip_path = with_suffix
    else:
        zip_path, together = (_find_zip(path), True) if path.is_dir() else (path, together)
    run = zip_path.parent
    candidates = [run / zip_path.stem, run / run_name(run)]
    if together or _has(run, "args.yml", *NORMALIZATION_FILES):  # a config.yml alone may be anybody's
        candidates.append(run)
    folder = next((one for one in candidates if _has(one, "args.yml", "config.yml", *NORMALIZATION_FILES)), None)
    args, config = (_read_if_there(folder, name) for name in ("args.yml", "config.yml"))
    return RunFolder(zip_path, folder, args, config)


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def _find_zip(folder: Path) -> Path:
    for name in (f"{run_name(folder)}.zip", "best_model.zip"):
        if (folder / name).is_file():
            return folder / name
    others = sorted(one for one in folder.glob("*.zip") if not one.name.startswith("rl_model_"))
    if len(others) == 1:
        return others[0]
    found = ", ".join(one.name for one in others) or "no zip"
    raise TeacherError(
        f"{folder} is not a run folder of RL Zoo: expected {run_name(folder)}.zip or best_model.zip in it, found {found}. "
        "Give the run folder (such as ppo/LunarLander-v2_1) or the zip itself"
    )


def _read_if_there(folder: Path | None, name: str) -> dict[str, Any]:
    return read_yaml(folder / name) if folder is not None and (folder / name).is_file() else {}
