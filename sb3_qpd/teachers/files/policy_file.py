"""
A file of SB3's ``policy.save()``, read as data: spaces, constructor arguments and weights, without the rest of a model.

Such a file does not name the class of its policy. The names of the weights tell the family, and SB3's own class is built.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch as th

from sb3_qpd.teachers.files.archive import MAX_MEMBER_BYTES, WAY_OUT, Archive, TeacherError
from sb3_qpd.teachers.files.known_names import is_known
from sb3_qpd.teachers.files.pickle_reader import GlobalName, UnsafePickle, read_pickle
from sb3_qpd.teachers.files.sb3_zip import TeacherFile
from sb3_qpd.teachers.files.space_records import refusal, to_space
from sb3_qpd.teachers.files.weights import archive_members, check_weights, is_of_weights, open_storage, to_tensors

_SPACES = ("observation_space", "action_space")
# how protocol 2 writes the learning rate's schedule, a function of a class; it is not looked at
_SCHEDULE = [("__builtin__", "getattr"), ("builtins", "getattr"), ("stable_baselines3.common.policies", "BasePolicy")]
# family -> class for vectors, class for images, class for Dict observations
_CLASSES = {
    "policies": ("ActorCriticPolicy", "ActorCriticCnnPolicy", "MultiInputActorCriticPolicy"),
    "maskable": ("MaskableActorCriticPolicy", "MaskableActorCriticCnnPolicy", "MaskableMultiInputActorCriticPolicy"),
    "recurrent": ("RecurrentActorCriticPolicy", "RecurrentActorCriticCnnPolicy", "RecurrentMultiInputActorCriticPolicy"),
    "dqn": ("DQNPolicy", "CnnPolicy", "MultiInputPolicy"),
    "qrdqn": ("QRDQNPolicy", "CnnPolicy", "MultiInputPolicy"),
    "td3": ("TD3Policy", "CnnPolicy", "MultiInputPolicy"),
    "sac": ("SACPolicy", "CnnPolicy", "MultiInputPolicy"),
    "tqc": ("TQCPolicy", "CnnPolicy", "MultiInputPolicy"),
    "crossq": ("CrossQPolicy",) * 3,
    "ars": ("ARSPolicy",) * 3,
}
# other families have the name of their algorithm
_ALGOS = {"policies": "ppo", "maskable": "maskableppo", "recurrent": "ppo_lstm"}


def is_policy_file(archive: Archive) -> bool:
    """
    Whether a zip is a file of ``torch.save``, as ``policy.save()`` writes it.

    :param archive: the zip
    """
    return "data" not in archive.names and any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in archive.names)


def read_policy(archive: Archive, checksum: str, supported: Collection[str]) -> TeacherFile:
    """
    Read a policy that ``policy.save()`` wrote, without executing anything in it.

    :param archive: the file, a zip of torch
    :param checksum: SHA-256 of the file
    :param supported: names of the algorithms that are taken
    :return: its spaces, arguments and weights
    :raises TeacherError: another file, another policy, or values that are refused
    """
    path = archive.what
    if archive.nbytes > MAX_MEMBER_BYTES:
        raise TeacherError(f"{path} holds more than {MAX_MEMBER_BYTES} bytes: refused. {WAY_OUT}")
    try:
        members = archive_members(archive)
        value = read_pickle(members["data.pkl"], _accept, open_storage(members))
        data, state_dict = _parts(value, path)
        weights = check_weights(to_tensors(state_dict, members), path)
    except UnsafePickle as error:
        raise refusal(path, error) from error
    family = _family(data, weights, path)
    algo = _ALGOS.get(family, family)
    if algo not in supported:
        raise TeacherError(f"{path} holds a policy of another algorithm: {algo}. Supported: {', '.join(supported)}")
    observation_space, action_space = (to_space(data.pop(key, None), f"{key} of {path}") for key in _SPACES)
    return TeacherFile(
        algo=algo,
        family=family,
        policy_class_name=_class_name(family, data),
        observation_space=observation_space,
        action_space=action_space,
        policy_kwargs=_arguments(family, data, weights),
        state_dict=weights,
        sb3_version="",
        checksum=checksum,
    )


def _accept(name: GlobalName) -> bool:
    return is_known(name) or is_of_weights(name) or name in _SCHEDULE


def _parts(value: Any, path: str) -> tuple[dict[str, Any], Any]:
    """The arguments and the request for the weights."""
    if not isinstance(value, dict) or value.keys() != {"state_dict", "data"}:
        raise TeacherError(
            f"{path} is a file of torch.save, but not one of SB3's policy.save(). Expected a dict of state_dict and data. "
            "Where these are weights alone, give the model's zip"
        )
    data = value["data"]
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UnsafePickle("Expected the policy's arguments as a dict with names as keys")
    return dict(data), value["state_dict"]


def _family(data: Mapping[str, Any], weights: Mapping[str, th.Tensor], path: str) -> str:
    """The module of SB3 that has the policy's class, as the names of its weights tell."""
    if "student_arch" in data:
        raise TeacherError(f"{path} holds a student of this package, not a teacher. Expected the policy of an SB3 agent")
    tops = {name.split(".")[0] for name in weights}
    if "quantile_net" in tops and "quantile_net_target" in tops:
        return "qrdqn"
    if "q_net" in tops and "q_net_target" in tops:
        return "dqn"
    if {"action_net", "value_net", "lstm_actor"} <= tops:
        return "recurrent"
    if {"action_net", "value_net"} <= tops:
        return "policies" if "use_sde" in data else "maskable"
    if {"actor", "critic"} <= tops:
        return _actor_and_critic(data, tops)
    if tops == {"action_net"}:
        return "ars"
    found = ", ".join(sorted(tops)[:5]) or "no weights"
    raise TeacherError(
        f"{path} holds no whole policy of SB3: its weights are those of {found}. Save the policy, not a part of it: "
        "model.policy.save(path)"
    )


def _actor_and_critic(data: Mapping[str, Any], tops: set[str]) -> str:
    if "actor_target" in tops:
        return "td3"
    if "n_quantiles" in data:
        return "tqc"
    return "sac" if "critic_target" in tops else "crossq"


def _class_name(family: str, data: Mapping[str, Any]) -> str:
    extractor = data.get("features_extractor_class")
    name = extractor.name if isinstance(extractor, GlobalName) else ""
    return _CLASSES[family][{"NatureCNN": 1, "CombinedExtractor": 2}.get(name, 0)]


def _arguments(family: str, data: Mapping[str, Any], weights: Mapping[str, th.Tensor]) -> dict[str, Any]:
    """The keyword arguments of SB3's class. Those that ``policy.save()`` leaves out are found in the weights."""
    arguments = {key: value for key, value in data.items() if value is not None and key != "lr_schedule"}
    if family in ("policies", "maskable", "recurrent") and not _shares_extractor(weights):
        arguments["share_features_extractor"] = False
    if family == "recurrent":
        arguments |= _lstm_arguments(weights)
    if family == "ars":
        arguments["with_bias"] = any(name.endswith(".bias") for name in weights)
    return arguments


def _lstm_arguments(weights: Mapping[str, th.Tensor]) -> dict[str, Any]:
    """Sizes of the LSTMs, and which of them there are. A dropout is not known, and has no effect on a policy that plays."""
    layers = [name for name in weights if re.fullmatch(r"lstm_actor\.weight_hh_l\d+", name)]
    first = weights.get("lstm_actor.weight_hh_l0")
    has_critic = any(name.startswith("lstm_critic.") for name in weights)
    return {
        "lstm_hidden_size": first.shape[-1] if first is not None and first.dim() else 0,
        "n_lstm_layers": len(layers),
        "lstm_kwargs": {"bias": "lstm_actor.bias_hh_l0" in weights},
        "enable_critic_lstm": has_critic,
        "shared_lstm": not has_critic and "critic.weight" not in weights,
    }


def _shares_extractor(weights: Mapping[str, th.Tensor]) -> bool:
    """Whether actor and critic have the same features extractor: its weights then stand in the file three times."""
    prefix = "vf_features_extractor."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    pairs = ((value, weights.get(f"pi_features_extractor.{name}")) for name, value in own.items())
    return all(theirs is not None and th.equal(value, theirs) for value, theirs in pairs)
