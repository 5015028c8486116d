"""
Distill Stable-Baselines3 agents into tiny integer policies that play as well.

The public names are loaded when they are first asked for (PEP 562): ``import sb3_qpd`` is instant,
and ``from sb3_qpd.integer import IntegerModel`` needs nothing but numpy.
"""

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_qpd.architectures import STUDENT_ARCHS, StudentArch
    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.envs import AtariVecEnv, EnvRecipe, make_recipe
    from sb3_qpd.evaluation import Evaluation, compare, evaluate
    from sb3_qpd.export import export_c, export_numpy, export_onnx, export_tflite
    from sb3_qpd.integer import IntegerModel
    from sb3_qpd.loading import load_teacher
    from sb3_qpd.policies import QuantActorCriticCnnPolicy, QuantActorCriticPolicy, QuantMultiInputActorCriticPolicy
    from sb3_qpd.publishing import push_to_hub
    from sb3_qpd.reader import TeacherError
    from sb3_qpd.teachers import ObsNormalization, Teacher, TeacherOutput
    from sb3_qpd.transitions import TRANSITIONS
    from sb3_qpd.wrappers import TeacherLabels

__version__ = Path(__file__).with_name("version.txt").read_text(encoding="utf-8").strip()

__all__ = [
    "STUDENT_ARCHS",
    "TRANSITIONS",
    "AtariVecEnv",
    "EnvRecipe",
    "Evaluation",
    "IntegerModel",
    "ObsNormalization",
    "QPDDistiller",
    "QuantActorCriticCnnPolicy",
    "QuantActorCriticPolicy",
    "QuantMultiInputActorCriticPolicy",
    "StudentArch",
    "Teacher",
    "TeacherError",
    "TeacherLabels",
    "TeacherOutput",
    "__version__",
    "compare",
    "evaluate",
    "export_c",
    "export_numpy",
    "export_onnx",
    "export_tflite",
    "load_teacher",
    "make_recipe",
    "push_to_hub",
]

_MODULE_OF = {
    "STUDENT_ARCHS": "architectures",
    "StudentArch": "architectures",
    "QPDDistiller": "distiller",
    "AtariVecEnv": "envs",
    "EnvRecipe": "envs",
    "make_recipe": "envs",
    "Evaluation": "evaluation",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "export_c": "export",
    "export_numpy": "export",
    "export_onnx": "export",
    "export_tflite": "export",
    "IntegerModel": "integer",
    "load_teacher": "loading",
    "QuantActorCriticCnnPolicy": "policies",
    "QuantActorCriticPolicy": "policies",
    "QuantMultiInputActorCriticPolicy": "policies",
    "push_to_hub": "publishing",
    "TeacherError": "reader",
    "ObsNormalization": "teachers",
    "Teacher": "teachers",
    "TeacherOutput": "teachers",
    "TRANSITIONS": "transitions",
    "TeacherLabels": "wrappers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        near = get_close_matches(name, _MODULE_OF, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
