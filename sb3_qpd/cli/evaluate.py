"""``sb3-qpd evaluate``: play a teacher or a student."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_qpd.cli.arguments import (
    STUDENT_SOURCE,
    TEACHER_SOURCE,
    add_device,
    add_environment,
    add_progress,
    add_step_limit,
    whole_number,
)
from sb3_qpd.cli.errors import user_errors
from sb3_qpd.cli.models import check_environment, check_no_teacher_options, named_environments, open_player
from sb3_qpd.cli.sources import find_student
from sb3_qpd.zoo import MAX_N_ENVS

if TYPE_CHECKING:
    from sb3_qpd.evaluation.statistics import Evaluation


def add_evaluate(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser = commands.add_parser(
        "evaluate",
        help="play a teacher or a student",
        description="Play whole episodes and print raw returns. Nothing that a file has pickled is run.",
        examples=(
            "evaluate lunar/student.npz --episodes 100",
            "evaluate my_agent.zip --env LunarLander-v3 --stochastic",
        ),
    )
    parser.set_defaults(run=evaluate, env_for="to play episodes")
    parser.add_argument("model", help=f"a student: its zip, its .npz, {STUDENT_SOURCE}; or a teacher: {TEACHER_SOURCE}")
    parser.add_argument("--episodes", type=whole_number(), default=100, help="whole episodes (default: 100)")
    parser.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), default=None, help="of the first episode (default: the test seeds)"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--deterministic", action="store_true", default=None, help="most probable actions (default)")
    mode.add_argument(
        "--stochastic", dest="deterministic", action="store_false", default=None, help="sampled actions (default for Atari)"
    )
    add_environment(parser)
    parser.add_argument("--n-envs", type=whole_number(most=MAX_N_ENVS), default=32, help="episodes side by side (default: 32)")
    add_device(parser)
    add_progress(parser)
    add_step_limit(parser)


def evaluate(args: argparse.Namespace) -> int:
    """
    Play, and print returns, size and time.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("evaluate"):
        path = find_student(args.model)
        if path is not None:
            check_no_teacher_options(args, path)
        check_environment(args)
        from sb3_qpd.evaluation.episodes import TEST_SEED, microseconds_per_action
        from sb3_qpd.evaluation.episodes import evaluate as play
        from sb3_qpd.players import ObservationRecorder

        policy, recipe, size = open_player(args.model, path, args)
        deterministic = args.deterministic if args.deterministic is not None else recipe.deterministic
        recorder = ObservationRecorder(policy)
        with named_environments(_learned_in(policy), recipe):
            result = play(
                recorder,
                recipe,
                n_episodes=args.episodes,
                seed=TEST_SEED if args.seed is None else args.seed,
                deterministic=deterministic,
                n_envs=args.n_envs,
                name=Path(args.model).name,
                progress_bar=args.progress,
                max_episode_steps=args.max_episode_steps,
            )
    _show(result, recipe.env_id)
    print(f"size      {size}")
    print(f"time      {microseconds_per_action(policy, recorder.observations):.0f} us for one action")
    return 0


def _learned_in(policy: Any) -> str | None:
    """Id of the environment that an integer model remembers."""
    recorded = getattr(policy, "metadata", {}).get("env")
    return recorded.get("env_id") if isinstance(recorded, dict) else None


def _show(result: "Evaluation", env_id: str) -> None:
    low, high = result.ci95
    mode = "deterministic" if result.deterministic else "sampled"
    print(f"return    {result.return_mean:.2f} ± {result.return_std:.2f} (IQM {result.return_iqm:.2f}), ", end="")
    print(f"95 % interval of the mean [{low:.2f}, {high:.2f}]")
    print(f"episodes  {result.episodes} of {env_id} from seed {result.seed}, {mode} actions, ", end="")
    print(f"{result.distinct_returns} distinct returns, {result.lengths.mean():.0f} steps on average")
