import shutil
import subprocess

import numpy as np
import pytest
from gymnasium import spaces
from space_students import OBSERVATIONS
from space_students import make_student as make_space_student
from stable_baselines3.common.vec_env import VecEnv
from students import BOX, DISCRETE, IMAGE, VECTOR, make_student, some_observations
from toys import sample

from sb3_qpd import make_recipe
from sb3_qpd.export.c.emulator import MICROCONTROLLERS, Emulation, Microcontroller, MisfitError, emulate, missing_tools
from sb3_qpd.export.c.exporter import export_c
from sb3_qpd.integer import REQUANTIZATIONS

# one of each kind; the others take the same branches of the C
DIFFERENT = ("cortex-m4f", "cortex-m3", "rv32imc")
ALIKE = [name for name in MICROCONTROLLERS if name not in (*DIFFERENT, "atmega328p")]  # which tests/export/test_avr.py has
FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def needs(microcontroller: str) -> None:
    if problem := missing_tools(microcontroller):
        pytest.skip(problem)


@pytest.mark.slow
@pytest.mark.parametrize("microcontroller", DIFFERENT)
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize(
    ("space", "action_space", "bits"),
    [(VECTOR, DISCRETE, (8, 8)), (VECTOR, BOX, (4, 8)), (IMAGE, DISCRETE, (4, 4)), (IMAGE, BOX, (3, 8))],
    ids=["vector, W8A8", "vector Box, W4A8", "image, W4A4", "image Box, W3A8"],
)
def test_twins(microcontroller, requantization, space, action_space, bits, tmp_path):
    needs(microcontroller)
    model = make_student(space, action_space, bits).to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    observations = some_observations(space, 20 if model.is_image else 300)
    seen = emulate(tmp_path, model, observations, microcontroller)
    accumulators = model.accumulators(observations)
    np.testing.assert_array_equal(seen.outputs, accumulators)
    expected = model.predict(observations, deterministic=True)[0]
    if model.is_box and requantization == "fixed":
        expected = np.clip(accumulators, *model.bounds_in_units())
    np.testing.assert_array_equal(seen.actions, expected)
    assert seen.instructions.min() > model.macs / 2 and seen.call_stack < 1024 and seen.ram < 16_384


@pytest.mark.parametrize("microcontroller", DIFFERENT)
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
def test_an_origin_is_taken_off_in_double(microcontroller, requantization, tmp_path):
    """None of these processors has doubles: a routine of the compiler subtracts."""
    needs(microcontroller)
    policy = make_student(VECTOR, DISCRETE)
    policy.features_extractor.set_origin(np.array([5_400_000.25, 0, 0, 0, -1.7e9]))
    model = policy.to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    observations = some_observations(VECTOR, 100) + model.input_origin
    seen = emulate(tmp_path, model, observations, microcontroller)
    np.testing.assert_array_equal(seen.outputs, model.accumulators(observations))
    np.testing.assert_array_equal(seen.actions, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("microcontroller", ALIKE)
@pytest.mark.parametrize(("requantization", "space"), [("float32", VECTOR), ("fixed", VECTOR), ("fixed", IMAGE)])
def test_other_cores(microcontroller, requantization, space, tmp_path):
    needs(microcontroller)
    model = make_student(space, DISCRETE, (4, 8)).to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    observations = some_observations(space, 5 if model.is_image else 100)
    seen = emulate(tmp_path, model, observations, microcontroller)
    np.testing.assert_array_equal(seen.outputs, model.accumulators(observations))
    np.testing.assert_array_equal(seen.actions, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize(("space", "requantization"), [(VECTOR, "float32"), (VECTOR, "fixed"), (IMAGE, "fixed")])
def test_compiles_for_xtensa(space, requantization, tmp_path):
    """The ESP8266's core. Debian has no compiler for the ESP32's, which takes the same branches of the C."""
    compiler = shutil.which("xtensa-lx106-elf-gcc")
    headers = [compiler, "-E", "-x", "c", "-"]
    if compiler is None or subprocess.run(headers, input=b"#include <string.h>\n", capture_output=True).returncode:
        pytest.skip("needs xtensa-lx106-elf-gcc and a C library's headers: make emulators")
    model = make_student(space, BOX, (4, 8)).to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
    command = ["xtensa-lx106-elf-gcc", "-std=c99", "-O2", "-mlongcalls", *warnings, "-c", "policy.c", "-o", "policy.o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr


STUDENTS = {"LunarLander-v3": "tiny", "BipedalWalker-v3": "nano", "HalfCheetah-v5": "small", "PongNoFrameskip-v4": "tiny"}


def recorded(env_id: str, n: int) -> tuple[VecEnv, np.ndarray]:
    """An environment (closed), and observations of random actions in it."""
    env = make_recipe(env_id).make_vec_env(1, seed=0, training=False)
    env.action_space.seed(0)
    seen = [env.reset().copy()]
    for _ in range(n - 1):
        seen.append(env.step(np.array([env.action_space.sample()]))[0].copy())
    env.close()
    return env, np.concatenate(seen)


@pytest.mark.slow
@pytest.mark.parametrize("microcontroller", DIFFERENT)
@pytest.mark.parametrize(("env_id", "arch"), STUDENTS.items())
def test_students_of_real_environments(microcontroller, env_id, arch, tmp_path):
    """The networks that play them, on what is seen there."""
    needs(microcontroller)
    env, observations = recorded(env_id, 200)
    policy = make_student(env.observation_space, env.action_space, arch=arch)
    policy.calibrate(policy.obs_to_tensor(observations)[0])
    model = policy.to_integer()
    observations = observations[-5::-50] if model.is_image else observations
    for model.requantization in REQUANTIZATIONS:
        export_c(model, tmp_path)
        seen = emulate(tmp_path, model, observations, microcontroller)
        accumulators = model.accumulators(observations)
        assert len(np.unique(accumulators, axis=0)) > len(observations) / 2
        np.testing.assert_array_equal(seen.outputs, accumulators)
        is_fixed_box = model.is_box and model.requantization == "fixed"
        actions = np.clip(accumulators, *model.bounds_in_units()) if is_fixed_box else model.actions(accumulators)
        np.testing.assert_array_equal(seen.actions, actions)
        if model.requantization == "fixed" or microcontroller == "cortex-m4f":  # else with routines for floats
            assert seen.flash <= model.nbytes + 2560


@pytest.mark.parametrize("flags", ["-O0", "-Os", "-O3", "-O2 -ffp-contract=fast", "-O2 -flto"])
def test_flags_do_not_matter(flags, tmp_path):
    needs("cortex-m4f")
    for space in (VECTOR, IMAGE):
        model = make_student(space, BOX, (4, 8)).to_integer()
        export_c(model, tmp_path)
        observations = some_observations(space, 20)
        seen = emulate(tmp_path, model, observations, "cortex-m4f", cflags=flags.split())
        np.testing.assert_array_equal(seen.outputs, model.accumulators(observations))
        np.testing.assert_array_equal(seen.actions, model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("weight_bits", [8, 4, 2])
def test_a_student_for_atari_fits(weight_bits, requantization, tmp_path):
    """The size that plays Pong: what it needs beyond its numbers, and what a multiply-accumulate costs."""
    needs("cortex-m4f")
    model = make_student(FRAMES, DISCRETE, (weight_bits, 8), arch="tiny").to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    seen = emulate(tmp_path, model, some_observations(FRAMES, 4), "cortex-m4f")
    assert seen.flash <= model.nbytes + 2880
    assert seen.ram - 4 * 84 * 84 + seen.call_stack <= 8192
    assert seen.instructions.max() <= 1.75 * model.macs
    assert seen.milliseconds(100) == pytest.approx(np.median(seen.instructions) / 1e5)


def test_missing_tools_are_named(tmp_path, monkeypatch):
    chip = Microcontroller("no-such-", "", "qemu-no-such -kernel", 0, "some-package")
    monkeypatch.setitem(MICROCONTROLLERS, "none", chip)
    model = make_student().to_integer()
    with pytest.raises(
        RuntimeError, match="no-such-gcc, no-such-size, qemu-no-such not found: apt-get install .* some-package"
    ):
        emulate(tmp_path, model, some_observations(VECTOR), "none")


def test_milliseconds():
    seen = Emulation(*3 * [np.array([1000, 2000, 4000])], flash=0, ram=0, call_stack=0)
    assert seen.milliseconds(mhz=2) == 1.0


@pytest.mark.parametrize("microcontroller", MICROCONTROLLERS)
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
def test_dict_observations(microcontroller, requantization, tmp_path):
    """The struct has the same layout there."""
    needs(microcontroller)
    model = make_space_student("Dict", "MultiDiscrete", 4).to_integer()
    model.requantization = requantization
    export_c(model, tmp_path, reentrant=True)
    observations = sample(OBSERVATIONS["Dict"], 5)
    if microcontroller == "atmega328p":  # an image's layers and 2 KiB of RAM
        with pytest.raises(MisfitError, match="C has no convolutions for AVR"):
            emulate(tmp_path, model, observations, microcontroller)
        return
    seen = emulate(tmp_path, model, observations, microcontroller)
    np.testing.assert_array_equal(seen.outputs, model.accumulators(observations))
    np.testing.assert_array_equal(seen.actions, model.predict(observations, deterministic=True)[0])
