"""Environments that fail: one line says which, where and why; on request a process is started again."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toys import QUICK, Pointer, untrained

from sb3_qpd import QPDDistiller, evaluate
from sb3_qpd.envs.failures import SimulatorError
from sb3_qpd.envs.workers import WorkerVecEnv

AT = 6  # the call of step() that fails


class Failing(Pointer):
    """
    Does what it is told at one of its steps.

    :param failure: called in that step; what it returns replaces the result
    """

    def __init__(self, failure: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.failure, self.n_calls = failure, 0

    def step(self, action: Any) -> Any:
        self.n_calls += 1
        result = super().step(action)
        return self.failure(result) if self.failure is not None and self.n_calls == AT else result


def raise_error(result: Any) -> Any:
    raise KeyError("joint")


def give_nan_reward(result: Any) -> Any:
    return (result[0], float("nan"), *result[2:])


def give_nan_observation(result: Any) -> Any:
    return (np.array([0.0, np.nan, 0.0]), *result[1:])


def give_other_shape(result: Any) -> Any:
    return (np.zeros(5), *result[1:])


def end_process(result: Any) -> Any:
    os._exit(3)


def crash(result: Any) -> Any:
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # without the report of the test runner
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(result: Any) -> Any:
    time.sleep(600)


def environments(failure: Callable[..., Any], kind: str, **options: Any) -> VecEnv:
    """Three environments, of which the one in the middle fails."""
    makers: list[Callable[[], gym.Env]] = [Failing, lambda: Failing(failure), Failing]
    env = DummyVecEnv(makers) if kind == "dummy" else WorkerVecEnv(makers, start_method="fork", **options)
    env.seed(0)
    return env


IN_ANY = {
    raise_error: r"KeyError: 'joint' \(test_failures.py, line \d+\)",
    give_nan_reward: "its reward is nan, expected a finite number",
    give_nan_observation: "its observations hold NaN, infinity or a number beyond float32, first in feature 1",
    give_other_shape: r"shape",
}
LIMIT = 3.0  # seconds; a healthy environment on a busy machine is far below
IN_A_PROCESS = {
    end_process: "its process ended with exit code 3",
    crash: "its process was ended by SIGSEGV",
    hang: "it did not answer within 3 s",
}


@pytest.mark.parametrize("kind", ["dummy", "worker"])
@pytest.mark.parametrize("failure", IN_ANY)
def test_a_failure_has_a_place(failure: Callable[..., Any], kind: str) -> None:
    env = environments(failure, kind)
    student = QPDDistiller(untrained(env), **QUICK)
    steps = 3 * (AT if failure is give_nan_observation else AT - 1)
    with pytest.raises(SimulatorError, match=rf"^\w+ failed at step {steps}, in sub-environment 1: .*{IN_ANY[failure]}"):
        student.learn(300)
    assert student.num_timesteps == steps
    env.close()


@pytest.mark.parametrize("failure", IN_A_PROCESS)
def test_a_process_that_ends_or_hangs(failure: Callable[..., Any]) -> None:
    env = environments(failure, "worker", time_limit=LIMIT if failure is hang else None)
    student = QPDDistiller(untrained(env), **QUICK)
    with pytest.raises(SimulatorError, match=f"failed at step 15, in sub-environment 1: {IN_A_PROCESS[failure]}"):
        student.learn(300)
    student.save("/dev/null")  # what was learned can be saved
    env.close()
    assert not any(process.is_alive() for process in env.processes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("failure", [raise_error, crash, hang])
def test_a_process_is_started_again(failure: Callable[..., Any]) -> None:
    env = environments(failure, "worker", time_limit=LIMIT if failure is hang else None, restarts=2)
    student = QPDDistiller(untrained(env), **QUICK)
    with pytest.warns(UserWarning, match=r"Sub-environment 1 is started again \(.*\); its episode is dropped. Restart 1 of 2"):
        with pytest.raises(SimulatorError, match="in sub-environment 1"):  # each new process fails at its sixth step
            student.learn(300)
    assert env.n_restarted == 2 and student.num_timesteps == 3 * (3 * AT - 1)  # type: ignore[attr-defined]
    env.close()


def test_workers_are_sb3s_subprocesses_where_nothing_fails() -> None:
    ours, dummy = (environments(None, kind) for kind in ("worker", "dummy"))  # type: ignore[arg-type]
    np.testing.assert_array_equal(ours.reset(), dummy.reset())
    for _ in range(25):
        actions = np.zeros(3, np.int64)
        for a, b in zip(ours.step(actions)[:3], dummy.step(actions)[:3], strict=True):
            np.testing.assert_array_equal(a, b)
    assert ours.get_attr("n_steps") == [10, 10, 10] and ours.env_is_wrapped(Pointer) == [False] * 3
    ours.close()


@pytest.mark.parametrize("kind", ["one", "dummy", "worker"])
def test_a_failure_in_an_evaluation(kind: str) -> None:
    env = Failing(raise_error) if kind == "one" else environments(raise_error, kind)
    with pytest.raises(
        SimulatorError, match=r"^\w+ \(evaluation\) failed at step 5, in sub-environment \d: KeyError: 'joint'"
    ):
        evaluate("random", env, n_episodes=6)
    env.close()


def test_arguments_of_environments_in_subprocesses() -> None:
    teacher = untrained(Pointer())
    for arguments, message in (
        ({"env_timeout": 1.0}, "are for environments in subprocesses, got vec_env='dummy'"),
        ({"restart_envs": 1}, "are for environments in subprocesses"),
        ({"env_timeout": 0, "vec_env": "subproc"}, "env_timeout must be a number of seconds above 0"),
        ({"restart_envs": 1.5, "vec_env": "subproc"}, "restart_envs must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            QPDDistiller(teacher, **arguments)
