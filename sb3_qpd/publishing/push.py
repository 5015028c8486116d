"""
Publication of a student on the Hugging Face Hub: its files, its settings, and a model card with what was measured.

All files are prepared in memory, searched for paths of this machine and listed before anything is sent. One commit holds
them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_qpd.evaluation.report import to_markdown
from sb3_qpd.integer import IntegerModel
from sb3_qpd.integer_file import read_json
from sb3_qpd.publishing.card import card
from sb3_qpd.publishing.config import make_config
from sb3_qpd.publishing.film import film
from sb3_qpd.publishing.paths import check_no_paths
from sb3_qpd.publishing.upload import upload
from sb3_qpd.student_folder import CONFIG, FILES, INTEGER_MODEL, REPORT, STUDENT_ZIP, folder_of, read_own_file
from sb3_qpd.text import plain


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    message: str = "A student distilled by sb3_qpd",
    replay: bool = True,
    announce: Callable[[str], None] = print,
) -> tuple[str, list[str]]:
    """
    Publish the files that ``sb3-qpd compress`` and ``export`` wrote.

    Only ordinary files of the folder are sent. A link in it is refused, because it may lead to any file of this machine.

    :param folder: folder with ``student.npz`` and ``report.json``, or a file in it; other files of ``FILES`` are published too
    :param repo_id: repository as ``owner/name``, created where there is none
    :param private: whether a new repository is private; ``None`` is the account's default
    :param branch: branch to commit to; ``None`` is ``main``
    :param message: message of the commit
    :param replay: film a few episodes
    :param announce: is called with a line for each file before any of them is sent
    :return: address of the commit, and remarks
    :raises ValueError: a file is missing, is of another student, or names a path of this machine; or the upload fails
    """
    folder = folder_of(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise ValueError(f"repo_id must be owner/name, got {repo_id!r}")
    files, remarks = _prepare(folder, repo_id, replay)
    check_no_paths(files, folder)
    for name, content in files.items():
        announce(f"sending {name}, {len(content)} bytes")
    return upload(repo_id, files, private=private, branch=branch, message=message), remarks


def _prepare(folder: Path, repo_id: str, replay: bool) -> tuple[dict[str, bytes], list[str]]:
    missing = [name for name in (INTEGER_MODEL, REPORT) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}: expected a folder that sb3-qpd compress wrote, as a student is "
            "published with its report"
        )
    files = {name: read_own_file(folder / name) for name in FILES if os.path.lexists(folder / name)}
    report = _read_report(files[REPORT], folder)
    model = IntegerModel._read(str(folder / INTEGER_MODEL), files[INTEGER_MODEL])  # the bytes that are sent
    if model.nbytes != report["integer"]["bytes"]:
        raise ValueError(f"{REPORT} and {INTEGER_MODEL} in {folder} are not of the same student. Run sb3-qpd compress again")
    try:
        files[CONFIG] = make_config(report, model, files.get(STUDENT_ZIP))
        replay_files, remark = film(model, report["env"]) if replay else ({}, "no replay, as you asked")
        files |= replay_files
        files["README.md"] = card(report, repo_id, list(files)).encode()
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise _not_a_report(folder, error) from error
    left = sorted(path.name for path in folder.iterdir() if path.name not in files)
    remarks = [remark, f"not published: {plain(', '.join(left))}" if left else ""]
    return files, [one for one in remarks if one]


def _read_report(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        report = read_json(REPORT, content)
        to_markdown(report)
        return report
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise _not_a_report(folder, error) from error


def _not_a_report(folder: Path, error: Exception) -> ValueError:
    reason = f"it has no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"{REPORT} in {folder} is not what this version writes ({reason}). Run sb3-qpd compress again")
