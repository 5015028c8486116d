"""
The environments of other modules that this user has named, such as ``my_envs:Cart-v0``.

A student's file may name such an environment, and opening it would import the module. A file from elsewhere must not decide
that. What the user typed once as ``--env`` is therefore kept in a file of the user, with the folder in which it was typed, and
a later command takes it from there.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from sb3_qpd.atomic import write_atomically


def remember(env_id: str) -> None:
    """
    Keep an environment that the user has named. Where nothing can be written, nothing is kept.

    :param env_id: ``module:Id-v0``; plain ids need no memory
    """
    if ":" not in env_id:
        return
    known = {**_read(), env_id: os.getcwd()}
    with suppress(OSError):
        path = _file()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=2).encode())


def recall(env_id: str) -> tuple[str, str] | None:
    """
    Look an environment up.

    :param env_id: from a student's file: ``module:Id-v0``, or ``Id-v0``
    :return: ``module:Id-v0`` as the user named it, and the folder in which that was; ``None`` where the user never did
    """
    known = _read()
    names = [name for name in known if env_id in (name, name.partition(":")[2])]
    return (names[-1], known[names[-1]]) if names else None


def _file() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "sb3_qpd" / "environments.json"


def _read() -> dict[str, str]:
    try:
        known = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # no file, no JSON, no home
        return {}
    return {str(name): str(folder) for name, folder in known.items()} if isinstance(known, dict) else {}
