# SPDX-License-Identifier: Apache-2.0
"""Patches of k x k pixels over all views, drawn from a mixture of foreground, silhouette band and background."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, NamedTuple, Optional, Sequence, Tuple, Type

import cv2
import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, Int
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from pmni_nerfstudio.errors import PmniError


@dataclass
class PatchSamplerConfig(PixelSamplerConfig):
    """Which patches a batch holds. The fractions are of the patches and need not add up to one."""

    _target: Type = field(default_factory=lambda: PatchSampler)
    """Target class to instantiate."""
    patch_size: int = 3
    """Side of the square patches in pixels: odd; 1 draws single pixels."""
    foreground_fraction: float = 0.6
    """Share of patches whose centre lies on the mask, anywhere."""
    band_fraction: float = 0.3
    """Share of patches whose centre lies within band_px of the mask's outline, on either side."""
    background_fraction: float = 0.1
    """Share of patches whose centre lies off the mask and off the band."""
    band_px: float = 4.0
    """Half the width of the band round the silhouette, in pixels."""

    # Set by the data manager, or without meaning here: masks decide the mixture and never reject a pixel.
    num_rays_per_batch: tyro.conf.Suppress[int] = 4096
    """Rays per batch; the data manager's own setting replaces it."""
    keep_full_image: tyro.conf.Suppress[bool] = False
    """Unused."""
    is_equirectangular: tyro.conf.Suppress[bool] = False
    """Unused: all cameras are pinholes."""
    ignore_mask: tyro.conf.Suppress[bool] = False
    """Unused."""
    fisheye_crop_radius: tyro.conf.Suppress[Optional[float]] = None
    """Unused: all cameras are pinholes."""
    rejection_sample_mask: tyro.conf.Suppress[bool] = True
    """Unused: draws are exact, nothing is rejected."""
    max_num_iterations: tyro.conf.Suppress[int] = 100
    """Unused."""


class PixelPools(NamedTuple):
    """Several sets of pixels, each kept as runs of consecutive flat indices (view, row, column; row-major).

    A mask's row is a run or two, so the pools of a hundred views of several megapixels take a few megabytes, where
    a list of their pixels would take a gigabyte; and a draw is exact, with no rejection.

    The runs of all sets stand one after the other, so that a rank (the how-manieth pixel of them all) names one pixel.
    NumPy, as torch's search starts its threads for a few hundred values, which costs more than the search.
    """

    rank_ends: Int[np.ndarray, "runs"]
    """Number of pixels in a run and all runs before it."""
    rank_to_flat: Int[np.ndarray, "runs"]
    """What takes a rank within the run to the pixel's flat index, added."""
    offsets: Int[np.ndarray, "pools"]
    """Rank of each set's first pixel."""
    sizes: Int[np.ndarray, "pools"]
    """Number of pixels in each set."""

    def flat_index(self, rank: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Flat indices of the pixels with these ranks, (n,) to (n,)."""
        return rank + self.rank_to_flat[np.searchsorted(self.rank_ends, rank, side="right")]


def _runs(pixels: Bool[np.ndarray, "h w"]) -> Tuple[Int[np.ndarray, "runs"], Int[np.ndarray, "runs"]]:
    """Starts and lengths of the runs of True in row-major order; a run may go on over the end of a row."""
    edges = np.flatnonzero(np.diff(pixels.reshape(-1).astype(np.int8), prepend=0, append=0))
    return edges[0::2], edges[1::2] - edges[0::2]


def _regions(mask: Bool[np.ndarray, "h w"], band_px: float) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Foreground, band and background of one mask, each (h, w) bool; the band overlaps the foreground."""
    foreground = mask.astype(np.uint8)
    # The nearest pixel of the other kind is half a pixel past the outline.
    inside_px = cv2.distanceTransform(foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5
    outside_px = cv2.distanceTransform(1 - foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5
    band = np.where(mask, inside_px, outside_px) <= band_px
    # Without any outline the transform measures to nothing and its values mean nothing.
    band &= bool(mask.any() and not mask.all())
    return mask, band, ~mask & ~band


def build_pools(masks: Bool[np.ndarray, "n h w"], views: Sequence[int], patch_size: int, band_px: float) -> PixelPools:
    """Pools of possible patch centres over the given views: foreground, silhouette band, background, in this order.

    Only centres whose whole patch lies inside the frame are in a pool. A set may be empty, in one view or in all.

    Args:
        masks: foreground of every view of the scene.
        views: the views to draw from.
        patch_size: side of a patch in pixels, odd.
        band_px: half the width of the band.

    Returns:
        Three pools, whose flat indices count the pixels of all of `masks`.
    """
    _, height, width = masks.shape
    half = patch_size // 2
    inside = np.zeros((height, width), dtype=bool)
    inside[half : height - half, half : width - half] = True
    starts: Tuple[list, list, list] = ([], [], [])
    lengths: Tuple[list, list, list] = ([], [], [])
    for view in views:
        for pool, region in enumerate(_regions(masks[view], band_px)):
            start, length = _runs(region & inside)
            starts[pool].append(start + view * height * width)
            lengths[pool].append(length)
    sizes = np.array([sum(int(length.sum()) for length in pool) for pool in lengths], dtype=np.int64)
    start = np.concatenate([run for pool in starts for run in pool]).astype(np.int64)
    length = np.concatenate([run for pool in lengths for run in pool]).astype(np.int64)
    rank_ends = np.cumsum(length)
    return PixelPools(
        rank_ends=rank_ends,
        rank_to_flat=start - (rank_ends - length),
        offsets=np.cumsum(sizes) - sizes,
        sizes=sizes,
    )


class PatchSampler(PixelSampler):
    """Draws batches of whole patches. Random numbers come from torch's global generator (machine.seed).

    Args:
        config: the mixture and the size of the patches.
        masks: foreground of every view of the scene, (N, H, W).
        views: the scene's indices of the split's views; batches count views by their place in it.
        num_rays_per_batch: rays per batch; see `num_rays_per_batch`.
        pools: `build_pools` of the same masks, views and config, where they exist already.

    Raises:
        PmniError: even or too large patches, negative fractions, no view to draw from.
    """

    config: PatchSamplerConfig

    def __init__(
        self,
        config: PatchSamplerConfig,
        masks: Bool[np.ndarray, "N H W"],
        views: Sequence[int],
        num_rays_per_batch: int,
        pools: Optional[PixelPools] = None,
    ) -> None:
        num_views, self._height, self._width = masks.shape
        _check(config, self._height, self._width)
        # The base class writes into its config; a copy keeps the run's own as the user set it.
        super().__init__(replace(config), num_rays_per_batch=num_rays_per_batch)
        size = config.patch_size
        self.pools = build_pools(masks, views, size, config.band_px) if pools is None else pools
        self._pool_ends = self._mixture()
        reach = torch.arange(size) - size // 2
        dy, dx = torch.meshgrid(reach, reach, indexing="ij")
        self._dy, self._dx = dy.reshape(-1), dx.reshape(-1)
        self._view_in_split = torch.full((num_views,), -1, dtype=torch.int64)
        self._view_in_split[list(views)] = torch.arange(len(views))

    def _mixture(self) -> Float[np.ndarray, "pools"]:
        """Cumulative shares of the pools; an empty pool leaves its share to the others."""
        wanted = (self.config.foreground_fraction, self.config.band_fraction, self.config.background_fraction)
        shares = np.array(wanted) * (self.pools.sizes > 0)
        if shares.sum() <= 0:
            raise PmniError(
                "pixel-sampler: no pixel of any view belongs to a region with a fraction above zero; "
                "give foreground-fraction a value above zero"
            )
        ends = np.cumsum(shares)
        return ends / ends[-1]

    @property
    def num_rays_per_batch(self) -> int:
        """Rays that a batch really holds: any number set is rounded down to whole patches, one at the least."""
        return self._num_patches * self.config.patch_size**2

    @num_rays_per_batch.setter
    def num_rays_per_batch(self, num_rays_per_batch: int) -> None:
        self._num_patches = max(1, int(num_rays_per_batch) // self.config.patch_size**2)

    def draw_centres(self, num_patches: int) -> Int[Tensor, "num_patches"]:
        """Flat indices of patch centres, (num_patches,) int64, the pools' shares kept to within one patch.

        One random offset for all patches (systematic sampling) keeps the shares exact on average for any number.
        """
        # Doubles: a float has too few bits to reach every pixel of a large pool.
        random = torch.rand(1 + num_patches, dtype=torch.float64).numpy()
        place = (np.arange(num_patches) + random[0]) / num_patches
        pool = np.searchsorted(self._pool_ends, place, side="right").clip(max=len(self._pool_ends) - 1)
        size = self.pools.sizes[pool]
        rank = (random[1:] * size).astype(np.int64).clip(max=size - 1)
        return torch.from_numpy(self.pools.flat_index(self.pools.offsets[pool] + rank))

    def sample(self, image_batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """A batch of patches gathered from the scene's maps, which are read in place.

        Args:
            image_batch: maps of all views of the scene, each (N, H, W, C), any dtype.

        Returns:
            Each map's values as (R, C) float32, and `indices` (R, 3) int64: view in the split, row, column.
            R is `num_rays_per_batch`; patch by patch, row-major inside a patch.
        """
        centres = self.draw_centres(self._num_patches)
        pixels_per_view = self._height * self._width
        view = centres // pixels_per_view
        pixel = centres - view * pixels_per_view
        y = pixel // self._width
        x = pixel - y * self._width
        flat = (centres[:, None] + self._dy * self._width + self._dx).reshape(-1)
        indices = torch.stack(
            [
                self._view_in_split[view][:, None].expand(-1, len(self._dy)),
                y[:, None] + self._dy,
                x[:, None] + self._dx,
            ],
            dim=-1,
        )
        batch = {key: maps.reshape(-1, maps.shape[-1])[flat].float() for key, maps in image_batch.items()}
        batch["indices"] = indices.reshape(-1, 3)
        return batch


def _check(config: PatchSamplerConfig, height: int, width: int) -> None:
    """Raises PmniError for settings that no sampler can follow."""
    size = config.patch_size
    if size < 1 or size % 2 == 0:
        raise PmniError(f"pixel-sampler.patch-size: {size} is not an odd number of pixels; use 1, 3, 5, ...")
    if size > min(height, width):
        raise PmniError(f"pixel-sampler.patch-size: {size} exceeds the maps ({width}x{height}); use a smaller patch")
    if min(config.foreground_fraction, config.band_fraction, config.background_fraction, config.band_px) < 0:
        raise PmniError("pixel-sampler: fractions and band-px must not be negative")
