# SPDX-License-Identifier: Apache-2.0
"""Sampling of k x k pixel patches from a mixture of foreground, silhouette band and background."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Dict, NamedTuple, Optional, Sequence, Tuple, Type

import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float, Int
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from torch import Tensor

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.hull import mask_distance_px


@dataclass
class PatchSamplerConfig(PixelSamplerConfig):
    """Configuration of the patch sampler. Fractions are normalized to a sum of one."""

    _target: Type = field(default_factory=lambda: PatchSampler)
    """Target class to instantiate."""
    patch_size: int = 3
    """Width and height of the square patches in pixels, odd; 1 samples single pixels."""
    foreground_fraction: float = 0.6
    """Fraction of patches whose center is anywhere on the mask."""
    band_fraction: float = 0.3
    """Fraction of patches whose center is within band_px of the contour of the mask, on either side."""
    background_fraction: float = 0.1
    """Fraction of patches whose center is outside of the mask and the band."""
    band_px: float = 4.0
    """Half the width of the band around the contour of the mask, in pixels."""

    # Hidden: set by the data manager or unused. Masks define the mixture; pixels are never rejected.
    num_rays_per_batch: tyro.conf.Suppress[int] = 4096
    """Rays per batch; replaced by the setting of the data manager."""
    keep_full_image: tyro.conf.Suppress[bool] = False
    """Unused."""
    is_equirectangular: tyro.conf.Suppress[bool] = False
    """Unused: all cameras are pinholes."""
    ignore_mask: tyro.conf.Suppress[bool] = False
    """Unused."""
    fisheye_crop_radius: tyro.conf.Suppress[Optional[float]] = None
    """Unused: all cameras are pinholes."""
    rejection_sample_mask: tyro.conf.Suppress[bool] = True
    """Unused: sampling is exact and rejects nothing."""
    max_num_iterations: tyro.conf.Suppress[int] = 100
    """Unused."""


class PixelPools(NamedTuple):
    """Sets of pixels in run-length encoding: runs of consecutive flat indices (view, row, column; row-major).

    Rows of a mask have one or two runs, so that the pools of a hundred views of several megapixels take a few megabytes
    instead of a gigabyte for lists of pixels, and sampling needs no rejection.

    The runs of all pools are concatenated; the rank of a pixel is its position in this sequence. NumPy is used because
    torch's binary search would start threads for a few hundred values.
    """

    rank_ends: Int[np.ndarray, "runs"]
    """Number of pixels in each run and all runs before it."""
    rank_to_flat: Int[np.ndarray, "runs"]
    """Offset from the rank of a pixel to its flat index, for each run."""
    offsets: Int[np.ndarray, "pools"]
    """Rank of the first pixel of each pool."""
    sizes: Int[np.ndarray, "pools"]
    """Number of pixels in each pool."""

    def flat_index(self, rank: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Flat indices (n,) of the pixels with the given ranks (n,)."""
        return rank + self.rank_to_flat[np.searchsorted(self.rank_ends, rank, side="right")]


def _runs(pixels: Bool[np.ndarray, "h w"]) -> Tuple[Int[np.ndarray, "runs"], Int[np.ndarray, "runs"]]:
    """Starts and lengths of the runs of True in row-major order; runs may extend over the end of a row."""
    edges = np.flatnonzero(np.diff(pixels.reshape(-1).astype(np.int8), prepend=0, append=0))
    return edges[0::2], edges[1::2] - edges[0::2]


def _regions(
    mask: Bool[np.ndarray, "h w"], band_px: float, unknown: Optional[Bool[np.ndarray, "h w"]]
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Foreground, band and background of a mask, each (h, w) bool; the band overlaps the foreground.

    Unknown pixels, which teach nothing, belong to none of them.
    """
    band = np.abs(mask_distance_px(mask)) <= band_px
    # Without a contour the distances are undefined.
    band &= bool(mask.any() and not mask.all())
    if unknown is None:
        return mask, band, ~mask & ~band
    return mask, band & ~unknown, ~mask & ~band & ~unknown


def build_pools(
    masks: Bool[np.ndarray, "n h w"],
    views: Sequence[int],
    patch_size: int,
    band_px: float,
    unknown: Optional[Bool[np.ndarray, "n h w"]] = None,
) -> PixelPools:
    """Pools of patch centers in the given views: foreground, silhouette band and background, in this order.

    Pools contain only centers of patches that are completely inside the image. They may be empty.

    Args:
        masks: foreground of all views of the scene.
        views: indices of the views to sample.
        patch_size: width and height of a patch in pixels, odd.
        band_px: half the width of the band, in pixels.
        unknown: pixels that are neither foreground nor background, if there are any.

    Returns:
        Three pools with flat indices into `masks`.
    """
    _, height, width = masks.shape
    half = patch_size // 2
    inside = np.zeros((height, width), dtype=bool)
    inside[half : height - half, half : width - half] = True
    starts: Tuple[list, list, list] = ([], [], [])
    lengths: Tuple[list, list, list] = ([], [], [])
    for view in views:
        for pool, region in enumerate(_regions(masks[view], band_px, None if unknown is None else unknown[view])):
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


def grouped_pools(
    masks: Bool[np.ndarray, "n h w"],
    groups: Sequence[Sequence[int]],
    patch_size: int,
    band_px: float,
    unknown: Optional[Bool[np.ndarray, "n h w"]] = None,
) -> PixelPools:
    """Pools of several groups of views, one group after another; see `build_pools`."""
    parts = [build_pools(masks, views, patch_size, band_px, unknown) for views in groups]
    if len(parts) == 1:
        return parts[0]
    before = np.cumsum([0] + [int(part.sizes.sum()) for part in parts])
    return PixelPools(
        rank_ends=np.concatenate([part.rank_ends + rank for part, rank in zip(parts, before)]),
        rank_to_flat=np.concatenate([part.rank_to_flat - rank for part, rank in zip(parts, before)]),
        offsets=np.concatenate([part.offsets + rank for part, rank in zip(parts, before)]),
        sizes=np.concatenate([part.sizes for part in parts]),
    )


class PatchSampler(PixelSampler):
    """Sampler of batches of whole patches. It uses torch's global random generator (machine.seed).

    Args:
        config: configuration.
        masks: foreground of all views of the scene, (N, H, W).
        views: indices in the scene of the views of the split; batches contain the position in this sequence.
        num_rays_per_batch: rays per batch, rounded down to whole patches.
        pools: `build_pools` of the same masks, views and config, if they exist already.
        unknown: pixels that are neither foreground nor background, (N, H, W), if there are any.
        groups: indices in the scene of groups of the views, whose share of the patches is that of their views, whatever
            their pixels; None for one group. `pools` are those of these groups.

    Raises:
        PmniError: the patch size is even or too large, a fraction is negative, or all regions to sample are empty.
    """

    config: PatchSamplerConfig

    def __init__(
        self,
        config: PatchSamplerConfig,
        masks: Bool[np.ndarray, "N H W"],
        views: Sequence[int],
        num_rays_per_batch: int,
        pools: Optional[PixelPools] = None,
        unknown: Optional[Bool[np.ndarray, "N H W"]] = None,
        groups: Optional[Sequence[Sequence[int]]] = None,
    ) -> None:
        num_views, self._height, self._width = masks.shape
        _check(config, self._height, self._width)
        # The base class writes into its config; a copy keeps the run's own as the user set it.
        super().__init__(replace(config), num_rays_per_batch=num_rays_per_batch)
        size = config.patch_size
        groups = [views] if groups is None else groups
        self.pools = grouped_pools(masks, groups, size, config.band_px, unknown) if pools is None else pools
        self._shares = [len(group) for group in groups]
        self._pool_ends = self._mixture()
        reach = torch.arange(size) - size // 2
        dy, dx = torch.meshgrid(reach, reach, indexing="ij")
        self._dy, self._dx = dy.reshape(-1), dx.reshape(-1)
        self._view_in_split = torch.full((num_views,), -1, dtype=torch.int64)
        self._view_in_split[list(views)] = torch.arange(len(views))

    def _mixture(self) -> Float[np.ndarray, "pools"]:
        """Cumulative fractions of the pools, normalized over the pools that are not empty."""
        config = self.config
        fractions = (config.foreground_fraction, config.band_fraction, config.background_fraction)
        shares = np.outer(self._shares, fractions).ravel() * (self.pools.sizes > 0)
        if shares.sum() <= 0:
            raise PmniError(
                "pixel-sampler: all regions with a fraction above zero are empty in all views; "
                "set foreground-fraction to a value above zero"
            )
        ends = np.cumsum(shares)
        return ends / ends[-1]

    @property
    def num_rays_per_batch(self) -> int:
        """Rays per batch. Assigned values are rounded down to whole patches, at least one."""
        return self._num_patches * self.config.patch_size**2

    @num_rays_per_batch.setter
    def num_rays_per_batch(self, num_rays_per_batch: int) -> None:
        self._num_patches = max(1, int(num_rays_per_batch) // self.config.patch_size**2)

    def draw_centers(self, num_patches: int) -> Int[Tensor, "num_patches"]:
        """Random patch centers as flat indices (num_patches,) int64.

        Systematic sampling, with one random offset for all patches, keeps the fraction of each pool to within one patch
        and exact on average.
        """
        # Double precision: single has too few bits to reach each pixel of a large pool.
        random = torch.rand(1 + num_patches, dtype=torch.float64).numpy()
        place = (np.arange(num_patches) + random[0]) / num_patches
        pool = np.searchsorted(self._pool_ends, place, side="right").clip(max=len(self._pool_ends) - 1)
        size = self.pools.sizes[pool]
        rank = (random[1:] * size).astype(np.int64).clip(max=size - 1)
        return torch.from_numpy(self.pools.flat_index(self.pools.offsets[pool] + rank))

    def sample(self, image_batch: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Sample a batch of patches from maps.

        Args:
            image_batch: maps of all views of the scene, each (N, H, W, C), any dtype.

        Returns:
            Values of each map as (R, C) float32, and `indices` (R, 3) int64: view in the split, row, column. R is
            `num_rays_per_batch`; the order is patch by patch, row-major within a patch.
        """
        centers = self.draw_centers(self._num_patches)
        pixels_per_view = self._height * self._width
        view = centers // pixels_per_view
        pixel = centers - view * pixels_per_view
        y = pixel // self._width
        x = pixel - y * self._width
        flat = (centers[:, None] + self._dy * self._width + self._dx).reshape(-1)
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
    """Raise PmniError for invalid settings."""
    size = config.patch_size
    if size < 1 or size % 2 == 0:
        raise PmniError(f"pixel-sampler.patch-size: {size} is not an odd number of pixels; use 1, 3, 5, ...")
    if size > min(height, width):
        raise PmniError(f"pixel-sampler.patch-size: {size} exceeds the maps ({width}x{height}); use a smaller patch")
    if min(config.foreground_fraction, config.band_fraction, config.background_fraction, config.band_px) < 0:
        raise PmniError("pixel-sampler: fractions and band-px must not be negative")
