"""Every differing value is counted, and the commands that deploy a student say so."""

import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnx
import pytest
from commands import mistake
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from students import BITS, BOX, DISCRETE, IMAGE, SPACES, VECTOR, actor_output, make_student, some_observations
from toys import QUICK, Anything, Strict, sample

from sb3_qpd import IntegerModel, QPDDistiller, QuantActorCriticPolicy, export_onnx, load_teacher, make_recipe
from sb3_qpd.cli import main
from sb3_qpd.evaluation.benchmark import Networks, benchmark, microcontroller_table, microcontrollers, table
from sb3_qpd.evaluation.float_baseline import write_float_onnx
from sb3_qpd.evaluation.implementations import policy_steps
from sb3_qpd.evaluation.own_episodes import Jitter, replay_masked
from sb3_qpd.evaluation.verify import Difference, verify
from sb3_qpd.export import export
from sb3_qpd.export.c.emulator import MICROCONTROLLERS
from sb3_qpd.export.onnx.runtime import OnnxPolicy
from sb3_qpd.observations import pieces

STEPS = ["input_grid", "layer0", "layer1", "accumulators", "logits", "action"]


@pytest.fixture(scope="module")
def teacher() -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=64, batch_size=64)


@pytest.fixture(scope="module")
def student_zip(teacher: PPO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("student") / "student.zip"
    QPDDistiller(teacher, "CartPole-v1", **QUICK).learn(64).save(path)
    return path


@pytest.fixture
def folder(student_zip: Path, tmp_path: Path) -> Path:
    """A student's zip with what was exported from it."""
    folder = tmp_path / "deployed"
    folder.mkdir()
    (folder / "student.zip").write_bytes(student_zip.read_bytes())
    targets = ["--target", "onnx", "--target", "numpy", "--env", "CartPole-v1"]
    assert main(["export", str(folder / "student.zip"), *targets, "--out", str(folder)]) == 0
    return folder


def change_one_bias(path: Path) -> None:
    proto = onnx.load(path)
    (bias,) = (value for value in proto.graph.initializer if value.name == "bias1")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 2**22
    bias.CopyFrom(onnx.numpy_helper.from_array(values, "bias1"))
    onnx.save(proto, path)


def test_export_and_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["policy.py", "student.npz", "student.onnx", "student.zip"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert IntegerModel.load(folder / "student.npz").metadata["env"]["env_id"] == "CartPole-v1"
    assert main(["verify", str(folder), "--observations", "100"]) == 0
    output = capsys.readouterr().out
    assert "100 observations, compared with the integer model" in output
    for implementation in ("policy in eval mode", "ONNX Runtime", "ONNX, not optimized"):
        rows = [line.removeprefix(implementation).split() for line in output.splitlines() if line.startswith(implementation)]
        assert [row[0] for row in rows] == STEPS
        assert all(row[2] == "0" for row in rows), rows
        assert rows[-1][1] == "100" and rows[-1][-1] == "100.0000%"
    assert output.endswith("all equal where equality is promised\n")


def test_a_difference_is_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_one_bias(folder / "student.onnx")
    assert main(["verify", str(folder), "--observations", "50"]) == 1
    output = capsys.readouterr().out
    assert "student.onnx: not what this version exports from student.npz, and not run." in output
    assert "ONNX Runtime" not in output and "DIFFERENT where equality is promised: student.onnx\n" in output
    assert main(["verify", str(folder), "--observations", "50", "--trust-code"]) == 1
    output = capsys.readouterr().out
    differing = {
        tuple(line.split()[:3]): int(line.split()[4]) for line in output.splitlines() if line.startswith("ONNX Runtime")
    }
    assert differing["ONNX", "Runtime", "layer0"] == 0 and differing["ONNX", "Runtime", "layer1"] > 0
    assert "DIFFERENT where equality is promised: student.onnx\n" in output
    command = f"sb3-qpd export {folder}/student.npz --target onnx --out {folder}"
    assert f"Export the stale files again: {command}\n" in output


def test_the_stale_file_is_named(folder: Path, teacher: PPO) -> None:
    """Whichever of them is another student's: an export, the zip, or the integer model itself."""
    policy = QPDDistiller(teacher, "CartPole-v1", **QUICK).learn(64).policy  # the student of this folder again
    observations = some_observations(spaces.Box(-1, 1, (4,)), 64)
    result = verify(folder, observations, policy=policy)
    assert result.holds and result.stale_files == [] and "all equal where equality is promised" in str(result)
    other = QPDDistiller(teacher, "CartPole-v1", **{**QUICK, "seed": 1}).learn(64)
    result = verify(folder, observations, policy=other.policy)
    assert not result.holds and result.stale_files == ["student.zip"]
    assert "student.zip and student.npz are two students: export the one that you mean again" in result.table()
    other.policy.to_integer().save(folder / "student.npz")
    result = verify(folder, observations, policy=policy)
    assert not result.holds and result.stale_files == ["student.npz"] and "different: student.npz" in str(result)
    assert "student.npz is another student than all other files: export student.zip again" in result.table()


def test_progress_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(folder, make_recipe("CartPole-v1"), 20)
    assert capsys.readouterr().err == ""
    verify(folder, make_recipe("CartPole-v1"), 20, progress_bar=True)
    assert "verify: 100%" in capsys.readouterr().err
    benchmark(folder, make_recipe("CartPole-v1"), Networks(), seconds=0.01, progress_bar=True)
    assert "2row" in capsys.readouterr().err


def test_without_a_compiler_the_rest_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(IntegerModel.load(folder / "student.npz"), "c", folder)
    monkeypatch.setenv("CC", "no-such-compiler")
    reason = "policy.c: No C compiler found ($CC = no-such-compiler): install one"
    result = verify(folder, some_observations(spaces.Box(-1, 1, (4,)), 20))
    assert result.holds and f"not compared: {reason}" in result.table()
    left_out: list[str] = []
    rows = benchmark(folder, make_recipe("CartPole-v1"), Networks(), seconds=0.01, left_out=left_out)
    assert [row.name for row in rows] == ["student, numpy", "student, ONNX Runtime"]
    assert f"not measured: {reason}" in table(rows, left_out)
    for name in ("student.onnx", "student.zip"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match="holds nothing to compare with student.npz: policy.c: No C compiler found"):
        verify(folder, make_recipe("CartPole-v1"), 20)


def test_without_onnx_runtime_the_rest_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = QPDDistiller.load(folder / "student.zip", device="cpu").policy
    for module in ("onnx", "onnxruntime", "sb3_qpd.export.onnx.runtime"):
        monkeypatch.setitem(sys.modules, module, None)
    result = verify(folder, some_observations(spaces.Box(-1, 1, (4,)), 20), policy=policy)
    assert result.holds and "not compared: student.onnx: " in result.table()
    left_out: list[str] = []
    rows = benchmark(folder, make_recipe("CartPole-v1"), Networks(policy, policy, None), seconds=0.01, left_out=left_out)
    assert [row.name for row in rows] == ["student, SB3 predict", "student, numpy"]
    assert [line.partition(":")[0] for line in left_out] == ["float student in ONNX Runtime", "student.onnx"]


def test_another_environments_teacher_is_refused(folder: Path) -> None:
    other = load_teacher(PPO("MlpPolicy", "Acrobot-v1", device="cpu"))
    message = r"another environment's: it takes observations of shape \(6,\), this student of shape \(4,\)"
    with pytest.raises(ValueError, match=message):
        verify(folder, make_recipe("CartPole-v1"), 20, teacher=other)
    with pytest.raises(ValueError, match=message):
        benchmark(folder, make_recipe("CartPole-v1"), Networks(teacher=other), seconds=0.01)


def test_a_file_in_the_folder_means_the_folder(folder: Path) -> None:
    assert verify(folder / "student.npz", some_observations(spaces.Box(-1, 1, (4,)), 20)).holds
    with pytest.raises(FileNotFoundError, match="There is no folder or file .*nowhere"):
        verify(folder / "nowhere", make_recipe("CartPole-v1"))


def test_a_vectorized_environment_and_dict_observations(tmp_path: Path) -> None:
    space = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(3)})
    env = make_vec_env(Anything, 2, env_kwargs={"observation_space": space, "action_space": DISCRETE})
    teacher = PPO("MultiInputPolicy", env, n_steps=32, batch_size=32, device="cpu")
    policy = QPDDistiller(teacher, env, **QUICK).learn(64).policy
    policy.to_integer().save(tmp_path / "student.npz")
    for source in (env, sample(space, 40)):
        result = verify(tmp_path, source, 40, policy=policy)
        assert result.holds and result.n_observations == 40


# --- action masks ---
STRICT = "VerifiedStrict-v0"


@pytest.fixture(
    scope="module", params=[spaces.Discrete(6), spaces.MultiDiscrete([3, 2, 4])], ids=["Discrete", "MultiDiscrete"]
)
def masked_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A student of a MaskablePPO teacher, where an action that is not allowed is an error, with its exports."""
    kwargs = {"observation_space": VECTOR, "action_space": request.param}
    gym.register(STRICT, Strict, kwargs=kwargs)
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}
    teacher = MaskablePPO("MlpPolicy", STRICT, seed=0, device="cpu", **settings).learn(64)
    folder = tmp_path_factory.mktemp("masked")
    QPDDistiller(teacher, STRICT, **{**QUICK, "batch_size": 32}).learn(128).save(folder / "student.zip")
    targets = ["--target", "onnx", "--target", "numpy", "--env", STRICT]
    assert main(["export", str(folder / "student.zip"), *targets, "--out", str(folder)]) == 0
    yield folder
    del gym.registry[STRICT]


@pytest.fixture
def masked(masked_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(masked_folder, tmp_path / "masked"))


def masked_actions(output: str) -> dict[str, tuple[int, int]]:
    """Compared and differing, of each implementation."""
    found = re.findall(r"^(.+?) +masked_action +(\d+) +(\d+) ", output, re.MULTILINE)
    return {name: (int(compared), int(differing)) for name, compared, differing in found}


def test_actions_under_masks_are_compared(masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IntegerModel.load(masked / "student.npz")
    seen = list(replay_masked(model, make_recipe(STRICT), 200, 0, Jitter()))
    observations, masks = (np.concatenate(parts) for parts in list(zip(*seen, strict=True))[:2])
    free, bound = (model.predict(observations, deterministic=True, action_masks=given)[0] for given in (None, masks))
    assert np.mean(free != bound) > 0.2, "masks have to matter"
    assert main(["verify", str(masked), "--observations", "200"]) == 0
    output = capsys.readouterr().out
    names = ["policy in eval mode", "ONNX Runtime", "ONNX, not optimized"]
    assert masked_actions(output) == {name: (bound.size, 0) for name in names}
    assert "200 of the observations came with action masks" in output and "not compared" not in output


def test_a_form_that_forgets_its_masks_is_seen(masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IntegerModel.load(masked / "student.npz")
    model.uses_masks = False
    export_onnx(model, masked)
    (masked / "student.zip").unlink()
    assert main(["verify", str(masked), "--observations", "100", "--trust-code"]) == 1
    output = capsys.readouterr().out
    assert len(masked_actions(output)) == 2 and all(differing > 10 for _, differing in masked_actions(output).values())
    assert re.findall(r" (?:logits|action) +\d+ +(\d+) ", output) == ["0"] * 4, "alike but for the masks"
    assert "DIFFERENT where equality is promised" in output


def test_what_was_not_compared_under_masks_is_said(masked: Path) -> None:
    result = verify(masked, some_observations(VECTOR, 20))  # recorded without masks
    assert result.holds and "0 of the observations came with action masks" in result.table()
    said = re.findall(r"(.*): masks were not compared", result.table())
    assert said == list(result.files) and "ONNX Runtime" in said


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_c_takes_the_masks_of_the_environment(masked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IntegerModel.load(masked / "student.npz")
    export(model, "c", masked)
    assert main(["verify", str(masked), "--observations", "100"]) == 0
    assert masked_actions(capsys.readouterr().out)["C on this computer"][1] == 0
    model.uses_masks = False
    export(model, "c", masked)
    assert main(["verify", str(masked), "--observations", "100", "--trust-code"]) == 1
    assert masked_actions(capsys.readouterr().out)["C on this computer"][1] > 10


def test_another_policy_py_is_a_difference_and_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "policy.py").open("a") as file:
        file.write("\nraise SystemExit('it ran')\n")
    assert main(["verify", str(folder), "--observations", "20"]) == 1
    output = capsys.readouterr().out
    assert "policy.py is not what this version writes: export it again" in output
    assert "ONNX Runtime" in output and "it ran" not in output


def test_a_difference_where_none_is_excluded_does_not_fail(tmp_path: Path) -> None:
    model = make_student().to_integer()
    model.save(tmp_path / "student.npz")
    export_onnx(model, tmp_path, form="qdq")
    change_one_bias(tmp_path / "student.onnx")
    result = verify(tmp_path, some_observations(VECTOR, 100), trust_code=True)
    assert not result.holds
    assert {row.implementation: row.is_exact for row in result.differences} == {
        "ONNX Runtime": True,
        "ONNX, not optimized": False,
    }
    result.rows = {key: row for key, row in result.rows.items() if not row.is_exact}
    assert any(row.n_differing for row in result.differences) and result.holds


@pytest.mark.parametrize("kind", SPACES)
def test_every_step_of_a_policy(kind: str, tmp_path: Path) -> None:
    """Given observations, vectors and images, discrete and Box."""
    space, actions = SPACES[kind]
    policy = make_student(space, actions, BITS["W4A4"])
    policy.to_integer().save(tmp_path / "student.npz")
    export_onnx(policy.to_integer(), tmp_path)
    result = verify(tmp_path, some_observations(space, 300), policy=policy)
    assert result.holds and result.n_observations == 300
    assert {row.n_rows for row in result.differences} == {300} and all(row.agreement == 1 for row in result.differences)
    (policy_grid,) = (r for r in result.differences if (r.implementation, r.step) == ("policy in eval mode", "input_grid"))
    assert policy_grid.n_values == 300 * np.prod(space.shape)
    name = "mean" if actions is BOX else "logits"
    assert [row.step for row in result.differences][-3:] == ["accumulators", name, "action"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("kind", SPACES)
def test_c_is_compared(kind: str, requantization: str, tmp_path: Path) -> None:
    """In fixed mode the policy, which is float32, is shown without a promise."""
    pytest.importorskip("sb3_qpd.export.c.runtime")
    space, actions = SPACES[kind]
    policy = make_student(space, actions, BITS["W4A8"])
    model = policy.to_integer()
    model.requantization = requantization
    model.save(tmp_path / "student.npz")
    export(model, "c", tmp_path)
    result = verify(tmp_path, some_observations(space, 100), policy=policy)
    of_c = [row for row in result.differences if row.implementation == "C on this computer"]
    hidden = [f"layer{i}" for i in range(len(model.layers) - 1)]
    assert [row.step for row in of_c] == ["input_grid", *hidden, "accumulators", "action"]
    assert not any(row.n_differing for row in of_c) and result.holds
    others = {row.is_exact for row in result.differences if row.implementation == "policy in eval mode"}
    assert others == {requantization == "float32"}


def test_hooks_are_taken_off() -> None:
    policy = make_student()
    policy_steps(policy, some_observations(VECTOR, 64))
    assert not any(module._forward_hooks for module in policy.modules())


def test_counting() -> None:
    row = Difference("one", "layer0", True)
    row.add(np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 1]]))
    row.add(np.array([[1, 2]]), np.array([[1, 2]]))
    assert (row.n_values, row.n_differing, row.largest) == (6, 1, 3.0)
    assert row.agreement == pytest.approx(2 / 3)
    row.add(np.array([[1.0, 2.0]]), np.array([[np.nan, 2.0]]))
    assert row.n_differing == 2 and row.largest == np.inf


def test_jitter_is_counted_within_episodes() -> None:
    jitter = Jitter()
    actions = np.array([[[0.0], [5.0]], [[1.0], [5.5]], [[9.0], [5.0]], [[9.5], [5.0]]], np.float32)
    dones = np.array([[False, False], [True, False], [False, False], [False, False]])
    for action, done in zip(actions, dones, strict=True):
        jitter.add(action, done)
    assert jitter.mean == pytest.approx((1 + 0.5 + 0.5 + 0.5 + 0) / 5)  # 1 -> 9 is another episode


def test_jitter_of_student_and_teacher(tmp_path: Path) -> None:
    policy = make_student(spaces.Box(-np.inf, np.inf, (3,)), spaces.Box(-2, 2, (1,)))
    policy.to_integer().save(tmp_path / "student.npz")
    export_onnx(policy.to_integer(), tmp_path)
    result = verify(tmp_path, make_recipe("Pendulum-v1"), 64, teacher=policy)
    assert result.holds and result.n_observations == 64
    assert result.jitter["the student"] == result.jitter["the teacher"] > 0
    assert "mean |a_t - a_(t-1)| of the teacher: " in result.table()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_benchmark_of_dict_observations(tmp_path: Path) -> None:
    space = spaces.Dict(gear=spaces.Discrete(3), joints=spaces.Box(-1, 1, (2,)))
    policy = QuantActorCriticPolicy(space, spaces.Discrete(2), lambda _: 0.0, "nano")
    policy.calibrate(policy.obs_to_tensor(sample(space, 64))[0])
    model = policy.to_integer()
    model.save(tmp_path / "student.npz")
    export(model, "c", tmp_path)
    rows = benchmark(tmp_path, partial(Anything, space, spaces.Discrete(2)), seconds=0.01)
    in_c = ["student, C", "student, C, -march=native", "student, C, CPolicy.predict"]
    assert [row.name for row in rows] == ["student, numpy", *in_c]
    assert all(row.microseconds > 0 for row in rows)


@pytest.mark.slow
def test_benchmark(folder: Path, teacher: PPO, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher.save(tmp_path / "teacher.zip")
    QPDDistiller(teacher, "CartPole-v1", transition="none", weight_bits=32, activation_bits=32, **QUICK).learn(64).save(
        folder / "student_float.zip"
    )
    assert main(["benchmark", str(folder), "--seconds", "0.01", "--teacher", str(tmp_path / "teacher.zip")]) == 0
    *lines, unit = capsys.readouterr().out.splitlines()[-10:]
    assert unit == "1.0x is the time of one action of: teacher, SB3 predict"
    assert re.match(r"one thread, medians +us/action +actions/s, batch 64 +bytes +peak memory +ratio", lines[0])
    in_onnx = [f"{who}, ONNX Runtime {kind}" for who in ("teacher", "float student") for kind in ("float32", "int8")]
    names = ["teacher, SB3 predict", *in_onnx, "student, SB3 predict", "student, numpy", "student, ONNX Runtime"]
    for name, line in zip(names, lines[1:], strict=True):
        assert re.fullmatch(rf"{name} +[\d.]+ +[\d,]+ +\d+ +[\d,.]+ kB +[\d.]+x", line)
    rows = benchmark(folder, make_recipe("CartPole-v1"), Networks(), seconds=0.01)
    assert [row.nbytes for row in rows] == [(folder / name).stat().st_size for name in ("student.npz", "student.onnx")]
    in_numpy, in_onnx_runtime = (row.memory for row in rows)
    assert 10e6 < in_numpy < 80e6 and in_numpy < in_onnx_runtime < 400e6, "a fresh process, without torch"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_benchmark_of_c(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = IntegerModel.load(folder / "student.npz")
    (folder / "student.onnx").unlink()
    export(model, "c", folder)
    rows = {row.name: row for row in benchmark(folder, make_recipe("CartPole-v1"), Networks(), seconds=0.01)}
    in_c = ["student, C", "student, C, -march=native", "student, C, CPolicy.predict"]
    assert list(rows) == ["student, numpy", *in_c]
    assert rows["student, C"].nbytes == model.nbytes and 0 < rows["student, C"].memory < 4096
    seen = microcontrollers(folder, make_recipe("CartPole-v1"))
    assert list(seen) == list(MICROCONTROLLERS)
    text = microcontroller_table(seen, mhz=50)
    for name, one in seen.items():
        if isinstance(one, str):
            assert "apt-get install" in one and one in text
        else:
            assert one.outputs.shape == (16, 2)
            n = int(np.median(one.instructions))
            counted, mhz = (", clock cycles", 16) if name == "atmega328p" else ("", 50)
            times = rf"{n:,} +{mhz} +{n / (1000 * mhz):.3g}"
            assert re.search(rf"{name}{counted} +{times} +{one.flash:,} +{one.ram + one.call_stack:,}", text)


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_a_float_policy_in_onnx_runtime(space: spaces.Box, tmp_path: Path) -> None:
    policy, observations = make_student(space, DISCRETE, (32, 32)), some_observations(space, 64)[32:]
    write_float_onnx(policy, observations[:1], tmp_path / "float.onnx")
    (outputs,) = OnnxPolicy(tmp_path / "float.onnx").run(observations)
    np.testing.assert_allclose(outputs, actor_output(policy, observations), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("algo", "env_id"), [(DQN, "CartPole-v1"), (SAC, "Pendulum-v1"), (TD3, "Pendulum-v1")])
def test_any_familys_network_in_onnx_runtime(algo: type[BaseAlgorithm], env_id: str, tmp_path: Path) -> None:
    policy = algo("MlpPolicy", env_id, policy_kwargs={"net_arch": [16]}, buffer_size=10, device="cpu").policy
    observations = np.random.default_rng(0).normal(size=(20, *policy.observation_space.shape)).astype(np.float32)
    write_float_onnx(policy, observations[:1], tmp_path / "policy.onnx")
    (actions,) = OnnxPolicy(tmp_path / "policy.onnx").run(observations)
    expected = policy.predict(observations, deterministic=True)[0]
    if policy.squash_output:
        expected = policy.scale_action(expected)
    np.testing.assert_allclose(actions, expected, atol=1e-5)


def test_mistakes(student_zip: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    start = ["export", student_zip, "--env", "CartPole-v1", "--out", out, "--target"]
    assert "Unknown --target 'onyx'. Known: onnx, c, tflite, numpy" in mistake(capsys, *start, "numpy", "--target", "onyx")
    assert "--channels-last is for images" in mistake(capsys, *start, "onnx", "--channels-last")
    assert "--env ID" in mistake(capsys, "evaluate", student_zip)
    assert "nowhere.npz" in mistake(capsys, "export", "nowhere.npz", "--out", out, "--target", "onnx")
    assert "No such file or folder: nowhere.zip" in mistake(capsys, "export", "nowhere.zip", "--out", out, "--target", "onnx")
    assert "--target" in mistake(capsys, "export", student_zip, "--out", out)
    assert "--requantization fixed is not for the target onnx" in mistake(capsys, *start, "onnx", "--requantization", "fixed")
    assert not out.exists()
    for command in ("verify", "benchmark"):
        assert "holds no student.npz" in mistake(capsys, command, tmp_path)
        assert "NoSuchEnv" in mistake(capsys, command, folder, "--env", "NoSuchEnv-v0")
    (tmp_path / "student.npz").write_bytes((folder / "student.npz").read_bytes())
    assert "holds nothing to compare with student.npz" in mistake(capsys, "verify", tmp_path)


def test_an_environment_with_other_observations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_student(VECTOR, DISCRETE).to_integer()
    model.save(tmp_path / "student.npz")
    export_onnx(model, tmp_path)
    error = mistake(capsys, "verify", tmp_path, "--env", "CartPole-v1")
    assert "CartPole-v1 gives observations of shape (4,), but this IntegerModel takes (5,)" in error


def test_a_students_file_imports_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = make_student(VECTOR, DISCRETE)
    (tmp_path / "innocent.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    cartpole = {"env_id": "CartPole-v1"}
    settings = ({"xml_file": "/etc/passwd"}, {"size": 10**9}, {"env_id": "innocent:CartPole-v1"}, [1])
    hostile = [{**cartpole, "env_kwargs": one} for one in settings]
    for env in ({"env_id": "innocent:CartPole-v1"}, "CartPole-v1", {"env_id": 7}, None, *hostile):
        path = tmp_path / "student.npz"
        policy.to_integer(env=env).save(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            message = mistake(capsys, "evaluate", path)
        assert "--env " in message
    assert not (tmp_path / "ran").exists()


def test_nothing_compared_is_nothing_verified(folder: Path) -> None:
    assert not verify(folder, np.zeros((0, 4), np.float32)).holds


def test_another_requantization_is_promised_by_c_alone(tmp_path: Path) -> None:
    model = make_student(VECTOR, DISCRETE).to_integer()
    export_onnx(model, tmp_path)
    model.requantization = "fixed"
    model.save(tmp_path / "student.npz")
    result = verify(tmp_path, some_observations(VECTOR, 64))
    assert result.holds
    assert not any(row.is_exact for row in result.differences)


def test_an_option_that_no_target_takes(student_zip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, target in (("--qdq", "numpy"), ("--channels-last", "c")):
        message = mistake(capsys, "export", student_zip, "--target", target, option, "--out", tmp_path / "out")
        assert f"{option} is for onnx" in message
    assert not (tmp_path / "out").exists()


def test_pieces_are_the_same_observations_in_order() -> None:
    whole = np.arange(20).reshape(10, 2)
    shared = np.empty((3, 2), int)

    def batches() -> Iterator[np.ndarray]:
        for start in (0, 3, 6):
            shared[:] = whole[start : start + 3]  # as an environment that writes over its last observations
            yield shared
        yield whole[9:]

    for size, lengths in ((4, [4, 4, 2]), (1, [1] * 10), (10, [10]), (64, [10])):
        seen = list(pieces(batches(), size))
        assert [len(piece) for piece in seen] == lengths
        np.testing.assert_array_equal(np.concatenate(seen), whole)
    assert not list(pieces([])) and not list(pieces([whole[:0]]))
