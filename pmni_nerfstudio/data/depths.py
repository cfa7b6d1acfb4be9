# SPDX-License-Identifier: Apache-2.0
"""Reading of integrated depth maps, which only some losses need."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.images import read_depth
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.errors import SceneError


def read_depths(scene: Scene | SplitViews) -> Float[np.ndarray, "N H W"]:
    """Read the depth maps of all views: z depth at the resolution of the scene, with one unknown scale per view.

    Returns:
        (N, H, W) float32, 0 where unknown and where there is no normal. Half precision has a resolution of a thousandth of the
        distance, which is too coarse for cameras 15 radii away.

    Raises:
        SceneError: the scene has no depth maps, or one has a wrong size or no depth where there are normals.
    """
    if scene.depth_files is None:
        raise SceneError(
            f"{scene.root}: no depth maps, which the depth losses need; "
            "run `pmni integrate`, or set the weights of the depth losses to 0"
        )
    depths = np.empty((scene.num_views, scene.height, scene.width), dtype=np.float32)
    if scene.sizes is not None:
        depths[:] = 0
    for view, file in enumerate(scene.depth_files):
        frame = scene.frame(view)
        depth, valid, original = depths[view][frame], scene.valid[view][frame], read_depth(file)
        ratio = np.divide(original.shape, valid.shape)
        # Resampled sizes are rounded to whole pixels.
        if abs(ratio[0] / ratio[1] - 1) > 1 / min(valid.shape):
            raise SceneError(
                f"{file}: {original.shape[1]}x{original.shape[0]} pixels do not match maps of "
                f"{valid.shape[1]}x{valid.shape[0]}; run `pmni integrate` again"
            )
        # Nearest neighbor: an average across a depth discontinuity would be a depth without a surface.
        depth[:] = cv2.resize(original, valid.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        # Integration continues depths over holes, and other programs may do the same.
        depth[~valid] = 0
        if not depth.any():
            raise SceneError(f"{file}: has no depth on the mask (zero or not finite); run `pmni integrate` again")
    return depths
