# SPDX-License-Identifier: Apache-2.0
"""Checks of one view's maps: what can't be used is refused, what can be mended without guessing is mended and said."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from scipy import ndimage

from pmni_nerfstudio.errors import SceneError

MISSING_LENGTH = 0.1
"""A normal shorter than this is none: background in 8 bits (128, 128, 128) has a length of .007."""
MAX_MISSING = 0.1
"""Share of the mask that may lack normals: a mask one pixel too wide on a small image costs about 5%."""
LENGTH_TOLERANCE = 0.05
"""How far a normal's length may be from 1; 8 bits alone cost up to .007."""
MAX_OFF_LENGTH = 0.01
"""Share of the mask with lengths beyond the tolerance that passes without a warning."""
MAX_VALUE = 1e6
"""Larger components are no better than infinity: their squares overflow."""
MAX_EDGE = 0.02
"""Share of the frame's outermost pixels that a mask may cover without a warning."""
MAX_MEDIAN_ERROR = 0.2
"""A median length further from 1 than this says that the map holds something else than normals."""


def check_mask(path: Path, mask: np.ndarray) -> None:
    """Refuse a mask (H, W) without an object or without a background.

    Raises:
        SceneError
    """
    if not mask.any():
        raise SceneError(f"{path}: the mask is empty: paint the object white, or take the view out of all folders")
    if mask.all():
        raise SceneError(f"{path}: the mask is all foreground: paint the background black")


def warn_of_masks(files: Sequence[Path], masks: np.ndarray) -> list[str]:
    """Warn where masks (N, H, W) reach the frame's edge, where the object may go on unseen, or look inverted."""
    edge = np.zeros(masks.shape[1:], dtype=bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    share = masks[:, edge].mean(axis=1)
    cut = np.flatnonzero(share > MAX_EDGE)
    if not cut.size:
        return []
    first = files[cut[0]]
    if share.min() > 0.9 and masks.mean() > 0.5:
        return [f"{first.parent}: all masks are white along the frame's edge: are they inverted? The object is white"]
    return [
        f"{first}: the mask reaches the frame's edge (so in {cut.size} of {len(files)} views): what is beyond is not "
        "known to be object or background; whole objects work best"
    ]


def warn_of_copies(files: Sequence[Path], normals: np.ndarray) -> list[str]:
    """Warn where two views' normals (N, H, W, 3) are the same to the bit: no two photographs are."""
    seen: dict[bytes, Path] = {}
    copies = []
    for file, maps in zip(files, normals):
        first = seen.setdefault(blake2b(maps.tobytes()).digest(), file)
        if first is not file:
            copies.append((file, first))
    if not copies:
        return []
    (file, first), more = copies[0], f" (and {len(copies) - 1} more such)" if len(copies) > 1 else ""
    return [f"{file}: holds the same normals as {first.name}{more}: take the copy out, it tells nothing new"]


def check_size(path: Path, shape: tuple[int, ...], expected: tuple[int, ...], reference: Path) -> None:
    """Refuse a map whose (height, width) is not the expected one, that of the reference.

    Raises:
        SceneError
    """
    if tuple(shape[:2]) != expected:
        raise SceneError(
            f"{path}: is {shape[1]}x{shape[0]} pixels, but {reference} is {expected[1]}x{expected[0]}: "
            "all maps of a scene need one size"
        )


def clean_normals(path: Path, stored: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Check a normal map on its mask, and make it unit there and zero elsewhere; the axes stay as they are.

    Pixels of the mask without a normal leave the mask where they touch the background, as a mask wider than the
    map has them. Holes inside the object stay in the mask, since a hole would carve the visual hull, and take
    the nearest pixel's normal.

    Args:
        path: of the normals, for messages.
        stored: (H, W, 3) float32, as `read_normals` gives it.
        mask: (H, W) bool.

    Returns:
        normals (H, W, 3) float32, mask (H, W) bool, and warnings, one line each.

    Raises:
        SceneError: values that are not finite, too many missing, or lengths that no normals have.
    """
    count = int(mask.sum())
    values = stored[mask]
    broken = count - int((np.abs(values) < MAX_VALUE).all(axis=1).sum())  # false for NaN
    if broken:
        raise SceneError(f"{path}: {_share(broken, count)} of the mask's normals are not finite: export it again")
    warnings = []
    length = np.linalg.norm(values, axis=1)
    missing = np.zeros_like(mask)
    missing[mask] = length < MISSING_LENGTH
    lacking = int(missing.sum())
    if lacking > MAX_MISSING * count:
        beside = np.linalg.norm(stored[~mask], axis=1) >= MISSING_LENGTH
        is_inverted = lacking > 0.9 * count and beside.any()
        raise SceneError(
            f"{path}: {_share(lacking, count)} of the mask's pixels have no normal (zero): "
            + (
                "the mask is inverted: paint the object white"
                if is_inverted
                else "shrink the mask to the pixels with normals"
            )
        )
    length = length[length >= MISSING_LENGTH]
    _check_lengths(path, values, length)
    off = int((np.abs(length - 1) > LENGTH_TOLERANCE).sum())
    if off > MAX_OFF_LENGTH * count:
        warnings.append(
            f"{path}: {_share(off, count)} of the mask's normals have lengths off 1 by more than {LENGTH_TOLERANCE}: "
            "they were renormalised"
        )
    normals = np.where(mask[..., None], stored, np.float32(0))
    if lacking:
        has_normal = mask & ~missing
        inside = missing & ndimage.binary_fill_holes(has_normal)
        nearest = np.asarray(ndimage.distance_transform_edt(~has_normal, return_distances=False, return_indices=True))
        normals[inside] = normals[nearest[0][inside], nearest[1][inside]]
        mask = has_normal | inside
        warnings.append(
            f"{path}: {lacking} of the mask's {count} pixels have no normal: {lacking - int(inside.sum())} at the "
            f"outline left the mask, {int(inside.sum())} inside took their neighbours'"
        )
    normals[~mask] = 0
    normals[mask] /= np.linalg.norm(normals[mask], axis=1, keepdims=True)
    return normals, mask, warnings


def _check_lengths(path: Path, values: np.ndarray, length: np.ndarray) -> None:
    """Refuse a map whose lengths (n,) are typically not 1; `values` (n, 3) tell colours from other things."""
    if values.min() >= 0 and (np.abs(length - 1) > LENGTH_TOLERANCE).mean() > 0.5:
        top = "1" if values.max() <= 1 else "255 or 65535"
        raise SceneError(f"{path}: holds colours from 0 to {top}, not normals: store value / {top} * 2 - 1")
    median = float(np.median(length))
    if abs(median - 1) > MAX_MEDIAN_ERROR:
        raise SceneError(f"{path}: the normals' median length on the mask is {median:.3g}, not 1: store unit vectors")


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})"
