"""ALE's native vector environment as an SB3 ``VecEnv``."""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_qpd.envs.registry import find_spec

# Settings of the environment that ALE's native vector environment takes, and of AtariWrapper (None: any value)
NATIVE_ENV_KWARGS = ("repeat_action_probability", "full_action_space", "max_num_frames_per_episode")
NATIVE_WRAPPER_KWARGS = {
    "terminal_on_life_loss": None,
    "clip_reward": None,
    "noop_max": None,
    "frame_skip": 4,
    "screen_size": 84,
    "action_repeat_probability": 0.0,
}


class AtariVecEnv(VecEnv):
    """
    ALE's native vector environment as an SB3 ``VecEnv``: emulators and preprocessing run in threads, outside of Python.

    Observations are the last ``frame_stack`` frames, 84 x 84 grey pixels, channels first; every action lasts 4 frames, for
    ``*NoFrameskip-v4`` and ``ALE/*-v5`` alike; the other settings are the registered ones (for v5 actions repeat with
    probability 0.25). By default an episode is a whole game and rewards are raw. ``info["episode"]`` (raw score, length in
    actions) comes at the end of a game only, so that ``evaluate_policy`` counts whole games whatever the options are.

    Where a game has FIRE, it replaces the first action after a lost life, so that games that wait for it go on. With
    repeated actions it replaces the first action of a game too: ALE presses FIRE for one frame there, and it would be
    missed in every fourth game.

    What still differs from ``make_atari_env`` and ``VecFrameStack``:

    - pixels: frames are greyed before the maximum of the last two is taken, not after. Most frames of games with flickering
      objects differ a little; without the maximum they are the same
    - the start: FIRE for one frame and then 0 to ``noop_max`` - 2 no-ops; SB3 has 1 to ``noop_max`` no-ops, FIRE, and the
      third action, 4 frames each of the last two
    - a lost life: SB3 (``terminal_on_life_loss=True``) plays a no-op, FIRE and the third action out of sight and empties the
      stack of frames; here the stack goes on and FIRE takes the place of the next action. With
      ``terminal_on_life_loss=False`` SB3 never presses FIRE
    - the time limit counts the frames of actions, not those before the first action
    - ``info`` is empty unless an episode ended; ``info["episode"]["l"]`` counts actions, SB3's monitor counts frames

    :param env_id: ``*NoFrameskip-v4`` or ``ALE/*-v5``
    :param n_envs: number of games that are played side by side
    :param frame_stack: frames in an observation
    :param seed: seed of the first game; sub-environment i gets ``seed + i``. The first ``reset``, and the one after
        ``env.seed(seed)``, begin the same games again
    :param terminal_on_life_loss: whether a lost life ends an episode, while the game goes on
    :param clip_reward: whether only the sign of the reward is kept
    :param num_threads: threads of the emulators; 0 takes as many as there are cores, at most ``n_envs``
    :param noop_max: largest number of no-ops at the start of a game
    :param env_kwargs: ``repeat_action_probability``, ``full_action_space`` and ``max_num_frames_per_episode``, in place of
        the registered values
    """

    render_mode = "rgb_array"

    def __init__(
        self,
        env_id: str,
        n_envs: int = 16,
        *,
        frame_stack: int = 4,
        seed: int | None = None,
        terminal_on_life_loss: bool = False,
        clip_reward: bool = False,
        num_threads: int = 0,
        noop_max: int = 30,
        **env_kwargs: Any,
    ) -> None:
        for name, number in (("n_envs", n_envs), ("frame_stack", frame_stack)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.spec = _native_spec(env_id)
        settings = _native_settings(self.spec, env_kwargs)
        self.terminal_on_life_loss = terminal_on_life_loss
        self.clip_reward = clip_reward
        self._games = ale_py.AtariVectorEnv(
            self.spec.kwargs["game"],
            n_envs,
            num_threads=num_threads,
            noop_max=noop_max,
            stack_num=frame_stack,
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            # All of this is done here instead: the native episodic life restarts the game, the native sign loses the score,
            # and the native sign of a lost life hides a time limit in the same step
            episodic_life=False,
            life_loss_info=False,
            reward_clipping=False,
            **settings,
        )
        super().__init__(n_envs, self._games.single_observation_space, self._games.single_action_space)
        actions = self._games.ale.get_action_set()
        self._fire = actions.index(ale_py.Action.FIRE) if ale_py.Action.FIRE in actions else None
        self._fire_at_start = settings["repeat_action_probability"] > 0
        self._waiting = False  # whether a result of step_async is due
        self._writer: ResultsWriter | None = None
        self.seed(seed)  # ALE's own default gives sub-environments the same repeated actions

    def reset(self) -> np.ndarray:
        if self._waiting:
            self.step_wait()
        seeds = None if self._seeds[0] is None else np.array(self._seeds) % 2**31
        self._observations, info = self._games.reset(seed=seeds)
        self._reset_seeds()
        self._reset_options()
        self.lives = info["lives"].copy()
        self._press_fire = np.full(self.num_envs, self._fire_at_start)
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._start_times = np.full(self.num_envs, time.time())
        self.reset_infos = [{"lives": int(lives)} for lives in self.lives]
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        if self._waiting:
            raise RuntimeError("step_async was called twice: call step_wait in between.")
        actions = self._checked(actions)
        if self._fire is not None:
            actions = np.where(self._press_fire, self._fire, actions)
        self._games.send(actions)
        self._waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        if not self._waiting:
            raise RuntimeError("step_wait was called without step_async.")
        observations, rewards, terminated, truncated, info = self._games.recv()
        self._waiting = False
        lives, game_over = info["lives"].copy(), terminated | truncated  # at game over the lives are the next game's
        life_lost = (0 < lives) & (lives < self.lives) & ~game_over
        dones = game_over | life_lost if self.terminal_on_life_loss else game_over
        self._observations, self.lives = observations, lives
        self._press_fire = life_lost | (game_over & self._fire_at_start)
        self._returns += rewards
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(dones).tolist():
            # the native final_obs is only filled where the game is over
            final = info["final_obs"] if game_over[i] else observations
            infos[i] = {"TimeLimit.truncated": bool(truncated[i]), "terminal_observation": final[i].copy()}
        for i in np.flatnonzero(game_over).tolist():
            infos[i]["episode"] = self._end_game(i)
            if self._writer is not None:
                self._writer.write_row(infos[i]["episode"])
        rewards = np.sign(rewards) if self.clip_reward else rewards
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        if self._waiting:
            self.step_wait()
        self._games.close()
        if self._writer is not None:
            self._writer.close()

    def write_results(self, path: str | Path) -> None:
        """
        Write the result of every game that ends from now on, in the format of SB3's monitor.

        :param path: a file named ``*monitor.csv``, which is overwritten
        """
        self._writer = ResultsWriter(str(path), header={"t_start": time.time(), "env_id": self.spec.id})

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The newest frame of each game, as the agent sees it: ALE's vector environment gives no colours."""
        return [np.repeat(observation[-1][..., None], 3, axis=-1) for observation in self._observations]

    def get_action_meanings(self) -> list[str]:
        """The names of the actions."""
        return [action.name for action in self._games.ale.get_action_set()]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        if len(set(self._get_indices(indices))) != self.num_envs:
            raise ValueError(f"{attr_name} can only be set for all {self.num_envs} games at once, not for {indices}.")
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        if method_name != "get_action_meanings":
            raise AttributeError(
                f"AtariVecEnv's games have no method {method_name!r}, only 'get_action_meanings': "
                "they are not Python objects. Use SB3's make_atari_env for more."
            )
        return [self.get_action_meanings() for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for ``Monitor`` and ``AtariWrapper``, which are built in."""
        return [wrapper_class in (Monitor, AtariWrapper) for _ in self._get_indices(indices)]

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """Actions that ALE can take. After one out of range it would wait for ever."""
        actions = np.asarray(actions)
        if not np.issubdtype(actions.dtype, np.integer):
            raise TypeError(f"Actions must be integers, got {actions.dtype}.")
        if actions.shape != (self.num_envs,):
            raise ValueError(f"Actions must have shape ({self.num_envs},), one for each game, got {actions.shape}.")
        n_actions = int(self.action_space.n)  # type: ignore[attr-defined]
        if actions.min() < 0 or actions.max() >= n_actions:
            raise ValueError(f"Actions of {self.spec.id} are 0 to {n_actions - 1}, got {actions.tolist()}.")
        return actions.astype(np.int64)

    def _end_game(self, index: int) -> dict[str, float]:
        """The values of SB3's monitor for a game that ended. Counting for the next game begins."""
        now = time.time()
        episode = {
            "r": float(self._returns[index]),
            "l": int(self._lengths[index]),
            "t": round(now - self._start_times[index], 6),
        }
        self._returns[index], self._lengths[index], self._start_times[index] = 0.0, 0, now
        return episode


def is_native_id(env_id: str) -> bool:
    """
    Whether ALE's native vector environment can play an environment, judged by its id.

    :param env_id: a registered id
    """
    return re.fullmatch(r"\w+NoFrameskip-v4|ALE/\w+-v5", env_id) is not None


def _native_spec(env_id: str) -> gym.envs.registration.EnvSpec:
    spec = find_spec(env_id)
    if not is_native_id(env_id):
        raise ValueError(f"AtariVecEnv plays *NoFrameskip-v4 and ALE/*-v5, got {env_id!r}: use make_atari_env for that.")
    return spec


def _native_settings(spec: gym.envs.registration.EnvSpec, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The registered settings, replaced by those that are given."""
    if unknown := sorted(set(env_kwargs) - set(NATIVE_ENV_KWARGS)):
        raise TypeError(f"AtariVecEnv has no {', '.join(unknown)}, only {', '.join(NATIVE_ENV_KWARGS)}: use make_atari_env.")
    settings = {key: env_kwargs.get(key, spec.kwargs[key]) for key in NATIVE_ENV_KWARGS}
    if not 0 <= settings["repeat_action_probability"] < 1:
        raise ValueError(f"repeat_action_probability must be in [0, 1), got {settings['repeat_action_probability']}.")
    return settings
