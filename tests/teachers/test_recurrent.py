"""RecurrentPPO teachers: read as data, with labels from a state that follows each environment's episodes."""

import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toys import BOX, QUICK, Anything, Pointer, pointers

from sb3_qpd import QPDDistiller, Teacher, TeacherError, TeacherLabels, evaluate, load_teacher

SMALL: dict[str, Any] = {"lstm_hidden_size": 6, "net_arch": [5]}
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
PARTS = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(3)})
KINDS: dict[str, tuple[str, Any, Any, dict[str, Any], dict[str, Any]]] = {
    "own critic LSTM": ("MlpLstmPolicy", spaces.Box(-1, 1, (3,)), spaces.Discrete(3), {}, {}),
    "shared LSTM": (
        "MlpLstmPolicy",
        spaces.Box(-1, 1, (3,)),
        BOX,
        {"shared_lstm": True, "enable_critic_lstm": False},
        {"use_sde": True},
    ),
    "no critic LSTM": (
        "MlpLstmPolicy",
        spaces.Box(-1, 1, (3,)),
        spaces.MultiDiscrete([2, 3]),
        {"enable_critic_lstm": False, "n_lstm_layers": 2, "lstm_kwargs": {"bias": False, "dropout": 0.3}},
        {},
    ),
    "two extractors": ("MlpLstmPolicy", spaces.Box(-1, 1, (3,)), BOX, {"share_features_extractor": False}, {}),
    "images": ("CnnLstmPolicy", IMAGE, spaces.Discrete(4), {"features_extractor_kwargs": {"features_dim": 8}}, {}),
    "dict": ("MultiInputLstmPolicy", PARTS, spaces.MultiBinary(2), {"n_lstm_layers": 2}, {}),
}


class Restless(Anything):
    """Episodes of different lengths."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed, options=options)
        self.left = int(self.np_random.integers(1, 9))
        return found

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        self.left -= 1
        return observation, reward, self.left <= 0, False, {}


def make_model(kind: str, n_envs: int = 3) -> RecurrentPPO:
    policy, observations, actions, kwargs, options = KINDS[kind]
    env_kwargs = {"observation_space": observations, "action_space": actions}
    env = make_vec_env(Restless, n_envs, seed=0, env_kwargs=env_kwargs)
    model = RecurrentPPO(
        policy, env, n_steps=8, batch_size=8, device="cpu", seed=1, policy_kwargs={**SMALL, **kwargs}, **options
    )
    with th.no_grad():  # a new policy hardly answers to what it remembers
        for name, value in model.policy.named_parameters():
            if "log_std" not in name:
                value.normal_(std=0.7, generator=th.Generator().manual_seed(len(name)))
    return model


def play(teacher: Teacher, model: RecurrentPPO, n_steps: int = 40) -> None:
    """Whole episodes with SB3's state beside the teacher's: actions, values and states have the same bits."""
    env: Any = model.env
    observations, starts = env.reset(), np.ones(env.num_envs, bool)
    state, memory, states = None, None, None
    for _ in range(n_steps):
        actions, state = model.predict(observations, state, starts, deterministic=True)
        labels, memory = teacher.label(observations, memory, starts)
        assert all(np.array_equal(ours.numpy(), theirs) for ours, theirs in zip(memory[:2], state, strict=True))
        if teacher.head.is_box:
            played = np.clip(labels.actor.numpy(), env.action_space.low, env.action_space.high)
        else:
            played = teacher.head.best(labels.actor).numpy()
        assert np.array_equal(played, actions)
        with th.no_grad():
            tensors = model.policy.obs_to_tensor(observations)[0]
            if states is None:
                zeros = (th.zeros_like(memory[0]), th.zeros_like(memory[1]))
                states = RNNStates(zeros, zeros)
            _, values, _, states = model.policy(tensors, states, th.tensor(starts, dtype=th.float32))
        assert th.equal(labels.value, values.flatten())
        observations, _, starts, _ = env.step(actions)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_what_sb3_plays_on_whole_episodes(kind: str, tmp_path: Path) -> None:
    model = make_model(kind)
    model.save(tmp_path / "model")
    read = load_teacher(tmp_path / "model.zip", device="cpu")
    assert read.algo == "ppo_lstm" and read.has_memory
    play(read, model)
    play(load_teacher(model, device="cpu"), model)
    model.policy.save(tmp_path / "policy.pth")
    play(load_teacher(tmp_path / "policy.pth", device="cpu"), model)
    weights = {name for name, _ in read.policy.named_parameters() if "lstm_actor" in name}
    assert read.macs > sum(read.policy.get_parameter(name).numel() for name in weights if "weight" in name)
    assert read.n_parameters > sum(read.policy.get_parameter(name).numel() for name in weights)


def test_a_teacher_without_a_memory_has_no_state() -> None:
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", pointers(), n_steps=8, batch_size=8, device="cpu")
    teacher, observations = load_teacher(model), Pointer.sample(5)
    labels, state = teacher.label(observations, episode_start=np.ones(5, bool))
    assert state is None and not teacher.has_memory and th.equal(labels.actor, teacher(observations).actor)
    recurrent = RecurrentPPO("MlpLstmPolicy", pointers(), n_steps=8, device="cpu", policy_kwargs=SMALL)
    with pytest.raises(TypeError, match="has a memory, which a Teacher would pass over"):
        Teacher(recurrent.policy)


def test_an_own_class_is_labelled_by_its_distribution() -> None:
    class Sharp(RecurrentActorCriticPolicy):
        def get_distribution(self, *args: Any) -> Any:
            distribution, states = super().get_distribution(*args)
            return distribution.proba_distribution(-3 * distribution.distribution.logits), states

    model = RecurrentPPO(Sharp, pointers(), n_steps=8, device="cpu", seed=0, policy_kwargs=SMALL)
    teacher, state, played = load_teacher(model, device="cpu"), None, None
    for seed in range(3):
        observations = Pointer.sample(6, seed)
        labels, state = teacher.label(observations, state)
        actions, played = model.predict(observations, played, deterministic=True)
        assert np.array_equal(labels.actor.argmax(1).numpy(), actions)
    assert len(state) == 4


@pytest.mark.parametrize("action_space", [spaces.Discrete(3), BOX])
def test_the_state_follows_while_student_and_teacher_take_turns(action_space: spaces.Space) -> None:
    kwargs = {"observation_space": spaces.Box(-1, 1, (3,)), "action_space": action_space}
    env = make_vec_env(Restless, 4, seed=0, env_kwargs=kwargs)
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=8, device="cpu", seed=0, policy_kwargs=SMALL)
    student = QPDDistiller(model, **QUICK, batch_size=32, gradient_steps=0.1)
    teacher, seen = student.teacher, []
    label = teacher.label

    def watched(observations: Any, state: Any, starts: np.ndarray, masks: Any) -> Any:
        seen.append((observations.copy(), starts.copy()))
        return label(observations, state, starts, masks)

    teacher.label = watched
    student.learn(400)
    stored, state = student._buffer.labels("actor"), None
    assert len(stored) == 400 and sum(starts.sum() for _, starts in seen) > 40
    for step, (observations, starts) in enumerate(seen[1:]):  # the first call checks that labels are finite
        labels, state = label(observations, state, starts)
        assert np.array_equal(labels.actor.numpy(), stored[4 * step : 4 * step + 4])
    student.learn(40)  # all environments begin new episodes
    assert np.array_equal(label(seen[-10][0])[0].actor.numpy(), student._buffer.labels("actor")[400:404])


def test_a_wrapper_carries_the_state() -> None:
    model = make_model("own critic LSTM", n_envs=1)
    teacher = load_teacher(model, device="cpu")
    kwargs = {"observation_space": spaces.Box(-1, 1, (3,)), "action_space": spaces.Discrete(3)}
    env = TeacherLabels(Restless(**kwargs), teacher)
    observation, info = env.reset(seed=3)
    state, starts = None, np.ones(1, bool)
    for _ in range(20):
        logits, state = teacher.label(observation[None], state, starts)
        assert np.array_equal(info["teacher_logits"], logits.actor[0].numpy())
        observation, _, ended, _, info = env.step(0)
        starts = np.array([ended])
        if ended:
            observation, info = env.reset()


class Recall(gym.Env):
    """The reward is for the first observation of the episode, which only a memory knows. Episodes have different lengths."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 12))
        self.first = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.first, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        wanted = 2 * (self.first[0] > 0) + (self.first[1] > 0)
        return np.zeros(2, np.float32), float(action == wanted), self.left <= 0, False, {}


class Keeper:
    """Knows the first observation by its state."""

    def predict(self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        first = observation
        if state is not None:
            first = np.where(np.asarray(episode_start)[:, None], observation, state[0])
        return 2 * (first[:, 0] > 0) + (first[:, 1] > 0), (first,)


def test_evaluation_carries_the_state_in_all_environments() -> None:
    gym.register("Recall-v0", Recall)
    try:
        results = [evaluate(Keeper(), "Recall-v0", n_episodes=9, seed=5, n_envs=n_envs) for n_envs in (1, 3)]
    finally:
        del gym.registry["Recall-v0"]
    vec_env = make_vec_env(Recall, 3, seed=5)
    results.append(evaluate(Keeper(), vec_env, n_episodes=9, seed=5))
    assert all((result.returns == result.lengths).all() for result in results)
    assert (results[0].returns == results[1].returns).all() and results[0].distinct_returns > 3


def test_a_run_folder_of_rl_zoo(tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3")
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0), norm_reward=False)
    env.reset()
    model = RecurrentPPO("MlpLstmPolicy", env, n_steps=8, device="cpu", policy_kwargs={**SMALL, "activation_fn": th.nn.ReLU})
    model.learn(64)
    inner = tmp_path / "ppo_lstm" / "CartPoleNoVel-v1_1" / "CartPoleNoVel-v1"
    inner.mkdir(parents=True)
    model.save(inner.parent / "CartPoleNoVel-v1.zip")
    env.save(str(inner / "vecnormalize.pkl"))
    (inner / "args.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - env\n    - CartPoleNoVel-v1\n")
    (inner / "config.yml").write_text("normalize: true\nn_timesteps: 1000.0\npolicy: MlpLstmPolicy\n")
    teacher = load_teacher(inner.parent, device="cpu")
    assert teacher.name == "ppo_lstm/CartPoleNoVel-v1" and teacher.recipe.env_id == "CartPoleNoVel-v1"
    built = teacher.recipe.make_env()
    observation, _ = built.reset(seed=0)
    assert observation.shape == (4,) and observation[1] == observation[3] == 0
    model.set_env(env)
    raw = env.unnormalize_obs(env.reset())
    normalized, memory, state, starts = env.normalize_obs(raw), None, None, np.ones(2, bool)
    for _ in range(5):
        labels, memory = teacher.label(raw, memory, starts)
        actions, state = model.predict(normalized, state, starts, deterministic=True)
        assert np.array_equal(labels.actor.argmax(1).numpy(), actions)
        starts = np.zeros(2, bool)


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "many layers": ({"n_lstm_layers": 2**19}, "524290 layers"),
    "large": ({"lstm_hidden_size": 2**19}, "contradict its spaces and policy_kwargs"),
    "bidirectional": (
        {"lstm_kwargs": {"bidirectional": True}},
        "lstm_kwargs in policy_kwargs: Expected a dict of bias, dropout",
    ),
    "no number": ({"lstm_kwargs": {"dropout": "1"}}, "Expected a number"),
    "both": ({"shared_lstm": True}, "contradict each other"),
    "no flag": ({"enable_critic_lstm": 3}, "Expected True or False"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_contradict_themselves_are_refused(name: str, tmp_path: Path) -> None:
    path, edited = tmp_path / "model.zip", tmp_path / "edited.zip"
    RecurrentPPO("MlpLstmPolicy", pointers(), n_steps=8, device="cpu", policy_kwargs=SMALL).save(path)
    changes, message = HOSTILE[name]
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(edited, "w") as target:
        for member in archive.namelist():
            content = archive.read(member)
            if member == "data":
                data = json.loads(content)
                data["policy_kwargs"] = {**SMALL, **changes}
                content = json.dumps(data).encode()
            target.writestr(member, content)
    with pytest.raises(TeacherError, match=message):
        load_teacher(edited, device="cpu")
