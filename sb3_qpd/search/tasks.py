"""The messages between the process that runs a search and its workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.envs.registry import find_spec
from sb3_qpd.evaluation.comparison import EvaluationPlan
from sb3_qpd.search.settings import Bits, Size
from sb3_qpd.teachers.teacher import Teacher

ENV_ADVICE = (
    "Expected an environment that can be pickled. Register it in a module, gymnasium.register('Cart-v0', "
    "entry_point='my_envs:Cart'), and give its id as env='my_envs:Cart-v0'"
)
TEACHER_ADVICE = "Save it as a zip, and give the path of the zip"

# an environment that another process can build
PortableEnv = EnvRecipe | Callable[[], gym.Env | VecEnv]


@dataclass(frozen=True)
class Configuration:
    """
    A size with its bits: what a point of the frontier is.

    :param name: unique name, also of its folder
    :param size: size, as ``student_arch`` takes it
    :param bits: bits of weights and activations
    :param arch: fields of the resolved :class:`~sb3_qpd.StudentArch`
    :param nbytes: bytes of the integer student
    """

    name: str
    size: Size
    bits: Bits
    arch: dict[str, Any]
    nbytes: int


@dataclass(frozen=True)
class Job:
    """
    What all tasks of a search share. It is sent once to a worker.

    :param teacher: the teacher
    :param env: its environment
    :param specs: registered environments that another process may not know
    :param plan: the test episodes
    :param validation: the validation episodes of a finished trial
    :param rung_steps: environment steps at which a trial is scored
    :param rung_episodes: validation episodes of such a score
    :param timesteps: environment steps of a trial
    :param hyperparameters: arguments of :class:`~sb3_qpd.QPDDistiller`
    :param checkpoint_every: environment steps between two checkpoints; ``None`` see :class:`~sb3_qpd.Checkpoint`, 0 for none
    :param targets: export targets of the students that are shown
    """

    teacher: Teacher
    env: PortableEnv
    specs: list[Any]
    plan: EvaluationPlan
    validation: EvaluationPlan
    rung_steps: list[int]
    rung_episodes: int
    timesteps: int
    hyperparameters: dict[str, Any]
    checkpoint_every: int | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """
    One student to train.

    :param name: unique name, also of its checkpoint's folder
    :param configuration: its size and bits
    :param seed: its training seed
    :param folder: folder of its checkpoint, on the machine that runs the search
    :param scored: rungs at which it was scored before
    :param is_retraining: whether it is trained for the result: it is scored on test episodes, and its files come back
    :param with_files: whether the files of a retrained student are wanted
    """

    name: str
    configuration: Configuration
    seed: int
    folder: str
    scored: frozenset[int] = frozenset()
    is_retraining: bool = False
    with_files: bool = False


@dataclass(frozen=True)
class Ready:
    """A worker has built its job and waits for a task."""


@dataclass(frozen=True)
class Score:
    """
    A trial has come to a rung. Its worker waits for the answer whether it goes on.

    :param rung: number of the rung
    :param returns: returns of the integer student, shape (rung_episodes,)
    """

    rung: int
    returns: np.ndarray


@dataclass(frozen=True)
class Finished:
    """
    A student was trained and scored.

    :param returns: returns of the integer student: on validation episodes of a trial, on test episodes of a retrained one
    :param steps: environment steps
    :param nbytes: bytes of the integer student
    :param checksum: SHA-256 of its ``student.npz``
    :param seconds: wall time of this attempt
    :param processor_seconds: processor time of this attempt
    :param warnings: what was warned of
    :param files: files of a retrained student, by name
    :param notes: facts about these files: the exports and whether they hold
    """

    returns: np.ndarray
    steps: int
    nbytes: int
    checksum: str
    seconds: float
    processor_seconds: float
    warnings: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """
    A trial has stopped at a rung, as it was told.

    :param seconds: wall time of this attempt
    :param processor_seconds: processor time of this attempt
    """

    seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Failed:
    """
    An attempt at a task has failed.

    :param error: what was raised, in one line
    :param seconds: wall time of this attempt
    :param processor_seconds: processor time of this attempt
    :param is_lost: whether the worker was lost with it, and will send :class:`Ready` when it is there again
    :param counts: whether this is one of the task's attempts; where a node was lost, it is not
    """

    error: str
    seconds: float = 0.0
    processor_seconds: float = 0.0
    is_lost: bool = False
    counts: bool = True


@dataclass(frozen=True)
class Unusable:
    """
    A worker cannot build the job, so that no other one can.

    :param error: what was raised, in one line
    """

    error: str


Message = Ready | Score | Finished | Stopped | Failed | Unusable


def pack_job(job: Job) -> bytes:
    """
    A job as bytes that another process can read.

    :param job: the job
    :raises ValueError: teacher or environment cannot be pickled
    """
    for name, part, advice in (("environment", (job.env, job.specs), ENV_ADVICE), ("teacher", job.teacher, TEACHER_ADVICE)):
        try:
            cloudpickle.dumps(part)
        except Exception as error:  # of any kind: objects say in their own way that they cannot be pickled
            problem = f"The {name} cannot be sent to other processes ({type(error).__name__}: {error})"
            raise ValueError(f"{problem}. {advice}") from error
    return cloudpickle.dumps(job)


def unpack_job(packed: bytes) -> Job:
    """
    The job in a worker, whose process then knows its environments.

    :param packed: from :func:`pack_job`, of the process that started this one
    """
    job: Job = cloudpickle.loads(packed)
    for spec in job.specs:
        if isinstance(spec.entry_point, str):  # it may register its environments itself, and twice gives a warning
            import_module(spec.entry_point.partition(":")[0])
        gym.registry.setdefault(spec.id, spec)
    return job


def specs_of(env: PortableEnv) -> list[Any]:
    """
    The registered environments that a worker has to know.

    :param env: recipe, or a class or function that makes an environment
    """
    return [find_spec(env.env_id)] if isinstance(env, EnvRecipe) else []
