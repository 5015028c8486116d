"""
Does an Atari teacher score the same on AtariVecEnv as on SB3's own wrappers?

    python benchmarks/atari_parity.py TEACHER_FOLDER [TEACHER_FOLDER ...] --episodes 100

Plays whole games with sampled actions on both and prints the mean scores, their difference and its 95 % percentile
bootstrap interval as a Markdown table. The wanted result: the interval contains 0.
"""

import numpy as np
import torch as th
from command_line import make_parser
from scipy.stats import bootstrap
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage

from sb3_qpd import AtariVecEnv, Evaluation, Teacher, evaluate, load_teacher


def sb3_atari(env_id: str, n_envs: int) -> VecEnv:
    """SB3's own Atari environment with raw rewards. A lost life ends an episode there; the monitor reports whole games."""
    wrapper_kwargs = {"clip_reward": False}
    venv = make_atari_env(env_id, n_envs, wrapper_kwargs=wrapper_kwargs)
    return VecTransposeImage(VecFrameStack(venv, 4))


def play(teacher: Teacher, env: VecEnv, n_episodes: int, seed: int, name: str) -> Evaluation:
    """Play with sampled actions, the same number of games in each sub-environment."""
    try:
        return evaluate(teacher, env, n_episodes=n_episodes, seed=seed, deterministic=False, name=name, progress_bar=True)
    finally:
        env.close()


def table_row(folder: str, n_episodes: int, n_envs: int, seed: int) -> str:
    """One line of the table: both scores and their difference."""
    teacher = load_teacher(folder)
    env_id = teacher.recipe.env_id
    native = play(teacher, AtariVecEnv(env_id, n_envs), n_episodes, seed, "AtariVecEnv").returns
    wrapped = play(teacher, sb3_atari(env_id, n_envs), n_episodes, seed, "make_atari_env").returns
    interval = bootstrap(
        (native, wrapped), lambda a, b, axis: a.mean(axis) - b.mean(axis), method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    scores = " | ".join(f"{scores.mean():.2f} ± {scores.std(ddof=1):.2f}" for scores in (native, wrapped))
    difference = native.mean() - wrapped.mean()
    verdict = "yes" if interval.low <= 0 <= interval.high else "no"
    return (
        f"| {env_id} | {n_episodes} | {scores} | {difference:+.2f} | {interval.low:+.2f} to {interval.high:+.2f} | {verdict} |"
    )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("teachers", nargs="+", help="RL Zoo folders of Atari teachers")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--n-envs", type=int, default=32)
    parser.add_argument("--seed", type=int, default=2_000_000)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    print("| environment | games | AtariVecEnv | make_atari_env + VecFrameStack | difference | 95 % interval | contains 0 |")
    print("|---|---|---|---|---|---|---|")
    for folder in args.teachers:
        print(table_row(folder, args.episodes, args.n_envs, args.seed), flush=True)


if __name__ == "__main__":
    main()
