# SPDX-License-Identifier: Apache-2.0
"""A capture of several spheres, some of which hide others, with exact label images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh

from helpers.scenes import AnalyticScene, Ellipsoid, analytic_scene, fitting_intrinsics, irregular_ring
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.registration.surface.sdf_grid import Surface

RADIUS = 0.3
APART = ((0.45, 0.0, 0.0), (-0.25, 0.4, 0.0), (-0.25, -0.4, 0.0))
TOUCHING = ((0.29, 0.0, 0.0), (-0.29, 0.0, 0.0))


@dataclass(frozen=True, eq=False)
class Spheres:
    """Spheres of one radius, numbered from 1, and their maps in the unit-sphere world."""

    centers: np.ndarray
    """(m, 3)."""
    scene: AnalyticScene
    labels: np.ndarray
    """(N, H, W), 0 where there is no sphere."""

    @property
    def sdf(self) -> np.ndarray:
        """(65, 65, 65) signed distance to all of them."""
        points = grid_points(65).numpy()
        return np.min([np.linalg.norm(points - c, axis=-1) for c in self.centers], axis=0).astype(np.float32) - RADIUS

    @property
    def surface(self) -> Surface:
        """All of them as one surface."""
        return Surface(self.sdf)

    def write(self, folder: Path, labels: np.ndarray | None = None) -> Path:
        """Write a scene folder with label images."""
        self.scene.write(folder)
        (folder / "instance").mkdir()
        for name, image in zip(self.scene.names, self.labels if labels is None else labels):
            write_png(folder / "instance" / f"{name}.png", image.astype(np.uint8))
        return folder


def make_spheres(centers=APART, views: int = 12, size: tuple[int, int] = (72, 60)) -> Spheres:
    """Render spheres from an irregular ring of cameras."""
    spheres = [Ellipsoid(center, (RADIUS, RADIUS, RADIUS)) for center in centers]

    def intersect(origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances, normals = (np.stack(part) for part in zip(*(s.intersect(origins, directions) for s in spheres)))
        first = np.where(np.isnan(distances), np.inf, distances).argmin(axis=0)[None]
        return np.take_along_axis(distances, first, 0)[0], np.take_along_axis(normals, first[..., None], 0)[0]

    c2w = irregular_ring(views, 15.0, np.random.default_rng(3))
    scene = analytic_scene(intersect, fitting_intrinsics(*size, 15.0), c2w, size)
    depths = np.stack([analytic_scene(s.intersect, scene.K, c2w, size).depths for s in spheres])
    nearest = np.where(np.isnan(depths), np.inf, depths).argmin(axis=0) + 1
    return Spheres(np.array(centers), scene, np.where(scene.masks, nearest, 0))


def shuffled(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels of which every view has an order of its own."""
    rng = np.random.default_rng(seed)
    return np.stack([np.concatenate([[0], rng.permutation(np.arange(1, 8))])[image] for image in labels])


def ball(center, radius: float = RADIUS, subdivisions: int = 4) -> trimesh.Trimesh:
    """Mesh of a sphere."""
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    mesh.apply_translation(center)
    return mesh


def ball_sdf(center, radius: float = RADIUS):
    """Signed distance of a sphere on tensors."""
    return lambda points: (points - torch.tensor(center, dtype=points.dtype)).norm(dim=-1) - radius
