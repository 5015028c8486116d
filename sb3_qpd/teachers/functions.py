"""Teachers that are functions: networks of other packages, controllers and rules, as long as they answer a batch."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_qpd.checks import check_choice, check_type
from sb3_qpd.observations import stack
from sb3_qpd.spaces import masked
from sb3_qpd.teachers.families import DeterministicTeacher
from sb3_qpd.teachers.files.archive import TeacherError
from sb3_qpd.teachers.teacher import Teacher, TeacherOutput, check_finite

KINDS = ("logits", "q_values", "gaussian", "action")
CERTAINTY = 5.0  # logit of a discrete action that a function plays; the others have 0, so its probability is about 0.98
TRIED = (3, 1)  # sizes of the batches that a function answers when it becomes a teacher

Function = Callable[[Any], Any]


class FunctionPolicy(BasePolicy):
    """
    A function in the place of a teacher's policy. A torch module becomes a part of it, so that it moves between devices.

    :param function: answers a batch of observations
    :param observation_space: space of one observation, images channels first
    :param action_space: space of the actions
    """

    is_function: ClassVar[bool] = True

    def __init__(self, function: Function, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        super().__init__(observation_space, action_space)
        self.function = _copied(function) if isinstance(function, nn.Module) else function

    @property
    def is_module(self) -> bool:
        return isinstance(self.function, nn.Module)

    def _predict(self, observation: Any, deterministic: bool = False) -> Any:
        return self.function(_in_float32(observation))


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # modules may hold anything
        raise TeacherError(
            f"The module {type(module).__name__} cannot be copied ({error}). Pass a function that calls it: "
            "lambda x: module(torch.as_tensor(x))"
        ) from error


def _in_float32(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: _in_float32(value) for key, value in observation.items()}
    return observation.float() if observation.dtype == th.float64 else observation


class FunctionTeacher(Teacher):
    """
    A teacher whose labels are logits, or mean and deviation, that a function answers. :meth:`Teacher.from_function` makes one.

    :param policy: the function in its policy
    :param kind: see :meth:`Teacher.from_function`
    :param value: see there
    :param kwargs: see :class:`Teacher`
    """

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (FunctionPolicy,)

    def __init__(self, policy: FunctionPolicy, *, kind: str, value: Function | None = None, **kwargs: Any) -> None:
        super().__init__(policy, **kwargs)
        self.kind, self.value = kind, value
        self._device = policy.device

    @property
    def device(self) -> th.device:
        return self._device

    def to(self, device: th.device | str) -> Teacher:
        """
        Give labels on a device. A torch module computes there; any other function chooses its device itself.

        :param device: torch device
        """
        self.policy.to(device)
        self._device = th.device(device)
        return self

    @th.no_grad()
    def __call__(self, observations: Any, action_masks: np.ndarray | None = None) -> TeacherOutput:
        """
        Label a batch of raw observations.

        :param observations: shape (batch_size, *observation_shape), as the environment gives them; a dict of such arrays
        :param action_masks: allowed discrete actions, bool, shape (batch_size, sum of all categories)
        :return: labels as float32 on the teacher's device
        :raises TeacherError: the function fails, or its answer has another shape than its kind says
        """
        normalized = self.normalize(observations)
        inputs = self.policy.obs_to_tensor(normalized)[0] if self.policy.is_module else normalized
        output = self._label(inputs)
        if action_masks is None or self.head.is_box:
            return output
        masks = self.head.check_masks(action_masks, len(output.actor), output.actor.device)
        return output._replace(actor=masked(output.actor, masks), masks=masks)

    def _label(self, observations: Any) -> TeacherOutput:
        n = _size(observations)
        answer = self._ask(self.policy._predict if self.policy.is_module else self.policy.function, observations, n)
        actor, log_std = self._read(answer, n)
        value = None if self.value is None else self._shaped(self._ask(self.value, observations, n), (n,), "value")
        if value is None and self.kind == "q_values":
            value = actor.amax(1)
        return TeacherOutput(actor, value, log_std)

    def _ask(self, function: Function, observations: Any, n: int) -> Any:
        try:
            return function(observations)
        except Exception as error:  # a function of the user's may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise TeacherError(
                f"The function of the teacher {self.name} failed on a batch of {n} observations ({reason}). It gets raw "
                "observations of shape (batch_size, *observation_shape), or a dict of such arrays"
            ) from error

    def _read(self, answer: Any, n: int) -> tuple[th.Tensor, th.Tensor | None]:
        """The actor's labels, and the logarithm of the deviation of a Gaussian."""
        head = self.head
        if self.kind == "gaussian":
            if not isinstance(answer, tuple | list) or len(answer) != 2:
                raise self._wrong(f"a {type(answer).__name__}", "a tuple of mean and log_std")
            dim = int(np.prod(head.shape))
            mean, log_std = self._shaped(answer[0], (n, dim), "mean"), self._tensor(answer[1])
            try:
                return mean, th.broadcast_to(log_std.reshape(-1, dim), mean.shape).clone()
            except RuntimeError:
                raise self._wrong(f"a log_std of shape {tuple(log_std.shape)}", f"({n}, {dim}) or ({dim},)") from None
        if self.kind == "action":
            return self._read_action(answer, n), None
        tensor = self._tensor(answer)
        n_outputs = sum(head.nvec) if not head.is_binary or tensor.shape[-1:] == (sum(head.nvec),) else len(head.nvec)
        return head.logits(self._shaped(tensor, (n, n_outputs), self.kind)), None

    def _read_action(self, answer: Any, n: int) -> th.Tensor:
        head = self.head
        action = self._shaped(answer, (n, int(np.prod(head.shape))), "action")
        if head.is_box:
            return action
        nvec = th.as_tensor(head.nvec, device=action.device)
        indices = action.long()
        if not ((indices == action) & (indices >= 0) & (indices < nvec)).all():
            raise self._wrong("other numbers", f"whole actions of {self.action_space}, counted from 0")
        parts = [nn.functional.one_hot(column, count) for column, count in zip(indices.T, head.nvec, strict=True)]
        return CERTAINTY * th.cat(parts, dim=1).float()

    def _shaped(self, answer: Any, shape: tuple[int, ...], what: str) -> th.Tensor:
        tensor = self._tensor(answer)
        size = int(np.prod(shape))
        has_batch = tensor.ndim > 0 and len(tensor) == shape[0]
        if tensor.numel() != size or not (has_batch or size == 1):
            raise self._wrong(f"{what} of shape {tuple(tensor.shape)}", f"shape {shape}, one row for each observation")
        return tensor.reshape(shape)

    def _tensor(self, answer: Any) -> th.Tensor:
        try:
            tensor = answer if isinstance(answer, th.Tensor) else th.as_tensor(np.asarray(answer))
            return tensor.to(self.device, th.float32)
        except (TypeError, ValueError, RuntimeError):
            raise self._wrong(f"a {type(answer).__name__}", "an array or a tensor of numbers") from None

    def _wrong(self, got: str, expected: str) -> TeacherError:
        return TeacherError(
            f"The function of the teacher {self.name}, kind {self.kind!r}, answered {got}: expected {expected}"
        )

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        SB3's ``predict`` on raw observations.

        :param observation: one raw observation or a batch
        :param state: see SB3's ``predict``
        :param episode_start: see SB3's ``predict``
        :param deterministic: most probable actions, else sampled ones; Q-values and actions are never sampled
        :param action_masks: allowed actions
        """
        is_single = self._is_single(observation)
        output = self(stack([observation]) if is_single else observation, action_masks)
        check_finite(output)
        actions = self._act(output, deterministic or isinstance(self, DeterministicTeacher))
        return (actions[0] if is_single else actions), state

    def _act(self, output: TeacherOutput, deterministic: bool) -> np.ndarray:
        space = self.action_space
        if not isinstance(space, spaces.Box):
            return (self.head.best if deterministic else self.head.sample)(output.actor).cpu().numpy()
        actions = output.actor.cpu().numpy() if deterministic else Teacher.sample(self, output)
        dtype = space.dtype if np.issubdtype(space.dtype, np.floating) else np.float32
        return np.clip(actions.reshape(-1, *space.shape), space.low, space.high).astype(dtype)

    def _is_single(self, observation: Any) -> bool:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            key = next(iter(space.spaces))
            return np.ndim(observation[key]) == len(space[key].shape or ())
        return np.ndim(observation) == len(space.shape or ())

    @property
    def n_parameters(self) -> int:
        """Number of parameters of a torch module's actor, or of an ONNX file; 0 where it is not known."""
        return super().n_parameters if self.policy.is_module else getattr(self.policy.function, "n_parameters", 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one observation, 0 where they are not known."""
        return super().macs if self.policy.is_module else 0


class DeterministicFunctionTeacher(FunctionTeacher, DeterministicTeacher):
    """A teacher whose function answers Q-values or actions. Noise is added while observations are collected."""

    policies: ClassVar[tuple[type[BasePolicy], ...]] = (FunctionPolicy,)

    def temperature_of(self, targets: TeacherOutput) -> float:
        return super().temperature_of(targets) if self.kind == "q_values" else 1.0


def _size(observations: Any) -> int:
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def teacher_from_function(
    function: Function,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    kind: str,
    *,
    value: Function | None = None,
    name: str = "",
    checksum: str = "",
    algo: str = "function",
) -> Teacher:
    """See :meth:`sb3_qpd.Teacher.from_function`."""
    check_choice("kind", kind, KINDS)
    for argument, one in (("function", function), *([] if value is None else [("value", value)])):
        if not callable(one):
            raise TypeError(f"{argument} must be a function or a torch module, got {one!r} ({type(one).__name__})")
    for argument, space in (("observation_space", observation_space), ("action_space", action_space)):
        check_type(argument, space, spaces.Space, "a gymnasium space")
    check_type("name", name, str, "a name")
    if checksum and not (isinstance(checksum, str) and re.fullmatch(r"[0-9a-fA-F]{64}", checksum)):
        raise ValueError(f"checksum must be a SHA-256 in 64 hexadecimal digits, or '', got {checksum!r}")
    cls = DeterministicFunctionTeacher if kind in ("q_values", "action") else FunctionTeacher
    name = name or getattr(function, "__name__", type(function).__name__).strip("<>")
    try:
        policy = FunctionPolicy(function, observation_space, action_space)
        teacher = cls(policy, kind=kind, value=value, name=name, algo=algo, checksum=checksum.lower())
    except ValueError as error:
        raise error if isinstance(error, TeacherError) else TeacherError(str(error)) from error
    _check_kind(teacher)
    for n in TRIED:
        check_finite(teacher(sample_batch(observation_space, n)))
    return teacher


def _check_kind(teacher: FunctionTeacher) -> None:
    is_discrete = isinstance(teacher.action_space, spaces.Discrete)
    fits = {"logits": not teacher.head.is_box, "q_values": is_discrete, "gaussian": teacher.head.is_box, "action": True}
    if not fits[teacher.kind]:
        takes = {"logits": "discrete actions", "q_values": "Discrete actions", "gaussian": "Box actions"}[teacher.kind]
        raise TeacherError(f"kind={teacher.kind!r} is for {takes}, the teacher's actions are {teacher.action_space}")


def sample_batch(space: spaces.Space, n: int) -> Any:
    """
    Random observations, the same in each call.

    :param space: space of one observation
    :param n: their number
    """
    own = copy.deepcopy(space)
    own.seed(0)
    return stack([own.sample() for _ in range(n)])
