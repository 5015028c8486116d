import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_qpd import AtariVecEnv
from sb3_qpd.distillation.buffers import DistillationBuffer, DistillationSamples
from sb3_qpd.teachers.teacher import TeacherOutput

IMAGE = spaces.Box(0, 255, (4, 6, 5), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float64)


class Game:
    """Frame stacks of games of random length; a lost life goes on with the stack, a new game begins with copies of a frame."""

    def __init__(self, n_envs: int, mean_length: float, seed: int = 0, first: str = "repeat") -> None:
        self.rng = np.random.default_rng(seed)
        self.mean_length, self.first = mean_length, first
        self.stacks = np.stack([self.new_game() for _ in range(n_envs)])

    def frame(self) -> np.ndarray:
        return self.rng.integers(0, 256, IMAGE.shape[1:], dtype=np.uint8)

    def new_game(self) -> np.ndarray:
        stack = np.repeat(self.frame()[None], 4, 0)
        if self.first == "zeros":  # as VecFrameStack does
            stack[:-1] = 0
        elif self.first == "fresh":
            stack = np.stack([self.frame() for _ in range(4)])
        return stack

    def step(self) -> np.ndarray:
        for i, stack in enumerate(self.stacks):
            if self.rng.random() < 1 / self.mean_length:
                self.stacks[i] = self.new_game()
            else:
                self.stacks[i] = np.concatenate([stack[1:], self.frame()[None]])
        return self.stacks.copy()


@pytest.mark.parametrize("missing", [("value",), ("log_std",), ("value", "log_std")], ids=str)
def test_what_a_teacher_does_not_say_stays_missing(missing):
    buffer = DistillationBuffer(6, VECTOR, 2)
    said = TeacherOutput(th.rand(2, 3), th.rand(2), th.rand(2, 3))._replace(**dict.fromkeys(missing))
    buffer.add(np.zeros((2, *VECTOR.shape)), said)
    for field, part in buffer.newest(2).targets._asdict().items():
        assert part is None if field in (*missing, "masks") else th.equal(part, getattr(said, field))


def labels(step: int, n_envs: int, log_std: bool = False) -> TeacherOutput:
    """Targets that tell which observation they belong to."""
    number = step * n_envs + th.arange(float(n_envs))
    actor = th.stack([number, -number], 1)
    return TeacherOutput(actor, number, actor / 2 if log_std else None)


def fill(buffer: DistillationBuffer, observations: list[np.ndarray], log_std: bool = False) -> None:
    for step, batch in enumerate(observations):
        buffer.add(batch, labels(step, len(batch), log_std))


def assert_right(samples: DistillationSamples, observations: list[np.ndarray]) -> np.ndarray:
    """Each sample is the observation that its label names. Returns the labels."""
    numbers = samples.targets.value.numpy().astype(int)
    everything = np.concatenate(observations)
    np.testing.assert_array_equal(samples.observations.numpy(), everything[numbers])
    np.testing.assert_array_equal(samples.targets.actor.numpy(), np.stack([numbers, -numbers], 1))
    return numbers


@pytest.mark.parametrize("first", ["repeat", "zeros", "fresh"])
@pytest.mark.parametrize("mean_length", [1.0, 1.5, 3.0, 50.0, np.inf])
@pytest.mark.parametrize(("capacity", "n_envs"), [(60, 3), (64, 1), (64, 8), (200, 8)])
def test_every_stack_comes_back_bit_for_bit(capacity, n_envs, mean_length, first):
    """Through several turns of the ring, across ends of games, with games shorter than a stack."""
    game = Game(n_envs, mean_length, first=first)
    buffer = DistillationBuffer(capacity, IMAGE, n_envs, seed=0, stacked=True)
    observations = [game.stacks.copy()]
    observations += [game.step() for _ in range(3 * capacity // n_envs + 2)]
    for step, batch in enumerate(observations):
        buffer.add(batch, labels(step, n_envs))
        if step % 7 == 0:
            samples = buffer.sample(50)
            assert samples.observations.shape == (50, *IMAGE.shape) and samples.observations.dtype == th.uint8
            numbers = assert_right(samples, observations)
            assert numbers.min() > step * n_envs - capacity
            assert_right(buffer.newest(10), observations)


def test_all_that_is_kept_can_be_drawn():
    game, n_envs, capacity = Game(4, 20), 4, 80
    buffer = DistillationBuffer(capacity, IMAGE, n_envs, seed=0, stacked=True)
    observations = [game.step() for _ in range(50)]
    fill(buffer, observations)
    assert len(buffer) == capacity
    numbers = assert_right(buffer.sample(4000), observations)
    assert set(numbers) == set(range(120, 200))
    # uniformly
    counts = np.bincount(numbers - 120)
    assert counts.min() > 20 and counts.max() < 90


def test_stacked_and_plain_buffers_draw_the_same():
    game = Game(2, 10)
    observations, batches = [game.step() for _ in range(60)], []
    for stacked in (False, True):
        buffer = DistillationBuffer(40, IMAGE, 2, seed=7, stacked=stacked)
        fill(buffer, observations)
        batches.append(buffer.sample(100))
    assert th.equal(batches[0].observations, batches[1].observations)
    assert th.equal(batches[0].targets.actor, batches[1].targets.actor)


def test_frames_of_a_real_game_through_lost_lives_and_new_games():
    env = AtariVecEnv("BreakoutNoFrameskip-v4", 4, seed=0, terminal_on_life_loss=True)
    buffer = DistillationBuffer(400, env.observation_space, 4, seed=0, stacked=True)
    rng, observations, n_lives = np.random.default_rng(0), [env.reset()], 0
    for _ in range(200):
        batch, _, dones, _ = env.step(rng.integers(0, 4, 4))
        n_lives += sum(dones)
        observations.append(batch)
    env.close()
    assert n_lives > 5
    fill(buffer, observations)
    assert_right(buffer.sample(500), observations)


def test_a_step_of_an_atari_game_costs_about_a_frame():
    space, capacity = spaces.Box(0, 255, (4, 84, 84), np.uint8), 10_000
    stacked, plain = (DistillationBuffer(capacity, space, 8, stacked=stacked) for stacked in (True, False))
    batch = np.zeros((8, 4, 84, 84), np.uint8)
    for buffer in (stacked, plain):
        buffer.add(batch, TeacherOutput(th.zeros(8, 6), th.zeros(8)))
    assert plain.nbytes / capacity > 28_000
    assert 7_000 < stacked.nbytes / capacity < 8_300


def test_very_short_games_take_room_but_never_break_a_sample():
    """Each observation is new: only the last part of the ring still has its frames."""
    game, n_envs = Game(4, 1.0, first="fresh"), 4
    buffer = DistillationBuffer(400, IMAGE, n_envs, seed=0, stacked=True)
    observations = [game.step() for _ in range(300)]
    fill(buffer, observations)
    numbers = assert_right(buffer.sample(1000), observations)
    assert 1100 - 20 < numbers.min() + 20 and len(set(numbers)) > 100
    newest = assert_right(buffer.newest(400), observations)
    assert newest.max() == 1199 and len(newest) > 100


@pytest.mark.parametrize("log_std", [False, True])
@pytest.mark.parametrize("space", [VECTOR, spaces.Box(0, 255, (3,), np.uint8)], ids=["float64", "uint8"])
def test_vectors_and_targets(space, log_std):
    rng = np.random.default_rng(0)
    observations = [(100 * rng.random((2, 3))).astype(space.dtype) for _ in range(30)]
    buffer = DistillationBuffer(20, space, 2, seed=0)
    fill(buffer, observations, log_std)
    samples = buffer.sample(640)
    kept = [batch.astype(np.float32 if space.dtype == np.float64 else np.uint8) for batch in observations]
    numbers = assert_right(samples, kept)
    assert set(numbers) == set(range(40, 60))
    if log_std:
        assert th.equal(samples.targets.log_std, samples.targets.actor / 2)
    else:
        assert samples.targets.log_std is None
    assert all(t.dtype == th.float32 for t in samples.targets if t is not None)


def test_same_seed_same_samples():
    game = Game(2, 10)
    observations, batches = [game.step() for _ in range(20)], []
    for seed in (0, 0, 1):
        buffer = DistillationBuffer(40, IMAGE, 2, seed=seed, stacked=True)
        fill(buffer, observations)
        batches.append(buffer.sample(50).targets.value)
    assert th.equal(batches[0], batches[1]) and not th.equal(batches[0], batches[2])


def test_samples_are_copies():
    buffer = DistillationBuffer(10, VECTOR, 2, seed=0)
    batch = np.ones((2, 3))
    buffer.add(batch, labels(0, 2))
    batch[:] = 7
    samples = buffer.sample(4)
    samples.observations.fill_(-1)
    assert (buffer.sample(4).observations == 1).all()


def test_newest_come_in_order_and_are_never_more_than_there_are():
    buffer = DistillationBuffer(12, VECTOR, 2, seed=0)
    observations = [np.full((2, 3), i, np.float32) for i in range(9)]
    buffer.add(observations[0], labels(0, 2))
    assert buffer.newest(100).targets.value.tolist() == [0, 1]
    for step in range(1, 9):
        buffer.add(observations[step], labels(step, 2))
    assert buffer.newest(5).targets.value.tolist() == [13, 14, 15, 16, 17]
    assert assert_right(buffer.newest(100), observations).tolist() == list(range(6, 18))


def test_size_is_rounded_up_to_whole_steps():
    buffer = DistillationBuffer(10, VECTOR, 4)
    assert (buffer.capacity, len(buffer)) == (12, 0)


def test_an_empty_buffer_has_nothing_to_sample():
    with pytest.raises(ValueError, match="The buffer is empty"):
        DistillationBuffer(10, VECTOR, 2).sample(4)
