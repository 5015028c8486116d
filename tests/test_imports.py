"""Imports point downward only, heavy packages stay in one module each, and the light parts stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sb3_qpd

PACKAGE = Path(sb3_qpd.__file__).parent

# A module may import from the layers above its line here, and from its own layer what stands to its left.
LAYERS = (
    # mathematics and plain data: no SB3
    ("losses", "quantizers", "transitions", "schedules", "integer", "inert", "archive", "verdicts"),
    # which spaces there are, and what comes from elsewhere, read as data
    ("spaces", "weights", "reader", "hub"),
    # parts
    ("layers", "architectures", "building", "envs", "run_folder", "teachers", "buffers", "staging"),
    ("policies", "loading", "acting", "matching", "scales", "wrappers", "objective", "hyperparameters"),
    ("teacher_check", "algorithm", "distiller"),
    # what is done with a student
    ("export", "evaluation", "report", "contest", "replay", "verify", "benchmark", "publishing"),
    # front doors: nobody imports these but the command line, which opens the others; `python -m` is the command line
    ("zoo", "cli"),
    ("__main__",),
)
ORDER = [module for layer in LAYERS for module in layer]
FRONT_DOORS = LAYERS[-2]

# package -> the modules that may import it
HEAVY = {
    "ai_edge_litert": {"export.tflite"},
    "huggingface_hub": {"hub", "zoo.bridges"},
    "huggingface_sb3": {"zoo.bridges"},
    "onnx": {"export.onnx"},
    "onnxruntime": {"export.onnx"},
    "optuna": {"zoo.manager", "zoo.search"},
    "rl_zoo3": {"zoo", "zoo.manager", "zoo.search"},
}


def module_name(path: Path) -> str:
    """``export.onnx`` for ``sb3_qpd/export/onnx.py``, ``export`` for its ``__init__.py``, nothing for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INNER = {name: path for name, path in MODULES.items() if name}  # without the package's own __init__, which loads lazily


def imports(path: Path) -> Iterator[str]:
    """Every imported dotted name of a file, those inside functions and ``if TYPE_CHECKING`` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["sb3_qpd", *path.relative_to(PACKAGE).parent.parts]
            start = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*start, *filter(None, [node.module]), alias.name]) for alias in node.names)


def imported_modules(path: Path) -> Iterator[str]:
    """The modules of sb3_qpd which a file imports; a public name taken from the package itself comes as it is."""
    for name in imports(path):
        head, _, rest = name.partition(".")
        if head == "sb3_qpd" and rest != "__version__":
            yield next((known for known in (rest, rest.rpartition(".")[0]) if known in INNER), rest)


def allowed(importer: str, imported: str) -> bool:
    """Whether the import points downward, or to the left in the same layer, or stays inside export/."""
    upper, lower = importer.split(".")[0], imported.split(".")[0]
    if importer.endswith("__main__"):
        upper = "__main__"
    if upper == lower:
        return imported != importer
    if lower not in ORDER or (lower in FRONT_DOORS and upper not in ("cli", "__main__")):
        return False
    return ORDER.index(lower) < ORDER.index(upper)


@pytest.mark.parametrize("module", INNER)
def test_imports_point_downward(module: str) -> None:
    assert module.split(".")[0] in ORDER, f"give sb3_qpd/{module.replace('.', '/')}.py a place in LAYERS"
    against = [imported for imported in imported_modules(INNER[module]) if not allowed(module, imported)]
    assert not against, f"{module} must not import {against}: see LAYERS"


@pytest.mark.parametrize("module", INNER)
def test_heavy_packages_are_imported_in_one_module(module: str) -> None:
    packages = {name.split(".")[0] for name in imports(INNER[module])}
    misplaced = {package: HEAVY[package] for package in packages & HEAVY.keys() if module not in HEAVY[package]}
    assert not misplaced, f"{module} imports what belongs elsewhere: {misplaced}"


def test_layer_0_does_not_know_sb3() -> None:
    for module in set(LAYERS[0]) & INNER.keys():
        packages = {name.split(".")[0] for name in imports(INNER[module])}
        assert not packages & {"stable_baselines3", "sb3_contrib", "gymnasium"}, module


def test_integer_is_one_file_that_needs_numpy_only() -> None:
    packages = {name.split(".")[0] for name in imports(INNER["integer"])}
    assert packages <= sys.stdlib_module_names | {"numpy"}


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'scipy', 'gymnasium', 'stable_baselines3', 'rl_zoo3'}"
    assert run_python(f"import sys, sb3_qpd; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_integer_model_imports_where_only_numpy_is_installed() -> None:
    code = """
import sys

class OnlyNumpy:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | {"numpy", "sb3_qpd"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyNumpy())
from sb3_qpd.integer import IntegerModel
from sb3_qpd import IntegerModel as public
print(public is IntegerModel)
"""
    assert run_python(code) == "True"


@pytest.mark.parametrize("name", sb3_qpd.__all__)
def test_public_names(name: str) -> None:
    assert getattr(sb3_qpd, name) is not None
    assert name in dir(sb3_qpd)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(MODULES[""].read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"sb3_qpd.{module}" for name, module in sb3_qpd._MODULE_OF.items()}
    assert {*seen, "__version__"} == set(sb3_qpd.__all__)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'QPDDistiler'; did you mean 'QPDDistiller'"):
        sb3_qpd.QPDDistiler  # noqa: B018


@pytest.mark.parametrize(
    ("importer", "imported", "verdict"),
    [
        ("policies", "layers", True),
        ("teachers", "envs", True),
        ("envs", "teachers", False),
        ("losses", "policies", False),
        ("loading", "hub", True),
        ("cli", "report", True),
        ("cli", "zoo", True),
        ("zoo", "hub", True),
        ("hub", "zoo", False),
        ("__main__", "cli", True),
        ("zoo.__main__", "cli", True),
        ("zoo.manager", "cli", False),
        ("export.c", "integer", True),
        ("export", "export.c", True),
        ("report", "QPDDistiller", False),
        ("layers", "layers", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, verdict: bool) -> None:
    assert allowed(importer, imported) is verdict
