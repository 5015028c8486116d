"""
A student of your own size and bits.

    python examples/custom_student.py
"""

import argparse
from pathlib import Path

from sb3_qpd import QPDDistiller, StudentArch, evaluate, load_teacher

HERE = Path(__file__).parent / "teachers" / "ppo" / "LunarLander-v3_1"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--teacher", default=HERE)
parser.add_argument("--timesteps", type=float, default=1e5)
parser.add_argument("--episodes", type=int, default=100)
args = parser.parse_args()

teacher = load_teacher(args.teacher)
# two layers of 20 and 12 units; bits of each layer's weights, the head's last; a dict of the same fields will do as well
arch = StudentArch(hidden=(20, 12), weight_bits=(8, 4, 8), activation_bits=6)
distiller = QPDDistiller(teacher, student_arch=arch, transition="progressive", learning_rate=2e-2, seed=0)
student = distiller.learn(args.timesteps).policy.to_integer()
for layer in student.layers:
    print(f"{layer.weight.shape} weights of {layer.weight_bits} bits")
print(f"{student.nbytes} bytes, return {evaluate(student, teacher.recipe, n_episodes=args.episodes).return_mean:.1f}")
