# SPDX-License-Identifier: Apache-2.0
"""Images of a source beside normal maps and masks, whatever its format: mask_valid/, mask_unknown/ and instance/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.images import read_mask, write_png
from pmni_nerfstudio.data.instances import INSTANCES, read_labels
from pmni_nerfstudio.data.scene import UNKNOWN
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.file_matching import match_any, plain_path
from pmni_nerfstudio.importers.map_folders import FoundMaps, find_instances, find_unknown, find_valid
from pmni_nerfstudio.importers.source import Frame, Source
from pmni_nerfstudio.importers.view_maps import resampled_pixels


def with_further_maps(folder: Path, source: Source) -> Source:
    """The source with the images of `folder` that tell where normals count, what stands in front, and objects apart.

    They are named like the views or their normal maps.

    Raises:
        PmniError: There are images of a kind, but none of a view.
    """
    frames, warnings = list(source.frames), list(source.warnings)
    kinds: tuple[tuple[str, FoundMaps, str], ...] = (
        ("valid", find_valid(folder), "white where normals count"),
        ("unknown", find_unknown(folder), "white where something stands in front, black if nothing does"),
        ("instance", find_instances(folder), "with the number of the object at each pixel"),
    )
    names = [(_path_below(folder, frame.normals), frame.normals.stem, frame.name) for frame in frames]
    for kind, found, content in kinds:
        if not found.files:
            continue
        files = match_any(names, found.files)
        missing = [frame.name for frame, file in zip(frames, files) if file is None]
        if missing:
            place = next(iter(found.files.values())).parent
            raise PmniError(f"{folder}: {place} has no image of the view {missing[0]}; add it, {content}")
        frames = [replace(frame, **{kind: file}) for frame, file in zip(frames, files)]
        warnings += found.warnings
    return replace(source, frames=tuple(frames), warnings=tuple(warnings))


def write_further_maps(
    folder: Path, frames: list[Frame], K: np.ndarray, new_K: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> None:
    """Write mask_unknown/ and instance/ of a scene, undistorted and resampled by nearest neighbors.

    Args:
        folder: scene folder.
        frames: views; of each kind, all have an image or none has.
        K: the source's intrinsics (N, 3, 3) at `sizes`.
        new_K: intrinsics (N, 3, 3) of the scene.
        sizes: width and height of each view's maps in the scene.

    Raises:
        SceneError: An image is broken or has another aspect ratio than the maps.
    """
    kinds: tuple[tuple[str, list[Path | None], Callable[[Path], np.ndarray]], ...] = (
        (UNKNOWN, [frame.unknown for frame in frames], lambda path: read_mask(path).astype(np.uint8) * np.uint8(255)),
        (INSTANCES, [frame.instance for frame in frames], lambda path: read_labels(path).astype(np.uint16)),
    )
    for name, files, read in kinds:
        for view, (frame, file) in enumerate(zip(frames, files)):
            if file is not None:
                (folder / name).mkdir(exist_ok=True)
                pixels = resampled_pixels(file, read(file), frame.lens, K[view], new_K[view], sizes[view])
                write_png(folder / name / f"{frame.name}.png", pixels)


def _path_below(folder: Path, file: Path) -> str:
    return plain_path(file.relative_to(folder).as_posix() if file.is_relative_to(folder) else file.name)
