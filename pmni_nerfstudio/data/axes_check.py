# SPDX-License-Identifier: Apache-2.0
"""Detection of wrong axis conventions in normal maps, from the maps themselves.

Three cues are measured for the normals as they are stored and for each of the 48 ways to reorder and flip their axes:

- Facing: visible normals point against their viewing ray. This reveals a flipped z, but hardly a flipped x or y if the
  camera is nearly orthographic.
- Rim: where a smooth closed surface turns away from the camera, along the contour of its mask, normals point outward in
  the image (Marr, "Analysis of occluding contour", 1977). This reveals flipped x and y, but is misleading where
  something else cuts the mask.
- Integrability: the gradient field of a surface is free of curl, and flipping one of x and y breaks this. It vetoes
  corrections that only the rim suggests.

A scene is rejected only if a correction is better in a clear majority of its views; the message names the correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from pathlib import Path

import cv2
import numpy as np

from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.cameras import pixel_directions
from pmni_nerfstudio.geometry.normals import has_normal
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_STORED, scale_of

NUM_SAMPLES = 2048
"""Approximate number of pixels examined per view, spread evenly over the mask."""
MIN_FACING = 0.9
"""Minimum fraction of normals that face the camera in a valid map. Noise of 20 degrees on a sphere leaves 97%."""
_MARGIN_PX = 16
"""Background around the mask that is looked at; the filters reach up to 8 pixels."""
MIN_RIM_PIXELS = 50
"""Views with fewer rim pixels provide no rim evidence."""


@dataclass(frozen=True)
class AxisCorrection:
    """A signed permutation of the axes of stored normals."""

    advice: str
    """Instruction for the user, such as "flip y"; empty for the identity."""
    axes: np.ndarray
    """Matrix (3, 3) from stored to corrected normals."""
    num_changes: int
    """Number of axes moved plus number of axes flipped."""


@dataclass(frozen=True)
class AxisEvidence:
    """Cues measured in one view, one value for each of the M `axis_corrections()`."""

    facing: np.ndarray
    """(M,) fraction of the normals that face the camera."""
    rim: np.ndarray
    """(M,) agreement of the normals with the outward direction of the mask at its rim, in [-1, 1].

    For each image axis: the sum of products of components over the sum of their magnitudes; then the mean of both axes,
    so that a long, thin object has as much evidence for its long axis as for the other. About 0.9 for a closed surface;
    0 without evidence.
    """
    integrability: np.ndarray
    """(M,) correlation of the two mixed derivatives of depth, in [-1, 1]: 1 for a smooth surface, -1 for one with x or y
    flipped, near 0 for noise."""

    @property
    def is_good(self) -> bool:
        """Whether the normals are plausible without any correction."""
        return bool(self.facing[0] > MIN_FACING and self.rim[0] > 0.6)


@cache
def axis_corrections() -> tuple[AxisCorrection, ...]:
    """All 48 signed permutations of three axes in order of simplicity: the identity, then single flips, and so on."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            flipped = ["xyz"[axis] for axis in range(3) if signs[axis] < 0]
            num_moved = sum(order[axis] != axis for axis in range(3))
            advice = []
            if num_moved:
                advice.append("read the channels in the order " + ", ".join("RGB"[channel] for channel in order))
            if flipped:
                advice.append("flip " + " and ".join(flipped))
            axes = np.diag(signs).astype(np.float32) @ np.eye(3, dtype=np.float32)[list(order)]
            found.append(AxisCorrection(" and then ".join(advice), axes, len(flipped) + num_moved))
    return tuple(sorted(found, key=lambda correction: correction.num_changes))


def camera_from_stored(
    num_views: int, c2w: np.ndarray | None, world_from_unit: np.ndarray, is_world_space: bool
) -> list[np.ndarray]:
    """Rotations from stored normals to OpenCV camera axes.

    Args:
        num_views: number of views N.
        c2w: (N, 4, 4), camera to unit-sphere world; None is allowed for camera-space normals only.
        world_from_unit: (4, 4) similarity.
        is_world_space: whether the files hold world-space normals.

    Returns:
        Rotations (N, 3, 3) for the space of the files, followed, if there are poses, by those for the other space.
    """
    spaces = [np.repeat(OPENCV_FROM_STORED[None], num_views, axis=0)]
    if c2w is not None:
        block = world_from_unit[:3, :3]
        unit_from_world = block.T / scale_of(block)
        spaces.append(np.swapaxes(c2w[:, :3, :3], 1, 2) @ unit_from_world)
    return spaces[::-1] if is_world_space else spaces


@dataclass(frozen=True, eq=False)
class AxisSamples:
    """The normals of one view on which the cues depend, in any axes."""

    rays: np.ndarray
    """(P, 3) rays through pixels of the mask, at depth 1."""
    normals: np.ndarray
    """(P, 3) normals of these pixels."""
    outward: np.ndarray
    """(Q, 2) outward directions of the mask at its rim."""
    rim_normals: np.ndarray
    """(Q, 3) normals there."""
    inner: np.ndarray
    """(R, 3) normals of pixels whose neighbors have normals."""
    along_x: np.ndarray
    """(R, 3) differences of the normals of their neighbors right and left."""
    along_y: np.ndarray
    """(R, 3) the same below and above."""

    def evidence(self, camera_from_stored: np.ndarray, turn: np.ndarray | None = None) -> AxisEvidence:
        """Measure the three cues for all `axis_corrections()`.

        Args:
            camera_from_stored: matrix (3, 3) by which the stored normals become normals in OpenCV camera axes.
            turn: matrix (3, 3) by which the normals sampled do; None if they are in these axes.
        """
        candidates = np.stack([camera_from_stored @ c.axes @ camera_from_stored.T for c in axis_corrections()])
        candidates = (candidates if turn is None else candidates @ turn).astype(np.float32)
        # ray . (C n) for all pixels and all candidates C at once
        facing = np.einsum("pi,mij,pj->pm", self.rays, candidates, self.normals, optimize=True) < 0
        return AxisEvidence(
            facing.mean(axis=0),
            _rim_agreement(self.rim_normals, self.outward, candidates),
            _integrability(self.inner, self.along_x, self.along_y, candidates),
        )


def measure_axes(normals: np.ndarray, mask: np.ndarray, K: np.ndarray, camera_from_stored: np.ndarray) -> AxisEvidence:
    """Measure the three cues in one view for all `axis_corrections()`.

    Args:
        normals: (H, W, 3), OpenCV camera axes, zero where there is none; pixels without a normal are no evidence.
        mask: (H, W) bool.
        K: (3, 3) intrinsics, pixel centers at integers.
        camera_from_stored: (3, 3) rotation by which these normals were computed from the stored ones.
    """
    return sample_axes(normals, mask, K).evidence(camera_from_stored)


def sample_axes(normals: np.ndarray, mask: np.ndarray, K: np.ndarray) -> AxisSamples:
    """Sample a view for the cues; see `measure_axes`, but the normals may be in any axes."""
    (top, bottom), (left, right) = _extent(mask.any(axis=1)), _extent(mask.any(axis=0))
    # The border of the crop takes part in no cue unless it is the image's own.
    crop = np.s_[top:bottom, left:right]
    at_border = (top == 0, bottom == mask.shape[0], left == 0, right == mask.shape[1])
    K = K.copy()
    K[:2, 2] -= left, top
    normals, mask = normals[crop], mask[crop]
    valid = mask & has_normal(normals)
    every = max(1, int(valid.sum()) // NUM_SAMPLES)
    y, x = (index[::every] for index in np.nonzero(valid))
    rays = pixel_directions(K, np.stack([x, y], axis=-1)).astype(np.float32)
    sampled = normals[y, x].astype(np.float32)
    return AxisSamples(rays, sampled, *_rim(normals, mask, valid, at_border), *_inner(normals, valid))


def check_axes(
    folder: Path,
    files: Sequence[Path],
    evidence: Sequence[AxisEvidence],
    is_world_space: bool = False,
    other_space: Sequence[AxisEvidence] | None = None,
) -> list[str]:
    """Decide from all views whether the normals follow the expected axes.

    Args:
        folder: folder of the normal maps, for messages.
        files: normal map of each view.
        evidence: evidence of each view, in the same order.
        is_world_space: whether the files are read as world-space normals, for messages.
        other_space: evidence of each view if the files are read as normals of the other space (world or camera); None
            without poses.

    Returns:
        At most one warning.

    Raises:
        SceneError: the other space or other axes fit clearly better, or normals face away from the camera.
    """
    facing = np.stack([view.facing for view in evidence])
    rim = np.stack([view.rim for view in evidence])
    num_changes = np.array([correction.num_changes for correction in axis_corrections()])
    # The small penalty selects the simplest among corrections that the cues cannot distinguish.
    score = facing + rim - 0.01 * num_changes
    best = int(score.mean(axis=0).argmax())
    facing_mean, rim_mean = facing.mean(axis=0), rim.mean(axis=0)
    if other_space is not None:
        other = np.mean([[view.facing[0], view.rim[0]] for view in other_space], axis=0)
        if other[0] > MIN_FACING - 0.05 and other.sum() > max(score[:, 0].mean() + 0.4, score[:, best].mean() + 0.1):
            current, likely = ("world", "camera") if is_world_space else ("camera", "world")
            raise SceneError(
                f"{folder}: seems to hold normals in {likely} space: as such {other[0]:.0%} face the camera, and "
                f"{facing_mean[0]:.0%} as {current}-space normals; rename the folder to normal_{likely}_space_NAME"
            )
    integrability_mean = np.mean([view.integrability for view in evidence], axis=0)
    corrected_by_facing = facing_mean[0] < MIN_FACING < facing_mean[best] and facing_mean[best] - facing_mean[0] > 0.2
    corrected_by_rim = (
        rim_mean[0] < 0.4
        and rim_mean[best] > max(0.6, rim_mean[0] + 0.4)
        and facing_mean[best] > MIN_FACING - 0.05
        and integrability_mean[best] > integrability_mean[0] - 0.01
    )
    is_clear = (score[:, best] > score[:, 0] + 0.1).mean() >= 0.8
    if best != 0 and is_clear and (corrected_by_facing or corrected_by_rim):
        expected = "plain world axes" if is_world_space else "x right, y up, z towards the viewer"
        raise SceneError(
            f"{folder}: the normals' axes are not {expected} ({facing_mean[0]:.0%} face the camera, agreement with the "
            f"masks' contours {rim_mean[0]:+.2f} of 1): {axis_corrections()[best].advice} in all files "
            f"(which gives {facing_mean[best]:.0%} and {rim_mean[best]:+.2f})"
        )
    worst = int(facing[:, 0].argmin())
    if facing[worst, 0] < 0.5:
        raise SceneError(
            f"{files[worst]}: only {facing[worst, 0]:.0%} of the normals on the mask face the camera, and no change of "
            "axes in all files would correct this; check this file, its camera, and whether the folder's name gives "
            "the right space (camera or world)"
        )
    bad = np.flatnonzero(facing[:, 0] < MIN_FACING)
    if not bad.size:
        return []
    return [
        f"{folder}: in {bad.size} views more than {1 - MIN_FACING:.0%} of the normals on the mask face away from the "
        f"camera (worst {files[worst].name}: {1 - facing[worst, 0]:.0%})"
    ]


def _extent(occupied: np.ndarray) -> tuple[int, int]:
    """First and last place (exclusive) of the true elements (n,), with a margin that the cues' filters do not exceed."""
    places = np.flatnonzero(occupied)
    if not places.size:
        return 0, len(occupied)
    return max(0, int(places[0]) - _MARGIN_PX), min(len(occupied), int(places[-1]) + 1 + _MARGIN_PX)


def _rim(
    normals: np.ndarray, mask: np.ndarray, valid: np.ndarray, at_border: tuple[bool, bool, bool, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Outward directions (Q, 2) of the mask at its rim, and the normals (Q, 3) there.

    Args:
        normals: (H, W, 3).
        mask: (H, W).
        valid: (H, W), mask pixels with a normal.
        at_border: whether the map ends at the image's border: top, bottom, left and right.
    """
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)
    rim = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2).astype(bool)
    # At the border of the image the mask ends although the surface continues.
    rim &= valid
    for side, is_border in zip((np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]), at_border, strict=True):
        if is_border:
            rim[side] = False
    y, x = np.nonzero(rim)
    outward = -np.stack([cv2.Sobel(blurred, cv2.CV_32F, *axis)[y, x] for axis in ((1, 0), (0, 1))], axis=-1)
    length = np.linalg.norm(outward, axis=-1, keepdims=True)
    outward = np.divide(outward, length, out=np.zeros_like(outward), where=length > 1e-6)
    return outward, normals[y, x].astype(np.float32)


def _rim_agreement(rim_normals: np.ndarray, outward: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Agreement (M,) of normals (Q, 3), corrected by (M, 3, 3), with outward directions (Q, 2); 0 without evidence."""
    if len(outward) < MIN_RIM_PIXELS:
        return np.zeros(len(candidates))
    in_image = np.einsum("mai,pi->mpa", candidates[:, :2], rim_normals)
    products = in_image * outward
    weight = np.abs(products).sum(axis=1)
    # A surface that ends at its contour without turning away, or that turns along one axis only, gives no evidence.
    enough = weight > 0.1 * len(outward)
    return np.divide(products.sum(axis=1), weight, out=np.zeros_like(weight), where=enough).mean(axis=1)


def _inner(normals: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals (R, 3) of pixels inside the valid ones, and the differences of their neighbors' along x and y."""
    inside = cv2.erode(valid.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    every = max(1, int(inside.sum()) // NUM_SAMPLES)
    y, x = (index[::every] for index in np.nonzero(inside))
    return normals[y, x], normals[y, x + 1] - normals[y, x - 1], normals[y + 1, x] - normals[y - 1, x]


def _integrability(inner: np.ndarray, along_x: np.ndarray, along_y: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Correlation (M,) of d/dy (n_x / n_z) with d/dx (n_y / n_z), both times n_z squared; see `AxisSamples`."""
    turned = candidates.transpose(2, 0, 1)  # (3, M, 3): n @ turned is (R, M, 3)
    n, along_x, along_y = (np.tensordot(vectors, turned, axes=1) for vectors in (inner, along_x, along_y))
    zxy = n[..., 2] * along_y[..., 0] - n[..., 0] * along_y[..., 2]
    zyx = n[..., 2] * along_x[..., 1] - n[..., 1] * along_x[..., 2]
    power = ((zxy**2).sum(axis=0) + (zyx**2).sum(axis=0)) / 2
    return np.divide((zxy * zyx).sum(axis=0), power, out=np.zeros_like(power), where=power > 1e-9)
