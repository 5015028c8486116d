"""The target ``micropython``: the exporter of a module for MicroPython, whose port for computers runs it for comparisons."""

from sb3_qpd.export.micropython.exporter import export_micropython
from sb3_qpd.export.micropython.runtime import MicroPythonPolicy

__all__ = ["MicroPythonPolicy", "export_micropython"]
