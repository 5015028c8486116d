"""
BC and DAgger of the ``imitation`` package: the part of ``peers.py`` that runs in the virtual environment of that package.

``peers.py`` calls it; it imports nothing of sb3_qpd. Teacher and student cross as the tensors of an SB3 policy in an ``.npz``
(no pickle). The settings are imitation's own (Adam, entropy weight 1e-3, DAgger's share of the teacher's actions falling to 0
over 15 rounds), but for the number of batches, what ``peers.py`` chooses, and the five episodes that DAgger plays for its log
in every round, which are left out. Prints one line of JSON: wall seconds, processor seconds, environment steps.
"""

import argparse
import json
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import torch as th
from imitation.algorithms.bc import BC
from imitation.algorithms.dagger import DAggerTrainer
from imitation.data import rollout
from imitation.util.logger import HierarchicalLogger
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv


class Taken(NamedTuple):
    """Environment steps of a run, and those of them that became samples: in unfinished episodes they are lost."""

    steps: int
    kept: int


def policy_of(env: VecEnv, net_arch: Any, activation: str) -> ActorCriticPolicy:
    return ActorCriticPolicy(
        env.observation_space, env.action_space, lambda _: 1.0, net_arch=net_arch, activation_fn=getattr(th.nn, activation)
    )


def bc(trainer: BC, env: VecEnv, teacher: ActorCriticPolicy, args: argparse.Namespace) -> Taken:
    """Clone the episodes that the teacher plays, its actions sampled: imitation's default for them."""
    episodes = rollout.generate_trajectories(teacher, env, rollout.make_min_timesteps(args.timesteps), trainer.rng)
    trainer.set_demonstrations(rollout.flatten_trajectories(episodes))
    trainer.train(n_batches=int(args.timesteps * args.samples_per_step / args.batch), progress_bar=False)
    return Taken(steps_of(env), sum(len(episode) for episode in episodes))


def dagger(trainer: BC, env: VecEnv, teacher: ActorCriticPolicy, args: argparse.Namespace) -> Taken:
    """
    ``SimpleDAggerTrainer.train`` with its rounds and their size, but with gradient samples in proportion to environment steps.

    Its own four epochs over all data so far would give late rounds more samples, and a number that is not known beforehand.
    """
    with tempfile.TemporaryDirectory() as scratch:
        learner = DAggerTrainer(
            venv=env, scratch_dir=scratch, rng=trainer.rng, bc_trainer=trainer, custom_logger=trainer.logger
        )
        n_batches = 0
        enough = rollout.make_sample_until(min_timesteps=500, min_episodes=3)
        while steps_of(env) < args.timesteps:
            collector = learner.create_trajectory_collector()
            rollout.generate_trajectories(teacher, collector, enough, trainer.rng, deterministic_policy=True)
            total = int(min(steps_of(env), args.timesteps) * args.samples_per_step / args.batch)
            learner.extend_and_update({"n_batches": total - n_batches, "log_rollouts_venv": None, "progress_bar": False})
            n_batches = total
        kept = sum(len(episode) for episode in learner._all_demos)
    return Taken(steps_of(env), kept)


def steps_of(env: VecEnv) -> int:
    return sum(env.get_attr("total_steps"))  # its Monitors count


def learn(args: argparse.Namespace) -> tuple[ActorCriticPolicy, Taken]:
    th.manual_seed(args.seed)
    env = make_vec_env(args.env, args.n_envs, args.seed, env_kwargs={"render_mode": None})  # as in peers.py
    with np.load(args.teacher) as file:
        teacher = policy_of(env, json.loads(args.teacher_arch), args.teacher_activation)
        teacher.load_state_dict({name: th.as_tensor(file[name]) for name in file.files})
    teacher.set_training_mode(False)
    trainer = BC(
        observation_space=env.observation_space,
        action_space=env.action_space,
        rng=np.random.default_rng(args.seed),
        policy=policy_of(env, args.hidden, "ReLU"),
        batch_size=args.batch,
        optimizer_kwargs={"lr": args.rate},
        custom_logger=HierarchicalLogger(Logger(None, [])),  # silent
        device="cpu",
    )
    taken = {"bc": bc, "dagger": dagger}[args.who](trainer, env, teacher, args)
    env.close()
    return trainer.policy, taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=["bc", "dagger"])
    parser.add_argument("teacher", help="tensors of the teacher's policy, .npz")
    parser.add_argument("student", help="where the student's are written, .npz")
    parser.add_argument("--env", required=True)
    parser.add_argument("--teacher-arch", required=True, help="net_arch, JSON")
    parser.add_argument("--teacher-activation", required=True, help="name in torch.nn")
    parser.add_argument("--hidden", type=int, nargs="*", required=True)
    parser.add_argument("--timesteps", type=int, required=True)
    parser.add_argument("--samples-per-step", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--n-envs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    wall, processor = time.perf_counter(), time.process_time()
    student, taken = learn(args)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    np.savez(args.student, **{name: tensor.numpy() for name, tensor in student.state_dict().items()})
    print(json.dumps({"wall": wall, "processor": processor} | taken._asdict()))


if __name__ == "__main__":
    main()
