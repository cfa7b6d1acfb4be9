# SPDX-License-Identifier: Apache-2.0
"""The mesh and the cameras as Plotly figures that turn in a browser.

They are drawn in a frame of their own: the object's middle is the origin, its radius 1, and z is up as the cameras see
it, so that Plotly's turntable keeps it upright and its shading knows no units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import trimesh

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#319795")
"""Of curves, one after the other."""

BEFORE, AFTER = "#dd8452", "#2b6cb0"
"""Of cameras."""

FAR = 3.0
"""Cameras further off than so many radii of the object are drawn so near, all by one factor."""

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12.5, "color": "#333"}
_CLAY = "#dccdb8"
_LIGHT = {"ambient": 0.3, "diffuse": 0.75, "specular": 0.2, "roughness": 0.45, "fresnel": 0.05}
_LAMP = {"x": 60_000, "y": -60_000, "z": 1000}
"""From the viewer's upper left, whichever way the mesh is turned. (Found by trying: Plotly takes these through the view's
projection, so that they are no coordinates of anything.)"""
_LEAST_UPRIGHT = 0.3


@dataclass(frozen=True, eq=False)
class Frame:
    """Where figures are drawn: display = rotation @ (world - centre) / radius."""

    centre: np.ndarray
    """(3,) of the object, in the data's world."""
    radius: float
    """Of the object, in the data's units."""
    rotation: np.ndarray
    """(3, 3), from the data's world to z upward."""
    eye: np.ndarray
    """(3,) unit, towards the first camera, in the display's frame."""

    def points(self, world: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the data's world, in the display's frame."""
        return (world - self.centre) @ self.rotation.T / self.radius


def display_frame(mesh: trimesh.Trimesh, c2w: np.ndarray | None) -> Frame:
    """A frame in which the object stands upright before the first camera.

    Args:
        mesh: in the data's world.
        c2w: (N, 4, 4) poses in the same world, OpenCV axes; None: z is taken for up.
    """
    centre = mesh.bounds.mean(axis=0)
    radius = float(np.linalg.norm(mesh.vertices - centre, axis=1).max())
    if c2w is None:
        return Frame(centre, radius, np.eye(3), np.array([0.8, -0.6, 0.3]) / np.linalg.norm([0.8, -0.6, 0.3]))
    # Cameras round an object that look down on it agree on what is up, though none of their images' sides is.
    up = -c2w[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < _LEAST_UPRIGHT:
        up = -c2w[0, :3, 1]
    z = up / np.linalg.norm(up)
    towards = c2w[0, :3, 3] - centre
    y = -(towards - z * (towards @ z))
    if np.linalg.norm(y) < 1e-6 * np.linalg.norm(towards):  # seen from right above
        y = -c2w[0, :3, 1] - z * (-c2w[0, :3, 1] @ z)
    y /= np.linalg.norm(y)
    rotation = np.stack([np.cross(y, z), y, z])
    return Frame(centre, radius, rotation, rotation @ towards / np.linalg.norm(towards))


def layout(**changes: Any) -> dict[str, Any]:
    """The look that all figures share, with changes."""
    common = {
        "template": "none",
        "font": _FONT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "#fbfbfa",
        "margin": {"l": 60, "r": 12, "t": 12, "b": 44},
        "showlegend": False,
        "hoverlabel": {"font": _FONT},
    }
    return common | changes


def mesh_figure(mesh: trimesh.Trimesh, frame: Frame, height: int = 560) -> go.Figure:
    """A mesh to turn about, as the first camera sees it.

    Args:
        mesh: in the data's world, of some ten thousand faces.
        frame: to draw it in.
        height: of the figure in pixels.
    """
    return go.Figure([_clay(mesh, frame)], _space(height, frame.eye, 1.3, 1.0))


def camera_figure(
    mesh: trimesh.Trimesh | None,
    frame: Frame,
    cameras: Sequence[tuple[str, str, np.ndarray]],
    names: Sequence[str],
    height: int = 560,
) -> go.Figure:
    """Sets of cameras about a mesh, each camera a small pyramid, opening where it looks.

    Args:
        mesh: in the data's world; a coarse one will do.
        frame: to draw in.
        cameras: of each set its name, colour and poses (N, 4, 4) in the data's world, OpenCV axes. Thin lines lead from
            each camera of a set to that of the next.
        names: of the N views.
        height: of the figure in pixels.
    """
    traces: list[Any] = [] if mesh is None else [_clay(mesh, frame)]
    scale = camera_scale(frame, [poses for _, _, poses in cameras])
    centres = [frame.points(poses[:, :3, 3]) * scale for _, _, poses in cameras]
    size = 0.16 * min(FAR, float(np.median(np.linalg.norm(np.concatenate(centres), axis=1))))
    for (label, colour, poses), centre in zip(cameras, centres):
        traces.append(_lines(_pyramids(centre, frame.rotation @ poses[:, :3, :3], size), colour, 2.5, label))
        traces.append(
            go.Scatter3d(
                **_xyz(centre),
                mode="markers",
                marker={"size": 3, "color": colour},
                hovertext=[f"{name}, {label}" for name in names],
                hoverinfo="text",
                showlegend=False,
            )
        )
    for start, end in zip(centres, centres[1:]):
        traces.append(_lines(np.stack([start, end], axis=1), "#999", 1.5, None))
    reach = float(np.abs(np.concatenate(centres)).max()) + size
    figure = go.Figure(traces, _space(height, frame.eye + [0, 0, 0.45], 1.25, reach))
    figure.update_layout(showlegend=True, legend={"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,.7)"})
    return figure


def camera_scale(frame: Frame, sets: Sequence[np.ndarray]) -> float:
    """Factor on the cameras' distances from the object with which `camera_figure` draws them: 1 unless they are far."""
    distance = np.linalg.norm(frame.points(np.concatenate(sets)[:, :3, 3]), axis=1)
    return min(1.0, FAR / float(np.median(distance)))


def _clay(mesh: trimesh.Trimesh, frame: Frame) -> go.Mesh3d:
    # small types: they go into the page as they are
    faces = np.asarray(mesh.faces, dtype=np.uint16 if len(mesh.vertices) <= 1 << 16 else np.uint32)
    return go.Mesh3d(
        **_xyz(frame.points(np.asarray(mesh.vertices))),
        i=faces[:, 0].copy(),
        j=faces[:, 1].copy(),
        k=faces[:, 2].copy(),
        color=_CLAY,
        lighting=_LIGHT,
        lightposition=_LAMP,
        hoverinfo="skip",
    )


def _pyramids(centres: np.ndarray, rotations: np.ndarray, size: float) -> np.ndarray:
    """Edges (N * 8, 2, 3) of pyramids whose tips are at (N, 3)."""
    corners = size * np.array([[-0.5, -0.4, 1.0], [0.5, -0.4, 1.0], [0.5, 0.4, 1.0], [-0.5, 0.4, 1.0]])
    ends = centres[:, None] + np.einsum("nij,kj->nki", rotations, corners)
    tips = np.broadcast_to(centres[:, None], ends.shape)
    sides, rims = np.stack([tips, ends], axis=2), np.stack([ends, np.roll(ends, -1, axis=1)], axis=2)
    return np.concatenate([sides, rims], axis=1).reshape(-1, 2, 3)


def _lines(segments: np.ndarray, colour: str, width: float, label: str | None) -> go.Scatter3d:
    """Segments (n, 2, 3) as one trace: Plotly lifts its pen at NaN."""
    path = np.concatenate([segments, np.full((len(segments), 1, 3), np.nan)], axis=1).reshape(-1, 3)
    line = {"color": colour, "width": width}
    return go.Scatter3d(
        **_xyz(path), mode="lines", line=line, name=label, showlegend=label is not None, hoverinfo="skip"
    )


def _xyz(points: np.ndarray) -> dict[str, np.ndarray]:
    x, y, z = points.astype(np.float32).T.copy()
    return {"x": x, "y": y, "z": z}


def _space(height: int, towards: np.ndarray, distance: float, reach: float) -> dict[str, Any]:
    """Layout of a 3D figure that shows the cube of half side `reach`, from a direction (3,) and so many of its sides."""
    eye = distance * towards / np.linalg.norm(towards)
    axis = {"visible": False, "showspikes": False, "range": [-reach, reach]}
    scene = {
        "xaxis": axis,
        "yaxis": axis,
        "zaxis": axis,
        "aspectmode": "cube",
        "dragmode": "turntable",
        "camera": {"eye": dict(zip("xyz", eye.tolist())), "up": {"x": 0, "y": 0, "z": 1}},
    }
    return layout(height=height, margin={"l": 0, "r": 0, "t": 0, "b": 0}, scene=scene)
