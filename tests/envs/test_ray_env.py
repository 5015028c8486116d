"""Environments as Ray actors: the numbers of subprocesses, and actors that end, hang or cannot start."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from toys import QUICK, Pointer, score, taught, untrained

from sb3_qpd import QPDDistiller
from sb3_qpd.envs.ray_env import RayVecEnv, connect
from sb3_qpd.envs.workers import WorkerVecEnv
from sb3_qpd.failures import EnvironmentFailure

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

AT = 6  # step at which an environment fails
ONES = np.ones(3, np.int64)


class Ordinary(gym.Env):
    """
    Observations that depend on seed, options and actions, with action masks and pictures.

    :param failure: what to do at step ``AT`` of the first episode
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    action_space = spaces.Discrete(4)
    render_mode = "rgb_array"

    def __init__(self, failure: str = "") -> None:
        self.failure, self.pid = failure, os.getpid()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_steps, self.shift = 0, (options or {}).get("shift", 0.0)
        return self._observe(), {"seed": seed, "options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.failure and self.n_steps == AT:
            if self.failure == "raise":
                raise KeyError("joint")
            time.sleep(600)
        return self._observe(), float(action), self.n_steps == 9, self.n_steps == 7 and action == 0, {"n": self.n_steps}

    def _observe(self) -> np.ndarray:
        return (self.np_random.normal(size=3) + self.shift).astype(np.float32)

    def action_masks(self) -> np.ndarray:
        return np.arange(4) <= self.n_steps

    def render(self) -> np.ndarray:
        return np.full((2, 2, 3), self.n_steps, np.uint8)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A cluster of two processors on this machine."""
    connect("local")
    yield
    ray.shutdown()


def actors(n_envs: int = 3, failure: str = "", **options: Any) -> RayVecEnv:
    """Two actors, the first with two environments, of which the second may fail."""
    makers = [lambda failure=failure if i == 1 else "": Monitor(Ordinary(failure)) for i in range(n_envs)]
    env = RayVecEnv(makers, envs_per_actor=2, **options)
    env.seed(7)
    return env


@pytest.fixture(scope="module")
def both(cluster: None) -> Iterator[tuple[RayVecEnv, WorkerVecEnv]]:
    ours, theirs = actors(), WorkerVecEnv([lambda: Monitor(Ordinary()) for _ in range(3)], start_method="fork")
    yield ours, theirs
    ours.close()
    theirs.close()


def same(a: Any, b: Any) -> None:
    """The same values, in dicts and arrays; times of episodes are clocks."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"t"}:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        np.testing.assert_array_equal(a, b)


def test_the_numbers_are_those_of_subprocesses(both: tuple[RayVecEnv, WorkerVecEnv]) -> None:
    rng = np.random.default_rng(0)
    for options in (None, {"shift": 3.0}):
        for env in both:
            env.seed(11)
            if options is not None:
                env.set_options(options)
        ours, theirs = both
        same(ours.reset(), theirs.reset())
        same(ours.reset_infos, theirs.reset_infos)
        for _ in range(25):
            actions = rng.integers(0, 4, 3)
            same(ours.step(actions), theirs.step(actions))
            same(ours.reset_infos, theirs.reset_infos)


def test_methods_and_attributes(both: tuple[RayVecEnv, WorkerVecEnv]) -> None:
    ours, theirs = both
    assert ours.num_envs == 3 and ours.observation_space == theirs.observation_space and ours.render_mode == "rgb_array"
    for env in both:
        env.seed(1)
        env.reset()
        env.step(np.zeros(3, np.int64))
        env.set_attr("mine", 5, indices=[1, 2])
    same(ours.env_method("action_masks"), theirs.env_method("action_masks"))
    same(list(ours.get_images()), list(theirs.get_images()))
    assert ours.get_attr("mine", [1, 2]) == [5, 5] and ours.env_is_wrapped(Monitor) == [True] * 3
    assert ours.has_attr("pid") and not ours.has_attr("nothing")
    assert len({*ours.get_attr("pid")}) == 2  # actors
    with pytest.raises(AttributeError, match="nothing"):
        ours.get_attr("nothing")
    same(ours.step(np.ones(3, np.int64)), theirs.step(np.ones(3, np.int64)))  # an error of the caller changes nothing


def test_steps_are_in_flight_between_async_and_wait(both: tuple[RayVecEnv, WorkerVecEnv]) -> None:
    ours, _ = both
    ours.reset()
    ours.step_async(np.zeros(3, np.int64))
    calls = [actor._call for actor in ours.actors]
    done, _ = ray.wait(calls, num_returns=len(calls), timeout=60)
    assert len(done) == 2  # before step_wait
    assert ours.step_wait()[0].shape == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["step", "env_method"])
def test_an_actor_that_ends_is_started_again(command: str) -> None:
    """Also one that ends between two steps: then the next step says that the episodes were dropped."""
    env = actors(restarts=1)
    env.reset()
    before = env.step(ONES)[0]
    os.kill(env.get_attr("pid", 0)[0], signal.SIGKILL)
    message = r"Sub-environments \[0, 1\] are started again \(its Ray actor ended.*their episodes are dropped. Restart 1 of 1"
    with pytest.warns(UserWarning, match=message):
        if command == "env_method":
            assert env.env_method("action_masks")[0].tolist() == [True, False, False, False]
        observations, rewards, dones, infos = env.step(ONES)
    assert dones.tolist() == [True, True, False] and rewards.tolist() == [0, 0, 1] and env.n_restarted == 1
    for i in (0, 1):
        assert infos[i]["TimeLimit.truncated"] and "episode" not in infos[i]
        np.testing.assert_array_equal(infos[i]["terminal_observation"], observations[i])
        assert (observations[i] != before[i]).all()
    assert env.get_attr("n_steps") == [0, 0, 2] and env.reset_infos[1]["seed"] == 7 + 1 + 3
    os.kill(env.get_attr("pid", 2)[0], signal.SIGKILL)
    with pytest.raises(EnvironmentFailure, match="in sub-environment 2: its Ray actor ended"):
        env.step(ONES)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("failure", ["raise", "hang"])
def test_an_environment_that_fails_in_an_actor(failure: str) -> None:
    """An exception ends one episode; the actor of an environment that hangs is killed with all of its episodes."""
    env = actors(failure=failure, restarts=1, time_limit=4.0 if failure == "hang" else None)
    env.reset()
    for _ in range(AT - 1):
        env.step(ONES)
    reason = r"KeyError: 'joint'" if failure == "raise" else "it did not answer within 4 s"
    which = "Sub-environment 1 is" if failure == "raise" else r"Sub-environments \[0, 1\] are"
    with pytest.warns(UserWarning, match=rf"{which} started again \({reason}"):
        dones = env.step(ONES)[2]
    assert dones.tolist() == [failure == "hang", True, False]
    for _ in range(AT - 1):
        env.step(ONES)
    with pytest.raises(EnvironmentFailure, match=f"in sub-environment .: {reason}"):
        env.step(ONES)
    env.close()


class KillsActors(BaseCallback):
    """
    SIGKILL for an actor, several times in a run.

    :param every: environment steps between two of them
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.n_killed = every, 0

    def _on_step(self) -> bool:
        if self.n_killed < 5 and self.num_timesteps > (self.n_killed + 1) * self.every:
            env = self.training_env.unwrapped
            os.kill(env.get_attr("pid", self.n_killed % env.num_envs)[0], signal.SIGKILL)  # type: ignore[attr-defined]
            self.n_killed += 1
        return True


class Pointing(Pointer):
    """A task that is learned in seconds, in a process that can be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()


@pytest.mark.slow
def test_a_student_learns_as_well_where_actors_are_killed_five_times() -> None:
    env = RayVecEnv([lambda: Monitor(Pointing())] * 8, envs_per_actor=4)
    student, kills = QPDDistiller(taught(), env, learning_starts=200, **QUICK), KillsActors(every=600)
    with pytest.warns(UserWarning, match="Restart 5 of 100"):
        student.learn(4_000, callback=kills)
    assert kills.n_killed == env.n_restarted == 5 and student.num_timesteps == 4_000
    assert score(student.to_integer()) > 9
    env.close()


def test_a_distiller_builds_them_from_an_id() -> None:
    student = QPDDistiller(untrained("CartPole-v1"), "CartPole-v1", n_envs=2, vec_env="ray", **QUICK).learn(40)
    assert isinstance(student.env, RayVecEnv) and student.env.restarts == 100 and student.num_timesteps == 40
    assert student.env.get_attr("spec", 0)[0].id == "CartPole-v1"
    student.env.close()


def test_an_environment_that_cannot_be_pickled_says_how_to_register_it() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"cannot be pickled.*lock.*gymnasium.register.*env='my_envs:Mine-v0'"):
        RayVecEnv([lambda: (lock, Ordinary())[1]])


def test_an_environment_that_cannot_be_built_is_named() -> None:
    def broken() -> gym.Env:
        raise OSError("no licence")

    with pytest.raises(EnvironmentFailure, match=r"in sub-environment 0: OSError: no licence \(test_ray_env.py, line \d+\)"):
        RayVecEnv([broken])


def test_an_address_where_no_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:9", "ray://127.0.0.1:9"):
        with pytest.raises(ConnectionError, match=f"No Ray cluster can be used at '{address}' .*RAY_ADDRESS"):
            connect(address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConnectionError, match=f"No Ray cluster can be used at '{address}'"):
            connect()
