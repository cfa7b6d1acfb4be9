# SPDX-License-Identifier: Apache-2.0
"""Losses against closed forms, slow twins and finite differences; visibility against exact rays; the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import tyro
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.interpolation import sample_maps
from pmni_nerfstudio.geometry.projection import project_world, unproject
from pmni_nerfstudio.model import losses
from pmni_nerfstudio.model.loss_schedule import LossWeights
from pmni_nerfstudio.model.pose_optimizer import PmniPoseOptimizer, PmniPoseOptimizerConfig
from pmni_nerfstudio.model.visibility import view_cosines, visible_by_sphere_tracing

SEMI_AXES = np.array([0.75, 0.5, 0.35])


@dataclass
class Ellipsoid:
    """An ellipsoid about the origin (no symmetry turns it into itself but half turns), seen by a ring of cameras."""

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
    def centres(self) -> torch.Tensor:
        return self.base_c2w[:, :, 3]

    def poses(self) -> PmniPoseOptimizer:
        """At the truth, in double precision so that finite differences mean something."""
        return (
            PmniPoseOptimizerConfig()
            .setup(num_cameras=len(self.K), device="cpu", base_c2w=self.base_c2w.float())
            .double()
        )


@pytest.fixture(scope="module")
def ellipsoid() -> Ellipsoid:
    """Exact maps (V, H, W) in double precision, and points of the surface."""
    views, size, distance = 9, 64, 15.0
    azimuth, elevation = 2 * np.pi * np.arange(views) / views, np.deg2rad(25 + 15 * np.cos(3 * np.arange(views)))
    centre = distance * np.stack(
        [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)], axis=-1
    )
    forward = -centre / distance
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    axes = np.stack([right, np.cross(forward, right), forward], axis=-1)
    # As the pose optimizer will have them: in single precision.
    axes, centre = axes.astype(np.float32).astype(float), centre.astype(np.float32).astype(float)
    focal = 0.45 * size * distance
    K = np.tile(np.array([[focal, 0, size / 2 - 0.8], [0, 1.05 * focal, size / 2 + 0.3], [0, 0, 1.0]]), (views, 1, 1))
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    rays = np.einsum("vij,hwj->vhwi", np.linalg.inv(K), np.stack([x, y, np.ones_like(x)], axis=-1).astype(float))
    # In space shrunk by the semi-axes the ellipsoid is the unit sphere; the ray's parameter is depth along the axis.
    d = np.einsum("vij,vhwj->vhwi", axes, rays) / SEMI_AXES
    o = (centre / SEMI_AXES)[:, None, None]
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    mask = b * b > a * c
    depth = np.where(mask, (-b - np.sqrt(np.where(mask, b * b - a * c, 0))) / a, 0.0)
    normal = (o + depth[..., None] * d) / SEMI_AXES
    normal = np.einsum("vji,vhwj->vhwi", axes, normal / np.linalg.norm(normal, axis=-1, keepdims=True))
    points = np.random.default_rng(1).standard_normal((300, 3))
    points *= SEMI_AXES / np.linalg.norm(points, axis=-1, keepdims=True)
    outward = points / SEMI_AXES**2
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    return Ellipsoid(
        K=torch.from_numpy(K),
        base_c2w=torch.from_numpy(np.concatenate([axes * [1, -1, -1], centre[..., None]], axis=-1)),
        normals=torch.from_numpy(np.where(mask[..., None], normal, 0.0)),
        depths=torch.from_numpy(depth),
        points=torch.from_numpy(points),
        point_normals=torch.from_numpy(outward),
    )


def check_gradient(
    function: Callable[[], torch.Tensor], leaf: torch.Tensor, entries: list[tuple[int, ...]], step: float, abs_: float
) -> None:
    """The leaf's gradient at some entries against central differences."""
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
    # What isn't observed doesn't count.
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


def test_angular_loss_ignores_length_and_reaches_the_back():
    observed, weights = unit(5), torch.ones(5, dtype=torch.float64)
    rendered = unit(5, seed=1)
    torch.testing.assert_close(
        losses.normal_loss(0.2 * rendered, observed, weights, "angular"),
        torch.arccos((rendered * observed).sum(-1)).mean(),
    )
    assert losses.normal_loss(-observed, observed, weights, "angular").item() == pytest.approx(math.pi)


def test_no_weight_is_no_loss_and_no_nan():
    rendered = random(4, 3).requires_grad_()
    loss = losses.normal_loss(rendered, unit(4), torch.zeros(4, dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(rendered.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_mask_loss_is_cross_entropy_and_never_loses_its_gradient():
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
    weights = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    assert losses.eikonal_loss(gradients, weights).item() == pytest.approx(0.125)


def depth_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rays of three views of four: rendered and integrated depth that differ by scale and noise, some unknown."""
    views = torch.tensor([0, 2, 3, 0, 2, 3, 0, 2, 3, 0, 2, 3])
    rendered = 15 + 0.3 * random(12)
    integrated = (
        rendered / torch.tensor([2.0, 1.0, 0.7, 40.0], dtype=torch.float64)[views] * (1 + 0.01 * random(12, seed=1))
    )
    valid = torch.ones(12, dtype=torch.bool)
    valid[[4, 6]] = False
    integrated[4] = torch.nan
    return rendered, integrated, views, valid


def test_depth_loss_is_the_slow_twin():
    rendered, integrated, views, valid = depth_batch()
    total = 0.0
    for view in range(4):
        z_r, z_i = rendered[valid & (views == view)].numpy(), integrated[valid & (views == view)].numpy()
        if len(z_r):
            scale = np.linalg.lstsq(z_i[:, None], z_r, rcond=None)[0][0]
            total += np.abs(z_r - scale * z_i).sum()
    assert losses.depth_loss(rendered, integrated, views, valid, 4).item() == pytest.approx(total / valid.sum().item())


def test_depth_loss_knows_no_scale_and_moves_no_view():
    rendered, integrated, views, valid = depth_batch()
    before = losses.depth_loss(rendered, integrated, views, valid, 4)
    assert before > 0.01
    scales = torch.tensor([0.01, 5.0, 3.0, 1e3], dtype=torch.float64)[views]
    torch.testing.assert_close(losses.depth_loss(rendered, scales * integrated, views, valid, 4), before)
    assert losses.depth_loss(scales * integrated.nan_to_num(1.0), integrated, views, valid, 4) < 1e-10

    rendered.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: losses.depth_loss(z, integrated, views, valid, 4), rendered)
    losses.depth_loss(rendered, integrated, views, valid, 4).backward()
    along = torch.zeros(4, dtype=torch.float64).index_add(0, views[valid], (rendered.grad * integrated)[valid])
    torch.testing.assert_close(along, torch.zeros(4, dtype=torch.float64), atol=1e-10, rtol=0)
    assert torch.equal(rendered.grad[~valid], torch.zeros(2, dtype=torch.float64))


# --- the surface ---


def test_sdf_on_points_loss():
    sdf = torch.tensor([0.1, -0.3, 5.0])
    assert losses.sdf_on_points_loss(sdf, torch.tensor([1.0, 1.0, 0.0])).item() == pytest.approx(0.2)


def test_curvature_of_a_sphere_and_of_a_plane():
    delta = 1e-2
    points = unit(20) * torch.linspace(0.3, 0.9, 20, dtype=torch.float64)[:, None]
    around = losses.axis_neighbours(points, delta)
    # The Laplacian of |x| is 2 / |x|.
    sphere = losses.curvature_loss(points.norm(dim=-1), around.norm(dim=-1), delta)
    assert sphere.item() == pytest.approx((2 / points.norm(dim=-1)).mean().item(), rel=1e-3)
    plane = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    assert losses.curvature_loss(points @ plane, around @ plane, delta).item() == pytest.approx(0, abs=1e-9)
    weights = torch.zeros(20, dtype=torch.float64)
    weights[0] = 2
    alone = losses.curvature_loss(points.norm(dim=-1), around.norm(dim=-1), delta, weights)
    assert alone.item() == pytest.approx(2 / 0.3, rel=1e-3)
    # The same six values give the gradient.
    gradient = (around.norm(dim=-1)[:, 0::2] - around.norm(dim=-1)[:, 1::2]) / (2 * delta)
    torch.testing.assert_close(gradient, unit(20), atol=1e-3, rtol=0)


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


def bilinear_slowly(maps: np.ndarray, view: int, x: float, y: float) -> tuple[np.ndarray, bool]:
    column, row = math.floor(x), math.floor(y)
    value, covered = np.zeros(maps.shape[-1]), True
    for i in (row, row + 1):
        for j in (column, column + 1):
            if not (0 <= i < maps.shape[1] and 0 <= j < maps.shape[2]) or not maps[view, i, j].any():
                covered = False
            else:
                value += (1 - abs(x - j)) * (1 - abs(y - i)) * maps[view, i, j].astype(float)
    return value, covered


def test_sample_maps_is_the_slow_twin_and_reads_half_precision_in_place():
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
        expected, expected_covered = bilinear_slowly(array, int(views[k]), *pixels[k].tolist())
        assert covered[k] == expected_covered
        if expected_covered:
            np.testing.assert_allclose(values[k], expected, atol=1e-12)
    assert not covered[1:3].any()
    assert values.isfinite().all()
    array[...] = 7  # shared: nobody has copied the maps
    values = sample_maps(maps, views, pixels)[0][covered]
    torch.testing.assert_close(values, torch.full_like(values, 7.0))


def test_sample_maps_gradient():
    maps = random(2, 5, 5, 3)
    pixels = (torch.rand(10, 2, dtype=torch.float64) * 0.8 + torch.tensor([1.1, 2.1])).requires_grad_()
    views = torch.arange(10) % 2
    assert torch.autograd.gradcheck(lambda p: sample_maps(maps, views, p)[0], pixels)


def exact_weights(ellipsoid: Ellipsoid) -> torch.Tensor:
    """Convex: what faces a camera is seen by it. Off the rim, where bilinear maps are rough."""
    cosines = view_cosines(ellipsoid.points, ellipsoid.point_normals, ellipsoid.centres)
    return torch.where(cosines > 0.3, cosines, torch.zeros_like(cosines))


def test_cross_view_normal_loss_is_the_slow_twin(ellipsoid):
    count = 150
    weights, radius = exact_weights(ellipsoid)[:count], 0.15
    w2c = ellipsoid.w2c.clone()
    w2c[2, :, 3] += torch.tensor([0.1, -0.05, 0.0])
    w2c[5, :, :3] = w2c[5, :, :3] @ torch.from_numpy(Rotation.from_rotvec([0.1, 0.2, -0.1]).as_matrix())
    # The object is behind this camera, and in the frame by its pixels alone.
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
            normal, covered = bilinear_slowly(ellipsoid.normals.numpy(), v, x, y)
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
    weights.requires_grad_()  # disagreement must be mended, not made to weigh less
    poses = w2c.requires_grad_()
    losses.cross_view_normal_loss(ellipsoid.points[:count], poses, K, ellipsoid.normals, weights).backward()
    assert weights.grad is None


def test_cross_view_normal_loss_is_zero_at_the_truth_and_grows_with_pose_error(ellipsoid):
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


def test_cross_view_gradient_points_back_and_is_right(ellipsoid):
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
    # Descent leads home: by the gauge-free error, both for rotations and for shifts.
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


def test_points_seen_once_or_never_say_nothing(ellipsoid):
    weights = torch.zeros(300, 9, dtype=torch.float64)
    for seen in (0, 1):
        weights[:, :seen] = 1
        w2c = ellipsoid.w2c.requires_grad_()
        loss = losses.cross_view_normal_loss(ellipsoid.points, w2c, ellipsoid.K, ellipsoid.normals, weights)
        loss.backward()
        assert loss.item() == 0
        assert w2c.grad is None or not w2c.grad.any()


def test_neighbours_by_angle_of_the_axes(ellipsoid):
    w2c = ellipsoid.w2c
    found = losses.neighbour_views(w2c, max_angle_deg=50, count=4)
    assert found.shape == (9, 4)
    for i in range(9):
        angles = np.rad2deg([math.acos(min(1.0, float(w2c[i, 2, :3] @ w2c[j, 2, :3]))) for j in range(9)])
        near = [j for j in np.argsort(angles) if j != i and angles[j] <= 50][:4]
        assert found[i].tolist() == near + [-1] * (4 - len(near))
    assert losses.neighbour_views(w2c[:2], max_angle_deg=180, count=3).tolist() == [[1, -1, -1], [0, -1, -1]]


def consistency_inputs(ellipsoid: Ellipsoid) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of all views away from the rim, and the nearest neighbour of each."""
    front = ellipsoid.normals[..., 2] < -0.6
    indices = front.nonzero()[::7]
    neighbours = losses.neighbour_views(ellipsoid.w2c, max_angle_deg=60, count=1)[:, 0]
    return indices, neighbours[indices[:, 0]]


def test_point_consistency_is_zero_at_the_truth_and_points_back(ellipsoid):
    indices, neighbours = consistency_inputs(ellipsoid)
    factors = torch.linspace(0.5, 2, 9, dtype=torch.float64)  # of the maps, as integration leaves them
    maps = ellipsoid.depths * factors[:, None, None]
    poses = ellipsoid.poses()

    def objective() -> torch.Tensor:
        return losses.point_consistency_loss(
            indices, neighbours, maps, poses.depth_scales(), poses.w2c_opencv(), ellipsoid.K
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


def test_point_consistency_leaves_out_what_the_neighbour_does_not_see():
    """Four points on a plane before the first camera; the second, a unit behind it, sees a wall about there."""
    K = torch.tensor([[100.0, 0, 10], [0, 100.0, 10], [0, 0, 1]]).expand(3, 3, 3)
    w2c = torch.eye(4)[:3].repeat(3, 1, 1)
    w2c[1, 2, 3] = 1.0
    w2c[2, 2, 3] = -4.001  # the third camera has just passed the points
    plane = torch.full((20, 20), 4.0)
    plane[17, 17] = 0
    indices = torch.tensor([[0, 5, 5], [0, 5, 12], [0, 12, 5], [0, 17, 17]])  # of the last the depth is unknown
    neighbours = torch.tensor([1, 1, 1, 1])

    def loss(wall: torch.Tensor, neighbours: torch.Tensor = neighbours) -> float:
        maps = torch.stack([plane, wall, torch.full((20, 20), 0.2)])
        return losses.point_consistency_loss(indices, neighbours, maps, torch.ones(3), w2c, K).item()

    level = torch.full((20, 20), 5.05)
    assert loss(level) == pytest.approx(0.05, abs=1e-5)
    hiding = level.clone()
    hiding[:8, :8] = 4.0  # hides the first point
    assert loss(hiding) == pytest.approx(0.05, abs=1e-5)
    behind = level.clone()
    behind[:8, :8] = 5.35  # the neighbour looks through where the first point is
    assert loss(behind) == pytest.approx((0.35 + 2 * 0.05) / 3, abs=1e-5)
    hole = behind.clone()
    hole[:8, :8] = 0  # off the neighbour's mask
    assert loss(hole) == pytest.approx(0.05, abs=1e-5)
    assert loss(behind, torch.tensor([-1, 1, 1, 1])) == pytest.approx(0.05, abs=1e-5)
    assert loss(behind, torch.tensor([-1, -1, -1, -1])) == 0
    indices[0] = torch.tensor([0, 12, 12])
    assert loss(level, torch.tensor([2, 1, 1, 1])) == pytest.approx(0.05, abs=1e-5)


# --- visibility ---

BALLS = torch.tensor([[-0.4, 0.0, 0.1, 0.35], [0.35, 0.1, 0.0, 0.25], [0.1, -0.55, 0.2, 0.15]], dtype=torch.float64)


def balls_sdf(points: torch.Tensor) -> torch.Tensor:
    """Three balls apart from one another: exact outside."""
    return ((points[:, None] - BALLS[:, :3]).norm(dim=-1) - BALLS[:, 3]).amin(dim=-1)


def clearance(points: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
    """How far each segment to a camera (p, v) stays off the balls; negative where it enters one. Exact.

    The ball that a point lies on counts by the height of the segment above the tangent plane, over 0.05 of its way.
    """
    way = cameras[None] - points[:, None]
    length = way.norm(dim=-1)
    direction = way / length[..., None]
    to_centre = BALLS[:, :3] - points[:, None]  # (p, balls, 3)
    along = torch.einsum("pvi,pbi->pvb", direction, to_centre).clamp(min=0)
    nearest = points[:, None, None] + along[..., None] * direction[:, :, None]
    gap = (nearest - BALLS[:, :3]).norm(dim=-1) - BALLS[:, 3]
    own = (to_centre.norm(dim=-1) - BALLS[:, 3]).abs() < 1e-9
    cosine = -torch.einsum("pvi,pbi->pvb", direction, to_centre) / BALLS[:, 3]
    return torch.where(own[:, None], 0.05 * cosine, gap).amin(dim=-1)


def test_visibility_is_that_of_exact_rays():
    ball = BALLS[torch.arange(240) % 3]
    points = ball[:, :3] + ball[:, 3:] * unit(240, seed=6)
    cameras = 15 * unit(12, seed=7)
    visible = visible_by_sphere_tracing(balls_sdf, points, cameras)
    clear = clearance(points, cameras)
    decided = clear.abs() > 0.004  # grazing by less than 5 degrees, or a hair beside a ball: either is right
    assert decided.float().mean() > 0.85
    assert torch.equal(visible[decided], clear[decided] > 0)
    normals = (points - ball[:, :3]) / ball[:, 3:]
    facing = view_cosines(points, normals, cameras) > 0
    occluded = facing & decided & (clear < 0)
    assert occluded.sum() > 50  # so that the other balls had a say
    # Candidates: those asked about get the same answer, the others none.
    candidates = facing & (torch.rand(240, 12) < 0.5)
    asked = 0

    def counting(p: torch.Tensor) -> torch.Tensor:
        nonlocal asked
        asked += len(p)
        return balls_sdf(p)

    assert torch.equal(visible_by_sphere_tracing(counting, points, cameras, candidates), visible & candidates)
    assert asked < 20 * candidates.sum()


def test_visibility_undecided_is_hidden_and_a_camera_within_sees():
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


# --- the schedule ---


def test_weights_by_fraction_of_the_run():
    weights = LossWeights(stage_ends=(0.25, 1.0), normal=(1.0, 2.0), mask=(0.3,), depth=(0.7, 0.0))
    early, late = weights.weights_at(0.0), weights.weights_at(0.25)
    assert (early["normal"], early["mask"], early["depth"]) == (1.0, 0.3, 0.7)
    assert (late["normal"], late["mask"], late["depth"]) == (2.0, 0.3, 0.0)
    assert weights.weights_at(0.2499) == early
    assert weights.weights_at(1.0) == weights.weights_at(1.7) == late
    assert set(early) == {
        *("normal", "mask", "eikonal", "depth"),
        *("sdf_on_points", "point_consistency", "cross_view_normal", "curvature"),
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
def test_wrong_schedules_are_refused(options, what):
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
