"""Registered environments: looked up by id, and by the id under which an old environment runs today."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ale_py
import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from sb3_qpd.checks import did_you_mean
from sb3_qpd.failures import environment_failures

gym.register_envs(ale_py)

# Modules of Gymnasium's environments that need a package of their own, and how to install it
ENGINES = {
    # a wheel; Gymnasium's own advice needs a compiler
    "gymnasium.envs.box2d": "pip install box2d (sb3_qpd requires it: to install sb3_qpd again will do too)",
    "gymnasium.envs.mujoco": 'pip install "gymnasium[mujoco]"',
}

# Patterns of ids, the module that registers them, and the name to install it by. RL Zoo's agents play these environments.
# The modules are named here and never by a file, so a file cannot choose what is imported.
PACKAGES: tuple[tuple[str, str, str], ...] = (
    (
        r"(Fetch(Reach|Push|Slide|PickAndPlace)|Hand(Reach|Manipulate)|AdroitHand|FrankaKitchen|PointMaze|AntMaze)\w*-v\d+",
        "gymnasium_robotics",
        "gymnasium-robotics",
    ),
    (r"Panda\w+-v\d+", "panda_gym", "panda-gym"),
    (r"\w+BulletEnv-v\d+", "pybullet_envs_gymnasium", "pybullet_envs_gymnasium"),
    (r"(MiniGrid|BabyAI)-.+", "minigrid", "minigrid"),
    (r"(CartPole|MountainCar(Continuous)?|Pendulum|LunarLander(Continuous)?)NoVel-v\d+", "rl_zoo3.import_envs", "rl_zoo3"),
    (r"(highway|merge|roundabout|parking|intersection|racetrack)(-\w+)*-v\d+", "highway_env", "highway-env"),
)

_MUJOCO = (
    *("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum"),
    *("Pusher", "Reacher", "Swimmer", "Walker2d"),
)
# Ids of old teachers -> what runs today with the same observations and returns. The MuJoCo ones are still registered, but
# raise an error. Version 4 has their observations; Ant's lacks the contact forces, which zoo_config adds again. An id that is
# neither registered nor listed here goes to its next registered version.
SUCCESSORS: dict[str, str] = {
    "BipedalWalker-v2": "BipedalWalker-v3",
    "BipedalWalkerHardcore-v2": "BipedalWalkerHardcore-v3",
    "LunarLander-v2": "LunarLander-v3",
    "LunarLanderContinuous-v2": "LunarLanderContinuous-v3",
    "Pendulum-v0": "Pendulum-v1",
    **{f"{name}-v{version}": f"{name}-v4" for name in _MUJOCO for version in (1, 2, 3)},
}


# Parts of messages of MuJoCo 4 about files of Gymnasium's models, which their users cannot change
HARMLESS_WARNINGS = ("compiler attribute 'settotalmass' is deprecated",)


def find_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """
    The registered environment. A module in front of the id (``package:Id-v0``) is imported first.

    :param env_id: an id, as for ``gym.make``
    :raises ValueError: the module cannot be imported, or nothing is registered by this id; the nearest ids are named
    """
    if not isinstance(env_id, str):
        raise TypeError(f"An environment id must be a string, got {type(env_id).__name__}: {env_id!r}.")
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"Cannot import {module!r} for the environment {env_id!r}: {error}.") from error
    else:
        import_package(name)
    try:
        spec = gym.spec(name)
    except gym.error.Error as error:
        reason = re.sub(r"\.?\s*Did you mean: .*", "", str(error)).rstrip(".")  # Gymnasium's guess leaves out the version
        raise ValueError(f"No environment {env_id!r}: {reason}.{_hint(module, name)}") from error
    if str(spec.entry_point).startswith("gymnasium_robotics."):
        _compare_joint_types()
    return spec


def make_registered(spec: gym.envs.registration.EnvSpec, **env_kwargs: Any) -> gym.Env:
    """
    One environment, as ``gym.make`` builds it.

    :param spec: from :func:`find_spec`
    :param env_kwargs: keyword arguments for ``gym.make``
    :raises ImportError: a package is missing; the message says how to install it
    :raises EnvironmentFailure: the environment raises an error
    """
    check_env_kwargs(spec, env_kwargs)
    try:
        with without_harmless_warnings(spec):
            return gym.make(spec, **env_kwargs)
    except gym.error.Error as error:
        raise_missing_package(spec, error)
        raise  # Gymnasium says what to do
    except Exception:
        with environment_failures(spec.id, f"gym.make with {env_kwargs!r:.200}" if env_kwargs else "gym.make"):
            raise


def raise_missing_package(spec: gym.envs.registration.EnvSpec, error: Exception) -> None:
    """
    Say how to install what one of Gymnasium's own environments needs. Nothing happens for any other error.

    :param spec: from :func:`find_spec`
    :param error: what ``gym.make`` raised
    :raises ImportError: a package is missing; the message says how to install it
    """
    install = next((line for module, line in ENGINES.items() if str(spec.entry_point).startswith(module)), None)
    if isinstance(error, gym.error.DependencyNotInstalled) and install is not None:
        raise ImportError(f"{spec.id} needs a package that is not installed: {install}") from error


def check_env_kwargs(spec: gym.envs.registration.EnvSpec, env_kwargs: Mapping[str, Any]) -> None:
    """
    Refuse settings that an environment does not have, before it is built.

    :param spec: from :func:`find_spec`
    :param env_kwargs: keyword arguments for ``gym.make``
    :raises ValueError: a name is unknown; the nearest one is named
    """
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
        own = inspect.signature(creator).parameters  # type: ignore[arg-type]
    except Exception:  # a package is missing, or the class has no signature: gym.make will say so
        return
    if any(one.kind is one.VAR_KEYWORD for one in own.values()):
        return
    known = {*own, *spec.kwargs, *inspect.signature(gym.make).parameters, "render_mode"}
    for name in env_kwargs:
        if name not in known:
            takes = ", ".join(own) or "none"
            raise ValueError(f"{spec.id} has no setting {name!r}.{did_you_mean(name, own)} Its settings: {takes}.")


@contextmanager
def without_harmless_warnings(spec: gym.envs.registration.EnvSpec) -> Iterator[None]:
    """
    A context in which MuJoCo does not warn of ``HARMLESS_WARNINGS``. Other warnings come at its end.

    MuJoCo 4 prints a line for each model that it compiles, and writes it into MUJOCO_LOG.TXT in the current folder.

    :param spec: the environment that is built inside
    """
    if "mujoco" not in str(spec.entry_point) and "mujoco" not in sys.modules:  # an import of some tenths of a second
        yield
        return
    try:
        from mujoco import get_mju_user_warning, set_mju_user_warning
    except ImportError:  # not installed: gym.make says so
        yield
        return
    before, found = get_mju_user_warning(), list[str]()
    set_mju_user_warning(found.append)
    try:
        yield
    finally:
        set_mju_user_warning(before)
        for message in found:
            if not any(harmless in message for harmless in HARMLESS_WARNINGS):
                before(message) if before is not None else warnings.warn(f"MuJoCo: {message}")


def _hint(module: str, name: str) -> str:
    if module:
        own = [
            spec_id for spec_id, spec in gym.registry.items() if _module_of(spec).partition(".")[0] == module.partition(".")[0]
        ]
        near = difflib.get_close_matches(name, own, n=3)
        names = ", ".join(f"{module}:{one}" for one in near or own[:3])
        return f" Did you mean {names}?" if near else f" The module {module} registers {names or 'no environment'}."
    if (package := package_of(name)) is not None:
        return f" It is registered by another package: pip install {package}."
    near = difflib.get_close_matches(name, gym.registry, n=3)
    guess = f" Did you mean {', '.join(near)}?" if near else ""
    return f"{guess} If a module of your own registers it, import that first, or write my_module:{name}."


def _module_of(spec: gym.envs.registration.EnvSpec) -> str:
    entry = spec.entry_point
    return entry.partition(":")[0] if isinstance(entry, str) else str(getattr(entry, "__module__", ""))


def package_of(env_id: str) -> str | None:
    """
    The name by which to install the package that registers an environment, ``None`` where it is not known.

    :param env_id: id without a module in front
    """
    return next((package for pattern, _, package in PACKAGES if re.fullmatch(pattern, env_id)), None)


def import_package(env_id: str) -> None:
    """
    Import the package of ``PACKAGES`` that registers an environment, where the id is not registered yet.

    :param env_id: id without a module in front
    """
    if env_id in gym.registry:
        return
    for pattern, module, _ in PACKAGES:
        if re.fullmatch(pattern, env_id):
            try:
                importlib.import_module(module)
            except ImportError:
                return  # not installed: the caller's message says what to install


def running_id(env_id: str) -> str | None:
    """
    The id under which an environment runs today.

    :param env_id: id from a file. It is looked up; no module that it names (``module:Id-v0``) is imported
    :return: ``None`` if there is none
    """
    import_package(env_id)
    env_id = SUCCESSORS.get(env_id, env_id)
    if env_id in gym.registry and not _needs_mujoco_py(gym.registry[env_id]):
        return env_id
    parts = re.fullmatch(r"(.+)-v(\d{1,4})", env_id)
    if parts is None:
        return None
    newer = _newer_versions(parts.group(1), int(parts.group(2)))
    return f"{parts.group(1)}-v{min(newer)}" if newer else None


def _newer_versions(name: str, version: int) -> Iterable[int]:
    same = [spec for spec in gym.registry.values() if f"{spec.namespace or ''}/{spec.name}".lstrip("/") == name]
    return [
        spec.version for spec in same if spec.version is not None and spec.version > version and not _needs_mujoco_py(spec)
    ]


def _needs_mujoco_py(spec: gym.envs.registration.EnvSpec) -> bool:
    """Whether an environment of gymnasium-robotics needs OpenAI's old bindings, which cannot be installed any more."""
    return ":MujocoPy" in str(spec.entry_point)


def _compare_joint_types() -> None:
    """
    Let MuJoCo's joint types equal numpy's integers from both sides.

    Since MuJoCo 3.12 (pybind11 3.1), ``mjtJoint.mjJNT_HINGE == np.int32(3)`` is False while the mirrored comparison is True.
    gymnasium-robotics 1.4.2 asserts ``joint_type in (mjtJoint.mjJNT_HINGE, ...)`` and cannot build its robots. The same
    defect was mended in google-deepmind/mujoco_warp#1630 for that package alone.
    """
    try:
        from mujoco import mjtJoint
    except ImportError:
        return
    import numpy as np

    if mjtJoint.mjJNT_HINGE == np.int32(mjtJoint.mjJNT_HINGE):
        return
    compare = mjtJoint.__eq__

    def equal(self: object, other: object) -> bool:
        return bool(compare(self, int(other) if isinstance(other, np.integer) else other))

    mjtJoint.__eq__ = equal
