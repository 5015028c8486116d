"""The comment at the head of the C interface, and the worked example of fixed mode on the page about the arithmetic."""

import subprocess
from pathlib import Path

import numpy as np
from documentation import ROOT, blocks
from gymnasium import spaces
from space_students import make_student as make_space_student
from students import make_student, some_observations

from sb3_qpd import IntegerModel, export_c
from sb3_qpd.export.c.fields import fields_of
from sb3_qpd.export.c.runtime import find_compiler
from sb3_qpd.export.ranges import feature_ranges

BOX = spaces.Box(-2, 2, (2,), np.float32)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)


def integers(space: spaces.Box, action_space: spaces.Space, requantization: str = "float32") -> IntegerModel:
    model = make_student(space, action_space).to_integer()
    model.requantization = requantization
    return model


def comment(model: IntegerModel, folder: Path) -> str:
    header = export_c(model, folder)[0].read_text()
    return header[: header.index("*/")]


def test_features_actions_and_wrappers_are_named(tmp_path: Path) -> None:
    model = integers(VECTOR, BOX)
    model.metadata["pipeline"] = ["TimeFeatureWrapper", "Evil*/ int main(void) { }", 3]
    told = comment(model, tmp_path)
    for number, (low, high) in enumerate(feature_ranges(model)):
        assert f"     [{number}] {low:.6g} to {high:.6g}\n" in told
    assert " *     [1] -2 to 2\n" in told and "     TimeFeatureWrapper\n" in told
    assert "     Evil_/ int main(void) _ _\n" in told


def test_the_ranges_are_the_ends_of_the_grid() -> None:
    model = integers(VECTOR, BOX)
    low, high = feature_ranges(model).T.astype(np.float32)
    assert (model.quantize_input(low[None]) == -128).all() and (model.quantize_input(high[None]) == 127).all()
    assert (np.abs(model.quantize_input((low + high)[None] / 2) + 0.5) < 1.5).all()


def test_numbers_of_a_dict_have_the_names_of_their_fields(tmp_path: Path) -> None:
    model = make_space_student("Dict", "Discrete", 4).to_integer()
    told, fields = comment(model, tmp_path), {field.name: field.part for field in fields_of(model)}
    for name, part in fields.items():
        n = part.n_features if part.kind == "vector" else 0
        assert [f" *     {name}[{number}] " in told for number in range(n + 1)] == [True] * n + [False]
        assert (f" *     {name} " in told) == (part.kind == "float_image")


def test_pixels_have_no_ranges(tmp_path: Path) -> None:
    told = comment(integers(IMAGE, spaces.Discrete(6)), tmp_path)
    assert "pixels from 0 to 255" in told and "an index from 0 to 5" in told and "[0]" not in told


PROGRAM = """
#include <stdio.h>
#include <string.h>
#include "policy.h"
static const float multiplier[] = POLICY_OBSERVATION_MULTIPLIER;
static const float offset[] = POLICY_OBSERVATION_OFFSET;
int main(void) {
    float xs[POLICY_OBSERVATION_SIZE];
    while (fread(xs, sizeof xs, 1, stdin) == 1) {
        int8_t grid[POLICY_OBSERVATION_SIZE];
        for (int i = 0; i < POLICY_OBSERVATION_SIZE; i++) {
            const float x = xs[i];
            EXAMPLE
        }
        fwrite(grid, sizeof grid, 1, stdout);
    }
    return 0;
}
"""


def test_the_worked_example_of_fixed_mode(tmp_path: Path) -> None:
    """The lines of the page bring observations to the grid of the integer model, also far beyond the range."""
    example = next(block.text for block in blocks(ROOT / "docs" / "arithmetic.md") if block.language == "c")
    model = integers(VECTOR, spaces.Discrete(4), "fixed")
    export_c(model, tmp_path)
    (tmp_path / "example.c").write_text(PROGRAM.replace("EXAMPLE", example))
    subprocess.run([*find_compiler(), "example.c", "policy.c", "-o", "example"], cwd=tmp_path, check=True)
    observations = some_observations(VECTOR, 200)
    done = subprocess.run(["./example"], cwd=tmp_path, input=observations.tobytes(), capture_output=True, check=True)
    grid = np.frombuffer(done.stdout, np.int8).reshape(observations.shape)
    expected = model.quantize_input(observations)
    assert (grid == expected).all() and {-128, 127} <= {*expected.ravel()}
