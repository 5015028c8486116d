"""Targets of ``compress --target`` that cannot take the student: refused before it has learned, not after hours."""

from collections.abc import Sequence

from stable_baselines3.common.callbacks import BaseCallback

from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.export import check_target


def check_targets(distiller: QPDDistiller, targets: Sequence[str]) -> None:
    """
    Refuse targets that cannot take the student. Bits are known before training.

    :param distiller: trained or not
    :param targets: names of targets
    :raises ValueError: a target cannot take the student
    """
    model = distiller.policy.to_integer()
    for target in targets:
        check_target(target, model)


class CheckTargets(BaseCallback):
    """
    Check the targets once more at the first updates: by then the observations have shown whether the input has an origin.

    :param targets: names of targets
    """

    def __init__(self, targets: Sequence[str]) -> None:
        super().__init__()
        self._targets: Sequence[str] = targets
        self.has_refused = False

    def _on_step(self) -> bool:
        distiller = self.model
        assert isinstance(distiller, QPDDistiller)
        if self._targets and distiller._n_updates:
            try:
                check_targets(distiller, self._targets)
            except ValueError:
                self.has_refused = True
                raise
            self._targets = ()
        return True
