"""What learn() owes to its arguments, to SB3's and RL Zoo's callbacks, and to the log."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import BOX, DISCRETE, QUICK, Pointer, assert_equal_states, assert_same_bits, pointers, score, taught, untrained

import sb3_qpd.distillation.distiller as distilling
from sb3_qpd import QPDDistiller, load_teacher
from sb3_qpd.distillation.callbacks import StageBar

OBSERVATIONS = Pointer.sample(200)


@pytest.fixture(scope="module")
def teacher() -> PPO:
    return taught()


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has a line for every 512 steps."""
    monkeypatch.setattr(distilling, "ROLLOUT_STEPS", 512)


def test_steps_are_counted_on_or_anew():
    student = QPDDistiller(untrained(pointers()), **QUICK)
    assert student.learn(100).num_timesteps == 104
    assert student.learn(100, reset_num_timesteps=False).num_timesteps == 208
    assert student.learn(50).num_timesteps == 56
    assert student.seconds_learning > 0 and len(student.ep_info_buffer) == 0


class Contract(BaseCallback):
    """What RL Zoo's and SB3's callbacks rely on."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def _on_training_start(self) -> None:
        assert self.locals["total_timesteps"] == 2_100 and "QPDDistiller" in self.globals
        assert self.training_env is self.model.env and self.logger is self.model.logger
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        scope = self.locals
        assert scope["env"] is self.model.env and len(scope["infos"]) == 8
        assert scope["rewards"].shape == scope["dones"].shape == (8,) and scope["new_obs"].shape == (8, 3)
        assert scope["n_steps"] >= 1 and self.num_timesteps == self.model.num_timesteps == 8 * self.n_calls
        return True

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_what_callbacks_rely_on():
    callback = Contract()
    student = QPDDistiller(untrained(pointers()), **QUICK).learn(2_100, callback=[callback], progress_bar=True)
    assert callback.n_calls == 263
    rounds = ["rollout start", "rollout end"]
    assert callback.events == ["training start", *rounds, *rounds, "training end"]
    assert len(student.ep_info_buffer) == 100 and student.ep_info_buffer[0]["l"] == 10


def test_stopping():
    student = QPDDistiller(untrained(pointers()), **QUICK)
    assert student.learn(1_000, callback=lambda scope, _: scope["self"].num_timesteps < 40).num_timesteps == 40
    assert student.learn(1_000, callback=StopTrainingOnMaxEpisodes(2)).num_timesteps == 160  # 8 environments end at once
    assert_same_bits(student.policy, OBSERVATIONS)


def test_evaluation_is_of_the_student(teacher, tmp_path):
    frozen = QPDDistiller(teacher, **QUICK, learning_rate=0.0)
    callback = EvalCallback(
        Monitor(Pointer()),
        callback_on_new_best=StopTrainingOnRewardThreshold(9.9, verbose=0),
        eval_freq=20,
        n_eval_episodes=10,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    frozen.learn(800, callback=callback)
    results = np.load(tmp_path / "evaluations.npz")["results"]
    assert results.shape == (5, 10) and results.mean() < 7 < score(load_teacher(teacher))
    student = QPDDistiller(teacher, **QUICK, learning_rate=2e-2).learn(
        2_000,
        callback=EvalCallback(
            Monitor(Pointer()), eval_freq=50, n_eval_episodes=10, best_model_save_path=str(tmp_path), verbose=0
        ),
    )
    best = QPDDistiller.load(tmp_path / "best_model.zip", device="cpu")
    integer = assert_same_bits(best.policy, OBSERVATIONS)
    assert score(best) == score(integer) > 7
    assert best.num_timesteps <= student.num_timesteps


def test_evaluation_is_of_raw_observations(teacher, tmp_path):
    """The VecNormalize of an evaluation's environment, as PPO would have it, is taken off like that of the training."""
    normalized = VecNormalize(DummyVecEnv([lambda: Monitor(Pointer())]), training=False)  # clips what matters
    evaluation = EvalCallback(normalized, n_eval_episodes=20, eval_freq=1, verbose=0)
    student = QPDDistiller(teacher, **QUICK, learning_rate=2e-2)
    student.learn(2_000, callback=[CheckpointCallback(10**6, str(tmp_path)), EveryNTimesteps(2_000, evaluation)])
    assert evaluation.n_calls == 1 and evaluation.last_mean_reward > 7
    assert evaluation.eval_env is normalized.venv


def test_checkpoints_go_on_where_they_stood(tmp_path):
    model = untrained(pointers())
    student = QPDDistiller(model, **QUICK).learn(800, callback=CheckpointCallback(25, str(tmp_path), verbose=0))
    progress = []
    for steps in (200, 400, 600, 800):
        loaded = QPDDistiller.load(tmp_path / f"rl_model_{steps}_steps.zip", env=pointers(), teacher=model, device="cpu")
        assert_same_bits(loaded.policy, OBSERVATIONS)
        progress.append(loaded._transition_progress)
        assert loaded.num_timesteps == steps
    assert progress == sorted(progress) and progress[0] == 0 < progress[1] < 1 == progress[3]
    assert_equal_states(student, loaded)


def test_tensorboard_and_logs(short_rounds, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    student = QPDDistiller(untrained(pointers(n_envs=16)), **QUICK, tensorboard_log=str(tmp_path))
    student.learn(1_100, log_interval=1, tb_log_name="first")
    student.learn(100, log_interval=None, tb_log_name="first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first_1", "first_2"]
    log = EventAccumulator(str(tmp_path / "first_1")).Reload()
    tags = (
        "rollout/ep_rew_mean",
        "train/actor_loss",
        "train/critic_loss",
        "train/learning_rate",
        "train/transition",
        "time/fps",
    )
    assert set(tags) <= set(log.Tags()["scalars"])
    assert [event.step for event in log.Scalars("train/actor_loss")] == [512, 1_024, 1_104]
    assert all(math.isfinite(event.value) for tag in tags for event in log.Scalars(tag))


def test_own_logger_and_the_teachers_score(teacher, tmp_path):
    student = QPDDistiller(teacher, **{**QUICK, "check_teacher": True})
    student.set_logger(configure(str(tmp_path), ["csv"]))
    student.learn(2_048, log_interval=1)
    columns = dict(
        zip(*((line.split(",")) for line in Path(tmp_path / "progress.csv").read_text().splitlines()[:2]), strict=True)
    )
    assert float(columns["teacher/ep_rew_mean"]) > 8 > 5 > float(columns["teacher/random_ep_rew_mean"])


def test_an_interrupted_student_can_be_saved_and_learn_on(tmp_path):
    def interrupt(scope: dict[str, object], _: object) -> bool:
        if student.num_timesteps == 200:
            raise KeyboardInterrupt
        return True

    student = QPDDistiller(untrained(pointers()), **QUICK)
    with pytest.raises(KeyboardInterrupt):
        student.learn(1_000, callback=interrupt)
    assert student.seconds_learning > 0 and student._n_updates > 0
    student.save(tmp_path / "student.zip")
    assert_same_bits(QPDDistiller.load(tmp_path / "student.zip", device="cpu").policy, OBSERVATIONS)
    assert student.learn(80, reset_num_timesteps=False).num_timesteps == 280


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_the_log_tells_how_close_the_student_is(action_space, short_rounds, tmp_path):
    student = QPDDistiller(untrained(pointers(action_space)), **QUICK, weight_bits=4)
    student.set_logger(configure(str(tmp_path), ["csv"]))
    student.learn(1_550)
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    bits = [float(row["student/mean_weight_bits"]) for row in rows]
    assert bits[0] > bits[-1] and 4 < bits[-1] < 8  # first layer and head keep 8
    if action_space is DISCRETE:
        samples = student._buffer.newest(500)
        mine = student.policy.to_integer().predict(samples.observations.numpy(), deterministic=True)[0]
        agreement = (mine == samples.targets.actor.argmax(1).numpy()).mean()
        assert float(rows[-1]["student/agreement"]) == pytest.approx(agreement, abs=0.1)
        assert float(rows[-1]["student/kl"]) >= 0
    else:
        assert 0 <= float(rows[-1]["student/action_error"]) < 1


def test_the_students_episodes_are_counted_apart(teacher, short_rounds, tmp_path):
    """A student that never learns beside a good teacher: their mean is neither's return."""
    student = QPDDistiller(teacher, **QUICK, learning_rate=0.0, beta=0.5, roll_in=False, learning_starts=0)
    student.set_logger(configure(str(tmp_path), ["csv"]))
    student.learn(1_000)
    row = list(csv.DictReader((tmp_path / "progress.csv").open()))[-1]
    assert float(row["rollout/student_ep_rew_mean"]) + 1 < float(row["rollout/ep_rew_mean"])
    assert float(row["rollout/student_ep_len_mean"]) == 10


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_bar_names_the_stage_and_the_quality(monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(StageBar, "tell", lambda bar, text: told.append(text))
    QPDDistiller(untrained(pointers()), **QUICK).learn(2_100, progress_bar=True)
    assert told[:2] == ["collecting", "calibrating"] and "agreement" in told[-1]
