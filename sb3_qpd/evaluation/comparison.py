"""Random policy, teacher, float and integer student play the same episodes; the result is the report."""

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_qpd.checks import check_flags, check_type
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.envs.recipe import EnvRecipe, EnvSource, check_env_type, describe_env, make_recipe
from sb3_qpd.evaluation.agreement import actions_of, agreement_of, agreement_table
from sb3_qpd.evaluation.cache import play_once
from sb3_qpd.evaluation.episodes import TEST_SEED, VALIDATION_SEED, check_play, evaluate, microseconds_per_action
from sb3_qpd.evaluation.layer_costs import layer_costs
from sb3_qpd.evaluation.learning_record import LearningRecord
from sb3_qpd.evaluation.report import mode_name, notes_of, to_json
from sb3_qpd.evaluation.statistics import MIN_VERDICT_EPISODES, Evaluation, compare, episodes_needed, plan_episodes
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, pieces, take_rows
from sb3_qpd.players import EpisodeRecorder, ObservationRecorder, Player
from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import Teacher
from sb3_qpd.version import __version__

N_OBSERVATIONS = 1_000  # of the student's own games, for parity and agreement
MAX_RETURNS = 5_000  # of single episodes that a report lists: it has to stay a small file
N_PLANNING = 32  # episodes, on validation seeds, from which the number of test episodes follows
PACKAGES = ("stable-baselines3", "gymnasium", "numpy", "torch", "ale-py")


@dataclass(frozen=True)
class EvaluationPlan:
    """
    Where and how long every policy plays; fixed before the first of them does.

    :param env: id, recipe, environment, or a class or function that makes one
    :param n_episodes: number of episodes in the mode of the verdict
    :param n_other: number of episodes in the other mode
    :param deterministic: the mode of the verdict
    :param seed: seed of the first episode
    :param n_envs: number of episodes that are played side by side
    :param progress_bar: show one for each policy
    :param max_episode_steps: see :func:`~sb3_qpd.evaluation.episodes.evaluate`
    :param cache: keep the episodes of the teacher and of the random policy, see :mod:`sb3_qpd.evaluation.cache`
    :param needed: episodes for 80 % power by the teacher's spread; ``None``: not planned, the caller gave the number
    """

    env: EnvSource
    n_episodes: int
    n_other: int
    deterministic: bool = True
    seed: int = TEST_SEED
    n_envs: int = 32
    progress_bar: bool = False
    max_episode_steps: int | None = None
    cache: bool = True
    needed: int | None = None

    def play(self, policy: Player | str, name: str, other_mode: bool = False) -> Evaluation:
        """
        Let a policy play.

        :param policy: anything that :func:`~sb3_qpd.evaluation.episodes.evaluate` takes
        :param name: name for the progress bar and the result
        :param other_mode: in the other mode than that of the verdict
        """
        deterministic = self.deterministic != other_mode
        settings: dict[str, Any] = {
            **{"n_episodes": self.n_other if other_mode else self.n_episodes, "seed": self.seed},
            **{"deterministic": deterministic, "n_envs": self.n_envs, "max_episode_steps": self.max_episode_steps},
        }
        title = f"{name}, {mode_name(deterministic)}"
        play = partial(evaluate, policy, self.env, **settings, name=title, progress_bar=self.progress_bar)
        if not (self.cache and isinstance(self.env, str | EnvRecipe) and isinstance(policy, Teacher | str)):
            return play()
        return play_once(policy, make_recipe(self.env), settings, play)

    def learning_record(self) -> LearningRecord:
        """A record of learning that validates in the environment and the mode of the verdict."""
        return LearningRecord(self.env, deterministic=self.deterministic, max_episode_steps=self.max_episode_steps)


def plan_evaluation(
    teacher: Teacher,
    env: EnvSource,
    n_episodes: int | None = None,
    *,
    deterministic: bool | None = None,
    seed: int = TEST_SEED,
    n_envs: int = 32,
    progress_bar: bool = False,
    max_episode_steps: int | None = None,
    cache: bool = True,
) -> EvaluationPlan:
    """
    Fix the mode and the number of episodes.

    :param teacher: plays on validation seeds where its spread has to be known
    :param env: environment of all policies: an id, a recipe, an environment, or a class or function that makes one
    :param n_episodes: number of test episodes; ``None``: from the teacher's spread, for 80 % power
    :param deterministic: mode of the verdict; ``None``: RL Zoo's, sampled for Atari and deterministic elsewhere
    :param seed: seed of the first test episode
    :param n_envs: number of episodes that are played side by side
    :param progress_bar: show one for each policy
    :param max_episode_steps: see :func:`~sb3_qpd.evaluation.episodes.evaluate`
    :param cache: keep the episodes of the teacher and of the random policy, see :mod:`sb3_qpd.evaluation.cache`
    """
    check_type("teacher", teacher, Teacher, "a Teacher: load_teacher(...) returns one")
    check_env_type(env)
    check_play(1 if n_episodes is None else n_episodes, n_envs, seed, max_episode_steps)
    check_flags(progress_bar=progress_bar, cache=cache)
    if deterministic is None:
        deterministic = not isinstance(env, str | EnvRecipe) or make_recipe(env).deterministic
    check_flags(deterministic=deterministic)
    options: dict[str, Any] = {"n_envs": n_envs, "progress_bar": progress_bar}
    options |= {"max_episode_steps": max_episode_steps, "cache": cache}
    if n_episodes is None:
        trial = EvaluationPlan(env, N_PLANNING, N_PLANNING, deterministic, VALIDATION_SEED, **options)
        planning = trial.play(teacher, "planning: teacher"), trial.play("random", "planning: random")
        needed = episodes_needed(*planning)
        n_episodes, options["needed"] = plan_episodes(needed), needed and max(needed, MIN_VERDICT_EPISODES)
    n_other = min(n_episodes, max(20, n_episodes // 4))
    return EvaluationPlan(env, n_episodes, n_other, deterministic, seed, **options)


@dataclass(frozen=True)
class PolicyScores:
    """
    Both modes of one policy, and its size.

    :param policy: the policy; ``None`` for the random one, which is not timed
    :param main: its episodes in the mode of the verdict
    :param other: its episodes in the other mode
    :param size: its bytes, parameters and multiply-accumulates
    """

    policy: Player | None
    main: Evaluation
    other: Evaluation
    size: dict[str, int]

    def section(self, observations: Any) -> dict[str, Any]:
        """
        The policy's section of ``report.json``.

        :param observations: batch of raw observations, to time single actions on
        """
        timing = None if self.policy is None else microseconds_per_action(self.policy, observations)
        returns = [float(f"{value:.6g}") for value in self.main.returns[:MAX_RETURNS]]
        figures = {**_figures(self.main), "other_mode": _figures(self.other), **self.size}
        return {**figures, "microseconds_per_action": timing, "returns": returns}


class Evidence(NamedTuple):
    """
    Evidence that the integer model is the student.

    :param parity: share of bit-equal outputs of the policy in eval mode and the integer model
    :param observations: observations of the student's own games, on which the share was counted
    :param played_by: which of the two played
    :param episode_starts: the observations follow each other, and these begin episodes; ``None``: they are a sample
    """

    parity: float
    observations: Any
    played_by: str
    episode_starts: np.ndarray | None = None


def make_report(
    distiller: QPDDistiller,
    plan: EvaluationPlan,
    baselines: Mapping[str, QPDDistiller] | None = None,
    learning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """
    Let the random policy, the teacher, the float and the integer student play, and compare.

    :param distiller: the student, after learning
    :param plan: see :func:`plan_evaluation`
    :param baselines: other students of the same teacher and sizes, by name
    :param learning: what :meth:`LearningRecord.to_json` returns, for the learning curves of the page
    :return: contents of ``report.json``
    :raises ValueError: the student has no teacher to compare with
    """
    check_type("distiller", distiller, QPDDistiller, "a QPDDistiller after learn()")
    check_type("plan", plan, EvaluationPlan, "what plan_evaluation(...) returns")
    if baselines is not None:
        check_type("baselines", baselines, Mapping, "a dict from names to students, or None")
    if learning is not None:
        check_type("learning", learning, Mapping, "what LearningRecord.to_json() returns, or None")
    if (teacher := distiller.teacher) is None:
        raise ValueError("A report compares with the teacher, and this student has none: load it with teacher=...")
    start, model = time.perf_counter(), distiller.policy.to_integer()
    float_student, float_size = distiller.float_student(), _size(4 * model.n_parameters, model)
    random_play = plan.play("random", "random")
    scores = {
        "random": PolicyScores(None, random_play, random_play, {}),
        "teacher": _play(plan, teacher, "teacher", _size(teacher.nbytes, teacher)),
    }
    if float_student is not None:
        scores["float"] = _play(plan, float_student.policy, "float", float_size)
    integer, evidence = _play_integer(plan, distiller.policy, "integer", in_order=teacher.has_memory)
    scores["integer"] = integer
    others = {name: _play_baseline(plan, student.policy, name, float_size) for name, student in (baselines or {}).items()}
    theirs, ours = (actions_of(player, evidence.observations, evidence.episode_starts) for player in (teacher, model))
    judge = partial(compare, teacher=scores["teacher"].main, random=random_play, planned=plan.needed)
    report = {
        **_identity(distiller, plan),
        "float": None,
        **{name: one.section(evidence.observations) for name, one in scores.items()},
        **asdict(judge(integer.main)),
        **_percentages(model, teacher),
        "parity": evidence.parity,
        "parity_observations": batch_size(evidence.observations),
        "integer_played_by": evidence.played_by,
        "teacher_agreement": agreement_of(theirs, ours, teacher.action_space),
        "teacher_agreement_unit": "teacher_spread" if model.is_box else "share",
        "actions": agreement_table(theirs, ours, teacher.action_space),
        "layers": layer_costs(model, evidence.observations, states_of(model, evidence)),
        "learning": learning,
        "baselines": {name: {**one.section(evidence.observations), **asdict(judge(one.main))} for name, one in others.items()},
        "evaluation_seconds": time.perf_counter() - start,
    }
    return to_json({**report, "notes": notes_of(report)})


def _play(plan: EvaluationPlan, policy: Player, name: str, size: dict[str, int]) -> PolicyScores:
    return PolicyScores(policy, plan.play(policy, name), plan.play(policy, name, other_mode=True), size)


def _play_baseline(
    plan: EvaluationPlan, policy: QuantActorCriticPolicy, name: str, float_size: dict[str, int]
) -> PolicyScores:
    is_float = FLOAT_BITS in (policy.arch.weight_bits, policy.arch.activation_bits)
    return _play(plan, policy, name, float_size) if is_float else _play_integer(plan, policy, name)[0]


def _play_integer(
    plan: EvaluationPlan, policy: QuantActorCriticPolicy, name: str, in_order: bool = False
) -> tuple[PolicyScores, Evidence]:
    """
    The integer model plays. For images the policy in eval mode plays in its place, which is faster and gives the same bits.

    The bits are compared on observations of these games. Where they differ, the integer model plays the games again.
    """
    model = policy.to_integer()
    make_recorder = EpisodeRecorder if in_order or model.history > 1 else ObservationRecorder
    recorder = make_recorder(policy if model.has_images else model, N_OBSERVATIONS)
    main = plan.play(recorder, name)
    starts = recorder.episode_starts if isinstance(recorder, EpisodeRecorder) else None
    evidence = Evidence(0.0, recorder.observations, "", starts)
    parity = parity_of(policy, model, evidence.observations, states_of(model, evidence))
    player: Player = policy if model.has_images and parity == 1.0 else model
    if player is not recorder.policy:
        main = plan.play(player, name)
    played_by = "the integer model" if player is model else "the policy in eval mode, which gives the same bits"
    scores = PolicyScores(model, main, plan.play(player, name, other_mode=True), _size(model.nbytes, model))
    return scores, evidence._replace(parity=parity, played_by=played_by)


def states_of(model: IntegerModel, evidence: Evidence) -> np.ndarray | None:
    """
    What a model with a memory remembered at each of the kept observations.

    :param model: the model
    :param evidence: observations in their order
    :return: see :meth:`~sb3_qpd.IntegerModel.trace`; ``None`` for a model without a memory
    """
    if model.history == 1 or evidence.episode_starts is None:
        return None
    states: list[np.ndarray] = []
    state: Any = None
    for row, start in enumerate(evidence.episode_starts):
        one, begins = take_rows(evidence.observations, slice(row, row + 1)), np.array([start])
        states.append(model.remember(one, state, begins)[0])
        _, state = model.predict(one, state, begins, deterministic=True)
    return np.concatenate(states)


def _size(nbytes: int, actor: Any) -> dict[str, int]:
    sizes = {"bytes": nbytes, "params": actor.n_parameters, "macs": actor.macs}
    return {name: size for name, size in sizes.items() if size}  # those of a function are not known


@th.no_grad()
def parity_of(
    policy: QuantActorCriticPolicy, model: IntegerModel, observations: Any, states: np.ndarray | None = None
) -> float:
    """
    Share of outputs (logits, or mean actions) that are bit for bit the same in the policy and in the integer model.

    :param policy: the policy, which is put in eval mode
    :param model: its integer form
    :param observations: raw observations, shape (n_observations, *observation_shape)
    :param states: what a model with a memory remembered at each observation, see :meth:`~sb3_qpd.IntegerModel.trace`
    """
    policy.set_training_mode(False)
    equal = []
    for part, before in pieces([(observations, states)]):
        ours = policy.actor_and_value(policy.window_of(part, before))[0].cpu().numpy()
        theirs = model.logits(part, before)
        equal.append(ours.astype(np.float32).view(np.uint32) == theirs.view(np.uint32))
    return float(np.concatenate(equal).mean())


def _figures(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "return_mean": evaluation.return_mean,
        "return_std": evaluation.return_std,
        "return_iqm": evaluation.return_iqm,
        "ci95": evaluation.ci95,
        "episodes": evaluation.episodes,
        "distinct_returns": evaluation.distinct_returns,
        "length_mean": float(np.mean(evaluation.lengths)),
        "deterministic": evaluation.deterministic,
        "seconds": evaluation.seconds,
        "is_cached": evaluation.is_cached,
    }


def _percentages(model: IntegerModel, teacher: Teacher) -> dict[str, float | None]:
    """The student's sizes in percent of the teacher's, ``None`` where those are not known."""
    pairs = {
        "size_percent": (model.nbytes, teacher.nbytes),
        # one byte for each parameter, biases too: a real int8 teacher is a little larger
        "size_percent_of_int8_teacher": (model.nbytes, teacher.n_parameters),
        "params_percent": (model.n_parameters, teacher.n_parameters),
        "macs_percent": (model.macs, teacher.macs),
    }
    return {name: 100 * ours / theirs if theirs else None for name, (ours, theirs) in pairs.items()}


def _identity(distiller: QPDDistiller, plan: EvaluationPlan) -> dict[str, Any]:
    return {
        "env": describe_env(plan.env),
        "teacher_name": distiller.teacher_name,
        "teacher_checksum": distiller.teacher_checksum,
        "student_arch": distiller.student_arch if isinstance(distiller.student_arch, str) else "custom",
        "student": distiller.policy.arch.asdict(),
        "weight_bits": distiller.policy.arch.weight_bits,
        "activation_bits": distiller.policy.arch.activation_bits,
        "transition": distiller.transition,
        "timesteps": distiller.num_timesteps,
        "recording": None if distiller.recording is None else repr(distiller.recording).strip("<>"),
        "seconds": distiller.seconds_learning,
        "seed": distiller.seed,
        "input_findings": distiller.input_findings,
        "evaluation_seed": plan.seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of this package, of Python, and of the packages that the figures depend on."""
    found = {"sb3_qpd": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
