"""What learn() does: precision, losses, schedules, seeds, callbacks; and that students learn."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from toys import (
    BOX,
    DISCRETE,
    QUICK,
    Pointer,
    Watch,
    actor_of,
    assert_different_states,
    assert_equal_states,
    assert_same_bits,
    pointers,
    score,
    taught,
    untrained,
)

from sb3_qpd import TRANSITIONS, QPDDistiller, load_teacher
from sb3_qpd.distillation.losses import value_error
from sb3_qpd.distillation.schedules import CosineSchedule

OBSERVATIONS = Pointer.sample(200)
FAST = {**QUICK, "learning_rate": 2e-2}  # these students are small, and so is their task


@pytest.fixture(scope="module")
def teacher() -> PPO:
    return taught()


# -- students learn ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 4])
def test_a_student_learns_discrete_actions(teacher, bits):
    student = QPDDistiller(teacher, **FAST, weight_bits=bits, activation_bits=bits).learn(2_000)
    best = score(load_teacher(teacher))
    assert best > 9
    assert score(student.policy.to_integer()) > (0.95 if bits == 8 else 0.9) * best


@pytest.mark.slow
@pytest.mark.parametrize("box_loss", ["huber", "squared_error", "gaussian_kl"])
def test_a_student_learns_continuous_actions(box_loss):
    box_teacher = taught("box")
    student = QPDDistiller(box_teacher, **FAST, box_loss=box_loss).learn(3_000)
    best = score(load_teacher(box_teacher), BOX)
    assert best > 8.5
    assert score(student.policy.to_integer(), BOX) > 0.95 * best
    # the deviation is the teacher's, for sampling and for learning on
    np.testing.assert_allclose(student.policy.log_std.detach(), box_teacher.policy.log_std.detach(), atol=0.15)


@pytest.mark.slow
def test_cartpole(tmp_path):
    env = make_vec_env("CartPole-v1", 64, seed=0)
    settings = {"n_steps": 16, "batch_size": 512, "n_epochs": 15, "gae_lambda": 0.8, "gamma": 0.98, "learning_rate": 2e-3}
    PPO("MlpPolicy", env, **settings, seed=0, device="cpu").learn(30_000).save(tmp_path / "teacher.zip")
    settings = {"student_arch": "nano", "n_envs": 32, "seed": 0, "device": "cpu"}
    student = QPDDistiller(tmp_path / "teacher.zip", "CartPole-v1", **settings).learn(10_000)
    env = make_vec_env("CartPole-v1", 16, seed=100)
    best = evaluate_policy(student.teacher, env, 16)[0]
    assert best > 400
    assert evaluate_policy(student.policy.to_integer(), env, 16)[0] > 0.9 * best


def test_the_teacher_collects_where_beta_is_one(teacher):
    shares = {}
    for beta in (0.0, 1.0):
        student = QPDDistiller(teacher, **QUICK, beta=beta, roll_in=False, learning_starts=0, learning_rate=0.0)
        collected: list[float] = []
        student.learn(800, callback=lambda scope, _, collected=collected: collected.extend(scope["rewards"]) or True)
        shares[beta] = np.mean(collected)
    assert shares[1.0] > 0.8 and shares[0.0] < 0.6


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_transition_at_every_bit_width(transition, bits):
    arguments = {"weight_bits": bits, "activation_bits": bits, "transition": transition, "batch_size": 64}
    student = QPDDistiller(untrained(pointers()), **QUICK, **arguments)

    def look(model: QPDDistiller) -> float:
        assert_same_bits(model.policy, OBSERVATIONS)
        return model._transition_progress

    watch = Watch(look, every=5)
    student.learn(240, callback=watch)
    assert watch.seen == sorted(watch.seen) and watch.seen[0] == 0
    assert student._transition_progress == (0 if transition == "none" else 1) == watch.seen[-1]
    assert student._n_updates == 60
    integer = assert_same_bits(student.policy, OBSERVATIONS)
    assert integer.metadata["calibrated"] and integer.layers[1].weight_bits == bits
    if transition == "none":
        assert all(quantizer.precision == {32: 1.0} for quantizer in student.policy.quantizers())
    else:
        for quantizer in student.policy.quantizers():
            assert {b: share for b, share in quantizer.precision.items() if share} == {quantizer.bits: 1.0}
    float_student = student.float_student()
    assert (float_student is None) == (transition == "scratch")
    if float_student is not None:
        assert np.isfinite(actor_of(float_student.policy, OBSERVATIONS)).all()
        with pytest.raises(ValueError, match="A float student .32 bits. has no integer form"):
            float_student.policy.to_integer()


def test_low_precision_from_the_start_sets_its_steps_anew(monkeypatch):
    student = QPDDistiller(untrained(pointers()), **QUICK, weight_bits=4, activation_bits=4, transition="scratch")
    updates, calibrate = [], student.policy.calibrate
    monkeypatch.setattr(student.policy, "calibrate", lambda seen: (updates.append(student._n_updates), calibrate(seen)))
    student.learn(400)
    assert updates[1:] == [n for n in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256) if n < student._n_updates]


def test_evaluation_does_not_know_the_transition():
    student = QPDDistiller(untrained(pointers()), **QUICK, weight_bits=2, activation_bits=2).learn(400)
    before = actor_of(student.policy, OBSERVATIONS)
    for progress in (0.0, 0.5):
        student.policy.set_precision(TRANSITIONS["blend"], progress)
        np.testing.assert_array_equal(actor_of(student.policy, OBSERVATIONS), before)
        student.policy.set_training_mode(True)
        training, _ = student.policy.actor_and_value(th.as_tensor(OBSERVATIONS))
        assert np.abs(training.detach().numpy() - before).max() > 1e-3


def test_float_student_is_the_one_of_the_start_of_the_transition():
    student = QPDDistiller(untrained(pointers()), **QUICK, weight_bits=4, transition_start=0.5, transition_end=0.8)
    weights: dict[float, th.Tensor] = {}

    def look(model: QPDDistiller) -> None:
        weights[model._transition_progress] = model.policy.action_net.weight.detach().clone()

    student.learn(800, callback=Watch(look))
    float_student = student.float_student()
    first = min(progress for progress in weights if progress > 0)
    snapshot = float_student.policy.action_net.weight
    assert not th.equal(snapshot, weights[1.0])
    assert (snapshot - weights[0.0]).abs().max() <= (snapshot - weights[first]).abs().max() + 1e-6
    assert float_student.policy.arch.weight_bits == float_student.policy.arch.activation_bits == 32
    assert float_student.predict(OBSERVATIONS, deterministic=True)[0].shape == (200,)


def test_post_training_quantization(teacher):
    baseline = QPDDistiller(teacher, **FAST, transition="none").learn(2_000)
    float_student = baseline.float_student()
    quantized = {bits: baseline.post_training_quantize(bits, bits) for bits in (8, 4, 2)}
    exact = actor_of(float_student.policy, OBSERVATIONS)
    errors = []
    for bits, student in quantized.items():
        assert_same_bits(student.policy, OBSERVATIONS)
        assert student.policy.arch.weight_bits == student.policy.arch.activation_bits == bits
        errors.append(np.abs(actor_of(student.policy, OBSERVATIONS) - exact).mean())
    assert errors == sorted(errors) and errors[0] < 0.2 * errors[2]
    assert score(quantized[8].policy.to_integer()) > 0.93 * score(load_teacher(teacher))
    # its own evaluation mode is as fresh: calibrated to the end
    assert np.abs(actor_of(baseline.policy, OBSERVATIONS) - exact).mean() < 2 * errors[0]
    with pytest.raises(ValueError, match="call learn.. first"):
        QPDDistiller(teacher, **QUICK).post_training_quantize(8, 8)


def test_a_transition_never_runs_backwards():
    student = QPDDistiller(untrained(pointers()), **QUICK)
    student.learn(800, callback=lambda scope, _: student.num_timesteps < 400)
    reached = student._transition_progress
    assert 0.3 < reached < 0.7
    watch = Watch(lambda model: model._transition_progress)
    student.learn(800, callback=watch)
    assert watch.seen[0] == reached and watch.seen == sorted(watch.seen) and watch.seen[-1] == 1
    student.learn(80)
    assert student._transition_progress == 1


def test_the_transition_of_a_long_run_is_short():
    student = QPDDistiller(untrained(pointers()), **QUICK, transition_steps=80)
    watch = Watch(lambda model: (model.num_timesteps, model._transition_progress))
    student.learn(800, callback=watch)
    falling = [steps for steps, progress in watch.seen if 0 < progress < 1]
    assert falling and 240 <= falling[0] and falling[-1] < 400 and watch.seen[-1][1] == 1


def test_a_float_student_goes_on_to_low_precision():
    student = QPDDistiller(untrained(pointers()), **QUICK, transition="none").learn(400)
    student.transition = "blend"
    watch = Watch(lambda model: model._transition_progress)
    student.learn(400, callback=watch)
    assert watch.seen[0] == 0 and 0 < watch.seen[25] < 1 and watch.seen[-1] == 1
    assert student.float_student() is not None


# -- losses -----------------------------------------------------------------------------------------------------------


def other_values(teacher: Any) -> Any:
    """The same actor with another critic."""
    other = load_teacher(teacher)
    with th.no_grad():
        other.policy.value_net.weight.mul_(-3)
        other.policy.value_net.bias.add_(5)
    return other


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_the_critic_reaches_what_is_deployed(action_space):
    model = untrained(pointers(action_space))
    student = QPDDistiller(model, **QUICK).learn(160)
    policy, samples = student.policy, student._buffer.sample(64)
    policy.set_training_mode(True)
    policy.optimizer.zero_grad(set_to_none=True)
    _, value = policy.actor_and_value(samples.observations)
    value_error(value, samples.targets.value, std=policy.value_net.std).mean().backward()
    for layer in policy.features_extractor.layers:
        assert layer.weight.grad.abs().max() > 0 and layer.bias.grad.abs().max() > 0
    assert policy.action_net.weight.grad is None
    # and so the student is another one where the teacher's values are
    assert_different_states(student, QPDDistiller(other_values(model), **QUICK).learn(160))


@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_the_actor_only_loss_knows_no_values(action_space):
    model = untrained(pointers(action_space))
    students = [QPDDistiller(t, **QUICK, critic_coef=0.0).learn(160) for t in (model, other_values(model))]
    a, b = ({k: v for k, v in s.policy.state_dict().items() if not k.startswith("value_net")} for s in students)
    assert all(th.equal(a[name], b[name]) for name in a)
    fresh = QPDDistiller(model, **QUICK)
    assert th.equal(fresh.policy.value_net.weight, students[0].policy.value_net.weight)
    assert not th.equal(fresh.policy.action_net.weight, students[0].policy.action_net.weight)


def test_entropy_and_temperature_change_the_student(teacher):
    def entropy(**arguments: Any) -> float:
        student = QPDDistiller(teacher, **{**FAST, "learning_rate": 5e-2}, **arguments).learn(1_500)
        return float(
            th.distributions.Categorical(logits=th.as_tensor(actor_of(student.policy, OBSERVATIONS))).entropy().mean()
        )

    plain = entropy()
    assert entropy(entropy_coef=0.5) > plain + 0.05
    assert entropy(temperature=0.3) < 0.8 * plain < plain + 0.05 < entropy(temperature=3.0)
    assert entropy(student_temperature=3.0) < 0.8 * plain


# -- how much and how fast --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gradient_steps", "learning_starts"), [(None, 10_000), (0.3, 100), (1, 0), (1 / 64, 50)])
def test_gradient_steps_are_counted_by_environment_steps(gradient_steps, learning_starts):
    student = QPDDistiller(
        untrained(pointers()), **QUICK, gradient_steps=gradient_steps, learning_starts=learning_starts, batch_size=128
    ).learn(200)
    per_step = 16 / 128 if gradient_steps is None else gradient_steps
    assert student._n_updates == pytest.approx(200 * per_step, abs=1)


def test_a_buffer_smaller_than_the_warm_up():
    student = QPDDistiller(untrained(pointers()), **QUICK, buffer_size=60).learn(800)
    assert student._buffer.capacity == 64 and student._n_updates == 50


def test_a_single_observation_makes_no_nan():
    student = QPDDistiller(untrained(pointers(n_envs=1)), **QUICK, gradient_steps=1, learning_starts=0).learn(5)
    assert student._n_updates == 5
    assert all(th.isfinite(value.float()).all() for value in student.policy.state_dict().values())
    assert_same_bits(student.policy, OBSERVATIONS)


@pytest.mark.parametrize(
    "learning_rate",
    [lambda remaining: 1e-3 * remaining, CosineSchedule(1e-3), lambda remaining: 1e-3 * remaining - 4e-4],
    ids=["linear", "cosine", "crosses zero"],
)
def test_the_learning_rate_is_never_negative(learning_rate):
    student = QPDDistiller(untrained(pointers()), **QUICK, learning_rate=learning_rate, gradient_steps=1)
    watch = Watch(lambda model: model.policy.optimizer.param_groups[0]["lr"])
    student.learn(100, callback=watch)  # the last step goes to 104
    assert student.num_timesteps == 104 and student._current_progress_remaining == 0
    student.learn(20, callback=watch, reset_num_timesteps=False)
    assert all(0 <= rate <= 1e-3 for rate in watch.seen) and watch.seen[12] < 1e-4
    assert watch.seen[13] == pytest.approx(max(learning_rate(1 - 104 / 124), 0))  # not what the first run ended with


def test_cosine_schedule():
    schedule = CosineSchedule(2.0)
    assert [schedule(p) for p in (1.0, 0.5, 0.0, -0.1, 1.1)] == pytest.approx([2.0, 1.0, 0.0, 0.0, 2.0])
    with pytest.raises(TypeError, match=r"initial must be a number such as 2e-3, got 'x' \(str\)"):
        CosineSchedule("x")


@pytest.mark.filterwarnings("ignore:The teacher is not clearly above")
@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "box"])
def test_the_same_seed_gives_the_same_student(action_space):
    def learn(seed: int) -> QPDDistiller:
        model = untrained(pointers(action_space))
        return QPDDistiller(model, **{**QUICK, "seed": seed, "check_teacher": True}).learn(320)

    first, second, other = learn(1), learn(1), learn(2)
    assert_equal_states(first, second)
    np.testing.assert_array_equal(first._buffer.newest(100).observations, second._buffer.newest(100).observations)
    assert_different_states(first, other)
    assert first.num_timesteps == second.num_timesteps == 320


def test_looking_does_not_change_the_student():
    """Evaluation, saving and integers in the middle of learning leave no trace."""
    plain = QPDDistiller(untrained(pointers()), **QUICK).learn(400)

    def look(model: QPDDistiller) -> None:
        model.predict(OBSERVATIONS, deterministic=True)
        model.policy.to_integer()
        model.float_student()
        model.get_parameters()

    watched = QPDDistiller(untrained(pointers()), **QUICK).learn(400, callback=Watch(look))
    assert_equal_states(plain, watched)


def test_vectors_learn_on_one_thread(teacher):
    """Small products would wait for the others longer than they take; afterwards there are as many as before."""
    before, seen = th.get_num_threads(), set()

    def look(*_: Any) -> bool:
        seen.add(th.get_num_threads())
        return True

    th.set_num_threads(2)
    try:
        QPDDistiller(teacher, env=pointers(), **QUICK).learn(300, callback=look)
        assert seen == {1} and th.get_num_threads() == 2
    finally:
        th.set_num_threads(before)
