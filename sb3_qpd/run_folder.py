"""
RL Zoo's run folders: which of the files is the teacher, and what they say of its environment.

    ppo/LunarLander-v2_1/LunarLander-v2.zip            (best_model.zip where that is missing)
    ppo/LunarLander-v2_1/LunarLander-v2/args.yml       the environment's id and keyword arguments
    ppo/LunarLander-v2_1/LunarLander-v2/config.yml     wrappers, frame stack, whether observations were normalized
    ppo/LunarLander-v2_1/LunarLander-v2/vecnormalize.pkl

The Hub's layout, where all of it lies in one folder, is read as well.
"""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from sb3_qpd.envs import EnvRecipe
from sb3_qpd.hub import NORMALIZATION_FILES, run_name
from sb3_qpd.reader import TeacherError, read_yaml

_MUJOCO = (
    *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum"),
    *("Pusher", "Reacher", "Swimmer", "Walker2d"),
)
# Ids of old teachers -> what runs today with the same observations and returns. The MuJoCo ones are still registered, but
# raise; -v4 has their observations. An id that is not registered and not here goes to its next registered version.
SUCCESSORS: dict[str, str] = {
    "BipedalWalker-v2": "BipedalWalker-v3",
    "BipedalWalkerHardcore-v2": "BipedalWalkerHardcore-v3",
    "LunarLander-v2": "LunarLander-v3",
    "LunarLanderContinuous-v2": "LunarLanderContinuous-v3",
    "Pendulum-v0": "Pendulum-v1",
    **{f"{name}-v{version}": f"{name}-v4" for name in _MUJOCO for version in (1, 2, 3)},
}
# Modules that have moved since, of wrappers that RL Zoo's configurations name
MOVED_WRAPPERS: dict[str, str] = {
    "utils.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "rl_zoo3.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
}
# What a file may say of an environment. Sizes multiply memory, repetitions multiply each other; a limit of steps does neither
MAX_NUMBER = 1_000
MAX_STEPS = 1_000_000
MAX_ITEMS = 64
MAX_PIXELS = 2**24  # of all the frames of an observation that wrappers resize
_STEPS = re.compile(r"max_(episode_)?steps|max_num_frames_per_episode|horizon|episode_length|time_limit")
_SKIPS = re.compile(r"frame_?skip|skip")
_REPETITIONS = re.compile(r"frame_?skip|skip|horizon|num_repeats|stack_size|delay")  # of wrappers
_PLACES = re.compile(r"(^|_)(log)?(dir|directory|file|folder|path|url)(_?names?|s)?$", re.IGNORECASE)  # what lies outside
_WORDS = re.compile(r"[\w +-]{0,100}")  # no paths, addresses, or modules


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
            check_foreign(recipe)
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


def running_id(env_id: str) -> str | None:
    """
    :param env_id: from a file: it is looked up, and no module that it names (``module:Id-v0``) is imported
    :return: the id under which that environment runs today, ``None`` if there is none
    """
    env_id = SUCCESSORS.get(env_id, env_id)
    if env_id in gym.registry:
        return env_id
    parts = re.fullmatch(r"(.+)-v(\d{1,4})", env_id)
    if parts is None:
        return None
    name, version = parts.group(1), int(parts.group(2))
    same = [spec for spec in gym.registry.values() if f"{spec.namespace or ''}/{spec.name}".lstrip("/") == name]
    newer = [spec.version for spec in same if spec.version is not None and spec.version > version]
    return f"{name}-v{min(newer)}" if newer else None


def check_foreign(recipe: EnvRecipe) -> None:
    """
    Refuse what a file must not ask of an environment: to take memory or time without bound, to open files, to import modules.
    Environments trust their caller, who is a stranger here; what a user passes himself is not looked at.

    :param recipe: from a file
    """
    if ":" in recipe.env_id:
        raise ValueError(f"The environment {_shown(recipe.env_id)} would import a module: a file may name a plain id.")
    settings = [recipe.env_kwargs, *(kwargs for _, kwargs in recipe.env_wrappers)]
    if not all(isinstance(kwargs, dict) for kwargs in settings):
        raise ValueError("Expected settings by keyword for the environment and its wrappers.")
    if len(settings) > MAX_ITEMS or max(map(len, settings)) > MAX_ITEMS:
        raise ValueError(f"A file may name {MAX_ITEMS - 1} wrappers with {MAX_ITEMS} settings each: it names more.")
    of_env, *of_wrappers = ([*kwargs.items()] for kwargs in settings)
    in_wrappers = [pair for pairs in of_wrappers for pair in pairs]
    for name, value in (*of_env, *in_wrappers):
        items = value if isinstance(value, list | tuple) else [value]
        if len(items) > MAX_ITEMS or not all(_is_harmless(name, one) for one in items):
            raise ValueError(
                f"The setting {_shown(name)}: {_shown(value)} of the environment is not taken from a file. Expected numbers "
                f"up to {MAX_NUMBER} (of steps 1 to {MAX_STEPS}), words that name no file, lists of {MAX_ITEMS} of these, and "
                "no window."
            )
    repetitions = [value for name, value in of_env if _SKIPS.fullmatch(name)]
    repetitions += [value for name, value in in_wrappers if _REPETITIONS.fullmatch(name)]
    numbers = [value for value in repetitions if isinstance(value, int | float)]
    if (product := recipe.frame_stack * math.prod(max(1, value) for value in numbers)) > MAX_NUMBER:
        raise ValueError(f"Frames, skips and horizons of a file multiply to {product}: expected at most {MAX_NUMBER}.")
    largest = max((_pixels(name, value) for name, value in in_wrappers), default=1)
    if product * largest > MAX_PIXELS:
        raise ValueError(
            f"{product} frames of {largest} pixels are not taken from a file: expected {MAX_PIXELS} pixels at most."
        )


def _is_harmless(name: Any, value: Any) -> bool:
    if not isinstance(name, str) or (name == "render_mode" and value not in (None, "rgb_array")):
        return False
    if isinstance(value, str):
        return _WORDS.fullmatch(value) is not None and _PLACES.search(name) is None
    if isinstance(value, int | float):
        if _STEPS.fullmatch(name):
            return 1 <= value <= MAX_STEPS
        if name == "seed":
            return 0 <= value < 2**32
        return abs(value) <= MAX_NUMBER or value in (math.inf, -math.inf)  # an honest end of a range
    return value is None


def _pixels(name: str, value: Any) -> int:
    """Of a picture that a wrapper makes, by its setting."""
    sides = [int(side) for side in (value if isinstance(value, list | tuple) else [value, value]) if _is_size(side)]
    return max(1, math.prod(sides)) if name in ("shape", "screen_size") else 1


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= MAX_NUMBER


def _shown(value: Any) -> str:
    """A number may have more digits than Python writes."""
    try:
        return repr(value)[:80]
    except ValueError:
        return "a number of thousands of digits"


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


def named_wrappers(setting: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    """RL Zoo's ``env_wrapper``: a name, a mapping of a name to its keyword arguments, or a list of those."""
    entries = setting if isinstance(setting, list) else [setting] if setting else []
    return tuple(pair for entry in entries for pair in _wrapper_pairs(entry))


def _wrapper_pairs(entry: Any) -> list[tuple[str, dict[str, Any]]]:
    pairs = entry.items() if isinstance(entry, dict) else [(entry, {})]
    for name, kwargs in pairs:
        if not isinstance(name, str) or not isinstance(kwargs or {}, dict):
            raise ValueError(f"Expected wrappers by name, got {str(entry)[:80]!r}.")
    return [(_moved(name), dict(kwargs or {})) for name, kwargs in pairs]


def _moved(name: str) -> str:
    name = MOVED_WRAPPERS.get(name, name)
    return re.sub(r"^utils\.wrappers\.", "rl_zoo3.wrappers.", re.sub(r"^gym\.wrappers\.", "gymnasium.wrappers.", name))
