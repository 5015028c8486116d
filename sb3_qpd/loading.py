"""
Where teachers come from: an SB3 zip, a run folder of RL Zoo, a live model. No file gets to execute anything.

    load_teacher("ppo_cartpole.zip")
    load_teacher("rl-trained-agents/ppo/LunarLander-v2_1")  # knows its environment and normalization
    load_teacher(model)
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from torch import nn

from sb3_qpd.envs import EnvRecipe, make_recipe
from sb3_qpd.inert import Name
from sb3_qpd.reader import SUPPORTED, WAY_OUT, TeacherError, TeacherFile, check_weights, read_vecnormalize, read_zip
from sb3_qpd.run_folder import RunFolder, find_run
from sb3_qpd.teachers import TEACHERS, ObsNormalization, Teacher

MAX_OBSERVATION_SIZE = 2**20
POLICIES: dict[str, type[ActorCriticPolicy]] = {
    "ActorCriticPolicy": ActorCriticPolicy,
    "ActorCriticCnnPolicy": ActorCriticCnnPolicy,
}
ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6),
        *(nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh),
    )
}
EXTRACTORS: dict[str, type[Any]] = {"FlattenExtractor": FlattenExtractor, "NatureCNN": NatureCNN}


def load_teacher(
    source: str | Path | BaseAlgorithm | Teacher,
    *,
    vecnormalize: str | Path | None = None,
    env: str | EnvRecipe | gym.Env | VecEnv | None = None,
    device: th.device | str = "auto",
) -> Teacher:
    """
    Load a pretrained actor-critic agent (PPO, A2C, TRPO) without executing any pickle.

    :param source: a zip saved by SB3 (0.10 or later), a run folder of RL Zoo, a live model (its policy is copied; its
        environment comes along, its ``VecNormalize`` becomes the teacher's), or a teacher, which is returned as it is
    :param vecnormalize: the teacher's ``vecnormalize.pkl``, where it lies elsewhere
    :param env: the environment, instead of the one that the folder or the model names
    :param device: where the teacher's network runs
    :return: the frozen teacher
    """
    if isinstance(source, Teacher):
        return source
    if isinstance(source, BaseAlgorithm):
        teacher = _from_model(source)
    elif isinstance(source, str | Path):
        teacher = _from_file(Path(source).expanduser(), vecnormalize, env)
    else:
        raise TypeError(f"Expected a path, a live SB3 model or a Teacher, got {type(source).__name__}")
    if vecnormalize is not None:
        teacher.normalization = _read_normalization(vecnormalize)
    if env is not None:
        _give_env(teacher, env)
    _check_normalization(teacher)
    teacher.to(get_device(device))
    if teacher.policy.use_sde:
        teacher.policy.reset_noise()  # drawn for the weights and the device that it has now
    return teacher


# --- files ---
def _from_file(path: Path, vecnormalize: str | Path | None, env: Any) -> Teacher:
    run = find_run(path)
    file = read_zip(run.zip_path)
    policy = build_policy(file)
    normalization = None
    if vecnormalize is None:
        normalization = _find_normalization(run, env)
    return TEACHERS[file.algo](
        policy,
        name=f"{file.algo}/{run.env_name}",
        algo=file.algo,
        checksum=file.checksum,
        normalization=normalization,
        recipe=run.make_recipe() if env is None else None,
    )


def _find_normalization(run: RunFolder, env: Any) -> ObsNormalization | None:
    if run.vecnormalize is not None:
        return _read_normalization(run.vecnormalize)
    if run.normalizes and not (isinstance(env, VecEnv) and _find_vec_normalize(env) is not None):
        raise TeacherError(
            f"The teacher {run.zip_path} was trained on normalized observations (its config.yml says normalize), but there "
            f"is no vecnormalize.pkl in {run.folder}. Put it there, or say where it is: vecnormalize='...'"
        )
    return None


def _read_normalization(path: str | Path) -> ObsNormalization | None:
    statistics = read_vecnormalize(path)
    return None if statistics is None else ObsNormalization(*statistics)


def _check_normalization(teacher: Teacher) -> None:
    space, normalization = teacher.observation_space, teacher.normalization
    if normalization is not None and normalization.mean.shape != space.shape:
        raise TeacherError(
            f"The normalization statistics are for observations of shape {normalization.mean.shape}, the teacher takes "
            f"{space.shape}. Expected the vecnormalize.pkl of the same run (stacking normalized frames is not supported)"
        )


# --- environments ---
def take_off_normalization(vec_env: VecEnv) -> tuple[VecEnv, ObsNormalization | None]:
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
    rms = normalize.obs_rms
    if isinstance(rms, dict):
        raise TeacherError("VecNormalize statistics of Dict observations are not supported: expected Box observations")
    return raw, ObsNormalization(rms.mean.copy(), rms.var.copy(), normalize.epsilon, normalize.clip_obs)


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


def adopt_normalization(teacher: Teacher, normalization: ObsNormalization | None) -> None:
    """
    The statistics of an environment's ``VecNormalize`` go to a teacher that has none; others than its own are refused.

    :param teacher: who may take them
    :param normalization: from :func:`take_off_normalization`
    """
    if normalization is None:
        return
    if teacher.normalization is None:
        teacher.normalization = normalization
    elif not teacher.normalization.same_as(normalization):
        raise TeacherError(
            "The environment is in a VecNormalize with other statistics than the teacher's. Pass it without VecNormalize.\n"
            f"teacher: {teacher.normalization}\nenvironment: {normalization}"
        )


# --- live models ---
def _from_model(model: BaseAlgorithm) -> Teacher:
    kind = type(model).__name__
    if not isinstance(model.policy, ActorCriticPolicy):
        raise TeacherError(f"{kind} with a {type(model.policy).__name__} is not supported. Supported: {', '.join(SUPPORTED)}")
    if type(model.policy).__name__.startswith("Recurrent"):
        raise TeacherError(f"{kind} is recurrent: students have no memory. Supported: {', '.join(SUPPORTED)}")
    for space in (model.observation_space, model.action_space):
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise TeacherError(f"{kind} has a space {space}: a teacher can have Box and Discrete ones")
    check_weights(model.policy.state_dict(), f"the {kind} model")
    vec_env, normalization = (None, None) if model.env is None else take_off_normalization(model.env)
    algo = kind.lower()
    return TEACHERS.get(algo, Teacher)(
        _copied(model.policy),
        name=f"{algo}/{_env_name(vec_env)}".rstrip("/"),
        algo=algo,
        normalization=normalization,
        vec_env=vec_env,
    )


def _copied(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """A copy that shares nothing; without the optimizer, and without the tensors that the last forward pass left behind."""
    action_dist = copy.copy(policy.action_dist)
    for key, value in vars(action_dist).items():
        if isinstance(value, th.Tensor | th.distributions.Distribution):
            setattr(action_dist, key, None)
    return copy.deepcopy(policy, {id(policy.action_dist): action_dist, id(policy.optimizer): None})


def _env_name(vec_env: VecEnv | None) -> str:
    """The id of a live model's environment, ``""`` where none is known in this process."""
    base = None if vec_env is None else vec_env.unwrapped
    spec = getattr(base, "spec", None) or getattr(next(iter(getattr(base, "envs", [])), None), "spec", None)
    return "" if spec is None else str(spec.id)


# --- the policy of a file ---
def build_policy(file: TeacherFile) -> ActorCriticPolicy:
    """SB3's own policy, from checked values, with the file's weights."""
    if file.policy_class_name not in POLICIES:
        raise TeacherError(
            f"The policy class {file.policy_class_name} is not supported. Supported: {', '.join(POLICIES)}. {WAY_OUT}"
        )
    kwargs = policy_arguments(file)
    state_dict = _current_keys(file.state_dict, kwargs.get("share_features_extractor", True))
    _check_shapes(file, kwargs, state_dict)
    try:
        policy = POLICIES[file.policy_class_name](file.observation_space, file.action_space, lambda _: 0.0, **kwargs)
        policy.load_state_dict(state_dict)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise TeacherError(f"The teacher's weights, spaces and policy_kwargs contradict each other: {reason}") from error
    return policy


def policy_arguments(file: TeacherFile) -> dict[str, Any]:
    """The keyword arguments of SB3's policy class, each checked; those of its optimizer are left out."""
    kwargs = {}
    for key, value in file.policy_kwargs.items():
        if key in _NOT_NEEDED:
            continue
        if key not in _CHECKS:
            raise TeacherError(f"policy_kwargs names {key!r}, known are {', '.join(sorted(_CHECKS))}. {WAY_OUT}")
        try:
            kwargs[key] = _CHECKS[key](value)
        except ValueError as error:
            raise TeacherError(f"{key} in policy_kwargs: {error}. {WAY_OUT}") from error
    return {key: value for key, value in kwargs.items() if value is not None}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"Expected True or False, got a {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Expected a number, got a {type(value).__name__}")
    return value


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**20:
        raise ValueError("Expected layer sizes as positive integers")
    return value


def _one_of(known: dict[str, type[Any]]) -> Callable[[Any], type[Any]]:
    def check(value: Any) -> type[Any]:
        if not isinstance(value, Name) or value.name not in known:
            got = value if isinstance(value, Name) else f"a {type(value).__name__}"
            raise ValueError(f"Expected one of {', '.join(known)}, got {got}")
        return known[value.name]

    return check


def _net_arch(value: Any) -> dict[str, list[int]] | None:
    """Any form that SB3 has had: ``[64, 64]``, ``dict(pi=, vf=)``, ``[shared layers, dict(pi=, vf=)]``."""
    if value is None:
        return None
    if not isinstance(value, list | tuple | dict):
        raise ValueError(f"Expected layer sizes as a list or a dict, got a {type(value).__name__}")
    shared = [] if isinstance(value, dict) else list(value)
    branches = value if isinstance(value, dict) else shared.pop() if shared and isinstance(shared[-1], dict) else {}
    if not set(branches) <= {"pi", "vf"} or not all(isinstance(layers, list | tuple) for layers in branches.values()):
        raise ValueError("Expected the layer sizes of pi and vf as lists")
    return {branch: [_size(size) for size in (*shared, *branches.get(branch, ()))] for branch in ("pi", "vf")}


def _extractor_kwargs(value: Any) -> dict[str, Any]:
    checks: dict[str, Callable[[Any], Any]] = {"features_dim": _size, "normalized_image": _flag}
    if value is not None and (not isinstance(value, dict) or not set(value) <= set(checks)):
        raise ValueError(f"Expected a dict of {', '.join(checks)}")
    return {key: checks[key](one) for key, one in (value or {}).items()}


def _only_none(value: Any) -> None:
    if value is not None:
        raise ValueError("A separate network for gSDE's exploration is not supported")


_NOT_NEEDED = ("optimizer_class", "optimizer_kwargs", "device")
_CHECKS: dict[str, Callable[[Any], Any]] = {
    "net_arch": _net_arch,
    "activation_fn": _one_of(ACTIVATIONS),
    "features_extractor_class": _one_of(EXTRACTORS),
    "features_extractor_kwargs": _extractor_kwargs,
    "log_std_init": _number,
    "sde_net_arch": _only_none,
    **dict.fromkeys(("ortho_init", "use_sde", "full_std", "use_expln", "squash_output"), _flag),
    **dict.fromkeys(("share_features_extractor", "normalize_images"), _flag),
}


def _current_keys(state_dict: dict[str, th.Tensor], share_features_extractor: bool) -> dict[str, th.Tensor]:
    """The keys that SB3 has today: shared layers go into both branches, a shared extractor is named three times."""
    prefix = "mlp_extractor.shared_net."
    shared = [int(key[len(prefix) :].split(".")[0]) for key in state_dict if key.startswith(prefix)]
    offset = max(shared, default=-2) + 2  # every layer is a Linear and its activation
    current = {}
    for key, value in state_dict.items():
        head, _, tail = key.partition("_net.")
        if key.startswith(prefix):
            current[f"mlp_extractor.policy_net.{tail}"] = current[f"mlp_extractor.value_net.{tail}"] = value
        elif offset and head in ("mlp_extractor.policy", "mlp_extractor.value"):
            index, _, name = tail.partition(".")
            current[f"{head}_net.{int(index) + offset}.{name}"] = value
        else:
            current[key] = value
    if share_features_extractor:
        for key in [key for key in current if key.startswith("features_extractor.")]:
            current.setdefault(f"pi_{key}", current[key])
            current.setdefault(f"vf_{key}", current[key])
    return current


def _check_shapes(file: TeacherFile, kwargs: dict[str, Any], state_dict: dict[str, th.Tensor]) -> None:
    """Before anything is built, so that a file cannot ask for a network that its own weights do not fill."""
    if get_flattened_obs_dim(file.observation_space) > MAX_OBSERVATION_SIZE:
        raise TeacherError(f"Observations {file.observation_space} of more than {MAX_OBSERVATION_SIZE} numbers. {WAY_OUT}")
    for key, shape in _expected_shapes(file, kwargs).items():
        got = tuple(state_dict[key].shape) if key in state_dict else "nothing"
        if got != shape:
            raise TeacherError(
                f"The teacher's weights contradict its spaces and policy_kwargs: {key} should have shape {shape}, got {got}. "
                "The file is damaged or was edited; save the model again"
            )


def _expected_shapes(file: TeacherFile, kwargs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    default = NatureCNN if file.policy_class_name == "ActorCriticCnnPolicy" else FlattenExtractor
    is_cnn = kwargs.get("features_extractor_class", default) is NatureCNN
    hidden = [] if is_cnn else [64, 64]
    net_arch = kwargs.get("net_arch", {"pi": hidden, "vf": hidden})
    expected: dict[str, tuple[int, ...]] = {}
    if is_cnn:
        features = kwargs.get("features_extractor_kwargs", {}).get("features_dim", 512)
        expected["features_extractor.linear.0.bias"] = (features,)
    else:
        features = get_flattened_obs_dim(file.observation_space)
    space = file.action_space
    n_outputs = int(space.n) if isinstance(space, spaces.Discrete) else get_action_dim(space)
    for branch, net, head, out in (("pi", "policy_net", "action_net", n_outputs), ("vf", "value_net", "value_net", 1)):
        sizes = [features, *net_arch[branch]]
        for index, (before, after) in enumerate(itertools.pairwise(sizes)):
            expected[f"mlp_extractor.{net}.{2 * index}.weight"] = (after, before)
        expected[f"{head}.weight"] = (out, sizes[-1])
    return expected
