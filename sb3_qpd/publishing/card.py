"""The model card of a published student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sb3_qpd.evaluation.report import to_markdown
from sb3_qpd.student_folder import FILES
from sb3_qpd.teachers.hub import HubSource, teacher_on_hub


# --- uploads ---
def make_card(metadata: Mapping[str, Any], text: str) -> str:
    """
    A model card as the Hub reads it.

    :param metadata: ``env_id``, ``name``, ``mean_reward`` and ``base_model``
    :param text: in Markdown
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    task, env_id = "reinforcement-learning", metadata["env_id"]
    result = EvalResult(
        task_type=task,
        task_name=task,
        dataset_type=env_id,
        dataset_name=env_id,
        metric_type="mean_reward",
        metric_name="mean_reward",
        metric_value=metadata["mean_reward"],
    )
    data = ModelCardData(
        library_name="stable-baselines3",
        tags=[env_id, "deep-reinforcement-learning", task, "stable-baselines3", "sb3-qpd", "quantized", "distillation"],
        model_name=metadata["name"],
        eval_results=[result],
        base_model=metadata["base_model"],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


# --- the card ---
def card(report: Mapping[str, Any], repo_id: str, names: list[str]) -> str:
    """
    The model card: metadata for the Hub, with the measured return, and the report for people.

    :param report: what ``report.json`` holds
    :param repo_id: where it will lie
    :param names: of the files beside it
    """
    integer, env_id = report["integer"], report["env"]["env_id"]
    teacher = teacher_on_hub(report["teacher_name"])
    metadata = {
        "env_id": env_id,
        "name": f"{report['student_arch']} student, {report['weight_bits']}-bit",
        "mean_reward": f"{integer['return_mean']:.2f} +/- {integer['return_std']:.2f}",
        "base_model": None if teacher is None else teacher.repo_id,
    }
    return make_card(metadata, _card_text(report, repo_id, names, teacher))


def _card_text(report: Mapping[str, Any], repo_id: str, names: list[str], teacher: HubSource | None) -> str:
    lines = [to_markdown(report).rstrip(), ""]
    if teacher is not None:
        lines += [f"The teacher: [{teacher.repo_id}](https://huggingface.co/{teacher.repo_id}/tree/{teacher.revision}).", ""]
    else:
        lines += [
            "The teacher is not on the Hub: its checksum above tells whether yours is the same. `config.yml` leaves it "
            "out, so that `sb3-qpd zoo train` has to be told where it is (`-params teacher:\"'PATH'\"`).",
            "",
        ]
    if "replay.gif" in names:
        lines += ["![The student plays](replay.gif)", ""]
    return "\n".join(
        [
            *lines,
            "## Use",
            "",
            "```python",
            "from huggingface_hub import hf_hub_download",
            "from sb3_qpd import IntegerModel",
            "",
            f'model = IntegerModel.load(hf_hub_download("{repo_id}", "student.npz"))',
            "action, _ = model.predict(observation, deterministic=True)  # raw observation, action in environment units",
            "```",
            "",
            "```bash",
            f"sb3-qpd evaluate hub:{repo_id}/student.npz --episodes 100",
            "```",
            "",
            "| file | what it is |",
            "|---|---|",
            *[f"| `{name}` | {what} |" for name, what in FILES.items() if name in names],
            "",
            "Made with sb3_qpd, quantization-aware policy distillation for Stable-Baselines3.",
            "",
        ]
    )
