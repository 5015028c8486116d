"""
Where the time of ``learn`` goes: its parts alone, all in one run, and the whole.

    python benchmarks/throughput.py TEACHER_FOLDER --timesteps 5000 --repeats 5 --threads 2

Prints the wall time of each part for a vectorized step (stepping, the teacher's answers, the student's acting) and for an
update (at each stage of the transition, and of the same student in float), then that of ``learn`` beside the sum of its parts,
and the speed of raw stepping. Medians; the parts are measured in turns, so that a busy machine slows all of them down.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_qpd import QPDDistiller, load_teacher
from sb3_qpd.transitions import get_transition


def measure(parts: dict[str, Callable[[], Any]], repeats: int, calls: int) -> dict[str, float]:
    """Median milliseconds of a call of each part."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            for _ in range(calls):
                part()
            if repeat:  # the first round warms up
                times[name].append((time.perf_counter() - start) / calls * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def learned(args: argparse.Namespace, **options: Any) -> QPDDistiller:
    """A distiller that has learned."""
    distiller = QPDDistiller(
        load_teacher(args.teacher), student_arch=args.arch, seed=0, device="cpu", check_teacher=False, **options
    )
    return distiller.learn(args.timesteps)


def parts_of(distiller: QPDDistiller) -> dict[str, Callable[[], Any]]:
    """What ``learn`` does, one by one, on what it has collected."""
    env, teacher, policy = distiller.env, distiller.teacher, distiller.policy
    observations, rng = distiller._last_obs, np.random.default_rng(0)
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(16)]
    targets = teacher(observations)
    distiller._turns.of_teacher = lambda: np.zeros(env.num_envs, bool)

    def update(progress: float) -> None:
        policy.set_precision(get_transition(distiller.transition), progress)
        policy.set_training_mode(True)
        distiller._gradient_step(distiller._buffer.sample(distiller.batch_size))

    return {
        "stepping": lambda: env.step(actions[rng.integers(16)]),
        "teacher": lambda: teacher(observations),
        "acting": lambda: distiller._act(targets),
        "update, float stage": lambda: update(0.0),
        "update, half way": lambda: update(0.5),
        "update, target bits": lambda: update(1.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--arch", default="tiny")
    parser.add_argument("--timesteps", type=float, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    distiller, as_float = learned(args), learned(args, weight_bits=32, activation_bits=32)
    parts = parts_of(distiller)
    parts["update, a float student"] = parts_of(as_float)["update, half way"]
    ms = measure(parts, args.repeats, args.calls)
    report(args, distiller, ms)


def report(args: argparse.Namespace, distiller: QPDDistiller, ms: dict[str, float]) -> None:
    n_envs, updates, n_steps = distiller.n_envs, distiller._n_updates, distiller.num_timesteps
    print(f"{args.threads} threads, {n_envs} environments, {distiller.batch_size} samples an update\n")
    print("| part | ms |\n|---|---|")
    print("\n".join(f"| {name} | {value:.2f} |" for name, value in ms.items()))
    start, end = distiller.transition_start, distiller.transition_end
    stages = {"update, float stage": start, "update, half way": end - start, "update, target bits": 1 - end}
    update = sum(share * ms[stage] for stage, share in stages.items())
    total = n_steps / n_envs * (ms["stepping"] + ms["teacher"] + ms["acting"]) / 1e3 + updates * update / 1e3
    seconds, raw = distiller.seconds_learning, ms["update, a float student"]
    print(f"\nlearn: {seconds:.1f} s for {n_steps} steps and {updates} updates, sum of its parts {total:.1f} s: ", end="")
    print(f"{seconds / total:.2f} times")
    print(f"{n_steps / seconds:.0f} environment steps and {updates / seconds:.1f} updates a second")
    print(f"raw stepping: {1e3 * n_envs / ms['stepping']:.0f} steps a second, ", end="")
    print(f"with the teacher {1e3 * n_envs / (ms['stepping'] + ms['teacher']):.0f}")
    print(f"a quantized update takes {update / raw:.2f} times a float student's, ", end="")
    print(f"{ms['update, target bits'] / raw:.2f} times at the target bits")
    memory, ring = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, distiller._buffer.nbytes / 2**30
    print(f"largest resident memory of both students' runs {memory:.2f} GiB, ring {ring:.2f} GiB")


if __name__ == "__main__":
    main()
