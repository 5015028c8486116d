"""
Students from recorded observations, beside those of DAgger: which policy should be recorded, and for how long?

    python benchmarks/recorded.py TEACHER [TEACHER ...] --out benchmarks/results/recorded.jsonl

A recording is of the teacher, of the teacher with noise, or of a mixture: episodes with noise from none to all. All students
learn for the same number of samples and play the same episodes. Each finished student is one line of the result. A line that
is there already is not computed again. ``--table FILE`` prints the lines as Markdown.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_qpd import QPDDistiller, RecordedObservations, Teacher, evaluate, load_teacher
from sb3_qpd.evaluation.episodes import TEST_SEED
from sb3_qpd.evaluation.held_out import measure_held_out

NOISE = 0.2  # share of random actions, or deviation in half ranges
SOURCES = ("teacher", "noisy teacher", "mixture")


def record(teacher: Teacher, source: str, n: int, seed: int = 100) -> list[np.ndarray]:
    """
    Episodes of about n observations.

    :param teacher: the teacher
    :param source: one of ``SOURCES``
    :param n: number of observations
    :param seed: seed of environments and noise
    """
    env, rng = teacher.recipe.make_vec_env(16, seed), np.random.default_rng(seed)
    draw = {"teacher": lambda size: np.zeros(size), "noisy teacher": lambda size: np.full(size, NOISE), "mixture": rng.random}
    noise, observations = draw[source](16), env.reset()
    running: list[list[np.ndarray]] = [[] for _ in range(16)]
    episodes: list[np.ndarray] = []
    n_seen = 0
    while n_seen < n:
        for i, observation in enumerate(observations):
            running[i].append(observation.copy())
        actions = add_noise(teacher.predict(observations, deterministic=True)[0], noise, env.action_space, rng)
        observations, _, dones, _ = env.step(actions)
        n_seen += 16
        for i in np.flatnonzero(dones):
            episodes.append(np.stack(running[i]))
            running[i], noise[i] = [], draw[source](1)[0]
    env.close()
    return episodes + [np.stack(one) for one in running if one]


def add_noise(actions: np.ndarray, noise: np.ndarray, space: spaces.Space, rng: np.random.Generator) -> np.ndarray:
    if isinstance(space, spaces.Box):
        half = (space.high - space.low) / 2
        noisy = actions + noise[:, None] * half * rng.normal(size=actions.shape)
        return np.clip(noisy, space.low, space.high).astype(np.float32)
    assert isinstance(space, spaces.Discrete)
    return np.where(rng.random(len(actions)) < noise, rng.integers(0, space.n, len(actions)), actions)


def learn(teacher: Teacher, args: argparse.Namespace, seed: int, episodes: list[np.ndarray] | None) -> dict[str, Any]:
    start = time.process_time()
    recording = None if episodes is None else RecordedObservations(episodes)
    options: dict[str, Any] = {"student_arch": args.student_arch, "seed": seed, "check_teacher": False, "device": "cpu"}
    student = QPDDistiller(teacher, teacher.recipe, observations=recording, **options).learn(args.timesteps)
    measured = {} if recording is None else {"held_out": measure_held_out(student)["held_out"]}
    played = evaluate(student.to_integer(), teacher.recipe, n_episodes=args.episodes, seed=TEST_SEED)
    return {
        **measured,
        "return_mean": played.return_mean,
        "ci95": list(played.ci95),
        "processor_seconds": round(time.process_time() - start),
    }


def run(path: str, args: argparse.Namespace) -> None:
    teacher = load_teacher(path, device="cpu")
    known = {json.dumps(line["case"]) for line in lines(args.out)}
    played = None
    for source, n in [("DAgger", args.timesteps), *[(source, n) for source in SOURCES for n in args.sizes]]:
        cases = [
            [teacher.name, source, n, args.student_arch, args.timesteps, args.episodes, seed] for seed in range(args.seeds)
        ]
        missing = [case for case in cases if json.dumps(case) not in known]
        if not missing:
            continue
        if played is None:
            played = evaluate(teacher, teacher.recipe, n_episodes=args.episodes, seed=TEST_SEED).return_mean
        episodes = None if source == "DAgger" else record(teacher, source, n)
        for case in missing:
            result = {"case": case, "teacher_return": played, **learn(teacher, args, case[-1], episodes)}
            with args.out.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def table(path: Path) -> str:
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines(path):
        rows.setdefault(tuple(line["case"][:-1]), []).append(line)
    text = [
        "| teacher (return) | observations of | recorded | student's return, each seed | mean | held out |",
        "|---" * 6 + "|",
    ]
    for (name, source, n, *_), found in rows.items():
        returns = [line["return_mean"] for line in found]
        held = found[0].get("held_out", {})
        what = next((f"{key} {held[key]:.3g}" for key in ("agreement", "action_error") if key in held), "")
        each = ", ".join(f"{value:.0f}" for value in returns)
        recorded = "as it learns" if source == "DAgger" else f"{n:,}"
        cells = (f"{name} ({found[0]['teacher_return']:.0f})", source, recorded, each, f"{np.mean(returns):.0f}", what)
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("recorded.jsonl"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--student-arch", default="tiny")
    parser.add_argument("--timesteps", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    th.set_num_threads(1)
    for path in args.teachers:
        run(path, args)
    if args.table is not None:
        print(table(args.table))


if __name__ == "__main__":
    main()
