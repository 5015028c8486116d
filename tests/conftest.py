from pathlib import Path

import pytest

TEACHERS = Path(__file__).resolve().parents[2] / "shared" / "teachers"


@pytest.fixture(scope="session")
def teachers() -> Path:
    """The folder of published RL Zoo teachers beside the checkout (they are not copied into the project)."""
    if not TEACHERS.is_dir():
        pytest.skip("the published teachers are not here: expected a folder shared/teachers beside the checkout")
    return TEACHERS
