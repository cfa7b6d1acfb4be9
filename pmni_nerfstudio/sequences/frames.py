# SPDX-License-Identifier: Apache-2.0
"""Frames of a sequence: folders DIR/frames/NNNN, or DIR/NNNN, each a scene folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmni_nerfstudio.data.files import entries
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.errors import PmniError

FRAMES = "frames"


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

    def fingerprint(self) -> str:
        """Hash of the names, sizes and times of all files of the frame, which tells changed frames without reading them."""
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
        missing = sorted(set(first.names) ^ set(scene.names))
        raise PmniError(f"{scene.root}: has other views than {first.root} ({', '.join(missing[:3])}){remedy}")
    if scene.masks.shape != first.masks.shape:
        size, expected = (f"{s.width}x{s.height}" for s in (scene, first))
        raise PmniError(f"{scene.root}: has maps of {size} instead of {expected} pixels{remedy}")
    if (scene.c2w is None) != (first.c2w is None) or not np.allclose(scene.K, first.K, rtol=1e-4, atol=1e-2):
        raise PmniError(f"{scene.root}: has other intrinsics than {first.root}{remedy}")
    if scene.c2w is not None and first.c2w is not None:
        given, expected = (s.world_from_unit @ s.c2w for s in (scene, first))
        # The unit sphere may differ from frame to frame, and the data's world not.
        given, expected = (poses[:, :3, 3] for poses in (given, expected))
        if not np.allclose(given, expected, atol=1e-3 * float(np.linalg.norm(expected, axis=1).max())):
            raise PmniError(f"{scene.root}: has other camera positions than {first.root}{remedy}")


def spread(frames: Sequence[Frame], count: int) -> list[Frame]:
    """At most `count` frames, evenly spread from the first to the last."""
    if len(frames) <= count:
        return list(frames)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
