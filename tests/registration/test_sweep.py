# SPDX-License-Identifier: Apache-2.0
"""Multi-view stereo of a block with a well, seen from above: no silhouette shows the floor, and walls are flat."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.holes import views_with_holes

from pmni_nerfstudio.geometry.camera_rings import look_at
from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.geometry.hull import visual_hull
from pmni_nerfstudio.geometry.interpolation import lookup_volume
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.stereo.depth_fusion import depth_consistency, integrate_depths
from pmni_nerfstudio.registration.stereo.multi_view_stereo import (
    StereoOptions,
    fused_surface,
    hull_agreement,
    stereo_depths,
)
from pmni_nerfstudio.registration.stereo.plane_sweep import (
    PlaneSweep,
    PlaneSweepOptions,
    log_depth_gradients,
)
from pmni_nerfstudio.registration.stereo.semi_global_matching import SemiGlobalOptions, aggregate, winner_takes_all
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth.render import render
from pmni_nerfstudio.synth.rig import intrinsics
from pmni_nerfstudio.synth.shapes import Shape, ball, box, union

SIDE, DISTANCE, RESOLUTION = 80, 4.0, 49
OPTIONS = StereoOptions(side=SIDE)


def block_with_well(p: torch.Tensor) -> torch.Tensor:
    """Signed distance of a block with a well in its top: floor at z = -0.2, rim at 0.3, small objects on both."""
    block = box(p, (0.0, 0.0, -0.1), (0.62, 0.62, 0.4))
    well = box(p, (0.05, 0.0, 0.4), (0.36, 0.4, 0.6))
    objects = union(
        ball(p, (0.15, 0.1, -0.2), 0.12),
        box(p, (-0.1, -0.2, -0.2), (0.06, 0.1, 0.1)),
        ball(p, (-0.46, 0.3, 0.3), 0.08),
        box(p, (0.1, -0.5, 0.3), (0.15, 0.06, 0.06)),
    )
    return union(torch.maximum(block, -well), objects)


class Capture:
    """Views of the block, all within 40 degrees of vertical, with ground-truth poses and depths."""

    def __init__(self) -> None:
        tilt = np.radians(np.repeat([14.0, 38.0], [5, 9]))
        turn = np.concatenate([np.arange(5) / 5, np.arange(9) / 9]) * 2 * np.pi + 0.2
        toward = np.stack([np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), np.cos(tilt)], axis=1)
        up = np.tile([[0.0, 1.0, 0.1]], (len(turn), 1))
        c2w = look_at(DISTANCE * toward, np.zeros_like(toward), up)
        K = intrinsics(SIDE, SIDE, DISTANCE)
        K[[0, 1], [0, 1]] *= 1.1
        masks, normals, self.z = render(Shape(block_with_well, 1.0), K, c2w, SIDE, SIDE)
        names = tuple(f"{i:02d}" for i in range(len(c2w)))
        self.views = Views(names, normals, masks, np.tile(K, (len(c2w), 1, 1)))
        self.poses = Poses.from_c2w(c2w)
        self.footprint = DISTANCE / K[0, 0]


@pytest.fixture(scope="module")
def seen() -> Capture:
    return Capture()


@pytest.fixture(scope="module")
def depths(seen):
    return stereo_depths(seen.views, seen.poses, OPTIONS)


def test_depths_are_found(seen, depths):
    on = seen.views.masks
    error = np.abs(depths.z - seen.z)[on]
    confident = depths.weights[on] > 0.5
    assert confident.mean() > 0.6
    voxel = 2 / (RESOLUTION - 1)
    assert np.median(error) < 0.5 * voxel
    assert np.mean(error[confident] < voxel) > 0.9


def test_depths_are_found_beside_holes(seen):
    views = views_with_holes(seen.views, 0.15)
    depths = stereo_depths(views, seen.poses, OPTIONS)
    assert not depths.weights[~views.valid].any()
    error, confident = np.abs(depths.z - seen.z), (depths.weights > 0.5) & views.valid
    voxel = 2 / (RESOLUTION - 1)
    assert confident[views.valid].mean() > 0.5
    assert np.mean(error[confident] < voxel) > 0.9


def test_surface_has_the_floor_that_the_hull_lacks(seen, depths):
    surface = fused_surface(depths, seen.views, seen.poses, RESOLUTION, OPTIONS)
    hull = Surface(visual_hull(seen.views.masks, seen.views.K, seen.poses.c2w(), RESOLUTION, 2).numpy())
    on = seen.views.masks
    in_well = looks_into_well(seen) & on

    def median_error(surface: Surface) -> float:
        return float(np.median(np.abs(surface.depths(seen.views, seen.poses) - seen.z)[in_well]))

    assert median_error(hull) > 0.2
    assert median_error(surface) < surface.voxel
    # The inside, which no view sees, is solid, and the well is empty.
    inside = lookup_volume(surface.lookups[:1], np.array([[0.0, 0.0, -0.35], [0.45, 0.0, 0.0], [0.05, 0.0, 0.1]]))[:, 0]
    assert inside[0] < 0 and inside[1] < 0 and inside[2] > 0


def looks_into_well(seen: Capture) -> np.ndarray:
    """Pixels that see the inside of the well, clearly below its rim."""
    camera = pixel_directions(seen.views.K[0], pixel_grid(SIDE, SIDE)) * np.nan_to_num(seen.z)[..., None]
    world = np.einsum("nhwc,ncd->nhwd", camera - seen.poses.t[:, None, None], seen.poses.R)
    return (world[..., 2] < 0.1) & (np.abs(world[..., 0] - 0.05) < 0.35) & (np.abs(world[..., 1]) < 0.39)


def test_slopes_are_those_of_the_true_depths(seen):
    for i in (0, 9):
        along_x, along_y = (a.numpy() for a in log_depth_gradients(seen.views, i))
        for along, axis in ((along_x, 1), (along_y, 0)):
            found = np.diff(np.log(seen.z[i]), axis=axis)
            a, b = np.take(along, range(SIDE - 1), axis), np.take(along, range(1, SIDE), axis)
            flat = np.isfinite(a + b + found) & (np.abs(a - b) < 1e-3)
            assert flat.sum() > 500
            # On a plane the mean of both ends is exact to third order.
            assert np.quantile(np.abs(found - 0.5 * (a + b))[flat], 0.9) < 2e-4


def test_matching_follows_the_slant():
    # A ramp of 0.4 depth steps per pixel whose depth is observed in one column only.
    height, width, steps = 9, 31, 24
    truth = 4 + 0.4 * torch.arange(width, dtype=torch.float32)
    costs = torch.zeros(1, height, width, steps)
    costs[:, :, 5] = 1.0
    costs[:, :, 5, 6] = 0.0
    slope_x, slope_y = torch.full((1, height, width), 0.4), torch.zeros(1, height, width)
    found = winner_takes_all(aggregate(costs, slope_x, slope_y))[0]
    assert float((found - truth).abs().max()) <= 1.0
    level = winner_takes_all(aggregate(costs, torch.zeros_like(slope_x), slope_y, SemiGlobalOptions()))[0]
    assert float((level - truth).abs().max()) > 5.0


def test_integration_keeps_discontinuities(seen):
    along_x, along_y = (torch.stack(a) for a in zip(*[log_depth_gradients(seen.views, i) for i in (0, 9)]))
    truth = torch.from_numpy(np.log(np.nan_to_num(seen.z[[0, 9]], nan=1.0)))
    on = torch.from_numpy(seen.views.masks[[0, 9]])
    rng = np.random.default_rng(0)
    noisy = truth + torch.from_numpy(rng.normal(0, 0.01, truth.shape).astype(np.float32)) * on
    solution = integrate_depths(noisy, on.float(), along_x, along_y, 1 / float(seen.views.focal[0]), 0.02)
    before, after = (float((a - truth)[on].abs().mean()) for a in (noisy, solution))
    assert after < 0.4 * before


def test_consistency_confirms_true_and_contradicts_wrong_depths(seen):
    sweep = PlaneSweep.from_views(seen.views, seen.poses, PlaneSweepOptions())
    z = np.nan_to_num(seen.z, nan=1.0)
    confirmed, contradicted = depth_consistency(seen.views, seen.poses, z, sweep.neighbors, 0.02)
    on = seen.views.masks
    assert np.median(confirmed[on]) >= 4 and (contradicted > confirmed)[on].mean() < 0.03
    # One view's depths are a fifth too small: the others see the background or a surface behind them.
    moved = z.copy()
    moved[3] *= 0.8
    confirmed, contradicted = depth_consistency(seen.views, seen.poses, moved, sweep.neighbors, 0.02)
    assert (contradicted > confirmed)[3][on[3]].mean() > 0.9


def test_a_single_view_is_no_error(seen):
    alone = stereo_depths(seen.views.subset([0]), seen.poses.subset([0]), replace(OPTIONS, batch=1))
    assert np.isfinite(alone.z[alone.views.masks]).all()


def test_hull_agreement_tells_whether_stereo_is_needed(seen):
    assert hull_agreement(seen.views, seen.poses) < 0.85
    # A ball seen from the same cameras: its hull is larger than the ball, but has no concavity.
    solid = Shape(lambda p: ball(p, (0.0, 0.0, 0.0), 0.6), 1.0)
    masks, normals, _ = render(solid, seen.views.K[0], seen.poses.c2w(), SIDE, SIDE)
    assert hull_agreement(replace(seen.views, masks=masks, normals=normals), seen.poses) > 0.9
