"""
Every command in the README and on the pages is accepted by its program, and what a user can type is explained.

The commands of the tutorial and of the page about custom environments run here from the first to the last, with less to learn.
"""

import argparse
import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from documentation import FENCE, PAGES, ROOT, Block, blocks, commands

import sb3_qpd
from sb3_qpd import QPDDistiller
from sb3_qpd.cli import main, make_parser
from sb3_qpd.cli.arguments import with_default

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
BLOCKS = [block for page in PAGES for block in blocks(page)]
# words that stand for something of the reader's, or for prose behind a command
_PLACEHOLDER = re.compile(r"\.\.\.|^[A-Z][A-Z_|]*$")
# programs that are not ours: what checks a command that begins with one
OTHER_PROGRAMS = {
    "pip": "packages of setup.py",
    "make": "a target of the Makefile",
    "python": "a file of the repository",
    "pytest": "a file of the repository",
    "cc": "tests/export compile the same files",
    "avr-gcc": "tests/export compile the same files",
    "avr-size": "tests/export compile the same files",
    "apt-get": "make emulators",
    "shtab": "test_completion",
    "gcc": "docs/safety.md, with its output there",
    "py-spy": "benchmarks/results/tables-speed.md, with its output there",
    "./policy": "the program that cc made",
}


def sb3_qpd_commands() -> list[tuple[str, list[str]]]:
    found = [(block.page, words[1:]) for block in BLOCKS for words in commands(block) if words[0] == "sb3-qpd"]
    return [(page, words) for page, words in found if not any(map(_PLACEHOLDER.search, words[:1]))]


@pytest.mark.parametrize(
    ("page", "words"), sb3_qpd_commands(), ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_a_command_is_accepted(page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options exist and take these values. Files are looked at later, but for that of ``--vecnormalize``."""
    monkeypatch.chdir(tmp_path)
    for i, word in enumerate(words):
        if word == "--vecnormalize":
            file = tmp_path / words[i + 1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    if words[0] != "zoo" and words[-1] != "--help":
        assert make_parser().parse_args([word for word in words if word != "..."]).command == words[0]


def test_every_other_program_is_known() -> None:
    programs = {words[0] for block in BLOCKS if block.language == "bash" for words in commands(block)}
    programs = {name for name in programs if not name.startswith("TRUST_")}
    assert programs <= {"sb3-qpd", *OTHER_PROGRAMS}


def test_files_of_commands_exist() -> None:
    for block in BLOCKS:
        for words in commands(block):
            if words[0] in ("python", "pytest"):
                for word in words[1:]:
                    if word.startswith(("benchmarks/", "examples/", "tests/")) and "*" not in word and ".jsonl" not in word:
                        path = word.partition("::")[0]
                        assert (ROOT / path).exists() or "results" in path, f"{block.page}: {word}"
            elif words[0] == "make":
                targets = (ROOT / "Makefile").read_text()
                assert all(re.search(rf"^[^:=]*\b{word}\b[^:=]*:", targets, re.M) for word in words[1:2]), words


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def columns(line: str) -> int:
    """The cells of a table's row: code may hold a bar."""
    return len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", line))) - 1


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: page.name)
def test_tables_are_whole(page: Path) -> None:
    """Each row of a table is one line, and has as many cells as its head."""
    lines = FENCE.sub("", page.read_text(encoding="utf-8")).splitlines()
    for i, line in enumerate(lines):
        if "|---" in line:
            assert re.fullmatch(r"\s*(\|-+)+\|", line), line
            end = next((k for k in range(i, len(lines)) if not lines[k].lstrip().startswith("|")), len(lines))
            uneven = [row for row in lines[i - 1 : end] if columns(row) != columns(line)]
            assert uneven == []


def test_every_argument_of_the_distiller_is_on_the_page_of_settings() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    unexplained = [name for name in inspect.signature(QPDDistiller).parameters if f"| `{name}` |" not in page]
    assert unexplained == []


def test_every_option_has_a_text() -> None:
    """The page of commands shows these texts."""
    subparsers = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    actions = [(name, action) for name, parser in subparsers.choices.items() for action in parser._actions]
    assert [
        (name, action.dest) for name, action in actions if not with_default(action).partition(" (default")[0].strip()
    ] == []
    assert "<!-- commands -->" in (ROOT / "docs" / "commands.md").read_text()


def _is_explained_by_a_base(cls: type, method: str) -> bool:
    """Whether a class of another package has the method: ``reset`` and ``step`` of an environment."""
    return any(hasattr(base, method) and not base.__module__.startswith("sb3_qpd") for base in cls.__mro__[1:])


def _public_callables() -> list[tuple[str, Any]]:
    found = [(name, getattr(sb3_qpd, name)) for name in sb3_qpd.__all__ if callable(getattr(sb3_qpd, name))]
    methods = [
        (f"{name}.{method}", function)
        for name, cls in found
        if inspect.isclass(cls)
        for method, function in vars(cls).items()
        if inspect.isfunction(function) and not method.startswith("_") and not _is_explained_by_a_base(cls, method)
    ]
    return found + methods


def test_every_public_name_and_parameter_is_in_the_reference() -> None:
    """The reference shows the docstrings, so every public name needs one that explains each of its own parameters."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"(?:autoclass|autofunction|autoexception|data):: sb3_qpd\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(name for name in sb3_qpd.__all__ if name != "__version__")
    missing = []
    for name, thing in _public_callables():
        own = thing.__init__ if inspect.isclass(thing) and "__init__" in vars(thing) else thing
        documented = re.findall(r":param (\w+):", inspect.getdoc(thing) or "")
        if inspect.isclass(thing):
            documented += [each for base in thing.__mro__ for each in re.findall(r":param (\w+):", base.__doc__ or "")]
            if "__init__" not in vars(thing):
                continue
        for parameter in inspect.signature(own).parameters.values():
            is_variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if parameter.name != "self" and not is_variable and parameter.name not in documented:
                missing.append(f"{name}({parameter.name})")
    assert missing == []


def _page(name: str) -> list[Block]:
    return list(blocks(ROOT / "docs" / name))


def _shortened(words: list[str]) -> list[str]:
    short = {"--timesteps": "600", "--episodes": "3", "--observations": "20"}
    return [short.get(words[i - 1], word) for i, word in enumerate(words)]


def _play(page: list[Block], skip: tuple[str, ...] = ()) -> None:
    """Run the commands of a page in the current folder, in order, with less to do."""
    for block in page:
        for words in commands(block):
            if words[0] == "sb3-qpd" and words[1] not in skip:
                quick = ["--no-progress", "--no-check-teacher", "--no-page"] if words[1] == "compress" else []
                assert main([*_shortened(words[1:]), *quick]) == 0, words


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = _page("tutorial.md")
    script = next(block.text for block in page if block.language == "python")
    (tmp_path / "teacher.py").write_text(script.replace("100_000", "2_048"))
    runpy.run_path("teacher.py")
    _play(page, skip=("benchmark",))
    assert {"student.npz", "policy.c", "main.c"} <= {path.name for path in (tmp_path / "cart").iterdir()}


def test_the_custom_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = _page("custom_environments.md")
    module, training = (block.text for block in page if block.language == "python")
    (tmp_path / "my_envs.py").write_text(module)
    (tmp_path / "train.py").write_text(training.replace("20_000", "512"))
    try:
        runpy.run_path("train.py")
        _play(page)
    finally:
        gym.registry.pop("Cart-v0", None)
        sys.modules.pop("my_envs", None)  # another test has a module of this name
    assert (tmp_path / "cart" / "policy.c").is_file()


def test_completion() -> None:
    shtab = pytest.importorskip("shtab", reason="shtab is not installed")
    script = shtab.complete(make_parser(), shell="bash")
    assert "--critic-coef" in script and "sb3-qpd" in script
