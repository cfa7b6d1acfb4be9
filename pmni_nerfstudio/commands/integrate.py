# SPDX-License-Identifier: Apache-2.0
"""`pmni integrate DIR`: depth maps from a scene's normal maps, written to where the depth losses read them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pmni_nerfstudio.errors import PmniError, one_line


@dataclass(kw_only=True)
class IntegrateCommand:
    """Integrate the normal maps of a scene to depth maps, up to one scale factor per connected part of each mask.

    Writes integration/depth/NN.npy (z depth) and integration/perspective/NN.npy (distance along the ray) to the scene
    folder: float32, zero where there is no normal, with a mean log depth of zero.
    """

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Scene folder, with or without poses."""
    normals_folder: str | None = None
    """Name of the folder of normal maps, if the scene has several."""
    k: float = 1.7
    """Sharpness of depth discontinuities: 0 yields a continuous surface; the paper uses 2."""
    max_rounds: int = 60
    """Maximum number of alternating updates of weights and depth."""
    overwrite: bool = False
    """Replace all existing depth maps once the new ones are complete."""

    def main(self) -> None:
        """Integrate all views, two at a time, and write the depth maps.

        Raises:
            PmniError: The scene or an option is invalid, or depth maps exist already.
        """
        if not 0 <= self.k < float("inf"):
            raise PmniError(f"--k: {self.k} is not a sharpness; give 0 or more")
        if self.max_rounds < 1:
            raise PmniError(f"--max-rounds: {self.max_rounds} is too small; give at least 1")
        from pmni_nerfstudio.data.atomic import replaced_folders
        from pmni_nerfstudio.data.scene import DEPTHS, RAY_DEPTHS

        folders = (self.data / DEPTHS, self.data / RAY_DEPTHS)
        for folder in folders:
            if not self.overwrite and folder.is_dir() and any(folder.glob("*.npy")):
                raise PmniError(f"{folder}: holds depth maps already; add --overwrite to replace them")
        if not self.data.is_dir():
            raise PmniError(f"{self.data}: is not a folder; give a scene folder")
        try:
            with replaced_folders(folders, kept=lambda path: path.suffix.lower() != ".npy") as targets:
                size = self._write(targets)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise PmniError(f"{folders[0].parent}: can't be written ({reason}); check permissions and space") from error
        for i, folder in enumerate(folders):
            print(f"{'wrote' if i == 0 else '':<8}{folder}: {size}")

    def _write(self, folders: Sequence[Path]) -> str:
        """Write the maps of z depth and of distance along the ray to two folders; return a summary in words."""
        import numpy as np
        from rich.console import Console
        from rich.progress import track

        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.data.scene_summary import describe_sizes
        from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
        from pmni_nerfstudio.integration.bilateral import integrate_normals

        scene = read_scene(self.data, self.normals_folder, with_depths=False)
        pixels = pixel_grid(scene.width, scene.height)

        def integrate(view: int) -> None:
            normals = scene.normals[view].astype(np.float64)
            depth = integrate_normals(normals, scene.masks[view], scene.K[view], k=self.k, max_rounds=self.max_rounds)
            depth = np.where(scene.valid[view], depth, 0)
            ray_lengths = np.linalg.norm(pixel_directions(scene.K[view], pixels), axis=-1)
            for folder, values in zip(folders, (depth, depth * ray_lengths)):
                np.save(folder / f"{scene.names[view]}.npy", values[scene.frame(view)].astype(np.float32))

        pool = ThreadPoolExecutor(max_workers=2)
        try:
            views = pool.map(integrate, range(scene.num_views))
            for _ in track(views, "Integrating", total=scene.num_views, console=Console(stderr=True), transient=True):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C, skip the other views
        return f"{scene.num_views} maps of {describe_sizes(scene.facts.sizes.tolist())}"
