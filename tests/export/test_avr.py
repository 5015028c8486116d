"""An Arduino Uno (ATmega328P) under emulation: the same bits, within its flash and RAM."""

import subprocess

import numpy as np
import pytest
from boards import is_same_on, students_in_c
from gymnasium import spaces
from students import BOX, DISCRETE, IMAGE, VECTOR, make_student, some_observations
from test_microcontrollers import needs, recorded
from toys import sample

from sb3_qpd import QuantActorCriticPolicy
from sb3_qpd.export.c.emulator import MisfitError, emulate
from sb3_qpd.export.c.exporter import export_c
from sb3_qpd.integer import REQUANTIZATIONS

UNO = "atmega328p"


@pytest.mark.slow
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize(("env_id", "arch", "bits"), [("LunarLander-v3", "tiny", (8, 8)), ("CartPole-v1", "nano", (4, 4))])
def test_real_environments_on_an_uno(env_id, arch, bits, requantization, tmp_path):
    """1,000 observations of the environment, and 200 of all sizes, with ties and the ends of float32."""
    needs(UNO)
    env, observations = recorded(env_id, 1000)
    policy = make_student(env.observation_space, env.action_space, bits, arch)
    policy.calibrate(policy.obs_to_tensor(observations)[0])
    model = policy.to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    observations = np.concatenate([observations, some_observations(env.observation_space, 200)])
    seen = emulate(tmp_path, model, observations, UNO, cflags=["-Os"])  # Arduino's own option
    np.testing.assert_array_equal(seen.outputs, model.accumulators(observations))
    np.testing.assert_array_equal(seen.actions, model.predict(observations, deterministic=True)[0])
    assert seen.flash < 6144 and seen.ram + seen.call_stack < 400
    assert model.macs < seen.instructions.max() < 48_000, "at most 3 ms at 16 MHz"


@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
def test_box_actions_on_an_uno(requantization, tmp_path):
    needs(UNO)
    model = make_student(VECTOR, BOX, (3, 8)).to_integer()
    model.requantization = requantization
    export_c(model, tmp_path)
    observations = some_observations(VECTOR, 100)
    seen = emulate(tmp_path, model, observations, UNO)
    np.testing.assert_array_equal(seen.outputs, model.accumulators(observations))
    expected = model.predict(observations, deterministic=True)[0]
    if requantization == "fixed":
        expected = np.clip(seen.outputs, *model.bounds_in_units())
    np.testing.assert_array_equal(seen.actions, expected)


def test_a_struct_has_no_padding_on_an_uno(tmp_path):
    """A Dict of an index in four bytes and a vector of five: a computer pads the struct to twelve bytes."""
    needs(UNO)
    space = spaces.Dict(gear=spaces.Discrete(4), joints=spaces.Box(-1, 1, (5,)))
    policy = QuantActorCriticPolicy(space, DISCRETE, lambda _: 0.0, "nano")
    policy.calibrate(policy.obs_to_tensor(sample(space, 32))[0])
    model, observations = policy.to_integer(), sample(space, 30, seed=1)
    model.requantization = "fixed"
    export_c(model, tmp_path)
    np.testing.assert_array_equal(emulate(tmp_path, model, observations, UNO).outputs, model.accumulators(observations))


@pytest.mark.slow
def test_random_students_on_an_uno():
    """Other spaces, widths and bits; tests/boards.py has as many as one wants."""
    needs(UNO)
    fitting = (is_same_on(student, [UNO], "-Os") for student in students_in_c(0))
    assert [next(names for names in fitting if names) for _ in range(6)] == 6 * [[UNO]]


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    needs(UNO)
    images = make_student(IMAGE, DISCRETE).to_integer()
    with pytest.raises(MisfitError, match="atmega328p: C has no convolutions for AVR"):
        emulate(tmp_path, images, some_observations(IMAGE, 4), UNO)
    wide = make_student(spaces.Box(-1, 1, (200,), np.float32), DISCRETE, arch={"hidden": (160, 160)}).to_integer()
    with pytest.raises(MisfitError, match="32768 bytes of flash and 2048 of RAM. The student needs about [0-9]+ and [0-9]+"):
        emulate(tmp_path, wide, np.zeros((1, 200), np.float32), UNO)
    policy = make_student(VECTOR, DISCRETE)
    policy.features_extractor.set_origin(np.array([5_400_000.25, 0, 0, 0, -1.7e9]))
    with pytest.raises(MisfitError, match="no double of 64 bits .* requantization='fixed'"):
        emulate(tmp_path, policy.to_integer(), some_observations(VECTOR, 4), UNO)


@pytest.mark.parametrize(
    ("space", "has_origin", "reason"),
    [(IMAGE, False, "Convolutions are not for AVR"), (VECTOR, True, "AVR has no double of 64 bits")],
)
def test_the_c_refuses_it_too(space, has_origin, reason, tmp_path):
    """A sketch is compiled without this package."""
    needs(UNO)
    policy = make_student(space, DISCRETE)
    if has_origin:
        policy.features_extractor.set_origin(np.array([5_400_000.25, 0, 0, 0, -1.7e9]))
    export_c(policy.to_integer(), tmp_path)
    command = ["avr-gcc", "-mmcu=atmega328p", "-fsyntax-only", "policy.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode and reason in done.stderr
