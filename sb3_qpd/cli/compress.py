"""``sb3-qpd compress``: teacher in, integer student and evidence out."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_qpd.atomic import AtomicFolder, uninterrupted
from sb3_qpd.cli.arguments import EXIT_DIFFERENCE, add_environment, is_user_error, one_line, positive, timesteps, user_errors
from sb3_qpd.cli.models import load_teacher

if TYPE_CHECKING:
    from sb3_qpd.distillation.distiller import QPDDistiller
    from sb3_qpd.envs.recipe import EnvRecipe
    from sb3_qpd.evaluation.comparison import EvaluationPlan
    from sb3_qpd.teachers.teacher import Teacher

DEFAULT_TIMESTEPS = 100_000  # of an environment that qpd.yml has no entry for

# what a run writes, its exports too: those of an earlier run do not stay beside the files of this one
OUTPUTS = (
    *("student.zip", "student_float.zip", "student.npz", "report.json", "report.md"),
    *("student.onnx", "student.tflite", "policy.py", "policy.c", "policy.h", "policy_README.md", "main.c", "test_vectors.h"),
)

FLOAT_BASELINE = {"transition": "none", "weight_bits": 32, "activation_bits": 32, "check_teacher": False}

# handed to the distiller as they are, and only where they are given: the defaults are the distiller's own
HYPERPARAMETERS = {
    "student_arch": str,
    "weight_bits": int,
    "activation_bits": int,
    "transition": str,
    "transition_start": float,
    "transition_end": float,
    "learning_rate": float,
    "batch_size": int,
    "gradient_steps": float,
    "temperature": float,
    "critic_coef": float,
    "beta": float,
    "buffer_size": int,
}


def add_compress(commands: Any) -> None:
    parser = commands.add_parser(
        "compress",
        help="teacher in, integer student and evidence out",
        description="Load and check a teacher, distill it, and compare the integer student with it. DIR gets student.zip "
        "(SB3), student_float.zip, student.npz (integer model), report.json and report.md.",
    )
    parser.set_defaults(run=compress)
    what = "a zip saved by SB3 or sb3-contrib, a run folder of RL Zoo, or a model on the Hub: owner/name[@revision]"
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("teacher", nargs="?", default=argparse.SUPPRESS, help=what)
    teacher.add_argument(
        "--teacher", metavar="TEACHER", default=argparse.SUPPRESS, help="the same, as the other commands have it"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--force", action="store_true", default=False, help="replace the files of an earlier run in DIR")
    parser.add_argument(
        "--timesteps",
        type=timesteps,
        default=None,
        help="environment steps, e.g. 1e6 (default: those of the environment's entry in hyperparams/qpd.yml, such as 5e5 for "
        f"Hopper-v4, and its buffer_size; else {DEFAULT_TIMESTEPS})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0); test episodes have their own")
    parser.add_argument(
        "--episodes", type=positive, default=None, help="test episodes (default: 100 to 1000, from the teacher's spread)"
    )
    add_environment(parser)
    parser.add_argument("--n-envs", type=positive, default=None, help="environments side by side in training")
    parser.add_argument("--vec-env", choices=("dummy", "subproc"), default="dummy", help="how they run (default: dummy)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument(
        "--baselines", action="store_true", default=False, help="also a float student and its post-training quantization"
    )
    parser.add_argument(
        "--target", action="append", default=[], help="export it too, and verify that: onnx, c, tflite, numpy; several times"
    )
    parser.add_argument(
        "--no-check-teacher", dest="check_teacher", action="store_false", default=True, help="do not play it beforehand"
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", default=True, help="no progress bars")
    group = parser.add_argument_group("hyper-parameters (default: the distiller's own)")
    for name, kind in HYPERPARAMETERS.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, default=None, metavar=kind.__name__.upper())


def compress(args: argparse.Namespace) -> int:
    """Load, check, distill, make integers, evaluate."""
    with user_errors("compress"):
        staging = AtomicFolder(args.out, args.force)
    with staging:
        with user_errors("compress"):
            from sb3_qpd.evaluation.comparison import plan_evaluation
            from sb3_qpd.export import find_exporter

            for target in args.target:
                find_exporter(target)
            teacher, recipe = load_teacher(args.teacher, args)
            _defaults_from_zoo(args, recipe)
            distiller = _make_distiller(teacher, recipe, args)
            _check_bits(distiller)
            baseline = _make_distiller(teacher, recipe, args, **FLOAT_BASELINE) if args.baselines else None
            plan = plan_evaluation(teacher, recipe, args.episodes, progress_bar=args.progress)
        _compress(distiller, baseline, plan, args.timesteps, staging, args.progress)
    return _deploy(distiller, recipe, args) if args.target else 0


def _deploy(distiller: "QPDDistiller", recipe: "EnvRecipe", args: argparse.Namespace) -> int:
    """Export and verify; the student is saved by now, whatever comes of it."""
    with user_errors("compress"):
        from sb3_qpd.evaluation.verify import load_model, verify
        from sb3_qpd.export import export

        model = load_model(args.out)
        with AtomicFolder(args.out, force=True) as staging:
            for target in dict.fromkeys(args.target):
                export(model, target, staging.path)
            names = staging.commit()
        result = verify(args.out, recipe, policy=distiller.policy)
    print(f"Exported {', '.join(names)}\n\n{result.table()}")
    return 0 if result.holds else EXIT_DIFFERENCE


def _defaults_from_zoo(args: argparse.Namespace, recipe: "EnvRecipe") -> None:
    """How long to learn, and from how much, is what RL Zoo's entry of the environment says, where nobody said it."""
    from sb3_qpd.zoo.entries import read_entries

    entry = read_entries().get("atari" if recipe.is_atari else recipe.env_id, {})
    args.timesteps = args.timesteps or int(entry.get("n_timesteps", DEFAULT_TIMESTEPS))
    args.buffer_size = entry.get("buffer_size") if args.buffer_size is None else args.buffer_size


def _make_distiller(teacher: "Teacher", recipe: "EnvRecipe", args: argparse.Namespace, **changes: Any) -> "QPDDistiller":
    from sb3_qpd.distillation.distiller import QPDDistiller

    given = {name: getattr(args, name) for name in HYPERPARAMETERS if getattr(args, name) is not None}
    same = ("n_envs", "vec_env", "seed", "device", "check_teacher")
    options = {**{name: getattr(args, name) for name in same}, **given, **changes}
    return QPDDistiller(teacher, recipe, verbose=1, **options)  # verbose: the check of the teacher is shown


def _check_bits(distiller: "QPDDistiller") -> None:
    from sb3_qpd.students.quantizers import FLOAT_BITS

    if distiller.policy.arch.activation_bits == FLOAT_BITS:  # and so are the weights
        raise ValueError(
            f"compress makes integers, and {FLOAT_BITS} bits are float. Give --weight-bits and --activation-bits of 2 to 8: "
            "student_float.zip is written all the same, and --baselines trains a float student to the end"
        )


def _compress(
    distiller: "QPDDistiller",
    baseline: "QPDDistiller | None",
    plan: "EvaluationPlan",
    timesteps: int,
    staging: AtomicFolder,
    progress_bar: bool,
) -> None:
    from sb3_qpd.evaluation.comparison import make_report
    from sb3_qpd.evaluation.report import table, verdict_line, write_report

    options = dict[str, Any](log_interval=None, progress_bar=progress_bar)
    try:
        with user_errors("compress", applies=lambda: distiller.num_timesteps == 0):
            distiller.learn(timesteps, **options)
        baselines = {}
        if baseline is not None:
            baseline.learn(timesteps, **options)
            arch = distiller.policy.arch.asdict()
            bits = {name: arch[name] for name in ("weight_bits", "activation_bits")}
            baselines = {"full float": baseline, "post-training": baseline.post_training_quantize(**bits)}
        report = make_report(distiller, plan, baselines)
        write_report(report, staging.path)
    except BaseException as error:
        if isinstance(error, SystemExit) and distiller.num_timesteps == 0:
            raise  # a mistake that was told already
        # hours of learning are not thrown away because somebody, or something, stopped the rest
        _rescue(distiller, plan, staging, "" if isinstance(error, KeyboardInterrupt) else f"error: {one_line(error)}; ")
        if is_user_error(error):
            raise SystemExit(EXIT_DIFFERENCE) from error
        raise
    files = _publish(distiller, plan, staging)
    print(f"\n{table(report)}\n\n{verdict_line(report)}\n\nWrote {', '.join(files)} into {staging.out}")


def _publish(distiller: "QPDDistiller", plan: "EvaluationPlan", staging: AtomicFolder) -> list[str]:
    distiller.save(staging.path / "student.zip")
    if (float_student := distiller.float_student()) is not None:
        float_student.save(staging.path / "student_float.zip")
    try:
        distiller.to_integer(plan.env).save(staging.path / "student.npz")
    except ValueError as error:  # of weights that are NaN: the zips show how far it came
        print(f"sb3-qpd compress: no student.npz: {one_line(error)}", file=sys.stderr)
    return staging.commit(replacing=OUTPUTS)


def _rescue(distiller: "QPDDistiller", plan: "EvaluationPlan", staging: AtomicFolder, reason: str) -> None:
    """Save an unfinished student, and say where."""
    if distiller.num_timesteps == 0:
        print(f"sb3-qpd compress: {reason}stopped before anything was learned, nothing was written", file=sys.stderr)
        return
    with uninterrupted():
        files = _publish(distiller, plan, staging)
    steps = f"after {distiller.num_timesteps} steps"
    print(f"sb3-qpd compress: {reason}stopped {steps}; wrote {', '.join(files)} into {staging.out}", file=sys.stderr)
