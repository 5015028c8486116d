"""The loss that a gradient step minimises: the losses of :mod:`sb3_qpd.distillation.losses` added up for a batch."""

from __future__ import annotations

import torch as th

from sb3_qpd.distillation import losses
from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.spaces import masked
from sb3_qpd.students.layers import QuantLayer
from sb3_qpd.students.policies import QuantActorCriticPolicy
from sb3_qpd.teachers.teacher import TeacherOutput


def distillation_loss(
    policy: QuantActorCriticPolicy,
    samples: DistillationSamples,
    *,
    temperature: float = 1.0,
    student_temperature: float = 1.0,
    critic_coef: float,
    entropy_coef: float = 0.0,
    box_loss: str = "huber",
) -> tuple[th.Tensor, tuple[th.Tensor, th.Tensor]]:
    """
    The mean loss of a batch.

    :param policy: the student, in training mode
    :param samples: observations and the teacher's targets
    :param temperature: temperature of the teacher's discrete distribution
    :param student_temperature: temperature of the student's
    :param critic_coef: weight of the value loss
    :param entropy_coef: weight of the student's entropy
    :param box_loss: key of :data:`~sb3_qpd.distillation.losses.BOX_LOSSES`
    :return: the loss, shape (), and the actor's and the critic's part for the log, detached, shape (batch_size,) each. The
        critic's part is zero where the teacher has no value
    """
    actor, value = policy.actor_and_value(samples.observations)
    head = policy.head
    if head.is_box:
        actor_loss = _box_loss(policy, actor, samples.targets, box_loss)
    else:
        actor = masked(head.logits(actor), samples.targets.masks)  # the teacher's are masked already
        actor_loss = losses.multi_categorical_kl(
            actor / student_temperature, samples.targets.actor, nvec=head.nvec, temperature=temperature
        )
    critic_loss = th.zeros_like(value)
    if samples.targets.value is not None:
        critic_loss = losses.value_error(value, samples.targets.value, std=policy.value_net.std)
    loss = losses.actor_critic(actor_loss, critic_loss, critic_coef=critic_coef)
    if entropy_coef:
        loss = loss - entropy_coef * (policy.log_std.sum() if head.is_box else head.entropy(actor))
    return loss.mean(), (actor_loss.detach(), critic_loss.detach())


@th.no_grad()
def measure_student(
    policy: QuantActorCriticPolicy, samples: DistillationSamples, temperature: float = 1.0, student_temperature: float = 1.0
) -> dict[str, float]:
    """
    How close the student as it is deployed, in evaluation mode, comes to its teacher's labels.

    :param policy: the student, which is left in evaluation mode
    :param samples: observations and the teacher's labels
    :param temperature: temperature of the teacher's discrete distribution
    :param student_temperature: temperature of the student's in ``kl``
    :return: ``agreement``, the share of equal most probable actions, and ``kl`` in nats; ``action_error``, the mean absolute
        error of a Box action in its units; ``mean_weight_bits``, the mean bits of a weight in training. During the
        transition it lies between 32 (float) and the target bits
    """
    policy.set_training_mode(False)
    actor, _ = policy.actor_and_value(samples.observations)
    head, target = policy.head, samples.targets.actor
    weights = [
        (module.weight.numel(), module.weight_quantizer) for module in policy.modules() if isinstance(module, QuantLayer)
    ]
    total = sum(size for size, _ in weights)
    bits = sum(size * bits * share for size, one in weights for bits, share in one.precision.items()) / total
    if head.is_box:
        low, high = policy.action_low, policy.action_high
        error = (actor.clamp(low, high) - target.clamp(low, high)).abs() / policy.action_unit
        return {"action_error": error.mean().item(), "mean_weight_bits": bits}
    logits = masked(head.logits(actor), samples.targets.masks)
    same = (head.best(logits) == head.best(target)).reshape(len(target), -1).all(1).float().mean().item()
    kl = losses.multi_categorical_kl(logits / student_temperature, target, nvec=head.nvec, temperature=temperature).mean()
    return {"agreement": same, "kl": kl.item(), "mean_weight_bits": bits}


def _box_loss(policy: QuantActorCriticPolicy, actor: th.Tensor, targets: TeacherOutput, name: str) -> th.Tensor:
    """
    The loss of a Box action, with both means clamped to the box.

    A loss of the mean alone is joined by one of the standard deviation. A deterministic teacher has no deviation, and so no
    divergence: ``gaussian_kl`` is then replaced by ``huber``.
    """
    log_std, low, high = policy.log_std, policy.action_low, policy.action_high
    unit = policy.action_unit
    mean, target = losses.clamp_to_box(actor, low, high), targets.actor.clamp(low, high)
    if name == "gaussian_kl" and targets.log_std is not None:
        return losses.gaussian_kl(mean, log_std, target, targets.log_std, unit=unit)
    loss = losses.BOX_LOSSES["huber" if name == "gaussian_kl" else name]
    error = loss(mean, target, unit=unit)
    if targets.log_std is None:
        return error
    return error + losses.log_std_error(log_std.expand_as(targets.log_std), targets.log_std)
