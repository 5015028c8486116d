"""
Where teachers come from: an SB3 zip, a run folder of RL Zoo, the Hugging Face Hub, a live model. No file gets to execute
anything.

    load_teacher("ppo_cartpole.zip")
    load_teacher("rl-trained-agents/ppo/LunarLander-v2_1")  # knows its environment and normalization
    load_teacher("sb3/ppo-LunarLander-v2")  # so does a repository on the Hub, see hub.py
    load_teacher(model)
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_qpd.building import build_policy
from sb3_qpd.envs import EnvRecipe, make_recipe
from sb3_qpd.hub import download, find_source
from sb3_qpd.reader import SUPPORTED, TeacherError, read_vecnormalize, read_zip
from sb3_qpd.run_folder import RunFolder, find_run
from sb3_qpd.spaces import head_of, parts_of
from sb3_qpd.teachers import TEACHERS, Normalization, ObsNormalization, Teacher
from sb3_qpd.weights import check_weights


def load_teacher(
    source: str | Path | BaseAlgorithm | Teacher,
    *,
    vecnormalize: str | Path | None = None,
    env: str | EnvRecipe | gym.Env | VecEnv | None = None,
    device: th.device | str = "auto",
    needs_env: bool = True,
) -> Teacher:
    """
    Load a pretrained agent of any algorithm in ``TEACHERS`` without executing any pickle.

    :param source: a zip saved by SB3 (0.10 or later), a run folder of RL Zoo, a model on the Hub (``"owner/name"``,
        ``"owner/name@revision"``, ``"hub:owner/name/file.zip"``; what exists here by that name is a path, and so is a
        ``Path``), a live model (its policy is copied; its environment comes along, its ``VecNormalize`` becomes the
        teacher's), or a teacher, which is returned as it is
    :param vecnormalize: the teacher's ``vecnormalize.pkl``, where it lies elsewhere
    :param env: the environment, instead of the one that the folder or the model names
    :param device: where the teacher's network runs
    :param needs_env: ``False`` leaves the environment alone that the folder names: the caller has one of his own
    :return: the frozen teacher
    """
    if isinstance(source, Teacher):
        if vecnormalize is not None or env is not None:
            raise ValueError("vecnormalize= and env= are for a teacher that is loaded here: this one is there already")
        return source
    if isinstance(source, BaseAlgorithm):
        teacher = _from_model(source)
    elif isinstance(source, str | Path):
        teacher = _from_file(source, vecnormalize, env, needs_env)
    else:
        raise TypeError(f"Expected a path, a live SB3 model or a Teacher, got {type(source).__name__}")
    if vecnormalize is not None:
        teacher.normalization = _read_normalization(vecnormalize)
    if env is not None:
        _give_env(teacher, env)
    _check_normalization(teacher)
    teacher.to(get_device(device))
    if teacher.use_sde:
        teacher.policy.reset_noise()  # drawn for the weights and the device that it has now
    return teacher


# --- files ---
def _from_file(source: str | Path, vecnormalize: str | Path | None, env: Any, needs_env: bool) -> Teacher:
    run, name = _find(source)
    file = read_zip(run.zip_path)
    policy = build_policy(file)
    normalization = None
    if vecnormalize is None:
        normalization = _find_normalization(run, env)
    return TEACHERS[file.algo](
        policy,
        name=name or f"{file.algo}/{run.env_name}",
        algo=file.algo,
        checksum=file.checksum,
        normalization=normalization,
        recipe=run.make_recipe() if env is None and needs_env else None,
        run=run,
    )


def _find(source: str | Path) -> tuple[RunFolder, str]:
    """The files, and the name by which the Hub has them at this commit, ``""`` for those that were here."""
    on_hub = find_source(source) if isinstance(source, str) else None
    if on_hub is None:
        return find_run(Path(source).expanduser()), ""
    files = download(on_hub)
    return find_run(files.path, together=True), files.name


def _find_normalization(run: RunFolder, env: Any) -> Normalization | None:
    if run.vecnormalize is not None:
        return _read_normalization(run.vecnormalize)
    if run.normalizes and not (isinstance(env, VecEnv) and _find_vec_normalize(env) is not None):
        raise TeacherError(
            f"The teacher {run.zip_path} was trained on normalized observations (its config.yml says normalize), but there "
            f"is no vecnormalize.pkl in {run.folder}. Put it there, or say where it is: load_teacher(..., vecnormalize='...')"
            ", on the command line --vecnormalize PATH"
        )
    return None


def _read_normalization(path: str | Path) -> Normalization | None:
    statistics = read_vecnormalize(path)
    return None if statistics is None else _to_normalization(*statistics)


def _to_normalization(mean: Any, var: Any, epsilon: float, clip_obs: float) -> Normalization:
    if not isinstance(mean, dict):
        return ObsNormalization(mean, var, epsilon, clip_obs)
    return {key: ObsNormalization(mean[key], var[key], epsilon, clip_obs) for key in mean}


def _check_normalization(teacher: Teacher) -> None:
    if teacher.normalization is not None:
        teacher.normalization = fit_normalization(teacher, teacher.normalization)


def fit_normalization(teacher: Teacher, normalization: Normalization) -> Normalization:
    """Statistics for the observations that a teacher takes; those of one frame serve a stack of normalized frames."""
    shapes = {part.key: part.shape for part in teacher.parts if part.kind != "one_hot"}
    by_key: dict[Any, ObsNormalization] = normalization if isinstance(normalization, dict) else {None: normalization}
    fitted = {key: _fit(one, shapes.get(key)) for key, one in by_key.items()}
    if None in fitted.values():
        got, space = {key: one.mean.shape for key, one in by_key.items()}, teacher.observation_space
        raise TeacherError(
            f"The normalization statistics are for observations of shape {got.get(None, got)}, the teacher takes "
            f"{space.shape or space}. Expected the vecnormalize.pkl of the same run"
        )
    return fitted if isinstance(normalization, dict) else fitted[None]  # type: ignore[return-value]


def _fit(normalization: ObsNormalization, shape: tuple[int, ...] | None) -> ObsNormalization | None:
    own = normalization.mean.shape
    if not shape or own == shape:
        return normalization if own == shape else None
    if not own or own[:-1] != shape[:-1] or shape[-1] % own[-1]:
        return None
    return normalization.stacked(shape[-1] // own[-1])


# --- environments ---
def take_off_normalization(vec_env: VecEnv) -> tuple[VecEnv, Normalization | None]:
    """
    The same environments with raw observations and rewards.

    :param vec_env: the ``VecNormalize`` may be under other wrappers
    :return: the environment without it, and the statistics that it had for observations
    """
    normalize = _find_vec_normalize(vec_env)
    if normalize is None:
        return vec_env, None
    raw = _without(vec_env, normalize)
    if not normalize.norm_obs:
        return raw, None
    rms: Any = normalize.obs_rms
    if isinstance(rms, dict):
        mean, var = {key: one.mean.copy() for key, one in rms.items()}, {key: one.var.copy() for key, one in rms.items()}
    else:
        mean, var = rms.mean.copy(), rms.var.copy()
    return raw, _to_normalization(mean, var, normalize.epsilon, normalize.clip_obs)


def _find_vec_normalize(vec_env: VecEnv) -> VecNormalize | None:
    while isinstance(vec_env, VecEnvWrapper):
        if isinstance(vec_env, VecNormalize):
            return vec_env
        vec_env = vec_env.venv
    return None


def _without(vec_env: VecEnv, wrapper: VecNormalize) -> VecEnv:
    """A copy of the chain of wrappers with one left out; the caller's own chain stays whole."""
    if vec_env is wrapper or not isinstance(vec_env, VecEnvWrapper):
        return wrapper.venv
    outer = object.__new__(type(vec_env))
    outer.__dict__.update(vec_env.__dict__, venv=_without(vec_env.venv, wrapper))
    return outer


def _give_env(teacher: Teacher, env: str | EnvRecipe | gym.Env | VecEnv) -> None:
    if isinstance(env, str | EnvRecipe):
        teacher.recipe, teacher.vec_env = make_recipe(env), None
        return
    raw, normalization = take_off_normalization(BaseAlgorithm._wrap_env(env))
    teacher.recipe, teacher.vec_env = None, raw
    adopt_normalization(teacher, normalization)


def adopt_normalization(teacher: Teacher, normalization: Normalization | None) -> None:
    """
    The statistics of an environment's ``VecNormalize`` go to a teacher that has none; others than its own are refused.

    :param teacher: who may take them
    :param normalization: from :func:`take_off_normalization`
    """
    if normalization is None:
        return
    normalization = fit_normalization(teacher, normalization)
    if teacher.normalization is None:
        teacher.normalization = normalization
    elif not _are_same(teacher.normalization, normalization):
        raise TeacherError(
            "The environment is in a VecNormalize with other statistics than the teacher's. Pass it without VecNormalize.\n"
            f"teacher: {teacher.normalization}\nenvironment: {normalization}"
        )


def _are_same(one: Normalization, other: Normalization) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(one[key].same_as(other[key]) for key in one)
    return isinstance(one, ObsNormalization) and isinstance(other, ObsNormalization) and one.same_as(other)


# --- live models ---
def _from_model(model: BaseAlgorithm) -> Teacher:
    kind = type(model).__name__
    if isinstance(model.policy, RecurrentActorCriticPolicy):
        raise TeacherError(f"{kind} is recurrent: students have no memory. Supported: {', '.join(SUPPORTED)}")
    family = next((one for one in TEACHERS.values() if isinstance(model.policy, one.policies)), None)
    if family is None:
        raise TeacherError(f"{kind} with a {type(model.policy).__name__} is not supported. Supported: {', '.join(SUPPORTED)}")
    try:
        parts_of(model.observation_space)
        head_of(model.action_space)
    except ValueError as error:
        raise TeacherError(f"{kind}: {error}") from error
    check_weights(model.policy.state_dict(), f"the {kind} model")
    vec_env, normalization = (None, None) if model.env is None else take_off_normalization(model.env)
    algo = kind.lower()
    return family(
        _copied(model.policy),
        name=f"{algo}/{_env_name(vec_env)}".rstrip("/"),
        algo=algo,
        normalization=normalization,
        vec_env=vec_env,
    )


def _copied(policy: BasePolicy) -> BasePolicy:
    """A copy that shares nothing; without optimizers, and without the tensors that the last forward pass left behind."""
    instead: dict[int, Any] = {}
    for module in policy.modules():
        if isinstance(action_dist := getattr(module, "action_dist", None), Distribution | MaskableDistribution):
            instead[id(action_dist)] = clean = copy.copy(action_dist)
            for key, value in vars(clean).items():
                if isinstance(value, th.Tensor | th.distributions.Distribution):
                    setattr(clean, key, None)
        if (optimizer := getattr(module, "optimizer", None)) is not None:
            instead[id(optimizer)] = None
    return copy.deepcopy(policy, instead)


def _env_name(vec_env: VecEnv | None) -> str:
    """The id of a live model's environment, ``""`` where none is known in this process."""
    base = None if vec_env is None else vec_env.unwrapped
    spec = getattr(base, "spec", None) or getattr(next(iter(getattr(base, "envs", [])), None), "spec", None)
    return "" if spec is None else str(spec.id)
