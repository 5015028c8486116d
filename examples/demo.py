"""
The main job on a teacher that ships with the project: distill, convert to integers, evaluate, show.

    python examples/demo.py                 LunarLander, about a minute on two cores
    python examples/demo.py --atari         Pong's nano, some minutes

Writes the student, its report as a page, and a GIF of teacher and integer student side by side to out/demo.
"""

import argparse
import sys
from pathlib import Path

from sb3_qpd.cli import main as sb3_qpd

TEACHERS = Path(__file__).parent / "teachers" / "ppo"
LUNAR_LANDER = ("LunarLander-v3", ["--timesteps", "6e4", "--episodes", "100"])
PONG = ("PongNoFrameskip-v4", ["--student-arch", "nano", "--timesteps", "4e4", "--critic-coef", "0.05", "--episodes", "100"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atari", action="store_true", help="Pong instead of LunarLander")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    args, more = parser.parse_known_args()
    env_id, options = PONG if args.atari else LUNAR_LANDER
    folder = TEACHERS / f"{env_id}_1"
    return sb3_qpd(["compress", str(folder), "--out", str(args.out), "--force", "--film", *options, *more])


if __name__ == "__main__":
    sys.exit(main())
