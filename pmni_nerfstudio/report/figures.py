# SPDX-License-Identifier: Apache-2.0
"""Contents of the page's 3D views: surfaces, fields and cameras in the display frame, drawn by templates/views3d.js.

Arrays are base64 strings of little-endian numbers in the smallest type that the display needs.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import trimesh

from pmni_nerfstudio.export.field_volume import BAND, FieldVolume
from pmni_nerfstudio.report.appearance import VertexColors
from pmni_nerfstudio.report.frames import Frame

GIVEN_COLOR, REFINED_COLOR = "#dd8452", "#2b6cb0"
"""Colors of the given and the refined cameras."""

MAX_DISTANCE = 3.0
"""Maximum displayed distance of the cameras, in radii of the object; greater distances are reduced by a common factor."""

_RAMP = 256


@dataclass(frozen=True, eq=False)
class VertexErrors:
    """Errors at the vertices of a surface, as one of the ways to color it."""

    name: str
    values: np.ndarray
    """(V,) errors; NaN where they are unknown."""
    end: float
    """Upper end of the color scale."""
    units: str


@dataclass(frozen=True, eq=False)
class Surface:
    """A mesh to be displayed."""

    name: str
    mesh: trimesh.Trimesh
    """Mesh of some ten thousand faces, in the data's world."""
    frame: Frame
    errors: Sequence[VertexErrors] = ()
    volume: FieldVolume | None = None
    """Signed distance field, in the data's world."""
    normals: np.ndarray | None = None
    """(V, 3) unit normals at the vertices, in the data's world; None: the mesh's own."""
    colors: VertexColors | None = None


@dataclass(frozen=True, eq=False)
class CameraSet:
    """Cameras to be displayed."""

    label: str
    color: str
    c2w: np.ndarray
    """(N, 4, 4) poses in the data's world, OpenCV axes."""
    names: Sequence[str] = field(default=())


def surface_view(surfaces: Sequence[Surface], *, alt: str) -> dict[str, Any]:
    """Contents of a 3D view of one or several surfaces, initially seen from the first camera.

    Args:
        surfaces: surfaces; the page has a slider that divides the view between two of them.
        alt: description for readers who cannot see the view.
    """
    return {
        "alt": alt,
        "eye": _rounded(surfaces[0].frame.eye),
        "reach": 1.0,
        "surfaces": [_surface(surface) for surface in surfaces],
        "cameras": [],
        "ramp": _color_ramp(),
    }


def camera_view(surface: Surface, cameras: Sequence[CameraSet], *, alt: str) -> dict[str, Any]:
    """Contents of a 3D view of cameras around a surface, each a small pyramid that opens in its viewing direction.

    Thin lines connect the cameras of a set with those of the next.
    """
    frame = surface.frame
    scale = camera_scale(frame, [group.c2w for group in cameras])
    centers = [frame.points(group.c2w[:, :3, 3]) * scale for group in cameras]
    size = 0.16 * min(MAX_DISTANCE, float(np.median(np.linalg.norm(np.concatenate(centers), axis=1))))
    sets = [
        {
            "label": group.label,
            "color": group.color,
            "names": [f"{name}, {group.label}" for name in group.names],
            "centers": _encoded(center.astype("<f4")),
            "lines": _encoded(_pyramids(center, frame.rotation @ group.c2w[:, :3, :3], size).astype("<f4")),
        }
        for group, center in zip(cameras, centers)
    ]
    links = [np.stack(pair, axis=1) for pair in zip(centers, centers[1:])]
    return {
        "alt": alt,
        "eye": _rounded(frame.eye + [0, 0, 0.45]),
        "reach": float(np.linalg.norm(np.concatenate(centers), axis=1).max()) + size,
        "surfaces": [_surface(surface)],
        "cameras": sets,
        "links": _encoded(np.concatenate([np.zeros((0, 2, 3)), *links]).astype("<f4")),
        "ramp": _color_ramp(),
    }


def camera_scale(frame: Frame, sets: Sequence[np.ndarray]) -> float:
    """Factor by which `camera_view` scales the cameras' distances from the object: 1 unless they are distant."""
    distance = np.linalg.norm(frame.points(np.concatenate(sets)[:, :3, 3]), axis=1)
    return min(1.0, MAX_DISTANCE / float(np.median(distance)))


def _surface(surface: Surface) -> dict[str, Any]:
    mesh, frame = surface.mesh, surface.frame
    points = frame.points(np.asarray(mesh.vertices))
    reach = float(np.abs(points).max())
    faces = np.asarray(mesh.faces, dtype="<u2" if len(points) <= 1 << 16 else "<u4")
    # Rows of four numbers, as GPUs want them; the fourth is unused.
    positions, directions = np.zeros((len(points), 4), "<u2"), np.zeros((len(points), 4), np.int8)
    positions[:, :3] = np.round((points / reach + 1) * 32767.5)
    normals = np.asarray(mesh.vertex_normals) if surface.normals is None else surface.normals
    directions[:, :3] = np.round(127 * (normals @ frame.rotation.T))
    return {
        "name": surface.name,
        "reach": reach,
        "positions": _encoded(positions),
        "normals": _encoded(directions),
        "faces": _encoded(faces),
        "wide": faces.itemsize == 4,
        "errors": [_errors(errors) for errors in surface.errors],
        "colors": None if surface.colors is None else _colors(surface.colors),
        "field": None if surface.volume is None else _field(surface.volume, frame),
    }


def _errors(errors: VertexErrors) -> dict[str, Any]:
    """Errors as pairs of bytes, the value and whether it is known: pairs can be interpolated."""
    known = np.isfinite(errors.values)
    share = np.where(known, errors.values, 0) / max(errors.end, 1e-12)
    pairs = np.stack([np.round(255 * share.clip(0, 1)), 255 * known], axis=1).astype(np.uint8)
    mean = f"mean {np.mean(errors.values[known]):.3g} {errors.units}" if known.any() else "unknown everywhere"
    return {
        "name": errors.name,
        "end": f"{errors.end:.3g} {errors.units} and more",
        "mean": mean,
        "values": _encoded(pairs),
    }


def _colors(colors: VertexColors) -> dict[str, Any]:
    rows = np.full((len(colors.values), 4), 255, np.uint8)
    rows[:, :3] = colors.values
    return {"name": colors.name, "values": _encoded(rows), "lit": colors.lit}


def _field(volume: FieldVolume, frame: Frame) -> dict[str, Any]:
    """A volume, x fastest, deflated."""
    values = np.ascontiguousarray(volume.values.transpose(2, 1, 0))
    return {
        "size": list(volume.values.shape),
        "band": BAND,
        "matrix": (frame.display_from_world @ volume.world_from_voxel).T.ravel().tolist(),  # columns, as in WebGL
        "values": base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii"),
    }


def _color_ramp() -> str:
    """Colors of the error scale, those of the pictures of the views: RGBA bytes."""
    from matplotlib import colormaps

    return _encoded((255 * colormaps["magma_r"](np.linspace(0, 1, _RAMP))).round().astype(np.uint8))


def _pyramids(centers: np.ndarray, rotations: np.ndarray, size: float) -> np.ndarray:
    """Edges (N * 8, 2, 3) of pyramids with apexes (N, 3) and rotations (N, 3, 3)."""
    corners = size * np.array([[-0.5, -0.4, 1.0], [0.5, -0.4, 1.0], [0.5, 0.4, 1.0], [-0.5, 0.4, 1.0]])
    ends = centers[:, None] + np.einsum("nij,kj->nki", rotations, corners)
    tips = np.broadcast_to(centers[:, None], ends.shape)
    sides, rims = np.stack([tips, ends], axis=2), np.stack([ends, np.roll(ends, -1, axis=1)], axis=2)
    return np.concatenate([sides, rims], axis=1).reshape(-1, 2, 3)


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _rounded(vector: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in vector]
