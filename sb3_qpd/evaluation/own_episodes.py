"""Real observations from a player's own episodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.distillation.recordings import RecordedObservations
from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import EnvRecipe, EnvSource, build_env, check_env_type, make_recipe
from sb3_qpd.evaluation.fitting import check_batch
from sb3_qpd.failures import environment_failures
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, take_rows
from sb3_qpd.players import Actor, Player, masks_for, seed_if_possible

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


def replay(player: Player, env: EnvSource, n_observations: int, seed: int, jitter: Jitter) -> Iterator[Any]:
    """
    The observations of :func:`replay_masked` alone.

    :param player: see :func:`replay_masked`
    :param env: see :func:`replay_masked`
    :param n_observations: see :func:`replay_masked`
    :param seed: see :func:`replay_masked`
    :param jitter: see :func:`replay_masked`
    """
    for observations, *_ in replay_masked(player, env, n_observations, seed, jitter):
        yield observations


def replay_masked(
    player: Player, env: EnvSource, n_observations: int, seed: int, jitter: Jitter
) -> Iterator[tuple[Any, np.ndarray | None, np.ndarray | None]]:
    """
    Raw observations from a player's own episodes, batch after batch, with the actions that were allowed.

    :param player: takes its most probable actions, in Atari sampled ones
    :param env: environment, id, recipe, or a class or function that makes one. An environment that exists already stays open
    :param n_observations: number of observations in all
    :param seed: seed of the environment, where it takes one
    :param jitter: counts the changes of the actions
    :return: observations; action masks where the player takes them, else ``None``; what an integer model with a memory
        remembers then, see :meth:`~sb3_qpd.IntegerModel.trace`, else ``None``
    """
    with _opened(env, n_observations, seed) as (vec_env, deterministic):
        ask_masks, act = masks_for(player, vec_env), Actor(player, deterministic=deterministic)
        dones = np.ones(vec_env.num_envs, bool)
        with environment_failures(vec_env, "reset()"):
            observations: Any = vec_env.reset()
        if isinstance(player, IntegerModel):
            check_batch(player, observations)
            player.set_random_seed(seed)
        while n_observations > 0:
            masks, state = ask_masks(), None
            if isinstance(player, IntegerModel) and player.history > 1:
                state, _ = player.remember(observations, act.state, dones)
            yield take_rows((observations, masks, state), slice(n_observations))
            n_observations -= batch_size(observations)
            actions = act(observations, dones, masks)
            observations, _, dones, _ = vec_env.step(actions)
            jitter.add(actions, dones)


def recorded_steps(
    model: IntegerModel, recording: RecordedObservations, n_observations: int
) -> Iterator[tuple[Any, np.ndarray | None, np.ndarray | None]]:
    """
    Observations of recorded episodes, held-out ones where there are any. The student's actions
    change no observation: only a memory of actions sees them.

    :param model: the student
    :param recording: recorded observations
    :param n_observations: largest number of observations
    :return: see :func:`replay_masked`, several episodes side by side
    """
    recording.fit_student(model)
    state: Any = None
    for step in recording.side_by_side(recording.held_out or recording.learned):
        rows, before = step[:n_observations], None
        observations, masks = recording.take(rows)
        if model.history > 1:
            before, _ = model.remember(observations, None if state is None else (state[0][: len(rows)],))
            _, state = model.predict(observations, (before,), deterministic=True)
        yield observations, masks, before
        n_observations -= len(rows)
        if not n_observations:
            return


@contextmanager
def _opened(env: EnvSource, n_observations: int, seed: int) -> Iterator[tuple[VecEnv, bool]]:
    """The vectorized environment, and whether players take their most probable actions in it."""
    check_env_type(env)
    if not isinstance(env, str | EnvRecipe | gym.Env | VecEnv):
        with closing(build_env(env)) as built, _opened(built, n_observations, seed) as opened:
            yield opened
        return
    if isinstance(env, gym.Env):
        env = BaseAlgorithm._wrap_env(env, monitor_wrapper=False)
    if isinstance(env, VecEnv):
        seed_if_possible(env, seed)
        yield env, not isinstance(env.unwrapped, AtariVecEnv)
        return
    recipe = make_recipe(env)
    vec_env = recipe.make_vec_env(max(1, min(N_ENVS, n_observations)), seed=seed, training=False)
    try:
        yield vec_env, recipe.deterministic
    finally:
        vec_env.close()
