from typing import Any

import pytest

from sb3_qpd.search.settings import SearchSettings, check_storage, parse_bits, parse_max_bytes


@pytest.mark.parametrize(
    ("given", "bits"), [(4, (4, 4)), ("3", (3, 3)), ("w2a8", (2, 8)), ("W5", (5, 5)), ((2, 8), (2, 8)), ([4, 8], (4, 8))]
)
def test_bits(given: Any, bits: tuple[int, int]) -> None:
    assert parse_bits(given) == bits


@pytest.mark.parametrize("given", [9, 1, True, "W2A", "A8", "32", (8,), (8, 32), None, 4.0])
def test_impossible_bits(given: Any) -> None:
    with pytest.raises(
        ValueError, match="bits must be numbers of 2 to 8 such as 4, or of weights and activations as W2A8, got"
    ):
        parse_bits(given)


@pytest.mark.parametrize(
    ("given", "n_bytes"), [(2000, 2000), ("2kB", 2000), ("0.5kB", 500), ("300", 300), ("1MB", 1e6), ("50%", 5000), ("7B", 7)]
)
def test_max_bytes(given: Any, n_bytes: float) -> None:
    assert parse_max_bytes(given, teacher_bytes=10_000) == n_bytes


@pytest.mark.parametrize("given", [0, -1, "0B", "2 GB", "kB", "", None, True, float("nan")])
def test_impossible_max_bytes(given: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes must be bytes such as 2000, 2kB or 1MB, or percent"):
        parse_max_bytes(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": "nano"}, "sizes must be a list of at least one size"),
        ({"sizes": ()}, "sizes must be a list of at least one size"),
        ({"bits": ()}, "bits must be a list such as"),
        ({"seeds": 0}, "seeds must be a whole number of 1 to 1000, got 0"),
        ({"timesteps": 0.5}, "timesteps must be a whole number of at least 1"),
        ({"rungs": (0.5, 0.25)}, "rungs must rise"),
        ({"rungs": (0.5, 1.0)}, "rungs must be shares of the steps between 0 and 1"),
        ({"rung_episodes": 1}, "rung_episodes must be a whole number of at least 2"),
        ({"seed": 2**32 - 2}, "seed must leave room for 6 seeds"),
        ({"max_bytes": "much"}, "max_bytes must be bytes"),
        ({"seeds": 1000, "bits": (2, 3, 4, 5)}, "at most 10,000 trials, got 12,000"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSettings(**changes)


def test_seeds_are_never_used_twice() -> None:
    settings = SearchSettings(sizes=("nano", "nano", "tiny"), bits=(8, "W8A8"), seeds=2, seed=5, timesteps=1e4)
    assert settings.search_seeds == [5, 6] and settings.fresh_seeds == [7, 8]
    assert settings.candidates() == [("nano", (8, 8)), ("tiny", (8, 8))] and settings.rung_steps == [2500, 7500]


@pytest.mark.parametrize(
    ("storage", "study_name", "message"),
    [
        ("search.db", "frontier", "storage must be a URL of Optuna .*, got 'search.db'"),
        (None, " ", "study_name must be a name"),
    ],
)
def test_impossible_storages(storage: str | None, study_name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_storage(storage, study_name)
