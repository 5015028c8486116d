"""A run of ``compress`` as its page shows it: the sound values of its ``report.json`` and of the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_qpd.pages.values import fields, interval, items, number, numbers, objects, positive, text, texts

MAX_BASELINES = 4
MAX_RETURNS = 2_000  # of one policy
MAX_ROWS = 200  # of the record of learning, and of lists of layers and measurements
MAX_CATEGORIES = 32
KNOWN = ("random", "teacher", "float", "integer")
NAMES = {"random": "random policy", "teacher": "teacher", "float": "float student", "integer": "integer student"}
VERDICTS = ("non_inferior", "inferior", "inconclusive", "no_claim")


@dataclass(frozen=True)
class Policy:
    """
    One policy on the episodes of the verdict.

    :param key: its section of the report
    :param name: its name for people
    :param mean: mean return
    :param interval: 95 % interval of the mean
    :param episodes: number of episodes
    :param returns: return of each episode; empty where the report has none
    :param n_bytes: its size; ``None`` for the random policy
    :param macs: multiply-accumulates for one action
    :param microseconds: time for one action in Python
    """

    key: str
    name: str
    mean: float
    interval: tuple[float, float]
    episodes: int
    returns: list[float]
    n_bytes: float | None
    macs: float | None
    microseconds: float | None


@dataclass(frozen=True)
class Learning:
    """
    How a student learned.

    :param columns: name -> one value for each row; ``steps`` is one of them
    :param scores: (steps, mean return, interval, episodes) of each validation
    :param seconds: what the record took
    """

    columns: dict[str, list[float | None]]
    scores: list[tuple[float, float, tuple[float, float], int]]
    seconds: float | None

    @property
    def has_rows(self) -> bool:
        return len(self.columns.get("steps", [])) > 1


@dataclass(frozen=True)
class Layer:
    """
    One row of the costs, see :func:`~sb3_qpd.evaluation.layer_costs.layer_costs`.

    :param name: name of the step
    :param kind: ``input``, ``head``, or the kind of layer
    :param shape: shape of the weights
    :param n_bytes: bytes
    :param macs: multiply-accumulates for one action
    :param weight_bits: bits of a weight, as a text
    :param ranges: the shares that the row has, by name
    :param accumulator_bits: bits that the accumulators of a head take, as a text
    """

    name: str
    kind: str
    shape: str
    n_bytes: float
    macs: float
    weight_bits: str
    ranges: dict[str, float]  # shares, of those that the row has
    accumulator_bits: str


@dataclass(frozen=True)
class Speed:
    """
    One row of ``sb3-qpd benchmark``.

    :param name: form of the student, or the teacher
    :param microseconds: time of one action
    :param memory: peak bytes
    :param n_bytes: size of its file
    """

    name: str
    microseconds: float
    memory: float
    n_bytes: float


@dataclass(frozen=True)
class Run:
    """
    A run of ``compress``.

    :param label: name of its folder
    :param env_id: its environment
    :param teacher: name of the teacher
    :param checksum: SHA-256 of the teacher
    :param student: name of the architecture
    :param bits: bits of weights and activations, as ``W8A8``
    :param verdict: one of ``VERDICTS``, or ``unknown``
    :param difference: student - teacher, mean returns
    :param difference_interval: its 95 % interval
    :param margin: loss that still counts as equal
    :param policies: all policies of the report
    :param learning: the record of learning
    :param confusion: counts for each dimension of a discrete action
    :param errors: quantiles and mean absolute error of each dimension of a Box action
    :param agreement: how alike student and teacher act
    :param agreement_unit: unit of the agreement
    :param layers: costs of the layers
    :param speeds: rows of ``benchmark.json``
    :param boards: its microcontrollers, as texts by column
    :param facts: settings and checksums, as texts by name
    :param versions: versions by package
    :param notes: notes of the report
    :param command: the command that made the folder
    :param film: a GIF of teacher and student
    """

    label: str
    env_id: str
    teacher: str
    checksum: str
    student: str
    bits: str
    verdict: str
    difference: float | None
    difference_interval: tuple[float, float] | None
    margin: float | None
    policies: list[Policy]
    learning: Learning | None
    confusion: list[list[list[int]]]
    errors: list[tuple[list[float], float]]
    agreement: float | None
    agreement_unit: str
    layers: list[Layer]
    speeds: list[Speed]
    boards: list[dict[str, str]]
    facts: dict[str, str]
    versions: dict[str, str]
    notes: list[str]
    command: str = ""
    film: bytes | None = None

    def policy(self, key: str) -> Policy:
        """
        One of the policies; every run has a teacher and an integer student.

        :param key: its section of the report
        """
        return next(one for one in self.policies if one.key == key)

    @property
    def random(self) -> Policy | None:
        return next((one for one in self.policies if one.key == "random"), None)


def read_run(
    report: Mapping[str, Any],
    label: str = "",
    benchmark: Mapping[str, Any] | None = None,
    command: str = "",
    film: bytes | None = None,
) -> Run:
    """
    Take what is sound from a report.

    :param report: contents of ``report.json``
    :param label: name of its folder
    :param benchmark: contents of ``benchmark.json``
    :param command: the command that made the folder
    :param film: a GIF of teacher and student
    :raises ValueError: it has no teacher or no integer student
    """
    policies = list(_policies(report))
    if not {"teacher", "integer"} <= {one.key for one in policies}:
        raise ValueError("the report has no returns of a teacher and an integer student: expected one that compress wrote")
    env, actions = fields(report.get("env")), list(objects(report.get("actions"), MAX_CATEGORIES))
    verdict = report.get("verdict")
    return Run(
        label=text(label, 30),
        env_id=text(env.get("env_id")) or "an environment without a name",
        teacher=text(report.get("teacher_name")) or "a teacher without a name",
        checksum=text(report.get("teacher_checksum")),
        student=text(report.get("student_arch"), 40) or "custom",
        bits=f"W{_bits(report.get('weight_bits'))}A{_bits(report.get('activation_bits'))}",
        verdict=verdict if verdict in VERDICTS else "unknown",
        difference=number(report.get("difference")),
        difference_interval=interval(report.get("difference_ci95")),
        margin=number(report.get("margin")),
        policies=policies,
        learning=_learning(report.get("learning")),
        confusion=[matrix for one in actions if (matrix := _matrix(one.get("counts")))],
        errors=[(quantiles, mean) for one in actions if (quantiles := _quantiles(one)) and (mean := _mean(one)) is not None],
        agreement=number(report.get("teacher_agreement")),
        agreement_unit=text(report.get("teacher_agreement_unit")),
        layers=[layer for one in objects(report.get("layers"), MAX_ROWS) if (layer := _layer(one)) is not None],
        speeds=[speed for one in objects(fields(benchmark).get("rows"), MAX_ROWS) if (speed := _speed(one)) is not None],
        boards=[texts(one, 8) for one in objects(fields(benchmark).get("microcontrollers"), 16)],
        facts=_facts(report, env),
        versions=texts(report.get("versions"), 20),
        notes=[text(note, 600) for note in items(report.get("notes"), 20)],
        command=text(command, 2_000),
        film=film,
    )


def _bits(value: Any) -> str:
    return "/".join(text(one, 4) for one in items(value, 16)) if isinstance(value, list) else text(value, 4) or "?"


def _policies(report: Mapping[str, Any]) -> list[Policy]:
    sections = [(name, NAMES[name], report.get(name)) for name in KNOWN]
    baselines = list(fields(report.get("baselines")).items())[:MAX_BASELINES]
    sections += [(f"baseline-{i}", text(name, 24), one) for i, (name, one) in enumerate(baselines)]
    return [policy for key, name, one in sections if (policy := _policy(key, name, fields(one))) is not None]


def _policy(key: str, name: str, section: Mapping[str, Any]) -> Policy | None:
    mean = number(section.get("return_mean"))
    if mean is None:
        return None
    return Policy(
        key,
        name,
        mean,
        interval(section.get("ci95")) or (mean, mean),
        int(number(section.get("episodes")) or 0),
        numbers(section.get("returns"), MAX_RETURNS),
        positive(section.get("bytes")),
        positive(section.get("macs")),
        positive(section.get("microseconds_per_action")),
    )


def _learning(value: Any) -> Learning | None:
    record = fields(value)
    steps = [number(one) for one in items(record.get("steps"), MAX_ROWS)]
    names = ("actor_loss", "critic_loss", "kl", "action_error", "agreement", "mean_weight_bits", "transition")
    columns = {name: [number(one) for one in items(record.get(name), MAX_ROWS)] for name in names}
    whole = {name: values for name, values in columns.items() if len(values) == len(steps) > 0}
    scores = []
    for one in objects(record.get("scores"), MAX_ROWS):
        at, mean = number(one.get("steps")), number(one.get("return_mean"))
        if at is not None and mean is not None:
            scores.append((at, mean, interval(one.get("ci95")) or (mean, mean), int(number(one.get("episodes")) or 0)))
    if None in steps or not (whole or scores):
        return None
    return Learning({"steps": steps, **whole}, scores, number(record.get("seconds")))


def _matrix(value: Any) -> list[list[int]] | None:
    """A square matrix of counts, with at least one count."""
    rows = items(value, MAX_CATEGORIES)
    matrix = [[int(one) for one in numbers(row, MAX_CATEGORIES) if one >= 0] for row in rows]
    is_square = len(matrix) > 0 and all(len(row) == len(matrix) for row in matrix)
    return matrix if is_square and any(any(row) for row in matrix) else None


def _quantiles(one: Mapping[str, Any]) -> list[float] | None:
    found = numbers(one.get("errors"), 6)
    return found if len(found) == 5 and found == sorted(found) else None


def _mean(one: Mapping[str, Any]) -> float | None:
    return number(one.get("mean_abs"))


def _layer(one: Mapping[str, Any]) -> Layer | None:
    n_bytes, macs = number(one.get("bytes")), number(one.get("macs"))
    if n_bytes is None or macs is None or min(n_bytes, macs) < 0:
        return None
    shape = " x ".join(text(size, 8) for size in items(one.get("shape"), 6))
    shares = {name: number(one.get(name)) for name in ("weight_range", "range", "saturated", "idle")}
    ranges = {name: min(max(share, 0.0), 1.0) for name, share in shares.items() if share is not None}
    bits = [text(one.get(name), 4) for name in ("weight_bits", "accumulator_bits")]
    return Layer(text(one.get("name"), 30), text(one.get("kind"), 16), shape, n_bytes, macs, bits[0], ranges, bits[1])


def _speed(one: Mapping[str, Any]) -> Speed | None:
    values = [positive(one.get(name)) for name in ("microseconds", "memory", "nbytes")]
    return None if None in values else Speed(text(one.get("name"), 40), *values)  # type: ignore[arg-type]


def _facts(report: Mapping[str, Any], env: Mapping[str, Any]) -> dict[str, str]:
    """What a reader needs to repeat the run, as texts; what the report does not say is left out."""
    seconds, needed = number(report.get("seconds")), number(report.get("episodes_needed"))
    settings = ", ".join(f"{key} {value}" for key, value in texts(env.get("env_kwargs"), 20).items())
    found = {
        "Environment": text(env.get("env_id")),
        "Settings of the environment": settings,
        "Teacher": text(report.get("teacher_name")),
        "SHA-256 of the teacher": text(report.get("teacher_checksum")),
        "Student": text(report.get("student_arch"), 40),
        "Bits of weights": _bits(report.get("weight_bits")),
        "Bits of activations": _bits(report.get("activation_bits")),
        "Environment steps": "" if number(report.get("timesteps")) is None else f"{number(report.get('timesteps')):,.0f}",
        "Time of learning": "" if seconds is None else f"{seconds:,.0f} s",
        "Transition": text(report.get("transition")),
        "Seed of training": text(report.get("seed")),
        "First seed of the test episodes": text(report.get("evaluation_seed")),
        "Episodes for 80 % power": "" if needed is None else f"{needed:,.0f}",
    }
    return {name: value for name, value in found.items() if value}
