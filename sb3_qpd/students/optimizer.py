"""The optimizer of students: Muon for the weights of hidden layers, Adam for all other parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch as th
from torch import nn
from torch.optim.adam import adam

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024
NEWTON_SCHULZ_STEPS = 5
# Weight decay of students without images. Muon's update never becomes small: without decay the weights of a long run grow
# until units are only zero or saturated. At 0.03 two of Pendulum's narrow students were lost. With images no such loss was
# seen, and Breakout's student is better without decay
WEIGHT_DECAY = 0.1
USUAL_WIDTH = 16  # a layer of this width takes the learning rate as it is
LEAST_WIDTH = 8  # narrower layers, which were not measured, learn as these do
# the first call of a method decorated for torch.compile imports its compiler, which takes more than a second
_load_state_dict = inspect.unwrap(th.optim.Optimizer.load_state_dict)


def orthogonalize(matrix: th.Tensor) -> th.Tensor:
    """
    A matrix with the same singular vectors, whose singular values are all near one (0.7 to 1.2).

    Five steps of a Newton-Schulz iteration, as in Jordan et al. 2024, in float32: not every processor has bfloat16.

    :param matrix: shape (rows, columns)
    :return: shape (rows, columns); zeros for zeros
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = th.addmm(x, th.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


def rate_of_width(width: int) -> float:
    """
    How fast a layer learns, in units of a layer of 16.

    :param width: inputs or outputs of the layer
    """
    return USUAL_WIDTH / max(width, LEAST_WIDTH)


class MuonAdam(th.optim.Optimizer):
    """
    Muon (Jordan et al. 2024) for the weights of hidden layers and Adam for all other parameters, as one optimizer.

    Muon replaces the update of a weight matrix by its nearest orthogonal matrix. Convolutions are matrices of shape
    (out_channels, in_channels * kernel_height * kernel_width). An update is scaled by sqrt(max(1, rows / columns)), as in
    Bernstein and Newhouse 2024, and by sqrt(16 / min(rows, columns)), so that its Frobenius norm does not grow with the width.
    Adam's rate for the weight of a head is scaled by 16 / inputs (Yang et al. 2022). So one learning rate serves all widths.

    :param params: parameters, or groups of them, see :func:`muon_groups`. Groups with ``"muon": True`` hold weights with two
        axes or more; a group's ``"scale"`` multiplies its learning rate
    :param lr: learning rate of Muon
    :param betas: decay rates of Adam's moments
    :param eps: Adam's epsilon, SB3's by default
    :param adam_ratio: Adam's learning rate in units of ``lr``
    :param weight_decay: decoupled weight decay of Muon's weights, as in Liu et al. 2025, https://arxiv.org/abs/2502.16982.
        Policies without images set it to 0.1
    """

    __module__ = "sb3_qpd"  # a zip names the public class, whatever module holds it

    # torch's own, see _load_state_dict
    add_param_group = inspect.unwrap(th.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(th.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(th.optim.Optimizer.zero_grad)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        adam_ratio: float = 0.5,
        weight_decay: float = 0.0,
    ) -> None:
        usual = {"lr": lr, "betas": betas, "eps": eps, "adam_ratio": adam_ratio, "weight_decay": weight_decay}
        super().__init__(params, {**usual, "muon": False, "scale": 1.0})

    @th.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """
        Update all parameters that have a gradient.

        :param closure: see :class:`torch.optim.Optimizer`
        :return: the closure's loss, or ``None``
        """
        loss = None
        if closure is not None:
            with th.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._muon_step if group["muon"] else self._adam_step)(group, parameters)
        return loss

    def _muon_step(self, group: dict[str, Any], parameters: list[th.Tensor]) -> None:
        gradients: list[Any] = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = th.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        th._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        th._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        for parameter, update in zip(parameters, th._foreach_lerp(gradients, momenta, MOMENTUM), strict=True):
            matrix = update.flatten(1)
            rows, columns = matrix.shape
            scale = (max(1.0, rows / columns) * rate_of_width(min(rows, columns))) ** 0.5
            parameter.add_(orthogonalize(matrix).view(parameter.shape), alpha=-group["lr"] * group["scale"] * scale)

    def _adam_step(self, group: dict[str, Any], parameters: list[th.Tensor]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                moments = {name: th.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter].update(step=th.tensor(0.0), **moments)
        states = [self.state[parameter] for parameter in parameters]
        adam(
            parameters,
            [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"] * group["adam_ratio"] * group["scale"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        Take a saved state. The state of another optimizer, such as Adam's in an older zip, gives its learning rate alone.

        :param state_dict: see :class:`torch.optim.Optimizer`
        """
        groups = state_dict["param_groups"]
        if all("scale" in group for group in groups):
            _load_state_dict(self, state_dict)
        else:
            for group in self.param_groups:
                group["lr"] = groups[0]["lr"]


def muon_groups(hidden: nn.Module, parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """
    Parameters in the groups of :class:`MuonAdam`.

    :param hidden: module of the hidden layers; its parameters with two axes or more are Muon's
    :param parameters: all parameters; others with two axes are heads, of shape (outputs, inputs)
    :return: the groups that are not empty
    """
    weights = {id(parameter) for parameter in hidden.parameters() if parameter.ndim >= 2}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        is_muon = id(parameter) in weights
        scale = rate_of_width(parameter.shape[1]) if parameter.ndim >= 2 and not is_muon else 1.0
        groups.setdefault((is_muon, scale), []).append(parameter)
    return [{"params": members, "muon": is_muon, "scale": scale} for (is_muon, scale), members in groups.items()]
