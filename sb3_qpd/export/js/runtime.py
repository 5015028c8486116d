"""An exported module as a policy, run by node."""

from __future__ import annotations

import os
from pathlib import Path

from sb3_qpd.export.interpreters import InterpretedPolicy, Interpreter
from sb3_qpd.integer import IntegerModel


def start_node() -> Interpreter:
    """
    A process of node that runs exported modules.

    :raises NoInterpreter: node is not installed
    """
    return Interpreter("node", [], Path(__file__).with_name("driver.mjs"), "nodejs")


class JsPolicy(InterpretedPolicy):
    """
    A module that :func:`~sb3_qpd.export.export_js` wrote.

    :param path: the module
    :param model: see :class:`~sb3_qpd.export.interpreters.InterpretedPolicy`
    :param node: process that runs it; by default one of its own
    :raises NoInterpreter: node is not installed
    """

    def __init__(self, path: str | os.PathLike[str], model: IntegerModel, node: Interpreter | None = None) -> None:
        super().__init__(path, model, node or start_node())
