"""``compress --stop-when non-inferior``: end distillation once the integer student is as good as its teacher."""

from dataclasses import replace

from stable_baselines3.common.callbacks import BaseCallback

from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.evaluation.comparison import EvaluationPlan
from sb3_qpd.evaluation.episodes import VALIDATION_SEED, integer_player
from sb3_qpd.evaluation.statistics import compare

N_CHECKS = 10  # evenly spaced over the run; the last one would be at its end, where the report decides
MAX_EPISODES = 100  # of a check


class StopWhenNonInferior(BaseCallback):
    """
    Let the integer student play validation episodes now and then, and end the run once it is non-inferior to its teacher.

    The episodes are not those of the report: a student that was stopped by luck does not pass there.

    :param plan: plan of the report; mode and number of the validation episodes follow it
    """

    def __init__(self, plan: EvaluationPlan) -> None:
        super().__init__()
        n_episodes = min(plan.n_episodes, MAX_EPISODES)
        self._plan = replace(plan, seed=VALIDATION_SEED, n_episodes=n_episodes, progress_bar=False)
        self._n_done = 0

    def _on_training_start(self) -> None:
        distiller = self._distiller
        assert distiller.teacher is not None
        self._total_timesteps = self.locals["total_timesteps"]
        self._teacher = self._plan.play(distiller.teacher, "validation: teacher")
        self._random = self._plan.play("random", "validation: random")

    def _on_step(self) -> bool:
        distiller = self._distiller
        n_due = distiller.num_timesteps * N_CHECKS // self._total_timesteps
        if n_due <= self._n_done or n_due >= N_CHECKS:
            return True
        self._n_done = n_due
        student = self._plan.play(integer_player(distiller.policy), "validation: student")
        if compare(student, self._teacher, self._random).verdict != "non_inferior":
            return True
        print(
            f"Stopped after {distiller.num_timesteps} of {self._total_timesteps} steps: the student is non-inferior on "
            f"{student.episodes} validation episodes"
        )
        return False

    @property
    def _distiller(self) -> QPDDistiller:
        assert isinstance(self.model, QPDDistiller)
        return self.model
