"""
Train a teacher with stock PPO at RL Zoo's settings and save it as a run folder of RL Zoo, weights only.

    python examples/train_teacher.py LunarLander-v3 --timesteps 1e6 --out my_teachers
    python examples/train_teacher.py PongNoFrameskip-v4 --timesteps 1e7 --out my_teachers
    python examples/train_teacher.py CartPole-v1 --timesteps 3e5 --net-arch 32 32 --out my_teachers

Then: load_teacher("my_teachers/ppo/LunarLander-v3_1"). LunarLander's teacher in examples/teachers was made by the first
command, and the teacher of `sb3-qpd demo` by the third. The Atari teachers there had the same settings, but 16 environments.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd import AtariVecEnv, make_recipe

# RL Zoo's entries of ppo.yml; Atari's learning rate and clip range fall linearly
ATARI = {"policy": "CnnPolicy", "n_steps": 128, "n_epochs": 4, "batch_size": 256, "vf_coef": 0.5, "ent_coef": 0.01}
OTHERS = {"policy": "MlpPolicy", "n_steps": 1024, "n_epochs": 4, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999}
OTHERS["ent_coef"] = 0.01


def make_model(env_id: str, seed: int, timesteps: int, net_arch: list[int]) -> tuple[PPO, dict[str, Any]]:
    """Build the untrained model, and the content of its config.yml. A run is not longer than was asked for."""
    if make_recipe(env_id).is_atari:
        env: VecEnv = AtariVecEnv(env_id, 8, seed=seed, terminal_on_life_loss=True, clip_reward=True)
        rates: dict[str, Any] = {"learning_rate": lambda left: left * 2.5e-4, "clip_range": lambda left: left * 0.1}
        config: dict[str, Any] = {"frame_stack": 4, "env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"]}
        settings = ATARI
    else:
        env, rates, config, settings = make_vec_env(env_id, 16, seed=seed), {}, {}, OTHERS
    if net_arch:
        settings = {**settings, "policy_kwargs": {"net_arch": net_arch}}
    settings = {**settings, "n_steps": min(settings["n_steps"], max(timesteps // env.num_envs, 2))}
    model = PPO(env=env, seed=seed, verbose=1, **settings, **rates)
    return model, {**settings, **config, "n_envs": env.num_envs}


def write_run_folder(model: PPO, env_id: str, config: dict[str, Any], out: Path) -> Path:
    """Write the zip, and the two files that name its environment."""
    folder = out / "ppo" / f"{env_id}_1"
    (folder / env_id).mkdir(parents=True, exist_ok=True)
    fresh = PPO(
        config["policy"], model.env, policy_kwargs=config.get("policy_kwargs"), device="cpu"
    )  # its optimizer holds nothing: the zip is a third as large
    fresh.policy.load_state_dict(model.policy.state_dict())
    fresh.num_timesteps = model.num_timesteps
    fresh.save(folder / f"{env_id}.zip")
    (folder / env_id / "config.yml").write_text(yaml.safe_dump({**config, "n_timesteps": model.num_timesteps}))
    (folder / env_id / "args.yml").write_text(yaml.safe_dump({"algo": "ppo", "env": env_id}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_id")
    parser.add_argument("--timesteps", type=float, default=1e6)
    parser.add_argument("--out", type=Path, default=Path("teachers"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--net-arch", type=int, nargs="+", default=[], help="units of each hidden layer (default: SB3's own)")
    args = parser.parse_args()
    model, config = make_model(args.env_id, args.seed, int(args.timesteps), args.net_arch)
    model.learn(int(args.timesteps), progress_bar=True)
    print("Teacher written to", write_run_folder(model, args.env_id, config, args.out))


if __name__ == "__main__":
    main()
