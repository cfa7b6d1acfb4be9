# SPDX-License-Identifier: Apache-2.0
"""`pmni synth OUT`: write a synthetic capture as a scene folder, and its truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pmni_nerfstudio.synth.scene import SynthConfig, SynthScene, make_scene

if TYPE_CHECKING:
    import trimesh


@dataclass(kw_only=True)
class SynthCommand(SynthConfig):
    """Write a synthetic capture with exact truth: masks, normal maps and cameras in the scene layout."""

    out: tyro.conf.Positional[Path]
    """Folder to write the scene to."""
    truth: Path | None = None
    """Folder for the true poses, mesh and depth, apart from the data; OUT/truth if not given."""
    poses: bool = True
    """Write the (rough) poses; without them the scene has an intrinsics.json and no cameras at all."""
    depth_maps: bool = False
    """Also write integration/depth, as normal integration would: each view's depth times a factor of its own."""
    mesh_resolution: int = 256
    """Samples along the side of the cube in which the true mesh is found."""

    def main(self) -> None:
        """Render and write."""
        scene = make_scene(self)
        # after the options were checked: torch takes seconds to load
        from pmni_nerfstudio.synth.shapes import SHAPES
        from pmni_nerfstudio.synth.surface import surface_mesh

        mesh = surface_mesh(SHAPES[self.shape], self.mesh_resolution)
        mesh.apply_transform(scene.world_from_unit)
        self._write_scene(scene, mesh)
        self._write_truth(scene, mesh)
        fill = scene.masks.mean()
        print(
            f"{self.out}: {self.shape}, {self.views} views of {self.width}x{self.height}, "
            f"masks fill {fill:.0%} of the frame; truth in {self.truth_dir}"
        )

    @property
    def truth_dir(self) -> Path:
        """Where the truth goes."""
        return self.truth if self.truth is not None else self.out / "truth"

    def _write_scene(self, scene: SynthScene, mesh: trimesh.Trimesh) -> None:
        import numpy as np

        from pmni_nerfstudio.data.scene import write_scene

        depths = None
        if self.depth_maps:
            scales = np.random.default_rng(self.seed).uniform(0.5, 2.0, self.views)
            depths = np.where(np.isfinite(scene.depth), scene.depth * scales[:, None, None], 0)
        write_scene(
            self.out,
            names=scene.names,
            K=np.broadcast_to(scene.K, (self.views, 3, 3)),
            c2w=scene.c2w_rough if self.poses else None,
            world_from_unit=scene.world_from_unit,
            masks=scene.masks,
            normals=scene.normals,
            # the layout's own place for a known surface; hidden, and of no use in a world without cameras
            mesh=mesh if self.truth is None and self.poses else None,
            depths=depths,
        )

    def _write_truth(self, scene: SynthScene, mesh: trimesh.Trimesh) -> None:
        import numpy as np

        from pmni_nerfstudio.data.atomic import atomic_path
        from pmni_nerfstudio.data.camera_files import write_cameras

        self.truth_dir.mkdir(parents=True, exist_ok=True)
        K = np.broadcast_to(scene.K, (self.views, 3, 3))
        write_cameras(self.truth_dir / "cameras_true.npz", K, scene.c2w, scene.world_from_unit)
        with atomic_path(self.truth_dir / "mesh_Gt.ply") as path:
            mesh.export(path)
        with atomic_path(self.truth_dir / "truth.npz") as path:
            np.savez_compressed(path, c2w=scene.c2w, K=scene.K, scale_mat=scene.world_from_unit, depth=scene.depth)
