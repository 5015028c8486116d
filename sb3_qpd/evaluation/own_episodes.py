"""Real observations from a player's own episodes, and in batches that are worth a call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, take_rows
from sb3_qpd.players import Player, act, masks_for

N_ENVS = 8


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
    ask_masks = masks_for(player, env)
    try:
        observations: Any = env.reset()
        if isinstance(player, IntegerModel):
            check_shape(player, observations)
            player.set_random_seed(seed)
        while n_observations > 0:
            masks = ask_masks()
            yield take_rows((observations, masks), slice(n_observations))
            n_observations -= batch_size(observations)
            actions = act(player, observations, recipe.deterministic, masks)
            observations, _, dones, _ = env.step(actions)
            jitter.add(actions, dones)
    finally:
        env.close()


def check_shape(model: IntegerModel, observations: Any) -> None:
    """Refuse another environment's observations."""
    for part in model.parts:
        given = np.shape(observations if part.key is None else observations[part.key])[1:]
        if given != part.shape:
            raise ValueError(f"Expected observations of shape {part.shape}, got {given}: another environment's?")
