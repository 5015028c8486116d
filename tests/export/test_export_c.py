"""Compiled C gives IntegerModel's bits: every output, every step before it, and every action."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_policies import assert_same, assert_same_actions, compiled, integers, linear, needs_compiler
from gymnasium import spaces
from students import BOX, DISCRETE, IMAGE, SPACES, TREATMENTS, VECTOR, make_student, some_observations, treat

from sb3_qpd import IntegerModel
from sb3_qpd.export.c.exporter import export_c
from sb3_qpd.export.c.layout import bit_planes, lay_out
from sb3_qpd.export.c.runtime import CPolicy, find_compiler, run_compiler
from sb3_qpd.integer import REQUANTIZATIONS, IntegerLayer

BITS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A8": (3, 8), "W2A8": (2, 8)}

pytestmark = needs_compiler


@pytest.mark.slow
@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_twins(observation_space, action_space, bits, requantization, tmp_path):
    model = integers(observation_space, action_space, bits, requantization)
    observations = some_observations(observation_space, 100 if model.is_image else 3000)
    c = compiled(model, tmp_path, ("-O1",))
    assert_same(c, model, observations)
    assert_same_actions(c, model, observations[:100])


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_twins_whatever_training_did(treatment, tmp_path):
    for i, (space, requantization) in enumerate([(VECTOR, "float32"), (IMAGE, "fixed")]):
        policy = make_student(space, BOX, (3, 3))
        treat(policy, treatment)
        model = policy.to_integer()
        model.requantization = requantization
        (folder := tmp_path / str(i)).mkdir()
        c, observations = compiled(model, folder, ("-O1",)), some_observations(space, 50 if space is IMAGE else 1000)
        assert_same(c, model, observations)
        assert_same_actions(c, model, observations[:50])


FLAGS = [
    *("gcc -O0", "gcc -Os", "gcc -O2", "gcc -O3", "gcc -O3 -march=native", "gcc -O3 -march=native -ffp-contract=fast"),
    *("clang -O0", "clang -O2 -march=native -ffp-contract=fast"),
]


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_do_not_matter(flags, tmp_path):
    compiler, *cflags = flags.split()
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    for space in (VECTOR, IMAGE):
        model = integers(space, BOX, (4, 8))
        export_c(model, tmp_path)
        c, observations = CPolicy(tmp_path, cflags, compiler=[compiler]), some_observations(space, 200)
        assert_same(c, model, observations)
        assert_same_actions(c, model, observations[:100])


ODD_ARCHS = {
    "no hidden layer": {"hidden": ()},
    "odd widths": {"hidden": (7, 13, 3)},
    "wide, unpacked in pieces": {"hidden": (150, 131)},
    "odd convolutions": {"conv": ((5, 7, 3), (4, 2, 2), (3, 1, 1)), "conv_hidden": ()},
    "convolutions unpacked in pieces": {"conv": ((16, 6, 5), (24, 4, 1)), "conv_hidden": (9,)},
}


@pytest.mark.parametrize("arch", ODD_ARCHS.values(), ids=ODD_ARCHS)
def test_twins_of_odd_shapes(arch, tmp_path):
    space = IMAGE if "conv" in arch else spaces.Box(-1, 1, (15,), np.float32)
    n_layers = 1 + sum(len(arch.get(name, ())) for name in ("hidden", "conv", "conv_hidden"))
    for i, bits in enumerate([(8, 8), ((5,) * n_layers, 6), ((7,) * n_layers, 8), (tuple(2 + j for j in range(n_layers)), 4)]):
        (folder := tmp_path / str(i)).mkdir()
        model = integers(space, DISCRETE, bits, REQUANTIZATIONS[i % 2], arch=arch)
        assert_same(compiled(model, folder), model, some_observations(space, 64))


WIDE = {
    "dense": (spaces.Box(-1, 1, (24,)), {"hidden": (150, 131)}),
    "convolutions": (IMAGE, {"conv": ((32, 6, 3), (5, 3, 2)), "conv_hidden": (90,)}),
}


@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize(("space", "arch"), WIDE.values(), ids=WIDE)
def test_wide_layers_of_8_bits_beside_packed_ones(space, arch, requantization, tmp_path):
    """They take all of their rows from where they lie, as many as they are, while the others unpack theirs in chunks."""
    model = integers(space, spaces.Discrete(40), (4, 8), requantization, arch=arch)
    sizes = {name: [layer.weight.size for layer in model.layers if (layer.weight_bits == 8) == (name == "8")] for name in "84"}
    assert len(sizes["8"]) == 2 and min(sizes["8"]) > 2560 and max(sizes["4"]) > 2560, sizes
    c, observations = compiled(model, tmp_path), some_observations(space, 64)
    assert_same(c, model, observations)
    assert_same_actions(c, model, observations)


def test_half_way_sums_are_rounded_to_even(tmp_path):
    """Products that end in exactly one half, and their neighbours; multipliers from zero to the largest."""
    multipliers = np.repeat(np.array([0.5, 0.25, 1.5, 0.1, 1e-30, 0.0, 3e38], np.float32), 4)
    n = len(multipliers)
    weight, bias = (
        np.tile(np.array([[1, 0], [2, 0], [127, 0], [1, 1]], np.int8), (n // 4, 1)),
        np.arange(n, dtype=np.int32) % 9,
    )
    hidden = IntegerLayer(weight, bias - 4, multipliers, 8, 8)
    head = IntegerLayer(np.eye(n, dtype=np.int8), np.zeros(n, np.int32), np.ones(1, np.float32), 8, 0)
    grid = np.stack(np.meshgrid(np.arange(-128, 128), [-3, 0, 5]), -1).reshape(-1, 2).astype(np.float32)
    model = IntegerModel([hidden, head], (2,), np.ones(2, np.float32), np.zeros(2, np.float32))
    for model.requantization in REQUANTIZATIONS:
        with np.errstate(over="ignore"):
            assert_same(compiled(model, tmp_path), model, grid)


def test_half_way_observations_are_rounded_to_even(tmp_path):
    model = linear(3, 0.1)
    model.input_multiplier = np.array([0.5, 1 / 3], np.float32)
    model.input_offset = np.array([0.25, -1e-3], np.float32)
    x = np.arange(-600, 600, dtype=np.float32)[:, None] * np.array([0.5, 0.75], np.float32)
    assert_same(
        compiled(model, tmp_path, ("-O3", "-march=native")), model, np.concatenate([x, np.nextafter(x, np.float32(9e9))])
    )


@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("unit", [0, 1e-45, 1e-38, 1e-9, 1, 1e38])
def test_any_unit_of_a_box_action(unit, requantization, tmp_path):
    """Bounds that no int32 reaches in that unit, and a unit in which every action is zero."""
    low, high = np.array([[-1, 1], [0, 1], [-2, 0], [0.5, 2], [-3, -0.25], [1, 1], [-3e38, 3e38]], np.float32).T
    weight = np.random.default_rng(0).integers(-90, 90, (len(low), 2)).astype(np.int8)
    head = IntegerLayer(weight, np.arange(-3, 4, dtype=np.int32), np.full(len(low), unit, np.float32), 8, 0)
    grid = {"input_multiplier": np.full(2, 10, np.float32), "input_offset": np.zeros(2, np.float32)}
    box = {"action_low": low, "action_high": high, "action_shape": low.shape}
    model = IntegerModel([head], (2,), **grid, **box, requantization=requantization)
    observations = some_observations(spaces.Box(-9, 9, (2,)), 200)
    with np.errstate(over="ignore"):
        actions = model.predict(observations, deterministic=True)[0]
        assert (low <= actions).all() and (actions <= high).all()
        assert unit > 0 or (actions == np.clip(0, low, high)).all()
        c = compiled(model, tmp_path)
    assert c.actions(observations).tobytes() == actions.tobytes()
    run_compiler([*find_compiler(), tmp_path / "main.c", tmp_path / "policy.c", "-o", tmp_path / "main"])
    assert subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.startswith("0 of 32")


def test_any_input_multiplier_has_test_vectors(tmp_path):
    """Observations that reach the grid's ends may lie beyond float32, or not exist."""
    model = linear(4, 0.1)
    for multiplier in (0, 1e-45, 1e-38, -0.5, 3e38):
        for offset in (0, 3e38, -1e-45):
            model.input_multiplier, model.input_offset = (np.full(2, x, np.float32) for x in (multiplier, offset))
            c = compiled(model, tmp_path, ("-O1",))
            assert_same(c, model, some_observations(spaces.Box(-9, 9, (2,)), 50))


def test_bit_planes_are_what_c_reads():
    weights = np.random.default_rng(0).integers(-4, 4, 70)
    words = bit_planes(weights, 3)
    assert words.shape == (9,) and words.dtype == np.uint32
    for k, weight in enumerate(weights):
        group, j, i = k // 32, k % 32 // 4, k % 4
        bits = [int(word) >> (8 * i + j) & 1 for word in words[3 * group : 3 * group + 3]]
        assert bits[0] + 2 * bits[1] - 4 * bits[2] == weight


@pytest.mark.parametrize(("n_actions", "unit"), [(2, 0.01), (6, 0.001), (3, 1e-7), (6, 0.3), (300, 2e-4), (4, 1e7), (3, 0.0)])
def test_sampler(n_actions, unit, tmp_path):
    model, rng = linear(n_actions, unit), np.random.default_rng(0)
    c = compiled(model, tmp_path)
    observations = rng.uniform(-12, 12, (1500, 2)).astype(np.float32)
    random_bits = rng.integers(0, 2**32, 1500, np.uint64)
    random_bits[:3] = 0, 2**32 - 1, 2**31
    np.testing.assert_array_equal(
        c.actions(observations, random_bits), model.sample(model.accumulators(observations), random_bits)
    )


def test_box_has_no_sampler(tmp_path):
    with pytest.raises(ValueError, match="random_bits are for discrete actions"):
        compiled(integers(VECTOR, BOX), tmp_path).act(np.zeros(5, np.float32), 1)


def test_observations_of_16_bits(tmp_path):
    """Units of 1/256 of a grid step, rounded half up."""
    export_c(integers(VECTOR, DISCRETE, requantization="fixed"), tmp_path)
    library = CPolicy(tmp_path).library
    values = np.arange(-(2**15), 2**15, dtype=np.int16)
    grid = np.empty(5, np.int8)
    for start in (0, 100, 32700, 32768, 40000, 65531):
        chunk = np.ascontiguousarray(values[start : start + 5])
        assert library.policy_quantize_int16(chunk.ctypes.data_as(ctypes.c_void_p), grid.ctypes.data_as(ctypes.c_void_p)) == 0
        np.testing.assert_array_equal(grid, np.clip((chunk.astype(int) + 128) >> 8, -128, 127))


@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_observations_that_are_not_finite(value, requantization, tmp_path):
    c = compiled(integers(VECTOR, DISCRETE, requantization=requantization), tmp_path)
    observation = np.zeros(5, np.float32)
    observation[3] = value
    for call in (lambda: c.act(observation), lambda: c.act(observation, 7), lambda: c.outputs(observation[None])):
        with pytest.raises(ValueError, match="returned -2: the observation holds NaN or infinity"):
            call()
    c.act(np.zeros(5, np.float32))


def test_frames_come_one_by_one(tmp_path):
    """After a reset the stack is zero, as SB3's VecFrameStack has it; the newest frame is the last channel."""
    model = integers(IMAGE)
    library = compiled(model, tmp_path).library
    frames = some_observations(spaces.Box(0, 255, (1, 36, 36), np.uint8), 12)[:, 0]
    outputs = np.empty(6, np.int32)
    pointer = outputs.ctypes.data_as(ctypes.c_void_p)
    for episode in (frames[:7], frames[7:]):
        library.policy_reset()
        assert library.policy_outputs(pointer) == -3
        stack = np.zeros(IMAGE.shape, np.uint8)
        for frame in episode:
            stack = np.concatenate([stack[1:], frame[None]])
            assert library.policy_push_frame(np.ascontiguousarray(frame).ctypes.data_as(ctypes.c_void_p)) == 0
            assert library.policy_outputs(pointer) == 0
            np.testing.assert_array_equal(outputs, model.accumulators(stack)[0])


@pytest.mark.parametrize(("channels", "n_frames"), [(1, None), (3, None), (3, 3), (4, 2), (4, 1), (6, 2), (5, None)])
def test_frames_of_any_kind(channels, n_frames, tmp_path):
    space = spaces.Box(0, 255, (channels, 36, 36), np.uint8)
    model = integers(space)
    assert_same(compiled(model, tmp_path, n_frames=n_frames), model, some_observations(space, 20))


def test_the_students_own_number_of_frames(tmp_path):
    model = integers(spaces.Box(0, 255, (6, 36, 36), np.uint8))
    model.metadata["env"] = {"env_id": "Camera-v0", "frame_stack": 2}
    export_c(model, tmp_path)
    header = (tmp_path / "policy.h").read_text()
    assert "#define POLICY_N_FRAMES 2" in header and "#define POLICY_FRAME_CHANNELS 3" in header and "Camera-v0" in header
    for env in ("Camera-v0", {"frame_stack": "2"}, {"frame_stack": None}):  # a file from elsewhere may say anything
        model.metadata["env"] = env
        export_c(model, tmp_path)
        assert "#define POLICY_N_FRAMES 6" in (tmp_path / "policy.h").read_text()


def test_null_pointers(tmp_path):
    library = compiled(integers(VECTOR), tmp_path).library
    observation, action = np.zeros(5, np.float32), np.zeros(1, np.int32)
    given, to = (array.ctypes.data_as(ctypes.c_void_p) for array in (observation, action))
    assert library.policy_act(None, to) == library.policy_act(given, None) == -1
    assert library.policy_sample(None, 5, to) == library.policy_outputs(given, None) == -1
    assert library.policy_act(given, to) == 0


def test_what_cannot_be_exported(tmp_path):
    model = integers(VECTOR)
    for name in ("Policy", "2fast", "a-b", ""):
        with pytest.raises(ValueError, match="lower-case C identifier"):
            export_c(model, tmp_path, name=name)
    with pytest.raises(ValueError, match="n_frames is for images"):
        export_c(model, tmp_path, n_frames=2)
    with pytest.raises(ValueError, match="n_frames must divide the 4 channels of an observation, got 3"):
        export_c(integers(IMAGE), tmp_path, n_frames=3)
    with pytest.raises(ValueError, match="Expected an observation of shape"):
        export_c(model, tmp_path, observations=np.zeros((3, 4), np.float32))
    assert not list(tmp_path.iterdir())


def test_sums_that_could_overflow_are_refused():
    """The offset that keeps inputs from being negative counts too."""
    head = IntegerLayer(np.full((2, 45_000), -127, np.int8), np.full(2, -500_000_000, np.int32), np.ones(1, np.float32), 8, 0)
    assert (
        lay_out(IntegerModel([head], (45_000,), *np.ones((2, 45_000), np.float32))).head.bias[0]
        == -500_000_000 + 128 * 127 * 45_000
    )
    head = IntegerLayer(np.full((2, 60_000), 127, np.int8), np.zeros(2, np.int32), np.ones(1, np.float32), 8, 0)
    with pytest.raises(ValueError, match="in layer 'head' could reach .* does not fit int32"):
        lay_out(IntegerModel([head], (60_000,), *np.ones((2, 60_000), np.float32)))


def test_a_missing_compiler(tmp_path, monkeypatch):
    export_c(integers(VECTOR), tmp_path)
    monkeypatch.setenv("CC", "no-such-cc -m64")
    with pytest.raises(RuntimeError, match="No C compiler found.*no-such-cc -m64.*apt-get install gcc"):
        CPolicy(tmp_path)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="No C compiler found.*cc, gcc or clang"):
        CPolicy(tmp_path)


def test_what_cpolicy_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="No policy.c in .*export_c writes it"):
        CPolicy(tmp_path)
    c = compiled(integers(IMAGE), tmp_path)
    with pytest.raises(ValueError, match="Expected observations of shape"):
        c.outputs(np.zeros((1, 4, 35, 36), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        c.outputs(np.zeros((1, 4, 36, 36), np.float32))


def test_another_students_c_is_refused_instead_of_written_beyond_the_buffer(tmp_path: Path) -> None:
    small, large = (integers(VECTOR, arch={"hidden": hidden}) for hidden in ((8,), (64, 64)))
    for model, other in ((small, large), (large, small)):
        export_c(model, tmp_path)
        with pytest.raises(ValueError, match="other layers"):
            CPolicy(tmp_path).trace(some_observations(VECTOR, 50), other)


def far_student(action_space: spaces.Space = BOX, requantization: str = "float32") -> IntegerModel:
    """Its first and last features have offsets that float32 cannot carry."""
    policy = make_student(VECTOR, action_space)
    policy.features_extractor.set_origin(np.array([5_400_000.25, 0, 0, 0, -1.7e9]))
    model = policy.to_integer()
    model.requantization = requantization
    return model


@pytest.mark.parametrize("requantization", REQUANTIZATIONS)
@pytest.mark.parametrize("action_space", [DISCRETE, BOX], ids=["discrete", "Box"])
def test_twins_with_an_origin(action_space, requantization, tmp_path):
    """Observations are doubles: in float, most of these would be the same number."""
    model = far_student(action_space, requantization)
    observations = some_observations(VECTOR, 1000).astype(np.float64) + model.input_origin
    assert len(np.unique(model.quantize_input(observations)[:, 4])) > 100
    c = compiled(model, tmp_path, ("-O1",))
    assert_same(c, model, observations)
    assert_same_actions(c, model, observations[:100])
    header = (tmp_path / "policy.h").read_text()
    assert "#define POLICY_OBSERVATION_ORIGIN {5400000.25, 0.0, 0.0, 0.0, -1700000000.0}" in header
    assert f"policy_{'quantize' if requantization == 'fixed' else 'act'}(const double observation" in header


def test_a_float_origin_is_not_compiled(tmp_path):
    """A usual flag on microcontrollers makes floats of all constants, and an AVR's double has 32 bits."""
    export_c(far_student(), tmp_path)
    with pytest.raises(RuntimeError, match="policy_needs_double_of_64_bits"):
        CPolicy(tmp_path, ["-fsingle-precision-constant"], compiler=["gcc"])
