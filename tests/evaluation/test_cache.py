"""Episodes that are kept are those that would be played again, and nothing else is taken for them."""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO

from sb3_qpd import EnvRecipe, ObsNormalization, Teacher, load_teacher
from sb3_qpd.evaluation.cache import _is_installed, cache_folder
from sb3_qpd.evaluation.comparison import EvaluationPlan, plan_evaluation
from sb3_qpd.evaluation.statistics import Evaluation

CARTPOLE = EnvRecipe("CartPole-v1")
PLAN = EvaluationPlan(CARTPOLE, n_episodes=5, n_other=5)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sb3_qpd" / "episodes"


def make_teacher(seed: int = 0, env_id: str = "CartPole-v1") -> Teacher:
    return load_teacher(PPO("MlpPolicy", env_id, device="cpu", seed=seed, policy_kwargs={"net_arch": [4]}))


def n_kept() -> int:
    return len(list(cache_folder().glob("*.json"))) if cache_folder().is_dir() else 0


def assert_same(one: Evaluation, other: Evaluation) -> None:
    np.testing.assert_array_equal(one.returns, other.returns)
    np.testing.assert_array_equal(one.lengths, other.lengths)
    assert one.returns.dtype == other.returns.dtype and one.lengths.dtype == other.lengths.dtype
    assert (one.name, one.starts, one.deterministic, one.seed) == (other.name, other.starts, other.deterministic, other.seed)
    assert one.is_paired_with(other)


def test_the_same_episodes_come_back() -> None:
    teacher = make_teacher()
    for policy in (teacher, "random"):
        for other_mode in (False, True):
            first, second = (PLAN.play(policy, "a", other_mode) for _ in range(2))
            assert not first.is_cached and second.is_cached
            assert_same(first, second)
    assert n_kept() == 4
    again = load_teacher(PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, policy_kwargs={"net_arch": [4]}))
    assert PLAN.play(again, "a").is_cached, "a teacher is its weights"


def changed_weight(teacher: Teacher) -> None:
    with th.no_grad():
        teacher.policy.action_net.bias[0] += 1e-3


def forgotten_statistics(teacher: Teacher) -> None:
    teacher.normalization = ObsNormalization(np.zeros(4), np.ones(4))


@pytest.mark.parametrize("change", [changed_weight, forgotten_statistics])
def test_another_teacher_is_played(change: Callable[[Teacher], None]) -> None:
    teacher = make_teacher()
    PLAN.play(teacher, "a")
    change(teacher)
    assert not PLAN.play(teacher, "a").is_cached
    assert PLAN.play(teacher, "a").is_cached


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"n_episodes": 6},
        {"n_envs": 2},
        {"deterministic": False},
        {"max_episode_steps": 999},
        {"env": EnvRecipe("CartPole-v1", {"sutton_barto_reward": True})},
        {"env": EnvRecipe("CartPole-v0")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_episodes_are_played(changes: dict[str, Any]) -> None:
    PLAN.play("random", "a")
    assert not replace(PLAN, **changes).play("random", "a").is_cached


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", "null", "{}", '{"returns": [1], "lengths": [1]}', "[" * 100_000],
    ids=["empty", "cut", "list", "null", "no keys", "too short", "deep"],
)
def test_a_broken_file_is_ignored_and_mended(content: str, own_folder: Path) -> None:
    first = PLAN.play("random", "a")
    (path,) = own_folder.iterdir()
    whole = json.loads(path.read_text())
    path.write_text(content)
    second = PLAN.play("random", "a")
    assert not second.is_cached and json.loads(path.read_text()).keys() == whole.keys()
    assert_same(first, second)


@pytest.mark.parametrize("change", [{"returns": ["x"] * 5}, {"lengths": [0] * 5}, {"returns": [[1.0]] * 5}, {"seed": None}])
def test_a_file_of_other_values_is_ignored(change: dict[str, Any], own_folder: Path) -> None:
    PLAN.play("random", "a")
    (path,) = own_folder.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert not PLAN.play("random", "a").is_cached


def test_what_can_change_without_a_sign_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(gym.Wrapper):
        pass

    gym.register("Own-v0", entry_point=lambda: Own(gym.make("CartPole-v1")))
    own_network = make_teacher()
    own_network.policy.mlp_extractor.policy_net.append(type("OwnLayer", (th.nn.Identity,), {"__module__": __name__})())
    for policy, env in (("random", "Own-v0"), ("random", gym.make("CartPole-v1")), (own_network, CARTPOLE)):
        plan = replace(PLAN, env=env)
        assert not any(plan.play(policy, "a").is_cached for _ in range(2))
    del gym.registry["Own-v0"]
    assert n_kept() == 0


def test_a_method_that_was_set_on_a_policy_is_seen() -> None:
    teacher = make_teacher()
    PLAN.play(teacher, "a")
    usual = teacher.policy.get_distribution
    teacher.policy.get_distribution = lambda observation: usual(-observation)
    assert not PLAN.play(teacher, "a").is_cached


@pytest.mark.parametrize("module", ["__main__", "made_by_hand"])
def test_a_network_of_a_script_is_played(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of scripts and notebooks have no spec, and importlib refuses to look for one."""
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    teacher = make_teacher()
    teacher.policy.mlp_extractor.policy_net.append(type("OwnLayer", (th.nn.Identity,), {"__module__": module})())
    _is_installed.cache_clear()
    assert not any(PLAN.play(teacher, "a").is_cached for _ in range(2))


def test_it_can_be_switched_off() -> None:
    plan = plan_evaluation(make_teacher(), CARTPOLE, 3, cache=False)
    assert not any(plan.play("random", "a").is_cached for _ in range(2))
    assert n_kept() == 0


def test_planning_is_kept_too() -> None:
    teacher = make_teacher()
    first = plan_evaluation(teacher, CARTPOLE)
    assert n_kept() == 2 and plan_evaluation(teacher, CARTPOLE) == first


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert not any(PLAN.play("random", "a").is_cached for _ in range(2))


def kept_file() -> Path:
    (path,) = cache_folder().glob("*.json")
    return path


def test_a_damaged_file_is_never_believed() -> None:
    """Cut off anywhere, or with any byte changed, it is no error and no hit, and the episodes are kept anew."""
    first = PLAN.play("random", "a")
    path, whole = kept_file(), kept_file().read_bytes()
    places = np.random.default_rng(0).choice(len(whole), 20, replace=False)
    cut = [whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)]
    changed = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
    other = [b"[]", b"null", b"{}", b'{"checksum": 1}', b"\xff\xfe", b"[" * 100_000, whole.replace(b"lengths", b"lenghts")]
    for damaged in (*cut, *changed, *other):
        path.write_bytes(damaged)
        again = PLAN.play("random", "a")
        assert not again.is_cached, damaged[:80]
        assert_same(first, again)
        assert path.read_bytes() != damaged and PLAN.play("random", "a").is_cached


def test_a_renamed_file_is_never_believed() -> None:
    PLAN.play("random", "a")
    path = kept_file()
    content = path.read_bytes()
    path.unlink()
    later = replace(PLAN, seed=3)
    later.play("random", "a")
    kept_file().write_bytes(content)
    assert not later.play("random", "a").is_cached


def write_and_read(kind: str, output: Path) -> None:
    """
    What a process does: it plays the same episodes over and over.

    :param kind: ``"writes"`` deletes the file each time, ``"reads"`` does not, and ``"dies"`` ends before the file is moved
    :param output: file for the returns of each time
    """
    if kind == "dies":
        os.replace = lambda *_: os._exit(9)
    returns = []
    for _ in range(30):
        returns.append(PLAN.play("random", "a").returns.tolist())
        if kind == "writes":
            for path in cache_folder().glob("*.json"):
                path.unlink(missing_ok=True)
    output.write_text(json.dumps(returns))


# a forked process imports nothing: it starts at once, so that all of them are at work at the same time
PROCESSES = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")


def test_processes_that_write_at_once_or_die(tmp_path: Path) -> None:
    """Two processes write and delete the same file over and over while two read it, and one dies while it writes."""
    expected = PLAN.play("random", "a").returns.tolist()
    kept_file().unlink()
    dying = PROCESSES.Process(target=write_and_read, args=("dies", tmp_path / "dies"))
    dying.start()
    dying.join(300)
    assert dying.exitcode == 9 and n_kept() == 0
    outputs = {tmp_path / f"{kind} {i}": kind for kind in ("writes", "reads") for i in range(2)}
    processes = [PROCESSES.Process(target=write_and_read, args=(kind, output)) for output, kind in outputs.items()]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 4
    for output in outputs:
        assert json.loads(output.read_text()) == [expected] * 30
