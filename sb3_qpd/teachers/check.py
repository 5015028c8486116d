"""Checks of a teacher before a student learns from it: does it fit the environment, and does it play better than chance?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.envs.inspection import pipeline_of
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.failures import environment_failures
from sb3_qpd.integer import ObservationPart
from sb3_qpd.observations import batch_size, join, take_rows
from sb3_qpd.players import Actor, RandomPolicy, seed_if_possible
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.normalization import ObsNormalization
from sb3_qpd.teachers.own_policies import N_COMPARED, plays_differently, settle_labels
from sb3_qpd.teachers.teacher import Teacher

MIN_EPISODES, MAX_EPISODES = 5, 80
MAX_STEPS = 20_000  # of each player
CLIPPED_SHARE = 0.1
LARGE_INPUT = 20.0  # no trained network takes such inputs gladly
WAY_OUT = "Give the teacher's vecnormalize= or another env=, or switch this check off with check_teacher=False."


def check_spaces(teacher: Teacher, observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Compare an environment's spaces with the teacher's. Shapes and kinds must agree. Bounds of observations may differ, as they
    do between versions of an environment.

    :param teacher: the teacher
    :param observation_space: the environment's, with images channels first
    :param action_space: the environment's
    :raises ValueError: they differ
    """
    theirs, ours = (
        {part.key: part for part in parts}
        for parts in (teacher.parts, observation_parts(observation_space, teacher.normalized_image))
    )
    if theirs.keys() != ours.keys() or any(not _takes(teacher, part, ours[key]) for key, part in theirs.items()):
        raise ValueError(
            f"The environment's observations are not the teacher's.\nteacher: {_describe(theirs)}\n"
            f"environment: {_describe(ours)}\nIs env= the environment that it was trained on, with the same wrappers?"
            f"{_trained_on(teacher)}"
        )
    actions = teacher.action_space
    same_actions = teacher.head == action_head(action_space)
    if same_actions and isinstance(actions, spaces.Box):
        same_actions = np.allclose(actions.low, action_space.low) and np.allclose(actions.high, action_space.high)  # type: ignore[attr-defined]
    if not same_actions:
        raise ValueError(
            f"The environment's actions are not the teacher's.\nteacher: {_one_line(actions)}\nenvironment: "
            f"{_one_line(action_space)}\nIs env= the environment that it was trained on?{_trained_on(teacher)}"
        )


def _takes(teacher: Teacher, wanted: ObservationPart, given: ObservationPart) -> bool:
    """Whether a part of an observation is the teacher's. A ``VecNormalize`` made floats of images of uint8."""
    normalization = teacher.normalization
    is_normalized = wanted.key in normalization if isinstance(normalization, dict) else normalization is not None
    return wanted == given or (is_normalized and wanted.shape == given.shape and "one_hot" not in (wanted.kind, given.kind))


def _describe(parts: dict[str | None, ObservationPart]) -> str:
    texts = []
    for key, part in parts.items():
        if part.kind == "one_hot":
            text = f"one of {' x '.join(map(str, part.nvec))}"
        elif len(part.shape) == 1 and not part.is_image:
            text = f"{part.shape[0]} numbers, shape {part.shape}"
        else:
            text = f"{' x '.join(map(str, part.shape))} {'pixels' if part.kind == 'image' else 'floats'}"
        texts.append(text if key is None else f"{key}: {text}")
    return ", ".join(texts)


def _one_line(space: spaces.Space) -> str:
    return " ".join(str(space).split())[:200]


def _trained_on(teacher: Teacher) -> str:
    if teacher.run is None or "env" not in teacher.run.args:
        return ""
    try:
        recipe = teacher.run.make_recipe()
    except TeacherError:
        recipe = None
    own = "" if recipe is None else f" Without env= it plays {recipe.env_id}" + _with(recipe.wrapper_names)
    return f" It was trained on {teacher.run.env_name}.{own}"


def _with(wrappers: list[str]) -> str:
    return f" with {', '.join(wrappers)}" if wrappers else ""


class Play(NamedTuple):
    """
    The episodes of one player.

    :param returns: returns of the complete episodes; of the unfinished ones where there are no others
    :param n_complete: number of complete episodes
    :param clipped_share: share of the teacher's normalized inputs that are clipped
    :param largest_input: largest absolute value in observations that are not normalized, images left out
    """

    returns: np.ndarray
    n_complete: int
    clipped_share: float
    largest_input: float = 0.0


@dataclass(frozen=True)
class TeacherCheck:
    """
    The teacher's episodes beside a random policy's.

    :param teacher: episodes of the teacher
    :param random: episodes of the random policy
    :param cause: the one cause that the teacher's files and observations show for bad episodes, ``""`` if they show none
    """

    teacher: Play
    random: Play
    cause: str = ""

    @property
    def above_random(self) -> bool:
        """Whether the teacher's mean is higher by more than two standard errors of the difference."""
        a, b = self.teacher.returns, self.random.returns
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        return bool(a.mean() > b.mean() + 2 * error)

    def __str__(self) -> str:
        def line(play: Play) -> str:
            what = f"{play.n_complete} episodes" if play.n_complete else f"{len(play.returns)} unfinished episodes"
            return f"{play.returns.mean():.1f} +/- {play.returns.std():.1f} ({what})"

        return f"teacher {line(self.teacher)}, random policy {line(self.random)}"

    def warn(self) -> None:
        """Warn where the teacher is not clearly better than chance, or where its statistics do not fit."""
        clipped = f"{100 * self.teacher.clipped_share:.0f} % of the teacher's normalized inputs are clipped"
        if not self.above_random:
            cause = self.cause or (
                "nothing in its files shows why. It may be trained too little, or its returns may spread too widely"
            )
            warnings.warn(
                f"The teacher is not clearly above a random policy: {self}. Likely cause: {cause}. {WAY_OUT}", stacklevel=3
            )
        elif self.teacher.clipped_share > CLIPPED_SHARE:
            warnings.warn(f"{clipped}. Likely cause: its statistics are another run's. {WAY_OUT}", stacklevel=3)


def check_teacher(teacher: Teacher, env: VecEnv | EnvRecipe, deterministic: bool, seed: int | None = None) -> TeacherCheck:
    """
    Let the teacher and a random policy play: 5 episodes each, then 10, 20, ..., until the teacher is clearly better, or each
    has played 80 episodes or one of them 20,000 steps.

    :param teacher: the teacher
    :param env: environments without ``VecNormalize``, whose episodes are cut off; or a recipe, from which new ones are built
    :param deterministic: whether the teacher plays its most probable actions, as RL Zoo scores it
    :param seed: seed of the environments and of the random actions
    :raises TeacherError: the teacher's labels differ from the actions that it plays
    """
    if isinstance(env, EnvRecipe):
        own = env.make_vec_env(MIN_EPISODES, seed, training=False)
        check = check_teacher(teacher, own, deterministic, seed)
        own.close()
        return check
    taught = _Episodes(Actor(teacher, env, deterministic), env, teacher)
    random = _Episodes(Actor(RandomPolicy(env.action_space, seed), env, deterministic), env, teacher)
    wanted = -(-MIN_EPISODES // env.num_envs)
    for episodes in (taught, random):
        seed_if_possible(env, seed)
        episodes.play(wanted)
    if taught.kept:
        settle_labels(teacher, join(taught.kept))
    check = TeacherCheck(taught.result, random.result)
    limit = -(-MAX_EPISODES // env.num_envs)
    while wanted < limit and not (check.above_random or taught.is_exhausted or random.is_exhausted):
        wanted = min(2 * wanted, limit)
        for episodes in (taught, random):
            episodes.play(wanted)
        check = TeacherCheck(taught.result, random.result)
    return TeacherCheck(check.teacher, check.random, "" if check.above_random else _likely_cause(teacher, env, check.teacher))


class _Episodes:
    """
    A player's episodes, which may go on later.

    :param act: gives actions for observations
    :param env: environments without ``VecNormalize``
    :param teacher: the teacher, whose normalization is watched
    """

    def __init__(self, act: Actor, env: VecEnv, teacher: Teacher) -> None:
        self.act, self.env, self.teacher = act, env, teacher
        self.steps_left = MAX_STEPS // env.num_envs
        self.counts = np.zeros(env.num_envs, int)
        self.complete: list[float] = []
        self.unfinished = np.zeros(env.num_envs)
        self.clipped: list[float] = []
        self.largest_input = 0.0
        self.kept: list[Any] = []  # observations for the comparison of labels with actions
        self._n_to_keep = N_COMPARED if plays_differently(teacher.policy) else 0

    @property
    def is_exhausted(self) -> bool:
        return self.steps_left <= 0

    @property
    def result(self) -> Play:
        share = float(np.mean(self.clipped)) if self.clipped else 0.0
        returns = np.array(self.complete) if self.complete else self.unfinished
        return Play(returns, len(self.complete), share, self.largest_input)

    def play(self, wanted: int) -> None:
        """
        Play until each sub-environment has ended the same number of episodes. The first ones to end would be the short ones.

        :param wanted: episodes of each sub-environment, those of earlier calls included
        """
        env = self.env
        with environment_failures(env, "reset()"):
            observations: Any = env.reset()
        returns, dones = np.zeros(env.num_envs), np.ones(env.num_envs, bool)
        while self.steps_left > 0 and (self.counts < wanted).any():
            self.steps_left -= 1
            self._watch(observations)
            observations, rewards, dones, _ = env.step(self.act(observations, dones))
            returns += rewards
            counted = dones & (self.counts < wanted)
            self.complete.extend(returns[counted])
            self.counts += counted
            returns[dones] = 0
        self.unfinished = returns

    def _watch(self, observations: Any) -> None:
        if self._n_to_keep > 0:
            self.kept.append(join([take_rows(observations, slice(self._n_to_keep))]))
            self._n_to_keep -= batch_size(observations)
        if self.teacher.normalization is not None:
            self.clipped.append(_clipped_share(self.teacher, observations))
            return
        for part in self.teacher.parts:
            if part.kind == "vector":
                values = observations if part.key is None else observations[part.key]
                self.largest_input = max(self.largest_input, float(np.abs(values).max(initial=0.0)))


def _clipped_share(teacher: Teacher, observations: Any) -> float:
    """Share of the normalized inputs that are clipped."""
    normalization, seen = teacher.normalization, teacher.normalize(observations)
    if isinstance(normalization, ObsNormalization):
        normalization, seen = {"": normalization}, {"": seen}
    shares = [float(np.mean(np.abs(seen[key]) >= one.clip_obs)) for key, one in (normalization or {}).items()]
    return float(np.mean(shares))


def _likely_cause(teacher: Teacher, env: VecEnv, play: Play) -> str:
    """The first cause for bad episodes that the teacher's files and observations show, ``""`` if they show none."""
    causes = (_cause_in_statistics(teacher, play), _cause_in_environment(teacher, env), _cause_in_inputs(teacher, play))
    return next((cause for cause in causes if cause), "")


def _cause_in_statistics(teacher: Teacher, play: Play) -> str:
    run = teacher.run
    if play.clipped_share > CLIPPED_SHARE:
        return (
            f"{100 * play.clipped_share:.0f} % of the teacher's normalized inputs are clipped, so its statistics "
            "(vecnormalize.pkl) are another run's"
        )
    if teacher.normalization is None and run is not None and (unused := (run.statistics, *run.other_statistics)) != (None,):
        return f"the statistics in {next(path for path in unused if path is not None)} are not used"
    return ""


def _cause_in_environment(teacher: Teacher, env: VecEnv) -> str:
    run, recipe = teacher.run, teacher.recipe
    if run is None or "env" not in run.args:
        return ""
    if recipe is None:
        missing = [name for name in _wrappers_of(teacher) if name not in pipeline_of(env, None)]
        return f"its config.yml names {', '.join(missing)}, which env= lacks" if missing else ""
    if recipe.env_id != run.env_name:
        return f"it was trained on {run.env_name} and plays {recipe.env_id}, which may differ"
    missing = [name for name in _wrappers_of(teacher) if name not in recipe.wrapper_names]
    return f"its config.yml names {', '.join(missing)}, which the environment lacks" if missing else ""


def _wrappers_of(teacher: Teacher) -> list[str]:
    try:
        recipe = None if teacher.run is None else teacher.run.make_recipe()
    except TeacherError:
        return []
    return [] if recipe is None else recipe.wrapper_names


def _cause_in_inputs(teacher: Teacher, play: Play) -> str:
    if teacher.normalization is not None or play.largest_input < LARGE_INPUT:
        return ""
    return (
        f"its inputs go up to {play.largest_input:.3g} and it has no statistics, so it may have been trained with a "
        "VecNormalize whose vecnormalize.pkl is missing"
    )
