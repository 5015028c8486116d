import math

import pytest
import torch as th

from sb3_qpd.distillation.losses import (
    actor_critic,
    categorical_kl,
    clamp_to_box,
    gaussian_kl,
    huber,
    log_std_error,
    squared_error,
    value_error,
)

HALF = th.tensor([2.0, 0.5])
LOW, HIGH = th.tensor([-1.0, 0.0]), th.tensor([3.0, 1.0])
MEANS = th.tensor([[1.0, 0.25], [0.0, 0.5], [-3.0, 0.75]])
LOG_STDS = th.tensor([[0.1, -0.2], [0.0, 0.3], [-0.5, 0.0]])


def test_categorical_kl_by_hand():
    student = th.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    teacher = th.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])
    # p = (1/4, 3/4) against q = (1/2, 1/2), then against q = (3/4, 1/4)
    expected = [0.25 * math.log(0.5) + 0.75 * math.log(1.5), 0.25 * math.log(1 / 3) + 0.75 * math.log(3)]
    th.testing.assert_close(categorical_kl(student, teacher), th.tensor(expected))


def test_temperature_sharpens_the_teacher_only():
    student, teacher = th.tensor([[0.5, -1.0, 2.0]]), th.tensor([[1.0, 0.0, 0.5]])
    th.testing.assert_close(categorical_kl(student, teacher, temperature=0.25), categorical_kl(student, 4 * teacher))
    p = th.softmax(4 * teacher, 1)
    expected = (p * (p.log() - th.log_softmax(student, 1))).sum(1)
    th.testing.assert_close(categorical_kl(student, teacher, temperature=0.25), expected)


def test_masked_actions_of_the_teacher_cost_nothing():
    teacher = th.tensor([[1.0, -1e8, 0.0]])
    student = th.tensor([[1.0, 5.0, 0.0]])
    assert categorical_kl(student, teacher).item() == pytest.approx(math.log(math.e + math.exp(5) + 1) - math.log(math.e + 1))


def test_gaussian_kl_by_hand_and_as_torch_has_it():
    student, teacher = th.tensor([[0.0, 0.0]]), th.tensor([[1.0, 0.0]])
    # log(s/t) + (t^2 + 1) / (2 s^2) - 1/2 with s = 2, t = 1; the other dimension is equal
    result = gaussian_kl(student, th.tensor([math.log(2), 0.0]), teacher, th.tensor([[0.0, 0.0]]), unit=HALF)
    th.testing.assert_close(result, th.tensor([math.log(2) + 2 / 8 - 0.5]))

    student_log_std = LOG_STDS.flip(0)
    expected = th.distributions.kl_divergence(
        th.distributions.Normal(MEANS, LOG_STDS.exp()), th.distributions.Normal(MEANS.flip(1), student_log_std.exp())
    ).sum(1)
    th.testing.assert_close(gaussian_kl(MEANS.flip(1), student_log_std, MEANS, LOG_STDS, unit=HALF), expected)


def test_gaussian_kl_floors_both_deviations():
    far_below, floor = th.full((1, 2), -50.0), (0.1 * HALF).log()[None]
    student, teacher = th.zeros(1, 2), th.ones(1, 2)
    expected = gaussian_kl(student, floor, teacher, floor, unit=HALF, min_std=0.1)
    th.testing.assert_close(gaussian_kl(student, far_below, teacher, far_below, unit=HALF, min_std=0.1), expected)
    th.testing.assert_close(expected, (0.5 / (0.1 * HALF) ** 2).sum()[None])


def test_a_deviation_below_the_floor_finds_its_way_up():
    log_std = th.full((2,), -4.0, requires_grad=True)  # the floor is at 0.05 * 2 and 0.05 * 0.5
    gaussian_kl(MEANS, log_std, MEANS, LOG_STDS, unit=th.tensor([2.0, 2.0])).mean().backward()
    assert (log_std.grad < 0).all()
    log_std.grad = None
    below = th.full_like(LOG_STDS, -10.0)  # and stays where the teacher's is floored too
    gaussian_kl(MEANS, log_std, MEANS, below, unit=th.tensor([2.0, 2.0])).mean().backward()
    assert (log_std.grad.abs() < 1e-5).all()


def test_squared_error_by_hand():
    result = squared_error(th.tensor([[1.0, 0.5], [0.0, 0.0]]), th.tensor([[-1.0, 0.25], [0.0, 0.0]]), unit=HALF)
    th.testing.assert_close(result, th.tensor([0.5 * (1.0 + 0.25), 0.0]))


def test_huber_by_hand():
    # errors in half ranges: 1 (linear), 0.1 (quadratic)
    result = huber(th.tensor([[2.0, 0.05]]), th.zeros(1, 2), unit=HALF, delta=0.3)
    th.testing.assert_close(result, th.tensor([(1 - 0.15) + 0.1**2 / 0.6]))


def test_huber_has_slope_one_far_away_in_either_direction():
    mean = th.tensor([[100.0, -100.0]], requires_grad=True)
    huber(mean, th.zeros(1, 2), unit=HALF).backward()
    th.testing.assert_close(mean.grad, th.tensor([[0.5, -2.0]]))  # one, in units of half the range


def test_log_std_error_by_hand():
    result = log_std_error(th.tensor([[0.0, 1.0]]), th.tensor([[2.0, 1.0]]))
    th.testing.assert_close(result, th.tensor([2.0]))


def test_value_error_is_in_units_of_the_teachers_deviation():
    student, teacher = th.tensor([10.0, 130.0]), th.tensor([0.0, 100.0])
    result = value_error(student, teacher, std=th.tensor(20.0))
    th.testing.assert_close(result, th.tensor([0.5 * 0.5**2, 1.5 - 0.5]))
    # another environment with all values a thousand times as large: the same loss
    th.testing.assert_close(value_error(1000 * student, 1000 * teacher, std=th.tensor(20_000.0)), result)


def test_actor_critic_adds_the_two():
    th.testing.assert_close(actor_critic(th.tensor([1.0, 2.0]), th.tensor([4.0, 8.0]), critic_coef=0.5), th.tensor([3.0, 6.0]))


def test_without_critic_not_even_nan_comes_through():
    value = th.tensor([float("nan")], requires_grad=True)
    actor = th.tensor([1.0], requires_grad=True)
    actor_critic(actor * 2, value * 2, critic_coef=0).sum().backward()
    assert value.grad is None and actor.grad is not None


# every loss as a function of what the student says and of what the teacher says
LOSSES = {
    "categorical_kl": lambda s, t: categorical_kl(s, t),
    "cold categorical_kl": lambda s, t: categorical_kl(s / 0.3, t, temperature=0.3),
    "gaussian_kl": lambda s, t: gaussian_kl(s, LOG_STDS[: len(s)], t, LOG_STDS[: len(s)], unit=HALF),
    "deviation of gaussian_kl": lambda s, t: gaussian_kl(MEANS[: len(s)], s, MEANS[: len(s)], t, unit=HALF),
    "squared_error": lambda s, t: squared_error(s, t, unit=HALF),
    "huber": lambda s, t: huber(s, t, unit=HALF),
    "log_std_error": lambda s, t: log_std_error(s, t),
    "value_error": lambda s, t: value_error(s[:, 0], t[:, 0], std=th.tensor(3.0)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_one_value_per_sample_zero_at_equality_and_positive_elsewhere(loss):
    equal = loss(MEANS, MEANS.clone())
    assert equal.shape == (3,)
    th.testing.assert_close(equal, th.zeros(3), atol=1e-6, rtol=0)
    assert (loss(MEANS + th.tensor([[1.0, -1.0]]), MEANS) > 0).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_sample_does_not_depend_on_its_batch(loss):
    student = MEANS + th.tensor([[1.0, -1.0]])
    th.testing.assert_close(loss(student[:1], MEANS[:1]), loss(student, MEANS)[:1])


@pytest.mark.parametrize("extreme", [1e-30, 50.0, 1e4, 1e8])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_are_finite_at_extremes(loss, extreme):
    if loss is LOSSES["deviation of gaussian_kl"]:
        extreme = min(extreme, 20.0)  # a deviation of e^20
    teacher = th.tensor([[extreme, -extreme], [-extreme, extreme], [0.0, extreme]])
    student = (-teacher).requires_grad_()
    result = loss(student, teacher)
    result.sum().backward()
    assert th.isfinite(result).all() and th.isfinite(student.grad).all()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: categorical_kl(th.zeros(4, 3), th.zeros(4, 2)),
        lambda: categorical_kl(th.zeros(4, 3), th.zeros(1, 3)),
        lambda: gaussian_kl(th.zeros(4, 2), th.zeros(2), th.zeros(4, 1), th.zeros(4, 1), unit=HALF),
        lambda: squared_error(th.zeros(4, 2), th.zeros(2), unit=HALF),
        lambda: huber(th.zeros(4, 2), th.zeros(5, 2), unit=HALF),
        lambda: log_std_error(th.zeros(2), th.zeros(4, 2)),
        lambda: value_error(th.zeros(4), th.zeros(4, 1), std=th.tensor(1.0)),  # would broadcast to (4, 4)
        lambda: actor_critic(th.zeros(4), th.zeros(4, 1), critic_coef=0.5),
    ],
)
def test_shapes_that_would_broadcast_are_refused(wrong):
    with pytest.raises(ValueError, match="one shape, got"):
        wrong()


def test_clamp_to_box_values():
    mean = th.tensor([[-5.0, 0.5], [3.0, 0.0], [2.0, 9.0]])
    th.testing.assert_close(clamp_to_box(mean, LOW, HIGH), th.tensor([[-1.0, 0.5], [3.0, 0.0], [2.0, 1.0]]))


def test_clamp_to_box_passes_only_gradients_that_lead_back_inside():
    mean = th.tensor([[5.0, -1.0], [5.0, -1.0], [0.0, 0.5], [3.0, 0.0]], requires_grad=True)
    # a step goes against the gradient
    gradient = th.tensor([[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0]])
    clamp_to_box(mean, LOW, HIGH).backward(gradient)
    th.testing.assert_close(mean.grad, th.tensor([[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]]))


def test_a_mean_far_outside_the_box_comes_back_to_a_target_inside():
    mean = th.tensor([[9.0, -9.0]], requires_grad=True)
    optimizer = th.optim.SGD([mean], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        huber(clamp_to_box(mean, LOW, HIGH), th.tensor([[1.0, 0.5]]), unit=HALF).sum().backward()
        optimizer.step()
    th.testing.assert_close(mean, th.tensor([[1.0, 0.5]]), atol=0.2, rtol=0)
