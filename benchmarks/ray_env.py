"""
Environments as Ray actors beside those in SB3's subprocesses, for environments that take 1, 10 and 100 ms a step.

    python benchmarks/ray_env.py --n-envs 4 --seconds 10

Prints milliseconds of a step of all environments, side by side in one run: of steps alone, of steps while this process is busy
for as long, as a distiller is between ``step_async`` and ``step_wait``, and the processor time of this process. An environment
sleeps: the figures are those of messages and waiting, on any number of processors.
"""

import argparse
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from command_line import make_parser
from gymnasium import spaces
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from tables import table_head

from sb3_qpd.envs.ray_env import RayVecEnv


class Slow(gym.Env):
    """
    An environment whose steps take a given time.

    :param milliseconds: of a step
    :param shape: shape of an observation
    """

    action_space = spaces.Discrete(4)

    def __init__(self, milliseconds: float, shape: tuple[int, ...]) -> None:
        self.milliseconds, self.observation_space = milliseconds, spaces.Box(-1, 1, shape)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, np.float32), {}  # type: ignore[arg-type]

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(self.milliseconds / 1000)
        return np.zeros(self.observation_space.shape, np.float32), 0.0, False, False, {}  # type: ignore[arg-type]


def milliseconds(env: VecEnv, seconds: float, while_waiting: Callable[[], object]) -> tuple[float, float]:
    """The median of a step of all environments, and this process's mean processor time of a step."""
    actions, times = np.zeros(env.num_envs, np.int64), []
    env.reset()
    end, used = time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        env.step_async(actions)
        while_waiting()
        env.step_wait()
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times)), 1000 * (time.process_time() - used) / len(times)


def row(name: str, make: Callable[[], VecEnv], args: argparse.Namespace) -> str:
    """One line of the table."""
    env = make()
    alone, used = milliseconds(env, args.seconds, lambda: None)
    overlapped, _ = milliseconds(env, args.seconds, lambda: time.sleep(alone / 1000))
    env.close()
    return f"{name} | {alone:.2f} | {overlapped:.2f} | {used:.2f} |"


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--n-envs", type=int, default=4)
    parser.add_argument("--per-actor", type=int, nargs="+", default=[1, 2], help="environments in an actor")
    parser.add_argument("--shape", type=int, nargs="+", default=[24], help="shape of an observation")
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[1, 10, 100], help="of a step")
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    print(
        table_head(
            (
                "a step of an environment, ms",
                "environments",
                "of all, ms",
                "of all while this process is busy, ms",
                "processor time of this process, ms",
            )
        )
    )
    for cost in args.milliseconds:
        makers = [lambda cost=cost: Slow(cost, tuple(args.shape))] * args.n_envs  # type: ignore[misc]
        print(f"| {cost:g} | {row('SubprocVecEnv', lambda: SubprocVecEnv(makers, 'fork'), args)}", flush=True)  # noqa: B023
        for size in args.per_actor:
            name = f'`vec_env="ray"`, {size} in an actor'
            print(f"| {cost:g} | {row(name, lambda: RayVecEnv(makers, envs_per_actor=size), args)}", flush=True)  # noqa: B023


if __name__ == "__main__":
    main()
