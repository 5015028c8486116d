"""
The two claims of the method, compared at equal steps and gradient samples.

    python benchmarks/transitions.py run TEACHER_FOLDER --seeds 10 --workers 2 --out transitions.jsonl
    python benchmarks/transitions.py table TEACHER_FOLDER transitions.jsonl
    python benchmarks/transitions.py units TEACHER_FOLDER --arch nano --seeds 5

1. A smooth transition from float to low precision against others: `none` + post-training quantization, `scratch`, `abrupt`,
   `blend`, `progressive` and `mixture`, at the widths of `--bits`, each at its best of `--rates` (chosen by the mean score of
   two seeds that are not used again, on validation seeds). Two things steady each of them: step sizes are calibrated when
   precision falls, and the learning rate warms up. `bare` is `abrupt` without both, `bare_blend` is `blend` without both.
   `uncalibrated` and `unwarmed` are `abrupt` without one of them. `centered` is `blend` whose hidden units start with
   a mean of zero before their ReLU (the bias of Salimans and Kingma, Weight Normalization, 2016).
2. The loss for actor and critic together against the actor's alone and against a small share of the critic, with the winner.

Lines already in the file are not run again. ``units`` counts the hidden units that are zero for each of 1,024 observations
before the first update, with the biases of a random start and centered.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import numpy as np
from command_line import Commands, add_options
from tables import add_rows, read_rows, table_head

ARMS = ("none", "scratch", "abrupt", "blend", "progressive", "mixture")
# the transition, and whether it calibrates when precision falls, the learning rate warms up, the units start centered
BARE = {
    "bare": ("abrupt", False, False, False),
    "bare_blend": ("blend", False, False, False),
    "uncalibrated": ("abrupt", False, True, False),
    "unwarmed": ("abrupt", True, False, False),
    "centered": ("blend", True, True, True),
}
CHOICE_SEEDS = (100, 101)
COLLAPSED = 0.5


def hidden_layers(policy: Any) -> list[Any]:
    """The layers of all trunks, in order."""
    return [layer for trunk in policy.features_extractor.trunks for layer in trunk.layers]


@contextmanager
def centered_units(policy: Any) -> Iterator[None]:
    """A context in which each hidden unit's bias is moved, by what the unit sees, to a mean of zero before its ReLU."""

    def center(layer: Any, inputs: Any) -> None:
        weight, bias = layer._for_pixels(layer.weight, layer.bias) if layer.takes_pixels else (layer.weight, layer.bias)
        before = layer._apply_layer(layer.shaped(*inputs), weight, bias)
        layer.bias.data.sub_(before.detach().transpose(0, 1).flatten(1).mean(1))

    hooks = [layer.register_forward_pre_hook(center) for layer in hidden_layers(policy)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def one_run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Distill once and score. A float student is quantized to all widths after training."""
    import torch as th

    import sb3_qpd.distillation.distiller as distilling
    from sb3_qpd import QPDDistiller, evaluate, load_teacher
    from sb3_qpd.distillation.schedules import CosineSchedule
    from sb3_qpd.evaluation.episodes import TEST_SEED, VALIDATION_SEED, integer_player

    transition, calibrates, warms_up, centers = BARE.get(job["arm"], (job["arm"], True, True, False))

    class Distiller(QPDDistiller):
        """Step sizes may stay those of the first update, the learning rate begin without a warm-up, and units centered."""

        def _calibrate(self) -> None:
            if calibrates or not self._is_fitted:
                with centered_units(self.policy) if centers and not self._is_fitted else nullcontext():
                    super()._calibrate()

        def _train(self) -> None:
            unchanged = patch.object(distilling, "warmup_learning_rate", lambda rate, *_: rate)
            with nullcontext() if warms_up else unchanged:
                super()._train()

    th.set_num_threads(1)
    teacher = load_teacher(job["teacher"])
    bits = (32, 32) if job["arm"] == "none" else tuple(job["bits"])
    distiller = Distiller(
        teacher,
        student_arch=job["arch"],
        weight_bits=bits[0],
        activation_bits=bits[1],
        transition=transition,
        learning_rate=CosineSchedule(job["rate"]),
        critic_coef=job["critic_coef"],
        seed=job["seed"],
        check_teacher=False,
        device="cpu",
        **job["options"],
    ).learn(job["timesteps"])
    if job["arm"] == "none":
        students = {tuple(b): distiller.post_training_quantize(*b) for b in job["widths"]} | {(32, 32): distiller}
    else:
        students = {bits: distiller}
    seed = VALIDATION_SEED if job["seed"] in CHOICE_SEEDS else TEST_SEED
    rows = []
    for width, student in students.items():
        player = student if width[0] == 32 else integer_player(student.policy)
        mode = {"n_episodes": job["episodes"], "deterministic": teacher.recipe.deterministic}
        played = evaluate(player, teacher.recipe, seed=seed, **mode)
        # the teacher by its name: a path would be one of this machine
        rows.append({**job, "teacher": teacher.name, "bits": list(width), "return": played.return_mean})
    return rows


def jobs(args: argparse.Namespace, critic_coef: float, arms: tuple[str, ...], rates: Any, seeds: Any) -> list[dict[str, Any]]:
    """List the runs: each rate of ``rates(arm, bits)`` with each seed. ``none`` is trained once for all widths."""
    common = {
        "teacher": args.teacher,
        "arch": args.arch,
        "timesteps": args.timesteps,
        "episodes": args.episodes,
        "widths": args.bits,
        "options": args.options,
    }
    return [
        {**common, "arm": arm, "bits": list(bits), "rate": rate, "seed": seed, "critic_coef": critic_coef}
        for seed in seeds
        for arm in arms
        for bits in (args.bits[:1] if arm == "none" else args.bits)
        for rate in rates(arm, bits)
    ]


def check_teacher(rows: list[dict[str, Any]], teacher: Any) -> None:
    """Refuse rows of another teacher."""
    if others := {row["teacher"] for row in rows} - {teacher.name}:
        raise SystemExit(f"Expected rows of {teacher.name}, got rows of {', '.join(sorted(others))}")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    bits = "all" if row["arm"] == "none" else tuple(row["bits"])
    return (row["arm"], bits, row["rate"], row["seed"], row["critic_coef"], row["timesteps"], str(row.get("options", {})))


def work(todo: list[dict[str, Any]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Do the runs that are not in the file yet, and return all its rows."""
    rows = read_rows(args.out, missing_ok=True)
    done = {_key(row) for row in rows}
    todo = [job for job in todo if _key(job) not in done]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        for i, new in enumerate(pool.map(one_run, todo)):
            rows += new
            add_rows(args.out, *new)
            print(f"{i + 1} of {len(todo)}: {new[0]['arm']} {new[0]['bits']} {new[0]['return']:.1f}", flush=True)
    return rows


def best_rates(rows: list[dict[str, Any]]) -> dict[tuple[str, tuple[int, ...]], float]:
    """The better learning rate of each arm and width, by the choice seeds alone."""
    means: dict[Any, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["seed"] in CHOICE_SEEDS:
            means[row["arm"], tuple(row["bits"])][row["rate"]].append(row["return"])
    return {key: max(by_rate, key=lambda rate: float(np.mean(by_rate[rate]))) for key, by_rate in means.items()}


def run(args: argparse.Namespace) -> None:
    from sb3_qpd import load_teacher

    check_teacher(read_rows(args.out, missing_ok=True), load_teacher(args.teacher))
    arms = tuple(args.arms)
    critic_coef, *others = args.critic_coefs
    if len(args.rates) > 1:
        best = best_rates(work(jobs(args, critic_coef, arms, lambda arm, bits: args.rates, CHOICE_SEEDS), args))
    else:
        best = defaultdict(lambda: args.rates[0])
    seeds = range(args.seeds)

    def chosen(arm: str, bits: Any) -> list[float]:
        return sorted({best[arm, b] for b in args.bits}) if arm == "none" else [best[arm, bits]]

    work(jobs(args, critic_coef, arms, chosen, seeds), args)
    for other in others:
        work(jobs(args, other, (args.winner,), chosen, seeds), args)


def _mean_return(player: Any, teacher: Any, n_episodes: int) -> float:
    from sb3_qpd import evaluate

    return evaluate(player, teacher.recipe, n_episodes=n_episodes, deterministic=teacher.recipe.deterministic).return_mean


def table(args: argparse.Namespace) -> None:
    from sb3_qpd import load_teacher
    from sb3_qpd.evaluation.statistics import bootstrap_means, interval95

    rows = read_rows(*args.results)
    if len({str(row.get("options", {})) for row in rows}) > 1:
        raise SystemExit("The rows have different --options: give the files of one kind at a time")
    best = best_rates(rows)
    teacher = load_teacher(args.teacher)
    check_teacher(rows, teacher)
    high, low = (_mean_return(player, teacher, rows[0]["episodes"]) for player in (teacher, "random"))
    groups: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in rows:
        bits = tuple(row["bits"])
        rate = best.setdefault((row["arm"], bits), row["rate"])  # where there was one rate, none was chosen
        if row["seed"] not in CHOICE_SEEDS and row["rate"] == rate:
            groups[bits, row["arm"], row["critic_coef"]].append((row["return"] - low) / (high - low))
    print(f"Score = (student - random) / (teacher - random); teacher {high:.1f}, random {low:.1f}.\n")
    columns = "bits, transition, critic_coef, learning rate, seeds, mean score, 95 % over seeds, worst, deviation, collapsed"
    print(table_head(columns.split(", ")))
    for (bits, arm, critic), scores in sorted(groups.items(), key=lambda item: (-item[0][0][0], -item[0][0][1], item[0][1:])):
        s = np.array(scores)
        a, b = interval95(bootstrap_means(s))
        width = "float" if bits[0] == 32 else f"W{bits[0]}A{bits[1]}"
        print(
            f"| {width} | {arm} | {critic:g} | {best[arm, bits]:g} | {len(s)} | {s.mean():.3f} | "
            f"{a:.3f} to {b:.3f} | {s.min():.3f} | {s.std():.3f} | {100 * (s < COLLAPSED).mean():.0f} % |"
        )


class FirstUpdate(Exception):
    """Learning has come to its first update."""


def units(args: argparse.Namespace) -> None:
    import torch as th

    from sb3_qpd import QPDDistiller, load_teacher

    class Starting(QPDDistiller):
        def _gradient_step(self, samples: Any) -> None:
            raise FirstUpdate

    teacher = load_teacher(args.teacher)
    print(table_head(("units", "seed", "always zero, each layer")))
    for seed in range(args.seeds):
        student = Starting(teacher, student_arch=args.arch, seed=seed, check_teacher=False, device="cpu")
        with suppress(FirstUpdate):
            student.learn(10 * student.learning_starts)
        policy, outputs = student.policy, []
        observations = student._buffer.sample(1024, np.random.default_rng(0)).observations
        for layer in hidden_layers(policy):
            layer.register_forward_hook(lambda layer, inputs, output, outputs=outputs: outputs.append(output))
        policy.set_training_mode(False)
        for start in ("random", "centered"):
            if start == "centered":
                with centered_units(policy):
                    policy.calibrate(observations)
            outputs.clear()
            with th.no_grad():
                policy.actor_and_value(observations)
            zero = [~(output > 0).transpose(0, 1).flatten(1).any(1) for output in outputs]
            print(f"| {start} | {seed} | {', '.join(f'{int(one.sum())} of {len(one)}' for one in zero)} |", flush=True)


def _width(text: str) -> tuple[int, int]:
    weights, activations = map(int, text.split(","))
    return weights, activations


def main() -> None:
    commands = Commands(__doc__, run, table, units)
    one = commands["run"]
    one.add_argument("teacher")
    one.add_argument("--arch", default="nano")
    one.add_argument("--timesteps", type=float, default=1e4)
    one.add_argument("--episodes", type=int, default=30)
    one.add_argument("--bits", type=_width, nargs="+", default=[(8, 8), (4, 4), (2, 8)], help="such as 8,8 4,4")
    one.add_argument("--arms", nargs="+", default=[*ARMS, *BARE], choices=[*ARMS, *BARE])
    one.add_argument("--rates", type=float, nargs="+", default=[2.5e-2, 5e-2], help="learning rates to choose from")
    one.add_argument("--seeds", type=int, default=10)
    one.add_argument("--workers", type=int, default=2)
    one.add_argument("--winner", default="blend", choices=ARMS, help="transition that runs with each share of the critic")
    add_options(one)
    coefs = "shares of the critic's loss: the first for all arms, the others for --winner alone"
    one.add_argument("--critic-coefs", type=float, nargs="+", default=[0.5, 0.0, 0.05], help=coefs)
    commands["table"].add_argument("teacher")
    commands["units"].add_argument("teacher")
    commands["units"].add_argument("--arch", default="nano")
    commands["units"].add_argument("--seeds", type=int, default=5)
    commands.start()


if __name__ == "__main__":
    main()
