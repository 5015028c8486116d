"""The C of all kinds of students as a program uses it: names of fields, masks, several policies, threads, and CPolicy."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from c_policies import integers, needs_compiler
from space_students import OBSERVATIONS, make_student
from students import BOX, IMAGE, VECTOR, assert_same_bits, some_observations
from toys import sample

from sb3_qpd import IntegerModel, export_c
from sb3_qpd.cli import main
from sb3_qpd.evaluation.verify import verify
from sb3_qpd.export.c.fields import c_names
from sb3_qpd.export.c.runtime import CPolicy, find_compiler, run_compiler
from sb3_qpd.export.c.vectors import some_masks
from sb3_qpd.export.value_head import add_value_head, find_value_head, values_of
from sb3_qpd.integer import IntegerLayer, ObservationPart

WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]

pytestmark = needs_compiler


def test_any_key_gives_a_valid_and_unique_name(tmp_path: Path) -> None:
    keys = ["Joints", "joints", "2nd camera", "int", "linux", "*/ x", "", "ä", "policy_x", "test_x", "a.b", "a-b", "a_b_2"]
    names = c_names(keys)
    assert names[:5] == ["joints", "joints_2", "key_2nd_camera", "int_", "linux_"]
    assert names[5:] == ["x", "key", "key_2", "key_policy_x", "key_test_x", "a_b", "a_b_2", "a_b_2_2"]
    parts = tuple(ObservationPart("vector", (1,), key=key) for key in keys)
    assert c_names(["x" * 200, "x" * 199]) == ["x" * 40, "x" * 40 + "_2"]
    head = IntegerLayer(np.eye(3, len(keys), dtype=np.int8), np.zeros(3, np.int32), np.ones(1, np.float32), 8, 0)
    n = len(keys)
    model = IntegerModel([head], (), np.ones(n, np.float32), np.zeros(n, np.float32), parts=parts)
    observations = {key: np.full((1, 1), i, np.float32) for i, key in enumerate(keys)}
    export_c(model, tmp_path, name="lander")
    run_compiler([*find_compiler(), "-fsyntax-only", *WARNINGS, tmp_path / "lander.c", tmp_path / "lander_main.c"])
    got = CPolicy(tmp_path, name="lander", model=model).outputs(observations)
    np.testing.assert_array_equal(got, model.accumulators(observations))


@pytest.mark.parametrize("action", ["Discrete", "MultiDiscrete", "MultiBinary"])
@pytest.mark.parametrize("uses_masks", [True, False])
def test_masks_and_weights(action: str, uses_masks: bool, tmp_path: Path) -> None:
    model, observations = (
        make_student("vector", action, 8, uses_masks=uses_masks).to_integer(),
        sample(OBSERVATIONS["vector"], 99),
    )
    export_c(model, tmp_path, probabilities=True)
    run_compiler([*find_compiler(), *WARNINGS, tmp_path / "main.c", tmp_path / "policy.c", "-o", tmp_path / "main"])
    assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.startswith("0 of 32")
    c, acc, masks = CPolicy(tmp_path, model=model), model.accumulators(observations), some_masks(model, 99)
    for given in (None, masks) if uses_masks else (None,):
        weights = model.weights(acc, given)
        np.testing.assert_array_equal(c.weights(observations, given), weights)
        assert given is None or not weights[given == 0].any()
        expected = model.predict(observations, deterministic=True, action_masks=given)[0]
        assert_same_bits(c.predict(observations, deterministic=True, action_masks=given)[0], expected)
        np.testing.assert_array_equal(c.actions(observations, None, given).reshape(expected.shape), expected)
    for one in np.split(weights, np.cumsum(model.action_nvec)[:-1], 1):
        assert (one.sum(1) > 0).all() and (one.sum(1) < 2**32).all()
    if uses_masks:
        masks[7] = 0
        with pytest.raises(ValueError, match="returned -5: action_masks allow no action"):
            c.actions(observations, None, masks)


def test_weights_are_for_discrete_actions(tmp_path: Path) -> None:
    model = integers(VECTOR, BOX)
    with pytest.raises(ValueError, match="weights are for discrete actions"):
        model.weights(model.accumulators(some_observations(VECTOR, 4)))
    with pytest.raises(ValueError, match="probabilities=True is for discrete actions, this student has a Box"):
        export_c(model, tmp_path, probabilities=True)
    export_c(model := integers(VECTOR), tmp_path)
    with pytest.raises(ValueError, match="export it with probabilities=True"):
        CPolicy(tmp_path, model=model).weights(some_observations(VECTOR, 4))


THREADS = """
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include "left.h"
#include "right_2.h"
#include "left_test_vectors.h"
#include "right_2_test_vectors.h"

static void *act(void *wrong)
{
    struct left_state left;
    static __thread struct right_2_state right;
    int i, frame;
    for (i = 0; i < 20000; i++) {
        int32_t action;
        *(int *)wrong += left_act_r(&left, &left_test_observations[i % 32], &action) != LEFT_OK;
        *(int *)wrong += action != left_test_actions[i % 32];
        memset(&left, i, sizeof left); /* it holds nothing between two calls */
        if (i % 500 == 0) {
            float box[RIGHT_2_N_OUTPUTS];
            right_2_reset_r(&right);
            for (frame = 0; frame < RIGHT_2_N_FRAMES; frame++) {
                (void)right_2_push_frame_r(&right, right_2_test_frames[i / 500 % 2][frame]);
            }
            *(int *)wrong += right_2_act_r(&right, box) != RIGHT_2_OK;
            *(int *)wrong += memcmp(box, right_2_test_actions[i / 500 % 2], sizeof box) != 0;
        }
    }
    return NULL;
}

int main(void)
{
    pthread_t threads[4];
    int wrong[4] = {0, 0, 0, 0}, i;
    for (i = 0; i < 4; i++) {
        (void)pthread_create(&threads[i], NULL, act, &wrong[i]);
    }
    for (i = 0; i < 4; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    printf("%d %d %d %d\\n", wrong[0], wrong[1], wrong[2], wrong[3]);
    return left_act_r(NULL, &left_test_observations[0], NULL) != LEFT_NULL_POINTER;
}
"""


def test_several_policies_and_threads_in_one_program(tmp_path: Path) -> None:
    """No public name of one policy is the other's, and no memory is shared. The simple functions are there, or left out."""
    models = {"left": make_student("Dict of vectors", "Discrete", 4).to_integer(), "right_2": integers(IMAGE, BOX)}
    for name, model in models.items():
        export_c(model, tmp_path, name=name, reentrant=True)
    (tmp_path / "threads.c").write_text(THREADS)
    command = [*find_compiler(), "-O1", "threads.c", "left.c", "right_2.c", "-pthread", "-o", "threads"]
    for option in ([], ["-DLEFT_ONLY_REENTRANT", "-DRIGHT_2_ONLY_REENTRANT"]):
        subprocess.run([*command, *option], cwd=tmp_path, check=True)
        done = subprocess.run(["./threads"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == "0 0 0 0\n"
    subprocess.run([*find_compiler(), "-c", "left.c", "right_2.c"], cwd=tmp_path, check=True)
    for name in models:
        symbols = subprocess.run(["nm", "-g", "--defined-only", f"{name}.o"], cwd=tmp_path, capture_output=True, text=True)
        assert all(line.split()[-1].startswith(f"{name}_") for line in symbols.stdout.splitlines())
        subprocess.run([*find_compiler(), f"{name}_main.c", f"{name}.c", "-o", "main"], cwd=tmp_path, check=True)
        assert subprocess.run(["./main"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.startswith("0 of ")


@pytest.mark.parametrize(
    "observation, action",
    [
        ("vector", "Discrete"),
        ("vector", "Box"),
        ("MultiDiscrete", "MultiDiscrete"),
        ("Discrete", "MultiBinary"),
        ("Dict", "Box"),
    ],
)
def test_predict_of_cpolicy_is_that_of_the_integer_model(observation: str, action: str) -> None:
    model, observations = make_student(observation, action, 8).to_integer(), sample(OBSERVATIONS[observation], 40)
    c = CPolicy.load(model, cflags=("-O1",))
    single: Any = {key: x[3] for key, x in observations.items()} if model.is_dict else observations[3]
    for given in (observations, single):
        for deterministic in (True, False):
            model.set_random_seed(5)
            expected = [model.predict(given, deterministic=deterministic)[0] for _ in range(5)]
            c.set_random_seed(5)
            for one in expected:
                got, state = c.predict(given, deterministic=deterministic)
                assert_same_bits(np.asarray(got), np.asarray(one))
                assert state is None


def test_predict_of_cpolicy_refuses_what_the_integer_model_refuses() -> None:
    c = CPolicy.load(make_student("MultiDiscrete", "Discrete", 8).to_integer(), cflags=("-O0",))
    assert c.predict(np.array([2, 1, 3]), deterministic=True)[0].shape == ()
    for wrong in ([3, 0, 0], [0, -1, 0], [2**32, 0, 0], [0.5, 0, 0]):
        with pytest.raises(ValueError, match="Expected an observation of (0 to 2, 1, 3|integers), got"):
            c.predict(np.array(wrong), deterministic=True)
    c = CPolicy.load(integers(VECTOR), cflags=("-O0",))
    for number in (np.nan, np.inf, 1e300):
        with pytest.raises(ValueError, match="The observation holds .* in feature 2: expected finite numbers"):
            c.predict(np.array([0, 0, number, 0, 0]), deterministic=True)
    with pytest.raises(ValueError, match="Expected an observation of shape"):
        c.predict(np.zeros(4, np.float32), deterministic=True)


def test_verify_finds_c_of_other_prefixes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, observations = (
        make_student("Dict of vectors", "MultiDiscrete", 4).to_integer(),
        sample(OBSERVATIONS["Dict of vectors"], 50),
    )
    model.save(tmp_path / "student.npz")
    out = tmp_path / "device"
    command = ["export", str(tmp_path / "student.npz"), "--target", "c", "--out", str(out)]
    for options in (["--prefix", "lander_", "--reentrant"], ["--prefix", "arm", "--probabilities"], []):
        assert main([*command, *options]) == 0
    result = verify(out, observations, 50)
    assert result.holds and set(result.files.values()) == {"policy.c", "arm.c", "lander.c"}
    assert "C on this computer, lander" in result.table()
    (out / "lander.c").write_text((out / "lander.c").read_text() + "\n")
    result = verify(out, observations, 50)
    assert result.stale_files == ["lander.c"] and "--target c --prefix lander_ --out" in result.table()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--prefix", "A-b"])
    assert "expected a prefix of C names in lower case, such as lander_, got 'A-b'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "student.npz"), "--target", "numpy", "--reentrant", "--out", str(out)])
    assert "--reentrant is for c" in capsys.readouterr().err


def test_a_dict_is_refused_without_its_model(tmp_path: Path) -> None:
    export_c(make_student("Dict of vectors", "Discrete", 8).to_integer(), tmp_path)
    with pytest.raises(ValueError, match="Give the student's integer model"):
        CPolicy(tmp_path).predict(np.zeros(3), deterministic=True)


def test_float_images_come_with_channels_last(tmp_path: Path) -> None:
    """The C takes pixel after pixel; the student is a linear one of two pixels with two channels."""
    weight = np.arange(1, 5, dtype=np.int8)[None]
    head = IntegerLayer(weight, np.zeros(1, np.int32), np.ones(1, np.float32), 8, 0)
    part = ObservationPart("float_image", (2, 1, 2))
    model = IntegerModel([head], (2, 1, 2), np.ones(1, np.float32), np.zeros(1, np.float32), parts=(part,))
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 1, 2) * 10
    export_c(model, tmp_path, observations=image)
    assert "{\n    0.0f, 20.0f, 10.0f, 30.0f\n}" in (tmp_path / "test_vectors.h").read_text()
    assert CPolicy(tmp_path, model=model).outputs(image) == model.accumulators(image) == 200


@pytest.mark.parametrize("observation", ["vector", "Dict"])
@pytest.mark.parametrize("bits", [8, 4])
def test_value_head(observation: str, bits: int, tmp_path: Path) -> None:
    """The bits of numpy, and close to the float head of the policy."""
    policy, observations = make_student(observation, "Discrete", bits), sample(OBSERVATIONS[observation], 64)
    policy.set_value_scale(mean=-150.0, std=70.0)
    with th.no_grad():
        policy.value_net.weight.normal_()
        expected = policy.predict_values(policy.obs_to_tensor(observations)[0]).numpy()[:, 0]
    model = policy.to_integer()
    with pytest.raises(ValueError, match="with_value=True needs a value head"):
        export_c(model, tmp_path, with_value=True)
    add_value_head(model, policy)
    export_c(model, tmp_path, with_value=True, reentrant=bits == 4)
    run_compiler([*find_compiler(), *WARNINGS, tmp_path / "main.c", tmp_path / "policy.c", "-o", tmp_path / "main"])
    assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.startswith("0 of ")
    values, layer = CPolicy(tmp_path, model=model).values(observations), find_value_head(model)
    np.testing.assert_array_equal(values, values_of(model, observations))
    assert layer is not None and f"#define POLICY_VALUE_BYTES {layer.nbytes}\n" in (tmp_path / "policy.h").read_text()
    assert np.abs(values * layer.multiplier - expected).max() < 0.03 * np.ptp(expected)
    model.save(tmp_path / "student.npz")
    assert verify(tmp_path, observations, 64).holds  # it is exported again from the file, value head included


@pytest.mark.parametrize("wrong", [3, {"weight": [1, 2]}, {"weight": [[1]], "bias": 0, "unit": 1.0}, {"weight": [1e9] * 16}])
def test_a_wrong_value_head_is_refused(wrong: Any, tmp_path: Path) -> None:
    model = make_student("vector", "Discrete", 8).to_integer()
    model.metadata["value_head"] = wrong
    with pytest.raises(ValueError, match="The value head in the student's metadata is none"):
        export_c(model, tmp_path, with_value=True)


def test_export_with_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_student("vector", "Discrete", 8).to_integer()
    model.save(tmp_path / "student.npz")
    command = ["export", str(tmp_path / "student.npz"), "--target", "c", "--with-value", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(command)
    assert "--with-value takes a student's zip, and " in capsys.readouterr().err
    add_value_head(model, make_student("vector", "Discrete", 8))
    model.save(tmp_path / "student.npz")
    assert main(command) == 0
    assert f"its value head is {find_value_head(model).nbytes} bytes more" in capsys.readouterr().out  # type: ignore[union-attr]
