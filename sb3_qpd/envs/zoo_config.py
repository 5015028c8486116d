"""RL Zoo's words for an environment (``args.yml``, ``config.yml``, an entry of hyperparameters), and an :class:`EnvRecipe`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.envs.wrappers import ZeroContactForces

# Wrappers in RL Zoo's configurations whose module has moved since
MOVED_WRAPPERS: dict[str, str] = {
    "utils.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
    "rl_zoo3.wrappers.TimeFeatureWrapper": "sb3_contrib.common.wrappers.TimeFeatureWrapper",
}


# Old environments whose observations their successors lack -> the wrappers that restore them, the innermost first
OLD_OBSERVATIONS: dict[str, tuple[str, ...]] = {
    f"Ant-v{version}": (f"{ZeroContactForces.__module__}.{ZeroContactForces.__name__}",) for version in (1, 2, 3)
}


def named_wrappers(setting: Any, env_id: str = "") -> tuple[tuple[str, dict[str, Any]], ...]:
    """
    The wrappers that an RL Zoo configuration asks for, with today's names.

    :param setting: RL Zoo's ``env_wrapper``: a name, a mapping of a name to its keyword arguments, or a list of these
    :param env_id: environment in training. One of ``OLD_OBSERVATIONS`` gets the wrappers that restore its observations
    :return: pairs of a dotted name and keyword arguments, the innermost wrapper first
    """
    entries = setting if isinstance(setting, list) else [setting] if setting else []
    restoring = [(name, dict[str, Any]()) for name in OLD_OBSERVATIONS.get(env_id, ())]
    return (*restoring, *(pair for entry in entries for pair in _wrapper_pairs(entry)))


def _wrapper_pairs(entry: Any) -> list[tuple[str, dict[str, Any]]]:
    pairs = entry.items() if isinstance(entry, dict) else [(entry, {})]
    for name, kwargs in pairs:
        if not isinstance(name, str) or not isinstance(kwargs or {}, dict):
            raise ValueError(f"Expected wrappers by name, got {str(entry)[:80]!r}.")
    return [(_moved(name), dict(kwargs or {})) for name, kwargs in pairs]


def _moved(name: str) -> str:
    name = MOVED_WRAPPERS.get(name, name)
    return re.sub(r"^utils\.wrappers\.", "rl_zoo3.wrappers.", re.sub(r"^gym\.wrappers\.", "gymnasium.wrappers.", name))


def to_zoo_entry(recipe: EnvRecipe) -> dict[str, Any]:
    """
    The keys of an RL Zoo entry that build a recipe's environment.

    RL Zoo adds no wrapper of its own to a game, so ``AtariWrapper`` is always named.

    :param recipe: recipe of the environment
    """
    entry = {
        "env_wrapper": [{name: kwargs} if kwargs else name for name, kwargs in recipe.effective_wrappers],
        "frame_stack": recipe.frame_stack if recipe.frame_stack > 1 else None,
        "env_kwargs": recipe.env_kwargs,
    }
    return {key: value for key, value in entry.items() if value}


def from_zoo_entry(entry: Mapping[str, Any], env_id: str, env_kwargs: Mapping[str, Any]) -> EnvRecipe | None:
    """
    Recipe of the environment that RL Zoo builds from an entry.

    :param entry: hyperparameters with RL Zoo's ``frame_stack``, ``env_wrapper`` and ``vec_env_wrapper``
    :param env_id: a registered id
    :param env_kwargs: keyword arguments for ``gym.make``
    :return: ``None`` where the entry names wrappers that a recipe may not name
    """
    if entry.get("vec_env_wrapper"):
        return None
    try:
        wrappers = named_wrappers(entry.get("env_wrapper"))
        return EnvRecipe(env_id, dict(env_kwargs), wrappers, int(entry.get("frame_stack") or 1))
    except ValueError:
        return None
