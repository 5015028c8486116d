"""
QPDDistiller against what one would do without it: same teacher, environment, student, steps and gradient samples.

    python benchmarks/peers.py TEACHER_FOLDER --timesteps 1e5 --episodes 64 --who qpd loop loop16 --threads 2
    python benchmarks/peers.py TEACHER_FOLDER --who qpd loop loop16 bc dagger bc256 dagger256 --threads 1 \\
        --imitation-python .venv-imitation/bin/python --out peers.jsonl
    python benchmarks/peers.py TEACHER_FOLDER --table peers.jsonl

``loop`` is SB3 alone: ``make_atari_env`` (``make_vec_env`` for vectors), a policy of SB3's own with the student's layers that
acts, rollouts of 128 steps labelled by the teacher in float32, minibatches with a KL (Box: Huber) loss, no buffer of old
observations. ``loop`` sees each rollout once, ``loop16`` sixteen times (as many gradient samples as ``qpd``). ``bc`` and
``dagger`` are those of the ``imitation`` package (``imitation_peer.py``), for vectors, with sixteen gradient samples a step in
its batches of 32, and ``bc256`` and ``dagger256`` in batches of 256, which ``qpd`` has too. The package needs gymnasium 0.29
and stable-baselines3 2.2, hence a virtual environment of its own, where the environment has the id that the teacher was
trained under:

    python3.11 -m venv .venv-imitation
    .venv-imitation/bin/pip install -r benchmarks/imitation-requirements.txt

All are scored here on the same episodes, ``qpd``'s student in integers, the others, which are float, as they are. One line of
JSON for each: wall seconds, processor seconds, returns; ``--out`` appends it to a file, too.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import argparse
import itertools
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from command_line import make_parser
from gymnasium import spaces
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage
from tables import add_rows, read_rows, table_head
from torch import nn

from sb3_qpd import QPDDistiller, evaluate, load_teacher
from sb3_qpd.distillation import losses
from sb3_qpd.distillation.distiller import descend
from sb3_qpd.evaluation.episodes import VALIDATION_SEED
from sb3_qpd.students.architectures import StudentArch, make_arch
from sb3_qpd.teachers.teacher import Teacher

N_ENVS, ROLLOUT, SAMPLES_PER_STEP = 16, 128, 16
# batch and learning rate: imitation's own, and the batch of qpd with four times the rate (not tuned)
IMITATION = {"bc": (32, 1e-3), "dagger": (32, 1e-3), "bc256": (256, 4e-3), "dagger256": (256, 4e-3)}
WHO = ("qpd", "loop", "loop16", *IMITATION)


def plain_env(teacher: Teacher, seed: int) -> VecEnv:
    env_id = teacher.recipe.env_id
    if not teacher.recipe.is_atari:
        # SB3's own choice, "rgb_array", has LunarLander simulate the particles of its exhaust: up to ten times slower steps
        return make_vec_env(env_id, N_ENVS, seed, env_kwargs={"render_mode": None})
    games = make_atari_env(env_id, N_ENVS, seed)
    return VecTransposeImage(VecFrameStack(games, 4))


class PlainCNN(BaseFeaturesExtractor):
    """The student's layers, written as a custom network in SB3's documentation."""

    def __init__(self, observation_space: spaces.Box, conv: list[tuple[int, int, int]], hidden: list[int]) -> None:
        super().__init__(observation_space, hidden[-1])
        layers: list[nn.Module] = []
        for channels, kernel, stride in conv:
            layers += [nn.LazyConv2d(channels, kernel, stride), nn.ReLU()]
        layers.append(nn.Flatten())
        for units in hidden:
            layers += [nn.LazyLinear(units), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.layers(th.zeros(1, *observation_space.shape))  # tells the lazy layers their inputs

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def plain_policy(env: VecEnv, arch: StudentArch, rate: float) -> ActorCriticPolicy:
    spaces_of: tuple[Any, Any] = (env.observation_space, env.action_space)
    if is_image_space(env.observation_space):
        cnn = {"conv": arch.conv, "hidden": arch.conv_hidden}
        options: dict[str, Any] = {"features_extractor_class": PlainCNN, "features_extractor_kwargs": cnn, "net_arch": []}
        return ActorCriticCnnPolicy(*spaces_of, lambda _: rate, **options)
    return ActorCriticPolicy(*spaces_of, lambda _: rate, net_arch=list(arch.hidden), activation_fn=nn.ReLU)


def plain_loss(policy: ActorCriticPolicy, observations: th.Tensor, wanted: th.Tensor) -> th.Tensor:
    said = policy.get_distribution(observations).distribution
    if isinstance(said, th.distributions.Categorical):
        return losses.categorical_kl(said.logits, wanted).mean()
    box = policy.action_space
    assert isinstance(box, spaces.Box)
    low, high = th.as_tensor(box.low), th.as_tensor(box.high)
    return losses.huber(said.mean.clamp(low, high), wanted.clamp(low, high), unit=(high - low) / 2).mean()


def loop(teacher: Teacher, timesteps: int, seed: int, epochs: int, args: argparse.Namespace) -> ActorCriticPolicy:
    """The plain loop: collect on-policy, label, minimise, forget."""
    th.manual_seed(seed)
    env, rng = plain_env(teacher, seed), np.random.default_rng(seed)
    policy = plain_policy(env, make_arch(args.arch), args.loop_rate)
    batch_size = 128 if teacher.recipe.is_atari else 256  # those of qpd
    observations = env.reset()
    for _ in range(-(-timesteps // (N_ENVS * ROLLOUT))):
        seen, said = [], []
        for _ in range(ROLLOUT):
            seen.append(np.array(observations, copy=True))
            said.append(teacher(observations).actor)
            actions, _ = policy.predict(observations, deterministic=False)
            observations, *_ = env.step(actions)
        inputs, wanted = th.as_tensor(np.concatenate(seen)), th.cat(said)
        policy.set_training_mode(True)
        for _ in range(epochs):
            for rows in np.array_split(rng.permutation(len(inputs)), len(inputs) // batch_size):
                descend(policy.optimizer, plain_loss(policy, inputs[rows], wanted[rows]), max_grad_norm=0.5)  # as in SB3
        policy.set_training_mode(False)
    env.close()
    return policy


def imitation(
    teacher: Teacher, who: str, timesteps: float, seed: int, args: argparse.Namespace
) -> tuple[ActorCriticPolicy, dict[str, Any]]:
    """Train a student with the ``imitation`` package in its own interpreter, and return it with what that measured."""
    hidden, policy = make_arch(args.arch).hidden, teacher.policy
    batch, usual_rate = IMITATION[who]
    rate = args.imitation_rate or usual_rate
    options = {
        "env": teacher.name.split("/")[-1],  # the id under which it was trained
        "teacher-arch": json.dumps(policy.net_arch),
        "teacher-activation": policy.activation_fn.__name__,
        "timesteps": int(timesteps),
        "samples-per-step": SAMPLES_PER_STEP,
        "batch": batch,
        "rate": rate,
        "n-envs": N_ENVS,
        "seed": seed,
        "threads": args.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder, "teacher.npz"), Path(folder, "student.npz")
        np.savez(theirs, **{name: tensor.numpy() for name, tensor in policy.state_dict().items()})
        command = [args.imitation_python, Path(__file__).with_name("imitation_peer.py"), who.removesuffix("256"), theirs, ours]
        command += [f"--{name}={value}" for name, value in options.items()] + ["--hidden", *map(str, hidden)]
        environ = os.environ | {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        environ.pop("PYTHONPATH", None)  # the other interpreter has packages of its own
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
        with np.load(ours) as file:
            state = {name: th.as_tensor(file[name]) for name in file.files}
    spaces_of = (teacher.observation_space, teacher.action_space)
    student = ActorCriticPolicy(*spaces_of, lambda _: 0.0, net_arch=list(hidden), activation_fn=th.nn.ReLU)
    student.load_state_dict(state)
    return student, {"rate": rate, **json.loads(done.stdout.splitlines()[-1])}


def check_imitation(parser: argparse.ArgumentParser, args: argparse.Namespace, teacher: Teacher) -> None:
    wanted = sorted(IMITATION.keys() & args.who)
    if not wanted:
        return
    if args.imitation_python is None or not args.imitation_python.is_file():
        parser.error(
            f"{' and '.join(wanted)} need the interpreter of a virtual environment with the imitation package, got "
            f"--imitation-python {args.imitation_python}. The two commands that make one are in --help."
        )
    is_vector = isinstance(teacher.observation_space, spaces.Box) and len(teacher.observation_space.shape) == 1
    if not (is_vector and type(teacher) is Teacher and teacher.normalization is None):
        parser.error(f"{' and '.join(wanted)} take an actor-critic teacher of raw vectors, {teacher.name} is none.")


def run(teacher: Teacher, who: str, timesteps: float, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one student, measure the time, and score it."""
    if who in IMITATION:
        student, measured = imitation(teacher, who, timesteps, seed, args)
    else:
        wall, processor = time.perf_counter(), time.process_time()
        if who == "qpd":
            options = {"student_arch": args.arch, "seed": seed, "device": "cpu", "check_teacher": False}
            learner = QPDDistiller(teacher, n_envs=N_ENVS, env=teacher.recipe, **options).learn(timesteps)
            student = learner.policy if teacher.recipe.is_atari else learner.policy.to_integer()
            learner.policy.set_training_mode(False)
        else:
            student = loop(teacher, int(timesteps), seed, SAMPLES_PER_STEP if who == "loop16" else 1, args)
        measured = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
    mode = {"deterministic": teacher.recipe.deterministic, "seed": VALIDATION_SEED}
    returns = evaluate(student, teacher.recipe, n_episodes=args.episodes, **mode).returns if args.episodes else []
    row = {"teacher": teacher.name, "who": who, "seed": seed, "timesteps": timesteps, "threads": args.threads}
    if who.startswith("loop"):
        row["rate"] = args.loop_rate
    row |= {name: round(value, 4 if name == "rate" else 2) for name, value in measured.items()}
    return row | {"returns": [round(float(r), 6) for r in returns]}


def table(teacher: str, path: Path) -> None:
    """Print the medians over the seeds, and each seed's return."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in read_rows(path):
        if row["teacher"] == teacher:
            groups[row["timesteps"], row["who"], row.get("rate"), row["threads"]].append(row)
    print(table_head(("steps", "who", "learning rate", "threads", "processor s", "wall s", "return, each seed", "all")))
    for (steps, who, rate, threads), rows in sorted(groups.items(), key=str):
        processor, wall = (float(np.median([row[name] for row in rows])) for name in ("processor", "wall"))
        means = [float(np.mean(row["returns"])) for row in rows]
        each = ", ".join(f"{mean:.1f}" for mean in means)
        usual = "its own" if rate is None else f"{rate:g}"
        print(f"| {steps:g} | {who} | {usual} | {threads} | {processor:.2f} | {wall:.2f} | {each} | {np.mean(means):.1f} |")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teacher")
    parser.add_argument("--arch", default="tiny")
    parser.add_argument("--timesteps", type=float, nargs="+", default=[1e5])
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--who", nargs="+", default=["qpd", "loop", "loop16"], choices=WHO)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--imitation-python", type=Path, help="interpreter of the virtual environment, for bc and dagger")
    parser.add_argument("--loop-rate", type=float, default=2e-3, help="learning rate of the plain loop")
    parser.add_argument("--imitation-rate", type=float, help="their learning rate, instead of their own")
    parser.add_argument("--out", type=Path, help="a file to append the lines to")
    parser.add_argument("--table", type=Path, help="a file of such lines: print the table of this teacher and do nothing else")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    teacher = load_teacher(args.teacher, device="cpu")
    if args.table is not None:
        return table(teacher.name, args.table)
    assert isinstance(teacher.action_space, spaces.Discrete | spaces.Box)
    check_imitation(parser, args, teacher)
    for seed, timesteps, who in itertools.product(args.seeds, args.timesteps, args.who):
        row = run(teacher, who, timesteps, seed, args)
        print(json.dumps(row), flush=True)
        if args.out is not None:
            add_rows(args.out, row)


if __name__ == "__main__":
    main()
