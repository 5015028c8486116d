"""``report.json`` and ``report.md``: the evidence in one file for programs and one for people."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_qpd.evaluation.statistics import MAX_EPISODES

VERDICTS = {
    "non_inferior": "non-inferior: it loses less than the margin",
    "inferior": "inferior: it loses more than the margin",
    "inconclusive": "inconclusive: these episodes cannot tell whether it loses more than the margin",
}


def mode_name(deterministic: bool) -> str:
    return "deterministic" if deterministic else "sampled"


def to_json(value: Any) -> Any:
    """Plain JSON values; what is not a finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(report: Mapping[str, Any], directory: str | Path) -> None:
    """Write ``report.json`` and ``report.md``; each appears whole or not at all."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "report.json", json.dumps(to_json(report), indent=2, allow_nan=False) + "\n")
    _write(directory / "report.md", to_markdown(report))


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report for people: verdict, table, what it rests on."""
    bits = f"{report['weight_bits']}-bit weights, {report['activation_bits']}-bit activations"
    lines = [
        f"# {report['student_arch']} student of {report['teacher_name'] or 'a teacher without a name'}"
        f" on {report['env']['env_id']}",
        "",
        f"**{verdict_line(report)}**",
        "",
        table(report),
        "",
        *[f"- {note}" for note in report["notes"]],
        "",
        f"Student: {bits}; {report['timesteps']} environment steps in {report['seconds']:.0f} s,"
        f" transition `{report['transition']}`, seed {report['seed']}. Evaluation: {report['evaluation_seconds']:.0f} s.",
        f"Teacher: SHA-256 `{report['teacher_checksum'] or 'unknown'}`.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in report["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def verdict_line(report: Mapping[str, Any]) -> str:
    """The verdict in one sentence."""
    low, high = report["difference_ci95"]
    quotients = [
        f"{name} {report[name]:.3f}" + (" [{:.3f}, {:.3f}]".format(*report[f"{name}_ci95"]) if report[f"{name}_ci95"] else "")
        for name in ("score", "ratio")
        if report[name] is not None
    ]
    return (
        f"The integer student is {VERDICTS[report['verdict']]} (student - teacher: {report['difference']:.2f}"
        f" [{low:.2f}, {high:.2f}], margin {report['margin']:.2f}); {', '.join([*quotients, size_phrase(report)])}."
    )


def size_phrase(report: Mapping[str, Any]) -> str:
    return f"{report['integer']['bytes']} bytes = {report['size_percent']:.2f} % of the teacher's float32 actor"


def table(report: Mapping[str, Any]) -> str:
    """A Markdown table with aligned columns, one row for each contender."""
    other = mode_name(report["integer"]["other_mode"]["deterministic"])
    header = ["", "return", "IQM", "95 % interval", "episodes", "distinct", other, "bytes", "MACs", "us/action"]
    sections = {name: report[name] for name in ("random", "teacher", "float", "integer") if report[name] is not None}
    rows = [header, *[_row(name, section) for name, section in {**sections, **report["baselines"]}.items()]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _row(name: str, section: Mapping[str, Any]) -> list[str]:
    timing = section["microseconds_per_action"]
    return [
        name,
        f"{section['return_mean']:.2f} ± {section['return_std']:.2f}",
        f"{section['return_iqm']:.2f}",
        "[{:.2f}, {:.2f}]".format(*section["ci95"]),
        str(section["episodes"]),
        str(section["distinct_returns"]),
        f"{section['other_mode']['return_mean']:.2f}",
        str(section.get("bytes", "")),
        str(section.get("macs", "")),
        "" if timing is None else f"{timing:.0f}",
    ]


def notes_of(report: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the table."""
    integer, needed = report["integer"], report["episodes_needed"]
    notes = [
        f"Whole episodes, raw rewards, {mode_name(integer['deterministic'])} actions"
        f" (the other mode: {integer['other_mode']['episodes']} episodes); student and teacher"
        + (" played the same episodes and were resampled together." if report["paired"] else " were resampled apart."),
        f"The policy in eval mode and the integer model gave {100 * report['parity']:.2f} % bit-equal outputs on"
        f" {report['parity_observations']} observations of the student's own games."
        f" Its row was played by {report['integer_played_by']}.",
        f"{report['size_percent_of_int8_teacher']:.2f} % of the teacher at one byte a parameter,"
        f" {report['params_percent']:.2f} % of its parameters, {report['macs_percent']:.2f} % of its multiply-accumulates.",
        _agreement_note(report),
    ]
    if needed is None:
        notes.append("The margin is zero: the teacher is not above the random policy, and nothing can be claimed.")
    elif needed > integer["episodes"]:
        cap = f", beyond the usual cap of {MAX_EPISODES}" if needed > MAX_EPISODES else ""
        notes.append(f"For 80 % power {needed} episodes were needed{cap}: an equal student may well be called inconclusive.")
    if integer["distinct_returns"] < integer["episodes"] / 2:
        notes.append(f"Only {integer['distinct_returns']} distinct returns: the intervals may be too narrow.")
    return notes


def _agreement_note(report: Mapping[str, Any]) -> str:
    agreement, unit = report["teacher_agreement"], report["teacher_agreement_unit"]
    if unit == "share":
        return f"Student and teacher choose the same action in {100 * agreement:.1f} % of them."
    return f"On them the student's action is {100 * agreement:.2f} % of half the action range away from the teacher's."
