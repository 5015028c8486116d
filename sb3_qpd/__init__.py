"""
Distill Stable-Baselines3 agents into tiny integer policies that play as well.

The public names are loaded at their first use (PEP 562): ``import sb3_qpd`` is instant, and
``from sb3_qpd.integer import IntegerModel`` needs only numpy.
"""

from typing import TYPE_CHECKING

from sb3_qpd.checks import did_you_mean
from sb3_qpd.lazy_names import lazy_names
from sb3_qpd.version import __version__

if TYPE_CHECKING:
    from sb3_qpd.distillation.checkpoints import Checkpoint
    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.distillation.recordings import RecordedObservations
    from sb3_qpd.distillation.schedules import CosineSchedule
    from sb3_qpd.distillation.student_zip import load_student
    from sb3_qpd.envs.atari import AtariVecEnv
    from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
    from sb3_qpd.evaluation.episodes import evaluate
    from sb3_qpd.evaluation.learning_record import LearningRecord
    from sb3_qpd.evaluation.statistics import Evaluation, compare
    from sb3_qpd.export import (
        export_arduino,
        export_c,
        export_js,
        export_micropython,
        export_numpy,
        export_onnx,
        export_tflite,
    )
    from sb3_qpd.integer import IntegerModel
    from sb3_qpd.publishing.push import push_to_hub
    from sb3_qpd.search.frontier import frontier
    from sb3_qpd.students.architectures import STUDENT_ARCHS, StudentArch
    from sb3_qpd.students.optimizer import MuonAdam
    from sb3_qpd.students.policies import QuantActorCriticCnnPolicy, QuantActorCriticPolicy, QuantMultiInputActorCriticPolicy
    from sb3_qpd.students.transitions import TRANSITIONS
    from sb3_qpd.teachers.files.archive import TeacherError
    from sb3_qpd.teachers.labels import TeacherLabels
    from sb3_qpd.teachers.loading import load_teacher
    from sb3_qpd.teachers.normalization import ObsNormalization
    from sb3_qpd.teachers.teacher import Teacher, TeacherOutput


__all__ = [
    "STUDENT_ARCHS",
    "TRANSITIONS",
    "AtariVecEnv",
    "Checkpoint",
    "CosineSchedule",
    "EnvRecipe",
    "Evaluation",
    "IntegerModel",
    "LearningRecord",
    "MuonAdam",
    "ObsNormalization",
    "QPDDistiller",
    "QuantActorCriticCnnPolicy",
    "QuantActorCriticPolicy",
    "QuantMultiInputActorCriticPolicy",
    "RecordedObservations",
    "StudentArch",
    "Teacher",
    "TeacherError",
    "TeacherLabels",
    "TeacherOutput",
    "__version__",
    "compare",
    "evaluate",
    "export_arduino",
    "export_c",
    "export_js",
    "export_micropython",
    "export_numpy",
    "export_onnx",
    "export_tflite",
    "frontier",
    "load_student",
    "load_teacher",
    "make_recipe",
    "push_to_hub",
]

_MODULE_OF = {
    "Checkpoint": "distillation.checkpoints",
    "QPDDistiller": "distillation.distiller",
    "RecordedObservations": "distillation.recordings",
    "CosineSchedule": "distillation.schedules",
    "load_student": "distillation.student_zip",
    "AtariVecEnv": "envs.atari",
    "EnvRecipe": "envs.recipe",
    "make_recipe": "envs.recipe",
    "evaluate": "evaluation.episodes",
    "LearningRecord": "evaluation.learning_record",
    "Evaluation": "evaluation.statistics",
    "compare": "evaluation.statistics",
    "export_arduino": "export",
    "export_c": "export",
    "export_js": "export",
    "export_micropython": "export",
    "export_numpy": "export",
    "export_onnx": "export",
    "export_tflite": "export",
    "IntegerModel": "integer",
    "push_to_hub": "publishing.push",
    "frontier": "search.frontier",
    "STUDENT_ARCHS": "students.architectures",
    "StudentArch": "students.architectures",
    "MuonAdam": "students.optimizer",
    "QuantActorCriticCnnPolicy": "students.policies",
    "QuantActorCriticPolicy": "students.policies",
    "QuantMultiInputActorCriticPolicy": "students.policies",
    "TRANSITIONS": "students.transitions",
    "TeacherError": "teachers.files.archive",
    "TeacherLabels": "teachers.labels",
    "load_teacher": "teachers.loading",
    "ObsNormalization": "teachers.normalization",
    "Teacher": "teachers.teacher",
    "TeacherOutput": "teachers.teacher",
}

__getattr__ = lazy_names(globals(), _MODULE_OF, lambda name: f".{did_you_mean(name, _MODULE_OF)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
