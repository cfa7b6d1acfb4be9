# SPDX-License-Identifier: Apache-2.0
"""Losses against closed forms, loops and finite differences; visibility against exact rays; loss weights by stage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import tyro
from helpers import scenes
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.interpolation import sample_maps
from pmni_nerfstudio.geometry.projection import project_world, unproject
from pmni_nerfstudio.geometry.transforms import flip_y_and_z
from pmni_nerfstudio.model import losses
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer, PmniPoseOptimizerConfig
from pmni_nerfstudio.model.visibility import view_cosines, visible_by_sphere_tracing

SEMI_AXES = np.array([0.75, 0.5, 0.35])


@dataclass
class Ellipsoid:
    """An ellipsoid at the origin, whose only symmetries are half turns, seen by a ring of cameras."""

    K: torch.Tensor
    base_c2w: torch.Tensor
    normals: torch.Tensor
    depths: torch.Tensor
    points: torch.Tensor
    point_normals: torch.Tensor

    @property
    def w2c(self) -> torch.Tensor:
        return self.poses().w2c_opencv().detach().double()

    @property
    def centers(self) -> torch.Tensor:
        return self.base_c2w[:, :, 3]

    def poses(self) -> PmniPoseOptimizer:
        """True poses, in double precision for finite differences."""
        return (
            PmniPoseOptimizerConfig()
            .setup(num_cameras=len(self.K), device="cpu", base_c2w=self.base_c2w.float())
            .double()
        )


@pytest.fixture(scope="module")
def ellipsoid() -> Ellipsoid:
    """Exact maps (V, H, W) in double precision, and surface points."""
    views, size, distance = 9, 64, 15.0
    azimuth, elevation = 2 * np.pi * np.arange(views) / views, np.deg2rad(25 + 15 * np.cos(3 * np.arange(views)))
    center = distance * np.stack(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], axis=-1
    )
    forward = -center / distance
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    axes = np.stack([right, np.cross(forward, right), forward], axis=-1)
    # Rounded to single precision, as in the pose optimizer.
    axes, center = axes.astype(np.float32).astype(float), center.astype(np.float32).astype(float)
    focal = 0.45 * size * distance
    K = np.tile(np.array([[focal, 0, size / 2 - 0.8], [0, 1.05 * focal, size / 2 + 0.3], [0, 0, 1.0]]), (views, 1, 1))
    c2w = np.tile(np.eye(4), (views, 1, 1))
    c2w[:, :3, :3], c2w[:, :3, 3] = axes, center
    _, normals, depths = scenes.render_maps(scenes.Ellipsoid((0, 0, 0), tuple(SEMI_AXES)).intersect, K, c2w, size, size)
    points = np.random.default_rng(1).standard_normal((300, 3))
    points *= SEMI_AXES / np.linalg.norm(points, axis=-1, keepdims=True)
    outward = points / SEMI_AXES**2
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    return Ellipsoid(
        K=torch.from_numpy(K),
        base_c2w=torch.from_numpy(np.concatenate([flip_y_and_z(axes), center[..., None]], axis=-1)),
        normals=torch.from_numpy(normals),
        depths=torch.from_numpy(np.nan_to_num(depths)),
        points=torch.from_numpy(points),
        point_normals=torch.from_numpy(outward),
    )


def check_gradient(
    function: Callable[[], torch.Tensor], leaf: torch.Tensor, entries: list[tuple[int, ...]], step: float, abs_: float
) -> None:
    """Compare the gradient of a leaf tensor at some entries with central differences."""
    leaf.grad = None
    function().backward()
    assert leaf.grad is not None
    gradient = leaf.grad.clone()
    for entry in entries:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf[entry] += sign * step
                values.append(function().item())
                leaf[entry] -= sign * step
        assert gradient[entry].item() == pytest.approx((values[0] - values[1]) / (2 * step), abs=abs_, rel=1e-4)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(random(*shape, 3, seed=seed), dim=-1)


# --- rays ---


@pytest.mark.parametrize("kind", ["l1", "l2", "angular"])
def test_normal_loss_of_a_known_angle(kind):
    angle = np.deg2rad(30.0)
    observed = unit(8)
    axis = torch.nn.functional.normalize(torch.linalg.cross(observed, unit(8, seed=1)), dim=-1)
    turned = observed * np.cos(angle) + torch.linalg.cross(axis, observed) * np.sin(angle)
    weights = torch.rand(8, dtype=torch.float64)
    expected = {
        "l1": (weights * (turned - observed).abs().sum(-1)).sum() / weights.sum(),
        "l2": torch.tensor(4 * np.sin(angle / 2) ** 2),
        "angular": torch.tensor(angle),
    }
    torch.testing.assert_close(losses.normal_loss(turned, observed, weights, kind), expected[kind].double())
    assert losses.normal_loss(observed, observed, weights, kind).item() == pytest.approx(0, abs=1e-7)
    # Rays of weight zero are ignored.
    weights[3:] = 0
    spoilt = torch.cat([turned[:3], random(5, 3, seed=4)])
    torch.testing.assert_close(
        losses.normal_loss(spoilt, observed, weights, kind),
        losses.normal_loss(turned[:3], observed[:3], weights[:3], kind),
    )


@pytest.mark.parametrize("kind", ["l1", "l2", "angular"])
def test_normal_loss_gradient(kind):
    rendered, observed, weights = random(6, 3).requires_grad_(), unit(6, seed=1), torch.rand(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: losses.normal_loss(r, observed, weights, kind), rendered)
    same = torch.cat([observed, -observed]).requires_grad_()
    losses.normal_loss(same, torch.cat([observed, observed]), torch.ones(12), kind).backward()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_angular_loss_ignores_length_and_covers_opposite_normals():
    observed, weights = unit(5), torch.ones(5, dtype=torch.float64)
    rendered = unit(5, seed=1)
    torch.testing.assert_close(
        losses.normal_loss(0.2 * rendered, observed, weights, "angular"),
        torch.arccos((rendered * observed).sum(-1)).mean(),
    )
    assert losses.normal_loss(-observed, observed, weights, "angular").item() == pytest.approx(math.pi)


def test_all_zero_weights_give_zero_loss_and_gradient():
    rendered = random(4, 3).requires_grad_()
    loss = losses.normal_loss(rendered, unit(4), torch.zeros(4, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    assert rendered.grad is not None
    assert torch.equal(rendered.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_mask_loss_is_cross_entropy_with_a_gradient_at_its_ends():
    accumulation = torch.tensor([0.2, 0.7, 0.5, 0.9], dtype=torch.float64)
    mask = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    expected = torch.nn.functional.binary_cross_entropy(accumulation, mask)
    assert losses.mask_loss(accumulation, mask, torch.ones(4), margin=1e-9).item() == pytest.approx(expected.item())
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0], dtype=torch.float64)
    expected = -(math.log(0.8) + 3 * math.log(0.5)) / 4
    assert losses.mask_loss(accumulation, mask, weights, margin=1e-9).item() == pytest.approx(expected)

    wrong = torch.tensor([0.0, 1.0], requires_grad=True)  # a miss on the object, a hit off it
    losses.mask_loss(wrong, torch.tensor([1.0, 0.0]), torch.ones(2)).backward()
    assert wrong.grad is not None
    assert wrong.grad[0] < -100
    assert wrong.grad[1] > 100
    assert wrong.grad.isfinite().all()


def test_eikonal_loss():
    gradients = unit(5) * torch.tensor([1.0, 1.0, 1.5, 0.5, 1.0], dtype=torch.float64)[:, None]
    assert losses.eikonal_loss(gradients).item() == pytest.approx(0.1)


def depth_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rays of three of four views: rendered and integrated depths that differ by scale and noise, some unknown."""
    views = torch.tensor([0, 2, 3, 0, 2, 3, 0, 2, 3, 0, 2, 3])
    rendered = 15 + 0.3 * random(12)
    integrated = (
        rendered / torch.tensor([2.0, 1.0, 0.7, 40.0], dtype=torch.float64)[views] * (1 + 0.01 * random(12, seed=1))
    )
    valid = torch.ones(12, dtype=torch.bool)
    valid[[4, 6]] = False
    integrated[4] = torch.nan
    return rendered, integrated, views, valid


def test_depth_loss_equals_a_least_squares_fit_per_view():
    rendered, integrated, views, valid = depth_batch()
    total = 0.0
    for view in range(4):
        z_r, z_i = rendered[valid & (views == view)].numpy(), integrated[valid & (views == view)].numpy()
        if len(z_r):
            scale = np.linalg.lstsq(z_i[:, None], z_r, rcond=None)[0][0]
            total += np.abs(z_r - scale * z_i).sum()
    assert losses.depth_loss(rendered, integrated, views, valid, 4).item() == pytest.approx(total / valid.sum().item())


def test_depth_loss_is_scale_invariant_and_moves_no_view():
    rendered, integrated, views, valid = depth_batch()
    before = losses.depth_loss(rendered, integrated, views, valid, 4)
    assert before > 0.01
    scales = torch.tensor([0.01, 5.0, 3.0, 1e3], dtype=torch.float64)[views]
    torch.testing.assert_close(losses.depth_loss(rendered, scales * integrated, views, valid, 4), before)
    assert losses.depth_loss(scales * integrated.nan_to_num(1.0), integrated, views, valid, 4) < 1e-10

    rendered.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses.depth_loss(z, integrated, views, valid, 4), rendered)
    losses.depth_loss(rendered, integrated, views, valid, 4).backward()
    assert rendered.grad is not None
    along = torch.zeros(4, dtype=torch.float64).index_add(0, views[valid], (rendered.grad * integrated)[valid])
    torch.testing.assert_close(along, torch.zeros(4, dtype=torch.float64), atol=1e-10, rtol=0)
    assert torch.equal(rendered.grad[~valid], torch.zeros(2, dtype=torch.float64))


# --- the surface ---


def test_sdf_on_points_loss():
    sdf = torch.tensor([0.1, -0.3, 5.0])
    assert losses.sdf_on_points_loss(sdf, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(0.2)


# --- between views ---


def test_project_and_unproject_are_inverse(ellipsoid):
    K = ellipsoid.K.clone()
    K[:, 0, 1] = 40.0  # skew
    views = torch.arange(300) % len(K)
    pixels, depth = project_world(ellipsoid.points, ellipsoid.w2c[views], K[views])
    camera = torch.einsum("qij,qj->qi", ellipsoid.w2c[views][..., :3], ellipsoid.points) + ellipsoid.w2c[views][..., 3]
    image = torch.einsum("qij,qj->qi", K[views], camera)
    torch.testing.assert_close(pixels, image[:, :2] / image[:, 2:])
    torch.testing.assert_close(depth, camera[:, 2])
    back = unproject(pixels, depth, ellipsoid.w2c[views], K[views])
    torch.testing.assert_close(back, ellipsoid.points, atol=1e-5, rtol=0)  # rotations rounded to single precision


def bilinear_by_loops(maps: np.ndarray, view: int, x: float, y: float) -> tuple[np.ndarray, bool]:
    column, row = math.floor(x), math.floor(y)
    value, covered = np.zeros(maps.shape[-1]), True
    for i in (row, row + 1):
        for j in (column, column + 1):
            if not (0 <= i < maps.shape[1] and 0 <= j < maps.shape[2]) or not maps[view, i, j].any():
                covered = False
            else:
                value += (1 - abs(x - j)) * (1 - abs(y - i)) * maps[view, i, j].astype(float)
    return value, covered


def test_sample_maps_is_bilinear_and_does_not_copy_half_precision():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((3, 6, 8, 2)).astype(np.float16)
    array[:, 2:4, 3:5] = 0
    maps = torch.from_numpy(array)
    views = torch.from_numpy(rng.integers(0, 3, 400))
    pixels = torch.from_numpy(rng.uniform(-1.5, 9, (400, 2)))
    pixels[:3] = torch.tensor([[0.0, 0.0], [torch.nan, 2.0], [1e30, 1.0]])
    values, covered = sample_maps(maps, views, pixels)
    assert values.dtype == torch.float64
    assert 50 < covered.sum() < 350
    for k in set(range(400)) - {1, 2}:
        expected, expected_covered = bilinear_by_loops(array, int(views[k]), *pixels[k].tolist())
        assert covered[k] == expected_covered
        if expected_covered:
            np.testing.assert_allclose(values[k], expected, atol=1e-12)
    assert not covered[1:3].any()
    assert values.isfinite().all()
    array[...] = 7  # shared memory: the maps were not copied
    values = sample_maps(maps, views, pixels)[0][covered]
    torch.testing.assert_close(values, torch.full_like(values, 7.0))


def test_sample_maps_gradient():
    maps = random(2, 5, 5, 3)
    pixels = (torch.rand(10, 2, dtype=torch.float64) * 0.8 + torch.tensor([1.1, 2.1])).requires_grad_()
    views = torch.arange(10) % 2
    assert torch.autograd.gradcheck(lambda p: sample_maps(maps, views, p)[0], pixels)


def exact_weights(ellipsoid: Ellipsoid) -> torch.Tensor:
    """Weights without occlusion, which a convex shape does not have; zero near the rim, where bilinear maps are rough."""
    cosines = view_cosines(ellipsoid.points, ellipsoid.point_normals, ellipsoid.centers)
    return torch.where(cosines > 0.3, cosines, torch.zeros_like(cosines))


def test_cross_view_normal_loss_equals_loops_over_points_and_views(ellipsoid):
    count = 150
    weights, radius = exact_weights(ellipsoid)[:count], 0.15
    w2c = ellipsoid.w2c.clone()
    w2c[2, :, 3] += torch.tensor([0.1, -0.05, 0.0])
    w2c[5, :, :3] = w2c[5, :, :3] @ torch.from_numpy(Rotation.from_rotvec([0.1, 0.2, -0.1]).as_matrix())
    # The object is behind this camera, although its pixels lie inside the frame.
    w2c[7, 2, 3] = -1.0
    K = ellipsoid.K.clone()
    K[7] = torch.tensor([[40.0, 0, -32], [0, 40, -32], [0, 0, 1]])
    total = weight_sum = 0.0
    for p in range(count):
        seen = []
        for v in range(len(w2c)):
            camera = w2c[v, :, :3] @ ellipsoid.points[p] + w2c[v, :, 3]
            image = K[v] @ camera
            x, y = (image[:2] / image[2]).tolist()
            normal, covered = bilinear_by_loops(ellipsoid.normals.numpy(), v, x, y)
            if weights[p, v] > 0 and covered and camera[2] > 0:
                seen.append((weights[p, v].item(), w2c[v, :, :3].numpy().T @ (normal / np.linalg.norm(normal))))
        if len(seen) > 1:
            mean = sum(w * m for w, m in seen) / sum(w for w, _ in seen)
            for w, m in seen:
                r = np.linalg.norm(m - mean)
                total += w * (r * r if r <= radius else 2 * radius * r - radius**2)
                weight_sum += w
    loss = losses.cross_view_normal_loss(ellipsoid.points[:count], w2c, K, ellipsoid.normals, weights, radius)
    assert loss.item() == pytest.approx(total / weight_sum, rel=1e-9)
    assert loss > 1e-3
    weights.requires_grad_()  # the loss must not decrease by giving disagreement less weight
    poses = w2c.requires_grad_()
    losses.cross_view_normal_loss(ellipsoid.points[:count], poses, K, ellipsoid.normals, weights).backward()
    assert weights.grad is None


def test_cross_view_normal_loss_is_zero_at_true_poses_and_grows_with_their_error(ellipsoid):
    weights = exact_weights(ellipsoid)
    values = []
    for degrees in (0.0, 1.0, 3.0, 9.0):
        poses = ellipsoid.poses()
        with torch.no_grad():
            poses.rotation.copy_(np.deg2rad(degrees) * unit(len(ellipsoid.K), seed=2))
        half = ellipsoid.normals.half()
        loss = losses.cross_view_normal_loss(ellipsoid.points, poses.w2c_opencv(), ellipsoid.K, half, weights)
        values.append(loss.item())
    assert values[0] < 1e-4  # 0.5 deg: bilinear interpolation of 64 pixels
    assert values[0] < 0.1 * values[1] < 0.3 * values[2] < 0.9 * values[3]


def test_cross_view_gradient_is_exact_and_leads_to_the_true_poses(ellipsoid):
    weights = exact_weights(ellipsoid)
    poses = ellipsoid.poses()
    wrong_rotation, wrong_shift = np.deg2rad(3.0) * unit(9, seed=2), 0.03 * unit(9, seed=3)
    with torch.no_grad():
        poses.rotation.copy_(wrong_rotation)
        poses.translation.copy_(wrong_shift)

    def objective() -> torch.Tensor:
        return losses.cross_view_normal_loss(
            ellipsoid.points, poses.w2c_opencv(), ellipsoid.K, ellipsoid.normals, weights
        )

    entries = [(0, 0), (3, 1), (7, 2)]
    check_gradient(objective, poses.rotation, entries, step=1e-7, abs_=1e-5)
    check_gradient(objective, poses.translation, entries, step=1e-7, abs_=1e-5)
    # The gradient is aligned with the gauge-free pose error, for rotations and translations.
    poses.zero_grad()
    objective().backward()
    shift, turn = (twist.detach() for twist in poses.twists())
    axes = ellipsoid.base_c2w[:, :, :3]
    for error, parameter in ((turn, poses.rotation), (shift, poses.translation)):
        world_gradient = (axes @ parameter.grad[..., None]).squeeze(-1)
        cosine = (world_gradient * error).sum() / (world_gradient.norm() * error.norm())
        assert cosine > 0.3
    before = poses.twists()[1].norm(dim=-1).mean().item()
    optimizer = torch.optim.Adam([poses.rotation, poses.translation], lr=2e-3)
    for _ in range(150):
        optimizer.zero_grad()
        objective().backward()
        optimizer.step()
    assert poses.twists()[1].norm(dim=-1).mean().item() < 0.2 * before  # 3 deg to 0.6 at most


def test_cross_view_gradient_of_points(ellipsoid):
    weights = exact_weights(ellipsoid)[:20]
    points = (ellipsoid.points[:20] * 1.02).clone().requires_grad_()

    def objective() -> torch.Tensor:
        return losses.cross_view_normal_loss(points, ellipsoid.w2c, ellipsoid.K, ellipsoid.normals, weights)

    check_gradient(objective, points, [(0, 0), (5, 1), (11, 2)], step=1e-7, abs_=1e-7)


def test_points_seen_by_at_most_one_view_do_not_count(ellipsoid):
    weights = torch.zeros(300, 9, dtype=torch.float64)
    for seen in (0, 1):
        weights[:, :seen] = 1
        w2c = ellipsoid.w2c.requires_grad_()
        loss = losses.cross_view_normal_loss(ellipsoid.points, w2c, ellipsoid.K, ellipsoid.normals, weights)
        loss.backward()
        assert loss.item() == 0
        assert w2c.grad is None or not w2c.grad.any()


def test_neighbors_by_angle_between_optical_axes(ellipsoid):
    w2c = ellipsoid.w2c
    found = losses.neighbor_views(w2c, max_angle_deg=50, count=4)
    assert found.shape == (9, 4)
    for i in range(9):
        angles = np.rad2deg([math.acos(min(1.0, float(w2c[i, 2, :3] @ w2c[j, 2, :3]))) for j in range(9)])
        near = [j for j in np.argsort(angles) if j != i and angles[j] <= 50][:4]
        assert found[i].tolist() == near + [-1] * (4 - len(near))
    assert losses.neighbor_views(w2c[:2], max_angle_deg=180, count=3).tolist() == [[1, -1, -1], [0, -1, -1]]


def consistency_inputs(ellipsoid: Ellipsoid) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of all views away from the rim, and the nearest neighbor of each."""
    front = ellipsoid.normals[..., 2] < -0.6
    indices = front.nonzero()[::7]
    neighbors = losses.neighbor_views(ellipsoid.w2c, max_angle_deg=60, count=1)[:, 0]
    return indices, neighbors[indices[:, 0]]


def test_point_consistency_is_zero_at_true_poses_and_its_gradient_is_exact(ellipsoid):
    indices, neighbors = consistency_inputs(ellipsoid)
    factors = torch.linspace(0.5, 2, 9, dtype=torch.float64)  # integration leaves the scale of each map undetermined
    maps = ellipsoid.depths * factors[:, None, None]
    poses = ellipsoid.poses()

    def objective() -> torch.Tensor:
        return losses.point_consistency_loss(
            indices, neighbors, maps, poses.depth_scales(), poses.w2c_opencv(), ellipsoid.K
        )

    poses.set_depth_scales(1 / factors)
    assert objective().item() < 2e-3
    with torch.no_grad():
        poses.depth_log_scale[::2] += 0.002  # 3 hundredths of a radius
    assert objective().item() > 1e-2
    objective().backward()
    assert poses.depth_log_scale.grad is not None
    assert (poses.depth_log_scale.grad * (poses.depth_log_scale + factors.log())).sum() > 0
    entries = [(0,), (3,), (8,)]
    check_gradient(objective, poses.depth_log_scale, entries, step=1e-9, abs_=1e-4)
    with torch.no_grad():
        poses.translation.copy_(0.02 * unit(9, seed=5))
    check_gradient(objective, poses.rotation, [(0, 0), (4, 1), (8, 2)], step=1e-8, abs_=1e-4)
    check_gradient(objective, poses.translation, [(0, 0), (4, 1), (8, 2)], step=1e-8, abs_=1e-4)


def test_point_consistency_ignores_what_the_neighbor_does_not_see():
    """Four points on a plane in front of the first camera; the second, one unit behind it, sees a wall near them."""
    K = torch.tensor([[100.0, 0, 10], [0, 100.0, 10], [0, 0, 1]]).expand(3, 3, 3)
    w2c = torch.eye(4)[:3].repeat(3, 1, 1)
    w2c[1, 2, 3] = 1.0
    w2c[2, 2, 3] = -4.001  # the third camera has just passed the points
    plane = torch.full((20, 20), 4.0)
    plane[17, 17] = 0
    indices = torch.tensor([[0, 5, 5], [0, 5, 12], [0, 12, 5], [0, 17, 17]])  # the last depth is unknown
    neighbors = torch.tensor([1, 1, 1, 1])

    def loss(wall: torch.Tensor, neighbors: torch.Tensor = neighbors) -> float:
        maps = torch.stack([plane, wall, torch.full((20, 20), 0.2)])
        return losses.point_consistency_loss(indices, neighbors, maps, torch.ones(3), w2c, K).item()

    level = torch.full((20, 20), 5.05)
    assert loss(level) == pytest.approx(0.05, abs=1e-5)
    occluder = level.clone()
    occluder[:8, :8] = 4.0  # occludes the first point
    assert loss(occluder) == pytest.approx(0.05, abs=1e-5)
    behind = level.clone()
    behind[:8, :8] = 5.35  # the neighbor sees free space at the first point
    assert loss(behind) == pytest.approx((0.35 + 2 * 0.05) / 3, abs=1e-5)
    hole = behind.clone()
    hole[:8, :8] = 0  # off the neighbor's mask
    assert loss(hole) == pytest.approx(0.05, abs=1e-5)
    assert loss(behind, torch.tensor([-1, 1, 1, 1])) == pytest.approx(0.05, abs=1e-5)
    assert loss(behind, torch.tensor([-1, -1, -1, -1])) == 0
    indices[0] = torch.tensor([0, 12, 12])
    assert loss(level, torch.tensor([2, 1, 1, 1])) == pytest.approx(0.05, abs=1e-5)


# --- visibility ---

BALLS = torch.tensor([[-0.4, 0.0, 0.1, 0.35], [0.35, 0.1, 0.0, 0.25], [0.1, -0.55, 0.2, 0.15]], dtype=torch.float64)


def balls_sdf(points: torch.Tensor) -> torch.Tensor:
    """Exact distance to three disjoint balls."""
    return ((points[:, None] - BALLS[:, :3]).norm(dim=-1) - BALLS[:, 3]).amin(dim=-1)


def clearance(points: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
    """Exact clearance (p, v) between the segments to the cameras and the balls; negative where a segment enters a ball.

    For the ball that the point lies on, it is the height of the segment above the tangent plane at a distance of 0.05.
    """
    way = cameras[None] - points[:, None]
    length = way.norm(dim=-1)
    direction = way / length[..., None]
    to_center = BALLS[:, :3] - points[:, None]  # (p, balls, 3)
    along = torch.einsum("pvi,pbi->pvb", direction, to_center).clamp(min=0)
    nearest = points[:, None, None] + along[..., None] * direction[:, :, None]
    gap = (nearest - BALLS[:, :3]).norm(dim=-1) - BALLS[:, 3]
    own = (to_center.norm(dim=-1) - BALLS[:, 3]).abs() < 1e-9
    cosine = -torch.einsum("pvi,pbi->pvb", direction, to_center) / BALLS[:, 3]
    return torch.where(own[:, None], 0.05 * cosine, gap).amin(dim=-1)


def test_visibility_agrees_with_exact_rays():
    ball = BALLS[torch.arange(240) % 3]
    points = ball[:, :3] + ball[:, 3:] * unit(240, seed=6)
    cameras = 15 * unit(12, seed=7)
    visible = visible_by_sphere_tracing(balls_sdf, points, cameras)
    clear = clearance(points, cameras)
    decided = clear.abs() > 0.004  # closer than that, and at grazing angles below 5 degrees, either answer is right
    assert decided.float().mean() > 0.85
    assert torch.equal(visible[decided], clear[decided] > 0)
    normals = (points - ball[:, :3]) / ball[:, 3:]
    facing = view_cosines(points, normals, cameras) > 0
    occluded = facing & decided & (clear < 0)
    assert occluded.sum() > 50  # by other balls
    # Candidates give the same result, other pairs are False.
    candidates = facing & (torch.rand(240, 12) < 0.5)
    evaluated = 0

    def counting(p: torch.Tensor) -> torch.Tensor:
        nonlocal evaluated
        evaluated += len(p)
        return balls_sdf(p)

    assert torch.equal(visible_by_sphere_tracing(counting, points, cameras, candidates), visible & candidates)
    assert evaluated < 20 * candidates.sum()


def test_undecided_segments_are_occluded_and_near_cameras_see():
    point = torch.tensor([[-0.05, 0.0, 0.1]], dtype=torch.float64)  # on the first ball, facing +x
    camera = torch.tensor([[0.02, 0.0, 0.1], [5.0, 0.0, 15.0]], dtype=torch.float64)
    assert visible_by_sphere_tracing(balls_sdf, point, camera).tolist() == [[True, True]]
    assert visible_by_sphere_tracing(balls_sdf, point, camera, max_steps=1).tolist() == [[False, False]]

    def broken(points: torch.Tensor) -> torch.Tensor:
        return torch.full((len(points),), torch.nan)

    assert not visible_by_sphere_tracing(broken, point, camera[1:]).any()
    assert visible_by_sphere_tracing(balls_sdf, point[:0], camera).shape == (0, 2)


def test_view_cosines():
    cosines = view_cosines(
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[0.0, 0.0, 1.0]]),
        torch.tensor([[0.0, 0.0, 9.0], [3.0, 0.0, 4.0]]),
    )
    torch.testing.assert_close(cosines, torch.tensor([[1.0, 0.5**0.5]]))


# --- loss weights by stage ---


def test_weights_by_fraction_of_the_run():
    weights = LossWeights(stage_ends=(0.25, 1.0), normal=(1.0, 2.0), mask=(0.3,), depth=(0.7, 0.0))
    early, late = weights.weights_at(0.0), weights.weights_at(0.25)
    assert (early["normal"], early["mask"], early["depth"]) == (1.0, 0.3, 0.7)
    assert (late["normal"], late["mask"], late["depth"]) == (2.0, 0.3, 0.0)
    assert weights.weights_at(0.2499) == early
    assert weights.weights_at(1.0) == weights.weights_at(1.7) == late
    assert set(early) == {
        *("normal", "mask", "eikonal", "depth"),
        *("sdf_on_points", "point_consistency", "cross_view_normal"),
    }


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stage_ends": (0.5, 1.0), "normal": (1.0, 2.0, 3.0)}, "loss-weights.normal: 3 weights for 2 stages"),
        ({"sdf_on_points": ()}, "loss-weights.sdf-on-points: 0 weights for 1 stages"),
        ({"mask": (-1.0,)}, "loss-weights.mask"),
        ({"mask": (math.nan,)}, "loss-weights.mask"),
        ({"stage_ends": (0.5,)}, "stage-ends"),
        ({"stage_ends": (0.5, 0.5, 1.0)}, "stage-ends"),
        ({"stage_ends": (0.0, 1.0)}, "stage-ends"),
        ({"stage_ends": (math.nan, 1.0)}, "stage-ends"),
        ({"stage_ends": ()}, "stage-ends"),
    ],
)
def test_invalid_schedules_are_rejected(options, what):
    with pytest.raises(PmniError, match=what) as error:
        LossWeights(**options)
    assert "\n" not in str(error.value)


@dataclass
class Options:
    loss_weights: LossWeights = field(default_factory=lambda: LossWeights(stage_ends=(0.3, 0.6, 1.0)))
    """Weights."""


def test_schedule_on_the_command_line(capsys):
    options = tyro.cli(Options, args="--loss-weights.normal 1 2 4 --loss-weights.mask 3".split())
    assert options.loss_weights.weights_at(0.5)["normal"] == 2
    assert options.loss_weights.weights_at(0.5)["mask"] == 3
    with pytest.raises(SystemExit):
        tyro.cli(Options, args="--loss-weights.normal 1 2".split())
    assert "2 weights for 3 stages" in " ".join(capsys.readouterr().err.replace("│", " ").split())
