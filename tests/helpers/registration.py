# SPDX-License-Identifier: Apache-2.0
"""Surfaces, pose errors and bundle adjustment problems for the tests of registration."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from helpers.scenes import capture
from pmni_nerfstudio.geometry.cameras import pixel_grid
from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions, BundleProblem
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contours
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth.shapes import SHAPES


@lru_cache
def true_surface(shape: str = "blob", n: int = 65) -> Surface:
    """Signed distances of a synthetic shape on a grid, redistanced near the surface."""
    return Surface(
        SHAPES[shape].sdf(torch.from_numpy(lattice(n))).numpy().reshape(n, n, n).astype(np.float32)
    ).redistanced(4)


def lattice(n: int) -> np.ndarray:
    """Vertices (n^3, 3) of a grid over [-1, 1]^3."""
    axis = np.linspace(-1.0, 1.0, n)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def rotation_errors_deg(poses: Poses, truth: Poses) -> np.ndarray:
    """Rotation errors of the views in degrees, after the alignment of the poses."""
    return angles_deg(poses.transformed(*align(poses, truth)).R, truth.R)


def turned(poses: Poses, degrees: float, seed: int = 0) -> Poses:
    """Poses with each camera rotated about the object; the root mean square of the angles is `degrees`."""
    rng = np.random.default_rng(seed)
    twists = np.zeros((len(poses), 6))
    twists[:, :3] = np.deg2rad(degrees) * rng.standard_normal((len(poses), 3)) / np.sqrt(3)
    return poses.retract(twists)


def bundle_problem(
    poses: Poses,
    seed: int = 0,
    fixed_normals: bool = False,
    views: Views | None = None,
    surface: Surface | None = None,
    **changes,
) -> BundleProblem:
    """Bundle adjustment of the synthetic capture on its true surface; `changes` are options."""
    views = capture()[1] if views is None else views
    surface = true_surface() if surface is None else surface
    options = BundleOptions(**({"points": 400, "huber": 10.0} | changes))
    depths = surface.depths(views, poses)
    rng = np.random.default_rng(seed)
    curves = contours(views, 40)
    return BundleProblem(views, surface, poses, depths, curves, options, rng, fixed_normals=fixed_normals)


def affine_normals(views: Views) -> Views:
    """Views whose normal maps, before normalization, are affine functions of the pixel."""
    x, y = np.moveaxis(pixel_grid(views.width, views.height), -1, 0)
    x, y = x / views.width - 0.5, y / views.height - 0.5
    slopes = np.random.default_rng(0).uniform(-1, 1, (len(views), 4))
    normals = [np.stack([a * x + b * y, c * x + d * y, -1 + 0.1 * x], axis=-1) for a, b, c, d in slopes]
    return replace(views, normals=np.stack(normals).astype(np.float32))
