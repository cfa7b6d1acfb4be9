# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of a scene: all views with normals, silhouette, holes, and what does not fit the other silhouettes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.scene_summary import SceneSummary
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.geometry.silhouette_consistency import inconsistent_views

_TILE_PX = 200
"""Longer side of a view's picture."""
_TEXT_PX = 16
"""Height of the line of text below it."""
_GAP_PX = 6
_BACKGROUND, _INK, _GRAY = (255, 255, 255), (40, 40, 40), (150, 150, 150)
_GOOD, _BAD = (46, 125, 50), (198, 40, 40)
_HOLE = (255, 0, 200)


def write_contact_sheet(path: Path, summary: SceneSummary) -> None:
    """Write a PNG with one picture for each view, in their order.

    Colors are those of normals with x right, y up, z towards the viewer. Pixels of the mask without a normal are magenta,
    those outside of it white. A line tells the view's name and the consistency of its silhouette; the frame is green, or
    red where the silhouette does not fit the others, with red dots where rays through it miss their hull. Without poses
    frames are gray.

    Raises:
        PmniError: The file can't be written.
    """
    scene, scores = summary.scene, summary.scores
    wrong = set() if scores is None else {*inconsistent_views(scores), *(fault.view for fault in summary.faults)}
    scale = min(1.0, _TILE_PX / max(scene.width, scene.height))
    width, height = max(1, round(scene.width * scale)), max(1, round(scene.height * scale))
    cell_width, cell_height = width + _GAP_PX, height + _TEXT_PX + _GAP_PX
    columns = max(1, min(scene.num_views, round(np.sqrt(1.6 * scene.num_views * cell_height / cell_width))))
    rows = -(-scene.num_views // columns)
    sheet = Image.new("RGB", (columns * cell_width + _GAP_PX, rows * cell_height + _GAP_PX), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_PX - 5)
    for view, name in enumerate(scene.names):
        row, column = divmod(view, columns)
        x, y = _GAP_PX + column * cell_width, _GAP_PX + row * cell_height
        sheet.paste(_tile(summary, view, (width, height)), (x, y))
        frame = _GRAY if scores is None else _BAD if view in wrong else _GOOD
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=frame, width=2 if view in wrong else 1)
        if summary.consistency is not None:
            consistency = summary.consistency[view]
            for px, py in consistency.pixels[~consistency.is_consistent] * scale:
                draw.ellipse((x + px - 1.5, y + py - 1.5, x + px + 1.5, y + py + 1.5), fill=_BAD, outline=_BACKGROUND)
        text = name if scores is None else f"{scores[view]:.0%} {name}"
        draw.text((x, y + height + 2), text[: max(8, width // 6)], fill=_BAD if view in wrong else _INK, font=font)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _tile(summary: SceneSummary, view: int, size: tuple[int, int]) -> Image.Image:
    """Picture of one view at a width and height."""
    scene = summary.scene
    mask = scene.masks[view]
    colors = np.rint(255 * normals_to_rgb(scene.normals[view].astype(np.float32), mask[..., None])).astype(np.uint8)
    colors[mask & ~scene.valid[view]] = _HOLE
    return Image.fromarray(cv2.resize(colors, size, interpolation=cv2.INTER_AREA))
