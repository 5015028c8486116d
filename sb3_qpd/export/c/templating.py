"""Jinja for C: statements are comments of C, so that an editor shows a template as the code that it is."""

from __future__ import annotations

import jinja2

from sb3_qpd.export.c.text import read_template


def environment() -> jinja2.Environment:
    """An environment of the templates in this folder. Each exporter adds its own filters."""
    return jinja2.Environment(
        line_statement_prefix="//:",
        line_comment_prefix="//#",
        variable_start_string="${",
        variable_end_string="}",
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # C, not HTML
        loader=jinja2.FunctionLoader(read_template),
    )
