"""
The safe reader of teachers' files: an SB3 zip, a ``vecnormalize.pkl``, RL Zoo's YAML.

No pickle is executed. Of the zip's pickled values only the two spaces, the policy's keyword arguments and the name of
its class are looked at, as data (:mod:`sb3_qpd.inert`); weights go through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
import yaml
from gymnasium import spaces

from sb3_qpd.inert import Name, Record, UnsafePickle, is_known, read_pickle, to_array, to_dtype, to_number

MAX_MEMBER_BYTES = 512 * 2**20
MAX_TENSORS = 1_000
MAX_YAML_BYTES = 2**20
SUPPORTED = ("a2c", "ars", "crossq", "ddpg", "dqn", "maskableppo", "ppo", "qrdqn", "sac", "td3", "tqc", "trpo")
WAY_OUT = "If you trust the file, load it yourself (for instance PPO.load) and pass the live model instead of the path."

# what zipfile raises on damaged files
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, IndexError)


class TeacherError(ValueError):
    """Something is wrong with a teacher's files."""


@dataclass(frozen=True)
class TeacherFile:
    """
    What an SB3 zip says, as checked data.

    :param algo: name of the algorithm, as RL Zoo spells it
    :param policy_class_name: name of SB3's policy class
    :param observation_space: what the policy takes (after frame stacking, channels as the policy has them)
    :param action_space: what it answers
    :param policy_kwargs: plain values, and :class:`~sb3_qpd.inert.Name` where a class is meant; ``use_sde`` included
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


class NormalizationFile(NamedTuple):
    """Observation statistics of a ``vecnormalize.pkl``."""

    mean: np.ndarray
    var: np.ndarray
    epsilon: float
    clip_obs: float


def read_zip(path: str | Path) -> TeacherFile:
    """
    Read a model saved by Stable-Baselines3 (0.10 or later) without executing anything in it.

    :param path: the zip
    :return: its spaces, policy and weights
    """
    path = Path(path)
    content = _read_file(path, "a zip saved by Stable-Baselines3")
    with _open_zip(content, path) as archive:
        data = _read_json(archive, path)
        policy_class = _needed(data, "policy_class", path, accept=lambda name: True)
        algo = _identify(data, policy_class, path)
        observation_space, action_space = (
            _to_space(_needed(data, key, path), f"{key} of {path}") for key in ("observation_space", "action_space")
        )
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


def _read_file(path: Path, expected: str) -> bytes:
    if not path.exists():
        raise TeacherError(f"No such file: {path}. Expected {expected}; check the path")
    if not path.is_file():
        raise TeacherError(f"{path} is a folder. Expected {expected}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise TeacherError(f"{path} cannot be read ({error}). Expected {expected}") from error


# --- the archive ---
def _open_zip(content: bytes, path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        if min((info.header_offset for info in archive.infolist()), default=0) > 0:
            # with its own end cut off, zipfile finds that of the weights, which are a zip themselves
            raise zipfile.BadZipFile("its beginning does not belong to its end")
        return archive
    except ZIP_ERRORS as error:
        if content.startswith(b"PK"):
            raise TeacherError(f"{path} is a truncated or damaged zip ({error}). Fetch or save it again") from error
        raise TeacherError(f"{path} is not a zip. Expected a model saved by Stable-Baselines3's model.save()") from error


def _read_member(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    size = archive.getinfo(name).file_size
    if size > MAX_MEMBER_BYTES:
        raise TeacherError(f"{name} in {path} has {size} bytes, at most {MAX_MEMBER_BYTES} are read: refused. {WAY_OUT}")
    try:
        return archive.read(name)
    except ZIP_ERRORS as error:
        raise TeacherError(f"{name} in {path} is truncated or damaged ({error}). Fetch or save the file again") from error


def _read_json(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    if "data" not in archive.namelist():
        members = ", ".join(archive.namelist()[:5]) or "nothing"
        raise TeacherError(
            f"{path} is a zip, but not one saved by Stable-Baselines3's model.save(): "
            f"it has no member 'data' (it holds {members})"
        )
    try:
        data = json.loads(_read_member(archive, "data", path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(f"The member 'data' of {path} is not JSON ({error}). Expected a model saved by SB3") from error
    if not isinstance(data, dict):
        raise TeacherError(f"The member 'data' of {path} is a JSON {type(data).__name__}, expected an object")
    return data


def _read_version(archive: zipfile.ZipFile, path: Path) -> str:
    name = "_stable_baselines3_version"
    if name not in archive.namelist():
        return ""
    return _read_member(archive, name, path).decode("ascii", "replace").strip()[:40]


# --- pickled values ---
def _needed(data: dict[str, Any], key: str, path: Path, accept: Callable[[Name], bool] = is_known) -> Any:
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


def _policy_kwargs(data: dict[str, Any], path: Path) -> dict[str, Any]:
    kwargs = _needed(data, "policy_kwargs", path) if "policy_kwargs" in data else {}
    if not isinstance(kwargs, dict) or not all(isinstance(key, str) for key in kwargs):
        raise _refused(f"policy_kwargs of {path}", UnsafePickle("Expected a dict with names as keys"))
    return {"use_sde": bool(data.get("use_sde", False)), **kwargs}


def _to_space(value: Any, what: str) -> spaces.Space:
    """A gymnasium space of our own from what the pickle said of a gym or gymnasium one."""
    if not isinstance(value, Record) or ".spaces" not in value.target.module:
        raise TeacherError(f"The {what} is not a space of gym or gymnasium. {WAY_OUT}")
    kind = value.target.name
    if kind not in _SPACES:
        raise TeacherError(f"The {what} is a {kind} space; a teacher can have Box and Discrete ones")
    try:
        return _SPACES[kind](value.attributes())
    except (UnsafePickle, KeyError, ValueError, TypeError, AssertionError, OverflowError) as error:
        raise _refused(f"The {what}", error) from error


def _to_box(attributes: dict[str, Any]) -> spaces.Box:
    low, high = to_array(attributes["low"]), to_array(attributes["high"])
    shape = attributes.get("_shape", attributes.get("shape", low.shape))
    if shape != low.shape or shape != high.shape:
        raise UnsafePickle(f"A Box whose shape and bounds contradict (bounds {low.shape} and {high.shape})")
    return spaces.Box(low, high, dtype=to_dtype(attributes["dtype"]).type)


def _to_discrete(attributes: dict[str, Any]) -> spaces.Discrete:
    return spaces.Discrete(to_number(attributes["n"], int), start=to_number(attributes.get("start", 0), int))


_SPACES: dict[str, Callable[[dict[str, Any]], spaces.Space]] = {"Box": _to_box, "Discrete": _to_discrete}


# --- which algorithm ---
def _identify(data: dict[str, Any], policy_class: Any, path: Path) -> str:
    """
    The algorithm that wrote the zip, which the zip does not name: its policy's module and its hyper-parameters tell.

    :return: one of :data:`SUPPORTED`
    """
    if not isinstance(policy_class, Name):
        raise TeacherError(f"{path} carries a policy class of its own as code: refused without running it. {WAY_OUT}")
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
def _read_weights(archive: zipfile.ZipFile, path: Path) -> dict[str, th.Tensor]:
    member = next((name for name in ("policy.pth", "tensors.pth") if name in archive.namelist()), None)
    if member is None:
        raise TeacherError(f"{path} has no weights: expected a member policy.pth. Save the model again with model.save()")
    content = _read_member(archive, member, path)
    _check_storages(content, f"{member} of {path}")
    try:
        state_dict = th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader stumbles over
        reason = str(error).strip().split("\n")[0][:200]
        what = f"{member} of {path} does not hold plain weights ({reason})"
        raise TeacherError(f"{what}: refused without running it. {WAY_OUT}") from error
    return check_weights(state_dict, f"{member} of {path}")


def _check_storages(content: bytes, what: str) -> None:
    """The weights are an archive in the archive: its members must not swell either."""
    if not content.startswith(b"PK"):
        return  # torch's format before 1.6, or nothing that torch can read
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            size = sum(info.file_size for info in inner.infolist())
    except ZIP_ERRORS as error:
        raise TeacherError(f"{what} is truncated or damaged ({error}). Fetch or save the file again") from error
    if size > MAX_MEMBER_BYTES:
        raise TeacherError(f"{what} holds more than {MAX_MEMBER_BYTES} bytes: refused. {WAY_OUT}")


def check_weights(state_dict: Any, what: str) -> dict[str, th.Tensor]:
    """
    :param state_dict: as somebody else's file or model gave it
    :param what: for the messages
    :return: the same weights, now known to be ordinary, finite tensors
    """
    if not isinstance(state_dict, dict) or not all(
        isinstance(key, str) and isinstance(value, th.Tensor) for key, value in state_dict.items()
    ):
        raise TeacherError(f"{what} is not a dict of named tensors, as SB3 writes it")
    tensors = state_dict.values()
    if len(tensors) > MAX_TENSORS or sum(value.numel() * value.element_size() for value in tensors) > MAX_MEMBER_BYTES:
        raise TeacherError(f"{what} holds more than {MAX_TENSORS} tensors or {MAX_MEMBER_BYTES} bytes: refused. {WAY_OUT}")
    for key, value in state_dict.items():
        if value.layout != th.strided or value.is_meta or value.is_quantized:
            raise TeacherError(f"{key} in {what} is not an ordinary tensor: refused. {WAY_OUT}")
        if not th.isfinite(value).all():
            raise TeacherError(f"{key} in {what} holds NaN or infinite weights (diverged training). Use an earlier checkpoint")
    return {key: value.detach() for key, value in state_dict.items()}


# --- the files beside a zip ---
def read_vecnormalize(path: str | Path) -> NormalizationFile | None:
    """
    Read the frozen observation statistics that SB3's ``VecNormalize.save`` wrote, without executing the pickle.

    :param path: ``vecnormalize.pkl``
    :return: the statistics, or ``None`` where observations were not normalized
    """
    path = Path(path)
    try:
        saved = read_pickle(_read_file(path, "a vecnormalize.pkl written by VecNormalize.save"))
        if not isinstance(saved, Record) or saved.target.name != "VecNormalize":
            raise UnsafePickle("It is not a VecNormalize")
        return _to_statistics(saved.attributes())
    except (UnsafePickle, KeyError) as error:
        reason = f"It has no {error}" if isinstance(error, KeyError) else error
        raise TeacherError(
            f"{path} was refused, without running it. {reason}. Expected the file that VecNormalize.save writes; "
            "if you trust it, load it yourself and pass a live model whose environment is in that VecNormalize"
        ) from error


def _to_statistics(attributes: dict[str, Any]) -> NormalizationFile | None:
    if not attributes.get("norm_obs", True):
        return None
    obs_rms = attributes["obs_rms"]
    if not isinstance(obs_rms, Record) or obs_rms.target.name != "RunningMeanStd":
        raise UnsafePickle("Its statistics are not those of one observation vector (Dict observations are not supported)")
    mean, var = (to_array(obs_rms.attributes()[key]).astype(np.float64) for key in ("mean", "var"))
    if mean.shape != var.shape or not np.isfinite([mean, var]).all() or (var < 0).any():
        raise UnsafePickle(f"Its mean and variance are not finite numbers of one shape ({mean.shape} and {var.shape})")
    epsilon, clip_obs = (to_number(attributes[key], float) for key in ("epsilon", "clip_obs"))
    if epsilon <= 0 or clip_obs <= 0:
        raise UnsafePickle(f"Expected a positive epsilon and clip_obs, got {epsilon} and {clip_obs}")
    return NormalizationFile(mean, var, epsilon, clip_obs)


class ZooLoader(yaml.SafeLoader):
    """SafeLoader that also knows the two Python types which RL Zoo writes."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "a merge (<<), which can grow without bound", node.start_mark)

    def ordered_dict(self, node: yaml.Node) -> dict[Any, Any]:
        arguments = self.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else None
        return dict(arguments[0]) if arguments else {}

    def tuple(self, node: yaml.SequenceNode) -> tuple[Any, ...]:
        return tuple(self.construct_sequence(node, deep=True))


ZooLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", ZooLoader.ordered_dict)
ZooLoader.add_constructor("tag:yaml.org,2002:python/tuple", ZooLoader.tuple)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """
    Read RL Zoo's ``args.yml`` or ``config.yml``; no Python object that the file asks for is made.

    :param path: the file
    :return: its mapping; strings that RL Zoo would evaluate stay strings
    """
    path = Path(path)
    content = _read_file(path, "an args.yml or config.yml of RL Zoo")
    if len(content) > MAX_YAML_BYTES:
        raise TeacherError(f"{path} has {len(content)} bytes, at most {MAX_YAML_BYTES} are read: refused")
    try:
        values = yaml.load(content, Loader=ZooLoader)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TeacherError(f"{path} was refused, without running it: {reason}. Expected plain YAML of RL Zoo") from error
    if not isinstance(values, dict):
        raise TeacherError(f"{path} holds a {type(values).__name__}, expected a mapping as RL Zoo writes it")
    return values
