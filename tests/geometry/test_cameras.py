# SPDX-License-Identifier: Apache-2.0
"""Pinhole projection and its inverse, in NumPy, in PyTorch and with gradients; cameras on rings."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.geometry.camera_rings import OBJECT_RADIUS, look_at, object_distance, ring_c2w
from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid, pixel_rays, project
from pmni_nerfstudio.geometry.projection import project_world, unproject

K = np.array([[310.0, 1.7, 52.3], [0.0, 290.0, 38.9], [0.0, 0.0, 1.0]])  # with skew


def random_w2c(count: int) -> torch.Tensor:
    """World-to-camera matrices (count, 3, 4) of cameras four units in front of the origin, double precision."""
    rotations = torch.from_numpy(Rotation.from_quat(np.random.default_rng(3).normal(size=(count, 4))).as_matrix())
    return torch.cat([rotations, torch.tensor([0.1, -0.2, 4.0]).double().expand(count, 3)[..., None]], dim=-1)


def test_pixel_grid_is_x_then_y():
    grid = pixel_grid(4, 3)
    assert grid.shape == (3, 4, 2) and grid.dtype == np.float64
    np.testing.assert_array_equal(grid[2, 1], [1.0, 2.0])


def test_pixel_directions_are_the_inverse_of_projection():
    pixels = np.random.default_rng(0).uniform(-20, 120, (2, 7, 2))
    directions = pixel_directions(K, pixels)
    np.testing.assert_allclose(directions[..., 2], 1.0)
    np.testing.assert_allclose(directions @ K.T, np.concatenate([pixels, np.ones((2, 7, 1))], axis=-1), atol=1e-10)
    for depth in (0.3, 5.0):
        np.testing.assert_allclose(project(depth * directions, K), pixels)
    np.testing.assert_array_equal(pixel_directions(K, np.array([[3, 4]])), pixel_directions(K, np.array([[3.0, 4.0]])))


def test_the_principal_point_looks_along_the_optical_axis():
    np.testing.assert_allclose(pixel_directions(K, K[None, :2, 2]), [[0.0, 0.0, 1.0]], atol=1e-15)
    # x to the right and y down: one pixel further is 1 / focal length.
    np.testing.assert_allclose(pixel_directions(K, K[:2, 2] + [[0.0, 1.0]])[0, 1], 1 / 290)


def test_numpy_and_torch_project_alike():
    points = np.random.default_rng(1).uniform([-1, -1, 2], [1, 1, 5], (20, 3))
    one = project(torch.from_numpy(points), torch.from_numpy(K))
    np.testing.assert_allclose(one, project(points, K), rtol=1e-14)
    each = np.tile(K, (20, 1, 1))
    each[:, 0, 0] += np.arange(20)
    expected = np.stack([project(p, k) for p, k in zip(points, each)])
    np.testing.assert_allclose(project(points, each), expected, rtol=1e-14)
    np.testing.assert_allclose(project(torch.from_numpy(points), torch.from_numpy(each)), expected, rtol=1e-14)


def test_pixel_rays_start_at_the_camera_and_pass_through_their_pixels():
    c2w = np.eye(4)
    c2w[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.5, 1.0]).as_matrix()
    c2w[:3, 3] = [1.0, 2.0, -3.0]
    origins, directions = pixel_rays(K, c2w, 5, 4)
    assert origins.shape == directions.shape == (20, 3)
    np.testing.assert_array_equal(origins, np.tile(c2w[:3, 3], (20, 1)))
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    camera = (origins + 2.5 * directions - c2w[:3, 3]) @ c2w[:3, :3]
    np.testing.assert_allclose(project(camera, K), pixel_grid(5, 4).reshape(-1, 2), atol=1e-10)


def test_unprojection_is_the_inverse_of_world_projection():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(30, 3, generator=generator).double() * 2 - 1
    w2c, intrinsics = random_w2c(30), torch.from_numpy(K).expand(30, 3, 3)
    pixels, depth = project_world(points, w2c, intrinsics)
    assert (depth > 1).all()
    torch.testing.assert_close(unproject(pixels, depth, w2c, intrinsics), points)
    camera = (w2c[:, :, :3] @ points[..., None])[..., 0] + w2c[:, :, 3]
    torch.testing.assert_close(depth, camera[:, 2])
    torch.testing.assert_close(pixels, project(camera, intrinsics))


def test_gradients_of_projection_and_unprojection():
    points = torch.rand(4, 3, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    w2c, intrinsics = random_w2c(4).requires_grad_(), torch.from_numpy(K).repeat(4, 1, 1).requires_grad_()
    # gradcheck compares with central finite differences.
    assert torch.autograd.gradcheck(project_world, (points, w2c, intrinsics))
    pixels, depth = (t.detach().requires_grad_() for t in project_world(points, w2c, intrinsics))
    assert torch.autograd.gradcheck(unproject, (pixels, depth, w2c, intrinsics))


@pytest.mark.parametrize("depth", [0.0, -2.0])
def test_points_at_or_behind_the_camera_have_finite_pixels_and_gradients(depth):
    points = torch.tensor([[0.4, -0.3, depth]], dtype=torch.float64, requires_grad=True)
    w2c = torch.eye(4, dtype=torch.float64)[None, :3]
    pixels, found = project_world(points, w2c, torch.from_numpy(K)[None])
    assert found.item() == depth
    pixels.sum().backward()
    assert pixels.isfinite().all() and points.grad is not None and points.grad.isfinite().all()


@pytest.mark.parametrize("clockwise", [False, True])
def test_ring_cameras_look_at_the_origin_with_y_up(clockwise):
    c2w = ring_c2w(8, 5.0, elevation_deg=30.0, clockwise=clockwise)
    rotations, centers = c2w[:, :3, :3], c2w[:, :3, 3]
    np.testing.assert_allclose(rotations @ np.swapaxes(rotations, 1, 2), np.tile(np.eye(3), (8, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 5.0)
    np.testing.assert_allclose(centers[:, 1], 5.0 * np.sin(np.radians(30)))
    np.testing.assert_allclose(-centers / 5.0, rotations[:, :, 2], atol=1e-12)  # the optical axis
    assert (rotations[:, 1, 1] < -0.5).all()  # image y points down, world y up
    steps = np.cross(centers, np.roll(centers, -1, axis=0))[:, 1]
    assert ((steps < 0) == clockwise).all()
    expected = look_at(centers.copy(), np.zeros((8, 3)), np.tile([0.0, 1.0, 0.0], (8, 1)))
    np.testing.assert_allclose(c2w, expected, atol=1e-12)


def test_object_distance_fits_the_mask_to_the_sphere():
    y, x = np.mgrid[:81, :101]
    disc = np.hypot(x - 50, y - 40) <= 30
    K = np.array([[300.0, 0.0, 50.0], [0.0, 300.0, 40.0], [0.0, 0.0, 1.0]])
    distance = object_distance(K[None].repeat(2, axis=0), np.stack([disc, np.hypot(x - 50, y - 40) <= 10]))
    assert distance * 30 / 300 == pytest.approx(OBJECT_RADIUS, rel=0.02)
