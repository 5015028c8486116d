"""``config.yml`` of a published student: how it was distilled, as an entry of ``hyperparams/qpd.yml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sb3_qpd.distillation.schedules import COSINE, DEFAULT_LEARNING_RATE, LINEAR, CosineSchedule
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.envs.zoo_config import to_zoo_entry
from sb3_qpd.integer import IntegerModel
from sb3_qpd.student_folder import STUDENT_ZIP
from sb3_qpd.teachers.files.archive import Archive
from sb3_qpd.teachers.files.sb3_zip import read_json
from sb3_qpd.teachers.hub import teacher_on_hub
from sb3_qpd.text import plain

# Settings of QPDDistiller that an entry holds. The seed is missing: RL Zoo takes it on its command line
SETTINGS = (
    *("n_envs", "batch_size", "buffer_size", "gradient_steps", "learning_starts"),
    *("temperature", "student_temperature", "critic_coef", "entropy_coef", "box_loss", "beta", "roll_in"),
    *("transition", "transition_start", "transition_end", "transition_steps", "max_grad_norm"),
)
# Schedules that an entry can name: class -> its attribute, and the prefix before the number in an entry
SCHEDULES = {
    "ConstantSchedule": ("val", ""),
    "SimpleLinearSchedule": ("initial_value", LINEAR),
    CosineSchedule.__name__: ("initial", COSINE),
}


def make_config(report: Mapping[str, Any], model: IntegerModel, student: bytes | None) -> bytes:
    """
    An entry of ``hyperparams/qpd.yml``. Comments below it name what an entry cannot hold.

    :param report: contents of ``report.json``
    :param model: the student
    :param student: contents of ``student.zip``, which has the settings; ``None`` where there is none
    :return: YAML
    """
    told: dict[str, Any] = {}
    if student is not None:
        told = read_json(Archive(student, STUDENT_ZIP, "Save the student again"), Path(STUDENT_ZIP))
    env, teacher, comments = report["env"], report["teacher_name"], [f"seed: {report['seed']} (--seed)"]
    entry: dict[str, Any] = {
        "policy": "MultiInputPolicy" if model.is_dict else "CnnPolicy" if model.is_image else "MlpPolicy",
        "n_timesteps": report["timesteps"],
    }
    if teacher_on_hub(teacher) is not None:
        entry["teacher"] = teacher
    else:
        comments.append(f"teacher: {teacher or 'without a name'}, which is not on the Hub: pass -params teacher:\"'PATH'\"")
    entry |= to_zoo_entry(EnvRecipe.from_json(env))
    if "frame_stack" not in env:
        comments.append("env_wrapper, frame_stack: unknown, as the environment was not built from a recipe")
    entry |= {"transition": report["transition"], **{k: told[k] for k in SETTINGS if k in told and not is_pickled(told[k])}}
    entry |= {"student_arch": report["student"]}  # with its bits
    if isinstance(history := told.get("history"), int):
        entry["history"] = history
    rate, remarks = _learning_rate(told.get("learning_rate"))
    entry |= rate
    comments += remarks
    if student is None:
        comments.append("other settings: unknown, they are in student.zip, which is missing here")
    text = yaml.safe_dump({env["env_id"]: entry}, sort_keys=False)
    return (text + "".join(f"  # {plain(comment)}\n" for comment in comments)).encode()


def _learning_rate(value: Any) -> tuple[dict[str, Any], list[str]]:
    """The rate as a part of the entry, and a comment where an entry cannot name it. The default rate is left out."""
    if not is_pickled(value):
        return ({} if value is None else {"learning_rate": value}), []
    kind = str(value.get(":type:")).rstrip("'>").rpartition(".")[2]
    if kind == CosineSchedule.__name__ and value.get("initial") == DEFAULT_LEARNING_RATE:
        return {}, []
    if kind in SCHEDULES and isinstance(number := value.get(SCHEDULES[kind][0]), float):
        prefix = SCHEDULES[kind][1]
        return {"learning_rate": f"{prefix}{number}" if prefix else number}, []
    return {}, [f"learning_rate: a {kind} of its own, which an entry cannot name"]


def is_pickled(value: Any) -> bool:
    """
    Whether a value in the JSON of an SB3 zip is a pickle in base64.

    :param value: any value of the JSON
    """
    return isinstance(value, dict) and ":serialized:" in value
