# SPDX-License-Identifier: Apache-2.0
"""Whether normal maps follow the axes that they should, told from the maps themselves.

Three cues. Facing: a visible normal has a negative product with its ray. That finds a flipped z, but hardly a flipped x
or y where the camera is nearly orthographic. Outline: where a closed surface turns away from the camera, at the rim of
its mask, the normal points outwards in the image (Marr, "Analysis of occluding contour", 1977). That finds the others,
but misleads where other things cut the mask. Integrability: the slopes of a surface have no curl, and with one of x
and y flipped they have; it vetoes what the outline suggests. All are measured for the normals as they are and for every
way of reordering and flipping their axes; only if one of those is better by a clear majority of views is the scene
refused, with the mend named.
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
from pmni_nerfstudio.geometry.transforms import OPENCV_FROM_STORED, scale_of

SAMPLES = 2048
"""Pixels of a view that are looked at, about, spread over the mask."""
MIN_FACING = 0.9
"""Share of facing normals of a map that is in order; noise of 20 deg on a sphere leaves 97%."""
MIN_RIM_PIXELS = 50
"""Fewer rim pixels of a view say nothing."""


@dataclass(frozen=True)
class Mend:
    """A way to read normals that were stored with other axes: `axes` (3, 3) takes stored ones to right ones."""

    advice: str
    axes: np.ndarray
    changes: int


@dataclass(frozen=True)
class AxesEvidence:
    """What one view says for each of `mends()`.

    facing: (M,) share of the mask's pixels whose normal faces the camera.
    outline: (M,) agreement of the normals with the mask's outward direction at the rim, from -1 to 1: the sum of the
        products of their components along an image axis over the sum of the magnitudes, the mean of both axes. So a
        long thin object says as much of its long axis as of the other. About .9 for a closed surface, 0 where there
        is no evidence.
    integrable: (M,) correlation of the two mixed derivatives of depth, from -1 to 1: 1 for a smooth surface, -1 for
        one with x or y flipped, near 0 for noise.
    """

    facing: np.ndarray
    outline: np.ndarray
    integrable: np.ndarray

    @property
    def is_good(self) -> bool:
        """Whether the normals fit as they are."""
        return bool(self.facing[0] > MIN_FACING and self.outline[0] > 0.6)


@cache
def mends() -> tuple[Mend, ...]:
    """All 48 ways to reorder and flip three axes, the simplest first: the identity, then single flips, and so on."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            flipped = ["xyz"[axis] for axis in range(3) if signs[axis] < 0]
            moved = sum(order[axis] != axis for axis in range(3))
            advice = []
            if moved:
                advice.append("read the channels in the order " + ", ".join("RGB"[channel] for channel in order))
            if flipped:
                advice.append("flip " + " and ".join(flipped))
            axes = np.diag(signs).astype(np.float32) @ np.eye(3, dtype=np.float32)[list(order)]
            found.append(Mend(" and then ".join(advice), axes, len(flipped) + moved))
    return tuple(sorted(found, key=lambda mend: mend.changes))


def camera_from_stored(
    count: int, c2w: np.ndarray | None, world_from_unit: np.ndarray, is_world_space: bool
) -> list[np.ndarray]:
    """Rotations (N, 3, 3) that take stored normals to OpenCV camera axes, and then, with poses, those of the other space.

    Args:
        count: N.
        c2w: (N, 4, 4), camera to unit-sphere world; None only for camera-space normals.
        world_from_unit: (4, 4), a similarity.
        is_world_space: of the stored normals.
    """
    spaces = [np.repeat(OPENCV_FROM_STORED[None], count, axis=0)]
    if c2w is not None:
        block = world_from_unit[:3, :3]
        unit_from_world = block.T / scale_of(block)
        spaces.append(np.swapaxes(c2w[:, :3, :3], 1, 2) @ unit_from_world)
    return spaces[::-1] if is_world_space else spaces


def weigh_axes(normals: np.ndarray, mask: np.ndarray, K: np.ndarray, camera_from_stored: np.ndarray) -> AxesEvidence:
    """Measure the cues in one view for all `mends()`.

    Args:
        normals: (H, W, 3), unit on the mask, OpenCV camera axes (x right, y down, z forward).
        mask: (H, W) bool, not empty.
        K: (3, 3), pixel centres at integers.
        camera_from_stored: (3, 3) orthogonal, took the file's normals to these.
    """
    candidates = np.stack([camera_from_stored @ mend.axes @ camera_from_stored.T for mend in mends()]).astype(
        np.float32
    )
    every = max(1, int(mask.sum()) // SAMPLES)
    y, x = (index[::every] for index in np.nonzero(mask))
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(K).T
    # ray . (C n) for all pixels and candidates C at once
    facing = (
        np.einsum("pi,mij,pj->pm", rays.astype(np.float32), candidates, normals[y, x].astype(np.float32), optimize=True)
        < 0
    )
    return AxesEvidence(
        facing.mean(axis=0), _outline_agreement(normals, mask, candidates), _integrability(normals, mask, candidates)
    )


def judge_axes(
    folder: Path,
    files: Sequence[Path],
    evidence: Sequence[AxesEvidence],
    is_world_space: bool = False,
    elsewhere: Sequence[AxesEvidence] | None = None,
) -> list[str]:
    """Decide over all views.

    Args:
        folder: of the normal maps, for the message.
        files: of the views.
        evidence: of the views, same order.
        is_world_space: of the normals in the files, for the message.
        elsewhere: of the views, were the normals of the other space, the world's or the camera's; None without poses.

    Returns:
        Warnings, at most one.

    Raises:
        SceneError: the other space or other axes would clearly fit better, or normals face away from the camera.
    """
    facing = np.stack([view.facing for view in evidence])
    outline = np.stack([view.outline for view in evidence])
    changes = np.array([mend.changes for mend in mends()])
    # The small penalty lets the simplest mend win among those that the cues can't tell apart.
    score = facing + outline - 0.01 * changes
    best = int(score.mean(axis=0).argmax())
    facing_mean, outline_mean = facing.mean(axis=0), outline.mean(axis=0)
    if elsewhere is not None:
        other = np.mean([[view.facing[0], view.outline[0]] for view in elsewhere], axis=0)
        if other[0] > MIN_FACING - 0.05 and other.sum() > max(score[:, 0].mean() + 0.4, score[:, best].mean() + 0.1):
            called, are = ("world", "camera") if is_world_space else ("camera", "world")
            raise SceneError(
                f"{folder}: holds normals in {are} space, it seems: {other[0]:.0%} face the camera then, and "
                f"{facing_mean[0]:.0%} as {called}-space ones; rename the folder to normal_{are}_space_NAME"
            )
    integrable_mean = np.mean([view.integrable for view in evidence], axis=0)
    mended_by_facing = facing_mean[0] < MIN_FACING < facing_mean[best] and facing_mean[best] - facing_mean[0] > 0.2
    mended_by_outline = (
        outline_mean[0] < 0.4
        and outline_mean[best] > max(0.6, outline_mean[0] + 0.4)
        and facing_mean[best] > MIN_FACING - 0.05
        and integrable_mean[best] > integrable_mean[0] - 0.01
    )
    is_clear = (score[:, best] > score[:, 0] + 0.1).mean() >= 0.8
    if best != 0 and is_clear and (mended_by_facing or mended_by_outline):
        expected = "plain world axes" if is_world_space else "x right, y up, z towards the viewer"
        raise SceneError(
            f"{folder}: the normals' axes are not {expected} ({facing_mean[0]:.0%} face the camera, and they fit the "
            f"masks' outlines by {outline_mean[0]:+.2f} of 1): {mends()[best].advice} in all files "
            f"(then {facing_mean[best]:.0%} and {outline_mean[best]:+.2f})"
        )
    worst = int(facing[:, 0].argmin())
    if facing[worst, 0] < 0.5:
        raise SceneError(
            f"{files[worst]}: only {facing[worst, 0]:.0%} of the normals on the mask face the camera, and no flip of "
            "axes for all files mends it: check this file, its camera, and the space that the folder's name says"
        )
    bad = np.flatnonzero(facing[:, 0] < MIN_FACING)
    if not bad.size:
        return []
    return [
        f"{folder}: in {bad.size} views more than {1 - MIN_FACING:.0%} of the normals on the mask face away from the "
        f"camera (worst {files[worst].name}: {1 - facing[worst, 0]:.0%})"
    ]


def _outline_agreement(normals: np.ndarray, mask: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Agreement (M,) of candidates (M, 3, 3) with the outward direction of the mask at its rim; 0 without evidence."""
    blurred = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)
    rim = mask & ~cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2).astype(bool)
    # Where the frame cuts the object, the mask ends and the surface goes on.
    border = 4
    frame = np.zeros_like(mask)
    frame[border:-border, border:-border] = True
    y, x = np.nonzero(rim & frame)
    if len(y) < MIN_RIM_PIXELS:
        return np.zeros(len(candidates))
    outward = -np.stack([cv2.Sobel(blurred, cv2.CV_32F, *axis)[y, x] for axis in ((1, 0), (0, 1))], axis=-1)
    length = np.linalg.norm(outward, axis=-1, keepdims=True)
    outward = np.divide(outward, length, out=np.zeros_like(outward), where=length > 1e-6)
    rim_normals = normals[y, x].astype(np.float32)
    in_image = np.einsum("mai,pi->mpa", candidates[:, :2], rim_normals)
    products = in_image * outward
    weight = np.abs(products).sum(axis=1)
    # Of a surface that ends at the outline without turning away, or along one axis only, the outline says nothing.
    enough = weight > 0.1 * len(y)
    return np.divide(products.sum(axis=1), weight, out=np.zeros_like(weight), where=enough).mean(axis=1)


def _integrability(normals: np.ndarray, mask: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Correlation (M,) of d/dy (n_x / n_z) with d/dx (n_y / n_z), both times n_z squared, inside the mask."""
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    inside[[0, -1]] = inside[:, [0, -1]] = False
    every = max(1, int(inside.sum()) // SAMPLES)
    y, x = (index[::every] for index in np.nonzero(inside))
    turned = candidates.transpose(2, 0, 1)  # (3, M, 3): n @ turned gives (P, M, 3)
    n = np.tensordot(normals[y, x], turned, axes=1)
    along_x = np.tensordot(normals[y, x + 1] - normals[y, x - 1], turned, axes=1)
    along_y = np.tensordot(normals[y + 1, x] - normals[y - 1, x], turned, axes=1)
    zxy = n[..., 2] * along_y[..., 0] - n[..., 0] * along_y[..., 2]
    zyx = n[..., 2] * along_x[..., 1] - n[..., 1] * along_x[..., 2]
    power = ((zxy**2).sum(axis=0) + (zyx**2).sum(axis=0)) / 2
    return np.divide((zxy * zyx).sum(axis=0), power, out=np.zeros_like(power), where=power > 1e-9)
