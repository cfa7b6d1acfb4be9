# SPDX-License-Identifier: Apache-2.0
"""Patch sampler, compared with brute-force counts on random masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pmni_nerfstudio.data.patch_sampler import PatchSampler, PatchSamplerConfig, build_pools
from pmni_nerfstudio.errors import PmniError


def disc_masks(num_views: int = 3, height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([(x - 35 - 3 * i) ** 2 + (y - 30) ** 2 < 15**2 for i in range(num_views)])


def pool_members(pools, pool: int) -> np.ndarray:
    """All flat indices of a pool, in order."""
    first, size = int(pools.offsets[pool]), int(pools.sizes[pool])
    return pools.flat_index(np.arange(first, first + size))


def slow_regions(mask: np.ndarray, band_px: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Foreground, band and background by brute force: distances of all pairs of foreground and background pixels."""
    band = np.zeros_like(mask)
    points = np.argwhere(np.ones_like(mask))
    for y, x in points:
        others = points[mask.reshape(-1) != mask[y, x]]
        if len(others):
            band[y, x] = np.sqrt(((others - [y, x]) ** 2).sum(1).min()) - 0.5 <= band_px
    return mask, band, ~mask & ~band


@settings(max_examples=40, deadline=None)
@given(
    masks=arrays(bool, st.tuples(st.integers(1, 3), st.integers(3, 7), st.integers(3, 8))),
    patch_size=st.sampled_from([1, 3]),
    band_px=st.floats(0, 3),
    data=st.data(),
)
def test_pools_hold_exactly_the_pixels_of_their_region(masks, patch_size, band_px, data):
    views = data.draw(st.lists(st.sampled_from(range(len(masks))), min_size=1, unique=True))
    pools = build_pools(masks, views, patch_size, band_px)
    half = patch_size // 2
    num_views, height, width = masks.shape
    expected: tuple[list, list, list] = ([], [], [])
    for view in views:
        for pool, region in enumerate(slow_regions(masks[view], band_px)):
            for y, x in np.argwhere(region):
                if half <= y < height - half and half <= x < width - half:
                    expected[pool].append((view * height + y) * width + x)
    for pool in range(3):
        assert pool_members(pools, pool).tolist() == expected[pool]


def test_patches_lie_inside_the_frame_row_major_and_read_their_pixels():
    masks = disc_masks()
    num_views, height, width = masks.shape
    number = torch.arange(masks.size, dtype=torch.float64).reshape(num_views, height, width, 1)
    sampler = PatchSampler(PatchSamplerConfig(patch_size=5), masks, views=(2, 0), num_rays_per_batch=50 * 25)
    for _ in range(20):
        batch = sampler.sample({"number": number, "mask": torch.from_numpy(masks)[..., None]})
        patches = batch["indices"].reshape(50, 5, 5, 3)
        assert (patches[..., 0] == patches[:, :1, :1, 0]).all()
        assert (patches[..., 1] == patches[:, :1, :1, 1] + torch.arange(5)[:, None]).all()
        assert (patches[..., 2] == patches[:, :1, :1, 2] + torch.arange(5)).all()
        view, y, x = batch["indices"].T
        assert y.min() >= 0 and y.max() < height and x.min() >= 0 and x.max() < width
        assert set(view.tolist()) == {0, 1}  # counted in the split, though the scene's views are 2 and 0
        scene_view = torch.tensor([2, 0])[view]
        assert torch.equal(batch["number"][:, 0], number[scene_view, y, x, 0].float())
        assert torch.equal(batch["mask"][:, 0], torch.from_numpy(masks)[scene_view, y, x].float())
        assert batch["mask"].dtype == torch.float32 and batch["indices"].dtype == torch.int64


def test_mixture_has_the_configured_fractions():
    masks = disc_masks()
    config = PatchSamplerConfig(foreground_fraction=2, band_fraction=1, background_fraction=1, band_px=2.0)
    sampler = PatchSampler(config, masks, views=(0, 1, 2), num_rays_per_batch=9 * 4001)
    pools = [np.zeros(masks.size, bool) for _ in range(3)]
    for pool, members in enumerate(pools):
        members[pool_members(sampler.pools, pool)] = True
    centers = sampler.draw_centers(4001).numpy()
    background = pools[2][centers].sum()
    assert abs(background - 4001 / 4) <= 1
    # The inner half of the band is foreground as well; only the outer half distinguishes the two.
    outer_band = (pools[1] & ~pools[0])[centers].sum()
    outer_share = (pools[1] & ~pools[0]).sum() / pools[1].sum()
    assert abs(outer_band - 4001 / 4 * outer_share) < 5 * np.sqrt(4001 / 4 * outer_share * (1 - outer_share))


def test_draws_are_uniform_over_a_pool():
    masks = disc_masks(num_views=2)
    config = PatchSamplerConfig(patch_size=1, band_fraction=0, background_fraction=0)
    sampler = PatchSampler(config, masks, views=(0, 1), num_rays_per_batch=1)
    torch.manual_seed(0)
    draws = 200 * int(sampler.pools.sizes[0])
    counts = np.bincount(sampler.draw_centers(draws).numpy(), minlength=masks.size)
    assert (counts[~masks.reshape(-1)] == 0).all()
    # Chi squared of the counts against 200 each, 5 standard deviations wide.
    inside = counts[masks.reshape(-1)]
    assert abs(((inside - 200) ** 2 / 200).sum() - len(inside)) < 5 * np.sqrt(2 * len(inside))


@pytest.mark.parametrize("patch_size", [1, 3, 5])
@pytest.mark.parametrize("requested", [0, 1, 8, 9, 10, 1024, 32768])
def test_any_number_of_rays_is_rounded_down_to_whole_patches(patch_size, requested):
    masks = disc_masks()
    sampler = PatchSampler(PatchSamplerConfig(patch_size=patch_size), masks, views=(0, 1, 2), num_rays_per_batch=64)
    expected = max(requested // patch_size**2, 1) * patch_size**2
    maps = {"mask": torch.from_numpy(masks)[..., None]}
    sampler.set_num_rays_per_batch(requested)
    assert sampler.num_rays_per_batch == expected == len(sampler.sample(maps)["indices"])
    sampler.set_num_rays_per_batch(64)
    sampler.num_rays_per_batch = requested  # as ns-export does
    assert sampler.num_rays_per_batch == expected == len(sampler.sample(maps)["mask"])


def test_config_stays_as_the_user_set_it():
    config = PatchSamplerConfig(num_rays_per_batch=4096)
    PatchSampler(config, disc_masks(), views=(0,), num_rays_per_batch=9)
    assert config.num_rays_per_batch == 4096


def test_same_seed_same_batches():
    masks = disc_masks()
    sampler = PatchSampler(PatchSamplerConfig(), masks, views=(0, 1, 2), num_rays_per_batch=900)
    torch.manual_seed(5)
    first = sampler.draw_centers(100)
    assert not torch.equal(first, sampler.draw_centers(100))
    torch.manual_seed(5)
    assert torch.equal(first, sampler.draw_centers(100))


@pytest.mark.parametrize("fill", [False, True])
def test_empty_and_full_masks_are_sampled(fill):
    masks = disc_masks(num_views=2)
    masks[1] = fill
    sampler = PatchSampler(PatchSamplerConfig(patch_size=1), masks, views=(0, 1), num_rays_per_batch=3000)
    view = sampler.draw_centers(3000) // masks[0].size
    assert (view == 1).any()
    alone = PatchSampler(PatchSamplerConfig(patch_size=1), masks, views=(1,), num_rays_per_batch=500)
    assert (alone.draw_centers(500) // masks[0].size == 1).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patch_size": 4}, "odd"),
        ({"patch_size": 61}, "exceeds"),
        ({"band_fraction": -0.1}, "negative"),
        ({"foreground_fraction": 0, "band_fraction": 0, "background_fraction": 0}, "above zero"),
    ],
)
def test_invalid_settings_raise_an_error(settings, words):
    with pytest.raises(PmniError, match=words):
        PatchSampler(PatchSamplerConfig(**settings), disc_masks(), views=(0,), num_rays_per_batch=90)


def test_pools_of_large_maps_stay_small():
    """Four views of 1500x2000 with a noisy contour and holes, whose pixels as a list would take 48 MB."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:1500, :2000]
    disc = (x - 1000) ** 2 + (y - 750) ** 2 < (700 + 5 * rng.standard_normal((1500, 2000))) ** 2
    disc[rng.integers(0, 1500, 500), rng.integers(0, 2000, 500)] ^= True
    masks = np.broadcast_to(disc, (4, 1500, 2000))
    pools = build_pools(masks, range(4), patch_size=3, band_px=4.0)
    assert int(pools.sizes.sum()) > 4 * 1498 * 1998
    assert sum(array.nbytes for array in pools) < 4 * 2**20
