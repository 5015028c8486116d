from collections.abc import Iterator
from pathlib import Path

import pytest

TEACHERS = Path(__file__).resolve().parents[2] / "shared" / "teachers"


@pytest.fixture(scope="session")
def teachers() -> Path:
    """The folder of published RL Zoo teachers beside the checkout (they are not copied into the project)."""
    if not TEACHERS.is_dir():
        pytest.skip("the published teachers are not here: expected a folder shared/teachers beside the checkout")
    return TEACHERS


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """
    Tests leave the user's folders alone: evaluations keep the teacher's episodes there, and the command line remembers
    environments.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
