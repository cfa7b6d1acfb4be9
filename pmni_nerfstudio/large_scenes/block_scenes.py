# SPDX-License-Identifier: Apache-2.0
"""Scene folders of single blocks, in a unit sphere of their own, at the poses that all views determined together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from pmni_nerfstudio.data.atomic import replaced_folders
from pmni_nerfstudio.data.cropped_frames import write_cropped
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.data.scene import UNKNOWN
from pmni_nerfstudio.data.scene_writer import write_scene_cameras, write_view, write_whole_masks
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.geometry.transforms import flip_y_and_z, transform_poses
from pmni_nerfstudio.large_scenes.block_views import BlockPixels, Windows

NORMALS = "normal_camera_space_measured"


def write_block_scene(
    folder: Path,
    block: int,
    views: SplitViews,
    c2w: Float[np.ndarray, "n 4 4"],
    pixels: BlockPixels,
    windows: Windows,
    world_from_unit: Float[np.ndarray, "4 4"],
    unit_from_block: Float[np.ndarray, "4 4"],
) -> None:
    """Write a scene folder of one block, as a whole or not at all; one view after another.

    Args:
        folder: folder to write, which does not exist.
        block: index of the block.
        views: views of the whole scene, with the intrinsics that belong to the poses.
        c2w: their poses, unit-sphere world.
        pixels: blocks that their pixels show.
        windows: parts of the frames that show this block.
        world_from_unit: similarity from the unit-sphere world to the data world.
        unit_from_block: similarity from the block's unit sphere to the unit-sphere world.
    """
    names = [views.names[view] for view in windows.views]
    width, height = windows.size
    K = views.K[windows.views].copy()
    K[:, :2, 2] -= windows.corner
    holes = []
    with replaced_folders([folder]) as (new,):
        (new / UNKNOWN).mkdir(parents=True)
        for name, view, (x, y) in zip(names, windows.views, windows.corner):
            rows, columns = slice(y, y + height), slice(x, x + width)
            on_object = views.masks[view, rows, columns]
            mask = on_object & pixels.shown(view, block, rows, columns)
            unknown = on_object & ~mask
            if views.unknown is not None:
                unknown |= views.unknown[view, rows, columns]
            normals = views.normals[view, rows, columns].astype(np.float32)
            holes.append(write_view(new, name, np.where(mask[..., None], flip_y_and_z(normals), 0), mask, NORMALS))
            write_png(new / UNKNOWN / f"{name}.png", unknown)
        write_whole_masks(new, names, holes)
        write_cropped(new, windows.corner, views.width, views.height)
        poses = transform_poses(np.linalg.inv(unit_from_block), c2w[windows.views])
        write_scene_cameras(new, K, poses, world_from_unit @ unit_from_block, (width, height))
