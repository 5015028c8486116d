"""The folder of a student: its models, its report, and its exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.recordings import RecordedObservations
from sb3_qpd.envs.recipe import EnvSource
from sb3_qpd.evaluation.report import write_report
from sb3_qpd.evaluation.verify import Verification, load_model, verify
from sb3_qpd.export import export
from sb3_qpd.student_folder import FLOAT_ZIP, INTEGER_MODEL, STUDENT_ZIP


def write_student(
    distiller: QPDDistiller, env: EnvSource | None, folder: Path, report: Mapping[str, Any] | None = None, step: str = ""
) -> str | None:
    """
    Write the models of a student, and its report.

    :param distiller: the student
    :param env: environment that the integer model names, ``None`` where the distiller knows it
    :param folder: existing folder
    :param report: see :func:`~sb3_qpd.evaluation.comparison.make_report`; ``None`` writes none
    :param step: the line of the report that says what to do next, see :func:`~sb3_qpd.evaluation.report.write_report`
    :return: why there is no integer model; ``None`` where there is one
    """
    problem = None
    distiller.save(folder / STUDENT_ZIP)
    if (float_student := distiller.float_student()) is not None:
        float_student.save(folder / FLOAT_ZIP)
    try:
        distiller.to_integer(env).save(folder / INTEGER_MODEL)
    except ValueError as error:  # weights that are NaN: the zips show how far the student came
        problem = str(error)
    if report is not None:
        write_report(report, folder, step)
    return problem


def export_student(
    distiller: QPDDistiller, env: EnvSource | RecordedObservations, folder: Path, targets: Sequence[str]
) -> tuple[list[str], Verification]:
    """
    Export a student, and compare all of its forms.

    :param distiller: the student
    :param env: environment or recording that gives the observations to compare
    :param folder: folder that :func:`write_student` filled
    :param targets: names of targets
    :return: names of the new files, and the comparison
    """
    model = load_model(folder)
    with AtomicFolder(folder, force=True) as staging:
        for target in dict.fromkeys(targets):
            export(model, target, staging.path)
        names = staging.commit()
    return names, verify(folder, env, policy=distiller.policy)
