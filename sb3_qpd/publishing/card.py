"""The model card of a published student."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_qpd.evaluation.report import to_markdown
from sb3_qpd.student_folder import FILES
from sb3_qpd.teachers.hub import teacher_on_hub
from sb3_qpd.text import every_text, plain

TEMPLATE = Path(__file__).with_name("card.md.jinja")


def card(report: Mapping[str, Any], repo_id: str, names: list[str]) -> str:
    """
    The model card: metadata for the Hub with the measured return, the report, and how to use the student.

    :param report: contents of ``report.json``
    :param repo_id: repository that the student is published in, ``owner/name``
    :param names: names of the files that are published with the card
    :return: Markdown with a YAML header
    """
    from huggingface_hub import ModelCard

    teacher = teacher_on_hub(report["teacher_name"])
    text: dict[str, Any] = {
        "report": to_markdown(report).rstrip(),
        "teacher": teacher,
        "repo_id": repo_id,
        "files": {name: description for name, description in FILES.items() if name in names},
        "has_gif": "replay.gif" in names,  # the Hub shows a video by itself
    }
    data = _metadata(every_text(report, plain), None if teacher is None else teacher.repo_id)
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **text))


def _metadata(report: Mapping[str, Any], base_model: str | None) -> Any:
    """The card's YAML header: tags, the return as the Hub's ``mean_reward``, and the teacher's repository."""
    from huggingface_hub import EvalResult, ModelCardData

    task, env_id, integer = "reinforcement-learning", report["env"]["env_id"], report["integer"]
    result = EvalResult(
        task_type=task,
        task_name=task,
        dataset_type=env_id,
        dataset_name=env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=f"{integer['return_mean']:.2f} +/- {integer['return_std']:.2f}",
    )
    return ModelCardData(
        library_name="stable-baselines3",
        tags=[env_id, "deep-reinforcement-learning", task, "stable-baselines3", "sb3-qpd", "quantized", "distillation"],
        model_name=f"{report['student_arch']} student, {report['weight_bits']}-bit",
        eval_results=[result],
        base_model=base_model,
    )
