"""
Time of a call of ``CPolicy.predict`` from Python, beside ``IntegerModel.predict`` and an empty call through ctypes.

    python benchmarks/c_policy.py [STUDENT.npz]

Without a student it takes a random one of LunarLander's size: 8 features, 4 actions, `tiny`. Medians of processor time.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd import IntegerModel, QuantActorCriticPolicy
from sb3_qpd.export.c import CPolicy
from sb3_qpd.export.c.vectors import some_observations

ROUNDS, SECONDS = 15, 0.2


def of_lunar_lander() -> IntegerModel:
    """A random student of LunarLander's size."""
    th.manual_seed(0)
    policy = QuantActorCriticPolicy(spaces.Box(-1, 1, (8,)), spaces.Discrete(4), lambda _: 0.0, "tiny")
    policy.calibrate(th.randn(64, 8))
    return policy.to_integer()


def microseconds(call: Callable[[], Any]) -> float:
    """Median processor time of a call."""
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS / 10:
        call()
        n += 1
    times = []
    for _ in range(ROUNDS):
        before = time.process_time_ns()
        for _ in range(n):
            call()
        times.append((time.process_time_ns() - before) / n / 1000)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", nargs="?", default=None, help="a student's .npz")
    args = parser.parse_args()
    model = of_lunar_lander() if args.student is None else IntegerModel.load(args.student)
    policy, batch = CPolicy.load(model), some_observations(model, 64)
    single: Any = {key: values[0] for key, values in batch.items()} if model.is_dict else batch[0]
    calls = {
        "`CPolicy.predict`, most probable action": lambda: policy.predict(single, deterministic=True),
        "`CPolicy.predict`, sampled": lambda: policy.predict(single),
        "`CPolicy.predict`, a batch of 64": lambda: policy.predict(batch, deterministic=True),
        "`IntegerModel.predict`": lambda: model.predict(single, deterministic=True),
        "the C through ctypes, without observation and action": lambda: policy._one(0),
    }
    for name, call in calls.items():
        print(f"| {name} | {microseconds(call):.1f} |")


if __name__ == "__main__":
    main()
