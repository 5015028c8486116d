import copyreg
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from teacher_files import ATTACKS, gym_era

from sb3_qpd.teachers.files import pickle_reader
from sb3_qpd.teachers.files.known_names import is_known
from sb3_qpd.teachers.files.pickle_reader import (
    GlobalName,
    ObjectRecord,
    UnsafePickle,
    to_array,
    to_bytes,
    to_dtype,
    to_number,
)

PLAIN = [None, True, False, 3, -70000, 2**70, 1.5, "é", b"\x00x", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2]]]
PLAIN += [{}, {"a": 1, "b": {"c": (None, [True])}}, [[0]] * 3, "x" * 300, b"y" * 300]


def read_pickle(data, accept=is_known):
    return pickle_reader.read_pickle(data, accept)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_are(protocol):
    for value in PLAIN:
        if protocol > 2 or not isinstance(value, bytes):
            assert read_pickle(pickle.dumps(value, protocol)) == value
    if protocol > 3:
        assert sorted(read_pickle(pickle.dumps({1, 2}, protocol))) == read_pickle(pickle.dumps(frozenset((1, 2)), protocol))
    assert to_bytes(read_pickle(pickle.dumps(b"\x00\xff", protocol=2))) == b"\x00\xff"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int64", "float16", "float32", "float64", ">f4", "<i2"])
def test_arrays_are_rebuilt(protocol, dtype):
    for array in (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.zeros((0, 2)), np.array(2)):
        array = array.astype(dtype)
        rebuilt = to_array(read_pickle(pickle.dumps(array, protocol)))
        assert rebuilt.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(rebuilt, array)
    assert to_dtype(read_pickle(pickle.dumps(np.dtype(dtype), protocol))) == np.dtype(dtype)


def test_numpy_1_paths_and_scalars():
    np.testing.assert_array_equal(to_array(read_pickle(gym_era(np.eye(2)))), np.eye(2))
    assert to_number(read_pickle(gym_era(np.int64(3))), int) == 3
    assert to_dtype(read_pickle(pickle.dumps(np.float32))) == np.float32
    with pytest.raises(UnsafePickle, match="one finite number"):
        to_number(float("nan"), float)
    with pytest.raises(UnsafePickle, match="Expected a numpy array, got int"):
        to_array(2**80)


def test_objects_stay_records():
    record = read_pickle(pickle.dumps(RunningMeanStd(shape=(2,))))
    assert isinstance(record, ObjectRecord) and record.target == GlobalName(
        "stable_baselines3.common.running_mean_std", "RunningMeanStd"
    )
    np.testing.assert_array_equal(to_array(record.attributes()["var"]), np.ones(2))
    ordered = read_pickle(pickle.dumps(OrderedDict(a=1)))
    assert str(ordered.target) == "collections.OrderedDict" and ordered.items == [("a", 1)]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_seeded_space_keeps_its_generator_inert(protocol):
    space = spaces.Discrete(3, seed=0)
    space.sample()
    record = read_pickle(pickle.dumps(space, protocol))
    assert to_number(record.attributes()["n"], int) == 3


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_run_elsewhere_and_not_here(attack, tmp_path: Path):
    marker = tmp_path / "ran"
    pickled = ATTACKS[attack](f"touch {marker}")
    pickle.loads(pickled)
    assert marker.exists(), "not an attack: an ordinary unpickler does not run it"
    marker.unlink()
    with pytest.raises(UnsafePickle, match=r"asks for (posix|os|builtins|torch\.nn\.modules\.module)\.|opcode (INST|OBJ)"):
        read_pickle(pickled)
    assert not marker.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_inert_even_where_every_name_is_let_through(attack, tmp_path: Path):
    marker = tmp_path / "ran"
    try:
        read_pickle(ATTACKS[attack](f"touch {marker}"), accept=lambda name: True)
    except UnsafePickle:
        pass
    assert not marker.exists()


def test_extension_opcodes(tmp_path: Path):
    marker = tmp_path / "ran"
    pickled = b"\x80\x02\x82\xf0(S" + repr(f"touch {marker}").encode() + b"\ntR."
    copyreg.add_extension("os", "system", 0xF0)
    try:
        pickle.loads(pickled)
        assert marker.exists()
        marker.unlink()
        with pytest.raises(UnsafePickle, match="opcode EXT1"):
            read_pickle(pickled)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
    assert not marker.exists()


@pytest.mark.parametrize(
    "pickled, message",
    [
        (b"Pname\n.", "opcode PERSID"),
        (b"S'a'\nQ.", "opcode BINPERSID"),
        (b"\x80\x04cnumpy\ndtype\n)}\x92.", "opcode NEWOBJ_EX"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"cnumpy._core.multiarray\n_reconstruct\n}S'a'\nK\x01sb.", "uses a GlobalName where only a ObjectRecord"),
        (b"cnumpy\ndtype\n)R)R.", "uses a ObjectRecord where only a GlobalName"),
        (b"cnumpy\ndtype\n]R.", "uses a list where only a tuple"),
        (b"S'a'\nS'b'\na.", "uses a str where only a list or ObjectRecord"),
        (b"}K\x01K\x02\x86K\x03s.", "uses a tuple where only a str or int or float or bool"),
        (b"}L%dL\nNs." % (2**61 - 1), "a number beyond .* as a key"),  # its multiples have one hash
        (b"Np%d\n." % (2**61 - 1), "a number beyond .* as a key"),
        (b"\x80\x02(((.", "does not end with one value"),
        (b"K\x01K\x02.", "does not end with one value"),
        (b".", "does not end with one value"),
        (b"0.", "Not a readable pickle"),
        (b"h\x05.", "Not a readable pickle"),
        (b"\x80\x04\x95", "Not a readable pickle"),
        (b"", "Not a readable pickle"),
        (b"\xff\xfe", "Not a readable pickle"),
        (b"(K\x01d.", "Not a readable pickle"),
        (b"I" + b"9" * 5000 + b"\n.", "Not a readable pickle"),
    ],
)
def test_what_data_never_needs_is_refused(pickled, message):
    with pytest.raises(UnsafePickle, match=message):
        read_pickle(pickled)


def test_a_bomb_of_shared_tuples_costs_nothing(monkeypatch):
    # 2^90 leaves if anything were to hash, compare or print it
    with pytest.raises(UnsafePickle, match="It holds more than 500000 values: refused"):
        read_pickle(b"K\x01" + b"q\0h\0\x86" * 90 + b".")
    with pytest.raises(UnsafePickle, match="nested more than 100 levels deep: refused"):
        read_pickle(b"K\x01" + b"\x85" * 100_000 + b".")
    monkeypatch.setattr(pickle_reader, "MAX_OPCODES", 100)
    with pytest.raises(UnsafePickle, match="more than 100 opcodes"):
        read_pickle(b"K\x01" + b"q\0h\0\x86" * 200 + b".")


def _array(dtype: object = "f4", shape: object = (2,), raw: object = b"\0" * 8, order: object = "C") -> ObjectRecord:
    record = ObjectRecord(GlobalName("numpy", "dtype"), (dtype, False, True))
    record.state = (3, "<", None, None, None, -1, -1, 0)
    return ObjectRecord(GlobalName("numpy._core.numeric", "_frombuffer"), (raw, record, shape, order))


@pytest.mark.parametrize(
    "value, message",
    [
        (_array(dtype="O8"), "dtype 'O8': only numbers"),
        (_array(dtype="V8"), "dtype 'V8': only numbers"),
        (_array(dtype=[("a", "f4")]), "only numbers and booleans"),
        (_array(shape=(3,)), r"shape \(3,\) and dtype float32 in 8 bytes"),
        (_array(shape=(-1, -2)), "not a tuple of sizes"),
        (_array(shape=[2]), "not a tuple of sizes"),
        (_array(shape=(10**9, 10**9)), "in 8 bytes"),
        (_array(shape=(2**31,)), "not a tuple of sizes"),
        (_array(shape=(10**5_000,)), "not a tuple of sizes"),  # has no text
        (_array(shape=(1 << 10**7,) * 32), "not a tuple of sizes"),  # takes minutes to multiply
        (_array(shape=(1,) * 33), "not a tuple of sizes"),
        (_array(raw="text"), "Expected bytes, got str"),
        (_array(order="K"), "got a numpy._core.numeric._frombuffer of another form"),
        (ObjectRecord(GlobalName("numpy", "dtype"), ("f4",)), "got a numpy.dtype of another form"),
        (ObjectRecord(GlobalName("gym.spaces", "Box"), ()), "Expected a numpy array, got ObjectRecord"),
        ("text", "Expected a numpy array, got str"),
    ],
)
def test_arrays_that_contradict_themselves(value, message):
    with pytest.raises(UnsafePickle, match=message):
        to_array(value)


def test_only_data_is_a_dtype_or_bytes():
    for value in (3, GlobalName("numpy", "ndarray"), ObjectRecord(GlobalName("numpy", "dtype"), ())):
        with pytest.raises(UnsafePickle, match="dtype"):
            to_dtype(value)
    with pytest.raises(UnsafePickle, match="Expected bytes"):
        to_bytes(ObjectRecord(GlobalName("_codecs", "encode"), (3, "latin1")))
    with pytest.raises(UnsafePickle, match="Expected the attributes of a gym.spaces.Box"):
        ObjectRecord(GlobalName("gym.spaces", "Box"), ()).attributes()
