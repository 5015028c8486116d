"""How alike teacher and student act on the same observations: one number, and a table of actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_qpd.observations import pieces, take_rows
from sb3_qpd.players import Actor, Player
from sb3_qpd.spaces import action_head
from sb3_qpd.teachers.teacher import Teacher

MAX_CATEGORIES, MAX_DIMENSIONS = 32, 32  # of the table
QUANTILES = (5, 25, 50, 75, 95)  # of a dimension's errors, in percent


def actions_of(player: Player, observations: Any, episode_starts: np.ndarray | None = None) -> np.ndarray:
    """
    A player's most probable actions, without action masks.

    :param player: anything with SB3's ``predict``
    :param observations: raw observations, shape (n_observations, *observation_shape)
    :param episode_starts: the observations follow each other, and these begin episodes; ``None``: they do not follow
    :return: shape (n_observations, *action_shape)
    """
    if episode_starts is not None:
        act, rows = Actor(player), [slice(i, i + 1) for i in range(len(episode_starts))]
        return np.concatenate([act(take_rows(observations, row), episode_starts[row]) for row in rows])
    return np.concatenate([player.predict(part, deterministic=True)[0] for part in pieces([observations])])


def agreement(teacher: Teacher, student: Player, observations: Any) -> float:
    """
    How alike teacher and student act on the same observations, deterministically and without masks.

    :param teacher: the teacher
    :param student: the student
    :param observations: raw observations, shape (n_observations, *observation_shape)
    :return: see :func:`agreement_of`
    """
    return agreement_of(actions_of(teacher, observations), actions_of(student, observations), teacher.action_space)


def agreement_of(theirs: np.ndarray, ours: np.ndarray, space: spaces.Space) -> float:
    """
    How alike two lists of actions are.

    :param theirs: the teacher's actions, shape (n_actions, *action_shape)
    :param ours: the student's actions on the same observations
    :param space: space of the actions
    :return: share of equal actions (of equal dimensions, where there are several). For Box actions their mean absolute
        difference in units of the teacher's spread, see :func:`spread_of`
    """
    if not isinstance(space, spaces.Box):
        return float(np.mean(theirs == ours))
    return float(np.mean(np.abs(theirs.astype(np.float64) - ours) / spread_of(theirs, space)))


def spread_of(actions: np.ndarray, space: spaces.Box) -> np.ndarray:
    """
    The unit of a Box action's errors: the standard deviation of the teacher's actions, at most half the range.

    The bounds of a Box may lie far outside the actions in use (an unbounded action of Isaac Lab becomes ±100), so that half
    the range alone would make any error look small. A dimension that the teacher never moves has half the range as its unit.

    :param actions: the teacher's actions, shape (n_actions, *action_shape)
    :param space: space of the actions
    :return: unit of each dimension, shape (*action_shape)
    """
    spread = actions.std(axis=0, dtype=np.float64)
    half_range = (space.high.astype(np.float64) - space.low) / 2
    half_range = np.where(np.isfinite(half_range) & (half_range > 0), half_range, 1.0)
    is_moved = spread > 1e-6 * np.abs(actions.astype(np.float64)).max(axis=0)
    return np.where(is_moved, np.minimum(spread, half_range), half_range)


def agreement_table(theirs: np.ndarray, ours: np.ndarray, space: spaces.Space) -> list[dict[str, Any]]:
    """
    The agreement by action: a confusion matrix for each dimension of a discrete action, errors for each dimension of a Box.

    :param theirs: the teacher's actions, shape (n_actions, *action_shape)
    :param ours: the student's actions on the same observations
    :param space: space of the actions
    :return: a dict for each of the first 32 dimensions. ``counts``: row i, column j is how often the student chose j where the
        teacher chose i; left out beyond 32 categories. ``errors``: the quantiles 5, 25, 50, 75 and 95 % of student - teacher,
        and ``mean_abs``, in units of the teacher's spread
    """
    n = len(theirs)
    if isinstance(space, spaces.Box):
        errors = ((ours.astype(np.float64) - theirs) / spread_of(theirs, space)).reshape(n, -1).T[:MAX_DIMENSIONS]
        return [{"errors": np.percentile(one, QUANTILES), "mean_abs": np.abs(one).mean()} for one in errors]
    nvec = action_head(space).nvec
    pairs = zip(theirs.reshape(n, -1).T, ours.reshape(n, -1).T, nvec, strict=True)
    return [{"counts": _confusion(*pair)} for pair in list(pairs)[:MAX_DIMENSIONS] if pair[2] <= MAX_CATEGORIES]


def _confusion(theirs: np.ndarray, ours: np.ndarray, n_categories: int) -> np.ndarray:
    counts = np.zeros((n_categories, n_categories), dtype=int)
    np.add.at(counts, (theirs.astype(int), ours.astype(int)), 1)
    return counts
