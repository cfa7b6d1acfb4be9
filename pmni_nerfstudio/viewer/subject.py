# SPDX-License-Identifier: Apache-2.0
"""A result to be looked at: its mesh and cameras, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np
import trimesh
from jaxtyping import Float

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.geometry.mesh import simplify
from pmni_nerfstudio.geometry.normals import angular_error_deg
from pmni_nerfstudio.geometry.ray_casting import RayCaster, camera_normals
from pmni_nerfstudio.geometry.visibility import depth_tolerance, seen_points

MOST_FACES = 500_000
"""That are shown; larger meshes are simplified for the page."""


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
    figures: tuple[str, ...] = ()
    """What is known of it, in words."""
    units: str = "units"

    @property
    def own_cameras(self) -> Float[np.ndarray, "n 4 4"] | None:
        """The mesh's own, if there are any."""
        return next(iter(self.cameras.values()), None)

    @cached_property
    def shown(self) -> trimesh.Trimesh:
        """The mesh, simplified if it is too large for a page, equal vertices shared."""
        mesh = self.mesh.copy()
        mesh.merge_vertices()
        return simplify(mesh, MOST_FACES) if len(mesh.faces) > MOST_FACES else mesh

    @cached_property
    def rays(self) -> RayCaster:
        """Of the shown mesh."""
        return RayCaster(self.shown)

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
        return RayCaster(self.truth).distance(trimesh.transform_points(self.shown.vertices, self.truth_from_data))

    @cached_property
    def normal_errors_deg(self) -> Float[np.ndarray, "v"]:
        """Mean angle between each shown vertex's normal and those that views have there, in degrees; NaN: not seen well.

        Raises:
            ValueError: there is no scene or there are no cameras.
        """
        c2w = self.own_cameras
        if self.scene is None or c2w is None:
            raise ValueError("there are no normal maps, or no cameras")
        vertices, normals = np.asarray(self.shown.vertices), np.asarray(self.shown.vertex_normals)
        sums, counts = np.zeros((2, len(vertices)))
        tolerance = depth_tolerance(self.shown)
        for K, pose, observed, mask in zip(self.scene.K, c2w, self.scene.normals, self.scene.masks):
            index, at, _ = seen_points(vertices, normals, mask, K, pose, self.rays, tolerance)
            seen = _between_pixels(observed.astype(np.float32), at[::-1].T.astype(np.float32)) @ pose[:3, :3].T
            sums[index] += angular_error_deg(seen, normals[index])
            counts[index] += 1
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def rendered_normals(self, view: int, c2w: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "h w 3"]:
        """Of the mesh, seen by a view's camera from a pose, OpenCV camera axes, zero where it isn't seen."""
        assert self.scene is not None
        return camera_normals(self.shown, self.rays, self.scene.K[view], c2w, self.scene.width, self.scene.height)[0]


def _between_pixels(plane: Float[np.ndarray, "h w c"], at: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p c"]:
    """Bilinear values of a map at (x, y) within it, pixel centres at integers."""
    found = [
        cv2.remap(plane, part[None, :, 0], part[None, :, 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        for part in np.array_split(at, len(at) // 30_000 + 1)  # OpenCV's rows are shorter than 32,768
        if len(part)
    ]
    return np.concatenate([np.zeros((0, plane.shape[2]), np.float32), *found])
