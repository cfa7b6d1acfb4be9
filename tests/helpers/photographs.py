# SPDX-License-Identifier: Apache-2.0
"""Photographs of a synthetic shape with a known color at every point, and texture lookup."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.geometry.cameras import pixel_rays
from pmni_nerfstudio.synth.render import trace
from pmni_nerfstudio.synth.shapes import SHAPES


def true_colors(points: np.ndarray) -> np.ndarray:
    """RGB (P, 3) in [0, 255] of points (P, 3) in the unit-sphere world: smooth, and different at every point."""
    return 128 + 110 * np.sin(points @ np.array([[2.5, 0.4, -0.7], [-0.6, 2.2, 0.9], [0.3, -0.8, 2.8]]))


def take_photographs(scene: Scene, shape: str, factor: int = 1) -> None:
    """Write image/NN.png of a synthetic scene, `factor` times as wide and high as its maps, black off the object."""
    (scene.root / "image").mkdir()
    assert scene.c2w is not None
    for name, k, c2w in zip(scene.names, scene.K, scene.c2w):
        fine = np.diag([factor, factor, 1.0]) @ k
        fine[:2, 2] += (factor - 1) / 2  # pixel centres are at integers in both
        size = (factor * scene.width, factor * scene.height)
        origins, directions = (torch.from_numpy(np.array(a)) for a in pixel_rays(fine, c2w, *size))
        t = trace(SHAPES[shape], origins, directions)
        colors = np.zeros((len(t), 3))
        on = torch.isfinite(t)
        colors[on.numpy()] = true_colors((origins[on] + t[on, None] * directions[on]).numpy())
        image = colors.round().astype(np.uint8).reshape(size[1], size[0], 3)
        Image.fromarray(image).save(scene.root / "image" / f"{name}.png")
