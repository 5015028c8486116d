"""Every algorithm on every space that it supports, Dict observations, action masks, and the pipelines around observations."""

import json
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_with_masks
from sb3_contrib.common.wrappers import ActionMasker, TimeFeatureWrapper
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from toys import QUICK, Anything, Strict, assert_same_bits, assert_saves_and_loads, sample

from sb3_qpd import (
    AtariVecEnv,
    EnvRecipe,
    IntegerModel,
    QPDDistiller,
    QuantActorCriticPolicy,
    QuantMultiInputActorCriticPolicy,
    TeacherError,
    TeacherLabels,
    evaluate,
    load_teacher,
)
from sb3_qpd.distillation import losses
from sb3_qpd.distillation.objective import distillation_loss
from sb3_qpd.envs.inspection import pipeline_of, stacks_frames
from sb3_qpd.evaluation.agreement import agreement
from sb3_qpd.evaluation.comparison import make_report, plan_evaluation
from sb3_qpd.players import ObservationRecorder
from sb3_qpd.teachers.labels import channels_first

IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
OBSERVATIONS: dict[str, spaces.Space] = {
    "vector": spaces.Box(-1, 1, (3,)),
    "matrix": spaces.Box(-1, 1, (2, 3), np.float64),
    "image": IMAGE,
    "image, channels first": spaces.Box(0, 255, (1, 40, 36), np.uint8),
    "float image": spaces.Box(0, 1, (2, 36, 36)),
    "Discrete": spaces.Discrete(5),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(4),
    "Dict": spaces.Dict(
        {
            "camera": IMAGE,
            "joints": spaces.Box(-9, 9, (3,)),
            "gear": spaces.Discrete(4),
            "buttons": spaces.MultiDiscrete([2, 3]),
        }
    ),
    "Dict of vectors": spaces.Dict({"b": spaces.Box(-1, 1, (2,)), "a": spaces.MultiBinary(2)}),
}
ACTIONS: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(3),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-3, 7, (2,)),
}
ON_POLICY, OFF_POLICY, Q_VALUE = (A2C, PPO, TRPO), (SAC, TQC, TD3, DDPG), (DQN, QRDQN)
NO_IMAGES = [name for name in OBSERVATIONS if "image" not in name and "Dict" not in name]
CASES: list[tuple[Any, str, str]] = [
    *((algo, "vector", action) for algo in ON_POLICY for action in ACTIONS if action != "Discrete"),
    *((MaskablePPO, "vector", action) for action in ("MultiDiscrete", "MultiBinary")),
    *((algo, name, "Discrete") for algo in (*ON_POLICY, MaskablePPO, *Q_VALUE) for name in OBSERVATIONS),
    *((algo, name, "Box") for algo in OFF_POLICY for name in OBSERVATIONS),
    *((CrossQ, name, "Box") for name in NO_IMAGES),
    *((ARS, name, "Discrete") for name in NO_IMAGES),
    (ARS, "vector", "Box"),
]

pytestmark = pytest.mark.filterwarnings(
    "ignore:The teacher is not clearly above", "ignore:You have specified a mini-batch", "ignore:.*has no action_masks"
)


@pytest.fixture(autouse=True, scope="module")
def few_observations_to_calibrate_with() -> Iterator[None]:
    """A run of 40 steps has no more to draw from, and a thousand images five times over take most of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_qpd.distillation.precision.CALIBRATION_SIZE", 64)
        yield


def policy_of(space: spaces.Space) -> tuple[str, dict[str, Any]]:
    """SB3's policy for observations, small."""
    if isinstance(space, spaces.Dict):
        options = {"features_extractor_kwargs": {"cnn_output_dim": 8}} if "camera" in space.spaces else {}
        return "MultiInputPolicy", {"net_arch": [8], **options}
    if len(space.shape or ()) < 3:
        return "MlpPolicy", {"net_arch": [8]}
    if space.dtype == np.uint8:
        return "CnnPolicy", {"net_arch": [8], "features_extractor_kwargs": {"features_dim": 8}}
    extractor = {"features_extractor_kwargs": {"features_dim": 8, "normalized_image": True}}
    return "CnnPolicy", {"net_arch": [8], "normalize_images": False, **extractor}


def train(algo: Any, env: Any, n_steps: int = 32, **kwargs: Any) -> Any:
    """Weights that are no longer those of the initialization; thousands of steps would show no more, at a minute a case."""
    settings: dict[str, Any] = {"n_delta": 1, "n_top": 1} if algo is ARS else {"n_steps": 32}
    if algo in (*OFF_POLICY, *Q_VALUE, CrossQ):
        settings = {"learning_starts": 16, "batch_size": 8, "buffer_size": 100, "train_freq": 16}
    elif algo is not ARS and algo is not A2C:
        settings["batch_size"] = 32
    policy, policy_kwargs = policy_of(env.observation_space)
    if algo in (PPO, MaskablePPO):
        settings["n_epochs"] = 2
    if algo is TRPO:
        settings |= {"n_critic_updates": 2, "cg_max_steps": 3}
    model = algo(policy, env, seed=0, device="cpu", policy_kwargs=policy_kwargs, **settings, **kwargs)
    return model.learn(n_steps, **({"use_masking": isinstance(env, Strict)} if algo is MaskablePPO else {}))


def distill(teacher: Any, n_steps: int = 80, **kwargs: Any) -> QPDDistiller:
    return QPDDistiller(teacher, **{**QUICK, "batch_size": 32, **kwargs}).learn(n_steps)


@pytest.mark.slow
@pytest.mark.parametrize("algo, observation, action", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_every_algorithm_on_every_space(algo, observation, action, tmp_path):
    model = train(algo, Anything(OBSERVATIONS[observation], ACTIONS[action]))
    model.save(tmp_path / "model.zip")
    teacher = load_teacher(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    observations = sample(model.observation_space, 50)
    expected = model.predict(observations, deterministic=True)[0]
    # the teacher's images are channels-last in memory, and its convolutions round differently then
    np.testing.assert_allclose(teacher.predict(observations, deterministic=True)[0], expected, atol=1e-5)
    labels = teacher(observations)
    if action == "Box":
        np.testing.assert_allclose(np.clip(labels.actor.numpy(), -3, 7), expected, atol=1e-4)
    else:
        np.testing.assert_array_equal(teacher.head.best(labels.actor).numpy(), expected)
    assert teacher.macs > 0
    student = distill(teacher, 40, gradient_steps=0.2)
    assert student._n_updates == 8
    assert_saves_and_loads(student, tmp_path, observations)
    assert_same_bits(student.post_training_quantize(4, 4).policy, observations)


# --- action masks ---
MASKED = {
    "Discrete": spaces.Discrete(6),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2, 4]),
    "MultiBinary": spaces.MultiBinary(3),
}


@pytest.fixture(scope="module", params=MASKED)
def masked(request) -> QPDDistiller:
    """A student where an action that is not allowed is an error."""
    model = train(MaskablePPO, Strict(OBSERVATIONS["vector"], MASKED[request.param]))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*action_masks")  # they are used: nothing to warn of
        return distill(load_teacher(model, device="cpu"), 160, check_teacher=True, beta=0.0)


def some_masks(student: QPDDistiller, n: int) -> np.ndarray:
    env = Strict(student.observation_space, student.action_space)
    env.reset(seed=0)
    return np.stack([(env._observe(), env.action_masks())[1] for _ in range(n)])


def is_allowed(student: QPDDistiller, actions: np.ndarray, masks: np.ndarray) -> bool:
    splits = np.split(masks, np.cumsum(student.policy.head.nvec)[:-1], axis=1)
    columns = actions.reshape(len(actions), -1).T.astype(int)
    return all(mask[np.arange(len(mask)), column].all() for mask, column in zip(splits, columns, strict=True))


def test_an_action_that_is_not_allowed_is_an_error_and_is_never_taken(masked):
    assert masked.num_timesteps >= 160 and masked._n_updates > 0 and masked.uses_masks  # the student acted itself
    integer = masked.policy.to_integer()
    for player in (masked, masked.policy, integer, masked.teacher, "random", ObservationRecorder(integer)):
        for deterministic in (True, False):
            played = evaluate(
                player, Strict(masked.observation_space, masked.action_space), n_episodes=4, deterministic=deterministic
            )
            assert played.episodes == 4
    vec_env = DummyVecEnv([lambda: Strict(masked.observation_space, masked.action_space)] * 2)
    assert evaluate(integer, vec_env, n_episodes=4).episodes == 4
    evaluate_with_masks(masked, Strict(masked.observation_space, masked.action_space), n_eval_episodes=2)
    integer.uses_masks = False
    with pytest.raises(ValueError, match="is not allowed now"):
        evaluate(integer, Strict(masked.observation_space, masked.action_space), n_episodes=50)


def test_masks_in_policy_and_integers(masked):
    observations, masks = sample(masked.observation_space, 300), some_masks(masked, 300)
    integer = masked.policy.to_integer()
    best = masked.predict(observations, deterministic=True, action_masks=masks)[0]
    np.testing.assert_array_equal(integer.predict(observations, deterministic=True, action_masks=masks)[0], best)
    assert is_allowed(masked, best, masks) and not is_allowed(masked, integer.predict(observations)[0], masks)
    for player in (masked, integer):
        drawn = player.predict(observations, action_masks=masks)[0]
        assert drawn.shape == best.shape and is_allowed(masked, drawn, masks)
        one = player.predict(observations[0], deterministic=True, action_masks=masks[0])[0]
        np.testing.assert_array_equal(one, best[0])
        with pytest.raises(ValueError, match="Expected action_masks of shape"):
            player.predict(observations, action_masks=masks[:, 1:])
        with pytest.raises(ValueError, match="allow no action at all"):
            player.predict(observations, action_masks=np.zeros_like(masks))


def test_masks_are_stored_with_the_observation_and_hide_logits_from_the_loss(masked):
    samples = masked._buffer.newest(64)
    masks = samples.targets.masks
    assert masks.dtype == th.bool and not masks.all() and (samples.targets.actor[~masks] == -1e8).all()
    loss, _ = distillation_loss(masked.policy, samples, critic_coef=0.0)
    assert 0 <= loss < 20
    logits = th.randn(masks.shape, requires_grad=True)
    losses.multi_categorical_kl(
        logits.masked_fill(~masks, -1e8), samples.targets.actor, nvec=masked.policy.head.nvec
    ).sum().backward()
    assert (logits.grad[~masks] == 0).all() and (logits.grad[masks] != 0).any()


def test_whether_masks_are_used_is_saved(masked, tmp_path):
    masked.save(tmp_path / "student.zip")
    assert QPDDistiller.load(tmp_path / "student.zip", device="cpu").uses_masks
    masked.policy.to_integer().save(tmp_path / "student.npz")
    assert IntegerModel.load(tmp_path / "student.npz").uses_masks
    masked.policy.save(tmp_path / "policy.pth")
    assert type(masked.policy).load(tmp_path / "policy.pth", device="cpu").uses_masks


def test_a_report_of_a_student_with_masks(masked):
    env = Strict(masked.observation_space, masked.action_space)
    report = make_report(masked, plan_evaluation(masked.teacher, env, n_episodes=3))
    assert report["parity"] == 1.0 and 0 <= report["teacher_agreement"] <= 1


def test_labels_are_masked():
    model = train(MaskablePPO, Strict(OBSERVATIONS["vector"], MASKED["MultiDiscrete"]))
    env = TeacherLabels(Strict(OBSERVATIONS["vector"], MASKED["MultiDiscrete"]), model)
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["teacher_logits"] == np.float32(-1e8), ~env.unwrapped.action_masks())


def test_without_masks_it_is_said():
    model = train(MaskablePPO, Anything(OBSERVATIONS["vector"], ACTIONS["Discrete"]))
    with pytest.warns(UserWarning, match=r"has no action_masks\(\): its student is taught as if all actions were always"):
        student = distill(model)
    assert not student.uses_masks
    with pytest.raises(ValueError, match="action_masks are for discrete actions"):
        box = distill(train(PPO, Anything(OBSERVATIONS["vector"], ACTIONS["Box"])))
        box.predict(np.zeros(3), action_masks=np.ones(2))


def test_at_the_end_of_an_episode_no_action_may_be_allowed():
    env = Strict(OBSERVATIONS["vector"], MASKED["Discrete"])
    labels = TeacherLabels(env, train(MaskablePPO, Strict(OBSERVATIONS["vector"], MASKED["Discrete"])))
    labels.reset(seed=0)
    action = int(env.action_masks().argmax())
    env.action_masks = lambda: np.zeros(6, bool)
    assert (labels.step(action)[4]["teacher_logits"] == np.float32(-1e8)).all()


def test_another_environment_may_mask_otherwise():
    without, masking = (kind(OBSERVATIONS["vector"], MASKED["Discrete"]) for kind in (Anything, Strict))
    with pytest.warns(UserWarning, match=r"has no action_masks\(\)"):
        student = distill(load_teacher(train(MaskablePPO, masking), device="cpu"), env=without, beta=0.0)
    student.set_env(masking)
    assert student.learn(80).uses_masks and student.policy.to_integer().uses_masks
    student.set_env(without)
    with pytest.warns(UserWarning, match=r"has no action_masks\(\)"):
        student.learn(80)


# --- the pipelines around observations ---
def test_stacked_images_of_floats_are_stored_as_they_are():
    env = VecFrameStack(DummyVecEnv([lambda: Anything(spaces.Box(0, 1, (1, 36, 36)), ACTIONS["Discrete"])]), 2, "first")
    assert not stacks_frames(env)
    student = distill(train(PPO, env))
    stored = student._buffer.newest(50).observations
    assert stored.dtype == th.float32 and 0.3 < float(stored[1:].mean()) < 0.7


def test_a_stack_of_normalized_frames():
    def make() -> DummyVecEnv:
        env = DummyVecEnv([lambda: Anything(spaces.Box(3, 5, (3,)), ACTIONS["Discrete"], n_steps=6)] * 2)
        env.seed(0)
        return env

    env = VecFrameStack(VecNormalize(make(), norm_reward=False), 3)
    teacher = load_teacher(train(PPO, env), device="cpu")
    env.venv.training = False
    trained_on, raw = VecFrameStack(VecNormalize(make(), training=False, norm_reward=False), 3), VecFrameStack(make(), 3)
    trained_on.venv.obs_rms = env.venv.obs_rms
    expected, observations = trained_on.reset(), raw.reset()
    for _ in range(15):  # over the end of an episode, where the stack is empty again
        np.testing.assert_allclose(teacher.normalize(observations), expected, atol=1e-6)
        actions = np.zeros(2, int)
        expected, observations = trained_on.step(actions)[0], raw.step(actions)[0]
    student = distill(teacher)
    assert student.pipeline == ["VecFrameStack(3)"]
    assert_same_bits(student.policy, observations)


def test_pipelines_that_no_wrapper_shows():
    """ALE's vector environment stands for wrappers, other processes hide theirs, and some change no observation."""
    pong = AtariVecEnv("PongNoFrameskip-v4", 1)
    assert pipeline_of(pong, None) == ["AtariWrapper", "VecFrameStack(4)"]
    pong.close()
    recipe = EnvRecipe("Pendulum-v1", {}, (("sb3_contrib.common.wrappers.TimeFeatureWrapper", {}),), 2)
    for vec_env in ("dummy", "subproc"):
        env = recipe.make_vec_env(1, vec_env=vec_env)
        assert pipeline_of(env, recipe) == ["TimeFeatureWrapper", "VecFrameStack(2)"]
        env.close()
    assert pipeline_of(env, None) == ["unknown wrappers in other processes", "VecFrameStack(2)"]
    masking = DummyVecEnv([lambda: ActionMasker(gym.make("CartPole-v1"), lambda env: np.ones(2, bool))])
    assert pipeline_of(masking, None) == []


def test_statistics_of_a_dict(tmp_path):
    space = OBSERVATIONS["Dict"]
    venv = DummyVecEnv([lambda: Anything(space, ACTIONS["Discrete"])])
    env = VecNormalize(venv, norm_obs_keys=["joints"], norm_reward=False)
    model = train(PPO, env)
    model.save(tmp_path / "model.zip")
    env.save(tmp_path / "vecnormalize.pkl")
    from_files = load_teacher(tmp_path / "model.zip", vecnormalize=tmp_path / "vecnormalize.pkl", env=venv, device="cpu")
    observations = sample(model.observation_space, 40)
    normalized = {**observations, "joints": env.normalize_obs(observations)["joints"]}
    expected = model.predict(normalized, deterministic=True)[0]
    for teacher in (from_files, load_teacher(model, device="cpu")):
        np.testing.assert_array_equal(teacher.predict(observations, deterministic=True)[0], expected)
    student = distill(from_files, env=env, check_teacher=True)  # the environment's own statistics are the teacher's
    vectors = student.policy.features_extractor.trunks[0].input_grid
    np.testing.assert_allclose(vectors.mean[-3:].numpy(), env.obs_rms["joints"].mean)
    assert (vectors.mean[:-3] == 0).all() and (vectors.std[:-3] == 1).all()  # indices stay zeros and ones
    assert_saves_and_loads(student, tmp_path, observations)
    with pytest.raises(TeacherError, match="normalization statistics are for observations of shape"):
        load_teacher(
            train(PPO, Anything(OBSERVATIONS["vector"], ACTIONS["Discrete"])), vecnormalize=tmp_path / "vecnormalize.pkl"
        )


def test_a_run_folder_with_time_feature_frames_and_normalization(tmp_path):
    venv = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0, wrapper_class=TimeFeatureWrapper), norm_reward=False)
    run = tmp_path / "ppo" / "CartPole-v1_1"
    (run / "CartPole-v1").mkdir(parents=True)
    model = train(PPO, VecFrameStack(venv, 2))
    model.save(run / "CartPole-v1.zip")
    venv.save(run / "CartPole-v1" / "vecnormalize.pkl")
    config = {"n_timesteps": 64, "normalize": True, "frame_stack": 2, "env_wrapper": "utils.wrappers.TimeFeatureWrapper"}
    (run / "CartPole-v1" / "config.yml").write_text(yaml.dump(config))
    (run / "CartPole-v1" / "args.yml").write_text(yaml.dump({"env": "CartPole-v1"}))
    teacher = load_teacher(run, device="cpu")
    student = distill(teacher, n_envs=4)
    assert student.observation_space.shape == (10,)
    student.save(tmp_path / "student.zip")
    loaded = QPDDistiller.load(tmp_path / "student.zip", device="cpu")
    assert loaded.pipeline == ["TimeFeatureWrapper", "VecFrameStack(2)"] == loaded.policy.to_integer().metadata["pipeline"]
    assert evaluate(loaded.policy.to_integer(), teacher.recipe, n_episodes=2).episodes == 2


# --- what goes wrong ---
@pytest.mark.parametrize(
    "observation_space, action_space, message",
    [
        (spaces.Box(-1, 1, (3,)), spaces.Box(-np.inf, np.inf, (2,)), "have no finite bounds: .* Rescale the actions"),
        (
            spaces.Box(-1, 1, (3,)),
            spaces.MultiBinary((2, 2)),
            "Actions of MultiBinary.* are not supported. Supported: Discrete",
        ),
        (
            spaces.Discrete(3, start=2),
            spaces.Discrete(3),
            r"Observations of Discrete.* are not supported. Supported: Box.*TransformObservation.env, lambda x: x - 2, gymn",
        ),
        (spaces.MultiDiscrete([[2, 2], [3, 3]]), spaces.Discrete(3), "Observations of MultiDiscrete.* are not supported"),
    ],
)
def test_spaces_that_are_not_supported(observation_space, action_space, message):
    teacher = load_teacher(train(PPO, Anything(OBSERVATIONS["vector"], ACTIONS["Discrete"])), device="cpu")
    with pytest.raises(ValueError, match=message):
        QPDDistiller(teacher, env=Anything(observation_space, action_space), **QUICK)


def test_other_spaces_than_the_teachers():
    teacher = load_teacher(train(PPO, Anything(OBSERVATIONS["MultiDiscrete"], ACTIONS["MultiDiscrete"])), device="cpu")
    for observation, action in (
        ("MultiDiscrete", "MultiBinary"),
        ("MultiBinary", "MultiDiscrete"),
        ("vector", "MultiDiscrete"),
    ):
        what = "observations" if observation != "MultiDiscrete" else "actions"
        with pytest.raises(ValueError, match=f"The environment's {what} are not the teacher's"):
            QPDDistiller(teacher, env=Anything(OBSERVATIONS[observation], ACTIONS[action]), **QUICK)


def test_raw_observations_that_no_student_takes():
    space = OBSERVATIONS["Dict"]
    policy = QuantMultiInputActorCriticPolicy(channels_first(space), ACTIONS["Discrete"], lambda _: 0.0, "nano")
    integer, good = policy.to_integer(), sample(channels_first(space), 3)
    for change, message in (
        ({"gear": np.array([0, 1, 4])}, "observations of 'gear' of 0 to 3"),
        ({"gear": np.array([0.0, 1.0, 2.0])}, "observations of 'gear' of integers, got dtype float64"),
        ({"buttons": np.zeros((2, 2), int)}, "batches of one size, got the shapes"),
        ({"joints": np.full((3, 3), np.nan)}, "nan in feature 0 of 'joints'"),
        ({"camera": np.zeros((3, 3, 30, 30), np.uint8)}, "observations of 'camera' of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            integer.predict({**good, **change})
    with pytest.raises(ValueError, match="Expected observations as a dict of .*'camera'.*, got"):
        integer.predict({"camera": good["camera"]})
    with pytest.raises(ValueError, match="MultiInputPolicy needs Dict observations"):
        QuantMultiInputActorCriticPolicy(OBSERVATIONS["vector"], ACTIONS["Discrete"], lambda _: 0.0)
    with pytest.raises(ValueError, match="has no hidden layers"):
        arch = {"conv": ((4, 8, 4),), "conv_hidden": (4,)}
        QuantMultiInputActorCriticPolicy(channels_first(space), ACTIONS["Discrete"], lambda _: 0.0, arch)


# --- integers ---
def test_each_dimension_is_drawn_by_itself():
    for name in ("MultiDiscrete", "MultiBinary"):
        policy = QuantActorCriticPolicy(OBSERVATIONS["vector"], ACTIONS[name], lambda _: 0.0, "nano", uses_masks=True)
        with th.no_grad():
            policy.action_net.weight.mul_(100)
        observations = sample(OBSERVATIONS["vector"], 64)
        policy.calibrate(policy.obs_to_tensor(observations)[0])
        integer = policy.to_integer()
        integer.set_random_seed(0)
        n = 20_000
        drawn = integer.predict(np.repeat(observations[:1], n, 0))[0]
        logits = policy.head.logits(th.from_numpy(integer.logits(observations[:1])))
        for i, one in enumerate(policy.head.split(logits)):
            shares = np.bincount(drawn[:, i], minlength=one.shape[1]) / n
            np.testing.assert_allclose(shares, one[0].softmax(0).numpy(), atol=0.015)
        together = np.corrcoef(drawn.T)
        assert np.abs(together[~np.eye(len(together), dtype=bool)]).max() < 0.04


def test_the_format_says_what_a_reader_has_to_know(tmp_path):
    plain = QuantActorCriticPolicy(OBSERVATIONS["vector"], ACTIONS["Discrete"], lambda _: 0.0).to_integer()
    several = QuantActorCriticPolicy(OBSERVATIONS["Discrete"], ACTIONS["MultiBinary"], lambda _: 0.0).to_integer()
    one_bit = QuantActorCriticPolicy(OBSERVATIONS["vector"], spaces.MultiBinary(1), lambda _: 0.0).to_integer()
    for model, version in ((plain, 1), (several, 2), (one_bit, 2)):
        model.save(tmp_path / "student.npz")
        with np.load(tmp_path / "student.npz") as file:
            assert json.loads(file["header"].tobytes())["format"] == version
        loaded = IntegerModel.load(tmp_path / "student.npz")
        assert (loaded.parts, loaded.action_nvec, loaded.branches) == (model.parts, model.action_nvec, model.branches)
        assert loaded.n_bits == model.n_bits


def test_a_student_trains_under_stock_ppo():
    env = Anything(OBSERVATIONS["Dict"], ACTIONS["MultiBinary"])
    model = PPO(QuantMultiInputActorCriticPolicy, env, n_steps=32, batch_size=16, n_epochs=1, device="cpu", seed=0).learn(64)
    assert_same_bits(model.policy, sample(model.observation_space, 50))


def test_a_student_learns_several_actions_at_once():
    model = train(PPO, Anything(spaces.MultiDiscrete([3, 3]), spaces.MultiDiscrete([2, 3])))
    with th.no_grad():
        model.policy.action_net.weight.mul_(300)  # sure of what it does
    teacher = load_teacher(model, device="cpu")
    student = QPDDistiller(teacher, **QUICK, weight_bits=4, activation_bits=4).learn(3_000)
    observations = sample(model.observation_space, 200)
    assert agreement(teacher, student.policy.to_integer(), observations) > 0.8  # by chance 0.42
