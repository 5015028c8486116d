"""
Where the time of ``learn`` goes: its parts alone, all in one run, and the whole.

    python benchmarks/throughput.py TEACHER_FOLDER --timesteps 5000 --repeats 5 --threads 2 [--device cuda] [--parts]

Prints the wall time of each part for a vectorized step (stepping, the teacher's answers, the student's acting) and for an
update (drawing its batch included; at each stage of the transition, and of the same student in float). Then ``predict`` of the
student beside its teacher's, on the same observations in turns, and inside SB3's ``EvalCallback``. Then the time of ``learn``
beside the sum of its parts, with the usual gradient samples and with one a step, and the speed of raw stepping; ``--parts``
leaves ``learn`` out. Medians of ``--repeats`` rounds; a round measures each part and one ``learn`` of each kind, so that a
busy machine slows all of them down. Vectors learn on one thread whatever ``--threads`` says, and so are their parts measured.
On a GPU every time is taken when all that was asked of it is done.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from command_line import make_parser
from stable_baselines3.common.evaluation import evaluate_policy
from timing import add_device, now

from sb3_qpd import QPDDistiller, load_teacher
from sb3_qpd.distillation.schedules import transition_end
from sb3_qpd.students.transitions import get_transition
from sb3_qpd.teachers.teacher import Teacher


def measure(parts: dict[str, Callable[[], Any]], calls: int, device: str) -> dict[str, float]:
    """Measure each part: milliseconds of one call."""
    ms = {}
    for name, part in parts.items():
        start = now(device)
        for _ in range(calls):
            part()
        ms[name] = (now(device) - start) / calls * 1e3
    return ms


def learned(teacher: Teacher, args: argparse.Namespace, **options: Any) -> tuple[QPDDistiller, float]:
    """Train a distiller, and return it with the seconds of ``learn``."""
    distiller = QPDDistiller(
        teacher, env=teacher.recipe, student_arch=args.arch, seed=0, device=args.device, check_teacher=False, **options
    )
    start = now(args.device)
    return distiller.learn(args.timesteps), now(args.device) - start


def observation_parts(distiller: QPDDistiller) -> dict[str, Callable[[], Any]]:
    """The parts of ``learn`` as functions, on what it has collected."""
    env, teacher, policy = distiller.env, distiller.teacher, distiller.policy
    observations, rng = distiller._last_obs, np.random.default_rng(0)
    actions = [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(16)]
    targets = teacher(observations)
    distiller._turns.teacher_acts = lambda: np.zeros(env.num_envs, bool)

    def update(progress: float) -> None:
        policy.set_precision(get_transition(distiller.transition), progress)
        policy.set_training_mode(True)
        distiller._gradient_step(distiller._buffer.sample(distiller.batch_size))

    return {
        "stepping": lambda: env.step(actions[rng.integers(16)]),
        "teacher": lambda: teacher(observations),
        "acting": lambda: distiller._act(targets),
        "update, float stage": lambda: update(0.0),
        "update, half way": lambda: update(0.5),
        "update, target bits": lambda: update(1.0),
    }


def measure_predict(distiller: QPDDistiller, calls: int) -> dict[str, tuple[float, float]]:
    """Measure ``predict`` of student and teacher in turns, on the same observations: median milliseconds of both."""
    players, found = (distiller.policy, distiller.teacher.policy), {}
    for n in (1, 4, 16):
        observations = distiller._last_obs
        observations = {key: x[:n] for key, x in observations.items()} if isinstance(observations, dict) else observations[:n]
        given = observations, distiller.teacher.normalize(observations)
        for deterministic in (True, False):
            times: list[list[float]] = [[], []]
            for _ in range(10 * calls):
                for player, x, of_player in zip(players, given, times, strict=True):
                    start = time.perf_counter()
                    player.predict(x, deterministic=deterministic)
                    of_player.append(1e3 * (time.perf_counter() - start))
            mode = "deterministic" if deterministic else "sampled"
            found[f"{n} observations, {mode}"] = tuple(float(np.median(one)) for one in times)
    return found


def measure_callback(distiller: QPDDistiller) -> tuple[float, float]:
    """Measure a step of the episode that SB3's ``EvalCallback`` plays, with student and teacher: milliseconds of both."""
    recipe, found = distiller.teacher.recipe, []
    for model in (distiller.policy, distiller.teacher):
        env = recipe.make_vec_env(1, seed=0, training=False)
        start = time.perf_counter()
        _, lengths = evaluate_policy(model, env, 1, deterministic=recipe.deterministic, return_episode_rewards=True)
        found.append(1e3 * (time.perf_counter() - start) / sum(lengths))
        env.close()
    return found[0], found[1]


def update_ms(ms: dict[str, float], distiller: QPDDistiller) -> float:
    """Mean milliseconds of an update over the transition."""
    start, steps = distiller.transition_start, distiller.transition_steps
    end = transition_end(start, distiller.transition_end, steps, distiller._total_timesteps)
    stages = {"update, float stage": start, "update, half way": end - start, "update, target bits": 1 - end}
    return sum(share * ms[stage] for stage, share in stages.items())


def report(rounds: list[dict[str, Any]], distiller: QPDDistiller, args: argparse.Namespace) -> None:
    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return float(np.median([of(one) for one in rounds]))

    def parts(ms: dict[str, Any], n_updates: int) -> float:
        steps = distiller.num_timesteps / n_envs * (ms["stepping"] + ms["teacher"] + ms["acting"])
        return (steps + n_updates * update_ms(ms, distiller)) / 1e3

    n_envs, n_steps = distiller.n_envs, distiller.num_timesteps
    device = th.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{device}, {args.threads} threads, {n_envs} environments, {distiller.batch_size} samples an update, ", end="")
    print(f"{n_steps} steps, medians of {len(rounds)}\n")
    print("| part | ms |\n|---|---|")
    timed = [name for name, value in rounds[0].items() if isinstance(value, float)]
    print("\n".join(f"| {name} | {median(lambda ms, name=name: ms[name]):.2f} |" for name in timed))
    raw = median(lambda ms: 1e3 * n_envs / ms["stepping"])
    with_teacher = median(lambda ms: 1e3 * n_envs / (ms["stepping"] + ms["teacher"]))
    print(f"\nraw stepping {raw:.0f} steps a second, with the teacher {with_teacher:.0f}")
    for kind in [name for name in rounds[0] if name.startswith("learn")]:
        seconds, updates = median(lambda ms, kind=kind: ms[kind][0]), rounds[0][kind][1]
        share = median(lambda ms, kind=kind: n_steps / ms[kind][0] / (1e3 * n_envs / ms["stepping"]))
        ratio = median(lambda ms, kind=kind: ms[kind][0] / parts(ms, ms[kind][1]))
        print(f"{kind}: {seconds:.1f} s, {ratio:.2f} times the sum of its parts, ", end="")
        print(f"{n_steps / seconds:.0f} environment steps ({100 * share:.0f} % of raw stepping) ", end="")
        print(f"and {updates / seconds:.1f} updates a second")
    for name in rounds[0]:
        if name.startswith("predict"):
            student, teacher = (median(lambda ms, name=name, i=i: ms[name][i]) for i in (0, 1))
            ratio = median(lambda ms, name=name: ms[name][0] / ms[name][1])
            print(f"{name}: student {student:.3f} ms, teacher {teacher:.3f} ms, ratio {ratio:.2f}")
    quantized = median(lambda ms: update_ms(ms, distiller) / ms["update, a float student"])
    at_target = median(lambda ms: ms["update, target bits"] / ms["update, a float student"])
    print(f"an update takes {quantized:.2f} times a float student's, {at_target:.2f} times at the target bits")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--arch", default="tiny")
    parser.add_argument("--timesteps", type=float, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", action="store_true", help="no run of learn in the rounds")
    add_device(parser)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    teacher = load_teacher(args.teacher, device=args.device)
    (distiller, _), (as_float, _) = learned(teacher, args), learned(teacher, args, weight_bits=32, activation_bits=32)
    parts = observation_parts(distiller)
    parts["update, a float student"] = observation_parts(as_float)["update, half way"]
    one_sample = {"gradient_steps": 1 / int(distiller.batch_size)}
    rounds = []
    for _ in range(args.repeats):
        th.set_num_threads(args.threads if distiller._has_images else 1)
        measure(parts, 1, args.device)
        one: dict[str, Any] = measure(parts, args.calls, args.device)
        one |= {f"predict, {name}": ms for name, ms in measure_predict(distiller, args.calls).items()}
        one["predict in EvalCallback, a step"] = measure_callback(distiller)
        th.set_num_threads(args.threads)
        for kind, options in () if args.parts else (("learn", {}), ("learn, one sample a step", one_sample)):
            learner, seconds = learned(teacher, args, **options)
            one[kind] = seconds, learner._n_updates
            learner.env.close()
        rounds.append(one)
        print(one, flush=True)
    report(rounds, distiller, args)


if __name__ == "__main__":
    main()
