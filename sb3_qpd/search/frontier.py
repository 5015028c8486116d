"""The search for the smallest student that plays as well as its teacher, from its arguments to its result folder."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_qpd.atomic import UNFINISHED, AtomicFolder, uninterrupted
from sb3_qpd.checks import check_count, check_flags, check_path, check_whole, did_you_mean
from sb3_qpd.distillation.base import torch_threads
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.schedules import transition_end
from sb3_qpd.envs.recipe import EnvSource, describe_env
from sb3_qpd.evaluation.cache import digest_of
from sb3_qpd.evaluation.comparison import EvaluationPlan, plan_evaluation
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.evaluation.statistics import MIN_VERDICT_EPISODES, Evaluation, compare, margin_of
from sb3_qpd.export import check_target, find_exporter
from sb3_qpd.search.planning import plan_trials, portable_env
from sb3_qpd.search.progress import SearchProgress
from sb3_qpd.search.results import (
    JOURNAL,
    Outcome,
    RetrainedStudents,
    describe_points,
    describe_search,
    describe_test,
    find_winner,
    publish,
    write_pages,
    write_unfinished,
)
from sb3_qpd.search.scheduler import RetrainingQueue, Scheduler, TrialQueue
from sb3_qpd.search.selection import Candidate, candidates, choose
from sb3_qpd.search.settings import (
    DEFAULT_BITS,
    DEFAULT_RUNGS,
    DEFAULT_SIZES,
    DEFAULT_TIMESTEPS,
    SearchSettings,
    Size,
    check_storage,
)
from sb3_qpd.search.study import SearchStudy
from sb3_qpd.search.tasks import Finished, Job, Task, pack_job, specs_of
from sb3_qpd.search.trials import Standard, StopRule
from sb3_qpd.search.workers import LocalWorkers, Workers, n_cores
from sb3_qpd.teachers.loading import load_teacher
from sb3_qpd.teachers.teacher import Teacher

DEFAULTS = QPDDistiller.__init__.__kwdefaults__ or {}
MAX_VALIDATION_EPISODES = 100  # of a finished trial, where the caller names no number
# arguments of QPDDistiller that a search gives itself
OWN_ARGUMENTS = ("student_arch", "weight_bits", "activation_bits", "check_teacher", "verbose", "tensorboard_log")


def frontier(
    teacher: str | Path | BaseAlgorithm | Teacher,
    out: str | Path,
    *,
    env: EnvSource | None = None,
    sizes: Sequence[Size] = DEFAULT_SIZES,
    bits: Sequence[Any] = DEFAULT_BITS,
    seeds: int = 3,
    timesteps: float = DEFAULT_TIMESTEPS,
    max_bytes: int | str | None = None,
    seed: int = 0,
    early_stopping: bool = True,
    rungs: Sequence[float] = DEFAULT_RUNGS,
    episodes: int | None = None,
    validation_episodes: int | None = None,
    workers: int | None = None,
    ray: str | None = None,
    storage: str | None = None,
    study_name: str = "frontier",
    resume: bool = False,
    force: bool = False,
    targets: Sequence[str] = (),
    checkpoint_every: int | None = None,
    max_episode_steps: int | None = None,
    progress_bar: bool = False,
    cache: bool = True,
    command: str = "",
    **hyperparameters: Any,
) -> dict[str, Any]:
    """
    Find the smallest student that plays as well as its teacher, and the best students of all other sizes.

    Every size is tried with all bits and seeds. Trials that cannot win stop early, see
    :class:`~sb3_qpd.search.trials.StopRule`. Validation episodes choose the frontier and its winner. These students are then
    trained again with fresh seeds, and scored once on test episodes. The result is ``out/frontier.json``, with a folder for
    each student.

    The workers are processes, which import the caller's main module. A script that calls this function directly therefore
    needs ``if __name__ == "__main__":`` around the call.

    :param teacher: anything that :func:`~sb3_qpd.load_teacher` takes
    :param out: new or empty folder for the result. An unfinished search keeps its state there
    :param env: environment id or recipe, or a class or function that makes an environment; ``None`` takes the teacher's own
    :param sizes: sizes of students, as ``student_arch`` of :class:`~sb3_qpd.QPDDistiller` takes them
    :param bits: one number for weights and activations, a pair of numbers, or a text such as ``"W2A8"``; several of these
    :param seeds: number of training seeds of each size and bits, and of fresh ones for the result
    :param timesteps: environment steps of each student
    :param max_bytes: search the best student of at most so many bytes, such as 2000, ``"2kB"`` or ``"0.5%"`` of the teacher's
        float32 actor. ``None`` searches the smallest non-inferior one
    :param seed: first training seed
    :param early_stopping: whether trials that cannot win stop early
    :param rungs: progress of learning at which trials are scored and may stop, between 0 and 1
    :param episodes: test episodes; ``None``: 100 to 1,000, from the teacher's spread
    :param validation_episodes: validation episodes of a finished trial; ``None``: as many as test episodes, at most 100
    :param workers: number of students that are trained side by side; ``None``: one for each processor core
    :param ray: address of a Ray cluster, or ``"auto"``; ``None`` uses processes of this machine
    :param storage: URL of an Optuna storage, or a journal file that ends in ``.log``; ``None``: a journal file in ``out``
    :param study_name: name of the Optuna study
    :param resume: go on with the unfinished search in ``out``, if there is one
    :param force: replace an earlier result in ``out``
    :param targets: export targets of the students in the result
    :param checkpoint_every: environment steps between two checkpoints of a trial; ``None`` see :class:`~sb3_qpd.Checkpoint`, 0
        for none
    :param max_episode_steps: see :func:`~sb3_qpd.evaluate`
    :param progress_bar: show a live table on stderr; plain lines where stderr is no terminal
    :param cache: keep the episodes of the teacher and of the random policy
    :param command: command line that the result names
    :param hyperparameters: other arguments of :class:`~sb3_qpd.QPDDistiller`
    :return: contents of ``frontier.json``
    :raises ValueError: an argument is refused, or ``out`` holds another search
    """
    check_path("out", out)
    check_flags(early_stopping=early_stopping, resume=resume, force=force, progress_bar=progress_bar, cache=cache)
    _check_hyperparameters(hyperparameters)
    check_storage(storage, study_name)
    check_whole("checkpoint_every", 0 if checkpoint_every is None else checkpoint_every, least=0)
    search_range: dict[str, Any] = {"seeds": seeds, "timesteps": timesteps, "max_bytes": max_bytes, "seed": seed}
    settings = SearchSettings(
        sizes if isinstance(sizes, str) else tuple(sizes),  # type: ignore[arg-type]
        bits if isinstance(bits, str) else tuple(bits),  # type: ignore[arg-type]
        rungs=tuple(rungs) if early_stopping else (),
        hyperparameters=hyperparameters,
        **search_range,
    )
    if workers is not None:
        check_count("workers", workers)
    if ray is not None:
        from sb3_qpd.search.ray_workers import check_address  # imports ray, which is optional

        check_address(ray)
    own_env = None if isinstance(teacher, Teacher) else env
    loaded = load_teacher(teacher, env=own_env, device=hyperparameters.get("device", "auto"))
    options = {"max_episode_steps": max_episode_steps, "cache": cache}
    with torch_threads(1):  # as in the workers, which have the other cores
        job = _make_job(loaded, env, settings, episodes, validation_episodes, checkpoint_every, tuple(targets), options)
        search = _Search(job, settings, Path(out).expanduser(), resume, force, command)
        with search.staging:
            search.open(storage, study_name)
            return search.run(lambda packed, n_trials: open_workers(packed, n_trials, workers, ray), progress_bar)


def _check_hyperparameters(given: dict[str, Any]) -> None:
    for name in given:
        if name in OWN_ARGUMENTS:
            raise ValueError(f"{name} is set by the search itself. Give sizes= and bits= to say what is searched")
    known = [name for name in DEFAULTS if name not in OWN_ARGUMENTS and name[0] != "_"]
    for name in given:
        if name not in known:
            raise TypeError(f"Unknown argument {name!r} of a search.{did_you_mean(name, known)}")


def _make_job(
    teacher: Teacher,
    env: EnvSource | None,
    settings: SearchSettings,
    episodes: int | None,
    validation_episodes: int | None,
    checkpoint_every: int | None,
    targets: tuple[str, ...],
    options: dict[str, Any],
) -> Job:
    for target in targets:
        find_exporter(target)
    portable = portable_env(teacher, env)
    plan = plan_evaluation(teacher, portable, episodes, **options)
    n_validation = validation_episodes or min(plan.n_episodes, MAX_VALIDATION_EPISODES)
    check_count("validation_episodes", n_validation)
    return Job(
        _portable_teacher(teacher),
        portable,
        specs_of(portable),
        plan,
        replace(plan, seed=VALIDATION_SEED, n_episodes=n_validation, needed=None),
        settings.rung_steps,
        min(settings.rung_episodes, n_validation),
        settings.timesteps,
        dict(settings.hyperparameters),
        checkpoint_every,
        targets,
    )


def open_workers(packed_job: bytes, n_trials: int, count: int | None, address: str | None) -> Workers:
    """
    Start the workers, at most one for each trial: others would have nothing to do.

    :param packed_job: see :class:`~sb3_qpd.search.workers.LocalWorkers`
    :param n_trials: number of trials
    :param count: number of workers; ``None``: one for each core
    :param address: address of a Ray cluster; ``None``: this machine
    """
    if address is None:
        return LocalWorkers(packed_job, min(count or n_cores(), n_trials))
    from sb3_qpd.search.ray_workers import RayWorkers

    return RayWorkers(packed_job, address, count, n_trials)


def _portable_teacher(teacher: Teacher) -> Teacher:
    """A teacher without its folder and without a live environment, which no worker needs."""
    portable = copy.copy(teacher)
    portable.run, portable.vec_env = None, None
    return portable


class _Search:
    """
    A search in its result folder.

    :param job: the job
    :param settings: what is searched
    :param out: result folder
    :param resume: whether an unfinished search goes on
    :param force: whether an earlier result is replaced
    :param command: command line that the result names
    """

    def __init__(self, job: Job, settings: SearchSettings, out: Path, resume: bool, force: bool, command: str) -> None:
        self._job, self._settings, self._command, self._resume = job, settings, command, resume
        self._packed = pack_job(job)
        self._trials = plan_trials(job, settings, self._check_targets)
        self._folder = out.absolute() / UNFINISHED  # workers of other machines have another current folder
        self._journal = self._folder / JOURNAL
        self._students = RetrainedStudents(self._folder)
        self.staging = AtomicFolder(out, force or self._folder.exists(), argument="out")

    def _check_targets(self, distiller: QPDDistiller) -> None:
        model = distiller.policy.to_integer()
        for target in self._job.targets:
            check_target(target, model)

    def open(self, storage: str | None, study_name: str) -> None:
        """
        Open the study.

        :param storage: see :func:`frontier`
        :param study_name: see :func:`frontier`
        :raises ValueError: it is another search's, or an unfinished one that was not asked for
        """
        job, settings = self._job, self._settings.to_json()
        identity = {
            "teacher": f"{job.teacher.name} {digest_of(job.teacher)}",
            "environment": describe_env(job.env),
            **{"deterministic": job.plan.deterministic, "validation_episodes": job.validation.n_episodes},
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._study = SearchStudy(
                self._trials,
                {**identity, **settings},
                journal=self._journal,
                storage=storage,
                name=study_name,
                resume=self._resume,
            )
        except BaseException:
            with suppress(OSError):  # they are empty where nothing was begun
                self._folder.rmdir()
                self._folder.parent.rmdir()
            raise

    def run(self, open_workers: Callable[[bytes, int], Workers], progress_bar: bool) -> dict[str, Any]:
        """
        Search, retrain and publish.

        :param open_workers: starts the workers, from the packed job and the number of trials
        :param progress_bar: show what happens
        :return: contents of ``frontier.json``
        """
        workers = open_workers(self._packed, len(self._trials))
        try:
            standard = self._play_standard(self._job.validation)  # while the workers start
            queue = TrialQueue(self._study, self._make_rule(standard), self._job, self._folder / "trials")
            try:
                with SearchProgress(self._trials, self._settings.timesteps, self._job.rung_steps, progress_bar) as progress:
                    outcome = self._search_and_retrain(standard, queue, workers, progress)
            except BaseException:
                with uninterrupted():
                    write_unfinished(self._describe(standard, queue), self.staging.out)
                raise
        finally:
            workers.close()
        return self._publish(outcome, self._describe(standard, queue))

    def _search_and_retrain(
        self, standard: Standard, queue: TrialQueue, workers: Workers, progress: SearchProgress
    ) -> Outcome:
        start = time.perf_counter()
        scheduler = Scheduler(workers, lambda: progress.show(queue.stops(), scheduler.names_of_tasks))
        scheduler.run(queue)
        stops = queue.stops()
        self._study.close([self._trials[number] for number in stops])
        searched = time.perf_counter()
        chosen, winner = choose(candidates(self._trials, stops), standard, self._settings.max_bytes is not None)
        tasks = self._retrain(chosen, winner, scheduler, progress)
        return Outcome(chosen, winner, tasks, {"search": searched - start, "retraining": time.perf_counter() - searched})

    def _play_standard(self, plan: EvaluationPlan) -> Standard:
        teacher, random = plan.play(self._job.teacher, "teacher"), plan.play("random", "random")
        if self._settings.max_bytes is None and plan.n_episodes < MIN_VERDICT_EPISODES:
            warnings.warn(
                f"{plan.n_episodes} validation episodes find no winner: a verdict takes at least {MIN_VERDICT_EPISODES}. "
                f"Give validation_episodes={MIN_VERDICT_EPISODES} or more"
            )
        at_rungs = replace(plan, n_episodes=self._job.rung_episodes).play(self._job.teacher, "teacher")
        if compare(teacher, teacher, random).verdict == "no_claim":
            warnings.warn(
                f"The teacher ({teacher.return_mean:.1f}) is not clearly better than a random policy "
                f"({random.return_mean:.1f}): no student can be shown to be as good. See what it does with sb3-qpd evaluate"
            )
        return Standard(teacher, random, at_rungs.returns)

    def _make_rule(self, standard: Standard) -> StopRule | None:
        if not self._settings.rungs:
            return None
        given = {**DEFAULTS, **self._settings.hyperparameters}
        transition = given["transition_start"], given["transition_end"], given["transition_steps"]
        precision_end = transition_end(*transition, self._settings.timesteps)
        return StopRule(standard, self._settings.rungs, precision_end, stops_larger=self._settings.max_bytes is None)

    def _retrain(
        self, chosen: list[Candidate], winner: int | None, scheduler: Scheduler, progress: SearchProgress
    ) -> list[list[Task]]:
        """Train the students of the frontier with fresh seeds, the winner first. Those on the disk are kept."""
        tasks = [self._tasks_of(one) for one in chosen]
        first = [] if winner is None else tasks[winner]
        ordered = [*first, *(task for group in tasks if group is not first for task in group)]
        waiting = [task for task in ordered if self._students.read(task) is None]

        def keep(task: Task, result: Finished) -> None:
            self._students.keep(task, result)
            waiting.remove(task)
            progress.stage = f"{len(ordered) - len(waiting)} of {len(ordered)} students retrained with fresh seeds"
            progress.tell(f"{task.name}: retrained, {result.returns.mean():.1f} on {len(result.returns)} test episodes")

        queue = RetrainingQueue(list(waiting), keep)
        scheduler.run(queue)
        for name, error in queue.errors.items():
            warnings.warn(f"{name} could not be retrained, and is not in the result: {error}")
        return tasks

    def _tasks_of(self, one: Candidate) -> list[Task]:
        configuration, seeds = one.configuration, self._settings.fresh_seeds
        return [
            Task(
                name := f"{configuration.name}-seed-{seed}",
                configuration,
                seed,
                str(self._folder / "students" / name),
                is_retraining=True,
                with_files=seed == seeds[0],
            )
            for seed in seeds
        ]

    def _describe(self, standard: Standard, queue: TrialQueue) -> dict[str, Any]:
        return describe_search(self._job, self._settings, standard, self._trials, queue.stops(), self._command)

    def _publish(self, outcome: Outcome, content: dict[str, Any]) -> dict[str, Any]:
        plan = self._job.plan
        teacher, random = (self._play_test(policy) for policy in (self._job.teacher, "random"))
        points, chosen = describe_points(outcome, self._students, teacher, random, plan.needed)
        winner = chosen if self._settings.max_bytes is not None else find_winner(points, chosen)
        content |= {"points": points, "chosen": chosen, "winner": winner}
        content["test"] = describe_test(teacher, random, margin_of(teacher, random))
        content["seconds"] |= outcome.seconds
        with uninterrupted():
            publish(content, outcome, self._students, self.staging, self._journal)
        write_pages(self.staging.out, points)
        return content

    def _play_test(self, policy: Teacher | str) -> Evaluation:
        return self._job.plan.play(policy, policy if isinstance(policy, str) else "teacher")
