"""Hostile ``student.npz``: each is refused with one error that names the field, within bounds of time and memory."""

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import bounded
from gymnasium import spaces
from students import BOX, DISCRETE, IMAGE, VECTOR, make_student, some_observations

from sb3_qpd import IntegerModel, QuantActorCriticPolicy
from sb3_qpd.export import export
from sb3_qpd.export.c.layout import lay_out, plan_arena
from sb3_qpd.export.c.proof import prove_sizes
from sb3_qpd.integer import IntegerLayer, StudentError, pack
from sb3_qpd.integer_file import MAX_WEIGHTS, check_header, read_json

Arrays = dict[str, np.ndarray]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array))
    return buffer.getvalue()


def write(path: Path, header: Any, arrays: Arrays, method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("header.npy", npy(np.frombuffer(content, np.uint8)))
        for name, array in arrays.items():
            archive.writestr(f"{name}.npy", npy(array))
        for name, member in members.items():
            archive.writestr(name, member)
    return path


def parts_of(model: IntegerModel, folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Header and arrays of a model's file."""
    model.save(folder / "honest.npz")
    with np.load(folder / "honest.npz") as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(arrays.pop("header").tobytes()), arrays


@pytest.fixture(scope="module")
def vector() -> IntegerModel:
    return make_student(VECTOR, DISCRETE, arch={"hidden": (16, 12)}).to_integer()


@pytest.fixture(scope="module")
def image() -> IntegerModel:
    return make_student(IMAGE, BOX).to_integer()


def refused(path: Path, field: str) -> None:
    with bounded(2, 2**30, of_processor=True), pytest.raises(StudentError, match=field) as error:
        IntegerModel.load(path)
    assert len(str(error.value)) < 700 and "is not a student's .npz" in str(error.value)


def refuses_header(model: IntegerModel, folder: Path, change: Callable[[dict[str, Any]], Any], field: str) -> None:
    """A change of the header is refused, and the message names the field."""
    header, arrays = parts_of(model, folder)
    change(header)
    refused(write(folder / "student.npz", header, arrays), field)


def layer(i: int, place: int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header["layers"][i][place] = value

    return change


def put(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update(values)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"x": value}
    return value


# name -> what is changed in the header of a vector's student of 5-16-12-6, and the field that the error names
HEADERS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a hidden layer without a grid": (layer(0, 2, 0), r"activation_bits of layers\[0\]"),
    "a head with a grid": (layer(2, 2, 8), r"activation_bits of layers\[2\]"),
    **{
        f"activations of {bits} bits": (layer(1, 2, bits), r"activation_bits")
        for bits in (1, 9, 16, 10**9, -1, 8.0, True, "8")
    },
    **{f"weights of {bits} bits": (layer(1, 1, bits), r"weight_bits") for bits in (0, 1, 9, 16, 10**9, -8, None, [8])},
    "too few multipliers": (layer(0, 4, 15), r"multipliers of layers\[0\]"),
    "one multiplier": (layer(0, 4, 1), r"multipliers of layers\[0\]"),
    "no multiplier": (layer(0, 4, 0), r"multipliers of layers\[0\]"),
    "many multipliers of the head": (layer(2, 4, 6), r"multipliers of layers\[2\]"),
    "a stride of 0": (layer(0, 3, 0), "stride"),
    "a stride of a fully connected layer": (layer(0, 3, 2), "stride"),
    "a negative shape": (layer(0, 0, [-16, -5]), "shape"),
    "an empty shape": (layer(0, 0, []), "shape"),
    "a shape of three axes": (layer(0, 0, [16, 5, 1]), "shape"),
    "a shape of 0": (layer(0, 0, [0, 5]), "shape"),
    "a shape of fractions": (layer(0, 0, [16.0, 5]), "shape"),
    "a wider input": (layer(0, 0, [16, 6]), "shape"),
    "a kernel for a vector": (layer(0, 0, [16, 5, 1, 1]), "shape"),
    "a wider layer between": (layer(1, 0, [12, 17]), "shape"),
    "10^18 weights": (layer(0, 0, [10**9, 10**9]), "shape"),
    "too many weights": (layer(0, 0, [2**16, 2**12]), "weights"),
    "no layers": (put(layers=[]), "layers"),
    "layers that are a dict": (put(layers={"a": 1}), "layers"),
    "layers that are numbers": (put(layers=[1, 2]), "layers"),
    "layers of three": (put(layers=[[1, 2, 3]]), "layers"),
    "300,000 layers": (lambda header: header.update(layers=header["layers"][:1] * 300_000), "header|layers"),
    "1,000 layers": (lambda header: header.update(layers=header["layers"][:1] * 1_000), "layers"),
    "metadata that is a list": (put(metadata=[1]), "metadata"),
    "metadata that is a text": (put(metadata="x"), "metadata"),
    "metadata 1,000 deep": (put(metadata=deep(900)), "header"),
    "metadata 25 deep": (put(metadata={"a": [[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]}), "levels deep"),
    "metadata of half a character": (put(metadata={"a": "\ud800"}), "half a character"),
    "metadata of 2 MiB": (put(metadata={"a": "x" * 2**21}), "header"),
    "a shape of an observation that is not the input's": (put(observation_shape=[6]), "shape|inputs"),
    "an observation of texts": (put(observation_shape="abc"), "shape"),
    "an observation of 10^9 numbers": (put(observation_shape=[10**9]), "shape"),
    "an observation of 30 axes": (put(observation_shape=[1] * 29 + [5]), "shape"),
    "an action of two numbers": (put(action_shape=[2]), "action_shape"),
    "an action below zero": (put(action_shape=[-1]), "action_shape"),
    "an action of a text": (put(action_shape={"a": 1}), "action_shape"),
    "another mode": (put(requantization="double"), "requantization"),
    "a mode that is a list": (put(requantization=["float32"]), "requantization"),
    "format 0": (put(format=0), "format"),
    "format 1.0": (put(format=1.0), "format"),
    "format true": (put(format=True), "format"),
    "format 3 without an origin": (put(format=3), "input_origin"),
    "format 5": (put(format=5), "update sb3_qpd"),
    "an unknown key": (put(unknown=1), "unknown"),
    "a missing key": (lambda header: header.pop("metadata"), "metadata"),
    "keys of format 2": (put(branches=[2]), "branches"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_cannot_be(vector: IntegerModel, tmp_path: Path, name: str) -> None:
    change, field = HEADERS[name]
    refuses_header(vector, tmp_path, change, field)


# the same of a student of images with a Box action: 4 x 36 x 36, kernels 8 and 3
IMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a kernel that is not square": (layer(0, 0, [6, 4, 8, 9]), "square"),
    "a kernel larger than the image": (layer(0, 0, [6, 4, 37, 37]), "does not fit"),
    "a kernel of 0": (layer(0, 0, [6, 4, 0, 0]), "shape"),
    "other channels": (layer(0, 0, [6, 5, 8, 8]), "does not fit"),
    "a stride of 0": (layer(0, 3, 0), "stride"),
    "a stride below zero": (layer(0, 3, -4), "stride"),
    "a stride of 10^9": (layer(0, 3, 10**9), "stride"),
    "another stride": (layer(0, 3, 1), "shape"),
    "a head that is a convolution": (layer(-1, 0, [3, 16, 1, 1]), "head"),
    "an image of two axes": (put(observation_shape=[4, 1296]), "image"),
    "an image without a side": (put(observation_shape=[4, 0, 36]), "shape"),
    "an image of 2^20 pixels": (put(observation_shape=[4, 1024, 1024]), "numbers"),
    "an action of another size": (put(action_shape=[4]), "action_shape"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_headers_of_images_that_cannot_be(image: IntegerModel, tmp_path: Path, name: str) -> None:
    change, field = IMAGES[name]
    refuses_header(image, tmp_path, change, field)


SPACE = spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(4), "c": spaces.Box(0, 255, (1, 36, 36), np.uint8)})
PARTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no parts": (put(parts=[]), "parts"),
    "a part of three": (put(parts=[[1, 2, 3]]), "parts"),
    "parts that are a dict": (put(parts={}), "parts"),
    "an unknown kind": (lambda header: header["parts"][0].__setitem__(0, "sound"), "kind"),
    "a kind that is a list": (lambda header: header["parts"][0].__setitem__(0, ["vector"]), "kind"),
    "two parts of one key": (lambda header: header["parts"][1].__setitem__(3, "a"), "keys"),
    "a part without a key": (lambda header: header["parts"][1].__setitem__(3, None), "keys"),
    "a key with an escape": (lambda header: header["parts"][1].__setitem__(3, "\x1b[31m"), "keys"),
    "a key that is a number": (lambda header: header["parts"][1].__setitem__(3, 1), "keys"),
    "indices without categories": (lambda header: header["parts"][1].__setitem__(2, []), "nvec"),
    "0 categories": (lambda header: header["parts"][1].__setitem__(2, [0]), "nvec"),
    "10^9 categories": (lambda header: header["parts"][1].__setitem__(2, [10**9]), "nvec"),
    "categories of a vector": (lambda header: header["parts"][0].__setitem__(2, [3]), "nvec"),
    "branches that do not add up": (put(branches=[1, 1]), "branches"),
    "branches below zero": (
        lambda header: header.update(branches=[-1, header["branches"][0] + header["branches"][1] + 1]),
        "branches",
    ),
    "one branch": (lambda header: header.update(branches=[sum(header["branches"])]), "branches"),
    "other branches": (lambda header: header.update(branches=header["branches"][::-1]), "shape|branches"),
    "an observation of a Dict": (put(observation_shape=[3]), "observation_shape"),
    "an action of other categories": (put(action_nvec=[2, 2]), "action_nvec"),
    "an action of 0 categories": (put(action_nvec=[0, 6]), "action_nvec"),
    "an action of many dimensions": (put(action_nvec=[1] * 6), "action_shape"),
    "masks that are a number": (put(uses_masks=1), "uses_masks"),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_cannot_be(tmp_path: Path, name: str) -> None:
    from sb3_qpd import QuantActorCriticPolicy

    arch = {"hidden": (8,), "conv": ((2, 8, 4),), "conv_hidden": (8,)}
    policy = QuantActorCriticPolicy(SPACE, DISCRETE, lambda _: 0.0, arch)
    policy.calibrate(policy.obs_to_tensor({key: np.stack([one.sample()] * 4) for key, one in SPACE.items()})[0])
    change, field = PARTS[name]
    header, arrays = parts_of(policy.to_integer(), tmp_path)
    assert header["format"] == 2
    change(header)
    refused(write(tmp_path / "student.npz", header, arrays), field)


ARRAYS: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "biases of float64": (lambda arrays: arrays.update(biases=arrays["biases"].astype(np.float64)), "biases"),
    "biases of int64": (lambda arrays: arrays.update(biases=arrays["biases"].astype(np.int64)), "biases"),
    "biases the other way round": (lambda arrays: arrays.update(biases=arrays["biases"].astype(">i4")), "biases"),
    "weights of int8": (lambda arrays: arrays.update(weights=arrays["weights"].astype(np.int8)), "weights"),
    "multipliers of float64": (
        lambda arrays: arrays.update(multipliers=arrays["multipliers"].astype(np.float64)),
        "multipliers",
    ),
    "weights of two axes": (lambda arrays: arrays.update(weights=arrays["weights"][None]), "weights"),
    "weights of 64 axes": (lambda arrays: arrays.update(weights=arrays["weights"].reshape((1,) * 31 + (-1,))), "weights"),
    "few weights": (lambda arrays: arrays.update(weights=arrays["weights"][:-1]), "weights"),
    "many weights": (lambda arrays: arrays.update(weights=np.append(arrays["weights"], arrays["weights"])), "weights"),
    "few biases": (lambda arrays: arrays.update(biases=arrays["biases"][:-1]), "biases"),
    "few multipliers": (lambda arrays: arrays.update(multipliers=arrays["multipliers"][:-1]), "multipliers"),
    "a multiplier of NaN": (lambda arrays: arrays["multipliers"].__setitem__(0, np.nan), "[Mm]ultipliers"),
    "a multiplier below zero": (lambda arrays: arrays["multipliers"].__setitem__(0, -1), "[Mm]ultipliers"),
    "an infinite unit": (lambda arrays: arrays["multipliers"].__setitem__(-1, np.inf), "[Mm]ultipliers"),
    "an accumulator beyond int32": (lambda arrays: arrays["biases"].__setitem__(0, 2**31 - 1), "accumulator"),
    "an accumulator below int32": (lambda arrays: arrays["biases"].__setitem__(0, -(2**31)), "accumulator"),
    "an input of NaN": (lambda arrays: arrays["input_offset"].__setitem__(0, np.nan), "input_offset"),
    "no input grid": (lambda arrays: arrays.pop("input_multiplier"), "image|input_"),
    "half an input grid": (lambda arrays: arrays.pop("input_offset"), "input_offset"),
    "a short input grid": (lambda arrays: arrays.update(input_offset=arrays["input_offset"][:4]), "input_offset"),
    "a lower bound alone": (lambda arrays: arrays.update(action_low=np.zeros(6, np.float32)), "action_"),
    "an upper bound alone": (lambda arrays: arrays.update(action_high=np.zeros(6, np.float32)), "action_high"),
    "a deviation alone": (lambda arrays: arrays.update(action_std=np.zeros(6, np.float32)), "action_std"),
    "an array of text": (lambda arrays: arrays.update(action_low=np.array(["a"])), "action_low"),
    "an unknown array": (lambda arrays: arrays.update(unknown=np.zeros(1)), "unknown"),
    "no weights": (lambda arrays: arrays.pop("weights"), "weights"),
    "a Box in the wrong order": (
        lambda arrays: arrays.update(action_low=np.ones(6, np.float32), action_high=np.zeros(6, np.float32)),
        "action_|nvec",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_cannot_be(vector: IntegerModel, tmp_path: Path, name: str) -> None:
    change, field = ARRAYS[name]
    header, arrays = parts_of(vector, tmp_path)
    change(arrays)
    refused(write(tmp_path / "student.npz", header, arrays), field)


TEXTS = {
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "nothing": b"",
    "no UTF-8": b"\xff\xfe{}",
    "NaN": b'{"format": NaN}',
    "infinity": b'{"format": 1, "metadata": {"a": Infinity}}',
    "a number of 200,000 digits": b'{"format": ' + b"1" * 200_000 + b"}",
    "100,000 lists": b'{"a": ' + b"[" * 100_000 + b"}",
    "800,000 values": b'{"format": 1, "a": [' + b"1," * 400_000 + b"1]}",
}


@pytest.mark.parametrize("name", TEXTS)
def test_headers_that_are_no_json(vector: IntegerModel, tmp_path: Path, name: str) -> None:
    _, arrays = parts_of(vector, tmp_path)
    refused(write(tmp_path / "student.npz", TEXTS[name], arrays), "header|format")


def _npy_header(header: str, n_bytes: int = 64) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(n_bytes)


NPY = {
    "an object": _npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), } \n"),
    "fields": _npy_header("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,), } \n"),
    "the order of Fortran": _npy_header("{'descr': '<i4', 'fortran_order': True, 'shape': (16,), } \n"),
    "10^18 numbers": _npy_header(f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({10**18},), }} \n"),
    "10^8 numbers": _npy_header(f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({10**8},), }} \n"),
    "numbers below zero": _npy_header("{'descr': '<i4', 'fortran_order': False, 'shape': (-16,), } \n"),
    "an expression": _npy_header("{'descr': '<i4', 'fortran_order': False, 'shape': (4*4,), } \n"),
    "deep": _npy_header("(" * 60_000),
    "version 3": b"\x93NUMPY\x03\x00" + bytes(100),
    "cut off": b"\x93NUM",
    "nothing": b"",
}


@pytest.mark.parametrize("name", NPY)
def test_members_that_are_no_array(vector: IntegerModel, tmp_path: Path, name: str) -> None:
    header, arrays = parts_of(vector, tmp_path)
    del arrays["biases"]
    refused(write(tmp_path / "student.npz", header, arrays, **{"biases.npy": NPY[name]}), "biases|student")


def test_zips(vector: IntegerModel, tmp_path: Path) -> None:
    header, arrays = parts_of(vector, tmp_path)
    path = tmp_path / "student.npz"
    refused(write(path, header, arrays, zipfile.ZIP_LZMA), "packed by a method")
    with pytest.warns(UserWarning, match="Duplicate name"):
        write(path, header, arrays, **{"weights.npy": npy(arrays["weights"])})
    refused(path, "at most once")
    refused(write(path, header, arrays, **{"../evil.npy": b""}), "member")
    refused(write(path, header, arrays, **{f"m{i}.npy": b"" for i in range(50_000)}), "members")
    refused(write(path, header, {**arrays, "weights": np.zeros(2**26, np.uint8)}), "more than")
    path.write_bytes(b"PK\x05\x06" + bytes(18))
    refused(path, "has no header")
    path.unlink()
    os.mkfifo(path)
    refused(path, "no ordinary file")


def test_the_largest_that_is_taken_is_within_bounds(tmp_path: Path) -> None:
    """As many weights as a file may have, packed in kilobytes."""
    n_in, n_out = 2**13, MAX_WEIGHTS // 2**13 - 1
    header = {
        **{"format": 1, "observation_shape": [n_in], "action_shape": [], "requantization": "float32", "metadata": {}},
        "layers": [[[n_out, n_in], 2, 8, 1, n_out], [[2, n_out], 8, 0, 1, 1]],
    }
    arrays = {
        "weights": np.append(np.full(n_out * n_in // 4, 0b10101010, np.uint8), np.full(2 * n_out, 128, np.uint8)),
        "biases": np.zeros(n_out + 2, np.int32),
        "multipliers": np.ones(n_out + 1, np.float32),
        "input_multiplier": np.ones(n_in, np.float32),
        "input_offset": np.zeros(n_in, np.float32),
    }
    path = write(tmp_path / "student.npz", header, arrays)
    assert path.stat().st_size < 2**17
    with bounded(4, 2**30, of_processor=True):
        model = IntegerModel.load(path)
        assert model.predict(np.zeros(n_in), deterministic=True)[0] == 0
        with pytest.raises(ValueError, match=r"weights, at most 4194304"):
            export(model, "c", tmp_path / "c")


def test_what_wrote_past_the_stack(tmp_path: Path) -> None:
    """A hidden layer that says activation_bits=0 became C that overwrote its return address."""
    n = 64
    header = {
        **{"format": 1, "observation_shape": [4], "action_shape": [], "requantization": "float32", "metadata": {}},
        "layers": [[[n, 4], 8, 0, 1, n], [[2, n], 8, 0, 1, 1]],
    }
    arrays = {
        "weights": np.concatenate([pack(np.zeros((n, 4), int), 8), pack(np.zeros((2, n), int), 8)]),
        "biases": np.array([0x41414141] * n + [0, 0], np.int32),
        "multipliers": np.ones(n + 1, np.float32),
        "input_multiplier": np.ones(4, np.float32),
        "input_offset": np.zeros(4, np.float32),
    }
    refused(write(tmp_path / "student.npz", header, arrays), r"activation_bits of layers\[0\], the output of a hidden layer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: setattr(model.layers[0], "activation_bits", 0), "activations of 0 bits"),
        (lambda model: setattr(model.layers[-1], "activation_bits", 8), "a head with one"),
        (lambda model: setattr(model.layers[0], "bias", model.layers[0].bias[:-1]), "wrong|broadcast"),
        (lambda model: setattr(model.layers[0], "multiplier", model.layers[0].multiplier[:-1]), "its multipliers"),
        (lambda model: setattr(model.layers[1], "weight", model.layers[1].weight[:, :-1]), "inputs where"),
        (lambda model: setattr(model, "layers", model.layers[1:]), "layers do not fit trunks"),
    ],
)
def test_c_proves_its_sizes_again(
    vector: IntegerModel, tmp_path: Path, change: Callable[[IntegerModel], None], message: str
) -> None:
    """The attributes of a checked model can be changed in Python."""
    model = copy.deepcopy(vector)
    change(model)
    with pytest.raises(ValueError, match=message):
        export(model, "c", tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="."):
        model.save(tmp_path / "student.npz")


@pytest.mark.parametrize("kind", ["vector", "image", "Dict"])
@pytest.mark.parametrize("field", ["input", "output", "columns", "unpacked"])
def test_c_proves_its_memory(kind: str, field: str) -> None:
    """Another plan of the memory than the right one is refused, wherever it is wrong."""
    several = spaces.Dict(camera=IMAGE, joints=VECTOR)
    spaces_of = {"vector": (VECTOR, DISCRETE), "image": (IMAGE, BOX), "Dict": (several, BOX)}
    model = QuantActorCriticPolicy(*spaces_of[kind], lambda _: 0.0, "nano", weight_bits=4, activation_bits=4).to_integer()
    layout = lay_out(model)
    first_of_image = next((i for i, layer in enumerate(layout.layers) if layer.is_conv), -1)
    places, n_bytes = plan_arena(layout)
    prove_sizes(model, layout, places, n_bytes)
    wrong = [(i, at) for i in range(len(places)) for at in (-4, n_bytes - 3, 2**31)]
    for i, at in wrong:
        if (field == "input" and i == first_of_image) or (field == "output" and i == len(places) - 1):
            continue  # frames lie in a stack of their own, and the head's sums are the caller's
        if field == "unpacked" and not layout.layers[i].is_packed:
            continue
        changed = [*places[:i], replace(places[i], **{field: at}), *places[i + 1 :]]
        with pytest.raises(ValueError, match="a size in it would be wrong"):
            prove_sizes(model, layout, changed, n_bytes)
    for n in (0, n_bytes // 2, 2**31):
        with pytest.raises(ValueError, match="a size in it would be wrong"):
            prove_sizes(model, layout, places, n)


def test_c_proves_that_memory_does_not_overlap() -> None:
    model = make_student(VECTOR, DISCRETE, (4, 4)).to_integer()
    layout = lay_out(model)
    places, n_bytes = plan_arena(layout)
    with pytest.raises(ValueError, match="overlap"):
        prove_sizes(model, layout, [replace(places[0], output=places[0].input), *places[1:]], n_bytes)
    layout.layers[0].layer.activation_bits = 0
    with pytest.raises(ValueError, match="a hidden layer without a grid"):
        prove_sizes(model, layout, places, n_bytes)


def test_a_layer_by_itself() -> None:
    weight, bias, multiplier = np.ones((3, 4), np.int8), np.zeros(3, np.int32), np.ones(3, np.float32)
    for arguments in (
        (weight, bias[:2], multiplier),
        (weight, bias[:, None], multiplier),
        (weight, bias, multiplier[:2]),
        (weight[:0], bias[:0], multiplier[:0]),
    ):
        with pytest.raises(ValueError, match="must have as many channels"):
            IntegerLayer(*arguments, weight_bits=8, activation_bits=8)


def test_the_check_of_files_is_that_of_models(vector: IntegerModel) -> None:
    header, sizes = vector._header(), vector._sizes()
    check_header(header, sizes)
    with pytest.raises(StudentError, match="biases"):
        check_header(header, {**sizes, "biases": 1})


def test_honest_files_stay_as_they_were(vector: IntegerModel, image: IntegerModel, tmp_path: Path) -> None:
    for model, space in ((vector, VECTOR), (image, IMAGE)):
        header, arrays = parts_of(model, tmp_path)
        loaded = IntegerModel.load(write(tmp_path / "student.npz", header, arrays, zipfile.ZIP_STORED))
        observations = some_observations(space, 8)
        np.testing.assert_array_equal(loaded.accumulators(observations), model.accumulators(observations))
        loaded.layers[0].bias[0] += 1  # its arrays are its own


def test_json_of_a_report() -> None:
    assert read_json("report", b'{"a": [1, 2.5, null, "x"]}') == {"a": [1, 2.5, None, "x"]}
    for content in (b"[]", b'{"a": NaN}', b'{"a": "\\ud800"}', b"[" * 10**5, b'{"a":' * 30 + b"1" + b"}" * 30, b" " * 2**21):
        with bounded(2, 2**28, of_processor=True), pytest.raises(StudentError, match="report"):
            read_json("report", content)
