"""An exported module as a policy, run by MicroPython's port for computers."""

from __future__ import annotations

import os
from pathlib import Path

from sb3_qpd.export.interpreters import InterpretedPolicy, Interpreter
from sb3_qpd.integer import IntegerModel

HEAP = "heapsize=256m"  # batches of images come as text


def start_micropython(program: str = "micropython") -> Interpreter:
    """
    A process of MicroPython that runs exported modules.

    :param program: name or path of the interpreter. Python runs the modules too, without machine code
    :raises NoInterpreter: the interpreter is not installed
    """
    return Interpreter(program, ["-X", HEAP], Path(__file__).with_name("driver.py.in"), "micropython")


class MicroPythonPolicy(InterpretedPolicy):
    """
    A module that :func:`~sb3_qpd.export.export_micropython` wrote.

    :param path: the module
    :param model: see :class:`~sb3_qpd.export.interpreters.InterpretedPolicy`
    :param process: MicroPython that runs it; by default one of its own
    :raises NoInterpreter: MicroPython is not installed
    """

    def __init__(self, path: str | os.PathLike[str], model: IntegerModel, process: Interpreter | None = None) -> None:
        super().__init__(path, model, process or start_micropython())
