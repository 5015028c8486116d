"""Files of ``policy.save()`` give the teacher that the live policy gives, and nothing in them is executed."""

import copy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from toys import QUICK, Anything, Strict

from sb3_qpd import QPDDistiller, TeacherError, load_teacher
from sb3_qpd.cli.sources import find_teacher

OFF = {"buffer_size": 9, "policy_kwargs": {"net_arch": [4]}}
PARTS = spaces.Dict({"joints": spaces.Box(-1, 1, (3,)), "picture": spaces.Box(0, 255, (1, 36, 36), np.uint8)})
SMALL = {"net_arch": [4], "features_extractor_kwargs": {"cnn_output_dim": 4}}
CASES: dict[str, tuple[type[Any], Any, dict[str, Any]]] = {
    "ppo": (PPO, "CartPole-v1", {}),
    "ppo, gSDE": (PPO, "Pendulum-v1", {"use_sde": True}),
    "ppo, own extractors": (
        PPO,
        Anything(PARTS, spaces.Discrete(3)),
        {"policy": "MultiInputPolicy", "policy_kwargs": {**SMALL, "share_features_extractor": False}},
    ),
    "maskable": (MaskablePPO, Strict(spaces.Box(-1, 1, (3,)), spaces.MultiDiscrete([2, 3])), {}),
    "dqn": (DQN, "CartPole-v1", OFF),
    "qrdqn": (QRDQN, "CartPole-v1", OFF),
    "sac": (SAC, "Pendulum-v1", OFF),
    "td3": (TD3, "Pendulum-v1", OFF),
    "tqc": (TQC, "Pendulum-v1", OFF),
    "crossq": (CrossQ, "Pendulum-v1", OFF),
    "ars": (ARS, "Pendulum-v1", {"policy_kwargs": {"net_arch": [4]}}),
}


def make(case: str) -> Any:
    algo, env, options = CASES[case]
    options = copy.deepcopy(options)  # SB3 adds to policy_kwargs
    return algo(**{"policy": "MlpPolicy", "env": env, "device": "cpu", "seed": 1, **options})


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_same_labels_as_the_live_policy(tmp_path: Path, case: str):
    model = make(case)
    if case == "ppo, own extractors":
        with th.no_grad():
            model.policy.vf_features_extractor.extractors["picture"].cnn[0].weight.mul_(2)
    model.policy.save(tmp_path / "policy.pth")
    teacher, live = (load_teacher(one, device="cpu") for one in (tmp_path / "policy.pth", model.policy))
    space = model.observation_space
    space.seed(0)
    samples = [space.sample() for _ in range(20)]
    x = (
        {key: np.stack([one[key] for one in samples]) for key in samples[0]}
        if case.endswith("extractors")
        else np.stack(samples)
    )
    ours, theirs = teacher(x), live(x)
    assert teacher.algo == live.algo and len(teacher.checksum) == 64
    for mine, expected in zip(ours, theirs, strict=True):
        assert (mine is None and expected is None) or th.equal(mine, expected)
    np.testing.assert_array_equal(*(one.predict(x, deterministic=True)[0] for one in (teacher, model.policy)))


def test_a_student_of_behavioural_cloning(tmp_path: Path):
    """The package ``imitation`` saves its students so: two layers of 32, no environment, no algorithm."""
    box = spaces.Box(-1, 1, (4,))
    policy = ActorCriticPolicy(box, spaces.Discrete(2), lambda _: 0.0, net_arch=[32, 32])
    policy.save(tmp_path / "bc")
    student = QPDDistiller(tmp_path / "bc", "CartPole-v1", n_envs=2, **QUICK).learn(64)
    assert student.teacher_name == "ppo/bc" and len(student.teacher_checksum) == 64
    assert find_teacher(str(tmp_path / "policy.pth").replace("policy.pth", "bc")) == str(tmp_path / "bc")


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda saved: saved["state_dict"], "not one of SB3's policy.save"),
        (lambda saved: {**saved, "more": 1}, "not one of SB3's policy.save"),
        (lambda saved: {**saved, "data": [1]}, "arguments as a dict"),
        (lambda saved: {**saved, "state_dict": {"action_net.weight": 1}}, "not a dict of named tensors"),
        (lambda saved: {**saved, "state_dict": {"mlp_extractor.x": th.zeros(2)}}, "no whole policy of SB3: .* mlp_extractor"),
        (lambda saved: {**saved, "state_dict": {"lstm_actor.x": th.zeros(2)}}, "no whole policy of SB3: .* lstm_actor"),
        (lambda saved: {**saved, "data": {**saved["data"], "student_arch": {}}}, "a student of this package"),
        (lambda saved: {**saved, "data": {**saved["data"], "net_arch": [5]}}, "contradict its spaces"),
        (lambda saved: {**saved, "data": {**saved["data"], "observation_space": 3}}, "not a space of gym"),
        (lambda saved: {**saved, "data": {**saved["data"], "own": 3}}, "policy_kwargs names 'own'"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path: Path, edit: Any, message: str):
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [4]})
    model.policy.save(tmp_path / "policy.pth")
    saved = th.load(tmp_path / "policy.pth", weights_only=False)
    th.save(edit(saved), tmp_path / "edited.pth")
    with pytest.raises(TeacherError, match=message):
        load_teacher(tmp_path / "edited.pth", device="cpu")


def test_weights_that_are_not_finite(tmp_path: Path):
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu", policy_kwargs={"net_arch": [4]})
    with th.no_grad():
        model.policy.action_net.bias[0] = float("nan")
    model.policy.save(tmp_path / "policy.pth")
    with pytest.raises(TeacherError, match="action_net.bias in .* holds NaN"):
        load_teacher(tmp_path / "policy.pth", device="cpu")


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda weights: weights.pop("lstm_actor.weight_hh_l0"), "lstm_hidden_size in policy_kwargs"),
        (lambda weights: weights.update({"lstm_actor.weight_hh_l0": th.tensor(1.0)}), "lstm_hidden_size in policy_kwargs"),
        (lambda weights: weights.update({"lstm_actor.weight_hh_l0": th.zeros(24, 7)}), "contradict"),
        (lambda weights: weights.update({"lstm_actor.weight_hh_l1": th.zeros(24, 6)}), "contradict"),
        (lambda weights: weights.pop("lstm_critic.bias_hh_l0"), "contradict"),
        (lambda weights: weights.update({"critic.weight": th.zeros(6, 4)}), "contradict"),
    ],
)
def test_lstms_that_do_not_fit(tmp_path: Path, edit: Any, message: str):
    kwargs = {"lstm_hidden_size": 6, "net_arch": [4]}
    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu", policy_kwargs=kwargs)
    model.policy.save(tmp_path / "policy.pth")
    saved = th.load(tmp_path / "policy.pth", weights_only=False)
    edit(saved["state_dict"])
    th.save(saved, tmp_path / "edited.pth")
    with pytest.raises(TeacherError, match=message):
        load_teacher(tmp_path / "edited.pth", device="cpu")


def test_the_byte_order_of_another_processor(tmp_path: Path):
    PPO("MlpPolicy", "CartPole-v1", device="cpu").policy.save(tmp_path / "policy.pth")
    with zipfile.ZipFile(tmp_path / "policy.pth") as source, zipfile.ZipFile(tmp_path / "big.pth", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    with pytest.raises(TeacherError, match="byte order of another kind of processor"):
        load_teacher(tmp_path / "big.pth", device="cpu")
