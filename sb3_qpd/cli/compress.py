"""``sb3-qpd compress``: teacher in, integer student and evidence out."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sb3_qpd.atomic import CHECKPOINT, AtomicFolder, save_elsewhere, uninterrupted
from sb3_qpd.cli.arguments import (
    TEACHER_SOURCE,
    Parser,
    add_cache,
    add_environment,
    add_progress,
    add_resume,
    add_step_limit,
    add_test_episodes,
    whole_number,
)
from sb3_qpd.cli.errors import EXIT_DIFFERENCE, is_user_error, one_line, user_errors
from sb3_qpd.cli.hyperparameters import (
    add_hyperparameters,
    check_hyperparameter_flags,
    check_integer,
    distiller_arguments,
    take_entry,
)
from sb3_qpd.cli.models import check_device, check_environment, load_teacher
from sb3_qpd.cli.recorded import add_observations, check_recorded_options, compress_recorded, recorded_files
from sb3_qpd.cli.sources import check_teacher_source
from sb3_qpd.search.settings import DEFAULT_TIMESTEPS
from sb3_qpd.student_folder import OUTPUTS, PAGE, TARGET_NAMES, arduino_libraries
from sb3_qpd.zoo import MAX_TIMESTEPS

if TYPE_CHECKING:
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_qpd.distillation.checkpoints import Checkpoint
    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.distillation.recordings import RecordedObservations
    from sb3_qpd.envs.recipe import EnvRecipe, EnvSource
    from sb3_qpd.evaluation.comparison import EvaluationPlan
    from sb3_qpd.teachers.teacher import Teacher

FLOAT_BASELINE = {"transition": "none", "weight_bits": 32, "activation_bits": 32, "check_teacher": False}
STUDENT, BASELINE = "student", "baseline"  # folders in the checkpoint's
VERDICTS = {"non-inferior": "non_inferior"}  # what --require and --stop-when take -> what report.json says


def add_compress(commands: Any) -> None:
    """
    Add the command.

    :param commands: the subparsers of the program
    """
    parser: Parser = commands.add_parser(
        "compress",
        help="teacher in, integer student and evidence out",
        description="Load and check a teacher, distill it, and compare the integer student with it. DIR gets student.zip "
        "(SB3), student_float.zip, student.npz (integer model), report.json, report.md and report.html. Settings that are not "
        "given come from the environment's entry in hyperparams/qpd.yml; those that were taken from it are printed.",
        examples=(
            "compress my_agent.zip --env LunarLander-v3 --out lunar",
            "compress my_agent.zip --env my_envs:Cart-v0 --student-arch 2kB --target c --out cart",
        ),
    )
    parser.set_defaults(run=compress)
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("teacher", nargs="?", default=argparse.SUPPRESS, help=TEACHER_SOURCE)
    teacher.add_argument(
        "--teacher", metavar="TEACHER", default=argparse.SUPPRESS, help="the same, as the other commands have it"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--force", action="store_true", default=False, help="replace the files of an earlier run in DIR")
    parser.add_argument(
        "--checkpoint-every",
        type=whole_number(least=0),
        default=None,
        metavar="STEPS",
        help="environment steps between two checkpoints, 0 for none (default: once a minute, less often where that would take "
        "more than 2.5 %% of the time). They change nothing in the student",
    )
    add_resume(parser)
    parser.add_argument(
        "--timesteps",
        type=whole_number(most=MAX_TIMESTEPS),
        default=None,
        help=f"environment steps, e.g. 1e6 (default: those of the environment's entry, else {DEFAULT_TIMESTEPS})",
    )
    add_test_episodes(parser)
    add_environment(parser)
    add_observations(parser)
    parser.add_argument(
        "--baselines", action="store_true", default=False, help="also a float student and its post-training quantization"
    )
    parser.add_argument(
        "--target", action="append", default=[], help=f"export it too, and verify that; several times: {TARGET_NAMES}"
    )
    parser.add_argument(
        "--require",
        choices=tuple(VERDICTS),
        default=None,
        help="exit code 1 where the verdict is another one; the files are written all the same",
    )
    parser.add_argument(
        "--stop-when",
        choices=tuple(VERDICTS),
        default=None,
        help="end early, once the integer student passes on validation episodes; test episodes then decide as always",
    )
    add_progress(parser)
    parser.add_argument(
        "--no-record",
        dest="record",
        action="store_false",
        default=True,
        help="no learning curves: the student plays no validation episodes while it learns. Its bits are the same",
    )
    parser.add_argument("--no-page", dest="page", action="store_false", default=True, help="no report.html")
    parser.add_argument(
        "--film", action="store_true", default=False, help="show teacher and student at play in report.html (film.gif)"
    )
    add_cache(parser)
    add_step_limit(parser)
    add_hyperparameters(parser)
    parser.set_defaults(seed=0, device="auto")


def compress(args: argparse.Namespace) -> int:
    """
    Load, check, distill, convert to integers, evaluate.

    :param args: arguments of the command
    :return: exit code
    """
    with user_errors("compress"):
        staging = _open_out(args)
    with staging:
        with user_errors("compress"):
            _check_arguments(args)
            from sb3_qpd.cli.target_check import check_targets
            from sb3_qpd.export import find_exporter

            for target in args.target:
                find_exporter(target)
            from sb3_qpd.evaluation.comparison import plan_evaluation

            check_device(args.device)
            # a recording may have no simulator: an environment is built where --env asks for one
            teacher, recipe = load_teacher(args.teacher, args, needs_env=args.observations is None)
            take_entry(args, recipe)
            distiller = _make_distiller(teacher, recipe, args)
            check_integer(distiller.policy.arch)
            check_targets(distiller, args.target)
            same_size = {**FLOAT_BASELINE, "student_arch": distiller.policy.arch}
            baseline = _make_distiller(teacher, recipe, args, **same_size) if args.baselines else None
            staging.check_room(_bytes_of_files(distiller))
            options = {"progress_bar": args.progress, "cache": args.cache, "max_episode_steps": args.max_episode_steps}
            plan = None if recipe is None else plan_evaluation(teacher, recipe, args.episodes, **options)
        if plan is None:
            code = compress_recorded(distiller, staging, args)
        else:
            report = _compress(distiller, baseline, plan, staging, args)
    if plan is None:
        return code or _deploy(distiller, distiller.recording, args)
    return _deploy(distiller, plan.env, args) or _check_verdict(report, args.require)


def _check_arguments(args: argparse.Namespace) -> None:
    """What can be known from the arguments alone is said before torch is imported, which takes seconds."""
    from sb3_qpd.export.requirements import find_target

    for target in args.target:
        find_target(target)
    check_hyperparameter_flags(args)
    check_teacher_source(args.teacher, "TEACHER")
    check_environment(args)
    check_recorded_options(args)


def _open_out(args: argparse.Namespace) -> AtomicFolder:
    """The result folder, and what an unfinished run has left in it."""
    from sb3_qpd.distillation.checkpoint_files import newest_steps

    steps = newest_steps(args.out / CHECKPOINT / STUDENT)
    goes_on = args.resume and steps is not None
    staging = AtomicFolder(args.out, args.force or steps is not None, argument="--out")
    if steps is not None and not args.resume:
        with staging:
            raise ValueError(
                f"--out {args.out} holds an unfinished run, with a checkpoint after {steps} steps. Add --resume to the same "
                f"command to go on from there, or remove {args.out / CHECKPOINT} to begin anew"
            )
    if goes_on:
        print(f"Found a checkpoint after {steps} steps in {args.out / CHECKPOINT}")
    elif args.resume:
        print(f"Found no checkpoint in {args.out}: the run begins")
    return staging


def run_checkpoint(args: argparse.Namespace, staging: AtomicFolder, name: str = STUDENT) -> "Checkpoint | None":
    """
    The checkpoint of a student, ``None`` where the command asks for none.

    :param args: arguments of the command
    :param staging: the result folder
    :param name: folder in the checkpoint's
    """
    if args.checkpoint_every == 0:
        return None
    from sb3_qpd.distillation.checkpoints import Checkpoint

    return Checkpoint(staging.place / CHECKPOINT / name, args.checkpoint_every, args.resume)


def _bytes_of_files(distiller: "QPDDistiller") -> int:
    """About what the result folder will need: two zips with the optimizer's moments, and the small files."""
    tensors = sum(value.nbytes for value in distiller.policy.state_dict().values())
    return 6 * tensors + 2**19


def _check_verdict(report: dict[str, Any], required: str | None) -> int:
    if required is None or report["verdict"] == VERDICTS[required]:
        return 0
    print(f"sb3-qpd compress: required {required}, the verdict is {report['verdict']}", file=sys.stderr)
    return EXIT_DIFFERENCE


def _teacher_words(args: argparse.Namespace) -> str:
    """The teacher and its options, as they stood on the command line."""
    given = [("--env", args.env), ("--vecnormalize", args.vecnormalize), ("--max-episode-steps", args.max_episode_steps)]
    given.append(("--teacher-kind", args.teacher_kind))
    words = [word for option, value in given if value is not None for word in (option, str(value))]
    for option, names in (("--teacher-inputs", args.teacher_inputs), ("--teacher-outputs", args.teacher_outputs)):
        words += [option, *names] if names else []
    settings = [f"{key}={value!r}" for key, value in args.env_kwargs]
    return shlex.join([args.teacher, *words, *(["--env-kwargs", *settings] if settings else [])])


def _deploy(distiller: "QPDDistiller", seen: "EnvSource | RecordedObservations | None", args: argparse.Namespace) -> int:
    """Export and verify what ``--target`` names. The student is saved by then, whatever comes of it."""
    if not args.target or seen is None:
        return 0
    with user_errors("compress"):
        from sb3_qpd.evaluation.student_files import export_student

        names, result = export_student(distiller, seen, args.out, args.target)
    print(f"Exported {', '.join(names)}\n\n{result.table()}")
    return 0 if result.holds else EXIT_DIFFERENCE


def _make_distiller(
    teacher: "Teacher", recipe: "EnvRecipe | None", args: argparse.Namespace, **changes: Any
) -> "QPDDistiller":
    from stable_baselines3.common.utils import configure_logger

    from sb3_qpd.distillation.distiller import QPDDistiller

    given = distiller_arguments(args)
    given["observations"] = args.observations
    distiller = QPDDistiller(teacher, recipe, verbose=1, **{**given, **changes})  # verbose: the check of the teacher is shown
    if args.tensorboard_log is not None:  # for TensorBoard alone: nothing of it on stdout
        distiller.set_logger(configure_logger(verbose=0, tensorboard_log=args.tensorboard_log, tb_log_name="QPD"))
    return distiller


def _compress(
    distiller: "QPDDistiller",
    baseline: "QPDDistiller | None",
    plan: "EvaluationPlan",
    staging: AtomicFolder,
    args: argparse.Namespace,
) -> dict[str, Any]:
    from sb3_qpd.cli.report import page_files
    from sb3_qpd.cli.target_check import CheckTargets
    from sb3_qpd.evaluation.comparison import make_report
    from sb3_qpd.evaluation.report import console_summary

    options = dict[str, Any](log_interval=1 if args.tensorboard_log else None, progress_bar=args.progress)
    check = CheckTargets(args.target)
    record = plan.learning_record() if args.record else None
    try:
        with user_errors("compress", applies=lambda: distiller.num_timesteps == 0 or check.has_refused):
            callbacks = [check, *_callbacks(plan, args)]
            if record is not None:
                callbacks.append(record)
            distiller.learn(args.timesteps, callback=callbacks, checkpoint=run_checkpoint(args, staging, STUDENT), **options)
        baselines = {}
        if baseline is not None:
            baseline.learn(args.timesteps, checkpoint=run_checkpoint(args, staging, BASELINE), **options)
            arch = distiller.policy.arch.asdict()
            bits = {name: arch[name] for name in ("weight_bits", "activation_bits")}
            baselines = {"full float": baseline, "post-training": baseline.post_training_quantize(**bits)}
        report = make_report(distiller, plan, baselines, None if record is None else record.to_json())
        step = partial(_next_step, report, args)
    except BaseException as error:
        if isinstance(error, SystemExit) and (distiller.num_timesteps == 0 or check.has_refused):
            raise  # an error of the user, which was reported already
        # hours of learning are not thrown away because the rest was interrupted or failed
        rescue(distiller, plan.env, staging, "" if isinstance(error, KeyboardInterrupt) else f"error: {one_line(error)}; ")
        if is_user_error(error):
            raise SystemExit(EXIT_DIFFERENCE) from error
        raise
    more = page_files(distiller, report, args.command_line, with_page=args.page, with_film=args.film)
    more = {**more, **recorded_files(distiller)}
    with uninterrupted():
        files, out = publish(distiller, plan.env, staging, report, step, more)
    page = f"\nThe page: {out / PAGE}" if PAGE in files else ""
    print(f"\n{console_summary(report, step(out))}\n\nWrote {', '.join(files)} into {out}{page}")
    if out != staging.out:
        raise SystemExit(EXIT_DIFFERENCE)
    return report


def _next_step(report: dict[str, Any], args: argparse.Namespace, out: Path) -> str:
    from sb3_qpd.evaluation.report import next_step

    return next_step(report, args.command_line, str(out), _teacher_words(args))


def _callbacks(plan: "EvaluationPlan", args: argparse.Namespace) -> "list[BaseCallback]":
    if args.stop_when is None:
        return []
    from sb3_qpd.cli.early_stopping import StopWhenNonInferior

    return [StopWhenNonInferior(plan)]


def publish(
    distiller: "QPDDistiller",
    env: "EnvSource | None",
    staging: AtomicFolder,
    report: dict[str, Any] | None = None,
    step: Callable[[Path], str] | None = None,
    more: Mapping[str, bytes] = MappingProxyType({}),
    *,
    is_finished: bool = False,
) -> tuple[list[str], Path]:
    """
    Save all files. Those of an unfinished student have no report, and its checkpoint stays, to go on from.

    :param distiller: the student
    :param env: environment that the integer model names, ``None`` where the distiller knows it
    :param staging: the result folder
    :param report: the report, if there is one
    :param step: from the folder of the files to the line that says what to do next
    :param more: other files by their names
    :param is_finished: a student without a report is finished all the same
    :return: names of the files, and their folder: another one where ``--out`` cannot be written
    """
    replaced = (*OUTPUTS, CHECKPOINT) if is_finished or report is not None else OUTPUTS
    try:
        _write_files(distiller, env, staging.path, report, step and step(staging.out), more)
        libraries = arduino_libraries(staging.place)  # an earlier student may have left some, named after its environment
        names = staging.commit(replacing=(*replaced, *libraries))
        for library in libraries:  # a commit that replaces single files leaves the folders
            shutil.rmtree(staging.place / library, ignore_errors=True)
        return names, staging.out
    except OSError as error:
        other = save_elsewhere(
            lambda folder: _write_files(distiller, env, folder, report, step and step(folder), more),
            staging.out.resolve().name or "student",
        )
        if other is None:
            raise
        files = sorted(path.name for path in other.iterdir())
        n_bytes = sum(path.stat().st_size for path in other.iterdir())
        print(
            f"sb3-qpd compress: error: --out {staging.out} cannot be written ({one_line(error)}; {n_bytes:,} bytes needed). "
            f"The student is in {other}",
            file=sys.stderr,
        )
        return files, other


def _write_files(
    distiller: "QPDDistiller",
    env: "EnvSource | None",
    folder: Path,
    report: dict[str, Any] | None,
    step: str | None,
    more: Mapping[str, bytes],
) -> None:
    from sb3_qpd.evaluation.student_files import write_student

    problem = write_student(distiller, env, folder, report, step or "")
    if problem is not None:
        print(f"sb3-qpd compress: no student.npz: {one_line(problem)}", file=sys.stderr)
    for name, content in more.items():
        (folder / name).write_bytes(content)


def rescue(distiller: "QPDDistiller", env: "EnvSource | None", staging: AtomicFolder, reason: str) -> None:
    """
    Save an unfinished student, and say where.

    :param distiller: the student
    :param env: see :func:`publish`
    :param staging: the result folder
    :param reason: why the run stopped
    """
    if distiller.num_timesteps == 0:
        print(f"sb3-qpd compress: {reason}stopped before anything was learned, nothing was written", file=sys.stderr)
        return
    from sb3_qpd.distillation.checkpoint_files import newest_steps

    with uninterrupted():
        files, out = publish(distiller, env, staging)
    steps = newest_steps(staging.place / CHECKPOINT / STUDENT)
    more = "" if steps is None else f". The same command with --resume goes on after {steps} steps"
    print(
        f"sb3-qpd compress: {reason}stopped after {distiller.num_timesteps} steps; wrote {', '.join(files)} into {out}{more}",
        file=sys.stderr,
    )
