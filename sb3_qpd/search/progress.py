"""What a search shows while it runs: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sb3_qpd.search.selection import candidates, pareto_front
from sb3_qpd.search.settings import describe_bits, describe_size
from sb3_qpd.search.trials import Trial, by_configuration
from sb3_qpd.text import plain

MAX_ROWS = 40  # of the live table; of more configurations those without a running trial are left out first


class SearchProgress:
    """
    The progress of a search.

    :param trials: all trials, which the search keeps up to date
    :param timesteps: environment steps of a trial
    :param rung_steps: environment steps of each rung
    :param is_shown: ``False`` shows nothing
    :param console: where it is shown; ``None``: stderr
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        timesteps: int,
        rung_steps: Sequence[int],
        is_shown: bool = True,
        console: Console | None = None,
    ) -> None:
        self._trials, self._timesteps, self._rung_steps = trials, timesteps, list(rung_steps)
        self._console = console or Console(stderr=True)
        self._is_shown = is_shown
        self._live: Live | None = None
        self._told: dict[int, str] = {}
        self._start = time.perf_counter()
        self._steps_at_start = sum(map(self._steps_of, trials))
        self.stage = "search"

    def __enter__(self) -> SearchProgress:
        if self._is_shown and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, text: str) -> None:
        """
        Print a line above the table.

        :param text: the line
        """
        if self._is_shown:
            self._console.print(plain(text), markup=False, highlight=False)

    def show(self, stops: dict[int, int], running: Sequence[str]) -> None:
        """
        Show the state of the search.

        :param stops: trials that stop -> the rung at which they do
        :param running: names of the tasks that workers are at
        """
        if not self._is_shown:
            return
        states = {trial.number: self.state_of(trial, stops, running) for trial in self._trials}
        if self._live is not None:
            self._live.update(self._table(states, stops))
            return
        for trial in self._trials:
            state = states[trial.number]
            if state != self._told.get(trial.number) and state != "waiting":
                self._told[trial.number] = state
                self.tell(f"{trial.name}: {state}")

    def state_of(self, trial: Trial, stops: dict[int, int], running: Sequence[str]) -> str:
        """
        The state of a trial in a few words.

        :param trial: the trial
        :param stops: trials that stop -> the rung at which they do
        :param running: names of the tasks that workers are at
        """
        if trial.number in stops:
            rung = stops[trial.number]
            return f"stopped after {self._rung_steps[rung]} steps at {np.mean(trial.scores[rung]):.1f}"
        if trial.result is not None:
            return f"finished at {_mean(trial):.1f}"
        if trial.has_failed:
            return f"failed: {trial.error}"
        score = f" at {_mean(trial):.1f}" if trial.scores else ""
        again = f", attempt {trial.failures + 1} ({trial.error})" if trial.failures else ""
        return ("running" if trial.name in running else "waiting") + (score + again if score or again else "")

    def _steps_of(self, trial: Trial) -> int:
        if trial.result is not None:
            return trial.result.steps
        return self._rung_steps[max(trial.scores)] if trial.scores else 0

    def _table(self, states: dict[int, str], stops: dict[int, int]) -> Table:
        frontier = {one.configuration.name for one in pareto_front(candidates(self._trials, stops))}
        title = f"{self.stage}: {self._counts(states)}{self._time_left(states)}"
        table = Table(title=title, title_justify="left")
        for name in ("size", "bits", "bytes", "return", "trials"):
            table.add_column(name, justify="left" if name in ("size", "bits", "trials") else "right")
        groups = by_configuration(self._trials)
        if len(groups) > MAX_ROWS:
            groups = [group for group in groups if any(states[one.number].startswith("running") for one in group)][:MAX_ROWS]
        for group in groups:
            configuration = group[0].configuration
            means = [_mean(trial) for trial in group if trial.scores or trial.result is not None]
            table.add_row(
                plain(describe_size(configuration.size)),
                describe_bits(configuration.bits),
                str(configuration.nbytes),
                f"{np.mean(means):.1f}" if means else "",
                ", ".join(states[trial.number].split(":")[0] for trial in group),
                style="bold" if configuration.name in frontier else None,
            )
        return table

    def _counts(self, states: dict[int, str]) -> str:
        words = ("finished", "stopped", "failed", "running")
        counts = {word: sum(state.startswith(word) for state in states.values()) for word in words}
        return f"{len(states)} trials, " + ", ".join(f"{count} {word}" for word, count in counts.items())

    def _time_left(self, states: dict[int, str]) -> str:
        done = sum(map(self._steps_of, self._trials)) - self._steps_at_start
        seconds = time.perf_counter() - self._start
        over = ("finished", "stopped", "failed")
        left = sum(
            self._timesteps - self._steps_of(trial) for trial in self._trials if not states[trial.number].startswith(over)
        )
        if done <= 0 or left <= 0:
            return ""
        return f", at most {timedelta(seconds=int(seconds / done * left))} left"


def _mean(trial: Trial) -> float:
    returns = trial.result.returns if trial.result is not None else trial.scores[max(trial.scores)]
    return float(np.mean(returns))
