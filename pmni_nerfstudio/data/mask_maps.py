# SPDX-License-Identifier: Apache-2.0
"""Reading of the masks of all views, and of the pixels where something else stands in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from pmni_nerfstudio.data import images
from pmni_nerfstudio.data.map_checks import check_mask, check_size
from pmni_nerfstudio.data.packed_masks import Masks, PackedMasks
from pmni_nerfstudio.data.reduction import reduced_shape
from pmni_nerfstudio.data.resample import resample_mask

T = TypeVar("T")

_MANY_PIXELS = 1 << 23
"""Pixels of a map above which one view is decoded at a time, which takes 35 bytes a pixel, instead of two."""


def for_each_view(work: Callable[[int], T], count: int, pixels: int) -> list[T]:
    """Results of work(0), ..., work(count - 1) on maps of a size; few at a time, to limit the decoded maps in memory."""
    with ThreadPoolExecutor(max_workers=2 if pixels <= _MANY_PIXELS else 1) as pool:
        return list(pool.map(work, range(count)))


def read_masks(
    files: Sequence[Path], normal_files: Sequence[Path], are_packed: bool
) -> tuple[Masks, np.ndarray | None]:
    """Masks (N, H, W), and width and height of each (N, 2) if they differ; smaller ones are padded with zeros."""
    first = images.read_mask(files[0])
    shape = (len(files), first.shape[0], first.shape[1])
    masks = PackedMasks(shape) if are_packed else np.empty(shape, dtype=bool)

    def read(view: int) -> np.ndarray | None:
        mask = images.read_mask(files[view])
        check_mask(files[view], mask, may_be_full=True)  # in close-ups, which the cameras tell
        if mask.shape != first.shape:
            check_size(files[view], mask.shape, images.read_normals(normal_files[view]).shape[:2], normal_files[view])
            return mask
        masks[view] = mask
        return None

    others = {view: mask for view, mask in enumerate(for_each_view(read, len(files), first.size)) if mask is not None}
    if not others:
        return masks, None
    shapes = np.array([others[view].shape if view in others else first.shape for view in range(len(files))])
    padded = np.zeros((len(files), *shapes.max(axis=0)), dtype=bool)
    for view, (height, width) in enumerate(shapes):
        padded[view, :height, :width] = others[view] if view in others else masks[view]
    return padded, shapes[:, ::-1]


def read_unknown(
    files: Sequence[Path], sizes: np.ndarray, references: Sequence[Path], new_sizes: np.ndarray, step: int
) -> np.ndarray:
    """Every step-th pixel (N, H', W') where something else stands in front, of files of (N, 2) sizes (width, height).

    The step is taken on maps of the new sizes.
    """
    unknown = np.zeros((len(files), *reduced_shape(new_sizes.max(axis=0), step)), dtype=bool)

    def read(view: int) -> None:
        pixels, size = images.read_mask(files[view]), (int(new_sizes[view, 0]), int(new_sizes[view, 1]))
        check_size(files[view], pixels.shape, tuple(sizes[view, ::-1].tolist()), references[view])
        pixels = pixels if size == pixels.shape[::-1] else resample_mask(pixels, size)
        kept = pixels[::step, ::step]
        unknown[view, : kept.shape[0], : kept.shape[1]] = kept

    for_each_view(read, len(files), int(sizes.prod(axis=1).max()))
    return unknown
