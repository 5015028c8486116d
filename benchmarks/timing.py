"""Timing where a GPU may compute: its queue has to be empty when a clock is read."""

import argparse
import time

import torch as th


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``. A device that is not here is an error: stable-baselines3 would silently take the CPU."""
    parser.add_argument("--device", default="cpu", type=_device, help="cpu (default) or cuda: where networks compute")


def _device(name: str) -> str:
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"expected cpu or cuda, got {name!r}")
    if name == "cuda" and not th.cuda.is_available():
        raise argparse.ArgumentTypeError("torch finds no GPU here (th.cuda.is_available()): leave --device out")
    return name


def now(device: str) -> float:
    """Read a clock in seconds, after the device has finished its queue."""
    if device == "cuda":
        th.cuda.synchronize()
    return time.perf_counter()
