import json
import math

import pytest

from sb3_qpd.students.architectures import STUDENT_ARCHS, StudentArch, conv_output_sides, make_arch

NATURE_ACTOR = 4 * 32 * 64 + 32 + 32 * 64 * 16 + 64 + 64 * 64 * 9 + 64 + 3136 * 512 + 512  # without the head


def atari_bytes(arch: StudentArch, n_actions: int) -> int:
    """Packed weights, int32 biases and float32 multipliers, counted by hand."""
    side, n_in, shapes = 84, 4, []
    for channels, kernel, stride in arch.conv:
        shapes.append((channels, n_in * kernel**2))
        side, n_in = (side - kernel) // stride + 1, channels
    n_in *= side**2
    for units in (*arch.conv_hidden, n_actions):
        shapes.append((units, n_in))
        n_in = units
    bits = arch.layer_bits(len(shapes))
    weights = sum(math.ceil(n_out * n_in * b / 8) for (n_out, n_in), b in zip(shapes, bits, strict=True))
    n_units = sum(n_out for n_out, _ in shapes)
    return weights + 4 * n_units + 4 * (n_units - n_actions + 1)  # the head of discrete actions has one multiplier


@pytest.mark.parametrize("n_actions", [4, 6, 18])
@pytest.mark.parametrize(("name", "percent"), [("tiny", 0.5), ("nano", 0.1)])
def test_small_atari_students_are_as_small_as_they_claim(name, percent, n_actions):
    teacher = 4 * (NATURE_ACTOR + 513 * n_actions)
    assert atari_bytes(STUDENT_ARCHS[name], n_actions) <= percent / 100 * teacher


def test_first_and_last_layer_keep_eight_bits():
    arch = StudentArch(hidden=(16, 16), weight_bits=2)
    assert arch.layer_bits(3) == [8, 2, 8]
    assert arch.layer_bits(2) == [8, 8]
    assert arch.layer_bits(1) == [8]
    assert StudentArch(weight_bits=32, activation_bits=32).layer_bits(3) == [32, 32, 32]


def test_bits_of_each_layer():
    assert StudentArch(hidden=(8,), weight_bits=(4, 3)).layer_bits(2) == [4, 3]
    with pytest.raises(ValueError, match="names 2 layers, this student has 3"):
        StudentArch(hidden=(8, 8), weight_bits=(4, 3)).layer_bits(3)


def test_json_and_back():
    for arch in (*STUDENT_ARCHS.values(), StudentArch(hidden=[4], weight_bits=[8, 4], activation_bits=3)):
        assert make_arch(json.loads(json.dumps(arch.asdict()))) == arch


def test_lists_become_tuples_so_that_equal_ones_compare_equal():
    lists = StudentArch(hidden=[8], conv=[[4, 8, 4]], conv_hidden=[16], weight_bits=[8, 4, 8])
    assert lists == StudentArch(hidden=(8,), conv=((4, 8, 4),), conv_hidden=(16,), weight_bits=(8, 4, 8))
    hash(lists)


def test_bits_override_those_of_the_architecture_and_none_keeps_them():
    arch = make_arch("nano", weight_bits=4)
    assert (arch.weight_bits, arch.activation_bits) == (4, STUDENT_ARCHS["nano"].activation_bits)
    assert arch.hidden == STUDENT_ARCHS["nano"].hidden
    assert make_arch(StudentArch(weight_bits=3, activation_bits=2)).weight_bits == 3
    assert make_arch({"hidden": (4,)}, None, 2).activation_bits == 2


def test_unknown_name_lists_those_known_and_the_nearest():
    with pytest.raises(
        ValueError, match="Unknown student_arch 'tinny'. Known: nano, tiny, small, medium, large. Did you mean 'tiny'?"
    ):
        make_arch("tinny")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": (0,)}, "hidden takes positive integers"),
        ({"hidden": 16}, "hidden takes positive integers, got 16"),
        ({"hidden": (16.0,)}, "hidden takes positive integers"),
        ({"conv_hidden": (-3,)}, "conv_hidden takes positive integers"),
        ({"conv": ((8, 4),)}, "triples, got"),
        ({"conv": (8, 4, 2)}, "triples, got"),
        ({"conv": ((8, 4, 0),)}, "triples, got"),
        ({"weight_bits": 1}, "Bits must be one of .* got weight_bits=1"),
        ({"weight_bits": 16}, "Bits must be one of"),
        ({"weight_bits": "8"}, "Bits must be one of"),
        ({"weight_bits": None}, "Bits must be one of"),
        ({"weight_bits": (8, 9)}, "Bits must be one of"),
        ({"activation_bits": 0}, "Bits must be one of .* activation_bits=0"),
        ({"activation_bits": 8.0}, "Bits must be one of"),
        ({"width": 16}, "takes the fields 'hidden', 'conv', .*; got .*'width'"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_arch(fields)


def test_weights_and_activations_are_float_together():
    """Half a float student would have no integer form, and its quantized half would be silently float."""
    for bits in ({"weight_bits": 32}, {"activation_bits": 32}, {"weight_bits": (8, 32, 8)}):
        with pytest.raises(ValueError, match="32 .*both"):
            StudentArch(hidden=(8, 8), **bits)


def test_wrong_type_is_refused():
    with pytest.raises(TypeError, match="a name, a dict or a StudentArch, got int"):
        make_arch(16)


@pytest.mark.parametrize("side", range(1, 40))
@pytest.mark.parametrize("name", STUDENT_ARCHS)
def test_names_fit_images_of_any_size(name, side):
    for shape in ((3, side, side), (1, side, 50), (4, 50, side)):
        arch = make_arch(name, image_shapes=[shape])
        assert min(conv_output_sides(arch.conv, shape[1:])) >= 1
        assert [channels for channels, _, _ in arch.conv] == [channels for channels, _, _ in STUDENT_ARCHS[name].conv]
        assert (arch == STUDENT_ARCHS[name]) == (side >= 36)


def test_sizes_that_are_described_are_taken_as_they_are():
    described = STUDENT_ARCHS["tiny"].asdict()
    assert make_arch(described, image_shapes=[(3, 7, 7)]) == STUDENT_ARCHS["tiny"]
