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
