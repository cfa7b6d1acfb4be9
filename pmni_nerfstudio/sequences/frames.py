# SPDX-License-Identifier: Apache-2.0
"""Frames of a sequence: folders DIR/frames/NNNN, or DIR/NNNN, each a scene folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.geometry.sim3 import angles_deg
from pmni_nerfstudio.geometry.transforms import orthonormalized, transform_poses

FRAMES = "frames"
_MAX_ANGLE_DEG = 0.5
"""Largest difference of given rotations that counts as rounding."""


@dataclass(frozen=True)
class Frame:
    """One moment of a sequence."""

    name: str
    """Name of its folder: digits."""
    folder: Path
    """Scene folder."""

    def read(self, normals_folder: str | None) -> Scene:
        """Read the frame's scene.

        Raises:
            SceneError: the scene is invalid.
        """
        return read_scene(self.folder, normals_folder, with_depths=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names, sizes and modification times of the frame's files, at the time of the first call."""
        digest = hashlib.sha256()
        for file in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            status = file.stat()
            digest.update(f"{file.relative_to(self.folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()


def find_frames(root: Path) -> list[Frame]:
    """Frames of a sequence, in the order of their numbers.

    Raises:
        PmniError: the folder does not exist, or has fewer than two frames or two of the same number.
    """
    if not root.is_dir():
        raise PmniError(
            f"{root}: {'is not a folder' if root.exists() else 'does not exist'}; give the sequence's folder"
        )
    parent = root / FRAMES if (root / FRAMES).is_dir() else root
    folders = [path for path in entries(parent) if path.is_dir() and path.name.isdecimal() and path.name.isascii()]
    frames = [Frame(path.name, path) for path in sorted(folders, key=lambda path: int(path.name))]
    if len(frames) < 2:
        raise PmniError(
            f"{parent}: has {len(frames) or 'no'} numbered folder{'' if len(frames) == 1 else 's'}; a sequence has at least "
            "two, NNNN, each with a scene"
        )
    for one, other in zip(frames, frames[1:]):
        if int(one.name) == int(other.name):
            raise PmniError(f"{parent}: {one.name} and {other.name} have the same number; rename one of them")
    return frames


def check_same_cameras(first: Scene, scene: Scene) -> None:
    """Check that a frame has the cameras of the first one.

    Raises:
        PmniError: views, sizes or given cameras differ.
    """
    remedy = f"; with static cameras all frames have those of {first.root}; otherwise give --cameras moving"
    if scene.names != first.names:
        unmatched = sorted(set(first.names) ^ set(scene.names))
        raise PmniError(f"{scene.root}: has other views than {first.root} ({', '.join(unmatched[:3])}){remedy}")
    if scene.masks.shape != first.masks.shape:
        size, expected = (f"{s.width}x{s.height}" for s in (scene, first))
        raise PmniError(f"{scene.root}: has maps of {size} instead of {expected} pixels{remedy}")
    if (scene.c2w is None) != (first.c2w is None):
        states = ("no poses", "poses") if scene.c2w is None else ("poses", "none")
        raise PmniError(f"{scene.root}: has {states[0]}, and {first.root} has {states[1]}{remedy}")
    if not np.allclose(scene.K, first.K, rtol=1e-4, atol=1e-2):
        raise PmniError(f"{scene.root}: has other intrinsics than {first.root}{remedy}")
    if scene.c2w is not None and first.c2w is not None:
        # The unit sphere may differ between frames, so that poses are compared in the data's world.
        given = transform_poses(scene.world_from_unit, scene.c2w)
        expected = transform_poses(first.world_from_unit, first.c2w)
        tolerance = 1e-3 * float(np.linalg.norm(expected[:, :3, 3], axis=1).max())
        if not np.allclose(given[:, :3, 3], expected[:, :3, 3], atol=tolerance):
            raise PmniError(f"{scene.root}: has other camera positions than {first.root}{remedy}")
        given, expected = (orthonormalized(poses)[:, :3, :3] for poses in (given, expected))
        if angles_deg(given, expected).max() > _MAX_ANGLE_DEG:
            raise PmniError(f"{scene.root}: has other camera orientations than {first.root}{remedy}")


def check_output_folder(out: Path, root: Path, frames: Sequence[Frame]) -> None:
    """Check that results in a folder neither mix with the frames nor become part of one.

    Args:
        out: output folder.
        root: folder of the sequence.
        frames: its frames.

    Raises:
        PmniError: the output folder is the sequence's, that of its frames, or lies in a frame.
    """
    at = out.resolve()
    folders = {frame.folder.resolve() for frame in frames}
    if at in (root.resolve(), (root / FRAMES).resolve()) or not folders.isdisjoint((at, *at.parents)):
        raise PmniError(f"{out}: holds the frames of the sequence; give an --output-dir of its own")


def spread(frames: Sequence[Frame], count: int) -> list[Frame]:
    """At most `count` frames, evenly spread from the first to the last."""
    if len(frames) <= count:
        return list(frames)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
