"""The plan of a search: its configurations, the sizes of their students, and the order of the trials."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.envs.recipe import EnvRecipe, EnvSource, make_recipe
from sb3_qpd.failures import env_name
from sb3_qpd.search.settings import SearchSettings, Size, describe_bits, describe_size, parse_max_bytes
from sb3_qpd.search.tasks import Configuration, Job, PortableEnv
from sb3_qpd.search.trials import Trial
from sb3_qpd.search.work import make_distiller
from sb3_qpd.students.budgets import BudgetError
from sb3_qpd.teachers.teacher import Teacher

# while sizes are counted, one environment in this process will do
ONE_ENV: dict[str, Any] = {"vec_env": "dummy", "env_timeout": None, "restart_envs": 0}


def portable_env(teacher: Teacher, env: EnvSource | None) -> PortableEnv:
    """
    The environment of a search, which other processes can build.

    :param teacher: the teacher
    :param env: environment of the user; ``None``: the teacher's own
    :raises ValueError: there is none, or it exists already
    """
    found: Any = (teacher.recipe or teacher.vec_env) if env is None else env
    if found is None:
        raise ValueError("This teacher does not say which environment it was trained on: give env=, an id such as CartPole-v1")
    if isinstance(found, gym.Env | VecEnv):
        raise ValueError(
            f"A search builds environments in other processes, and {env_name(found)} exists in this one. Give env= as an "
            "id such as 'my_envs:Cart-v0', or as a class or function that makes the environment"
        )
    return make_recipe(found) if isinstance(found, str | EnvRecipe) else found


def plan_trials(job: Job, settings: SearchSettings, check: Callable[[QPDDistiller], None]) -> list[Trial]:
    """
    All trials, the smallest configuration first, its seeds side by side.

    :param job: the job
    :param settings: what is searched
    :param check: refuses students that the user has no use for
    :raises ValueError: a size is refused, or none fits the limit
    """
    configurations = sorted(_configurations(job, settings, check), key=lambda one: one.nbytes)
    fitting = configurations
    if settings.max_bytes is not None:
        limit = parse_max_bytes(settings.max_bytes, job.teacher.nbytes or None)
        fitting = [one for one in configurations if one.nbytes <= limit]
        if not fitting:
            smallest = configurations[0]
            raise ValueError(
                f"No student fits max_bytes={settings.max_bytes}: the smallest of these sizes and bits is {smallest.name} "
                f"with {smallest.nbytes} bytes. Allow more, or give smaller sizes or fewer bits"
            )
    pairs = [(one, seed) for one in fitting for seed in settings.search_seeds]
    return [Trial(number, one, seed) for number, (one, seed) in enumerate(pairs)]


def _configurations(job: Job, settings: SearchSettings, check: Callable[[QPDDistiller], None]) -> Iterator[Configuration]:
    hyperparameters = {name: value for name, value in job.hyperparameters.items() if name != "n_envs"}
    env: Any = None
    names: set[str] = set()
    known: dict[str, str] = {}  # sizes and bits that a student uses -> its name
    repeated: list[str] = []
    left_out: dict[str, dict[str, BudgetError]] = {}  # size -> name with bits
    try:
        for size, bits in settings.candidates():
            name = _name_of(size, bits, names)
            unbuilt = Configuration(name, size, bits, {}, 0)
            # the environment of the first student serves all others
            counted = replace(job, env=job.env if env is None else env, hyperparameters=hyperparameters | ONE_ENV)
            try:
                distiller = make_distiller(counted, unbuilt, settings.seed)
            except BudgetError as error:  # other bits may fit
                left_out.setdefault(describe_size(size), {})[name] = error
                continue
            env = distiller.env
            check(distiller)
            arch = distiller.policy.arch
            first = known.setdefault(arch.describe(distiller._has_images), name)
            if first != name:
                repeated.append(f"{name} is {first}")
                continue
            yield replace(unbuilt, arch=arch.asdict(), nbytes=distiller.policy.to_integer().nbytes)
    finally:
        if env is not None:
            env.close()
    if repeated:
        warnings.warn(f"Students with two names are tried once: {', '.join(repeated)}")
    for errors in left_out.values():
        reason = next(iter(errors.values()))
        if len(errors) == len(settings.bits):
            raise reason
        warnings.warn(f"{', '.join(errors)} cannot be tried: {reason}")


def _name_of(size: Size, bits: tuple[int, int], taken: set[str]) -> str:
    """A name for a folder: letters, digits and few marks. Another size of the same name gets a number."""
    word = re.sub(r"[^\w.%-]+", "-", describe_size(size)).strip("-.")[:60]
    stem = f"{word}-{describe_bits(bits)}"
    name = next(name for n in range(len(taken) + 1) if (name := stem if n == 0 else f"{stem}-{n + 1}") not in taken)
    taken.add(name)
    return name
