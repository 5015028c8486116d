"""Whether the parameters of a module have changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from torch import nn


class Watch:
    """
    Modules whose tensors are compared with what they were at first. All tensors must be on the CPU.

    Their content is compared, some microseconds for a small student. Their versions would not do: a write through ``.data``,
    through numpy or from another process leaves the version as it is.

    :param modules: the modules, with all that they contain
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        self._numbers: list[tuple[dict[str, Any], int]] = []  # of parameters, buffers and modules at each place
        self._contents: list[tuple[th.Tensor, int, np.ndarray, bytes]] = []
        for module in {one: None for outer in modules for one in outer.modules()}:
            for places in (module._parameters, module._buffers, module._modules):
                self._places += [(places, name, value) for name, value in places.items()]
                self._numbers.append((places, len(places)))
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    array = _in_memory_order(tensor)
                    self._contents.append((tensor, tensor.data_ptr(), array, array.tobytes()))

    def is_unchanged(self) -> bool:
        """Whether every module, parameter and buffer is the same object, at the same place in memory, with the same bytes."""
        for places, name, value in self._places:
            if places.get(name) is not value:
                return False
        if any(len(places) != number for places, number in self._numbers):
            return False
        # the array keeps the memory, so that no other tensor can come to lie at its address
        for tensor, address, array, content in self._contents:
            if tensor.data_ptr() != address or array.tobytes() != content:
                return False
        return True


def _in_memory_order(tensor: th.Tensor) -> np.ndarray:
    """A tensor as an array on the same memory, with its axes in an order in which it is contiguous."""
    array = tensor.detach().numpy()
    return array.transpose(np.argsort(array.strides, kind="stable")[::-1])
