# SPDX-License-Identifier: Apache-2.0
"""What registration looks at: normal maps, masks and intrinsics of the views to register, and blurred copies of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.data.split_views import SplitViews

MOST_PIXELS = 320_000
"""Of a view (612x512 and a little): the finest voxels of registration are a pixel of such maps, and 72 views of
2000x1500 would take it 15 GB."""


@dataclass(frozen=True, eq=False)
class Views:
    """The observations of N views; poses are never part of them."""

    names: tuple[str, ...]
    """As the files are called."""
    normals: Float[np.ndarray, "n h w 3"]
    """float32, OpenCV camera axes (x right, y down, z forward), unit on the mask and zero off it."""
    masks: Bool[np.ndarray, "n h w"]
    """True on the object."""
    K: Float[np.ndarray, "n 3 3"]
    """Intrinsics in pixels, pixel centres at integers."""

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def height(self) -> int:
        """Of all maps, in pixels."""
        return self.masks.shape[1]

    @property
    def width(self) -> int:
        """Of all maps, in pixels."""
        return self.masks.shape[2]

    @property
    def focal(self) -> Float[np.ndarray, " n"]:
        """Mean focal length of each view, in pixels."""
        return 0.5 * (self.K[:, 0, 0] + self.K[:, 1, 1])

    def subset(self, indices: Sequence[int]) -> Views:
        """Some of the views, in the order of the indices."""
        index = list(indices)
        names = tuple(self.names[i] for i in index)
        return Views(names, self.normals[index], self.masks[index], self.K[index])

    def blurred(self, sigma_px: float) -> Views:
        """The same views with their normals smoothed within the mask (normalised convolution), unit again."""
        if sigma_px <= 0:
            return self
        normals = np.stack([blur_normals(n, m, sigma_px) for n, m in zip(self.normals, self.masks)])
        return replace(self, normals=normals)

    def smaller(self, step: int) -> Views:
        """Every step-th pixel of each axis, of normals smoothed over about so many."""
        return self.blurred(0.5 * step).every(step) if step > 1 else self

    def every(self, step: int) -> Views:
        """Every step-th pixel of each axis: the pixel centres that stay are those at multiples of the step.

        Thin parts of the masks are kept as they are sampled, not averaged. Noisy normals want `smaller`.
        """
        if step == 1:
            return self
        K = self.K.copy()
        K[:, :2] /= step
        return replace(
            self,
            normals=np.ascontiguousarray(self.normals[:, ::step, ::step]),
            masks=np.ascontiguousarray(self.masks[:, ::step, ::step]),
            K=K,
        )


def views_of_scene(scene: Scene | SplitViews, indices: Sequence[int] | None = None, most_pixels: int = MOST_PIXELS) -> Views:
    """Views of a scene, all of them or those of the given indices; made smaller where they have more pixels."""
    index = list(range(scene.num_views) if indices is None else indices)
    step = max(1, round(float(np.sqrt(scene.height * scene.width / most_pixels))))

    # One view after another: in single precision all of them at once may not fit.
    def small(i: int) -> Views:
        one = Views(
            (scene.names[i],), scene.normals[i : i + 1].astype(np.float32), scene.masks[i : i + 1], scene.K[[i]]
        )
        return one.smaller(step)

    parts = [small(i) for i in index]
    return Views(
        names=tuple(name for part in parts for name in part.names),
        normals=np.concatenate([part.normals for part in parts]),
        masks=np.concatenate([part.masks for part in parts]),
        K=np.concatenate([part.K for part in parts]),
    )


def blur_normals(
    normals: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], sigma_px: float
) -> Float[np.ndarray, "h w 3"]:
    """Gaussian means of unit normals over the mask alone, unit again; zero off the mask."""
    weight = mask.astype(np.float32)
    total = cv2.GaussianBlur(normals * weight[..., None], (0, 0), sigma_px, borderType=cv2.BORDER_REPLICATE)
    # A mean of unit vectors is divided by its length: the sum of the weights cancels.
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.where(mask[..., None], total / np.maximum(length, 1e-12), 0).astype(np.float32)
