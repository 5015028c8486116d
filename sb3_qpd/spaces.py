"""
Which spaces are supported, and how: the parts that an observation consists of, and the head that an action comes from.

Each of them is one small description that the teacher's labels, the loss, the student and the integer model share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_qpd.integer import ObservationPart

MASKED = -1e8  # the logit of an action that is not allowed, as in sb3-contrib: finite, so that nothing becomes NaN
OBSERVATIONS = (
    "Box (vectors; images of uint8, 0 to 255, or of floats), Discrete, MultiDiscrete with one axis (both counted from 0), "
    "MultiBinary, and a Dict of these that is not nested"
)
ACTIONS = "Discrete, MultiDiscrete with one axis (both counted from 0), MultiBinary with one axis, and Box with finite bounds"


def observation_parts(
    space: spaces.Space, normalized_image: bool = False, key: str | None = None
) -> tuple[ObservationPart, ...]:
    """
    What an observation consists of, in SB3's order of keys; an error lists what is supported.

    :param space: of observations, images channels first
    :param normalized_image: a Box of floats with three axes is an image (SB3's name for it), not a vector
    :param key: the space's own, in a Dict
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
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and (nvec := _categories(space)):
        return (ObservationPart("one_hot", space.shape, nvec, key),)  # type: ignore[arg-type]
    raise ValueError(f"Observations of {_one_line(space)} are not supported. Supported: {OBSERVATIONS}")


def _one_line(space: spaces.Space) -> str:
    return " ".join(str(space).split())


def _categories(space: spaces.Space) -> tuple[int, ...]:
    """Of each dimension of a discrete space; () where SB3 cannot take it."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),) if space.start == 0 else ()
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(getattr(space, "start", 0)):
        return tuple(int(n) for n in space.nvec)
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return (2,) * space.shape[0]
    return ()


@dataclass(frozen=True)
class ActionHead:
    """
    What an actor's outputs say of an action: the mean of a Box one, or the logits of independent categorical distributions.

    :param nvec: categories of each distribution; () for a Box action
    :param shape: of an action
    :param is_binary: there is one output for each distribution of two categories: the logit of 1, that of 0 being 0
    """

    nvec: tuple[int, ...]
    shape: tuple[int, ...]
    is_binary: bool = False

    @property
    def is_box(self) -> bool:
        return not self.nvec

    def logits(self, outputs: th.Tensor) -> th.Tensor:
        """
        Outputs of an actor as logits of every category.

        :param outputs: shape (batch_size, sum(nvec)), or (batch_size, len(nvec)) of Bernoulli distributions
        :return: shape (batch_size, sum(nvec)); a Box action's mean as it is
        """
        if not self.is_binary or outputs.shape[1] != len(self.nvec):
            return outputs
        return th.stack([th.zeros_like(outputs), outputs], dim=2).flatten(1)

    def check_masks(self, action_masks: np.ndarray | th.Tensor, batch_size: int, device: th.device) -> th.Tensor:
        """
        Which categories are allowed, as sb3-contrib gives it. At the end of an episode that may be none.

        :return: bool, shape (batch_size, sum(nvec))
        """
        if self.is_box:
            raise ValueError("action_masks are for discrete actions, these are a Box")
        masks, expected = th.as_tensor(action_masks, dtype=th.bool, device=device), (batch_size, sum(self.nvec))
        if masks.numel() != expected[0] * expected[1]:
            raise ValueError(f"Expected action_masks of shape {expected}, got {tuple(masks.shape)}")
        return masks.reshape(expected)

    def split(self, logits: th.Tensor) -> tuple[th.Tensor, ...]:
        """Of each distribution, shape (batch_size, its categories)."""
        return th.split(logits, list(self.nvec), dim=1)

    def best(self, logits: th.Tensor) -> th.Tensor:
        """The most probable action, the first of equal ones; shape (batch_size, *shape)."""
        return self._joined([one.argmax(1) for one in self.split(logits)])

    def sample(self, logits: th.Tensor) -> th.Tensor:
        """An action from the distribution; shape (batch_size, *shape)."""
        return self._joined([th.multinomial(one.softmax(1), 1).flatten() for one in self.split(logits)])

    def entropy(self, logits: th.Tensor) -> th.Tensor:
        """In nats, shape (batch_size,)."""
        parts = [th.distributions.Categorical(logits=one, validate_args=False).entropy() for one in self.split(logits)]
        return th.stack(parts).sum(0)

    def _joined(self, indices: list[th.Tensor]) -> th.Tensor:
        return th.stack(indices, dim=1).reshape(len(indices[0]), *self.shape)


def masked(logits: th.Tensor, masks: th.Tensor | None, value: float = MASKED) -> th.Tensor:
    """
    Logits with those that are not allowed out of the question.

    :param logits: shape (batch_size, n)
    :param masks: bool, same shape: what is allowed; ``None``: everything is
    :param value: of a logit that is not
    """
    return logits if masks is None else logits.masked_fill(~masks, value)


def float32_bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The float32 inside a Box that are nearest to its bounds: those of a float64 bound may lie outside."""
    low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
    low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)


def action_head(space: spaces.Space) -> ActionHead:
    """What actions come from; an error lists what is supported."""
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
