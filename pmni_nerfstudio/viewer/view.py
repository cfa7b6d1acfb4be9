# SPDX-License-Identifier: Apache-2.0
"""A result on a page, without a trained model: mesh, cameras, and what is wrong with it as colours."""

from __future__ import annotations

import threading

import matplotlib
import numpy as np
import trimesh
import viser
from jaxtyping import Float, UInt8

from pmni_nerfstudio.evaluation.picture import object_windows
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.viewer.frusta import Frusta
from pmni_nerfstudio.viewer.home import Home, home_of_cameras, oblique
from pmni_nerfstudio.viewer.markdown import add_markdown, as_text, markdown_picture
from pmni_nerfstudio.viewer.overlay import SURFACE, show_mesh
from pmni_nerfstudio.viewer.subject import Subject

RADIUS = 10.0
"""Of the mesh on the page."""
MOST_ERROR_DEG = 15.0
"""End of the colour scale of angular errors."""
UNKNOWN = (110, 110, 110)
"""Colour of vertices that no view sees well."""
UPS = {"+z": (0, 0, 1), "+y": (0, 1, 0), "-y": (0, -1, 0), "-z": (0, 0, -1), "+x": (1, 0, 0), "-x": (-1, 0, 0)}
"""What may be up where no cameras say it."""


def scale_colours(values: Float[np.ndarray, "v"], most: float) -> UInt8[np.ndarray, "v 3"]:
    """Of values from 0 to `most`; those that are NaN have a colour of their own."""
    colours = (255 * matplotlib.colormaps["viridis"](np.nan_to_num(values) / max(most, 1e-12))[:, :3]).astype(np.uint8)
    colours[~np.isfinite(values)] = UNKNOWN
    return colours


def srgb_to_linear(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Light of a screen's values, both from 0 to 1 (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


class ResultPage:
    """The page of a result.

    Args:
        server: of the page.
        subject: to show.
    """

    def __init__(self, server: viser.ViserServer, subject: Subject) -> None:
        self.server, self.subject = server, subject
        self._drawing = threading.Lock()
        self.choices = ["plain", "wireframe", "normals"]
        self.choices += ["distance to the truth"] if subject.truth is not None else []
        has_cameras = subject.scene is not None and subject.own_cameras is not None
        self.choices += ["angular error of normals"] if has_cameras else []
        gui = server.gui
        gui.configure_theme(dark_mode=True, brand_color=(76, 155, 232))
        gui.add_markdown(f"**{as_text(subject.title)}**\n\n{as_text(', '.join(subject.figures))}")
        self.colours = gui.add_dropdown("Surface", self.choices, initial_value=self.choices[0])
        self.colours.on_update(lambda _: self.draw())
        self.scale = add_markdown(server, "")
        if has_cameras:
            self._add_cameras()
        else:
            self.up = gui.add_dropdown("Up", list(UPS), initial_value=next(iter(UPS)))
            self.up.on_update(lambda _: self._home.look(*self._sides()))
            self._home = Home(server, RADIUS, *self._sides())
        self.draw()

    def _add_cameras(self) -> None:
        scene, own = self.subject.scene, self.subject.own_cameras
        assert scene is not None and own is not None
        sets = [*self.subject.cameras, "hidden"]
        self.shown_cameras = self.server.gui.add_dropdown("Cameras", sets, initial_value=sets[0])
        self.shown_cameras.on_update(lambda _: self._place())
        self._view = add_markdown(self.server, "Click a camera to look through it.")
        images = [_picture(n, m) for n, m in zip(scene.normals, scene.masks)]
        c2w = self._on_page(own)
        self.frusta = Frusta(self.server, scene.names, scene.K, images, RADIUS, c2w, self._clicked)
        Home(self.server, RADIUS, *home_of_cameras(c2w))
        self._place()

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        up = np.array(UPS[self.up.value], dtype=float)
        return up, oblique(up)

    def vertex_colours(self) -> UInt8[np.ndarray, "v 3"] | None:
        """Of the chosen kind, and its scale on the page; None where the mesh has one colour."""
        chosen, subject = self.colours.value, self.subject
        self.scale.content = "Measuring ..." if chosen not in ("plain", "wireframe", "normals") else ""
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
            mean = f"{np.nanmean(values):.2f}" if np.isfinite(values).any() else "unknown"
            self._show_scale(f"0 to {MOST_ERROR_DEG:.0f} deg; mean {mean}; grey: not seen well by any view")
            return scale_colours(values, MOST_ERROR_DEG)
        return None

    def draw(self) -> None:
        """The mesh, in the chosen colours."""
        with self._drawing:  # each change of the page draws in a thread of its own, and measures take seconds
            mesh, (middle, radius) = self.subject.shown, self.subject.frame
            colours = self.vertex_colours()
            vertices = ((mesh.vertices - middle) * (RADIUS / radius)).astype(np.float32)
            if colours is None:
                wires = self.colours.value == "wireframe"
                show_mesh(self.server, vertices, mesh.faces, wireframe=wires)
            else:
                # glTF's colours of vertices are linear, ours are a screen's.
                linear = (255 * srgb_to_linear(colours / 255)).round().astype(np.uint8)
                coloured = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=linear, process=False)
                self.server.scene.add_mesh_trimesh(SURFACE, coloured)

    def _show_scale(self, said: str) -> None:
        bar = np.broadcast_to(scale_colours(np.linspace(0, 1, 240), 1.0), (14, 240, 3))
        self.scale.content = f"{markdown_picture('scale', np.ascontiguousarray(bar))}\n\n{as_text(said)}"

    def _on_page(self, c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
        middle, radius = self.subject.frame
        moved = c2w.copy()
        moved[:, :3, 3] = (c2w[:, :3, 3] - middle) * (RADIUS / radius)
        return moved

    def _cameras(self) -> Float[np.ndarray, "n 4 4"] | None:
        """Those that are shown, in the data's world."""
        return self.subject.cameras.get(self.shown_cameras.value)

    def _place(self) -> None:
        shown = self._cameras()
        self.frusta.place(None if shown is None else self._on_page(shown))

    def _clicked(self, client: viser.ClientHandle, view: int) -> None:
        scene, shown = self.subject.scene, self._cameras()
        if scene is None or shown is None:  # hidden since
            return
        rendered = self.subject.rendered_normals(view, shown[view])
        (window,) = object_windows(scene.masks[view : view + 1])
        pictures = _picture(scene.normals[view], scene.masks[view]), _picture(rendered, rendered.any(axis=-1))
        strip = np.concatenate([picture[window] for picture in pictures], axis=1)
        picture = markdown_picture(str(view), strip)
        self._view.content = f"**{as_text(scene.names[view])}** input, mesh\n\n{picture}"


def _picture(normals: Float[np.ndarray, "h w 3"], mask: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return (255 * normals_to_rgb(normals.astype(np.float64), mask[..., None])).round().astype(np.uint8)
