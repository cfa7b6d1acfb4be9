# SPDX-License-Identifier: Apache-2.0
"""Cameras, meshes and similarities of the evaluation tests."""

from __future__ import annotations

import numpy as np
import trimesh
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.synth.rig import intrinsics, ring

WIDTH, HEIGHT = 64, 48
K = intrinsics(WIDTH, HEIGHT, 15.0)
C2W = ring(8, 25.0, 15.0, 1.0, False, np.random.default_rng(0))
"""Eight cameras around the origin at 15 radii."""


def ball(radius: float, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    """A finely tessellated sphere."""
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    mesh.apply_translation(center)
    return mesh


def joined(*meshes: trimesh.Trimesh) -> trimesh.Trimesh:
    """Several meshes as one, vertices unchanged."""
    first = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    faces = [m.faces + offset for m, offset in zip(meshes, first)]
    return trimesh.Trimesh(np.concatenate([m.vertices for m in meshes]), np.concatenate(faces), process=False)


def random_similarity(seed: int, angle_deg: float, scale: float, shift: float) -> np.ndarray:
    """A similarity (4, 4) with a random axis of rotation and a random translation of standard deviation `shift`."""
    rng = np.random.default_rng(seed)
    axis = rng.standard_normal(3)
    out = np.eye(4)
    rotation = Rotation.from_rotvec(np.radians(angle_deg) * axis / np.linalg.norm(axis))
    out[:3, :3] = scale * rotation.as_matrix()
    out[:3, 3] = shift * rng.standard_normal(3)
    return out
