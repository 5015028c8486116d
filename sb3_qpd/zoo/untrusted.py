"""
RL Zoo's programs on files from elsewhere: what they evaluate, unpickle and import, read as data instead.

A run folder or a ``--conf-file`` may be a download. RL Zoo evaluates texts in its YAML, imports the classes that it names, and
unpickles statistics and models. The replacements here read the forms that honest files have, and refuse others by name. They
are in force while a program of RL Zoo runs, unless the user gives ``--trust-files``.

What the user types on the command line is the user's own: ``-params`` is evaluated as by RL Zoo, and a class that a file names
may be any whose module or name stands there too (``--gym-packages my_wrappers``).
"""

from __future__ import annotations

import argparse
import ast
import functools
import inspect
import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rl_zoo3
import torch as th
import yaml
from rl_zoo3 import exp_manager
from rl_zoo3 import utils as zoo_utils
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.distillation.student_zip import safe_copy
from sb3_qpd.envs.limits import check_untrusted_settings
from sb3_qpd.envs.recipe import MAX_FRAME_STACK, WRAPPERS
from sb3_qpd.envs.zoo_config import named_wrappers
from sb3_qpd.teachers.files.archive import MAX_MEMBER_BYTES, MAX_MEMBERS
from sb3_qpd.teachers.files.vecnormalize import NormalizationFile, read_settings
from sb3_qpd.teachers.files.zoo_yaml import BoundedLoader, ZooLoader

TRUST = "--trust-files"
MAX_TEXT = 10_000  # characters of a text that RL Zoo would evaluate
# Modules, and the classes in them that a file may name besides the wrappers of envs/recipe.py
VEC_WRAPPERS = ((r"stable_baselines3\.common\.vec_env(\.\w+)?", "VecFrameStack|VecTransposeImage|VecCheckNan|VecNormalize"),)
CLASSES = (
    (r"rl_zoo3\.callbacks", "ParallelTrainCallback|RawStatisticsCallback"),
    (r"stable_baselines3\.common\.callbacks", "StopTraining\\w+"),
    (r"(stable_baselines3|sb3_contrib)\.[\w.]+", r"\w+Policy"),
)
_ACTIVATIONS = set(th.nn.modules.activation.__all__)
_NAMES = {"HerReplayBuffer": HerReplayBuffer, "RMSpropTFLike": RMSpropTFLike}
Change = tuple[Any, str, Any]  # module or class, its attribute, and the new value


def changes() -> list[Change]:
    """The attributes of other packages that are changed, see :class:`~sb3_qpd.zoo.compat.Replacement`."""
    wrapper_class, class_by_name, test_env = _checked_wrappers(), _checked_classes(), _checked_test_env()
    return [
        # functions of these modules find this name before Python's own function
        *((module, "eval", plain_value) for module in (exp_manager, zoo_utils)),
        *((module, "get_wrapper_class", wrapper_class) for module in (exp_manager, zoo_utils)),
        *((module, "get_class_by_name", class_by_name) for module in (exp_manager, zoo_utils)),
        *((module, "create_test_env", test_env) for module in (rl_zoo3, zoo_utils)),
        (yaml, "UnsafeLoader", _RunLoader),
        (yaml, "SafeLoader", BoundedLoader),
        (VecNormalize, "load", staticmethod(load_statistics)),
        (QPDDistiller, "load", classmethod(_load_as_data)),
        (zipfile.ZipFile, "extractall", _bounded_extraction()),
    ]


class _RunLoader(ZooLoader):
    """YAML of a run folder, whose ``env_kwargs`` RL Zoo's programs update as a dict."""

    def get_single_data(self) -> Any:
        data = super().get_single_data()
        env_kwargs = data.get("env_kwargs") if isinstance(data, dict) else None
        if not isinstance(env_kwargs, dict | None):
            raise ValueError(
                f"The run folder was refused: 'env_kwargs' must be settings by name, got {str(env_kwargs)[:80]!r}"
            )
        return data


def plain_value(text: str, *scopes: Any) -> Any:
    """
    The value of a text in an RL Zoo file, without running it: literals, ``dict(...)``, activation functions of torch.

    :param text: such as ``dict(norm_obs=True)`` or ``dict(activation_fn=nn.ReLU, net_arch=[64, 64])``
    :param scopes: not used, as in Python's ``eval``
    :raises ValueError: it is anything else
    """
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"it has more than {MAX_TEXT} characters")
        return _plain(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"A file says {text[:80]!r}, which RL Zoo would run as code: refused ({error}). Expected literals such as "
            f"dict(norm_obs=True), or give {TRUST} if you trust the file"
        ) from error


def _plain(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return {_name_of(keyword): _plain(keyword.value) for keyword in keywords}
        case ast.Attribute(value=ast.Name(id="nn"), attr=name) if name in _ACTIVATIONS:
            return getattr(th.nn, name)
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items):
            return [_plain(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_plain(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {ast.literal_eval(key): _plain(value) for key, value in zip(keys, values, strict=True) if key is not None}
    return ast.literal_eval(node)


def _name_of(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("dict(**...) is not a literal")
    return keyword.arg


def _checked_wrappers() -> Callable[..., Any]:
    build = original(zoo_utils.get_wrapper_class)

    def get_wrapper_class(hyperparams: dict[str, Any], key: str = "env_wrapper") -> Any:
        for name, _ in named_wrappers(hyperparams.get(key)):
            _check_class(name, key, WRAPPERS if key == "env_wrapper" else VEC_WRAPPERS)
        return build(hyperparams, key)

    get_wrapper_class.__wrapped__ = build  # type: ignore[attr-defined]
    return get_wrapper_class


def _checked_classes() -> Callable[..., Any]:
    find = original(zoo_utils.get_class_by_name)

    def get_class_by_name(name: str) -> Any:
        _check_class(name, "policy or callback", CLASSES)
        return find(name)

    get_class_by_name.__wrapped__ = find  # type: ignore[attr-defined]
    return get_class_by_name


def _checked_test_env() -> Callable[..., Any]:
    """The environment of ``enjoy`` and its like, whose settings come from the run folder: they could fill the memory."""
    create = original(zoo_utils.create_test_env)

    @functools.wraps(create)
    def create_test_env(*args: Any, **kwargs: Any) -> VecEnv:
        given = inspect.signature(create).bind(*args, **kwargs).arguments
        _check_settings(given.get("hyperparams") or {}, given.get("env_kwargs") or {})
        return create(*args, **kwargs)

    return create_test_env


def _check_settings(hyperparams: dict[str, Any], env_kwargs: Any) -> None:
    """Limit the settings of an environment but for those that the command line names (``--env-kwargs NAME:VALUE``)."""
    typed = {argument.partition(":")[0] for argument in sys.argv[1:]}
    if isinstance(env_kwargs, dict):
        env_kwargs = {name: value for name, value in env_kwargs.items() if name not in typed}
    frames = hyperparams.get("frame_stack") or 1
    try:
        if type(frames) is not int or not 1 <= frames <= MAX_FRAME_STACK:
            raise ValueError(f"frame_stack must be 1 to {MAX_FRAME_STACK}.")
        wrappers = [pair for key in ("env_wrapper", "vec_env_wrapper") for pair in named_wrappers(hyperparams.get(key))]
        check_untrusted_settings([env_kwargs, *(kwargs for _, kwargs in wrappers)], frames)
    except ValueError as error:
        raise ValueError(f"The run folder was refused: {error} Give {TRUST} if you trust it") from error


def _check_class(name: Any, key: str, known: tuple[tuple[str, str], ...]) -> None:
    """Refuse a class that a file names, and that neither the list has nor the command line names."""
    module, _, class_name = str(name).rpartition(".")
    if any(re.fullmatch(modules, module) and re.fullmatch(names, class_name) for modules, names in known):
        return
    is_typed = any(re.search(rf"(?<![\w.]){re.escape(str(name))}(?![\w.])", argument) for argument in sys.argv[1:])
    if module and (is_typed or module.partition(".")[0] in {package.partition(".")[0] for package in _packages()}):
        return
    raise ValueError(
        f"A file names {str(name)[:80]!r} as {key}, which would be imported and called: refused. If it is yours, name its "
        f"module: --gym-packages {module[:80]}, or give {TRUST}"
    )


def _packages() -> list[str]:
    """The packages of ``--gym-packages``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--gym-packages", nargs="+", default=[])
    return parser.parse_known_args(sys.argv[1:])[0].gym_packages


def _bounded_extraction() -> Callable[..., None]:
    """``ZipFile.extractall``, by which ``rl_zoo3.load_from_hub`` unpacks a download: it would fill the disk."""
    extract = original(zipfile.ZipFile.extractall)

    def extractall(self: zipfile.ZipFile, *args: Any, **kwargs: Any) -> None:
        members = self.infolist()
        if len(members) > MAX_MEMBERS or sum(info.file_size for info in members) > MAX_MEMBER_BYTES:
            limits = f"{MAX_MEMBERS} files or {MAX_MEMBER_BYTES} bytes"
            raise ValueError(f"{self.filename} unpacks to more than {limits}: refused. Give {TRUST} if you trust it")
        extract(self, *args, **kwargs)

    extractall.__wrapped__ = extract  # type: ignore[attr-defined]
    return extractall


def load_statistics(load_path: str, venv: VecEnv) -> VecNormalize:
    """
    SB3's ``VecNormalize.load`` for a pickle that is read as data.

    :param load_path: path of a ``vecnormalize.pkl``
    :param venv: environments to wrap
    :raises ValueError: the statistics are not those of these environments
    """
    saved = read_settings(load_path)
    seen = saved.observations
    keys = list(seen.mean) if seen is not None and isinstance(seen.mean, dict) else None
    normalize = VecNormalize(
        venv,
        norm_obs=seen is not None,
        norm_reward=saved.norm_reward,
        clip_obs=10.0 if seen is None else seen.clip_obs,
        clip_reward=saved.clip_reward,
        gamma=saved.gamma,
        epsilon=saved.epsilon,
        norm_obs_keys=keys,
    )
    if seen is not None:
        normalize.obs_rms = _statistics(seen, saved.obs_count, normalize.obs_rms, load_path)
    mean, var, count = saved.returns
    normalize.ret_rms.mean, normalize.ret_rms.var, normalize.ret_rms.count = np.array(mean), np.array(var), count
    return normalize


def _statistics(saved: NormalizationFile, count: Any, fresh: Any, path: str) -> Any:
    """Statistics of the file in place of fresh ones, which have the environment's shapes."""
    if isinstance(saved.mean, dict) and isinstance(saved.var, dict) and isinstance(fresh, dict):
        return {key: _moments(saved.mean[key], saved.var[key], count[key], fresh[key], path) for key in fresh}
    if isinstance(saved.mean, dict) or isinstance(fresh, dict):
        raise ValueError(f"{path} holds statistics of another kind of observations than the environment's")
    return _moments(saved.mean, saved.var, count, fresh, path)


def _moments(mean: Any, var: Any, count: float, fresh: RunningMeanStd, path: str) -> RunningMeanStd:
    if mean.shape != fresh.mean.shape:
        raise ValueError(f"{path} holds statistics of shape {mean.shape}, the environment's have {fresh.mean.shape}")
    fresh.mean, fresh.var, fresh.count = mean, var, count
    return fresh


_load_student = QPDDistiller.load.__func__  # type: ignore[attr-defined]


def _load_as_data(cls: type[QPDDistiller], path: Any, env: Any = None, *args: Any, **kwargs: Any) -> QPDDistiller:
    """:meth:`QPDDistiller.load`, which takes a copy of the zip that holds no pickle."""
    if isinstance(path, io.IOBase):
        return _load_student(cls, path, env, *args, **kwargs)
    path = Path(path) if Path(path).is_file() else Path(f"{path}.zip")
    copy = safe_copy(path)
    return _load_student(cls, copy.content, env, *args, **{**kwargs, "custom_objects": copy.custom_objects})


def original(value: Any) -> Callable[..., Any]:
    """
    What a replacement stands for; other values are originals themselves.

    :param value: a function, or what stands for it
    """
    return getattr(value, "__wrapped__", value)
