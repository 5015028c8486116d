"""Each mistake of a user gets one clear error, before any training starts."""

import math
from pathlib import Path

import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from toys import BOX, QUICK, Pointer, pointers, untrained

from sb3_qpd import QPDDistiller, TeacherError, load_teacher


@pytest.fixture(scope="module")
def cartpole_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "CartPole-v1.zip"
    untrained("CartPole-v1").save(path)
    return path


BAD_ARGUMENTS = [
    ({"student_arch": "tinny"}, "Unknown student_arch 'tinny'. Known: nano, tiny, .* Did you mean 'tiny'?"),
    ({"student_arch": {"hiden": [8]}}, "student_arch takes the fields hidden, .*; got .'hiden'."),
    ({"transition": "blent"}, "Unknown transition 'blent'. Known: none, scratch, .* Did you mean 'blend'?"),
    ({"box_loss": "hubert"}, "box_loss must be one of .*huber.*, got 'hubert'"),
    ({"weight_bits": 9}, "Bits must be one of .*got weight_bits=9"),
    ({"weight_bits": 1}, "Bits must be one of .*got weight_bits=1"),
    ({"weight_bits": [8, 4]}, "weight_bits names 2 layers, this student has 3"),
    ({"activation_bits": 0}, "Bits must be one of .*activation_bits=0"),
    ({"transition_start": 0.8, "transition_end": 0.2}, "transition_start <= transition_end.*got transition_start=0.8"),
    ({"transition_end": 1.5}, "transition_end=1.5"),
    ({"transition_start": float("nan")}, "transition_start=nan"),
    ({"beta": 1.5}, "between 0 and 1, got 1.5"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
    ({"batch_size": 0.5}, "batch_size must be a whole number of at least 1, got 0.5"),
    ({"buffer_size": -1}, "buffer_size must be a whole number of at least 1, got -1"),
    ({"buffer_size": float("inf")}, "buffer_size must be a whole number of at least 1, got inf"),
    ({"n_envs": 0, "env": "CartPole-v1"}, "n_envs must be a whole number of at least 1, got 0"),
    ({"n_envs": -1, "env": "CartPole-v1"}, "n_envs must be a whole number of at least 1, got -1"),
    ({"gradient_steps": 0}, "gradient_steps must be a positive number, got 0"),
    ({"temperature": float("nan")}, "temperature must be a positive number, got nan"),
    ({"critic_coef": float("nan")}, "critic_coef must be a number of at least 0, got nan"),
    ({"critic_coef": -1}, "critic_coef must be a number of at least 0, got -1"),
    ({"entropy_coef": float("inf")}, "entropy_coef must be a number of at least 0, got inf"),
    ({"learning_rate": 1e30}, "learning_rate must be a number between 0 and 1 or a schedule, got 1e.30"),
    ({"learning_rate": float("nan")}, "learning_rate must be .*, got nan"),
    ({"max_grad_norm": 0}, "max_grad_norm must be positive, got 0"),
    ({"policy_kwargs": {"net_arch": [64]}}, "net_arch=.*sizes go into student_arch"),
    (
        {"policy_kwargs": {"student_arch": "small"}},
        "built with .*32, 32.* and the arguments ask for .*16, 16.*not in policy_kwargs",
    ),
    ({"env": "CartPol-v1"}, "CartPole-v1"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS, ids=[str(case[0]) for case in BAD_ARGUMENTS])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        QPDDistiller(untrained(pointers(n_envs=1)), **arguments)


def test_whole_numbers_may_be_floats():
    """As RL Zoo's entries have them."""
    settings = {"batch_size": 32.0, "buffer_size": 1e3, "n_envs": 2.0, "learning_starts": 16.0, "max_grad_norm": math.inf}
    student = QPDDistiller(untrained("CartPole-v1"), "CartPole-v1", **settings, **QUICK).learn(64)
    assert student.n_envs == 2 and student._n_updates > 0


def test_a_buffer_that_no_machine_holds():
    student = QPDDistiller(untrained(pointers(n_envs=1)), buffer_size=10**15, **QUICK)
    with pytest.raises(MemoryError, match="Unable to allocate .*: take a smaller buffer_size than 1000000000000000"):
        student.learn(32)


@pytest.mark.parametrize("total_timesteps", [0, -5, 0.5, float("nan"), float("inf"), "1e3", None])
def test_bad_timesteps(total_timesteps, tmp_path):
    student = QPDDistiller(untrained(pointers(n_envs=1)), tensorboard_log=str(tmp_path / "tb"), **QUICK)
    with pytest.raises(ValueError, match=f"total_timesteps must be a number of at least 1, got {total_timesteps!r}"):
        student.learn(total_timesteps)
    assert student.num_timesteps == 0 and not list(tmp_path.iterdir())


def test_teachers_that_cannot_teach(cartpole_zip):
    with pytest.raises(ValueError, match="needs a teacher .a zip, a run folder"):
        QPDDistiller()
    with pytest.raises(TypeError, match="Expected a path, a live SB3 model or a Teacher, got int"):
        QPDDistiller(5)
    with pytest.raises(TeacherError, match="recurrent"):
        QPDDistiller(RecurrentPPO("MlpLstmPolicy", Pointer(), n_steps=8, device="cpu"))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        QPDDistiller("nowhere.zip", env="CartPole-v1")


def test_learning_needs_a_teacher_and_an_environment(cartpole_zip):
    with pytest.raises(ValueError, match="learn.. needs a teacher"):
        QPDDistiller(env="CartPole-v1", n_envs=1, **QUICK).learn(10)


def test_environments_that_are_not_the_teachers(cartpole_zip):
    with pytest.raises(ValueError, match=r"observations are not the teacher's.\nteacher: .*\(4,\).*\nenvironment: .*\(3,\)"):
        QPDDistiller(cartpole_zip, Pointer(), **QUICK)
    teacher = untrained(Pointer())
    for action_space in (spaces.Discrete(4), BOX):
        with pytest.raises(ValueError, match=r"actions are not the teacher's.\nteacher: .*Discrete\(3\)\nenvironment: "):
            QPDDistiller(teacher, Pointer(action_space), **QUICK)
    with pytest.raises(ValueError, match=r"actions are not the teacher's.\nteacher: .*-3.*7.*\nenvironment: .*-1.*7"):
        QPDDistiller(untrained(Pointer(BOX)), Pointer(spaces.Box(-1, 7, (2,))), **QUICK)


@pytest.mark.parametrize("check", [True, False])
def test_a_teacher_that_says_nan(check):
    teacher = load_teacher(untrained(pointers(n_envs=2)))
    with th.no_grad():
        teacher.policy.action_net.bias[0] = float("nan")
    student = QPDDistiller(teacher, **{**QUICK, "check_teacher": check})
    with pytest.raises(ValueError, match="The teacher's output holds NaN or infinity"):
        student.learn(32)
    assert student.num_timesteps == 0 and student._n_updates == 0
