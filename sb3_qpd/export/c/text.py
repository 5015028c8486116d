"""Texts of ``templates/``, and numbers as C writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

_FLOAT32_MAX = np.finfo(np.float32).max
_INT32_MIN = -(2**31)
_LINE = 112


def read_template(name: str) -> str:
    """A text of ``templates/``."""
    return resources.files("sb3_qpd.export.c").joinpath("templates", name).read_text(encoding="utf-8")


def rename(text: str, name: str) -> str:
    """Another name than ``policy`` for the files and everything public in them."""
    text = re.sub(r"\bpolicy(?=_[a-z]|\.[ch]\b)", name, text)
    return re.sub(r"\bPOLICY(?=_)", name.upper(), text)


def float_literal(x: float) -> str:
    text = f"{np.clip(np.float32(x), -_FLOAT32_MAX, _FLOAT32_MAX):.9g}"  # nine digits name every float32
    return text + ("f" if "." in text or "e" in text else ".0f")


def integer_literal(n: int) -> str:
    return f"({n + 1} - 1)" if n == _INT32_MIN else str(n)  # C has no negative literals


def unsigned_literal(n: int) -> str:
    return f"{n}u"


def hex_literal(n: int) -> str:
    return f"{n:#x}u"


def literals(values: Any, literal: Callable[[Any], str]) -> Any:
    """
    Numbers as C writes them.

    :param values: an array, a sequence of numbers or one number
    :param literal: writes one number
    :return: text in lists of the same shape
    """

    def write(part: Any) -> Any:
        return [write(inner) for inner in part] if isinstance(part, list) else literal(part)

    return write(np.asarray(values).tolist())


def inline_initializer(texts: list[str]) -> str:
    """The initializer of an array on one line."""
    return "{" + ", ".join(texts) + "}"


def block_initializer(texts: list[Any]) -> str:
    """
    The initializer of an array in indented lines.

    :param texts: see :func:`literals`, in lists nested as deeply as the array has dimensions
    """
    if isinstance(texts[0], list):
        return inline_initializer([block_initializer(inner) for inner in texts])
    per_line = max(1, _LINE // (max(map(len, texts)) + 2))
    lines = [", ".join(texts[i : i + per_line]) for i in range(0, len(texts), per_line)]
    return "{\n    " + ",\n    ".join(lines) + "\n}"
