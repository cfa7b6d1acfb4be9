# SPDX-License-Identifier: Apache-2.0
"""`pmni integrate DIR`: depth maps of a scene's normal maps, where the depth losses and other tools look for them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

from pmni_nerfstudio.errors import PmniError


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
    """Replace depth maps that are there."""

    def main(self) -> None:
        """Read the scene, integrate two views at a time, write.

        Raises:
            PmniError: a mistake in the scene or the options, or depth maps are there already.
        """
        if self.k < 0:
            raise PmniError(f"k: {self.k} is negative: give 0 or more")
        if self.max_rounds < 1:
            raise PmniError(f"max-rounds: {self.max_rounds} is none: give 1 or more")
        import numpy as np
        from rich.console import Console
        from rich.progress import track

        from pmni_nerfstudio.data.files import atomic_path
        from pmni_nerfstudio.data.scene import DEPTHS, RAY_DEPTHS, read_scene
        from pmni_nerfstudio.integration.bilateral import integrate_normals

        folders = (self.data / DEPTHS, self.data / RAY_DEPTHS)
        for folder in folders:
            if not self.overwrite and folder.is_dir() and any(folder.glob("*.npy")):
                raise PmniError(f"{folder}: holds depth maps already: add --overwrite to replace them")
        scene = read_scene(self.data, self.normals_folder)
        for folder in folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise PmniError(f"{folder}: can't be made ({error.strerror}): is the scene writable?") from error
        x, y = np.meshgrid(np.arange(scene.width), np.arange(scene.height))
        pixels = np.stack([x, y, np.ones_like(x)], axis=-1)

        def work(view: int) -> None:
            normals = scene.normals[view].astype(np.float64)
            depth = integrate_normals(normals, scene.masks[view], scene.K[view], k=self.k, max_rounds=self.max_rounds)
            depth = np.nan_to_num(depth)  # off the mask, where the files have zero
            stretch = np.linalg.norm(pixels @ np.linalg.inv(scene.K[view]).T, axis=-1)
            for folder, values in zip(folders, (depth, depth * stretch)):
                with atomic_path(folder / f"{scene.names[view]}.npy") as temporary:
                    np.save(temporary, values.astype(np.float32))

        with ThreadPoolExecutor(max_workers=2) as pool:
            views = pool.map(work, range(scene.num_views))
            for _ in track(views, "Integrating", total=scene.num_views, console=Console(stderr=True), transient=True):
                pass
        for i, folder in enumerate(folders):
            print(f"{'wrote' if i == 0 else '':<8}{folder}: {scene.num_views} maps of {scene.width}x{scene.height}")
