"""
An ONNX file of a policy, measured before any library parses it.

The file is followed field by field (protobuf's wire format). Only fields and operators that networks of policies have are let
through: no subgraphs, no functions, no operators of other domains, and no weights in other files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sb3_qpd.teachers.files.archive import TeacherError, read_file
from sb3_qpd.text import plain

MAX_BYTES = 2**28
MAX_FIELDS = 200_000  # of the whole file
MAX_NODES = 20_000
SUFFIX = ".onnx"
EXPORT_AGAIN = "Export the policy again, as one network of plain layers"
OPERATORS = frozenset(
    "Abs Acos Add And ArgMax ArgMin Asin Atan AveragePool BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant "
    "ConstantOfShape Conv Cos CumSum DequantizeLinear Div Dropout Elu Equal Erf Exp Expand Flatten Floor Gather "
    "GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish "
    "Hardmax Identity InstanceNormalization IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max "
    "MaxPool Mean Min Mish Mod Mul Multinomial Neg Not OneHot Or PRelu Pad Pow QuantizeLinear RandomNormalLike "
    "RandomUniformLike Range Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu "
    "Reshape Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax Softplus Softsign Split Sqrt "
    "Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor".split()
)
# messages of ONNX: number of each field that may be there -> message in it, "" for numbers, texts and bytes
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {**dict.fromkeys((1, 2, 3, 4, 5, 6), ""), 7: "Graph", 8: "Opset", 14: "Entry"},
    "Opset": {1: "", 2: ""},
    "Entry": {1: "", 2: ""},
    "Graph": {1: "Node", 2: "", 5: "Tensor", 10: "", 11: "Value", 12: "Value", 13: "Value", 16: "Entry"},
    "Node": {**dict.fromkeys((1, 2, 3, 4, 6, 7, 8), ""), 5: "Attribute", 9: "Entry"},
    "Attribute": {**dict.fromkeys((1, 2, 3, 4, 7, 8, 13, 20), ""), 5: "Tensor"},
    "Tensor": {**dict.fromkeys((1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 14), ""), 13: "Entry", 16: "Entry"},
    "Value": {1: "", 2: "Type", 3: "", 4: "Entry"},
    "Type": {1: "TensorType", 6: ""},
    "TensorType": {1: "", 2: "Shape"},
    "Shape": {1: "Dimension"},
    "Dimension": {1: "", 2: "", 3: ""},
}
_SUBGRAPHS = {("Attribute", 6): "subgraphs", ("Attribute", 11): "subgraphs", ("Model", 25): "functions"}
# type of a tensor -> bytes of one element; others, such as texts, are refused
_ITEM_BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


class _Field(NamedTuple):
    """A field of a message: its number, its value where it is a number, and its bytes where it has a length."""

    number: int
    value: int
    content: memoryview | None


@dataclass
class OnnxFile:
    """
    A file that was let through.

    :param path: path of the file, for messages
    :param content: its bytes
    :param checksum: SHA-256 of the file
    :param n_parameters: numbers in its floating-point weights
    :param n_fields: fields that were followed
    :param n_nodes: operators
    """

    path: str
    content: bytes
    checksum: str
    n_parameters: int = 0
    n_fields: int = field(default=0, repr=False)
    n_nodes: int = field(default=0, repr=False)


def read_onnx(path: Path) -> OnnxFile:
    """
    Read an ONNX file without parsing more of it than its structure.

    :param path: path of the file
    :raises TeacherError: another file, a damaged one, or one that asks for more than a policy needs
    """
    content = read_file(path, "an ONNX file", MAX_BYTES)
    file = OnnxFile(str(path), content, hashlib.sha256(content).hexdigest())
    _follow(memoryview(content), "Model", file)
    if not file.n_nodes:
        raise TeacherError(f"{path} is not an ONNX file of a network: it holds no operators. {EXPORT_AGAIN}")
    return file


def _follow(content: memoryview, message: str, file: OnnxFile) -> list[_Field]:
    """Follow the fields of a message, and those of the messages in it."""
    known, fields = _MESSAGES[message], list[_Field]()
    for one in _fields(content, file):
        fields.append(one)
        if one.number not in known:
            what = _SUBGRAPHS.get((message, one.number), f"the field {one.number} of {message}")
            raise TeacherError(f"{file.path} is damaged, or has {what}, which a policy does not need: refused. {EXPORT_AGAIN}")
        if inner := known[one.number]:
            if one.content is None:
                raise _damaged(file, "a number in the place of a message")
            _CHECKS.get(inner, lambda *_: None)(_follow(one.content, inner, file), file)
    return fields


def _fields(content: memoryview, file: OnnxFile) -> Iterator[_Field]:
    at = 0
    while at < len(content):
        file.n_fields += 1
        if file.n_fields > MAX_FIELDS:
            raise TeacherError(f"{file.path} has more than {MAX_FIELDS} fields: refused. {EXPORT_AGAIN}")
        key, at = _number(content, at, file)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _number(content, at, file)
            yield _Field(number, value, None)
            continue
        if kind == 2:
            size, at = _number(content, at, file)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise _damaged(file, "a field of an unknown kind")
        if size > len(content) - at:
            raise _damaged(file, "a field that goes beyond its end")
        yield _Field(number, 0, content[at : at + size] if kind == 2 else None)
        at += size


def _number(content: memoryview, at: int, file: OnnxFile) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            break
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _damaged(file, "a number without an end")


def _damaged(file: OnnxFile, why: str) -> TeacherError:
    return TeacherError(f"{file.path} is not an ONNX file, or damaged ({why}). Expected a network from torch.onnx.export")


def _text(one: _Field) -> str:
    return "" if one.content is None else plain(bytes(one.content[:100]).decode("utf-8", "replace"), 100)


def _check_node(fields: list[_Field], file: OnnxFile) -> None:
    file.n_nodes += 1
    operator = next((_text(one) for one in fields if one.number == 4), "")
    domain = next((_text(one) for one in fields if one.number == 7), "")
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        name = f"{domain}.{operator}".lstrip(".")
        raise TeacherError(f"{file.path} has the operator {name}, which is not let through. {EXPORT_AGAIN}")
    if file.n_nodes > MAX_NODES:
        raise TeacherError(f"{file.path} has more than {MAX_NODES} operators: refused. {EXPORT_AGAIN}")


def _check_tensor(fields: list[_Field], file: OnnxFile) -> None:
    if any(one.number == 13 or (one.number == 14 and one.value != 0) for one in fields):
        raise TeacherError(
            f"{file.path} has weights in another file, which is not opened. Write all into one file: "
            "torch.onnx.export(..., external_data=False)"
        )
    dims = [size for one in fields if one.number == 1 for size in _sizes(one, file)]
    kind = next((one.value for one in fields if one.number == 2), 0)
    if kind not in _ITEM_BYTES:
        raise TeacherError(f"{file.path} has a tensor of the type {kind}, which is not let through. {EXPORT_AGAIN}")
    n = math.prod(dims)
    n_bytes = sum(len(one.content) for one in fields if one.number in (4, 5, 7, 9, 10, 11) and one.content is not None)
    # packed integers may take one byte for each
    if len(dims) > 8 or n > max(n_bytes, sum(one.number in (4, 5, 7, 10, 11) for one in fields)):
        raise _damaged(file, f"a tensor of {n} numbers in {n_bytes} bytes")
    file.n_parameters += n if kind in (1, 10, 11, 16) and n > 1 else 0


def _sizes(one: _Field, file: OnnxFile) -> list[int]:
    if one.content is None:
        return [one.value]
    sizes, at = [], 0
    while at < len(one.content):
        size, at = _number(one.content, at, file)
        sizes.append(size)
    return sizes


_CHECKS = {"Node": _check_node, "Tensor": _check_tensor}
