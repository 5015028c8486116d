"""Helpers for tests of reading and loading: edited SB3 zips, and pickles that would run a command."""

import base64
import io
import json
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th


def read_data(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("data"))


def serialized(pickled: bytes) -> dict[str, str]:
    """A value as SB3 writes it where JSON cannot hold it."""
    return {":type:": "<class 'object'>", ":serialized:": base64.b64encode(pickled).decode()}


def pickle_of(path: Path, key: str) -> bytes:
    return base64.b64decode(read_data(path)[key][":serialized:"])


def edit_zip(
    source: Path,
    target: Path,
    data: dict[str, Any] | None = None,
    members: dict[str, bytes | None] | None = None,
    state_dict: Callable[[dict[str, th.Tensor]], Any] | None = None,
) -> Path:
    """
    Copy an SB3 zip with changes.

    :param data: new values of ``data``; ``None`` removes a key
    :param members: new members; ``None`` removes one
    :param state_dict: gives the new weights, from the old ones
    """
    with zipfile.ZipFile(source) as archive:
        contents: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    values = {**json.loads(contents["data"] or b""), **(data or {})}
    contents["data"] = json.dumps({key: value for key, value in values.items() if value is not None}).encode()
    if state_dict is not None:
        weights = th.load(io.BytesIO(contents["policy.pth"] or b""), weights_only=True)
        buffer = io.BytesIO()
        th.save(state_dict(weights), buffer)
        contents["policy.pth"] = buffer.getvalue()
    contents.update(members or {})
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in contents.items():
            if content is not None:
                archive.writestr(name, content)
    return target


def gym_era(value: Any) -> bytes:
    """Pickle a gymnasium space (or what holds one) as gym and numpy 1 did, without either of them."""
    pickled = pickle.dumps(value, protocol=3)
    for new, old in ((b"gymnasium.spaces", b"gym.spaces"), (b"numpy._core", b"numpy.core")):
        pickled = pickled.replace(b"c" + new, b"c" + old)  # c is the opcode GLOBAL
    return pickled


class FakeGym:
    """A context in which ``gym.spaces.box.Box`` exists, so that an unsafe loader gets as far as it would with gym."""

    def __enter__(self) -> None:
        import gymnasium

        for name in ("gym", "gym.spaces", "gym.spaces.box"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["gym.spaces.box"].Box = gymnasium.spaces.Box  # type: ignore[attr-defined]

    def __exit__(self, *error: Any) -> None:
        for name in ("gym", "gym.spaces", "gym.spaces.box"):
            del sys.modules[name]


class Payload:
    """Pickled, it asks the loader to run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def _line(command: str) -> bytes:
    return b"S" + repr(command).encode() + b"\n"


def _string(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


# name -> a pickle that runs the command in an ordinary unpickler
ATTACKS: dict[str, Callable[[str], bytes]] = {
    "reduce": lambda command: pickle.dumps(Payload(command)),
    "protocol 0": lambda command: pickle.dumps(Payload(command), protocol=0),
    "inside a dict": lambda command: pickle.dumps({"net_arch": [Payload(command)]}),
    "inside a numpy array of objects": lambda command: pickle.dumps(np.array([Payload(command)], dtype=object)),
    "getattr": lambda command: (
        b"cbuiltins\ngetattr\n(cimportlib\nimport_module\n(S'os'\ntRS'system'\ntR(" + _line(command) + b"tR."
    ),
    "eval": lambda command: b"cbuiltins\neval\n(" + _line(f"__import__('os').system({command!r})") + b"tR.",
    "dotted name of a known module": lambda command: (
        b"\x80\x04" + _string("torch.nn.modules.module") + _string("torch.os.system") + b"\x93(" + _line(command) + b"tR."
    ),
    "instance opcode": lambda command: b"(" + _line(command) + b"ios\nsystem\n.",
    "object opcode": lambda command: b"(cos\nsystem\n" + _line(command) + b"o.",
    "build with a setstate of its own": lambda command: (
        b"\x80\x02cgymnasium.spaces.discrete\nDiscrete\n)\x81}S'__setstate__'\ncos\nsystem\nsb" + _line(command) + b"b."
    ),
    "popped off the stack": lambda command: b"cos\nsystem\n(" + _line(command) + b"tR0}.",
}
