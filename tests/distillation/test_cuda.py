"""
A student on a GPU: in evaluation mode the CPU's bits, in training its numbers within the tolerances of
benchmarks/results/tables-speed.md.

Without a GPU only the tests on the meta device run, see devices.py.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from devices import OneDevice, needs_gpu
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from students import BITS, SPACES, TREATMENTS, make_student, some_observations, treat
from toys import BOX, DISCRETE, QUICK, Pointer, Quadrant, assert_equal_states, pointers, score, taught, untrained

from sb3_qpd import QPDDistiller, QuantActorCriticPolicy, evaluate
from sb3_qpd.distillation.buffers import DistillationSamples
from sb3_qpd.distillation.distiller import descend
from sb3_qpd.distillation.losses import BOX_LOSSES
from sb3_qpd.distillation.objective import distillation_loss
from sb3_qpd.students.transitions import TRANSITIONS, get_transition
from sb3_qpd.teachers.teacher import TeacherOutput

ON_GPU = {**QUICK, "device": "cuda"}
FAST = {"learning_rate": 2e-2}
OBSERVATIONS = Pointer.sample(200)


def picture_teacher() -> PPO:
    return untrained(make_vec_env(Quadrant, 4, seed=0), policy="CnnPolicy")


# each with the teacher's steps, and observations that no training has seen
TASKS: dict[str, tuple[Any, int, np.ndarray]] = {
    "vector, discrete": (taught, 2_000, OBSERVATIONS),
    "vector, Box": (lambda: taught("box"), 2_000, OBSERVATIONS),
    "image, discrete": (picture_teacher, 400, np.random.default_rng(0).integers(0, 256, (200, 3, 36, 36), np.uint8)),
}


# -- on the meta device -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("transition", [name for name in TRANSITIONS if name != "none"])
@pytest.mark.parametrize("where", SPACES)
def test_an_update_stays_on_its_device_and_waits_for_nothing(where, transition):
    student = make_student(*SPACES[where]).to("meta")
    actor, is_box = th.empty(8, student.action_net.out_features, device="meta"), student.head.is_box
    targets = TeacherOutput(actor, value=th.empty(8, device="meta"), log_std=actor if is_box else None)
    samples = DistillationSamples(th.empty(8, *SPACES[where][0].shape, device="meta"), targets)
    student.set_training_mode(True)
    with OneDevice():
        for progress in (0.0, 0.5, 1.0):
            student.set_precision(get_transition(transition), progress)
            for box_loss in BOX_LOSSES if is_box else ["huber"]:
                loss, _ = distillation_loss(student, samples, critic_coef=0.5, entropy_coef=0.1, box_loss=box_loss)
                descend(student.optimizer, loss, 10.0)
    assert all(p.grad is not None and p.grad.is_meta for p in student.parameters())


@pytest.mark.parametrize("where", SPACES)
def test_evaluation_mode_stays_on_its_device_and_waits_for_nothing(where):
    student = make_student(*SPACES[where]).to("meta")
    observations = th.empty(8, *SPACES[where][0].shape, device="meta")
    with OneDevice(), th.no_grad():
        outputs = [*student.actor_and_value(observations)]
        if not student.head.is_box:  # of a Box SB3 looks at its distribution first
            outputs.append(student._predict(observations, deterministic=True))
    assert all(one.is_meta for one in outputs)


# -- evaluation mode on a GPU: the same bits --------------------------------------------------------------------------


@th.no_grad()
def actor_on(policy: QuantActorCriticPolicy, observations: np.ndarray) -> np.ndarray:
    """Logits or means in evaluation mode, on the device where the policy is."""
    policy.set_training_mode(False)
    return policy.actor_and_value(policy.obs_to_tensor(observations)[0])[0].cpu().numpy()


def assert_same_on_gpu(policy: QuantActorCriticPolicy, observations: np.ndarray) -> None:
    """CPU, GPU and integer model: outputs bit for bit, and the actions."""
    on_gpu, integer = copy.deepcopy(policy).cpu().to("cuda"), policy.to_integer()
    assert next(on_gpu.parameters()).is_cuda
    expected = integer.logits(observations)
    for actor in (actor_on(policy.cpu(), observations), actor_on(on_gpu, observations)):
        assert actor.dtype == expected.dtype and actor.tobytes() == expected.tobytes()
    action = integer.predict(observations, deterministic=True)[0]
    np.testing.assert_array_equal(policy.predict(observations, deterministic=True)[0], action)
    np.testing.assert_array_equal(on_gpu.predict(observations, deterministic=True)[0], action)
    for one, other in zip(integer.layers, on_gpu.to_integer().layers, strict=True):
        for name in ("weight", "bias", "multiplier"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@needs_gpu
@pytest.mark.parametrize("treatment", ["none", *TREATMENTS])
@pytest.mark.parametrize("bits", ["W8A8", "W4A4", "W2A8"])
@pytest.mark.parametrize("where", SPACES)
def test_evaluation_mode_has_the_same_bits_on_a_gpu(where, bits, treatment):
    student = make_student(*SPACES[where], bits=BITS[bits])
    if treatment != "none":
        treat(student, treatment)
    assert_same_on_gpu(student, some_observations(SPACES[where][0]))


@needs_gpu
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("task", TASKS)
def test_a_distilled_student_has_the_same_bits_on_a_gpu(task, device, bits):
    make, n_steps, observations = TASKS[task]
    student = QPDDistiller(make(), **{**QUICK, "device": device}, weight_bits=bits, activation_bits=bits).learn(n_steps)
    assert_same_on_gpu(student.policy, observations)


# -- training on a GPU: within a tolerance ----------------------------------------------------------------------------


def gradient(student: QPDDistiller, policy: QuantActorCriticPolicy, samples: DistillationSamples) -> th.Tensor:
    """Of all parameters of a policy, flat, on the CPU."""
    device = policy.device
    targets = TeacherOutput(*(None if one is None else one.to(device) for one in samples.targets))
    policy.zero_grad()
    batch = DistillationSamples(samples.observations.to(device).float(), targets)
    loss, _ = distillation_loss(policy, batch, temperature=student._teacher_temperature, critic_coef=0.5)
    loss.backward()
    return th.cat([p.grad.flatten().cpu() for p in policy.parameters() if p.grad is not None])


@needs_gpu
@pytest.mark.parametrize(("tf32", "tolerance"), [(False, 1e-3), (True, 0.2)], ids=["float32", "TF32"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("task", TASKS)
def test_a_gradient_is_the_one_of_the_cpu(task, bits, tf32, tolerance, monkeypatch):
    """
    Of the same weights and the same batch, in norm. A last bit can round an activation to the next integer, and so a single
    batch may differ by more: the median of 20 counts. PyTorch's own default rounds convolutions to TF32.
    """
    make, n_steps, _ = TASKS[task]
    student = QPDDistiller(make(), **QUICK, weight_bits=bits, activation_bits=bits).learn(n_steps)
    on_gpu = copy.deepcopy(student.policy).to("cuda")
    monkeypatch.setattr(th.backends.cudnn, "allow_tf32", tf32)
    for progress in (0.0, 0.5, 1.0):
        distances = []
        for policy in (student.policy, on_gpu):
            policy.set_precision(get_transition("blend"), progress)
            policy.set_training_mode(True)
        for seed in range(20):
            samples = student._buffer.sample(128, np.random.default_rng(seed))
            ours = gradient(student, student.policy, samples)
            theirs = gradient(student, on_gpu, samples)
            distances.append(float((theirs - ours).norm() / ours.norm()))
        assert np.median(distances) < tolerance


@needs_gpu
def test_an_update_does_not_wait_for_the_gpu():
    for make, n_steps, _ in TASKS.values():
        student = QPDDistiller(make(), **ON_GPU).learn(n_steps)
        student.policy.set_training_mode(True)
        student._gradient_step(student._buffer.sample(64))  # whatever is made at the first call is made
        th.cuda.set_sync_debug_mode("error")
        try:
            student._gradient_step(student._buffer.sample(64))
        finally:
            th.cuda.set_sync_debug_mode("default")


@needs_gpu
def test_batches_teacher_and_student_stay_on_the_gpu():
    for make, n_steps, _ in TASKS.values():
        teacher = make()
        student = QPDDistiller(teacher, **ON_GPU).learn(n_steps)
        on_cpu = QPDDistiller(teacher, **QUICK).learn(n_steps)
        batch, expected = (one._buffer.sample(100, np.random.default_rng(0)) for one in (student, on_cpu))
        assert batch.observations.is_cuda and all(one.is_cuda for one in batch.targets if one is not None)
        assert batch.observations.stride() == expected.observations.stride()
        th.testing.assert_close(batch.observations.cpu(), expected.observations, rtol=0, atol=0)
        assert student.teacher.device.type == student.policy.device.type == "cuda"
        assert all(p.is_cuda for p in [*student.policy.parameters(), *student.teacher.policy.parameters()])
        assert {str(s.device) for state in student.policy.optimizer.state.values() for s in state.values() if s.dim()} == {
            "cuda:0"
        }


@needs_gpu
@pytest.mark.parametrize(("kind", "space"), [("discrete", DISCRETE), ("box", BOX)])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_student_learns_on_a_gpu_what_it_learns_on_the_cpu(kind, space, bits):
    """An environment whose observations do not depend on the actions: both students see the same ones in the same order."""
    teacher = taught(kind)
    options = {**FAST, "weight_bits": bits, "activation_bits": bits}
    students = [QPDDistiller(teacher, **{**base, **options}).learn(2_000) for base in (QUICK, ON_GPU)]
    seen = [student._buffer.newest(2_000).observations for student in students]
    th.testing.assert_close(*seen, rtol=0, atol=0)
    ours, theirs = (student.policy.predict(OBSERVATIONS, deterministic=True)[0] for student in students)
    if isinstance(space, spaces.Discrete):
        assert np.mean(ours == theirs) >= 0.9
    else:
        assert np.mean(np.abs(ours - theirs) / ((space.high - space.low) / 2)) <= 0.1
    returns = [score(student.policy.to_integer(), space) for student in students]
    assert returns[1] > 0.95 * returns[0]


@needs_gpu
def test_a_seed_gives_the_same_student_again_on_a_gpu():
    for make, n_steps, _ in TASKS.values():
        assert_equal_states(*(QPDDistiller(make(), **ON_GPU).learn(n_steps) for _ in range(2)))


# -- everything else that is done with a student ----------------------------------------------------------------------


@needs_gpu
def test_saved_on_a_gpu_and_loaded_on_the_cpu(tmp_path):
    for number, (make, n_steps, observations) in enumerate(TASKS.values()):
        student, path = QPDDistiller(make(), **ON_GPU).learn(n_steps), tmp_path / f"{number}.zip"
        student.save(path)
        expected = actor_on(student.policy, observations)
        loaded = {device: QPDDistiller.load(path, device=device) for device in ("cpu", "cuda")}
        for device, one in loaded.items():
            assert {value.device.type for value in one.policy.parameters()} == {device}
            assert actor_on(one.policy, observations).tobytes() == expected.tobytes()
        again = QPDDistiller.load(path, teacher=make(), device="cuda").learn(1_000)
        assert again._n_updates > student._n_updates


@needs_gpu
def test_what_comes_out_of_a_run_on_a_gpu_works_there():
    for make, n_steps, observations in TASKS.values():
        student = QPDDistiller(make(), **ON_GPU, entropy_coef=0.01).learn(n_steps)
        quantized, as_float = student.post_training_quantize(4, 4), student.float_student()
        assert_same_on_gpu(copy.deepcopy(quantized.policy), observations)
        for one in (student, quantized, as_float):
            assert next(one.policy.parameters()).is_cuda
            assert len(evaluate(one, student.env, n_episodes=2, deterministic=False).returns) == 2


@needs_gpu
def test_ppo_trains_the_policy_on_a_gpu(tmp_path):
    model = PPO(QuantActorCriticPolicy, pointers(), n_steps=16, batch_size=64, seed=0, device="cuda").learn(256)
    assert next(model.policy.parameters()).is_cuda and int(model.policy.n_batches) > 0
    model.policy.save(tmp_path / "policy.zip")
    assert_same_on_gpu(QuantActorCriticPolicy.load(tmp_path / "policy.zip", device="cuda"), OBSERVATIONS)
