"""Entries of ``qpd.yml``, and what is checked in one before anything is built."""

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sb3_qpd.checks import did_you_mean
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.schedules import COSINE, LINEAR
from sb3_qpd.envs.atari import NATIVE_WRAPPER_KWARGS
from sb3_qpd.envs.recipe import ATARI_WRAPPER, MAX_FRAME_STACK, EnvRecipe
from sb3_qpd.envs.registry import running_id
from sb3_qpd.envs.zoo_config import named_wrappers
from sb3_qpd.teachers.teacher import Teacher
from sb3_qpd.text import plain
from sb3_qpd.zoo import MAX_N_ENVS, MAX_TIMESTEPS

NEEDED = {
    "policy": "MlpPolicy, or CnnPolicy for images",
    "n_timesteps": "a number, such as !!float 1e5",
    "teacher": "a Hub id such as sb3/ppo-CartPole-v1, a run folder or a zip",
}
# keys that RL Zoo reads itself
_RL_ZOO_KEYS = (
    *("n_timesteps", "n_envs", "env_kwargs", "env_wrapper", "frame_stack", "vec_env_wrapper", "callback", "monitor_kwargs"),
    "normalize",
)
_COMMAND_LINE_KEYS = ("env", "seed", "device", "verbose", "tensorboard_log", "vec_env")
REPORT_EPISODES = "report_episodes"


def read_entries() -> dict[str, Any]:
    """The entries of ``hyperparams/qpd.yml``, which lies inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    folders = [package / "hyperparams", package.parent / "hyperparams"]
    file = next((folder / "qpd.yml" for folder in folders if (folder / "qpd.yml").is_file()), None)
    if file is None:
        raise FileNotFoundError(f"qpd.yml is missing: expected it in {' or '.join(map(str, folders))}. Install sb3_qpd again")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def known_keys() -> list[str]:
    """The keys that an entry may have."""
    ours = [name for name in inspect.signature(QPDDistiller).parameters if not name.startswith("_")]
    return sorted({*ours, *_RL_ZOO_KEYS, REPORT_EPISODES} - {*_COMMAND_LINE_KEYS})


def check_entry(entry: Mapping[str, Any]) -> None:
    """
    Refuse an entry with unknown or missing keys, with values that cannot be right, or with ``normalize``.

    :param entry: the entry of the YAML file, with what the command line overwrites
    :raises ValueError: the key, what was expected, and what came
    """
    known = known_keys()
    for key in entry:
        if key not in known:
            hint = did_you_mean(key, known) or f" Known: {', '.join(known)}"
            raise ValueError(f"Unknown hyperparameter {key!r} of qpd.{hint}")
    for key, expected in NEEDED.items():
        if entry.get(key) is None:
            raise ValueError(f"The entry has no {key}: expected {expected}. Add it, or pass -params {key}:...")
    if not isinstance(entry["n_timesteps"], int | float):
        raise ValueError(
            f"n_timesteps must be a number, got {entry['n_timesteps']!r}: YAML 1.1 reads 1e5 as text, write !!float 1e5"
        )
    if not 1 <= entry["n_timesteps"] <= MAX_TIMESTEPS:
        raise ValueError(f"n_timesteps must be at least 1 and at most {MAX_TIMESTEPS:g}, got {entry['n_timesteps']}")
    _check_integers(entry)
    _check_learning_rate(entry.get("learning_rate"))
    if entry.get("normalize"):
        raise ValueError(
            "normalize is not for students: each side has its own statistics. The teacher's come from the vecnormalize.pkl of "
            "its run folder, the student's are fitted to the raw observations, frozen, and folded into its integers. A "
            "VecNormalize in the environment would show the teacher other observations. Remove normalize from the entry"
        )


def _check_integers(entry: Mapping[str, Any]) -> None:
    frames = entry.get("frame_stack")
    for key, value in (("n_envs", entry.get("n_envs", 1)), ("frame_stack", 1 if frames is None else frames)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{key} must be an integer of at least 1, got {value!r}")
    if (frames or 1) > MAX_FRAME_STACK:
        raise ValueError(f"frame_stack must be at most {MAX_FRAME_STACK}, got {frames}")
    if entry.get("n_envs", 1) > MAX_N_ENVS:
        raise ValueError(f"n_envs must be at most {MAX_N_ENVS}, got {entry['n_envs']}: each is a Python object, or a process")
    episodes = entry.get(REPORT_EPISODES, 0)
    if type(episodes) is not int or episodes < 0 or episodes == 1:
        raise ValueError(
            f"{REPORT_EPISODES} must be 0 (no report) or an integer of at least 2 (one has no interval), got {episodes!r}"
        )


def _check_learning_rate(rate: Any) -> None:
    if not isinstance(rate, str):
        return
    kind, mark, number = rate.partition("_")
    try:
        is_known = kind + mark in (LINEAR, COSINE) and 0 <= float(number) <= 1
    except ValueError:
        is_known = False
    if not is_known:
        raise ValueError(
            f"learning_rate must be a number (in YAML 1.1 with a point: 0.001), linear to zero ({LINEAR}0.001), or a cosine "
            f"to zero ({COSINE}0.001), got {rate!r}"
        )


def expand_env_id(teacher: Any, env_name: str) -> Any:
    """
    Put the environment's name into ``sb3/ppo-{env_id}``.

    :param teacher: the entry's teacher; anything but text stays as it is
    :param env_name: the environment's name as the Hub writes it
    """
    return teacher.replace("{env_id}", env_name) if isinstance(teacher, str) else teacher


def check_environment(teacher: Teacher, entry: Mapping[str, Any], env_id: str) -> None:
    """
    Refuse a frame stack or wrappers other than those that the teacher was trained with. Wrappers of any package are compared,
    by name and settings. A teacher of another environment is warned of.

    :param teacher: its ``config.yml`` names its wrappers; without one the shapes alone are compared, later
    :param entry: entry with RL Zoo's ``frame_stack``, ``env_wrapper`` and ``vec_env_wrapper``
    :param env_id: a registered id
    :raises ValueError: the student would see other observations than its teacher
    """
    if teacher.run is None:
        return
    trained_on, theirs = teacher.run.args.get("env"), teacher.run.config
    if isinstance(trained_on, str) and running_id(trained_on) != running_id(env_id):
        warnings.warn(
            f"The teacher {teacher.name} was trained on {plain(trained_on, 80)}, its student learns on {env_id}: is that "
            "intended?"
        )
    if not theirs or (entry.get("vec_env_wrapper") and not theirs.get("vec_env_wrapper")):
        return
    frames, ours = theirs.get("frame_stack") or 1, entry.get("frame_stack") or 1
    if frames != ours:
        raise ValueError(
            f"The teacher {teacher.name} was trained on {frames} stacked frames, this entry stacks {ours}. "
            f"Set frame_stack: {frames}"
        )
    for key in ("env_wrapper", "vec_env_wrapper"):
        expected, came = list(named_wrappers(theirs.get(key))), list(named_wrappers(entry.get(key)))
        if key == "env_wrapper" and not expected and frames > 1:
            expected = list(EnvRecipe(env_id, frame_stack=frames).effective_wrappers)  # old configurations leave it out
        if _without_rewards(expected) != _without_rewards(came):
            raise ValueError(
                f"The teacher {teacher.name} was trained with {key}: {_as_text(expected)}, this entry has {_as_text(came)}. "
                f"Set {key} to the teacher's (a student sees what its teacher saw)"
            )


def _without_rewards(wrappers: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The wrappers without the settings that only change rewards and where episodes end."""
    changes_nothing = [key for key, value in NATIVE_WRAPPER_KWARGS.items() if value is None]
    return [
        (name, {key: value for key, value in kwargs.items() if name != ATARI_WRAPPER or key not in changes_nothing})
        for name, kwargs in wrappers
    ]


def _as_text(wrappers: list[tuple[str, dict[str, Any]]]) -> str:
    return str([{name: kwargs} if kwargs else name for name, kwargs in wrappers] or "none")
