"""What a gradient step minimises, the losses of :mod:`sb3_qpd.distillation.losses` put together for a student and a batch; and the step."""

from __future__ import annotations

import torch as th

from sb3_qpd.distillation import losses
from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.spaces import masked
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import TeacherOutput

BOX_LOSSES = ("huber", "squared_error", "gaussian_kl")


def distillation_loss(
    policy: QuantActorCriticPolicy,
    samples: DistillationSamples,
    *,
    temperature: float = 1.0,
    critic_coef: float = 0.5,
    entropy_coef: float = 0.0,
    box_loss: str = "huber",
) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
    """
    The mean loss of a batch.

    :param policy: the student, in the mode that its precision is to be trained in
    :param samples: observations and the teacher's targets
    :param temperature: of the teacher's discrete distribution
    :param critic_coef: weight of the value's loss
    :param entropy_coef: weight of the student's entropy
    :param box_loss: one of ``BOX_LOSSES``
    :return: the loss, shape (), and the actor's and the critic's part for the log, detached, shape (batch_size,) each; the
        critic's is zero where the teacher has no value
    """
    actor, value = policy.actor_and_value(samples.observations)
    head = policy.head
    if head.is_box:
        actor_loss = _box_loss(policy, actor, samples.targets, box_loss)
    else:
        actor = masked(head.logits(actor), samples.targets.masks)  # the teacher's are masked already
        actor_loss = losses.multi_categorical_kl(actor, samples.targets.actor, nvec=head.nvec, temperature=temperature)
    critic_loss = th.zeros_like(value)
    if samples.targets.value is not None:
        critic_loss = losses.value_error(value, samples.targets.value, std=policy.value_net.std)
    loss = losses.actor_critic(actor_loss, critic_loss, critic_coef=critic_coef)
    if entropy_coef:
        loss = loss - entropy_coef * (policy.log_std.sum() if head.is_box else head.entropy(actor))
    return loss.mean(), (actor_loss.detach(), critic_loss.detach())


def descend(optimizer: th.optim.Optimizer, loss: th.Tensor, max_grad_norm: float) -> None:
    """
    One gradient step.

    :param optimizer: of the student's parameters
    :param loss: shape ()
    :param max_grad_norm: bound of the gradient's norm
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # its lists of parameters are there already: policy.parameters() walks through all modules
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()


def _box_loss(policy: QuantActorCriticPolicy, actor: th.Tensor, targets: TeacherOutput, name: str) -> th.Tensor:
    """
    Both means inside the box; a loss of the mean alone is joined by one of the deviation. A deterministic teacher has none:
    then the divergence is a loss of the mean alone, too.
    """
    log_std, low, high = policy.log_std, policy.action_low, policy.action_high
    half_range = ((high - low) / 2).clamp_min(1e-6)  # an action may be fixed
    mean, target = losses.clamp_to_box(actor, low, high), targets.actor.clamp(low, high)
    if name == "gaussian_kl" and targets.log_std is not None:
        return losses.gaussian_kl(mean, log_std, target, targets.log_std, half_range=half_range)
    loss = losses.squared_error if name == "squared_error" else losses.huber
    error = loss(mean, target, half_range=half_range)
    if targets.log_std is None:
        return error
    return error + losses.log_std_error(log_std.expand_as(targets.log_std), targets.log_std)
