"""
Does every teacher in a folder go all the way? Loaded, played, distilled briefly, exported to every target, verified.

    python benchmarks/every_teacher.py FOLDER --steps 3000 --episodes 3 --observations 300 --out results.jsonl

Takes each run folder below FOLDER in RL Zoo's layout, such as `ppo/LunarLander-v2_1`. The teacher plays `--episodes` whole
episodes. A `nano` W8A8 student is distilled for `--steps` (images: `--image-steps`) and plays the same episodes. Its exports
are then compared with the integer model, value by value, on `--observations` observations of its own episodes. This checks the
whole way. It is far too short to say how good a student can be: docs/results.md has those numbers.

Adds one line of JSON for each teacher and prints a Markdown table at the end. An error is written into the teacher's row, and
the next teacher follows. A target that does not support a student is named with the reason, and is no error. The exit code is
1 if a teacher has an error, if a value differs where equality is promised, or if a file could not be compared here.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from command_line import make_parser
from tables import add_rows, table_head

from sb3_qpd import IntegerModel, QPDDistiller, Teacher, evaluate, load_teacher
from sb3_qpd.evaluation.comparison import versions
from sb3_qpd.evaluation.episodes import VALIDATION_SEED, integer_player
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export import export
from sb3_qpd.student_folder import TARGET_FILES

COLUMNS = (
    "teacher, environment, loaded in s, teacher's return, student's, bytes, exports, values compared, that differ, s in all"
)


def find_runs(folder: Path, pattern: str) -> list[Path]:
    """
    The run folders below a folder.

    :param folder: searched with all of its subfolders
    :param pattern: only run folders whose path below the folder fits, such as ``ppo/*``
    :return: paths relative to the folder, sorted
    """
    runs = {path.parent.relative_to(folder) for path in folder.rglob("*_[0-9]*/*.zip")}
    return sorted(run for run in runs if fnmatch(str(run), pattern))


def measure(path: Path, args: argparse.Namespace, row: dict[str, Any]) -> None:
    """
    Take one teacher all the way.

    :param path: its run folder
    :param args: arguments of the command
    :param row: filled step by step, so that an error leaves what was known before it
    """
    start = time.perf_counter()
    teacher = load_teacher(path, device="cpu")
    row |= {"env": teacher.recipe.env_id, "load_seconds": time.perf_counter() - start}
    mode = {"n_episodes": args.episodes, "seed": VALIDATION_SEED, "deterministic": teacher.recipe.deterministic}
    row["teacher_returns"] = evaluate(teacher, teacher.recipe, **mode).returns.tolist()
    student = distill(teacher, args)
    model = student.to_integer()
    row |= {"timesteps": student.num_timesteps, "bytes": model.nbytes, "teacher_bytes": teacher.nbytes}
    row["student_returns"] = evaluate(integer_player(student.policy), teacher.recipe, **mode).returns.tolist()
    with tempfile.TemporaryDirectory() as folder:
        row |= write_exports(model, folder, args.targets)
        result = verify(folder, teacher.recipe, args.observations, policy=student.policy)
    promised = [difference for difference in result.differences if difference.is_exact]
    row |= {"forms": list(result.files), "not_compared": result.left_out, "holds": result.holds}
    row["values"] = sum(difference.n_values for difference in promised)
    row["differing"] = sum(difference.n_differing for difference in promised)


def distill(teacher: Teacher, args: argparse.Namespace) -> QPDDistiller:
    """
    A student that has learned for a short time.

    :param teacher: its teacher
    :param args: arguments of the command
    """
    is_image = len(teacher.observation_space.shape or ()) == 3
    steps = args.image_steps if is_image else args.steps
    options = {"n_envs": 4} if is_image else {}
    student = QPDDistiller(
        teacher, student_arch="nano", buffer_size=steps, seed=0, check_teacher=False, device="cpu", **options
    )
    return student.learn(steps)


def write_exports(model: IntegerModel, folder: str, targets: Sequence[str]) -> dict[str, Any]:
    """
    Write a student for each target.

    :param model: the student
    :param folder: folder for the files
    :param targets: names of targets
    :return: ``exports``: the targets that took it; ``refused``: the reason of each other one
    """
    exports, refused = [], {}
    for target in targets:
        try:
            export(model, target, folder)
            exports.append(target)
        except ValueError as error:
            refused[target] = str(error)
    return {"exports": exports, "refused": refused}


def has_failed(row: dict[str, Any]) -> bool:
    """Whether a teacher had an error, a value differs where equality is promised, or a file was not compared."""
    return not row.get("holds", False) or bool(row["not_compared"])


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table, and below it what is too long for a cell."""
    print(table_head(COLUMNS.split(", ")))
    for row in rows:
        print("| " + " | ".join(_cells(row)) + " |")
    for row in rows:
        for target, reason in row.get("refused", {}).items():
            print(f"\n{row['teacher']}, {target}: {reason}")
        for reason in row.get("not_compared", ()):
            print(f"\n{row['teacher']}, not compared: {reason}")
        if "error" in row:
            print(f"\n{row['teacher']}, error: {row['error']}")
    print(f"\n{len(rows)} teachers, {sum(map(has_failed, rows))} of them failed")


def _cells(row: dict[str, Any]) -> list[str]:
    """One for each column. Those that an error left out are empty."""
    returns = [f"{np.mean(row[name]):.1f}" if name in row else "" for name in ("teacher_returns", "student_returns")]
    return [
        row["teacher"],
        row.get("env", ""),
        f"{row['load_seconds']:.2f}" if "load_seconds" in row else "",
        *returns,
        f"{row['bytes']:,}" if "bytes" in row else "",
        ", ".join(row.get("exports", ())),
        f"{row['values']:,}" if "values" in row else "",
        "ERROR" if "error" in row else str(row["differing"]),
        f"{row['seconds']:.0f}",
    ]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds run folders, at any depth")
    parser.add_argument(
        "--only", default="*", metavar="PATTERN", help="run folders whose path below FOLDER fits, such as 'ppo/*'"
    )
    parser.add_argument("--steps", type=int, default=3_000, help="of distillation (default: 3000)")
    parser.add_argument(
        "--image-steps", type=int, default=600, help="of distillation where observations are images (default: 600)"
    )
    parser.add_argument("--episodes", type=int, default=3, help="of the teacher and of the student (default: 3)")
    parser.add_argument("--observations", type=int, default=300, help="that every form is given (default: 300)")
    targets = [target for target, file in TARGET_FILES.items() if file]
    parser.add_argument("--targets", nargs="+", default=targets, choices=targets, help="exports to compare (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="rows of JSON are appended to this file")
    args = parser.parse_args()
    runs = find_runs(args.folder, args.only)
    if not runs:
        parser.error(f"expected run folders such as ppo/LunarLander-v2_1 below {args.folder}, none fits {args.only!r}")
    rows = []
    for run in runs:
        start, row = time.perf_counter(), {"teacher": str(run), "versions": versions()}
        try:
            measure(args.folder / run, args, row)
        except Exception as error:  # whatever it is, the other teachers are measured
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        row["seconds"] = time.perf_counter() - start
        add_rows(args.out, row)
        print(f"{run}: {'FAILED' if has_failed(row) else 'ok'}, {row['seconds']:.0f} s", file=sys.stderr, flush=True)
        rows.append(row)
    show(rows)
    return int(any(map(has_failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
