"""A look at the teacher before anything is learned from it: a perfect copy of a wrongly fed teacher is a silent failure."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.players import RandomPolicy, actor
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.normalization import ObsNormalization
from sb3_qpd.teachers.teacher import Teacher


def check_spaces(teacher: Teacher, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Shapes and kinds must agree; bounds of observations may differ between versions of an environment."""
    theirs, ours = teacher.parts, observation_parts(observation_space, teacher.normalized_image)
    if {part.key: part for part in theirs} != {part.key: part for part in ours}:
        raise ValueError(
            "The environment's observations are not the teacher's.\n"
            f"teacher:     {teacher.observation_space}\nenvironment: {observation_space}"
        )
    actions = teacher.action_space
    same_actions = teacher.head == action_head(action_space)
    if same_actions and isinstance(actions, spaces.Box):
        same_actions = np.allclose(actions.low, action_space.low) and np.allclose(actions.high, action_space.high)  # type: ignore[attr-defined]
    if not same_actions:
        raise ValueError(
            f"The environment's actions are not the teacher's.\nteacher:     {actions}\nenvironment: {action_space}"
        )


MIN_EPISODES = 5
MAX_STEPS = 20_000
CLIPPED_SHARE = 0.1
LIKELY_CAUSES = (
    "Likely causes: the teacher's vecnormalize.pkl is missing or another run's, the frame skip, frame stack or a wrapper is "
    "not the one that it was trained with, or the environment's version changed. Give load_teacher(..., vecnormalize=...) or "
    "another env=, or switch this check off with check_teacher=False (on the command line: --vecnormalize, --env, "
    "--no-check-teacher)."
)


class Play(NamedTuple):
    """Returns of the episodes (of what there was of them, where none ended), and the share of clipped inputs."""

    returns: np.ndarray
    n_complete: int
    clipped_share: float


@dataclass(frozen=True)
class TeacherCheck:
    """
    The teacher beside a random policy.

    :param teacher: its episodes
    :param random: the random policy's
    """

    teacher: Play
    random: Play

    @property
    def above_random(self) -> bool:
        """Whether the means differ by more than two standard errors."""
        a, b = self.teacher.returns, self.random.returns
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        return bool(a.mean() > b.mean() + 2 * error)

    def __str__(self) -> str:
        def line(play: Play) -> str:
            what = f"{play.n_complete} episodes" if play.n_complete else f"{len(play.returns)} unfinished episodes"
            return f"{play.returns.mean():.1f} +/- {play.returns.std():.1f} ({what})"

        return f"teacher {line(self.teacher)}, random policy {line(self.random)}"

    def warn(self) -> None:
        """Warn where the teacher does not look like one."""
        if not self.above_random:
            warnings.warn(f"The teacher is not clearly above a random policy: {self}. {LIKELY_CAUSES}", stacklevel=3)
        if self.teacher.clipped_share > CLIPPED_SHARE:
            warnings.warn(
                f"{100 * self.teacher.clipped_share:.0f} % of the teacher's normalized inputs are clipped. {LIKELY_CAUSES}",
                stacklevel=3,
            )


def check_teacher(teacher: Teacher, env: VecEnv | EnvRecipe, deterministic: bool, seed: int | None = None) -> TeacherCheck:
    """
    Let the teacher and a random policy play a few episodes: at least 5, at most 20,000 steps each.

    :param teacher: who plays
    :param env: where, without a ``VecNormalize``; its episodes are cut off (a recipe's are played in environments of their
        own)
    :param deterministic: the mode in which RL Zoo scores the teacher
    :param seed: of the environments and of the random actions
    """
    if isinstance(env, EnvRecipe):
        own = env.make_vec_env(MIN_EPISODES, seed, training=False)
        check = check_teacher(teacher, own, deterministic, seed)
        own.close()
        return check
    act_randomly = actor(RandomPolicy(env.action_space, seed), env, deterministic)
    return TeacherCheck(_play(actor(teacher, env, deterministic), env, seed, teacher), _play(act_randomly, env, seed, teacher))


def _play(act: Callable[[Any], np.ndarray], env: VecEnv, seed: int | None, teacher: Teacher) -> Play:
    env.seed(seed)
    observations: Any = env.reset()
    # the same number from every sub-environment: counting the first to end would favour short episodes
    wanted, counts = -(-MIN_EPISODES // env.num_envs), np.zeros(env.num_envs, int)
    returns = np.zeros(env.num_envs)
    complete: list[float] = []
    clipped: list[float] = []
    for _ in range(MAX_STEPS // env.num_envs):
        if teacher.normalization is not None:
            clipped.append(_clipped_share(teacher, observations))
        observations, rewards, dones, _ = env.step(act(observations))
        returns += rewards
        complete.extend(returns[dones & (counts < wanted)])
        counts += dones
        returns[dones] = 0
        if (counts >= wanted).all():
            break
    share = float(np.mean(clipped)) if clipped else 0.0
    return Play(np.array(complete) if complete else returns, len(complete), share)


def _clipped_share(teacher: Teacher, observations: Any) -> float:
    """Of the inputs that the teacher normalizes."""
    normalization, seen = teacher.normalization, teacher.normalize(observations)
    if isinstance(normalization, ObsNormalization):
        normalization, seen = {"": normalization}, {"": seen}
    shares = [float(np.mean(np.abs(seen[key]) >= one.clip_obs)) for key, one in (normalization or {}).items()]
    return float(np.mean(shares))
