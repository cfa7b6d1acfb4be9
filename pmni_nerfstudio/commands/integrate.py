# SPDX-License-Identifier: Apache-2.0
"""`pmni integrate DIR`: depth maps of a scene's normal maps, where the depth losses and other tools look for them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from pmni_nerfstudio.errors import PmniError, one_line


@dataclass(kw_only=True)
class IntegrateCommand:
    """Integrate the normal maps of a scene to depth maps, up to one factor a view.

    Writes integration/depth/NN.npy (z depth) and integration/perspective/NN.npy (distance along the ray) into the
    scene's folder: float32, zero off the mask, mean log depth zero.
    """

    data: tyro.conf.Positional[Path]
    """The scene's folder; it needs no poses."""
    normals_folder: str | None = None
    """Name of the folder with the normal maps, where the scene has several."""
    k: float = 1.7
    """How readily the surface breaks: 0 never; 2 is the published value."""
    max_rounds: int = 60
    """At most so many rounds of weights and depth."""
    overwrite: bool = False
    """Replace depth maps that are there, all of them and only once all new ones are done."""

    def main(self) -> None:
        """Read the scene, integrate two views at a time, write.

        Raises:
            PmniError: a mistake in the scene or the options, or depth maps are there already.
        """
        if not 0 <= self.k < float("inf"):
            raise PmniError(f"--k: {self.k} is no sharpness: give 0 or more")
        if self.max_rounds < 1:
            raise PmniError(f"--max-rounds: {self.max_rounds} is none: give 1 or more")
        from pmni_nerfstudio.data.atomic import replaced_folders
        from pmni_nerfstudio.data.scene import DEPTHS, RAY_DEPTHS

        folders = (self.data / DEPTHS, self.data / RAY_DEPTHS)
        for folder in folders:
            if not self.overwrite and folder.is_dir() and any(folder.glob("*.npy")):
                raise PmniError(f"{folder}: holds depth maps already: add --overwrite to replace them")
        if not self.data.is_dir():
            raise PmniError(f"{self.data}: is no folder: give a scene's folder")
        try:
            with replaced_folders(folders, ".npy") as targets:
                size = self._write(targets)
        except OSError as error:
            reason = error.strerror or one_line(error)
            raise PmniError(f"{folders[0].parent}: can't be written ({reason}): check permissions and space") from error
        for i, folder in enumerate(folders):
            print(f"{'wrote' if i == 0 else '':<8}{folder}: {size}")

    def _write(self, folders: Sequence[Path]) -> str:
        """Fill the folders, z depth and distance along the ray; what was written, in words."""
        import numpy as np
        from rich.console import Console
        from rich.progress import track

        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.integration.bilateral import integrate_normals

        scene = read_scene(self.data, self.normals_folder)
        x, y = np.meshgrid(np.arange(scene.width), np.arange(scene.height))
        pixels = np.stack([x, y, np.ones_like(x)], axis=-1)

        def work(view: int) -> None:
            normals = scene.normals[view].astype(np.float64)
            depth = integrate_normals(normals, scene.masks[view], scene.K[view], k=self.k, max_rounds=self.max_rounds)
            depth = np.nan_to_num(depth)  # off the mask, where the files have zero
            stretch = np.linalg.norm(pixels @ np.linalg.inv(scene.K[view]).T, axis=-1)
            for folder, values in zip(folders, (depth, depth * stretch)):
                np.save(folder / f"{scene.names[view]}.npy", values.astype(np.float32))

        pool = ThreadPoolExecutor(max_workers=2)
        try:
            views = pool.map(work, range(scene.num_views))
            for _ in track(views, "Integrating", total=scene.num_views, console=Console(stderr=True), transient=True):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C the other views aren't worth their time
        return f"{scene.num_views} maps of {scene.width}x{scene.height}"
