# SPDX-License-Identifier: Apache-2.0
"""`pmni check DATA`: what is read of a scene folder, whether its views fit each other, and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pmni_nerfstudio.errors import PmniError, print_warnings


@dataclass(kw_only=True)
class CheckCommand:
    """Check a scene folder before training: what is read, warnings, and a contact sheet of all views.

    Prints size and number of the views, folder and axes of the normals and how well they fit the masks, holes, intrinsics,
    poses, and the consistency of the silhouettes; views that do not fit the others are named. Nothing is written to the
    scene. The exit code is 1, with one line that tells why, if the scene cannot be used by ns-train.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Scene folder."""
    normals_folder: str | None = None
    """Name of the folder of normal maps, if the scene has several."""
    output: Path | None = None
    """Contact sheet to write (PNG); by default NAME_check.png in the current folder, where NAME is the scene's."""

    def main(self) -> None:
        """Read the scene, print the summary and the warnings, and write the contact sheet.

        Raises:
            PmniError: The scene is invalid, or the picture cannot be written.
        """
        output = self.output or Path(f"{self.data.absolute().resolve().name or 'scene'}_check.png")
        if output.suffix.lower() != ".png":
            raise PmniError(f"--output: {output} is not a PNG file; give a name that ends with .png")
        if not output.absolute().parent.is_dir():
            raise PmniError(f"{output}: its folder does not exist; create it, or give another --output")
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.data.scene_summary import describe_sizes, summarize
        from pmni_nerfstudio.export.contact_sheet import write_contact_sheet
        from pmni_nerfstudio.importers.advice import check_is_scene

        check_is_scene(self.data, "pmni")
        scene = read_scene(self.data, self.normals_folder)
        summary = summarize(scene)
        print(f"{self.data}: {scene.num_views} views of {describe_sizes(scene.facts.sizes.tolist())}")
        for line in summary.lines():
            print(f"  {line}")
        print_warnings([*scene.warnings, *summary.warnings()])
        write_contact_sheet(output, summary)
        print(f"wrote   {output}")
