# SPDX-License-Identifier: Apache-2.0
"""Details of a full mesh, and colors of its photographs, at the vertices of the simplified mesh that a page displays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import trimesh
from jaxtyping import Float, UInt8

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.stored_result import StoredResult
from pmni_nerfstudio.export.baking import corresponding_points
from pmni_nerfstudio.export.photographs import ALBEDO, find_colors, read_photographs, srgb_from_linear
from pmni_nerfstudio.export.texture import surface_colors
from pmni_nerfstudio.geometry.ray_casting import RayCaster


@dataclass(frozen=True, eq=False)
class VertexColors:
    """Colors at the vertices of a surface."""

    name: str
    """Source of the colors: photographs or albedo."""
    values: UInt8[np.ndarray, "V 3"]
    """sRGB."""
    lit: bool
    """The page lights the surface: colors of photographs hold the light that fell on it, an albedo does not."""


def baked_normals(small: trimesh.Trimesh, full: trimesh.Trimesh) -> Float[np.ndarray, "V 3"]:
    """Unit normals of the full mesh at the vertices of a simplified one."""
    if small is full:
        return np.asarray(small.vertex_normals)
    hits = corresponding_points(np.asarray(small.vertices), np.asarray(small.vertex_normals), full, RayCaster(full))
    every = np.ones(len(hits.face), dtype=bool)
    normals = hits.interpolate(every, np.asarray(full.faces), np.asarray(full.vertex_normals))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)


def vertex_colors(result: StoredResult, small: trimesh.Trimesh) -> tuple[VertexColors | None, str]:
    """Colors at the vertices of a result's displayed mesh, from the scene's albedo maps or photographs.

    Returns:
        The colors, None if there are none; and a sentence for the reader, empty if there is nothing to say.
    """
    scene, c2w = result.scene, result.c2w if result.c2w is not None else result.given_c2w
    files = None if scene is None else find_colors(scene)
    if scene is None or files is None or c2w is None:
        return None, ""
    name = "albedo" if files.folder == ALBEDO else "photographs"
    try:
        photographs = read_photographs(scene, c2w, files)
        linear, seen = surface_colors(small, RayCaster(small), small.vertices, small.vertex_normals, photographs)
    except PmniError as error:
        return None, f" No colors of the {name}: {error}."
    text = (
        "" if seen.all() else f" {1 - seen.mean():.0%} of the vertices are in no view; their colors are those nearby."
    )
    return VertexColors(name, np.round(255 * srgb_from_linear(linear)).astype(np.uint8), files.folder == ALBEDO), text
