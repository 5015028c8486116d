"""
The safe reader of teachers' files: an SB3 zip, a ``vecnormalize.pkl``, RL Zoo's YAML.

No pickle is executed. Of the zip's pickled values only the two spaces, the policy's keyword arguments and the name of
its class are looked at, as data (:mod:`sb3_qpd.teachers.files.pickle_reader`); weights go through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd.spaces import ACTIONS, OBSERVATIONS
from sb3_qpd.teachers.files.archive import WAY_OUT, Archive, TeacherError, read_file
from sb3_qpd.teachers.files.pickle_reader import (
    MAX_ARRAY_SIZE,
    MAX_VALUES,
    GlobalName,
    ObjectRecord,
    UnsafePickle,
    check_extent,
    is_known,
    read_pickle,
    to_array,
    to_dtype,
    to_number,
)
from sb3_qpd.teachers.files.weights import read_weights
from sb3_qpd.teachers.files.zoo_yaml import ZooLoader

# honest files are far smaller: kilobytes, but for the last observation of many environments with images
MAX_DATA_BYTES = 32 * 2**20
MAX_PICKLE_BYTES = 64 * 2**20
# what it raises that a pickle's values are not those of a space or of statistics
_CONTRADICTIONS = (UnsafePickle, LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError)
SUPPORTED = ("a2c", "ars", "crossq", "ddpg", "dqn", "maskableppo", "ppo", "qrdqn", "sac", "td3", "tqc", "trpo")


@dataclass(frozen=True)
class TeacherFile:
    """
    What an SB3 zip says, as checked data.

    :param algo: name of the algorithm, as RL Zoo spells it
    :param policy_class_name: name of SB3's policy class
    :param observation_space: what the policy takes (after frame stacking, channels as the policy has them)
    :param action_space: what it answers
    :param policy_kwargs: plain values, and :class:`~sb3_qpd.teachers.files.pickle_reader.GlobalName` where a class is meant; ``use_sde`` included
    :param state_dict: weights, finite
    :param sb3_version: the writer's version, ``""`` before SB3 wrote one
    :param checksum: SHA-256 of the zip
    """

    algo: str
    policy_class_name: str
    observation_space: spaces.Space
    action_space: spaces.Space
    policy_kwargs: dict[str, Any]
    state_dict: dict[str, th.Tensor]
    sb3_version: str
    checksum: str


def read_zip(path: str | Path) -> TeacherFile:
    """
    Read a model saved by Stable-Baselines3 (0.10 or later) without executing anything in it.

    :param path: the zip
    :return: its spaces, policy and weights
    """
    path = Path(path)
    content = read_file(path, "a zip saved by Stable-Baselines3")
    archive = Archive(content, str(path), "Expected a model saved by Stable-Baselines3's model.save()")
    data = read_json(archive, path)
    policy_class = _needed(data, "policy_class", path, accept=lambda name: True)
    algo = _identify(data, policy_class, path)
    observation_space, action_space = read_spaces(data, path)
    return TeacherFile(
        algo=algo,
        policy_class_name=policy_class.name,
        observation_space=observation_space,
        action_space=action_space,
        policy_kwargs=_policy_kwargs(data, path),
        state_dict=_read_weights(archive, path),
        sb3_version=_read_version(archive, path),
        checksum=hashlib.sha256(content).hexdigest(),
    )


# --- the archive ---
def read_json(archive: Archive, path: Path) -> dict[str, Any]:
    """
    The member ``data`` of an SB3 zip: settings as JSON, with pickles in base64 where JSON has no type for a value.

    :param archive: the zip
    :param path: its path, for messages
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


# members by which other files that are zips are known
_OTHERS = (
    (r"[^/]+/constants\.pkl", "a TorchScript module"),
    (r"[^/]+/data\.pkl", "a checkpoint of torch.save, whose network is not in it"),
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


# --- pickled values ---
def _needed(data: dict[str, Any], key: str, path: Path, accept: Callable[[GlobalName], bool] = is_known) -> Any:
    """One value of ``data``: as it stands in the JSON, or the request that its pickle makes."""
    if key not in data:
        raise TeacherError(f"{path} has no {key}. Expected a model saved by Stable-Baselines3's model.save()")
    value = data[key]
    if not isinstance(value, dict) or ":serialized:" not in value:
        return value
    try:
        return read_pickle(base64.b64decode(value[":serialized:"], validate=True), accept)
    except (UnsafePickle, ValueError, TypeError) as error:
        raise _refused(f"{key} of {path}", error) from error


def _refused(what: str, error: Exception) -> TeacherError:
    return TeacherError(f"{what} was refused, without running it. {error}. {WAY_OUT}")


def read_spaces(data: dict[str, Any], path: Path) -> tuple[spaces.Space, spaces.Space]:
    """
    Observation and action space of an SB3 zip, read as data.

    :param data: what :func:`read_json` returned
    :param path: the zip's path, for messages
    """
    observation_space, action_space = (
        _to_space(_needed(data, key, path), f"{key} of {path}") for key in ("observation_space", "action_space")
    )
    return observation_space, action_space


def _policy_kwargs(data: dict[str, Any], path: Path) -> dict[str, Any]:
    kwargs = _needed(data, "policy_kwargs", path) if "policy_kwargs" in data else {}
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise _refused(f"policy_kwargs of {path}", UnsafePickle("Expected a dict with names as keys"))
    return {"use_sde": bool(data.get("use_sde", False)), **kwargs}


def _to_space(value: Any, what: str) -> spaces.Space:
    """A gymnasium space of our own from what the pickle said of a gym or gymnasium one."""
    if not isinstance(value, ObjectRecord) or ".spaces" not in value.target.module:
        raise TeacherError(f"The {what} is not a space of gym or gymnasium. {WAY_OUT}")
    kind = value.target.name
    is_action = what.startswith("action")
    if kind not in _SPACES or (is_action and kind == "Dict"):
        supported = ACTIONS if is_action else OBSERVATIONS
        raise TeacherError(f"The {what} is a {kind} space, which is not supported. Supported: {supported}")
    try:
        return _SPACES[kind](value.attributes())
    except _CONTRADICTIONS as error:
        raise _refused(f"The {what}", error) from error


def _to_box(attributes: dict[str, Any]) -> spaces.Box:
    low, high = to_array(attributes["low"]), to_array(attributes["high"])
    shape = attributes.get("_shape", attributes.get("shape", low.shape))
    if shape != low.shape or shape != high.shape:
        raise UnsafePickle(f"A Box whose shape and bounds contradict (bounds {low.shape} and {high.shape})")
    return spaces.Box(low, high, dtype=to_dtype(attributes["dtype"]).type)


def _to_discrete(attributes: dict[str, Any]) -> spaces.Discrete:
    return spaces.Discrete(to_number(attributes["n"], int), start=to_number(attributes.get("start", 0), int))


def _to_multi_discrete(attributes: dict[str, Any]) -> spaces.MultiDiscrete:
    nvec = to_array(attributes["nvec"])
    start = to_array(attributes["start"]) if "start" in attributes else np.zeros_like(nvec)
    if nvec.ndim != 1 or nvec.dtype.kind not in "iu" or not ((0 < nvec) & (nvec < 2**20)).all() or start.shape != nvec.shape:
        raise UnsafePickle("A MultiDiscrete space needs one axis of positive numbers of categories")
    return spaces.MultiDiscrete(nvec, start=start)


def _to_multi_binary(attributes: dict[str, Any]) -> spaces.MultiBinary:
    n = attributes["n"]
    sizes = [to_number(size, int) for size in (n if isinstance(n, tuple | list) else [n])]
    if not sizes or len(sizes) > 8 or not all(0 < size < 2**20 for size in sizes):
        raise UnsafePickle("A MultiBinary space needs positive sizes")
    return spaces.MultiBinary(sizes if isinstance(n, tuple | list) else sizes[0])


def _to_dict(attributes: dict[str, Any]) -> spaces.Dict:
    """In the order of the file: SB3 concatenates the features in it."""
    values = attributes["spaces"]
    items = values.items if isinstance(values, ObjectRecord) else list(values.items())  # gym had an OrderedDict
    if not all(isinstance(key, str) and isinstance(one, ObjectRecord) and one.target.name != "Dict" for key, one in items):
        raise UnsafePickle("A Dict space whose values are not spaces, or which is nested")
    parts, size = [], 0
    for key, one in items:
        part = _to_space(one, f"observation_space {key!r}")
        parts.append((key, part))
        size = _checked_size(size + math.prod(part.shape or ()))
    return spaces.Dict(parts)


def _checked_size(size: int) -> int:
    """The same few bytes may be the values of every key: how many numbers there are so far."""
    if size > MAX_ARRAY_SIZE:
        raise UnsafePickle(f"Observations of more than {MAX_ARRAY_SIZE} numbers")
    return size


_SPACES: dict[str, Callable[[dict[str, Any]], spaces.Space]] = {
    "Box": _to_box,
    "Discrete": _to_discrete,
    "MultiDiscrete": _to_multi_discrete,
    "MultiBinary": _to_multi_binary,
    "Dict": _to_dict,
}


# --- which algorithm ---
def _identify(data: dict[str, Any], policy_class: Any, path: Path) -> str:
    """
    The algorithm that wrote the zip, which the zip does not name: its policy's module and its hyper-parameters tell.

    :return: one of :data:`SUPPORTED`
    """
    if not isinstance(policy_class, GlobalName):
        raise TeacherError(f"{path} carries a policy class of its own as code: refused without running it. {WAY_OUT}")
    if policy_class.module.partition(".")[0] == "sb3_qpd":
        raise TeacherError(
            f"{path} holds a student of this package, not a teacher. Let it play: sb3-qpd evaluate with its student.zip or "
            "student.npz (on the Hub hub:owner/name/student.npz)"
        )
    module = re.fullmatch(r"(?:stable_baselines3|sb3_contrib)\.(?:common\.)?(\w+)(?:\.policies)?", policy_class.module)
    if not module:
        raise TeacherError(f"The policy class of {path} is {policy_class}, outside the known classes: refused. {WAY_OUT}")
    family = module.group(1)
    if family == "recurrent":
        raise TeacherError(
            f"{path} holds a recurrent agent ({policy_class.name}): students have no memory, so it cannot teach one. "
            f"Supported: {', '.join(SUPPORTED)}"
        )
    algo = _FAMILIES[family](data) if family in _FAMILIES else family
    if algo not in SUPPORTED:
        raise TeacherError(
            f"{path} holds an agent of another algorithm: {algo} ({policy_class.name}). Supported: {', '.join(SUPPORTED)}"
        )
    return algo


def _actor_critic_algo(data: dict[str, Any]) -> str:
    if "cg_max_steps" in data:
        return "trpo"
    if "clip_range" in data:
        return "ppo"
    return "a2c" if {"gae_lambda", "vf_coef"} <= data.keys() else "unknown actor-critic"


def _td3_algo(data: dict[str, Any]) -> str:
    """DDPG is SB3's TD3 without its delay and without noise on the target."""
    return "ddpg" if data.get("policy_delay") == 1 and data.get("target_noise_clip") == 0 else "td3"


# policy modules that do not have the name of the algorithm
_FAMILIES: dict[str, Callable[[dict[str, Any]], str]] = {
    "policies": _actor_critic_algo,
    "td3": _td3_algo,
    "maskable": lambda data: "maskableppo",
}


# --- weights ---
def _read_weights(archive: Archive, path: Path) -> dict[str, th.Tensor]:
    member = next((name for name in ("policy.pth", "tensors.pth") if name in archive.names), None)
    if member is None:
        raise TeacherError(f"{path} has no weights: expected a member policy.pth. Save the model again with model.save()")
    return read_weights(archive.read(member), f"{member} of {path}")


ZooLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", ZooLoader.ordered_dict)
ZooLoader.add_constructor("tag:yaml.org,2002:python/tuple", ZooLoader.tuple)
ZooLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", ZooLoader.name)
for _schedule in (
    "rl_zoo3.utils.SimpleLinearSchedule",
    *(f"stable_baselines3.common.utils.{kind}Schedule" for kind in ("Constant", "Float", "Linear")),
):
    ZooLoader.add_constructor(f"tag:yaml.org,2002:python/object:{_schedule}", ZooLoader.schedule)
