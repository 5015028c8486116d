import math

import numpy as np
import pytest
import torch as th
from scipy import optimize, stats

import sb3_qpd.students.quantizers as quantizers
from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.quantizers import (
    HALF_NORMAL_STEP,
    NORMAL_STEP,
    Quantizer,
    fake_quantize,
    integer_range,
    mse_scale,
    shared_scales,
)


def leaf(values: list[float], dtype: th.dtype = th.float64) -> th.Tensor:
    return th.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(
    ("bits", "signed", "expected"),
    [(8, True, (-128, 127)), (4, True, (-8, 7)), (2, True, (-2, 1)), (8, False, (0, 255)), (3, False, (0, 7))],
)
def test_integer_range(bits, signed, expected):
    assert integer_range(bits, signed) == expected


def test_fake_quantize_values_round_half_to_even_and_clamp():
    x = th.tensor([0.25, 0.75, 1.25, -0.25, -0.75, 0.6, 10.0, -10.0])
    # in steps of 0.5: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2, -0.5 -> 0, -1.5 -> -2, 1.2 -> 1, then the ends of the range
    expected = th.tensor([0.0, 1.0, 1.0, 0.0, -1.0, 0.5, 3.5, -4.0])
    th.testing.assert_close(fake_quantize(x, th.tensor([0.5]), -8, 7), expected, atol=0, rtol=0)


def test_a_quantized_tensor_is_a_fixed_point():
    scale = th.tensor([0.013])
    once = fake_quantize(th.randn(1000, generator=th.Generator().manual_seed(0)), scale, -8, 7)
    th.testing.assert_close(fake_quantize(once, scale, -8, 7), once, atol=0, rtol=0)


def test_gradient_of_the_tensor_is_straight_through_inside_the_range_only():
    x = leaf([0.1, -0.4, 3.4, 3.6, -4.1, -5.0])
    fake_quantize(x, leaf([0.5]), -8, 7).backward(th.arange(1.0, 7.0, dtype=th.float64))
    # in steps: 0.2, -0.8, 6.8, 7.2 (above 7), -8.2 and -10 (below -8)
    th.testing.assert_close(x.grad, th.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0], dtype=th.float64))


def test_gradient_of_the_step_is_that_of_lsq():
    """Inside the range round(x/s) - x/s, outside the bound, times 1 / sqrt(high N)."""
    x, scale = leaf([0.1, -0.4, 3.4, 3.6, -5.0]), leaf([0.5])
    grad = th.tensor([1.0, -2.0, 3.0, 4.0, 5.0], dtype=th.float64)
    fake_quantize(x, scale, -8, 7).backward(grad)
    slopes = [0 - 0.2, -1 + 0.8, 7 - 6.8, 7.0, -8.0]
    expected = sum(g * slope for g, slope in zip(grad.tolist(), slopes, strict=True)) / math.sqrt(7 * 5)
    assert scale.grad.item() == pytest.approx(expected)


def test_gradient_of_the_step_is_the_slope_of_the_rounded_value():
    """Where no integer changes, y = q s; d/ds of what straight-through adds, -x/s, vanishes outside the range."""
    x, step, delta = th.tensor([40.0, -40.0], dtype=th.float64), leaf([0.5]), 1e-6
    fake_quantize(x, step, -8, 7)[0].backward()
    slope = (fake_quantize(x, step + delta, -8, 7) - fake_quantize(x, step - delta, -8, 7))[0] / (2 * delta)
    assert step.grad.item() * math.sqrt(7 * 2) == pytest.approx(slope.item())


def test_each_channel_has_a_gradient_of_its_own():
    x = th.tensor([[0.4, 9.0], [0.4, 9.0], [0.0, 0.0]], dtype=th.float64)
    scale = th.tensor([[0.5], [2.0], [1.0]], dtype=th.float64, requires_grad=True)
    fake_quantize(x, scale, -8, 7).sum().backward()
    expected = th.tensor([[1 - 0.8 + 7], [0 - 0.2 + (4 - 4.5)], [0.0]], dtype=th.float64) / math.sqrt(7 * 2)
    th.testing.assert_close(scale.grad, expected)


def error_of_step(step: float, low: int, high: int, half: bool) -> float:
    """Mean squared error of a uniform quantizer on a normal variable, or on its upper half."""
    integers = np.arange(low, high + 1)
    edges = np.concatenate([[0.0 if half else -np.inf], (integers[:-1] + 0.5) * step, [np.inf]])
    a, b, k = edges[:-1], edges[1:], integers * step
    density, cumulative = stats.norm.pdf, stats.norm.cdf
    moment = [np.where(np.isinf(edge), 0.0, edge) * density(edge) for edge in (a, b)]
    # integral of (x - k)^2 times the density, from a to b
    parts = (1 + k**2) * (cumulative(b) - cumulative(a)) - (moment[1] - moment[0]) + 2 * k * (density(b) - density(a))
    return float(parts.sum())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("table", "half"), [(NORMAL_STEP, False), (HALF_NORMAL_STEP, True)], ids=["normal", "half normal"])
def test_tables_hold_the_best_steps(table, half, bits):
    args = (*integer_range(bits, signed=not half), half)
    best = optimize.minimize_scalar(error_of_step, (0.5 * table[bits], 1.5 * table[bits]), args=args, tol=1e-9)
    assert table[bits] == pytest.approx(best.x, abs=6e-5)
    assert error_of_step(table[bits], *args) == pytest.approx(best.fun, rel=1e-4)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_least_squares_step_beats_min_max(bits):
    low, high = integer_range(bits, signed=True)
    x = th.from_numpy(np.random.default_rng(0).standard_normal((3, 4000)))
    x[1] *= 100
    x[2] = th.from_numpy(np.random.default_rng(0).standard_t(3, 4000))  # heavy tails
    scale = mse_scale(x, low, high)
    assert scale.shape == (3,)
    min_max = th.maximum(x.amax(1) / high, x.amin(1) / low).float()
    error, naive = ((fake_quantize(x, s[:, None].double(), low, high) - x).square().mean(1) for s in (scale, min_max))
    assert (error <= naive * (1 + 1e-5)).all()
    if bits < 8:
        assert (error < 0.9 * naive).all()
        # and is the best for a normal variable, to the width of the search grid
        assert scale[0].item() == pytest.approx(NORMAL_STEP[bits], rel=0.06)
        assert scale[1].item() == pytest.approx(100 * NORMAL_STEP[bits], rel=0.06)


@pytest.mark.parametrize("shape", [(1, 1), (12, 16), (16, 300)])
@pytest.mark.parametrize("bits", [8, 2])
def test_many_candidates_at_once_give_the_step_of_one_at_a_time(bits, shape, monkeypatch):
    low, high = integer_range(bits, signed=True)
    x = th.from_numpy(np.random.default_rng(0).standard_normal(shape).astype(np.float32))
    x[0] = (4 * x[0]).round() / 4  # equal errors
    found = mse_scale(x, low, high)
    monkeypatch.setattr(quantizers, "_VALUES_AT_ONCE", 1)
    assert th.equal(found, mse_scale(x, low, high))


def test_step_of_unsigned_values_and_of_signed_ones_that_are_all_negative():
    x = th.linspace(0, 51, 256)[None]
    assert mse_scale(x, 0, 255).item() == pytest.approx(0.2, rel=0.06)
    assert mse_scale(-x, -128, 127).item() == pytest.approx(51 / 128, rel=0.06)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("x", [th.zeros(2, 5), th.full((2, 5), 1e-30)], ids=["zero", "tiny"])
def test_step_is_never_zero_and_of_nothing_covers_a_range_of_one(x, bits):
    _, high = integer_range(bits, signed=True)
    assert (mse_scale(x, -high - 1, high) * high >= 0.9).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("signed", "n_channels"), [(True, 4), (True, 0), (False, 0)])
def test_calibrates_on_the_first_tensor_in_either_mode_and_only_on_it(training, signed, n_channels):
    quantizer = Quantizer(4, signed, n_channels).train(training)
    generator = th.Generator().manual_seed(0)
    x = th.randn(4, 500, generator=generator).abs() * 30
    quantizer.calibrate_once(x)
    assert bool(quantizer.ready)
    first = quantizer.scale().clone()
    assert first.shape == (max(1, n_channels),)
    table = mse_scale(x if n_channels else x.reshape(1, -1), quantizer.low, quantizer.high)
    th.testing.assert_close(first, table)
    quantizer.calibrate_once(100 * x)
    th.testing.assert_close(quantizer.scale(), first, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(1024, 16, 9, 9), (1024, 8, 20, 20), (1024, 24), (1024, 64)])
def test_calibration_sees_every_part_of_a_large_tensor(shape):
    """A sample in steps of a row, a map or a number of features sees one pixel or every other feature."""
    for part in (0, -1, shape[-1] // 2):
        x = th.zeros(shape)
        x[..., part] = 5 * th.rand(shape[:-1], generator=th.Generator().manual_seed(0))
        quantizer = Quantizer(8, signed=False)
        quantizer.calibrate(x)
        assert quantizer.scale().item() * 255 == pytest.approx(5, rel=0.1)


def test_calibration_is_the_same_every_time():
    x, scales = th.randn(100_000, generator=th.Generator().manual_seed(0)), []
    for seed in (1, 2):
        th.manual_seed(seed)
        quantizer = Quantizer(8, signed=True)
        quantizer.calibrate(x)
        scales.append(quantizer.scale().item())
    assert scales[0] == scales[1]


def test_calibration_of_nothing_but_zeros():
    quantizer = Quantizer(8, signed=False)
    quantizer.calibrate(th.zeros(10, 3))
    assert 0.9 < quantizer.scale().item() * 255 < 1.2


def test_quantizer_trains_on_the_grid_that_it_evaluates_on():
    quantizer = Quantizer(4, signed=True)
    x = th.randn(200, generator=th.Generator().manual_seed(0))
    training, evaluated = quantizer.train()(x), quantizer.eval()(x)
    th.testing.assert_close(training, evaluated, atol=0, rtol=0)
    assert len(evaluated.unique()) <= 16


def test_mixture_of_precisions_is_the_weighted_sum():
    quantizer = Quantizer(2, signed=True)
    x = th.randn(500, generator=th.Generator().manual_seed(0))
    quantizer.calibrate(x)
    scale = quantizer.scale().detach()
    finer = scale * NORMAL_STEP[4] / NORMAL_STEP[2]
    parts = {FLOAT_BITS: x, 2: fake_quantize(x, scale, -2, 1), 4: fake_quantize(x, finer, -8, 7)}
    for precision in (
        {FLOAT_BITS: 1.0},
        {2: 1.0},
        {FLOAT_BITS: 0.25, 2: 0.75},
        {FLOAT_BITS: 0.5, 4: 0.3, 2: 0.2},
        {4: 1.0, 2: 0},
    ):
        quantizer.precision = precision
        expected = sum(share * parts[bits] for bits, share in precision.items())
        th.testing.assert_close(quantizer.mix(x, quantizer.scale()), expected)


@pytest.mark.parametrize("signed", [True, False])
def test_the_finer_grids_of_a_mixture_fit_the_tensor(signed):
    """Calibrated at 2 bits, the 8-bit part must not be far from the best 8-bit step."""
    x = th.randn(1, 16_000, generator=th.Generator().manual_seed(0))
    x = x if signed else x.abs()
    quantizer = Quantizer(2, signed)
    quantizer.calibrate(x)
    quantizer.precision = {8: 1.0}
    mixed_error = (quantizer.mix(x, quantizer.scale()) - x).square().mean()
    low, high = integer_range(8, signed)
    best = (fake_quantize(x, mse_scale(x, low, high), low, high) - x).square().mean()
    assert mixed_error < 1.5 * best


def test_float_share_keeps_a_gradient_outside_the_range():
    quantizer = Quantizer(4, signed=True)
    quantizer.calibrate(th.randn(100, generator=th.Generator().manual_seed(0)))
    quantizer.precision = {FLOAT_BITS: 0.25, 4: 0.75}
    x = th.tensor([100.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.item() == pytest.approx(0.25)


def test_32_bits_leave_a_tensor_alone():
    x = th.tensor([0.1234567, -9e9])
    for training in (True, False):
        quantizer = Quantizer(FLOAT_BITS, signed=True).train(training)
        assert quantizer.is_float and quantizer(x) is x
        assert not quantizer.ready


def test_step_stays_positive_whatever_was_learned():
    quantizer = Quantizer(8, signed=True)
    with th.no_grad():
        quantizer.log_scale.fill_(-1000.0)
    assert quantizer.scale().item() > 0


def test_state_dict_carries_the_calibration():
    quantizer, other = Quantizer(4, signed=True, n_channels=3), Quantizer(4, signed=True, n_channels=3)
    quantizer.calibrate(th.randn(3, 100, generator=th.Generator().manual_seed(0)))
    other.load_state_dict(quantizer.state_dict())
    other.calibrate_once(th.full((3, 10), 1e5))
    th.testing.assert_close(other.scale(), quantizer.scale(), atol=0, rtol=0)


def test_steps_that_are_computed_together_are_those_of_each_alone():
    """The same bits, in evaluation mode. A quantizer that has seen no data stays alone."""
    quantizers = [Quantizer(8, signed=True, n_channels=5), Quantizer(4, signed=False), Quantizer(2, signed=True, n_channels=3)]
    for seed, quantizer in enumerate(quantizers):
        quantizer.calibrate(th.randn(15, generator=th.Generator().manual_seed(seed)).abs())
    new = Quantizer(8, signed=True).eval()
    alone = [one.scale() for one in quantizers]
    with shared_scales([*quantizers, new]):
        for one, scale in zip(quantizers, alone, strict=True):
            assert th.equal(one.scale(), scale) and one.scale() is one.scale()
        new(th.randn(15))
        assert new.ready
    assert all(one.scale() is not one.scale() for one in quantizers)
