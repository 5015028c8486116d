"""
Evaluation: returns with intervals and verdicts, the bits and the speed of every form of a student, and the report.

The names are loaded at their first use (PEP 562). So a child process that runs an exported policy imports no torch.
"""

from typing import TYPE_CHECKING

from sb3_qpd.lazy_names import lazy_names

if TYPE_CHECKING:
    from sb3_qpd.evaluation.episodes import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, evaluate, microseconds_per_action
    from sb3_qpd.evaluation.statistics import (
        Comparison,
        Evaluation,
        bootstrap_over_seeds,
        compare,
        episodes_needed,
        plan_episodes,
    )
    from sb3_qpd.players import ObservationRecorder, Player, RandomPolicy

__all__ = [
    "TEST_SEED",
    "TRAIN_SEED",
    "VALIDATION_SEED",
    "Comparison",
    "Evaluation",
    "ObservationRecorder",
    "Player",
    "RandomPolicy",
    "bootstrap_over_seeds",
    "compare",
    "episodes_needed",
    "evaluate",
    "microseconds_per_action",
    "plan_episodes",
]

_MODULE_OF = {
    **dict.fromkeys(("TEST_SEED", "TRAIN_SEED", "VALIDATION_SEED"), "evaluation.episodes"),
    **dict.fromkeys(("evaluate", "microseconds_per_action"), "evaluation.episodes"),
    **dict.fromkeys(("Comparison", "Evaluation", "bootstrap_over_seeds", "compare"), "evaluation.statistics"),
    **dict.fromkeys(("episodes_needed", "plan_episodes"), "evaluation.statistics"),
    **dict.fromkeys(("ObservationRecorder", "Player", "RandomPolicy"), "players"),
}

__getattr__ = lazy_names(globals(), _MODULE_OF)
