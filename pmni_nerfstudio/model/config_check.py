# SPDX-License-Identifier: Apache-2.0
"""Checks of the model's configuration against the training views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmni_nerfstudio.chunks import parse_memory
from pmni_nerfstudio.data.split_views import SplitViews
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.blended_blocks import MAX_BLOCKS

if TYPE_CHECKING:
    from pmni_nerfstudio.model.pmni_model import PmniModelConfig


def check_config(config: PmniModelConfig, views: SplitViews, uses_registration: bool) -> None:
    """Check that a configuration fits the views.

    Raises:
        PmniError: Poses or depth maps are missing, or options of blocks are invalid.
    """
    root = views.root
    if not views.has_poses and not uses_registration:
        raise PmniError(f"{root}: has no camera poses; use `ns-train pmni`, whose registration finds them")
    if views.depth_files is None:
        for name in ("sdf_on_points", "point_consistency", "depth"):
            if any(getattr(config.loss_weights, name)):
                raise PmniError(
                    f"loss-weights.{name}: needs depth maps, and {root} has none; run `pmni integrate {root}`"
                )
    if not 1 <= config.blocks <= MAX_BLOCKS:
        raise PmniError(f"blocks: {config.blocks} is out of range; give a number from 1 to {MAX_BLOCKS}")
    if config.block_jobs is not None and config.block_jobs < 1:
        raise PmniError(f"block-jobs: {config.block_jobs} is not positive; give 1 or more")
    limit = parse_memory(config.max_memory)
    in_blocks = config.blocks > 1 or limit is not None
    if in_blocks and views.sizes is not None:
        raise PmniError(
            f"blocks: the views of {root} differ in size, which blocks do not support; use one, and no max-memory"
        )
    if in_blocks and config.start == "sphere":
        raise PmniError("blocks: need a surface to cut, and start is a sphere; use another start")
