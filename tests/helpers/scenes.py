# SPDX-License-Identifier: Apache-2.0
"""Scenes with known ground truth.

`AnalyticScene` holds maps and cameras of a surface whose ray intersections have a closed form; nothing in it comes
from the package under test. `capture` renders the package's own shapes where a test needs a detailed object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.data.scene import MapFacts, Scene
from pmni_nerfstudio.data.scene_writer import write_scene

if TYPE_CHECKING:
    from pmni_nerfstudio.registration.poses import Poses
    from pmni_nerfstudio.registration.views import Views
    from pmni_nerfstudio.synth import SynthScene

Intersect = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""First hits of unit rays: origins and directions (..., 3) to distances (...), NaN for a miss, and outward normals."""

FILE_FROM_OPENCV = np.array([1, -1, -1], np.float32)
"""Signs that turn normals in OpenCV camera axes into those of camera-space files (y up, z toward the viewer)."""


# ---- surfaces -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with a closed-form ray intersection."""

    center: tuple[float, float, float]
    semi_axes: tuple[float, float, float]
    axes: Rotation = Rotation.identity()
    """Rotation from the ellipsoid's own axes to the world."""

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First hits of unit rays; see Intersect."""
        # In coordinates in which the ellipsoid is the unit sphere.
        to_local = self.axes.as_matrix() / self.semi_axes
        o, d = (origins - np.array(self.center)) @ to_local, directions @ to_local
        a, b, c = (d * d).sum(-1), (d * o).sum(-1), (o * o).sum(-1) - 1
        discriminant = b * b - a * c
        distance = -(b + np.sqrt(np.where(discriminant > 0, discriminant, np.nan))) / a
        normals = (o + distance[..., None] * d) @ to_local.T
        return distance, normals / np.linalg.norm(normals, axis=-1, keepdims=True)


@dataclass(frozen=True)
class Cube:
    """A cube about the origin with a closed-form ray intersection."""

    half_edge: float
    axes: Rotation = Rotation.identity()
    """Rotation from the cube's own axes to the world."""

    def intersect(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First hits of unit rays; see Intersect. The last of the three slab entries is the hit if it lies before the first exit."""
        axes = self.axes.as_matrix()
        origins, directions = np.broadcast_arrays(origins @ axes, directions @ axes)
        entries = (-np.sign(directions) * self.half_edge - origins) / directions
        exits = (np.sign(directions) * self.half_edge - origins) / directions
        axis = entries.argmax(axis=-1)
        distance = entries.max(axis=-1)
        normals = -np.sign(np.take_along_axis(directions, axis[..., None], -1)) * axes.T[axis]
        return np.where(distance < exits.min(axis=-1), distance, np.nan), normals


SPHERE_CENTER = np.array([0.15, -0.1, 0.2])
SPHERE_RADIUS = 0.6
SPHERE = Ellipsoid((0.15, -0.1, 0.2), (SPHERE_RADIUS,) * 3)
hit_sphere = SPHERE.intersect


# ---- cameras --------------------------------------------------------------------------------------------------------


def look_at(eye: np.ndarray, target: np.ndarray | None = None) -> np.ndarray:
    """c2w (4, 4), OpenCV axes, of a camera at `eye` that looks at `target` (default: the origin), world z up."""
    forward = (np.zeros(3) if target is None else target) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    c2w[:3, 3] = eye
    return c2w


def irregular_ring(num_views: int, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Poses c2w (N, 4, 4), OpenCV axes, on a ring about z: a few degrees of roll, and aimed a little off the origin."""
    poses = []
    for i in range(num_views):
        azimuth, elevation = 2 * np.pi * i / num_views, np.deg2rad(20 + 10 * np.sin(i))
        eye = distance * np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        pose = look_at(eye, rng.uniform(-0.1, 0.1, 3))
        pose[:3, :3] = pose[:3, :3] @ Rotation.from_euler("z", rng.uniform(-10, 10), degrees=True).as_matrix()
        poses.append(pose)
    return np.stack(poses)


def world_rays(K: np.ndarray, c2w: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins (N, 3) and directions (N, H, W, 3) of all pixels' rays; the directions have a depth of 1."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1).astype(float)
    return c2w[:, :3, 3], np.einsum("nij,njk,hwk->nhwi", c2w[:, :3, :3], np.linalg.inv(K), pixels)


def render_maps(
    intersect: Intersect, K: np.ndarray, c2w: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks (N, H, W), normals (N, H, W, 3) in OpenCV camera axes (zero off the mask), z depths (N, H, W; NaN off it)."""
    origins, rays = world_rays(K, c2w, width, height)
    length = np.linalg.norm(rays, axis=-1)
    distance, normals = intersect(origins[:, None, None], rays / length[..., None])
    masks = np.isfinite(distance)
    normals = np.einsum("nji,nhwj->nhwi", c2w[:, :3, :3], normals)
    return masks, np.where(masks[..., None], normals, 0.0), distance / length


# ---- scenes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AnalyticScene:
    """Exact maps of N views and their cameras, in the unit-sphere world."""

    K: np.ndarray
    """(N, 3, 3), pixel centers at integers."""
    c2w: np.ndarray
    """(N, 4, 4), OpenCV axes."""
    world_from_unit: np.ndarray
    """(4, 4), similarity from the unit-sphere world to the data's world."""
    masks: np.ndarray
    """(N, H, W) bool."""
    normals: np.ndarray
    """(N, H, W, 3), OpenCV camera axes, zero off the mask."""
    depths: np.ndarray
    """(N, H, W), z depths in the unit-sphere world, NaN off the mask."""
    names: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the maps in pixels."""
        return self.masks.shape[2], self.masks.shape[1]

    @property
    def data_c2w(self) -> np.ndarray:
        """(N, 4, 4) poses in the data's world: rotations, and camera centers in the data's units."""
        poses = self.world_from_unit @ self.c2w
        poses[:, :3, :3] /= np.cbrt(np.linalg.det(self.world_from_unit[:3, :3]))
        return poses

    def stored_normals(self, view: int, axes: str) -> np.ndarray:
        """A view's normals in the axes of a file: camera, opencv, directx or world."""
        matrix = {
            "camera": np.diag(FILE_FROM_OPENCV),
            "opencv": np.eye(3),
            "directx": np.diag([1.0, 1.0, -1.0]),
            "world": self.data_c2w[view, :3, :3],
        }[axes]
        return self.normals[view] @ matrix.T

    def subset(self, views: list[int]) -> AnalyticScene:
        """The scene with some of its views."""
        names = tuple(self.names[view] for view in views)
        maps = {name: getattr(self, name)[views] for name in ("K", "c2w", "masks", "normals", "depths")}
        return replace(self, names=names, **maps)

    def arguments(self) -> dict:
        """Arguments of `write_scene` besides the folder."""
        return {
            "names": self.names,
            "K": self.K,
            "c2w": self.c2w,
            "world_from_unit": self.world_from_unit,
            "masks": self.masks,
            "normals": self.normals.astype(np.float32),
            "depths": self.depths.astype(np.float32),
        }

    def write(self, folder: Path) -> Path:
        """Write a scene folder, with depth maps."""
        write_scene(folder, **self.arguments())
        return folder

    def in_memory(self) -> Scene:
        """A scene with no files behind it."""
        root, zeros = Path("analytic"), np.zeros(len(self.masks))
        return Scene(
            root=root,
            names=self.names,
            K=self.K,
            c2w=self.c2w,
            world_from_unit=self.world_from_unit,
            masks=self.masks,
            normals=self.normals.astype(np.float16),
            normal_files=tuple(root / "normal_camera_space_GT" / f"{name}.exr" for name in self.names),
            mask_files=tuple(root / "mask" / f"{name}.png" for name in self.names),
            depth_files=None,
            image_files=None,
            mesh_file=None,
            warnings=(),
            facts=MapFacts(
                np.tile(self.masks.shape[:0:-1], (len(self.masks), 1)), self.masks.sum(axis=(1, 2)), zeros, zeros, zeros
            ),
        )


def analytic_scene(
    intersect: Intersect,
    K: np.ndarray,
    c2w: np.ndarray,
    size: tuple[int, int],
    world_from_unit: np.ndarray | None = None,
    names: tuple[str, ...] | None = None,
) -> AnalyticScene:
    """Render a surface.

    Args:
        intersect: the surface.
        K: (N, 3, 3), or (3, 3) for all views.
        c2w: (N, 4, 4), OpenCV axes, unit-sphere world.
        size: width and height in pixels.
        world_from_unit: the data's world; the unit-sphere world by default.
        names: of the views; 00, 01, ... by default.
    """
    K = np.broadcast_to(K, (len(c2w), 3, 3)).copy()
    world = np.eye(4) if world_from_unit is None else world_from_unit
    names = tuple(f"{i:02d}" for i in range(len(c2w))) if names is None else names
    return AnalyticScene(K, c2w, world, *render_maps(intersect, K, c2w, *size), names)


def similarity(scale: float, euler_deg: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    """(4, 4): rotation by Euler angles about x, y and z, uniform scale, then a shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_euler("xyz", euler_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def fitting_intrinsics(width: int, height: int, distance: float) -> np.ndarray:
    """(3, 3): the unit sphere at this distance fills nine tenths of the frame's shorter side."""
    focal = 0.45 * min(width, height) * distance
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def make_sphere(num_views: int = 7, width: int = 48, height: int = 40) -> AnalyticScene:
    """SPHERE, off the origin of a rotated world in millimeters; every camera has intrinsics of its own."""
    rng = np.random.default_rng(7)
    distance = 15.0
    c2w = irregular_ring(num_views, distance, rng)
    K = np.tile(fitting_intrinsics(width, height, distance), (num_views, 1, 1))
    K[:, 0, 0] *= rng.uniform(0.97, 1.03, num_views)
    K[:, 1, 1] *= rng.uniform(0.97, 1.03, num_views)
    K[:, 0, 2] += rng.uniform(-2, 2, num_views)
    K[:, 1, 2] += rng.uniform(-2, 2, num_views)
    return analytic_scene(hit_sphere, K, c2w, (width, height), similarity(55, (20, -35, 50), (5.5, -2.75, 11)))


def make_tilted_ellipsoid() -> AnalyticScene:
    """Eight views of an ellipsoid off the origin of a rotated world in millimeters, from an irregular ring."""
    surface = Ellipsoid((0.04, -0.05, 0.03), (0.86, 0.6, 0.72), Rotation.from_euler("xyz", [30, 20, -40], degrees=True))
    size = (72, 60)
    K, c2w = fitting_intrinsics(*size, 15.0), irregular_ring(8, 15.0, np.random.default_rng(3))
    names = tuple(f"{view:03d}" for view in range(8))
    return analytic_scene(surface.intersect, K, c2w, size, similarity(55, (20, -35, 50), (210, -90, 640)), names)


@lru_cache
def capture(**changes) -> tuple[SynthScene, Views, Poses]:
    """A capture of twelve small views of one of the package's shapes, its views and its true poses."""
    from pmni_nerfstudio.registration.poses import Poses
    from pmni_nerfstudio.registration.views import Views
    from pmni_nerfstudio.synth import SynthConfig, make_scene

    options = {"shape": "blob", "views": 12, "width": 80, "height": 68, "jitter": 1, "seed": 3} | changes
    scene = make_scene(SynthConfig(**options))
    views = Views(scene.names, scene.normals, scene.masks, np.tile(scene.K, (len(scene.c2w), 1, 1)))
    return scene, views, Poses.from_c2w(scene.c2w)
