"""
Students drawn at random, one for each seed: of all spaces, depths, widths and bits, with weights, biases, scales and
observations at their extremes, some of them made by hand without a policy.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from students import TREATMENTS, quant_layers, treat

from sb3_qpd import IntegerModel, QuantActorCriticPolicy
from sb3_qpd.integer import IntegerLayer, ObservationPart, group_parts
from sb3_qpd.spaces import observation_parts

MOST_WEIGHTS, MOST_MACS = 100_000, 2_000_000  # of a student: compilers take their time over more
FLOAT32_MAX = np.finfo(np.float32).max
EXTREMES = np.array([0, 1e-45, 1e-38, 1e-30, 2.0**-32, 0.25, 0.5, 1, 1.5, 255.99, 256, 1e10, 1e30, 1e38, 3.4e38], np.float32)
ORIGINS = (1e-300, 2.0**24, 2.0**53, 1e38, FLOAT32_MAX, 1e300)
BOUNDS = ((-1, 1), (0, 1), (-2, 0), (0.5, 2), (-3, -0.25), (1, 1), (0, 0), (-1e-40, 1e-40), (-3e38, 3e38), (1e30, 2e30))


@dataclass
class RandomStudent:
    """
    The student of a seed.

    :param seed: that it was drawn with
    :param model: with float32 requantization
    :param observations: raw: ordinary ones and extremes
    :param policy: that the model is of; ``None``: the model was made by hand
    :param masks: for each observation, where the student takes masks
    """

    seed: int
    model: IntegerModel
    observations: Any
    policy: QuantActorCriticPolicy | None
    masks: np.ndarray | None

    def __str__(self) -> str:
        model = self.model
        observation = ", ".join(part.kind + str(part.nvec or part.shape) for part in model.parts)
        action = f"Box{model.action_shape}" if model.is_box else f"{model.action_nvec}"
        layers = ", ".join(f"{layer.weight.shape} W{layer.weight_bits}A{layer.activation_bits}" for layer in model.layers)
        return f"seed {self.seed} ({'by hand' if self.policy is None else 'policy'}): {observation} -> {action}; {layers}"


def draw(seed: int) -> RandomStudent:
    """The student of a seed: always the same one."""
    rng = np.random.default_rng(seed)
    policy, model = (None, _model_by_hand(rng)) if rng.random() < 0.3 else _policy_and_model(rng)
    n = 12 if model.has_images else 60
    observations, masks = _observations(model, rng, n), None
    if model.uses_masks:
        masks = rng.random((n, sum(model.action_nvec))) < rng.random()
        masks[:, np.cumsum((0, *model.action_nvec[:-1])) + rng.integers(0, model.action_nvec)] = True  # one in each dimension
    return RandomStudent(seed, model, observations, policy, masks)


def _size(rng: np.random.Generator, most: int) -> int:
    """1 to ``most``, each order of magnitude as often as another."""
    return min(most, int(np.exp(rng.uniform(0, np.log(most + 1)))))


# -- policies ---------------------------------------------------------------------------------------------------------


def _policy_and_model(rng: np.random.Generator) -> tuple[QuantActorCriticPolicy, IntegerModel]:
    """A calibrated policy in evaluation mode, treated as training could at its worst."""
    while True:
        try:
            policy = _policy(rng)
            model = policy.to_integer()
        except ValueError as error:
            if not any(known in str(error) for known in ("do not fit images", "Multipliers must be finite")):
                raise
            continue
        if model.n_parameters <= MOST_WEIGHTS and model.macs <= MOST_MACS:
            return policy, model


@th.no_grad()
def _policy(rng: np.random.Generator) -> QuantActorCriticPolicy:
    observation_space, action_space = _observation_space(rng), _action_space(rng)
    options = _architecture(rng, group_parts(observation_parts(observation_space, normalized_image=True)))
    uses_masks = not isinstance(action_space, spaces.Box) and bool(rng.random() < 0.15)
    th.manual_seed(int(rng.integers(2**31)))
    policy = QuantActorCriticPolicy(
        observation_space, action_space, lambda _: 0.0, normalized_image=True, uses_masks=uses_masks, **options
    )
    trunk = policy.features_extractor.trunks[0]
    if any(part.kind == "vector" for part in trunk.parts) and rng.random() < 0.6:
        trunk.set_origin(np.concatenate([_origin(rng, part) for part in trunk.parts]))
    if not trunk.is_image and rng.random() < 0.5:
        n, size = sum(part.n_features for part in trunk.parts), 10.0 ** rng.integers(-30, 30)
        trunk.set_normalization(rng.normal(size=n) * size, rng.exponential(size=n) * size)
    policy.action_net.weight.mul_(100)  # SB3 starts with nearly uniform actions
    for layer in quant_layers(policy):
        layer.bias.normal_(0, 0.1)
    policy.calibrate(policy.obs_to_tensor(_typical(policy, rng))[0])
    policy.set_training_mode(False)
    _treat(policy, rng)
    return policy


def _origin(rng: np.random.Generator, part: ObservationPart) -> np.ndarray:
    """Offsets of all sizes for about half the features; none for indices, and for some vectors of a Dict."""
    n = part.n_features
    if part.kind != "vector" or (part.key is not None and rng.random() < 0.3):
        return np.zeros(n)
    sizes = np.where(rng.random(n) < 0.05, rng.choice(ORIGINS, n), 10.0 ** rng.uniform(-3, 15, n))
    return np.where(rng.random(n) < 0.5, rng.choice([-1, 1], n) * sizes, 0.0)


def _typical(policy: QuantActorCriticPolicy, rng: np.random.Generator, n: int = 16) -> Any:
    """Observations to calibrate with."""
    space: Any = policy.observation_space
    space.seed(int(rng.integers(2**31)))
    drawn = [space.sample() for _ in range(n)]
    if not isinstance(space, spaces.Dict):
        return _beyond_origin(policy, None, np.stack(drawn))
    return {key: _beyond_origin(policy, key, np.stack([one[key] for one in drawn])) for key in space}


def _beyond_origin(policy: QuantActorCriticPolicy, key: str | None, values: np.ndarray) -> np.ndarray:
    """Values of a part, with its origin added."""
    trunk, used = policy.features_extractor.trunks[0], 0
    for part in trunk.parts if trunk.origin is not None else ():
        if part.key == key and part.kind == "vector":
            return values + trunk.origin.numpy()[used : used + part.n_features].reshape(part.shape)
        used += part.n_features
    return values


def _observation_space(rng: np.random.Generator, in_dict: bool = False) -> spaces.Space:
    indices = ["Discrete", "MultiDiscrete", "MultiBinary"]
    kinds = ["vector", "vector", "vector", "image", "image", "float image", *indices, "Dict", "Dict"]
    kind = rng.choice(kinds[1:-2] if in_dict else kinds)
    if kind == "Dict":
        return spaces.Dict({key: _observation_space(rng, in_dict=True) for key in "abcd"[: rng.integers(1, 5)]})
    if kind == "vector":
        shape = tuple(_size(rng, most) for most in ((700,), (20, 20), (6, 5, 4))[rng.integers(3)])
        return spaces.Box(-np.inf, np.inf, shape, np.float32 if rng.random() < 0.7 else np.float64)
    if kind == "Discrete":
        return spaces.Discrete(_size(rng, 300))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete([_size(rng, 30) for _ in range(_size(rng, 10))])
    if kind == "MultiBinary":
        return spaces.MultiBinary((_size(rng, 20), _size(rng, 5)) if rng.random() < 0.3 else _size(rng, 50))
    shape = (_size(rng, 6), *(int(side) for side in rng.integers(7, 50, 2)))
    return spaces.Box(0, 255, shape, np.uint8) if kind == "image" else spaces.Box(-1, 1, shape)


def _action_space(rng: np.random.Generator) -> spaces.Space:
    kind = rng.choice(["Discrete", "Discrete", "MultiDiscrete", "MultiBinary", "Box", "Box"])
    if kind == "Discrete":
        return spaces.Discrete(_size(rng, 300))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete([_size(rng, 20) for _ in range(_size(rng, 8))])
    if kind == "MultiBinary":
        return spaces.MultiBinary(_size(rng, 20))
    shape = ((), (_size(rng, 30),), (_size(rng, 5), _size(rng, 4)))[rng.integers(3)]
    low, high = np.moveaxis(np.array(BOUNDS, np.float32)[rng.integers(0, len(BOUNDS), shape)], -1, 0)
    return spaces.Box(low, high, shape)


def _architecture(rng: np.random.Generator, groups: list[tuple[ObservationPart, ...]]) -> dict[str, Any]:
    """Sizes and bits; TFLite takes the half of them."""
    images = [group[0].shape for group in groups if group[0].is_image]
    conv, side = [], min((min(shape[1:]) for shape in images), default=0)
    for _ in range(rng.integers(1, 4) if images else 0):
        kernel, stride = int(rng.integers(1, min(8, side) + 1)), int(rng.integers(1, 4))
        conv.append((_size(rng, 40), kernel, stride))
        side = (side - kernel) // stride + 1
    hidden = [_size(rng, 700) for _ in range(rng.integers(1 if len(groups) > 1 else 0, 6))]
    conv_hidden = [_size(rng, 100) for _ in range(rng.integers(0, 3))]
    n_layers = 1 + sum(len(conv) + len(conv_hidden) if group[0].is_image else len(hidden) for group in groups)
    widths, activation_bits = ((4, 8), 8) if rng.random() < 0.6 else ((2, 3, 4, 5, 6, 7, 8), int(rng.integers(2, 9)))
    bits: Any = tuple(int(bits) for bits in rng.choice(widths, n_layers))
    return {
        "student_arch": {"conv": conv, "hidden": hidden, "conv_hidden": conv_hidden},
        "weight_bits": bits if rng.random() < 0.6 else bits[0],
        "activation_bits": activation_bits,
    }


def _treat(policy: QuantActorCriticPolicy, rng: np.random.Generator) -> None:
    for name in rng.choice(list(TREATMENTS), rng.choice([0, 0, 1, 2]), replace=False):
        treat(policy, name, int(rng.integers(2**31)))
    if rng.random() < 0.1:  # scales of 1e-30 to 1e30
        for quantizer in policy.quantizers():
            quantizer.log_scale.add_(float(rng.choice([0, 0, *rng.uniform(-69, 69, 2)])))
    for layer in quant_layers(policy):
        if rng.random() < 0.05:
            layer.weight[tuple(rng.integers(layer.weight.shape))] = float(rng.choice([-1e30, 1e30]))


# -- by hand ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """
    What the layers of a model made by hand have in common.

    :param widths: of the weights, in bits; one of them for each layer
    :param extremes: share of the multipliers, offsets and units that are extremes
    """

    widths: tuple[int, ...]
    extremes: float

    def numbers(self, rng: np.random.Generator, ordinary: np.ndarray) -> np.ndarray:
        is_extreme = rng.random(len(ordinary)) < self.extremes
        return np.where(is_extreme, rng.choice(EXTREMES, len(ordinary)), ordinary).astype(np.float32)


def _model_by_hand(rng: np.random.Generator) -> IntegerModel:
    """Layers and grids that no policy may ever have."""
    while True:
        part, action, layers = _part(rng), _action(rng), list[IntegerLayer]()
        style = Style(((8,), (4, 8), (2, 3, 4, 5, 6, 7, 8))[rng.integers(3)], float(rng.choice([0, 0, 0.05, 0.5])))
        shape = part.shape if part.is_image else (part.n_features,)
        for _ in range(rng.integers(1, 3) if part.is_image else 0):
            kernel, stride = int(rng.integers(1, min(6, *shape[1:]) + 1)), int(rng.integers(1, 4))
            layers.append(_layer(rng, (_size(rng, 30), shape[0], kernel, kernel), style, stride=stride))
            shape = layers[-1].output_shape(shape)
        sizes = [int(np.prod(shape)), *(_size(rng, 700) for _ in range(rng.integers(0, 6))), action.pop("n_out")]
        if sum(n_in * n_out for n_in, n_out in pairwise(sizes)) > MOST_WEIGHTS:
            continue
        layers += [_layer(rng, (n_out, n_in), style) for n_in, n_out in pairwise(sizes[:-1])]
        layers.append(_layer(rng, (sizes[-1], sizes[-2]), style, n_units=sizes[-1] if "action_low" in action else 1))
        if part.kind != "image":
            n = 1 if part.is_image else part.n_features
            signs = rng.choice(np.array([-1, 1, 1], np.float32), (2, n))
            action["input_multiplier"] = signs[0] * style.numbers(rng, 10.0 ** rng.uniform(-3, 3, n))
            action["input_offset"] = signs[1] * style.numbers(rng, rng.integers(-40, 40, n) / 2)
            if part.kind == "vector" and rng.random() < 0.3:
                action["input_origin"] = _origin(rng, part)
        model = IntegerModel(layers, part.shape, parts=(part,), **action)
        if model.macs <= MOST_MACS:
            return model


def _part(rng: np.random.Generator) -> ObservationPart:
    kind = str(rng.choice(["vector", "vector", "image", "one_hot", "float_image"]))
    if kind == "vector":
        return ObservationPart(kind, (_size(rng, 700),))
    if kind == "one_hot":
        nvec = tuple(_size(rng, 60) for _ in range(_size(rng, 6)))
        return ObservationPart(kind, (len(nvec),), nvec)
    return ObservationPart(kind, (_size(rng, 5), *(int(side) for side in rng.integers(3, 30, 2))))


def _action(rng: np.random.Generator) -> dict[str, Any]:
    """What the constructor of a model takes, and ``n_out``."""
    if rng.random() < 0.4:
        n = _size(rng, 20)
        low, high = np.array(BOUNDS, np.float32)[rng.integers(0, len(BOUNDS), n)].T
        return {"n_out": n, "action_low": low, "action_high": high, "action_std": np.ones(n, np.float32), "action_shape": (n,)}
    kind = rng.choice(["Discrete", "MultiDiscrete", "MultiBinary"])
    masks = bool(rng.random() < 0.1)
    if kind == "Discrete":
        return {"n_out": _size(rng, 300), "uses_masks": masks}
    n = _size(rng, 10)
    nvec = (2,) * n if kind == "MultiBinary" else tuple(_size(rng, 20) for _ in range(n))
    n_out = n if kind == "MultiBinary" else sum(nvec)
    return {"n_out": n_out, "action_nvec": nvec, "action_shape": (n,), "uses_masks": masks}


def _layer(rng: np.random.Generator, shape: tuple[int, ...], style: Style, stride: int = 1, n_units: int = 0) -> IntegerLayer:
    """
    A layer of any weights that its bits allow.

    :param n_units: of a head; 0: it is a hidden layer
    """
    bits, n_out = int(rng.choice(style.widths)), shape[0]
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weight = rng.integers(low, high + 1, shape)
    kind = rng.choice(["ordinary", "ordinary", "ends", "lowest", "highest", "zero", "one", "dead channels"])
    if kind == "ends":
        weight = rng.choice([low, high], shape)
    elif kind in ("lowest", "highest"):
        weight = np.full(shape, low if kind == "lowest" else high)
    elif kind in ("zero", "one"):
        weight = np.zeros(shape, int)
        weight.reshape(-1)[rng.integers(weight.size)] = high if kind == "one" else 0
    elif kind == "dead channels":
        weight[::2] = 0
    sums = np.abs(weight).reshape(n_out, -1).sum(1)
    # what an accumulator has room for, most of the time with the 128 that C adds to a vector
    room = 2**31 - 1 - (255 + (0 if rng.random() < 0.1 else 128)) * sums
    size = rng.choice([0, 10, 1000, 2**23, 2**30, 2**31])
    bias = rng.integers(-size, size + 1, n_out) if rng.random() < 0.7 else rng.choice([-size, size], n_out)
    activation_bits = 0 if n_units else 8 if len(style.widths) < 3 else int(rng.integers(2, 9))
    typical = 2 + 100 * np.sqrt(sums.mean()) + rng.choice([0, size])
    ordinary = 2.0**activation_bits / typical * rng.lognormal(size=n_units or n_out)
    multiplier = style.numbers(rng, ordinary)
    bias = np.clip(bias, -room, room).astype(np.int32)
    return IntegerLayer(weight.astype(np.int8), bias, multiplier, bits, activation_bits, stride)


# -- observations -----------------------------------------------------------------------------------------------------


def _observations(model: IntegerModel, rng: np.random.Generator, n: int) -> Any:
    """Raw ones for all parts of a model."""
    values, used = {}, 0
    for part in (part for parts in model.trunks for part in parts):
        shape, n_grid = (n, *part.shape), 0 if part.kind == "image" else 1 if part.is_image else part.n_features
        if part.kind == "one_hot":
            values[part.key] = rng.integers(0, np.reshape(part.nvec, part.shape), shape)
        elif part.kind == "image":
            values[part.key] = _images(rng, shape)
        else:
            assert model.input_multiplier is not None and model.input_offset is not None
            grid = slice(used, used + n_grid)
            values[part.key] = _floats(rng, shape, model.input_multiplier[grid], model.input_offset[grid])
            if (origin := model.origin_of(part)) is not None:
                values[part.key] = values[part.key] + origin.reshape(part.shape)
        used += n_grid
    return values if model.is_dict else values[None]


def _images(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    images = rng.integers(0, 256, shape, np.uint8)
    images[0], images[1] = 0, 255
    images[2::2] = (images[2::2] > 200) * 255
    return images


def _floats(rng: np.random.Generator, shape: tuple[int, ...], m: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Ties of the grid, numbers of all sizes, and the ends of float32."""
    n, size = shape[0], int(np.prod(shape[1:]))
    with np.errstate(divide="ignore", invalid="ignore"):
        ties = np.nan_to_num((rng.integers(-260, 260, (n, size)) / 2 - a.astype(np.float64)) / m)
    anything = rng.standard_normal((n, size)) * 10.0 ** rng.integers(-3, 4, (n, 1))
    x = np.where(rng.random((n, size)) < 0.5, ties, anything)
    x[1::3] = anything[1::3]
    x[2::3] = ties[2::3]
    ends = (0, -0.0, 3e38, -3e38, 1e-42, -1e-45, FLOAT32_MAX)
    x[: len(ends)] = np.reshape(ends, (-1, 1))
    x[len(ends)] = rng.choice([-FLOAT32_MAX, FLOAT32_MAX], size)
    return np.clip(x, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32).reshape(shape)
