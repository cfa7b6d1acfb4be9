# SPDX-License-Identifier: Apache-2.0
"""Interactive Plotly figures of the mesh and the cameras.

Figures use a display frame: the object is centered at the origin with radius 1, and z points up as the cameras see it,
so that Plotly's turntable keeps the object upright and its shading is independent of the data's units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import trimesh

from pmni_nerfstudio.evaluation.metrics import object_radius

COLORS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#319795")
"""Color cycle of curves."""

GIVEN_COLOR, REFINED_COLOR = "#dd8452", "#2b6cb0"
"""Colors of the given and the refined cameras."""

HEIGHT = 560
"""Height of the figures in pixels."""

MAX_DISTANCE = 3.0
"""Maximum displayed distance of the cameras, in radii of the object; greater distances are reduced by a common factor."""

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12.5, "color": "#333"}
_CLAY = "#dccdb8"
_LIGHT = {"ambient": 0.3, "diffuse": 0.75, "specular": 0.2, "roughness": 0.45, "fresnel": 0.05}
_LAMP = {"x": 60_000, "y": -60_000, "z": 1000}
"""Light from the viewer's upper left, whatever the view. (Found by trial: Plotly applies the view's projection to these
values, which therefore are no coordinates.)"""
_MIN_MEAN_UP = 0.3
"""Minimum length of the cameras' mean up vector; below, the cameras have no common up direction."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Display frame: display = rotation @ (world - center) / radius."""

    center: np.ndarray
    """(3,) center of the object, in the data's world."""
    radius: float
    """Radius of the object, in the data's units."""
    rotation: np.ndarray
    """(3, 3) rotation from the data's world to the display frame."""
    eye: np.ndarray
    """(3,) unit vector towards the first camera, in the display frame."""

    def points(self, world: np.ndarray) -> np.ndarray:
        """Transform points (..., 3) from the data's world to the display frame."""
        return (world - self.center) @ self.rotation.T / self.radius


def display_frame(mesh: trimesh.Trimesh, c2w: np.ndarray | None) -> Frame:
    """Display frame in which the object is upright and faces the first camera.

    Args:
        mesh: Mesh in the data's world.
        c2w: (N, 4, 4) poses in the same world, OpenCV axes; None: z is up.
    """
    center = mesh.bounds.mean(axis=0)
    radius = object_radius(mesh)
    if c2w is None:
        return Frame(center, radius, np.eye(3), np.array([0.8, -0.6, 0.3]) / np.linalg.norm([0.8, -0.6, 0.3]))
    # Cameras around an object may all look down on it: their mean up vector is vertical though none of them is.
    up = -c2w[:, :3, 1].mean(axis=0)
    if np.linalg.norm(up) < _MIN_MEAN_UP:
        up = -c2w[0, :3, 1]
    z = up / np.linalg.norm(up)
    towards = c2w[0, :3, 3] - center
    y = -(towards - z * (towards @ z))
    if np.linalg.norm(y) < 1e-6 * np.linalg.norm(towards):  # viewed along the up direction
        y = -c2w[0, :3, 1] - z * (-c2w[0, :3, 1] @ z)
    y /= np.linalg.norm(y)
    rotation = np.stack([np.cross(y, z), y, z])
    return Frame(center, radius, rotation, rotation @ towards / np.linalg.norm(towards))


def layout(**changes: Any) -> dict[str, Any]:
    """Common layout of all figures, with changes."""
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


def mesh_figure(mesh: trimesh.Trimesh, frame: Frame) -> go.Figure:
    """Figure of a mesh, initially viewed from the first camera.

    Args:
        mesh: Mesh in the data's world, of some ten thousand faces.
        frame: Display frame.
    """
    return go.Figure([_clay(mesh, frame)], _space(frame.eye, 1.3, 1.0))


def camera_figure(
    mesh: trimesh.Trimesh | None, frame: Frame, cameras: Sequence[tuple[str, str, np.ndarray]], names: Sequence[str]
) -> go.Figure:
    """Figure of sets of cameras around a mesh, each camera a small pyramid that opens in its viewing direction.

    Args:
        mesh: Mesh in the data's world, which may be coarse.
        frame: Display frame.
        cameras: Label, color and poses (N, 4, 4) of each set, in the data's world, OpenCV axes. Thin lines connect the
            cameras of a set with those of the next.
        names: Names of the N views.
    """
    traces: list[Any] = [] if mesh is None else [_clay(mesh, frame)]
    scale = camera_scale(frame, [poses for _, _, poses in cameras])
    centers = [frame.points(poses[:, :3, 3]) * scale for _, _, poses in cameras]
    size = 0.16 * min(MAX_DISTANCE, float(np.median(np.linalg.norm(np.concatenate(centers), axis=1))))
    for (label, color, poses), center in zip(cameras, centers):
        traces.append(_lines(_pyramids(center, frame.rotation @ poses[:, :3, :3], size), color, 2.5, label))
        traces.append(
            go.Scatter3d(
                **_xyz(center),
                mode="markers",
                marker={"size": 3, "color": color},
                hovertext=[f"{name}, {label}" for name in names],
                hoverinfo="text",
                showlegend=False,
            )
        )
    for start, end in zip(centers, centers[1:]):
        traces.append(_lines(np.stack([start, end], axis=1), "#999", 1.5, None))
    reach = float(np.abs(np.concatenate(centers)).max()) + size
    figure = go.Figure(traces, _space(frame.eye + [0, 0, 0.45], 1.25, reach))
    figure.update_layout(showlegend=True, legend={"x": 0.01, "y": 0.99, "bgcolor": "rgba(255,255,255,.7)"})
    return figure


def bias_figure(curve_deg: Sequence[tuple[float, float]]) -> go.Figure:
    """Curve of a reflectance bias: pairs of the angle between normal and viewing direction and the tilt, in degrees."""
    angles, tilts = zip(*curve_deg)
    line = {"color": COLORS[0], "shape": "spline"}
    axes = {
        "xaxis": {"title": {"text": "angle between normal and viewing direction (deg)"}, "dtick": 15},
        "yaxis": {"title": {"text": "tilt away from the viewer (deg)"}},
    }
    return go.Figure([go.Scatter(x=angles, y=tilts, line=line)], layout(height=260, **axes))


def camera_scale(frame: Frame, sets: Sequence[np.ndarray]) -> float:
    """Factor by which `camera_figure` scales the cameras' distances from the object: 1 unless they are distant."""
    distance = np.linalg.norm(frame.points(np.concatenate(sets)[:, :3, 3]), axis=1)
    return min(1.0, MAX_DISTANCE / float(np.median(distance)))


def _clay(mesh: trimesh.Trimesh, frame: Frame) -> go.Mesh3d:
    # small types reduce the size of the page
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


def _pyramids(centers: np.ndarray, rotations: np.ndarray, size: float) -> np.ndarray:
    """Edges (N * 8, 2, 3) of pyramids with apexes (N, 3) and rotations (N, 3, 3)."""
    corners = size * np.array([[-0.5, -0.4, 1.0], [0.5, -0.4, 1.0], [0.5, 0.4, 1.0], [-0.5, 0.4, 1.0]])
    ends = centers[:, None] + np.einsum("nij,kj->nki", rotations, corners)
    tips = np.broadcast_to(centers[:, None], ends.shape)
    sides, rims = np.stack([tips, ends], axis=2), np.stack([ends, np.roll(ends, -1, axis=1)], axis=2)
    return np.concatenate([sides, rims], axis=1).reshape(-1, 2, 3)


def _lines(segments: np.ndarray, color: str, width: float, label: str | None) -> go.Scatter3d:
    """Trace of line segments (n, 2, 3), separated by NaN."""
    path = np.concatenate([segments, np.full((len(segments), 1, 3), np.nan)], axis=1).reshape(-1, 3)
    line = {"color": color, "width": width}
    return go.Scatter3d(
        **_xyz(path), mode="lines", line=line, name=label, showlegend=label is not None, hoverinfo="skip"
    )


def _xyz(points: np.ndarray) -> dict[str, np.ndarray]:
    x, y, z = points.astype(np.float32).T.copy()
    return {"x": x, "y": y, "z": z}


def _space(towards: np.ndarray, distance: float, reach: float) -> dict[str, Any]:
    """Layout of a 3D figure of the cube [-reach, reach]^3.

    Args:
        towards: (3,) direction from the origin to the viewer.
        distance: Distance of the viewer in side lengths of the cube.
        reach: Half the side length of the cube.
    """
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
    return layout(height=HEIGHT, margin={"l": 0, "r": 0, "t": 0, "b": 0}, scene=scene)
