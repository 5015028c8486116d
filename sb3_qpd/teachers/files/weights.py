"""
The weights of a teacher: a file of torch inside SB3's zip.

``torch.load(weights_only=True)`` runs no code of the file, but allocates as much as the file asks for. So the file's pickle is
followed as data first (:mod:`~sb3_qpd.teachers.files.pickle_reader`): named tensors in plain storages of the size that the
file has. An archive is then written anew from members that were read within limits, and torch reads that one.
"""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import torch as th

from sb3_qpd.teachers.files.archive import MAX_MEMBER_BYTES, WAY_OUT, Archive, TeacherError
from sb3_qpd.teachers.files.pickle_reader import GlobalName, ObjectRecord, UnsafePickle, read_pickle

MAX_TENSORS = 1_000
MAX_AXES = 8  # torch itself computes with up to 64
# classes of storages -> bytes of one element
STORAGES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2},
    **{"LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
}
_DTYPES = {
    **{"DoubleStorage": th.float64, "FloatStorage": th.float32, "HalfStorage": th.float16, "BFloat16Storage": th.bfloat16},
    **{"LongStorage": th.int64, "IntStorage": th.int32, "ShortStorage": th.int16, "CharStorage": th.int8},
    **{"ByteStorage": th.uint8, "BoolStorage": th.bool},
}
_REBUILDERS = (GlobalName("torch._utils", "_rebuild_tensor_v2"), GlobalName("torch._utils", "_rebuild_parameter"))
_ORDERED_DICT = GlobalName("collections", "OrderedDict")
# members that torch.save writes beside the pickle and the storages
_TORCHS_OWN = ("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first bytes of files of torch before 1.6


def read_weights(content: bytes, what: str) -> dict[str, th.Tensor]:
    """
    Read weights without executing anything.

    :param content: contents of a ``policy.pth``
    :param what: name of the file, for messages
    :return: finite, ordinary tensors by name
    :raises TeacherError: it holds anything else, or contradicts itself
    """
    try:
        if content.startswith(_LEGACY):
            _follow_legacy(content)
        else:
            content = _follow_archive(content, what)
        state_dict = th.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except TeacherError:
        raise
    except Exception as error:  # torch's reader raises exceptions of many types
        reason = str(error).strip().split("\n")[0][:200]
        message = f"{what} does not hold plain weights ({reason}): refused without running it. {WAY_OUT}"
        raise TeacherError(message) from error
    return check_weights(state_dict, what)


def _follow_archive(content: bytes, what: str) -> bytes:
    """The archive, checked and written anew, so that torch's reader of zips sees the same members as ours."""
    archive = Archive(content, what, "Expected weights that torch saved; load and save the model again")
    if archive.nbytes > MAX_MEMBER_BYTES:
        raise TeacherError(f"{what} holds more than {MAX_MEMBER_BYTES} bytes: refused. {WAY_OUT}")
    members = archive_members(archive)
    _requests(read_pickle(members["data.pkl"], is_of_weights, open_storage(members)))
    return _written_anew(members)


def open_storage(members: Mapping[str, bytes]) -> Callable[[Any], ObjectRecord]:
    """
    The reader of a pickle's references to storages, for :func:`~sb3_qpd.teachers.files.pickle_reader.read_pickle`.

    :param members: members of the archive, from :func:`archive_members`
    :return: a function that returns a record of class and member, and refuses a storage that the archive does not have
    """

    def storage(request: Any) -> ObjectRecord:
        match request:
            case ("storage", GlobalName("torch", kind), str() as key, str(), int() as size) if kind in STORAGES:
                if size * STORAGES[kind] != len(members.get(f"data/{key}", b"")):
                    raise UnsafePickle(f"A storage of {size} elements ({kind}) that the file does not have")
                return ObjectRecord(GlobalName("torch", kind), (f"data/{key}",))
        raise UnsafePickle("A storage of another form than torch writes")

    return storage


def archive_members(archive: Archive) -> dict[str, bytes]:
    """
    The members of a file of ``torch.save`` by name, without the folder that torch puts them in.

    :param archive: the file
    :raises UnsafePickle: a member that such files never have
    """
    folder = archive.names[0].split("/")[0] if archive.names else ""
    members = {}
    for name in archive.names:
        top, _, rest = name.partition("/")
        if top != folder or not (rest == "data.pkl" or rest in _TORCHS_OWN or re.fullmatch(r"data/\d+", rest)):
            raise UnsafePickle(f"A member {name[:80]!r}, which weights never have")
        members[rest] = archive.read(name)
    if "data.pkl" not in members:
        raise UnsafePickle("It has no data.pkl")
    return members


def _follow_legacy(content: bytes) -> None:
    """Check a file of five pickles. Then follow length and bytes of each storage, in the order of the fifth pickle."""
    stream, sizes = io.BytesIO(content), dict[str, tuple[int, int]]()

    def storage(request: Any) -> ObjectRecord:
        match request:
            case ("storage", GlobalName("torch", kind), str() as key, str(), int() as size, None) if kind in STORAGES:
                if sizes.setdefault(key, (size, STORAGES[kind])) != (size, STORAGES[kind]):
                    raise UnsafePickle("A storage of two sizes")
                return ObjectRecord(GlobalName("torch", kind), ())
        raise UnsafePickle("A storage of another form than torch wrote before 1.6")

    for _ in range(3):  # magic number, version, sizes of C's types
        read_pickle(stream, lambda name: False)
    _requests(read_pickle(stream, is_of_weights, storage))
    keys = read_pickle(stream, lambda name: False)
    if not isinstance(keys, list) or len(keys) != len(sizes) or not all(isinstance(key, str) for key in keys):
        raise UnsafePickle("Its list of storages is not that of its tensors")
    for key in keys:
        size, itemsize = sizes.pop(key)
        if stream.read(8) != struct.pack("<q", size) or len(stream.read(size * itemsize)) != size * itemsize:
            raise UnsafePickle(f"A storage of {size} elements that the file does not have")


def is_of_weights(name: GlobalName) -> bool:
    """
    Whether files of weights have a reason to name a class or function.

    :param name: name from a pickle
    """
    return name == _ORDERED_DICT or name in _REBUILDERS or (name.module == "torch" and name.name in STORAGES)


def _requests(value: Any) -> list[tuple[str, ObjectRecord]]:
    """The names of a state dict, each with the record of its tensor."""
    pairs = value.items if isinstance(value, ObjectRecord) and value.target == _ORDERED_DICT else None
    if isinstance(value, dict):
        pairs = list(value.items())
    if pairs is None or not all(
        isinstance(key, str) and isinstance(one, ObjectRecord) and one.target in _REBUILDERS for key, one in pairs
    ):
        raise UnsafePickle("It is not a dict of named tensors")
    return pairs


def to_tensors(value: Any, members: Mapping[str, bytes]) -> dict[str, th.Tensor]:
    """
    The tensors of a state dict that was followed as data.

    :param value: the state dict, from a pickle that was read with :func:`open_storage`
    :param members: members of the archive, from :func:`archive_members`
    :raises UnsafePickle: a tensor that does not fit its storage
    """
    if members.get("byteorder", b"little") != sys.byteorder.encode():
        raise UnsafePickle("Its numbers have the byte order of another kind of processor")
    storages: dict[str, th.Tensor] = {}
    return {key: _to_tensor(record, members, storages) for key, record in _requests(value)}


def _to_tensor(record: ObjectRecord, members: Mapping[str, bytes], storages: dict[str, th.Tensor]) -> th.Tensor:
    """A view of the storage that a record names. Tensors that share a storage share its memory, as torch has it."""
    match record.target.name, record.args:
        case "_rebuild_parameter", (ObjectRecord() as inner, *_) if inner.target == _REBUILDERS[0]:
            return _to_tensor(inner, members, storages)
        case "_rebuild_tensor_v2", (ObjectRecord() as storage, start, tuple() as size, tuple() as strides, *_):
            numbers = (start, *size, *strides)
            if (
                len(size) != len(strides)
                or len(size) > MAX_AXES
                or not all(type(n) is int and 0 <= n < 2**40 for n in numbers)
            ):
                raise UnsafePickle("A tensor of an impossible shape")
            flat = _open_storage(storage, members, storages)
            last = start + sum((n - 1) * step for n, step in zip(size, strides, strict=True))
            if math.prod(size) > flat.numel() or (0 not in size and last >= flat.numel()):
                raise UnsafePickle("A tensor that goes beyond its storage")
            return flat.as_strided(size, strides, start)
    raise UnsafePickle("A tensor of another form than torch writes")


def _open_storage(record: ObjectRecord, members: Mapping[str, bytes], storages: dict[str, th.Tensor]) -> th.Tensor:
    match record.target, record.args:
        case GlobalName("torch", kind), (str() as member,) if kind in _DTYPES and member in members:
            key = f"{kind} {member}"
            if key not in storages:
                content, dtype = bytearray(members[member]), _DTYPES[kind]
                storages[key] = th.frombuffer(content, dtype=dtype) if content else th.empty(0, dtype=dtype)
            return storages[key]
    raise UnsafePickle("A tensor without a storage")


def _written_anew(members: Mapping[str, bytes]) -> bytes:
    """An archive of torch with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def check_weights(state_dict: Any, what: str) -> dict[str, th.Tensor]:
    """
    Refuse everything but ordinary, finite tensors.

    :param state_dict: weights from a file or a live model
    :param what: name of their source, for messages
    :return: the same weights, detached
    """
    if not isinstance(state_dict, dict) or not all(
        isinstance(key, str) and isinstance(value, th.Tensor) for key, value in state_dict.items()
    ):
        raise TeacherError(f"{what} is not a dict of named tensors, as SB3 writes it")
    tensors = state_dict.values()
    if len(tensors) > MAX_TENSORS or sum(value.numel() * value.element_size() for value in tensors) > MAX_MEMBER_BYTES:
        raise TeacherError(f"{what} holds more than {MAX_TENSORS} tensors or {MAX_MEMBER_BYTES} bytes: refused. {WAY_OUT}")
    for key, value in state_dict.items():
        if value.layout != th.strided or value.is_meta or value.is_quantized or value.ndim > MAX_AXES:
            raise TeacherError(f"{key} in {what} is not an ordinary tensor: refused. {WAY_OUT}")
        if not th.isfinite(value).all():
            raise TeacherError(f"{key} in {what} holds NaN or infinite weights (diverged training). Use an earlier checkpoint")
    return {key: value.detach() for key, value in state_dict.items()}
