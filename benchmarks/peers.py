"""
QPDDistiller against the loop that one would write with SB3 alone: same teacher, student, steps and gradient samples.

    python benchmarks/peers.py TEACHER_FOLDER --timesteps 1e5 --episodes 64 --who qpd loop loop16 --threads 2

The loop: ``make_atari_env`` (``make_vec_env`` for vectors), the student acts, rollouts of 128 steps labelled by the teacher in
float32, minibatches with a KL (Box: Huber) loss, no buffer of old observations. ``loop`` sees each rollout once, ``loop16``
sixteen times (as many gradient samples as ``qpd``). The students are float there; ``qpd``'s is scored in integers.
One line of JSON for each: wall seconds, processor seconds, return.
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import argparse
import json
import time

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage

from sb3_qpd import QPDDistiller, evaluate, load_teacher
from sb3_qpd.buffers import DistillationSamples
from sb3_qpd.evaluation import VALIDATION_SEED
from sb3_qpd.objective import distillation_loss
from sb3_qpd.policies import QuantActorCriticPolicy
from sb3_qpd.teachers import Teacher, TeacherOutput

N_ENVS, ROLLOUT = 16, 128


def plain_env(teacher: Teacher, seed: int) -> VecEnv:
    env_id = teacher.recipe.env_id
    if not teacher.recipe.is_atari:
        return make_vec_env(env_id, N_ENVS, seed)
    games = make_atari_env(env_id, N_ENVS, seed, wrapper_kwargs={"terminal_on_life_loss": False, "clip_reward": False})
    return VecTransposeImage(VecFrameStack(games, 4))


def loop(teacher: Teacher, arch: str, timesteps: int, seed: int, epochs: int) -> QuantActorCriticPolicy:
    """The plain loop: collect on-policy, label, minimise, forget."""
    th.manual_seed(seed)
    env, rng = plain_env(teacher, seed), np.random.default_rng(seed)
    rate = 1e-2 if teacher.recipe.is_atari else 2e-3
    policy = QuantActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: rate, student_arch=arch, weight_bits=32, activation_bits=32
    )
    batch_size = 128 if teacher.recipe.is_atari else 256
    observations = env.reset()
    for _ in range(-(-timesteps // (N_ENVS * ROLLOUT))):
        seen, said = [], []
        for _ in range(ROLLOUT):
            seen.append(np.array(observations, copy=True))
            said.append(teacher(observations))
            actions, _ = policy.predict(observations, deterministic=False)
            observations, *_ = env.step(actions)
        inputs = th.as_tensor(np.concatenate(seen))
        fields = [None if part[0] is None else th.cat(part) for part in zip(*said, strict=True)]
        policy.set_training_mode(True)
        for _ in range(epochs):
            for rows in np.array_split(rng.permutation(len(inputs)), len(inputs) // batch_size):
                targets = TeacherOutput(*(None if field is None else field[rows] for field in fields))
                loss, _ = distillation_loss(policy, DistillationSamples(inputs[rows], targets))
                policy.optimizer.zero_grad()
                loss.backward()
                th.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
                policy.optimizer.step()
        policy.set_training_mode(False)
    env.close()
    return policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--arch", default="tiny")
    parser.add_argument("--timesteps", type=float, default=1e5)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--who", nargs="+", default=["qpd", "loop", "loop16"], choices=["qpd", "loop", "loop16"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    teacher = load_teacher(args.teacher, device="cpu")
    assert isinstance(teacher.action_space, spaces.Discrete | spaces.Box)
    for seed in args.seeds:
        for who in args.who:
            wall, processor = time.perf_counter(), time.process_time()
            if who == "qpd":
                options = {"student_arch": args.arch, "seed": seed, "device": "cpu", "check_teacher": False}
                learner = QPDDistiller(teacher, n_envs=N_ENVS, env=teacher.recipe, **options).learn(args.timesteps)
                student = learner.policy if teacher.recipe.is_atari else learner.policy.to_integer()
                learner.policy.set_training_mode(False)
            else:
                student = loop(teacher, args.arch, int(args.timesteps), seed, 16 if who == "loop16" else 1)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            mode = {"deterministic": not teacher.recipe.is_atari, "seed": VALIDATION_SEED}
            returns = evaluate(student, teacher.recipe, n_episodes=args.episodes, **mode).returns if args.episodes else []
            row = {"teacher": teacher.name, "who": who, "seed": seed, "timesteps": args.timesteps, "threads": args.threads}
            row |= {"wall": round(wall, 2), "processor": round(processor, 2), "returns": [float(r) for r in returns]}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
