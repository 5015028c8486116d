"""
How ``learn`` scales with environments, threads, the student's size and the buffer's.

    python benchmarks/scaling.py TEACHER_FOLDER --timesteps 5000

One setting at a time is changed. Prints seconds of ``learn``, environment steps and updates a second, the ring, and
the largest resident memory of the process so far. A ring takes memory as it fills: ``--timesteps 1e5 --only 0`` shows that of
a whole run at the defaults.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import resource
from typing import Any

import torch as th
from command_line import make_parser
from tables import table_head

from sb3_qpd import QPDDistiller, load_teacher

SETTINGS: list[dict[str, Any]] = [
    {},
    *({"n_envs": n} for n in (1, 4, 64)),
    {"threads": 1},
    *({"student_arch": arch} for arch in ("nano", "small", "medium")),
    *({"buffer_size": size} for size in (10_000, 1_000_000)),
    {"vec_env": "subproc"},
]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--timesteps", type=float, default=5000)
    parser.add_argument("--only", type=int, nargs="+", default=range(len(SETTINGS)), help="rows of the table")
    args = parser.parse_args()
    teacher = load_teacher(args.teacher, device="cpu")
    print(
        table_head(("setting", "seconds", "steps a second", "updates a second", "ring, MiB", "largest resident so far, MiB"))
    )
    for row in args.only:
        options = {"student_arch": "tiny", "n_envs": 16, "threads": 2, **SETTINGS[row]}
        th.set_num_threads(options.pop("threads"))
        distiller = QPDDistiller(teacher, env=teacher.recipe, seed=0, device="cpu", check_teacher=False, **options)
        distiller.learn(args.timesteps)
        seconds, ring = distiller.seconds_learning, distiller._buffer.nbytes / 2**20
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        speed = f"{distiller.num_timesteps / seconds:.0f} | {distiller._n_updates / seconds:.1f}"
        name = SETTINGS[row] or "the defaults, 2 threads"
        print(f"| {name} | {seconds:.1f} | {speed} | {ring:.0f} | {resident:.0f} |", flush=True)
        distiller.env.close()


if __name__ == "__main__":
    main()
