# SPDX-License-Identifier: Apache-2.0
"""Views of a surface under known lights, and the incident light at points of it, with attached and cast shadows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import trimesh
from jaxtyping import Bool, Float, Float32

from pmni_nerfstudio.data.resample import resample_intrinsics
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.ray_casting import Hits, RayCaster
from pmni_nerfstudio.geometry.visibility import depth_tolerance
from pmni_nerfstudio.material.microfacet import Cosines
from pmni_nerfstudio.photometric.capture import Capture, CaptureView
from pmni_nerfstudio.photometric.photographs import Photographs, load_photographs


@dataclass(frozen=True, eq=False)
class Surface:
    """A mesh that receives light and casts shadows."""

    mesh: trimesh.Trimesh
    rays: RayCaster

    def points(self, count: int, seed: int = 0) -> tuple[Float[np.ndarray, "p 3"], Float[np.ndarray, "p 3"]]:
        """Random points, evenly distributed over the surface, and their interpolated unit normals."""
        points = np.asarray(self.mesh.sample(count, seed=seed))
        return points, self.normals_at(self.rays.closest_hits(points), np.ones(count, dtype=bool))

    def normals_at(self, hits: Hits, hit: Bool[np.ndarray, " r"]) -> Float[np.ndarray, "p 3"]:
        """Unit normals at the chosen hits, interpolated between vertices."""
        normals = hits.interpolate(hit, np.asarray(self.mesh.faces), np.asarray(self.mesh.vertex_normals))
        return normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12)

    @cached_property
    def offset(self) -> float:
        """Distance from the surface at which shadow rays begin, so that faces do not shadow themselves."""
        return depth_tolerance(self.mesh)


@dataclass(frozen=True, eq=False)
class LitView:
    """A view of a capture, with its camera in the world of the mesh."""

    capture_view: CaptureView
    K: Float[np.ndarray, "3 3"]
    """Intrinsics in pixels of the scene's maps, which have the size `map_size`."""
    map_size: tuple[int, int]
    """Width and height."""
    c2w: Float[np.ndarray, "4 4"]
    """Pose in the world of the mesh, OpenCV axes."""
    light_unit: float
    """Length in the world of the mesh of the unit in which positions of near lights are given."""
    saturation: float | None
    gamma: float

    def load(self) -> LoadedView:
        """Read the images of all lights.

        Raises:
            SceneError: A file is missing or broken, or the images differ in size, type or number of channels.
        """
        photographs = load_photographs(self.capture_view, self.saturation, self.gamma)
        return LoadedView(self, photographs, self.intrinsics_of(photographs.mask.shape))

    def intrinsics_of(self, shape: tuple[int, ...]) -> Float[np.ndarray, "3 3"]:
        """Intrinsics in pixels of an image with a height and width."""
        return resample_intrinsics(self.K, self.map_size, (shape[1], shape[0]))


@dataclass(frozen=True, eq=False)
class LoadedView:
    """A view with its images."""

    view: LitView
    photographs: Photographs
    K: Float[np.ndarray, "3 3"]
    """Intrinsics in pixels of the images."""

    def pixel_points(
        self, surface: Surface, shift: tuple[float, float] = (0.0, 0.0)
    ) -> tuple[Bool[np.ndarray, " p"], Float[np.ndarray, "q 3"], Float[np.ndarray, "q 3"]]:
        """Surface points that the mask's pixels see.

        Args:
            surface: the surface.
            shift: x and y in pixels from the pixels' centers.

        Returns:
            hit: whether each of the p pixels of the mask sees the mesh.
            points: of those that do, in the world.
            normals: unit, interpolated between vertices.
        """
        y, x = np.nonzero(self.photographs.mask)
        c2w = self.view.c2w
        directions = pixel_directions(self.K, np.stack([x + shift[0], y + shift[1]], axis=-1)) @ c2w[:3, :3].T
        hits = surface.rays.cast(np.broadcast_to(c2w[:3, 3], directions.shape), directions)
        hit = np.isfinite(hits.distance)
        return hit, c2w[:3, 3] + hits.distance[hit, None] * directions[hit], surface.normals_at(hits, hit)

    def incidence(
        self, surface: Surface, points: Float[np.ndarray, "p 3"], normals: Float[np.ndarray, "p 3"]
    ) -> tuple[Cosines, Float32[np.ndarray, "p n"]]:
        """Incident light at surface points from each of the view's n lights.

        Returns:
            cosines: (p, n) each.
            strength: attenuation of the light by distance and angle; zero in attached and cast shadows.
        """
        lights, c2w = self.view.capture_view.lights, self.view.c2w
        rotation = c2w[:3, :3]
        camera = (points - c2w[:3, 3]) @ rotation
        directions, strength = lights.at(camera / self.view.light_unit, self.view.capture_view.distance or 1.0)
        directions = np.broadcast_to(directions, (len(points), len(lights), 3))
        to_camera = -(camera / np.linalg.norm(camera, axis=1, keepdims=True)).astype(np.float32)
        local = (normals @ rotation).astype(np.float32)
        light = np.einsum("pi,pni->pn", local, directions)
        view = np.einsum("pi,pi->p", local, to_camera)[:, None]
        to_view = np.einsum("pi,pni->pn", to_camera, directions)
        # The half vector is the normalized sum of two unit vectors with the cosine `to_view` between them.
        length = np.sqrt(np.maximum(2 + 2 * to_view, 1e-12))
        lit = (light > 0) & (strength > 0)
        start = points + surface.offset * normals
        point, index = np.nonzero(lit)
        reach = np.inf
        if lights.is_near:
            offsets = lights.vectors[index] * self.view.light_unit - camera[point]
            reach = np.linalg.norm(offsets, axis=1)
        blocked = surface.rays.cast(start[point], directions[point, index] @ rotation.T).distance < reach
        lit[point[blocked], index[blocked]] = False
        cosines = Cosines(
            np.maximum(light, 1e-4),
            np.broadcast_to(np.maximum(view, 1e-4), light.shape),
            ((light + view) / length).clip(0, 1),
            ((1 + to_view) / length).clip(0, 1),
        )
        return cosines, np.where(lit, strength, 0)


def lit_views(
    capture: Capture,
    scene: Scene,
    c2w: Float[np.ndarray, "n 4 4"],
    surface: Surface,
    gamma: float = 1.0,
) -> list[LitView]:
    """The views of a capture, with the cameras of a result.

    Args:
        capture: the images that the scene's normal maps were computed from.
        scene: the scene, with the result's intrinsics.
        c2w: the result's poses in the world of the mesh, OpenCV axes.
        surface: the result's mesh.
        gamma: power that makes image values linear.

    Raises:
        SceneError: The views of the capture are not those of the scene.
    """
    names = [view.name for view in capture.views]
    if names != list(scene.names):
        raise SceneError(
            f"{scene.root}: its views are not those of the images under known lights ({capture.description}); "
            "give the capture that the scene was made from"
        )
    size = (scene.width, scene.height)
    unit = _light_unit(capture, scene, c2w, surface)
    return [
        LitView(view, k, size, pose, unit, capture.saturation, gamma)
        for view, k, pose in zip(capture.views, scene.K, c2w)
    ]


def _light_unit(capture: Capture, scene: Scene, c2w: Float[np.ndarray, "n 4 4"], surface: Surface) -> float:
    """Length in the mesh's world of the unit in which near lights are given.

    It is one if the capture has poses, because these have the units of the lights. Otherwise the world's scale is
    arbitrary, and the unit follows from the mean distance of the visible surface that the capture states.
    """
    if capture.cameras is not None or all(view.c2w is not None for view in capture.views):
        return 1.0
    ratios = []
    for view, k, pose in zip(capture.views, scene.K, c2w):
        if view.distance:
            points = surface.rays.visible_points(k, pose[None], scene.width, scene.height)
            if len(points):
                ratios.append(((points - pose[:3, 3]) @ pose[:3, 2]).mean() / view.distance)
    return float(np.median(ratios)) if ratios else 1.0
