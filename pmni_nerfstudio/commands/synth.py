# SPDX-License-Identifier: Apache-2.0
"""`pmni synth OUT`: write a synthetic capture as a scene folder, with its ground truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.synth.scene import SynthConfig, SynthScene, make_scene

if TYPE_CHECKING:
    import trimesh

    from pmni_nerfstudio.synth.shapes import Shape


@dataclass(kw_only=True)
class SynthCommand(SynthConfig):
    """Write a synthetic capture as a scene folder (masks, normal maps, cameras), with exact ground truth."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Scene folder to write to."""
    truth: Path | None = None
    """Folder for the ground truth poses, mesh and depth maps; OUT/truth if not given."""
    poses: bool = True
    """Write the camera poses; otherwise the scene has only intrinsics.json."""
    depth_maps: bool = False
    """Also write depth maps as if by normal integration: true depth times a random factor for each view."""
    mesh_resolution: int = 256
    """Samples along each side of the cube from which the ground truth mesh is extracted."""
    frames: int = 1
    """Number of moments: with 2 or more, a sequence OUT/frames/NNNN of the figure, which raises its arm in front of
    static cameras."""

    def main(self) -> None:
        """Render the capture and write scene and ground truth.

        Raises:
            PmniError: An option is out of range, or a file cannot be written.
        """
        if self.frames < 1:
            raise PmniError(f"--frames: {self.frames} is too small; give at least 1")
        if self.frames > 1:
            self._write_sequence()
            return
        self._write(make_scene(self))

    def _write_sequence(self) -> None:
        from pmni_nerfstudio.synth.shapes import moving_figure

        if self.shape != "figure":
            raise PmniError(f"--frames: {self.shape} does not move; give --shape figure")
        for frame, shape in enumerate(moving_figure(self.frames)):
            name = f"frames/{frame:04d}"
            truth = None if self.truth is None else self.truth / name
            one = replace(self, out=self.out / name, truth=truth, frames=1)
            one._write(make_scene(self, shape, frame), shape)

    def _write(self, scene: SynthScene, shape: Shape | None = None) -> None:
        # Imported after the options are checked, because torch takes seconds to load.
        from pmni_nerfstudio.synth.shapes import SHAPES
        from pmni_nerfstudio.synth.surface import surface_mesh

        mesh = surface_mesh(shape or SHAPES[self.shape], self.mesh_resolution)
        mesh.apply_transform(scene.world_from_unit)
        self._write_scene(scene, mesh)
        self._write_truth(scene, mesh)
        fill = scene.masks.mean()
        print(
            f"{self.out}: {self.shape}, {self.views} views of {self.width}x{self.height}, "
            f"masks fill {fill:.0%} of the frame; ground truth in {self.truth_dir}"
        )

    @property
    def truth_dir(self) -> Path:
        """Folder of the ground truth."""
        return self.truth if self.truth is not None else self.out / "truth"

    def _write_scene(self, scene: SynthScene, mesh: trimesh.Trimesh) -> None:
        from pmni_nerfstudio.data.scene_writer import write_scene

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
            # Left out if the ground truth is kept apart, and without poses, where the scene has no world.
            mesh=mesh if self.truth is None and self.poses else None,
            depths=depths,
        )

    def _write_truth(self, scene: SynthScene, mesh: trimesh.Trimesh) -> None:
        from pmni_nerfstudio.data.atomic import atomic_path
        from pmni_nerfstudio.data.camera_files import write_cameras

        self.truth_dir.mkdir(parents=True, exist_ok=True)
        K = np.broadcast_to(scene.K, (self.views, 3, 3))
        write_cameras(self.truth_dir / "cameras_true.npz", K, scene.c2w, scene.world_from_unit)
        with atomic_path(self.truth_dir / "mesh_Gt.ply") as path:
            mesh.export(path)
        with atomic_path(self.truth_dir / "truth.npz") as path:
            np.savez_compressed(path, c2w=scene.c2w, K=scene.K, scale_mat=scene.world_from_unit, depth=scene.depth)
