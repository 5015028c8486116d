"""The contest: random policy, teacher, float and integer student play the same episodes; what comes out is the report."""

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.envs.recipe import EnvRecipe, describe_env, make_recipe
from sb3_qpd.evaluation.episodes import TEST_SEED, VALIDATION_SEED, evaluate, microseconds_per_action
from sb3_qpd.evaluation.report import mode_name, notes_of, to_json
from sb3_qpd.evaluation.statistics import Evaluation, compare, episodes_needed, plan_episodes
from sb3_qpd.integer import IntegerModel
from sb3_qpd.observations import batch_size, pieces
from sb3_qpd.players import ObservationRecorder, Player
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.students.quantizers import FLOAT_BITS
from sb3_qpd.teachers.teacher import Teacher
from sb3_qpd.version import __version__

N_OBSERVATIONS = 1_000  # of the student's own games: parity and agreement are counted on them
N_PLANNING = 32  # episodes, on validation seeds, from which the number of test episodes follows
PACKAGES = ("stable-baselines3", "gymnasium", "numpy", "torch", "ale-py")


@dataclass(frozen=True)
class EvaluationPlan:
    """
    Where and how long everybody plays; fixed before anybody does.

    :param env: id, recipe, or an environment
    :param n_episodes: in the mode of the verdict
    :param n_other: in the other mode
    :param deterministic: the mode of the verdict
    :param seed: of the first episode
    :param n_envs: episodes side by side
    :param progress_bar: show one for each contender
    """

    env: str | EnvRecipe | gym.Env | VecEnv
    n_episodes: int
    n_other: int
    deterministic: bool = True
    seed: int = TEST_SEED
    n_envs: int = 32
    progress_bar: bool = False

    def play(self, policy: Player | str, name: str, other_mode: bool = False) -> Evaluation:
        return evaluate(
            policy,
            self.env,
            n_episodes=self.n_other if other_mode else self.n_episodes,
            seed=self.seed,
            deterministic=self.deterministic != other_mode,
            n_envs=self.n_envs,
            name=f"{name}, {mode_name(self.deterministic != other_mode)}",
            progress_bar=self.progress_bar,
        )


def plan_evaluation(
    teacher: Teacher,
    env: str | EnvRecipe | gym.Env | VecEnv,
    n_episodes: int | None = None,
    *,
    deterministic: bool | None = None,
    seed: int = TEST_SEED,
    n_envs: int = 32,
    progress_bar: bool = False,
) -> EvaluationPlan:
    """
    Fix the mode and the number of episodes.

    :param teacher: plays on validation seeds where its spread has to be known
    :param env: where everybody will play
    :param n_episodes: None: from the teacher's spread, for 80 % power
    :param deterministic: mode of the verdict; None: RL Zoo's, sampled for Atari and deterministic elsewhere
    :param seed: of the first test episode
    :param n_envs: episodes side by side
    :param progress_bar: show one for each contender
    """
    if deterministic is None:
        deterministic = isinstance(env, gym.Env | VecEnv) or make_recipe(env).deterministic
    if n_episodes is None:
        trial = EvaluationPlan(env, N_PLANNING, N_PLANNING, deterministic, VALIDATION_SEED, n_envs, progress_bar)
        planning = trial.play(teacher, "planning: teacher"), trial.play("random", "planning: random")
        n_episodes = plan_episodes(episodes_needed(*planning))
    n_other = min(n_episodes, max(20, n_episodes // 4))
    return EvaluationPlan(env, n_episodes, n_other, deterministic, seed, n_envs, progress_bar)


@dataclass(frozen=True)
class PolicyScores:
    """Both modes of one contender, and what it costs."""

    policy: Player | None
    main: Evaluation
    other: Evaluation
    size: dict[str, int]

    def section(self, observations: Any) -> dict[str, Any]:
        timing = None if self.policy is None else microseconds_per_action(self.policy, observations)
        return {**_figures(self.main), "other_mode": _figures(self.other), **self.size, "microseconds_per_action": timing}


class Evidence(NamedTuple):
    """
    That the integers are the student.

    :param parity: share of bit-equal outputs of the policy in eval mode and the integer model
    :param observations: of its own games, on which that was counted
    :param played_by: which of the two played
    """

    parity: float
    observations: Any
    played_by: str


def make_report(
    distiller: QPDDistiller, plan: EvaluationPlan, baselines: Mapping[str, QPDDistiller] | None = None
) -> dict[str, Any]:
    """
    Let the random policy, the teacher, the float and the integer student play, and compare.

    :param distiller: after learning
    :param plan: see :func:`plan_evaluation`
    :param baselines: other students of the same teacher and sizes, by name
    :return: what ``report.json`` holds
    """
    if (teacher := distiller.teacher) is None:
        raise ValueError("A report compares with the teacher, and this student has none: load it with teacher=...")
    start, model = time.perf_counter(), distiller.policy.to_integer()
    float_student, float_size = distiller.float_student(), _size(4 * model.n_parameters, model)
    random_play = plan.play("random", "random")
    contenders = {
        "random": PolicyScores(None, random_play, random_play, {}),
        "teacher": _play(plan, teacher, "teacher", _size(teacher.nbytes, teacher)),
    }
    if float_student is not None:
        contenders["float"] = _play(plan, float_student.policy, "float", float_size)
    integer, evidence = _play_integer(plan, distiller.policy, "integer")
    contenders["integer"] = integer
    others = {}
    for name, student in (baselines or {}).items():
        is_float = FLOAT_BITS in (student.policy.arch.weight_bits, student.policy.arch.activation_bits)
        others[name] = (
            _play(plan, student.policy, name, float_size) if is_float else _play_integer(plan, student.policy, name)[0]
        )
    against = contenders["teacher"].main, random_play
    report = {
        **_identity(distiller, plan),
        "float": None,
        **{name: contender.section(evidence.observations) for name, contender in contenders.items()},
        **asdict(compare(integer.main, *against)),
        **_percentages(model, teacher),
        "parity": evidence.parity,
        "parity_observations": batch_size(evidence.observations),
        "integer_played_by": evidence.played_by,
        "teacher_agreement": agreement(teacher, model, evidence.observations),
        "teacher_agreement_unit": "half_range" if model.is_box else "share",
        "baselines": {
            name: {**contender.section(evidence.observations), **asdict(compare(contender.main, *against))}
            for name, contender in others.items()
        },
        "evaluation_seconds": time.perf_counter() - start,
    }
    return to_json({**report, "notes": notes_of(report)})


def _play(plan: EvaluationPlan, policy: Player, name: str, size: dict[str, int]) -> PolicyScores:
    return PolicyScores(policy, plan.play(policy, name), plan.play(policy, name, other_mode=True), size)


def _play_integer(plan: EvaluationPlan, policy: QuantActorCriticPolicy, name: str) -> tuple[PolicyScores, Evidence]:
    """
    The integer model plays. For images the policy in eval mode plays in its place, which is faster: it gives the same bits,
    which is checked on observations of these very games, and where it does not, the integer model plays them again.
    """
    model = policy.to_integer()
    has_images = any(part.is_image for part in model.parts)
    recorder = ObservationRecorder(policy if has_images else model, N_OBSERVATIONS)
    main = plan.play(recorder, name)
    observations: Any = recorder.observations
    parity = parity_of(policy, model, observations)
    player: Player = policy if has_images and parity == 1.0 else model
    if player is not recorder.policy:
        main = plan.play(player, name)
    played_by = "the integer model" if player is model else "the policy in eval mode, which gives the same bits"
    contender = PolicyScores(model, main, plan.play(player, name, other_mode=True), _size(model.nbytes, model))
    return contender, Evidence(parity, observations, played_by)


def _size(nbytes: int, actor: Any) -> dict[str, int]:
    return {"bytes": nbytes, "params": actor.n_parameters, "macs": actor.macs}


@th.no_grad()
def parity_of(policy: QuantActorCriticPolicy, model: IntegerModel, observations: Any) -> float:
    """
    Share of outputs (logits, or mean actions) that are bit for bit the same in the policy and in the integer model.

    :param policy: it is put in eval mode
    :param model: its integer form
    :param observations: raw, shape (n_observations, *observation_shape)
    """
    policy.set_training_mode(False)
    equal = []
    for part in pieces([observations]):
        ours = policy.actor_and_value(policy.obs_to_tensor(part)[0])[0].cpu().numpy()
        equal.append(ours.astype(np.float32).view(np.uint32) == model.logits(part).view(np.uint32))
    return float(np.concatenate(equal).mean())


def agreement(teacher: Teacher, student: Player, observations: Any) -> float:
    """
    How alike both act on the same observations, deterministically and without masks.

    :return: share of equal actions (of equal dimensions, where there are several); for Box actions their mean absolute
        difference over half the range
    """
    actions = [
        np.concatenate([policy.predict(part, deterministic=True)[0] for part in pieces([observations])])
        for policy in (teacher, student)
    ]
    space = teacher.action_space
    if not isinstance(space, spaces.Box):
        return float(np.mean(actions[0] == actions[1]))
    half = (space.high.astype(np.float64) - space.low) / 2
    return float(np.mean(np.abs(actions[0] - actions[1]) / np.where(np.isfinite(half), half, 1.0)))


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
    }


def _percentages(model: IntegerModel, teacher: Teacher) -> dict[str, float]:
    return {
        "size_percent": 100 * model.nbytes / teacher.nbytes,
        # one byte for each parameter, biases too: an int8 teacher is a little larger, so this flatters nobody but it
        "size_percent_of_int8_teacher": 100 * model.nbytes / teacher.n_parameters,
        "params_percent": 100 * model.n_parameters / teacher.n_parameters,
        "macs_percent": 100 * model.macs / teacher.macs,
    }


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
        "seconds": distiller.seconds_learning,
        "seed": distiller.seed,
        "evaluation_seed": plan.seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of this package, Python, and whatever else the figures depend on."""
    found = {"sb3_qpd": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
