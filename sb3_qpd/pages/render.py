"""A page as HTML, and the files that it is made from and written to."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sb3_qpd.pages.content import Page
from sb3_qpd.version import __version__

MAX_PAGE_BYTES = 5_000_000


def render(page: Page) -> str:
    """
    The page as one HTML file. Every text in it is escaped; only drawings and styles, which this package writes, are markup.

    :param page: what stands in it
    :raises ValueError: it has more than 5 MB
    """
    folder = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    style = Markup((folder / "page.css").read_text(encoding="utf-8").rstrip())
    html = template.render(page=page, style=style, version=__version__)
    if (n_bytes := len(html.encode())) > MAX_PAGE_BYTES:
        most = f"expected at most {MAX_PAGE_BYTES:,}"
        raise ValueError(f"The page has {n_bytes:,} bytes, {most}. Remove film.gif from the folder, or take a smaller one")
    return html
