"""The training forward as one function is the composition of small operations, in values and gradients, bit for bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from students import BOX, DISCRETE, IMAGE, VECTOR, quant_layers, treat
from torch.nn import functional as F

from sb3_qpd.students.architectures import FLOAT_BITS
from sb3_qpd.students.layers import MAX_STEPS, PixelGrid, QuantConv2d, QuantLayer, QuantLinear, QuantMeanHead, VectorGrid
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.students.quantizers import HALF_NORMAL_STEP, MIN_SCALE, NORMAL_STEP, Quantizer, integer_range
from sb3_qpd.students.rounding import BIAS_LIMIT
from sb3_qpd.students.transitions import TRANSITIONS

PROGRESS = (0.0, 0.3, 0.77, 1.0)
DICT = spaces.Dict({"image": IMAGE, "index": spaces.Discrete(3), "vector": VECTOR})


# -- the reference: one small operation after the other, with autograd's gradients -----------------------------------------


class Rounded(th.autograd.Function):
    """``clamp(round(x / s), low, high)``, of which LSQ defines the gradients together with the multiplication by s."""

    @staticmethod
    def forward(ctx, x, scale, low, high, rectify):
        ratio = x / scale
        q = ratio.round().clamp(low, high)
        ctx.save_for_backward(ratio, q)
        below = np.nextafter(np.float32(low), np.float32(-np.inf))
        above = np.nextafter(np.float32(high), np.float32(np.inf))
        ctx.inside, ctx.high, ctx.shape = (0.0 if rectify else float(below), float(above)), high, scale.shape
        return q * scale

    @staticmethod
    def backward(ctx, grad):
        ratio, q = ctx.saved_tensors
        of_x = grad * ((ratio > ctx.inside[0]) & (ratio < ctx.inside[1]))
        of_scale = (grad * q - of_x * ratio).sum_to_size(ctx.shape)
        return of_x, of_scale * (ctx.high * max(1, q.numel() // ctx.shape.numel())) ** -0.5, None, None, None


def mixed(quantizer: Quantizer, x: th.Tensor, scale: th.Tensor) -> th.Tensor:
    steps = NORMAL_STEP if quantizer.signed else HALF_NORMAL_STEP
    total = 0
    for bits, share in quantizer.precision.items():
        if share == 0:
            continue
        if bits == FLOAT_BITS:
            part = x if quantizer.signed else x.relu()
        else:
            finer = scale if bits == quantizer.bits else scale * (steps[bits] / steps[quantizer.bits])
            part = Rounded.apply(x, finer, *integer_range(bits, quantizer.signed), not quantizer.signed)
        total = total + part * share
    return total


def step(quantizer: Quantizer) -> th.Tensor:
    return quantizer.log_scale.double().exp().clamp_min(MIN_SCALE).float()


def grid_output(grid: VectorGrid, x: th.Tensor) -> th.Tensor:
    scale = step(grid.quantizer)
    with th.no_grad():
        m, a = (1 / (grid.std * scale.double())).float(), (-grid.mean / (grid.std * scale.double())).float()
        t = (x * m + a).clamp(-MAX_STEPS, MAX_STEPS)
        q = t.round().clamp(-128, 127)
    quantized = q * scale + (scale.detach() - scale) * th.where(q == t.round(), t, 0.0)
    share = grid.quantizer.precision.get(FLOAT_BITS, 0.0)
    return share * (t * scale.detach()) + (1 - share) * quantized


def layer_output(layer: QuantLayer, x: th.Tensor) -> th.Tensor:
    weight, bias, quantizer, grid = layer.weight, layer.bias, layer.weight_quantizer, layer.input_grid
    if quantizer.precision.get(FLOAT_BITS) != 1.0:
        input_step = (grid.step if isinstance(grid, PixelGrid) else step(getattr(grid, "quantizer", grid))).detach()
        smallest = bias.detach().abs() / (input_step * BIAS_LIMIT)
        own = step(quantizer)
        smallest = smallest if len(own) == len(bias) else smallest.amax(0, keepdim=True)
        own = th.where(own > smallest, own, smallest)
        weight = mixed(quantizer, weight, own.reshape(-1, *(1,) * (weight.dim() - 1)))
        unit = (input_step * own).detach()
        change = ((bias / unit).round() * unit - bias).detach()
        bias = bias + (1 - quantizer.precision.get(FLOAT_BITS, 0.0)) * change
    if isinstance(grid, PixelGrid):
        weight = weight * grid.carried
        bias = bias - grid.centre * weight.flatten(1).sum(1)
    if isinstance(layer, QuantConv2d):
        y = F.conv2d(x, weight, bias, layer.stride)
    else:
        y = F.linear(x.flatten(1), weight, bias)
    if layer.output_grid is not None:
        return mixed(layer.output_grid, y, step(layer.output_grid))
    return y * layer.output_unit if isinstance(layer, QuantMeanHead) else y


def policy_output(policy: QuantActorCriticPolicy, observations: th.Tensor | dict[str, th.Tensor]) -> tuple:
    def features(preprocessed):
        found = []
        for trunk in policy.features_extractor.trunks:
            x = trunk.input(preprocessed)
            x = x if isinstance(trunk.input_grid, PixelGrid) else grid_output(trunk.input_grid, x)
            for layer in trunk.layers:
                x = layer_output(layer, x)
            found.append(x.flatten(1))
        return th.cat(found, dim=1)

    x = policy.extract_features(observations, features)
    return layer_output(policy.action_net, x), policy.value_net(x).flatten()


# -- comparisons --------------------------------------------------------------------------------------------------------


def values_and_gradients(policy: QuantActorCriticPolicy, forward: Callable, observations) -> dict[str, th.Tensor | None]:
    """Of a loss that depends on all outputs."""
    policy.zero_grad(set_to_none=True)
    actor, value = forward(observations)
    weights = th.linspace(-1, 2, actor.numel()).reshape(actor.shape)
    ((actor * weights).square().mean() + (value - 0.3).square().mean()).backward()
    return {"actor": actor, "value": value, **{name: p.grad for name, p in policy.named_parameters()}}


def make_policy(space: spaces.Space, action_space: spaces.Space, bits: tuple, arch: dict, seed: int = 0):
    """A calibrated student in training mode, and observations. A step of each layer is too small for the bias's grid."""
    th.manual_seed(seed)
    policy = QuantActorCriticPolicy(space, action_space, lambda _: 1e-3, arch, weight_bits=bits[0], activation_bits=bits[1])
    generator = th.Generator().manual_seed(seed)

    def draw(one: spaces.Space):
        if isinstance(one, spaces.Dict):
            return {key: draw(part) for key, part in one.items()}
        if isinstance(one, spaces.Discrete):
            return th.randint(0, int(one.n), (24,), generator=generator)
        if one.dtype == np.uint8:
            return th.randint(0, 256, (24, *one.shape), generator=generator).float()
        return 2 * th.randn((24, *one.shape), generator=generator)

    observations = draw(space)
    with th.no_grad():
        policy.action_net.weight.mul_(100)
        for layer in quant_layers(policy):
            layer.bias.normal_(0, 0.1)
    for trunk in policy.features_extractor.trunks:
        trunk.set_normalization(3.0, 2.0)
    policy.calibrate(observations)
    with th.no_grad():
        for layer in quant_layers(policy)[:-1]:
            layer.weight_quantizer.log_scale[0].sub_(18.0)
    policy.set_training_mode(True)
    return policy, observations


def assert_equal_gradients(found: dict, expected: dict, rtol: float = 0.0) -> None:
    for name, value in expected.items():
        assert (value is None) == (found[name] is None), name
        if value is not None:
            th.testing.assert_close(found[name], value, rtol=rtol, atol=0, msg=lambda text, name=name: f"{name}: {text}")


ARCHS = {"usual": {"hidden": (16, 12), "conv": ((6, 8, 4), (8, 3, 1)), "conv_hidden": (10,)}, "bare": {"conv": ((4, 8, 4),)}}


@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 8)], ids=["W8A8", "W4A4", "W2A8"])
@pytest.mark.parametrize("arch", ARCHS.values(), ids=ARCHS)
@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_one_function_is_the_composition_bit_for_bit(space, arch, bits, transition):
    for action_space in (DISCRETE, BOX):
        policy, observations = make_policy(space, action_space, bits, arch)
        for progress in PROGRESS:
            policy.set_precision(transition, progress)
            expected = values_and_gradients(policy, lambda x, policy=policy: policy_output(policy, x), observations)
            assert_equal_gradients(values_and_gradients(policy, policy.actor_and_value, observations), expected)
            assert all(expected[name].abs().sum() > 0 for name, _ in policy.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
def test_trunks_of_a_dict_differ_from_the_composition_in_a_last_bit_at_most(transition):
    """The gradients of their shared grid are added up in another order."""
    policy, observations = make_policy(DICT, DISCRETE, (4, 8), ARCHS["usual"])
    for progress in PROGRESS:
        policy.set_precision(transition, progress)
        expected = values_and_gradients(policy, lambda x: policy_output(policy, x), observations)
        assert_equal_gradients(values_and_gradients(policy, policy.actor_and_value, observations), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_one_function_is_the_composition_for_random_students(seed):
    rng = np.random.default_rng(seed)
    space = spaces.Box(-np.inf, np.inf, (int(rng.integers(1, 20)),), np.float32)
    arch = {"hidden": tuple(int(n) for n in rng.integers(1, 20, rng.integers(1, 4)))}
    bits = (int(rng.choice([2, 3, 4, 5, 8])), int(rng.choice([2, 3, 4, 8])))
    policy, observations = make_policy(space, DISCRETE if seed % 2 else BOX, bits, arch, seed)
    treat(policy, "noise", seed)
    for transition in TRANSITIONS.values():
        policy.set_precision(transition, rng.uniform())
        expected = values_and_gradients(policy, lambda x: policy_output(policy, x), observations)
        assert_equal_gradients(values_and_gradients(policy, policy.actor_and_value, observations), expected)


def test_evaluate_actions_of_stock_algorithms_has_the_same_gradients():
    policy, observations = make_policy(VECTOR, DISCRETE, (4, 8), ARCHS["usual"])
    actions = th.randint(0, 6, (24,), generator=th.Generator().manual_seed(0))

    def composed(x):
        logits, value = policy_output(policy, x)
        return F.log_softmax(logits, dim=1).gather(1, actions[:, None]).flatten(), value

    def stock(x):
        value, log_prob, _ = policy.evaluate_actions(x, actions)
        return log_prob, value.flatten()

    policy.set_precision(TRANSITIONS["blend"], 0.6)
    expected = values_and_gradients(policy, composed, observations)
    assert_equal_gradients(values_and_gradients(policy, stock, observations), expected, rtol=2e-4)


def test_a_layer_alone_gives_its_input_a_gradient():
    policy, _ = make_policy(VECTOR, DISCRETE, (8, 8), ARCHS["usual"])
    layer = policy.features_extractor.layers[1]
    assert isinstance(layer, QuantLinear)
    results = []
    for forward in (layer, lambda x: layer_output(layer, x)):
        x = th.linspace(-1, 1, 3 * 16).reshape(3, 16).requires_grad_()
        forward(x).square().sum().backward()
        results.append(x.grad)
    assert th.equal(*results) and results[0].abs().sum() > 0


def test_a_change_of_precision_between_forward_and_backward_changes_no_gradient():
    policy, observations = make_policy(VECTOR, DISCRETE, (4, 4), ARCHS["usual"])
    found = []
    for later in (0.5, 1.0):
        policy.zero_grad(set_to_none=True)
        policy.set_precision(TRANSITIONS["blend"], 0.5)
        actor, _ = policy.actor_and_value(observations)
        policy.set_precision(TRANSITIONS["blend"], later)
        actor.square().sum().backward()
        found.append([p.grad for p in policy.parameters() if p.grad is not None])
    assert len(found[0]) > 5 and all(th.equal(one, other) for one, other in zip(*found, strict=True))
