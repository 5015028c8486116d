from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import HubServer, point_client_at, running_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with running_hub() as server:
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server
