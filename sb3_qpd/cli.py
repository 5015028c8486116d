"""
The command ``sb3-qpd``.

    sb3-qpd compress TEACHER --out DIR    teacher in, integer student and evidence out
    sb3-qpd evaluate MODEL                play a teacher, a student's zip or its .npz

A mistake is one line on stderr and exit code 2, before any training starts; nothing half-written is left. Whatever is heavy
is imported inside the commands, so that ``--help`` is instant.
"""

import argparse
import ast
import json
import math
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sb3_qpd.staging import Staging, uninterrupted

if TYPE_CHECKING:
    from sb3_qpd.contest import Arena
    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.envs import EnvRecipe
    from sb3_qpd.evaluation import Player
    from sb3_qpd.teachers import Teacher

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130

DEFAULT_TIMESTEPS = 100_000
DEFAULT_TIMESTEPS_ATARI = 400_000

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


class Parser(argparse.ArgumentParser):
    """One line for a mistake, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"{self.prog}: error: {message}. See {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: without the program's name; None: the process's own
    :return: exit code
    """
    args = make_parser().parse_args(argv)
    warnings.formatwarning = lambda message, *_, **__: f"sb3-qpd: warning: {one_line(message)}\n"
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("sb3-qpd: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def make_parser() -> Parser:
    parser = Parser(prog="sb3-qpd", description="Distill Stable-Baselines3 agents into tiny integer policies.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add_compress(commands)
    _add_evaluate(commands)
    return parser


def _add_compress(commands: Any) -> None:
    parser = commands.add_parser(
        "compress",
        help="teacher in, integer student and evidence out",
        description="Load and check a teacher, distill it, and compare the integer student with it. DIR gets student.zip "
        "(SB3), student_float.zip, student.npz (integer model), report.json and report.md.",
    )
    parser.set_defaults(run=compress)
    parser.add_argument("teacher", help="a zip saved by SB3 or sb3-contrib, or a run folder of RL Zoo")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--force", action="store_true", default=False, help="replace the files of an earlier run in DIR")
    parser.add_argument(
        "--timesteps",
        type=timesteps,
        default=None,
        help=f"environment steps, e.g. 1e6 (default: {DEFAULT_TIMESTEPS}, Atari {DEFAULT_TIMESTEPS_ATARI})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0); test episodes have their own")
    parser.add_argument(
        "--episodes", type=positive, default=None, help="test episodes (default: 100 to 1000, from the teacher's spread)"
    )
    _add_environment(parser)
    parser.add_argument("--n-envs", type=positive, default=None, help="environments side by side in training")
    parser.add_argument("--vec-env", choices=("dummy", "subproc"), default="dummy", help="how they run (default: dummy)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument(
        "--baselines", action="store_true", default=False, help="also a float student and its post-training quantization"
    )
    parser.add_argument(
        "--no-check-teacher", dest="check_teacher", action="store_false", default=True, help="do not play it beforehand"
    )
    parser.add_argument("--no-progress", dest="progress", action="store_false", default=True, help="no progress bars")
    group = parser.add_argument_group("hyper-parameters (default: the distiller's own)")
    for name, kind in HYPERPARAMETERS.items():
        group.add_argument("--" + name.replace("_", "-"), type=kind, default=None, metavar=kind.__name__.upper())


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="play a teacher, a student's zip or its .npz",
        description="Play whole episodes and print raw returns. Nothing that a file has pickled is run.",
    )
    parser.set_defaults(run=evaluate)
    parser.add_argument("model", help="a teacher (zip or run folder), a student's zip, or an .npz")
    parser.add_argument("--episodes", type=positive, default=100, help="whole episodes (default: 100)")
    parser.add_argument("--seed", type=int, default=None, help="of the first episode (default: the test seeds)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--deterministic", action="store_true", default=None, help="most likely actions (default)")
    mode.add_argument(
        "--stochastic", dest="deterministic", action="store_false", default=None, help="sampled actions (default for Atari)"
    )
    _add_environment(parser)
    parser.add_argument("--n-envs", type=positive, default=32, help="episodes side by side (default: 32)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda")
    parser.add_argument("--no-progress", dest="progress", action="store_false", default=True, help="no progress bar")


def _add_environment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default=None, help="environment id (default: what a run folder or a student's file says)")
    parser.add_argument(
        "--env-kwargs", type=key_value, nargs="+", default=[], metavar="KEY=VALUE", help="for gym.make, Python literals"
    )
    parser.add_argument("--vecnormalize", default=None, metavar="PATH", help="the teacher's vecnormalize.pkl")


# --- arguments ---
def timesteps(text: str) -> int:
    """A positive number of steps; ``1e6`` is one."""
    number = float(text) if _is_float(text) else math.nan
    if not (math.isfinite(number) and number >= 1):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, such as 1e6, got {text!r}")
    return int(number)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def key_value(text: str) -> tuple[str, Any]:
    """``key=value`` or RL Zoo's ``key:value``; the value is a Python literal, or else a string."""
    key, separator, value = text.partition("=") if "=" in text else text.partition(":")
    if not (separator and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    with suppress(ValueError, SyntaxError):
        return key, ast.literal_eval(value)
    return key, value


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- mistakes ---
def one_line(message: object) -> str:
    return " ".join(str(message).split())


@contextmanager
def mistakes(command: str, applies: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """
    What goes wrong inside is the user's to mend: one line on stderr, exit code 2.

    :param command: for the message
    :param applies: asked when something went wrong; False: it is a bug, with its traceback
    """
    try:
        yield
    except Exception as error:
        is_gymnasium = type(error).__module__.startswith("gymnasium.error")
        if not (applies() and (is_gymnasium or isinstance(error, ValueError | TypeError | OSError | ImportError))):
            raise
        print(f"sb3-qpd {command}: error: {one_line(error)}", file=sys.stderr)
        raise SystemExit(EXIT_MISTAKE) from error


# --- compress ---
def compress(args: argparse.Namespace) -> int:
    """Load, check, distill, make integers, evaluate."""
    with mistakes("compress"):
        staging = Staging(args.out, args.force)
    with staging:
        with mistakes("compress"):
            from sb3_qpd.contest import plan_arena

            teacher, recipe = _load_teacher(args)
            distiller = _make_distiller(teacher, recipe, args)
            baseline = _make_distiller(teacher, recipe, args, **FLOAT_BASELINE) if args.baselines else None
            arena = plan_arena(teacher, recipe, args.episodes, progress_bar=args.progress)
        timesteps = args.timesteps or (DEFAULT_TIMESTEPS_ATARI if recipe.is_atari else DEFAULT_TIMESTEPS)
        return _compress(distiller, baseline, arena, timesteps, staging, args.progress)


def _load_teacher(args: argparse.Namespace) -> "tuple[Teacher, EnvRecipe]":
    from sb3_qpd.envs import make_recipe
    from sb3_qpd.loading import load_teacher

    recipe = None if args.env is None else make_recipe(args.env, dict(args.env_kwargs))
    path = args.teacher if args.command == "compress" else args.model
    teacher = load_teacher(path, vecnormalize=args.vecnormalize, env=recipe, device=_checked_device(args.device))
    if teacher.recipe is None:
        raise ValueError(f"{path} does not say which environment it was trained on. Give it: --env ID")
    teacher.recipe = make_recipe(teacher.recipe, dict(args.env_kwargs))
    return teacher, teacher.recipe


def _checked_device(name: str) -> str:
    import torch as th

    try:
        th.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}") from error
    return name


def _make_distiller(teacher: "Teacher", recipe: "EnvRecipe", args: argparse.Namespace, **changes: Any) -> "QPDDistiller":
    from sb3_qpd.distiller import QPDDistiller

    given = {name: getattr(args, name) for name in HYPERPARAMETERS if getattr(args, name) is not None}
    same = ("n_envs", "vec_env", "seed", "device", "check_teacher")
    options = {**{name: getattr(args, name) for name in same}, **given, **changes}
    return QPDDistiller(teacher, recipe, verbose=1, **options)  # verbose: the check of the teacher is shown


def _compress(
    distiller: "QPDDistiller",
    baseline: "QPDDistiller | None",
    arena: "Arena",
    timesteps: int,
    staging: Staging,
    progress_bar: bool,
) -> int:
    from sb3_qpd.contest import make_report
    from sb3_qpd.report import table, verdict_line, write_report

    learned, options = False, dict[str, Any](log_interval=None, progress_bar=progress_bar)
    try:
        with mistakes("compress", applies=lambda: distiller.num_timesteps == 0):
            distiller.learn(timesteps, **options)
        learned, baselines = True, {}
        if baseline is not None:
            baseline.learn(timesteps, **options)
            arch = distiller.policy.arch.asdict()
            bits = {name: arch[name] for name in ("weight_bits", "activation_bits")}
            baselines = {"full float": baseline, "post-training": baseline.post_training_quantize(**bits)}
        report = make_report(distiller, arena, baselines)
        write_report(report, staging.path)
    except BaseException as error:
        # hours of learning are not thrown away because somebody, or an evaluation, stopped the rest
        if isinstance(error, KeyboardInterrupt) or learned:
            _rescue(distiller, arena, staging)
        raise
    files = _publish(distiller, arena, staging)
    print(f"\n{table(report)}\n\n{verdict_line(report)}\n\nWrote {', '.join(files)} into {staging.out}")
    return 0


def _publish(distiller: "QPDDistiller", arena: "Arena", staging: Staging) -> list[str]:
    from sb3_qpd.contest import describe_env

    distiller.save(staging.path / "student.zip")
    if (float_student := distiller.float_student()) is not None:
        float_student.save(staging.path / "student_float.zip")
    model = distiller.policy.to_integer(
        env=describe_env(arena.env), teacher=distiller.teacher_name, teacher_checksum=distiller.teacher_checksum
    )
    model.save(staging.path / "student.npz")
    return staging.publish()


def _rescue(distiller: "QPDDistiller", arena: "Arena", staging: Staging) -> None:
    """Save an unfinished student, and say where."""
    if distiller.num_timesteps == 0:
        print("sb3-qpd compress: stopped before anything was learned, nothing was written", file=sys.stderr)
        return
    with uninterrupted():
        files = _publish(distiller, arena, staging)
    steps = f"after {distiller.num_timesteps} steps"
    print(f"sb3-qpd compress: stopped {steps}; wrote {', '.join(files)} into {staging.out}", file=sys.stderr)


# --- evaluate ---
def evaluate(args: argparse.Namespace) -> int:
    """Play, and print what came of it."""
    from sb3_qpd.evaluation import TEST_SEED, ObservationRecorder, microseconds_per_action
    from sb3_qpd.evaluation import evaluate as play

    seed = TEST_SEED if args.seed is None else args.seed
    with mistakes("evaluate"):
        policy, recipe, size = _open(args)
        deterministic = args.deterministic if args.deterministic is not None else not recipe.is_atari
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


def _open(args: argparse.Namespace) -> "tuple[Player, EnvRecipe, str]":
    """Who plays, where, and how large it is."""
    path = Path(args.model)
    if path.suffix == ".npz":
        from sb3_qpd.integer import IntegerModel

        model = IntegerModel.load(path)
        return model, _student_recipe(args, model.metadata.get("env")), _size(model.nbytes, model)
    if (data := _student_data(path)) is not None:
        recipe = _student_recipe(args, _read_env(path.with_name("report.json")))
        return _load_student(path, data, recipe, args), recipe, f"{path.stat().st_size} bytes as a zip"
    teacher, recipe = _load_teacher(args)
    return teacher, recipe, _size(teacher.nbytes, teacher)


def _size(nbytes: int, actor: Any) -> str:
    return f"{nbytes} bytes, {actor.n_parameters} parameters, {actor.macs} multiply-accumulates"


def _student_data(path: Path) -> dict[str, Any] | None:
    """The JSON of a zip that says its policy is one of this package; anything else is left to the teachers' reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        return data if str(data["policy_class"]["__module__"]).startswith("sb3_qpd.") else None
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError):
        return None


def _load_student(path: Path, data: dict[str, Any], recipe: "EnvRecipe", args: argparse.Namespace) -> "QPDDistiller":
    """SB3 loads it, but decodes no pickle: the spaces are the environment's, and nothing else that is pickled is needed."""
    from sb3_qpd.distiller import QPDDistiller
    from sb3_qpd.policies import QuantActorCriticPolicy

    policy_kwargs = data.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict) or ":serialized:" in policy_kwargs or "student_arch" not in policy_kwargs:
        raise ValueError(f"{path} does not describe its network in plain values. Expected a student that sb3_qpd saved")
    env = recipe.make_vec_env(1, training=False)
    env.close()
    pickled = {key: None for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    known = {
        "policy_class": QuantActorCriticPolicy,
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "learning_rate": 0.0,
        "student_arch": policy_kwargs["student_arch"],
    }
    return QPDDistiller.load(path, device=_checked_device(args.device), custom_objects={**pickled, **known})


def _read_env(report: Path) -> dict[str, Any] | None:
    """The environment that the report beside a student's zip names."""
    return json.loads(report.read_text(encoding="utf-8")).get("env") if report.is_file() else None


def _student_recipe(args: argparse.Namespace, recorded: dict[str, Any] | None) -> "EnvRecipe":
    from sb3_qpd.envs import EnvRecipe, make_recipe

    if args.env is None and recorded is None:
        raise ValueError(f"{args.model} does not say in which environment it plays. Give it: --env ID")
    recipe = args.env
    if recipe is None:
        wrappers = tuple((name, kwargs) for name, kwargs in recorded.get("env_wrappers", ()))  # type: ignore[union-attr]
        recipe = EnvRecipe(**{**recorded, "env_wrappers": wrappers})  # type: ignore[dict-item]
    return make_recipe(recipe, dict(args.env_kwargs))
