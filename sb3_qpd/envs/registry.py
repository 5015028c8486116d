"""Registered environments: by id, and by the id under which an old one runs today."""

from __future__ import annotations

import difflib
import importlib
import re

import gymnasium as gym


def find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """The registered environment, or an error that names the nearest ids."""
    if not isinstance(env_id, str):
        raise TypeError(f"An environment id must be a string, got {type(env_id).__name__}: {env_id!r}.")
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"Cannot import {module!r} for the environment {env_id!r}: {error}.") from error
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        near = difflib.get_close_matches(name, gym.registry, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else " Import its package first, or write package:Id-v0."
        raise ValueError(f"No environment {env_id!r}: {str(error).rstrip('.')}.{hint}") from error


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
