# SPDX-License-Identifier: Apache-2.0
"""Label images of a scene with several objects: `instance/NN.png`, 0 where there is no object."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from pmni_nerfstudio.data.files import check_pixels, read_bytes, reason
from pmni_nerfstudio.data.listing import files_in_order, list_files
from pmni_nerfstudio.data.map_checks import check_size
from pmni_nerfstudio.data.scene import MASKS, Scene
from pmni_nerfstudio.errors import SceneError

INSTANCES = "instance"
"""Folder of the label images in a scene."""
_MODES = ("P", "L", "1", "I;16", "I;16B", "I")
"""Pillow's modes of images whose pixels are numbers."""
_MAX_LABEL = 1 << 16
_NOTABLE = 0.01
"""Share of pixels without a counterpart in mask or label image that is reported."""


def read_instances(scene: Scene) -> tuple[Int[np.ndarray, "n h w"], list[str]]:
    """Labels of all views, 0 off the masks and where no object is labelled.

    Args:
        scene: scene at the size of its files.

    Returns:
        Labels as stored, which need not agree between views, and warnings of one line each.

    Raises:
        SceneError: the folder or a view's image is missing, or an image has another size or no labels.
    """
    folder = scene.root / INSTANCES
    if not folder.is_dir():
        raise SceneError(f"{folder}: no such folder; put a label image of each view there (0: no object)")
    files = files_in_order(scene.names, list_files(folder, (".png",)), folder, scene.root / MASKS)
    labels = np.zeros(scene.masks.shape, dtype=np.int32)
    for view, file in enumerate(files):
        stored = read_labels(file)
        check_size(file, stored.shape, scene.masks[view][scene.frame(view)].shape, scene.mask_files[view])
        labels[view][scene.frame(view)] = stored
    warnings = []
    beyond, without = (labels > 0) & ~scene.masks, (labels == 0) & scene.masks
    for pixels, what in ((beyond, "labelled pixels are off the masks, and ignored"), (without, _WITHOUT_LABEL)):
        share = float(pixels.sum() / max(scene.masks.sum(), 1))
        if share > _NOTABLE:
            warnings.append(f"{folder}: {share:.1%} of the masks' area: {what}")
    labels[~scene.masks] = 0
    if not labels.any():
        raise SceneError(f"{folder}: no pixel of the masks has a label; number the objects from 1")
    return labels, warnings


_WITHOUT_LABEL = "mask pixels without a label, which serve the poses and belong to no object"


def read_labels(path: Path) -> Int[np.ndarray, "h w"]:
    """Numbers of a PNG file of gray values (8 or 16 bits) or with a palette, whose indices are the labels.

    Raises:
        SceneError: the file can't be decoded, or has colors.
    """
    encoded = read_bytes(path)
    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as picture:
            check_pixels(path, *picture.size)
            mode, labels = picture.mode, np.asarray(picture)
    except SceneError:
        raise
    except Exception as error:  # Pillow's parsers raise errors of many types
        raise SceneError(f"{path}: is not a readable PNG file ({reason(error)}); export it again") from error
    if mode not in _MODES:
        raise SceneError(f"{path}: has colors; save one number per object, as 8- or 16-bit gray or with a palette")
    labels = labels.astype(np.int32)
    if labels.min() < 0 or labels.max() >= _MAX_LABEL:
        raise SceneError(f"{path}: has labels beyond 16 bits; number the objects from 1")
    return labels
