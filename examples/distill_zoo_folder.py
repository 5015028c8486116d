"""
Distill an agent from a run folder of RL Zoo, and let both play the same episodes.

    python examples/distill_zoo_folder.py logs/ppo/LunarLander-v3_1 --timesteps 1e5
"""

import argparse
from pathlib import Path

from sb3_qpd import QPDDistiller, compare, evaluate, load_teacher

HERE = Path(__file__).parent / "teachers" / "ppo" / "LunarLander-v3_1"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", nargs="?", default=HERE, help="with the zip, config.yml, args.yml and vecnormalize.pkl of a run")
parser.add_argument("--timesteps", type=float, default=1e5)
parser.add_argument("--episodes", type=int, default=100)
args = parser.parse_args()

teacher = load_teacher(args.folder)  # wrappers, frame stack and normalization are those of the run
distiller = QPDDistiller(teacher, student_arch="tiny", seed=0, verbose=1).learn(args.timesteps)
players = {"student": distiller.policy.to_integer(), "teacher": teacher, "random": "random"}
played = {name: evaluate(player, teacher.recipe, n_episodes=args.episodes, name=name) for name, player in players.items()}
for name, evaluation in played.items():
    print(f"{name}: {evaluation.return_mean:.1f} ± {evaluation.return_std:.1f}")
print("verdict:", compare(played["student"], played["teacher"], played["random"]).verdict)
