"""The training and scoring of one student in a worker. The same task gives the same student in any process."""

from __future__ import annotations

import hashlib
import io
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_qpd.distillation.checkpoint_files import CheckpointError
from sb3_qpd.distillation.checkpoints import Checkpoint
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.evaluation.comparison import make_report
from sb3_qpd.evaluation.episodes import integer_player
from sb3_qpd.evaluation.student_files import export_student, write_student
from sb3_qpd.failures import describe_error
from sb3_qpd.search.tasks import Configuration, Failed, Finished, Job, Message, Score, Stopped, Task
from sb3_qpd.student_folder import INTEGER_MODEL

# warnings that Python does not show by default either
FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
Answer = Callable[[Score], bool]  # a score -> whether the trial goes on


class TrialStopped(Exception):
    """A trial ends at a rung. Its checkpoint stays, so that it can go on."""


class RungScores(BaseCallback):
    """
    Score the integer student at the rungs, and stop where the search says so.

    :param job: the job
    :param scored: rungs that were scored before
    :param answer: takes a score to the search, and says whether the trial goes on
    """

    def __init__(self, job: Job, scored: frozenset[int], answer: Answer) -> None:
        super().__init__()
        self._plan = replace(job.validation, n_episodes=job.rung_episodes)
        self._answer = answer
        # no list: the numbers of callbacks are kept in checkpoints, and what was scored is known to the search
        self._due = deque((rung, steps) for rung, steps in enumerate(job.rung_steps) if rung not in scored)

    def _on_step(self) -> bool:
        while self._due and self.num_timesteps >= self._due[0][1]:
            rung, _ = self._due.popleft()
            assert isinstance(self.model, QPDDistiller)
            played = self._plan.play(integer_player(self.model.policy), "validation")
            if not self._answer(Score(rung, played.returns)):
                raise TrialStopped
        return True


def make_distiller(job: Job, configuration: Configuration, seed: int, **changes: Any) -> QPDDistiller:
    """
    The distiller of a student. The search has checked the teacher once.

    :param job: the job
    :param configuration: size and bits
    :param seed: training seed
    :param changes: other arguments than the job's
    """
    weight_bits, activation_bits = configuration.bits
    settings = {**job.hyperparameters, **changes}
    return QPDDistiller(
        job.teacher,
        job.env,
        student_arch=configuration.size,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        seed=seed,
        check_teacher=False,
        **settings,
    )


def run_task(job: Job, task: Task, answer: Answer, after_checkpoint: Callable[[], None] | None = None) -> Message:
    """
    Train a student and score it, on one thread.

    :param job: the job
    :param task: the student
    :param answer: takes the score at a rung to the search, and says whether the trial goes on
    :param after_checkpoint: called after each checkpoint
    :return: :class:`Finished`, :class:`Stopped` or :class:`Failed`
    """
    th.set_num_threads(1)
    start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(io.StringIO()):
        warnings.simplefilter("default")
        for kind in FOR_DEVELOPERS:
            warnings.simplefilter("ignore", kind)
        try:
            result = _train(job, task, answer, after_checkpoint)
        except TrialStopped:
            return Stopped(*_since(start))
        except CheckpointError as error:  # the next attempt begins anew
            Checkpoint(task.folder).discard()
            return Failed(describe_error(error), *_since(start))
        except Exception as error:  # of any kind: environments are the user's code
            return Failed(describe_error(error), *_since(start))
    seconds, processor_seconds = _since(start)
    texts = [str(warning.message) for warning in caught]
    return replace(result, seconds=seconds, processor_seconds=processor_seconds, warnings=list(dict.fromkeys(texts)))


def _since(start: tuple[float, float]) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _train(job: Job, task: Task, answer: Answer, after_checkpoint: Callable[[], None] | None) -> Finished:
    distiller = make_distiller(job, task.configuration, task.seed)
    try:
        record = job.plan.learning_record() if task.with_files else None
        callback = record if task.is_retraining else RungScores(job, task.scored, answer)
        every = job.checkpoint_every
        checkpoint = None if every == 0 else Checkpoint(task.folder, every, resume=True, after_write=after_checkpoint)
        distiller.learn(job.timesteps, callback=callback, log_interval=None, checkpoint=checkpoint)
        return _score(distiller, job, task, None if record is None else record.to_json())
    finally:
        if distiller.env is not None:
            distiller.env.close()


def _score(distiller: QPDDistiller, job: Job, task: Task, learning: dict[str, Any] | None) -> Finished:
    plan = job.plan if task.is_retraining else job.validation
    returns = plan.play(integer_player(distiller.policy), task.name).returns
    notes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, task.configuration.name)  # the name is in texts of the report
        folder.mkdir()
        report = make_report(distiller, job.plan, learning=learning) if task.with_files else None
        write_student(distiller, job.plan.env, folder, report)
        if task.with_files and job.targets:
            exported, verification = export_student(distiller, job.env, folder, job.targets)
            notes = {"exports": exported, "verified": verification.holds}
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    checksum = hashlib.sha256(files[INTEGER_MODEL]).hexdigest()
    return Finished(
        returns,
        distiller.num_timesteps,
        distiller.policy.to_integer().nbytes,
        checksum,
        seconds=0.0,
        processor_seconds=0.0,
        files=files if task.with_files else {},
        notes=notes,
    )
