"""Templates that become C, and numbers as C writes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from string import Template
from typing import Any

import numpy as np

_FLOAT32_MAX = np.finfo(np.float32).max
_INT32_MIN = -(2**31)
_LINE = 112


def read_template(name: str) -> str:
    """A text of ``templates/``."""
    return resources.files("sb3_qpd.export.c").joinpath("templates", name).read_text(encoding="utf-8")


def render(template: str, flags: set[str], values: dict[str, Any]) -> str:
    """
    Keep the lines between ``//: if a b`` and ``//: end`` where all the named flags are set, and put in the values.

    :param template: text of a file
    :param flags: what is true of the student
    :param values: what ``$name`` stands for
    """
    kept, stack = [], [True]
    for line in template.splitlines():
        if not line.startswith("//:"):
            kept += [line] * all(stack)
        elif line.startswith("//: if "):
            stack.append(set(line.split()[2:]) <= flags)
        elif line == "//: else":
            stack[-1] = not stack[-1]
        else:
            stack.pop()
    return Template("\n".join(kept) + "\n").substitute(values)


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


def comma_list(values: Any, literal: Callable[[Any], str] = integer_literal) -> str:
    return ", ".join(literal(value) for value in np.asarray(values).reshape(-1).tolist())


def wrapped_list(values: Any, literal: Callable[[Any], str] = integer_literal) -> str:
    """A list in indented lines."""
    texts = [literal(value) for value in np.asarray(values).reshape(-1).tolist()]
    per_line = max(1, _LINE // (max(map(len, texts)) + 2))
    return ",\n".join("    " + ", ".join(texts[i : i + per_line]) for i in range(0, len(texts), per_line))


def array(ctype: str, name: str, values: np.ndarray, literal: Callable[[Any], str] = integer_literal) -> str:
    """A constant array of as many dimensions as the values have."""

    def braces(part: np.ndarray) -> str:
        if part.ndim == 1:
            return f"{{\n{wrapped_list(part, literal)}\n}}"
        return "{" + ", ".join(braces(inner) for inner in part) + "}"

    return f"static const {ctype} {name}{''.join(f'[{n}]' for n in values.shape)} = {braces(values)};\n"
