import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from students import BOX, DISCRETE, IMAGE, SPACES, VECTOR, make_student, some_observations

from sb3_qpd.distillation import losses
from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.losses import BOX_LOSSES
from sb3_qpd.distillation.objective import distillation_loss, measure_student
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import TeacherOutput

N = 64
HALF = th.from_numpy(BOX.high - BOX.low) / 2


def some_samples(observation_space: spaces.Box = VECTOR, action_space: spaces.Space = DISCRETE, log_std: bool = True):
    th.manual_seed(0)
    n_outputs = action_space.shape[0] if isinstance(action_space, spaces.Box) else action_space.n
    targets = TeacherOutput(
        th.randn(N, n_outputs), 100 * th.randn(N), th.zeros(N, n_outputs) - 1 if log_std and action_space is BOX else None
    )
    return DistillationSamples(th.from_numpy(some_observations(observation_space, 4 * N)[N : 2 * N]).float(), targets)


def student(observation_space: spaces.Box = VECTOR, action_space: spaces.Space = DISCRETE) -> QuantActorCriticPolicy:
    policy = make_student(observation_space, action_space)
    policy.set_training_mode(True)
    policy.set_value_scale(0.0, 100.0)
    return policy


def gradient_of(
    policy: QuantActorCriticPolicy, samples: DistillationSamples, *, critic_coef=0.5, **kwargs
) -> dict[str, th.Tensor]:
    policy.zero_grad(set_to_none=True)
    distillation_loss(policy, samples, critic_coef=critic_coef, **kwargs)[0].backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_the_critics_loss_reaches_what_is_deployed_and_leaves_no_trace_at_zero(observation_space, action_space):
    policy, samples = student(observation_space, action_space), some_samples(observation_space, action_space)
    without, with_critic = (gradient_of(policy, samples, critic_coef=coef) for coef in (0, 0.5))
    for i in range(len(policy.features_extractor.layers)):
        for kind in ("weight", "bias"):
            name = f"features_extractor.layers.{i}.{kind}"
            assert (with_critic[name] - without[name]).abs().sum() > 0
    assert not [name for name in without if name.startswith("value_net")]
    assert {name for name in with_critic if name.startswith("value_net")} == {"value_net.weight", "value_net.bias"}
    # with other values to learn, the actor's gradient is the same to the last bit
    other = samples._replace(targets=samples.targets._replace(value=-1000 * samples.targets.value))
    again = gradient_of(policy, other, critic_coef=0)
    assert all(th.equal(again[name], gradient) for name, gradient in without.items())


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_targets_are_taken_inside_the_box(box_loss):
    policy, samples = student(VECTOR, BOX), some_samples(VECTOR, BOX)
    low, high = th.from_numpy(BOX.low), th.from_numpy(BOX.high)
    outside = th.where(samples.targets.actor > 0, high + 100, low - 100)
    at_bounds = th.where(samples.targets.actor > 0, high, low)
    found = [
        distillation_loss(
            policy, samples._replace(targets=samples.targets._replace(actor=actor)), critic_coef=0.5, box_loss=box_loss
        )[0]
        for actor in (outside, at_bounds)
    ]
    assert th.equal(*found)


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_a_students_mean_outside_the_box_counts_as_its_bound_and_comes_back(box_loss):
    policy, samples = student(VECTOR, BOX), some_samples(VECTOR, BOX)
    with th.no_grad():
        policy.action_net.bias.copy_(th.tensor([1000.0, -1000.0, 1000.0]))
    middle = samples.targets._replace(actor=th.from_numpy((BOX.low + BOX.high) / 2).expand(N, 3))
    gradient = gradient_of(policy, samples._replace(targets=middle), box_loss=box_loss)["action_net.bias"]
    assert (gradient.sign() == th.tensor([1.0, -1.0, 1.0])).all()
    bounds = samples.targets._replace(actor=th.tensor([1.0, -2.0, 10.0]).expand(N, 3))
    _, (actor_loss, _) = distillation_loss(policy, samples._replace(targets=bounds), critic_coef=0.5, box_loss=box_loss)
    deviations = losses.log_std_error(policy.log_std.expand(N, 3), samples.targets.log_std)
    if box_loss == "gaussian_kl":
        deviations = losses.gaussian_kl(HALF[None], policy.log_std, HALF[None], samples.targets.log_std[:1], unit=HALF)
    th.testing.assert_close(actor_loss, deviations.detach().expand(N))


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_fixed_actions_and_teachers_without_a_deviation(box_loss):
    space = spaces.Box(np.array([-1, 2], np.float32), np.array([1, 2], np.float32))
    policy = student(VECTOR, space)
    targets = TeacherOutput(th.randn(N, 2), th.randn(N), None)
    for log_std in (None, th.zeros(N, 2)):
        gradients = gradient_of(policy, some_samples()._replace(targets=targets._replace(log_std=log_std)), box_loss=box_loss)
        assert all(th.isfinite(gradient).all() for gradient in gradients.values())
        assert ("log_std" in gradients) == (log_std is not None)


def test_a_deterministic_teacher_is_learned_by_the_loss_that_was_asked_for():
    policy, samples = student(VECTOR, BOX), some_samples(VECTOR, BOX, log_std=False)
    mean = losses.clamp_to_box(policy.actor_and_value(samples.observations)[0], *map(th.from_numpy, (BOX.low, BOX.high)))
    target = samples.targets.actor.clamp(th.from_numpy(BOX.low), th.from_numpy(BOX.high))
    for box_loss, loss in (("huber", losses.huber), ("squared_error", losses.squared_error), ("gaussian_kl", losses.huber)):
        _, (actor_loss, _) = distillation_loss(policy, samples, critic_coef=0.5, box_loss=box_loss)
        th.testing.assert_close(actor_loss, loss(mean, target, unit=HALF).detach())


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_a_teacher_without_a_critic_leaves_the_value_head_alone(action_space):
    policy, samples = student(VECTOR, action_space), some_samples(VECTOR, action_space)
    without = samples._replace(targets=samples.targets._replace(value=None))
    gradients = gradient_of(policy, without, critic_coef=0.5)
    assert not any(gradient.any() for name, gradient in gradients.items() if name.startswith("value_net"))
    expected = gradient_of(policy, samples, critic_coef=0)
    assert all(th.equal(gradients[name], gradient) for name, gradient in expected.items())


def test_deviation_of_the_student_moves_to_the_teachers():
    for box_loss in BOX_LOSSES:
        gradient = gradient_of(student(VECTOR, BOX), some_samples(VECTOR, BOX), box_loss=box_loss)["log_std"]
        if box_loss != "gaussian_kl":  # there it depends on the means as well
            th.testing.assert_close(gradient, th.ones(3))  # from 0 to -1
        assert th.isfinite(gradient).all()


def test_parts_for_the_log_make_up_the_mean_of_the_batch():
    for action_space in (DISCRETE, BOX):
        policy, samples = student(VECTOR, action_space), some_samples(VECTOR, action_space)
        loss, (actor_loss, critic_loss) = distillation_loss(policy, samples, critic_coef=0.3)
        assert actor_loss.shape == critic_loss.shape == (N,)
        assert not actor_loss.requires_grad and not critic_loss.requires_grad
        th.testing.assert_close(loss.detach(), (actor_loss + 0.3 * critic_loss).mean())


def test_the_size_of_the_batch_does_not_matter():
    policy, samples = student(), some_samples()
    twice = DistillationSamples(
        samples.observations.repeat(2, 1), TeacherOutput(samples.targets.actor.repeat(2, 1), samples.targets.value.repeat(2))
    )
    th.testing.assert_close(*(distillation_loss(policy, batch, critic_coef=0.5)[0] for batch in (twice, samples)))


def test_critics_loss_does_not_depend_on_the_unit_of_the_rewards():
    found = []
    for unit in (1.0, 1000.0):
        policy, samples = student(), some_samples()
        policy.set_value_scale(5 * unit, 100 * unit)
        targets = samples.targets._replace(value=unit * samples.targets.value)
        found.append(distillation_loss(policy, samples._replace(targets=targets), critic_coef=0.5)[1][1])
    th.testing.assert_close(*found)


def test_temperature_and_entropy():
    policy, samples = student(), some_samples()
    plain, cold, free, sharp = (
        distillation_loss(policy, samples, critic_coef=0, **kwargs)[0].item()
        for kwargs in ({}, {"temperature": 0.1}, {"entropy_coef": 0.5}, {"student_temperature": 2.0})
    )
    actor = policy.actor_and_value(samples.observations)[0]
    expected = losses.categorical_kl(actor, samples.targets.actor, temperature=0.1).mean().item()
    assert cold == pytest.approx(expected, rel=1e-5) and cold != pytest.approx(plain)
    expected = losses.categorical_kl(actor / 2, samples.targets.actor).mean().item()
    assert sharp == pytest.approx(expected, rel=1e-5) and sharp != pytest.approx(plain)
    assert measure_student(policy, samples, student_temperature=2.0)["kl"] != measure_student(policy, samples)["kl"]
    assert plain - free == pytest.approx(0.5 * th.distributions.Categorical(logits=actor).entropy().mean().item(), rel=1e-4)
    box = student(VECTOR, BOX)
    more = gradient_of(box, some_samples(VECTOR, BOX), entropy_coef=0.1)["log_std"]
    less = gradient_of(box, some_samples(VECTOR, BOX))["log_std"]
    th.testing.assert_close(more, less - 0.1)


def test_gradient_steps_bring_a_student_to_its_teacher():
    for observation_space in (VECTOR, IMAGE):
        policy, samples = student(observation_space), some_samples(observation_space)
        optimizer = th.optim.Adam(policy.parameters(), lr=3e-3)
        first = distillation_loss(policy, samples, critic_coef=0.5)[0].item()
        for _ in range(60):
            optimizer.zero_grad()
            distillation_loss(policy, samples, critic_coef=0.5)[0].backward()
            optimizer.step()
        assert distillation_loss(policy, samples, critic_coef=0.5)[0].item() < 0.7 * first
