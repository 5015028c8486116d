"""A student's size by a budget: exact bytes, what is chosen, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_students
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO

from sb3_qpd import QPDDistiller, QuantActorCriticPolicy, StudentArch, load_student
from sb3_qpd.export.requirements import TARGETS
from sb3_qpd.integer import ObservationPart
from sb3_qpd.spaces import action_head, observation_parts
from sb3_qpd.students.budgets import (
    KERNELS,
    VECTOR_RULE,
    budget_nbytes,
    check_arch,
    check_budget,
    choose_arch,
    describe_choice,
    is_budget,
    next_budget,
)
from sb3_qpd.students.sizes import StudentTask, student_macs, student_nbytes

LUNAR_LANDER = StudentTask((ObservationPart("vector", (8,)),), 4)


def task_of(observation_space: spaces.Space, action_space: spaces.Space) -> StudentTask:
    head = action_head(action_space)
    return StudentTask(observation_parts(observation_space, normalized_image=True), head.n_outputs, head.is_box)


def draw_task(rng: np.random.Generator) -> tuple[spaces.Space, spaces.Space, StudentTask]:
    observation_space, action_space = random_students._observation_space(rng), random_students._action_space(rng)
    return observation_space, action_space, task_of(observation_space, action_space)


def build(observation_space: spaces.Space, action_space: spaces.Space, **options: Any) -> QuantActorCriticPolicy:
    return QuantActorCriticPolicy(observation_space, action_space, lambda _: 0.0, normalized_image=True, **options)


def images(*shape: int) -> StudentTask:
    return StudentTask((ObservationPart("image", shape),), 6)


def test_bytes_and_macs_of_a_student_are_known_before_it_is_built() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        observation_space, action_space, task = draw_task(rng)
        groups = [tuple(part for part in task.parts if not part.is_image), *((p,) for p in task.parts if p.is_image)]
        options = random_students._architecture(rng, [group for group in groups if group])
        policy = build(observation_space, action_space, **options)
        model = policy.to_integer()
        assert (student_nbytes(policy.arch, task), student_macs(policy.arch, task)) == (model.nbytes, model.macs), seed


def test_a_chosen_student_fits_and_can_be_exported() -> None:
    for seed in range(40):
        rng = np.random.default_rng(1000 + seed)
        observation_space, action_space, _ = draw_task(rng)
        n_bytes = int(10 ** rng.uniform(2.5, 4.7))
        try:
            policy = build(observation_space, action_space, student_arch=f"{n_bytes}B")
        except ValueError as error:
            smallest = int(str(error).split("takes ")[1].split(" bytes")[0].replace(",", ""))
            assert smallest > n_bytes
            n_bytes = smallest  # and this one there is
            policy = build(observation_space, action_space, student_arch=f"{n_bytes}B")
        model = policy.to_integer()
        assert model.nbytes <= n_bytes
        of_bits = [lack for name in TARGETS for lack in TARGETS[name].lacks(model) if "bits" in lack]
        assert not of_bits


SHAPES = [(8,), (24,), (376,), (4, 84, 84), (1, 7, 7), (3, 64, 48), (3, 210, 160), (3, 480, 640), (1, 1, 1), (2, 3, 40)]
TASKS = [
    *(
        StudentTask((ObservationPart("vector" if len(shape) == 1 else "image", shape),), n_outputs, is_box)
        for shape, (n_outputs, is_box) in itertools.product(SHAPES, [(2, False), (6, True), (18, False)])
    ),
    StudentTask((ObservationPart("vector", (5,), key="a"), ObservationPart("image", (3, 64, 48), key="b")), 4),
    StudentTask(
        (
            ObservationPart("float_image", (1, 7, 7), key="a"),
            ObservationPart("image", (3, 84, 84), key="b"),
            ObservationPart("one_hot", (2,), (3, 4), "c"),
        ),
        2,
        True,
    ),
]


@given(
    task=st.sampled_from(TASKS), bits=st.sampled_from([None, 8, 4, 3, 2]), n_bytes=st.integers(100, 200_000), data=st.data()
)
@settings(max_examples=150, deadline=None)
def test_a_larger_budget_gives_no_smaller_student(
    task: StudentTask, bits: int | None, n_bytes: int, data: st.DataObject
) -> None:
    more = data.draw(st.one_of(st.integers(n_bytes, n_bytes + 50), st.integers(n_bytes, 2 * n_bytes)))
    found = []
    for budget in (n_bytes, more):
        try:
            found.append(choose_arch(f"{budget}B", bits, None, task))
        except ValueError as error:
            assert "The smallest student takes" in str(error)
            found.append(None)
        else:
            assert student_nbytes(found[-1], task) <= budget
            assert bits in (None, found[-1].weight_bits)
    small, large = found
    if small is None:
        return
    assert large is not None
    if len(small.hidden) == len(large.hidden):  # another layer may take the place of a few units
        assert student_macs(small, task) <= student_macs(large, task)
    assert len(small.hidden) <= len(large.hidden) or task.image_shapes or small.hidden < (VECTOR_RULE[1].least,)


def test_nothing_wider_fits() -> None:
    arch = choose_arch("2kB", None, None, LUNAR_LANDER)
    assert arch == StudentArch(hidden=(31, 31))
    assert student_nbytes(StudentArch(hidden=(32, 32)), LUNAR_LANDER) > 2000 >= student_nbytes(arch, LUNAR_LANDER)


@pytest.mark.parametrize(
    ("budget", "hidden"),
    [("110B", (1,)), ("150B", ()), ("250B", (8,)), ("400B", (8, 8)), ("800B", (16, 16)), ("3kB", (41, 41))],
)
def test_vectors(budget: str, hidden: tuple[int, ...]) -> None:
    arch = choose_arch(budget, None, None, LUNAR_LANDER)
    assert (arch.hidden, arch.weight_bits, arch.activation_bits) == (hidden, 8, 8)


def test_the_size_of_tiny_gives_tiny_for_atari() -> None:
    arch = choose_arch("33kB", None, None, images(4, 84, 84))
    assert (arch.conv, arch.conv_hidden) == (((8, 8, 4), (16, 4, 2), (16, 3, 1)), (32,))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 7, 7), (3, 64, 48), (3, 16, 200), (3, 210, 160), (3, 480, 640), (3, 2160, 3840)]
)
def test_kernels_fit_images_of_any_size(shape: tuple[int, ...]) -> None:
    arch = choose_arch("40kB", None, None, images(*shape))
    assert student_nbytes(arch, images(*shape)) <= 40_000  # a ValueError where a kernel is larger than its input
    assert [layer[1:] for layer in arch.conv] in [list(kernels) for kernels in KERNELS]


def test_bits_of_the_user_stay() -> None:
    assert choose_arch("2kB", 4, None, LUNAR_LANDER) == StudentArch(hidden=(39, 39), weight_bits=4)
    assert choose_arch("2kB", 2, 4, LUNAR_LANDER) == StudentArch(hidden=(47, 47), weight_bits=2, activation_bits=4)
    assert choose_arch("2kB", (8, 4), None, LUNAR_LANDER).hidden == (106,)  # bits of two layers: one hidden layer
    with pytest.raises(ValueError, match="no student with as many layers as"):
        choose_arch("2kB", (8, 8, 8, 8, 8), None, LUNAR_LANDER)
    with pytest.raises(ValueError, match="32 bits are float"):
        choose_arch("2kB", 32, 32, LUNAR_LANDER)


def test_units_are_exact() -> None:
    cases = {"500B": 500, "2kB": 2000, "2KiB": 2048, "0.5kB": 500, ".5kB": 500, "1.001kB": 1001, "1MB": 10**6, "1MiB": 2**20}
    assert {budget: budget_nbytes(budget) for budget in cases} == cases
    assert budget_nbytes("0.5%", 19_984) == 99 and budget_nbytes("100%", 19_984) == 19_984
    assert [next_budget(one) for one in ("2kB", "0.25%", "60%", "40MB", "rm -rf", "2kB; ls")] == ["4kB", "0.5%", *[None] * 4]


@pytest.mark.parametrize(
    "budget",
    [
        "2 kb",
        "2kb",
        "2KB",
        " 2kB",
        "0%",
        "-3B",
        "200%",
        "1e9B",
        "0B",
        "0.5B",
        "65MB",
        "%",
        "5",
        "2",
        "1.B",
        "1kB2",
        "１kB",
        "0x1B",
    ],
)
def test_malformed_budgets(budget: str) -> None:
    assert is_budget(budget)
    with pytest.raises(ValueError, match="budget"):
        check_budget(budget)
    with pytest.raises(ValueError, match="budget"):
        check_arch(budget)


@pytest.mark.parametrize("name", ["nano", "tiny", "kB", "", {"hidden": [8]}, StudentArch()])
def test_names_are_no_budgets(name: object) -> None:
    assert not is_budget(name)


def test_a_budget_that_nothing_fits_names_the_smallest() -> None:
    least = "student_arch='99B' is 99 bytes. The smallest student takes 104 bytes, 0.52 % of the teacher"
    message = f'{least}: give student_arch={{"hidden": \\[1\\]}}'
    with pytest.raises(ValueError, match=message):
        choose_arch("99B", None, None, LUNAR_LANDER, teacher_nbytes=19_984)
    assert student_nbytes(choose_arch("104B", None, None, LUNAR_LANDER), LUNAR_LANDER) == 104


def test_stock_ppo_takes_bytes_and_refuses_a_percentage() -> None:
    policy = PPO(QuantActorCriticPolicy, "CartPole-v1", policy_kwargs={"student_arch": "300B"}, device="cpu").policy
    assert isinstance(policy, QuantActorCriticPolicy) and policy.arch.hidden == (8, 8) and policy.to_integer().nbytes <= 300
    with pytest.raises(ValueError, match="'1%' is a share of the teacher's actor, and there is no teacher here"):
        PPO(QuantActorCriticPolicy, "CartPole-v1", policy_kwargs={"student_arch": "1%"}, device="cpu")


def test_a_distiller_prints_and_keeps_what_it_chose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    options: dict[str, Any] = {"check_teacher": False, "device": "cpu"}
    student = QPDDistiller(teacher, student_arch="2%", verbose=1, **options)
    assert student.teacher is not None
    n_bytes = student.teacher.nbytes * 2 // 100
    chosen = describe_choice("2%", student.policy.arch, student._task, student.teacher.nbytes)
    assert student.policy.to_integer().nbytes <= n_bytes and chosen in capsys.readouterr().out
    assert f"of {n_bytes:,} bytes" in chosen
    student.save(tmp_path / "student.zip")
    for loaded in (QPDDistiller.load(tmp_path / "student.zip"), load_student(tmp_path / "student.zip")):
        assert loaded.policy.arch == student.policy.arch  # without a teacher
    with pytest.raises(ValueError, match="size and bits cannot change afterwards"):
        QPDDistiller.load(tmp_path / "student.zip", student_arch="2kB")
    same = {"student_arch": student.policy.arch.with_bits(4, None).asdict()}
    with pytest.raises(ValueError, match="size and bits cannot change afterwards"):
        QPDDistiller(teacher, student_arch="2%", policy_kwargs=same, **options)
