# SPDX-License-Identifier: Apache-2.0
"""Self-contained HTML pages from the Jinja templates, style sheet and scripts in `templates/`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.report.glossary import explanation

_PACKAGE = "pmni_nerfstudio.report"
_STYLES = ("templates/report.css", "templates/figures.css")
_SCRIPTS = tuple(f"templates/{name}.js" for name in ("shaders", "views3d", "controls3d", "charts", "report"))
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


def figure(kind: Literal["chart", "scene"], contents: dict[str, Any]) -> Markup:
    """Render a figure, drawn when it comes into view.

    Args:
        kind: chart of `report.charts` or 3D view of `report.figures`.
        contents: what they return.
    """
    # "<" could end the enclosing script element; within JSON strings, its only occurrences, it may be escaped.
    return render(
        "drawn", kind, contents.get("height"), Markup(json.dumps(contents, allow_nan=False).replace("<", "\\u003c"))
    )


def write_page(path: Path, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Write a page, atomically.

    Args:
        path: File to write.
        title: Heading of the page.
        facts: Labels and values shown below the heading.
        sections: Sections in order.
    """
    has_figures = any('<script type="application/json">' in section.body for section in sections)
    html = _ENVIRONMENT.get_template("page.html.jinja").render(
        title=title,
        facts=facts,
        sections=sections,
        css=_resource(*_STYLES),
        javascript=_resource(*_SCRIPTS),
        libraries=_resource("libraries/libraries.min.js") if has_figures else "",
        version=metadata.version("pmni-nerfstudio"),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _resource(*names: str) -> Markup:
    """Text of package files, joined."""
    folder = resources.files(_PACKAGE)
    return Markup("\n").join(Markup((folder / name).read_text(encoding="utf-8")) for name in names)
