"""What all export targets share: they are known by name, a bad model is refused, files appear together or not at all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from students import BITS, DISCRETE, SPACES, VECTOR, assert_same_bits, make_student, some_observations

import sb3_qpd.integer
from sb3_qpd import IntegerModel, QuantActorCriticPolicy, export_numpy, export_onnx
from sb3_qpd.export import EXPORTERS, accumulator_bound, check_model, export

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
    assert policy.read_bytes() == Path(sb3_qpd.integer.__file__).read_bytes()
    np.save(tmp_path / "observations.npy", observations)
    command = [sys.executable, "-I", "-S", "-c", ONLY_NUMPY]
    print(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    assert_same_bits(np.load(tmp_path / "logits.npy"), model.logits(observations))
    assert_same_bits(np.load(tmp_path / "actions.npy"), model.predict(observations, deterministic=True)[0])


def test_unknown_target(tmp_path: Path) -> None:
    model = make_student().to_integer()
    with pytest.raises(ValueError, match="Unknown target 'onyx'. Known: onnx, c, tflite, numpy. Did you mean 'onnx'?"):
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
        raise OSError(28, "No space left on device")

    model = make_student().to_integer()
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        export_numpy(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_files_of_the_same_names_are_replaced_and_others_stay(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "student.npz").write_text("old")
    export_numpy(make_student().to_integer(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.py", "report.json", "student.npz"]
    assert IntegerModel.load(tmp_path / "student.npz").n_parameters > 0


def test_out_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="out is a file. Expected a new or empty folder"):
        export_numpy(make_student().to_integer(), tmp_path / "out")


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
