"""Students with a memory: the window of observations is the same in the ring, the policy and the integers, across episodes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from memory import N_ENVS, SPACES, K, by_hand, episodes, flat, make_policy, observations_of
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from toys import BOX, QUICK, Anything, assert_equal_states, pointers, untrained

from sb3_qpd import IntegerModel, QPDDistiller, QuantActorCriticPolicy, StudentArch, evaluate, load_student
from sb3_qpd.distillation.buffers import DistillationBuffer
from sb3_qpd.distillation.inputs import clip_windows
from sb3_qpd.integer import StudentError
from sb3_qpd.observations import batch_size, take_rows
from sb3_qpd.spaces import observation_parts
from sb3_qpd.students.sizes import StudentTask, student_nbytes
from sb3_qpd.teachers.teacher import TeacherOutput


@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("kind", SPACES)
def test_policy_and_integers_are_equal_across_episodes(kind: str, requantization: str, tmp_path: Path) -> None:
    policy = make_policy(kind)
    model = policy.to_integer()
    model.requantization = requantization
    model.save(tmp_path / "student.npz")
    model, again = IntegerModel.load(tmp_path / "student.npz"), policy.to_integer()
    assert model.history == K and "4 of them" in repr(model)
    state = torch_state = own_state = None
    seen: list[np.ndarray] = []
    begun: list[np.ndarray] = []
    actions_seen = set()
    for observations, starts in episodes(kind):
        seen.append(flat(kind, observations))
        begun.append(starts)
        windows = th.as_tensor(by_hand(seen, begun))
        actions, state = model.predict(observations, state, starts, deterministic=True)
        with th.no_grad():
            policy.set_training_mode(False)
            expected = policy._predict(windows, deterministic=True).numpy().reshape(actions.shape)
        if SPACES[kind][1] is BOX:
            expected = expected.clip(BOX.low, BOX.high)
        if requantization == "float32":
            assert np.array_equal(actions, expected)
        before, _ = again.remember(observations, own_state, starts)
        own, own_state = policy.predict(observations, own_state, starts, deterministic=True)
        in_torch, torch_state = policy._predict_window(observations, torch_state, starts, True, None)
        assert np.array_equal(own, in_torch) and np.array_equal(own, expected)
        assert state[0].dtype == np.int8 and np.array_equal(own_state[0], state[0])
        assert torch_state[0].dtype == np.float64
        acc = again.accumulators(observations, before)
        features = policy.extract_features(windows)
        assert np.array_equal(acc, policy.action_net.accumulators(features).numpy())
        actions_seen.add(actions.tobytes())
    assert len(actions_seen) > 5
    single, one = model.predict(take_rows(observations, 0), None, deterministic=True)
    assert single.shape == actions[0].shape and one[0].shape == (1, K - 1, windows.shape[2])
    assert np.array_equal(single, model.predict(observations, deterministic=True)[0][0])
    assert np.array_equal(single, policy.predict(take_rows(observations, 0), None, deterministic=True)[0])


@pytest.mark.parametrize("bits", [8, 32])
def test_indices_that_are_no_category(bits: int) -> None:
    for kind, wrong in (("index", np.array([0, 5])), ("indices", np.array([[3, 0]])), ("dict", None)):
        policy = make_policy(kind, weight_bits=bits, activation_bits=bits)
        given = {**observations_of("dict", 2), "gear": np.array([1, 3])} if wrong is None else wrong
        with pytest.raises(ValueError, match="Expected .* of 0 to"):
            policy.predict(given)


@pytest.mark.parametrize("kind", SPACES)
def test_actions_between_the_observations_are_seen(kind: str, tmp_path: Path) -> None:
    """Windows of observations and actions by their definition, in torch, beside the states of policy and integers."""
    policy = make_policy(kind, history_actions=True)
    policy.to_integer().save(tmp_path / "student.npz")
    model, n_action = IntegerModel.load(tmp_path / "student.npz"), policy.head.n_outputs
    first = next(iter(policy.features_extractor.layers))
    n_inputs = model.layers[0].weight.shape[1]
    assert model.history_actions and n_inputs == first.weight.shape[1] - n_action and "actions between" in repr(model)
    assert student_nbytes(policy.arch, StudentTask(model.parts, n_action, model.is_box)) == model.nbytes
    state = own_state = torch_state = None
    rows: list[np.ndarray] = []
    begun: list[np.ndarray] = []
    differs = 0
    for observations, starts in episodes(kind):
        numbers = flat(kind, observations)
        rows.append(np.concatenate([numbers, np.full((N_ENVS, n_action), np.nan)], axis=1))
        begun.append(starts)
        windows = by_hand(rows, begun)
        before, _ = model.remember(observations, state, starts)
        actions, state = model.predict(observations, state, starts, deterministic=True)
        own, own_state = policy.predict(observations, own_state, starts, deterministic=True)
        in_torch, torch_state = policy._predict_window(observations, torch_state, starts, True, None)
        assert np.array_equal(own, actions) and np.array_equal(in_torch, actions)
        assert np.array_equal(state[0], own_state[0]) and state[0].shape[2] == numbers.shape[1] + n_action
        with th.no_grad():
            policy.set_training_mode(False)
            expected = policy.action_net.accumulators(policy.extract_features(th.as_tensor(windows))).numpy()
            again = policy.action_net.accumulators(policy.extract_features(policy.window_of(observations, before))).numpy()
        acc = model.accumulators(observations, before)
        assert np.array_equal(acc, expected) and np.array_equal(acc, again)
        rows[-1][:, -n_action:] = policy.encode_actions(actions)
        without = before.copy()
        without[:, :, -n_action:] = 0
        differs += int((model.accumulators(observations, without) != acc).any())
    assert differs > 10, "the actions have to matter"


def test_outliers_of_a_window_are_clipped_in_their_column() -> None:
    windows = th.as_tensor(flat("dict", observations_of("dict", 12)).reshape(3, K, -1))
    windows[0, 0] = th.nan
    ends = {"kind": "saturates", "low": -1.0, "high": 2.0}
    findings = [{**ends, "key": "pose", "index": 1}, {"kind": "few_levels", "feature": "pose[0]"}]
    clipped, expected = clip_windows(windows, findings, observation_parts(SPACES["dict"][0])), windows.clone()
    expected[..., -1] = expected[..., -1].clamp(-1, 2)
    assert th.equal(clipped.nan_to_num(99), expected.nan_to_num(99)) and not th.equal(clipped[1:], windows[1:])


def test_a_memory_matters_and_ends_with_the_episode() -> None:
    model = make_policy("box").to_integer()
    first, second = observations_of("box", 2, seed=5)
    _, state = model.predict(first[None], deterministic=True)
    with_memory = model.predict(second[None], state, np.zeros(1, bool), deterministic=True)[0]
    without = model.predict(second[None], state, np.ones(1, bool), deterministic=True)[0]
    assert not np.array_equal(with_memory, without)
    assert np.array_equal(without, model.predict(second[None], deterministic=True)[0])
    with pytest.raises(ValueError, match=r"Expected a state of int8 and shape \(1, 3, 4\), got int8 and \(2, 3, 4\)"):
        model.predict(first[None], (np.zeros((2, 3, 4), np.int8),))


def test_sampled_actions_take_the_window() -> None:
    policy, state = make_policy("discrete"), None
    for observations, starts in episodes("discrete", 12):
        with th.random.fork_rng():
            th.manual_seed(3)
            actions, after = policy.predict(observations, state, starts)
        before, expected_state = policy.to_integer().remember(observations, state, starts)
        outputs = policy.to_integer().accumulators(observations, before) * policy.to_integer().layers[-1].multiplier
        with th.random.fork_rng():
            th.manual_seed(3)
            expected = policy._sample(th.from_numpy(outputs.astype(np.float32)), None).numpy()
        assert np.array_equal(actions, expected) and np.array_equal(after[0], expected_state)
        state = after


def test_a_float_student_carries_raw_windows() -> None:
    policy = make_policy("box", weight_bits=32, activation_bits=32)
    state, seen, begun = None, [], []
    for observations, starts in episodes("box", 10):
        seen.append(flat("box", observations))
        begun.append(starts)
        actions, state = policy.predict(observations, state, starts, deterministic=True)
        with th.no_grad():
            expected = policy.actor_and_value(th.as_tensor(by_hand(seen, begun)))[0].numpy().reshape(actions.shape)
        assert np.array_equal(actions, expected.clip(BOX.low, BOX.high))
    with pytest.raises(ValueError, match="Expected a state of float64"):
        policy.predict(observations, (np.zeros((N_ENVS, K - 1, 4), np.int8),))


@pytest.mark.parametrize("kind", ["discrete", "bytes", "index", "dict"])
def test_the_ring_gives_windows_of_whole_episodes(kind: str) -> None:
    space, capacity = SPACES[kind][0], 2 * K * N_ENVS + N_ENVS
    buffer = DistillationBuffer(capacity, space, N_ENVS, seed=0, history=K)
    seen: list[np.ndarray] = []
    begun: list[np.ndarray] = []
    for observations, starts in episodes(kind, 60):
        seen.append(flat(kind, observations))
        begun.append(starts)
        ahead = buffer.window_of(observations, starts)
        expected = by_hand(seen, begun).astype(np.float32)
        assert ahead.dtype == np.float32 and np.array_equal(ahead, expected, equal_nan=True)
        labels = th.full((N_ENVS, 1), float(len(seen) - 1)) + th.arange(N_ENVS)[:, None] / 10
        buffer.add(observations, TeacherOutput(labels), starts)
    samples = buffer.sample(500)
    steps = np.floor(samples.targets.actor[:, 0].numpy()).astype(int)
    envs = np.rint(10 * (samples.targets.actor[:, 0].numpy() - steps)).astype(int)
    for window, step, env in zip(samples.observations.numpy(), steps, envs, strict=True):
        expected = by_hand(seen[: step + 1], begun[: step + 1])[env].astype(np.float32)
        assert np.array_equal(window, expected, equal_nan=True)
    assert len(set(steps)) > 3 and batch_size(buffer.newest(5).observations) == 5
    other = DistillationBuffer(capacity, space, N_ENVS, seed=0, history=K)
    position = other.position
    rows = {name: np.concatenate(parts) for name, parts in buffer.rows_since(position).items()}
    other.put_back(rows, TeacherOutput(labels))
    rngs = [np.random.default_rng(0) for _ in range(2)]
    samples = [one.sample(50, rng).observations for one, rng in zip((buffer, other), rngs, strict=True)]
    assert np.array_equal(*samples, equal_nan=True)
    ends = [one.window_of(observations, np.zeros(N_ENVS, bool)) for one in (other, buffer)]
    assert np.array_equal(*ends, equal_nan=True)
    with pytest.raises(ValueError, match="buffer_size must be at least 24"):
        DistillationBuffer(9, space, N_ENVS, history=K)


class Recall(gym.Env):
    """The right action is the one that the first of the last three observations names."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.seen = 0, [self._draw()]
        return self.seen[-1], {}

    def _draw(self) -> np.ndarray:
        return self.np_random.choice([-1.0, 1.0], 1).astype(np.float32)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        wanted = int(self.seen[max(0, len(self.seen) - 3)][0] > 0)
        self.seen.append(self._draw())
        self.t += 1
        return self.seen[-1], float(action == wanted), False, self.t >= 12, {}


@pytest.fixture(scope="module")
def recalling() -> QPDDistiller:
    """The student of a teacher that remembers, in an environment that needs it."""
    from sb3_contrib import RecurrentPPO

    env = make_vec_env(Recall, 8, seed=0)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=8, device="cpu", seed=0, policy_kwargs={"lstm_hidden_size": 4})
    student = QPDDistiller(model, **{**QUICK, "student_arch": {"hidden": [8]}}, history=3, batch_size=64, gradient_steps=0.1)
    student.teacher = _Oracle.of(student.teacher)
    return student.learn(6_000)


class _Oracle:
    """Labels by the rule of :class:`Recall`, with a state as a recurrent teacher has it."""

    @staticmethod
    def of(teacher: Any) -> Any:
        def label(observations: Any, state: Any, starts: Any, masks: Any = None) -> Any:
            newest = th.as_tensor(observations)
            before = th.zeros(len(newest), 2) if state is None else state[0]
            begins = th.as_tensor(starts)[:, None]
            before = th.where(begins, newest, before)  # the first observation stands for those before it
            wanted = before[:, :1] > 0
            logits = th.where(wanted, 3.0, -3.0)
            return TeacherOutput(th.cat([-logits, logits], 1), wanted[:, 0].float()), (th.cat([before[:, 1:], newest], 1),)

        teacher.label = label
        return teacher


def test_a_student_learns_what_needs_a_memory(recalling: QPDDistiller, tmp_path: Path) -> None:
    model = recalling.to_integer()
    assert evaluate(model, Recall(), n_episodes=20).return_mean > 11
    mean, _ = evaluate_policy(recalling, make_vec_env(Recall, 3, seed=9), n_eval_episodes=9)
    assert mean > 11
    recalling.save(tmp_path / "student.zip")
    for loaded in (QPDDistiller.load(tmp_path / "student.zip"), load_student(tmp_path / "student.zip")):
        assert loaded.policy.arch.history == loaded.history == 3
        assert_equal_states(loaded, recalling)
    with pytest.raises(ValueError, match="This student was built with"):
        QPDDistiller.load(tmp_path / "student.zip", history=2)
    callback = EvalCallback(make_vec_env(Recall, 2, seed=9), eval_freq=8, n_eval_episodes=4, verbose=0)
    recalling.learn(64, callback=callback)
    assert callback.best_mean_reward > 10


def test_history_by_name_budget_and_teacher() -> None:
    from sb3_contrib import RecurrentPPO

    teacher = untrained(pointers())
    task_bytes = {}
    for size in ("nano", "600B", {"hidden": [8, 8], "history": 5}, StudentArch((4,))):
        student = QPDDistiller(teacher, **{**QUICK, "student_arch": size}, history=6)
        model = student.to_integer()
        assert student.policy.arch.history == model.history == 6
        task_bytes[str(size)] = model.nbytes
    assert 500 < task_bytes["600B"] <= 600
    assert QPDDistiller(teacher, **{**QUICK, "student_arch": {"hidden": [8], "history": 5}}).policy.arch.history == 5
    assert QPDDistiller(teacher, **QUICK).policy.arch.history == 1
    recurrent = RecurrentPPO("MlpLstmPolicy", pointers(), n_steps=8, device="cpu", policy_kwargs={"lstm_hidden_size": 4})
    assert QPDDistiller(recurrent, **QUICK).policy.arch.history == 8
    assert QPDDistiller(recurrent, **QUICK, history=1).policy.arch.history == 1
    assert QPDDistiller(recurrent, **{**QUICK, "student_arch": StudentArch((4,), history=3)}).history == 3


def test_actions_of_the_history_by_argument() -> None:
    from sb3_contrib import RecurrentPPO

    teacher = untrained(pointers())
    for size in ("nano", "600B", {"hidden": [8, 8], "history": 5, "history_actions": True}):
        student = QPDDistiller(teacher, **{**QUICK, "student_arch": size}, history=6, history_actions=True)
        model = student.to_integer()
        assert model.history == 6 and model.history_actions and model.n_remembered == 3 and student.history_actions is True
        assert model.nbytes <= 600 or size != "600B"
    assert not QPDDistiller(teacher, **{**QUICK, "student_arch": size}, history_actions=False).policy.arch.history_actions
    recurrent = RecurrentPPO("MlpLstmPolicy", pointers(), n_steps=8, device="cpu", policy_kwargs={"lstm_hidden_size": 4})
    arch = QPDDistiller(recurrent, **QUICK, history_actions=True).policy.arch
    assert arch.history == 8 and arch.history_actions
    for env in (pointers(), pointers(BOX)):
        with pytest.raises(ValueError, match="needs a history of 2 or more, got history_actions=True, history=1"):
            QPDDistiller(untrained(env), **QUICK, history_actions=True)


def test_what_has_no_memory_is_refused_by_name() -> None:
    image = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    for space in (image, spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": image})):
        with pytest.raises(ValueError, match="history=2: .* these observations have images.* VecFrameStack"):
            arch = StudentArch((4,), ((2, 8, 4),), (4,), history=2)
            QuantActorCriticPolicy(space, spaces.Discrete(2), lambda _: 0.0, student_arch=arch)
        with pytest.raises(ValueError, match="history=2: .* these observations have images.* VecFrameStack"):
            QuantActorCriticPolicy(space, spaces.Discrete(2), lambda _: 0.0, student_arch=replace(arch, history_actions=True))
    for given in ({"history_actions": True}, {"history": 3, "history_actions": 1}):
        with pytest.raises(ValueError, match="history_actions is True or False, and needs a history of 2 or more"):
            StudentArch(**given)
    for history in (0, 65, 2.0, True):
        with pytest.raises(ValueError, match="^history takes an integer of 1 to 64"):
            StudentArch(history=history)
    policy_kwargs = {"student_arch": {"hidden": [4], "history": 2}}
    stock = PPO(QuantActorCriticPolicy, pointers(), n_steps=8, batch_size=8, device="cpu", policy_kwargs=policy_kwargs)
    with pytest.raises(ValueError, match=r"takes windows of shape \(2, 3\).* It learns with QPDDistiller alone"):
        stock.learn(8)


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), BOX])
def test_the_ring_stores_what_was_done(action_space: spaces.Space) -> None:
    env = make_vec_env(Anything, 2, env_kwargs={"observation_space": SPACES["box"][0], "action_space": action_space})
    arch = {"hidden": [4], "history": 3, "history_actions": True}
    student = QPDDistiller(untrained(env), **{**QUICK, "student_arch": arch}, batch_size=16, gradient_steps=0.1)
    taken: list[np.ndarray] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            taken.append(student.policy.encode_actions(self.locals["actions"]))
            return True

    student.learn(120, callback=Watch())
    n_action, store = student.policy.head.n_outputs, student._buffer._store
    windows = store.get(np.arange(120)).reshape(60, 2, 3, -1)
    for step in range(3, 60):
        for lag in (1, 2):
            row = windows[step, :, 2 - lag, -n_action:]
            is_seen = ~np.isnan(row).any(1)
            assert np.array_equal(row[is_seen], taken[step - lag][is_seen])
        assert np.isnan(windows[step, :, 2, -n_action:]).all()
    assert student.to_integer().history_actions
    if action_space is BOX:
        grid, done = student.policy.features_extractor.input_grid, np.concatenate(taken)
        assert np.abs((done - grid.mean[-n_action:].numpy()) / grid.std[-n_action:].numpy()).max() < 9
    assert student.policy.features_extractor.layers[0].weight[:, -n_action:].abs().max() < 1e-6


def test_students_without_a_memory_are_written_as_before(tmp_path: Path) -> None:
    assert "history" not in StudentArch().asdict() and "history" not in repr(StudentArch((3,)))
    assert StudentArch(history=2).asdict()["history"] == 2 and "history=2" in repr(StudentArch(history=2))
    model = QPDDistiller(untrained(pointers()), **QUICK).to_integer()
    model.save(tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as file:
        assert b"history" not in file["header"].tobytes()


@pytest.mark.parametrize("history", [0, -1, 3, 257, 2.0, True, "4", None])
def test_files_with_another_history_are_refused(history: Any, tmp_path: Path) -> None:
    import json

    model = make_policy("box").to_integer()
    model.save(tmp_path / "student.npz")
    with np.load(tmp_path / "student.npz") as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes())
    arrays["header"] = np.frombuffer(json.dumps({**header, "history": history}).encode(), np.uint8)
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(StudentError, match="history|inputs"):
        IntegerModel.load(tmp_path / "other.npz")


def test_other_bits_keep_the_memory() -> None:
    env = make_vec_env(Anything, 2, env_kwargs={"observation_space": SPACES["box"][0], "action_space": BOX})
    student = QPDDistiller(untrained(env), **QUICK, history=3, batch_size=16, gradient_steps=0.1).learn(200)
    assert student.float_student().policy.arch.history == 3
    assert student.post_training_quantize(4, 4).policy.arch.history == 3


def test_a_student_of_a_recurrent_teacher_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sb3_contrib import RecurrentPPO

    from sb3_qpd.cli import main

    path, out = tmp_path / "teacher.zip", tmp_path / "out"
    RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8, device="cpu", policy_kwargs={"lstm_hidden_size": 4}).save(path)
    given = ["--env", "CartPole-v1", "--timesteps", "256", "--no-check-teacher", "--episodes", "4", "--target", "onnx"]
    memory = ["--history", "3", "--history-actions"]
    assert main(["compress", str(path), *given, "--student-arch", "nano", "--out", str(out), *memory]) == 0
    model = IntegerModel.load(out / "student.npz")
    assert model.history == 3 and model.history_actions
    assert "history=3, history_actions=True" in repr(load_student(out))
    assert main(["verify", str(out), "--observations", "100"]) == 0
    output = capsys.readouterr().out
    assert "next_state" in output and "all equal where equality is promised" in output
    assert main(["evaluate", str(out), "--episodes", "3"]) == 0
