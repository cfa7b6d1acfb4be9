# SPDX-License-Identifier: Apache-2.0
"""A page of sections as one file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.report.templates import render, render_page


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    name: str
    """Of its anchor: one word."""
    title: str
    body: Markup
    """HTML, of `templates.render`."""


def note(text: str) -> Markup:
    """A short line of text."""
    return render("note", text)


def figure(drawn: go.Figure) -> Markup:
    """A Plotly figure, drawn when it comes into sight."""
    json = drawn.to_json(engine="json")
    assert json is not None
    # "<" could end the script that the data stand in; in JSON strings, the only place for it here, it may be written so
    return render("plot", json.replace("<", "\\u003c"))


def write_page(path: Path, title: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> None:
    """Write a page, atomically.

    Args:
        path: of the file.
        title: its heading.
        facts: label and value, in a line below it.
        sections: in order.
    """
    has_plots = any('class="plot"' in section.body for section in sections)
    html = render_page(
        title=title,
        facts=facts,
        sections=sections,
        plotly=get_plotlyjs() if has_plots else "",
        footer=f"Made by pmni-nerfstudio {metadata.version('pmni-nerfstudio')}.",
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
