import io

import numpy as np
from rich.console import Console

from sb3_qpd.search.progress import SearchProgress
from sb3_qpd.search.tasks import Configuration, Finished
from sb3_qpd.search.trials import Trial


def make_trials() -> list[Trial]:
    small, large = (Configuration(f"{size}-W8A8", size, (8, 8), {}, size_bytes) for size, size_bytes in _SIZES)
    trials = [Trial(0, small, 0), Trial(1, small, 1), Trial(2, large, 0), Trial(3, large, 1)]
    trials[0].result = Finished(np.full(4, 20.0), 1_000, 100, "", 1.0, 1.0)
    trials[1].scores[0] = np.full(4, 8.0)
    trials[1].error, trials[1].failures = "the wheel came off", 1
    trials[2].scores[0] = np.full(4, 2.0)
    return trials


_SIZES = (("nano", 100), ("tiny", 200))


def show(is_terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=140)
    with SearchProgress(make_trials(), 1_000, [250], console=console) as progress:
        for _ in range(2):
            progress.show({2: 0}, ["0001-nano-W8A8-seed-1"])
    return file.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    assert show(is_terminal=False).splitlines() == [
        "0000-nano-W8A8-seed-0: finished at 20.0",
        "0001-nano-W8A8-seed-1: running at 8.0, attempt 2 (the wheel came off)",
        "0002-tiny-W8A8-seed-0: stopped after 250 steps at 2.0",
    ]


def test_a_table_in_a_terminal() -> None:
    shown = show(is_terminal=True)
    assert "search: 4 trials, 1 finished, 1 stopped, 0 failed, 1 running" in shown
    assert "tiny" in shown and "W8A8" in shown and "14.0" in shown and "stopped after 250 steps at 2.0, waiting" in shown
