# SPDX-License-Identifier: Apache-2.0
"""`pmni register SCENE`: camera poses and a first surface, without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pmni_nerfstudio.commands.checks import check_seed
from pmni_nerfstudio.errors import FailedResultError, print_warnings


@dataclass(kw_only=True)
class RegisterCommand:
    """Recover camera poses and a surface from normal maps and masks, with rough poses or none.

    The exit code is 2 if the registration failed, that is, if its result cannot be trusted; it is written all the same.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Scene folder. If it has an intrinsics.json instead of cameras, nothing is assumed of the poses: views may be in any
    order and layout, such as several rings, a spiral, handheld, or with the object turned over in between."""
    output_dir: Path
    """Folder to write to; created if missing."""
    normals_folder: str | None = None
    """Name of the folder with the normal maps, if the scene has several."""
    ignore_poses: bool = False
    """Ignore the poses of the scene, as if it had none."""
    seed: int = 0
    """Seed of the random surface points. Results with the same seed agree to some hundredths of a degree."""

    def main(self) -> None:
        """Read the scene, register it, write the result, and print the files written.

        Raises:
            PmniError: the scene is invalid, or the folder cannot be written to.
            FailedResultError: the registration failed; its result has been written.
        """
        from rich.console import Console

        from pmni_nerfstudio.data.files import make_output_folder
        from pmni_nerfstudio.data.reduction import Reduction, registration_step
        from pmni_nerfstudio.data.scene import read_scene

        check_seed(self.seed)
        console = Console(stderr=True)
        scene = read_scene(
            self.data, self.normals_folder, reduce=lambda height, width: Reduction(registration_step(height, width))
        )
        make_output_folder(self.output_dir)
        print_warnings(scene.warnings)
        from pmni_nerfstudio.export.registration import PICTURE, write_registration
        from pmni_nerfstudio.export.registration_picture import write_registration_picture
        from pmni_nerfstudio.registration.console import register_with_progress
        from pmni_nerfstudio.registration.pipeline import RegistrationSettings
        from pmni_nerfstudio.registration.views import views_of_scene

        views = views_of_scene(scene)
        c2w = None if self.ignore_poses else scene.c2w
        registration = register_with_progress(views, c2w, RegistrationSettings(seed=self.seed), console)
        files = write_registration(self.output_dir, scene, registration)
        write_registration_picture(self.output_dir / PICTURE, registration.corrected(views), registration)
        for i, path in enumerate([*files, self.output_dir / PICTURE]):
            print(f"{'wrote' if i == 0 else '':<8}{path}")
        if registration.verdict.name == "failed":
            raise FailedResultError(
                f"{self.data}: the registration failed, for the reasons above; its result was written to "
                f"{self.output_dir}, but neither poses nor surface can be trusted"
            )
