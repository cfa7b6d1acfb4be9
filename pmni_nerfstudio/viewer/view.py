# SPDX-License-Identifier: Apache-2.0
"""A result on a page, without a trained model: mesh, cameras, and what is wrong with it as colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import matplotlib
import numpy as np
import trimesh
import viser
from jaxtyping import Float, UInt8

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.evaluation.metrics import angular_error_deg
from pmni_nerfstudio.evaluation.picture import normal_colours, object_windows
from pmni_nerfstudio.evaluation.raycast import MeshRays, camera_normals
from pmni_nerfstudio.export.simplify import simplify
from pmni_nerfstudio.viewer.frusta import Frusta, look_home
from pmni_nerfstudio.viewer.markdown import add_markdown, markdown_picture

RADIUS = 10.0
"""Of the mesh on the page."""
MOST_FACES = 500_000
"""That are sent; larger meshes are simplified for the page."""
MOST_ERROR_DEG = 15.0
"""End of the colour scale of angular errors."""
PLAIN = (190, 196, 210)
UNKNOWN = (110, 110, 110)
"""Colours of a surface without any, and of vertices that no view sees."""
SLACK = 2e-3
"""Of the mesh's radius: what lies so much behind the first hit of a view's ray isn't seen by it."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What is shown; all in the data's world and units."""

    title: str
    mesh: trimesh.Trimesh
    scene: Scene | None = None
    cameras: dict[str, Float[np.ndarray, "n 4 4"]] = field(default_factory=dict)
    """Camera-to-world, OpenCV axes, by what they are: the first ones are the mesh's own."""
    truth: trimesh.Trimesh | None = None
    truth_from_data: Float[np.ndarray, "4 4"] = field(default_factory=lambda: np.eye(4))
    """The similarity by which the result is laid onto the truth before it is measured."""
    figures: str = ""
    """Markdown."""
    units: str = "units"

    @cached_property
    def shown(self) -> trimesh.Trimesh:
        """The mesh, simplified if it is too large for a page, equal vertices shared."""
        mesh = self.mesh.copy()
        mesh.merge_vertices()
        return simplify(mesh, MOST_FACES) if len(mesh.faces) > MOST_FACES else mesh

    @cached_property
    def rays(self) -> MeshRays:
        """Of the shown mesh."""
        return MeshRays(self.shown)

    @cached_property
    def frame(self) -> tuple[Float[np.ndarray, "3"], float]:
        """Middle and radius of the shown mesh."""
        middle = self.shown.bounds.mean(axis=0)
        return middle, float(np.linalg.norm(self.shown.vertices - middle, axis=1).max())

    @cached_property
    def truth_distances(self) -> Float[np.ndarray, "v"]:
        """From each shown vertex to the nearest point of the true surface, in the data's units.

        Raises:
            ValueError: there is no truth.
        """
        if self.truth is None:
            raise ValueError("there is no truth")
        return MeshRays(self.truth).distance(trimesh.transform_points(self.shown.vertices, self.truth_from_data))

    @cached_property
    def normal_errors_deg(self) -> Float[np.ndarray, "v"]:
        """Mean angle between each shown vertex's normal and those that the views have there, in degrees; NaN: unseen.

        Raises:
            ValueError: there is no scene or there are no cameras.
        """
        if self.scene is None or not self.cameras:
            raise ValueError("there are no normal maps, or no cameras")
        vertices, normals = self.shown.vertices, np.asarray(self.shown.vertex_normals)
        sums, counts = np.zeros((2, len(vertices)))
        c2w = next(iter(self.cameras.values()))
        for K, pose, observed, mask in zip(self.scene.K, c2w, self.scene.normals, self.scene.masks):
            rotation, position = pose[:3, :3], pose[:3, 3]
            camera = (vertices - position) @ rotation
            pixels = camera @ K.T
            at = (pixels[:, :2] / np.maximum(pixels[:, 2:], 1e-9)).astype(np.float32)
            # Between four pixels of the mask: the frame's outside counts as off it.
            maps = [_between_pixels(plane.astype(np.float32), at) for plane in (mask, observed)]
            index = np.flatnonzero((camera[:, 2] > 0) & (maps[0][:, 0] > 0.999))
            towards = vertices[index] - position
            distance = np.linalg.norm(towards, axis=1)
            first = self.rays.cast(np.broadcast_to(position, towards.shape), towards / distance[:, None]).distance
            index = index[distance < first + SLACK * self.frame[1]]
            seen = maps[1][index] @ rotation.T
            sums[index] += angular_error_deg(seen, normals[index])
            counts[index] += 1
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def rendered_normals(self, view: int) -> Float[np.ndarray, "h w 3"]:
        """Of the mesh in a view, OpenCV camera axes, zero where it isn't seen."""
        assert self.scene is not None
        pose = next(iter(self.cameras.values()))[view]
        height, width = self.scene.masks.shape[1:]
        return camera_normals(self.shown, self.rays, self.scene.K[view], pose, width, height)[0]


def scale_colours(values: Float[np.ndarray, "v"], most: float) -> UInt8[np.ndarray, "v 3"]:
    """Of values from 0 to `most`; those that are NaN have a colour of their own."""
    colours = (255 * matplotlib.colormaps["viridis"](np.nan_to_num(values) / max(most, 1e-12))[:, :3]).astype(np.uint8)
    colours[~np.isfinite(values)] = UNKNOWN
    return colours


class ResultPage:
    """The page of a result.

    Args:
        server: of the page.
        subject: to show.
    """

    def __init__(self, server: viser.ViserServer, subject: Subject) -> None:
        self.server, self.subject = server, subject
        self.choices = ["plain", "normals"]
        self.choices += ["distance to the truth"] if subject.truth is not None else []
        self.choices += ["angular error of normals"] if subject.scene is not None and subject.cameras else []
        gui = server.gui
        gui.configure_theme(dark_mode=True, brand_color=(76, 155, 232))
        gui.add_markdown(f"**{subject.title}**\n\n{subject.figures}")
        self.colours = gui.add_dropdown("Colours", self.choices, initial_value=self.choices[0])
        self.colours.on_update(lambda _: self.draw())
        self.scale = add_markdown(server, "")
        self.wireframe = gui.add_checkbox("Wireframe", False)
        self.wireframe.on_update(lambda _: self.draw())
        self.frusta: Frusta | None = None
        if subject.scene is not None and subject.cameras:
            sets = [*subject.cameras, "hidden"]
            self.shown_cameras = gui.add_dropdown("Cameras", sets, initial_value=sets[0])
            self.shown_cameras.on_update(lambda _: self._place())
            self._view = add_markdown(server, "Click a camera to look through it.")
            images = [_picture(n, m) for n, m in zip(subject.scene.normals, subject.scene.masks)]
            c2w = self._on_page(next(iter(subject.cameras.values())))
            distance = float(np.median(np.linalg.norm(c2w[:, :3, 3], axis=1)))
            scene = subject.scene
            self.frusta = Frusta(server, scene.names, scene.K, images, RADIUS, self._clicked, distance)
            look_home(server, c2w, RADIUS)
            self._place()
        self.draw()

    def vertex_colours(self) -> UInt8[np.ndarray, "v 3"] | None:
        """Of the chosen kind, and its scale on the page; None where the mesh has one colour."""
        chosen, subject = self.colours.value, self.subject
        self.scale.content = "Measuring ..." if chosen not in ("plain", "normals") else ""
        if chosen == "normals":
            self.scale.content = "x, y, z of the normal in the data's world as red, green, blue"
            return (127.5 * (np.asarray(subject.shown.vertex_normals) + 1)).round().astype(np.uint8)
        if chosen == "distance to the truth":
            values = subject.truth_distances
            most = float(np.quantile(values, 0.99))
            self._show_scale(f"0 to {most:.3g} {subject.units}; mean {values.mean():.3g}")
            return scale_colours(values, most)
        if chosen == "angular error of normals":
            values = subject.normal_errors_deg
            self._show_scale(f"0 to {MOST_ERROR_DEG:.0f} deg; mean {np.nanmean(values):.2f}; grey: seen by no view")
            return scale_colours(values, MOST_ERROR_DEG)
        self.scale.content = ""
        return None

    def draw(self) -> None:
        """The mesh, in the chosen colours."""
        mesh, (middle, radius) = self.subject.shown, self.subject.frame
        colours = self.vertex_colours()
        vertices = ((mesh.vertices - middle) * (RADIUS / radius)).astype(np.float32)
        if colours is None or self.wireframe.value:
            self.server.scene.add_mesh_simple(
                "/surface", vertices, mesh.faces.astype(np.uint32), color=PLAIN, wireframe=self.wireframe.value
            )
            return
        coloured = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=colours, process=False)
        self.server.scene.add_mesh_trimesh("/surface", coloured)

    def _show_scale(self, said: str) -> None:
        bar = np.broadcast_to(scale_colours(np.linspace(0, 1, 240), 1.0), (14, 240, 3))
        self.scale.content = f"{markdown_picture('scale', np.ascontiguousarray(bar))}\n\n{said}"

    def _on_page(self, c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
        middle, radius = self.subject.frame
        moved = c2w.copy()
        moved[:, :3, 3] = (c2w[:, :3, 3] - middle) * (RADIUS / radius)
        return moved

    def _place(self) -> None:
        assert self.frusta is not None
        shown = self.shown_cameras.value
        self.frusta.place(None if shown == "hidden" else self._on_page(self.subject.cameras[shown]))

    def _clicked(self, client: viser.ClientHandle, view: int) -> None:
        scene = self.subject.scene
        assert scene is not None
        rendered = self.subject.rendered_normals(view)
        (window,) = object_windows(scene.masks[view : view + 1])
        pictures = _picture(scene.normals[view], scene.masks[view]), _picture(rendered, rendered.any(axis=-1))
        strip = np.concatenate([picture[window] for picture in pictures], axis=1)
        self._view.content = f"**{scene.names[view]}** input, mesh\n\n{markdown_picture(str(view), strip)}"


def _between_pixels(plane: np.ndarray, at: Float[np.ndarray, "p 2"]) -> np.ndarray:
    """Bilinear (P, C) of a map (H, W, C) at (x, y), pixel centres at integers; zero out of the frame."""
    found = [
        cv2.remap(plane, part[None, :, 0], part[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)[0]
        for part in np.array_split(at, len(at) // 30_000 + 1)  # OpenCV's rows are shorter than 32,768
    ]
    return np.concatenate(found).reshape(len(at), -1)


def _picture(normals: Float[np.ndarray, "h w 3"], mask: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return (255 * normal_colours(normals.astype(np.float64), mask)).round().astype(np.uint8)
