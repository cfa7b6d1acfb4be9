# SPDX-License-Identifier: Apache-2.0
"""Relocalization of views against a surface, and views that are included on trial."""

from __future__ import annotations

import numpy as np
from helpers.registration import lattice, true_surface
from helpers.scenes import capture
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.bundle_adjustment.problem import BundleOptions
from pmni_nerfstudio.registration.confidence import plausible_views, rendered_normals, view_agreement
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.relocalization import relocalize, relocalize_view
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views


def half_rough_egg() -> Surface:
    """An egg with a dent, away from the world's origin: smooth behind, and with bumps in front."""
    x, y, z = (points := lattice(97) - np.array([0.12, -0.1, 0.0])).T
    radii = np.array([0.5, 0.4, 0.35])
    distance = (np.linalg.norm(points / radii, axis=1) - 1) * radii.min()
    dent = 0.15 * np.exp(-20 * ((x - 0.25) ** 2 + (y - 0.1) ** 2))
    bumps = 0.035 * np.sin(15 * x + 0.5) * np.sin(19 * y + 1) * np.clip(8 * z, 0, 1)
    return Surface((distance + dent + bumps).reshape(97, 97, 97).astype(np.float32)).redistanced(4)


def rendered_view(surface: Surface, pose: Poses, width: int = 72, height: int = 60) -> Views:
    """The surface as one camera sees it."""
    focal = 0.45 * height * pose.t[0, 2]
    K = np.array([[[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]]])
    frame = np.ones((1, height, width), dtype=bool)
    blank = Views(("0",), np.zeros((1, height, width, 3), np.float32), frame, K)
    normals = rendered_normals(blank, pose, surface, 0).astype(np.float32)
    return Views(("0",), normals[None], np.linalg.norm(normals, axis=-1)[None] > 0.5, K)


def test_a_view_of_fine_details_is_not_mistaken_for_one_of_the_smooth_back():
    surface, distance = half_rough_egg(), 12.0
    towards_details = Rotation.from_euler("x", 180, degrees=True)
    for seed in (0, 2):
        truth = (
            Rotation.from_rotvec(0.25 * np.random.default_rng(seed).standard_normal(3)) * towards_details
        ).as_matrix()
        pose = Poses(truth[None], np.array([[0.0, 0.0, distance]]))
        view = rendered_view(surface, pose)
        lost = Poses((Rotation.from_euler("y", 180, degrees=True).as_matrix() @ truth)[None], pose.t)
        found = relocalize_view(view, lost, 0, surface, [0], 30.0, BundleOptions(), seed=0)
        assert angles_deg(found.R, truth[None])[0] < 1.5


def test_a_view_a_few_degrees_off_is_plausible_and_one_of_the_other_side_is_not():
    _, views, truth = capture()
    surface = true_surface()
    inliers = np.ones(len(views), dtype=bool)
    inliers[[2, 5]] = False
    behind = truth.R[5] @ Rotation.from_euler("y", 180, degrees=True).as_matrix()
    twist = np.zeros((1, 6))
    twist[0, :3] = np.deg2rad(3)
    poses = truth.replaced([2], truth.subset([2]).retract(twist)).replaced([5], Poses(behind[None], truth.t[[5]]))
    assert view_agreement(views, poses, surface).outliers()[[2, 5]].tolist() == [True, True]
    assert np.flatnonzero(plausible_views(views, poses, surface, inliers)).tolist() == [2]


def slanted_coin() -> Surface:
    """A thick disc that is not quite round, whose domed face is slanted: turned by 180 degrees, it looks much the same."""
    x, y, z = lattice(97).T
    radius = np.hypot(x, y)
    face, rim = z - 0.12 + 0.1 * radius**2 + 0.06 * x, radius - 0.55 - 0.07 * x - 0.06 * y**2
    distance = np.maximum(np.maximum(face, rim), -z - 0.3)
    return Surface(distance.reshape(97, 97, 97).astype(np.float32)).redistanced(4)


def with_noise(view: Views, rng: np.random.Generator) -> Views:
    """A view whose normals have about 2 degrees of noise."""
    normals, mask = view.normals.copy(), view.masks
    normals[mask] += np.deg2rad(2) * rng.standard_normal(normals[mask].shape)
    normals[mask] /= np.linalg.norm(normals[mask], axis=-1, keepdims=True)
    return Views(view.names, normals, mask, view.K)


def test_a_view_of_a_flat_face_is_not_turned_by_180_degrees():
    surface = slanted_coin()
    for seed in (0, 4):
        rng = np.random.default_rng(seed)
        towards_face = Rotation.from_rotvec(0.1 * rng.standard_normal(3)) * Rotation.from_euler("x", 180, degrees=True)
        truth = towards_face.as_matrix()
        aside = Rotation.from_euler("y", 50, degrees=True).as_matrix() @ truth
        turned = Rotation.from_euler("z", 180, degrees=True).as_matrix() @ truth
        t = np.array([[0.0, 0.0, 4.0]])
        face, side = (with_noise(rendered_view(surface, Poses(R[None], t)), rng) for R in (truth, aside))
        maps = [np.concatenate([a, b]) for a, b in zip(*((v.normals, v.masks, v.K) for v in (face, side)))]
        poses = Poses(np.stack([turned, aside]), np.repeat(t, 2, axis=0))
        outliers = np.array([True, False])
        found = relocalize(Views(("0", "1"), *maps), poses, outliers, surface, BundleOptions(), seed=0)
        assert angles_deg(found.R[:1], truth[None])[0] < 5
