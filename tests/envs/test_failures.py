"""
An environment that fails is named, with the call or the step, the sub-environment and the cause.

On request its process is started again. A package that an environment lacks is named too.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toys import QUICK, Pointer, pointers, untrained

from sb3_qpd import EnvRecipe, QPDDistiller, evaluate, make_recipe
from sb3_qpd.envs.registry import check_env_kwargs, find_spec
from sb3_qpd.envs.workers import WorkerVecEnv
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.failures import EnvironmentFailure
from sb3_qpd.players import seed_if_possible

AT = 6  # the call of step() that fails
PLACE = r"( \(evaluation\))? failed in "


class TakesNoSeed(Pointer):
    """Its ``reset`` raises as soon as it gets a seed."""

    error: Exception = RuntimeError("the simulator takes no seed")

    def reset(self, *, seed: int | None = None, **kwargs: Any) -> Any:
        if seed is not None:
            raise self.error
        return super().reset(**kwargs)


class Asserts(TakesNoSeed):
    error = AssertionError()


class SeedFails(DummyVecEnv):
    def seed(self, seed: int | None = None) -> Any:
        raise RuntimeError("no seeding here")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (TakesNoSeed, rf"^TakesNoSeed{PLACE}reset\(.*\)(, in sub-environment 0)?: RuntimeError: the simulator takes no seed"),
        (Asserts, rf"^Asserts{PLACE}reset\(.*\)(, in sub-environment 0)?: AssertionError \(test_failures.py, line \d+\)$"),
        (SeedFails([Pointer]), r"^Pointer failed in seed\(\d+\): RuntimeError: no seeding here"),
    ],
    ids=["RuntimeError", "AssertionError", "seed()"],
)
def test_an_environment_that_fails_is_named(env: Any, message: str, tmp_path: Any) -> None:
    teacher = untrained(pointers(n_envs=1))
    with pytest.raises(EnvironmentFailure, match=message):
        evaluate(teacher, env, n_episodes=1)
    for check_teacher in (False, True):
        with pytest.raises(EnvironmentFailure, match=message):
            QPDDistiller(teacher, env, **{**QUICK, "check_teacher": check_teacher, "seed": 0}).learn(16)
    student = QPDDistiller(teacher, **QUICK).learn(16)
    student.to_integer().save(tmp_path / "student.npz")
    with pytest.raises(EnvironmentFailure, match=message):
        verify(tmp_path, env, 4, policy=student.policy)


def test_a_seed_that_is_not_taken_is_no_failure() -> None:
    """Game engines have no ``seed``, or one without an argument."""

    class NoSeed(DummyVecEnv):
        def seed(self) -> Any:  # type: ignore[override]
            raise NotImplementedError

    assert not seed_if_possible(NoSeed([Pointer]), 0) and seed_if_possible(DummyVecEnv([Pointer]), 0)


def test_the_error_of_a_callback_is_not_the_environments() -> None:
    class Fails(BaseCallback):
        def _init_callback(self) -> None:
            raise RuntimeError("no folder")

        def _on_step(self) -> bool:
            return True

    with pytest.raises(RuntimeError, match="^no folder$"):
        QPDDistiller(untrained(pointers(n_envs=1)), **QUICK).learn(16, callback=Fails())


@pytest.mark.parametrize("entry_point", ["attribute", "string"])
def test_an_environment_that_cannot_be_built(entry_point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Pointer):
        def __init__(self) -> None:
            raise OSError("no device")

    monkeypatch.setattr(sys.modules[__name__], "Broken", Broken, raising=False)
    gym.register("Broken-v0", f"{__name__}:Broken" if entry_point == "string" else Broken)
    with pytest.raises(EnvironmentFailure, match="Broken-v0 failed in gym.make: OSError: no device"):
        EnvRecipe("Broken-v0").make_env()
    del gym.registry["Broken-v0"]


def test_settings_that_an_environment_lacks() -> None:
    message = "LunarLander-v3 has no setting 'gravty'. Did you mean 'gravity'. Its settings: render_mode, continuous, gravity"
    with pytest.raises(ValueError, match=message):
        make_recipe("LunarLander-v3", {"gravty": -9.0})
    with pytest.raises(ValueError, match=message):
        EnvRecipe("LunarLander-v3", {"gravty": -9.0}).make_vec_env(1)
    for name in ("gravity", "max_episode_steps", "disable_env_checker", "render_mode"):
        check_env_kwargs(find_spec("LunarLander-v3"), {name: None})
    check_env_kwargs(find_spec("HalfCheetah-v5"), {"whatever": 1})  # it takes **kwargs


@pytest.mark.parametrize(
    ("module", "env_id", "install"),
    [
        ("Box2D", "LunarLander-v3", "pip install box2d (sb3_qpd requires it"),
        ("mujoco", "HalfCheetah-v4", 'pip install "gymnasium[mujoco]"'),
    ],
)
def test_a_package_that_is_missing(module: str, env_id: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    families = ("gymnasium.envs.box2d", "gymnasium.envs.mujoco")
    for name in [name for name in sys.modules if name.startswith((module, *families))]:
        monkeypatch.delitem(sys.modules, name)  # as in a process that has not imported them yet
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as error:
        EnvRecipe(env_id).make_env()
    assert f"{env_id} needs a package that is not installed: {install}" in str(error.value) and "swig" not in str(error.value)


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
    with pytest.raises(EnvironmentFailure, match=rf"^\w+ failed at step {steps}, in sub-environment 1: .*{IN_ANY[failure]}"):
        student.learn(300)
    assert student.num_timesteps == steps
    env.close()


@pytest.mark.parametrize("failure", IN_A_PROCESS)
def test_a_process_that_ends_or_hangs(failure: Callable[..., Any]) -> None:
    env = environments(failure, "worker", time_limit=LIMIT if failure is hang else None)
    student = QPDDistiller(untrained(env), **QUICK)
    with pytest.raises(EnvironmentFailure, match=f"failed at step 15, in sub-environment 1: {IN_A_PROCESS[failure]}"):
        student.learn(300)
    student.save("/dev/null")  # what was learned can be saved
    env.close()
    assert not any(process.is_alive() for process in env.processes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("failure", [raise_error, crash, hang])
def test_a_process_is_started_again(failure: Callable[..., Any]) -> None:
    env = environments(failure, "worker", time_limit=LIMIT if failure is hang else None, restarts=2)
    student = QPDDistiller(untrained(env), **QUICK)
    with pytest.warns(UserWarning, match=r"Sub-environment 1 is started again \(.*\); its episode is dropped. Restart 1 of 2"):
        with pytest.raises(EnvironmentFailure, match="in sub-environment 1"):  # each new process fails at its sixth step
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere each process imports torch itself")
def test_processes_of_environments_find_torch_imported(tmp_path: Path) -> None:
    """They are forked from a server that has imported it."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # another test may have started one
    WorkerVecEnv([Pointer]).close()
    code = f"import sys; open({str(tmp_path / 'found')!r}, 'w').write(str('torch' in sys.modules))"
    process = multiprocessing.get_context("forkserver").Process(target=exec, args=(code,))
    process.start()
    process.join()
    assert (tmp_path / "found").read_text() == "True"


class Interrupted(Pointer):
    """Ctrl-C comes while it is built, and is noted where it had no effect."""

    def __init__(self, sign: Path) -> None:
        super().__init__()
        os.kill(os.getpid(), signal.SIGINT)
        sign.touch()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT for another process on Windows")
def test_ctrl_c_waits_until_an_environment_is_built(tmp_path: Path) -> None:
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # it may be of a process that lets Ctrl-C through
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    try:
        with pytest.raises((EOFError, ConnectionError)):  # of the process, which ends without an answer
            WorkerVecEnv([partial(Interrupted, tmp_path / "built")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "built").exists()


@pytest.mark.parametrize("kind", ["one", "dummy", "worker"])
def test_a_failure_in_an_evaluation(kind: str) -> None:
    env = Failing(raise_error) if kind == "one" else environments(raise_error, kind)
    where = "" if kind == "one" else ", in sub-environment 1"
    with pytest.raises(EnvironmentFailure, match=rf"^\w+ \(evaluation\) failed at step 5{where}: KeyError: 'joint'"):
        evaluate("random", env, n_episodes=6)
    env.close()


def test_arguments_of_environments_in_subprocesses() -> None:
    teacher = untrained(Pointer())
    for arguments, message in (
        ({"env_timeout": 1.0}, "are for environments in other processes, got vec_env='dummy'"),
        ({"restart_envs": 1}, "are for environments in other processes"),
        ({"env_timeout": 0, "vec_env": "subproc"}, "env_timeout must be a number of seconds above 0"),
        ({"restart_envs": 1.5, "vec_env": "subproc"}, "restart_envs must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            QPDDistiller(teacher, **arguments)
