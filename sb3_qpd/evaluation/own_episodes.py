"""Real observations from a player's own episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.fitting import check_batch
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, take_rows
from sb3_qpd.players import Player, act, masks_for, seed_if_possible

N_ENVS = 8


@dataclass
class Jitter:
    """
    Mean |a_t - a_(t-1)| of Box actions within episodes.

    :param total: sum of the changes
    :param n: number of the changes
    """

    total: float = 0.0
    n: int = 0
    _last: np.ndarray | None = None

    def add(self, actions: np.ndarray, dones: np.ndarray) -> None:
        """
        Count the changes since the last actions.

        :param actions: one action of each environment
        :param dones: whether the action ended its episode
        """
        if self._last is not None:
            change = np.abs(actions - self._last)
            self.total += float(np.nansum(change))
            self.n += int(np.isfinite(change).sum())
        self._last = actions.astype(np.float64)
        self._last[dones] = np.nan  # the next action begins an episode

    @property
    def mean(self) -> float:
        """Mean change, zero where there was none."""
        return self.total / max(self.n, 1)


def replay(player: Player, env: EnvRecipe | VecEnv, n_observations: int, seed: int, jitter: Jitter) -> Iterator[Any]:
    """
    The observations of :func:`replay_masked` alone.

    :param player: see :func:`replay_masked`
    :param env: see :func:`replay_masked`
    :param n_observations: see :func:`replay_masked`
    :param seed: see :func:`replay_masked`
    :param jitter: see :func:`replay_masked`
    """
    for observations, _ in replay_masked(player, env, n_observations, seed, jitter):
        yield observations


def replay_masked(
    player: Player, env: EnvRecipe | VecEnv, n_observations: int, seed: int, jitter: Jitter
) -> Iterator[tuple[Any, np.ndarray | None]]:
    """
    Raw observations from a player's own episodes, batch after batch, with the actions that were allowed.

    :param player: takes its most probable actions, in Atari sampled ones
    :param env: recipe, or a vectorized environment, which stays open
    :param n_observations: number of observations in all
    :param seed: seed of the environment, where it takes one
    :param jitter: counts the changes of the actions
    :return: observations, and action masks where the player takes them, else ``None``
    """
    with _opened(env, n_observations, seed) as (vec_env, deterministic):
        ask_masks = masks_for(player, vec_env)
        observations: Any = vec_env.reset()
        if isinstance(player, IntegerModel):
            check_batch(player, observations)
            player.set_random_seed(seed)
        while n_observations > 0:
            masks = ask_masks()
            yield take_rows((observations, masks), slice(n_observations))
            n_observations -= batch_size(observations)
            actions = act(player, observations, deterministic, masks)
            observations, _, dones, _ = vec_env.step(actions)
            jitter.add(actions, dones)


@contextmanager
def _opened(env: EnvRecipe | VecEnv, n_observations: int, seed: int) -> Iterator[tuple[VecEnv, bool]]:
    """The vectorized environment, and whether players take their most probable actions in it."""
    if isinstance(env, VecEnv):
        seed_if_possible(env, seed)
        yield env, not isinstance(env.unwrapped, AtariVecEnv)
        return
    built = env.make_vec_env(max(1, min(N_ENVS, n_observations)), seed=seed, training=False)
    try:
        yield built, env.deterministic
    finally:
        built.close()
