"""Muon for the weights of hidden layers, Adam for all other parameters."""

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import QUICK, Quadrant, pointers, untrained

from sb3_qpd import MuonAdam, QPDDistiller
from sb3_qpd.students.optimizer import muon_groups, orthogonalize


def test_singular_values_become_about_one_and_vectors_stay():
    generator = th.Generator().manual_seed(0)
    for shape in ((24, 8), (8, 24), (16, 16), (1, 9), (9, 1)):
        matrix = th.randn(shape, generator=generator)
        u, values, v = th.linalg.svd(matrix, full_matrices=False)
        values = values / values.norm()
        for _ in range(5):  # the polynomial of each singular value
            values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
        th.testing.assert_close(orthogonalize(matrix), u @ th.diag(values) @ v, atol=1e-4, rtol=1e-4)
        if shape[0] != shape[1]:  # a square one may be nearly singular
            assert 0.6 < values.min() and values.max() < 1.3
    assert not orthogonalize(th.zeros(3, 5)).any()


def test_weights_follow_muon_and_the_rest_follows_adam():
    th.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 32))
    head = nn.Linear(32, 2)
    both = nn.ModuleList([net, head])
    before = [parameter.clone() for parameter in both.parameters()]
    optimizer = MuonAdam(muon_groups(net, both.parameters()), lr=0.1, adam_ratio=0.5, weight_decay=0.01)
    copies = [parameter.detach().clone().requires_grad_() for parameter in both.parameters()]
    others = [{"params": [*copies[:4], copies[5]]}, {"params": [copies[4]], "lr": 0.025}]
    adam = th.optim.Adam(others, lr=0.05, eps=1e-5)  # half of the head's rate, as it has 32 inputs
    images = th.randn(7, 3, 4, 4)
    momenta = [th.zeros_like(parameter) for parameter in before]
    for _ in range(3):
        optimizer.zero_grad()
        head(net(images)).square().sum().backward()
        wanted = []
        for parameter, momentum in zip(both.parameters(), momenta, strict=True):
            momentum.mul_(0.95).add_(parameter.grad, alpha=0.05)
            update = orthogonalize((0.05 * parameter.grad + 0.95 * momentum).flatten(1)) if parameter.ndim > 1 else None
            scale = {(4, 27): 2.0, (32, 16): 2.0}.get(None if update is None else tuple(update.shape), 0.0) ** 0.5
            decayed = parameter.detach() * (1 - 0.1 * 0.01)
            wanted.append(None if update is None else decayed - 0.1 * scale * update.view_as(parameter))
        for copy, parameter in zip(copies, both.parameters(), strict=True):
            copy.grad = parameter.grad.clone()
        optimizer.step()
        adam.step()
        for i, parameter in enumerate(both.parameters()):
            is_muons = i in (0, 2)  # the weights of the convolution and of the hidden layer
            expected = wanted[i] if is_muons else copies[i]
            th.testing.assert_close(parameter, expected, atol=1e-5, rtol=1e-5)
    assert all(not th.equal(a, b) for a, b in zip(before, both.parameters(), strict=True))


def test_a_students_hidden_weights_are_muons():
    policy = QPDDistiller(untrained(pointers()), **QUICK).policy
    muon, adam, heads = sorted(policy.optimizer.param_groups, key=lambda group: (not group["muon"], group["scale"]))
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    assert muon["muon"] and not adam["muon"] and not heads["muon"] and muon["lr"] == adam["lr"] == heads["lr"]
    assert {names[id(p)] for p in muon["params"]} == {
        name for name, p in policy.named_parameters() if name.startswith("features_extractor") and p.ndim > 1
    }
    assert {names[id(p)] for p in heads["params"]} == {"action_net.weight", "value_net.weight"}
    assert heads["scale"] == 16 / 8 and adam["scale"] == 1.0


def test_weights_decay_unless_there_are_images():
    def decay_of(env, policy="MlpPolicy", **more):
        policy = QPDDistiller(untrained(env, policy=policy), **QUICK, **more).policy
        return {group["weight_decay"] for group in policy.optimizer.param_groups if group["muon"]}

    assert decay_of(pointers()) == {0.1}
    assert decay_of(pointers(), policy_kwargs={"optimizer_kwargs": {"weight_decay": 0.0}}) == {0.0}
    assert decay_of(make_vec_env(Quadrant, 1), "CnnPolicy") == {0.0}


def test_students_without_hidden_layers_are_adams():
    policy = QPDDistiller(untrained(pointers()), **QUICK | {"student_arch": {"hidden": []}}).policy
    assert not any(group["muon"] for group in policy.optimizer.param_groups)


def test_another_optimizer_needs_its_own_learning_rate():
    adam = {"optimizer_class": th.optim.Adam}
    with pytest.raises(ValueError, match=r"learning_rate must be given with optimizer_class=Adam.*CosineSchedule\(2e-3\)"):
        QPDDistiller(untrained(pointers()), **QUICK, policy_kwargs=adam)
    student = QPDDistiller(untrained(pointers()), **QUICK, policy_kwargs=adam, learning_rate=2e-3)
    assert type(student.policy.optimizer) is th.optim.Adam
