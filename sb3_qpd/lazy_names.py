"""Names of a package that are loaded at their first use (PEP 562), so that importing the package imports little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    namespace: dict[str, Any], module_of: Mapping[str, str], hint: Callable[[str], str] = lambda name: ""
) -> Callable[[str], Any]:
    """
    The ``__getattr__`` of a package.

    :param namespace: the package's ``globals()``
    :param module_of: name -> module that has it, below ``sb3_qpd``
    :param hint: from an unknown name to the end of the error's message
    """

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}{hint(name)}")
        value = getattr(import_module(f"sb3_qpd.{module_of[name]}"), name)
        namespace[name] = value  # the next access does not call this function
        return value

    return load
