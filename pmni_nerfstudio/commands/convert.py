# SPDX-License-Identifier: Apache-2.0
"""`pmni convert DIR --to sdfstudio`: a scene in the format that nerfstudio's surface methods read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pmni_nerfstudio.errors import PmniError


@dataclass(kw_only=True)
class ConvertCommand:
    """Write a scene for other methods, with its own poses or found ones: pictures, masks, normals, depths, cameras."""

    data: tyro.conf.Positional[Path]
    """The scene's folder."""
    output_dir: Path
    """Folder to write to; made if need be."""
    to: Literal["sdfstudio"] = "sdfstudio"
    """The format: sdfstudio's, of `ns-train neus-facto` and `ns-train neus-facto-small`."""
    poses: Path | None = None
    """Camera-to-world poses in the place of the scene's own: poses.npy or cameras_refined.npz of `pmni export` or `pmni register`."""
    normals_folder: str | None = None
    """Name of the folder with the normal maps, where the scene has several."""

    def main(self) -> None:
        """Read, convert, and print what was written.

        Raises:
            PmniError: a mistake in the scene or the poses, no poses at all, or a folder that can't be written to.
        """
        import numpy as np
        from rich.console import Console
        from rich.markup import escape

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.data.result_files import read_poses
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.export.sdfstudio import META, write_sdfstudio
        from pmni_nerfstudio.geometry.transforms import transform_poses

        console = Console(stderr=True)
        scene = read_scene(self.data, self.normals_folder)
        if self.poses is not None:
            poses = read_poses(self.poses, scene.num_views)
            c2w = transform_poses(np.linalg.inv(scene.world_from_unit), poses)
        elif scene.c2w is not None:
            c2w = scene.c2w
        else:
            raise PmniError(
                f"{self.data}: has no camera poses: find them with `pmni register` or `ns-train pmni` first, and give "
                "the poses.npy that `pmni register` or `pmni export` wrote as --poses"
            )
        make_output_folder(self.output_dir)
        notes = write_sdfstudio(self.output_dir, scene, c2w, self.normals_folder)
        for warning in (*scene.warnings, *notes):
            console.print(f"[bold yellow]Warning: {escape(warning)}", soft_wrap=True)
        print(
            f"{self.output_dir / META}: {scene.num_views} views of {scene.width}x{scene.height}, black off the object"
        )
