"""The C sources: what they promise to a firmware engineer, and how the templates write them."""

import os
import platform
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from c_policies import assert_same, integers, needs_compiler
from gymnasium import spaces
from jinja2 import UndefinedError
from students import BOX, DISCRETE, IMAGE, SPACES, VECTOR, make_student, some_observations

from sb3_qpd import IntegerModel
from sb3_qpd.export.c.exporter import TEMPLATES, export_c
from sb3_qpd.export.c.runtime import CPolicy, find_compiler
from sb3_qpd.export.c.text import (
    block_initializer,
    float_literal,
    integer_literal,
    literals,
    read_template,
    unsigned_literal,
)
from sb3_qpd.integer import REQUANTIZATIONS

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
N_FUZZ = os.environ.get("N_FUZZ", "400")  # observations for the sanitizers

pytestmark = needs_compiler


def variants() -> dict[str, IntegerModel]:
    result = {}
    for name, (observation_space, action_space) in SPACES.items():
        for requantization in REQUANTIZATIONS:
            bits = (4, 8) if requantization == "fixed" else (8, 8)
            result[f"{name}, {requantization}"] = integers(observation_space, action_space, bits, requantization)
    result["rgb"] = integers(spaces.Box(0, 255, (3, 36, 36), np.uint8), DISCRETE, (2, 8))
    result["linear"] = integers(VECTOR, DISCRETE, arch={"hidden": ()})
    return result


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[IntegerModel, Path]]:
    """The C of each variant, which tests only compile."""
    folders = [(model, tmp_path_factory.mktemp("sources")) for model in variants().values()]
    for model, folder in folders:
        export_c(model, folder)
    return folders


@pytest.mark.parametrize("compiler", ["gcc -std=c99", "gcc -std=gnu11", "g++ -xc++", "clang -std=c99", "clang++ -xc++"])
def test_compiles_without_a_warning(compiler, sources):
    if shutil.which(compiler.split()[0]) is None:
        pytest.skip(f"needs {compiler.split()[0]}")
    for model, folder in sources:
        command = [*compiler.split(), *WARNINGS, "-fsyntax-only", "policy.c", "main.c"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert not done.returncode and not done.stderr, done.stderr
        if model.requantization == "fixed":
            subprocess.run([*command, "-DPOLICY_FLOAT_HELPERS"], cwd=folder, check=True)


def test_the_example_checks_its_test_vectors(sources, tmp_path):
    for _, folder in sources:
        program = tmp_path / folder.name
        subprocess.run([*find_compiler(), *WARNINGS, "-O1", "main.c", "policy.c", "-o", program], cwd=folder, check=True)
        done = subprocess.run([program], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("0 of ")
    folder = shutil.copytree(folder, tmp_path / "changed")
    vectors = (folder / "test_vectors.h").read_text()
    (folder / "test_vectors.h").write_text(vectors.replace("test_actions[32] = {\n    ", "test_actions[32] = {\n    9"))
    subprocess.run([*find_compiler(), "main.c", "policy.c", "-o", "main"], cwd=folder, check=True)
    assert subprocess.run(["./main"], cwd=folder, stdout=subprocess.DEVNULL).returncode == 1


def test_given_observations_become_the_test_vectors(tmp_path):
    model = integers(VECTOR)
    export_c(model, tmp_path, observations=np.full((3, 5), 0.625, np.float32))
    text = (tmp_path / "test_vectors.h").read_text()
    assert "#define POLICY_N_VECTORS 3\n" in text and text.count("0.625f") == 15


def test_two_policies_in_one_program(tmp_path):
    for name, model in (("left", integers(VECTOR)), ("right_2", integers(IMAGE, BOX))):
        paths = export_c(model, tmp_path, name=name)
        assert [path.name for path in paths] == [
            f"{name}{end}" for end in (".h", ".c", "_test_vectors.h", "_main.c", "_README.md")
        ]
    main = '#include "left.h"\n#include "right_2.h"\nint main(void) { right_2_reset(); return LEFT_OK; }\n'
    (tmp_path / "both.c").write_text(main)
    subprocess.run([*find_compiler(), "both.c", "left.c", "right_2.c", "-o", "both"], cwd=tmp_path, check=True)
    subprocess.run(["./both"], cwd=tmp_path, check=True)
    model = integers(IMAGE, BOX)
    assert_same(CPolicy(tmp_path, name="right_2"), model, some_observations(IMAGE, 10))


def test_readme_says_what_it_needs(tmp_path):
    export_c(integers(IMAGE, DISCRETE, arch="nano"), tmp_path)
    readme = next(tmp_path.glob("*_README.md")).read_text()
    assert "| RAM: stack of frames (`POLICY_STACK_BYTES`) | 5,184 |" in readme
    assert "conv1" in readme and "kernel 8, stride 4, 8-bit weights" in readme


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_sanitizers_find_nothing(space, tmp_path):
    options = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    for i, requantization in enumerate(REQUANTIZATIONS):
        model = integers(space, [DISCRETE, BOX][i], (3, 8), requantization)
        export_c(model, tmp_path)
        command = [*find_compiler(), *options, "-I.", Path(__file__).with_name("c_fuzz.c"), "policy.c", "-o", "fuzz"]
        if subprocess.run(command, cwd=tmp_path).returncode:
            pytest.skip("needs the sanitizers' libraries")
        done = subprocess.run(["./fuzz", N_FUZZ], cwd=tmp_path, capture_output=True, text=True)
        assert not done.returncode and not done.stderr, done.stderr
        refused = int(done.stdout.split()[0])
        assert (refused == 0) == (space is VECTOR and requantization == "fixed"), done.stdout


def test_fast_math_is_refused(tmp_path):
    export_c(integers(VECTOR), tmp_path)
    with pytest.raises(RuntimeError, match="Compile without -ffast-math"):
        CPolicy(tmp_path, ("-ffast-math",))


@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="needs gcc for x86-64")
@pytest.mark.parametrize(("observation_space", "action_space"), SPACES.values(), ids=SPACES)
def test_fixed_mode_has_no_float(observation_space, action_space, tmp_path):
    command = ["gcc", "-mgeneral-regs-only", "-O2", "-c", "policy.c", "-o", "policy.o"]
    export_c(integers(observation_space, action_space, requantization="fixed"), tmp_path)
    subprocess.run([*command, "-ffast-math"], cwd=tmp_path, check=True)
    export_c(integers(observation_space, action_space), tmp_path)
    assert subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode


def test_statements_and_values_stand_in_c():
    template = TEMPLATES.from_string("1\n//: if a\n${x}\n//: elif b\n{{0}} << 3\n//: endif\n//#\n${x | integers | inline}")
    assert template.render(a=True, x=2**31 - 1 - np.arange(2)) == "1\n[2147483647 2147483646]\n\n{2147483647, 2147483646}"
    assert template.render(a=False, b=True, x=[-(2**31)]) == "1\n{{0}} << 3\n\n{(-2147483647 - 1)}"
    with pytest.raises(UndefinedError, match="'b' is undefined"):
        template.render(a=False, x=[])


@pytest.mark.parametrize("file", ["README.md", "main.c", "policy.c", "policy.h", "rescaling.c", "sums.c", "test_vectors.h"])
def test_no_empty_line_follows_a_statement(file):
    """Jinja2 would drop it."""
    lines = read_template(file).splitlines()
    assert not [number for number, (one, next_) in enumerate(pairwise(lines), 1) if one[:3] == "//:" and not next_]
    assert any(line.startswith("//: ") for line in lines)


def test_arrays_of_several_dimensions():
    texts = literals(np.arange(4, dtype=np.uint8).reshape(2, 1, 2), unsigned_literal)
    assert block_initializer(texts) == "{{{\n    0u, 1u\n}}, {{\n    2u, 3u\n}}}"
    numbers = block_initializer(literals(range(100, 150), integer_literal))
    assert numbers.startswith("{\n    100, 101,") and numbers.endswith(", 149\n}")
    assert all(len(line) <= 120 for line in numbers.splitlines())


def test_other_targets_do_without_jinja2():
    modules = ", ".join(f"sb3_qpd.export{name}" for name in ("", ".numpy", ".c.runtime", ".c.emulator"))
    for imported, is_loaded in ((modules, False), (f"{modules}, sb3_qpd.export.c.exporter", True)):
        code = f"import sys, {imported}; assert ('jinja2' in sys.modules) is {is_loaded}"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_every_float_comes_back_from_its_literal():
    rng = np.random.default_rng(0)
    for x in [*rng.integers(0, 0x7F800000, 2000, np.uint32).view(np.float32), np.float32(0), np.float32(1e-45), np.float32(7)]:
        literal = float_literal(float(x))
        assert np.float32(literal.rstrip("f")) == x and ("." in literal or "e" in literal)
    assert float_literal(-np.inf) == "-3.40282347e+38f"


def test_a_name_cannot_end_the_comment_that_it_stands_in(tmp_path: Path) -> None:
    model = make_student(VECTOR, DISCRETE, (8, 8)).to_integer(
        teacher="x */\n#error injected\n/*", env={"env_id": "*/ int evil(void); /*\\"}
    )
    export_c(model, tmp_path)
    CPolicy(tmp_path)  # compiles
    for file in tmp_path.iterdir():
        assert "#error injected" not in file.read_text().splitlines()
        assert "*/ int evil" not in file.read_text()


@pytest.mark.parametrize("name", ["main", "test_vectors", "Policy", "a-b"])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be"):
        export_c(make_student(VECTOR, DISCRETE, (8, 8)).to_integer(), tmp_path, name=name)
    assert not list(tmp_path.iterdir())
