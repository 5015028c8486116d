"""Actions in units of what the teacher does, and features of the observation that the input grid has to resolve."""

import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import QUICK, Pointer, actor_of, assert_same_bits, pointers, untrained

from sb3_qpd import QPDDistiller, load_student, load_teacher
from sb3_qpd.distillation.initialization import float_image_statistics, measure_action_unit
from sb3_qpd.distillation.inputs import grid_levels, range_without_outliers
from sb3_qpd.spaces import half_range
from sb3_qpd.students.layers import VectorGrid

FLOAT32_MAX = float(np.finfo(np.float32).max)
FAST = {**QUICK, "learning_rate": 1e-2, "student_arch": "tiny"}


class Draws(gym.Env):
    """
    Observations are drawn anew in each step, and actions change nothing: only the student's answers matter.

    :param draw: a generator's function to one observation
    :param action_space: space of the actions
    """

    def __init__(self, draw: Any, action_space: spaces.Box) -> None:
        self.draw, self.action_space = draw, action_space
        self.observation_space = spaces.Box(-np.inf, np.inf, draw(np.random.default_rng(0)).shape, np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.draw(self.np_random), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.draw(self.np_random), 0.0, False, self.t >= 25, {}


def normal(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=3)


def explained(student: Any, teacher: Any, observations: np.ndarray) -> np.ndarray:
    """Share of the variance of each action that the student explains."""
    a, b = student.predict(observations, deterministic=True)[0], teacher.predict(observations, deterministic=True)[0]
    a, b = a.astype(np.float64), b.astype(np.float64)
    return 1 - ((a - b) ** 2).mean(0) / b.var(0)


def teacher_in(box: spaces.Box, scale: Any = 1.0, offset: Any = 0.0, draw: Any = normal) -> PPO:
    """The mean action is the offset, and a smooth function of the observation of about the given size."""
    model = untrained(DummyVecEnv([lambda: Draws(draw, box)] * 32))
    with th.no_grad():
        model.policy.action_net.weight.mul_(100 * th.as_tensor(scale, dtype=th.float32).reshape(-1, 1))
        model.policy.action_net.bias.copy_(th.as_tensor(offset, dtype=th.float32).expand(len(model.policy.action_net.bias)))
    return model


@pytest.mark.parametrize("bound", [3.0, 100.0, 1e4, FLOAT32_MAX])
def test_a_student_is_as_good_in_a_box_far_wider_than_its_actions(bound):
    """Isaac Lab's wrapper makes every unbounded action a Box of -100 to 100."""
    model = teacher_in(spaces.Box(-bound, bound, (2,)))
    student = QPDDistiller(model, **FAST).learn(2_000)
    assert (explained(student.policy.to_integer(), model, np.random.default_rng(1).normal(size=(500, 3))) > 0.9).all()
    assert (student.policy.action_unit < 3.1).all()


def test_actions_of_any_size_and_offset():
    """Also where the teacher fills its box: weights change by absolute steps, and could not follow."""
    scale, offset = np.array([1e-3, 1.0, 1e4]), np.array([0.0, 300.0, -2e5])
    box = spaces.Box((offset - 3 * scale).astype(np.float32), (offset + 3 * scale).astype(np.float32))
    model = teacher_in(box, scale, offset)
    student = QPDDistiller(model, **FAST).learn(4_000)
    observations = np.random.default_rng(1).normal(size=(500, 3))
    integer = assert_same_bits(student.policy, observations)
    assert (explained(integer, model, observations) > 0.9).all()
    np.testing.assert_allclose(integer.metadata["action_unit"], student.policy.action_unit)


def test_units_are_half_the_range_where_the_teacher_uses_it():
    rng, box = np.random.default_rng(0), spaces.Box(-2, 2, (1,))
    assert measure_action_unit(rng.uniform(-2, 2, (500, 1)), box) == 2
    assert measure_action_unit(rng.normal(0, 0.6, (500, 1)), box) == 2
    assert measure_action_unit(9 * rng.normal(size=(500, 1)), box) == 2, "clipped first"
    assert measure_action_unit(0.1 * rng.normal(size=(500, 1)), box) == pytest.approx(0.4, rel=0.2)
    assert measure_action_unit(np.full((500, 1), 0.5), box) == 0.5
    assert measure_action_unit(np.zeros((500, 1)), spaces.Box(-FLOAT32_MAX, FLOAT32_MAX, (1,))) == 1
    assert half_range(spaces.Box(-FLOAT32_MAX, FLOAT32_MAX, (1,))) == np.float32(FLOAT32_MAX)
    assert half_range(spaces.Box(2, 2, (1,))) == 1, "a fixed action"


def test_units_come_back_from_a_zip_and_from_one_without_them(tmp_path):
    model = teacher_in(spaces.Box(-100, 100, (2,)), 30.0)
    student = QPDDistiller(model, **FAST).learn(500)
    assert (student.policy.action_net.output_unit > 10).all()
    student.save(tmp_path / "student.zip")
    observations = np.random.default_rng(1).normal(size=(50, 3))
    for loaded in (QPDDistiller.load(tmp_path / "student.zip", device="cpu"), load_student(tmp_path / "student.zip")):
        np.testing.assert_array_equal(actor_of(loaded.policy, observations), actor_of(student.policy, observations))
        assert th.equal(loaded.policy.action_unit, student.policy.action_unit)
    older = QPDDistiller(pointers_box(), **QUICK)
    state = older.policy.state_dict()
    del state["action_net.action_unit"], state["action_net.output_unit"]
    older.policy.load_state_dict(state)
    assert (older.policy.action_unit == 5).all()


def pointers_box() -> PPO:
    return untrained(pointers(spaces.Box(-3, 7, (2,))))


def test_a_discrete_action_has_no_unit():
    with pytest.raises(ValueError, match="Only Box actions have units"):
        QPDDistiller(untrained(pointers()), **QUICK).policy.action_unit  # noqa: B018


def test_a_deterministic_teacher_explores_in_its_units():
    """A tenth of half the range would be noise of 100, and its actions are of order one."""
    env = DummyVecEnv([lambda: Draws(normal, spaces.Box(-1e3, 1e3, (1,)))] * 4)
    model = TD3("MlpPolicy", env, device="cpu", seed=0, learning_starts=0, buffer_size=10)
    with th.no_grad():
        model.actor.mu[-2].weight.mul_(1e-3)
        model.actor.mu[-2].bias.zero_()
    played: list[float] = []
    student = QPDDistiller(model, **QUICK).learn(
        400, callback=lambda scope, _: played.extend(np.abs(scope["actions"]).ravel()) or True
    )
    labels = student._buffer.labels("actor")
    assert np.quantile(played, 0.9) < 3 * np.abs(labels).max() < 30
    assert student.policy.log_std.exp().item() == pytest.approx(0.1 * student.policy.action_unit.item(), rel=1e-3)


def test_integer_boxes_are_played_in_floats():
    """As SB3 does, in learn() and from predict()."""
    seen = []

    class Whole(Draws):
        def step(self, action: Any) -> Any:
            seen.append(np.array(action))
            return super().step(action)

    env = DummyVecEnv([lambda: Whole(normal, spaces.Box(-10, 10, (2,), np.int64))])
    QPDDistiller(untrained(env), **QUICK).learn(60)
    assert all(action.dtype.kind == "f" for action in seen) and np.mod(seen, 1).any()


# the right answer without its outliers, and observations that hold some
def sentinel(rng: np.random.Generator, share: float = 0.05, value: float = 999.0) -> np.ndarray:
    observation = rng.normal(size=3)
    observation[0] = value if rng.random() < share else observation[0]
    return observation


def clipping_teacher(draw: Any) -> PPO:
    """It sees the outliers clipped, as by VecNormalize."""
    env = VecNormalize(DummyVecEnv([lambda: Draws(draw, spaces.Box(-1, 1, (1,)))] * 32), norm_reward=False, training=False)
    env.obs_rms.mean, env.obs_rms.var = np.zeros(3), np.ones(3)
    model = untrained(env)
    with th.no_grad():
        model.policy.action_net.weight.mul_(60)
    return model


@pytest.mark.parametrize("value", [999.0, -1e6, 3e38])
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_rare_outliers_do_not_take_the_grid(value, share):
    def draw(rng: np.random.Generator) -> np.ndarray:
        return sentinel(rng, share, value)

    model = clipping_teacher(draw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to warn of
        student = QPDDistiller(model, **FAST).learn(2_500)
    usual = np.random.default_rng(1).normal(size=(500, 3))
    integer = assert_same_bits(student.policy, usual)
    assert explained(integer, student.teacher, usual) > 0.9
    (finding,) = student.input_findings
    assert finding["feature"] == "0" and finding["kind"] == "saturates" and -30 < finding["low"] < finding["high"] < 30
    assert all(th.isfinite(value.float()).all() for value in student.policy.state_dict().values())


def test_float_images_with_a_missing_depth():
    def depth(rng: np.random.Generator) -> np.ndarray:
        image = rng.normal(size=(1, 12, 12)).astype(np.float32)
        image[0, 3, 4] = 3e38 if rng.random() < 0.1 else image[0, 3, 4]
        return image

    drawn = np.stack([depth(np.random.default_rng(i)) for i in range(200)])
    mean, std = float_image_statistics(drawn)
    assert abs(mean) < 0.1 and std == pytest.approx(1, abs=0.1)
    usual = np.random.default_rng(0).normal(size=(200, 1, 12, 12)).astype(np.float32)
    assert float_image_statistics(usual) == (float(usual.mean()), float(usual.std()))
    grid = VectorGrid(1, largest=32)
    grid.mean.fill_(mean)
    grid.std.fill_(std)
    assert len(grid(th.as_tensor(drawn)).unique()) > 24


def test_findings_stay_with_the_student(tmp_path):
    student = QPDDistiller(clipping_teacher(sentinel), **FAST).learn(1_000)
    student.save(tmp_path / "student.zip")
    assert load_student(tmp_path / "student.zip").input_findings == student.input_findings != []
    four = student.post_training_quantize(4, 4)
    usual = np.random.default_rng(1).normal(size=(500, 3))
    levels = four.policy.features_extractor.input_grid(th.as_tensor(usual, dtype=th.float32))
    assert len(levels[:, 0].unique()) > 16, "also where it is calibrated anew"


def test_ordinary_features_are_left_alone():
    student = QPDDistiller(untrained(pointers()), **QUICK).learn(1_000)
    assert student.input_findings == []


def test_levels_of_discrete_features():
    """A switch needs two levels, and a contact that is rarely made none of its own."""
    rng = np.random.default_rng(0)
    switch, contact = rng.integers(0, 2, 1_000), rng.random(1_000) < 0.02
    values = np.stack([switch, contact, rng.normal(size=1_000)], axis=1).astype(np.float64)
    levels, too_few = grid_levels(values, np.array([0.25, 0.25, 0.25]))
    assert levels[0] == 4 and list(too_few) == [False, False, True]
    assert grid_levels(values, np.array([0.9, 0.9, 0.01]))[1].tolist() == [True, False, False]


def test_a_long_tail_is_no_outlier():
    """Angles of a lander that mostly rests reach far and without a gap; a 999 stands alone."""
    rng = np.random.default_rng(0)
    tail = np.concatenate([rng.normal(0, 0.01, 700), rng.standard_t(2, 300) * 0.1])
    assert range_without_outliers(tail) == (tail.min(), tail.max())
    for share in (0.01, 0.1):
        usual = rng.normal(size=1_000)
        seen = np.where(rng.random(1_000) < share, 999.0, usual)
        assert range_without_outliers(seen) == (seen.min(), seen[seen < 999].max())
    resting = np.concatenate([rng.normal(0, 1e-4, 850), rng.uniform(0.01, 1.4, 150)])
    assert range_without_outliers(resting) == (resting.min(), resting.max())
    contact = (rng.random(1_000) < 0.02).astype(float)
    assert range_without_outliers(contact) == (0.0, 1.0)


def test_a_student_of_a_real_task_keeps_its_range():
    """LunarLander's angles are small for its teacher and large for a young student, which must see them."""
    folder = Path(__file__).parents[2] / "examples" / "teachers" / "ppo" / "LunarLander-v3_1"
    settings = {"student_arch": "tiny", "device": "cpu", "seed": 0, "check_teacher": False}
    student = QPDDistiller(str(folder), **settings)
    student.learn(60_000, callback=lambda now, _: not now["self"]._is_fitted)  # collects 6,000 observations, and fits to them
    assert student._is_fitted and student.input_findings == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_observations_that_no_student_takes_are_refused_by_name(value):
    def broken(rng: np.random.Generator) -> np.ndarray:
        return np.array([0.0, value if rng.random() < 0.2 else 0.0, 0.0])

    env = DummyVecEnv([lambda: Draws(broken, spaces.Box(-1, 1, (1,)))] * 8)
    with pytest.raises(ValueError, match="observations hold NaN, infinity or a number beyond float32, first in feature 1"):
        QPDDistiller(untrained(env), **QUICK).learn(400)


def test_the_same_vectors_on_one_and_two_threads():
    before, students, teacher = th.get_num_threads(), [], load_teacher(untrained(pointers()))
    try:
        for n_threads in (1, 2):
            th.set_num_threads(n_threads)
            students.append(QPDDistiller(teacher, env=pointers(), **QUICK).learn(400))
    finally:
        th.set_num_threads(before)
    np.testing.assert_array_equal(*(actor_of(student.policy, Pointer.sample(100)) for student in students))
