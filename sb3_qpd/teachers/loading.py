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
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_qpd.envs.recipe import EnvRecipe, make_recipe
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.families import TEACHERS
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.sb3_zip import SUPPORTED, read_zip
from sb3_qpd.teachers.files.weights import check_weights
from sb3_qpd.teachers.hub import download, parse_source
from sb3_qpd.teachers.normalization import (
    Normalization,
    read_normalization,
    remove_vec_normalize,
)
from sb3_qpd.teachers.policy_builder import build_policy
from sb3_qpd.teachers.run_folder import RunFolder, find_run
from sb3_qpd.teachers.teacher import Teacher


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
        teacher.normalization = read_normalization(vecnormalize)
    if env is not None:
        _give_env(teacher, env)
    if teacher.normalization is not None:
        teacher.fit_normalization(teacher.normalization)
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
    on_hub = parse_source(source) if isinstance(source, str) else None
    if on_hub is None:
        return find_run(Path(source).expanduser()), ""
    files = download(on_hub)
    return find_run(files.path, together=True), files.name


def _find_normalization(run: RunFolder, env: Any) -> Normalization | None:
    if run.vecnormalize is not None:
        return read_normalization(run.vecnormalize)
    if run.normalizes and not (isinstance(env, VecEnv) and unwrap_vec_normalize(env) is not None):
        raise TeacherError(
            f"The teacher {run.zip_path} was trained on normalized observations (its config.yml says normalize), but there "
            f"is no vecnormalize.pkl in {run.folder}. Put it there, or say where it is: load_teacher(..., vecnormalize='...')"
            ", on the command line --vecnormalize PATH"
        )
    return None


def _give_env(teacher: Teacher, env: str | EnvRecipe | gym.Env | VecEnv) -> None:
    if isinstance(env, str | EnvRecipe):
        teacher.recipe, teacher.vec_env = make_recipe(env), None
        return
    raw, normalization = remove_vec_normalize(BaseAlgorithm._wrap_env(env))
    teacher.recipe, teacher.vec_env = None, raw
    teacher.adopt_normalization(normalization)


# --- live models ---
def _from_model(model: BaseAlgorithm) -> Teacher:
    kind = type(model).__name__
    if isinstance(model.policy, RecurrentActorCriticPolicy):
        raise TeacherError(f"{kind} is recurrent: students have no memory. Supported: {', '.join(SUPPORTED)}")
    family = next((one for one in TEACHERS.values() if isinstance(model.policy, one.policies)), None)
    if family is None:
        raise TeacherError(f"{kind} with a {type(model.policy).__name__} is not supported. Supported: {', '.join(SUPPORTED)}")
    try:
        observation_parts(model.observation_space)
        action_head(model.action_space)
    except ValueError as error:
        raise TeacherError(f"{kind}: {error}") from error
    check_weights(model.policy.state_dict(), f"the {kind} model")
    vec_env, normalization = (None, None) if model.env is None else remove_vec_normalize(model.env)
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
