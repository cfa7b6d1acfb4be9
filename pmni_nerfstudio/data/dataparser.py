# SPDX-License-Identifier: Apache-2.0
"""nerfstudio data parser for scene folders: splits, cameras, and pose noise for experiments.

nerfstudio imports this module while its own data manager is only partially loaded; therefore nothing here may import a
trainer, a pipeline or a data manager.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Optional, Tuple, Type

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataParser, DataParserConfig, DataparserOutputs
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.plugins.registry_dataparser import DataParserSpecification
from nerfstudio.utils.rich_utils import CONSOLE
from rich.markup import escape

from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.data.split_views import METADATA_KEY, select_views, split_indices
from pmni_nerfstudio.errors import SceneError, exit_on_error
from pmni_nerfstudio.geometry.camera_rings import object_distance, ring_c2w
from pmni_nerfstudio.geometry.pose_noise import perturb_poses
from pmni_nerfstudio.geometry.transforms import nerfstudio_from_opencv, scale_of
from pmni_nerfstudio.interrupts import exit_before_training

exit_before_training()  # the first module of this package that ns-train imports


@dataclass
class PmniDataParserConfig(DataParserConfig):
    """Configuration of the data parser for folders of normal maps, masks and cameras."""

    _target: Type = field(default_factory=lambda: PmniDataParser)
    """Target class to instantiate."""
    data: Path = Path()
    """Scene folder."""
    normals_folder: Optional[str] = None
    """Name of the folder with the normal maps, required if the scene has several."""
    scale_factor: float = 1.0
    """Factor on the size of the maps: 0.5 halves width and height. Intrinsics are scaled accordingly."""
    exclude_views: Tuple[int, ...] = ()
    """Indices of views to exclude from training, counted from 0 in the order of the file names. Evaluation uses them."""
    initial_poses: Literal["file", "ring", "none"] = "file"
    """Initial camera poses: those of the scene's camera file, or an even ring around the object, sized to the masks, as in
    PMNI. With "none", or without poses in the scene, the views are registered without an initial guess."""
    ring_elevation_deg: float = 20.0
    """Elevation of the ring's cameras above the object, in degrees."""
    ring_clockwise: bool = False
    """Whether the views of the ring are in clockwise order, seen from above."""
    pose_noise_rotation_deg: float = 0.0
    """Root mean square angle, in degrees, by which each camera is rotated about the object; for experiments."""
    pose_noise_translation: float = 0.0
    """Standard deviation of a shift of each camera along each axis, in radii of the unit sphere; for experiments."""
    pose_noise_seed: int = 0
    """Random seed of the pose noise."""


@dataclass
class PmniDataParser(DataParser):
    """Data parser for scene folders. Errors in the data end the program with a one-line message."""

    config: PmniDataParserConfig

    @cached_property
    def scene(self) -> Scene:
        """Scene, read at first use, when its warnings are printed.

        Raises:
            SceneError: a file of the scene is missing or invalid.
        """
        scene = read_scene(self.config.data, self.config.normals_folder, self.config.scale_factor)
        for warning in scene.warnings:
            CONSOLE.print(f"[bold yellow]Warning: {escape(warning)}", soft_wrap=True)
        return scene

    def _generate_dataparser_outputs(self, split: str = "train", **kwargs: Optional[dict]) -> DataparserOutputs:
        with exit_on_error():
            return self.outputs(split)

    def outputs(self, split_name: str) -> DataparserOutputs:
        """Outputs of a split, with cameras in the unit-sphere world.

        Cameras of training views have `metadata["cam_idx"]` (n, 1), their index in the train split, which their slices
        and rays keep; cameras of held-out views do not.

        Args:
            split_name: "train", or "val" or "test" for the held-out views (the training views if none are held out).

        Raises:
            SceneError: the scene is invalid, or views are held out of a scene without poses.
            PmniError: an excluded view does not exist, or all views are excluded.
        """
        scene = self.scene
        train, held_out = split_indices(scene, self.config.exclude_views)
        given = scene.c2w if self.config.initial_poses == "file" else None
        if given is None and held_out:
            raise SceneError(
                f"{scene.root}: no views can be held out because their poses are unknown; do not use exclude-views"
            )
        is_train = split_name == "train" or not held_out
        # Without poses, these are placeholders: the views are registered before training.
        c2w = self._ring() if given is None else given
        if is_train:
            c2w = perturb_poses(
                c2w,
                self.config.pose_noise_rotation_deg,
                self.config.pose_noise_translation,
                np.random.default_rng(self.config.pose_noise_seed),
            )
        has_poses = self.config.initial_poses == "ring" or given is not None
        split = select_views(scene, train if is_train else held_out, c2w, has_poses)
        transform, scale = unit_from_world(scene.world_from_unit)
        images = scene.normal_files if scene.image_files is None else scene.image_files
        return DataparserOutputs(
            image_filenames=[images[view] for view in split.indices],
            mask_filenames=[scene.mask_files[view] for view in split.indices],
            cameras=nerfstudio_cameras(split.K, split.c2w, scene.width, scene.height, cam_idx=is_train),
            scene_box=SceneBox(aabb=torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])),
            metadata={METADATA_KEY: split},
            dataparser_transform=torch.from_numpy(transform).float(),
            dataparser_scale=scale,
        )

    def _ring(self) -> Float[np.ndarray, "n 4 4"]:
        scene, config = self.scene, self.config
        distance = object_distance(scene.K, scene.masks)
        return ring_c2w(scene.num_views, distance, config.ring_elevation_deg, config.ring_clockwise)


def nerfstudio_cameras(
    K: Float[np.ndarray, "n 3 3"], c2w: Float[np.ndarray, "n 4 4"], width: int, height: int, cam_idx: bool
) -> Cameras:
    """Pinhole cameras in nerfstudio's conventions.

    Args:
        K: intrinsics in pixels, pixel centers at integers.
        c2w: camera-to-world poses, OpenCV axes.
        width: width of the images, in pixels.
        height: height of the images, in pixels.
        cam_idx: whether to number the cameras in `metadata["cam_idx"]`; otherwise the metadata is empty.
    """
    intrinsics = torch.from_numpy(K).float()
    return Cameras(
        camera_to_worlds=nerfstudio_from_opencv(c2w),
        fx=intrinsics[:, 0, 0, None],
        fy=intrinsics[:, 1, 1, None],
        cx=intrinsics[:, 0, 2, None] + 0.5,  # nerfstudio's pixel centers are at 0.5
        cy=intrinsics[:, 1, 2, None] + 0.5,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
        metadata={"cam_idx": torch.arange(len(c2w))[:, None]} if cam_idx else {},
    )


def unit_from_world(world_from_unit: Float[np.ndarray, "4 4"]) -> Tuple[Float[np.ndarray, "3 4"], float]:
    """Transform from the data world to the unit-sphere world as nerfstudio stores it: unit = scale * (transform @ world).

    Args:
        world_from_unit: similarity.

    Returns:
        transform: rotation and translation, (3, 4).
        scale: units of the unit-sphere world per unit of the data world.
    """
    size = scale_of(world_from_unit)
    rotation = world_from_unit[:3, :3].T / size
    return np.column_stack([rotation, -rotation @ world_from_unit[:3, 3]]), float(1 / size)


pmni_data = DataParserSpecification(
    config=PmniDataParserConfig(),
    description="Folder of surface normal maps, masks and cameras in the layout of SuperNormal and PMNI.",
)
