"""The site: `make docs` writes it to build/site. The pages are Markdown; the reference comes from the docstrings."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from sphinx.application import Sphinx

from sb3_qpd.cli import make_parser
from sb3_qpd.cli.arguments import with_default

HERE = Path(__file__).parent

project = "sb3_qpd"
author = "The sb3_qpd developers"
copyright = "the sb3_qpd developers, MIT licence"
release = (HERE.parent / "sb3_qpd" / "version.txt").read_text(encoding="utf-8").strip()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # as on GitHub: page.md#a-heading
suppress_warnings = ["config.cache"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"sb3_qpd {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#6cb8e6", "color-brand-content": "#6cb8e6"},
}
copybutton_exclude = ".linenos, .gp, .go"

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_STAR = re.compile(r"(?<![\w*`])\*(?=\w+[,)\]])")


def name_files_of_the_repository(app: Sphinx, docname: str, source: list[str]) -> None:
    """
    Replace links to files outside of docs/ by the path in the repository. The site does not hold these files.

    :param app: Sphinx
    :param docname: name of the page
    :param source: its text, the only element
    """
    source[0] = _OUTSIDE.sub(r"\1 (`\2` in the repository)", source[0])


def list_commands(app: Sphinx, docname: str, source: list[str]) -> None:
    """
    Put every option of every command into its page, from the parser.

    :param app: Sphinx
    :param docname: name of the page
    :param source: its text, the only element
    """
    source[0] = source[0].replace("<!-- commands -->", "\n".join(_sections()))


def _sections() -> Iterator[str]:
    subparsers = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in subparsers.choices.items():
        yield f"\n## {name}\n\n{parser.description}\n"
        yield "```bash\n" + "\n".join(parser.examples) + "\n```\n"
        yield "| argument | meaning |\n|---|---|"
        for action in parser._actions:
            if action.dest != "help":
                shown = ", ".join(action.option_strings) or (action.metavar or action.dest)
                choices = "" if action.choices is None else f" One of: {', '.join(map(str, action.choices))}."
                text = with_default(action).replace("%(default)s", str(action.default)).replace("%%", "%")
                yield f"| `{shown}` | {_cell(text)}{choices} |".replace("FILE|DIR", "FILE, DIR")


def _cell(text: str) -> str:
    """Text in a cell of a table, where braces and stars mean nothing."""
    return re.sub(r"([*_|{}<>\[\]])", r"\\\1", text)


def escape_stars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """
    Show shapes such as (batch, *shape) of docstrings as they are. The star would open an emphasis.

    :param app: Sphinx
    :param what: kind of the documented thing
    :param name: its name
    :param thing: the thing itself
    :param options: of the directive
    :param lines: the docstring, changed in place
    """
    lines[:] = [_STAR.sub(r"\\*", line) for line in lines]


def setup(app: Sphinx) -> None:
    """
    Called by Sphinx.

    :param app: Sphinx
    """
    app.connect("source-read", name_files_of_the_repository)
    app.connect("source-read", list_commands)
    app.connect("autodoc-process-docstring", escape_stars)
