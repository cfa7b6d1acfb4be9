# SPDX-License-Identifier: Apache-2.0
"""Integrated depth maps of a scene, read when a loss asks for them."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.images import read_depth
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.errors import SceneError


def read_depths(scene: Scene | SplitViews) -> Float[np.ndarray, "N H W"]:
    """Depth maps of all views at the scene's resolution: z depth, one unknown scale a view.

    Kept in single precision: half has a thousandth of the distance, which at 15 radii is far coarser than the surface.

    Returns:
        (N, H, W) float32, 0 where unknown and off the mask.

    Raises:
        SceneError: the scene has no depth maps, or one has the wrong shape or no depth on its mask.
    """
    if scene.depth_files is None:
        raise SceneError(
            f"{scene.root}: no depth maps, which the depth losses need; "
            "`pmni integrate` makes them; or set the weights of the depth losses to 0"
        )
    depths = np.empty((scene.num_views, scene.height, scene.width), dtype=np.float32)
    for depth, file, mask in zip(depths, scene.depth_files, scene.masks, strict=True):
        original = read_depth(file)
        ratio = np.divide(original.shape, mask.shape)
        # A resampled side is rounded to a whole pixel.
        if abs(ratio[0] / ratio[1] - 1) > 1 / min(mask.shape):
            raise SceneError(
                f"{file}: {original.shape[1]}x{original.shape[0]} pixels do not fit maps of "
                f"{scene.width}x{scene.height}; integrate the normals of this scene again"
            )
        # The nearest value: a mean across an edge of the object is a depth where no surface is.
        depth[:] = cv2.resize(original, (scene.width, scene.height), interpolation=cv2.INTER_NEAREST_EXACT)
        depth[~mask] = 0
        if not depth.any():
            raise SceneError(f"{file}: has no depth on the mask (zero or not finite): integrate its normals again")
    return depths
