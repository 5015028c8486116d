"""
Wall time and environment steps until the integer student is non-inferior to its teacher.

    python benchmarks/time_to_teacher.py TEACHER_FOLDER --steps 3e4 6e4 1e5 2e5 --episodes 100 --threads 2 [--device cuda]

A schedule needs to know its end, so each number of steps is a run of its own, in order, until one is non-inferior on the
validation seeds. Beside it: the time that stepping and the teacher alone take for 1e6 steps, from a short measurement.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


import torch as th
from command_line import make_parser
from timing import add_device, now

from sb3_qpd import QPDDistiller, compare, evaluate, load_teacher
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.teachers.teacher import Teacher


def bound(teacher: Teacher, device: str, n_steps: int = 200) -> float:
    """Measure the seconds that stepping and labelling take for 1e6 environment steps."""
    env = teacher.recipe.make_vec_env(16, seed=0)
    observations = env.reset()
    start = now(device)
    for _ in range(n_steps):
        targets = teacher(observations)
        actions = teacher.sample(targets).reshape(16, *env.action_space.shape)
        observations, *_ = env.step(actions)
    seconds = now(device) - start
    env.close()
    return seconds / (16 * n_steps) * 1e6


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--arch", default="tiny")
    parser.add_argument("--steps", type=float, nargs="+", default=[3e4, 6e4, 1e5, 2e5])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    add_device(parser)
    args = parser.parse_args()
    teacher = load_teacher(args.teacher, device=args.device)
    th.set_num_threads(args.threads if teacher.recipe.is_atari else 1)  # as learn does: vectors want one
    mode = {"n_episodes": args.episodes, "deterministic": teacher.recipe.deterministic, "seed": VALIDATION_SEED}
    theirs, chance = evaluate(teacher, teacher.recipe, **mode), evaluate("random", teacher.recipe, **mode)
    print(f"stepping and teacher alone, 1e6 steps: {bound(teacher, args.device):.0f} s", flush=True)
    for steps in args.steps:
        distiller = QPDDistiller(
            teacher, teacher.recipe, student_arch=args.arch, seed=args.seed, device=args.device, check_teacher=False
        )
        start = now(args.device)
        distiller.learn(steps)
        seconds = now(args.device) - start
        student = distiller if teacher.recipe.is_atari else distiller.policy.to_integer()  # the same bits
        result = evaluate(student, teacher.recipe, **mode)
        verdict = compare(result, theirs, chance).verdict
        returns = f"return {result.return_mean:.1f} of {theirs.return_mean:.1f}"
        print(f"{steps:g} steps, {seconds:.0f} s: {returns}, {verdict}", flush=True)
        if verdict == "non_inferior":
            break


if __name__ == "__main__":
    main()
