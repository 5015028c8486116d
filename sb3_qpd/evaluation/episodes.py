"""Evaluation of anything with SB3's ``predict``: whole episodes, raw returns, the same episodes for every policy."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from tqdm import tqdm

from sb3_qpd.checks import check_count, check_flags, check_seed, check_type
from sb3_qpd.envs.atari import AtariVecEnv
from sb3_qpd.envs.recipe import EnvRecipe, build_env, make_recipe
from sb3_qpd.evaluation.fitting import check_env
from sb3_qpd.evaluation.statistics import Evaluation
from sb3_qpd.failures import env_name as name_of
from sb3_qpd.failures import environment_failure, environment_failures
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import Observation, batch_size, copy_row, stack
from sb3_qpd.players import (
    MISSING,
    Actor,
    ObservationRecorder,
    Player,
    RandomPolicy,
    is_monitored,
    seed_if_possible,
)
from sb3_qpd.students.policies import QuantActorCriticPolicy

# Three disjoint ranges of seeds, each a million wide. The test range is touched once, for the row that is published
TRAIN_SEED = 0
VALIDATION_SEED = 1_000_000  # callbacks, searches, choosing a size or a checkpoint
TEST_SEED = 2_000_000

# An episode that is longer is taken for one that never ends
MAX_EPISODE_STEPS = 10_000  # or the environment's own limit, where that is larger
MAX_ATARI_STEPS = 108_000  # ALE ends a game after as many frames

RANDOM = "random"


def integer_player(policy: QuantActorCriticPolicy) -> Player:
    """
    What plays as the integer student: its integer model. For images the policy in eval mode, which is faster and gives the
    same bits.

    :param policy: the student
    """
    model = policy.to_integer()
    return policy if model.has_images else model


def evaluate(
    policy: Player | str | Path,
    env: str | EnvRecipe | gym.Env | VecEnv | Callable[[], gym.Env | VecEnv] | None = None,
    *,
    n_episodes: int = 100,
    seed: int = TEST_SEED,
    deterministic: bool = True,
    n_envs: int = 32,
    name: str = "",
    max_episode_steps: int | None = None,
    progress_bar: bool = False,
) -> Evaluation:
    """
    Play whole episodes and keep every raw return. The policy takes raw observations. A policy's state is carried along.

    How the episodes start:

    - an id, recipe or plain environment: episode k of every policy starts from ``reset(seed=seed + k)``
    - an Atari id or recipe: game k of sub-environment i of ``AtariVecEnv``, the same number of games in each
    - a vectorized environment: the first episodes of each sub-environment after ``env.seed(seed)``, where it takes a seed

    No episode is cut off, and none is counted because it was short. Where the environment says which actions are allowed
    (``env.action_masks()``), a teacher that was trained with masks, its student and the random policy are told.

        evaluate("student.npz")                      # a student's folder, or a file in it: it knows its environment
        evaluate("sb3/ppo-CartPole-v1", "CartPole-v1")

    :param policy: anything with SB3's ``predict`` (model, policy, teacher, integer model), ``"random"``, or a path or Hub
        name that :func:`~sb3_qpd.evaluation.opening.open_player` takes
    :param env: environment to play in, or a class or function that builds one; what is built here is closed here. ``None``:
        the one that the policy names
    :param n_episodes: number of episodes
    :param seed: seed of the first episode, see ``VALIDATION_SEED`` and ``TEST_SEED``; seeds sampled actions as well
    :param deterministic: most probable actions, else sampled ones
    :param n_envs: number of episodes that are played side by side
    :param name: name of the policy, for the progress bar and the result
    :param max_episode_steps: steps after which an episode is taken for one that never ends, and an error is raised; ``None``:
        10,000, or the environment's own limit where that is larger
    :param progress_bar: show one on stderr
    :return: one return and length for each episode
    :raises ValueError: policy and environment do not fit together, an episode does not end, or its return is not finite
    """
    check_play(n_episodes, n_envs, seed, max_episode_steps)
    check_flags(deterministic=deterministic, progress_bar=progress_bar)
    check_type("name", name, str, "a name")
    player, env = _open(policy, env)
    start = time.perf_counter()
    with _opened_env(env, seed, min(n_envs, n_episodes)) as (played, starts, env_name):
        _check_player(player, played)
        name = name or (RANDOM if _is_random(player) else type(player).__name__)
        player = RandomPolicy(_spaces_of(played)[1], seed) if _is_random(player) else player
        check_env(player, _spaces_of(played)[0], env_name)
        limit = step_limit(played) if max_episode_steps is None else max_episode_steps
        with (
            _seeded_sampling(player, seed),
            tqdm(total=n_episodes, desc=name, unit="episode", disable=not progress_bar) as bar,
        ):
            inner_name = name_of(played, asks=True) if isinstance(played, VecEnv) else env_name
            score = _Score(n_episodes, limit, env_name, bar, inner_name)
            if isinstance(played, VecEnv):
                _play_vec_env(player, played, seed, deterministic, score)
            else:
                _play_seeded(player, played, seed, deterministic, score)
    return Evaluation(name, score.returns, score.lengths, deterministic, seed, time.perf_counter() - start, starts)


def microseconds_per_action(policy: Player, observations: Observation, n_calls: int = 300) -> float:
    """
    Median time of ``predict`` for a single observation, in microseconds.

    :param policy: anything with SB3's ``predict``
    :param observations: a batch to take the observations from, one after the other
    :param n_calls: number of calls; a tenth of them warms up beforehand
    """
    n_warm = max(1, n_calls // 10)
    times = []
    for call in range(n_warm + n_calls):
        observation = copy_row(observations, call % batch_size(observations))
        start = time.perf_counter_ns()
        policy.predict(observation, deterministic=True)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times[n_warm:])) / 1_000


class _Score:
    """
    Returns and lengths of the episodes, and the limit that each of them has.

    :param n_episodes: number of episodes
    :param limit: steps after which an episode is taken for one that never ends
    :param env_name: name of the environment, for the message
    :param bar: progress bar, which counts the episodes
    :param inner_name: name of the environment inside a vectorized one, for the messages of one that fails
    """

    def __init__(self, n_episodes: int, limit: int, env_name: str, bar: tqdm, inner_name: str) -> None:
        self.returns, self.lengths = np.zeros(n_episodes), np.zeros(n_episodes, dtype=np.int64)
        self.limit, self.env_name, self.bar = limit, env_name, bar
        self.where = f"{inner_name} (evaluation)"

    def check_length(self, steps: float) -> None:
        """
        Refuse an episode that does not end.

        :param steps: its steps so far
        """
        if steps >= self.limit:
            raise ValueError(
                f"An episode of {self.env_name} had not ended after {self.limit} steps: expected that every episode ends. "
                "Wrap the environment in a TimeLimit; where its episodes are longer, raise the limit: max_episode_steps="
            )

    def finish(self, episode: int, info: Any, total: float, steps: float) -> None:
        """
        Count an episode that has ended, by its monitor where there is one inside the reward wrappers.

        :param episode: number of the episode
        :param info: info of its last step
        :param total: sum of the rewards outside all wrappers
        :param steps: steps outside all wrappers
        """
        monitored = info.get("episode", {}) if isinstance(info, Mapping) else {}
        self.returns[episode] = float(monitored.get("r", total))
        if not np.isfinite(self.returns[episode]):
            raise ValueError(
                f"An episode of {self.env_name} returned {self.returns[episode]}: expected finite rewards, which can be "
                "averaged and compared. Correct the reward in the environment"
            )
        self.lengths[episode] = int(monitored.get("l", steps))
        self.bar.update()


def check_play(n_episodes: Any, n_envs: Any, seed: Any, max_episode_steps: Any) -> None:
    """
    Refuse numbers with which no episodes can be played.

    :param n_episodes: number of episodes
    :param n_envs: number of episodes that are played side by side
    :param seed: seed of the first episode
    :param max_episode_steps: limit of an episode, or ``None``
    :raises ValueError: a number has another type, or is outside its range
    """
    check_count("n_episodes", n_episodes)
    check_count("n_envs", n_envs)
    check_seed("seed", seed)
    if max_episode_steps is not None:
        check_count("max_episode_steps", max_episode_steps)


def _is_random(policy: Any) -> bool:
    return isinstance(policy, str) and policy == RANDOM


def _open(policy: Any, env: Any) -> tuple[Any, Any]:
    """The policy behind a path or a name, and the environment that it names where none is given."""
    if isinstance(policy, str | Path) and not _is_random(policy):
        from sb3_qpd.evaluation.opening import open_player  # reads all kinds of files: not needed for what is open already

        policy, recorded = open_player(policy, needs_env=env is None)
    else:
        recorded = getattr(policy, "recipe", None) or getattr(policy, "vec_env", None)
    env = recorded if env is None else env
    if env is None:
        raise ValueError("The policy does not say in which environment it plays: give evaluate(policy, env) an id or recipe.")
    return policy, env


@contextmanager
def _opened_env(
    env: str | EnvRecipe | gym.Env | VecEnv | Callable[[], gym.Env | VecEnv], seed: int, n_envs: int
) -> Iterator[tuple[list[gym.Env] | VecEnv, str, str]]:
    """The environments, how their episodes start (empty: not reproducible), and their name."""
    if callable(env) and not isinstance(env, gym.Env | VecEnv):
        with closing(build_env(env)) as one, _opened_env(one, seed, n_envs) as opened:
            yield opened
    elif isinstance(env, VecEnv):
        normalize = unwrap_vec_normalize(env)
        if normalize is not None and normalize.training:
            raise ValueError("env is a VecNormalize that would learn from the evaluation: set env.training = False first.")
        yield env, "", type(env).__name__
    elif isinstance(env, gym.Env):
        env_name = env.spec.id if env.spec else type(env.unwrapped).__name__
        yield [env], f"{env_name}: episode k from reset(seed={seed} + k)", env_name
    else:
        recipe = make_recipe(env)
        with _built(recipe, seed, n_envs) as built:
            how = f"episode k from reset(seed={seed} + k)"
            if recipe.is_atari:
                how = f"game k of sub-environment i of {n_envs}, seed {seed}"
            reproducible = recipe.is_atari or isinstance(built, list)
            yield built, f"{recipe.env_id}{recipe.env_kwargs or ''}: {how}" if reproducible else "", recipe.env_id


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
    if not _is_random(policy) and not hasattr(policy, "predict"):
        raise ValueError(
            f"policy must have a predict method, be 'random' or the path of a student or teacher, got {policy!r}."
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


def _spaces_of(played: list[gym.Env] | VecEnv) -> tuple[spaces.Space, spaces.Space]:
    env = played if isinstance(played, VecEnv) else played[0]
    return env.observation_space, env.action_space


def step_limit(played: list[gym.Env] | VecEnv) -> int:
    """
    Steps after which an episode is taken for one that never ends, where the caller names no number.

    :param played: environments side by side, or a vectorized environment
    """
    env = played if isinstance(played, VecEnv) else played[0]
    try:
        spec: Any = env.get_attr("spec", 0)[0] if isinstance(env, VecEnv) else env.spec
    except (*MISSING, IndexError):
        spec = None
    if isinstance(env, AtariVecEnv) or "AtariEnv" in str(getattr(spec, "entry_point", "")):
        return MAX_ATARI_STEPS
    return max(MAX_EPISODE_STEPS, getattr(spec, "max_episode_steps", None) or 0)


def _reset(env: gym.Env, seed: int, index: int | None, score: _Score) -> Any:
    with environment_failures(env, f"reset(seed={seed})", name=score.where, index=index):
        observation, _ = env.reset(seed=seed)
    return observation


def _play_seeded(policy: Player, envs: list[gym.Env], seed: int, deterministic: bool, score: _Score) -> None:
    """Episode k starts from ``reset(seed=seed + k)`` in whichever environment is free; those that play are one batch."""
    n_episodes = len(score.returns)
    waiting = iter(range(n_episodes))
    episode: dict[int, int] = {}  # environment -> the episode that it plays
    total, steps = np.zeros(len(envs)), np.zeros(len(envs), int)
    observations: dict[int, Any] = {}
    player = Actor(policy, envs, deterministic)
    indices = list(range(len(envs))) if len(envs) > 1 else [None]  # in the messages of environments that fail
    for j in range(min(len(envs), n_episodes)):
        episode[j] = next(waiting)
        observations[j] = _reset(envs[j], seed + episode[j], indices[j], score)
    while episode:
        playing = list(episode)
        # a state has a row for each environment: one that has ended gets the observations of another
        rows = [j if j in episode else playing[0] for j in observations] if player.has_memory else playing
        actions = player(stack([observations[j] for j in rows]), steps[rows] == 0, playing=rows)
        for j, action in zip(playing, actions[playing] if player.has_memory else actions, strict=True):
            try:
                observations[j], reward, terminated, truncated, info = envs[j].step(action)
            except Exception as error:
                raise environment_failure(error, envs[j], step=int(steps[j]), name=score.where, index=indices[j]) from error
            total[j] += float(reward)
            steps[j] += 1
            if not (terminated or truncated):
                score.check_length(steps[j])
                continue
            score.finish(episode[j], info, total[j], steps[j])
            total[j] = steps[j] = 0
            if (following := next(waiting, None)) is None:
                del episode[j]
            else:
                episode[j] = following
                observations[j] = _reset(envs[j], seed + following, indices[j], score)


def _play_vec_env(policy: Player, env: VecEnv, seed: int, deterministic: bool, score: _Score) -> None:
    """The first episodes of each sub-environment: a number fixed beforehand, so that short ones have no advantage."""
    n_envs, n_episodes = env.num_envs, len(score.returns)
    quotas = np.array([len(range(i, n_episodes, n_envs)) for i in range(n_envs)])
    played, total, steps = np.zeros((3, n_envs))
    monitored = is_monitored(env)
    player, dones = Actor(policy, env, deterministic), np.ones(n_envs, bool)
    seed_if_possible(env, seed)
    with environment_failures(env, "reset()", name=score.where):
        observations = env.reset()
    while (playing := played < quotas).any():
        actions = player(observations, dones)
        with environment_failures(env, step=int(steps[playing].max()), name=score.where):
            observations, rewards, dones, infos = env.step(actions)
        total += rewards
        steps += 1
        for i in np.flatnonzero(dones):
            if monitored and "episode" not in infos[i]:
                continue  # a lost life: the game goes on
            if playing[i]:
                score.finish(int(played[i]) * n_envs + int(i), infos[i], total[i], steps[i])
            played[i] += 1
            total[i] = steps[i] = 0.0
        score.check_length(steps[playing].max())
