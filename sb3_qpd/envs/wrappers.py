"""Wrappers that give today's environments the observations of yesterday's."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

N_CONTACT_FORCES = 84  # 14 bodies with 6 numbers each


class ZeroContactForces(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """
    The observation of ``Ant-v1`` to ``Ant-v3``: that of ``Ant-v4``, then 84 zeros.

    The old environments appended the contact forces of all bodies, and with MuJoCo 2.0 and later all of these were zero
    (see the notes of Gymnasium's ``Ant-v4``). ``use_contact_forces=True`` gives real forces, which the old agents never met.

    :param env: an environment of vectors
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"ZeroContactForces is for the vectors of Ant-v4, got observations of {space}.")
        low, high = (
            np.concatenate([bound, fill * np.ones(N_CONTACT_FORCES)])
            for bound, fill in ((space.low, -np.inf), (space.high, np.inf))
        )
        self.observation_space = spaces.Box(low.astype(space.dtype), high.astype(space.dtype), dtype=space.dtype)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        One observation.

        :param observation: vector of the environment
        """
        return np.concatenate([observation, np.zeros(N_CONTACT_FORCES, observation.dtype)])
