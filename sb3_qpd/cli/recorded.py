"""``sb3-qpd compress --observations``: a student of recorded observations, with or without an environment."""

import argparse
from typing import TYPE_CHECKING, Any

from sb3_qpd.atomic import AtomicFolder, uninterrupted
from sb3_qpd.cli.errors import EXIT_DIFFERENCE, is_user_error, one_line, user_errors
from sb3_qpd.student_folder import RECORDED_TEXT

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller

# options that play episodes, and their values where they are not given
_PLAYING: dict[str, Any] = {
    "episodes": None,
    "baselines": False,
    "require": None,
    "stop_when": None,
    "film": False,
}


def add_observations(parser: argparse.ArgumentParser) -> None:
    """
    Add ``--observations``.

    :param parser: parser of the command
    """
    parser.add_argument(
        "--observations",
        metavar="FILE",
        default=None,
        help="learn from recorded observations and step no environment: an .npz, or the id or folder of a Minari dataset. A "
        "tenth of the episodes is held out to measure agreement (recorded.md). Returns are measured only with --env",
    )


def check_recorded_options(args: argparse.Namespace) -> None:
    """
    Refuse options that play episodes where there is no environment.

    :param args: arguments of the command
    :raises ValueError: such an option
    """
    if args.observations is None or args.env is not None:
        return
    given = [f"--{name.replace('_', '-')}" for name, value in _PLAYING.items() if getattr(args, name) != value]
    if given:
        raise ValueError(
            f"{', '.join(given)} plays episodes, and --observations alone has no environment: add --env ID, or leave it out"
        )


def recorded_files(distiller: "QPDDistiller") -> dict[str, bytes]:
    """
    ``recorded.json`` and ``recorded.md``.

    :param distiller: the student, after learning
    :return: content of each file by its name; none for a student that learned in an environment
    """
    if distiller.recording is None:
        return {}
    from sb3_qpd.evaluation.held_out import measure_held_out, measurement_files

    return measurement_files(measure_held_out(distiller))


def compress_recorded(distiller: "QPDDistiller", staging: AtomicFolder, args: argparse.Namespace) -> int:
    """
    Distill from recorded observations alone, and measure the student on those that were held out.

    :param distiller: the student, before learning
    :param staging: the result folder
    :param args: arguments of the command
    :return: exit code
    """
    from sb3_qpd.cli.compress import publish, rescue, run_checkpoint
    from sb3_qpd.cli.target_check import CheckTargets

    check = CheckTargets(args.target)
    try:
        with user_errors("compress", applies=lambda: distiller.num_timesteps == 0 or check.has_refused):
            options = {"log_interval": 1 if args.tensorboard_log else None, "progress_bar": args.progress}
            distiller.learn(args.timesteps, callback=check, checkpoint=run_checkpoint(args, staging), **options)
        files = recorded_files(distiller)
    except BaseException as error:
        if isinstance(error, SystemExit) and (distiller.num_timesteps == 0 or check.has_refused):
            raise  # an error of the user, which was reported already
        rescue(distiller, None, staging, "" if isinstance(error, KeyboardInterrupt) else f"error: {one_line(error)}; ")
        if is_user_error(error):
            raise SystemExit(EXIT_DIFFERENCE) from error
        raise
    with uninterrupted():
        names, out = publish(distiller, None, staging, more=files, is_finished=True)
    print(f"\n{files[RECORDED_TEXT].decode()}\nWrote {', '.join(names)} into {out}")
    return 0 if out == staging.out else EXIT_DIFFERENCE
