# SPDX-License-Identifier: Apache-2.0
"""Surface of the registration on a sphere: grid, mesh, silhouettes, and the Poisson equation in a band."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.registration import lattice, rotation_errors_deg, true_surface, turned
from helpers.scenes import capture
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.cameras import project
from pmni_nerfstudio.geometry.interpolation import lookup, lookup_volume
from pmni_nerfstudio.registration.alternation import AlternationSchedule, detailed
from pmni_nerfstudio.registration.bundle_adjustment.normal_lookup import lookup_channels
from pmni_nerfstudio.registration.bundle_adjustment.silhouettes import contour, rim_points, silhouette_jacobian
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.surface.pixel_normals import PixelNormals, smooth_weights
from pmni_nerfstudio.registration.surface.poisson import Band, PoissonOptions, band_poisson
from pmni_nerfstudio.registration.surface.sdf_grid import Surface, extend
from pmni_nerfstudio.registration.views import blur_normals

CENTER, RADIUS = np.array([0.1, -0.05, 0.15]), 0.6


def sphere(n: int = 65, radius: float = RADIUS) -> Surface:
    return Surface((np.linalg.norm(lattice(n) - CENTER, axis=1) - radius).reshape(n, n, n).astype(np.float32))


def test_mesh_depths_and_samples_of_a_sphere():
    surface = sphere()
    _, views, poses = capture()
    vertices, faces = surface.mesh
    corners = vertices[faces] - CENTER
    assert np.abs(np.linalg.norm(vertices - CENTER, axis=1) - RADIUS).max() < 2e-3
    volume = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.01)  # positive: triangles face outward

    points, normals = surface.samples(500, np.random.default_rng(0))
    assert ((points - CENTER) * normals).sum(axis=1).min() > 0.9 * RADIUS

    depths = surface.depths(views, poses, np.ones_like(views.masks))
    for i in range(3):
        y, x = np.nonzero(np.isfinite(depths[i]))
        camera = np.linalg.solve(views.K[i], np.stack([x, y, np.ones(len(x))])).T * depths[i, y, x, None]
        world = (camera - poses.t[i]) @ poses.R[i]
        assert np.abs(np.linalg.norm(world - CENTER, axis=1) - RADIUS).max() < 3e-3
        assert ((world - CENTER) @ poses.R[i].T)[:, 2].max() < 0.06  # on the side towards the camera


def test_redistanced_and_transformed_keep_the_surface():
    distorted = Surface(
        (sphere().sdf * (1.5 + 0.5 * np.sin(4 * lattice(65)[:, 0]).reshape(65, 65, 65))).astype(np.float32)
    )
    result = distorted.redistanced(4)
    near = np.abs(sphere().sdf) < 3 * result.voxel
    assert np.abs(result.sdf - sphere().sdf)[near].max() < 3e-3
    assert ((result.sdf < 0) == (distorted.sdf < 0)).all()

    rotation = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()
    moved = sphere().transformed(0.9, rotation, np.array([0.05, 0.1, -0.1]))
    center = 0.9 * rotation @ CENTER + [0.05, 0.1, -0.1]
    truth = np.linalg.norm(lattice(65) - center, axis=1).reshape(65, 65, 65) - 0.9 * RADIUS
    near = np.abs(truth) < 2 * moved.voxel
    assert np.abs(moved.sdf - truth)[near].max() < 3e-3


def test_extended_distances_grow_by_a_voxel_per_step():
    sdf = np.ones((5, 5, 5), dtype=np.float32)
    known = np.zeros_like(sdf, dtype=bool)
    known[2, 2, 2] = True
    sdf[2, 2, 2], sdf[0] = 0.25, -1.0
    out = extend(sdf, known, voxel=0.5, steps=2)
    assert out[2, 2, 2] == 0.25
    assert out[2, 2, 3] == out[3, 2, 2] == 0.75
    assert out[0, 2, 2] == -1.25
    assert out[4, 4, 4] == 1.75  # more than two steps away


def test_lookups_are_exact_between_pixels_and_voxels():
    image = np.arange(12, dtype=np.float32).reshape(1, 3, 4)

    found = lookup(torch.from_numpy(image), np.array([[1.37, 0.61], [3.0, 2.0]]))
    np.testing.assert_allclose(found[:, 0], [1.37 + 4 * 0.61, 11.0], rtol=1e-6)
    plane = (lattice(9) @ [1.0, 2.0, -3.0]).reshape(1, 9, 9, 9).astype(np.float32)
    points = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    np.testing.assert_allclose(lookup_volume(torch.from_numpy(plane), points)[:, 0], points @ [1, 2, -3], atol=1e-5)


def test_contour_of_a_disc_has_subpixel_accuracy_and_excludes_the_image_border():
    y, x = np.mgrid[:80, :100]
    disc = (x - 50.3) ** 2 + (y - 41.2) ** 2 < 30.4**2
    radii = np.linalg.norm(contour(disc) - [50.3, 41.2], axis=1)
    assert abs(radii.mean() - 30.4) < 0.05
    assert radii.std() < 0.25
    cut = contour((x - 90) ** 2 + (y - 40) ** 2 < 30**2)
    assert cut[:, 0].max() < 98
    assert np.abs(np.linalg.norm(cut - [90, 40], axis=1) - 30).max() < 1.0


def test_rays_of_the_contour_graze_the_surface_and_their_derivative_is_right():
    surface = sphere(97)
    _, views, poses = capture()
    pixels = np.array([[20.0, 30.0], [55.0, 16.0], [41.0, 58.0], [64.0, 40.0]])
    grazing = rim_points(surface, pixels, views.K[0], poses, 0)

    def distances(moved: Poses) -> np.ndarray:
        rays = np.column_stack([pixels, np.ones(4)]) @ np.linalg.inv(views.K[0]).T @ moved.R[0]
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        return np.linalg.norm(np.cross(CENTER - moved.centers()[0], rays), axis=1) - RADIUS

    np.testing.assert_allclose(grazing.sdf, distances(poses), atol=2e-3)
    jacobian = silhouette_jacobian(grazing, poses, 0)
    for k in range(6):
        twist = np.zeros((len(poses), 6))
        twist[0, k] = 1e-4
        numeric = (distances(poses.retract(twist)) - distances(poses.retract(-twist))) / 2e-4
        np.testing.assert_allclose(jacobian[:, k], numeric, atol=0.02)


def test_band_poisson_moves_the_surface_to_normals_and_surface_points():
    start = sphere(49, radius=0.57)
    band = Band.from_sdf(start.sdf, 3)
    outward = band.points - CENTER
    outward /= np.linalg.norm(outward, axis=1, keepdims=True)
    ring = Rotation.from_rotvec(np.outer(np.linspace(0, 6, 60), [0, 0, 1])).apply([RADIUS, 0, 0]) + CENTER
    options = PoissonOptions(iterations=400, tolerance=1e-8, keep_weight=1e-8)
    moved = Surface(band_poisson(start.sdf, band, outward, np.ones(len(outward)), ring, options=options))
    vertices, _ = moved.mesh
    assert np.abs(np.linalg.norm(vertices - CENTER, axis=1) - RADIUS).max() < 3e-3

    floor = band.points[:, 2] - CENTER[2] - 0.53
    cut = Surface(band_poisson(start.sdf, band, outward, np.ones(len(outward)), ring, floor=floor))
    assert cut.mesh[0][:, 2].max() < CENTER[2] + 0.53 + 0.1 * cut.voxel


def test_normals_of_pixels_recover_waves_that_means_over_voxels_lose():
    n = 65
    x, y, z = np.moveaxis(lattice(n).reshape(n, n, n, 3), -1, 0)
    flat = Surface(z.astype(np.float32))
    wave, height = 2 * np.pi / 0.25, 0.01  # eight voxels long
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-0.95, 0.95, (40000, 2)), np.zeros(40000)])
    slope = height * wave * np.cos(wave * points[:, 0])
    normals = np.column_stack([-slope, np.zeros_like(slope), np.ones_like(slope)])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    band = Band.from_sdf(flat.sdf, 3)
    mean = np.tile([0.0, 0.0, 1.0], (len(band.points), 1))  # the waves cancel in the mean
    level = np.column_stack([np.arange(-0.9, 0.9, 0.125), np.zeros(15), np.zeros(15)])  # where the height is zero
    options = PoissonOptions(iterations=400, tolerance=1e-8, keep_weight=1e-6)

    def recovered_heights(pixels: PixelNormals | None) -> np.ndarray:
        sdf = band_poisson(flat.sdf, band, mean, np.ones(len(mean)), level, options=options, pixels=pixels)
        return -sdf[4:-4, 4:-4, n // 2]

    truth = (height * np.sin(wave * x))[4:-4, 4:-4, n // 2]
    assert np.abs(recovered_heights(None)).max() < 0.1 * height
    found = recovered_heights(PixelNormals(points, normals, np.ones(len(points))))
    found = found - (found - truth).mean()
    assert np.abs(found - truth).mean() < 0.15 * height


def test_pixel_normals_lie_on_the_surface_and_are_its_own():
    surface = true_surface(n=97)
    _, views, poses = capture()
    channels = lookup_channels(views, AlternationSchedule().bundle.curvature)
    depths = surface.depths(views, poses)
    pixels = PixelNormals.from_views(views, smooth_weights(channels), poses, depths)
    assert np.abs(lookup_volume(surface.lookups[:1], pixels.points)).max() < 0.1 * surface.voxel
    cosines = (surface.normals_at(pixels.points) * pixels.normals).sum(axis=1)
    assert np.rad2deg(np.median(np.arccos(cosines.clip(-1, 1)))) < 1.0
    assert pixels.weights.min() >= 0 and pixels.weights.max() <= 1
    few = PixelNormals.from_views(views, smooth_weights(channels), poses, depths, max_pixels=500)
    assert 400 < len(few.points) < 1000


def test_maps_too_coarse_for_the_level_of_detail_leave_the_surface_as_it_is():
    _, views, poses = capture()
    surface = true_surface(n=33)
    schedule = AlternationSchedule()
    assert detailed(views, poses, surface, schedule) is surface
    finer = detailed(views, poses, surface, replace(schedule, detail=replace(schedule.detail, resolution=97)))
    assert finer.resolution == 97
    distances = lookup_volume(true_surface(n=97).lookups[:1], finer.mesh[0])
    assert np.abs(distances).mean() < 0.1 * finer.voxel


def test_blur_stays_within_the_mask_and_keeps_constant_normals():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    normals = np.where(mask[..., None], [0.6, 0.0, -0.8], 0.0).astype(np.float32)
    np.testing.assert_allclose(blur_normals(normals, mask, 3.0), normals, atol=1e-6)


def test_alignment_inverts_a_similarity():
    _, _, poses = capture()
    rotation = Rotation.from_rotvec([0.4, 1.0, -0.3]).as_matrix()
    moved = poses.transformed(1.3, rotation, np.array([0.2, -0.1, 0.3]))
    scale, back, shift = align(moved, poses)
    assert scale == pytest.approx(1 / 1.3, rel=1e-6)
    np.testing.assert_allclose(back, rotation.T, atol=1e-6)
    again = moved.transformed(scale, back, shift)
    np.testing.assert_allclose(again.t, poses.t, atol=1e-5)
    assert rotation_errors_deg(moved, poses).max() < 1e-4
    camera = poses.to_camera(0, CENTER[None])
    assert project(camera, np.eye(3))[0] == pytest.approx(camera[0, :2] / camera[0, 2])
    assert np.abs(np.linalg.inv(poses.c2w())[:, :3, 3] - poses.t).max() < 1e-9
    assert rotation_errors_deg(turned(poses, 5.0), poses).mean() > 2


def test_the_helpers_surface_is_a_signed_distance_near_the_surface():
    slopes = np.linalg.norm(lookup_volume(true_surface().lookups[1:], true_surface().mesh[0][::50]), axis=1)
    assert np.median(np.abs(slopes - 1)) < 0.05
