import copy
import inspect
import json
import re
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv
from students import (
    BITS,
    BOX,
    DISCRETE,
    IMAGE,
    SPACES,
    VECTOR,
    actor_output,
    assert_same_bits,
    assert_twins,
    make_student,
    quant_layers,
    some_observations,
)

from sb3_qpd.distillation import losses
from sb3_qpd.students.architectures import FLOAT_BITS, StudentArch
from sb3_qpd.students.policies import QuantActorCriticCnnPolicy, QuantActorCriticPolicy
from sb3_qpd.students.transitions import TRANSITIONS, scratch

SMALL = {"hidden": (8,), "conv": ((4, 8, 4), (4, 3, 1)), "conv_hidden": (8,)}


def tensors(space: spaces.Box, n: int = 64, seed: int = 0) -> th.Tensor:
    return th.from_numpy(some_observations(space, 4 * n, seed)[n : 2 * n]).float()  # the ordinary ones


def gradients(policy: QuantActorCriticPolicy) -> dict[str, th.Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in policy.named_parameters()}


# -- what a student is made of ------------------------------------------------------------------------------------------


def test_optimizer_holds_every_parameter_once():
    for observation_space, action_space in SPACES.values():
        policy = make_student(observation_space, action_space)
        held = Counter(id(p) for group in policy.optimizer.param_groups for p in group["params"])
        assert set(held.values()) == {1}
        assert set(held) == {id(p) for p in policy.parameters()}
        assert id(policy.action_net.weight) in held and id(policy.value_net.weight) in held


def test_state_dict_is_complete_at_construction():
    for observation_space, action_space in SPACES.values():
        fresh = QuantActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, SMALL)
        names = list(fresh.state_dict())
        used = make_student(observation_space, action_space, arch=SMALL)
        assert list(used.state_dict()) == names
        fresh.load_state_dict(used.state_dict())
        observations = some_observations(observation_space, 50)
        fresh.set_training_mode(False)
        assert_same_bits(actor_output(fresh, observations), actor_output(used, observations))
        assert_same_bits(fresh.to_integer().logits(observations), used.to_integer().logits(observations))


def test_trunk_is_the_shared_features_extractor():
    policy = make_student(VECTOR, DISCRETE)
    assert policy.features_extractor is policy.pi_features_extractor is policy.vf_features_extractor
    assert not list(policy.mlp_extractor.parameters())
    assert isinstance(policy, ActorCriticPolicy)


@pytest.mark.parametrize("observation_space", [VECTOR, IMAGE], ids=["vector", "image"])
@pytest.mark.parametrize("bits", [*BITS.values(), (FLOAT_BITS, FLOAT_BITS)], ids=[*BITS, "float"])
def test_critics_loss_reaches_every_layer_of_the_trunk(observation_space, bits):
    policy = make_student(observation_space, DISCRETE, bits)
    policy.set_training_mode(True)
    _, value = policy.actor_and_value(tensors(observation_space))
    losses.value_error(value, th.linspace(-3, 3, len(value)), std=th.tensor(1.0)).mean().backward()
    for layer in policy.features_extractor.layers:
        assert layer.weight.grad.abs().sum() > 0 and layer.bias.grad.abs().sum() > 0
    assert policy.action_net.weight.grad is None


def test_without_critic_nothing_of_it_is_left():
    """At critic_coef=0 the gradient is the actor's alone, to the last bit."""
    policy = make_student(VECTOR, DISCRETE)
    policy.set_training_mode(True)
    observations, target = tensors(VECTOR), th.randn(64, 6)
    found = []
    for with_critic in (None, 0.0, 0.5):
        policy.zero_grad(set_to_none=True)
        actor, value = policy.actor_and_value(observations)
        loss = losses.categorical_kl(actor, target)
        if with_critic is not None:
            critic_loss = losses.value_error(value, th.zeros(64), std=th.tensor(1.0))
            loss = losses.actor_critic(loss, critic_loss, critic_coef=with_critic)
        loss.mean().backward()
        found.append(gradients(policy))
    actor_only, zero, half = found
    for name, gradient in zero.items():
        assert (gradient is None) == name.startswith("value_net") or "log_std" in name
        if gradient is not None:
            assert th.equal(gradient, actor_only[name])
    assert not th.equal(half["features_extractor.layers.0.weight"], zero["features_extractor.layers.0.weight"])


def test_every_parameter_of_the_actor_learns():
    for observation_space, action_space in SPACES.values():
        policy = make_student(observation_space, action_space, (4, 4))
        policy.set_training_mode(True)
        actor, value = policy.actor_and_value(tensors(observation_space))
        (actor.pow(3).mean() + value.mean()).backward()
        without = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # a Box action's deviation is not part of its mean
        assert without == (["log_std"] if isinstance(action_space, spaces.Box) else [])


# -- modes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation_space", [VECTOR, IMAGE], ids=["vector", "image"])
@pytest.mark.parametrize("transition", TRANSITIONS.values(), ids=TRANSITIONS)
def test_evaluation_mode_does_not_depend_on_the_transition(transition, observation_space):
    policy = make_student(observation_space, DISCRETE, (2, 4))
    observations = some_observations(observation_space, 68)[4:]
    expected = actor_output(policy, observations)
    integers = policy.to_integer().logits(observations)
    trained = []
    for progress in (0.0, 0.5, 1.0):
        policy.set_precision(transition, progress)
        assert_same_bits(actor_output(policy, observations), expected)
        assert_same_bits(policy.to_integer().logits(observations), integers)
        policy.set_training_mode(True)
        trained.append(actor_output(policy, observations))
        policy.set_training_mode(False)
    moves = transition.__name__ not in ("none", "scratch")
    assert (trained[0] != trained[2]).any() == moves


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize("observation_space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_training_at_the_target_precision_is_close_to_evaluation(observation_space, bits):
    policy = make_student(observation_space, BOX, bits)
    observations = some_observations(observation_space, 400 if observation_space is VECTOR else 64, seed=1)
    evaluated = actor_output(policy, observations)
    policy.set_training_mode(True)
    policy.set_precision(scratch, 1.0)
    trained = actor_output(policy, observations)
    step = policy.to_integer().layers[-1].multiplier * 128  # of an accumulator, times about a weight
    # a rounding that falls the other way moves an activation by one step, and that few samples
    differ = (np.abs(trained - evaluated) > 1e-4 * step * 128).any(1)
    assert differ.mean() <= 0.05


def test_float_student_is_the_plain_network():
    policy = make_student(VECTOR, DISCRETE, (FLOAT_BITS, FLOAT_BITS))
    mean, std = np.arange(5.0), np.array([1, 2, 0.5, 10, 1])
    policy.set_normalization(mean, std)
    x = tensors(VECTOR)
    expected = ((x.double() - th.from_numpy(mean)) / th.from_numpy(std)).float()
    for layer in policy.features_extractor.layers:
        expected = th.relu(th.nn.functional.linear(expected, layer.weight, layer.bias))
    expected = th.nn.functional.linear(expected, policy.action_net.weight, policy.action_net.bias)
    for training in (True, False):
        policy.set_training_mode(training)
        th.testing.assert_close(policy.actor_and_value(x)[0], expected, atol=0, rtol=0)
    with pytest.raises(
        ValueError, match="A float student .* has no integer form: give weight_bits and activation_bits of 2 to 8"
    ):
        policy.to_integer()


def test_float_student_sees_pixels_between_zero_and_one():
    policy = make_student(IMAGE, DISCRETE, (FLOAT_BITS, FLOAT_BITS))
    x = tensors(IMAGE, 8)
    expected = x / 255
    for layer in policy.features_extractor.layers:
        kind = th.nn.functional.conv2d if layer.weight.dim() == 4 else th.nn.functional.linear
        expected = expected if layer.weight.dim() == 4 else expected.flatten(1)
        stride = (layer.stride,) if layer.weight.dim() == 4 else ()
        expected = th.relu(kind(expected, layer.weight, layer.bias, *stride))
    expected = th.nn.functional.linear(expected, policy.action_net.weight, policy.action_net.bias)
    with th.no_grad():
        th.testing.assert_close(policy.actor_and_value(x)[0], expected)


def test_quantized_eight_bits_are_near_their_float_twin():
    for space in (VECTOR, IMAGE):
        policy, floating = (make_student(space, DISCRETE, (bits, bits)) for bits in (8, FLOAT_BITS))
        state = floating.state_dict() | {
            k: v for k, v in policy.state_dict().items() if "log_scale" not in k and "ready" not in k
        }
        floating.load_state_dict(state)
        x = tensors(space, 16)
        with th.no_grad():
            one, other = (p.actor_and_value(x)[0] for p in (policy, floating))
        assert (one - other).abs().mean() < 0.05 * other.abs().mean()


# -- calibration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_steps_come_from_the_first_batch_in_either_mode(training):
    for space in (VECTOR, IMAGE):
        policy = QuantActorCriticPolicy(space, DISCRETE, lambda _: 1e-3, SMALL)
        policy.set_training_mode(training)
        assert not any(bool(q.ready) for q in policy.quantizers())
        x = tensors(space)
        policy.actor_and_value(x)
        assert all(bool(q.ready) for q in policy.quantizers())
        assert all((q.scale() > 0).all() for q in policy.quantizers())
        scales = [q.scale().clone() for q in policy.quantizers()]
        policy.actor_and_value(tensors(space, seed=5))
        assert all(th.equal(a, q.scale()) for a, q in zip(scales, policy.quantizers(), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_steps_are_never_zero_even_if_the_first_batch_is(training):
    for space in (VECTOR, IMAGE):
        policy = QuantActorCriticPolicy(space, DISCRETE, lambda _: 1e-3, SMALL)
        policy.set_training_mode(training)
        policy.actor_and_value(th.zeros(2, *space.shape))
        policy.set_training_mode(False)
        # such a student still tells ordinary observations apart
        assert len(np.unique(actor_output(policy, some_observations(space, 200)), axis=0)) > 50
        assert_twins(policy, some_observations(space, 50))


def test_calibration_replaces_what_random_weights_gave():
    policy = make_student(VECTOR, DISCRETE)
    with th.no_grad():
        for layer in quant_layers(policy):
            layer.weight.mul_(7)
            layer.bias.zero_()
    before = [layer.weight_quantizer.scale().clone() for layer in quant_layers(policy)]
    policy.calibrate(tensors(VECTOR))
    for layer, scale in zip(quant_layers(policy), before, strict=True):
        th.testing.assert_close(layer.weight_quantizer.scale(), 7 * scale, rtol=1e-4, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_calibration_leaves_the_mode_and_the_parameters_alone(training):
    policy = make_student(VECTOR, DISCRETE)
    policy.set_training_mode(training)
    before = {name: p.clone() for name, p in policy.named_parameters() if "log_scale" not in name}
    policy.calibrate(3 * tensors(VECTOR))
    assert policy.training == training
    assert all(th.equal(p, before[name]) for name, p in policy.named_parameters() if name in before)
    assert all(p.grad is None for p in policy.parameters())


def test_normalization_is_frozen_saved_and_floored():
    policy = make_student(VECTOR, DISCRETE)
    policy.set_normalization(np.arange(5.0), np.array([0.0, 1, 2, 3, 4]))
    other = make_student(VECTOR, DISCRETE, seed=1)
    other.load_state_dict(policy.state_dict())
    observations = some_observations(VECTOR, 100)
    assert_same_bits(actor_output(other, observations), actor_output(policy, observations))
    assert_twins(policy, observations)
    assert np.isfinite(policy.to_integer().input_multiplier).all()


# -- what becomes of it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 2])
def test_integer_form_is_defined_before_anything_was_seen(bits):
    for observation_space, action_space in SPACES.values():
        policy = QuantActorCriticPolicy(observation_space, action_space, lambda _: 1e-3, SMALL, bits, bits)
        policy.set_training_mode(False)
        model = policy.to_integer(name="fresh")
        units = {"action_unit": policy.action_unit.tolist()} if action_space is BOX else {}
        assert model.metadata == {"calibrated": False, "name": "fresh", **units}
        actions, _ = model.predict(some_observations(observation_space, 10))
        assert all(action_space.contains(action) for action in actions)
        actor_output(policy, some_observations(observation_space, 100)[32:])
        assert policy.to_integer().metadata == {"calibrated": True, **units}
        assert_twins(policy, some_observations(observation_space, 50))


def test_integer_form_in_training_mode_is_the_same():
    policy = make_student(VECTOR, DISCRETE)
    expected = policy.to_integer().logits(some_observations(VECTOR))
    policy.set_training_mode(True)
    assert_same_bits(policy.to_integer().logits(some_observations(VECTOR)), expected)
    assert policy.training


def test_a_diverged_student_has_no_integer_form():
    policy = make_student(VECTOR, DISCRETE)
    with th.no_grad():
        policy.action_net.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity: its training diverged. Lower the learning rate"):
        policy.to_integer()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("name", ["vector", "dict", "float image"])
def test_numbers_that_are_not_finite_are_refused_by_name(name, value):
    """The policy and its integer model name the same feature and value; the deployed forms would play on."""
    box = spaces.Box(-np.inf, np.inf, (3, 12, 12) if name == "float image" else (5,), np.float64)
    space = spaces.Dict(a=box, b=spaces.Discrete(3)) if name == "dict" else box
    settings = {"student_arch": "nano", "normalized_image": name == "float image"}
    policy = QuantActorCriticPolicy(space, DISCRETE, lambda _: 1e-3, **settings)
    place = (1, 2, 3) if name == "float image" else (3,)
    for n_batch in (None, 4):
        values = np.zeros((*(() if n_batch is None else (n_batch,)), *box.shape))
        values[(*(() if n_batch is None else (2,)), *place)] = value
        observation = {"a": values, "b": np.zeros(values.shape[: values.ndim - 1], int)} if name == "dict" else values
        feature = ", ".join(map(str, place)) + (" of 'a'" if name == "dict" else "")
        message = re.escape(f"The observation holds {value} in feature {feature}: expected finite numbers of float32")
        for player in (policy, policy.to_integer()):
            with pytest.raises(ValueError, match=message):
                player.predict(observation, deterministic=True)


def test_deepcopy_after_a_forward_pass():
    for observation_space, action_space in SPACES.values():
        policy, observations = make_student(observation_space, action_space), some_observations(observation_space, 20)
        with th.no_grad():
            policy(policy.obs_to_tensor(observations)[0])
        twin = copy.deepcopy(policy)
        with th.no_grad():
            policy.action_net.weight.zero_()
        assert (actor_output(twin, observations) != actor_output(policy, observations)).any()
        assert_twins(twin, observations)
        held = {id(p) for group in twin.optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in twin.parameters()}


def test_policy_save_and_load(tmp_path):
    for (observation_space, action_space), bits in zip(SPACES.values(), (8, 4, (8, 3, 8, 4), 2), strict=True):
        policy = make_student(observation_space, action_space, (bits, 4))
        policy.save(tmp_path / "policy.pth")
        loaded = QuantActorCriticPolicy.load(tmp_path / "policy.pth")
        loaded.set_training_mode(False)
        assert loaded.arch == policy.arch
        observations = some_observations(observation_space, 50)
        assert_same_bits(actor_output(loaded, observations), actor_output(policy, observations))


def test_constructor_parameters_rebuild_the_network():
    policy = make_student(IMAGE, BOX, (3, 2), log_std_init=-1.0, ortho_init=False)
    parameters = policy._get_constructor_parameters()
    json.dumps(parameters["student_arch"])
    rebuilt = QuantActorCriticPolicy(**parameters)
    assert rebuilt.arch == policy.arch and rebuilt.log_std_init == -1.0 and rebuilt.ortho_init is False
    rebuilt.load_state_dict(policy.state_dict())


def test_state_dict_can_be_read_without_unpickling(tmp_path):
    policy = make_student(VECTOR, BOX)
    th.save(policy.state_dict(), tmp_path / "state.pth")
    state = th.load(tmp_path / "state.pth", weights_only=True)
    other = make_student(VECTOR, BOX, seed=1)
    other.load_state_dict(state)
    assert_same_bits(actor_output(other, some_observations(VECTOR)), actor_output(policy, some_observations(VECTOR)))


# -- arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_sde": True}, "needs use_sde=False, got True"),
        ({"squash_output": True}, "needs squash_output=False, got True"),
        ({"activation_fn": th.nn.Tanh}, "needs activation_fn=.*ReLU.*, got .*Tanh"),
        ({"net_arch": [64, 64]}, r"needs net_arch=\[\], got \[64, 64\]: sizes go into student_arch"),
        ({"net_arch": {"pi": [], "vf": [64]}}, r"needs net_arch=\[\], got .*'vf': \[64\]"),
        ({"share_features_extractor": False}, "needs share_features_extractor=True, got False"),
        ({"normalize_images": False}, "needs normalize_images=True, got False"),
        ({"features_extractor_class": NatureCNN}, "features_extractor_class has no integer form: .* student_arch"),
        ({"features_extractor_kwargs": {"features_dim": 3}}, "features_extractor_kwargs has no integer form"),
        ({"student_arch": "huge"}, "Unknown student_arch 'huge'. Known: nano, tiny"),
        ({"weight_bits": 9}, "Bits must be one of"),
        ({"weight_bits": (8, 8)}, "names 2 layers, this student has 3"),
        ({"student_arch": {"hidden": (4, 4, 4)}, "weight_bits": (8, 8)}, "names 2 layers, this student has 4"),
    ],
)
def test_what_has_no_integer_form_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        QuantActorCriticPolicy(VECTOR, DISCRETE, lambda _: 1e-3, **arguments)


def test_keywords_that_say_what_is_so_anyway_are_accepted():
    QuantActorCriticPolicy(
        VECTOR,
        DISCRETE,
        lambda _: 1e-3,
        use_sde=False,
        squash_output=False,
        net_arch={"pi": [], "vf": []},
        activation_fn=th.nn.ReLU,
        share_features_extractor=True,
        normalize_images=True,
        features_extractor_kwargs={},
    )


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (spaces.Discrete(5, start=1), DISCRETE, r"Observations of Discrete\(5, start=1\) are not supported. Supported: Box"),
        (spaces.Tuple([VECTOR]), DISCRETE, "Observations of Tuple.* are not supported. Supported: Box"),
        (
            spaces.Dict({"a": spaces.Dict({"b": VECTOR})}),
            DISCRETE,
            "Observations of Dict.* a Dict of these that is not ",
        ),
        (VECTOR, spaces.MultiDiscrete([[2, 3]]), "Actions of MultiDiscrete.* are not supported. Supported: Discrete, Multi"),
        (VECTOR, spaces.MultiBinary((2, 2)), "Actions of MultiBinary.* are not supported"),
        (VECTOR, spaces.Box(-np.inf, np.inf, (2,)), "have no finite bounds: .* Rescale the actions with a wrapper"),
    ],
)
def test_spaces_that_have_no_student_are_refused(observation_space, action_space, message):
    with pytest.raises(ValueError, match=message):
        QuantActorCriticPolicy(observation_space, action_space, lambda _: 1e-3)


def test_images_need_a_layer():
    with pytest.raises(ValueError, match="A student of images needs a layer"):
        QuantActorCriticPolicy(IMAGE, DISCRETE, lambda _: 1e-3, {})
    with pytest.raises(ValueError, match=r"do not fit images of shape \(4, 36, 36\)"):
        QuantActorCriticPolicy(IMAGE, DISCRETE, lambda _: 1e-3, {"conv": [(4, 40, 1)]})


@pytest.mark.parametrize("shape", [(3, 7, 7), (1, 16, 16), (2, 4, 5), (3, 1, 1)])
@pytest.mark.parametrize("arch", ["tiny", {"hidden": (9, 8)}], ids=["adapted", "flat"])
def test_small_and_flattened_images_are_the_same_in_integers(shape, arch):
    space = spaces.Box(0, 255, shape, np.uint8)
    for action_space in (DISCRETE, BOX):
        student = make_student(space, action_space, (4, 4), arch)
        assert_twins(student, np.random.default_rng(0).integers(0, 256, (50, *shape), np.uint8))


def test_cnn_policy_is_for_images_alone():
    QuantActorCriticCnnPolicy(IMAGE, DISCRETE, lambda _: 1e-3, SMALL)
    with pytest.raises(ValueError, match="CnnPolicy needs uint8 images of 0 to 255, got Box.*: use 'MlpPolicy'"):
        QuantActorCriticCnnPolicy(VECTOR, DISCRETE, lambda _: 1e-3)


def test_observations_of_other_shapes_and_types():
    for space in (
        spaces.Box(-1, 1, (2, 3), np.float32),
        spaces.Box(-1, 1, (7,), np.float64),
        spaces.Box(0, 255, (128,), np.uint8),  # the memory of an Atari machine
        spaces.Box(0, 255, (6, 5), np.uint8),
        spaces.Box(-5, 5, (3,), np.int64),
    ):
        policy = QuantActorCriticPolicy(space, DISCRETE, lambda _: 1e-3, SMALL)
        space.seed(0)
        observations = np.stack([space.sample() for _ in range(200)])
        policy.set_training_mode(False)
        actor_output(policy, observations)
        assert_twins(policy, observations)
        assert policy.to_integer().predict(observations[0])[0].shape == ()


# -- stock algorithms ---------------------------------------------------------------------------------------------------

KINDS = {"W8A8": (8, 8), "W4A4": (4, 4), "W2A8": (2, 8), "float": (FLOAT_BITS, FLOAT_BITS)}


class Images(gym.Env):
    """Images channels last, as many environments have them: is the bright spot left or right?"""

    observation_space, action_space = spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(2)

    def _observation(self) -> np.ndarray:
        self.side = int(self.np_random.integers(2))
        image = np.zeros((36, 36, 3), np.uint8)
        image[:, 18 * self.side : 18 * self.side + 18] = 200
        return image

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self._observation(), {}

    def step(self, action):
        reward, self.n_steps = float(action == self.side), self.n_steps + 1
        return self._observation(), reward, False, self.n_steps == 10, {}


@pytest.mark.slow
@pytest.mark.parametrize("bits", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_trains_under_stock_algorithms_and_comes_back_from_a_zip(algorithm, env_id, bits, tmp_path):
    policy_kwargs = {"student_arch": SMALL, "weight_bits": bits[0], "activation_bits": bits[1]}
    model = algorithm(QuantActorCriticPolicy, env_id, n_steps=64, policy_kwargs=policy_kwargs, seed=0, device="cpu")
    start = {name: p.clone() for name, p in model.policy.named_parameters()}
    model.learn(150)
    moved = {name for name, p in model.policy.named_parameters() if not th.equal(p, start[name])}
    assert {"action_net.weight", "value_net.weight", "features_extractor.layers.0.weight"} <= moved
    model.save(tmp_path / "model.zip")

    loaded = algorithm.load(tmp_path / "model.zip", env=model.get_env())
    env = model.get_env()
    observations = np.stack([env.observation_space.sample() for _ in range(20)]).clip(-5, 5)
    np.testing.assert_array_equal(*(m.predict(observations, deterministic=True)[0] for m in (model, loaded)))
    loaded.learn(50)  # its optimizer came along
    loaded.set_parameters(model.get_parameters())
    np.testing.assert_array_equal(*(m.predict(observations, deterministic=True)[0] for m in (model, loaded)))
    if bits[0] != FLOAT_BITS:
        integer = model.policy.to_integer()
        np.testing.assert_array_equal(
            integer.predict(observations, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
        )


@pytest.mark.slow
@pytest.mark.parametrize("bits", [BITS["W8A8"], BITS["W4A4"]], ids=["W8A8", "W4A4"])
def test_ppo_from_scratch_solves_cartpole(bits):
    """
    Stops at 495 of 500, then its integers play.

    Other settings than RL Zoo's: 64 environments, larger batches and a larger learning rate. A step of a small network
    takes as long for 64 environments as for 8.
    """
    model = PPO(
        QuantActorCriticPolicy,
        make_vec_env("CartPole-v1", 64, seed=1),
        n_steps=16,
        batch_size=512,
        n_epochs=15,
        gae_lambda=0.8,
        gamma=0.98,
        learning_rate=lambda remaining: 4e-3 * max(remaining, 0.0),
        clip_range=lambda remaining: 0.2 * remaining,
        policy_kwargs={"student_arch": "small", "weight_bits": bits[0], "activation_bits": bits[1]},
        seed=1,
        device="cpu",
    )
    stop = StopTrainingOnRewardThreshold(495)
    callback = EvalCallback(
        make_vec_env("CartPole-v1", 20, seed=1001), stop, eval_freq=128, n_eval_episodes=20, verbose=0, warn=False
    )
    model.learn(100_000, callback)
    mean, _ = evaluate_policy(model.policy.to_integer(), make_vec_env("CartPole-v1", 25, seed=5001), n_eval_episodes=50)
    assert mean >= 475


def test_trains_on_images_that_come_channels_last(tmp_path):
    env = DummyVecEnv([Images] * 4)
    arch = {"conv": ((4, 8, 4), (4, 3, 1)), "conv_hidden": (8,)}
    model = PPO(
        QuantActorCriticCnnPolicy, env, n_steps=32, batch_size=64, n_epochs=4, learning_rate=3e-3, gamma=0.0,
        policy_kwargs={"student_arch": arch}, seed=0, device="cpu",
    ).learn(1500)  # fmt: skip
    images = np.stack([Images().reset(seed=i)[0] for i in range(20)])
    actions, _ = model.policy.to_integer().predict(images, deterministic=True)
    np.testing.assert_array_equal(actions, (images[:, 0, 20, 0] > 0).astype(int))
    np.testing.assert_array_equal(actions, model.predict(images, deterministic=True)[0])


def test_ranges_follow_a_stock_algorithm_and_stop_once_somebody_calibrates():
    policy = QuantActorCriticPolicy(VECTOR, DISCRETE, lambda _: 1e-3, SMALL)
    policy.set_training_mode(False)
    actor_output(policy, np.full((1, 5), 0.01, np.float32))  # a first observation close to zero
    grid, actions = policy.features_extractor.input_grid, th.zeros(64, dtype=th.int64)
    assert grid.scale().item() * 127 < 0.012
    ranges = []
    for batch in range(10):
        policy.set_training_mode(True)
        with th.no_grad():
            policy.evaluate_actions((batch + 1) * th.linspace(-1, 1, 320).reshape(64, 5), actions)
        ranges.append(round(grid.scale().item() * 127))
    assert ranges == [1, 2, 3, 3, 5, 5, 5, 5, 9, 9]
    assert policy.training

    evaluated = copy.deepcopy(policy)
    evaluated.set_training_mode(False)  # not training: nothing moves
    for _ in range(20):
        evaluated.evaluate_actions(100 * th.ones(64, 5), actions)
    assert round(evaluated.features_extractor.input_grid.scale().item() * 127) == 9

    policy.calibrate(4 * th.linspace(-1, 1, 320).reshape(64, 5))
    reloaded = QuantActorCriticPolicy(VECTOR, DISCRETE, lambda _: 1e-3, SMALL)
    reloaded.load_state_dict(policy.state_dict())  # fine-tuning starts from what was distilled
    for _ in range(20):
        reloaded.evaluate_actions(100 * th.ones(64, 5), actions)
    assert round(reloaded.features_extractor.input_grid.scale().item() * 127) == 4


def test_sampled_actions_of_the_policy_follow_its_distribution():
    """Stock PPO collects through forward(), in evaluation mode."""
    policy = make_student(VECTOR, BOX)
    x = tensors(VECTOR, 4)
    with th.no_grad():
        actions, values, log_prob = policy(x)
        mean, value = policy.actor_and_value(x)
        expected = th.distributions.Normal(mean, policy.log_std.exp()).log_prob(actions).sum(1)
    th.testing.assert_close(log_prob, expected)
    th.testing.assert_close(values.flatten(), value)


def test_signature_shows_what_a_student_takes():
    parameters = inspect.signature(QuantActorCriticPolicy).parameters
    assert {"student_arch", "weight_bits", "activation_bits"} <= set(parameters)
    assert parameters["student_arch"].default == "tiny"
    assert StudentArch() == StudentArch(weight_bits=8, activation_bits=8)


def test_bounds_that_are_no_float32():
    policy = make_student(action_space=spaces.Box(-0.1, 0.1, (2,), np.float64))
    observations = some_observations(VECTOR, 64)
    actions, _ = policy.predict(observations, deterministic=True)
    assert (np.abs(actions) > 0.09).any() and policy.action_space.contains(actions[0].astype(np.float64))
    ours, _ = policy.to_integer().predict(observations, deterministic=True)
    assert actions.dtype == ours.dtype
    np.testing.assert_array_equal(actions, ours)


def test_a_box_without_a_teacher_keeps_the_units_of_its_environment():
    """Stock algorithms start with means near zero and a deviation of one, in a wide Box too; so does a copy."""
    wide = spaces.Box(-1e6, 1e6, (2,), np.float32)
    policy, copy = (QuantActorCriticPolicy(VECTOR, wide, lambda _: 1e-3, SMALL) for _ in range(2))
    copy.load_state_dict(policy.state_dict())
    observations = some_observations(VECTOR, 64)[32:]
    for one in (policy, copy):
        one.set_training_mode(False)
        assert np.abs(actor_output(one, observations)).max() < 1e3 and (one.action_unit == 1e6).all()
