# SPDX-License-Identifier: Apache-2.0
"""`pmni register DIR`: poses and a first surface, without any training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(kw_only=True)
class RegisterCommand:
    """Recover camera poses and a surface from normal maps and masks, with rough poses or with none."""

    data: tyro.conf.Positional[Path]
    """The scene's folder. With an intrinsics.json in the place of cameras nothing is assumed of the poses but that
    the views go round the object in order."""
    output_dir: Path
    """Folder to write to; made if need be."""
    normals_folder: str | None = None
    """Name of the folder with the normal maps, where the scene has several."""
    ignore_poses: bool = False
    """Start from nothing even where the scene has cameras."""
    seed: int = 0
    """Of the points drawn; the same seed gives the same result."""

    def main(self) -> None:
        """Read, register, write, and print what was written.

        Raises:
            PmniError: a mistake in the scene, or a folder that can't be written to.
        """
        from rich.console import Console
        from rich.markup import escape

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.data.scene import read_scene

        console = Console(stderr=True)
        scene = read_scene(self.data, self.normals_folder)
        make_output_folder(self.output_dir)
        for warning in scene.warnings:
            console.print(f"[bold yellow]Warning: {escape(warning)}", soft_wrap=True)
        from pmni_nerfstudio.export.registration import PICTURE, write_registration
        from pmni_nerfstudio.export.registration_picture import write_registration_picture
        from pmni_nerfstudio.registration.pipeline import RegistrationSettings
        from pmni_nerfstudio.registration.progress import register_shown
        from pmni_nerfstudio.registration.views import views_of_scene

        views = views_of_scene(scene)
        poses = None if self.ignore_poses else scene.c2w
        registration = register_shown(views, poses, RegistrationSettings(seed=self.seed), console)
        files = write_registration(self.output_dir, scene, registration)
        write_registration_picture(self.output_dir / PICTURE, views, registration)
        for i, path in enumerate([*files, self.output_dir / PICTURE]):
            print(f"{'wrote' if i == 0 else '':<8}{path}")
