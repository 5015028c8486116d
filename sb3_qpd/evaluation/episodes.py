"""Evaluation of anything with SB3's ``predict``: whole episodes, raw returns, the same episodes for every contender."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from tqdm import tqdm

from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.evaluation.statistics import Evaluation
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import Observation, batch_size, copy_row, stack
from sb3_qpd.players import ObservationRecorder, Player, RandomPolicy, act, actor, masks_for

# Three disjoint ranges of seeds, each a million wide. The test range is touched once, for the row that is published
TRAIN_SEED = 0
VALIDATION_SEED = 1_000_000  # callbacks, searches, choosing a size or a checkpoint
TEST_SEED = 2_000_000


def evaluate(
    policy: Player | str,
    env: str | EnvRecipe | gym.Env | VecEnv,
    *,
    n_episodes: int = 100,
    seed: int = TEST_SEED,
    deterministic: bool = True,
    n_envs: int = 32,
    name: str = "",
    progress_bar: bool = False,
) -> Evaluation:
    """
    Play whole episodes and keep every raw return. Who plays takes raw observations and has no memory.

    - an id, recipe or plain environment: episode k of every contender starts from ``reset(seed=seed + k)``
    - an Atari id or recipe: game k of sub-environment i of ``AtariVecEnv``, the same number of games in each
    - a vectorized environment: the first episodes of each sub-environment after ``env.seed(seed)``

    No episode is cut off, and none is counted because it was short. Where the environment says which actions are allowed
    (``env.action_masks()``), a teacher that was trained with masks, its student and the random policy are told.

    :param policy: anything with SB3's ``predict`` (model, policy, teacher, integer model), or "random"
    :param env: where to play; what is built here is closed here
    :param n_episodes: how many
    :param seed: of the first episode, see ``VALIDATION_SEED`` and ``TEST_SEED``; seeds sampled actions as well
    :param deterministic: most likely actions, else sampled ones
    :param n_envs: how many episodes are played side by side
    :param name: of the contender
    :param progress_bar: show one on stderr
    :return: one return and length for each episode
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes must be at least 1, got {n_episodes}.")
    _check_player(policy, env)
    start = time.perf_counter()
    with _arena(env, seed, min(n_envs, n_episodes)) as (played, starts):
        name = name or ("random" if isinstance(policy, str) else type(policy).__name__)
        player = _random_policy(played, seed) if isinstance(policy, str) else policy
        with (
            _seeded_sampling(player, seed),
            tqdm(total=n_episodes, desc=name, unit="episode", disable=not progress_bar) as bar,
        ):
            if isinstance(played, VecEnv):
                returns, lengths = _play_vec_env(player, played, n_episodes, seed, deterministic, bar)
            else:
                returns, lengths = _play_seeded(player, played, n_episodes, seed, deterministic, bar)
    return Evaluation(name, returns, lengths, deterministic, seed, time.perf_counter() - start, starts)


def microseconds_per_action(policy: Player, observations: Observation, n_calls: int = 300) -> float:
    """
    Median time of ``predict`` for a single observation.

    :param policy: who acts
    :param observations: a batch to take them from, one after the other
    :param n_calls: how often; a tenth of them warms up beforehand
    """
    n_warm = max(1, n_calls // 10)
    times = []
    for call in range(n_warm + n_calls):
        observation = copy_row(observations, call % batch_size(observations))
        start = time.perf_counter_ns()
        policy.predict(observation, deterministic=True)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times[n_warm:])) / 1_000


@contextmanager
def _arena(env: str | EnvRecipe | gym.Env | VecEnv, seed: int, n_envs: int) -> Iterator[tuple[list[gym.Env] | VecEnv, str]]:
    """What is played on, and the description of how its episodes start."""
    if isinstance(env, VecEnv):
        normalize = unwrap_vec_normalize(env)
        if normalize is not None and normalize.training:
            raise ValueError("env is a VecNormalize that would learn from the evaluation: set env.training = False first.")
        yield env, ""
    elif isinstance(env, gym.Env):
        yield [env], f"{env.spec.id if env.spec else type(env.unwrapped).__name__}: episode k from reset(seed={seed} + k)"
    else:
        recipe = make_recipe(env)
        with _built(recipe, seed, n_envs) as built:
            how = f"episode k from reset(seed={seed} + k)"
            if recipe.is_atari:
                how = f"game k of sub-environment i of {n_envs}, seed {seed}"
            reproducible = recipe.is_atari or isinstance(built, list)
            yield built, f"{recipe.env_id}{recipe.env_kwargs or ''}: {how}" if reproducible else ""


@contextmanager
def _built(recipe: EnvRecipe, seed: int, n_envs: int) -> Iterator[list[gym.Env] | VecEnv]:
    """Plain environments, which take a seed for each episode; a vectorized one for Atari and for stacked frames."""
    if recipe.is_atari or recipe.frame_stack > 1:
        vec_env = recipe.make_vec_env(n_envs, seed=seed, training=False)
        try:
            yield vec_env
        finally:
            vec_env.close()
    else:
        envs = [recipe.make_env() for _ in range(n_envs)]
        try:
            yield envs
        finally:
            for env in envs:
                env.close()


@contextmanager
def _seeded_sampling(player: Player, seed: int) -> Iterator[None]:
    """Sampled actions are reproducible, and the caller's generator goes on as if nothing had been drawn."""
    policy = player.policy if isinstance(player, ObservationRecorder) else player
    if isinstance(policy, IntegerModel):
        policy.set_random_seed(seed)
    with th.random.fork_rng():
        th.manual_seed(seed)
        yield


def _check_player(policy: Any, env: Any) -> None:
    if policy != "random" and not hasattr(policy, "predict"):
        raise ValueError(
            f"policy must have a predict method or be the string 'random', got {policy!r}. A file is opened first: with "
            "load_teacher, QPDDistiller.load or IntegerModel.load."
        )
    if isinstance(policy, ObservationRecorder):
        policy = policy.policy
    normalize = unwrap_vec_normalize(env) if isinstance(env, VecEnv) else None
    takes_raw = getattr(policy, "takes_raw_observations", False)
    if takes_raw and normalize is not None and normalize.norm_obs:
        raise ValueError(
            f"env is a VecNormalize, and a {type(policy).__name__} takes raw observations: pass the environment without it "
            "(env.venv). What a stock algorithm learned in a VecNormalize plays there as the live model."
        )


def _random_policy(played: list[gym.Env] | VecEnv, seed: int) -> RandomPolicy:
    return RandomPolicy(played.action_space if isinstance(played, VecEnv) else played[0].action_space, seed)


def _play_seeded(
    policy: Player, envs: list[gym.Env], n_episodes: int, seed: int, deterministic: bool, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """Episode k starts from ``reset(seed=seed + k)`` in whichever environment is free; those that play are one batch."""
    returns, lengths = np.zeros(n_episodes), np.zeros(n_episodes, dtype=np.int64)
    waiting = iter(range(n_episodes))
    episode: dict[int, int] = {}  # environment -> the episode that it plays
    observations: dict[int, Any] = {}
    ask_masks = masks_for(policy, envs)
    for j in range(min(len(envs), n_episodes)):
        episode[j] = next(waiting)
        observations[j], _ = envs[j].reset(seed=seed + episode[j])
    while episode:
        playing = list(episode)
        actions = act(policy, stack([observations[j] for j in playing]), deterministic, ask_masks(playing))
        for j, action in zip(playing, actions, strict=True):
            k = episode[j]
            observations[j], reward, terminated, truncated, info = envs[j].step(action)
            returns[k] += float(reward)
            lengths[k] += 1
            if not (terminated or truncated):
                continue
            returns[k], lengths[k] = _monitored(info, returns[k], lengths[k])
            bar.update()
            if (following := next(waiting, None)) is None:
                del episode[j]
            else:
                episode[j] = following
                observations[j], _ = envs[j].reset(seed=seed + following)
    return returns, lengths


def _play_vec_env(
    policy: Player, env: VecEnv, n_episodes: int, seed: int, deterministic: bool, bar: tqdm
) -> tuple[np.ndarray, np.ndarray]:
    """The first episodes of each sub-environment: a number fixed beforehand, so that short ones have no advantage."""
    n_envs = env.num_envs
    returns, lengths = np.zeros(n_episodes), np.zeros(n_episodes, dtype=np.int64)
    quotas = np.array([len(range(i, n_episodes, n_envs)) for i in range(n_envs)])
    played, total, steps = np.zeros((3, n_envs))
    monitored = all(env.env_is_wrapped(Monitor))
    act_in_env = actor(policy, env, deterministic)
    env.seed(seed)
    observations = env.reset()
    while (played < quotas).any():
        observations, rewards, dones, infos = env.step(act_in_env(observations))
        total += rewards
        steps += 1
        for i in np.flatnonzero(dones):
            if monitored and "episode" not in infos[i]:
                continue  # a lost life: the game goes on
            if played[i] < quotas[i]:
                k = int(played[i]) * n_envs + i
                returns[k], lengths[k] = _monitored(infos[i], total[i], steps[i])
                bar.update()
            played[i] += 1
            total[i] = steps[i] = 0.0
    return returns, lengths


def _monitored(info: dict[str, Any], total: float, steps: float) -> tuple[float, int]:
    """The raw return and length of a finished episode: the monitor's, where there is one inside the reward wrappers."""
    episode = info.get("episode", {})
    return float(episode.get("r", total)), int(episode.get("l", steps))
