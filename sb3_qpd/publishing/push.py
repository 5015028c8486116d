"""
Publish a student on the Hugging Face Hub: its files, how it was made, and a model card with what was measured.

Everything is prepared in memory and searched for paths of this machine before anything is sent; one commit holds all of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sb3_qpd.evaluation.report import to_markdown
from sb3_qpd.integer import IntegerModel
from sb3_qpd.publishing.card import card
from sb3_qpd.publishing.config import make_config
from sb3_qpd.publishing.film import film
from sb3_qpd.publishing.paths import check_no_paths
from sb3_qpd.publishing.upload import upload
from sb3_qpd.student_folder import FILES


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    message: str = "A student distilled by sb3_qpd",
    replay: bool = True,
) -> tuple[str, list[str]]:
    """
    Publish what ``sb3-qpd compress`` and ``export`` wrote.

    :param folder: with ``student.npz`` and ``report.json``, and what else of ``FILES`` there is
    :param repo_id: ``owner/name``; the repository is created where there is none
    :param private: of a new repository; ``None`` is the account's default
    :param branch: to commit to; ``None`` is ``main``
    :param message: of the commit
    :param replay: film a few episodes
    :return: address of the commit, and remarks
    """
    folder = Path(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise ValueError(f"repo_id must be owner/name, got {repo_id!r}")
    files, remarks = _prepare(folder, repo_id, replay)
    check_no_paths(files, folder)
    return upload(repo_id, files, private=private, branch=branch, message=message), remarks


def _prepare(folder: Path, repo_id: str, replay: bool) -> tuple[dict[str, bytes], list[str]]:
    missing = [name for name in ("student.npz", "report.json") if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {' and no '.join(missing)}: expected a folder that sb3-qpd compress wrote. "
            "A student is published with what was measured"
        )
    files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    report = _read_report(files["report.json"], folder)
    model = IntegerModel.load(folder / "student.npz")
    if model.nbytes != report["integer"]["bytes"]:
        raise ValueError(f"report.json and student.npz in {folder} are not of the same student. Run sb3-qpd compress again")
    files["config.yml"] = make_config(report, model, files.get("student.zip"))
    replay_files, remark = film(model, report["env"]) if replay else ({}, "no replay, as you asked")
    files |= replay_files
    left = sorted(path.name for path in folder.iterdir() if path.name not in files)
    remarks = [remark, f"not published: {', '.join(left)}" if left else ""]
    files["README.md"] = card(report, repo_id, list(files)).encode()
    return files, [one for one in remarks if one]


def _read_report(content: bytes, folder: Path) -> dict[str, Any]:
    try:
        report = json.loads(content)
        to_markdown(report)
        return report
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"report.json in {folder} is not what this version writes ({reason}). Run sb3-qpd compress again"
        ) from error
