"""``sb3-qpd frontier``: the smallest student that plays as well as its teacher, and the frontier of return against bytes."""

import argparse
import sys
from pathlib import Path
from typing import Any

from sb3_qpd.atomic import UNFINISHED, AtomicFolder
from sb3_qpd.cli.arguments import (
    TEACHER_SOURCE,
    Parser,
    add_cache,
    add_environment,
    add_progress,
    add_resume,
    add_step_limit,
    add_test_episodes,
    architecture,
    number,
    whole_number,
)
from sb3_qpd.cli.errors import EXIT_DIFFERENCE, one_line, user_errors
from sb3_qpd.cli.hyperparameters import (
    add_hyperparameters,
    check_hyperparameter_flags,
    distiller_arguments,
    take_entry,
)
from sb3_qpd.cli.models import check_device, check_environment, load_teacher
from sb3_qpd.cli.sources import check_teacher_source
from sb3_qpd.search.settings import (
    DEFAULT_BITS,
    DEFAULT_RUNGS,
    DEFAULT_SIZES,
    DEFAULT_TIMESTEPS,
    SearchSettings,
    check_storage,
    describe_bits,
)
from sb3_qpd.student_folder import FRONTIER, TARGET_NAMES
from sb3_qpd.zoo import MAX_TIMESTEPS

# arguments of QPDDistiller that the search sets, or that have an own flag here
WITHOUT = ("student_arch", "weight_bits", "activation_bits", "check_teacher", "tensorboard_log")
# arguments of the command that the function has under the same name
_SAME_NAMES = (
    *("sizes", "bits", "seeds", "max_bytes", "timesteps", "early_stopping", "rungs", "episodes", "validation_episodes"),
    *("workers", "ray", "storage", "study_name", "checkpoint_every", "resume", "force", "max_episode_steps", "cache"),
)


def add_frontier(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser: Parser = commands.add_parser(
        "frontier",
        help="search the smallest student that plays as well",
        description="Train students of all given sizes, bits and seeds, and stop those that cannot win. Validation episodes "
        "choose the frontier of return against bytes. Its students are trained again with fresh seeds, and scored once on "
        "test episodes. DIR gets frontier.json, and for each point of the frontier a folder as compress writes it.",
        examples=(
            "frontier my_agent.zip --env LunarLander-v3 --sizes nano tiny --bits 8 4 2 --out search",
            "frontier my_agent.zip --env LunarLander-v3 --max-bytes 500B --seeds 2 --out search",
        ),
    )
    parser.set_defaults(run=frontier)
    parser.add_argument("teacher", help=TEACHER_SOURCE)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--force", action="store_true", default=False, help="replace the result of an earlier search in DIR")
    add_resume(parser)
    _add_search(parser)
    _add_workers(parser)
    add_test_episodes(parser)
    add_environment(parser)
    parser.add_argument(
        "--target", action="append", default=[], help=f"export the result's students too; several times: {TARGET_NAMES}"
    )
    add_progress(parser)
    add_cache(parser)
    add_step_limit(parser)
    add_hyperparameters(parser, without=WITHOUT)
    parser.set_defaults(seed=0, device="auto")


def _add_search(parser: Parser) -> None:
    group = parser.add_argument_group("the search")
    group.add_argument(
        "--sizes",
        type=architecture,
        nargs="+",
        default=DEFAULT_SIZES,
        metavar="SIZE",
        help=f"sizes of students, as --student-arch of compress takes them (default: {' '.join(DEFAULT_SIZES)})",
    )
    group.add_argument(
        "--bits",
        nargs="+",
        default=DEFAULT_BITS,
        metavar="BITS",
        help="bits of weights and activations: 4, or W2A8 where they differ (default: "
        f"{' '.join(map(describe_bits, DEFAULT_BITS))})",
    )
    group.add_argument(
        "--seeds", type=whole_number(), default=3, help="training seeds of each size and bits, from --seed on (default: 3)"
    )
    group.add_argument(
        "--max-bytes",
        default=None,
        metavar="BYTES",
        help="search the best student of at most so many bytes, such as 2000, 2kB or 0.5%% of the teacher's float32 actor "
        "(default: search the smallest one that is non-inferior)",
    )
    group.add_argument(
        "--timesteps",
        type=whole_number(most=MAX_TIMESTEPS),
        default=None,
        help=f"environment steps of each student (default: those of the environment's entry, else {DEFAULT_TIMESTEPS})",
    )
    group.add_argument(
        "--rungs",
        type=number,
        nargs="+",
        default=DEFAULT_RUNGS,
        metavar="SHARE",
        help=f"shares of the steps after which trials are scored and may stop (default: {' '.join(map(str, DEFAULT_RUNGS))})",
    )
    group.add_argument(
        "--no-early-stopping",
        dest="early_stopping",
        action="store_false",
        default=True,
        help="train every student to the end",
    )
    group.add_argument(
        "--validation-episodes",
        type=whole_number(),
        default=None,
        help="episodes by which students are chosen (default: as many as test episodes, at most 100)",
    )


def _add_workers(parser: Parser) -> None:
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--workers", type=whole_number(), default=None, help="students trained side by side (default: one for each core)"
    )
    group.add_argument(
        "--ray",
        default=None,
        metavar="ADDRESS",
        help="use the nodes of a Ray cluster: auto, HOST:PORT of its head, or ray://HOST:PORT (default: this machine)",
    )
    group.add_argument(
        "--storage",
        default=None,
        metavar="URL",
        help="Optuna storage of the trials, such as sqlite:///search.db, or a journal file that ends in .log (default: a "
        "journal file in DIR)",
    )
    group.add_argument("--study-name", default="frontier", help="name of the study in that storage (default: frontier)")
    group.add_argument(
        "--checkpoint-every",
        type=whole_number(least=0),
        default=None,
        metavar="STEPS",
        help="environment steps between two checkpoints of a trial, 0 for none (default: once a minute)",
    )


def frontier(args: argparse.Namespace) -> int:
    """
    Search, retrain, and print the points of the frontier.

    :param args: arguments of the command
    :return: exit code
    """
    try:
        with user_errors("frontier"):
            _check_arguments(args)
            check_device(args.device)
            teacher, recipe = load_teacher(args.teacher, args)
            take_entry(args, recipe)
            from sb3_qpd.search.frontier import frontier as search
            from sb3_qpd.search.results import summary

            content = search(
                teacher,
                args.out,
                env=recipe,
                **{name: getattr(args, name) for name in _SAME_NAMES},
                targets=args.target,
                progress_bar=args.progress,
                command=args.command_line,
                **distiller_arguments(args),
            )
    except KeyboardInterrupt:
        if (args.out / UNFINISHED).exists():
            has_trials = (args.out / FRONTIER).exists()
            so_far = f"{args.out / FRONTIER} has the trials so far" if has_trials else "no trial has begun"
            print(f"sb3-qpd frontier: stopped; {so_far}. The same command with --resume goes on", file=sys.stderr)
        raise
    print(f"\n{summary(content)}\n\nWrote frontier.json and {_folders(len(content['points']))} into {args.out}")
    if not content["points"]:
        error = next((trial["error"] for trial in content["trials"] if trial["error"]), "no trial came to its end")
        print(f"sb3-qpd frontier: error: no student was found: {one_line(error)}", file=sys.stderr)
        return EXIT_DIFFERENCE
    return 0


def _folders(count: int) -> str:
    return f"{count} folder{'' if count == 1 else 's'}"


def _check_arguments(args: argparse.Namespace) -> None:
    """What can be known from the arguments alone is said before torch is imported, which takes seconds."""
    from sb3_qpd.export.requirements import find_target

    for target in args.target:
        find_target(target)
    check_hyperparameter_flags(args)
    check_storage(args.storage, args.study_name)
    search = {name: getattr(args, name) for name in ("max_bytes", "rungs", "seed")}
    SearchSettings(tuple(args.sizes), tuple(args.bits), args.seeds, **search)
    has_unfinished = (args.out / UNFINISHED).exists()
    with AtomicFolder(args.out, args.force or has_unfinished, argument="--out"):  # the search opens it again
        check_teacher_source(args.teacher, "TEACHER")
        check_environment(args)
