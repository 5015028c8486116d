"""The trials of a search in Optuna's storages."""

import os
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from sb3_qpd.search.study import SearchStudy
from sb3_qpd.search.tasks import Configuration, Failed, Finished, Stopped
from sb3_qpd.search.trials import Trial

SETTINGS = {"teacher": "ppo/CartPole-v1 1234", "seeds": 2}
FINISHED = Finished(np.array([1.5, 2.0]), 4_000, 250, "abc", seconds=3.0, processor_seconds=2.0)


def make_trials() -> list[Trial]:
    configuration = Configuration("nano-W8A8", "nano", (8, 8), {}, 250)
    return [Trial(number, configuration, seed) for number, seed in enumerate((0, 1, 2, 3))]


def open_study(folder: Path, storage: str | None, resume: bool, **changes: object) -> SearchStudy:
    settings = {**SETTINGS, **changes}
    return SearchStudy(make_trials(), settings, journal=folder / "search.log", storage=storage, resume=resume)


def storage_url(kind: str, folder: Path) -> str | None:
    return {"default": None, "sqlite": f"sqlite:///{folder}/search.db", "journal": str(folder / "other.log")}[kind]


@pytest.mark.parametrize("kind", ["default", "sqlite", "journal"])
def test_a_study_goes_on(kind: str, tmp_path: Path) -> None:
    storage = storage_url(kind, tmp_path)
    study = open_study(tmp_path, storage, resume=True)  # there is none: a new one
    finished, failed, stopped, _ = study.trials
    for trial in (finished, failed, stopped):
        study.begin(trial)
    study.add_score(finished, 0, 1_000, np.array([0.5, 0.25]))
    study.add_failure(finished, Failed("the wheel came off", seconds=1.0, processor_seconds=0.5))
    study.add_result(finished, FINISHED)
    for _ in range(3):
        study.add_failure(failed, Failed("no memory"))
    study.add_failure(stopped, Failed("its node is gone", counts=False))
    study.add_score(stopped, 0, 1_000, np.array([0.0, 0.0]))
    study.add_stop(stopped, Stopped(2.0, 1.0))
    with pytest.raises(ValueError, match="holds an unfinished search. Add resume=True"):
        open_study(tmp_path, storage, resume=False)
    with pytest.raises(ValueError, match='its teacher is "ppo/CartPole-v1 1234", this one\'s is "a2c/CartPole-v1 9"'):
        open_study(tmp_path, storage, resume=True, teacher="a2c/CartPole-v1 9")
    again = open_study(tmp_path, storage, resume=True)
    for ours, theirs in zip(again.trials, study.trials, strict=True):
        assert (ours.error, ours.failures, ours.seconds) == (theirs.error, theirs.failures, theirs.seconds)
        assert {rung: list(one) for rung, one in ours.scores.items()} == {r: list(one) for r, one in theirs.scores.items()}
    result = again.trials[0].result
    assert result is not None and (list(result.returns), result.checksum, result.seconds) == ([1.5, 2.0], "abc", 4.0)
    assert again.trials[1].has_failed and again.trials[2].failures == 0 and again.trials[3].error is None
    again.begin(again.trials[2])  # it goes on
    again.begin(again.trials[3])
    again.close([again.trials[2]])
    loaded = optuna.load_study(study_name="frontier", storage=_optuna_storage(storage, tmp_path))
    states = [trial.state for trial in loaded.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING]
    assert loaded.trials[0].params == {"size": "nano", "bits": "W8A8", "seed": 0} and loaded.best_value == 1.75


def _optuna_storage(storage: str | None, folder: Path) -> object:
    if storage is not None and storage.startswith("sqlite"):
        return storage
    backend = optuna.storages.journal.JournalFileBackend(storage or str(folder / "search.log"))
    return optuna.storages.JournalStorage(backend)


def test_what_a_killed_process_left_of_its_journal(tmp_path: Path) -> None:
    study = open_study(tmp_path, None, resume=True)
    study.begin(study.trials[0])
    journal = tmp_path / "search.log"
    with open(journal, "ab") as file:
        file.write(b'{"op_code": 5, "worker_')
    os.symlink(journal, f"{journal}.lock")
    again = open_study(tmp_path, None, resume=True)  # without the wait of half a minute for the lock
    again.add_result(again.trials[0], FINISHED)
    assert open_study(tmp_path, None, resume=True).trials[0].result is not None


def test_a_process_that_was_killed_before_it_told_the_end(tmp_path: Path) -> None:
    study = open_study(tmp_path, None, resume=True)
    study.begin(study.trials[0])
    study._handles[0].set_user_attr("result", {"returns": [1.0], "steps": 4_000, "nbytes": 250, "checksum": "abc"})
    again = open_study(tmp_path, None, resume=True)
    assert again.trials[0].result is not None
    assert optuna.load_study(study_name="frontier", storage=_optuna_storage(None, tmp_path)).trials[0].value == 1.0


def test_a_study_of_something_else(tmp_path: Path) -> None:
    storage = storage_url("sqlite", tmp_path)
    optuna.create_study(study_name="frontier", storage=storage).add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(
        ValueError, match="search.db, study frontier is no study of sb3-qpd frontier. Give another study_name="
    ):
        open_study(tmp_path, storage, resume=True)
