# SPDX-License-Identifier: Apache-2.0
"""Comparison of recovered with given poses: every common mistake is named, and rough poses are not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from helpers.registration import turned
from helpers.scenes import irregular_ring
from scipy.spatial.transform import Rotation

from pmni_nerfstudio.registration.given_poses import compare_with_given
from pmni_nerfstudio.registration.poses import Poses

ALL = np.ones(12, bool)
MIRRORED, OPENGL, INVERTED, PERMUTED = "mirrored", "OpenGL", "inverted", "another order"


def ring(seed: int) -> Poses:
    """Twelve cameras on an irregular ring, in a world with arbitrary axes, origin and unit."""
    rng = np.random.default_rng(seed)
    return in_another_world(Poses.from_c2w(irregular_ring(12, 15.0, rng)), seed)


def scattered(seed: int, count: int = 12) -> Poses:
    """Cameras all around an object, with arbitrary rolls."""
    R = Rotation.random(count, random_state=seed).as_matrix()
    return Poses(R, np.tile([0.0, 0.0, 15.0], (count, 1)))


def in_another_world(poses: Poses, seed: int) -> Poses:
    rng = np.random.default_rng(100 + seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    return poses.transformed(float(rng.uniform(0.2, 5)), rotation, rng.uniform(-3, 3, 3))


def recovered(truth: Poses, seed: int) -> Poses:
    """Recovered poses: the true ones with errors of half a degree, in a world of their own."""
    return in_another_world(turned(truth, 0.5, seed), seed + 50)


def mirrored(poses: Poses) -> Poses:
    """Poses of a left-handed file: the x axes of the world and of the cameras are flipped."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    return Poses.from_c2w(flip @ poses.c2w() @ flip)


def opengl(poses: Poses) -> Poses:
    """OpenGL's camera-to-world matrices taken for OpenCV's."""
    return Poses.from_c2w(poses.c2w() @ np.diag([1.0, -1.0, -1.0, 1.0]))


def inverted(poses: Poses) -> Poses:
    """World-to-camera matrices taken for camera-to-world."""
    return Poses.from_c2w(np.linalg.inv(poses.c2w()))


def permuted(poses: Poses) -> Poses:
    return poses.subset(np.random.default_rng(8).permutation(len(poses)))


def names_over_seeds(layout: Callable[[int], Poses], mistake: Callable[[Poses], Poses], **rough) -> list[str]:
    """Mistakes named in twenty captures; a dash where none is named."""
    out = []
    for seed in range(20):
        truth = layout(seed)
        given = mistake(turned(truth, rough["noise_deg"], seed) if rough else truth)
        found = compare_with_given(recovered(truth, seed), given, ALL)
        named = [n for n in (MIRRORED, OPENGL, INVERTED, PERMUTED) if found.mistake is not None and n in found.mistake]
        assert len(named) == (found.mistake is not None)
        assert found.mistake is None or not (found.world_is_kept or found.swapped)
        out += named or ["-"]
    return out


@pytest.mark.parametrize(
    ("layout", "mistake", "name"),
    [
        (scattered, mirrored, MIRRORED),
        (scattered, permuted, PERMUTED),
        (scattered, inverted, INVERTED),
        (ring, permuted, PERMUTED),
        (scattered, opengl, OPENGL),
        (ring, opengl, OPENGL),
    ],
)
def test_a_common_mistake_is_named_in_every_capture(layout, mistake, name):
    assert names_over_seeds(layout, mistake) == 20 * [name]


@pytest.mark.parametrize(
    ("layout", "mistake", "name", "least"),
    [
        (ring, mirrored, MIRRORED, 18),
        (ring, inverted, INVERTED, 16),
        (ring, permuted, PERMUTED, 8),
        (scattered, inverted, INVERTED, 12),
    ],
)
def test_a_common_mistake_is_named_in_most_captures_and_hardly_ever_another(layout, mistake, name, least):
    names = names_over_seeds(layout, mistake)
    assert names.count(name) >= least
    assert names.count(name) + names.count("-") >= 19


@pytest.mark.parametrize("layout", [ring, scattered])
def test_wrong_axes_are_named_as_one_mistake_or_the_other(layout):
    assert set(names_over_seeds(layout, opengl)) <= {OPENGL, MIRRORED, "-"}
    assert names_over_seeds(layout, opengl).count("-") <= 2


@pytest.mark.parametrize(("mistake", "name"), [(mirrored, MIRRORED), (permuted, PERMUTED)])
def test_a_mistake_is_named_in_rough_poses(mistake, name):
    assert names_over_seeds(scattered, mistake, noise_deg=6.0).count(name) >= 18


@pytest.mark.parametrize("seed", range(3))
def test_lost_views_hide_no_mistake(seed):
    """Two views were not found at all; their poses are arbitrary."""
    truth = scattered(seed)
    lost = recovered(truth, seed).replaced([2, 9], scattered(seed + 70, 2))
    inliers = ALL.copy()
    inliers[[2, 9]] = False
    found = compare_with_given(lost, mirrored(truth), inliers)
    assert found.mistake is not None and MIRRORED in found.mistake
    right = compare_with_given(lost, truth, inliers)
    assert right.mistake is None and right.swapped == () and right.agreeing[inliers].all()


@pytest.mark.parametrize("seed", range(3))
def test_poses_of_the_wrong_neighbor(seed):
    """Every view has the pose of the one before it. On a ring that is a turn of the world, not so elsewhere."""
    truth = scattered(seed)
    found = compare_with_given(recovered(truth, seed), truth.subset(np.arange(-1, 11)), ALL)
    assert found.mistake is not None and PERMUTED in found.mistake
    ring_of = ring(seed)
    found = compare_with_given(recovered(ring_of, seed), ring_of.subset(np.arange(-1, 11)), ALL)
    assert found.mistake is None and found.agreeing.all()


@pytest.mark.parametrize("seed", range(5))
def test_rough_poses_are_no_mistake(seed):
    truth = ring(seed)
    found = compare_with_given(recovered(truth, seed), turned(truth, 15.0, seed), ALL)
    assert found.mistake is None and found.swapped == ()
    assert found.agreeing.all() and found.world_is_kept
    assert found.rotation_deg.max() > 8  # it is measured nevertheless


@pytest.mark.parametrize("seed", range(3))
def test_exact_poses_differ_by_what_the_recovered_ones_are_off(seed):
    truth = ring(seed)
    assert compare_with_given(in_another_world(truth, seed + 9), truth, ALL).rotation_deg.max() < 1e-5
    assert 0.1 < compare_with_given(recovered(truth, seed), truth, ALL).rotation_deg.max() < 4


@pytest.mark.parametrize("seed", range(5))
def test_unrelated_poses_have_no_common_mistake(seed):
    found = compare_with_given(recovered(ring(seed), seed), scattered(seed + 20), ALL)
    assert found.mistake is None
    assert not found.world_is_kept
    assert found.agreeing.mean() < 0.5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pair", [(1, 6), (4, 9), (0, 11)])
def test_a_swapped_pair_is_found(pair: tuple[int, int], seed):
    truth = scattered(seed)
    order = np.arange(12)
    order[list(pair)] = pair[::-1]
    apart = compare_with_given(truth, truth.subset(order), ALL).rotation_deg[pair[0]]
    found = compare_with_given(recovered(truth, seed), truth.subset(order), ALL)
    assert found.mistake is None and found.world_is_kept
    if apart > 62:
        assert found.swapped == (pair,)
        assert np.flatnonzero(~found.agreeing).tolist() == list(pair)
    elif apart < 58:  # too near to tell from rough poses
        assert found.swapped == ()


def test_opposite_views_of_a_ring_are_swapped():
    truth = ring(0)
    order = [0, 1, 8, 3, 4, 5, 6, 7, 2, 9, 10, 11]
    found = compare_with_given(recovered(truth, 0), truth.subset(order), ALL)
    assert found.swapped == ((2, 8),)
    # A view that was not found says nothing about its given pose.
    inliers = ALL.copy()
    inliers[8] = False
    assert compare_with_given(recovered(truth, 0), truth.subset(order), inliers).swapped == ()


def test_three_exchanged_poses_are_no_swapped_pair():
    truth = ring(0)
    order = [0, 1, 6, 3, 4, 5, 10, 7, 8, 9, 2, 11]
    found = compare_with_given(recovered(truth, 0), truth.subset(order), ALL)
    assert np.flatnonzero(~found.agreeing).tolist() == [2, 6, 10]
    assert found.swapped == () and found.world_is_kept


@pytest.mark.parametrize("seed", range(3))
def test_one_camera_on_the_wrong_side(seed):
    """Only its own pose is wrong; nothing is swapped."""
    truth = ring(seed)
    behind = truth.c2w()[[7]]
    behind[:, :3, :3] = behind[:, :3, :3] @ np.diag([-1.0, 1.0, -1.0])
    given = truth.replaced([7], Poses.from_c2w(behind))
    found = compare_with_given(recovered(truth, seed), given, ALL)
    assert np.flatnonzero(~found.agreeing).tolist() == [7]
    assert found.rotation_deg[7] == pytest.approx(180, abs=3)
    assert np.delete(found.rotation_deg, 7).max() < 4
    assert (found.mistake, found.swapped, found.world_is_kept) == (None, (), True)


def test_the_world_is_kept_if_half_of_the_given_poses_agree():
    truth = ring(1)
    wrong = [0, 2, 3, 5, 8, 10]
    found = compare_with_given(recovered(truth, 1), truth.replaced(wrong, scattered(33, 6)), ALL)
    assert found.mistake is None
    assert found.agreeing[[1, 4, 6, 7, 9, 11]].all()
    assert found.world_is_kept
    assert not replace(found, mistake="they are mirrored").world_is_kept
