"""The texts of ``templates/``, and numbers as literals of C."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

_FLOAT32_MAX = np.finfo(np.float32).max
_INT32_MIN = -(2**31)
_LINE = 112
_WIDEST = 120


def read_template(name: str) -> str:
    """
    Read a template.

    :param name: name of a file in ``templates/``
    """
    return resources.files("sb3_qpd.export.c").joinpath("templates", name).read_text(encoding="utf-8")


def rename(text: str, name: str) -> str:
    """
    Replace ``policy`` in the names of files and in public names. Test vectors and example are named after it too.

    :param text: a C file or the README, or a name of a file
    :param name: a lower-case C identifier
    """
    if name == "policy":
        return text
    text = re.sub(r"\btest_(?=[a-z_]+\b)|\b(?=main\.c\b)", lambda found: f"{name}_{found[0]}", text)
    text = re.sub(r"\bpolicy(?=_[a-z]|\.[ch]\b)", name, text)
    return re.sub(r"\bPOLICY(?=_)", name.upper(), text)


def float_literal(x: float) -> str:
    """
    A float32 in C, with the nine digits that give the same number back. Infinities become the largest float32.

    :param x: its value
    """
    text = f"{np.clip(np.float32(x), -_FLOAT32_MAX, _FLOAT32_MAX):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def double_literal(x: float) -> str:
    """
    A finite float64 in C, with the digits that give the same number back.

    :param x: its value
    """
    text = repr(float(x))
    return text if "." in text or "e" in text else text + ".0"


def integer_literal(n: int) -> str:
    """
    An int32 in C. Its least value is written as a difference: ``2147483648`` is no int, and ``-`` is an operator.

    :param n: its value
    """
    return f"({n + 1} - 1)" if n == _INT32_MIN else str(n)


def unsigned_literal(n: int) -> str:
    """
    A uint32 in C, decimal.

    :param n: its value
    """
    return f"{n}u"


def hex_literal(n: int) -> str:
    """
    A uint32 in C, hexadecimal.

    :param n: its value
    """
    return f"{n:#x}u"


def literals(values: Any, literal: Callable[[Any], str]) -> Any:
    """
    Write numbers as literals of C.

    :param values: an array, a sequence of numbers or one number
    :param literal: writes one number
    :return: strings in lists of the same shape as ``values``
    """

    def write(part: Any) -> Any:
        return [write(inner) for inner in part] if isinstance(part, list) else literal(part)

    return write(np.asarray(values).tolist())


def inline_initializer(texts: list[str]) -> str:
    """
    The initializer of an array on one line.

    :param texts: literals, see :func:`literals`
    """
    return "{" + ", ".join(texts) + "}"


def block_initializer(texts: list[Any]) -> str:
    """
    The initializer of an array in indented lines.

    :param texts: literals, see :func:`literals`, in lists nested as deeply as the array has dimensions
    """
    if isinstance(texts[0], list):
        return inline_initializer([block_initializer(inner) for inner in texts])
    per_line = max(1, _LINE // (max(map(len, texts)) + 2))
    lines = [", ".join(texts[i : i + per_line]) for i in range(0, len(texts), per_line)]
    return "{\n    " + ",\n    ".join(lines) + "\n}"


def break_signature(text: str) -> str:
    """
    The head of a function, with its parameters on lines of their own where one line is too short.

    :param text: the head, on one line
    """
    name, _, parameters = text.partition("(")
    if len(text) <= _WIDEST:
        return text
    lines = textwrap.wrap(parameters, _WIDEST, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
    return "\n".join([f"{name}(", *lines])


def value_initializer(values: np.ndarray, c_type: str, is_scalar: bool) -> str:
    """
    The initializer of a field of a struct, on one line.

    :param values: its numbers, shape (n,); one number of a scalar
    :param c_type: C type of a number
    :param is_scalar: whether the field is one number, and no array
    """
    texts = literals(values, {"float": float_literal, "double": double_literal}.get(c_type, integer_literal))
    return texts if is_scalar else inline_initializer(texts)
