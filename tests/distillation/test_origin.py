"""Offsets that float32 cannot carry are taken off in float64, before the student rounds, in each of its forms."""

import functools
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import QUICK, Pointer, actor_of, assert_same_bits, pointers, untrained

from sb3_qpd import IntegerModel, QPDDistiller, QuantActorCriticPolicy, export_c, export_onnx, load_student
from sb3_qpd.distillation import hyperparameters
from sb3_qpd.distillation.inputs import describe_findings
from sb3_qpd.evaluation.benchmark import _in_onnx_runtime
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.c.runtime import CPolicy
from sb3_qpd.export.onnx.runtime import OnnxPolicy

FAST = {**QUICK, "learning_rate": 1e-2, "student_arch": "tiny"}


class Far(gym.Env):
    """
    Observations are drawn anew in each step, and actions change nothing: only the student's answers matter.

    :param space: space of the observations
    :param draw: from a generator to one observation, or a dict of them
    """

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, space: spaces.Space, draw: Callable[[np.random.Generator], Any]) -> None:
        self.observation_space, self.draw = space, draw

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.draw(self.np_random), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.draw(self.np_random), 0.0, False, self.t >= 25, {}


def box(n: int, dtype: Any = np.float64) -> spaces.Box:
    ends = (np.iinfo(dtype).min, np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else (-np.inf, np.inf)
    return spaces.Box(*ends, (n,), dtype)


def metres(rng: np.random.Generator) -> np.ndarray:
    """UTM: northing, easting, height."""
    return rng.normal((5_400_000.25, 5e5, 0))


def timestamps(rng: np.random.Generator) -> np.ndarray:
    """Seconds since 1970 at 20 Hz."""
    return np.array([1.7e9 + 0.05 * rng.integers(0, 600), rng.normal()])


def counts(rng: np.random.Generator) -> np.ndarray:
    """An encoder that has turned for long, and one that has not."""
    return np.array([10**9 + rng.integers(-200, 200), rng.integers(-200, 200)])


def robot(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "gear": rng.integers(3),
        "gps": metres(rng),
        "imu": rng.normal(size=2).astype(np.float32),
        "wide": rng.normal(size=1),
    }


ROBOT = spaces.Dict({"gear": spaces.Discrete(3), "gps": box(3), "imu": box(2, np.float32), "wide": box(1)})
KINDS: dict[str, tuple[spaces.Space, Any, list[str]]] = {
    "UTM metres": (box(3), metres, ["0"]),
    "timestamps": (box(2), timestamps, ["0"]),
    "encoder counts": (box(2, np.int64), counts, ["0"]),
    "Dict with GPS": (ROBOT, robot, ["gps[0]"]),
}


def drawn(draw: Any, n: int, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    seen = [draw(rng) for _ in range(n)]
    return {key: np.stack([one[key] for one in seen]) for key in seen[0]} if isinstance(seen[0], dict) else np.stack(seen)


def far_teacher(space: spaces.Space, draw: Any) -> PPO:
    """It sees all of its features: its ``VecNormalize`` takes the mean off in float64."""
    keys = [key for key, one in space.items() if isinstance(one, spaces.Box)] if isinstance(space, spaces.Dict) else None
    raw = DummyVecEnv([lambda: Far(space, draw)] * 32)
    env = VecNormalize(raw, norm_reward=False, training=False, norm_obs_keys=keys)
    seen = drawn(draw, 2_000, seed=0)
    for values, rms in [(seen, env.obs_rms)] if keys is None else [(seen[key], env.obs_rms[key]) for key in keys]:
        rms.mean, rms.var = values.mean(0), values.var(0)
    model = untrained(env, policy="MlpPolicy" if keys is None else "MultiInputPolicy")
    with th.no_grad():
        model.policy.action_net.weight.mul_(60)
    return model


@functools.cache
def student_of(kind: str, n_steps: int = 4_000, **settings: Any) -> QPDDistiller:
    """It learns once, and tests only look at it. Nothing is left to warn of."""
    space, draw, _ = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return QPDDistiller(far_teacher(space, draw), **{**FAST, **settings}).learn(n_steps)


def explained(student: Any, teacher: Any, observations: Any) -> float:
    a, b = (one.predict(observations, deterministic=True)[0].astype(np.float64) for one in (student, teacher))
    return float(1 - ((a - b) ** 2).mean() / b.var())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_sees_what_its_teacher_sees(kind, tmp_path):
    _, draw, features = KINDS[kind]
    student = student_of(kind)
    assert [one["feature"] for one in student.input_findings if one["kind"] == "origin"] == features
    assert len(student.input_findings) == 1 and student.input_findings[0]["levels"] < 16
    observations = drawn(draw, 500)
    integer = assert_same_bits(student.policy, observations)
    assert explained(integer, student.teacher, observations) > 0.9
    integer.save(tmp_path / "student.npz")
    np.testing.assert_array_equal(
        IntegerModel.load(tmp_path / "student.npz").logits(observations), integer.logits(observations)
    )
    student.save(tmp_path / "student.zip")
    for loaded in (QPDDistiller.load(tmp_path / "student.zip", device="cpu"), load_student(tmp_path / "student.zip")):
        np.testing.assert_array_equal(actor_of(loaded.policy, observations), actor_of(student.policy, observations))
        assert loaded.input_findings == student.input_findings
    export_onnx(integer, tmp_path)
    if not integer.is_dict:
        export_c(integer, tmp_path)
    result = verify(tmp_path, observations, 500, policy=student.policy)
    assert result.holds and len({row.implementation for row in result.differences}) == (3 if integer.is_dict else 4)


def test_inputs_of_the_onnx_file(tmp_path):
    """Doubles where they are needed."""
    (path,) = export_onnx(student_of("Dict with GPS", 500).to_integer(), tmp_path)
    types = {one.name: one.type.tensor_type.elem_type for one in onnx.load(path).graph.input}
    number = onnx.TensorProto
    assert types == {
        **{"observation/gear": number.INT64, "observation/gps": number.DOUBLE},
        **{"observation/imu": number.FLOAT, "observation/wide": number.FLOAT},
    }


def test_the_ring_is_exact_where_it_has_to_be():
    """The values of a Dict in float64 until the origin is known, then only those that have one."""
    student = QPDDistiller(far_teacher(ROBOT, robot), **FAST)
    kept = dict[bool, dict[str, np.dtype]]()

    def look(now: Any, _: Any) -> bool:
        distiller = now["self"]
        kept[distiller._is_fitted] = {
            key: values.dtype for key, values in distiller._buffer.newest(8).numpy_observations().items()
        }
        return True

    student.learn(1_000, callback=look)
    assert kept[False] == {"gear": np.float32, "gps": np.float64, "imu": np.float32, "wide": np.float64}
    assert kept[True] == {"gear": np.float32, "gps": np.float64, "imu": np.float32, "wide": np.float32}
    observations = student._buffer.newest(500).numpy_observations()
    assert len(np.unique(observations["gps"][:, 0])) == 500


def test_a_ring_beyond_the_memory_is_refused_when_the_origin_is_known(monkeypatch):
    student = QPDDistiller(far_teacher(box(3), metres), **FAST, buffer_size=1_000)
    monkeypatch.setattr(hyperparameters, "_memory", lambda: 20_000.0)
    with pytest.raises(ValueError, match="buffer_size=1000 needs .* GB for its observations"):
        student.learn(1_000)


def test_an_origin_beyond_the_budget_is_refused_before_learning():
    """The origin of three features takes 24 bytes, and whether there is one shows in the observations."""
    student = QPDDistiller(far_teacher(box(3), metres), **{**FAST, "student_arch": "270B"})
    assert student.policy.to_integer().nbytes <= 270
    with pytest.raises(ValueError, match=r"origin of 24 bytes .* student_arch='270B' is 270. Give student_arch=") as error:
        student.learn(1_000)
    assert student._n_updates == 0
    arch = json.loads(str(error.value).partition("Give student_arch=")[2].partition(", or")[0])
    fitting = QPDDistiller(far_teacher(box(3), metres), **{**FAST, "student_arch": arch}).learn(500).to_integer()
    assert fitting.input_origin is not None and fitting.nbytes <= 270


def test_ordinary_students_have_none():
    """Float64 alone is no reason: the ring, the state and the file are as they were."""
    student = QPDDistiller(untrained(pointers()), **QUICK).learn(500)
    assert student.observation_space.dtype == np.float64
    assert student._buffer.newest(1).numpy_observations().dtype == np.float32
    assert not any(name.endswith("origin") for name in student.policy.state_dict())
    assert student.to_integer().input_origin is None


def test_learning_goes_on_from_a_zip(tmp_path):
    student = student_of("UTM metres", 1_000)
    before = student.policy.features_extractor.origin.clone()
    student.save(tmp_path / "student.zip")
    loaded = QPDDistiller.load(tmp_path / "student.zip", teacher=far_teacher(box(3), metres), device="cpu")
    loaded.learn(2_000, reset_num_timesteps=False)
    assert th.equal(loaded.policy.features_extractor.origin, before)
    assert loaded._buffer.newest(1).numpy_observations().dtype == np.float64
    observations = drawn(metres, 500)
    assert explained(assert_same_bits(loaded.policy, observations), student.teacher, observations) > 0.8


def test_students_of_other_bits_have_it_too(tmp_path):
    student, observations = student_of("UTM metres"), drawn(metres, 500)
    four = student.post_training_quantize(4, 8)
    assert explained(assert_same_bits(four.policy, observations), student.teacher, observations) > 0.8
    in_float = student.float_student()
    assert explained(in_float, student.teacher, observations) > 0.9
    for case in _in_onnx_runtime("float student", in_float.policy, observations, tmp_path):  # as the benchmark has it
        (mean,) = case.make()(observations)
        np.testing.assert_allclose(mean, actor_of(in_float.policy, observations), atol=1e-4 if "float32" in case.name else 0.5)


def test_a_float_student_has_it(tmp_path):
    student = student_of("timestamps", weight_bits=32, activation_bits=32, transition="none")
    assert [one["kind"] for one in student.input_findings] == ["origin"]
    assert explained(student, student.teacher, drawn(timestamps, 500)) > 0.9


def test_outliers_beside_an_offset():
    """A receiver without a fix says 0: it saturates, and the limits are in the units of the environment."""

    def without_fix(rng: np.random.Generator) -> np.ndarray:
        observation = metres(rng)
        observation[0] = 0 if rng.random() < 0.03 else observation[0]
        return observation

    model = far_teacher(box(3), metres)
    for env in model.env.venv.envs:
        env.unwrapped.draw = without_fix
    student = QPDDistiller(model, **FAST).learn(4_000)
    by_kind = {one["kind"]: one for one in student.input_findings}
    assert set(by_kind) == {"origin", "saturates"}
    assert 5_399_900 < by_kind["saturates"]["low"] < 5_400_000 < by_kind["saturates"]["high"] < 5_400_100
    assert re.search(
        r"rare values saturate: 0 \(53999\d\d\.\d+ to 54000\d\d\.\d+\)", describe_findings(student.input_findings)
    )
    usual = drawn(metres, 500)
    assert explained(assert_same_bits(student.policy, usual), student.teacher, usual) > 0.9
    assert_same_bits(student.policy, drawn(without_fix, 500))


@pytest.mark.parametrize(("offset", "numbers"), [(4.5e6, "[67]"), (1e9, "1")])
def test_a_float32_space_loses_it_before_the_student_sees_it(offset, numbers):
    """The warning stays, and says what to do. This VecEnv gives float64 all the same, as simulators do."""
    model = untrained(DummyVecEnv([lambda: Far(box(3), lambda rng: rng.normal((0, offset, 0)))] * 8))
    model.env.observation_space = box(3, np.float32)
    advice = r"offset so large that float32 .*declare the observation space float64.*or subtract the offset"
    with pytest.warns(UserWarning, match=rf"{advice}.*: 1 \({numbers}"):
        student = QPDDistiller(model, **QUICK).learn(1_000)
    assert [(one["feature"], one["kind"]) for one in student.input_findings] == [("1", "offset")]
    assert student.to_integer().input_origin is None


def test_stock_ppo_fine_tunes_a_student():
    """The origin is in the state, and every way through SB3's policy takes it off."""
    student = student_of("UTM metres", 1_000)
    env = DummyVecEnv([lambda: Far(box(3), metres)] * 2)
    ppo = PPO(QuantActorCriticPolicy, env, policy_kwargs=student.policy_kwargs, n_steps=16, batch_size=8, device="cpu")
    assert ppo.policy.to_integer().input_origin is None
    ppo.policy.load_state_dict(student.policy.state_dict())
    observations = drawn(metres, 50)
    np.testing.assert_array_equal(actor_of(ppo.policy, observations), actor_of(student.policy, observations))
    tensor, _ = ppo.policy.obs_to_tensor(observations)
    mean, value = ppo.policy.actor_and_value(tensor)
    assert th.equal(ppo.policy.get_distribution(tensor).distribution.mean, mean)
    assert th.equal(ppo.policy.predict_values(tensor).flatten(), value)
    assert th.equal(ppo.policy(tensor, deterministic=True)[0], mean)
    assert th.equal(ppo.policy.evaluate_actions(tensor, mean)[0].flatten(), value)
    ppo.learn(64)
    assert_same_bits(ppo.policy, observations)
    ppo.policy.load_state_dict(QPDDistiller(far_teacher(box(3), metres), **FAST).policy.state_dict())
    assert ppo.policy.features_extractor.origin is None


def test_a_zip_whose_origin_is_not_its_students(tmp_path):
    student = student_of("UTM metres", 500)
    grid = student.policy.features_extractor.input_grid
    origin, grid.origin = grid.origin, th.zeros(5, dtype=th.float64)
    try:
        student.save(tmp_path / "student.zip")
    finally:
        grid.origin = origin
    with pytest.raises(ValueError, match=r"input_grid.origin has \(5,\), not torch.Size\(\[3\]\)"):
        load_student(tmp_path / "student.zip")


def test_numbers_at_the_ends(tmp_path):
    """What is left of an observation has to be finite in float32; the integer model and C agree to the last number."""
    student = student_of("UTM metres", 500)
    model = student.to_integer()
    origin = model.input_origin
    export_c(model, tmp_path)
    c, in_onnx = CPolicy(tmp_path), OnnxPolicy(export_onnx(model, tmp_path)[0])
    end = 2.0**128 - 2.0**103  # rounds to infinity in float32, and all below do not
    for sign in (1, -1):
        last = np.tile(origin, (1, 1))
        last[0, 1] = sign * np.nextafter(end, 0)
        np.testing.assert_array_equal(c.outputs(last), model.accumulators(last))
        np.testing.assert_array_equal(in_onnx.run(last)[0], model.predict(last, deterministic=True)[0])
        last[0, 1] = sign * end
        with pytest.raises(ValueError, match="NaN or infinity"):
            c.outputs(last)
        with pytest.raises(ValueError, match="expected finite numbers of float32"):
            model.predict(last)


def test_any_dtype_of_an_observation_is_taken():
    student = student_of("UTM metres", 500)
    for dtype in (np.float32, np.float64, np.int64, np.longdouble):
        observations = drawn(metres, 20).astype(dtype)
        if dtype != np.longdouble:  # torch has none
            assert_same_bits(student.policy, observations)
        model = student.to_integer()
        np.testing.assert_array_equal(model.logits(observations), model.logits(observations.astype(np.float64)))


def test_offsets_of_ordinary_size_change_nothing():
    """Float32 has enough numbers for them."""
    assert Pointer.offset.any()
    student = QPDDistiller(untrained(pointers()), **QUICK).learn(500)
    assert student.input_findings == []
