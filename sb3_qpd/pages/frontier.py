"""A search for the smallest student as its page shows it: the sound values of ``frontier.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sb3_qpd.pages.run import MAX_ROWS, VERDICTS, Policy, Run
from sb3_qpd.pages.values import fields, interval, items, number, objects, positive, text, texts

MAX_TRIALS, MAX_POINTS = 2_000, 100
STATES = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class Trial:
    """
    One student that was tried: a size, bits and a seed.

    :param name: its id
    :param size: its size, as it was typed
    :param bits: least bits of its weights
    :param activation_bits: bits of its activations
    :param seed: its seed
    :param n_bytes: its size in bytes
    :param state: one of ``STATES``
    :param steps: environment steps that it learned
    :param scores: (steps, mean return) of its validations
    :param mean: its last mean return on validation episodes; ``None`` where it has none
    :param interval: 95 % interval of that mean
    :param seconds: what it took
    :param error: why it failed
    """

    name: str
    size: str
    bits: int | None
    activation_bits: int | None
    seed: str
    n_bytes: float | None
    state: str
    steps: float
    scores: list[tuple[float, float]]
    mean: float | None
    interval: tuple[float, float] | None
    seconds: float | None
    error: str


@dataclass(frozen=True)
class Point:
    """
    A point of the frontier: trained anew with fresh seeds, and scored on the test episodes.

    :param size: its size, as it was typed
    :param bits: least bits of its weights
    :param activation_bits: bits of its activations
    :param n_bytes: its size in bytes
    :param folder: its folder, relative to that of the search
    :param seeds: its training seeds
    :param mean: its mean return
    :param interval: 95 % interval of that mean
    :param difference: student - teacher, mean returns
    :param difference_interval: its 95 % interval
    :param verdict: one of ``VERDICTS``, or ``unknown``
    :param run: what its folder holds; ``None`` where that cannot be read
    """

    size: str
    bits: int | None
    activation_bits: int | None
    n_bytes: float
    folder: str
    seeds: str
    mean: float
    interval: tuple[float, float]
    difference: float | None
    difference_interval: tuple[float, float] | None
    verdict: str
    run: Run | None = None

    @property
    def name(self) -> str:
        """Name of its folder, as ``nano-W4A4``; else size and bits."""
        return self.folder.rpartition("/")[2][:24] or f"{self.size} W{self.bits or '?'}A{self.activation_bits or '?'}"


@dataclass(frozen=True)
class Frontier:
    """
    A search.

    :param label: name of its folder
    :param env_id: its environment
    :param teacher: the teacher on test episodes; while the search goes on, on validation episodes
    :param teacher_name: name of the teacher
    :param random: the random policy on the same episodes
    :param trials: all students that were tried
    :param points: those on the frontier
    :param chosen: the point that validation episodes chose
    :param winner: the point that the search ends with: another one where test episodes do not confirm the chosen one
    :param candidates: number of sizes and bits that were tried
    :param facts: settings and checksums, as texts by name
    :param versions: versions by package
    :param command: the command that made the folder
    :param margin: loss that still counts as equal
    :param has_ended: whether the search came to its end
    :param has_limit: whether the best student below a limit was searched, and not the smallest one
    """

    label: str
    env_id: str
    teacher: Policy | None
    teacher_name: str
    random: Policy | None
    trials: list[Trial]
    points: list[Point]
    chosen: Point | None
    winner: Point | None
    candidates: int
    facts: dict[str, str]
    versions: dict[str, str]
    command: str
    margin: float | None
    has_ended: bool
    has_limit: bool


def read_frontier(value: Mapping[str, Any], label: str, runs: Mapping[str, Run]) -> Frontier:
    """
    Take what is sound from ``frontier.json``.

    :param value: its contents
    :param label: name of its folder
    :param runs: what the folders of its points hold, by their names in ``points``
    :raises ValueError: it has no trial that ended, and no point
    """
    trials = [trial for one in objects(value.get("trials"), MAX_TRIALS) if (trial := _trial(one)) is not None]
    found = [_point(one, runs) for one in items(value.get("points"), MAX_POINTS)]
    points = [point for point in found if point is not None]
    if not trials and not points:
        raise ValueError("frontier.json has no trial that ended. A search that was stopped goes on with --resume")
    places = (number(value.get(name)) for name in ("chosen", "winner"))
    chosen, winner = (None if place is None or not 0 <= place < len(found) else found[int(place)] for place in places)
    env, teacher = fields(value.get("environment")), fields(value.get("teacher"))
    played = fields(value.get("test")) or fields(value.get("validation"))  # a search that goes on has no test episodes
    return Frontier(
        label=text(label, 60),
        env_id=text(env.get("env_id")) or "an environment without a name",
        teacher=_reference("teacher", played, positive(teacher.get("bytes"))),
        teacher_name=text(teacher.get("name")) or "a teacher without a name",
        random=_reference("random", played, None),
        trials=trials,
        points=points,
        chosen=chosen,
        winner=winner,
        candidates=int(number(value.get("candidates")) or len(trials)),
        facts=_facts(value, env, teacher),
        versions=texts(value.get("versions"), 20),
        command=text(value.get("command"), 2_000),
        margin=positive(played.get("margin")),
        has_ended=bool(fields(value.get("test"))),
        has_limit=fields(value.get("settings")).get("max_bytes") is not None,
    )


def _reference(key: str, played: Mapping[str, Any], n_bytes: float | None) -> Policy | None:
    """The teacher or the random policy, beside which students stand."""
    section = fields(played.get(key))
    mean = number(section.get("mean"))
    if mean is None:
        return None
    names = {"teacher": "teacher", "random": "random policy"}
    ends = interval(section.get("interval")) or (mean, mean)
    return Policy(key, names[key], mean, ends, int(number(played.get("episodes")) or 0), [], n_bytes, None, None)


def _bits(value: Any) -> int | None:
    """A number of bits; of a list the least, which is that of the inner layers."""
    found = [int(one) for part in (value if isinstance(value, list) else [value]) if (one := number(part)) is not None]
    return min(found) if found and 1 <= min(found) <= 32 else None


def _trial(one: Mapping[str, Any]) -> Trial | None:
    state = one.get("state")
    if state not in STATES:
        return None
    pairs = [items(pair, 2) for pair in items(one.get("scores"), MAX_ROWS)]
    points = [(number(pair[0]), number(pair[1])) for pair in pairs if len(pair) == 2]
    return Trial(
        name=text(one.get("id"), 40),
        size=text(one.get("size"), 30),
        bits=_bits(one.get("weight_bits")),
        activation_bits=_bits(one.get("activation_bits")),
        seed=text(one.get("seed"), 20),
        n_bytes=positive(one.get("bytes")),
        state=state,
        steps=number(one.get("steps")) or 0.0,
        scores=[(steps, mean) for steps, mean in points if steps is not None and mean is not None],
        mean=number(one.get("return_mean")),
        interval=interval(one.get("interval")),
        seconds=number(one.get("seconds")),
        error=text(one.get("error")),
    )


def _point(value: Any, runs: Mapping[str, Run]) -> Point | None:
    one, difference = fields(value), fields(fields(value).get("difference"))
    mean, n_bytes = number(one.get("return_mean")), positive(one.get("bytes"))
    if mean is None or n_bytes is None:
        return None
    folder = one.get("folder")
    return Point(
        size=text(one.get("size"), 20) or "custom",
        bits=_bits(one.get("weight_bits")),
        activation_bits=_bits(one.get("activation_bits")),
        n_bytes=n_bytes,
        folder=text(folder),
        seeds=", ".join(text(seed, 20) for seed in items(one.get("seeds"), 20)),
        mean=mean,
        interval=interval(one.get("interval")) or (mean, mean),
        difference=number(difference.get("mean")),
        difference_interval=interval(difference.get("interval")),
        verdict=one["verdict"] if one.get("verdict") in VERDICTS else "unknown",
        run=runs.get(folder) if isinstance(folder, str) else None,
    )


def _facts(value: Mapping[str, Any], env: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, str]:
    lists = {key: ", ".join(text(item, 40) for item in items(one, 20)) for key, one in fields(value.get("settings")).items()}
    settings = {key: one or text(lists.get(key)) for key, one in texts(value.get("settings"), 40).items()}
    seconds = texts(value.get("seconds"), 10)
    size = positive(teacher.get("bytes"))
    found = {
        "Environment": text(env.get("env_id")),
        "Teacher": text(teacher.get("name")),
        "Algorithm of the teacher": text(teacher.get("algorithm")),
        "Bytes of the teacher's float32 actor": "" if size is None else f"{size:,.0f}",
        "SHA-256 of the teacher": text(teacher.get("checksum")),
        "Settings": "; ".join(f"{key} {one}" for key, one in settings.items() if one),
        "Seconds": ", ".join(f"{key} {one}" for key, one in seconds.items() if one),
    }
    return {name: one for name, one in found.items() if one}
