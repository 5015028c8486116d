"""``predict`` of a quantized policy: the integers are kept while no parameter changes, and the actions are those of torch."""

import copy

import cloudpickle
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from students import BOX, DISCRETE, IMAGE, VECTOR, make_student, some_observations
from torch import nn

from sb3_qpd.integer import IntegerModel
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.students.watch import Watch

MULTI = spaces.MultiDiscrete([3, 2, 4])
BINARY = spaces.MultiBinary(3)
ACTIONS = {"discrete": DISCRETE, "multi": MULTI, "binary": BINARY, "box": BOX, "flat": spaces.Box(-1, 1, (2, 2), np.float32)}
DICT = spaces.Dict({"image": IMAGE, "index": spaces.Discrete(3), "vector": VECTOR})
OBSERVATIONS = {"vector": VECTOR, "image": IMAGE, "dict": DICT, "index": spaces.Discrete(5)}


def draw(space: spaces.Space, n: int = 6):
    """Observations as a vectorized environment gives them."""
    if isinstance(space, spaces.Dict):
        return {key: draw(one, n) for key, one in space.items()}
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, n)
    return (
        rng.integers(0, 256, (n, *space.shape), np.uint8) if space is IMAGE else some_observations(space, 4 * n + 8)[4 : n + 4]
    )


def first(observations):
    return {key: value[0] for key, value in observations.items()} if isinstance(observations, dict) else observations[0]


def student(space: spaces.Space = VECTOR, action_space: spaces.Space = DISCRETE, **kwargs) -> QuantActorCriticPolicy:
    th.manual_seed(0)
    arch = {"hidden": (16, 12), "conv": ((6, 8, 4), (8, 3, 1)), "conv_hidden": (16,)}
    policy = QuantActorCriticPolicy(space, action_space, lambda _: 1e-3, arch, **kwargs)
    with th.no_grad():
        policy.action_net.weight.mul_(100)
        policy.log_std.fill_(-1.0) if isinstance(action_space, spaces.Box) else None
    policy.calibrate(policy.obs_to_tensor(draw(space, 32))[0])
    return policy


def in_torch(policy: QuantActorCriticPolicy, observations, deterministic: bool) -> np.ndarray:
    """SB3's own way: the distribution from torch's evaluation mode."""
    with th.no_grad():
        tensor = policy.obs_to_tensor(observations)[0]
        if deterministic and not policy.head.is_box:
            actions = policy._predict(tensor, deterministic=True)
        else:
            actions = ActorCriticPolicy._predict(policy, tensor, deterministic)
    actions = actions.numpy().reshape(-1, *policy.action_space.shape)
    if isinstance(policy.action_space, spaces.Box):
        actions = np.clip(actions, policy.action_space.low, policy.action_space.high)
    return actions


@pytest.mark.parametrize("deterministic", [True, False], ids=["deterministic", "sampled"])
@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_actions_are_those_of_torch_under_the_same_seed(space, action_space, deterministic):
    policy = student(space, action_space)
    policy.set_training_mode(False)
    observations = draw(space)
    for given in (observations, first(observations)):
        th.manual_seed(3)
        expected = in_torch(policy, given, deterministic)
        following = th.rand(1)
        th.manual_seed(3)
        found, state = policy.predict(given, deterministic=deterministic)
        assert th.equal(th.rand(1), following) and state is None  # as many numbers were drawn
        expected = expected if given is observations else expected[0]
        assert np.shape(found) == np.shape(expected) and np.asarray(found).dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        assert policy._kept[1] is not None


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("action_space", [DISCRETE, MULTI, BINARY])
def test_masks_are_those_of_torch(action_space, deterministic):
    policy, observations = student(VECTOR, action_space), draw(VECTOR)
    masks = np.random.default_rng(0).random((6, sum(policy.head.nvec))) < 0.5
    masks[:, np.cumsum((0, *policy.head.nvec[:-1]))] = True
    policy.set_training_mode(False)
    th.manual_seed(3)
    with th.no_grad():
        expected = policy._predict(policy.obs_to_tensor(observations)[0], deterministic, masks).numpy()
    th.manual_seed(3)
    np.testing.assert_array_equal(policy.predict(observations, deterministic=deterministic, action_masks=masks)[0], expected)
    with pytest.raises(ValueError, match="allow no action at all"):
        policy.predict(observations, deterministic=deterministic, action_masks=np.zeros_like(masks))
    with pytest.raises(ValueError, match="Expected action_masks of shape"):
        policy.predict(observations, deterministic=deterministic, action_masks=masks[:, 1:])


def test_what_the_integers_refuse_goes_the_way_of_sb3():
    policy = student(IMAGE)
    images = draw(IMAGE)
    channels_last = np.moveaxis(images, 1, -1)
    np.testing.assert_array_equal(
        policy.predict(images, deterministic=True)[0], policy.predict(channels_last, deterministic=True)[0]
    )
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy.predict(images[:, :2])
    with pytest.raises(ValueError, match="mixing Gym API with SB3 VecEnv API"):
        policy.predict((images, {}))
    vectors = student(VECTOR)
    with pytest.raises(ValueError, match="The observation holds nan in feature 0"):
        vectors.predict(np.full(5, np.nan, np.float32), deterministic=True)
    assert vectors.predict([0.0] * 5, deterministic=True)[0].shape == ()
    wide = draw(VECTOR).astype(np.float64)
    np.testing.assert_array_equal(
        vectors.predict(wide, deterministic=True)[0], vectors.predict(wide.astype(np.float32), deterministic=True)[0]
    )


def test_predict_leaves_evaluation_mode_behind():
    for policy in (student(VECTOR), student(VECTOR, weight_bits=32, activation_bits=32)):
        policy.set_training_mode(True)
        policy.predict(draw(VECTOR))
        assert not any(module.training for module in policy.modules())


# -- the integers are made again when something has changed, and only then ------------------------------------------------


def kept(policy: QuantActorCriticPolicy) -> IntegerModel | None:
    policy.predict(draw(VECTOR), deterministic=True)
    return None if policy._kept is None else policy._kept[1]


def test_integers_are_kept_while_nothing_changes():
    policy = student()
    model = kept(policy)
    policy.set_training_mode(True)
    policy.actor_and_value(th.zeros(2, 5))[0].sum().backward()
    with th.no_grad():
        policy.value_net.weight.add_(1.0)  # is no part of the actor
    assert kept(policy) is model


def optimizer_step(policy: QuantActorCriticPolicy, **options) -> None:
    optimizer = th.optim.Adam(policy.parameters(), lr=0.1, **options)
    policy.set_training_mode(True)
    policy.actor_and_value(th.from_numpy(draw(VECTOR)))[0].square().sum().backward()
    optimizer.step()


def write_through_numpy(policy: QuantActorCriticPolicy) -> None:
    policy.action_net.weight.detach().numpy()[0, 0] += 1


def new_data(policy: QuantActorCriticPolicy) -> None:
    """Twice, so that the second memory could lie where the first one was."""
    for _ in range(2):
        policy.action_net.weight.data = policy.action_net.weight.data * 2


def other_parameter(policy: QuantActorCriticPolicy) -> None:
    policy.action_net.weight = nn.Parameter(policy.action_net.weight.detach() * 2)


def other_module(policy: QuantActorCriticPolicy) -> None:
    layers = policy.features_extractor.layers
    layers[0] = copy.deepcopy(layers[0])
    with th.no_grad():
        layers[0].weight.mul_(-1.0)


CHANGES = {
    "foreach": lambda policy: optimizer_step(policy, foreach=True),
    "fused": lambda policy: optimizer_step(policy, fused=True),
    "one by one": lambda policy: optimizer_step(policy, foreach=False),
    "load_state_dict": lambda policy: policy.load_state_dict(make_other_state(policy)),
    "in place": lambda policy: policy.action_net.weight.requires_grad_(False).mul_(2).requires_grad_(True),
    ".data in place": lambda policy: policy.action_net.weight.data.mul_(2),
    ".data": new_data,
    "numpy": write_through_numpy,
    "a parameter": other_parameter,
    "a module": other_module,
    "a step": lambda policy: policy.features_extractor.output_grid.log_scale.data.add_(1.0),
    "normalization": lambda policy: policy.set_normalization(np.ones(5), np.full(5, 3.0)),
    "calibration": lambda policy: policy.calibrate(100 * th.randn(64, 5, generator=th.Generator().manual_seed(0))),
}


def make_other_state(policy: QuantActorCriticPolicy) -> dict[str, th.Tensor]:
    return {name: value * 2 if "weight" in name else value for name, value in policy.state_dict().items()}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_is_seen(change):
    policy = student()
    before = kept(policy)
    change(policy)
    after, observations = kept(policy), draw(VECTOR)
    assert after is not before
    assert (after.logits(observations) != before.logits(observations)).any()
    fresh = policy.to_integer()
    np.testing.assert_array_equal(after.logits(observations), fresh.logits(observations))
    np.testing.assert_array_equal(
        policy.predict(observations, deterministic=True)[0], fresh.predict(observations, deterministic=True)[0]
    )


def test_a_change_of_the_standard_deviation_is_seen():
    policy, observations = student(VECTOR, BOX), draw(VECTOR)
    th.manual_seed(0)
    before = policy.predict(observations)[0]
    policy.log_std.data.fill_(-30.0)
    th.manual_seed(0)
    after = policy.predict(observations)[0]
    assert (before != after).any()
    np.testing.assert_array_equal(after, policy.predict(observations, deterministic=True)[0])


def test_torch_computes_what_has_no_integers():
    """A student that is float, new or diverged. A new one is calibrated by what it sees, as ever."""
    assert kept(student(weight_bits=32, activation_bits=32)) is None
    new = QuantActorCriticPolicy(VECTOR, DISCRETE, lambda _: 1e-3, {"hidden": (8,)})
    assert kept(new) is None and all(one.ready for one in new.quantizers())
    assert kept(new) is not None
    with th.no_grad():
        new.action_net.weight[0, 0] = float("nan")
    assert kept(new) is None


def test_a_copy_makes_its_own_integers():
    policy, observations = make_student(VECTOR, BOX), draw(VECTOR)
    expected = policy.predict(observations, deterministic=True)[0]
    twins = [copy.deepcopy(policy), cloudpickle.loads(cloudpickle.dumps(policy))]
    with th.no_grad():
        policy.action_net.weight.zero_()
    for twin in twins:
        assert twin._kept is None
        np.testing.assert_array_equal(twin.predict(observations, deterministic=True)[0], expected)
    assert (policy.predict(observations, deterministic=True)[0] != expected).any()


def test_watch_compares_bytes():
    """NaN equals itself, and 0 is not -0."""
    module = nn.Linear(2, 1)
    with th.no_grad():
        module.weight.copy_(th.tensor([[float("nan"), 0.0]]))
        watch = Watch(module)
        assert watch.is_unchanged()
        module.weight[0, 1] = -0.0
    assert not watch.is_unchanged()


def test_watch_sees_images_of_any_memory_format():
    module = nn.Conv2d(3, 4, 2).to(memory_format=th.channels_last)
    watch = Watch(module)
    assert watch.is_unchanged()
    module.weight.data[1, 2, 0, 1] += 1
    assert not watch.is_unchanged()
