"""Real observations from a player's own episodes, and in batches that are worth a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks

from sb3_qpd.acting import act, batch_size, gives_masks, takes_masks
from sb3_qpd.envs import EnvRecipe
from sb3_qpd.evaluation import Player
from sb3_qpd.integer import IntegerModel

N_ENVS = 8
PIECE = 128  # observations that go through at once


@dataclass
class Jitter:
    """Mean |a_t - a_(t-1)| of Box actions within episodes."""

    total: float = 0.0
    n: int = 0
    _last: np.ndarray | None = None

    def add(self, actions: np.ndarray, dones: np.ndarray) -> None:
        """
        :param actions: one of each environment
        :param dones: episodes that these actions ended
        """
        if self._last is not None:
            change = np.abs(actions - self._last)
            self.total += float(np.nansum(change))
            self.n += int(np.isfinite(change).sum())
        self._last = actions.astype(np.float64)
        self._last[dones] = np.nan  # the next action begins an episode

    @property
    def mean(self) -> float:
        return self.total / max(self.n, 1)


def replay(player: Player, recipe: EnvRecipe, n_observations: int, seed: int, jitter: Jitter) -> Iterator[Any]:
    """The observations of :func:`replay_masked` alone."""
    for observations, _ in replay_masked(player, recipe, n_observations, seed, jitter):
        yield observations


def replay_masked(
    player: Player, recipe: EnvRecipe, n_observations: int, seed: int, jitter: Jitter
) -> Iterator[tuple[Any, np.ndarray | None]]:
    """
    Raw observations from a player's own episodes, batch after batch, and which actions were allowed, where it is told.

    :param player: who acts: the most likely actions, in Atari sampled ones
    :param recipe: where
    :param n_observations: in all
    :param seed: of the environment
    :param jitter: counts the actions
    """
    env = recipe.make_vec_env(min(N_ENVS, n_observations), seed=seed, training=False)
    masking = takes_masks(player) and gives_masks(env)
    try:
        observations: Any = env.reset()
        if isinstance(player, IntegerModel):
            check_shape(player, observations)
            player.set_random_seed(seed)
        while n_observations > 0:
            masks = get_action_masks(env) if masking else None
            yield _rows((observations, masks), slice(n_observations))
            n_observations -= batch_size(observations)
            actions = act(player, observations, not recipe.is_atari, masks)
            observations, _, dones, _ = env.step(actions)
            jitter.add(actions, dones)
    finally:
        env.close()


def _rows(batch: Any, rows: slice) -> Any:
    if isinstance(batch, tuple):
        return tuple(_rows(one, rows) for one in batch)
    if isinstance(batch, dict):
        return {key: value[rows] for key, value in batch.items()}
    return None if batch is None else batch[rows]


def _joined(batches: list[Any]) -> Any:
    if isinstance(batches[0], tuple):
        return tuple(_joined(list(ones)) for ones in zip(*batches, strict=True))
    if batches[0] is None:
        return None
    if isinstance(batches[0], dict):
        return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return np.concatenate(batches)


def pieces(batches: Iterable[Any], size: int = PIECE) -> Iterator[Any]:
    """
    The same observations in pieces of ``size`` and a last one: a call for each step of the environment would cost more than
    the arithmetic.

    :param batches: of any sizes; observations, or tuples of observations and masks
    :param size: of the pieces
    """
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(_joined([batch]))  # a copy: an environment may write its next observations over these
        while sum(map(_length, waiting)) >= size:
            together = _joined(waiting)
            yield _rows(together, slice(size))
            waiting = [_rows(together, slice(size, None))]
    if any(map(_length, waiting)):
        yield _joined(waiting)


def _length(batch: Any) -> int:
    return batch_size(batch[0] if isinstance(batch, tuple) else batch)


def check_shape(model: IntegerModel, observations: Any) -> None:
    """Refuse another environment's observations."""
    for part in model.parts:
        given = np.shape(observations if part.key is None else observations[part.key])[1:]
        if given != part.shape:
            raise ValueError(f"Expected observations of shape {part.shape}, got {given}: another environment's?")
