# SPDX-License-Identifier: Apache-2.0
"""`pmni convert DIR --to sdfstudio`: convert a scene folder to the format of nerfstudio's surface methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pmni_nerfstudio.errors import PmniError, print_warnings


@dataclass(kw_only=True)
class ConvertCommand:
    """Convert a scene to the input of other methods: images, masks, normal maps, depth maps and cameras."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Scene folder."""
    output_dir: Path
    """Folder to write to; created if missing."""
    to: Literal["sdfstudio"] = "sdfstudio"
    """Output format; sdfstudio is read by `ns-train neus-facto` and `ns-train neus-facto-small`."""
    poses: Path | None = None
    """File of camera-to-world poses to use instead of the scene's own: poses.npy or cameras_refined.npz, from `pmni export` or `pmni register`."""
    normals_folder: str | None = None
    """Name of the folder of normal maps, if the scene has several."""

    def main(self) -> None:
        """Convert the scene and print a summary.

        Raises:
            PmniError: The scene or the poses are invalid, there are no poses, or the folder cannot be written.
        """
        import numpy as np

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.data.result_files import read_poses
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.export.sdfstudio import META, write_sdfstudio
        from pmni_nerfstudio.geometry.transforms import transform_poses

        scene = read_scene(self.data, self.normals_folder)
        if self.poses is not None:
            poses = read_poses(self.poses, scene.num_views)
            c2w = transform_poses(np.linalg.inv(scene.world_from_unit), poses)
        elif scene.c2w is not None:
            c2w = scene.c2w
        else:
            raise PmniError(
                f"{self.data}: has no camera poses; estimate them with `pmni register`, or train and run `pmni export`, "
                "and give the resulting poses.npy as --poses"
            )
        make_output_folder(self.output_dir)
        notes = write_sdfstudio(self.output_dir, scene, c2w, self.normals_folder)
        print_warnings([*scene.warnings, *notes])
        print(f"{self.output_dir / META}: {scene.num_views} views of {scene.width}x{scene.height}, background black")
