"""The target ``c``: C99 sources, compiled for this computer or run on emulated microcontrollers."""

from sb3_qpd.export.c.exporter import export_c
from sb3_qpd.export.c.runtime import CPolicy

__all__ = ["CPolicy", "export_c"]
