"""Close-ups: detail integrated where they see, and their poses found near rough ones, against the true surface."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.scenes import fitting_intrinsics, look_at

from pmni_nerfstudio.geometry.interpolation import grid_points
from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration import close_up_detail as detail_module
from pmni_nerfstudio.registration import close_up_poses as poses_module
from pmni_nerfstudio.registration.alternation import AlternationSchedule
from pmni_nerfstudio.registration.close_up_detail import CloseUpDetail, close_up_detail
from pmni_nerfstudio.registration.close_up_poses import adjust_close_ups, place_close_up
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth.render import render
from pmni_nerfstudio.synth.shapes import SHAPES, Shape, blob_sdf

SIZE = (56, 48)
WHOLE = 6
CLOSE_UPS = np.arange(10) >= WHOLE
PART = np.array([0.42, 0.1, 0.42])
"""The middle of a bump of the blob, on which it has fine relief."""
SCHEDULE = replace(AlternationSchedule(), detail_poisson=replace(AlternationSchedule().detail_poisson, iterations=80))


def relief_sdf(p: torch.Tensor) -> torch.Tensor:
    """The blob with waves of about four coarse pixels' length on a part."""
    near = torch.sigmoid((0.24 - (p - p.new_tensor(PART)).norm(dim=-1)) / 0.03)
    x, y, z = (2 * math.pi / 0.2 * p).unbind(-1)
    return blob_sdf(p) - 0.012 * near * (torch.sin(x) * torch.sin(y) + torch.sin(y + 1) * torch.sin(z))


@pytest.fixture(scope="module")
def capture() -> tuple[Views, Poses]:
    """Six views of the whole object and four close-ups of the part, with a quarter of their pixel size."""
    shape = Shape(relief_sdf, 2.6)
    azimuth = 2 * np.pi * np.arange(WHOLE) / WHOLE
    around = np.array([look_at(np.array([6 * np.cos(a), 6 * np.sin(a), 3.0])) for a in azimuth])
    sides = np.array([[2, 0.3, 1.8], [1.2, 1.4, 2], [1.2, -1.2, 2.2], [2.4, -0.8, 0.9]])
    near = np.array([look_at(PART + side, PART) for side in sides])
    K = fitting_intrinsics(*SIZE, 6.7)
    K_near = K.copy()
    K_near[[0, 1], [0, 1]] *= 4 * 2.7 / 6.7
    maps = [render(shape, *of_group, *SIZE) for of_group in ((K, around), (K_near, near))]
    masks, normals = (np.concatenate([of_group[i] for of_group in maps]) for i in (0, 1))
    names = tuple(f"{i:02d}" for i in range(WHOLE + len(near)))
    unknown = np.zeros_like(masks)
    unknown[WHOLE:, [0, -1]] = unknown[WHOLE:, :, [0, -1]] = True
    views = Views(names, normals, masks, np.stack([K] * WHOLE + [K_near] * len(near)), unknown=unknown & ~masks)
    return views, Poses.from_c2w(np.concatenate([around, near]))


@pytest.fixture(scope="module")
def coarse() -> Surface:
    """The blob without its relief, as views of the whole object show it."""
    return Surface(SHAPES["blob"].sdf(grid_points(65).double()).numpy().astype(np.float32))


@pytest.fixture(scope="module")
def detail(capture: tuple[Views, Poses], coarse: Surface) -> CloseUpDetail:
    """Detail at the true poses, at a low resolution."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detail_module, "_LEVELS", (49,))
        found = close_up_detail(*capture, CLOSE_UPS, coarse, SCHEDULE)
    assert found is not None
    return found


def error_on_part(surface: Surface, center: np.ndarray, half: float) -> float:
    """Mean distance of a surface in a cube from the true one, on the part with relief."""
    vertices = center + half * surface.mesh[0]
    vertices = vertices[np.linalg.norm(vertices - PART, axis=1) < 0.2]
    assert len(vertices) > 100
    return float(relief_sdf(torch.from_numpy(vertices)).abs().mean())


def test_detail_of_close_ups_is_integrated(
    capture: tuple[Views, Poses], coarse: Surface, detail: CloseUpDetail
) -> None:
    views, poses = capture
    assert close_up_detail(views, poses, np.zeros_like(CLOSE_UPS), coarse, SCHEDULE) is None
    assert detail.cube.half < 0.5 and np.abs(PART - detail.cube.center).max() < 0.6 * detail.cube.half
    before = error_on_part(coarse, np.zeros(3), 1.0)
    assert error_on_part(detail.surface, detail.cube.center, detail.cube.half) < 0.4 * before


def test_a_close_up_is_found_near_its_rough_pose(
    capture: tuple[Views, Poses], coarse: Surface, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poses_module, "_SEARCH_CANDIDATES", 60)
    monkeypatch.setattr(poses_module, "_REFINED", 2)
    views, poses = capture
    view = WHOLE + 1
    true = poses.subset([view])
    rough = true.retract(np.array([[0.12, -0.1, 0.08, 0.04, -0.03, 0.05]]))
    assert angles_deg(rough.R, true.R)[0] > 9
    found = place_close_up(views.subset([view]), rough, coarse, SCHEDULE, np.random.default_rng(0))
    assert angles_deg(found.R, true.R)[0] < 2.5


def test_poses_of_close_ups_are_adjusted_on_their_detail(
    capture: tuple[Views, Poses], coarse: Surface, detail: CloseUpDetail
) -> None:
    views, true = capture
    close_ups = CLOSE_UPS
    twists = np.where(close_ups[:, None], np.random.default_rng(1).normal(size=(len(views), 6)) * 0.008, 0)
    rough = poses = true.retract(twists)
    for _ in range(2):
        rng = np.random.default_rng(0)
        poses = adjust_close_ups(views, poses, close_ups, coarse, detail.cube, detail.surface, SCHEDULE, rng)
    before, after = (angles_deg(p.R, true.R)[close_ups].mean() for p in (rough, poses))
    assert after < 0.6 * before
    # Among themselves, which their finer pixels tell, they agree far better than with the six small views.
    before, after = (angles_deg(p.R[WHOLE:] @ p.R[-1].T, true.R[WHOLE:] @ true.R[-1].T).mean() for p in (rough, poses))
    assert after < 0.2 * before
    np.testing.assert_allclose(poses.R[~close_ups], true.R[~close_ups], atol=1e-12)
