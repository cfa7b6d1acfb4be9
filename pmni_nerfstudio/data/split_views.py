# SPDX-License-Identifier: Apache-2.0
"""The views of one split: all that the model and its training read of a scene."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.data.close_ups import close_ups_among
from pmni_nerfstudio.data.observations import Observations
from pmni_nerfstudio.data.scene import Scene
from pmni_nerfstudio.errors import PmniError

METADATA_KEY = "split_views"
"""Key of the `SplitViews` in `DataparserOutputs.metadata`, which nerfstudio passes on to the dataset and the model."""


@dataclass(frozen=True, eq=False)
class SplitViews(Observations):
    """The n views of a split, with the poses that training starts from; normals are float16.

    The maps share the scene's memory unless views are held out. Instances are immutable: a deep copy is the instance
    itself, so that nerfstudio can deep-copy its metadata without copying the maps.
    """

    root: Path
    """Folder of the scene, for messages."""
    indices: tuple[int, ...]
    """Index of each view among all views of the scene, ascending."""
    c2w: Float[np.ndarray, "n 4 4"]
    """Initial poses, camera to unit-sphere world, OpenCV axes. Placeholders if `has_poses` is false."""
    has_poses: bool
    """Whether the initial poses mean anything; otherwise registration has to find them without an initial guess."""
    depth_files: tuple[Path, ...] | None
    """Integrated depth map of each view; None if the scene has none."""

    @property
    def close_ups(self) -> Bool[np.ndarray, " n"]:
        """Views that are close-ups at the initial poses (see close_ups.py)."""
        return close_ups_among(self, self.c2w if self.has_poses else None)

    def __deepcopy__(self, memo: dict) -> SplitViews:
        return self


def select_views(scene: Scene, indices: Sequence[int], c2w: Float[np.ndarray, "N 4 4"], has_poses: bool) -> SplitViews:
    """Views of a scene by index.

    Args:
        scene: scene with N views.
        indices: indices of the n views, ascending.
        c2w: initial poses of all N views, camera to unit-sphere world, OpenCV axes.
        has_poses: whether these poses mean anything.
    """
    chosen = list(indices)
    everything = len(chosen) == scene.num_views
    return SplitViews(
        root=scene.root,
        indices=tuple(chosen),
        names=tuple(scene.names[i] for i in chosen),
        K=scene.K[chosen],
        c2w=c2w[chosen],
        has_poses=has_poses,
        masks=scene.masks if everything else scene.masks[chosen],
        unknown=scene.unknown if everything or scene.unknown is None else scene.unknown[chosen],
        sizes=None if scene.sizes is None else scene.sizes[chosen],
        normals=scene.normals if everything else scene.normals[chosen],
        depth_files=None if scene.depth_files is None else tuple(scene.depth_files[i] for i in chosen),
    )


def split_views_of(metadata: Mapping[str, Any]) -> SplitViews:
    """The `SplitViews` in the metadata of a data parser's outputs, a dataset or a model."""
    views = metadata[METADATA_KEY]
    assert isinstance(views, SplitViews)
    return views


def split_indices(scene: Scene, exclude: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Indices of the training views and of the held-out views, both ascending.

    Raises:
        PmniError: an index is out of range, or no view is left to train on.
    """
    wrong = sorted(view for view in set(exclude) if not 0 <= view < scene.num_views)
    if wrong:
        raise PmniError(
            f"exclude-views: {scene.root} has no view {wrong[0]}; its views are numbered 0 to {scene.num_views - 1}"
        )
    train = tuple(view for view in range(scene.num_views) if view not in exclude)
    if not train:
        raise PmniError(
            f"exclude-views: all {scene.num_views} views of {scene.root} are excluded; leave some to train on"
        )
    return train, tuple(sorted(set(exclude)))
