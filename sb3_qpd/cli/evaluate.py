"""``sb3-qpd evaluate``: play a teacher, a student's zip or its .npz."""

import argparse
from pathlib import Path
from typing import Any

from sb3_qpd.cli.arguments import add_environment, positive, user_errors
from sb3_qpd.cli.models import open_player


def add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="play a teacher, a student's zip or its .npz",
        description="Play whole episodes and print raw returns. Nothing that a file has pickled is run.",
    )
    parser.set_defaults(run=evaluate)
    parser.add_argument("model", help="a teacher (zip, run folder, model on the Hub), a student's zip, or an .npz")
    parser.add_argument("--episodes", type=positive, default=100, help="whole episodes (default: 100)")
    parser.add_argument("--seed", type=int, default=None, help="of the first episode (default: the test seeds)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--deterministic", action="store_true", default=None, help="most likely actions (default)")
    mode.add_argument(
        "--stochastic", dest="deterministic", action="store_false", default=None, help="sampled actions (default for Atari)"
    )
    add_environment(parser)
    parser.add_argument("--n-envs", type=positive, default=32, help="episodes side by side (default: 32)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--no-progress", dest="progress", action="store_false", default=True, help="no progress bar")


def evaluate(args: argparse.Namespace) -> int:
    """Play, and print what came of it."""
    from sb3_qpd.evaluation.episodes import TEST_SEED, microseconds_per_action
    from sb3_qpd.evaluation.episodes import evaluate as play
    from sb3_qpd.players import ObservationRecorder

    seed = TEST_SEED if args.seed is None else args.seed
    with user_errors("evaluate"):
        policy, recipe, size = open_player(args.model, args)
        deterministic = args.deterministic if args.deterministic is not None else recipe.deterministic
        recorder = ObservationRecorder(policy)
        result = play(
            recorder,
            recipe,
            n_episodes=args.episodes,
            seed=seed,
            deterministic=deterministic,
            n_envs=args.n_envs,
            name=Path(args.model).name,
            progress_bar=args.progress,
        )
    low, high = result.ci95
    mode = "deterministic" if deterministic else "sampled"
    print(f"return    {result.return_mean:.2f} ± {result.return_std:.2f} (IQM {result.return_iqm:.2f}), ", end="")
    print(f"95 % interval of the mean [{low:.2f}, {high:.2f}]")
    print(f"episodes  {result.episodes} of {recipe.env_id} from seed {seed}, {mode} actions, ", end="")
    print(f"{result.distinct_returns} distinct returns, {result.lengths.mean():.0f} steps on average")
    print(f"size      {size}")
    print(f"time      {microseconds_per_action(policy, recorder.observations):.0f} us for one action")
    return 0
