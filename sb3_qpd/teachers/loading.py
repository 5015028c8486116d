"""
Loading a teacher: from an SB3 zip, a run folder of RL Zoo, the Hugging Face Hub, a live model or a live policy. No file gets
to execute anything.

    load_teacher("ppo_cartpole.zip")
    load_teacher("rl-trained-agents/ppo/LunarLander-v2_1")  # finds its environment and its normalization
    load_teacher("sb3/ppo-LunarLander-v2")  # a repository on the Hub, see hub.py
    load_teacher(model)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_qpd.checks import check_flags, check_path
from sb3_qpd.devices import check_device
from sb3_qpd.envs.recipe import EnvRecipe, EnvSource, build_env, check_env_type, make_recipe
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.families import TEACHERS
from sb3_qpd.teachers.files.agent_file import read_agent
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.files.onnx_file import SUFFIX as ONNX
from sb3_qpd.teachers.files.weights import check_weights
from sb3_qpd.teachers.hub import download, parse_source
from sb3_qpd.teachers.normalization import (
    Normalization,
    read_normalization,
    remove_vec_normalize,
)
from sb3_qpd.teachers.onnx_teacher import load_onnx
from sb3_qpd.teachers.own_policies import (
    copy_policy,
    plays_differently,
    sample_observations,
    settle_labels,
    without_compilation,
)
from sb3_qpd.teachers.policy_builder import build_policy
from sb3_qpd.teachers.run_folder import RunFolder, find_run
from sb3_qpd.teachers.teacher import Teacher

_POLICY_NAMES = ("MlpPolicy", "CnnPolicy", "MultiInputPolicy")


def load_teacher(
    source: str | Path | BaseAlgorithm | BasePolicy | Teacher,
    *,
    vecnormalize: str | Path | None = None,
    env: EnvSource | None = None,
    device: th.device | str = "auto",
    needs_env: bool = True,
    kind: str | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Teacher:
    """
    Load a pretrained agent of any algorithm in ``TEACHERS``, or of another framework, without executing any pickle.

    These are sources:

    - the path of a zip saved by SB3 (0.10 or later), or of a run folder of RL Zoo
    - the path of a file of SB3's ``policy.save()``
    - the path of an ONNX file, with ``env`` and ``kind``
    - a model on the Hub: ``"owner/name"``, ``"owner/name@revision"`` or ``"hub:owner/name/file.zip"``. A name that exists here
      as a file or folder is a path, and so is a ``pathlib.Path``
    - a live model. Its policy is copied, its environment comes along, and its ``VecNormalize`` becomes the teacher's
    - a live policy, such as ``ActorCriticPolicy.load(path)``, which is copied
    - a teacher, which is returned as it is

    :param source: the agent
    :param vecnormalize: path of the teacher's ``vecnormalize.pkl``, where it is not found beside the agent
    :param env: environment in place of the one that the folder or the model names: an id, a recipe, an environment, or a class
        or function that builds one
    :param device: device of the teacher's network
    :param needs_env: ``False`` ignores the environment that the folder names, because the caller has another one
    :param kind: what the outputs of an ONNX file are, see :meth:`Teacher.from_function`
    :param inputs: names of its inputs in the order of the observation's keys, ``None`` to find them
    :param outputs: names of its outputs: the actor's, or mean and log_std of a Gaussian; then the value's, if any. ``None``
        finds those of the actor
    :return: the frozen teacher
    :raises TeacherError: the files or the model cannot be used; the message says why
    """
    _check_arguments(vecnormalize, env, device, needs_env)
    if isinstance(source, Teacher):
        if vecnormalize is not None or env is not None:
            raise ValueError("vecnormalize= and env= are for a teacher that is loaded here: this one is there already")
        return source
    named = {"kind": kind, "inputs": inputs, "outputs": outputs}
    is_onnx = _is_onnx(source, **named)
    player = without_compilation(source.policy if isinstance(source, BaseAlgorithm) else source)
    if isinstance(source, BaseAlgorithm):
        teacher = _from_model(source)
    elif is_onnx:
        teacher = load_onnx_teacher(Path(source).expanduser(), env, **named)  # type: ignore[arg-type]
    elif isinstance(player, BasePolicy):
        teacher = _from_policy(player, type(player).__name__, _algo_of(player))
    elif isinstance(source, str | Path):
        teacher = _from_file(source, vecnormalize, env, needs_env)
    else:
        raise TypeError(f"Expected a path, a live SB3 model or a Teacher, got {type(source).__name__}")
    _complete(teacher, vecnormalize, env)
    teacher.to(get_device(device))
    if teacher.use_sde:
        teacher.policy.reset_noise()  # drawn for the weights and the device that it has now
    for one in (player, source):
        if isinstance(one, BasePolicy | BaseAlgorithm) and plays_differently(one):
            settle_labels(teacher, sample_observations(teacher), one)
    return teacher


def _is_onnx(source: Any, **named: Any) -> bool:
    """Whether a source is an ONNX file. For other sources nothing may be said of its outputs."""
    if isinstance(source, str | Path) and Path(source).suffix == ONNX and not str(source).startswith("hub:"):
        return True
    if given := [f"{name}=" for name, value in named.items() if value is not None]:
        raise ValueError(f"{', '.join(given)} is for an ONNX file, got {source!r}, which needs none. Leave it out")
    return False


def load_onnx_teacher(path: Path, env: EnvSource | None, **named: Any) -> Teacher:
    """
    A teacher from an ONNX file, with the spaces of its environment.

    :param path: the file
    :param env: its environment
    :param named: ``kind``, ``inputs`` and ``outputs`` of :func:`load_teacher`
    """
    if env is None:
        raise TeacherError(f"{path} does not name its environment, whose spaces are needed: give env=")
    if isinstance(env, str | EnvRecipe):
        built: Any = make_recipe(env).make_vec_env(1)
    else:
        built = env if isinstance(env, gym.Env | VecEnv) else build_env(env)
    first = BaseAlgorithm._wrap_env(built)
    try:
        return load_onnx(path, first.observation_space, first.action_space, **named)
    finally:
        if built is not env:
            first.close()


def _check_arguments(vecnormalize: Any, env: Any, device: Any, needs_env: Any) -> None:
    check_flags(needs_env=needs_env)
    check_device(device)
    if env is not None:
        check_env_type(env)
    if vecnormalize is not None:
        check_path("vecnormalize", vecnormalize)


def _complete(teacher: Teacher, vecnormalize: str | Path | None, env: EnvSource | None) -> None:
    """Give a teacher the statistics and the environment that the caller names."""
    if vecnormalize is not None:
        teacher.normalization = read_normalization(vecnormalize)
    if env is not None:
        _give_env(teacher, env)
    if teacher.normalization is not None:
        teacher.fit_normalization(teacher.normalization)
    elif teacher.run is not None and vecnormalize is None:
        teacher.run.warn_of_unused_statistics()


def _from_file(source: str | Path, vecnormalize: str | Path | None, env: Any, needs_env: bool) -> Teacher:
    run, name = _find(source)
    file = read_agent(run.zip_path, TEACHERS)
    policy = build_policy(file)
    return TEACHERS[file.algo](
        policy,
        name=name or f"{file.algo}/{run.env_name}",
        algo=file.algo,
        checksum=file.checksum,
        normalization=_find_normalization(run, env) if vecnormalize is None else None,
        recipe=run.make_recipe() if env is None and needs_env else None,
        run=run,
    )


def _find(source: str | Path) -> tuple[RunFolder, str]:
    """The files, and the name by which the Hub has them at this commit, ``""`` for local files."""
    if source in _POLICY_NAMES and not Path(source).exists():
        raise TeacherError(
            f"{source} is no teacher. The first argument is the teacher: a zip, a run folder, a model on the Hub or a live "
            "model. The student's policy is chosen by its observations"
        )
    on_hub = parse_source(source) if isinstance(source, str) else None
    if on_hub is None or on_hub.looks_like_run_folder(TEACHERS):
        return find_run(Path(source).expanduser()), ""
    files = download(on_hub)
    return find_run(files.path, together=True), files.name


def _find_normalization(run: RunFolder, env: Any) -> Normalization | None:
    if run.vecnormalize is not None:
        return read_normalization(run.vecnormalize)
    if run.normalizes and not (isinstance(env, VecEnv) and unwrap_vec_normalize(env) is not None):
        raise TeacherError(
            f"The teacher {run.zip_path} was trained on normalized observations (its config.yml says normalize), but there "
            f"is no vecnormalize.pkl in {run.folder}. Put it there, or say where it is: vecnormalize=PATH"
        )
    return None


def _give_env(teacher: Teacher, env: EnvSource) -> None:
    if isinstance(env, str | EnvRecipe):
        teacher.recipe, teacher.vec_env = make_recipe(env), None
        return
    built = env if isinstance(env, gym.Env | VecEnv) else build_env(env)
    raw, normalization = remove_vec_normalize(BaseAlgorithm._wrap_env(built))
    teacher.recipe, teacher.vec_env = None, raw
    teacher.adopt_normalization(normalization)


def _from_model(model: BaseAlgorithm) -> Teacher:
    kind = type(model).__name__
    vec_env, normalization = (None, None) if model.env is None else remove_vec_normalize(model.env)
    algo = "ppo_lstm" if isinstance(model, RecurrentPPO) else kind.lower()
    teacher = _from_policy(without_compilation(model.policy), kind, algo)
    teacher.name = f"{algo}/{_env_name(vec_env)}".rstrip("/")
    teacher.normalization, teacher.vec_env = normalization, vec_env
    return teacher


def _from_policy(policy: BasePolicy, kind: str, algo: str) -> Teacher:
    supported = f"Supported: {', '.join(TEACHERS)}"
    is_recurrent = isinstance(policy, RecurrentActorCriticPolicy)
    families = [one for one in TEACHERS.values() if one.has_memory == is_recurrent]
    family = next((one for one in families if isinstance(policy, one.policies)), None)
    if family is None:
        raise TeacherError(f"{kind} with a {type(policy).__name__} is not supported. {supported}")
    try:
        observation_parts(policy.observation_space)
        action_head(policy.action_space)
    except ValueError as error:
        raise TeacherError(f"{kind}: {error}") from error
    copied = copy_policy(policy)
    check_weights(copied.state_dict(), f"the {kind} model")
    return family(copied, name=algo, algo=algo)


def _algo_of(policy: BasePolicy) -> str:
    """The algorithm of a policy by itself, as far as the module of its class tells; actor-critic policies count as PPO's."""
    modules = [part for cls in type(policy).__mro__ for part in cls.__module__.split(".")]
    others = {"maskable": "maskableppo", "recurrent": "ppo_lstm"}
    named = (part if part in TEACHERS else others.get(part) for part in modules)
    return next((algo for algo in named if algo is not None), "ppo")


def _env_name(vec_env: VecEnv | None) -> str:
    """The id of a live model's environment, ``""`` where none is known in this process."""
    base = None if vec_env is None else vec_env.unwrapped
    spec = getattr(base, "spec", None) or getattr(next(iter(getattr(base, "envs", [])), None), "spec", None)
    return "" if spec is None else str(spec.id)
