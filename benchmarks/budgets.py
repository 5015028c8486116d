"""
Which widths and bits at equal bytes: what ``student_arch="2kB"`` chooses rests on.

    python benchmarks/budgets.py run TEACHER_FOLDER --bytes 250 500 1000 2000 --timesteps 5000 --out results.jsonl
    python benchmarks/budgets.py table results.jsonl

For each budget and each form of student: the widest student that fits, and its integer return on the validation seeds. A form
is the bits of weights and activations, and the number of hidden layers: ``4 8 2``.
"""

import argparse
from collections import defaultdict

import numpy as np
from command_line import Commands
from tables import add_rows, read_rows, table_head

from sb3_qpd import QPDDistiller, StudentArch, evaluate, load_teacher
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.students.sizes import StudentTask, student_nbytes

FORMS = ["8 8 2", "4 8 2", "4 4 2", "3 8 2", "2 8 2", "8 8 1"]  # bits of weights and activations, hidden layers


def widest(task: StudentTask, n_bytes: int, form: str) -> StudentArch | None:
    """The widest student of a form that fits, ``None`` where none does."""
    weight_bits, activation_bits, n_layers = map(int, form.split())
    found = None
    for units in range(1, 1025):
        arch = StudentArch((units,) * n_layers, weight_bits=weight_bits, activation_bits=activation_bits)
        if student_nbytes(arch, task) > n_bytes:
            return found
        found = arch
    return found


def run(args: argparse.Namespace) -> None:
    teacher = load_teacher(args.teacher)
    head, parts = action_head(teacher.action_space), observation_parts(teacher.observation_space)
    task = StudentTask(parts, int(np.prod(head.shape)) if head.is_box else sum(head.nvec), head.is_box)
    mode = {"deterministic": teacher.recipe.deterministic, "n_episodes": args.episodes, "seed": VALIDATION_SEED}
    theirs = evaluate(teacher, teacher.recipe, **mode).return_mean
    known = {(row["teacher"], row["budget"], row["form"], row["seed"]) for row in read_rows(args.out, missing_ok=True)}
    for n_bytes in args.bytes:
        for form in args.forms:
            arch = widest(task, n_bytes, form)
            for seed in args.seeds if arch is not None else ():
                if (teacher.name, n_bytes, form, seed) in known:
                    continue
                options = {"seed": seed, "check_teacher": False, "device": "cpu"}
                student = QPDDistiller(teacher, student_arch=arch, **options).learn(args.timesteps)
                model = student.to_integer()
                returned = evaluate(model, teacher.recipe, **mode).return_mean
                row = {"teacher": teacher.name, "budget": n_bytes, "form": form, "seed": seed, "timesteps": args.timesteps}
                row |= {"units": arch.hidden[0], "bytes": model.nbytes, "macs": model.macs, "episodes": args.episodes}
                add_rows(args.out, row | {"return": returned, "teacher_return": theirs})
                print(f"{n_bytes} B, {form}: {arch.hidden}, seed {seed}: {returned:.1f} of {theirs:.1f}", flush=True)


def table(args: argparse.Namespace) -> None:
    """Mean return and the worst seed's, one column for each form."""
    rows = defaultdict(list)
    for row in read_rows(*args.results):
        rows[row["teacher"], row["timesteps"], row["budget"], row["teacher_return"]].append(row)
    names = [f"W{w}A{a}, {n} layer{'s' if n > 1 else ''}" for w, a, n in (map(int, form.split()) for form in FORMS)]
    print(table_head(("teacher, steps", "bytes", "its return", *names)))
    for (teacher, timesteps, budget, theirs), of_budget in rows.items():
        cells = []
        for form in FORMS:
            found = [row for row in of_budget if row["form"] == form]
            returns = [row["return"] for row in found]
            cells.append(f"{found[0]['units']}: {np.mean(returns):.0f}, {min(returns):.0f} ({len(found)})" if found else "")
        print(f"| {teacher}, {timesteps:.0f} | {budget} | {theirs:.0f} | {' | '.join(cells)} |")


def main() -> None:
    commands = Commands(__doc__, run, table)
    commands["run"].add_argument("teacher")
    commands["run"].add_argument("--bytes", type=int, nargs="+", required=True)
    commands["run"].add_argument("--forms", nargs="+", default=FORMS)
    commands["run"].add_argument("--timesteps", type=float, required=True)
    commands["run"].add_argument("--episodes", type=int, default=50)
    commands["run"].add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102])
    commands.start()


if __name__ == "__main__":
    main()
