"""
What early stopping saves, and what the search itself costs.

    python benchmarks/frontier.py saved TEACHER_FOLDER --sizes nano tiny --bits 8 4 2 --seeds 2 --timesteps 1e4
    python benchmarks/frontier.py overhead TEACHER_FOLDER --timesteps 5e4

``saved`` runs the same search twice, with early stopping and to the end, and compares trials, processor time and winners.
``overhead`` runs 8 trials by 2 workers, and then the same 8 trials one after the other in this process.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch as th
from command_line import make_parser

from sb3_qpd import evaluate, frontier, load_teacher
from sb3_qpd.distillation.distiller import QPDDistiller
from sb3_qpd.evaluation.episodes import VALIDATION_SEED, integer_player


def saved(args: argparse.Namespace) -> None:
    found = {}
    for early_stopping in (True, False):
        search = {"sizes": args.sizes, "bits": args.bits, "seeds": args.seeds, "timesteps": args.timesteps, "device": "cpu"}
        out = args.out / ("stopped" if early_stopping else "to-the-end")
        found[early_stopping] = content = frontier(
            args.teacher, out, **search, early_stopping=early_stopping, workers=args.workers, episodes=args.episodes
        )
        states = [trial["state"] for trial in content["trials"]]
        steps = sum(trial["steps"] for trial in content["trials"])
        winner = None if content["winner"] is None else content["points"][content["winner"]]
        named = "none" if winner is None else f"{winner['folder']}, {winner['bytes']} bytes, {winner['verdict']}"
        print(
            f"early stopping {early_stopping}: {len(states)} trials, {states.count('finished')} finished, "
            f"{states.count('stopped')} stopped; {steps} steps, {content['seconds']['processor']:.0f} s of processor time, "
            f"{content['seconds']['search']:.0f} s; {len(content['points'])} points, winner {named}",
            flush=True,
        )
    ours, theirs = (found[key]["seconds"]["processor"] for key in (True, False))
    print(f"saved: {100 * (1 - ours / theirs):.0f} % of the processor time of the trials")


def overhead(args: argparse.Namespace) -> None:
    search = {"sizes": ["nano", "tiny"], "bits": [8, 4], "seeds": 2, "timesteps": args.timesteps, "device": "cpu"}
    start = time.perf_counter()
    content = frontier(args.teacher, args.out / "overhead", **search, early_stopping=False, workers=2, episodes=args.episodes)
    whole = time.perf_counter() - start
    together = content["seconds"]["search"] + whole - sum(content["seconds"][stage] for stage in ("search", "retraining"))
    alone = sum(_alone(args, trial) for trial in content["trials"])
    print(f"8 trials by 2 workers: {together:.1f} s, alone / 2: {alone / 2:.1f} s, quotient {2 * together / alone:.3f}")


def _alone(args: argparse.Namespace, trial: dict[str, Any]) -> float:
    """Seconds of one trial in this process, on one thread, with its validation episodes."""
    th.set_num_threads(1)
    teacher = load_teacher(args.teacher, device="cpu")
    start = time.perf_counter()
    distiller = QPDDistiller(
        teacher,
        student_arch=trial["size"],
        weight_bits=trial["weight_bits"],
        activation_bits=trial["activation_bits"],
        **{"seed": trial["seed"], "device": "cpu", "check_teacher": False},
    ).learn(args.timesteps, log_interval=None)
    evaluate(integer_player(distiller.policy), teacher.recipe, n_episodes=min(args.episodes, 100), seed=VALIDATION_SEED)
    return time.perf_counter() - start


def main() -> None:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(required=True)
    for function in (saved, overhead):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument("teacher")
        command.add_argument("--timesteps", type=float, default=1e4)
        command.add_argument("--episodes", type=int, default=100)
        command.add_argument("--out", type=Path, default=Path(tempfile.mkdtemp()))
    commands.choices["saved"].add_argument("--sizes", nargs="+", default=["nano", "tiny", "small"])
    commands.choices["saved"].add_argument("--bits", nargs="+", default=["8", "4", "2"])
    commands.choices["saved"].add_argument("--seeds", type=int, default=2)
    commands.choices["saved"].add_argument("--workers", type=int)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
