"""``report.json`` and ``report.md``: the evidence in one file for programs and in one for people."""

import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sb3_qpd.atomic import AtomicFolder
from sb3_qpd.distillation.inputs import describe_findings
from sb3_qpd.evaluation.statistics import MAX_EPISODES, MIN_VERDICT_EPISODES
from sb3_qpd.student_folder import REPORT, REPORT_TEXT
from sb3_qpd.students.architectures import STUDENT_ARCHS
from sb3_qpd.students.budgets import next_budget
from sb3_qpd.students.transitions import TRANSITIONS
from sb3_qpd.teachers.hub import teacher_on_hub
from sb3_qpd.text import every_text, markdown, plain

VERDICTS = {
    "non_inferior": "The integer student is non-inferior: it loses less than the margin",
    "inferior": "The integer student is inferior: it loses more than the margin",
    "inconclusive": "The integer student is inconclusive: these episodes cannot tell whether it loses more than the margin",
    "no_claim": "No claim about the integer student: its teacher is not clearly above the random policy",
}
LIKELY_CAUSES = (
    "Likely causes: the teacher's vecnormalize.pkl was not given or is another run's; a wrapper, the frame skip, the frame "
    "stack or the version of the environment is not the one that the teacher was trained with; the teacher was not trained "
    "to the end; the episodes are too few."
)
_NUMBERS = re.compile(r"\[\n((?:\s*(?:null|-?\d[\d.eE+-]*),?\n)+)\s*\]")
RED, NO_COLOR = "\033[1;31m", "\033[0m"
MANY_STEPS = 1_000_000  # from here on a larger student is a better bet than more steps
MORE_STEPS = 4  # times as many
FULL_BITS = 8


def mode_name(deterministic: bool) -> str:
    """
    How a policy chose its actions, in one word.

    :param deterministic: it took its most probable actions
    """
    return "deterministic" if deterministic else "sampled"


def to_json(value: Any) -> Any:
    """
    Plain JSON values; a number that is not finite becomes ``None``.

    :param value: numbers, strings, arrays, and mappings and sequences of these
    """
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(report: Mapping[str, Any], directory: str | Path, step: str = "") -> None:
    """
    Write ``report.json`` and ``report.md``, both or neither.

    :param report: see :func:`~sb3_qpd.evaluation.comparison.make_report`
    :param directory: folder for the two files; created where there is none
    :param step: see :func:`to_markdown`
    """
    text = _on_one_line(json.dumps(to_json(report), indent=2, allow_nan=False)) + "\n"
    told = to_markdown(report, step)
    with AtomicFolder(Path(directory), force=True) as folder:
        (folder.path / REPORT).write_text(text, encoding="utf-8")
        (folder.path / REPORT_TEXT).write_text(told, encoding="utf-8")
        folder.commit()


def _on_one_line(text: str) -> str:
    """Indented JSON with each list of numbers on one line. Texts of JSON hold no line breaks."""
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def to_markdown(report: Mapping[str, Any], step: str = "") -> str:
    """
    The report for people: verdict, what to do next, table, and what they rest on. Texts of files stand in it as they are.

    :param report: contents of ``report.json``
    :param step: the line of :func:`next_step` with the command that was typed; ``""``: with a command that is made from the
        report
    """
    report = every_text(report, markdown)
    bits = f"{report['weight_bits']}-bit weights, {report['activation_bits']}-bit activations"
    lines = [
        f"# {report['student_arch']} student of {report['teacher_name'] or 'a teacher without a name'}"
        f" on {report['env']['env_id']}",
        "",
        f"**{verdict_line(report)}**",
        "",
        step or next_step(report),
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


def console_summary(
    report: Mapping[str, Any],
    step: str = "",
    stream: TextIO | None = None,
) -> str:
    """
    What a command prints after an evaluation: table, verdict, and what to do next.

    :param report: contents of ``report.json``
    :param step: see :func:`to_markdown`
    :param stream: stream that the text goes to, ``None`` for stdout. A terminal gets a verdict without a claim in red
    """
    report = every_text(report, plain)
    verdict = verdict_line(report)
    if report["verdict"] == "no_claim" and (stream or sys.stdout).isatty() and "NO_COLOR" not in os.environ:
        verdict = f"{RED}{verdict}{NO_COLOR}"
    return f"{table(report)}\n\n{verdict}\n{step or next_step(report)}"


def verdict_line(report: Mapping[str, Any]) -> str:
    """
    The verdict in one paragraph.

    :param report: contents of ``report.json``
    """
    if report["verdict"] == "no_claim":
        numbers = _with_interval("teacher - random policy", report["lead"], report["lead_ci95"])
        passes = _random_would_pass(report)
        return f"{VERDICTS['no_claim']} ({numbers}).{passes} {LIKELY_CAUSES} The student is {size_phrase(report)}."
    numbers = _with_interval("student - teacher", report["difference"], report["difference_ci95"])
    quotients = [
        f"{name} {report[name]:.3f}" + (" [{:.3f}, {:.3f}]".format(*report[f"{name}_ci95"]) if report[f"{name}_ci95"] else "")
        for name in ("score", "ratio")
        if report[name] is not None
    ]
    return (
        f"{VERDICTS[report['verdict']]} ({numbers}, margin {report['margin']:.2f}){_too_few(report)}; "
        f"{', '.join([*quotients, size_phrase(report)])}."
    )


def _with_interval(name: str, value: float, ci95: tuple[float, float]) -> str:
    return f"{name}: {value:.2f} [{ci95[0]:.2f}, {ci95[1]:.2f}]"


def _random_would_pass(report: Mapping[str, Any]) -> str:
    """A positive mean return makes the margin 5 % of it, which may be more than all that there is to learn."""
    if not 0 < report["lead"] <= report["margin"]:
        return ""
    return (
        f" A random policy in the student's place would pass: the margin of {report['margin']:.2f} is larger than this lead."
    )


def _too_few(report: Mapping[str, Any]) -> str:
    n, needed = report["integer"]["episodes"], report["episodes_needed"]
    if report["verdict"] != "inconclusive" or needed is None or n >= needed:
        return ""
    return f", {n} episode{'s are' if n > 1 else ' is'} too few: it takes {needed}"


def size_phrase(report: Mapping[str, Any]) -> str:
    """
    The student's size in bytes and beside its teacher's.

    :param report: contents of ``report.json``
    """
    size = f"{report['integer']['bytes']} bytes"
    if report["size_percent"] is None:
        return f"{size} (the teacher's size is not known)"
    return f"{size} = {report['size_percent']:.2f} % of the teacher's float32 actor"


def with_options(command: str, options: str, dropped: set[str]) -> str:
    """
    A command line of ``compress`` with other values of options, without those that stood there and without dropped ones.

    :param command: command line
    :param options: the options with their values
    :param dropped: options to leave out
    """
    words, changed = shlex.split(command), shlex.split(options)
    replaced = {*dropped, *changed[::2]}
    kept = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word.partition("=")[0] not in replaced and before not in replaced - {"--force"}
    ]
    return shlex.join([*kept, "--force", *changed])


def next_step(
    report: Mapping[str, Any],
    command: str | None = "",
    out: str = "DIR",
    teacher: str = "",
    rewrite: Callable[[str, str, set[str]], str] = with_options,
) -> str:
    """
    One line that says what to do after a verdict, with the command to copy.

    :param report: contents of ``report.json``
    :param command: the command line that made the report, which is repeated with other options; ``""``: one is made from the
        report; ``None``: name no command
    :param out: folder of the student
    :param teacher: the words that name the teacher on a command line, with its options; ``""``: its name on the Hub, if any
    :param rewrite: puts other options into ``command``, see :func:`with_options`
    """
    verdict, folder, teacher = report["verdict"], shlex.quote(out), teacher or _teacher_word(report)
    if verdict == "non_inferior":
        advice, line = "export the student for a device", f"sb3-qpd export {folder} --target c --out {folder}"
    elif verdict == "no_claim":
        advice, line = "see what the teacher does, then give what it lacks", f"sb3-qpd evaluate {teacher}"
    else:
        advice, options = _improvement(report)
        dropped = {"--force", "--episodes"} if _has_too_few_episodes(report) else {"--force"}
        line = rewrite(command or _own_command(report, folder, teacher), options, dropped)
    return f"Next: {advice}." if command is None else f"Next: {advice}: `{line}`"


def _teacher_word(report: Mapping[str, Any]) -> str:
    """The teacher's name where it is one on the Hub; else a word that stands for a path, which no report knows."""
    name = report["teacher_name"] or ""
    return name if teacher_on_hub(name) is not None else "TEACHER"


def _own_command(report: Mapping[str, Any], folder: str, teacher: str) -> str:
    """A command that would make this report again."""
    words = ["sb3-qpd", "compress", teacher, "--out", folder, "--timesteps", str(report["timesteps"])]
    has_names = report["student_arch"] in STUDENT_ARCHS and isinstance(report["weight_bits"], int)
    if not has_names:
        words += ["--student-arch", shlex.quote(json.dumps(to_json(report["student"])))]
    else:
        words += ["--student-arch", report["student_arch"]]
        words += ["--weight-bits", str(report["weight_bits"]), "--activation-bits", str(report["activation_bits"])]
    words += ["--transition", report["transition"]] if report["transition"] in TRANSITIONS else []
    words += [] if report["seed"] is None else ["--seed", str(report["seed"])]
    return " ".join([*words, *_environment_words(report["env"])])


def _environment_words(env: Mapping[str, Any]) -> list[str]:
    """
    The options that name an environment. One with wrappers comes from the teacher's run folder alone. A report may come from
    elsewhere, so no command holds texts that are more than names and numbers.
    """
    if env.get("env_wrappers") or not _holds_plain_names([env["env_id"], env.get("env_kwargs", {})]):
        return []
    settings = [shlex.quote(f"{key}={value!r}") for key, value in env.get("env_kwargs", {}).items()]
    return ["--env", shlex.quote(env["env_id"]), *(["--env-kwargs", *settings] if settings else [])]


def _holds_plain_names(value: Any) -> bool:
    """Whether each text in a JSON value, and in its keys, consists of letters, digits and the marks of names and paths."""
    if isinstance(value, Mapping):
        return _holds_plain_names([*value, *value.values()])
    if isinstance(value, list | tuple):
        return all(map(_holds_plain_names, value))
    return not isinstance(value, str) or re.fullmatch(r"[\w.:/+, -]*", value) is not None


def _has_too_few_episodes(report: Mapping[str, Any]) -> bool:
    needed = report["episodes_needed"]
    return report["verdict"] == "inconclusive" and needed is not None and report["integer"]["episodes"] < needed


def _improvement(report: Mapping[str, Any]) -> tuple[str, str]:
    """The change that is most likely to make the student non-inferior, and the options for it."""
    integer, float_student, needed = report["integer"], report["float"], report["episodes_needed"]
    is_behind = report["difference_ci95"][1] < -report["margin"]  # more episodes alone would only confirm it
    if _has_too_few_episodes(report) and not is_behind:
        return f"play {needed} episodes", f"--episodes {needed}"
    has_few_bits = np.min(report["weight_bits"]) < FULL_BITS or np.min(report["activation_bits"]) < FULL_BITS
    if has_few_bits and float_student and float_student["return_mean"] > integer["return_mean"] + report["margin"]:
        return "take more bits, as the float student plays better", f"--weight-bits {FULL_BITS} --activation-bits {FULL_BITS}"
    larger = _next_size(report["student_arch"])
    if report["timesteps"] < MANY_STEPS or larger is None:
        return "let the student learn for longer", f"--timesteps {MORE_STEPS * report['timesteps']}"
    return "take a larger student", f"--student-arch {larger}"


def _next_size(student_arch: str) -> str | None:
    """The next larger name, or twice a budget; ``None`` where there is none."""
    sizes = list(STUDENT_ARCHS)
    if student_arch in sizes:
        return next(iter(sizes[sizes.index(student_arch) + 1 :]), None)
    return next_budget(student_arch)


def table(report: Mapping[str, Any]) -> str:
    """
    A Markdown table with aligned columns, one row for each policy.

    :param report: contents of ``report.json``
    """
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
    """
    What a reader has to know before believing the table.

    :param report: contents of ``report.json``, but for these notes
    """
    integer = report["integer"]
    other = mode_name(integer["other_mode"]["deterministic"])
    notes = [
        f"Whole episodes, raw rewards, {mode_name(integer['deterministic'])} actions"
        f" (the column {other}: {integer['other_mode']['episodes']} more episodes with {other} actions). Student and teacher"
        + (" played the same episodes and were resampled together." if report["paired"] else " were resampled apart."),
        f"The policy in eval mode and the integer model gave {100 * report['parity']:.2f} % bit-equal outputs on"
        f" {report['parity_observations']} observations of the student's own games."
        f" Its row was played by {report['integer_played_by']}.",
        *_size_notes(report),
        _agreement_note(report),
        *_power_notes(report),
        *_distinct_notes(report),
    ]
    if inputs := describe_findings(report["input_findings"]):
        notes.append(inputs)
    if report["recording"]:
        notes.append(f"The student learned from {report['recording']}, not in this environment: see recorded.md.")
    cached = [name for name in ("random", "teacher") if report[name]["is_cached"]]
    if cached:
        kept = " and ".join({"random": "the random policy", "teacher": "the teacher"}[name] for name in cached)
        notes.append(f"The episodes of {kept} were played by an earlier run and kept: the same seeds give the same episodes.")
    return notes


def _size_notes(report: Mapping[str, Any]) -> list[str]:
    names = ("size_percent_of_int8_teacher", "params_percent", "macs_percent")
    if any(report[name] is None for name in names):
        return []
    size, params, macs = (f"{report[name]:.2f} %" for name in names)
    return [f"{size} of the teacher at one byte a parameter, {params} of its parameters, {macs} of its multiply-accumulates."]


def _agreement_note(report: Mapping[str, Any]) -> str:
    if report["teacher_agreement_unit"] == "share":
        return f"Student and teacher choose the same action in {100 * report['teacher_agreement']:.1f} % of them."
    return (
        f"On them the student's action is {100 * report['teacher_agreement']:.2f} % of the teacher's spread away from the "
        "teacher's. The spread is the standard deviation of the teacher's actions there, at most half the range."
    )


def _power_notes(report: Mapping[str, Any]) -> list[str]:
    needed, n = report["episodes_needed"], report["integer"]["episodes"]
    if report["verdict"] == "no_claim":
        return [
            "The teacher's lead over the random policy is too small or too uncertain: nothing can be claimed of a student."
        ]
    if needed is None or n >= needed:
        return []
    if n < MIN_VERDICT_EPISODES:
        return [f"Fewer than {MIN_VERDICT_EPISODES} episodes give no verdict. It takes at least {needed}."]
    cap = f", beyond the usual cap of {MAX_EPISODES}" if needed > MAX_EPISODES else ""
    return [f"For 80 % power {needed} episodes were needed{cap}: an equal student may well be called inconclusive."]


def _distinct_notes(report: Mapping[str, Any]) -> list[str]:
    """Intervals that are a point or may be too narrow; why a verdict may rest on them, see the module ``statistics``."""
    integer = report["integer"]
    n, distinct = integer["episodes"], integer["distinct_returns"]
    if distinct == 1:
        return [
            f"All {n} episodes of the student returned {integer['return_mean']:.2f}: its interval has no width. Where the "
            f"episodes differ at all, a return that never occurred is rarer than {min(100.0, 300 / n):.1f} % (95 %, rule of "
            "three)."
        ]
    low, high = report["difference_ci95"]
    notes = []
    if low == high:
        notes.append("Student and teacher differ by the same return in every episode: the interval has no width.")
    if distinct < n / 2:
        notes.append(f"Only {distinct} distinct returns in {n} episodes: the intervals may be too narrow.")
    return notes
