"""
The policy of a teacher's file: SB3's own class, built from checked values, with the file's weights.

Each family of policies has its :class:`Blueprint`: the classes and keyword arguments that its files may name. The network is
first laid out on torch's meta device, where it takes no memory, and compared with the weights of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSLinearPolicy, ARSPolicy
from sb3_contrib.common.maskable import policies as maskable
from sb3_contrib.common.recurrent import policies as recurrent
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn
from torch.overrides import TorchFunctionMode

from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.teachers.files.archive import WAY_OUT, TeacherError
from sb3_qpd.teachers.files.pickle_reader import GlobalName
from sb3_qpd.teachers.files.sb3_zip import TeacherFile

MAX_OBSERVATION_SIZE = 2**20
_LARGEST_NUMBER = 10**9  # of keyword arguments of a policy
ACTIVATIONS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU, nn.ReLU6),
        *(nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh),
    )
}
EXTRACTORS: dict[str, type[Any]] = {cls.__name__: cls for cls in (FlattenExtractor, NatureCNN, CombinedExtractor)}


@dataclass(frozen=True)
class Blueprint:
    """
    The policies that the files of one family may ask for.

    :param policies: SB3's policy classes by the names that files have for them
    :param checks: keyword arguments of these classes, each with the check of its value
    :param current_keys: gives the weights of older files the names that they have today
    :param multi_action: whether the policies take MultiDiscrete and MultiBinary actions
    :param takes_schedule: whether the classes take a learning rate schedule
    """

    policies: dict[str, type[BasePolicy]]
    checks: dict[str, Callable[[Any], Any]]
    current_keys: Callable[[dict[str, th.Tensor], dict[str, Any]], dict[str, th.Tensor]] = lambda weights, kwargs: weights
    multi_action: bool = False
    takes_schedule: bool = True


def build_policy(file: TeacherFile) -> BasePolicy:
    """
    SB3's own policy, from checked values, with the file's weights.

    :param file: contents of an SB3 zip
    :raises TeacherError: a class, a value or a shape that the weights contradict
    """
    blueprint = BLUEPRINTS[file.family]
    if file.policy_class_name not in blueprint.policies:
        known = ", ".join(blueprint.policies)
        raise TeacherError(f"The policy class {file.policy_class_name} is not supported. Supported: {known}. {WAY_OUT}")
    kwargs = policy_arguments(file) | ({"optimizer_class": _no_optimizer} if blueprint.takes_schedule else {})
    _check_spaces(file, blueprint, kwargs)
    # the signature of the class is that of its family
    policy_class: Any = blueprint.policies[file.policy_class_name]
    schedule = (_no_learning,) if blueprint.takes_schedule else ()
    arguments = (file.observation_space, file.action_space, *schedule)
    try:
        state_dict = blueprint.current_keys(_without_wrappers(file.state_dict), kwargs)
        _check_layout(policy_class, arguments, kwargs, state_dict)
        policy = policy_class(*arguments, **kwargs)
        policy.load_state_dict(state_dict)
    except TeacherError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:400]
        raise TeacherError(f"The teacher's weights, spaces and policy_kwargs contradict each other: {reason}") from error
    return policy


def _no_learning(progress_remaining: float) -> float:
    return 0.0


def _no_optimizer(parameters: Any, **settings: Any) -> None:
    """A teacher learns no more, and torch's optimizers import its compiler, which takes more than a second."""


def policy_arguments(file: TeacherFile) -> dict[str, Any]:
    """
    The keyword arguments of SB3's policy class, each checked. Those of its optimizer are left out.

    :param file: contents of an SB3 zip
    :raises TeacherError: an argument or a value that is not let through
    """
    checks = BLUEPRINTS[file.family].checks
    kwargs = {}
    for key, value in file.policy_kwargs.items():
        if key in _NOT_NEEDED or (key == "use_sde" and value is False):
            continue
        if key not in checks:
            raise TeacherError(f"policy_kwargs names {key!r}, known are {', '.join(sorted(checks))}. {WAY_OUT}")
        try:
            kwargs[key] = checks[key](value)
        except ValueError as error:
            raise TeacherError(f"{key} in policy_kwargs: {error}. {WAY_OUT}") from error
    return {key: value for key, value in kwargs.items() if value is not None}


def _check_spaces(file: TeacherFile, blueprint: Blueprint, kwargs: dict[str, Any]) -> None:
    """Refuse spaces that SB3's class cannot have had, and observations of too many numbers."""
    space, options = file.observation_space, kwargs.get("features_extractor_kwargs", {})
    try:
        head, parts = action_head(file.action_space), observation_parts(space, options.get("normalized_image", False))
    except ValueError as error:
        raise TeacherError(f"{error}. {WAY_OUT}") from error
    if not (head.is_box or isinstance(file.action_space, spaces.Discrete) or blueprint.multi_action):
        raise TeacherError(f"{file.algo} has no actions of {file.action_space}: the file contradicts itself. Save it again")
    if sum(part.n_features for part in parts) > MAX_OBSERVATION_SIZE:
        raise TeacherError(f"Observations {space} of more than {MAX_OBSERVATION_SIZE} numbers. {WAY_OUT}")
    names = {"Cnn": NatureCNN, "MultiInput": CombinedExtractor}
    default = next((cls for name, cls in names.items() if name in file.policy_class_name), FlattenExtractor)
    extractor = kwargs.get("features_extractor_class", default)
    if isinstance(space, spaces.Dict) != (extractor is CombinedExtractor):
        raise TeacherError(f"A {extractor.__name__} cannot take observations of {space}. {WAY_OUT}")
    if extractor is NatureCNN and len(space.shape or ()) != 3:
        raise TeacherError(f"A CNN needs images, the teacher's observations are {space}. {WAY_OUT}")


def _check_layout(
    policy_class: type[Any], arguments: tuple[Any, ...], kwargs: dict[str, Any], state_dict: dict[str, th.Tensor]
) -> None:
    """Compare the network that the arguments describe with the weights, before any memory is taken for it."""
    if (n_layers := _n_layers(kwargs)) > len(state_dict):  # laying out takes no memory, but time for each layer
        raise TeacherError(
            f"policy_kwargs describe {n_layers} layers, the file has {len(state_dict)} weights: it is damaged or was edited; "
            "save the model again"
        )
    # SB3 moves parts of a policy to policy.device, which is the processor as long as there are no parameters
    on_meta = type(policy_class.__name__, (policy_class,), {"device": property(lambda policy: th.device("meta"))})
    with th.device("meta"), _unchecked_distributions(), _ConvolutionShapes():
        layout = on_meta(*arguments, **kwargs)
    for key, expected in layout.state_dict().items():
        shape = tuple(state_dict[key].shape) if key in state_dict else "nothing"
        if shape != tuple(expected.shape):
            raise TeacherError(
                f"The teacher's weights contradict its spaces and policy_kwargs: {key} should have shape "
                f"{tuple(expected.shape)}, got {shape}. The file is damaged or was edited; save the model again"
            )


class _ConvolutionShapes(TorchFunctionMode):
    """
    The shapes of a CNN on the meta device.

    Torch's own functions there import its compiler, which takes more than a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.relu:
            return args[0]
        if func is th.conv2d:
            images, weight, _, *settings, _ = args
            sides = [
                (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
                for side, kernel, stride, padding, dilation in zip(images.shape[2:], weight.shape[2:], *settings, strict=True)
            ]
            if min(sides) > 0:
                return th.empty(len(images), len(weight), *sides)
        return func(*args, **(kwargs or {}))


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """gSDE draws its noise while a policy is built, and torch cannot check the values of a distribution on the meta device."""
    distribution = th.distributions.Distribution
    before = distribution._validate_args
    distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        distribution.set_default_validate_args(before)


def _n_layers(kwargs: dict[str, Any]) -> int:
    """Layers of all networks whose number the arguments give. Networks of a default size have a few."""
    net_arch, n_lstm = kwargs.get("net_arch", []), kwargs.get("n_lstm_layers", 0)
    if isinstance(net_arch, list):
        return max(len(net_arch), kwargs.get("n_critics", 0), n_lstm)
    of_critic = max(1, *(len(net_arch.get(key, ())) for key in ("vf", "qf")))
    return n_lstm + len(net_arch["pi"]) + kwargs.get("n_critics", 1) * of_critic


def _without_wrappers(state_dict: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
    """The names of weights without those that ``torch.compile`` and ``DataParallel`` put around a module's own."""
    return {re.sub(r"(^|(?<=\.))(_orig_mod|module)\.", "", key): value for key, value in state_dict.items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"Expected True or False, got a {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"Expected a number, got a {type(value).__name__}")
    if not abs(value) < _LARGEST_NUMBER:  # neither infinity nor NaN is
        raise ValueError(f"Expected a number of less than {_LARGEST_NUMBER}, up or down")
    return value


def _positive(expected: str) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**20:
            raise ValueError(f"Expected {expected}")
        return value

    return check


_size, _count = _positive("layer sizes as positive integers"), _positive("a positive integer")


def _one_of(known: dict[str, type[Any]]) -> Callable[[Any], type[Any]]:
    def check(value: Any) -> type[Any]:
        if not isinstance(value, GlobalName) or value.name not in known:
            got = value if isinstance(value, GlobalName) else f"a {type(value).__name__}"
            raise ValueError(f"Expected one of {', '.join(known)}, got {got}")
        return known[value.name]

    return check


def _layers(value: Any) -> list[int] | None:
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"Expected layer sizes as a list, got a {type(value).__name__}")
    return None if value is None else [_size(size) for size in value]


def _branches(value: Any, critic: str) -> dict[str, list[int]] | None:
    """
    Layer sizes of actor and critic, from any form that SB3 has had: ``[64, 64]``, ``dict(pi=, vf=)``,
    ``[shared layers, dict(pi=, vf=)]``.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple | dict):
        raise ValueError(f"Expected layer sizes as a list or a dict, got a {type(value).__name__}")
    shared = [] if isinstance(value, dict) else list(value)
    branches = value if isinstance(value, dict) else shared.pop() if shared and isinstance(shared[-1], dict) else {}
    if not set(branches) <= {"pi", critic} or not all(isinstance(layers, list | tuple) for layers in branches.values()):
        raise ValueError(f"Expected the layer sizes of pi and {critic} as lists")
    return {branch: [_size(size) for size in (*shared, *branches.get(branch, ()))] for branch in ("pi", critic)}


def _extractor_kwargs(value: Any) -> dict[str, Any]:
    checks: dict[str, Callable[[Any], Any]] = {"features_dim": _size, "normalized_image": _flag, "cnn_output_dim": _size}
    if value is not None and (not isinstance(value, dict) or not set(value) <= set(checks)):
        raise ValueError(f"Expected a dict of {', '.join(checks)}")
    return {key: checks[key](one) for key, one in (value or {}).items()}


def _lstm_kwargs(value: Any) -> dict[str, Any] | None:
    checks: dict[str, Callable[[Any], Any]] = {"bias": _flag, "dropout": _number}
    if value is not None and (not isinstance(value, dict) or not set(value) <= set(checks)):
        raise ValueError(f"Expected a dict of {', '.join(checks)}")
    return None if value is None else {key: checks[key](one) for key, one in value.items()}


def _only_none(value: Any) -> None:
    if value is not None:
        raise ValueError("A separate network for gSDE's exploration is not supported")


_Checks = dict[str, Callable[[Any], Any]]
_NOT_NEEDED = ("optimizer_class", "optimizer_kwargs", "device")
_COMMON: _Checks = {
    "activation_fn": _one_of(ACTIVATIONS),
    "features_extractor_class": _one_of(EXTRACTORS),
    "features_extractor_kwargs": _extractor_kwargs,
    "normalize_images": _flag,
}
_SDE: _Checks = {"use_sde": _flag, "log_std_init": _number, "use_expln": _flag, "sde_net_arch": _only_none}
_MASKABLE: _Checks = {
    **_COMMON,
    "net_arch": partial(_branches, critic="vf"),
    **dict.fromkeys(("ortho_init", "share_features_extractor"), _flag),
}
_ACTOR_CRITIC: _Checks = {**_MASKABLE, **_SDE, **dict.fromkeys(("full_std", "squash_output"), _flag)}
_RECURRENT: _Checks = {
    **_ACTOR_CRITIC,
    **{"lstm_hidden_size": _size, "n_lstm_layers": _count, "lstm_kwargs": _lstm_kwargs},
    **dict.fromkeys(("shared_lstm", "enable_critic_lstm"), _flag),
}
_DQN: _Checks = {**_COMMON, "net_arch": _layers}
_TD3: _Checks = {
    **_COMMON,
    "net_arch": partial(_branches, critic="qf"),
    "n_critics": _count,
    "share_features_extractor": _flag,
}
_SAC: _Checks = {**_TD3, **_SDE, "clip_mean": _number}
_CROSSQ: _Checks = {
    **_SAC,
    "batch_norm": _flag,
    **dict.fromkeys(("batch_norm_momentum", "batch_norm_eps", "renorm_warmup_steps"), _number),
}
_ARS: _Checks = {
    "net_arch": _layers,
    "activation_fn": _one_of(ACTIVATIONS),
    **dict.fromkeys(("with_bias", "squash_output"), _flag),
}


def _by_name(*classes: type[BasePolicy]) -> dict[str, type[BasePolicy]]:
    return {cls.__name__: cls for cls in classes}


def _current_actor_critic_keys(state_dict: dict[str, th.Tensor], kwargs: dict[str, Any]) -> dict[str, th.Tensor]:
    """Today's names: shared layers stand in both branches, and a shared extractor has three names."""
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
    if kwargs.get("share_features_extractor", True):
        for key in [key for key in current if key.startswith("features_extractor.")]:
            current.setdefault(f"pi_{key}", current[key])
            current.setdefault(f"vf_{key}", current[key])
    return current


def _current_ars_keys(state_dict: dict[str, th.Tensor], kwargs: dict[str, Any]) -> dict[str, th.Tensor]:
    """Today's names: the linear policy was a single layer before it became a network without hidden layers."""
    return {key.replace("action_net.weight", "action_net.0.weight"): value for key, value in state_dict.items()}


# module of SB3's policy classes -> what files with these classes may hold
BLUEPRINTS: dict[str, Blueprint] = {
    "policies": Blueprint(
        _by_name(ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy),
        _ACTOR_CRITIC,
        _current_actor_critic_keys,
        multi_action=True,
    ),
    "maskable": Blueprint(
        _by_name(
            maskable.MaskableActorCriticPolicy,
            maskable.MaskableActorCriticCnnPolicy,
            maskable.MaskableMultiInputActorCriticPolicy,
        ),
        _MASKABLE,
        _current_actor_critic_keys,
        multi_action=True,
    ),
    "recurrent": Blueprint(
        _by_name(
            recurrent.RecurrentActorCriticPolicy,
            recurrent.RecurrentActorCriticCnnPolicy,
            recurrent.RecurrentMultiInputActorCriticPolicy,
        ),
        _RECURRENT,
        _current_actor_critic_keys,
        multi_action=True,
    ),
    "dqn": Blueprint(_by_name(dqn.DQNPolicy, dqn.CnnPolicy, dqn.MultiInputPolicy), _DQN),
    "qrdqn": Blueprint(_by_name(qrdqn.QRDQNPolicy, qrdqn.CnnPolicy, qrdqn.MultiInputPolicy), {**_DQN, "n_quantiles": _count}),
    "td3": Blueprint(_by_name(td3.TD3Policy, td3.CnnPolicy, td3.MultiInputPolicy), _TD3),
    "sac": Blueprint(_by_name(sac.SACPolicy, sac.CnnPolicy, sac.MultiInputPolicy), _SAC),
    "tqc": Blueprint(_by_name(tqc.TQCPolicy, tqc.CnnPolicy, tqc.MultiInputPolicy), {**_SAC, "n_quantiles": _count}),
    "crossq": Blueprint(_by_name(CrossQPolicy), _CROSSQ),
    "ars": Blueprint(_by_name(ARSPolicy, ARSLinearPolicy), _ARS, _current_ars_keys, takes_schedule=False),
}
