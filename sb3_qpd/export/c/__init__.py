"""The target ``c``: C99 sources, compiled for this computer or run on emulated microcontrollers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_qpd.export.c.exporter import export_c
    from sb3_qpd.export.c.runtime import CPolicy

__all__ = ["CPolicy", "export_c"]

_MODULE_OF = {"CPolicy": "runtime", "export_c": "exporter"}


def __getattr__(name: str) -> Any:
    """Load a name at its first use: only the exporter needs Jinja2."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
