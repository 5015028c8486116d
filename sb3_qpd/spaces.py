"""
The supported spaces: the parts of an observation, and the head that an action comes from.

The teacher's labels, the loss, the student and the integer model share these two small descriptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_qpd.integer import ObservationPart

MASKED = -1e8  # logit of an action that is not allowed, as in sb3-contrib; finite, so that nothing becomes NaN
OBSERVATIONS = (
    "Box (vectors; images of uint8, 0 to 255, or of floats), Discrete, MultiDiscrete with one axis (both counted from 0), "
    "MultiBinary, and a Dict of these that is not nested"
)
ACTIONS = "Discrete, MultiDiscrete with one axis, MultiBinary with one axis, and Box with finite bounds"


def observation_parts(
    space: spaces.Space, normalized_image: bool = False, key: str | None = None
) -> tuple[ObservationPart, ...]:
    """
    The parts of an observation, in SB3's order of keys.

    :param space: observation space, with images channels first
    :param normalized_image: whether a Box of floats with three axes is an image (SB3's name for it), not a vector
    :param key: key of this space in a Dict
    :raises ValueError: the space is not supported; the message lists those that are
    """
    if isinstance(space, spaces.Dict) and key is None and space.spaces:
        return tuple(part for name, one in space.spaces.items() for part in observation_parts(one, normalized_image, name))
    if isinstance(space, spaces.Box):
        kind = "image" if is_image_space(space) else "vector"
        if kind == "vector" and normalized_image and len(space.shape) == 3:
            kind = "float_image"
        return (ObservationPart(kind, space.shape, key=key),)
    if isinstance(space, spaces.MultiBinary):
        return (ObservationPart("vector", space.shape, key=key),)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and not np.any(getattr(space, "start", 0)):
        if nvec := _categories(space):
            return (ObservationPart("one_hot", space.shape, nvec, key),)  # type: ignore[arg-type]
    raise ValueError(f"Observations of {_one_line(space)} are not supported. Supported: {OBSERVATIONS}{_way_out(space)}")


def _one_line(space: spaces.Space) -> str:
    return " ".join(str(space).split())


def _way_out(space: spaces.Space) -> str:
    """The wrapper that makes a supported space of one whose categories do not start at 0."""
    start = np.asarray(getattr(space, "start", 0))
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or not start.any():
        return ""
    offset = f"np.array({start.tolist()})" if start.ndim else str(start)
    counts = f"MultiDiscrete({space.nvec.tolist()})" if isinstance(space, spaces.MultiDiscrete) else f"Discrete({space.n})"
    return (
        ". Stable-Baselines3 takes no observation above the number of categories. Count from 0, in training as well: "
        f"gymnasium.wrappers.TransformObservation(env, lambda x: x - {offset}, gymnasium.spaces.{counts})"
    )


def _categories(space: spaces.Space) -> tuple[int, ...]:
    """Number of categories in each dimension of a discrete space; () where SB3 cannot take the space."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(int(n) for n in space.nvec)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return (2,) * space.shape[0]
    return ()


@dataclass(frozen=True)
class ActionHead:
    """
    The meaning of an actor's outputs: the mean of a Box action, or the logits of independent categorical distributions.

    :param nvec: number of categories of each distribution; () for a Box action
    :param shape: shape of an action
    :param is_binary: whether each distribution has two categories and one output: the logit of 1, where that of 0 is 0
    """

    nvec: tuple[int, ...]
    shape: tuple[int, ...]
    is_binary: bool = False

    @property
    def is_box(self) -> bool:
        return not self.nvec

    @property
    def n_outputs(self) -> int:
        """Number of outputs of a student's head."""
        return math.prod(self.shape) if self.is_box else len(self.nvec) if self.is_binary else sum(self.nvec)

    def logits(self, outputs: th.Tensor) -> th.Tensor:
        """
        The logits of every category, from an actor's outputs.

        :param outputs: shape (batch_size, sum(nvec)), or (batch_size, len(nvec)) for Bernoulli distributions
        :return: shape (batch_size, sum(nvec)); the mean of a Box action is returned unchanged
        """
        if not self.is_binary or outputs.shape[1] != len(self.nvec):
            return outputs
        return th.stack([th.zeros_like(outputs), outputs], dim=2).flatten(1)

    def check_masks(self, action_masks: np.ndarray | th.Tensor, batch_size: int, device: th.device) -> th.Tensor:
        """
        Action masks of a batch, checked. At the end of an episode, no category may be allowed.

        :param action_masks: masks as sb3-contrib gives them, of any shape with batch_size * sum(nvec) elements
        :param batch_size: number of observations
        :param device: device of the result
        :return: bool, shape (batch_size, sum(nvec)); true where a category is allowed
        """
        if self.is_box:
            raise ValueError("action_masks are for discrete actions, these are a Box")
        try:
            masks, expected = th.as_tensor(action_masks, dtype=th.bool, device=device), (batch_size, sum(self.nvec))
        except TypeError as error:
            raise TypeError(f"action_masks must be an array of True and False, got {action_masks!r}") from error
        if masks.numel() != expected[0] * expected[1]:
            raise ValueError(f"Expected action_masks of shape {expected}, got {tuple(masks.shape)}")
        return masks.reshape(expected)

    def split(self, logits: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        The logits of each distribution, shape (batch_size, its categories).

        :param logits: shape (batch_size, sum(nvec))
        """
        return th.split(logits, list(self.nvec), dim=1)

    def best(self, logits: th.Tensor) -> th.Tensor:
        """
        The most probable actions, shape (batch_size, *shape). Of equal logits the first one counts.

        :param logits: shape (batch_size, sum(nvec))
        """
        return self._joined([one.argmax(1) for one in self.split(logits)])

    def sample(self, logits: th.Tensor) -> th.Tensor:
        """
        Actions drawn from the distribution, shape (batch_size, *shape).

        :param logits: shape (batch_size, sum(nvec))
        """
        return self._joined([th.multinomial(one.softmax(1), 1).flatten() for one in self.split(logits)])

    def entropy(self, logits: th.Tensor) -> th.Tensor:
        """
        Entropy of the distribution in nats, shape (batch_size,).

        :param logits: shape (batch_size, sum(nvec))
        """
        parts = [th.distributions.Categorical(logits=one, validate_args=False).entropy() for one in self.split(logits)]
        return th.stack(parts).sum(0)

    def _joined(self, indices: list[th.Tensor]) -> th.Tensor:
        return th.stack(indices, dim=1).reshape(len(indices[0]), *self.shape)


def masked(logits: th.Tensor, masks: th.Tensor | None, value: float = MASKED) -> th.Tensor:
    """
    Logits in which actions that are not allowed have a very negative value.

    :param logits: shape (batch_size, n)
    :param masks: bool, same shape, true where an action is allowed; ``None`` allows all
    :param value: logit of an action that is not allowed
    """
    return logits if masks is None else logits.masked_fill(~masks, value)


def float32_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """
    The float32 values inside a Box that are nearest to its bounds. A float64 bound rounded to float32 may lie outside.

    :param space: a Box
    :return: lower and upper bounds
    """
    low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
    low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)


def half_range(space: spaces.Box) -> np.ndarray:
    """
    Half the range of each dimension of a Box action. It is 1 where an action is fixed.

    :param space: space with finite bounds
    :return: float32, shape (action_dim,)
    """
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    half = high / 2 - low / 2  # high - low could overflow
    return np.where(half > 0, half, 1.0).astype(np.float32)


def action_head(space: spaces.Space) -> ActionHead:
    """
    The head of an actor for an action space.

    The categories of discrete actions count from 0, whatever the ``start`` of the space: SB3's policies ignore it as well, and
    an environment that an agent was trained in takes its actions as they are.

    :param space: action space
    :raises ValueError: the space is not supported; the message lists those that are
    """
    if isinstance(space, spaces.Box):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(
                f"Actions of {_one_line(space)} have no finite bounds: a student's errors are measured in half the range, and "
                f"its action is clipped to it. Rescale the actions with a wrapper. Supported: {ACTIONS}"
            )
        return ActionHead((), space.shape)
    if nvec := _categories(space):
        return ActionHead(nvec, space.shape, isinstance(space, spaces.MultiBinary))  # type: ignore[arg-type]
    raise ValueError(f"Actions of {_one_line(space)} are not supported. Supported: {ACTIONS}")
