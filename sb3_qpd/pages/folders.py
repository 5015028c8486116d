"""Result folders as pages: reading what is in them, and writing ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sb3_qpd.atomic import write_atomically
from sb3_qpd.integer_file import MAX_JSON_BYTES, StudentError, read_json
from sb3_qpd.pages.comparison_page import comparison_page
from sb3_qpd.pages.frontier import MAX_POINTS, Frontier, read_frontier
from sb3_qpd.pages.frontier_page import frontier_page
from sb3_qpd.pages.render import render
from sb3_qpd.pages.run import Run, read_run
from sb3_qpd.pages.run_page import run_page
from sb3_qpd.pages.values import fields, objects
from sb3_qpd.student_folder import BENCHMARK, COMMAND, FILM, FRONTIER, PAGE, RECORDED_TEXT, REPORT, read_own_file

MAX_FRONTIER_BYTES = 16 * 2**20
MAX_COMMAND_BYTES = 2**16
MAX_FILM_BYTES = 3_000_000  # in base64 it takes a third more of the page
FILMS = (FILM, "replay.gif")  # the second is what push publishes


def page_of_report(report: Mapping[str, Any], command: str = "", film: bytes | None = None) -> str:
    """
    The page of a report that is being written.

    :param report: contents of ``report.json``
    :param command: the command line that makes it
    :param film: a GIF of teacher and student
    :return: HTML
    """
    return render(run_page(read_run(report, command=command, film=film)))


def write_page(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """
    Make a page anew from the JSON in result folders: of one run, of one search, or of several runs side by side.

    :param folders: folders that ``compress``, ``frontier`` or ``zoo train`` wrote
    :param out: the file; ``None``: ``report.html`` in the one folder
    :return: the file
    :raises ValueError: a folder holds no report, or the file of several folders has no name
    """
    paths = [Path(folder) for folder in folders]
    if out is None and len(paths) != 1:
        raise ValueError(f"The page of {len(paths)} folders needs a file: give out=")
    found = [read_folder(path) for path in paths]
    if len(found) == 1:
        page = frontier_page(found[0]) if isinstance(found[0], Frontier) else run_page(found[0])
    else:
        page = comparison_page([run for one in found for run in _runs(one)])
    path = paths[0] / PAGE if out is None else Path(out)
    write_atomically(path, render(page).encode())
    return path


def _runs(found: Run | Frontier) -> list[Run]:
    return [found] if isinstance(found, Run) else [point.run for point in found.points if point.run is not None]


def read_folder(folder: Path) -> Run | Frontier:
    """
    Read a result folder, which may come from elsewhere. Nothing in it is executed, and no link is followed.

    :param folder: the folder
    :raises ValueError: it holds no report
    """
    if (folder / FRONTIER).exists():
        value = read_json(str(folder / FRONTIER), read_own_file(folder / FRONTIER, MAX_FRONTIER_BYTES), MAX_FRONTIER_BYTES)
        names = [one["folder"] for one in objects(value.get("points"), MAX_POINTS) if isinstance(one.get("folder"), str)]
        return read_frontier(value, folder.resolve().name, {name: run for name in names if (run := _inner(folder, name))})
    if not (folder / REPORT).exists():
        if (folder / RECORDED_TEXT).exists():
            raise ValueError(
                f"{folder} has no returns to show: its student learned from recorded observations. {RECORDED_TEXT} says how "
                f"well the student agrees with its teacher. Give compress --env ID as well: compress then writes {REPORT}"
            )
        raise ValueError(f"{folder} holds no {REPORT} and no {FRONTIER}. Expected a folder that compress or frontier wrote")
    report = read_json(str(folder / REPORT), read_own_file(folder / REPORT, MAX_JSON_BYTES))
    try:
        return read_run(report, folder.resolve().name, _benchmark(folder), _command(folder), _film(folder))
    except ValueError as error:
        raise ValueError(f"{folder / REPORT}: {error}") from error


def _inner(folder: Path, name: str) -> Run | None:
    """The run in a folder that ``frontier.json`` names. Only one inside its own folder is read."""
    parts = PurePosixPath(name)
    inside = folder / name
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or not inside.resolve().is_relative_to(folder.resolve()):
        return None
    try:
        found = read_folder(inside) if not (inside / FRONTIER).exists() else None
    except (ValueError, OSError):  # the other points are shown without it
        return None
    return found if isinstance(found, Run) else None


def _benchmark(folder: Path) -> Mapping[str, Any]:
    if not (folder / BENCHMARK).exists():
        return {}
    return fields(read_json(str(folder / BENCHMARK), read_own_file(folder / BENCHMARK, MAX_JSON_BYTES)))


def _command(folder: Path) -> str:
    try:
        return read_own_file(folder / COMMAND, MAX_COMMAND_BYTES).decode(errors="replace")
    except (OSError, StudentError):
        return ""


def _film(folder: Path) -> bytes | None:
    for name in FILMS:
        try:
            film = read_own_file(folder / name, MAX_FILM_BYTES)
        except (OSError, StudentError):
            continue
        if film[:6] in (b"GIF87a", b"GIF89a"):
            return film
    return None
