"""Exports from elsewhere beside an honest ``student.npz``: none of them runs unless the user asks for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import onnx
import pytest
from bad_runtimes import Crashing, Endless, Greedy, Importing, Sending
from onnx import TensorProto, helper
from students import DISCRETE, IMAGE, VECTOR, make_student, some_observations

from sb3_qpd import IntegerModel, make_recipe
from sb3_qpd.evaluation import implementations, limited
from sb3_qpd.evaluation.benchmark import Networks, benchmark, microcontrollers
from sb3_qpd.evaluation.limited import LimitedPolicy
from sb3_qpd.evaluation.verify import Verification, verify
from sb3_qpd.export import export

OBSERVATIONS = some_observations(VECTOR, 20)
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = make_student().to_integer(env={"env_id": "CartPole-v1"})
    for target in ("onnx", "c", "tflite", "numpy"):
        export(model, target, tmp_path / "student")
    return tmp_path / "student"


def check(folder: Path, trust_code: bool = False) -> Verification:
    return verify(folder, OBSERVATIONS, trust_code=trust_code)


def test_what_this_version_writes_runs(folder: Path) -> None:
    result = check(folder)
    assert result.holds and {*result.files.values()} == {"student.onnx", "policy.c", "student.tflite"}


@pytest.mark.parametrize("options", [{"channels_last": True}, {"form": "qdq"}, {"form": "qdq", "channels_last": True}])
def test_with_every_option(tmp_path: Path, options: dict[str, object]) -> None:
    model = make_student(IMAGE, DISCRETE).to_integer()
    model.save(tmp_path / "student.npz")
    export(model, "onnx", tmp_path, **options)
    export(model, "c", tmp_path, n_frames=2)
    result = verify(tmp_path, some_observations(IMAGE, 4))
    assert not result.foreign and "student.onnx" in result.files.values()


def endless_loop() -> bytes:
    """A graph with the student's input and outputs that counts to 2^62."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Identity", ["state"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    count = helper.make_tensor("count", TensorProto.INT64, [], [2**62])
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(
        [
            helper.make_node("Loop", ["count", "yes", "observation"], ["logits"], body=body),
            helper.make_node("ArgMax", ["logits"], ["action"], axis=1, keepdims=0),
        ],
        "policy",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["n", 5])],
        [
            helper.make_tensor_value_info("action", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5]),
        ],
        [count, yes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


def outside_data() -> bytes:
    """A weight that lies in another file of this machine."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../../../etc/passwd")
    return onnx.ModelProto(graph=onnx.GraphProto(initializer=[weight])).SerializeToString()


ONNX = {
    "no ONNX": lambda content: b"\x08" * 100,
    "nothing": lambda content: b"",
    "an endless loop": lambda content: endless_loop(),
    "another file's data": lambda content: outside_data(),
    "cut off": lambda content: content[:-20],
    "more behind it": lambda content: content + content,
    "one byte": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
}


@pytest.mark.parametrize("name", ONNX)
def test_hostile_onnx_is_not_run(folder: Path, name: str) -> None:
    path = folder / "student.onnx"
    path.write_bytes(ONNX[name](path.read_bytes()))
    result = check(folder)
    assert not result.holds and result.stale_files == ["student.onnx"] and "student.onnx" not in result.files.values()
    assert "student.onnx: not what this version exports from student.npz, and not run" in result.table()


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_hostile_tflite_is_not_run(folder: Path, at: float) -> None:
    path = folder / "student.tflite"
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0xFF
    path.write_bytes(content)
    assert check(folder).stale_files == ["student.tflite"]


@NEEDS_COMPILER
def test_hostile_c_is_neither_compiled_nor_loaded(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = f'\n#include <stdlib.h>\n__attribute__((constructor)) static void run(void) {{ system("touch {mark}"); }}\n'
    for name in ("policy.c", "policy.h"):
        path, honest = folder / name, (folder / name).read_text()
        path.write_text(attack + honest)
        assert check(folder).stale_files == ["policy.c"]
        assert not mark.exists()
        check(folder, trust_code=True)
        assert mark.exists(), "not an attack: it does not run when the user asks for it"
        mark.unlink()
        path.write_text(honest)
    assert check(folder).holds


@NEEDS_COMPILER
def test_headers_beside_honest_c_are_not_included(folder: Path, tmp_path: Path) -> None:
    for name in ("string.h", "stdint.h", "stddef.h", "harness.c", "stdbool.h", "limits.h"):
        (folder / name).write_text("#error this header came from the folder\n")
    assert check(folder).holds


def test_links_are_not_followed(folder: Path, tmp_path: Path) -> None:
    for name in ("student.onnx", "policy.c", "policy.py"):
        moved = tmp_path / name
        shutil.move(folder / name, moved)
        (folder / name).symlink_to(moved)
    assert {*check(folder).stale_files} == {"student.onnx", "policy.c", "policy.py"}


# --- with --trust-code ---
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Endless, "takes more than 1 s for one batch: stopped"),
        (Crashing, "ended its runtime: signal SIGABRT"),
        (Greedy, "Unable to allocate"),
        (Sending, "Object arrays cannot be"),
    ],
)
def test_a_runtime_that_misbehaves_ends_in_an_error(kind: type, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = LimitedPolicy("student.onnx", kind)
    monkeypatch.setattr(limited, "SECONDS", 1)
    with pytest.raises(ValueError, match=f"student.onnx.*{message}"):
        policy.run(OBSERVATIONS)


def test_a_runtime_has_a_process_without_torch() -> None:
    """Each trusted file would otherwise wait more than a second for its import."""
    (is_imported,) = LimitedPolicy("student.onnx", Importing).run(OBSERVATIONS)
    assert not is_imported


def test_an_endless_graph_that_is_trusted_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(LimitedPolicy):
        """The limit is for a batch: on a busy machine the start of the process may take longer."""

        def __init__(self, name: str, make: Callable[[], Any]) -> None:
            super().__init__(name, make)
            monkeypatch.setattr(limited, "SECONDS", 1)

    monkeypatch.setattr(implementations, "LimitedPolicy", Started)
    (folder / "student.onnx").write_bytes(endless_loop())
    with pytest.raises(ValueError, match="student.onnx takes more than 1 s for one batch: stopped"):
        check(folder, trust_code=True)


def test_benchmark_leaves_them_out(tmp_path: Path) -> None:
    space = gym.make("CartPole-v1").observation_space
    model = make_student(space, gym.spaces.Discrete(2)).to_integer(env={"env_id": "CartPole-v1"})
    for target in ("onnx", "c"):
        export(model, target, tmp_path)
    model.save(tmp_path / "student.npz")
    for name in ("student.onnx", "policy.c"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\n")
    left_out: list[str] = []
    rows = benchmark(tmp_path, make_recipe("CartPole-v1"), Networks(), 0.01, left_out=left_out)
    assert [row.name for row in rows] == ["student, numpy"]
    assert [line.partition(":")[0] for line in left_out] == ["student.onnx", "policy.c"]
    assert all(
        "not run" in line or "not found" in line for line in microcontrollers(tmp_path, make_recipe("CartPole-v1")).values()
    )
    assert IntegerModel.load(tmp_path).n_parameters == model.n_parameters
