"""
The main job on a teacher that ships with the project: distill, convert to integers, evaluate, show.

    python examples/demo.py                 LunarLander, a few minutes on two cores
    python examples/demo.py --atari         Pong, longer

Writes the student, its report and a GIF of teacher and integer student side by side to out/demo.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from stable_baselines3.common.type_aliases import PolicyPredictor

from sb3_qpd import EnvRecipe, IntegerModel, load_teacher
from sb3_qpd.cli import main as sb3_qpd
from sb3_qpd.evaluation.episodes import VALIDATION_SEED

TEACHERS = Path(__file__).parent / "teachers" / "ppo"
LUNAR_LANDER = ("LunarLander-v3", ["--timesteps", "6e4", "--episodes", "100"])
PONG = ("PongNoFrameskip-v4", ["--timesteps", "5e4", "--episodes", "64"])
STEPS_PER_PICTURE = 3


def film(policy: PolicyPredictor, recipe: EnvRecipe, n_steps: int, deterministic: bool) -> list[np.ndarray]:
    """Pictures of one player. A new episode starts where one ends."""
    if recipe.is_atari:
        env = recipe.make_vec_env(1, seed=VALIDATION_SEED, training=False)
        observation, pictures = env.reset(), []
        for step in range(n_steps):
            observation, *_ = env.step(policy.predict(observation, deterministic=deterministic)[0])
            if step % STEPS_PER_PICTURE == 0:
                pictures.append(np.kron(env.get_images()[0], np.ones((3, 3, 1), np.uint8)))
        return pictures
    env, pictures = EnvRecipe(recipe.env_id, {**recipe.env_kwargs, "render_mode": "rgb_array"}).make_env(), []
    observation, _ = env.reset(seed=VALIDATION_SEED)
    for step in range(n_steps):
        observation, _, terminated, truncated, _ = env.step(policy.predict(observation, deterministic=deterministic)[0])
        if step % STEPS_PER_PICTURE == 0:
            pictures.append(env.render())
        if terminated or truncated:
            observation, _ = env.reset()
    return pictures


def write_gif(path: Path, players: dict[str, PolicyPredictor], recipe: EnvRecipe, n_steps: int) -> None:
    """Write a GIF of all players side by side, with captions."""
    shown = {name: film(policy, recipe, n_steps, recipe.deterministic) for name, policy in players.items()}
    pictures = []
    for together in zip(*shown.values(), strict=True):
        height, width = together[0].shape[:2]
        canvas = Image.new("RGB", (width * len(together), height + 18))
        for i, (name, picture) in enumerate(zip(shown, together, strict=True)):
            canvas.paste(Image.fromarray(picture), (i * width, 18))
            ImageDraw.Draw(canvas).text((i * width + 6, 3), name, fill="white")
        pictures.append(canvas.resize((canvas.width * 300 // height, canvas.height * 300 // height)))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=60, loop=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--atari", action="store_true", help="Pong instead of LunarLander")
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--film-steps", type=int, default=500, help="environment steps in the GIF")
    args, more = parser.parse_known_args()
    env_id, options = PONG if args.atari else LUNAR_LANDER
    folder = TEACHERS / f"{env_id}_1"
    code = sb3_qpd(["compress", str(folder), "--out", str(args.out), "--force", *options, *more])
    if code != 0:
        return code
    teacher, student = load_teacher(folder), IntegerModel.load(args.out / "student.npz")
    players = {f"teacher, {teacher.nbytes:,} bytes": teacher, f"integer student, {student.nbytes:,} bytes": student}
    write_gif(args.out / "demo.gif", players, teacher.recipe, args.film_steps)
    print(f"Teacher and student side by side: {args.out / 'demo.gif'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
