# SPDX-License-Identifier: Apache-2.0
"""Checks of masks and normal maps: unusable maps are rejected, minor defects are corrected with a warning."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from scipy import ndimage

from pmni_nerfstudio.data.packed_masks import Masks
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.geometry.normals import strips, vector_lengths

MISSING_LENGTH = 0.1
"""Normals shorter than this are missing. 8-bit background (128, 128, 128) has a length of 0.007."""
MIN_VALID = 0.1
"""Least fraction of a mask's pixels that need a normal; the others are holes, such as shadows and highlights."""
NOTABLE_HOLES = 0.01
"""Largest fraction of a mask's pixels without a normal that is not reported."""
WIDE_MASK_PX = 2.3
"""Width of a rim without normals, in pixels, up to which the mask counts as too wide."""
WIDE_MASK_SHARE = 0.9
"""Least fraction of the contour's pixels without normals that such a rim covers. In laser scans, whose holes reach the
contour as well, they were up to 81%; around masks that are one pixel too wide, all."""
WIDE_MASK_CONTOUR = 0.25
"""Least fraction of the contour that such a rim covers; a mask shifted by a pixel has one along half of the contour."""
LENGTH_TOLERANCE = 0.05
"""Tolerance of a normal's length; 8-bit quantization alone causes up to 0.007."""
MAX_OFF_LENGTH = 0.01
"""Largest fraction of the mask with lengths beyond the tolerance that causes no warning."""
MAX_VALUE = 1e6
"""Components of larger magnitude are treated as infinite, since their squares overflow."""
MAX_EDGE = 0.02
"""Largest fraction of an image's border pixels that a mask may cover without a warning."""
MAX_LISTED = 12
"""Most views that one message lists."""
MAX_MEDIAN_ERROR = 0.2
"""Maps whose median length differs from 1 by more than this do not contain normals."""


def check_mask(path: Path, mask: np.ndarray, may_be_full: bool = False) -> None:
    """Check that a mask (H, W) has an object and a background.

    Args:
        path: mask file, for messages.
        mask: the mask.
        may_be_full: whether the object may fill the frame, as in a close-up.

    Raises:
        SceneError: the mask is empty, or full although it may not be.
    """
    if not mask.any():
        raise SceneError(f"{path}: the mask is empty; paint the object white, or remove the view from all folders")
    if mask.all() and not may_be_full:
        raise full_mask_error(path)


def full_mask_error(path: Path) -> SceneError:
    """The error of a mask that is full although its view is no close-up."""
    return SceneError(f"{path}: the mask is all foreground; paint the background black")


def border_share(mask: np.ndarray) -> float:
    """Share of the image border's pixels that are on a mask (H, W)."""
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return float(edge.mean())


def warn_of_masks(files: Sequence[Path], masks: Sequence[np.ndarray] | Masks) -> list[str]:
    """Warn if masks (H, W) reach the image border, beyond which the object may continue, or seem to be inverted."""
    share = np.array([border_share(mask) for mask in masks])
    cut = np.flatnonzero(share > MAX_EDGE)
    if not cut.size:
        return []
    first = files[cut[0]]
    if share.min() > 0.9 and np.mean([mask.mean() for mask in masks]) > 0.5:
        return [
            f"{first.parent}: all masks are white along the image border; check that they are not inverted (the object is white)"
        ]
    return [
        f"{first}: the mask reaches the image border (in {cut.size} of {len(files)} views), beyond which the object is unknown; "
        "use images that show the whole object, except for close-ups of a part"
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
            "all maps of a view need the same size"
        )


def clean_normals(
    path: Path, stored: np.ndarray, mask: np.ndarray, measured: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Check a normal map on its mask and normalize it: unit length where there is a normal, zero elsewhere.

    Mask pixels without a normal, or with NaN, are holes: they stay in the mask, which is the silhouette. Only a thin rim
    around the whole object is removed, since then the mask is wider than the object, unless `measured` tells that the
    mask is right.

    Args:
        path: normal map, for messages.
        stored: (H, W, 3) float32, as returned by `read_normals`; axes are not changed. It is overwritten by the result,
            because a copy of a large map costs more than all checks.
        mask: (H, W) bool.
        measured: (H, W) bool, pixels whose normals count; None: all.

    Returns:
        Normals (H, W, 3) float32, mask (H, W) bool, and warnings of one line each.

    Raises:
        SceneError: normals are infinite, hardly any are on the mask, or lengths are not those of normals.
    """
    lengths = vector_lengths(stored)
    found = lengths >= MISSING_LENGTH  # false for NaN, and for zero
    if measured is not None:
        found &= measured
    count = int(mask.sum())
    suspect = mask & ~(lengths < MAX_VALUE)  # one component may be infinite and another one NaN
    if measured is not None:
        suspect &= measured
    broken = int((np.abs(stored[suspect]) >= MAX_VALUE).any(axis=-1).sum())
    if broken:
        raise SceneError(f"{path}: {_share(broken, count)} of the mask's normals are not finite; export the file again")
    has_normal = mask & found
    warnings = _check_coverage(path, mask, found)
    length = lengths[has_normal]
    _check_lengths(path, stored, has_normal, length)
    off = int((np.abs(length - 1) > LENGTH_TOLERANCE).sum())
    if off > MAX_OFF_LENGTH * count:
        warnings.append(
            f"{path}: {_share(off, count)} of the mask's normals have a length that differs from 1 by more than {LENGTH_TOLERANCE}; "
            "they were normalized"
        )
    if measured is None and (rim := wide_rim(mask, has_normal)).any():
        mask = mask & ~rim
        warnings.append(
            f"{path}: {int(rim.sum())} of the mask's {count} pixels are a rim without normals around the object; they "
            "were removed from the mask"
        )
    with np.errstate(invalid="ignore"):
        for rows in strips(len(stored)):
            stored[rows] /= np.where(has_normal[rows], lengths[rows], np.float32(1))[..., None]
            stored[rows][~has_normal[rows]] = 0
    return stored, mask, warnings


def wide_rim(mask: np.ndarray, has_normal: np.ndarray) -> np.ndarray:
    """Rim without normals around the object, by which a mask (H, W) is too wide; empty if it seems to be right.

    A mask that is a pixel or two too wide has such a rim wherever its contour has no normals. Holes that reach the
    contour are wider in places.
    """
    missing = mask & ~has_normal
    if not missing.any():
        return missing
    inner = np.asarray(ndimage.binary_erosion(mask, border_value=1), dtype=bool)
    contour = mask & np.logical_not(inner)
    if (missing & contour).sum() <= WIDE_MASK_CONTOUR * contour.sum():
        return np.zeros_like(mask)
    near = np.asarray(ndimage.distance_transform_edt(~has_normal)) <= WIDE_MASK_PX
    if near[missing & contour].mean() < WIDE_MASK_SHARE:
        return np.zeros_like(mask)
    return missing & near & ~np.asarray(ndimage.binary_fill_holes(has_normal))


def warn_of_holes(files: Sequence[Path], areas: np.ndarray, missing: np.ndarray) -> list[str]:
    """One line on the views of whose masks' pixels, `areas` (N,), a notable number, `missing` (N,), have no normal."""
    views = np.flatnonzero(missing > NOTABLE_HOLES * areas)
    if not views.size:
        return []
    listed = [f"{files[i].stem}: {missing[i]} ({missing[i] / areas[i]:.0%})" for i in views[:MAX_LISTED]]
    more = [f"{views.size - MAX_LISTED} more"] if views.size > MAX_LISTED else []
    return [
        f"{files[0].parent}: pixels of the mask without a normal, which count for the silhouette only, in {views.size} of "
        f"{len(files)} views: {', '.join(listed + more)}"
    ]


def _check_coverage(path: Path, mask: np.ndarray, found: np.ndarray) -> list[str]:
    """Check that a mask (H, W) and the pixels with normals (H, W) show the same object; returns warnings."""
    count, inside = int(mask.sum()), int((found & mask).sum())
    outside = int((found & ~mask).sum())
    missing = count - inside
    what = f"{path}: {_share(missing, count)} of the mask's pixels have no normal (zero or NaN)"
    if inside < MIN_VALID * count:
        raise SceneError(
            f"{what}; "
            + (
                "the mask is inverted, paint the object white"
                if outside
                else f"at least {MIN_VALID:.0%} are needed, export the file again or remove the view from all folders"
            )
        )
    if inside < 0.5 * count and outside > inside:
        raise SceneError(
            f"{what}, and most normals ({outside} of {inside + outside}) are outside of the mask; check that the mask is of "
            "this view and that the object is white"
        )
    # Maps with normals everywhere are not evidence against the mask.
    is_dense_outside = outside * count > 0.5 * inside * (mask.size - count)
    if min(missing, outside) > 0.1 * count and not is_dense_outside:
        return [f"{what}, while {outside} pixels outside have one; check that the mask is of this view"]
    return []


def _check_lengths(path: Path, stored: np.ndarray, has_normal: np.ndarray, length: np.ndarray) -> None:
    """Check that the lengths (n,) of the normals of a map are typically 1; colors that were not decoded are recognized."""
    if (np.abs(length - 1) > LENGTH_TOLERANCE).mean() > 0.5 and (values := stored[has_normal]).min() >= 0:
        top = "1" if values.max() <= 1 else "255 or 65535"
        raise SceneError(f"{path}: contains colors from 0 to {top}, not normals; store value / {top} * 2 - 1")
    median = float(np.median(length))
    if abs(median - 1) > MAX_MEDIAN_ERROR:
        raise SceneError(f"{path}: the normals' median length on the mask is {median:.3g}, not 1; store unit vectors")


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})"
