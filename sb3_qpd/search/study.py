"""
The storage of a search: an Optuna study, which holds the queue of trials, their scores and their results.

The study is a journal file in the result folder by default. Any storage of Optuna will do, and its tools can read the study.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.search.settings import JOURNAL_SUFFIX, describe_bits, describe_size
from sb3_qpd.search.tasks import Configuration, Failed, Finished, Stopped
from sb3_qpd.search.trials import Trial
from sb3_qpd.version import __version__

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ImportError as error:
    raise ImportError(
        f"The search for the smallest student needs Optuna, which is not installed ({error}). Install it with "
        "pip install 'sb3_qpd[frontier]'"
    ) from error

SETTINGS, VERSION, RESULT, ERROR, FAILURES, RETURNS = "settings", "sb3_qpd", "result", "error", "failures", "returns"
SECONDS, PROCESSOR_SECONDS = "seconds", "processor_seconds"


class SearchStudy:
    """
    The study of a search.

    :param trials: the trials of the search, in their order. What the study holds of them is filled in
    :param settings: what the search is: teacher, environment, sizes and so on, as JSON values
    :param journal: journal file that belongs to this search alone
    :param storage: another storage: a URL of Optuna, or a path that ends in ``.log``
    :param name: name of the study in that storage
    :param resume: whether the study may exist
    :raises ValueError: the study exists and ``resume`` is False, or it is another search's
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        settings: dict[str, Any],
        *,
        journal: Path,
        storage: str | None = None,
        name: str = "frontier",
        resume: bool = False,
    ) -> None:
        self.trials, self.name = trials, name
        self._where = str(journal) if storage is None else f"{storage}, study {name}"
        if storage is None:
            _repair(journal)
        with _quiet_optuna():
            self._study = _open_study(str(journal) if storage is None else storage, name)
            self._check_settings(settings, resume)
            self._enqueue()
        self._distributions = self._find_distributions()
        self._handles: dict[int, optuna.trial.Trial] = {}
        for frozen in self._study.get_trials(deepcopy=False):
            _fill_in(self.trials[frozen.number], frozen)
            if frozen.state == TrialState.RUNNING:
                self._handles[frozen.number] = optuna.trial.Trial(self._study, frozen._trial_id)
                self._tell(self.trials[frozen.number])  # a process may have been killed before it did

    def begin(self, trial: Trial) -> None:
        """
        Take a trial from the queue, if it has not begun before.

        :param trial: the first trial of the queue, or one that goes on
        """
        if trial.number in self._handles:
            return
        handle = self._study.ask(self._distributions)
        assert handle.number == trial.number  # trials begin in their order
        self._handles[trial.number] = handle

    def add_score(self, trial: Trial, rung: int, steps: int, returns: np.ndarray) -> None:
        """
        Keep the score of a trial at a rung.

        :param trial: the trial
        :param rung: number of the rung
        :param steps: environment steps at the rung
        :param returns: returns on validation episodes
        """
        trial.scores[rung] = returns
        handle = self._handles[trial.number]
        handle.set_user_attr(f"{RETURNS} {rung}", returns.tolist())
        handle.report(float(returns.mean()), steps)

    def add_result(self, trial: Trial, result: Finished) -> None:
        """
        Keep the result of a trial that ran to the end.

        :param trial: the trial
        :param result: its result
        """
        trial.result = result
        self._add_seconds(trial, result)
        handle = self._handles[trial.number]
        kept = {name: getattr(result, name) for name in ("steps", "nbytes", "checksum")}
        handle.set_user_attr(RESULT, {**kept, RETURNS: result.returns.tolist()})
        self._tell(trial)

    def add_failure(self, trial: Trial, failure: Failed) -> None:
        """
        Keep a failed attempt. After the last one the trial has failed.

        :param trial: the trial
        :param failure: what happened
        """
        trial.error = failure.error
        trial.failures += failure.counts
        self._add_seconds(trial, failure)
        handle = self._handles[trial.number]
        handle.set_user_attr(ERROR, failure.error)
        handle.set_user_attr(FAILURES, trial.failures)
        self._tell(trial)

    def add_stop(self, trial: Trial, stopped: Stopped) -> None:
        """
        Keep the time of a trial that has stopped. Optuna is told at the end, when the trial cannot go on any more.

        :param trial: the trial
        :param stopped: its time
        """
        self._add_seconds(trial, stopped)

    def close(self, stopped: Sequence[Trial]) -> None:
        """
        Tell Optuna which trials stopped, once no trial goes on.

        :param stopped: trials that stopped
        """
        states = [frozen.state for frozen in self._study.get_trials(deepcopy=False)]
        for trial in stopped:
            if states[trial.number] == TrialState.RUNNING:
                self._study.tell(self._handles[trial.number], state=TrialState.PRUNED)

    def _tell(self, trial: Trial) -> None:
        """Tell Optuna the end of a trial, if it has come to one."""
        handle = self._handles[trial.number]
        if trial.result is not None:
            self._study.tell(handle, float(trial.result.returns.mean()))
        elif trial.has_failed:
            self._study.tell(handle, state=TrialState.FAIL)

    def _add_seconds(self, trial: Trial, message: Finished | Failed | Stopped) -> None:
        trial.seconds += message.seconds
        trial.processor_seconds += message.processor_seconds
        handle = self._handles[trial.number]
        handle.set_user_attr(SECONDS, trial.seconds)
        handle.set_user_attr(PROCESSOR_SECONDS, trial.processor_seconds)

    def _check_settings(self, settings: dict[str, Any], resume: bool) -> None:
        known = self._study.user_attrs.get(SETTINGS)
        if known is None:
            if self._study.get_trials(deepcopy=False):
                raise ValueError(f"{self._where} is no study of sb3-qpd frontier. Give another study_name=")
            self._study.set_user_attr(VERSION, __version__)
            self._study.set_user_attr(SETTINGS, settings)
            return
        if not resume:
            raise ValueError(
                f"{self._where} holds an unfinished search. Add resume=True to go on, or give another out= or "
                "study_name= to begin anew"
            )
        ours = json.loads(json.dumps(settings))
        for key in dict.fromkeys((*ours, *known)):
            if known.get(key) != ours.get(key):
                raise ValueError(
                    f"{self._where} is another search: its {key} is {_short(known.get(key))}, this one's is "
                    f"{_short(ours.get(key))}. Repeat the settings of that search, or give another out= or study_name="
                )

    def _enqueue(self) -> None:
        """Queue the trials in their order; those that a killed process queued stay."""
        n_known = len(self._study.get_trials(deepcopy=False))
        for trial in self.trials[n_known:]:
            self._study.enqueue_trial(_params(trial), user_attrs={"bytes": trial.configuration.nbytes})

    def _find_distributions(self) -> dict[str, Any]:
        params = [_params(trial) for trial in self.trials]
        choices = {name: list(dict.fromkeys(one[name] for one in params)) for name in params[0]}
        return {name: optuna.distributions.CategoricalDistribution(values) for name, values in choices.items()}


def _params(trial: Trial) -> dict[str, Any]:
    configuration: Configuration = trial.configuration
    return {"size": describe_size(configuration.size), "bits": describe_bits(configuration.bits), "seed": trial.seed}


def _fill_in(trial: Trial, frozen: Any) -> None:
    """Give a trial what the study holds of it."""
    attrs = frozen.user_attrs
    trial.error, trial.failures = attrs.get(ERROR), attrs.get(FAILURES, 0)
    trial.seconds, trial.processor_seconds = attrs.get(SECONDS, 0.0), attrs.get(PROCESSOR_SECONDS, 0.0)
    for name, value in attrs.items():
        kind, _, rung = name.partition(" ")
        if kind == RETURNS and rung.isdigit():
            trial.scores[int(rung)] = np.array(value, np.float64)
    result = attrs.get(RESULT)
    if result is not None:
        returns = np.array(result[RETURNS], np.float64)
        facts = {name: result[name] for name in ("steps", "nbytes", "checksum")}
        trial.result = Finished(returns, seconds=trial.seconds, processor_seconds=trial.processor_seconds, **facts)


def _open_study(storage: str, name: str) -> optuna.Study:
    is_journal = "://" not in storage and storage.endswith(JOURNAL_SUFFIX)
    try:
        opened = optuna.storages.JournalStorage(JournalFileBackend(storage)) if is_journal else storage
        return optuna.create_study(study_name=name, storage=opened, direction="maximize", load_if_exists=True)
    except Exception as error:  # of SQLAlchemy, or of a database's driver
        raise ValueError(
            f"The storage {storage} cannot be opened ({error}). Expected a URL of Optuna such as sqlite:///search.db, or the "
            "path of a journal file that ends in .log"
        ) from error


def _repair(journal: Path) -> None:
    """Cut off the line that a killed process had begun, and remove its lock. The result folder has one search at a time."""
    for left_over in journal.parent.glob(f"{journal.name}.lock*"):
        left_over.unlink(missing_ok=True)
    with suppress(FileNotFoundError), open(journal, "r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own messages off the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
