"""How well a student does what its teacher would have done, on recorded observations that it has not learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th

from sb3_qpd.distillation import losses
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.recordings import RecordedObservations
from sb3_qpd.evaluation.report import to_json
from sb3_qpd.observations import PIECE_SIZE
from sb3_qpd.spaces import masked
from sb3_qpd.student_folder import RECORDED, RECORDED_TEXT
from sb3_qpd.teachers.teacher import Teacher, TeacherOutput
from sb3_qpd.text import markdown
from sb3_qpd.version import __version__

MAX_MEASURED = 20_000  # observations of a part
NAMES = {
    "agreement": "share of observations in which teacher and student choose the same action",
    "kl": "Kullback-Leibler divergence of the student from the teacher, nats",
    "action_error": "mean absolute error of the action, in units of the student's action",
    "largest_action_error": "largest absolute error of the action, in the same units",
    "value_error": "mean absolute error of the value, in standard deviations of the teacher's",
}


def measure_held_out(distiller: QPDDistiller) -> dict[str, Any]:
    """
    Compare the integer student with its teacher on held-out episodes, and on episodes that it learned from.

    :param distiller: a student that learned from recorded observations
    :return: contents of ``recorded.json``
    :raises ValueError: the student learned in an environment
    """
    recording, teacher = distiller.recording, distiller.teacher
    if recording is None or not isinstance(teacher, Teacher):
        raise ValueError("Only a student that learns from recorded observations has held-out episodes: give observations=")
    parts = {"held_out": recording.held_out, "learned": recording.learned}
    env = distiller.to_integer().metadata.get("env")
    measured = {name: _measure(distiller, teacher, recording, part) if part else None for name, part in parts.items()}
    return to_json(
        {
            "sb3_qpd": __version__,
            "teacher_name": distiller.teacher_name,
            "teacher_checksum": distiller.teacher_checksum,
            "student": distiller.policy.arch.asdict(),
            "bytes": distiller.to_integer().nbytes,
            "samples_learned": distiller.num_timesteps,
            "seed": distiller.seed,
            "env": env,
            "observations": len(recording),
            "episodes": len(recording.episodes),
            "marks_episodes": recording.has_episodes,
            **measured,
            "returns": "see report.json" if env else "not measured",
        }
    )


@th.no_grad()
def _measure(
    distiller: QPDDistiller, teacher: Teacher, recording: RecordedObservations, episodes: list[slice]
) -> dict[str, Any]:
    policy, model = distiller.policy, distiller.policy.to_integer()
    policy.set_training_mode(False)  # it then computes the bits of the integer model
    has_memory = teacher.has_memory or model.history > 1
    labels, outputs = list[TeacherOutput](), list[Any]()
    of_teacher: Any = None
    of_student: Any = None
    for rows in _steps(recording, episodes) if has_memory else _pieces(episodes):
        observations, masks = recording.take(rows)
        n, before = len(rows), None  # the rows of episodes that go on come first
        target, of_teacher = teacher.label(observations, _first(of_teacher, n, axis=1), action_masks=masks)
        if model.history > 1:
            before, after = model.remember(observations, _first(of_student, n))
            of_student = (after,)
        labels.append(target)
        outputs.append(policy.actor_and_value(policy.window_of(observations, before)))
    targets = TeacherOutput(*(None if part[0] is None else th.cat(part).cpu() for part in zip(*labels, strict=True)))  # type: ignore[arg-type]
    actor, value = (th.cat(part).cpu() for part in zip(*outputs, strict=True))
    n_rows = sum(one.stop - one.start for one in episodes)
    found = {"observations": n_rows, "episodes": len(episodes), **_actor_figures(distiller, teacher, actor, targets)}
    if targets.value is not None:
        spread = float(targets.value.std(correction=0)) or 1.0
        found["value_error"] = float((value.flatten() - targets.value).abs().mean()) / spread
    return found


def _pieces(episodes: list[slice]) -> Iterator[np.ndarray]:
    """Indices of the observations, at most ``MAX_MEASURED``."""
    rows = np.concatenate([np.arange(one.start, one.stop) for one in episodes])
    if len(rows) > MAX_MEASURED:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_MEASURED).astype(int)]
    yield from (rows[i : i + PIECE_SIZE] for i in range(0, len(rows), PIECE_SIZE))


def _steps(recording: RecordedObservations, episodes: list[slice]) -> Iterator[np.ndarray]:
    """Indices of the observations of whole episodes, step after step. Episodes are drawn until they have ``MAX_MEASURED``."""
    drawn: list[slice] = []
    for i in np.random.default_rng(0).permutation(len(episodes)):
        if sum(one.stop - one.start for one in drawn) < MAX_MEASURED:
            drawn.append(episodes[i])
    return recording.side_by_side(drawn)


def _first(state: Any, n: int, axis: int = 0) -> Any:
    """The state of the first n episodes, which lie along an axis of its arrays."""
    return None if state is None else tuple(one[(slice(None),) * axis + (slice(n),)] for one in state)


def _actor_figures(distiller: QPDDistiller, teacher: Teacher, actor: th.Tensor, targets: TeacherOutput) -> dict[str, float]:
    policy, head = distiller.policy, distiller.policy.head
    if head.is_box:
        low, high, unit = (one.cpu() for one in (policy.action_low, policy.action_high, policy.action_unit))
        mean, target = actor.clamp(low, high), targets.actor.clamp(low, high)  # as the environment executes them
        error = (mean - target).abs() / unit
        figures = {"action_error": float(error.mean()), "largest_action_error": float(error.max())}
        if targets.log_std is not None:
            kl = losses.gaussian_kl(mean, policy.log_std.cpu(), target, targets.log_std, unit=unit)
            figures["kl"] = float(kl.mean())
        return figures
    logits = masked(head.logits(actor), targets.masks)
    same = (head.best(logits) == head.best(targets.actor)).reshape(len(actor), -1).all(1)
    temperature = distiller.temperature * teacher.temperature_of(targets)
    sharpened = logits / distiller.student_temperature
    kl = losses.multi_categorical_kl(sharpened, targets.actor, nvec=head.nvec, temperature=temperature)
    return {"agreement": float(same.float().mean()), "kl": float(kl.mean())}


def to_text(measured: dict[str, Any]) -> str:
    """
    The measurement for people, in Markdown.

    :param measured: from :func:`measure_held_out`
    """
    unit = "episodes" if measured["marks_episodes"] else "blocks of consecutive observations (no ends of episodes are marked)"
    lines = [
        f"# Student of {markdown(measured['teacher_name'] or 'a teacher without a name')}, from recorded observations",
        "",
        "**These figures are no returns.** They say nothing about states that the recording does not hold. Returns were "
        f"{'measured apart: see report.md' if measured['env'] else 'not measured: there was no environment'}.",
        "",
        f"{measured['observations']} observations in {measured['episodes']} {unit}; {measured['samples_learned']} samples "
        f"learned, seed {measured['seed']}; {measured['bytes']} bytes.",
        "",
        "| | held out | learned from |",
        "|---|---|---|",
    ]
    held, learned = (measured[name] or {} for name in ("held_out", "learned"))
    for name in ("observations", "episodes", *NAMES):
        if name in learned:
            cells = (f"{one[name]:.4g}" if one.get(name) is not None else "" for one in (held, learned))
            lines.append(f"| {NAMES.get(name, name)} | {' | '.join(cells)} |")
    lines += ["", f"Teacher: SHA-256 `{measured['teacher_checksum'] or 'unknown'}`."]
    return "\n".join(lines) + "\n"


def measurement_files(measured: dict[str, Any]) -> dict[str, bytes]:
    """
    ``recorded.json`` and ``recorded.md``, the content of each by its name.

    :param measured: from :func:`measure_held_out`
    """
    text = json.dumps(measured, indent=2, allow_nan=False) + "\n"
    return {RECORDED: text.encode(), RECORDED_TEXT: to_text(measured).encode()}
