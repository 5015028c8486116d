"""What all targets share: they are known by name, a bad model is refused, files appear together or not at all."""

import ast
import errno
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from students import BITS, DISCRETE, SPACES, VECTOR, assert_same_bits, make_student, some_observations

from sb3_qpd import IntegerModel, QuantActorCriticPolicy, export_numpy, export_onnx
from sb3_qpd.export import EXPORTERS, check_model, export
from sb3_qpd.export.numpy import interpreter
from sb3_qpd.export.requirements import TARGETS, accumulator_bound

SITE_PACKAGES = Path(np.__file__).parents[1]
ONLY_NUMPY = f"""
import sys, time
from pathlib import Path
sys.path[:0] = [".", {str(SITE_PACKAGES)!r}]  # -I -S: no other third-party package, unless it lies beside numpy

class OnlyNumpy:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | {{"numpy", "policy"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyNumpy())
import numpy
start = time.perf_counter()
from policy import IntegerModel
model = IntegerModel.load("student.npz")
milliseconds = 1000 * (time.perf_counter() - start)
observations = numpy.load("observations.npy")
numpy.save("logits.npy", model.logits(observations))
numpy.save("actions.npy", model.predict(observations, deterministic=True)[0])
status = Path("/proc/self/status")
memory = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
print(f"import of policy.py and load of the model: {{milliseconds:.0f}} ms;", *memory)
"""


@pytest.mark.parametrize("requantization", ["float32", "fixed"])
@pytest.mark.parametrize("kind", SPACES)
def test_numpy_alone_plays_it(kind: str, requantization: str, tmp_path: Path) -> None:
    space, actions = SPACES[kind]
    model, observations = make_student(space, actions, BITS["W4A8"]).to_integer(), some_observations(space, 100)
    model.requantization = requantization
    npz, policy = export_numpy(model, tmp_path)
    assert (npz.name, policy.name) == ("student.npz", "policy.py")
    assert policy.read_bytes() == interpreter()
    np.save(tmp_path / "observations.npy", observations)
    command = [sys.executable, "-I", "-S", "-c", ONLY_NUMPY]
    print(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    assert_same_bits(np.load(tmp_path / "logits.npy"), model.logits(observations))
    assert_same_bits(np.load(tmp_path / "actions.npy"), model.predict(observations, deterministic=True)[0])


@pytest.mark.parametrize("version", ["3.8", "3.9"])
def test_old_interpreters_play_it(version: str, tmp_path: Path) -> None:
    """Raspberry Pi OS Bullseye has Python 3.9, JetPack 5 has Python 3.8."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", "import numpy"], capture_output=True).returncode:
        pytest.skip(f"needs python{version} with numpy")
    for i, (space, actions) in enumerate(SPACES.values()):
        model, observations = make_student(space, actions, BITS["W4A8"]).to_integer(), some_observations(space, 100)
        export_numpy(model, folder := tmp_path / str(i))
        np.save(folder / "observations.npy", observations)
        code = "import numpy as np; from policy import IntegerModel; model = IntegerModel.load('student.npz'); " + (
            "model.predict(np.load('observations.npy')); np.save('logits.npy', model.logits(np.load('observations.npy')))"
        )
        subprocess.run([python, "-c", code], cwd=folder, check=True)
        assert_same_bits(np.load(folder / "logits.npy"), model.logits(observations))


def test_the_interpreter_has_nothing_newer_than_python_3_8_and_numpy_1_17() -> None:
    tree = ast.parse(interpreter(), feature_version=(3, 8))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not [name for name in imported if name is None or name.startswith("sb3_qpd")]
    newer = {"removeprefix", "removesuffix", "pairwise", "sliding_window_view", "bit_count"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in newer, f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert not node.keywords, f"line {node.lineno}: zip(strict=)"
        assert not (isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr)), f"line {node.lineno}: |="


def test_every_target_says_what_it_takes() -> None:
    assert list(TARGETS) == list(EXPORTERS)


def test_unknown_target(tmp_path: Path) -> None:
    model = make_student().to_integer()
    with pytest.raises(
        ValueError, match="Unknown target 'onyx'. Known: onnx, c, tflite, numpy, arduino. Did you mean 'onnx'?"
    ):
        export(model, "onyx", tmp_path)


def test_the_same_by_name(tmp_path: Path) -> None:
    model = make_student().to_integer()
    assert export(model, "onnx", tmp_path / "a")[0].read_bytes() == export_onnx(model, tmp_path / "b")[0].read_bytes()


@pytest.mark.parametrize("target", EXPORTERS)
def test_refused_before_anything_is_written(target: str, tmp_path: Path) -> None:
    pytest.importorskip(f"sb3_qpd.export.{target}")
    policy = QuantActorCriticPolicy(VECTOR, DISCRETE, lambda _: 1e-3)
    with pytest.raises(ValueError, match="has never seen an observation"):
        export(policy.to_integer(), target, tmp_path / "out")
    with pytest.raises(TypeError, match=r"Expected an IntegerModel \(policy.to_integer\(\) makes one\), got QuantActor"):
        export(policy, target, tmp_path / "out")  # type: ignore[arg-type]
    model = make_student().to_integer()
    model.layers[1].bias = np.full_like(model.layers[1].bias, 2**31 - 1)
    with pytest.raises(ValueError, match=r"An accumulator of layer 1 could reach 2\d+, which does not fit int32"):
        export(model, target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_bound_of_an_accumulator() -> None:
    """No observation reaches beyond it, and the worst one reaches it."""
    layer = make_student().to_integer().layers[1]
    bound = accumulator_bound(layer)
    worst = 255.0 * np.concatenate([layer.weight > 0, layer.weight < 0])
    assert np.abs(layer.accumulate(worst)).max() <= bound
    layer.weight, layer.bias = np.abs(layer.weight), np.abs(layer.bias)
    layer.__post_init__()
    assert layer.accumulate(np.full((1, layer.weight.shape[1]), 255.0)).max() == bound


def test_no_partial_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up after the first of two files."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = make_student().to_integer()
    monkeypatch.setattr(Path, "write_bytes", full)
    for target in EXPORTERS:
        with pytest.raises(OSError, match=r"No space left, at least \d{4,} bytes needed: '.*out'$") as error:
            export(model, target, tmp_path / "out")
        assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_files_of_the_same_names_are_replaced_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "student.npz").write_text("old")
    export_numpy(make_student().to_integer(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.py", "report.json", "student.npz"]
    assert IntegerModel.load(tmp_path / "student.npz").n_parameters > 0


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="^out_dir .*out is a file. Expected a new or empty folder"):
        export_numpy(make_student().to_integer(), tmp_path / "out")
    with pytest.raises(ValueError, match="^out_dir .*below cannot be written"):
        export_numpy(make_student().to_integer(), tmp_path / "out" / "below")


@pytest.mark.parametrize(("target", "package", "extra"), [("onnx", "onnx", "export"), ("tflite", "ai_edge_litert", "litert")])
def test_a_missing_package_names_its_extra(
    target: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for module in [name for name in sys.modules if name.startswith(f"sb3_qpd.export.{target}")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=rf"pip install 'sb3_qpd\[{extra}\]'"):
        export(make_student().to_integer(), target, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_without_metadata_is_not_refused() -> None:
    """Made by hand, without metadata."""
    model = make_student().to_integer()
    model.metadata = {}
    check_model(model)
