"""The record of learning changes nothing in the student, survives a killed run, and says what it saw."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from toys import BOX, QUICK, Pointer, assert_equal_states, pointers, untrained

import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import Checkpoint, LearningRecord, QPDDistiller
from sb3_qpd.evaluation.learning_record import unchanged_generators

STEPS = 640


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", 64)


class Careless(Pointer):
    """An environment that draws from, and seeds, the global generators."""

    def step(self, action: Any) -> Any:
        random.seed(1)
        np.random.seed(1)
        th.manual_seed(1)
        return super().step(action)


def record(env: Any = Careless, **options: Any) -> LearningRecord:
    return LearningRecord(env, **{"n_episodes": 4, "max_share": 1e6, **options})


def make(action_space: Any = None, **options: Any) -> QPDDistiller:
    env = pointers() if action_space is None else pointers(action_space)
    return QPDDistiller(untrained(env), **QUICK, **options)


@pytest.mark.parametrize("action_space", [None, BOX], ids=["discrete", "box"])
def test_the_student_is_the_same_bit_for_bit(action_space: Any) -> None:
    alone = make(action_space).learn(STEPS)
    seen = record((lambda: Careless(BOX)) if action_space is BOX else Careless)
    recorded = make(action_space).learn(STEPS, callback=seen)
    assert_equal_states(alone, recorded)
    assert alone._rng.bit_generator.state == recorded._rng.bit_generator.state
    found = seen.to_json()
    assert [score["steps"] for score in found["scores"]] == list(range(64, STEPS + 1, 64))
    assert [score["episodes"] for score in found["scores"]] == [4] * 10
    names = {"steps", "actor_loss", "critic_loss", "mean_weight_bits", "transition", "scores", "seed", "seconds"}
    assert found.keys() == names | ({"action_error"} if action_space is BOX else {"kl", "agreement"})
    assert found["steps"] == sorted(set(found["steps"])) and found["steps"][-1] == STEPS
    assert found["transition"][0] == 0 and found["transition"][-1] == 1
    assert found["mean_weight_bits"][0] == 32 and found["mean_weight_bits"][-1] == 8
    assert found["seconds"] > 0 and all(map(math.isfinite, found["actor_loss"]))


class Stop(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps >= 400:
            raise KeyboardInterrupt
        return True


def test_a_run_that_goes_on_has_the_whole_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = record()
    make().learn(STEPS, callback=whole)
    with pytest.raises(KeyboardInterrupt):
        make().learn(STEPS, callback=[Stop(), record()], checkpoint=Checkpoint(tmp_path, every=64))
    again = record()
    monkeypatch.setattr(Stop, "_on_step", lambda self: True)
    make().learn(STEPS, callback=[Stop(), again], checkpoint=Checkpoint(tmp_path, every=64, resume=True))
    ours, theirs = ({**one.to_json(), "seconds": 0} for one in (whole, again))
    assert ours == theirs


def test_validations_that_take_too_long_are_left_out() -> None:
    seen = record(max_share=1e-9)
    make().learn(STEPS, callback=seen)
    assert len(seen.scores) == 1 and len(seen.rows) > 5  # how long one takes is known after the first


def test_an_environment_that_fails_ends_the_validations_alone() -> None:
    class Failing(Pointer):
        def step(self, action: Any) -> Any:
            raise RuntimeError("out of order")

    seen = record(Failing)
    with pytest.warns(UserWarning, match="No more validation episodes while the student learns: .*out of order") as warned:
        student = make().learn(STEPS, callback=seen)
    assert student.num_timesteps == STEPS and seen.scores == [] and len(seen.rows) > 5
    assert sum("No more validation" in str(one.message) for one in warned) == 1


def test_the_record_needs_an_environment_of_its_own() -> None:
    with pytest.raises(ValueError, match="LearningRecord needs an environment of its own"):
        make().learn(STEPS, callback=LearningRecord())
    student = make()
    with pytest.raises(ValueError, match="got the environment that the student learns in"):
        student.learn(STEPS, callback=LearningRecord(student.env))
    with pytest.raises(ValueError, match="max_share must be a positive number, got 0"):
        LearningRecord(max_share=0)


def test_tensorboard_shows_the_validations(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = record(n_scores=2)
    make(tensorboard_log=str(tmp_path)).learn(STEPS, callback=seen)
    log = EventAccumulator(str(tmp_path / "QPD_1")).Reload()
    values = [(event.step, event.value) for event in log.Scalars("validation/return_mean")]
    assert values == [(steps, pytest.approx(mean)) for steps, mean, *_ in seen.scores] and len(values) == 2


def test_generators_go_on() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.random()), float(th.rand(()))

    random.seed(0), np.random.seed(0), th.manual_seed(0)
    first, second = draw(), draw()
    random.seed(0), np.random.seed(0), th.manual_seed(0)
    assert draw() == first
    with unchanged_generators():
        draw()
    assert draw() == second
