"""
SB3's zip of a model, read as data.

No pickle in it is executed. Of the pickled values only the two spaces, the policy's keyword arguments and the name of its
class are read, by :mod:`~sb3_qpd.teachers.files.pickle_reader`. The weights go through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from gymnasium import spaces

from sb3_qpd.teachers.files.archive import WAY_OUT, Archive, TeacherError
from sb3_qpd.teachers.files.known_names import is_known
from sb3_qpd.teachers.files.pickle_reader import MAX_VALUES, GlobalName, UnsafePickle, check_extent, read_pickle
from sb3_qpd.teachers.files.space_records import refusal, to_space
from sb3_qpd.teachers.files.weights import read_weights

# honest files are kilobytes, unless they hold the last observations of many environments with images
MAX_DATA_BYTES = 32 * 2**20


@dataclass(frozen=True)
class TeacherFile:
    """
    The checked contents of an SB3 zip.

    :param algo: name of the algorithm, as RL Zoo spells it
    :param family: module of SB3 that has the policy's class, such as ``dqn``; ``policies`` for PPO, A2C and TRPO
    :param policy_class_name: name of SB3's policy class
    :param observation_space: space that the policy takes, after frame stacking, with channels in the policy's order
    :param action_space: space of the policy's actions
    :param policy_kwargs: plain values, and a :class:`~sb3_qpd.teachers.files.pickle_reader.GlobalName` for each class;
        ``use_sde`` is among them
    :param state_dict: finite weights by name
    :param sb3_version: version of SB3 that wrote the zip, ``""`` for old versions that did not say
    :param checksum: SHA-256 of the zip
    """

    algo: str
    family: str
    policy_class_name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    policy_kwargs: dict[str, Any]
    state_dict: dict[str, th.Tensor]
    sb3_version: str
    checksum: str


def read_model(archive: Archive, path: Path, checksum: str, supported: Collection[str]) -> TeacherFile:
    """
    Read a model that ``model.save()`` of Stable-Baselines3 (0.10 or later) wrote, without executing anything in it.

    :param archive: the zip
    :param path: path of the zip, for messages
    :param checksum: SHA-256 of the zip
    :param supported: names of the algorithms that may have written it
    :return: its spaces, policy and weights
    :raises TeacherError: another file, another algorithm, or values that are refused
    """
    data = read_json(archive, path)
    algo, family, policy_class_name = _identify(data, path, supported)
    observation_space, action_space = read_spaces(data, path)
    return TeacherFile(
        algo=algo,
        family=family,
        policy_class_name=policy_class_name,
        observation_space=observation_space,
        action_space=action_space,
        policy_kwargs=_policy_kwargs(data, path),
        state_dict=_read_weights(archive, path),
        sb3_version=_read_version(archive, path),
        checksum=checksum,
    )


def read_json(archive: Archive, path: Path) -> dict[str, Any]:
    """
    The member ``data`` of an SB3 zip: settings as JSON, with pickles in base64 where JSON has no type for a value.

    :param archive: the zip
    :param path: path of the zip, for messages
    """
    if "data" not in archive.names:
        members = ", ".join(archive.names[:5]) or "nothing"
        raise TeacherError(
            f"{path} is a zip, but not one saved by Stable-Baselines3's model.save(): "
            f"it has no member 'data' (it holds {members}){_looks_like(archive.names)}"
        )
    content = archive.read("data", MAX_DATA_BYTES)
    try:
        if sum(map(content.count, (b"[", b"{", b","))) > 4 * MAX_VALUES:  # a list of nothing takes thirty times its two bytes
            raise ValueError(f"it holds more than {MAX_VALUES} values")
        data = json.loads(content)
        check_extent(data)
    except (ValueError, RecursionError) as error:
        raise TeacherError(f"The member 'data' of {path} is not JSON ({error}). Expected a model saved by SB3") from error
    if not isinstance(data, dict):
        raise TeacherError(f"The member 'data' of {path} is a JSON {type(data).__name__}, expected an object")
    return data


# names of members that tell which other kind of zip a file is
_OTHERS = (
    (r"[^/]+/constants\.pkl", "a TorchScript module"),
    (r"[^/]+\.npy", "an .npz of numpy; a student is played by sb3-qpd evaluate"),
    (r"parameters|parameter_list", "a model of Stable-Baselines 2 (TensorFlow), which has other networks"),
    (r"[^/]+\.zip", "a folder of models in a zip: unpack it"),
    (r".+/data", "an SB3 model in a folder in a zip: unpack it"),
)


def _looks_like(names: list[str]) -> str:
    found = next((what for pattern, what in _OTHERS if any(re.fullmatch(pattern, name) for name in names)), None)
    return "" if found is None else f". It looks like {found}"


def _read_version(archive: Archive, path: Path) -> str:
    name = "_stable_baselines3_version"
    if name not in archive.names:
        return ""
    return archive.read(name, 1000).decode("ascii", "replace").strip()[:40]


def _needed(data: dict[str, Any], key: str, path: Path, accept: Callable[[GlobalName], bool] = is_known) -> Any:
    """One value of ``data``: a JSON value, or the record of what its pickle asks for."""
    if key not in data:
        raise TeacherError(f"{path} has no {key}. Expected a model saved by Stable-Baselines3's model.save()")
    value = data[key]
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    try:
        return read_pickle(base64.b64decode(value[":serialized:"], validate=True), accept)
    except (UnsafePickle, ValueError, TypeError) as error:
        raise refusal(f"{key} of {path}", error) from error


def read_spaces(data: dict[str, Any], path: Path) -> tuple[spaces.Space, spaces.Space]:
    """
    Observation and action space of an SB3 zip, read as data.

    :param data: values from :func:`read_json`
    :param path: path of the zip, for messages
    """
    observation_space, action_space = (
        to_space(_needed(data, key, path), f"{key} of {path}") for key in ("observation_space", "action_space")
    )
    return observation_space, action_space


def _policy_kwargs(data: dict[str, Any], path: Path) -> dict[str, Any]:
    kwargs = _needed(data, "policy_kwargs", path) if "policy_kwargs" in data else {}
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise refusal(f"policy_kwargs of {path}", UnsafePickle("Expected a dict with names as keys"))
    return {"use_sde": bool(data.get("use_sde", False)), **kwargs}


_OWN_CLASS = "{path} carries a policy class of its own as code: refused without running it. " + WAY_OUT


def _identify(data: dict[str, Any], path: Path, supported: Collection[str]) -> tuple[str, str, str]:
    """
    The algorithm that wrote the zip. The zip does not name it, but its policy's module and its hyperparameters tell.

    :return: one of ``supported``, the module of the policy class, and its name
    """
    try:
        policy_class = _needed(data, "policy_class", path, accept=lambda name: True)
    except TeacherError as error:
        if "policy_class" not in data:
            raise
        raise TeacherError(_OWN_CLASS.format(path=path)) from error
    if not isinstance(policy_class, GlobalName):
        raise TeacherError(_OWN_CLASS.format(path=path))
    if policy_class.module.partition(".")[0] == "sb3_qpd":
        raise TeacherError(
            f"{path} holds a student of this package, not a teacher. Let it play: sb3-qpd evaluate with its student.zip or "
            "student.npz (on the Hub hub:owner/name/student.npz)"
        )
    module = re.fullmatch(r"(?:stable_baselines3|sb3_contrib)\.(?:common\.)?(\w+)(?:\.policies)?", policy_class.module)
    if not module:
        raise TeacherError(f"The policy class of {path} is {policy_class}, outside the known classes: refused. {WAY_OUT}")
    family = module.group(1)
    algo = _FAMILIES[family](data) if family in _FAMILIES else family
    if algo not in supported:
        raise TeacherError(
            f"{path} holds an agent of another algorithm: {algo} ({policy_class.name}). Supported: {', '.join(supported)}"
        )
    return algo, family, policy_class.name


# Hyperparameters that one of the actor-critic algorithms has and the others have not. Several are listed: some of them may be
# missing (model.save(exclude=["clip_range", "lr_schedule"]) is the usual remedy against pickles that no longer open)
_TRPO_ONLY = {"cg_max_steps", "cg_damping", "line_search_max_iter", "line_search_shrinking_factor", "n_critic_updates"}
_PPO_ONLY = {"clip_range", "clip_range_vf", "n_epochs"}


def _actor_critic_algo(data: dict[str, Any]) -> str:
    if _TRPO_ONLY & data.keys():
        return "trpo"
    if _PPO_ONLY & data.keys():
        return "ppo"
    return "a2c" if {"gae_lambda", "vf_coef"} <= data.keys() else "unknown actor-critic"


def _td3_algo(data: dict[str, Any]) -> str:
    """DDPG, which is SB3's TD3 without delayed updates and without noise on the target, or TD3."""
    return "ddpg" if data.get("policy_delay") == 1 and data.get("target_noise_clip") == 0 else "td3"


# policy modules that do not have the name of the algorithm
_FAMILIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "policies": _actor_critic_algo,
    "td3": _td3_algo,
    "maskable": lambda data: "maskableppo",
    "recurrent": lambda data: "ppo_lstm",
}


def _read_weights(archive: Archive, path: Path) -> dict[str, th.Tensor]:
    member = next((name for name in ("policy.pth", "tensors.pth") if name in archive.names), None)
    if member is None:
        raise TeacherError(f"{path} has no weights: expected a member policy.pth. Save the model again with model.save()")
    return read_weights(archive.read(member), f"{member} of {path}")
