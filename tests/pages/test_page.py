"""The page of a run, of a search and of several runs: its numbers in a real browser, and what hostile JSON can do to it."""

import copy
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, needs_chromium, running_browser
from commands import mistake
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3 import PPO

import sb3_qpd.pages.run_figures as run_figures_module
import sb3_qpd.pages.run_page as run_page_module
from sb3_qpd.cli import main
from sb3_qpd.pages.folders import page_of_report, read_folder, write_page
from sb3_qpd.pages.frontier import read_frontier
from sb3_qpd.pages.frontier_page import headline as frontier_headline
from sb3_qpd.pages.run import read_run
from sb3_qpd.pages.run_page import headline

FIGURES = {"size", "learning", "returns", "agreement", "layers", "speed", "film"}
SPEED = {"name": "student, C", "microseconds": 0.4, "per_second": 2e6, "nbytes": 788, "memory": 100}
BENCHMARK = {
    "rows": [{**SPEED, "name": "teacher, SB3 predict", "microseconds": 250.0, "memory": 282_083_328}, SPEED],
    "microcontrollers": [{"device": "cortex-m4f", "instructions": 2_180, "ms at 100 MHz": 0.0218}],
}
HOSTILE = (
    "</style></title><script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=document.title='owned'>"
)
VALUES: list[Any] = [
    *(None, True, -1, 0, 1e308, -1e308, 10**19, "", HOSTILE, "$\\frac{1}{", "javascript:alert(1)", [], {}, [[[[]]]]),
    *([HOSTILE] * 3, {HOSTILE: HOSTILE}, [1e14, -1e14], [{}] * 5, ["x"] * 2_000, [[1] * 50] * 50, "x" * 100_000, 1e-300),
]


class Tables(HTMLParser):
    """The tables of a page: their rows of cells, each its number where it has one, else its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Any]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._row: list[Any] | None = None
        self._name, self._in_body = "", False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag == "table":
            self._name = found["id"] or ""
            self.tables[self._name] = []
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th") and self._row is not None:
            self._row.append(float(found["data-value"] or "nan") if "data-value" in found else "")

    def handle_data(self, data: str) -> None:
        if self._row and isinstance(self._row[-1], str):
            self._row[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._row is not None:
            self.tables[self._name].append(self._row)
            self._row = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compress writes, with measurements and a film of one picture beside it."""
    root = tmp_path_factory.mktemp("page")
    PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0, n_steps=32, batch_size=32).save(root / "teacher.zip")
    options = ["--env", "CartPole-v1", "--timesteps", "4.2e3", "--episodes", "25", "--student-arch", "nano"]
    quiet = ["--no-check-teacher", "--no-progress", "--device", "cpu", "--no-cache", "--no-page"]
    assert main(["compress", str(root / "teacher.zip"), "--out", str(root / "run"), *options, *quiet]) == 0
    Image.new("RGB", (8, 4)).save(root / "run" / "film.gif")
    (root / "run" / "benchmark.json").write_text(json.dumps(BENCHMARK))
    return root / "run"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as one:
        yield one


def trial(name: str, bits: int, mean: float | None, state: str = "finished") -> dict[str, Any]:
    scores = [] if mean is None else [[1_000, mean - 5], [2_000, mean]]
    facts = {"id": name, "size": "nano", "student_arch": {}, "weight_bits": bits, "activation_bits": 8, "seed": 0}
    facts |= {"bytes": 100 + 20 * bits, "state": state, "steps": 2_000, "scores": scores, "return_mean": mean}
    return {**facts, "interval": mean and [mean - 2, mean + 2], "seconds": 3.5, "attempts": 1, "error": None}


def write_frontier(folder: Path, report: dict[str, Any], root: Path) -> dict[str, Any]:
    """A search whose only point is a run of compress."""
    shutil.copytree(folder, root / "points" / "nano-w8")
    point = {"size": "nano", "student_arch": {}, "weight_bits": 8, "activation_bits": 8, "folder": "points/nano-w8"}
    point |= {"bytes": report["integer"]["bytes"], "seeds": [5, 6], "return_mean": report["integer"]["return_mean"]}
    point |= {"interval": report["integer"]["ci95"], "verdict": "non_inferior", "trials": ["a"]}
    point["difference"] = {"mean": report["difference"], "interval": report["difference_ci95"]}
    frontier = {
        **{"format": 1, "command": "sb3-qpd frontier x", "versions": report["versions"], "deterministic": True},
        "teacher": {"name": "ppo", "algorithm": "PPO", "bytes": report["teacher"]["bytes"]},
        **{"environment": report["env"], "settings": {"timesteps": 2_000}},
        "validation": {"episodes": 30, "teacher": {"mean": 20.0, "interval": [18, 22]}, "random": {"mean": 15.0}},
        "test": {"episodes": 25, "teacher": {"mean": 21.0, "interval": [19, 23]}, "random": {"mean": 15.5}, "margin": 1.0},
        "trials": [trial("a", 8, 21.0), trial("b", 2, 9.0, "stopped"), trial("c", 3, None, "failed")],
        **{"points": [point], "chosen": 0, "winner": 0, "candidates": 3, "seconds": {"search": 10.0}},
    }
    (root / "frontier.json").write_text(json.dumps(frontier))
    return frontier


@needs_chromium
def test_a_browser_shows_every_figure_with_the_numbers_of_the_json(
    folder: Path, report: dict[str, Any], browser: Browser
) -> None:
    path = write_page([folder])
    assert path == folder / "report.html" and path.stat().st_size < 5_000_000
    browser.open(path)
    assert browser.complaints() == []
    assert {url for url in browser.requests() if not url.startswith("data:")} == {path.as_uri()}
    html = browser.evaluate("document.documentElement.outerHTML")
    figures = browser.evaluate("[...document.querySelectorAll('figure')].map(one => one.id)")
    assert set(figures) == {f"figure-{name}" for name in FIGURES}
    tables = Tables(html).tables
    sections = [report[name] for name in ("random", "teacher", "float", "integer")]
    for row, section in zip(tables["table-size"][1:], sections, strict=True):
        assert row[1:5] == [section["return_mean"], *section["ci95"], section["episodes"]]
        assert row[5:7] == ([section["bytes"], section["macs"]] if "bytes" in section else ["", ""])
    learning = report["learning"]
    assert len(learning["steps"]) >= 2 and len(learning["scores"]) >= 1
    columns = ("steps", "actor_loss", "critic_loss", "kl", "agreement", "mean_weight_bits", "transition")
    assert tables["table-learning"][1:] == [list(row) for row in zip(*(learning[name] for name in columns), strict=True)]
    scores = [[one["steps"], one["return_mean"], *one["ci95"], one["episodes"]] for one in learning["scores"]]
    assert tables["table-validation"][1:] == scores
    assert [row[1:] for row in tables["table-episodes"][1:]] == [
        list(one) for one in zip(*(section["returns"] for section in sections), strict=True)
    ]
    assert [row[1:] for row in tables["table-agreement"][1:]] == report["actions"][0]["counts"]
    assert [row[3:5] for row in tables["table-layers"][1:]] == [[one["bytes"], one["macs"]] for one in report["layers"]]
    assert [row[1] for row in tables["table-speed"][1:]] == [one["microseconds"] for one in BENCHMARK["rows"]]
    assert tables["table-boards"][1] == ["cortex-m4f", "2180", "0.0218"]
    text = browser.evaluate("document.body.innerText")
    assert report["teacher_checksum"] in text and report["versions"]["torch"] in text and "sb3-qpd compress" in text


@needs_chromium
def test_narrow_dark_and_printed(folder: Path, browser: Browser) -> None:
    """Nothing is wider than a telephone, each window has its own drawings, and colors follow the reader's choice."""
    browser.open(write_page([folder]))
    shown = "[...document.querySelectorAll('.wide, .narrow')].filter(one => one.offsetParent).map(one => one.className)"
    background = "getComputedStyle(document.documentElement).backgroundColor"
    try:
        browser.resize(1280)
        assert set(browser.evaluate(shown)) == {"wide"}
        browser.resize(375)
        assert set(browser.evaluate(shown)) == {"narrow"}
        assert browser.evaluate("document.documentElement.scrollWidth") <= 375
        browser.prefer("light")
        light = browser.evaluate(background)
        browser.prefer("dark")
        assert browser.evaluate(background) != light
        browser.prefer("dark", "print")
        assert browser.evaluate(background) == light and set(browser.evaluate(shown)) == {"wide"}
    finally:
        browser.prefer("light")
        browser.resize(1280)


def test_a_screen_reader_finds_its_way(folder: Path) -> None:
    """Landmarks, one first heading, a text for each drawing, headers of tables, and ids that occur once."""
    tags = Tables(write_page([folder]).read_text()).tags
    names = [tag for tag, _ in tags]
    assert [names.count(name) for name in ("main", "nav", "header", "footer", "h1", "html", "title")] == [1] * 7
    assert dict(tags)["html"]["lang"] == "en" and "script" not in names
    assert all(one["aria-label"] for tag, one in tags if one.get("role") in ("img", "region"))
    assert all(one["alt"] for tag, one in tags if tag == "img") and all(one["scope"] for tag, one in tags if tag == "th")
    assert all(one.get("aria-hidden") == "true" for tag, one in tags if tag == "svg")
    ids = [one["id"] for _, one in tags if "id" in one]
    assert len(ids) == len(set(ids))
    links = [one["href"] or "" for tag, one in tags if tag in ("a", "link") and "href" in one]
    assert all(link == "data:," or (link[0] == "#" and link[1:] in ids) for link in links)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colors_have_contrast() -> None:
    """WCAG 2.1: 4.5 to 1 for texts, 3 to 1 for lines and points, in light, in dark and on paper."""
    themes = re.findall(r":root \{(.*?)\}", Path(run_page_module.__file__).with_name("page.css").read_text(), re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colors = {name: luminance(color) for name, color in re.findall(r"--([\w-]+): (#[0-9a-f]{6});", theme)}
        for name in ("ink", "muted", "link", "good", "bad", "open", "teacher", "random", "float", "student"):
            least = 4.5 if name in ("ink", "muted", "link", "teacher") else 3.0
            for behind in ("surface", "raised"):
                low, high = sorted((colors[name], colors[behind]))
                assert (high + 0.05) / (low + 0.05) >= least, (name, behind)
        for name in (name for name in colors if name.startswith("bits-")):
            low, high = sorted((colors[name], colors["surface"]))
            assert (high + 0.05) / (low + 0.05) >= 3, name


@needs_chromium
def test_hostile_texts_stay_texts(folder: Path, report: dict[str, Any], browser: Browser, tmp_path: Path) -> None:
    hostile = copy.deepcopy(report) | {"teacher_name": HOSTILE, "student_arch": HOSTILE, "transition": HOSTILE}
    hostile |= {"notes": [HOSTILE], "versions": {HOSTILE: HOSTILE}, "teacher_checksum": "javascript:alert(1)"}
    hostile |= {"env": {"env_id": HOSTILE, "env_kwargs": {HOSTILE: HOSTILE}}, "baselines": {HOSTILE: report["float"]}}
    hostile["layers"][1]["kind"] = HOSTILE
    for name, content in (("report.json", json.dumps(hostile)), ("command.txt", HOSTILE), ("film.gif", "GIF89a" + HOSTILE)):
        (tmp_path / name).write_text(content)
    (tmp_path / "benchmark.json").write_text(
        json.dumps({"rows": [{**SPEED, "name": HOSTILE}], "microcontrollers": [{HOSTILE: 1}]})
    )
    path = write_page([tmp_path])
    browser.open(path)
    assert browser.complaints() == [] and browser.evaluate("document.title").startswith(HOSTILE[:20])
    assert {url for url in browser.requests() if not url.startswith("data:")} == {path.as_uri()}
    assert browser.evaluate("document.querySelectorAll('script, iframe, object, [onerror], a[href^=javascript]').length") == 0
    assert browser.evaluate("document.querySelectorAll('img').length") == 0  # the film is no GIF
    policy = browser.evaluate("document.querySelector('meta[http-equiv]').content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in JSON; of a list only the first."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    changed = copy.copy(value)
    changed[path[0]] = new if len(path) == 1 else replaced(value[path[0]], path[1:], new)
    return changed


def test_every_value_may_be_of_another_type(report: dict[str, Any]) -> None:
    """Each is read, or refused in a sentence; none ends otherwise."""
    refused = 0
    for path in places(report):
        for value in VALUES:
            try:
                read_run(replaced(report, path, value))
            except ValueError as error:
                assert "expected one that compress wrote" in str(error)
                refused += 1
    assert 0 < refused < 200  # only the sections of teacher and student are needed


@pytest.mark.parametrize("value", [1e14, 1e-300, HOSTILE, [[1] * 50] * 50], ids=["large", "small", "text", "lists"])
def test_pages_of_damaged_reports_are_drawn(report: dict[str, Any], value: Any) -> None:
    """All values that a page can do without are replaced at once, and lists get one more item."""
    damaged = {key: value for key in report} | {key: copy.deepcopy(report[key]) for key in ("teacher", "integer", "learning")}
    damaged["learning"] |= {"actor_loss": value, "mean_weight_bits": [value] * len(report["learning"]["steps"])}
    damaged["integer"] |= {"ci95": value, "bytes": value, "returns": [value, 3.0]}
    damaged["layers"] = [value, {"bytes": value, "macs": 1, "shape": value}, *report["layers"]]
    html = page_of_report(damaged, HOSTILE)
    assert len(html) < 5_000_000 and "<script" not in html and "http://127" not in html.replace("src=http://127", "")


def test_deep_and_large_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("report.json", "frontier.json"):
        for content, message in (
            ('{"a":' * 5_000 + "1" + "}" * 5_000, "is not JSON of a student"),
            ('{"a":' * 50 + "1" + "}" * 50, "nested"),
            (f'{{"a": {"9" * 5_000}}}', "a number of 5000 digits"),
            ('{"a": NaN}', "NaN"),
            (" " * (17 * 2**20), "bytes"),
            ("[]", "JSON object"),
            ("{}", "expected one that" if name == "report.json" else "no trial that ended"),
        ):
            (tmp_path / name).write_text(content)
            assert message in mistake(capsys, "report", tmp_path)
        (tmp_path / name).unlink()
    assert "holds no report.json and no frontier.json" in mistake(capsys, "report", tmp_path)
    (tmp_path / "recorded.md").touch()  # compress --observations writes it
    assert "Give compress --env ID as well: compress then writes report.json" in mistake(capsys, "report", tmp_path)
    assert not (tmp_path / "report.html").exists()


@needs_chromium
def test_the_page_of_a_search(folder: Path, report: dict[str, Any], browser: Browser, tmp_path: Path) -> None:
    frontier = write_frontier(folder, report, tmp_path)
    path = write_page([tmp_path])
    browser.open(path)
    assert browser.complaints() == [] and {url[:5] for url in browser.requests()} == {"file:", "data:"}
    tables = Tables(browser.evaluate("document.documentElement.outerHTML")).tables
    integer = report["integer"]
    assert tables["table-points"][1][1:3] == [integer["bytes"], integer["return_mean"]]
    assert [row[7] for row in tables["table-trials"][1:]] == [21.0, 9.0, ""]
    assert tables["table-scores"][1:3] == [["a", 1_000, 16.0], ["a", 2_000, 21.0]]
    figures = set(browser.evaluate("[...document.querySelectorAll('figure')].map(one => one.id)"))
    assert figures == {f"figure-{name}" for name in (*FIGURES, "trials")}
    sentence = browser.evaluate("document.querySelector('#verdict h2').innerText")
    ratio = report["teacher"]["bytes"] / integer["bytes"]
    assert f"has {integer['bytes']} bytes" in sentence and f"{ratio:.0f}" in sentence
    assert frontier["command"] in browser.evaluate("document.body.innerText")


def test_a_search_that_goes_on_has_a_page(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    frontier = write_frontier(folder, report, tmp_path)
    del frontier["test"]
    (tmp_path / "frontier.json").write_text(json.dumps({**frontier, "points": [], "winner": None}))
    html = write_page([tmp_path]).read_text()
    assert "The search has not ended: 3 trials so far." in html and 'id="figure-size"' in html


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({"points": [], "winner": None}, "The search found no student: none of 3 trials gave one."),
        ({"winner": None}, "No winner: none of 3 sizes and bits is shown to be as good on validation episodes."),
        ({"settings": {"max_bytes": "2kB"}}, "The best student below the limit plays as well as its teacher and has"),
        ({}, "The smallest student that plays as well as its teacher has"),
    ],
    ids=["failed", "undecided", "limit", "smallest"],
)
def test_a_headline_says_what_was_searched(
    changes: dict[str, Any], start: str, folder: Path, report: dict[str, Any], tmp_path: Path
) -> None:
    frontier = {**write_frontier(folder, report, tmp_path), **changes}
    found = read_frontier(frontier, "x", {"points/nano-w8": read_folder(folder)})
    assert frontier_headline(found).startswith(start)


def test_a_larger_winner_than_the_chosen_one_is_explained(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    frontier = write_frontier(folder, report, tmp_path)
    smaller = {**frontier["points"][0], "folder": "points/mini-w8", "bytes": 90, "verdict": "inconclusive"}
    frontier |= {"points": [smaller, *frontier["points"]], "winner": 1}
    (tmp_path / "frontier.json").write_text(json.dumps(frontier))
    html = write_page([tmp_path]).read_text()
    assert f"plays as well as its teacher has {report['integer']['bytes']} bytes" in html
    assert "Validation episodes chose mini-w8 with 90 bytes: undecided on test episodes. The winner is the next larger" in html


def test_a_search_of_thousands_of_trials_fits(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    frontier = write_frontier(folder, report, tmp_path)
    many = [{**trial(str(i), 8, float(i % 30)), "scores": [[step, i % 30] for step in range(20)]} for i in range(3_000)]
    (tmp_path / "frontier.json").write_text(json.dumps({**frontier, "trials": many}))
    page = write_page([tmp_path])
    assert page.stat().st_size < 5_000_000 and "400 of 2,000 trials are drawn." in page.read_text()


def test_every_value_of_a_search_may_be_of_another_type(folder: Path, report: dict[str, Any], tmp_path: Path) -> None:
    frontier = write_frontier(folder, report, tmp_path)
    run = read_folder(folder)
    for path in places(frontier):
        for value in VALUES:
            read_frontier(replaced(frontier, path, value), "x", {"points/nano-w8": run})


@pytest.mark.parametrize("name", ["../run", "/etc", "points/../../run", "link", "..\\run"])
def test_a_search_names_no_folder_outside_its_own(folder: Path, report: dict[str, Any], tmp_path: Path, name: str) -> None:
    root = tmp_path / "search"
    root.mkdir()
    shutil.copytree(folder, tmp_path / "run")
    (root / "link").symlink_to(tmp_path / "run")
    frontier = write_frontier(folder, report, root)
    assert read_folder(root).points[0].run is not None
    frontier["points"][0]["folder"] = name
    (root / "frontier.json").write_text(json.dumps(frontier))
    assert read_folder(root).points[0].run is None


@pytest.mark.parametrize("name", ["report.json", "benchmark.json"])
def test_links_are_not_followed(folder: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).symlink_to(folder / name)
    assert "is a link" in mistake(capsys, "report", tmp_path / "run")


def test_several_runs_on_one_page(
    folder: Path, report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "other")
    other = copy.deepcopy(report)
    other["integer"]["return_mean"] += 1
    (tmp_path / "other" / "report.json").write_text(json.dumps(other))
    assert main(["report", str(folder), "other"]) == 0
    assert capsys.readouterr().out == "Wrote comparison.html\n"
    found = Tables((tmp_path / "comparison.html").read_text())
    assert [row[4] for row in found.tables["table-runs"][1:]] == [one["integer"]["return_mean"] for one in (report, other)]
    figures = {one.get("id") for tag, one in found.tags if tag == "figure"}
    assert figures == {"figure-size", "figure-curves", "figure-returns"}
    other["env"] = {"env_id": "Acrobot-v1"}
    (tmp_path / "other" / "report.json").write_text(json.dumps(other))
    assert write_page([folder, "other"], "x.html") == Path("x.html")
    assert "learned from different teachers" in Path("x.html").read_text()
    with pytest.raises(ValueError, match="needs a file: give out="):
        write_page([folder, "other"])
    assert "at most 15 runs, got 16" in mistake(capsys, "report", *[folder] * 16)


def test_settings_of_matplotlib_are_not_the_folders(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 77\n")
    sizes = []
    for package in ("sb3_qpd.pages", "matplotlib"):
        code = f"import {package}, matplotlib; print(matplotlib.rcParams['font.size'])"
        sizes.append(subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, stdout=subprocess.PIPE).stdout)
    assert sizes == [b"10.0\n", b"77.0\n"]


def test_verdicts_in_a_sentence(report: dict[str, Any]) -> None:
    ratio = report["teacher"]["bytes"] / report["integer"]["bytes"]
    for verdict, start in (
        ("non_inferior", f"The student plays as well as its teacher and is {ratio:,.0f} times smaller: "),
        ("inferior", "The student plays worse than its teacher."),
        ("inconclusive", "Undecided: "),
        ("no_claim", "No claim: "),
        ("better than all", "The report names no verdict."),
    ):
        assert headline(read_run({**report, "verdict": verdict})).startswith(start)


def test_the_page_of_continuous_actions(report: dict[str, Any]) -> None:
    errors = [{"errors": [-0.5, -0.1, 0.0, 0.2, 0.7], "mean_abs": 0.25}, {"errors": [0.7, 0.1, 0, 0, 0], "mean_abs": 1}]
    html = page_of_report({**report, "actions": errors, "learning": None})
    table = Tables(html).tables["table-agreement"]
    assert table[1:] == [[0.0, -0.5, -0.1, 0.0, 0.2, 0.7, 0.25]]  # the second has no order, and is no list of quantiles
    assert 'id="figure-learning"' not in html


def test_numbers_that_json_lacks_leave_gaps(report: dict[str, Any]) -> None:
    learning = {**report["learning"], "actor_loss": [None, *report["learning"]["actor_loss"][1:]]}
    table = Tables(page_of_report({**report, "learning": learning})).tables["table-learning"]
    assert table[1][1] == "" and math.isfinite(table[2][1])


@pytest.mark.parametrize(("losses", "is_point"), [([0.5], True), ([0.5, None], True), ([0.5, 0.2], False)])
def test_a_curve_of_one_value_is_seen(losses: list[float | None], is_point: bool) -> None:
    axes = Figure().subplots()
    run_figures_module._column_curve(axes, {"steps": [100.0, 200.0][: len(losses)], "actor_loss": losses}, "actor_loss")
    assert [line.get_marker() == "o" for line in axes.lines] == [is_point]
