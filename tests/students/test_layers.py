import numpy as np
import pytest
import torch as th
from students import assert_same_bits

from sb3_qpd.integer import IntegerModel
from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.layers import (
    FLOAT32_EXACT,
    PixelGrid,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    ValueHead,
    VectorGrid,
)
from sb3_qpd.students.quantizers import Quantizer, fake_quantize
from sb3_qpd.students.rounding import BIAS_LIMIT


def grid(step: float, bits: int = 8) -> Quantizer:
    """A calibrated activation grid."""
    quantizer = Quantizer(bits, signed=False)
    with th.no_grad():
        quantizer.log_scale.fill_(float(np.log(step)))
    quantizer.ready.fill_(True)
    return quantizer


def linear(n_in: int, n_out: int, input_step: float = 0.05, output_step: float | None = 0.1, bits: int = 8) -> QuantLinear:
    th.manual_seed(0)
    output = None if output_step is None else grid(output_step)
    return QuantLinear(n_in, n_out, input_grid=grid(input_step), output_grid=output, weight_bits=bits).eval()


def conv(input_grid: th.nn.Module | None = None, bits: int = 8) -> QuantConv2d:
    th.manual_seed(0)
    return QuantConv2d(4, 6, 3, 1, input_grid=input_grid or grid(0.05), output_grid=grid(0.1), weight_bits=bits).eval()


def on_grid(*shape: int, step: float = 0.05) -> tuple[th.Tensor, np.ndarray]:
    """Random inputs on a grid of 8 bits, and their integers."""
    integers = np.random.default_rng(0).integers(0, 256, shape)
    return th.from_numpy(integers).float() * grid(step).scale().detach(), integers.astype(np.float64)


def output_integers(layer: QuantLayer, x: th.Tensor) -> np.ndarray:
    with th.no_grad():
        return (layer(x) / layer.output_grid.scale()).round().double().numpy()


@pytest.mark.parametrize("bits", [8, 5, 4, 3, 2])
@pytest.mark.parametrize("shape", [(7,), (4, 9, 9)], ids=["linear", "conv"])
def test_evaluation_forward_is_the_integer_layer(shape, bits):
    layer = linear(7, 5, bits=bits) if len(shape) == 1 else conv(bits=bits)
    x, integers = on_grid(64, *shape)
    twin = layer.to_integer()
    low, high = layer.weight_quantizer.low, layer.weight_quantizer.high
    assert twin.weight.min() >= low and twin.weight.max() <= high
    expected = twin.requantize(twin.accumulate(integers), "float32")
    np.testing.assert_array_equal(output_integers(layer, x), expected)
    assert len(np.unique(expected)) > 10  # neither dead nor saturated


def test_head_gives_accumulators_in_their_unit():
    layer = linear(7, 5, output_step=None)
    x, integers = on_grid(64, 7)
    twin = layer.to_integer()
    assert twin.activation_bits == 0
    with th.no_grad():
        assert_same_bits(layer(x).numpy(), twin.accumulate(integers).astype(np.float32) * twin.multiplier)


def test_head_of_discrete_actions_has_one_unit_and_that_of_a_box_one_for_each_action():
    for per_channel, n_units in ((False, 1), (True, 5)):
        head = QuantLinear(7, 5, input_grid=grid(0.05), output_grid=None, weight_bits=8, per_channel=per_channel)
        assert head.to_integer().multiplier.shape == (n_units,)


@pytest.mark.parametrize(
    ("p", "q"), [(1, 2), (1, 4), (1, 6), (1, 76), (1, 150), (1, 1022), (3, 76), (5, 76), (7, 150), (3, 4)]
)
def test_both_requantizations_agree_where_the_multiplier_is_next_to_a_fraction(p, q):
    """1/76 in float32 is above it, 1/150 below: either way float32 alone sees ties there, every q-th accumulator."""
    layer = linear(1, 1, input_step=float(p), output_step=float(q))
    with th.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
        layer.weight_quantizer.log_scale.zero_()
    layer.weight_quantizer.ready.fill_(True)
    twin, acc = layer.to_integer(), np.arange(256 * q // p)[:, None]
    np.testing.assert_array_equal(twin.requantize(acc, "float32"), twin.requantize(acc, "fixed"))
    np.testing.assert_array_equal(twin.requantize(acc, "float32"), np.minimum((2 * acc * p + q) // (2 * q), 255))
    x = p * th.arange(256.0)[:, None]
    np.testing.assert_array_equal(output_integers(layer, x)[: len(acc)], twin.requantize(acc[:256], "float32"))


def test_accumulators_beyond_float32_are_exact():
    """1,021 weights of 127 times inputs of 255 end on odd sums that float32 does not have."""
    layer = linear(1021, 3, output_step=None)
    with th.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.copy_(th.tensor([1.0, 2.0, 3.0]) * layer.input_grid.scale() / 127)
    integers = np.full((2, 1021), 255.0)
    integers[1, ::3] = 254
    twin = layer.to_integer()
    acc = twin.accumulate(integers)
    assert acc.min() > FLOAT32_EXACT and (acc % 2 == 1).any()
    x = th.from_numpy(integers).float() * layer.input_grid.scale()
    with th.no_grad():
        assert_same_bits(layer(x).numpy(), acc.astype(np.float32) * twin.multiplier)
    # float32 all the way would not do
    inexact = th.from_numpy(integers).float() @ th.from_numpy(twin.weight).float().T + th.from_numpy(twin.bias).float()
    assert (inexact.double().numpy() != acc).any()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_convolution_is_exact_where_torch_would_choose_an_inexact_one():
    """Without oneDNN torch takes NNPACK's fast transforms for batches of 16 and more."""
    layer = conv()
    x, integers = on_grid(32, 4, 20, 20)
    twin = layer.to_integer()
    expected = twin.requantize(twin.accumulate(integers), "float32")
    with th.backends.mkldnn.flags(enabled=False):
        np.testing.assert_array_equal(output_integers(layer, x), expected)


@pytest.mark.parametrize("bias", [1e3, -1e6, 1e12])
def test_no_bias_is_too_large_for_its_grid(bias):
    layer = linear(7, 3)
    layer.to_integer()  # calibrates the weights as they are now
    with th.no_grad():
        layer.bias[1] = bias
    twin = layer.to_integer()
    # integer times unit is the bias that was meant
    assert abs(int(twin.bias[1])) <= BIAS_LIMIT * (1 + 1e-6)
    unit = layer.input_grid.scale().item() * layer.weight_scale(layer.input_grid.scale())[1].item()
    assert twin.bias[1] * unit == pytest.approx(bias, rel=1e-6)
    x, integers = on_grid(64, 7)
    np.testing.assert_array_equal(output_integers(layer, x), twin.requantize(twin.accumulate(integers), "float32"))


def test_training_forward_at_full_precision_is_close_to_evaluation():
    """Equal but for inputs of the rounding that lie within float32's noise of a tie."""
    for layer, shape in ((linear(64, 64), (64,)), (conv(), (4, 20, 20))):
        x, _ = on_grid(64, *shape)
        exact = output_integers(layer, x)
        trained = output_integers(layer.train(), x)
        assert np.abs(exact - trained).max() <= 1
        assert (exact != trained).mean() < 1e-3


def test_training_forward_rounds_the_bias():
    layer = linear(7, 3, output_step=None).train()
    with th.no_grad():
        layer.weight_quantizer.calibrate(layer.weight)
        unit = layer.input_grid.scale() * layer.weight_scale(layer.input_grid.scale())
        layer.bias.copy_(unit * th.tensor([0.4, 0.6, -7.5]))
        y = layer(th.zeros(1, 7))
    th.testing.assert_close(y[0], unit * th.tensor([0.0, 1.0, -8.0]))


def test_in_float_it_is_an_ordinary_layer():
    layer = linear(7, 5, output_step=None).train()
    layer.weight_quantizer.precision = {FLOAT_BITS: 1.0, 8: 0.0}
    x, _ = on_grid(16, 7)
    with th.no_grad():
        th.testing.assert_close(layer(x), th.nn.functional.linear(x, layer.weight, layer.bias), atol=0, rtol=0)


def test_half_way_it_is_half_of_each():
    layer = linear(7, 5, output_step=None, bits=2).train()
    x, _ = on_grid(16, 7)
    outputs = []
    for precision in ({FLOAT_BITS: 1.0}, {2: 1.0}, {FLOAT_BITS: 0.5, 2: 0.5}):
        layer.weight_quantizer.precision = precision
        with th.no_grad():
            outputs.append(layer(x))
    grid_of_bias = 2 * layer.input_grid.scale().item() * layer.weight_quantizer.scale().max().item()
    th.testing.assert_close(outputs[2], (outputs[0] + outputs[1]) / 2, atol=grid_of_bias, rtol=0)


def test_everything_that_is_learned_gets_a_gradient():
    first = linear(7, 6).train()
    second = QuantLinear(6, 3, input_grid=first.output_grid, output_grid=None, weight_bits=4)
    x, _ = on_grid(64, 7)
    # an odd loss: a symmetric one could cancel
    second(first(x)).pow(3).mean().backward()
    for layer in (first, second):
        for parameter in (layer.weight, layer.bias, layer.weight_quantizer.log_scale):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    assert first.output_grid.log_scale.grad.abs().sum() > 0


def test_float_layer_has_no_integer_form():
    layer = QuantLinear(3, 2, input_grid=grid(0.1), output_grid=None, weight_bits=FLOAT_BITS)
    with pytest.raises(ValueError, match="32 bits.* has no integer form: .* weight_bits of 2 to 8"):
        layer.to_integer()


def test_uncalibrated_output_grid_is_calibrated_in_either_mode():
    for training in (True, False):
        layer = linear(7, 5).train(training)
        layer.output_grid.ready.fill_(False)
        x, _ = on_grid(64, 7)
        y = layer(x)
        assert layer.output_grid.ready
        # neither far too wide nor far too narrow for what came out
        assert 0.5 < (y.max() / (255 * layer.output_grid.scale())).item() <= 1.1


# -- grids of the input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [0, 87, 255])
def test_pixels_are_a_grid_already(centre):
    pixels = PixelGrid()
    pixels.centre.fill_(centre)
    layer = conv(pixels)
    assert pixels.scale().item() == pytest.approx(1 / 255)
    images = np.random.default_rng(0).integers(0, 256, (16, 4, 12, 12), dtype=np.uint8)
    twin = layer.to_integer()
    expected = twin.requantize(twin.accumulate(images.astype(np.float64)), "float32")
    x = pixels(th.from_numpy(images).float())
    np.testing.assert_array_equal(output_integers(layer, x), expected)
    # and in float they are numbers between -1 and 1, zero at the centre
    layer.weight_quantizer.precision = layer.output_grid.precision = {FLOAT_BITS: 1.0}
    with th.no_grad():
        y = layer.train()(x)
        plain = th.nn.functional.conv2d((x - centre) / 255, layer.weight, layer.bias).relu()
    th.testing.assert_close(y, plain, atol=1e-5, rtol=1e-5)


def vector_grid(mean: list[float], std: list[float], step: float = 0.03) -> VectorGrid:
    vectors = VectorGrid(len(mean))
    vectors.mean.copy_(th.tensor(mean, dtype=th.float64))
    vectors.std.copy_(th.tensor(std, dtype=th.float64))
    with th.no_grad():
        vectors.quantizer.log_scale.fill_(float(np.log(step)))
    vectors.quantizer.ready.fill_(True)
    return vectors.eval()


def some_vectors(mean: list[float], std: list[float]) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal((4096, len(mean)))
    noise[-8:] *= 1e3
    return (noise * std + mean).astype(np.float32)


MEAN, STD = [0.0, 1000.0, -3.7], [1.0, 0.013, 55.0]


@pytest.mark.parametrize("training", [True, False])
def test_vectors_take_one_multiplication_and_one_addition(training):
    vectors = vector_grid(MEAN, STD).train(training)
    m, a = (v.numpy() for v in vectors.affine())
    assert m.dtype == a.dtype == np.float32
    step = vectors.scale().item()
    np.testing.assert_allclose(m, 1 / (np.array(STD) * step), rtol=1e-6)
    np.testing.assert_allclose(a, -np.array(MEAN) / (np.array(STD) * step), rtol=1e-6)
    x = some_vectors(MEAN, STD)
    integers = np.clip(np.rint(x * m + a), -128, 127).astype(np.float32)
    with th.no_grad():
        np.testing.assert_array_equal(vectors(th.from_numpy(x)).numpy(), integers * np.float32(step))
    assert (np.abs(integers) > 100).any() and (integers == -128).any()


def test_normalization_is_folded_into_the_grid():
    vectors = vector_grid(MEAN, STD)
    x = some_vectors(MEAN, STD)[:-8]
    with th.no_grad():
        y = vectors(th.from_numpy(x)).numpy()
    normalized = (x - np.array(MEAN)) / np.array(STD)
    inside = np.abs(normalized) < 0.03 * 127
    # half a step, and what float32 loses on 1000 +/- 0.013
    assert np.abs(y - normalized)[inside].max() < 0.5 * 0.03 + 0.01


@pytest.mark.parametrize("training", [True, False])
def test_vectors_calibrate_on_the_first_batch(training):
    vectors = VectorGrid(3).train(training)
    vectors.mean.copy_(th.tensor(MEAN))
    vectors.std.copy_(th.tensor(STD))
    vectors(th.from_numpy(some_vectors(MEAN, STD)[:-8]))
    assert vectors.quantizer.ready
    assert 3 < vectors.scale().item() * 127 < 5  # of a normal variable


def test_range_of_vectors_is_learned():
    vectors = vector_grid([0.0], [1.0], step=0.01).train()
    x = th.tensor([[0.004], [0.017], [9.0], [-9.0]])
    q = vectors(x)
    weights = th.tensor([[1.0], [2.0], [3.0], [4.0]])
    (q * weights).sum().backward()
    # value q s, slope q - x/s inside the range and the bound outside
    slopes = [1 * (0 - 0.4) + 2 * (2 - 1.7) + 3 * 127 + 4 * -128]
    assert vectors.quantizer.log_scale.grad.item() == pytest.approx(slopes[0] * 0.01, rel=1e-4)


def test_vectors_blend_from_normalized_floats():
    vectors = vector_grid(MEAN, STD).train()
    x = th.from_numpy(some_vectors(MEAN, STD)[:-8])
    outputs = []
    for precision in ({FLOAT_BITS: 1.0}, {8: 1.0}, {FLOAT_BITS: 0.25, 8: 0.75}):
        vectors.quantizer.precision = precision
        with th.no_grad():
            outputs.append(vectors(x))
    th.testing.assert_close(outputs[0], ((x - vectors.mean) / vectors.std).float(), atol=0.02, rtol=1e-4)
    th.testing.assert_close(outputs[2], 0.25 * outputs[0] + 0.75 * outputs[1])


def test_float_vectors_are_only_normalized():
    vectors = VectorGrid(3, bits=FLOAT_BITS)
    vectors.mean.copy_(th.tensor(MEAN))
    vectors.std.copy_(th.tensor(STD))
    x = th.from_numpy(some_vectors(MEAN, STD))
    for training in (True, False):
        y = vectors.train(training)(x)
        assert y.dtype == th.float32
        th.testing.assert_close(y, ((x.double() - vectors.mean) / vectors.std).float(), atol=0, rtol=0)


def test_grid_and_integer_model_agree_on_every_input_integer():
    vectors = vector_grid(MEAN, STD)
    head = QuantLinear(3, 2, input_grid=vectors, output_grid=None, weight_bits=8, per_channel=False).eval()
    m, a = (v.numpy() for v in vectors.affine())
    model = IntegerModel([head.to_integer()], (3,), m, a)
    x = some_vectors(MEAN, STD)
    with th.no_grad():
        integers = (vectors(th.from_numpy(x)) / vectors.scale()).round().double().numpy()
        logits = head(vectors(th.from_numpy(x))).numpy()
    np.testing.assert_array_equal(model.quantize_input(x), integers)
    assert_same_bits(logits, model.logits(x))


def test_value_head_speaks_in_the_teachers_units():
    head = ValueHead(4)
    head.mean.fill_(300.0)
    head.std.fill_(50.0)
    x = th.randn(8, 4, generator=th.Generator().manual_seed(0))
    th.testing.assert_close(head(x), th.nn.functional.linear(x, head.weight, head.bias) * 50 + 300)


def test_weights_train_on_the_grid_of_the_integers():
    layer = linear(7, 5, bits=3)
    twin = layer.to_integer()
    scale = layer.weight_scale(layer.input_grid.scale())[:, None]
    trained = layer.weight_quantizer.mix(layer.weight, scale)
    th.testing.assert_close(trained, fake_quantize(layer.weight, scale, -4, 3), atol=0, rtol=0)
    np.testing.assert_array_equal((trained / scale).round().detach().numpy(), twin.weight)
