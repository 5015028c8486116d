"""Each mistake of a user gets one clear error, before any training starts."""

import math
from pathlib import Path

import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from toys import BOX, QUICK, Pointer, Quadrant, pointers, untrained

from sb3_qpd import QPDDistiller, load_teacher


@pytest.fixture(scope="module")
def cartpole_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "CartPole-v1.zip"
    untrained("CartPole-v1").save(path)
    return path


BAD_ARGUMENTS = [
    ({"student_arch": "tinny"}, "Unknown student_arch 'tinny'. Known: nano, tiny, .* Did you mean 'tiny'?"),
    ({"student_arch": {"hiden": [8]}}, "student_arch takes the fields 'hidden', .*; got .'hiden'."),
    ({"transition": "blent"}, "Unknown transition 'blent'. Known: none, scratch, .* Did you mean 'blend'?"),
    ({"box_loss": "hubert"}, "Unknown box_loss 'hubert'. Known: huber, squared_error, gaussian_kl. Did you mean 'huber'?"),
    ({"weight_bits": 9}, "Bits must be one of .*got weight_bits=9"),
    ({"weight_bits": 1}, "Bits must be one of .*got weight_bits=1"),
    ({"weight_bits": [8, 4]}, "weight_bits names 2 layers, this student has 3"),
    ({"activation_bits": 0}, "Bits must be one of .*activation_bits=0"),
    ({"transition_start": 0.8, "transition_end": 0.2}, "transition_start <= transition_end.*got transition_start=0.8"),
    ({"transition_end": 1.5}, "transition_end=1.5"),
    ({"transition_steps": 0}, "transition_steps must be .*got 0"),
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
    ({"student_temperature": 0.0}, "student_temperature must be a positive number, got 0.0"),
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
    """It is refused by the constructor, with the size that would fit."""
    with pytest.raises(
        ValueError, match="buffer_size=1000000000000000 needs 12,000,000.0 GB .* take a buffer_size of at most"
    ):
        QPDDistiller(untrained(pointers(n_envs=1)), buffer_size=10**15, **QUICK)


WRONG_CALLS = [
    (lambda t: QPDDistiller(t, "tiny"), ValueError, "env='tiny' is the name of a student's size: write student_arch='tiny'"),
    (lambda t: QPDDistiller(t, None, "nano"), ValueError, "policy='nano' is .* write student_arch='nano'"),
    (lambda t: QPDDistiller("MlpPolicy", "CartPole-v1"), ValueError, "first argument is the teacher, got .* 'MlpPolicy'"),
    (lambda t: QPDDistiller("CartPole-v1", t), TypeError, "second argument is the environment, got a PPO"),
    (lambda t: QPDDistiller(t, seed="a"), ValueError, "seed must be a whole number .*, got 'a'"),
    (lambda t: QPDDistiller(t, seed=-1), ValueError, "seed must be a whole number .*, got -1"),
    (lambda t: QPDDistiller(t, weight_bits="8"), ValueError, "Bits must be one of .*weight_bits='8'"),
    (lambda t: QPDDistiller(t, beta="all"), ValueError, "beta must be a share .*, got 'all'"),
    (lambda t: QPDDistiller(t, transition_start="0.5"), ValueError, "transition_start='0.5'"),
    (lambda t: QPDDistiller(t, max_grad_norm="1"), ValueError, "max_grad_norm must be positive, got '1'"),
    (lambda t: QPDDistiller(t, batch_size="64"), ValueError, "batch_size must be a whole number .*, got '64'"),
    (
        lambda t: QPDDistiller(t, device="gpu"),
        ValueError,
        "device='gpu' cannot be used on this machine: .* Give 'cpu' or 'auto'",
    ),
    (lambda t: QPDDistiller(t, "CartPole-v1", n_envs=100_000), ValueError, "n_envs must be at most 1024 .*got 100000"),
]


@pytest.mark.parametrize("call", range(len(WRONG_CALLS)))
def test_wrong_calls_say_what_is_meant(call):
    make, kind, message = WRONG_CALLS[call]
    with pytest.raises(kind, match=message):
        make(untrained("CartPole-v1"))


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    """SB3 would take the CPU and say nothing."""
    with pytest.raises(ValueError, match="device='cuda' cannot be used on this machine"):
        QPDDistiller(untrained(pointers(n_envs=1)), device="cuda")


def test_a_run_that_never_ends_is_refused():
    student = QPDDistiller(untrained(pointers(n_envs=1)), **QUICK)
    with pytest.raises(ValueError, match="total_timesteps must be at most 1e.10, got 1000000000000000.0: it would take years"):
        student.learn(1e15)


def test_a_student_of_vectors_shows_no_convolutions():
    for space_of, has_images in ((pointers(n_envs=1), False), (make_vec_env(Quadrant, 1), True)):
        policy = "CnnPolicy" if has_images else "MlpPolicy"
        student = QPDDistiller(untrained(space_of, policy=policy), student_arch="nano", device="cpu")
        assert ("conv=" in repr(student)) == has_images and "weight_bits=8, activation_bits=8" in repr(student)


def test_what_is_printed_fits_a_line_or_two():
    student = QPDDistiller(untrained(pointers(n_envs=2)), **QUICK).learn(40)
    assert "40 steps learned, 2 environments, on cpu" in repr(student) and len(repr(student)) < 300
    model = student.policy.to_integer()
    assert f"{model.nbytes:,} bytes" in repr(model) and len(repr(model)) < 200
    assert repr(model.layers[0]) == "IntegerLayer(8x3, W8A8)" and "head" in repr(model.layers[-1])


def test_an_environment_by_its_class():
    for env in (Pointer, lambda: Pointer(n_steps=3)):
        student = QPDDistiller(untrained(pointers(n_envs=2)), env, n_envs=3, **QUICK).learn(30)
        assert student.env.num_envs == 3


@pytest.mark.parametrize("total_timesteps", [0, -5, 0.5, float("nan"), float("inf"), "1e3", None])
def test_bad_timesteps(total_timesteps, tmp_path):
    student = QPDDistiller(untrained(pointers(n_envs=1)), tensorboard_log=str(tmp_path / "tb"), **QUICK)
    with pytest.raises(ValueError, match=f"total_timesteps must be a number of at least 1, got {total_timesteps!r}"):
        student.learn(total_timesteps)
    assert student.num_timesteps == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("folder", "reason"), [("log", "log is a file"), ("log/a/b", "b lies in .*log, which is a file")])
def test_a_file_in_place_of_the_folder_of_tensorboard(folder, reason, tmp_path):
    (tmp_path / "log").touch()
    with pytest.raises(ValueError, match=f"tensorboard_log .*{reason}. Expected a folder"):
        QPDDistiller(untrained(pointers(n_envs=1)), tensorboard_log=str(tmp_path / folder), **QUICK)


def test_teachers_that_cannot_teach(cartpole_zip):
    with pytest.raises(ValueError, match="needs a teacher .a zip, a run folder"):
        QPDDistiller()
    with pytest.raises(TypeError, match="Expected a path, a live SB3 model or a Teacher, got int"):
        QPDDistiller(5)
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


def test_a_run_without_a_gradient_step_is_named(cartpole_zip: Path) -> None:
    student = QPDDistiller(cartpole_zip, "CartPole-v1", batch_size=10**6, n_envs=2, **QUICK)
    with pytest.warns(UserWarning, match="40 environment steps at gradient_steps=1.6e-05 give no gradient step: "):
        student.learn(40)
    assert student._n_updates == 0
