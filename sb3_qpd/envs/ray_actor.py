"""Environments in a Ray actor: the side of the node, which needs no Ray."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import cloudpickle
import gymnasium as gym
import torch as th
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_qpd.envs.workers import Failure, guarded
from sb3_qpd.failures import describe_error

Begun = tuple[Any, dict[str, Any]]  # first observation of an episode, and its info


class EnvironmentGroup:
    """
    The environments of an actor, on its node.

    :param pickled: functions that make the environments, pickled by cloudpickle
    :param import_path: folders that the driver imports from. Those that this process lacks are added
    :param folder: the driver's current folder, which relative paths start from where the node has it
    """

    def __init__(self, pickled: list[bytes], import_path: list[str], folder: str) -> None:
        sys.path += [entry for entry in import_path if entry and entry not in sys.path]
        with suppress(OSError):
            os.chdir(folder)
        th.set_num_threads(1)
        self._pickled = pickled
        self._envs: list[gym.Env] = []
        self._reset_infos: list[dict[str, Any] | None] = [{} for _ in pickled]

    def _make(self, i: int) -> gym.Env:
        return _patch_env(guarded(cloudpickle.loads(self._pickled[i]))())

    def build(self) -> tuple[int, str] | None:
        """
        Build the environments.

        :return: number and exception of one that cannot be built, ``None`` where all are
        """
        for i in range(len(self._pickled)):
            try:
                self._envs.append(self._make(i))
            except Exception as error:
                return i, describe_error(error)
        return None

    def run(self, messages: list[tuple[int, str, Any]]) -> list[Any]:
        """
        Carry out messages of ``SubprocVecEnv``, one after the other.

        :param messages: number of an environment in this actor, command and data
        :return: their answers
        """
        return [getattr(self, f"_{command}")(i, data) for i, command, data in messages]

    def begin(self, seeds: dict[int, int | None], is_broken: bool) -> list[Begun]:
        """
        Begin new episodes.

        :param seeds: seed of each of these environments
        :param is_broken: whether the environments have failed, so that they are built anew
        :return: their first observations with their infos
        """
        return [self._begin(i, seed, is_broken) for i, seed in seeds.items()]

    def _begin(self, i: int, seed: int | None, is_broken: bool) -> Begun:
        try:
            if is_broken:
                with suppress(Exception):
                    self._envs[i].close()
                self._envs[i] = self._make(i)
        except Exception as error:
            return Failure(describe_error(error)), {}
        return self._envs[i].reset(seed=seed)

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()

    def _step(self, i: int, action: Any) -> tuple[Any, Any, bool, dict[str, Any], dict[str, Any] | None]:
        """A step with the automatic reset of SB3's vectorized environments."""
        env = self._envs[i]
        observation, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if done:
            info["terminal_observation"] = observation
            observation, self._reset_infos[i] = env.reset()
        return observation, reward, done, info, self._reset_infos[i]

    def _reset(self, i: int, data: tuple[int | None, dict[str, Any]]) -> Begun:
        seed, options = data
        begun = self._envs[i].reset(seed=seed, **({"options": options} if options else {}))
        self._reset_infos[i] = begun[1]
        return begun

    def _render(self, i: int, _: Any) -> Any:
        return self._envs[i].render()

    def _get_spaces(self, i: int, _: Any) -> tuple[gym.Space, gym.Space]:
        return self._envs[i].observation_space, self._envs[i].action_space

    def _env_method(self, i: int, data: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Any:
        name, arguments, keywords = data
        return self._envs[i].get_wrapper_attr(name)(*arguments, **keywords)

    def _get_attr(self, i: int, name: str) -> Any:
        return self._envs[i].get_wrapper_attr(name)

    def _has_attr(self, i: int, name: str) -> bool:
        return self._envs[i].has_wrapper_attr(name)

    def _set_attr(self, i: int, data: tuple[str, Any]) -> None:
        setattr(self._envs[i], *data)

    def _is_wrapped(self, i: int, wrapper_class: type[gym.Wrapper]) -> bool:
        return is_wrapped(self._envs[i], wrapper_class)
