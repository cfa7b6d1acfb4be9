# SPDX-License-Identifier: Apache-2.0
"""Views of different size and distance in one scene: close-ups, whose frame cuts the object, and where nothing is known.

Maps of views of different size are padded at the right and below to a common size, so that intrinsics stay as they are.
Around a mask that does not touch its frame, the padding is background, since the frame shows the whole object; otherwise it
is unknown, neither object nor background. Beyond the frame of a close-up the object may continue anywhere.
What carves reads the nearest pixel for a point beyond the frame; therefore pixels along a close-up's border that are not
on the mask count as unknown as well.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from pmni_nerfstudio.data.map_checks import MAX_EDGE, border_share
from pmni_nerfstudio.data.observations import Observations

FINER = 0.7
"""A view that its frame cuts is a close-up if its pixels are smaller than this share of those of views of the whole object."""
_BORDER = 0.01
"""Width of the border beside which a close-up's background is unknown, as a share of the frame's longer side. Maps are
subsampled for some purposes, to which some of its pixels have to be left."""


def pixel_sizes(K: Float[np.ndarray, "n 3 3"], c2w: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, " n"]:
    """Size of each view's pixels at the distance of the world's origin, in units of the world."""
    return np.linalg.norm(c2w[:, :3, 3], axis=1) / (0.5 * (K[:, 0, 0] + K[:, 1, 1]))


def is_cut(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether the frame of a mask, which has no padding, cuts the object."""
    return border_share(mask) > MAX_EDGE


def find_close_ups(
    cut: Bool[np.ndarray, " n"], K: Float[np.ndarray, "n 3 3"], c2w: Float[np.ndarray, "n 4 4"] | None
) -> Bool[np.ndarray, " n"]:
    """Views whose frame cuts the object, with far smaller pixels on it than views of the whole object.

    Args:
        cut: whether the frame of each view cuts the object.
        K: intrinsics in pixels.
        c2w: camera-to-world poses, origin in the object; without poses no view is a close-up.
    """
    if c2w is None or cut.all():
        return np.zeros(len(cut), dtype=bool)
    sizes = pixel_sizes(K, c2w)
    return cut & (sizes < FINER * float(np.median(sizes[~cut])))


def close_ups_among(views: Observations, c2w: Float[np.ndarray, "n 4 4"] | None) -> Bool[np.ndarray, " n"]:
    """`find_close_ups` for views in memory, at given poses."""
    cut = np.array([is_cut(mask[views.frame(i)]) for i, mask in enumerate(views.masks)])
    return find_close_ups(cut, views.K, c2w)


def unknown_pixels(
    masks: Bool[np.ndarray, "n h w"], sizes: Int[np.ndarray, "n 2"] | None, close_ups: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, "n h w"] | None:
    """Padding beside masks that touch their frame, and the border of close-ups off the mask; None if there is neither."""
    if sizes is None and not close_ups.any():
        return None
    unknown = np.zeros(masks.shape, dtype=bool)
    for i in range(len(masks)):
        width, height = masks.shape[:0:-1] if sizes is None else sizes[i]
        if border_share(masks[i, :height, :width]):
            unknown[i, height:], unknown[i, :, width:] = True, True
        if close_ups[i]:
            border = max(2, round(_BORDER * max(width, height)))
            inner = unknown[i, border : height - border, border : width - border].copy()
            unknown[i] = True
            unknown[i, border : height - border, border : width - border] = inner
    unknown &= ~masks
    return unknown if unknown.any() else None
