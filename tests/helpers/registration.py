# SPDX-License-Identifier: Apache-2.0
"""Surfaces and pose errors for the tests of registration."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
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
