# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML pages from the Jinja templates, style sheet and script in `templates/`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.report.glossary import explanation

_PACKAGE = "pmni_nerfstudio.report"
_ENVIRONMENT = jinja2.Environment(
    autoescape=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
    loader=jinja2.PackageLoader(_PACKAGE),
)
_ENVIRONMENT.globals["explanation"] = explanation


@dataclass(frozen=True)
class Section:
    """A section of a page."""

    name: str
    """Anchor: one word."""
    title: str
    """Heading."""
    body: Markup
    """HTML, made by `render`."""


def render(macro: str, /, *args: object) -> Markup:
    """Render a macro of macros.html.jinja."""
    return getattr(_ENVIRONMENT.get_template("macros.html.jinja").module, macro)(*args)


def note(text: str) -> Markup:
    """Render a short paragraph."""
    return render("note", text)


def figure(plot: go.Figure) -> Markup:
    """Render a Plotly figure, drawn when it comes into view."""
    json = plot.to_json(engine="json")
    assert json is not None
    # "<" could end the enclosing script element; within JSON strings, its only occurrences, it may be escaped.
    return render("plot", Markup(json.replace("<", "\\u003c")))


def write_page(path: Path, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Write a page, atomically.

    Args:
        path: File to write.
        title: Heading of the page.
        facts: Labels and values shown below the heading.
        sections: Sections in order.
    """
    has_plots = any('class="plot"' in section.body for section in sections)
    html = _ENVIRONMENT.get_template("page.html.jinja").render(
        title=title,
        facts=facts,
        sections=sections,
        css=_resource("report.css"),
        javascript=_resource("report.js"),
        plotly=Markup(get_plotlyjs()) if has_plots else "",
        version=metadata.version("pmni-nerfstudio"),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _resource(name: str) -> Markup:
    return Markup((resources.files(_PACKAGE) / "templates" / name).read_text(encoding="utf-8"))
