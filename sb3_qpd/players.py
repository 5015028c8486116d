"""Players: anything with SB3's ``predict``, how they are asked for actions in an environment, and the random policy."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_qpd.failures import environment_failures
from sb3_qpd.observations import Observation, batch_size, copy_row, stack
from sb3_qpd.spaces import action_head

# VecEnvs of game engines and simulators implement what SB3's `learn` needs. Their other methods raise one of these
MISSING = (NotImplementedError, AttributeError, TypeError)


class Player(Protocol):
    """Anything with SB3's ``predict``: a model, a policy, a teacher, an integer model."""

    def predict(self, observation: Any, *, deterministic: bool = ...) -> tuple[np.ndarray, Any]:
        """See SB3's ``predict``."""
        ...


def check_player(argument: str, player: Any) -> None:
    """
    Refuse what has no ``predict``.

    :param argument: name of the argument, for the message
    :param player: argument of the user
    :raises TypeError: it has none
    """
    if not hasattr(player, "predict"):
        raise TypeError(
            f"{argument} must have SB3's predict (a model, a policy, a Teacher, an IntegerModel), got {player!r} "
            f"({type(player).__name__})"
        )


def takes_masks(player: Any) -> bool:
    """
    Whether a player's ``predict`` takes ``action_masks``: its attribute ``uses_masks`` says so, else its signature.

    :param player: anything with SB3's ``predict``
    """
    uses_masks = getattr(player, "uses_masks", None)
    return "action_masks" in inspect.signature(player.predict).parameters if uses_masks is None else uses_masks


def gives_masks(env: gym.Env | VecEnv) -> bool:
    """
    Whether an environment says which actions are allowed (``env.action_masks()``, sb3-contrib's convention).

    :param env: environment or vectorized environment. A VecEnv without ``get_attr`` gives no masks
    """
    try:
        return is_masking_supported(env)
    except MISSING:
        return False


def seed_if_possible(env: VecEnv, seed: int | None) -> bool:
    """
    Seed a vectorized environment that can be seeded.

    :param env: any vectorized environment
    :param seed: seed of its first sub-environment
    :return: whether it took the seed
    :raises EnvironmentFailure: its ``seed`` fails for another reason than that it is missing
    """
    with environment_failures(env, f"seed({seed})"):
        try:
            env.seed(seed)
        except MISSING:
            return False
    return True


def is_monitored(env: VecEnv) -> bool:
    """
    Whether every sub-environment has SB3's ``Monitor``, which tells the end of an episode from a lost life.

    :param env: any vectorized environment
    """
    try:
        return all(env.env_is_wrapped(Monitor))
    except MISSING:
        return False


def masks_for(player: Any, env: gym.Env | VecEnv | Sequence[gym.Env]) -> Callable[..., np.ndarray | None]:
    """
    Action masks for a player in an environment, where the environment gives masks and the player takes them.

    :param player: anything with SB3's ``predict``
    :param env: environment, vectorized environment, or environments that are played side by side
    :return: a function to call before each action. It returns the masks, or ``None``. Its argument, for environments side by
        side, are the indices of those that play
    """
    is_masked = takes_masks(player) and gives_masks(env[0] if isinstance(env, Sequence) else env)

    def ask(playing: Sequence[int] = ()) -> np.ndarray | None:
        if not is_masked:
            return None
        return np.stack([get_action_masks(env[i]) for i in playing]) if isinstance(env, Sequence) else get_action_masks(env)

    return ask


class Actor:
    """
    A player that takes one step after the other in environments. Its state, where it has one, is carried along their episodes
    as SB3's ``predict(observation, state, episode_start)`` wants it.

    :param player: anything with SB3's ``predict``
    :param env: the environment that gives the observations, environments that are played side by side, or ``None`` where the
        caller asks for action masks
    :param deterministic: most probable actions, else sampled ones
    """

    def __init__(
        self, player: Any, env: gym.Env | VecEnv | Sequence[gym.Env] | None = None, deterministic: bool = True
    ) -> None:
        self.player, self.deterministic = player, deterministic
        self._ask = None if env is None else masks_for(player, env)
        self.state: tuple[np.ndarray, ...] | None = None

    @property
    def has_memory(self) -> bool:
        """Whether the player has returned a state. Its batches must keep their size then."""
        return self.state is not None

    def __call__(
        self,
        observations: Any,
        episode_starts: np.ndarray,
        action_masks: np.ndarray | None = None,
        playing: Sequence[int] = (),
    ) -> np.ndarray:
        """
        A batch of actions.

        :param observations: raw observations, shape (batch_size, *observation_shape); a dict of such arrays
        :param episode_starts: whether an observation is the first one of an episode, shape (batch_size,)
        :param action_masks: allowed actions; ``None`` asks the environment
        :param playing: indices of the environments side by side that play
        """
        if action_masks is None and self._ask is not None:
            action_masks = self._ask(playing) if len(playing) else self._ask()
        given: dict[str, Any] = {} if action_masks is None else {"action_masks": action_masks}
        if self.state is not None:
            given |= {"state": self.state, "episode_start": episode_starts}
        actions, self.state = self.player.predict(observations, deterministic=self.deterministic, **given)
        return actions


class RandomPolicy:
    """
    Uniformly random actions, reproducible. Where the environment masks actions, only allowed ones are drawn. Categories are
    counted from 0, as SB3's policies count them, also where the space has another ``start``.

    :param action_space: space of the actions
    :param seed: seed of the actions
    """

    uses_masks = True

    def __init__(self, action_space: gym.Space, seed: int | None = 0) -> None:
        self.action_space = copy.deepcopy(action_space)  # the environment's own space keeps its generator
        self.action_space.seed(seed)
        self._rng = np.random.default_rng(seed)

    def predict(
        self, observation: Any, *args: Any, action_masks: np.ndarray | None = None, **kwargs: Any
    ) -> tuple[np.ndarray, None]:
        """See SB3's ``predict``; the observations are batched."""
        n, start = batch_size(observation), getattr(self.action_space, "start", 0)
        if action_masks is None:
            return np.stack([self.action_space.sample() - start for _ in range(n)]), None
        head = action_head(self.action_space)
        masks = np.asarray(action_masks, bool).reshape(n, -1)
        if masks.shape[1] != sum(head.nvec):
            raise ValueError(
                f"The environment's action_masks() must return {sum(head.nvec)} values, one for each action of "
                f"{self.action_space}, got {masks.shape[1]}. Correct or remove the method"
            )
        priorities = np.where(masks, self._rng.random(masks.shape), -1)
        choices = [one.argmax(1) for one in np.split(priorities, np.cumsum(head.nvec)[:-1], axis=1)]
        return np.stack(choices, axis=1).reshape(n, *head.shape), None


class ObservationRecorder:
    """
    Plays as ``policy`` and keeps a uniform sample of the observations that it was given (reservoir sampling).

    :param policy: the player
    :param n_observations: number of observations to keep
    :param seed: seed of the sampling
    """

    def __init__(self, policy: Player, n_observations: int = 1_000, seed: int = 0) -> None:
        self.policy = policy
        self.n_observations = n_observations
        self.n_seen = 0
        self._kept: list[Observation] = []
        self._rng = np.random.default_rng(seed)

    @property
    def uses_masks(self) -> bool:
        """Whether the recorded player takes action masks."""
        return takes_masks(self.policy)

    def predict(self, observation: Observation, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        """See SB3's ``predict``; the observations are batched."""
        for row in range(batch_size(observation)):
            self.n_seen += 1
            if len(self._kept) < self.n_observations:
                self._kept.append(copy_row(observation, row))
            elif (place := int(self._rng.integers(self.n_seen))) < self.n_observations:
                self._kept[place] = copy_row(observation, row)
        return self.policy.predict(observation, *args, **kwargs)

    @property
    def observations(self) -> Observation:
        """The kept observations as one batch."""
        return stack(self._kept)


class EpisodeRecorder(ObservationRecorder):
    """
    Plays as ``policy`` and keeps the first observations of one environment in their order, as players with a memory need them.

    :param policy: the player
    :param n_observations: number of observations to keep
    """

    def __init__(self, policy: Player, n_observations: int = 1_000) -> None:
        super().__init__(policy, n_observations)
        self._starts: list[bool] = []

    def predict(
        self, observation: Observation, state: Any = None, episode_start: np.ndarray | None = None, **kwargs: Any
    ) -> tuple[np.ndarray, Any]:
        """See SB3's ``predict``; the observations are batched. The state is a tuple around the player's own."""
        if len(self._kept) < self.n_observations:
            self._kept.append(copy_row(observation, 0))
            self._starts.append(state is None or bool(np.asarray(episode_start)[0]))
        if state is not None and state[0] is not None:
            kwargs |= {"state": state[0], "episode_start": episode_start}
        actions, after = self.policy.predict(observation, **kwargs)
        return actions, (after,)

    @property
    def episode_starts(self) -> np.ndarray:
        """Whether each of the kept observations is the first one of an episode."""
        return np.array(self._starts)
