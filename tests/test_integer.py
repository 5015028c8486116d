import inspect
import json
import math
import shutil
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from bounds import bounded
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.policies import BasePolicy
from students import (
    BITS,
    BOX,
    DISCRETE,
    IMAGE,
    SPACES,
    TREATMENTS,
    VECTOR,
    actor_output,
    assert_same_bits,
    assert_twins,
    make_student,
    quant_layers,
    some_observations,
    treat,
)

import sb3_qpd.integer
from sb3_qpd import AtariVecEnv
from sb3_qpd.export.numpy import interpreter
from sb3_qpd.integer import IntegerLayer, IntegerModel, ObservationPart, fixed_point, pack, unpack

SOURCE = Path(sb3_qpd.integer.__file__)


def layer(weight: list, bias: list, multiplier: list, activation_bits: int = 8, **kwargs: int) -> IntegerLayer:
    arrays = np.array(weight, np.int8), np.array(bias, np.int32), np.array(multiplier, np.float32)
    return IntegerLayer(*arrays, weight_bits=8, activation_bits=activation_bits, **kwargs)


def discrete_model(n_actions: int = 3, unit: float = 0.01) -> IntegerModel:
    """A linear policy on two features."""
    rng = np.random.default_rng(0)
    head = layer(rng.integers(-90, 90, (n_actions, 2)), [0] * n_actions, [unit], 0)
    return IntegerModel([head], (2,), np.full(2, 10, np.float32), np.zeros(2, np.float32))


# -- twins: evaluation mode and integers give the same bits -----------------------------------------------------------


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_twins(observation_space, action_space, bits):
    policy = make_student(observation_space, action_space, bits)
    n = 2000 if observation_space is VECTOR else 300
    assert_twins(policy, some_observations(observation_space, n))


@pytest.mark.parametrize("bits", [BITS["W8A8"], BITS["W3A3"]], ids=["W8A8", "W3A3"])
@pytest.mark.parametrize("treatment", TREATMENTS)
@pytest.mark.parametrize("observation_space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_twins_whatever_training_did(observation_space, treatment, bits):
    policy = make_student(observation_space, BOX, bits)
    treat(policy, treatment)
    assert_twins(policy, some_observations(observation_space, 1000 if observation_space is VECTOR else 64))


def test_twins_after_training():
    """Gradient steps in training mode move weights, biases and steps."""
    for space in (VECTOR, IMAGE):
        policy = make_student(space, DISCRETE, BITS["W4A4"])
        observations = policy.obs_to_tensor(some_observations(space, 64))[0]
        policy.set_training_mode(True)
        for _ in range(5):
            actor, value = policy.actor_and_value(observations)
            policy.optimizer.zero_grad()
            (actor.square().mean() + value.clamp(-10, 10).mean()).backward()
            policy.optimizer.step()
        policy.set_training_mode(False)
        assert_twins(policy, some_observations(space, 200, seed=1))


@pytest.mark.parametrize("bits", [(8, 8), (2, 8), ((4,), 4)], ids=["W8A8", "W2A8", "4-bit head"])
@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "Box"])
def test_twins_without_a_hidden_layer(action_space, bits):
    policy = make_student(VECTOR, action_space, bits, arch={"hidden": ()})
    model = policy.to_integer()
    assert len(model.layers) == 1
    assert_twins(policy, some_observations(VECTOR, 2000))


def test_twins_of_convolutions_alone_and_of_odd_strides():
    arch = {"conv": ((5, 7, 3), (4, 2, 2), (3, 1, 1)), "conv_hidden": ()}
    assert_twins(make_student(IMAGE, DISCRETE, (8, 8), arch=arch), some_observations(IMAGE, 64))


def test_twins_of_a_wide_student_whose_sums_pass_float32():
    """W8A8 with 3,000 units: sums beyond 2^24, so that evaluation has to compute in float64."""
    policy = make_student(VECTOR, DISCRETE, (8, 8), arch={"hidden": (3000, 4)})
    observations = np.abs(some_observations(VECTOR, 300))
    with th.no_grad():
        for quant_layer in quant_layers(policy)[:2]:
            quant_layer.weight.abs_().add_(quant_layer.weight.max())
    policy.calibrate(policy.obs_to_tensor(observations[32:150])[0])
    model = policy.to_integer()
    _, hidden, _, _ = model.trace(observations)
    sums = model.layers[1].accumulate(hidden)
    assert len(np.unique(sums)) > 100 and (sums[sums > 2**24] % 2 == 1).any()
    assert_twins(policy, observations)


def test_twins_of_a_feature_that_is_huge_and_constant():
    """Its offset on the input grid would be infinite in float32, and infinity minus infinity is not a number."""
    policy = make_student(VECTOR, BOX)
    policy.set_normalization(np.array([1e35, -1e35, 0, 1, 1e30]), np.zeros(5))
    assert_twins(policy, np.tile(np.array([1e35, -1e35, 0, 1, 1e30], np.float32), (3, 1)))
    assert_twins(policy, some_observations(VECTOR))


def test_zero_has_no_sign():
    policy = make_student(spaces.Box(-1, 1, (1,)), DISCRETE, arch={"hidden": ()})
    with th.no_grad():
        policy.action_net.weight.fill_(-1)
        policy.action_net.bias.fill_(-1e-30)
    assert_twins(policy, np.zeros((3, 1), np.float32))


def test_twins_at_one_and_at_many():
    for space in (VECTOR, IMAGE):
        policy = make_student(space, BOX, (4, 4))
        model, observations = policy.to_integer(), some_observations(space, 40)
        batch = model.logits(observations)
        for i in (0, 7, 39):
            assert_same_bits(model.logits(observations[i]), batch[i : i + 1])
            assert_same_bits(actor_output(policy, observations[i : i + 1]), batch[i : i + 1])


def test_twins_layer_by_layer():
    """The integers between the layers are equal as well."""
    for space in (VECTOR, IMAGE):
        policy = make_student(space, DISCRETE, (4, 4))
        observations = some_observations(space, 50)
        trace = list(policy.to_integer().trace(observations))
        x = policy.obs_to_tensor(observations)[0].float()
        extractor = policy.features_extractor
        with th.no_grad():
            x = extractor.input_grid(x)
            step = 1.0 if space is IMAGE else extractor.input_grid.scale()  # pixels stay as they are
            np.testing.assert_array_equal((x / step).round().double().numpy(), trace[0])
            for quant_layer, integers in zip(extractor.layers, trace[1:-1], strict=True):
                x = quant_layer(x if quant_layer.weight.dim() == 4 else x.flatten(1))
                np.testing.assert_array_equal((x / quant_layer.output_grid.scale()).round().double().numpy(), integers)


def test_twins_on_real_observations_of_a_game():
    env = gym.make("CartPole-v1")
    observations = [env.reset(seed=0)[0]]
    env.action_space.seed(0)
    for _ in range(1000):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(env.reset()[0] if terminated or truncated else observation)
    for bits in BITS.values():
        assert_twins(make_student(env.observation_space, env.action_space, bits), np.array(observations))


def test_twins_on_real_frames():
    env = AtariVecEnv("PongNoFrameskip-v4", 8, seed=0)
    rng, frames = np.random.default_rng(0), [env.reset()]
    for _ in range(40):
        frames.append(env.step(rng.integers(0, 6, 8))[0])
    frames = np.concatenate(frames[20:])
    env.close()
    for bits in (BITS["W8A8"], BITS["W4A4"]):
        assert_twins(make_student(env.observation_space, env.action_space, bits, arch="tiny"), frames)


@pytest.mark.parametrize("treatment", [None, *TREATMENTS])
def test_predict_is_that_of_the_policy(treatment):
    for observation_space, action_space in SPACES.values():
        policy = make_student(observation_space, action_space)
        if treatment is not None:
            treat(policy, treatment)
        observations = some_observations(observation_space, 200)
        expected, _ = policy.predict(observations, deterministic=True)
        actions, _ = policy.to_integer().predict(observations, deterministic=True)
        np.testing.assert_array_equal(actions, expected)
        assert actions.shape == expected.shape and actions.dtype == expected.dtype


def test_argmax_is_that_of_the_integers():
    """Of two logits that are one float32 both sides take the one whose integer is larger."""
    policy = make_student(VECTOR, gym.spaces.Discrete(3), arch={"hidden": (3000,)})
    with th.no_grad():
        policy.action_net.weight.fill_(1.0)
        policy.action_net.bias.zero_()
        policy.features_extractor.layers[0].bias.fill_(1e3)  # everything at the top of its grid
        policy.action_net.weight_quantizer.calibrate(policy.action_net.weight)
        unit = policy.features_extractor.output_grid.scale() * policy.action_net.weight_quantizer.scale()
        policy.action_net.bias.copy_(unit * th.tensor([1.0, 2.0, 0.0]))
    model, observations = policy.to_integer(), some_observations(VECTOR, 8)
    logits, acc = model.logits(observations), model.accumulators(observations)
    assert (np.diff(acc[:, :2]) == 1).all() and (logits[:, 0] == logits[:, 1]).all()
    for predictor in (model, policy):
        assert (predictor.predict(observations, deterministic=True)[0] == 1).all()


def test_batches_of_any_size():
    policy = make_student(IMAGE, DISCRETE)
    model, observations = policy.to_integer(), some_observations(IMAGE, 600)
    whole = model.logits(observations)
    np.testing.assert_array_equal(
        whole, np.concatenate([model.logits(part) for part in np.split(observations, [1, 257, 400])])
    )
    assert model.logits(observations[:0]).shape == (0, 6)


# -- one layer ----------------------------------------------------------------------------------------------------------


def test_accumulate_by_hand():
    dense = layer([[1, -2], [127, 3], [-128, 0]], [10, -1, 5], [1, 1, 1])
    np.testing.assert_array_equal(dense.accumulate(np.array([[255.0, 1.0]])), [[263, 32387, -32635]])


def test_convolution_is_torchs():
    rng = np.random.default_rng(0)
    for kernel, stride, side in ((8, 4, 84), (3, 1, 9), (4, 3, 17), (1, 2, 5)):
        weight, bias = rng.integers(-128, 128, (5, 3, kernel, kernel)), rng.integers(-(2**20), 2**20, 5)
        conv = layer(weight, bias, np.ones(5), stride=stride)
        x = rng.integers(0, 256, (2, 3, side, side))
        expected = th.nn.functional.conv2d(*(th.from_numpy(v).double() for v in (x, weight, bias)), stride=stride)
        acc = conv.accumulate(x.astype(np.float64))
        np.testing.assert_array_equal(acc, expected.numpy())
        assert acc.shape[1:] == conv.output_shape((3, side, side))


def test_requantization_rounds_ties_by_the_mode():
    acc = np.array([[-3, -1, 0, 1, 3, 5, 7, 1000]]).T
    half = layer([[1]], [0], [0.5])
    np.testing.assert_array_equal(half.requantize(acc, "float32").T, [[0, 0, 0, 0, 2, 2, 4, 255]])
    np.testing.assert_array_equal(half.requantize(acc, "fixed").T, [[0, 0, 0, 1, 2, 3, 4, 255]])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_requantization_ends_at_the_grids_ends(bits):
    acc = np.array([[-(2**31) + 1, 2**31 - 1]]).T
    for mode in ("float32", "fixed"):
        y = layer([[1]], [0], [0.7], activation_bits=bits).requantize(acc, mode)
        np.testing.assert_array_equal(y.T, [[0, 2**bits - 1]])


def test_fixed_point_is_exact_for_every_float32_in_range():
    rng = np.random.default_rng(0)
    multiplier = np.exp(rng.uniform(-21, 20, 5000)).astype(np.float32)
    multiplier[:3] = 1.0, 0.5, np.nextafter(np.float32(1), np.float32(0))
    m, shift = fixed_point(multiplier)
    assert ((m >= 2**30) & (m < 2**31) & (shift >= 1) & (shift <= 62)).all()
    np.testing.assert_array_equal(m * 2.0 ** -shift.astype(np.float64), multiplier.astype(np.float64))


def test_fixed_point_against_exact_arithmetic_over_all_of_int32():
    rng = np.random.default_rng(0)
    acc = np.concatenate([rng.integers(-(2**31) + 1, 2**31, 2000), rng.integers(-3000, 3000, 2000), [0, 1, -1, 2**31 - 1]])
    for exponent in (-40, -33, -32, -31, -20, -8, -1, 0, 20, 29, 31, 60):
        multiplier = np.float32(1.37) * np.float32(2.0) ** exponent
        y = layer([[1]], [0], [multiplier]).requantize(acc[:, None], "fixed")[:, 0]
        numerator, denominator = float(multiplier).as_integer_ratio()
        exact = [(2 * int(a) * numerator + denominator) // (2 * denominator) for a in acc]
        np.testing.assert_array_equal(y, np.clip(np.array(exact, dtype=object), 0, 255).astype(np.float64))


def test_the_two_modes_differ_at_near_ties_only():
    rng = np.random.default_rng(0)
    acc = rng.integers(-20_000, 60_000, (200_000, 1))
    dense = layer([[1]], [0], [0.004217])
    one, other = (dense.requantize(acc, mode) for mode in ("float32", "fixed"))
    assert np.abs(one - other).max() <= 1
    assert (one != other).mean() < 1e-4


@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_a_student_acts_alike_in_both_modes(observation_space, action_space):
    policy = make_student(observation_space, action_space)
    model = policy.to_integer()
    observations = some_observations(observation_space, 2000 if observation_space is VECTOR else 200, seed=3)
    actions, _ = model.predict(observations, deterministic=True)
    model.requantization = "fixed"
    fixed, _ = model.predict(observations, deterministic=True)
    if action_space is DISCRETE:
        assert (actions != fixed).mean() <= 0.01
    else:
        assert ((fixed >= BOX.low) & (fixed <= BOX.high)).all()
        assert (np.abs(actions - fixed) > 0.01 * (BOX.high - BOX.low)).mean() <= 0.01


def test_int32_overflow_is_refused():
    layer([[127] * 66_000], [0], [1.0])
    with pytest.raises(ValueError, match="An accumulator could reach 21.*, which does not fit int32"):
        layer([[127] * 66_400], [0], [1.0])
    with pytest.raises(ValueError, match="does not fit int32"):
        layer([[1]], [2**31 - 1], [1.0])


@pytest.mark.parametrize("multiplier", [math.nan, math.inf, -1.0])
def test_multipliers_that_mean_nothing_are_refused(multiplier):
    with pytest.raises(ValueError, match="Multipliers must be finite and not negative"):
        layer([[1]], [0], [multiplier])


NUMBERS = {
    "input_multiplier": np.inf,
    "input_offset": np.nan,
    "action_low": -np.inf,
    "action_high": np.nan,
    "action_std": np.inf,
}


@pytest.mark.parametrize(("name", "value"), NUMBERS.items(), ids=NUMBERS)
def test_numbers_that_are_not_finite_are_refused(name, value):
    model = make_student(VECTOR, BOX).to_integer()
    values = getattr(model, name).copy()
    values[-1] = value
    with pytest.raises(ValueError, match=f"{name} must hold finite numbers of float32, got float32 .*{value}"):
        replace(model, **{name: values})


def test_numbers_of_other_types_are_refused():
    """A file would hold them rounded, and be another policy."""
    model = make_student(VECTOR, BOX).to_integer()
    with pytest.raises(ValueError, match="input_offset must hold finite numbers of float32, got float64"):
        replace(model, input_offset=model.input_offset.astype(np.float64))
    head = model.layers[-1]
    for name, dtype in (("weight", np.int16), ("bias", np.float64), ("multiplier", np.float64)):
        with pytest.raises(ValueError, match="must be int8, int32 and float32, got .*"):
            replace(head, **{name: getattr(head, name).astype(dtype)})
    with pytest.raises(ValueError, match="Weights of 4 bits must be -8 to 7, got -1[0-9]+ to [0-9]+"):
        replace(head, weight_bits=4)


def test_bounds_in_the_wrong_order_are_refused():
    model = make_student(VECTOR, BOX).to_integer()
    with pytest.raises(ValueError, match="action_low must not be above action_high"):
        replace(model, action_low=model.action_high + 1)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_and_back(bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for shape in ((1,), (3, 5), (2, 3, 3, 3), (1, 7)):
        weight = np.random.default_rng(0).integers(low, high + 1, shape).astype(np.int8)
        weight.flat[0], weight.flat[-1] = low, high
        packed = pack(weight, bits)
        assert packed.dtype == np.uint8 and len(packed) == math.ceil(weight.size * bits / 8)
        restored = unpack(packed, bits, shape)
        assert restored.dtype == np.int8
        np.testing.assert_array_equal(restored, weight)


def test_packed_bits_are_little_endian():
    # -2, -1, 0, 1 as 0, 1, 2, 3
    assert pack(np.array([-2, -1, 0, 1]), 2).tolist() == [0b11_10_01_00]
    assert pack(np.array([-8, 7, 0]), 4).tolist() == [0xF0, 0x08]


# -- predict ------------------------------------------------------------------------------------------------------------


def test_predict_has_sb3s_signature():
    own, theirs = (inspect.signature(cls.predict).parameters for cls in (IntegerModel, BasePolicy))
    *sb3s, masks = [(p.name, p.default) for p in own.values()]
    assert sb3s == [(p.name, p.default) for p in theirs.values()]
    assert masks == ("action_masks", None)  # sb3-contrib's


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_shapes_types_and_state(observation_space, action_space, deterministic):
    policy = make_student(observation_space, action_space)
    model, observations = policy.to_integer(), some_observations(observation_space, 4)
    state = (np.zeros(3),)
    for batch in (observations, observations[0]):
        ours, theirs = (
            predictor.predict(batch, state, np.array([True]), deterministic=deterministic) for predictor in (model, policy)
        )
        assert ours[1] is state
        assert isinstance(ours[0], np.ndarray)
        assert ours[0].shape == theirs[0].shape and ours[0].dtype == theirs[0].dtype
        actions = ours[0] if batch is observations else ours[0][None]
        assert all(action_space.contains(action) for action in actions)
    assert model.predict(observations[:0])[0].shape[0] == 0


def test_box_actions_have_the_spaces_shape_and_stay_inside():
    space = gym.spaces.Box(-0.25, 3, (2, 1, 3), np.float32)
    policy = make_student(VECTOR, space)
    model, observations = policy.to_integer(), some_observations(VECTOR, 500)
    for deterministic in (True, False):
        actions, _ = model.predict(observations, deterministic=deterministic)
        assert actions.shape == (500, 2, 1, 3) and actions.min() == -0.25 and actions.max() == 3
    assert model.predict(observations[0])[0].shape == (2, 1, 3)


def test_actions_stay_inside_bounds_that_float32_does_not_have():
    space = gym.spaces.Box(np.array([-0.1, 0.3]), np.array([0.1, 0.7]), dtype=np.float64)
    for deterministic in (True, False):
        actions, _ = (
            make_student(VECTOR, space).to_integer().predict(some_observations(VECTOR, 500), deterministic=deterministic)
        )
        assert all(space.contains(action) for action in actions)
        np.testing.assert_allclose(actions.min(0), space.low, rtol=1e-6)
        np.testing.assert_allclose(actions.max(0), space.high, rtol=1e-6)


def test_sampled_box_actions_have_the_policys_mean_and_deviation():
    space = gym.spaces.Box(-1e6, 1e6, (2,), np.float32)
    policy = make_student(VECTOR, space)
    with th.no_grad():
        policy.log_std.copy_(th.tensor([-1.0, 0.7]))
    model = policy.to_integer()
    model.set_random_seed(0)
    observation = some_observations(VECTOR, 20)[10]
    actions, _ = model.predict(np.tile(observation, (20_000, 1)))
    np.testing.assert_allclose(actions.mean(0), model.logits(observation)[0], atol=0.08)
    np.testing.assert_allclose(actions.std(0), np.exp([-1.0, 0.7]), rtol=0.03)


def test_seeds():
    model, observations = discrete_model(), some_observations(gym.spaces.Box(-1, 1, (2,), np.float32), 200)
    drawn = []
    for seed in (0, 0, 1):
        model.set_random_seed(seed)
        drawn.append(model.predict(observations)[0])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_images_in_either_channel_order():
    model, observations = make_student(IMAGE, DISCRETE).to_integer(), some_observations(IMAGE, 30)
    last = np.moveaxis(observations, 1, -1)
    assert last.shape == (30, 36, 36, 4)
    assert_same_bits(model.logits(last), model.logits(observations))
    assert_same_bits(model.logits(last[5]), model.logits(observations[5]))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.int64, np.uint8])
def test_vectors_of_other_types_are_cast_to_float32(dtype):
    observations = np.array([[1, 2], [100, 0]], dtype)
    assert_same_bits(discrete_model().logits(observations), discrete_model().logits(observations.astype(np.float32)))


def test_lists_will_do():
    assert_same_bits(discrete_model().logits([0.5, 1]), discrete_model().logits(np.array([0.5, 1], np.float32)))


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.array([0.0, np.nan]), "The observation holds nan in feature 1: expected finite numbers of float32"),
        (np.array([[0.0, 0.0], [np.inf, 0.0]]), "The observation holds inf in feature 0"),
        (np.array([0.0, 1e300]), "holds 1e.300 in feature 1: expected finite numbers of float32"),
        (np.zeros(3), r"shape \(2,\) or \(batch_size, 2\), got \(3,\)"),
        (np.zeros((2, 2, 2)), r"got \(2, 2, 2\)"),
        (np.float32(1), r"got \(\)"),
        (np.array(["a", "b"]), "real numbers, got dtype <U1"),
        (np.array([1j, 0]), "real numbers, got dtype complex128"),
        ({"observation": 1}, "real numbers, got dtype object"),
        (None, "real numbers, got dtype object"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_vectors_are_refused(observation, message):
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
        discrete_model().predict(observation)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.zeros(IMAGE.shape, np.float32), "dtype uint8, got float32"),
        (np.zeros((4, 36, 35), np.uint8), r"\(4, 36, 36\) or \(batch_size, 4, 36, 36\), got \(4, 36, 35\)"),
        (np.zeros((36, 36), np.uint8), r"got \(36, 36\)"),
    ],
)
def test_wrong_images_are_refused(observation, message):
    with pytest.raises(ValueError, match=message):
        make_student(IMAGE, DISCRETE).to_integer().predict(observation)


@pytest.mark.filterwarnings("error")
def test_large_numbers_of_float32_are_inputs_like_others():
    policy = make_student(VECTOR, DISCRETE)
    observation = np.full((1, 5), 3.4e38, np.float32)
    assert_same_bits(policy.to_integer().logits(observation), actor_output(policy, observation))


def test_unknown_requantization_is_refused():
    with pytest.raises(ValueError, match="requantization must be one of .*float32.*fixed.*, got 'int8'"):
        replace(discrete_model(), requantization="int8")


# -- the sampler --------------------------------------------------------------------------------------------------------


def boundaries(model: IntegerModel, accumulators: np.ndarray) -> np.ndarray:
    """Probability of each action, from the random numbers at which the action changes (by bisection)."""
    n_actions, edges = accumulators.shape[1], [0]
    for action in range(n_actions - 1):
        low, high = 0, 2**32  # the first number that gives a later action
        while low < high:
            middle = (low + high) // 2
            if middle < 2**32 and model.sample(accumulators, np.array([middle], np.uint64))[0] <= action:
                low = middle + 1
            else:
                high = middle
        edges.append(low)
    return np.diff([*edges, 2**32]) / 2**32


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


@pytest.mark.parametrize("unit", [1e-7, 1e-4, 0.003, 0.3])
@pytest.mark.parametrize("n_actions", [2, 6, 18])
def test_sampler_has_the_probabilities_of_softmax(n_actions, unit):
    model, rng = discrete_model(n_actions, unit), np.random.default_rng(0)
    for spread in (0.1, 1, 5):
        accumulators = np.rint(rng.standard_normal((1, n_actions)) * spread / unit).astype(np.int64)
        expected = softmax(accumulators[0] * float(np.float32(unit)))
        implied = boundaries(model, accumulators)
        likely = expected > 1e-3
        np.testing.assert_allclose(implied[likely], expected[likely], rtol=0.005)
        np.testing.assert_allclose(implied, expected, atol=2e-6, rtol=0.02)


def test_sampler_is_right_over_the_whole_range_of_two_actions():
    model = discrete_model(2, unit=0.001)
    for difference in range(0, 12_000, 241):
        implied = boundaries(model, np.array([[5, 5 - difference]]))[1]
        expected = 1 / (1 + math.exp(difference * float(np.float32(0.001))))
        assert implied == pytest.approx(expected, rel=0.005 if expected > 1e-3 else 0.05, abs=1e-7)


def test_sampled_actions_pass_a_chi_square_test():
    model, n = discrete_model(6, unit=0.01), 200_000
    accumulators = np.array([[120, -40, 0, 119, -300, 60]])
    random_bits = np.random.default_rng(0).integers(0, 2**32, n, np.uint64)
    counts = np.bincount(model.sample(np.repeat(accumulators, n, 0), random_bits), minlength=6)
    assert stats.chisquare(counts, n * softmax(accumulators[0] * 0.01)).pvalue > 0.01


def test_sampler_agrees_with_the_policys_own():
    policy = make_student(VECTOR, DISCRETE)
    with th.no_grad():
        policy.action_net.weight.div_(100)
    model = policy.to_integer()
    model.set_random_seed(0)
    th.manual_seed(0)
    observations = np.tile(some_observations(VECTOR, 40)[17], (20_000, 1))
    counts = [np.bincount(p.predict(observations)[0], minlength=6) for p in (model, policy)]
    assert stats.chi2_contingency(counts).pvalue > 0.01
    assert min(counts[0]) > 0


def test_same_random_number_same_action():
    model, rng = discrete_model(6), np.random.default_rng(0)
    accumulators, random_bits = rng.integers(-300, 300, (100, 6)), rng.integers(0, 2**32, 100, np.uint64)
    batch = model.sample(accumulators, random_bits)
    single = [model.sample(accumulators[i : i + 1], random_bits[i : i + 1])[0] for i in range(100)]
    np.testing.assert_array_equal(batch, single)
    # only differences count
    np.testing.assert_array_equal(model.sample(accumulators + 12_345, random_bits), batch)


def test_smallest_and_largest_random_number():
    model = discrete_model(3)
    accumulators = np.zeros((2, 3), np.int64)
    assert model.sample(accumulators, np.array([0, 2**32 - 1], np.uint64)).tolist() == [0, 2]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("unit", [0.0, 1e-38, 1e-12, 1e-6, 1.0, 1e6, 1e36])
def test_extreme_logits_do_not_overflow(unit):
    model = discrete_model(3, unit)
    accumulators = np.array([[2**31 - 1, -(2**31), 2**31 - 2]])
    expected = softmax(accumulators[0] * float(np.float32(unit)))
    implied = boundaries(model, accumulators)
    np.testing.assert_allclose(implied, expected, atol=0.003)


@pytest.mark.parametrize("n_actions", [1, 256, 257, 1500])
def test_any_number_of_actions(n_actions):
    model, n = discrete_model(n_actions), 4000
    random_bits = (np.arange(n, dtype=np.uint64) * np.uint64(2**32 // n)).astype(np.uint64)
    counts = np.bincount(model.sample(np.zeros((n, n_actions), np.int64), random_bits), minlength=n_actions)
    assert len(counts) == n_actions and counts.min() >= n // n_actions - 1 and counts.max() <= -(-n // n_actions) + 1


# -- sizes --------------------------------------------------------------------------------------------------------------


def test_bytes_parameters_and_operations_by_hand():
    policy = make_student(VECTOR, BOX, (4, 8), arch={"hidden": (16, 12)})
    model = policy.to_integer()
    # first layer and head at 8 bits, 4 between; biases and multipliers of 31 units; 5 inputs' grid; 3 actions' box, deviation
    assert model.nbytes == (5 * 16 + 16 * 12 // 2 + 12 * 3) + 2 * 4 * 31 + 2 * 4 * 5 + 3 * 4 * 3
    assert model.n_parameters == 5 * 16 + 16 * 12 + 12 * 3 + 31
    assert model.macs == 5 * 16 + 16 * 12 + 12 * 3

    model = make_student(IMAGE, DISCRETE, (2, 4)).to_integer()
    # 36 -> 8 -> 6: two convolutions of 6 and 8 channels, 288 -> 16 -> 6; one multiplier for the head
    weights = 6 * 4 * 64, 8 * 6 * 9, 288 * 16, 16 * 6
    assert model.n_parameters == sum(weights) + 36
    assert model.nbytes == weights[0] + (weights[1] + weights[2]) // 4 + weights[3] + 4 * 36 + 4 * 31
    assert model.macs == weights[0] * 64 + weights[1] * 36 + weights[2] + weights[3]


@pytest.mark.parametrize("n_actions", [4, 6, 18])
@pytest.mark.parametrize(("arch", "percent"), [("tiny", 0.5), ("nano", 0.1)])
def test_atari_students_are_small_as_files_too(arch, percent, n_actions, tmp_path):
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    teacher_bytes = 4 * (1_684_128 + 513 * n_actions)  # NatureCNN's actor in float32
    policy = make_student(space, gym.spaces.Discrete(n_actions), arch=arch)
    model = policy.to_integer(teacher="ppo/PongNoFrameskip-v4", env="PongNoFrameskip-v4", sb3="2.9.2", teacher_sha256="0" * 64)
    model.save(tmp_path / "student.npz")
    assert model.nbytes <= percent / 100 * teacher_bytes
    assert (tmp_path / "student.npz").stat().st_size <= percent / 100 * teacher_bytes


# -- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_save_and_load(observation_space, action_space, bits, tmp_path):
    model = make_student(observation_space, action_space, bits).to_integer(teacher="ppo/Own", steps=100)
    model.requantization = "fixed"
    model.save(tmp_path / "student")
    loaded = IntegerModel.load(tmp_path / "student.npz")
    observations = some_observations(observation_space, 40)
    assert_same_bits(loaded.logits(observations), model.logits(observations))
    for model_of_two in (model, loaded):
        model_of_two.set_random_seed(0)
    np.testing.assert_array_equal(loaded.predict(observations)[0], model.predict(observations)[0])
    assert loaded.metadata == model.metadata
    assert loaded.metadata.items() >= {"calibrated": True, "teacher": "ppo/Own", "steps": 100}.items()
    for name in (
        "nbytes",
        "n_parameters",
        "macs",
        "observation_shape",
        "action_shape",
        "requantization",
        "is_box",
        "is_image",
    ):
        assert getattr(loaded, name) == getattr(model, name)


def test_the_file_is_data_only_and_nothing_else_is_left(tmp_path):
    discrete_model().save(tmp_path / "student.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["student.npz"]
    with np.load(tmp_path / "student.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    model = discrete_model()
    model.save(tmp_path / "student.npz")
    before = (tmp_path / "student.npz").read_bytes()
    model.metadata["what"] = object()
    with pytest.raises(TypeError, match="not JSON serializable"):
        model.save(tmp_path / "student.npz")
    assert (tmp_path / "student.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        IntegerModel.load(tmp_path / "none.npz")


def edit_npz(source: Path, target: Path, header: dict | None = None, **arrays: np.ndarray | None) -> Path:
    with np.load(source) as file:
        members = {name: file[name] for name in file.files}
    header = json.loads(members["header"].tobytes()) | (header or {})
    members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    members.update(arrays)
    np.savez(target, **{name: value for name, value in members.items() if value is not None})
    return target


def _foreign(path: Path) -> None:
    np.savez(path, weights=np.zeros(3))


def _text(path: Path) -> None:
    path.write_text("not a student")


def _array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def _pickle(path: Path) -> None:
    np.savez(path, header=np.array([{"format": 1}], dtype=object))


def _folder(path: Path) -> None:
    path.mkdir()


def _policy_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "{}")


@pytest.mark.parametrize("write", [_foreign, _text, _array, _pickle, _folder, _policy_zip])
def test_foreign_files_are_refused(write, tmp_path):
    write(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"other.npz' is not a student's .npz \(IntegerModel.save writes one\)"):
        IntegerModel.load(tmp_path / "other.npz")


def test_a_file_beside_the_student_leads_to_it(tmp_path):
    make_student(VECTOR, DISCRETE, arch={"hidden": (16,)}).to_integer().save(tmp_path / "student.npz")
    _policy_zip(tmp_path / "student.zip")
    with pytest.raises(ValueError, match="student.zip holds no student of sb3_qpd"):
        IntegerModel.load(tmp_path / "student.zip")
    (tmp_path / "student.onnx").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"is not a student's .npz .* Load .*student.npz, which lies beside it"):
        IntegerModel.load(tmp_path / "student.onnx")


def test_a_copy_of_the_module_alone_leads_to_the_file_that_it_reads(tmp_path):
    """The student's zip needs torch."""
    make_student(VECTOR, DISCRETE, arch={"hidden": (16,)}).to_integer().save(tmp_path / "student.npz")
    _policy_zip(tmp_path / "student.zip")
    (tmp_path / "policy.py").write_bytes(interpreter())
    code = """
import sys
sys.modules["sb3_qpd"] = None
from policy import IntegerModel
try:
    IntegerModel.load("student.zip")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "is not a student's .npz" in done.stdout and "Load student.npz, which lies beside it" in done.stdout


DAMAGE = {
    "no weights": {"weights": None},
    "few weights": {"weights": np.zeros(1, np.uint8)},
    "many weights": {"weights": np.zeros(1000, np.uint8)},
    "few biases": {"biases": np.zeros(1, np.int32)},
    "many multipliers": {"multipliers": np.ones(99, np.float32)},
    "NaN multipliers": {"multipliers": np.full(17, np.nan, np.float32)},
    "no layers": {"header": {"layers": []}},
    "strange layers": {"header": {"layers": [["a"]]}},
    "strange bits": {"header": {"layers": [[[6, 5], 0, 0, 1, 1]]}},
    "layers is a number": {"header": {"layers": 3}},
    "strange shape": {"header": {"observation_shape": "abc"}},
    "unknown mode": {"header": {"requantization": "double"}},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_files_that_contradict_themselves_are_refused(damage, tmp_path):
    make_student(VECTOR, DISCRETE, arch={"hidden": (16,)}).to_integer().save(tmp_path / "student.npz")
    edit_npz(tmp_path / "student.npz", tmp_path / "damaged.npz", **damage)
    with pytest.raises(ValueError, match="damaged.npz' is not a student's .npz"):
        IntegerModel.load(tmp_path / "damaged.npz")


def _swollen(path: Path, names: tuple[str, ...], method: int = zipfile.ZIP_DEFLATED, n: int = 2**28) -> None:
    """Members of 256 MiB of zeros in a quarter of a megabyte."""
    with zipfile.ZipFile(path, "a", method) as archive:
        for name in names:
            archive.writestr(name, bytes(n))


def _lying(path: Path) -> None:
    """A member that says it has a hundred bytes, and unpacks to 256 MiB."""
    _swollen(path, ("zeros",))
    content = path.read_bytes()
    assert content.count(struct.pack("<I", 2**28)) >= 2
    path.write_bytes(content.replace(struct.pack("<I", 2**28), struct.pack("<I", 100)))


SWOLLEN = {
    "layers of 10^11 weights": lambda path: edit_npz(
        path, path, header={"layers": [[[50_000, 50_000], 2, 8, 1, 1], [[50_000, 50_000], 8, 0, 1, 1]]}
    ),
    "a layer of negative size": lambda path: edit_npz(path, path, header={"layers": [[[-50_000, 50_000], 2, 8, 1, 1]]}),
    "sizes that take minutes to multiply": lambda path: edit_npz(
        path, path, header={"layers": [[[10**4_000] * 10_000, 8, 0, 1, 1]]}
    ),
    "another array": lambda path: _swollen(path, ("zeros.npy",)),
    "no array": lambda path: _swollen(path, ("zeros",)),
    "another method": lambda path: _swollen(path, ("zeros",), zipfile.ZIP_LZMA, 2**10),
    "a size that is not true": _lying,
    "an array of text": lambda path: edit_npz(path, path, action_low=np.array(["a"])),
}


@pytest.mark.slow
@pytest.mark.parametrize("swell", SWOLLEN.values(), ids=SWOLLEN)
def test_files_that_swell_are_refused_within_bounds(swell, tmp_path):
    path = tmp_path / "student.npz"
    make_student(VECTOR, DISCRETE, arch={"hidden": (16,)}).to_integer().save(path)
    swell(path)
    assert path.stat().st_size < 2**26
    with bounded(20, 2**27), pytest.raises(ValueError, match="student.npz' is not a student's .npz"):
        IntegerModel.load(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_and_corrupted_files_are_refused(share, tmp_path):
    make_student(VECTOR, DISCRETE).to_integer().save(tmp_path / "student.npz")
    content = (tmp_path / "student.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="short.npz' is not a student's .npz"):
        IntegerModel.load(tmp_path / "short.npz")
    with zipfile.ZipFile(tmp_path / "student.npz") as archive:
        start = archive.getinfo("weights.npy").header_offset + 150  # inside the compressed weights
    (tmp_path / "flipped.npz").write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
    with pytest.raises(ValueError, match="flipped.npz' is not a student's .npz"):
        IntegerModel.load(tmp_path / "flipped.npz")


def test_a_file_with_an_origin(tmp_path):
    """Older versions refuse it, as they would not take the origin off. A file without one is what it was."""
    plain, observations = discrete_model(), np.random.default_rng(0).normal(size=(100, 2))
    origin = np.array([0.0, 5e6])
    far, away = replace(plain, input_origin=origin), observations + origin
    np.testing.assert_array_equal(far.logits(away), plain.logits(away - origin))
    for model, version in ((plain, 1), (far, 3)):
        model.save(tmp_path / f"{version}.npz")
        loaded = IntegerModel.load(tmp_path / f"{version}.npz")
        with np.load(tmp_path / f"{version}.npz") as file:
            assert json.loads(file["header"].tobytes())["format"] == version
        np.testing.assert_array_equal(loaded.logits(observations), model.logits(observations))
    assert far.nbytes == plain.nbytes + 16


@pytest.mark.parametrize(
    "origin",
    [
        np.array([0, np.nan]),
        np.array([0, np.inf]),
        np.zeros(2, np.float32),
        np.zeros(3),
        np.zeros((2, 1)),
        np.float64(0),
        None,
    ],
    ids=["NaN", "infinity", "float32", "too long", "two axes", "a number", "missing"],
)
def test_an_origin_that_cannot_be(origin, tmp_path):
    replace(discrete_model(), input_origin=np.zeros(2)).save(tmp_path / "far.npz")
    edit_npz(tmp_path / "far.npz", tmp_path / "wrong.npz", input_origin=origin)
    with pytest.raises(ValueError, match=r"wrong.npz' is not a student's .npz .*input_origin"):
        IntegerModel.load(tmp_path / "wrong.npz")


def test_only_vectors_have_an_origin():
    model = discrete_model()
    with pytest.raises(ValueError, match="Only vectors have an input origin, got one for a part of kind 'one_hot'"):
        replace(model, parts=(ObservationPart("one_hot", (), (2,)),), observation_shape=(), input_origin=np.ones(2))
    weights = np.ones((2, 1), np.int8), np.zeros(2, np.int32), np.ones(1, np.float32)
    image = IntegerModel([IntegerLayer(*weights, 8, 0)], (1, 1, 1))
    with pytest.raises(ValueError, match="input_origin must hold 0 numbers"):
        replace(image, input_origin=np.ones(1))


def test_a_later_format_says_what_to_do(tmp_path):
    discrete_model().save(tmp_path / "student.npz")
    edit_npz(tmp_path / "student.npz", tmp_path / "later.npz", header={"format": 5})
    with pytest.raises(ValueError, match="has format 5, this version reads up to 4: update sb3_qpd"):
        IntegerModel.load(tmp_path / "later.npz")


NUMPY_ONLY = """
import sys
from importlib.abc import MetaPathFinder

class Block(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in {"numpy", MODULE} and top not in sys.stdlib_module_names:
            raise ImportError(f"only numpy and the standard library are installed here, not {name}")

MODULE = sys.argv[1].split(".")[0]
sys.meta_path.insert(0, Block())
from importlib import import_module
import numpy as np
IntegerModel = import_module(sys.argv[1]).IntegerModel
observations = np.load(sys.argv[2])
np.save(sys.argv[3], IntegerModel.load("student.npz").predict(observations, deterministic=True)[0])
assert not {"torch", "gymnasium", "stable_baselines3"} & set(sys.modules)
"""


@pytest.mark.parametrize("module", ["policy", "sb3_qpd.integer"], ids=["the file alone", "the package"])
def test_runs_where_only_numpy_is_installed(module, tmp_path):
    model, observations = make_student(IMAGE, DISCRETE).to_integer(), some_observations(IMAGE, 20)
    model.save(tmp_path / "student.npz")
    np.save(tmp_path / "observations.npy", observations)
    if module == "policy":
        (tmp_path / "policy.py").write_bytes(interpreter())
    else:
        shutil.copytree(SOURCE.parent, tmp_path / "sb3_qpd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "run.py").write_text(NUMPY_ONLY)
    subprocess.run([sys.executable, "run.py", module, "observations.npy", "actions.npy"], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), model.predict(observations, deterministic=True)[0])


def test_load_takes_a_folder_and_a_name_without_its_ending(tmp_path: Path) -> None:
    model = make_student().to_integer()
    model.save(tmp_path / "student")
    for path in (tmp_path, tmp_path / "student", tmp_path / "student.npz", str(tmp_path)):
        assert IntegerModel.load(path).n_parameters == model.n_parameters
    for path in (tmp_path / "nothere", tmp_path / "nothere.npz"):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*nothere.npz. Expected the .npz of a student"):
            IntegerModel.load(path)


def test_a_model_prints_in_a_line() -> None:
    model = make_student().to_integer()
    assert str(model) == (
        f"<IntegerModel: vector (5,) to a discrete (6,) action, 3 layers of 8-bit weights, {model.n_parameters} parameters, "
        f"{model.nbytes} bytes>"
    )
