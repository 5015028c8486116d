"""Devices of torch: one that is missing is refused. SB3 takes the CPU in its place, and says nothing."""

from __future__ import annotations

from typing import Any

import torch as th


def check_device(device: Any, argument: str = "device=") -> None:
    """
    Refuse a device that cannot be used on this machine.

    :param device: device, by name or as an object; ``"auto"`` takes a GPU where there is one
    :param argument: name of the argument, for the message
    :raises TypeError: it is neither a name nor a device
    :raises ValueError: torch cannot use it here
    """
    if not isinstance(device, str | th.device):
        raise TypeError(f"{argument}{device!r} is no device: expected 'auto', 'cpu', 'cuda' or a torch.device")
    if device == "auto":
        return
    try:
        th.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{argument}{str(device)!r} cannot be used on this machine: {reason}. Give 'cpu' or 'auto'"
        ) from error
