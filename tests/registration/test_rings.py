# SPDX-License-Identifier: Apache-2.0
"""Views without poses: the right ring is found, and its world is upright."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.registration.pairwise.integrated_depth import Reliefs
from pmni_nerfstudio.registration.pairwise.multiway import PairwiseSchedule, integrated, poses_of
from pmni_nerfstudio.registration.pairwise.ring_hypotheses import register_without_poses, ring, ring_hypotheses
from pmni_nerfstudio.registration.poses import Poses, align
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.synth import SynthConfig, make_scene

# What is judged here is which ring wins, and that needs no fine levels.
COARSE = replace(PairwiseSchedule(), levels=PairwiseSchedule().levels[:2])


@lru_cache
def capture(elevation: float, clockwise: bool) -> tuple[np.ndarray, Views, Reliefs]:
    scene = make_scene(
        SynthConfig(
            shape="figure", views=12, width=80, height=68, jitter=1, elevation=elevation, clockwise=clockwise, seed=8
        )
    )
    views = Views(scene.names, scene.normals, scene.masks, np.tile(scene.K, (12, 1, 1)))
    return scene.c2w, views, integrated(views, COARSE)


@pytest.mark.parametrize(("elevation", "clockwise"), [(5, False), (45, True)])
def test_views_without_poses(elevation, clockwise):
    c2w, views, reliefs = capture(elevation, clockwise)
    stages = []
    result = register_without_poses(views, COARSE, on_progress=lambda *a: stages.append(a), reliefs=reliefs)
    truth = Poses.from_c2w(c2w)
    errors = angles_deg(result.poses.transformed(*align(result.poses, truth)).R, truth.R)
    assert errors.mean() < 5
    assert errors.max() < 10

    assert len(result.hypotheses) == 6
    best = min(result.hypotheses, key=lambda h: h.cost)
    assert best.name.startswith("clockwise" if clockwise else "counter-clockwise")
    assert not best.pruned
    assert sum(h.pruned for h in result.hypotheses) == 3
    wrong = [h.cost for h in result.hypotheses if h.name.startswith("clockwise") != clockwise]
    assert min(wrong) > best.cost + 0.05

    # y up: the cameras stand at the true elevation over the plane across it, and the object fills the unit sphere.
    centres = result.poses.centres()
    centres = centres - centres.mean(axis=0) * [1, 0, 1]
    heights = np.degrees(np.arcsin(centres[:, 1] / np.linalg.norm(centres, axis=1)))
    assert heights.mean() == pytest.approx(elevation, abs=6)
    distances = np.linalg.norm(centres, axis=1)
    assert distances.mean() == pytest.approx(15, rel=0.25)
    done = [d for _, d, _ in stages]
    assert done == sorted(done)


def test_deterministic():
    _, views, reliefs = capture(5, False)
    a, b = (register_without_poses(views, COARSE, reliefs=reliefs) for _ in range(2))
    np.testing.assert_array_equal(a.poses.R, b.poses.R)
    assert a.hypotheses == b.hypotheses


def test_a_ring_looks_at_the_masks_centroids():
    _, views, reliefs = capture(45, True)
    poses = poses_of(reliefs, ring(reliefs, 30, clockwise=False))
    origin = np.einsum("nij,nj->ni", views.K, poses.t)
    for i, mask in enumerate(views.masks):
        y, x = np.nonzero(mask)
        np.testing.assert_allclose(origin[i, :2] / origin[i, 2], [x.mean(), y.mean()], atol=1e-6)
    centres = poses.centres()
    np.testing.assert_allclose(np.arcsin(centres[:, 1] / np.linalg.norm(centres, axis=1)), np.radians(30))
    # Seen from above (y towards the eye, so z to the left of x), each next camera is a twelfth further on.
    step = np.unwrap(np.arctan2(centres[:, 0], centres[:, 2]))
    np.testing.assert_allclose(np.diff(step), 2 * np.pi / 12)
    # No camera hangs upside down.
    assert (poses.R[:, 1, 1] < -0.5).all()


def test_names_tell_the_rings_apart():
    _, _, reliefs = capture(5, False)
    names = [name for name, _ in ring_hypotheses(reliefs)]
    assert len(set(names)) == len(names) == 6
    assert "clockwise, 30 deg up" in names
