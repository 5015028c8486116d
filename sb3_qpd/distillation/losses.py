"""
Distillation losses: pure functions of tensors that return one value per sample. The caller takes the mean.

Every actor loss compares a student with its teacher's targets. :func:`actor_critic` adds the critic's loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch as th
from torch.nn import functional as F

from sb3_qpd.distillation.hyperparameters import BOX_LOSS_NAMES


def _check_shapes(one: th.Tensor, other: th.Tensor) -> None:
    if one.shape != other.shape:
        raise ValueError(f"Both tensors must have one shape, got {tuple(one.shape)} and {tuple(other.shape)}")


def categorical_kl(student_logits: th.Tensor, teacher_logits: th.Tensor, *, temperature: float = 1.0) -> th.Tensor:
    """
    Forward KL divergence from the teacher's softened action distribution to the student's.

        L = sum_a p(a) (log p(a) - log q(a)),   p = softmax(teacher / T),  q = softmax(student)

    Rusu et al., Policy Distillation, 2016: https://arxiv.org/abs/1511.06295

    :param student_logits: shape (batch_size, n_actions)
    :param teacher_logits: logits or Q-values, shape (batch_size, n_actions)
    :param temperature: T; below 1 sharpens the teacher
    :return: divergence per sample in nats, shape (batch_size,)
    """
    _check_shapes(student_logits, teacher_logits)
    log_q = F.log_softmax(student_logits, dim=1)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def multi_categorical_kl(
    student_logits: th.Tensor, teacher_logits: th.Tensor, *, nvec: Sequence[int], temperature: float = 1.0
) -> th.Tensor:
    """
    Forward KL divergence between products of independent categorical distributions: the sum of theirs.

        L = sum_d KL(p_d, q_d),   each as in :func:`categorical_kl`

    A Bernoulli distribution with logit l is a categorical one with the logits 0 and l.

    :param student_logits: logits of all distributions side by side, shape (batch_size, sum(nvec))
    :param teacher_logits: the teacher's logits, same shape
    :param nvec: number of categories of each distribution
    :param temperature: see :func:`categorical_kl`
    :return: divergence per sample in nats, shape (batch_size,)
    """
    _check_shapes(student_logits, teacher_logits)
    pairs = zip(student_logits.split(list(nvec), dim=1), teacher_logits.split(list(nvec), dim=1), strict=True)
    return th.stack([categorical_kl(q, p, temperature=temperature) for q, p in pairs]).sum(0)


def gaussian_kl(
    student_mean: th.Tensor,
    student_log_std: th.Tensor,
    teacher_mean: th.Tensor,
    teacher_log_std: th.Tensor,
    *,
    unit: th.Tensor,
    min_std: float = 0.05,
) -> th.Tensor:
    """
    Forward KL divergence between diagonal Gaussians, summed over the action's dimensions.

        L = sum_i log(s_i / t_i) + (t_i^2 + (mu_t - mu_s)^2) / (2 s_i^2) - 1/2

    Both deviations have a floor: a nearly deterministic teacher would otherwise give one dimension an unbounded weight. A
    student's deviation below the floor still gets a gradient upwards.

    :param student_mean: shape (batch_size, action_dim)
    :param student_log_std: broadcastable to ``student_mean``
    :param teacher_mean: shape (batch_size, action_dim)
    :param teacher_log_std: broadcastable to ``teacher_mean``
    :param unit: unit of each dimension of the action, at most half its range, shape (action_dim,)
    :param min_std: floor of a deviation, as a share of ``unit``
    :return: divergence per sample in nats, shape (batch_size,)
    """
    _check_shapes(student_mean, teacher_mean)
    floor = min_std * unit
    student_std = clamp_to_box(student_log_std, floor.log(), th.full_like(floor, th.inf)).exp()
    teacher_std = th.maximum(teacher_log_std.exp(), floor)
    squares = teacher_std.square() + (teacher_mean - student_mean).square()
    return ((student_std / teacher_std).log() + squares / (2 * student_std.square()) - 0.5).sum(1)


def squared_error(student_mean: th.Tensor, teacher_mean: th.Tensor, *, unit: th.Tensor) -> th.Tensor:
    """
    Squared error of a deterministic action, each dimension in its unit.

        L = 1/2 sum_i ((mu_s - mu_t) / h_i)^2

    :param student_mean: shape (batch_size, action_dim)
    :param teacher_mean: shape (batch_size, action_dim)
    :param unit: unit h of each dimension of the action, at most half its range, shape (action_dim,)
    :return: shape (batch_size,)
    """
    _check_shapes(student_mean, teacher_mean)
    return 0.5 * ((student_mean - teacher_mean) / unit).square().sum(1)


def huber(student_mean: th.Tensor, teacher_mean: th.Tensor, *, unit: th.Tensor, delta: float = 0.3) -> th.Tensor:
    """
    Huber loss of a deterministic action, each dimension in its unit.

    The loss is quadratic below ``delta`` and linear with slope one above it. So the few states in which a teacher saturates
    do not dominate the gradient. Huber, Robust estimation of a location parameter, 1964.

    :param student_mean: shape (batch_size, action_dim)
    :param teacher_mean: shape (batch_size, action_dim)
    :param unit: unit of each dimension of the action, at most half its range, shape (action_dim,)
    :param delta: error at which the loss turns linear
    :return: shape (batch_size,)
    """
    _check_shapes(student_mean, teacher_mean)
    error = (student_mean - teacher_mean) / unit
    return F.huber_loss(error, th.zeros_like(error), reduction="none", delta=delta).sum(1) / delta


# Box action losses by their names as hyperparameters
BOX_LOSSES: dict[str, Callable[..., th.Tensor]] = {name: globals()[name] for name in BOX_LOSS_NAMES}


class _ClampToBox(th.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: th.Tensor, low: th.Tensor, high: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(mean, low, high)
        return th.maximum(th.minimum(mean, high), low)

    @staticmethod
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor, None, None]:
        mean, low, high = ctx.saved_tensors
        # a descent step goes against the gradient: above the box a positive one leads back inside
        useful = ((mean <= high) | (grad > 0)) & ((mean >= low) | (grad < 0))
        return grad * useful, None, None


def clamp_to_box(mean: th.Tensor, low: th.Tensor, high: th.Tensor) -> th.Tensor:
    """
    A mean action as the environment executes it. Outside the box only gradients that lead back inside pass.

    Fujita and Maeda, Clipped Action Policy Gradient, 2018: https://arxiv.org/abs/1802.07564

    :param mean: shape (batch_size, action_dim)
    :param low: shape (action_dim,)
    :param high: shape (action_dim,)
    :return: same shape, inside the box
    """
    return _ClampToBox.apply(mean, low, high)


def log_std_error(student_log_std: th.Tensor, teacher_log_std: th.Tensor) -> th.Tensor:
    """
    Squared error of the logarithm of the standard deviation, added to losses of the mean alone.

    The student then explores as widely as its teacher when its actions are sampled or when it is trained further.

    :param student_log_std: shape (batch_size, action_dim)
    :param teacher_log_std: shape (batch_size, action_dim)
    :return: shape (batch_size,)
    """
    _check_shapes(student_log_std, teacher_log_std)
    return 0.5 * (student_log_std - teacher_log_std).square().sum(1)


def value_error(student_value: th.Tensor, teacher_value: th.Tensor, *, std: th.Tensor) -> th.Tensor:
    """
    Huber loss of the value, in units of the standard deviation of the teacher's values.

    This unit makes the loss independent of the scale of an environment's rewards.

    :param student_value: in the teacher's units, shape (batch_size,)
    :param teacher_value: shape (batch_size,)
    :param std: standard deviation of the teacher's values, shape ()
    :return: shape (batch_size,)
    """
    _check_shapes(student_value, teacher_value)
    error = (student_value - teacher_value) / std
    return F.huber_loss(error, th.zeros_like(error), reduction="none")


def actor_critic(actor_loss: th.Tensor, critic_loss: th.Tensor, *, critic_coef: float) -> th.Tensor:
    """
    The loss of QPD for actor-critic networks: policy and value together. ``critic_coef=0`` is the actor-only loss.

        L = L_actor + c L_critic

    Avé et al., Quantization-aware Policy Distillation, 2022

    :param actor_loss: shape (batch_size,)
    :param critic_loss: shape (batch_size,)
    :param critic_coef: c
    :return: shape (batch_size,)
    """
    _check_shapes(actor_loss, critic_loss)
    return actor_loss if critic_coef == 0 else actor_loss + critic_coef * critic_loss
