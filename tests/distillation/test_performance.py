"""Speed must not change what is learned; nothing here looks at a clock."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from toys import QUICK, Pointer, Quadrant, assert_equal_states, pointers, untrained

from sb3_qpd import QPDDistiller
from sb3_qpd.distillation.buffers import DistillationBuffer, DistillationSamples
from sb3_qpd.students.layers import QuantConv2d
from sb3_qpd.students.quantizers import Quantizer, fake_quantize
from sb3_qpd.teachers.teacher import TeacherOutput


def test_a_rectified_quantizer_is_a_relu_and_a_quantizer_bit_for_bit():
    """Values and both gradients, at the bounds too."""
    scale = th.tensor([0.5])
    x = th.cat([th.randn(1000) * 100, 0.5 * th.tensor([0.0, -0.0, 1e-30, 255.0, 255.25, 256.0, -1.0, 2.5])])
    grad = th.randn(len(x))
    results = []
    for inside in (True, False):
        values, step = x.clone().requires_grad_(), scale.clone().requires_grad_()
        y = fake_quantize(values if inside else values.relu(), step, 0, 255, rectify=inside)
        y.backward(grad)
        results.append((y, values.grad, step.grad))
    for one, other in zip(*results, strict=True):
        assert th.equal(one, other)
    inside = (x > 0) & (x / scale <= 255)
    assert th.equal(results[0][1], grad * inside) and 0 < inside.sum() < len(x)


@pytest.mark.parametrize("bits", [4, 32])
def test_an_unsigned_quantizer_has_its_relu_at_every_precision(bits):
    quantizer, x = Quantizer(bits, signed=False), th.randn(50)
    for precision in ({32: 1.0, 4: 0.0}, {32: 0.5, 4: 0.5}, {4: 1.0}):
        if not quantizer.is_float:
            quantizer.precision = precision
        assert (quantizer(x)[x <= 0] == 0).all() and (quantizer(x) >= 0).all()


def test_the_first_layer_computes_no_gradient_of_the_pixels(monkeypatch):
    """It would be the dearest of all, and the observation needs none."""
    asked, gradients = [], QuantConv2d._layer_gradients

    def look(layer: QuantConv2d, grad: th.Tensor, x: th.Tensor, weight: th.Tensor, needs_input: bool) -> Any:
        found = gradients(layer, grad, x, weight, needs_input)
        asked.append(found[0] is not None)
        return found

    monkeypatch.setattr(QuantConv2d, "_layer_gradients", look)
    student = QPDDistiller(untrained(make_vec_env(Quadrant, 2, seed=0), policy="CnnPolicy"), **QUICK)
    samples = DistillationSamples(
        th.randint(0, 256, (4, *student.observation_space.shape), dtype=th.uint8), TeacherOutput(th.rand(4, 4), th.rand(4))
    )
    student.policy.calibrate(samples.observations)
    student.policy.set_training_mode(True)
    student._gradient_step(samples)
    assert asked == [True, True, False]


def test_the_ring_is_allocated_by_learn():
    student = QPDDistiller(untrained(pointers()), **QUICK)
    assert student._buffer is None
    student.learn(100)
    assert student._buffer.nbytes > 0


def test_the_ring_of_an_atari_run_is_below_its_bound():
    """100,000 observations of 4 x 84 x 84, with their targets; 18 actions."""
    buffer = DistillationBuffer(100_000, spaces.Box(0, 255, (4, 84, 84), np.uint8), 16, stacked=True)
    buffer.add(np.zeros((16, 4, 84, 84), np.uint8), TeacherOutput(th.zeros(16, 18), th.zeros(16)))
    assert 0.7e9 < buffer.nbytes <= 0.8e9


def test_batches_of_images_are_converted_in_the_same_memory():
    student = QPDDistiller(untrained(pointers()), **QUICK)
    vectors = th.rand(4, 3)
    assert student._float_pixels(vectors) is vectors
    batches = [th.randint(0, 256, (6, 4, 9, 9), dtype=th.uint8).contiguous(memory_format=th.channels_last) for _ in range(2)]
    converted = [student._float_pixels(batch) for batch in batches]
    assert converted[0].data_ptr() == converted[1].data_ptr() and th.equal(converted[1], batches[1].float())
    assert converted[1].is_contiguous(memory_format=th.channels_last)
    assert student._float_pixels(batches[0][:2]).shape == (2, 4, 9, 9)


def test_workers_that_step_while_the_student_learns_change_nothing():
    """Updates fall between step_async and step_wait; the student is the one of environments that step on their own."""
    fork = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}}
    students = []
    for options in ({}, fork):
        env = make_vec_env(Pointer, 2, seed=0, **options)
        students.append(QPDDistiller(untrained(env), **QUICK, batch_size=16).learn(200))
        assert students[-1]._n_updates > 100
        env.close()
    assert_equal_states(*students)


def test_one_call_of_adam_for_all_parameters_is_exact():
    adam, rate = {"optimizer_class": th.optim.Adam}, {"learning_rate": 1e-2}
    usual = QPDDistiller(untrained(pointers()), policy_kwargs=adam, **QUICK, **rate).learn(400)
    assert usual.policy.optimizer.param_groups[0]["foreach"]
    one_by_one = {**adam, "optimizer_kwargs": {"foreach": False, "eps": 1e-5}}  # SB3's epsilon
    other = QPDDistiller(untrained(pointers()), policy_kwargs=one_by_one, **QUICK, **rate).learn(400)
    assert_equal_states(usual, other)
