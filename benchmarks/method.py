"""
What single choices of the method do, each against the defaults, at equal environment steps.

    python benchmarks/method.py run TEACHER_FOLDER --seeds 5 --out method.jsonl
    python benchmarks/method.py table method.jsonl

Every variant changes one thing. Returns are of the integer student on the validation seeds: this is for choosing defaults.
Lines already in the file are not run again.
"""

import argparse
from collections import defaultdict
from typing import Any

import numpy as np
import torch as th
from command_line import Commands, add_student
from tables import add_rows, read_rows, table_head

from sb3_qpd import QPDDistiller, evaluate, load_teacher
from sb3_qpd.distillation import losses
from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.schedules import CosineSchedule
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.evaluation.statistics import bootstrap_means, interval95

RATE, BATCH_SIZE = 5e-2, 256  # the distiller's defaults for vectors
ADAM = {"policy_kwargs": {"optimizer_class": th.optim.Adam}}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "4 samples a step": {"gradient_steps": 4 / BATCH_SIZE},
    "8 samples a step": {"gradient_steps": 8 / BATCH_SIZE},
    "32 samples a step": {"gradient_steps": 32 / BATCH_SIZE},
    "constant learning rate": {"learning_rate": RATE},
    "constant, a quarter of the rate": {"learning_rate": RATE / 4},
    "teacher's first steps off": {"roll_in": False},
    "student acts alone": {"beta": 0.0},
    "half the episodes the teacher's": {"beta": 0.5},
    "teacher acts alone": {"beta": 1.0},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 0.3": {"temperature": 0.3},
    "samples weighted by the teacher's certainty": {"weighted": True},
    "actor's loss alone": {"critic_coef": 0.0},
    "Adam at 4e-3": {**ADAM, "learning_rate": CosineSchedule(4e-3)},
    "Adam at 8e-3": {**ADAM, "learning_rate": CosineSchedule(8e-3)},
}


class WeightedDistiller(QPDDistiller):
    """Weights samples by the teacher's certainty: 0.1 + 1 - H / log|A|, normalized to mean one (after Bastani et al. 2018)."""

    def _loss(self, samples: DistillationSamples) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
        actor, value = self.policy.actor_and_value(samples.observations)
        assert samples.targets.value is not None
        entropy = th.distributions.Categorical(logits=samples.targets.actor).entropy()
        weight = 1.1 - entropy / np.log(actor.shape[1])
        actor_loss = losses.categorical_kl(actor, samples.targets.actor)
        critic_loss = losses.value_error(value, samples.targets.value, std=self.policy.value_net.std)
        loss = losses.actor_critic(actor_loss, critic_loss, critic_coef=self.critic_coef)
        return (loss * weight / weight.mean()).mean(), (actor_loss.detach(), critic_loss.detach())


def run(args: argparse.Namespace) -> None:
    th.set_num_threads(1)
    teacher = load_teacher(args.teacher)
    done = {(row["variant"], row["seed"]) for row in read_rows(args.out, missing_ok=True)}
    for seed in range(100, 100 + args.seeds):
        for variant, changes in VARIANTS.items():
            if (variant, seed) in done:
                continue
            options = {"learning_rate": CosineSchedule(RATE), **changes}
            distiller = WeightedDistiller if options.pop("weighted", False) else QPDDistiller
            bits = {"weight_bits": args.bits[0], "activation_bits": args.bits[1]}
            student = distiller(teacher, student_arch=args.arch, seed=seed, check_teacher=False, **bits, **options)
            model = student.learn(args.timesteps).policy.to_integer()
            played = evaluate(model, teacher.recipe, n_episodes=args.episodes, seed=VALIDATION_SEED)
            row = {"teacher": teacher.name, "arch": args.arch, "bits": args.bits, "timesteps": args.timesteps}
            row |= {"variant": variant, "seed": seed, "return": played.return_mean, "seconds": student.seconds_learning}
            add_rows(args.out, row)
            print(f"{variant}, seed {seed}: {played.return_mean:.1f}, {student.seconds_learning:.0f} s", flush=True)


def table(args: argparse.Namespace) -> None:
    groups: dict[str, dict[int, float]] = defaultdict(dict)
    seconds: dict[str, list[float]] = defaultdict(list)
    for row in read_rows(*args.results):
        groups[row["variant"]][row["seed"]] = row["return"]
        seconds[row["variant"]].append(row["seconds"])
    base = groups["defaults"]
    last = ("difference from the defaults, 95 % over seeds", "median seconds")
    print(table_head(("variant", "seeds", "mean return", "worst", *last)))
    for variant in VARIANTS:
        if not (returns := groups.get(variant)):
            continue
        difference = np.array([returns[seed] - base[seed] for seed in returns])
        low, high = interval95(bootstrap_means(difference))
        print(
            f"| {variant} | {len(returns)} | {np.mean(list(returns.values())):.1f} | {min(returns.values()):.1f} | "
            f"{difference.mean():+.1f} ({low:+.1f} to {high:+.1f}) | {np.median(seconds[variant]):.0f} |"
        )


def main() -> None:
    commands = Commands(__doc__, run, table)
    one = commands["run"]
    add_student(one, arch="nano", timesteps=1e4)
    one.add_argument("--episodes", type=int, default=50)
    one.add_argument("--seeds", type=int, default=5, help="how many")
    commands.start()


if __name__ == "__main__":
    main()
