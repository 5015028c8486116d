"""The file of an agent: SB3's zip of a model, or a policy by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from sb3_qpd.teachers.files.archive import Archive, read_file
from sb3_qpd.teachers.files.policy_file import is_policy_file, read_policy
from sb3_qpd.teachers.files.sb3_zip import TeacherFile, read_model


def read_agent(path: str | Path, supported: Collection[str]) -> TeacherFile:
    """
    Read what ``model.save()`` or ``policy.save()`` of Stable-Baselines3 wrote, without executing anything in it.

    :param path: path of the file
    :param supported: names of the algorithms that may have written it
    :return: its spaces, policy and weights
    :raises TeacherError: another file, another algorithm, or values that are refused
    """
    path = Path(path)
    content = read_file(path, "a zip saved by Stable-Baselines3")
    archive = Archive(content, str(path), "Expected a model saved by Stable-Baselines3's model.save()")
    checksum = hashlib.sha256(content).hexdigest()
    if is_policy_file(archive):
        return read_policy(archive, checksum, supported)
    return read_model(archive, path, checksum, supported)
