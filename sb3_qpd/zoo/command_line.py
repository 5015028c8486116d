"""The command line of a run of RL Zoo, with other settings: what the report proposes to type next."""

from __future__ import annotations

import shlex
import sys

_PARAMS = ("-params", "--hyperparams")
_STEPS = ("-n", "--n-timesteps")
# options of `sb3-qpd compress` -> keys of -params
_KEYS = {
    "--episodes": "report_episodes",
    "--student-arch": "student_arch",
    "--weight-bits": "weight_bits",
    "--activation-bits": "activation_bits",
}


def own_command() -> str | None:
    """The command line of this process, ``None`` where the program was not started by ``sb3-qpd zoo``."""
    program, *arguments = sys.argv
    return shlex.join([*program.split(), *arguments]) if program.startswith("sb3-qpd zoo ") else None


def with_options(command: str, options: str, dropped: set[str], n_episodes: int | None = None) -> str:
    """
    A command line of ``zoo train`` with other settings.

    :param command: command line of a run
    :param options: the settings, as options of ``sb3-qpd compress``
    :param dropped: options of ``compress`` that should not stand there. Without ``--episodes`` it plans a number itself. A run
        of RL Zoo does not, so ``n_episodes`` takes its place
    :param n_episodes: episodes that a verdict takes
    """
    words, changed = shlex.split(command), shlex.split(options)
    params: dict[str, str] = {}
    for option, value in zip(changed[::2], changed[1::2], strict=True):
        if option in _KEYS:
            params[_KEYS[option]] = value
        else:  # --timesteps
            words = [*_without(words, _STEPS), _STEPS[0], value]
    if "--episodes" in dropped and n_episodes is not None:
        params[_KEYS["--episodes"]] = str(n_episodes)
    if not params:
        return shlex.join(words)
    words = [word for word in words if word.partition(":")[0] not in params]
    given = [f"{key}:{value}" for key, value in params.items()]
    at = next((i for i, word in enumerate(words) if word in _PARAMS), None)
    if at is None:
        return shlex.join([*words, _PARAMS[0], *given])
    return shlex.join([*words[: at + 1], *given, *words[at + 1 :]])


def _without(words: list[str], names: tuple[str, ...]) -> list[str]:
    """Words without an option and its value."""
    return [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & set(names)]
