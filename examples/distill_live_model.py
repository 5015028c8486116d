"""
Distill a model that was just trained: it brings its environment along, and a VecNormalize too.

    python examples/distill_live_model.py
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_qpd import QPDDistiller, evaluate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher-timesteps", type=int, default=50_000)
parser.add_argument("--timesteps", type=float, default=2e4)
parser.add_argument("--episodes", type=int, default=100)
args = parser.parse_args()

env = VecNormalize(make_vec_env("CartPole-v1", 8, seed=0))
teacher = PPO("MlpPolicy", env, n_steps=32, batch_size=256, n_epochs=20, gae_lambda=0.8, gamma=0.98, seed=0, device="cpu")
teacher.learn(args.teacher_timesteps)

distiller = QPDDistiller(teacher, student_arch="nano", weight_bits=4, activation_bits=4, seed=0).learn(args.timesteps)
student = distiller.policy.to_integer()  # takes raw observations: the statistics are in its integers
print(f"{student.nbytes} bytes, return {evaluate(student, 'CartPole-v1', n_episodes=args.episodes).return_mean:.1f}")
