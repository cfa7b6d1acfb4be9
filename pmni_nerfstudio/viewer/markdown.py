# SPDX-License-Identifier: Apache-2.0
"""Markdown of a viser page: escaped text, and pictures embedded as data URIs."""

from __future__ import annotations

import re
from pathlib import Path

import viser
from jaxtyping import UInt8
from numpy import ndarray

from pmni_nerfstudio.data.images import data_uri, png_bytes

_NO_FILES = Path(".")
"""Image root of Markdown without image files; viser warns if it is None."""


def add_markdown(server: viser.ViserServer, content: str) -> viser.GuiMarkdownHandle:
    """Add Markdown that may contain embedded pictures to a page."""
    return server.gui.add_markdown(content, image_root=_NO_FILES)


def markdown_picture(name: str, picture: UInt8[ndarray, "h w 3"]) -> str:
    """Markdown of an embedded RGB picture with an alternative text."""
    return f"![{name}]({data_uri(png_bytes(picture), 'image/png')})"


def as_text(text: str) -> str:
    """Escape a text for literal display in Markdown."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&-])", r"\\\1", text)
