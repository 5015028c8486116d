"""The loop of a search: tasks go to free workers, and what they send is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sb3_qpd.distillation.checkpoints import Checkpoint
from sb3_qpd.search.study import SearchStudy
from sb3_qpd.search.tasks import Failed, Finished, Job, Message, Ready, Score, Stopped, Task, Unusable
from sb3_qpd.search.trials import MAX_ATTEMPTS, StopRule, Trial
from sb3_qpd.search.workers import Workers

SECONDS_TO_WAIT = 1.0  # between two looks at the clock of the table


class Queue(Protocol):
    """The tasks that a :class:`Scheduler` hands out."""

    def next_task(self) -> Task | None:
        """The next task that is not being worked at; ``None`` where all are being computed or done."""

    def handle(self, task: Task, message: Message) -> bool | None:
        """
        Keep a message about a task.

        :param task: the task
        :param message: message of its worker
        :return: whether the task goes on, after a :class:`~sb3_qpd.search.tasks.Score`
        """


class Scheduler:
    """
    Hands out the tasks of queues, one queue after the other, to the same workers.

    :param workers: the workers
    :param show: called after each message, and about once a second
    """

    def __init__(self, workers: Workers, show: Callable[[], None] = lambda: None) -> None:
        self._workers, self._show = workers, show
        self._free: list[int] = []
        self.working: dict[int, Task] = {}  # worker -> its task

    @property
    def names_of_tasks(self) -> list[str]:
        """Names of the tasks that workers compute now."""
        return [task.name for task in self.working.values()]

    def run(self, queue: Queue) -> None:
        """
        Work until a queue has no task left.

        :param queue: the tasks
        :raises ValueError: no worker can build the job
        """
        while True:
            self._hand_out(queue)
            self._show()
            if self._free and not self.working:
                return
            for worker, message in self._workers.receive(SECONDS_TO_WAIT):
                self._take(queue, worker, message)

    def _hand_out(self, queue: Queue) -> None:
        while self._free and (task := queue.next_task()) is not None:
            worker = self._free.pop(0)
            self.working[worker] = task
            self._workers.send(worker, task)

    def _take(self, queue: Queue, worker: int, message: Message) -> None:
        if isinstance(message, Unusable):
            raise ValueError(f"The workers cannot load teacher and environment: {message.error}")
        if isinstance(message, Ready):
            self._free.append(worker)
            return
        task = self.working.get(worker)
        if task is None:  # a worker without a task was lost
            self._free = [free for free in self._free if free != worker]
            return
        if not isinstance(message, Score):
            del self.working[worker]
        goes_on = queue.handle(task, message)
        if isinstance(message, Score):
            self._workers.send(worker, bool(goes_on))
        elif not (isinstance(message, Failed) and message.is_lost):
            self._free.append(worker)


class TrialQueue:
    """
    The trials of a search. What happens to them is kept in the study.

    :param study: the study
    :param rule: the rule by which trials stop; ``None``: none stops
    :param job: the job
    :param folder: folder of the checkpoints
    """

    def __init__(self, study: SearchStudy, rule: StopRule | None, job: Job, folder: Path) -> None:
        self._study, self._rule, self._job, self._folder = study, rule, job, folder
        self._by_name = {trial.name: trial for trial in study.trials}
        self._working: set[int] = set()
        self._warned: set[str] = set()
        self._stops: dict[int, int] | None = None  # until a message changes them

    def stops(self) -> dict[int, int]:
        """Number of each trial that stops -> the rung at which it does."""
        if self._stops is None:
            self._stops = {} if self._rule is None else self._rule.stops(self._study.trials)
        return self._stops

    def next_task(self) -> Task | None:
        stops = self.stops()
        for trial in self._study.trials:
            is_over = trial.result is not None or trial.has_failed or trial.number in stops
            if not is_over and trial.number not in self._working:
                self._study.begin(trial)
                self._working.add(trial.number)
                return self._task_of(trial)
        return None

    def _task_of(self, trial: Trial) -> Task:
        folder = str(self._folder / trial.name)
        return Task(trial.name, trial.configuration, trial.seed, folder, frozenset(trial.scores))

    def handle(self, task: Task, message: Message) -> bool | None:
        trial = self._by_name[task.name]
        self._stops = None
        if isinstance(message, Score):
            self._study.add_score(trial, message.rung, self._job.rung_steps[message.rung], message.returns)
            return trial.number not in self.stops()
        self._working.discard(trial.number)
        if isinstance(message, Finished):
            self._study.add_result(trial, message)
            Checkpoint(task.folder).discard()
            self._warn(message)
        elif isinstance(message, Stopped):
            self._study.add_stop(trial, message)
        elif isinstance(message, Failed):
            self._study.add_failure(trial, message)
        return None

    def _warn(self, result: Finished) -> None:
        """Hand on what a worker has warned of, each text once."""
        for text in result.warnings:
            if text not in self._warned:
                self._warned.add(text)
                warnings.warn(text)


class RetrainingQueue:
    """
    The students of the result, each trained with fresh seeds.

    :param tasks: the tasks
    :param keep: keeps what a task returned
    """

    def __init__(self, tasks: Sequence[Task], keep: Callable[[Task, Finished], None]) -> None:
        self._waiting, self._keep = list(tasks), keep
        self._failures: dict[str, int] = {}
        self.errors: dict[str, str] = {}  # name of a task that has failed -> its last error

    def next_task(self) -> Task | None:
        return self._waiting.pop(0) if self._waiting else None

    def handle(self, task: Task, message: Message) -> bool | None:
        if isinstance(message, Finished):
            self._keep(task, message)
            Checkpoint(task.folder).discard()
        elif isinstance(message, Failed):
            self._failures[task.name] = self._failures.get(task.name, 0) + message.counts
            if self._failures[task.name] < MAX_ATTEMPTS:
                self._waiting.insert(0, task)
            else:
                self.errors[task.name] = message.error
        return None
