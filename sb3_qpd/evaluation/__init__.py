"""Evaluation: returns with intervals and verdicts, the bits and the speed of every form of a student, and the report."""

from sb3_qpd.evaluation.episodes import TEST_SEED, TRAIN_SEED, VALIDATION_SEED, evaluate, microseconds_per_action
from sb3_qpd.evaluation.statistics import Comparison, Evaluation, bootstrap_over_seeds, compare, episodes_needed, plan_episodes
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
