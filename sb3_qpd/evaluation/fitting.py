"""Whether observations fit a player: another environment's are refused by name, before a network fails on their shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.integer import IntegerModel
from sb3_qpd.players import ObservationRecorder

Shapes = dict[str | None, tuple[int, ...]]  # by key of a Dict observation, or of None


def check_env(player: Any, space: spaces.Space, env_name: str) -> None:
    """
    Refuse an environment with other observations. Axes of images may stand in any order, as ``predict`` transposes them.

    :param player: anything with SB3's ``predict``
    :param space: observation space of the environment
    :param env_name: name of the environment
    :raises ValueError: the player takes observations of other shapes
    """
    if isinstance(player, ObservationRecorder):
        player = player.policy
    expected, given = _shapes_of(player), _shapes_of_space(space)
    if all(sorted(shape) == sorted(given.get(key, (-1,))) for key, shape in expected.items()):
        return
    described = player.metadata.get("env") if isinstance(player, IntegerModel) else None
    home = described.get("env_id") if isinstance(described, Mapping) else getattr(player, "name", "")
    owner = f"{type(player).__name__} of {home}" if home else type(player).__name__
    raise ValueError(
        f"{env_name} gives observations of shape {_shown(given)}, but this {owner} takes {_shown(expected)}: it was made for "
        "another environment"
    )


def check_teacher_of(model: IntegerModel, teacher: Any) -> None:
    """
    Refuse a teacher of another environment than the student's.

    :param model: the student
    :param teacher: the teacher
    :raises ValueError: they take observations of different shapes
    """
    ours, theirs = _shapes_of(model), _shapes_of(teacher)
    if theirs and ours != theirs:
        raise ValueError(
            f"The teacher is another environment's: it takes observations of shape {_shown(theirs)}, this student of shape "
            f"{_shown(ours)}. Give the teacher that the student was distilled from"
        )


def check_batch(model: IntegerModel, observations: Any) -> None:
    """
    Refuse another environment's observations.

    :param model: the student
    :param observations: batch of raw observations
    :raises ValueError: their shape is not the student's
    """
    for part in model.parts:
        if part.key is not None and not (isinstance(observations, Mapping) and part.key in observations):
            raise ValueError(f"Expected observations as a dict with {part.key!r}: these are another environment's")
        given = np.shape(observations if part.key is None else observations[part.key])[1:]
        if given != part.shape:
            raise ValueError(f"Expected observations of shape {part.shape}, got {given}: another environment's?")


def _shapes_of(player: Any) -> Shapes:
    """Shapes of the observations that a player takes, empty where it does not say."""
    if isinstance(player, IntegerModel):
        return {part.key: part.shape for part in player.parts}
    space = getattr(player, "observation_space", None)
    return {} if space is None else _shapes_of_space(space)


def _shapes_of_space(space: spaces.Space) -> Shapes:
    if isinstance(space, spaces.Dict):
        return {key: one.shape or () for key, one in space.spaces.items()}
    return {None: space.shape or ()}


def _shown(shapes: Shapes) -> str:
    return str(shapes[None] if None in shapes else shapes)
