"""The record of a run: how losses, agreement and precision went, and what the integer student scored on the way."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_qpd.checks import check_count, check_positive
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.envs.recipe import EnvRecipe, EnvSource, check_env_type, make_recipe
from sb3_qpd.evaluation.episodes import VALIDATION_SEED, evaluate, integer_player

N_ROWS = 50  # rows of the record, evenly spaced over the run
COLUMNS = ("steps", "actor_loss", "critic_loss", "kl", "action_error", "agreement", "mean_weight_bits", "transition")


class LearningRecord(BaseCallback):
    """
    Record how a student learns, for the learning curves of ``report.html`` and for TensorBoard.

    Up to 50 times a run it notes the losses, how close the student is to its teacher, and the precision. Now and then the
    integer student plays validation episodes in environments of its own. The student is the same with and without the record,
    bit for bit. Checkpoints keep the record.

        record = LearningRecord()
        distiller.learn(1e5, callback=record)
        report = make_report(distiller, plan, learning=record.to_json())

    :param env: environment of the validation episodes: an id, a recipe, an environment that nothing else uses, or a class or
        function that makes one; ``None`` takes the distiller's own recipe
    :param deterministic: whether the student takes its most probable actions; ``None``: RL Zoo's mode, sampled for Atari
    :param n_scores: validations, evenly spaced over the run
    :param n_episodes: episodes of a validation
    :param max_share: share of the time of learning that validations may take. One that would take more is left out
    :param max_episode_steps: see :func:`~sb3_qpd.evaluation.episodes.evaluate`
    """

    def __init__(
        self,
        env: EnvSource | None = None,
        *,
        deterministic: bool | None = None,
        n_scores: int = 10,
        n_episodes: int = 10,
        max_share: float = 0.1,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__()
        if env is not None:
            check_env_type(env)
        check_count("n_scores", n_scores)
        check_count("n_episodes", n_episodes)
        check_positive("max_share", max_share)
        self._env, self._deterministic = env, deterministic
        self.n_scores, self.n_episodes = n_scores, n_episodes
        self.max_share, self.max_episode_steps = max_share, max_episode_steps
        # lists of numbers, and numbers: what checkpoints keep of a callback
        self.rows: list[list[float]] = []  # one number for each of COLUMNS, NaN where there is none
        self.scores: list[list[float]] = []  # steps, mean return, both ends of its interval, episodes
        self.n_due_rows, self.n_due_scores = 0, 0
        self.seconds, self.validation_seconds, self.longest = 0.0, 0.0, 0.0  # longest: of one validation
        self.has_failed = False

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values: a list for each column, and a dict for each validation."""
        columns = {name: [row[i] for row in self.rows] for i, name in enumerate(COLUMNS)}
        return {
            **{name: values for name, values in columns.items() if not np.isnan(values).all()},
            "scores": [
                {"steps": int(steps), "return_mean": mean, "ci95": [low, high], "episodes": int(n)}
                for steps, mean, low, high, n in self.scores
            ],
            "seed": VALIDATION_SEED,
            "seconds": self.seconds,
        }

    def _on_training_start(self) -> None:
        distiller = self._distiller
        if self._env is None and distiller._recipe is None:
            raise ValueError(
                "LearningRecord needs an environment of its own for validation episodes, and this distiller was given a "
                "ready-made one: name it, as in LearningRecord('LunarLander-v3')"
            )
        if self._env is distiller.env:
            raise ValueError("LearningRecord got the environment that the student learns in: give it one of its own")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._record(is_last=False)

    def _on_training_end(self) -> None:
        self._record(is_last=True)

    def _record(self, is_last: bool) -> None:
        distiller, start = self._distiller, time.perf_counter()
        steps, total = distiller.num_timesteps, distiller._total_timesteps
        if not (quality := distiller.quality()):
            return  # nothing was learned yet
        is_new = not self.rows or self.rows[-1][0] != steps
        n_due = steps * N_ROWS // total
        if is_new and (is_last or n_due > self.n_due_rows):
            self.n_due_rows = n_due
            values = {"steps": steps, **quality, **distiller.last_losses(), "transition": distiller._transition_progress}
            self.rows.append([float(values.get(name, np.nan)) for name in COLUMNS])
        n_due = steps * self.n_scores // total
        if n_due > self.n_due_scores and not self.has_failed:
            self.n_due_scores = n_due
            self._score(distiller)
        self.seconds += time.perf_counter() - start

    def _score(self, distiller: QPDDistiller) -> None:
        """Let the integer student play, unless that would take too large a share of the time."""
        start = time.perf_counter()
        distiller._count_seconds()
        if self.scores and self.validation_seconds + self.longest > self.max_share * distiller.seconds_learning:
            return
        env = self._env if self._env is not None else distiller._recipe
        deterministic = self._deterministic
        if deterministic is None:
            deterministic = not isinstance(env, str | EnvRecipe) or make_recipe(env).deterministic
        try:
            player = integer_player(distiller.policy)
            with unchanged_generators():
                found = evaluate(
                    player,
                    env,
                    n_episodes=self.n_episodes,
                    seed=VALIDATION_SEED,
                    deterministic=deterministic,
                    max_episode_steps=self.max_episode_steps,
                )
        except ValueError as error:  # weights that are NaN, an environment that fails: learning is worth more than its curve
            warnings.warn(f"No more validation episodes while the student learns: {error}")
            self.has_failed = True
            return
        self.scores.append([float(distiller.num_timesteps), found.return_mean, *found.ci95, float(found.episodes)])
        self.logger.record("validation/return_mean", found.return_mean)
        seconds = time.perf_counter() - start
        self.validation_seconds, self.longest = self.validation_seconds + seconds, max(self.longest, seconds)

    @property
    def _distiller(self) -> QPDDistiller:
        assert isinstance(self.model, QPDDistiller)
        return self.model


@contextmanager
def unchanged_generators() -> Iterator[None]:
    """Global generators of Python, NumPy and torch go on after the context as if nothing had been drawn in it."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with th.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
