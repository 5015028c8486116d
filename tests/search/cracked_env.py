"""An environment of a user's own, which one training seed breaks."""

from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

BROKEN_SEED = 10


class Cracked(CartPoleEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed == BROKEN_SEED:
            raise RuntimeError("the wheel came off")
        return super().reset(seed=seed, options=options)


gym.register("Cracked-v0", entry_point=Cracked, max_episode_steps=200)
