"""
Fine-tune a distilled student with stock PPO, at its low precision. Its value head was distilled too, and is kept.

    python examples/finetune_ppo.py lunar/student.zip LunarLander-v3 --timesteps 2e5
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_qpd import evaluate, load_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("student", help="zip of a student, such as student.zip or best_model.zip")
parser.add_argument("env")
parser.add_argument("--timesteps", type=float, default=2e5)
parser.add_argument("--episodes", type=int, default=100)
parser.add_argument("--out", default="finetuned")
args = parser.parse_args()

student = load_student(args.student, device="cpu")
ppo = PPO(
    type(student.policy),
    make_vec_env(args.env, 16, seed=0),
    policy_kwargs=student.policy_kwargs,
    n_steps=min(1024, max(int(args.timesteps) // 16, 2)),
    **{"gamma": 0.999, "gae_lambda": 0.98, "n_epochs": 4},  # gamma is the teacher's: its values are distilled
    vf_coef=0.5 / float(student.policy.value_net.std) ** 2,  # values are in units of return; the trunk is shared
    seed=0,
    device="cpu",
)
ppo.policy.load_state_dict(student.policy.state_dict())
print("before:", evaluate(ppo.policy.to_integer(), args.env, n_episodes=args.episodes).return_mean)
ppo.learn(int(args.timesteps))
print("after:", evaluate(ppo.policy.to_integer(), args.env, n_episodes=args.episodes).return_mean)
ppo.save(args.out)  # an ordinary PPO zip
ppo.policy.to_integer(env={"env_id": args.env}).save(f"{args.out}.npz")
