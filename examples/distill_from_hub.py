"""
Distill an agent from the Hugging Face Hub: its files are read, nothing in them is executed.

    python examples/distill_from_hub.py sb3/ppo-LunarLander-v2 --timesteps 1e5
"""

import argparse

from sb3_qpd import QPDDistiller, evaluate, load_teacher

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("teacher", nargs="?", default="sb3/ppo-LunarLander-v2", help="owner/name on the Hub")
parser.add_argument("--timesteps", type=float, default=1e5)
parser.add_argument("--episodes", type=int, default=100)
parser.add_argument("--out", default="student.npz")
args = parser.parse_args()

teacher = load_teacher(args.teacher)  # knows its environment: LunarLander-v2 is LunarLander-v3 today
distiller = QPDDistiller(teacher, student_arch="tiny", seed=0, verbose=1).learn(args.timesteps)
student = distiller.policy.to_integer()
student.save(args.out)
played = evaluate(student, teacher.recipe, n_episodes=args.episodes)
print(f"{teacher.name}: {teacher.nbytes:,} bytes -> {student.nbytes:,} bytes, return {played.return_mean:.1f}")
