"""
Distill teachers with several seeds and say whether their integer students are as good.

    python benchmarks/main_table.py run TEACHER_FOLDER --arch tiny --bits 8 8 --timesteps 1e5 --seeds 0 1 2 --episodes 300 \\
        --out results.jsonl
    python benchmarks/main_table.py table results.jsonl
    python benchmarks/main_table.py teacher TEACHER_FOLDER --temperature 0.4 --episodes 100 --out teachers.jsonl

``run`` adds one line of JSON for each seed, ``teacher`` one for a teacher. ``table`` prints the rows of ``run`` as Markdown,
with intervals over seeds and episodes. The students are scored on the test seeds, in the mode that RL Zoo uses (sampled for
Atari, deterministic elsewhere). A ``learning_rate`` of ``--options`` falls along a cosine. ``teacher`` plays the teacher
itself with sampled actions at another temperature: the target of a student that is taught to play sharper.
"""

import argparse
import ast
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from command_line import Commands, add_options, add_student
from tables import add_rows, read_rows, table_head

from sb3_qpd import QPDDistiller, Teacher, compare, evaluate, load_student, load_teacher
from sb3_qpd.distillation.schedules import cosine_of
from sb3_qpd.evaluation.cache import play_once
from sb3_qpd.evaluation.episodes import TEST_SEED, VALIDATION_SEED, integer_player
from sb3_qpd.evaluation.statistics import bootstrap_means, bootstrap_over_seeds, interval95, verdict_of


def run(args: argparse.Namespace) -> None:
    teacher = load_teacher(args.teacher)
    mode = {"deterministic": teacher.recipe.deterministic, "n_episodes": args.episodes}
    mode["seed"] = VALIDATION_SEED if args.validation else TEST_SEED
    theirs, chance = (
        play_once(player, teacher.recipe, mode, partial(evaluate, player, teacher.recipe, **mode))
        for player in (teacher, "random")
    )
    for seed in args.seeds:
        name = f"{teacher.name.replace('/', '-')}-{args.label or args.arch}-W{args.bits[0]}A{args.bits[1]}-{seed}.zip"
        student = load_student(args.again / name) if args.again else _distill(teacher, seed, args)
        if args.save is not None:
            args.save.mkdir(parents=True, exist_ok=True)
            student.save(args.save / name)
        model = student.policy.to_integer()
        result = evaluate(integer_player(student.policy), teacher.recipe, **mode)
        comparison = compare(result, theirs, chance)
        row = {
            "label": args.label,
            "teacher": teacher.name,
            "arch": args.arch,
            "bits": args.bits,
            "options": args.options,
            "timesteps": args.timesteps,
            "seed": seed,
            "episodes": args.episodes,
            "validation": args.validation,
            "bytes": model.nbytes,
            "percent": 100 * model.nbytes / teacher.nbytes,
            "seconds": student.seconds_learning,
            "returns": result.returns.tolist(),
            "teacher_returns": theirs.returns.tolist(),
            "random_mean": chance.return_mean,
            "margin": comparison.margin,
            "verdict": comparison.verdict,
            "score": comparison.score,
        }
        add_rows(args.out, row)
        print(
            f"{teacher.name} {args.label} {args.arch} W{args.bits[0]}A{args.bits[1]} seed {seed}: {result.return_mean:.1f} "
            f"(teacher {theirs.return_mean:.1f}), {comparison.verdict}, {model.nbytes} B, {student.seconds_learning:.0f} s",
            flush=True,
        )


def _distill(teacher: Teacher, seed: int, args: argparse.Namespace) -> QPDDistiller:
    """Train one student."""
    arch: Any = ast.literal_eval(args.arch) if args.arch.startswith("{") else args.arch
    rate = args.options.get("learning_rate")
    schedule = {} if rate is None else {"learning_rate": cosine_of(str(rate))}
    return QPDDistiller(
        teacher,
        student_arch=arch,
        weight_bits=args.bits[0],
        activation_bits=args.bits[1],
        seed=seed,
        check_teacher=False,
        **{**args.options, **schedule},
    ).learn(args.timesteps)


def table(args: argparse.Namespace) -> None:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(*args.results):
        key = (row["teacher"], row["label"], row["arch"], tuple(row["bits"]), row["timesteps"], str(row["options"]))
        groups[key].append(row)
    columns = "teacher, student, bits, bytes (% of actor), steps, teacher's return, student's (each seed), "
    columns += "difference (95 %), margin, verdict, score, seconds"
    print(table_head(columns.split(", ")))
    for (name, label, arch, bits, steps, _), rows in sorted(groups.items()):
        theirs = np.array(rows[0]["teacher_returns"])
        differences = [np.array(row["returns"]) - np.array(row["teacher_returns"]) for row in rows]
        low, high = bootstrap_over_seeds(differences)
        margin = rows[0]["margin"]
        # the teacher's episodes are the same for every seed; the random policy's spread is not in the rows
        lead, lead_ci95 = theirs.mean() - rows[0]["random_mean"], interval95(bootstrap_means(theirs))
        overall = verdict_of((low, high), margin, lead=lead, lead_ci95=lead_ci95, n_episodes=len(theirs))
        means = ", ".join(f"{np.mean(row['returns']):.1f}" for row in rows)
        verdicts = (
            "/".join(row["verdict"] for row in rows) if len({row["verdict"] for row in rows}) > 1 else rows[0]["verdict"]
        )
        score = np.mean([row["score"] for row in rows])
        print(
            f"| {name} | {label or arch} | W{bits[0]}A{bits[1]} | {rows[0]['bytes']} ({rows[0]['percent']:.2f}) | {steps:g} | "
            f"{theirs.mean():.1f} | {means} | {low:+.1f} to {high:+.1f} | {margin:.1f} | each {verdicts}, all {overall} | "
            f"{score:.3f} | {np.median([row['seconds'] for row in rows]):.0f} |"
        )


def teacher(args: argparse.Namespace) -> None:
    player = load_teacher(args.teacher)
    with th.no_grad():  # logits / temperature: the last layer computes them
        for parameter in player.policy.action_net.parameters():
            parameter /= args.temperature
    result = evaluate(player, player.recipe, n_episodes=args.episodes, deterministic=False, seed=TEST_SEED)
    add_rows(
        args.out,
        {
            "teacher": player.name,
            "label": args.label,
            "temperature": args.temperature,
            "episodes": args.episodes,
            "returns": result.returns.tolist(),
        },
    )
    low, high = result.ci95
    print(f"{player.name} at temperature {args.temperature:g}: {result.return_mean:.1f} ({low:.1f} to {high:.1f})")


def main() -> None:
    commands = Commands(__doc__, run, table, teacher)
    one = commands["run"]
    add_student(one, arch="tiny", timesteps=1e5, seeds=[0, 1, 2])
    one.add_argument("--episodes", type=int, default=100)
    add_options(one)
    one.add_argument("--label", default="")
    one.add_argument("--validation", action="store_true", help="score on the validation seeds (for choosing)")
    one.add_argument("--save", type=Path, help="folder that keeps the students")
    one.add_argument("--again", type=Path, help="folder of students that --save kept: score them once more, and train none")
    sharper = commands["teacher"]
    sharper.add_argument("teacher", help="an actor-critic teacher with discrete actions")
    sharper.add_argument("--temperature", type=float, default=0.4)
    sharper.add_argument("--episodes", type=int, default=100)
    sharper.add_argument("--label", default="")
    sharper.add_argument("--out", type=Path, required=True)
    commands.start()


if __name__ == "__main__":
    main()
