"""
Episodes that were played once and are kept: those of a teacher and of the random policy, which every report needs again.

The folder is ``$XDG_CACHE_HOME/sb3_qpd/episodes``, by default ``~/.cache/sb3_qpd/episodes``; it may be deleted at any time. A
file holds plain JSON. Its name is a checksum of everything that the episodes follow from: the policy's weights, its
normalization, the environment's recipe, seeds, mode, numbers of episodes and environments, and the versions of the packages
that play. A file that cannot be read, is damaged or holds something else is ignored and written anew.

Only the episodes of installed packages' environments and policies are kept, as their versions tell when they change. Code of
the user's own may change without a sign.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec as find_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_qpd.atomic import write_atomically
from sb3_qpd.envs.recipe import EnvRecipe
from sb3_qpd.evaluation.statistics import Evaluation
from sb3_qpd.teachers.normalization import ObsNormalization
from sb3_qpd.teachers.own_policies import METHODS, overrides
from sb3_qpd.teachers.teacher import Teacher
from sb3_qpd.version import __version__

# what plays an episode, besides the package of the environment; those that are not installed play nothing
PACKAGES = ("ale-py", "Box2D", "gymnasium", "mujoco", "numpy", "rl_zoo3", "sb3_contrib", "stable-baselines3", "torch")


def cache_folder() -> Path:
    """The folder of the kept episodes, whether or not it exists."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sb3_qpd" / "episodes"


def play_once(
    policy: Teacher | str, recipe: EnvRecipe, settings: dict[str, Any], play: Callable[[], Evaluation]
) -> Evaluation:
    """
    Read an evaluation that was kept, or play it and keep it.

    :param policy: a teacher, or ``"random"``
    :param recipe: environment of the episodes
    :param settings: what else the episodes follow from, as JSON values: seed, mode, numbers of episodes and environments
    :param play: plays the episodes
    """
    name = _file_name(policy, recipe, settings)
    if name is None:
        return play()
    if (kept := _read(name, settings["n_episodes"])) is not None:
        return kept
    played = play()
    with suppress(OSError, ValueError, RuntimeError):  # a folder that cannot be written, a home that is not known
        _write(name, played)
    return played


def _file_name(policy: Teacher | str, recipe: EnvRecipe, settings: dict[str, Any]) -> str | None:
    """The checksum of everything that the episodes follow from, ``None`` where a part of it can change without a sign."""
    versions = _versions(recipe)
    if versions is None or not (isinstance(policy, str) or _is_of_packages(policy)):
        return None
    key = {"policy": digest_of(policy), "env": recipe.to_json(), "settings": settings, "versions": versions}
    try:
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest() + ".json"
    except TypeError:  # settings of the environment that are no plain values
        return None


def _versions(recipe: EnvRecipe) -> dict[str, str] | None:
    """Versions of the packages that play, ``None`` for an environment of no installed package."""
    spec = gym.registry.get(recipe.env_id)
    entry_point = getattr(spec, "entry_point", None)
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    package = module.partition(":")[0].partition(".")[0]
    if not package or (spec is not None and spec.additional_wrappers) or not _is_installed(package):
        return None
    names = dict.fromkeys((*PACKAGES, *_distributions().get(package, ())))
    found = {"sb3_qpd": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return {**found, "cpu": th.backends.cpu.get_cpu_capability()}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Names of the distributions of each package; to list them takes a good part of a second."""
    return packages_distributions()


def _is_of_packages(teacher: Teacher) -> bool:
    """Whether every class of a teacher's network comes from an installed package, and no method was set on the policy."""
    if getattr(teacher.policy, "is_function", False):  # code of the user's own
        return False
    return not overrides(teacher.policy, *METHODS) and all(
        _is_installed(type(module).__module__.partition(".")[0]) for module in teacher.policy.modules()
    )


@cache
def _is_installed(package: str) -> bool:
    """Whether a package lies where packages are installed, and not in a folder under development."""
    try:
        spec = find_module(package)
    except ValueError:  # __main__ of a script or a notebook, and modules that were made by hand
        return False
    folders = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    places = [] if spec is None else [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    return bool(places) and any(Path(places[0]).resolve().is_relative_to(folder) for folder in folders)


def digest_of(policy: Teacher | str) -> str:
    """
    A checksum of everything that a policy's actions follow from; the file's own would leave out what came beside it.

    :param policy: a teacher, or the name of a policy
    """
    if isinstance(policy, str):
        return policy
    words = (
        type(policy).__name__,
        policy.algo,
        policy.device.type,
        policy.policy,
        policy.observation_space,
        policy.action_space,
    )
    digest = hashlib.sha256(repr(words).encode())
    for name, values in policy.policy.state_dict().items():
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    for part in _parts_of(policy.normalization):
        digest.update(part)
    return digest.hexdigest()


def _parts_of(normalization: Any) -> Iterator[bytes]:
    if isinstance(normalization, ObsNormalization):
        yield repr((normalization.epsilon, normalization.clip_obs, normalization.n_frames)).encode()
        yield from (np.asarray(values, np.float64).tobytes() for values in (normalization.mean, normalization.var))
    elif normalization is not None:
        for key in sorted(normalization):
            yield key.encode()
            yield from _parts_of(normalization[key])


def _read(name: str, n_episodes: int) -> Evaluation | None:
    try:
        kept = json.loads((cache_folder() / name).read_text(encoding="utf-8"))
        if kept.pop("checksum") != _checksum(name, kept):
            return None
        returns, lengths = np.array(kept["returns"], np.float64), np.array(kept["lengths"], np.int64)
        if returns.shape != (n_episodes,) or lengths.shape != (n_episodes,) or (lengths < 1).any():
            return None
        words = {key: str(kept[key]) for key in ("name", "starts")}
        numbers = {"deterministic": bool(kept["deterministic"]), "seed": int(kept["seed"]), "seconds": float(kept["seconds"])}
        return Evaluation(**words, returns=returns, lengths=lengths, **numbers, is_cached=True)  # type: ignore[arg-type]
    except (OSError, ArithmeticError, AttributeError, ValueError, TypeError, KeyError, RuntimeError):
        return None


def _checksum(name: str, content: dict[str, Any]) -> str:
    """A checksum of a kept file, so that neither a damaged nor a renamed one is taken for what was asked for."""
    return hashlib.sha256(f"{name} {json.dumps(content, sort_keys=True)}".encode()).hexdigest()


def _write(name: str, played: Evaluation) -> None:
    content = {
        **{"name": played.name, "starts": played.starts, "deterministic": bool(played.deterministic)},
        **{"seed": int(played.seed), "seconds": played.seconds},
        **{"returns": played.returns.tolist(), "lengths": played.lengths.tolist()},
    }
    content["checksum"] = _checksum(name, content)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, json.dumps(content).encode())
