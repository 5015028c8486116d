"""
What the tests of devices share.

Where there is no GPU, torch's ``meta`` device stands in: its tensors have shapes and no numbers, so that whatever asks for a
number there (on a GPU: waits for all that is queued) is an error, and so is most of what mixes it with the CPU.
"""

from typing import Any

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

needs_gpu = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU that torch can use: th.cuda.is_available()")


class OneDevice(TorchDispatchMode):
    """Inside, an operation on tensors of two devices is an error, and so is a copy between them; scalars may be anywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what goes in and what comes out."""
        out = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, out)) if isinstance(one, th.Tensor) and one.dim()]
        if len(devices := {str(one.device) for one in tensors}) > 1:
            raise AssertionError(f"{func} has tensors on {devices}")
        return out
