# SPDX-License-Identifier: Apache-2.0
"""Checks of masks and normal maps: unusable maps are rejected, minor defects are corrected with a warning."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from scipy import ndimage

from pmni_nerfstudio.errors import SceneError

MISSING_LENGTH = 0.1
"""Normals shorter than this are missing. 8-bit background (128, 128, 128) has a length of 0.007."""
MAX_MISSING = 0.1
"""Largest permitted fraction of the mask without normals. A mask one pixel too wide in a small image has about 5%."""
LENGTH_TOLERANCE = 0.05
"""Tolerance of a normal's length; 8-bit quantization alone causes up to 0.007."""
MAX_OFF_LENGTH = 0.01
"""Largest fraction of the mask with lengths beyond the tolerance that causes no warning."""
MAX_VALUE = 1e6
"""Components of larger magnitude are treated as infinite, since their squares overflow."""
MAX_EDGE = 0.02
"""Largest fraction of an image's border pixels that a mask may cover without a warning."""
MAX_MEDIAN_ERROR = 0.2
"""Maps whose median length differs from 1 by more than this do not contain normals."""


def check_mask(path: Path, mask: np.ndarray) -> None:
    """Check that a mask (H, W) has an object and a background.

    Raises:
        SceneError: the mask is empty or full.
    """
    if not mask.any():
        raise SceneError(f"{path}: the mask is empty; paint the object white, or remove the view from all folders")
    if mask.all():
        raise SceneError(f"{path}: the mask is all foreground; paint the background black")


def warn_of_masks(files: Sequence[Path], masks: np.ndarray) -> list[str]:
    """Warn if masks (N, H, W) reach the image border, beyond which the object may continue, or seem to be inverted."""
    edge = np.zeros(masks.shape[1:], dtype=bool)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    share = masks[:, edge].mean(axis=1)
    cut = np.flatnonzero(share > MAX_EDGE)
    if not cut.size:
        return []
    first = files[cut[0]]
    if share.min() > 0.9 and masks.mean() > 0.5:
        return [
            f"{first.parent}: all masks are white along the image border; check that they are not inverted (the object is white)"
        ]
    return [
        f"{first}: the mask reaches the image border (in {cut.size} of {len(files)} views), beyond which the object is unknown; "
        "use images that show the whole object"
    ]


def warn_of_copies(files: Sequence[Path], normals: np.ndarray) -> list[str]:
    """Warn if normals (N, H, W, 3) of two views are identical, which different photographs never are."""
    seen: dict[bytes, Path] = {}
    copies = []
    for file, maps in zip(files, normals):
        first = seen.setdefault(blake2b(maps.tobytes()).digest(), file)
        if first is not file:
            copies.append((file, first))
    if not copies:
        return []
    (file, first), more = copies[0], f" (and {len(copies) - 1} more)" if len(copies) > 1 else ""
    return [f"{file}: has the same normals as {first.name}{more}; remove the copy"]


def check_size(path: Path, shape: tuple[int, ...], expected: tuple[int, ...], reference: Path) -> None:
    """Check the size of a map.

    Args:
        path: file of the map.
        shape: its shape, (height, width, ...).
        expected: expected (height, width).
        reference: file or folder that has the expected size, for messages.

    Raises:
        SceneError: the sizes differ.
    """
    if tuple(shape[:2]) != expected:
        raise SceneError(
            f"{path}: is {shape[1]}x{shape[0]} pixels, but {reference} is {expected[1]}x{expected[0]}; "
            "all maps of a scene need the same size"
        )


def clean_normals(path: Path, stored: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Check a normal map on its mask and normalize it: unit length on the mask, zero elsewhere, axes unchanged.

    Mask pixels without a normal are removed from the mask if they touch the background, as around maps narrower than the
    mask. Holes inside the object stay in the mask, because they would carve the visual hull, and take the normal of the
    nearest pixel.

    Args:
        path: normal map, for messages.
        stored: (H, W, 3) float32, as returned by `read_normals`.
        mask: (H, W) bool.

    Returns:
        Normals (H, W, 3) float32, mask (H, W) bool, and warnings of one line each.

    Raises:
        SceneError: values are not finite, too many normals are missing, or lengths are not those of normals.
    """
    count = int(mask.sum())
    values = stored[mask]
    broken = count - int((np.abs(values) < MAX_VALUE).all(axis=1).sum())  # false for NaN
    if broken:
        raise SceneError(f"{path}: {_share(broken, count)} of the mask's normals are not finite; export the file again")
    warnings = []
    length = np.linalg.norm(values, axis=1)
    missing = np.zeros_like(mask)
    missing[mask] = length < MISSING_LENGTH
    num_missing = int(missing.sum())
    if num_missing > MAX_MISSING * count:
        outside = np.linalg.norm(stored[~mask], axis=1) >= MISSING_LENGTH
        is_inverted = num_missing > 0.9 * count and outside.any()
        raise SceneError(
            f"{path}: {_share(num_missing, count)} of the mask's pixels have no normal (zero); "
            + (
                "the mask is inverted, paint the object white"
                if is_inverted
                else "shrink the mask to the pixels with normals"
            )
        )
    length = length[length >= MISSING_LENGTH]
    _check_lengths(path, values, length)
    off = int((np.abs(length - 1) > LENGTH_TOLERANCE).sum())
    if off > MAX_OFF_LENGTH * count:
        warnings.append(
            f"{path}: {_share(off, count)} of the mask's normals have a length that differs from 1 by more than {LENGTH_TOLERANCE}; "
            "they were normalized"
        )
    normals = np.where(mask[..., None], stored, np.float32(0))
    if num_missing:
        has_normal = mask & ~missing
        inside = missing & ndimage.binary_fill_holes(has_normal)
        nearest = np.asarray(ndimage.distance_transform_edt(~has_normal, return_distances=False, return_indices=True))
        normals[inside] = normals[nearest[0][inside], nearest[1][inside]]
        mask = has_normal | inside
        num_inside = int(inside.sum())
        warnings.append(
            f"{path}: {num_missing} of the mask's {count} pixels have no normal; {num_missing - num_inside} at the "
            f"contour were removed from the mask, {num_inside} inside were filled from their neighbors"
        )
    normals[~mask] = 0
    normals[mask] /= np.linalg.norm(normals[mask], axis=1, keepdims=True)
    return normals, mask, warnings


def _check_lengths(path: Path, values: np.ndarray, length: np.ndarray) -> None:
    """Check that lengths (n,) are typically 1; `values` (n, 3) serve to recognize colors that were not decoded."""
    if values.min() >= 0 and (np.abs(length - 1) > LENGTH_TOLERANCE).mean() > 0.5:
        top = "1" if values.max() <= 1 else "255 or 65535"
        raise SceneError(f"{path}: contains colors from 0 to {top}, not normals; store value / {top} * 2 - 1")
    median = float(np.median(length))
    if abs(median - 1) > MAX_MEDIAN_ERROR:
        raise SceneError(f"{path}: the normals' median length on the mask is {median:.3g}, not 1; store unit vectors")


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})"
