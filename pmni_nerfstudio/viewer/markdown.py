# SPDX-License-Identifier: Apache-2.0
"""Text as it stands, and pictures as URIs that hold them, in a page's Markdown."""

from __future__ import annotations

import re
from pathlib import Path

import viser
from jaxtyping import UInt8
from numpy import ndarray

from pmni_nerfstudio.data.images import data_uri, png_bytes

_NO_FILES = Path(".")
"""Root of images that are no files: viser warns of all that have none."""


def add_markdown(server: viser.ViserServer, content: str) -> viser.GuiMarkdownHandle:
    """Text on a page that may come to hold pictures."""
    return server.gui.add_markdown(content, image_root=_NO_FILES)


def markdown_picture(name: str, picture: UInt8[ndarray, "h w 3"]) -> str:
    """A picture, RGB, under a name that stands for it."""
    return f"![{name}]({data_uri(png_bytes(picture), 'image/png')})"


def as_text(text: str) -> str:
    """Markdown that shows a text as it stands, whatever signs are in it."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&-])", r"\\\1", text)
