"""What importing this package loads, and its public names. Which module may import which: the contracts in pyproject.toml."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sb3_qpd

PACKAGE = Path(sb3_qpd.__file__).parent


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
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"sb3_qpd.{module}" for name, module in sb3_qpd._MODULE_OF.items()}
    assert {*seen, "__version__"} == set(sb3_qpd.__all__)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'QPDDistiler'. Did you mean 'QPDDistiller'"):
        sb3_qpd.QPDDistiler  # noqa: B018
