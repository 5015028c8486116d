"""Optuna's search space of ``qpd``, and the Pareto front of a study: return against size."""

from collections.abc import Iterable
from typing import Any

import optuna
from rl_zoo3 import linear_schedule

from sb3_qpd.students.architectures import STUDENT_ARCHS
from sb3_qpd.students.transitions import TRANSITIONS

ARCHS = tuple(STUDENT_ARCHS)[:3]  # larger ones are no compression of the usual teachers
SEARCHED_TRANSITIONS = tuple(name for name in TRANSITIONS if name != "none")  # none: it would be quantized untrained
SIZE = ("student_arch", "weight_bits", "activation_bits")
BYTES = "bytes"  # user attribute of a trial


def sample_qpd_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Draw hyperparameters, in the form that RL Zoo asks for.

    :param trial: a trial of the study
    :param n_actions: not used
    :param n_envs: not used
    :param additional_args: not used
    """
    params: dict[str, Any] = {
        "student_arch": trial.suggest_categorical("student_arch", ARCHS),
        "weight_bits": trial.suggest_categorical("weight_bits", [8, 4, 3]),
        "activation_bits": trial.suggest_categorical("activation_bits", [8, 4]),
        "learning_rate": trial.suggest_float("learning_rate", 5e-3, 0.2, log=True),
        "transition": trial.suggest_categorical("transition", SEARCHED_TRANSITIONS),
        "critic_coef": trial.suggest_float("critic_coef", 0.0, 1.0),
        "temperature": trial.suggest_float("temperature", 0.25, 2.0, log=True),
    }
    # RL Zoo turns names such as lin_0.001 into schedules before it samples: those of a trial would stay names
    return {**convert_qpd_params(params), "learning_rate": linear_schedule(params["learning_rate"])}


def convert_qpd_params(params: dict[str, Any]) -> dict[str, Any]:
    """
    Write a trial's parameters as an entry of ``qpd.yml`` has them.

    :param params: ``trial.params``
    """
    return {**params, "learning_rate": f"lin_{params['learning_rate']}"}


def pareto_front(trials: Iterable[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    """
    Find the finished students whose return no smaller or equally large student reaches, the smallest first.

    :param trials: trials of one study
    """
    done = [t for t in trials if t.state == optuna.trial.TrialState.COMPLETE and BYTES in t.user_attrs and t.value is not None]
    front: list[optuna.trial.FrozenTrial] = []
    for trial in sorted(done, key=lambda t: (t.user_attrs[BYTES], -t.value)):  # type: ignore[operator]
        if not front or trial.value > front[-1].value:  # type: ignore[operator]
            front.append(trial)
    return front


def front_table(front: Iterable[optuna.trial.FrozenTrial]) -> str:
    """
    Describe each student of a front in one line.

    :param front: trials that :func:`pareto_front` returned
    """
    lines = ["Return against size (students that no smaller one beats):", "  trial     bytes      return  student"]
    for trial in front:
        arch, weight_bits, activation_bits, transition = (trial.params.get(name, "-") for name in (*SIZE, "transition"))
        student = f"{arch} W{weight_bits}A{activation_bits} {transition}"  # -: not searched
        lines.append(f"  {trial.number:>5} {trial.user_attrs[BYTES]:>9} {trial.value:>11.2f}  {student}")
    return "\n".join(lines)
