# SPDX-License-Identifier: Apache-2.0
"""The page of `pmni view`: mesh and cameras of a result, with its errors as vertex colors."""

from __future__ import annotations

import threading

import matplotlib
import numpy as np
import trimesh
import viser
from jaxtyping import Float, UInt8

from pmni_nerfstudio.evaluation.displayed_result import DisplayedResult
from pmni_nerfstudio.evaluation.picture import object_windows
from pmni_nerfstudio.export.photographs import linear_from_srgb
from pmni_nerfstudio.geometry.normals import normals_to_rgb
from pmni_nerfstudio.viewer.frusta import Frusta
from pmni_nerfstudio.viewer.home import Home, home_from_cameras, oblique_direction
from pmni_nerfstudio.viewer.markdown import add_markdown, as_text, markdown_picture
from pmni_nerfstudio.viewer.overlay import SURFACE, show_mesh

RADIUS = 10.0
"""Radius of the mesh on the page."""
MAX_ERROR_DEG = 15.0
"""Upper end of the color scale of angular errors, in degrees."""
UNKNOWN_COLOR = (110, 110, 110)
"""Color of vertices that no view sees well."""
UP_DIRECTIONS = {
    "+z": (0, 0, 1),
    "+y": (0, 1, 0),
    "-y": (0, -1, 0),
    "-z": (0, 0, -1),
    "+x": (1, 0, 0),
    "-x": (-1, 0, 0),
}
"""Up directions to choose from if there are no cameras."""

PLAIN, WIREFRAME, NORMALS = "plain", "wireframe", "normals"
DISTANCES = "distance to the ground truth"
NORMAL_ERRORS = "angular error of the normals"


def colormapped(values: Float[np.ndarray, "v"], maximum: float) -> UInt8[np.ndarray, "v 3"]:
    """Map values in [0, maximum] to colors, and NaN to UNKNOWN_COLOR."""
    colormap = matplotlib.colormaps["viridis"]
    colors = (255 * colormap(np.nan_to_num(values) / max(maximum, 1e-12))[:, :3]).astype(np.uint8)
    colors[~np.isfinite(values)] = UNKNOWN_COLOR
    return colors


class ResultPage:
    """Page that displays a result.

    Args:
        server: Server of the page.
        result: Result to display.
    """

    def __init__(self, server: viser.ViserServer, result: DisplayedResult) -> None:
        self.server, self.result = server, result
        self._draw_lock = threading.Lock()
        has_cameras = result.has_cameras
        self.choices = [PLAIN, WIREFRAME, NORMALS]
        self.choices += [DISTANCES] if result.truth is not None else []
        self.choices += [NORMAL_ERRORS] if has_cameras else []
        gui = server.gui
        gui.configure_theme(dark_mode=True, brand_color=(76, 155, 232))
        gui.add_markdown(f"**{as_text(result.title)}**\n\n{as_text(', '.join(result.metrics))}")
        self.surface = gui.add_dropdown("Surface", self.choices, initial_value=self.choices[0])
        self.surface.on_update(lambda _: self.draw())
        self.legend = add_markdown(server, "")
        if has_cameras:
            self._add_cameras()
        else:
            self.up = gui.add_dropdown("Up", list(UP_DIRECTIONS), initial_value=next(iter(UP_DIRECTIONS)))
            self.up.on_update(lambda _: self.home.look(*self.up_and_direction()))
            self.home = Home(server, RADIUS, *self.up_and_direction())
        self.draw()

    def _add_cameras(self) -> None:
        scene, c2w = self.result.scene, self.result.mesh_cameras
        assert scene is not None and c2w is not None
        sets = [*self.result.cameras, "hidden"]
        self.camera_set = self.server.gui.add_dropdown("Cameras", sets, initial_value=sets[0])
        self.camera_set.on_update(lambda _: self._place_cameras())
        self._view = add_markdown(self.server, "Click a camera to look through it.")
        images = [_normal_image(n, m) for n, m in zip(scene.normals, scene.masks)]
        on_page = self._page_poses(c2w)
        self.frusta = Frusta(self.server, scene.names, scene.K, images, RADIUS, on_page, self.show_view)
        Home(self.server, RADIUS, *home_from_cameras(on_page))
        self._place_cameras()

    def up_and_direction(self) -> tuple[np.ndarray, np.ndarray]:
        """Selected up direction, and the direction from the mesh to the viewer."""
        up = np.array(UP_DIRECTIONS[self.up.value], dtype=float)
        return up, oblique_direction(up)

    def vertex_colors(self) -> UInt8[np.ndarray, "v 3"] | None:
        """Vertex colors of the selected kind, or None for a uniform color; the legend is updated."""
        kind, result = self.surface.value, self.result
        self.legend.content = "Computing ..." if kind in (DISTANCES, NORMAL_ERRORS) else ""
        if kind == NORMALS:
            self.legend.content = "x, y, z of the normal in the data's world as red, green, blue"
            return (127.5 * (np.asarray(result.shown_mesh.vertex_normals) + 1)).round().astype(np.uint8)
        if kind == DISTANCES:
            values = result.truth_distances
            maximum = float(np.quantile(values, 0.99))
            self._show_scale(f"0 to {maximum:.3g} {result.units}; mean {values.mean():.3g}")
            return colormapped(values, maximum)
        if kind == NORMAL_ERRORS:
            values = result.normal_errors_deg
            mean = f"{np.nanmean(values):.2f}" if np.isfinite(values).any() else "unknown"
            self._show_scale(f"0 to {MAX_ERROR_DEG:.0f} deg; mean {mean}; gray: not seen well by any view")
            return colormapped(values, MAX_ERROR_DEG)
        return None

    def draw(self) -> None:
        """Draw the mesh with the selected colors."""
        with self._draw_lock:  # every change of the page runs in its own thread, and errors take seconds to compute
            mesh, (center, radius) = self.result.shown_mesh, self.result.bounding_sphere
            colors = self.vertex_colors()
            vertices = ((mesh.vertices - center) * (RADIUS / radius)).astype(np.float32)
            if colors is None:
                show_mesh(self.server, vertices, mesh.faces, wireframe=self.surface.value == WIREFRAME)
            else:
                # glTF vertex colors are linear.
                linear = (255 * linear_from_srgb(colors / 255)).round().astype(np.uint8)
                colored = trimesh.Trimesh(vertices, mesh.faces, vertex_colors=linear, process=False)
                self.server.scene.add_mesh_trimesh(SURFACE, colored)

    def _show_scale(self, text: str) -> None:
        bar = np.broadcast_to(colormapped(np.linspace(0, 1, 240), 1.0), (14, 240, 3))
        self.legend.content = f"{markdown_picture('scale', np.ascontiguousarray(bar))}\n\n{as_text(text)}"

    def _page_poses(self, c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
        """Poses in the page's world, where the mesh is centered at the origin with radius RADIUS."""
        center, radius = self.result.bounding_sphere
        on_page = c2w.copy()
        on_page[:, :3, 3] = (c2w[:, :3, 3] - center) * (RADIUS / radius)
        return on_page

    def _selected_cameras(self) -> Float[np.ndarray, "n 4 4"] | None:
        """Displayed poses in the data's world; None if cameras are hidden."""
        return self.result.cameras.get(self.camera_set.value)

    def _place_cameras(self) -> None:
        c2w = self._selected_cameras()
        self.frusta.place(None if c2w is None else self._page_poses(c2w))

    def show_view(self, client: viser.ClientHandle, view: int) -> None:
        """Show the input normals of a view beside those of the mesh."""
        scene, c2w = self.result.scene, self._selected_cameras()
        if scene is None or c2w is None:  # hidden since the click
            return
        rendered = self.result.rendered_normals(view, c2w[view])
        (window,) = object_windows(scene.masks[view : view + 1])
        images = _normal_image(scene.normals[view], scene.masks[view]), _normal_image(rendered, rendered.any(axis=-1))
        strip = np.concatenate([image[window] for image in images], axis=1)
        picture = markdown_picture(str(view), strip)
        self._view.content = f"**{as_text(scene.names[view])}** input, mesh\n\n{picture}"


def _normal_image(normals: Float[np.ndarray, "h w 3"], mask: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    return (255 * normals_to_rgb(normals.astype(np.float64), mask[..., None])).round().astype(np.uint8)
