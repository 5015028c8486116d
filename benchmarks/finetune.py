"""
Fine-tuning of distilled students with stock PPO: what it gains on top of distillation, and whether the distilled value head
helps.

    python benchmarks/finetune.py distill TEACHER_FOLDER --arch nano --timesteps 1e5 --seeds 0 1 2 --out students
    python benchmarks/finetune.py run students/*.zip --env LunarLander-v3 --heads kept fresh warmed --timesteps 3e5 \\
        --episodes 300 --out finetune.jsonl
    python benchmarks/finetune.py table finetune.jsonl

``distill`` makes the students, one for each seed. ``run`` continues each with PPO at the precision that is deployed, once for
each kind of value head, and adds a line of JSON. ``kept`` is the distilled head. ``fresh`` has new weights in the same units.
``warmed`` is the distilled head, which learns alone for the first updates. The integers play the same test episodes before and
after. Nothing is chosen on these episodes: PPO stops after its steps. gamma must be the teacher's, since its values are
discounted by it.
"""

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from command_line import Commands, add_options, add_student
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from tables import add_rows, read_rows, table_head
from torch import nn

from sb3_qpd import EnvRecipe, QPDDistiller, evaluate, load_teacher, make_recipe
from sb3_qpd.envs.recipe import ATARI_WRAPPER
from sb3_qpd.evaluation.episodes import TEST_SEED, VALIDATION_SEED
from sb3_qpd.evaluation.statistics import bootstrap_over_seeds
from sb3_qpd.students.policies import QuantActorCriticPolicy

# RL Zoo's PPO for LunarLander and for Atari, but for the learning rate
VECTORS = {"n_steps": 1024, "batch_size": 64, "n_epochs": 4, "gamma": 0.999, "gae_lambda": 0.98, "ent_coef": 0.0}
ATARI = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
    "clip_range": 0.1,
}
MODES = ("deterministic", "sampled")


def distill(args: argparse.Namespace) -> None:
    teacher = load_teacher(args.teacher)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        bits = {"weight_bits": args.bits[0], "activation_bits": args.bits[1]}
        student = QPDDistiller(teacher, student_arch=args.arch, **bits, seed=seed, check_teacher=False, **args.options)
        student.learn(args.timesteps)
        name = f"{teacher.name.replace('/', '-')}-{args.arch}-W{args.bits[0]}A{args.bits[1]}-{seed}.zip"
        student.save(args.out / name)
        print(args.out / name, flush=True)


def make_env(recipe: EnvRecipe, n_envs: int, seed: int) -> VecEnv:
    """The environment, for Atari with the rewards and episodes that its teachers learned from."""
    learned_from = {"terminal_on_life_loss": True, "clip_reward": True}
    wrappers = tuple(
        (name, {**learned_from, **kwargs} if name == ATARI_WRAPPER else kwargs) for name, kwargs in recipe.effective_wrappers
    )
    return replace(recipe, env_wrappers=wrappers).make_vec_env(n_envs, seed)


def fine_tune(student: QPDDistiller, recipe: EnvRecipe, head: str, args: argparse.Namespace) -> PPO:
    settings: dict[str, Any] = {**(ATARI if recipe.is_atari else VECTORS), "learning_rate": args.learning_rate}
    if not args.raw_value_loss:
        # values are in units of return: their squared error would drown the actor's loss in the trunk that they share
        settings["vf_coef"] = 0.5 / float(student.policy.value_net.std) ** 2
    env = make_env(recipe, args.n_envs, student.seed or 0)
    policy_kwargs = student.policy_kwargs
    ppo = PPO(type(student.policy), env, policy_kwargs=policy_kwargs, seed=student.seed, device=args.device, **settings)
    ppo.policy.load_state_dict(student.policy.state_dict())
    value_net = ppo.policy.value_net
    assert isinstance(value_net, nn.Module)
    if head == "fresh":
        nn.init.orthogonal_(value_net.weight, gain=1.0)
        nn.init.zeros_(value_net.bias)
    left = int(args.timesteps)
    if head == "warmed":
        alone = args.warm_updates * settings["n_steps"] * args.n_envs
        left -= alone
        if left <= 0:
            raise SystemExit(
                f"Nothing is left after {alone} steps of the value head alone: take more --timesteps or fewer --warm-updates"
            )
        learn_alone(ppo, value_net, alone)
    ppo.learn(left)
    env.close()
    return ppo


def learn_alone(ppo: PPO, head: nn.Module, timesteps: int) -> None:
    others = {*ppo.policy.parameters()} - {*head.parameters()}
    learning = [parameter for parameter in others if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    ppo.learn(timesteps)
    for parameter in learning:
        parameter.requires_grad_(True)


def play(policy: QuantActorCriticPolicy, recipe: EnvRecipe, args: argparse.Namespace) -> dict[str, list[float]]:
    """Play in both modes: PPO improves the sampled actions, and the most probable ones may get worse."""
    games = {"n_episodes": args.episodes, "seed": VALIDATION_SEED if args.validation else TEST_SEED}
    player = policy if recipe.is_atari else policy.to_integer()  # the same bits
    return {mode: evaluate(player, recipe, **games, deterministic=mode == MODES[0]).returns.tolist() for mode in args.modes}


def run(args: argparse.Namespace) -> None:
    recipe = make_recipe(args.env)
    for path in args.students:
        student = QPDDistiller.load(path, device=args.device)
        before = play(student.policy, recipe, args)
        for head in args.heads:
            ppo = fine_tune(student, recipe, head, args)
            after = play(ppo.policy, recipe, args)
            if args.save is not None:
                ppo.save(args.save / f"{path.stem}-{head}.zip")
            settings = {name: getattr(args, name) for name in ("learning_rate", "timesteps", "raw_value_loss")}
            row = {"student": path.stem, "seed": student.seed, "head": head, **settings}
            add_rows(args.out, row | {"bytes": ppo.policy.to_integer().nbytes, "before": before, "after": after})
            for mode in args.modes:
                print(f"{path.stem} {head} {mode}: {np.mean(before[mode]):.1f} -> {np.mean(after[mode]):.1f}", flush=True)


def table(args: argparse.Namespace) -> None:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(*args.results):
        for mode in row["before"]:
            key = (row["student"].rpartition("-")[0], mode, row["timesteps"], row["learning_rate"], row["raw_value_loss"])
            groups[(*key, row["head"])].append(row)
    columns = (
        "student",
        "actions",
        "steps",
        "learning rate",
        "vf_coef",
        "value head",
        "before, each seed",
        "after",
        "gain, 95 %",
    )
    print(table_head(columns))
    for (name, mode, steps, rate, raw, head), rows in sorted(groups.items()):
        low, high = bootstrap_over_seeds([np.array(row["after"][mode]) - np.array(row["before"][mode]) for row in rows])
        before, after = (", ".join(f"{np.mean(row[when][mode]):.1f}" for row in rows) for when in ("before", "after"))
        coef = "0.5" if raw else "0.5 / std²"
        print(f"| {name} | {mode} | {steps:g} | {rate:g} | {coef} | {head} | {before} | {after} | {low:+.1f} to {high:+.1f} |")


def main() -> None:
    commands = Commands(__doc__, distill, run, table)
    add_student(commands["distill"], arch="nano", timesteps=1e5, seeds=[0, 1, 2, 3, 4])
    add_options(commands["distill"])
    commands["distill"].add_argument("--out", type=Path, default=Path("out/students"))
    one = commands["run"]
    one.add_argument("students", type=Path, nargs="+")
    one.add_argument("--env", required=True)
    one.add_argument("--heads", nargs="+", default=["kept", "fresh"], choices=["kept", "fresh", "warmed"])
    one.add_argument("--warm-updates", type=int, default=10, help="rollouts in which the value head learns alone")
    one.add_argument("--timesteps", type=float, default=3e5)
    one.add_argument("--learning-rate", type=float, default=1e-4)
    one.add_argument("--n-envs", type=int, default=16)
    one.add_argument("--episodes", type=int, default=300)
    one.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="of the actions that are scored")
    one.add_argument("--raw-value-loss", action="store_true", help="SB3's vf_coef of 0.5, whatever the values' units")
    one.add_argument("--validation", action="store_true", help="episodes to choose a learning rate on, instead of the test's")
    one.add_argument("--device", default="cpu")
    one.add_argument("--save", type=Path, help="folder that keeps the fine-tuned students")
    commands.start()


if __name__ == "__main__":
    main()
