from functools import partial

import gymnasium as gym
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.envs import FakeImageEnv

from sb3_qpd.evaluation.comparison import plan_evaluation
from sb3_qpd.search.planning import plan_trials
from sb3_qpd.search.settings import SearchSettings
from sb3_qpd.search.tasks import Job
from sb3_qpd.teachers.loading import load_teacher


def make_images() -> FakeImageEnv:
    return FakeImageEnv(screen_height=8, screen_width=8, n_channels=1)


def test_a_budget_that_fits_with_some_bits_only() -> None:
    teacher = load_teacher(PPO("MlpPolicy", make_images(), device="cpu"))
    plan = plan_evaluation(teacher, make_images, 4)
    job = Job(teacher, make_images, [], plan, plan, [], 2, 100, {"device": "cpu"})
    settings = SearchSettings(("150B",), ("8", "2"), seeds=1)
    with pytest.warns(UserWarning, match="150B-W8A8 cannot be tried: .* The smallest student takes 153 bytes"):
        trials = plan_trials(job, settings, lambda distiller: None)
    assert [trial.configuration.name for trial in trials] == ["150B-W2A2"]


def test_a_student_with_two_names_is_tried_once() -> None:
    """The `nano` student of a vector has two layers of 8 units. Its convolutions are for images."""
    make_env = partial(gym.make, "CartPole-v1")
    teacher = load_teacher(PPO("MlpPolicy", make_env(), device="cpu"))
    plan = plan_evaluation(teacher, make_env, 4)
    job = Job(teacher, make_env, [], plan, plan, [], 2, 100, {"device": "cpu"})
    settings = SearchSettings(("nano", {"hidden": [8, 8]}, {"hidden": [8]}, "284B"), ("8", "4"), seeds=1)
    with pytest.warns(UserWarning, match="tried once: hidden-8-8-W8A8 is nano-W8A8, .*284B-W8A8 is nano-W8A8"):
        trials = plan_trials(job, settings, lambda distiller: None)
    names = {trial.configuration.name for trial in trials}
    assert {"nano-W8A8", "nano-W4A4", "hidden-8-W8A8", "hidden-8-W4A4"} <= names and "284B-W8A8" not in names
